"""
The relay: carries bytes between the host's network and a proxy that cannot be handed sockets (Envoy).

Part of the agent of such a workload; weft-proxy asks the edge itself. The edge stays the only process that touches the
host's network, and decides what this workload may reach: the relay asks it for each connection under the workload's
name, as weft-proxy does. Between proxy and relay are Unix sockets in the workload's directory, which programs do not
see, and PROXY protocol headers that say where a connection was going, or whence it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from ipaddress import ip_address
from pathlib import Path

from weft.agent import edge, proxy_protocol
from weft.agent.accepting import readable, serve_each
from weft.agent.edge import EdgeRefused
from weft.agent.proxy_protocol import Endpoint, Malformed
from weft.errors import WeftError

HEADER_SECONDS = 5.0
"""The proxy sends its header with the connection, so a longer silence is a mistake."""

DIAL_MILLISECONDS = 10_000
"""As long as the proxies' own connect timeout."""

CHUNK_BYTES = 1 << 16
BACKLOG = 1024
LISTENER_POLL_SECONDS = 0.02
"""Between looks for the proxy's socket: a Gateway is in effect within 100 ms of its being applied."""

DEATH_KNOWN_SECONDS = 0.05
"""How long it may take until the death of a process is known to the agent, its parent, on a busy machine."""

EDGE_PAUSE_SECONDS = 0.1
"""Before an edge that is not there is asked again."""

REFUSED_PAUSE_SECONDS = 5.0
"""Before the edge is asked again for a port that it could not have; it is told each time."""

TELL_AGAIN_SECONDS = 1.0
"""Before the same refusal is told again: a program may try a place that is down many times a second."""

Tell = Callable[[str, str], None]

ReadAlong = Callable[[memoryview], None]

_ABORT = struct.pack("ii", 1, 0)  # linger for no time: close sends a reset (socket(7))


