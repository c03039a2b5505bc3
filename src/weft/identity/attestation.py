"""
Whom to believe on a Unix socket: the kernel's word on the process at its other end.

An agent is a process of the mesh's user, outside of every program. Programs run as the same user, so the user id alone
says nothing; but a program is in a PID namespace of its own, and an agent is in ours. A program also does not see the
sockets: this check is for the day when that fails.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TypeAlias

from weft.errors import WeftError

NamespaceId: TypeAlias = tuple[int, int]
"""Device and inode of a namespace's file, which identify it (namespaces(7))."""

_PEER_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid (unix(7))."""


class AttestationRefused(WeftError):
    """The peer of a connection is not to be trusted. The message says why."""


def attest(connection: socket.socket, *, uid: int | None = None) -> int:
    """
    Check the peer of a connected Unix socket and return its process id.

    Args:
        connection: Anything with a socket's `getsockopt`.
        uid: The mesh's user; our own if None.

    Raises:
        AttestationRefused: It is another user's, it is within a program's namespaces, or that cannot be seen.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, peer_uid, _ = _PEER_CREDENTIALS.unpack(data)
    uid = os.getuid() if uid is None else uid
    if peer_uid != uid:
        raise AttestationRefused(f"process {pid} belongs to user {peer_uid}, the mesh to user {uid}")
    check_outside(pid)
    return int(pid)


def check_outside(pid: int) -> None:
    """
    Check that a process is not within a program's namespaces.

    A process that has ended meanwhile is refused: its number may be another's by now.

    Raises:
        AttestationRefused: It is, or its namespaces cannot be read.
    """
    if pid <= 0:
        # The kernel has no number for a process that our PID namespace does not contain.
        raise AttestationRefused("the process is in a PID namespace that is not below ours")
    if _namespace(pid, "pid") != _namespace(os.getpid(), "pid"):
        raise AttestationRefused(f"process {pid} is within a program: it is in another PID namespace")


def _namespace(pid: int, kind: str) -> NamespaceId:
    try:
        status = Path(f"/proc/{pid}/ns/{kind}").stat()
    except OSError as exc:
        raise AttestationRefused(f"the namespaces of process {pid} cannot be read: {exc.strerror}") from exc
    return status.st_dev, status.st_ino
