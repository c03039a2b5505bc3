"""Linux capabilities, by the names of capabilities(7) without `CAP_`: those that a program may be given, and those never."""

from __future__ import annotations

from collections.abc import Mapping

GRANTABLE: Mapping[str, int] = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "IPC_LOCK": 14,
    "SYS_CHROOT": 18,
    "SYS_NICE": 23,
    "SYS_RESOURCE": 24,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
"""
Name -> number (linux/capability.h) of what a program of real root may be given.

It is the usual default of containers without NET_RAW and MKNOD, and what databases ask for beyond it. What is not in it
matters: NET_ADMIN could flush the rules, SYS_ADMIN leave the namespaces, SYS_PTRACE read the agent's keys, NET_RAW send
around the proxy.
"""

WITHHELD = frozenset(
    {"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "BPF", "PERFMON", "DAC_READ_SEARCH"}
)
"""Those that lead around the proxy, out of the namespaces or to the agent's keys, for a better word than "unknown"."""


NONE_GIVEN = "capabilities are given to programs of root only; this one has none"
"""What is said where some were asked for in vain."""


def canonical(name: str) -> str:
    """Return `CAP_net_bind_service` as `NET_BIND_SERVICE`, whether or not there is such a capability."""
    return name.upper().removeprefix("CAP_")


def capability_fault(name: str) -> str | None:
    """Return what is wrong with *name* as a capability for a program, None if nothing is."""
    wanted = canonical(name)
    if wanted in GRANTABLE:
        return None
    if wanted in WITHHELD:
        return f"{wanted} is never given: with it a program could get around its proxy."
    return f"`{name}` is no capability that a program can be given; there are {', '.join(GRANTABLE)}."