class Relay:
    """
    All that one agent carries.

    Args:
        edge_socket: The edge.
        workload: Under whose name connections are asked for.
        refused: Called with a destination and the reason why the edge made no connection to it, which the proxy cannot
            know; each pair at most once in `TELL_AGAIN_SECONDS`.
    """

    def __init__(self, edge_socket: Path, workload: str, *, refused: Tell = lambda _destination, _reason: None) -> None:
        self._edge, self._workload = edge_socket, workload
        self._refused = refused
        self._told: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[socket.socket] = []

    async def open_outside(self, path: Path) -> None:
        """
        Take connections of the proxy at *path* and carry each to the destination that its header names.

        Raises:
            OSError: *path* cannot be bound.
        """
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._listeners.append(listener)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
        self._start(self._accept(listener, self._carry_out))

    def publish(
        self, place: Endpoint, path: Path, serving: Callable[[], Awaitable[None]], note: Callable[[str], None]
    ) -> None:
        """
        While the proxy takes connections at *path*, listen at *place* on the host and carry each of them there.

        Args:
            place: Address and port of the host.
            path: Where the proxy takes them, each with a header, while its configuration has a listener for them.
            serving: Waits until the proxy serves; while it is being started again, connections wait.
            note: Called with a sentence if the edge cannot listen there.
        """
        self._start(self._publish(place, path, serving, note))

    async def _publish(
        self, place: Endpoint, path: Path, serving: Callable[[], Awaitable[None]], note: Callable[[str], None]
    ) -> None:
        gone: object = None  # a socket on which nobody listens any more, though its file is there
        while True:
            while (found := _which(path)) in (None, gone):
                await asyncio.sleep(LISTENER_POLL_SECONDS)
            try:
                _, listener = await edge.ask(self._edge, {"listen": str(place)})
            except EdgeRefused as refusal:
                note(str(refusal))
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)
                continue
            except (OSError, TimeoutError):  # the edge is being started again
                await asyncio.sleep(EDGE_PAUSE_SECONDS)
                continue
            assert listener is not None, "the edge sends a socket with its consent"
            with listener:
                try:
                    await self._take(listener, path, serving)
                finally:
                    await self._release(place)
            gone = found

    async def _take(self, listener: socket.socket, path: Path, serving: Callable[[], Awaitable[None]]) -> None:
        """Carry what comes to *listener* until the proxy, although it serves, takes nothing at *path*."""
        refused = asyncio.Event()

        async def carry_in(connection: socket.socket) -> None:
            # A proxy that has just died refuses too, before anybody knows that it serves no more.
            for until_it_is_known in (0.0, DEATH_KNOWN_SECONDS):
                await asyncio.sleep(until_it_is_known)
                await serving()
                try:
                    await self._carry_in(connection, path)
                except (ConnectionRefusedError, FileNotFoundError):
                    continue
                return
            refused.set()

        accepting = asyncio.create_task(self._accept(listener, carry_in))
        try:
            await refused.wait()
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)

    async def _release(self, place: Endpoint) -> None:
        with contextlib.suppress(WeftError, OSError, TimeoutError):  # without an edge nothing listens any more
            await edge.ask(self._edge, {"release": str(place)}, seconds=1.0)

    async def close(self) -> None:
        """Let go of everything; connections that are open end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, carry: Callable[[socket.socket], Awaitable[None]]) -> None:
        await serve_each(listener, lambda connection: self._converse(connection, carry), self._tasks)

    async def _converse(self, connection: socket.socket, carry: Callable[[socket.socket], Awaitable[None]]) -> None:
        """One connection, from its acceptance to its end. Its ends learn of a failure by its being closed."""
        with contextlib.suppress(OSError, TimeoutError, Malformed, WeftError):
            await carry(connection)

    async def _carry_out(self, connection: socket.socket) -> None:
        async with asyncio.timeout(HEADER_SECONDS):
            fixed = await _exactly(connection, proxy_protocol.FIXED_BYTES)
            rest = await _exactly(connection, proxy_protocol.rest_bytes(fixed) - 1)
            last = await _peek(connection)
        _, destination = proxy_protocol.decode(fixed + rest + last)
        called = str(destination)
        if ip_address(destination.address).is_loopback:
            # A port of the host's loopback stands on both of the program's; on the host it is the usual one.
            destination = Endpoint("127.0.0.1", destination.port)
        request = {"dial": str(destination), "workload": self._workload, "timeout_ms": DIAL_MILLISECONDS}
        try:
            _, outside = await edge.ask(self._edge, request)
        except EdgeRefused as refusal:
            self._tell(called, str(refusal))
            raise
        assert outside is not None, "the edge sends a socket with its consent"
        with outside:
            await _exactly(connection, 1)
            await carry(connection, outside)

    def _tell(self, destination: str, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        recent = {known: when for known, when in self._told.items() if now - when < TELL_AGAIN_SECONDS}
        if (destination, reason) not in recent:
            recent[destination, reason] = now
            self._refused(destination, reason)
        self._told = recent

    async def _carry_in(self, connection: socket.socket, path: Path) -> None:
        header = proxy_protocol.encode(Endpoint(*connection.getpeername()[:2]), Endpoint(*connection.getsockname()[:2]))
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as proxy:
            await loop.sock_connect(proxy, str(path))
            await loop.sock_sendall(proxy, header)
            await carry(connection, proxy)


def read_on(data: memoryview) -> None:
    """Look at nothing."""


async def carry(
    one: socket.socket, other: socket.socket, of_one: ReadAlong = read_on, of_other: ReadAlong = read_on
) -> None:
    """
    Carry bytes both ways until both sides have ended; if one breaks, the other is told by a reset.

    Args:
        of_one, of_other: Given what *one* and *other* send, just before it is passed on; theirs for the call only.
    """
    for end in (one, other):
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ways = [asyncio.ensure_future(_pump(one, other, of_one)), asyncio.ensure_future(_pump(other, one, of_other))]
    try:
        await asyncio.gather(*ways)
    except OSError:
        for end in (one, other):
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pump(source: socket.socket, target: socket.socket, read_along: ReadAlong) -> None:
    """One way: until *source* has ended, which *target* is told."""
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := await loop.sock_recv_into(source, buffer):
        read_along(buffer[:count])
        await loop.sock_sendall(target, buffer[:count])
    with contextlib.suppress(OSError):  # ENOTCONN: it has ended meanwhile
        target.shutdown(socket.SHUT_WR)


def _which(path: Path) -> tuple[int, int] | None:
    """Return which file *path* is; None if there is none. An inode's number alone is given again at once."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


async def _peek(connection: socket.socket) -> bytes:
    """
    Return the next byte and leave it where it is.

    A Unix socket that is closed with something unread resets its peer (unix_release_sock in the kernel), and the
    program is to see a reset if its connection cannot be made, not an end.
    """
    await readable(connection)
    return connection.recv(1, socket.MSG_PEEK)


async def _exactly(connection: socket.socket, count: int) -> bytes:
    """
    Return the next *count* bytes.

    Raises:
        Malformed: The connection ended before.
    """
    data = bytearray()
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not more:
            raise Malformed("the connection ended within its PROXY header")
        data += more
    return bytes(data)
