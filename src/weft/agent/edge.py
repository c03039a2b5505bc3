"""
The edge: the only process of a mesh that touches the host's network.

Proxies and agents sit in namespaces without a way out. They ask here, over a Unix socket, for connected or listening sockets of
the host, and get descriptors (docs/reference/interfaces.md, 4.4); names outside the mesh are looked up here with the
host's resolvers. One request a connection, one JSON line each way.

A workload reaches the host's loopback only on ports that are granted to it. Its agent grants them on a connection that it keeps
open: when the agent ends, the grant ends. Who may speak at all is decided by the kernel's word on the peer's uid; programs
do not see the socket.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from weft.agent import dns, published
from weft.agent.accepting import readable, serve_each
from weft.errors import WeftError

_REQUEST_BYTES = 1 << 17  # a DNS message of 64 KiB in base64 fits
_REQUEST_SECONDS = 10.0
_DIAL_SECONDS = 10.0
_RESOLVE_SECONDS = (
    2.0  # for one server to answer one query; resolv.conf(5) has 5, and libraries ask us with patience of their own
)
_RESOLVE_ROUNDS = 2
_BACKLOG = 1024
_REST_SECONDS = 0.1  # before an edge that is not there is asked again
_DNS_PORT = 53
_FAILURES = frozenset({dns.SERVFAIL, dns.NOTIMP, dns.REFUSED})
_DEFAULT_SERVER = ("127.0.0.1", _DNS_PORT)  # resolv.conf(5): what holds if the file names none

Server = tuple[str, int]


class EdgeRefused(WeftError):
    """The edge could not do what it was asked. `name` is the errno's name (`ECONNREFUSED`), or a word of the edge's own."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class Edge:
    """
    The edge's state: the listening sockets that it keeps, and what is granted.

    Args:
        nameservers: (address, port) of the resolvers to ask; by default those of the host's resolv.conf, read again when it changes.
        inside: Ranges of the mesh's own addresses, which are never dialled on the host: whatever is there is somebody else's.
        reserved: Sockets that `weft up` has bound for this mesh, by target; they listen while a proxy wants it.
    """

    def __init__(
        self,
        nameservers: Sequence[Server] | None = None,
        *,
        inside: Sequence[str] = (),
        reserved: Mapping[str, socket.socket] = MappingProxyType({}),
    ) -> None:
        self._resolvers = _Resolvers(nameservers)
        self._inside = [ip_network(cidr) for cidr in inside]
        self._reserved = reserved
        self._listeners: dict[str, socket.socket] = {}
        self._granted: Counter[tuple[str, int]] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, path: Path) -> None:
        """
        Bind *path* and answer until cancelled. All that was opened is closed then, and *path* is removed.

        Raises:
            OSError: *path* cannot be bound.
        """
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(_BACKLOG)
            await serve_each(listener, self._converse, self._tasks)
        finally:
            listener.close()
            path.unlink(missing_ok=True)
            for task in self._tasks:
                task.cancel()
            for kept in (*self._listeners.values(), *self._reserved.values()):
                kept.close()

    async def _converse(self, connection: socket.socket) -> None:
        """One request and its answer."""
        given: socket.socket | None = None
        granted: list[tuple[str, int]] = []
        try:
            if _peer_uid(connection) != os.getuid():
                return
            try:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    request = await _receive_line(connection)
                answer, given, granted = await self._answer(request)
            except EdgeRefused as error:
                answer = {"error": error.name, "message": str(error)}
            await _send(connection, answer, given)
            if granted:
                await _until_closed(connection)
        except (OSError, TimeoutError):
            pass  # the asker is gone, or said nothing
        finally:
            self._granted.subtract(granted)
            self._granted += Counter()  # forgets what has fallen to zero
            if given is not None and given not in (*self._listeners.values(), *self._reserved.values()):
                given.close()

    async def _answer(
        self, request: Mapping[str, Any]
    ) -> tuple[dict[str, Any], socket.socket | None, list[tuple[str, int]]]:
        """The answer, the socket that goes with it, and what is granted while the connection lasts."""
        match request:
            case {"dial": str(target)}:
                return {"ok": True}, await self._dial(target, request), []
            case {"listen": str(target)}:
                return {"ok": True}, self._listen(target), []
            case {"release": str(target)}:
                if target in self._reserved:
                    with contextlib.suppress(OSError):  # it did not listen
                        published.rest(self._reserved[target])
                elif (kept := self._listeners.pop(target, None)) is not None:
                    kept.close()
                return {"ok": True}, None, []
            case {"resolve": str(encoded)}:
                try:
                    query = base64.b64decode(encoded, validate=True)
                except ValueError as error:
                    raise EdgeRefused("malformed", "resolve is not base64") from error
                reply = await self._resolvers.ask(query)
                return {"ok": True, "answer": base64.b64encode(reply).decode()}, None, []
            case {"host_listening": int(port)} if 0 < port < 65536:
                return {"ok": True, "listening": await _is_host_listening(port)}, None, []
            case {"grant": {"workload": str(workload), "host_ports": [*ports]}} if all(
                isinstance(port, int) for port in ports
            ):
                granted = [(workload, port) for port in ports]
                self._granted.update(granted)
                return {"ok": True}, None, granted
        raise EdgeRefused("malformed", f"not a request: {json.dumps(request)[:200]}")

    async def _dial(self, target: str, request: Mapping[str, Any]) -> socket.socket:
        family, address = _parse(target)
        if any(_destination(address[0]) in network for network in self._inside):
            raise EdgeRefused("ENETUNREACH", f"{target} is an address of the mesh, and means nothing outside of it")
        workload = request.get("workload")
        if _is_loopback(address[0]) and (not isinstance(workload, str) or not self._granted[workload, address[1]]):
            raise EdgeRefused(
                "not_granted",
                f"{target} is on the host's loopback and port {address[1]} is not among the host_ports of {workload or 'the asker'}",
            )
        milliseconds = request.get("timeout_ms")
        seconds = milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds > 0 else _DIAL_SECONDS
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(made, address)
        except TimeoutError as error:
            made.close()
            raise EdgeRefused("ETIMEDOUT", f"{target} did not answer within {seconds * 1000:.0f} ms") from error
        except OSError as error:
            made.close()
            raise _refused(error, f"{target} cannot be reached") from error
        except asyncio.CancelledError:
            made.close()
            raise
        return made

    def _listen(self, target: str) -> socket.socket:
        if (reserved := self._reserved.get(target)) is not None:
            reserved.setblocking(False)
            try:
                published.listen(reserved, _BACKLOG)
            except OSError as error:
                raise _unpublished(error, target) from error
            return reserved
        kept = self._listeners.get(target)
        if kept is not None:
            return kept
        family, address = _parse(target)
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(address)
            made.listen(_BACKLOG)
        except OSError as error:
            made.close()
            raise _unpublished(error, target) from error
        # Port 0 is the kernel's choice: two such requests are two sockets.
        if address[1]:
            self._listeners[target] = made
        return made


