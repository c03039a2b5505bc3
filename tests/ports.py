"""Ports for programs that must be told one before they bind it, and the wait until they have."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time

LIMIT_SECONDS = 30.0
"""For a program to come and listen."""

_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody has, of no address, and that this process has not given to anybody before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def until_listening(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """
    Wait until somebody takes connections at *port* of the loopback.

    Raises:
        AssertionError: *process* has ended meanwhile.
        TimeoutError: Nobody came.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "it has ended; what it said is in this test's output"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens on port {port}")
