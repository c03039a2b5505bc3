"""
The host's ports on which gateways are published.

`weft up` binds them before it starts anything and keeps them until it ends, so nobody can take one meanwhile and the
port that a person was told stays the mesh's over each restart of edge and proxy. The edge listens on them when a
gateway asks for it (docs/reference/interfaces.md, 4.4); until then callers are refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import replace

from weft.agent import sockets
from weft.errors import UsageError
from weft.model import Published

_REASONS = {
    errno.EADDRINUSE: "another process of this host has it",
    errno.EACCES: "this user may not bind it; choose a port above net.ipv4.ip_unprivileged_port_start",
    errno.EADDRNOTAVAIL: "this host has no such address",
}


def target(published: Published) -> str:
    """Return the host's end: `127.0.0.1:8080`, `[::1]:8080`."""
    address = published.host_address
    return f"[{address}]:{published.host_port}" if ":" in address else f"{address}:{published.host_port}"


def reason(error: OSError, port: int) -> str:
    """Return in words why *port* of an address of the host could not be bound; who has it, where that can be seen."""
    if error.errno == errno.EADDRINUSE and (holder := sockets.holder_of(port)):
        return f"{holder} has it"
    return _REASONS.get(error.errno or 0, os.strerror(error.errno or 0))


def bind(address: str, port: int) -> socket.socket:
    """
    Return a socket that has *port* of *address*, not listening yet.

    Raises:
        OSError: It cannot be had.
    """
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # Without SO_REUSEADDR, with which others could bind and listen on what does not listen yet.
            made.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not port:
                raise
            # Connections of an earlier mesh may linger there (TIME_WAIT).
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, port))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        made.close()
        raise
    return made


FREE_PORT_TRIES = 5
"""How often a port that was free a moment ago may be somebody else's by now."""


def reserve(ports: Sequence[Published]) -> tuple[list[Published], dict[str, socket.socket]]:
    """
    Bind all *ports*; return them with the host ports that they got, and the sockets by target.

    In the place of a host port of 0 comes the gateway's own number if it can be had, else one that the kernel chooses.

    Raises:
        UsageError: A port cannot be had; none is bound then.
    """
    bound: dict[str, socket.socket] = {}
    got = []
    with contextlib.ExitStack() as undo:
        for wanted in ports:
            made = undo.enter_context(_bind_published(wanted))
            got.append(replace(wanted, host_port=made.getsockname()[1]))
            bound[target(got[-1])] = made
        undo.pop_all()
    return got, bound


def _bind_published(wanted: Published) -> socket.socket:
    if wanted.host_port:
        try:
            return bind(wanted.host_address, wanted.host_port)
        except OSError as error:
            raise UsageError(
                f"Port {wanted.host_port} of {wanted.host_address} cannot be published: {reason(error, wanted.host_port)}. Name another"
                f" under `publish` in weft.yaml, or 0 for one that is free."
            ) from error
    with contextlib.suppress(OSError):
        return bind(wanted.host_address, wanted.port)
    try:
        return _bind_free(wanted.host_address)
    except OSError as error:
        raise UsageError(f"No port of {wanted.host_address} can be published: {reason(error, 0)}.") from error


def listen(reserved: socket.socket, backlog: int) -> None:
    """
    Have a socket of `bind` listen, for the first time or again.

    Raises:
        OSError: It cannot.
    """
    # The kernel looks at who has the port once more. Connections that were closed at this end linger for a minute, and forbid it unless
    # they were accepted with SO_REUSEADDR, too.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.listen(backlog)
    except OSError:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        raise


def rest(reserved: socket.socket) -> None:
    """Have it listen no more, and keep its port from others; raises OSError if it did not listen."""
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    reserved.shutdown(socket.SHUT_RD)


def _bind_free(address: str) -> socket.socket:
    """
    Bind a port that the kernel chooses, by its number.

    A port that is bound as 0 is no more the socket's once it stops listening (`SOCK_BINDPORT_LOCK`, inet_shutdown): when
    a gateway's listener comes back, the socket would listen on another one.
    """
    for tries_left in reversed(range(FREE_PORT_TRIES)):
        with bind(address, 0) as chosen:
            number = chosen.getsockname()[1]
        try:
            return bind(address, number)
        except OSError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")
