"""
Envoy's configuration, by way of its agent: so that an Envoy that is started again has at once what the last one had.

Envoy keeps no configuration of its own. Its one stream to the control plane (delta ADS) is led through here, byte for
byte, and read along: what it has acknowledged is saved. The first connection of a process that takes the place of
another is answered from that, whether or not there is a control plane; once it serves, it is sent on to the control
plane, by ending that connection. Versions are hashes of contents, so whoever has what is published is sent nothing.

It is saved in memory: an agent cannot join without a control plane, so nobody could read a file that it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from ipaddress import ip_address
from pathlib import Path

from weft._native import StreamCore
from weft.agent import protobuf, sockets
from weft.agent.accepting import serve_each
from weft.agent.hot_restart import Place
from weft.agent.http2 import PREFACE, Messages
from weft.agent.relay import BACKLOG, carry

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"

ABSENT_PAUSE_SECONDS = 0.1
"""Before the next try to reach a control plane that is away; the proxy's first request waits meanwhile."""

_VIEW = "saved"
_REVISION = 1
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid (unix(7))


class Saved:
    """
    What one Envoy has acknowledged, and has not been told to drop since.

    Args:
        on_listeners: Called with the places of all its listeners whenever it has answered for some.
    """

    def __init__(self, on_listeners: Callable[[Collection[Place]], None] = lambda _: None) -> None:
        self._on_listeners = on_listeners
        self._resources: dict[tuple[str, str], tuple[str, bytes]] = {}
        """(type URL, name) -> version, serialised message."""
        self._doubtful: dict[str, bytes] = {}
        """Name -> serialised message, of listeners that were refused together with others: they may have been taken."""

    def clear(self) -> None:
        """The process that had it is gone, and the next begins with nothing."""
        self._resources.clear()
        self._doubtful.clear()

    def resources(self) -> list[tuple[str, str, str, bytes]]:
        """Return (type URL, name, version, serialised message) of each resource."""
        return [(*key, *value) for key, value in self._resources.items()]

    def take(self, response: Response) -> None:
        """The proxy has acknowledged *response*."""
        for name, version, value in response.resources:
            self._resources[response.type_url, name] = (version, value)
        for name in response.removed:
            self._resources.pop((response.type_url, name), None)
        self._know(response.type_url, [*(name for name, _, _ in response.resources), *response.removed])

    def doubt(self, response: Response) -> None:
        """
        The proxy has refused *response*: Envoy takes what is good of one nevertheless, and does not say what that is.

        The control plane sends it again in parts, until what is bad comes alone: then that is known not to be taken.
        """
        if response.type_url != LISTENER:
            return
        listeners = {name: value for name, _, value in response.resources}
        if len(listeners) > 1:
            self._doubtful.update(listeners)
        elif listeners.items() <= self._doubtful.items():  # of an older one of that name it says nothing
            self._know(LISTENER, listeners)

    def drop(self, type_url: str, names: Collection[str]) -> None:
        """The proxy does not ask for these any more."""
        for name in names:
            self._resources.pop((type_url, name), None)
        self._know(type_url, names)

    def _know(self, type_url: str, names: Iterable[str]) -> None:
        """Whether the proxy has these is not doubtful any more."""
        for name in names if type_url == LISTENER else ():
            self._doubtful.pop(name, None)

    def answered(self, type_url: str) -> None:
        """The proxy has taken or refused what it was sent of this type."""
        if type_url == LISTENER:
            known = (value for (kind, _), (_, value) in self._resources.items() if kind == LISTENER)
            self._on_listeners([place for value in (*known, *self._doubtful.values()) for place in places(value)])


class Response:
    """A `DeltaDiscoveryResponse`, read as far as it matters here."""

    def __init__(self, message: bytes) -> None:
        self.type_url = self.nonce = ""
        self.resources: list[tuple[str, str, bytes]] = []
        self.removed: list[str] = []
        for number, value in protobuf.fields(message):
            match number, value:
                case 2, bytes():
                    self.resources.append(_resource(value))
                case 4, bytes():
                    self.type_url = value.decode()
                case 5, bytes():
                    self.nonce = value.decode()
                case 6, bytes():
                    self.removed.append(value.decode())


def _resource(message: bytes) -> tuple[str, str, bytes]:
    """Return name, version, and content of a `Resource`."""
    name, version, content = "", "", b""
    for number, value in protobuf.fields(message):
        match number, value:
            case 1, bytes():
                version = value.decode()
            case 2, bytes():
                content = next(
                    (part for field, part in protobuf.fields(value) if field == 2 and isinstance(part, bytes)), b""
                )
            case 3, bytes():
                name = value.decode()
    return name, version, content