async def ask(
    path: Path, request: Mapping[str, Any], *, seconds: float = 15.0
) -> tuple[dict[str, Any], socket.socket | None]:
    """
    Ask the edge at *path*; returns its answer and the socket that came with it (non-blocking), if any.

    Raises:
        EdgeRefused: It answered with an error.
        OSError: It is not there, or ended while asked.
        TimeoutError: It did not answer within *seconds*.
    """
    with await _connect(path) as connection:
        async with asyncio.timeout(seconds):
            return await _exchange(connection, request)


async def resolve(path: Path, query: bytes) -> bytes:
    """
    The host's answer to the DNS message *query*, with the same id.

    Raises:
        As `ask`; EdgeRefused with `no_answer` if no resolver of the host answers.
    """
    answer, _ = await ask(path, {"resolve": base64.b64encode(query).decode()})
    return base64.b64decode(answer["answer"])


async def host_listening(path: Path, port: int) -> bool:
    """Whether a program of the host listens on its loopback at *port*. Raises as `ask`."""
    answer, _ = await ask(path, {"host_listening": port})
    return bool(answer["listening"])


async def grant(path: Path, workload: str, host_ports: Sequence[int]) -> socket.socket:
    """
    Let *workload* reach *host_ports* of the host's loopback for as long as the returned socket is open. Raises as `ask`.
    """
    connection = await _connect(path)
    try:
        await _exchange(connection, {"grant": {"workload": workload, "host_ports": list(host_ports)}})
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.asynccontextmanager
async def granting(path: Path, workload: str, host_ports: Sequence[int]) -> AsyncIterator[None]:
    """As `grant`, while the context lasts, and by each edge that takes the place of one that ended. Raises as `ask`."""
    keeping = asyncio.create_task(_regrant(await grant(path, workload, host_ports), path, workload, host_ports))
    try:
        yield
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


