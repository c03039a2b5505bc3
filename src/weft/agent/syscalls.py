"""
The system calls that Python 3.11 does not have: namespaces, mounts, prctl, capabilities. One thin function each.

Every function raises OSError with the call's name as its text and `errno` set. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x8_0000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_CAPABILITY_VERSION_3 = 0x2008_0522

_SECCOMP_MODE_FILTER = 2
_PRCTL_NUMBERS = {"x86_64": (0xC000_003E, 157), "aarch64": (0xC000_00B7, 167)}
"""By machine: its AUDIT_ARCH_... of linux/audit.h, and its number of prctl."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.capset.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.capget.argtypes = (ctypes.c_char_p, ctypes.c_char_p)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int = 0) -> None:
    """setns(2); *kind* is the CLONE_NEW... flag that the descriptor must be of, or 0 for any."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); a symbolic link *target* is followed."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None)
    _check(result, "mount", target)


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2", target)


def prctl(option: int, argument: int = 0, third: int = 0) -> int:
    """prctl(2); returns what the kernel returned."""
    result: int = _libc.prctl(option, argument, third, 0, 0)
    _check(result, "prctl")
    return result


def set_death_signal(number: int) -> None:
    """Have the kernel send signal *number* to this process when the thread that made it ends; 0 for none."""
    prctl(PR_SET_PDEATHSIG, number)


def pin_death_signal() -> None:
    """
    Have the death signal stay as it is through all that this process executes: setting it succeeds and does nothing.

    By a filter of seccomp(2), which without CAP_SYS_ADMIN in the user namespace asks for no_new_privs.

    Raises:
        OSError: Also where this machine's number of prctl is not known here.
    """
    if platform.machine() not in _PRCTL_NUMBERS:
        raise OSError(errno.ENOSYS, f"seccomp: not known for {platform.machine()}")
    architecture, number = _PRCTL_NUMBERS[platform.machine()]
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
    allow, pretend = 0x7FFF_0000, 0x0005_0000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with no error
    steps = [
        (load, 0, 0, 4),  # struct seccomp_data: nr, arch, instruction_pointer, args
        (equal, 0, 5, architecture),
        (load, 0, 0, 0),
        (equal, 0, 3, number),
        (load, 0, 0, 16),  # the lower half of the first argument: both machines are little-endian
        (equal, 0, 1, PR_SET_PDEATHSIG),
        (answer, 0, 0, pretend),
        (answer, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def capget() -> tuple[int, int, int]:
    """Effective, permitted and inheritable capabilities of the calling thread, as bit masks."""
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data), "capget")
    low_effective, low_permitted, low_inheritable, effective, permitted, inheritable = struct.unpack("=6I", data.raw)
    return effective << 32 | low_effective, permitted << 32 | low_permitted, inheritable << 32 | low_inheritable


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of the calling thread, as bit masks."""
    low = [mask & 0xFFFF_FFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    _check(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *low, *high)), "capset")


def _check(result: int, name: str, path: str | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", path)
