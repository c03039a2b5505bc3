"""
Listening sockets, and the processes that hold them: where a program really is, as the kernel has it.

Called by agents. In explicit mode the loopback is everybody's, so a socket counts as a program's only if one of its
own processes holds it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from weft.agent import netlink
from weft.agent.processes import stat

_LISTEN = "0A"


def dialled(listener: netlink.Listener) -> str:
    """The address at which a listener is reached from its own namespace."""
    address: IPv4Address | IPv6Address = listener.address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not address.is_unspecified:
        return str(address)
    return "::1" if address.version == 6 and listener.only6 else "127.0.0.1"


def listeners() -> list[netlink.Listener]:
    """Every listening TCP socket of the caller's network namespace."""
    try:
        with netlink.Netlink(netlink.NETLINK_SOCK_DIAG) as diag:
            return netlink.tcp_listeners(diag)
    except OSError:
        return listeners_of_proc()  # no tcp_diag, or a seccomp filter before it


def listeners_of_proc() -> list[netlink.Listener]:
    """
    Listening sockets as /proc tells them, for kernels without tcp_diag.

    It does not tell whether an IPv6 wildcard takes IPv4; ::1 reaches it in either case.
    """
    found = []
    for name, words in (("tcp", 1), ("tcp6", 4)):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            _slot, local, _remote, state, _queues, _timer, _tries, _uid, _timeout, inode = line.split()[:10]
            if state != _LISTEN:
                continue
            number, port = local.split(":")
            # Each 32-bit word is printed as the machine holds it.
            raw = struct.pack(f"={words}I", *(int(number[8 * word : 8 * word + 8], 16) for word in range(words)))
            address = IPv4Address(raw) if words == 1 else IPv6Address(raw)
            found.append(netlink.Listener(address, int(port, 16), words == 4, int(inode)))
    return found


def inodes_of(pids: Iterable[int]) -> set[int]:
    """The inodes of all sockets that the processes *pids* hold; those of processes that may not be looked at are left out."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    link = os.readlink(f"/proc/{pid}/fd/{name}")
                    if link.startswith("socket:["):
                        found.add(int(link[8:-1]))
    return found


def descendants(pid: int) -> list[int]:
    """All processes below *pid*, parents before their children; zombies are left out."""
    children: dict[int, list[int]] = {}
    for process, parent in _parents():
        children.setdefault(parent, []).append(process)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(0), [])
        found += below
        waiting += below
    return found


def children(pid: int) -> list[int]:
    """The children of a process that live."""
    return [process for process, parent in _parents() if parent == pid]


def holder_of(port: int) -> str:
    """
    Who listens on TCP *port*, in words: `python3 (process 123)`; empty if nobody does or it cannot be seen.

    Only processes of the caller's user (all, for root) show their sockets.
    """
    wanted = {listener.inode for listener in listeners() if listener.port == port}
    for pid, _ in _parents() if wanted else ():
        if inodes_of([pid]) & wanted:
            return f"{_name(pid)} (process {pid})"
    return ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "a process"


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process, its parent) of every process that lives."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat(int(entry))
            if fields and fields[0] not in (b"Z", b"X"):
                yield int(entry), int(fields[1])
