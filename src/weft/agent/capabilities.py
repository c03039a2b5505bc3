"""
What a program may do to the kernel: nothing beyond its uid, and as real root what it was expressly given.

Called by `weft.agent.init` in the program's process, last before exec, while it still has all capabilities.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from weft.agent import syscalls
from weft.model.capability import GRANTABLE

# What weft itself uses; numbers from linux/capability.h.
SETPCAP, NET_BIND_SERVICE, NET_ADMIN, SYS_ADMIN, SETFCAP = 8, 10, 12, 21, 31

# All four switches on and locked, securebits.h: uid 0 means nothing, no capability survives a change of uid, none can be ambient.
_SECUREBITS_NOTHING = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40 | 0x80


def holds(*capabilities: int) -> bool:
    """Whether the calling thread has all of *capabilities* effective."""
    effective, _, _ = syscalls.capget()
    return all(effective >> number & 1 for number in capabilities)


def grantable_here() -> bool:
    """Whether giving a program capabilities means anything: not in a user namespace that knows one user only."""
    with open("/proc/self/uid_map") as table:
        return sum(int(line.split()[2]) for line in table) != 1


def restrict(granted: Collection[str] = ()) -> None:
    """
    Keep the capabilities *granted* (names of `weft.model.capability.GRANTABLE`), where there are other users; drop all others.

    Raises:
        OSError: The kernel did not let go; the program must then not be executed.
    """
    if granted and grantable_here():
        keep_only(frozenset(GRANTABLE[name] for name in granted))
    else:
        drop_everything()


def drop_everything() -> None:
    """
    Give up every capability for good: bounding set, ambient and own sets, what uid 0 would bring, what setuid files would bring.

    Raises:
        OSError: The kernel did not let go; the program must then not be executed.
    """
    _drop_bounding(frozenset())
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, _SECUREBITS_NOTHING)
    syscalls.capset(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def keep_only(numbers: frozenset[int]) -> None:
    """
    Reduce real root to *numbers*, also for everything it executes later.

    Raises:
        OSError: The kernel did not let go; the program must then not be executed.
    """
    _drop_bounding(numbers)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    _, permitted, _ = syscalls.capget()
    mask = permitted & sum(1 << number for number in numbers)
    syscalls.capset(mask, mask, 0)


def _drop_bounding(keep: frozenset[int]) -> None:
    for number in range(64):
        try:
            present = syscalls.prctl(syscalls.PR_CAPBSET_READ, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # beyond the last capability of this kernel
                return
            raise
        if present and number not in keep:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