class Conversation:
    """One connection, read along: an answer belongs to the response whose nonce it names."""

    def __init__(self, saved: Saved) -> None:
        self._saved = saved
        self._asked, self._sent = Messages(PREFACE), Messages()
        self._unanswered: dict[tuple[int, str], Response] = {}
        """By stream and nonce."""

    def from_proxy(self, data: memoryview) -> None:
        """Take in what the proxy sends: `DeltaDiscoveryRequest`s."""
        for stream, message in self._asked.feed(data):
            type_url = nonce = ""
            refused, dropped = False, []
            for number, value in protobuf.fields(message):
                match number, value:
                    case 2, bytes():
                        type_url = value.decode()
                    case 4, bytes():
                        dropped.append(value.decode())
                    case 6, bytes():
                        nonce = value.decode()
                    case 7, _:
                        refused = True
            self._saved.drop(type_url, dropped)
            if (response := self._unanswered.pop((stream, nonce), None)) is not None:
                if refused:
                    self._saved.doubt(response)
                else:
                    self._saved.take(response)
                self._saved.answered(type_url)

    def from_control_plane(self, data: memoryview) -> None:
        """Take in what the control plane sends: `DeltaDiscoveryResponse`s."""
        for stream, message in self._sent.feed(data):
            response = Response(message)
            self._unanswered[stream, response.nonce] = response


class Discovery:
    """
    Args:
        control_plane: Its discovery socket.
        own: Where saved resources are served, for the proxy's connections that are led there.
        serving: Waits until the proxy serves.
        saved: Takes what the proxy acknowledges.
        warn: Called with a sentence when somebody else's process wants the proxy's configuration.
    """

    def __init__(
        self,
        control_plane: Path,
        own: Path,
        serving: Callable[[], Awaitable[None]],
        saved: Saved,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._control_plane, self._own, self._serving, self._saved = control_plane, own, serving, saved
        self._warn = warn
        self._whole = False
        """Whether a process has served with what is saved."""
        self._process = 0
        """Whose connection was the last."""
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, path: Path) -> None:
        """
        Take the proxy's connections at *path*.

        Raises:
            OSError: *path* cannot be bound.
        """
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(BACKLOG)
        self._start(serve_each(self._listener, self._serve, self._tasks))

    async def close(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        """One connection of the proxy, from its acceptance to its end."""
        process, _, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        # The control plane asks whose the stream is, and will be answered that it is ours.
        if process not in sockets.descendants(os.getpid()):
            self._warn(f"process {process} asked for the proxy's configuration and was refused: it is not the proxy")
            return
        another, self._process = process != self._process, process
        with contextlib.suppress(OSError):
            if another and self._whole:
                await self._lead_to_saved(connection)
            else:
                if another:
                    self._saved.clear()
                await self._lead_to_control_plane(connection)

    async def _lead_to_saved(self, connection: socket.socket) -> None:
        """Serve what is saved until the proxy serves."""
        core = StreamCore(self._own)
        loop = asyncio.get_running_loop()
        descriptor = core.fileno()

        def drain() -> None:
            for event in core.events():
                if event[0] == "connected":
                    core.attach(event[1], _VIEW)
                # What is refused now, the control plane offers again when the proxy is sent on to it, and hears why not.

        loop.add_reader(descriptor, drain)
        try:
            core.publish(_VIEW, _REVISION, self._saved.resources())
            leading = asyncio.create_task(self._lead(connection, self._own))
            serving = asyncio.ensure_future(self._serving())
            try:
                await asyncio.wait((leading, serving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (leading, serving):
                    task.cancel()
                await asyncio.gather(leading, serving, return_exceptions=True)
        finally:
            loop.remove_reader(descriptor)
            core.close()

    async def _lead_to_control_plane(self, connection: socket.socket) -> None:
        """Lead to the control plane, as soon as there is one, and read along."""
        conversation = Conversation(self._saved)
        if not self._whole:
            self._start(self._become_whole())
        while True:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                await self._lead(connection, self._control_plane, conversation)
                return
            await asyncio.sleep(ABSENT_PAUSE_SECONDS)

    async def _become_whole(self) -> None:
        await self._serving()
        self._whole = True

    async def _lead(self, connection: socket.socket, path: Path, conversation: Conversation | None = None) -> None:
        """
        Carry bytes between *connection* and the server at *path* until one of them ends.

        Raises:
            ConnectionRefusedError, FileNotFoundError: Nobody serves there.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as server:
            await asyncio.get_running_loop().sock_connect(server, str(path))
            if conversation is None:
                await carry(connection, server)
            else:
                await carry(connection, server, conversation.from_proxy, conversation.from_control_plane)


def places(listener: bytes) -> list[Place]:
    """Return the places of a serialised `Listener`; a Unix socket is none."""
    found = []
    for number, value in protobuf.fields(listener):
        if number == 2 and isinstance(value, bytes):
            found += _places(value)
        elif number == 33 and isinstance(value, bytes):
            for field, address in protobuf.fields(value):
                if field == 1 and isinstance(address, bytes):
                    found += _places(address)
    return found


def _places(address: bytes) -> list[Place]:
    """Return the place of an `Address`, if it is one of a network."""
    found = []
    for kind, socket_address in protobuf.fields(address):
        if kind == 1 and isinstance(socket_address, bytes):
            host, port, namespace = "", 0, ""
            for number, value in protobuf.fields(socket_address):
                match number, value:
                    case 2, bytes():
                        host = value.decode()
                    case 3, int():
                        port = value
                    case 7, bytes():
                        namespace = value.decode()
            found.append(Place(str(ip_address(host)), port, namespace))
    return found