async def _regrant(connection: socket.socket, path: Path, workload: str, host_ports: Sequence[int]) -> None:
    while True:
        with connection, contextlib.suppress(OSError):
            await _until_closed(connection)
        while True:
            await asyncio.sleep(_REST_SECONDS)
            with contextlib.suppress(OSError, TimeoutError, EdgeRefused):
                async with asyncio.timeout(_REQUEST_SECONDS):
                    connection = await grant(path, workload, host_ports)
                    break


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(connection, str(path))
    except BaseException:
        connection.close()
        raise
    return connection


async def _exchange(
    connection: socket.socket, request: Mapping[str, Any]
) -> tuple[dict[str, Any], socket.socket | None]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, json.dumps(request).encode() + b"\n")
    await readable(connection)
    data, descriptors, _flags, _address = socket.recv_fds(connection, _REQUEST_BYTES, 1)
    given = socket.socket(fileno=descriptors[0]) if descriptors else None
    try:
        while not data.endswith(b"\n"):
            more = await loop.sock_recv(connection, _REQUEST_BYTES)
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "the edge closed the connection without an answer")
            data += more
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise EdgeRefused(str(answer["error"]), str(answer.get("message", answer["error"])))
    except BaseException:
        if given is not None:
            given.close()
        raise
    return answer, given


async def _receive_line(connection: socket.socket) -> dict[str, Any]:
    """One JSON object, ended by a newline."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while not data.endswith(b"\n"):
        more = await loop.sock_recv(connection, _REQUEST_BYTES)
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the peer said nothing")
        data += more
        if len(data) > _REQUEST_BYTES:
            raise EdgeRefused("malformed", f"a request has at most {_REQUEST_BYTES} bytes")
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EdgeRefused("malformed", "the request is not JSON") from error
    if not isinstance(request, dict):
        raise EdgeRefused("malformed", "the request is not a JSON object")
    return request


async def _send(connection: socket.socket, answer: Mapping[str, Any], given: socket.socket | None) -> None:
    data = json.dumps(answer).encode() + b"\n"
    sent = 0
    if given is not None:
        # A new connection's buffer is empty, so this neither blocks nor is cut before the first byte.
        sent = socket.send_fds(connection, [data], [given.fileno()])
    if sent < len(data):
        await asyncio.get_running_loop().sock_sendall(connection, data[sent:])


async def _until_closed(connection: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(connection, 4096):
        pass


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("=3i", credentials)[1]
    return uid


def _parse(target: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """`1.2.3.4:80` or `[2001:db8::1]:80`; names are not taken."""
    host, _, port = target.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
        if not 0 <= number < 65536 or (address.version == 6) != host.startswith("["):
            raise ValueError(port)
    except ValueError as error:
        raise EdgeRefused("malformed", f"not address:port: {target}") from error
    return (socket.AF_INET6 if address.version == 6 else socket.AF_INET), (str(address), number)


def _destination(text: str) -> IPv4Address | IPv6Address:
    """Return the address to which the kernel connects: of one that is mapped, the one of IPv4."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_loopback(text: str) -> bool:
    """Whether a connection to this address ends at the host's own loopback; the unspecified address does too."""
    address = _destination(text)
    return address.is_loopback or address.is_unspecified


def _refused(error: OSError, message: str, *, bare: bool = False) -> EdgeRefused:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    return EdgeRefused(name, message if bare else f"{message}: {os.strerror(error.errno or 0)}")


def _unpublished(error: OSError, target: str) -> EdgeRefused:
    _, address = _parse(target)
    said = published.reason(error, address[1])
    return _refused(error, f"{target} cannot be published: {said}", bare=True)


