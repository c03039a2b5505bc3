"""Ports for programs that must be told one before they bind it."""

from __future__ import annotations

import socket

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
