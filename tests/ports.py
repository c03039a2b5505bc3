"""Ports for programs that must be told one before they bind it, and the wait until they have."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections import deque
from pathlib import Path

LIMIT_SECONDS = 30.0
"""For a program to come and listen."""

_held: deque[socket.socket] = deque()
"""The ports given of late, bound and not listened on: so the kernel gives them to no connection and to nobody else."""

KEPT_PORTS = 200
"""More than are given before their programs bind them, and few enough for the limit of open files."""


def free_port() -> int:
    """
    Return a port that nobody has, of no address.

    It stays bound here with SO_REUSEADDR, so that whoever binds it with that option, as servers do, can listen on it,
    while it is refused to others: to a test run beside this one, and to a connection that needs a port of its own.
    """
    return _hold(0)


def consecutive_ports(count: int) -> int:
    """Return the first of *count* ports in a row that nobody has; they are held as that of `free_port` is."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError, OverflowError):
            for port in range(first + 1, first + count):
                _hold(port)
            return first


def _hold(port: int) -> int:
    held = socket.socket()
    try:
        held.bind(("0.0.0.0", port))
    except (OSError, OverflowError):
        held.close()
        raise
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: two would share one port
    _held.append(held)
    if len(_held) > KEPT_PORTS:
        _held.popleft().close()
    return int(held.getsockname()[1])


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """
    Whether a connection to *port* at *host*, an IPv4 address of this machine, would find somebody who listens.

    The kernel is asked (proc(5), /proc/net/tcp), and not whoever listens: a connection would be in its records and counts.
    """
    at, listen = socket.inet_aton(host)[::-1].hex(), "0a"
    mapped = f"{'0' * 16}ffff0000{at}"  # an IPv4 address in IPv6, in words of four bytes: RFC 4291, section 2.5.5.2
    wanted = {f"{address}:{port:04x}" for address in (at, "0" * 8, mapped, "0" * 32)}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            lines = [line.split() for line in table.read_text().lower().splitlines()[1:]]
            if any(line[1] in wanted and line[3] == listen for line in lines):
                return True
    return False


def until_listening(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """
    Wait until somebody listens on *port* of the loopback.

    Raises:
        AssertionError: *process* has ended meanwhile.
        TimeoutError: Nobody came.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "it has ended; what it said is in this test's output"
        if is_listening(port):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens on port {port}")