async def _is_host_listening(port: int) -> bool:
    """Found out by connecting, because a socket table does not say what a firewall or a container's port forwarding does."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with (
            contextlib.suppress(OSError, TimeoutError),
            socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe,
        ):
            async with asyncio.timeout(1.0):
                await asyncio.get_running_loop().sock_connect(probe, (host, port))
            return True
    return False


class _Resolvers:
    """The host's resolvers: UDP first, TCP when the answer does not fit, the next server when one is silent or fails."""

    def __init__(self, fixed: Sequence[Server] | None) -> None:
        self._fixed = tuple(fixed) if fixed is not None else None
        self._read: tuple[float, tuple[Server, ...]] = (-1.0, ())

    def servers(self) -> tuple[Server, ...]:
        """Whom to ask, in order."""
        if self._fixed is not None:
            return self._fixed
        try:
            changed = os.stat("/etc/resolv.conf").st_mtime
        except OSError:
            return (_DEFAULT_SERVER,)
        if changed != self._read[0]:
            self._read = (changed, _nameservers(Path("/etc/resolv.conf")))
        return self._read[1]

    async def ask(self, query: bytes) -> bytes:
        """
        Return the first answer that tells something of the name; if there is none, the first failure that was answered.

        As with glibc a failure is that server's own: one that serves another network refuses what the next one knows.

        Raises:
            EdgeRefused: `malformed`, or `no_answer` when every server was silent or unreachable.
        """
        if not 12 < len(query) <= 65535:
            raise EdgeRefused("malformed", "not a DNS message")
        started = time.monotonic()
        problems: dict[str, str] = {}
        failures: list[bytes] = []
        for _round in range(_RESOLVE_ROUNDS):
            for server in self.servers():
                try:
                    async with asyncio.timeout(_RESOLVE_SECONDS):
                        answer = await _ask_server(server, query)
                except TimeoutError:
                    problems[server[0]] = "silent"
                except OSError as error:
                    problems[server[0]] = error.strerror or str(error)
                else:
                    if answer[3] & 0x0F not in _FAILURES:
                        return answer
                    failures.append(answer)
            if failures:  # who asked again would be told the same, and later
                return failures[0]
        seconds = time.monotonic() - started
        listed = ", ".join(f"{server}: {problem}" for server, problem in problems.items())
        raise EdgeRefused("no_answer", f"no resolver of the host answered within {seconds:.1f} s ({listed})")


def _nameservers(path: Path) -> tuple[Server, ...]:
    found: list[Server] = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    ip_address(words[1])  # with a zone (fe80::1%eth0) too
                    found.append((words[1], _DNS_PORT))
    return tuple(found[:3]) or (_DEFAULT_SERVER,)  # MAXNS


async def _ask_server(server: Server, query: bytes) -> bytes:
    """Ask one server by UDP from a fresh port with a fresh id (RFC 5452 9.2), and again by TCP if it says the answer is cut."""
    asked = struct.pack("!H", random.SystemRandom().randrange(1 << 16)) + query[2:]
    question = _question(query)
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as datagrams:
        await loop.sock_connect(datagrams, _socket_address(server))
        await loop.sock_sendall(datagrams, asked)
        while True:
            reply = await loop.sock_recv(datagrams, 65535)
            # What does not answer this very question is somebody's guess; the real answer may still come.
            if reply[:2] == asked[:2] and len(reply) >= 12 and reply[2] & 0x80 and _question(reply) in (question, b""):
                break
    if reply[2] & 0x02:  # TC
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as stream:
            await loop.sock_connect(stream, _socket_address(server))
            await loop.sock_sendall(stream, struct.pack("!H", len(asked)) + asked)
            (length,) = struct.unpack("!H", await _exactly(stream, 2))
            reply = await _exactly(stream, length)
        if len(reply) < 12:
            raise OSError(errno.EBADMSG, "not a DNS message")
    return query[:2] + reply[2:]


def _socket_address(server: Server) -> Any:
    return socket.getaddrinfo(*server, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]


def _question(message: bytes) -> bytes:
    """The first question, with its name in lower case; empty if there is none (some servers leave it out of a refusal)."""
    offset = 12
    if len(message) < 6 or message[4:6] == b"\0\0":
        return b""
    while offset < len(message) and message[offset] and message[offset] < 64:
        offset += 1 + message[offset]
    return message[12 : offset + 1].lower() + message[offset + 1 : offset + 5]


async def _exactly(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = await asyncio.get_running_loop().sock_recv(stream, count - len(data))
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, "the resolver closed the connection within an answer")
        data += more
    return bytes(data)
