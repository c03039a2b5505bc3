"""
The DNS server of one program: the mesh's names from a table, everything else from the host's resolvers through the edge.

`Names.answer` decides without I/O; `Server` stands in the program's namespace, where every datagram and connection to port 53,
whatever its address, is steered to it (nftables tproxy), and answers from the address that was asked.
Every byte that comes in is foreign: it is read with bounds, and what cannot be read is answered with FORMERR or not at all.

Sources: RFC 1035, 2308 (negative answers), 6761 (localhost), 6891 (EDNS), 7766 (TCP), 8482 (ANY).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from weft.model.reserved import DNS_PORT

if TYPE_CHECKING:
    from weft.agent.namespaces import ProgramNamespaces
    from weft.agent.unknown_hosts import UnknownHosts

A, PTR, AAAA, OPT, ANY = 1, 12, 28, 41, 255
_IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5

_TTL_SECONDS = 5  # how long a program may go on with a name that `weft` has given up; short, because asking is cheap
_PLAIN_UDP_BYTES = 512  # RFC 1035 2.3.4: what a client takes that says nothing
_OUR_UDP_BYTES = 4096
_FORWARD_SECONDS = 9.0
_CONCURRENT = 256  # forwarded questions under way; more are answered SERVFAIL, which resolvers repeat
_IDLE_SECONDS = 10.0  # of a TCP connection
_MESH_DOMAIN = "cluster.local"
_LOCAL = {A: (IPv4Address("127.0.0.1"),), AAAA: (IPv6Address("::1"),)}

_IP_RECVORIGDSTADDR = 20
_IPV6_RECVORIGDSTADDR = 74
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

Forward = Callable[[bytes], Awaitable[bytes]]


class Malformed(ValueError):
    """A message that is no DNS query."""


@dataclass(frozen=True, slots=True)
class Query:
    """
    One question.

    Attributes:
        name: In lower case, without the last dot.
        question: The question section as it came: letters keep their case, which some resolvers check (0x20).
        udp_bytes: Largest datagram that the asker takes.
        edns: Whether it sent an OPT record, and so gets one.
    """

    identity: int
    flags: int
    name: str
    kind: int
    klass: int
    question: bytes
    udp_bytes: int
    edns: bool


def parse(message: bytes) -> Query:
    """
    Read a query.

    Raises:
        Malformed: It is cut, is an answer, has not exactly one question, or its name is none (RFC 1035 2.3.4, 4.1.4).
    """
    if len(message) < 12:
        raise Malformed("shorter than a header")
    identity, flags, questions, answers, authorities, additional = struct.unpack_from("!6H", message)
    if flags & 0x8000:
        raise Malformed("an answer, not a query")
    if questions != 1:
        raise Malformed(f"{questions} questions")
    labels, offset = _name(message, 12)
    if offset + 4 > len(message):
        raise Malformed("the question is cut")
    kind, klass = struct.unpack_from("!HH", message, offset)
    question = message[12 : offset + 4]
    udp_bytes, edns = _PLAIN_UDP_BYTES, False
    offset += 4
    for _record in range(min(answers + authorities + additional, 16)):
        _labels, offset = _name(message, offset)
        if offset + 10 > len(message):
            raise Malformed("a record is cut")
        record, size, _ttl, length = struct.unpack_from("!HHIH", message, offset)
        offset += 10 + length
        if offset > len(message):
            raise Malformed("a record is cut")
        if record == OPT:
            edns, udp_bytes = True, max(_PLAIN_UDP_BYTES, size)
    name = b".".join(labels).decode("latin-1").lower()
    return Query(identity, flags, name, kind, klass, question, udp_bytes, edns)


def _name(message: bytes, offset: int) -> tuple[list[bytes], int]:
    """The labels of the name at *offset* and the offset behind it. Queries hold no compressed names, so pointers are refused."""
    labels: list[bytes] = []
    total = 0
    while True:
        if offset >= len(message):
            raise Malformed("a name is cut")
        length = message[offset]
        offset += 1
        if length == 0:
            return labels, offset
        total += length + 1
        if length > 63 or total > 254 or offset + length > len(message):
            raise Malformed("a label is too long, cut, or a pointer")
        labels.append(message[offset : offset + length])
        offset += length


class Names:
    """
    The mesh's names as one program sees them.

    Args:
        own: Names of the program itself (lower case), with `own_addresses`.
        own_addresses: Its addresses, as text.
        namespace: In which mesh namespace the program is: services of it are found by their first label.
    """

    def __init__(
        self, *, own: Sequence[str] = (), own_addresses: Sequence[str] = (), namespace: str = "default"
    ) -> None:
        self._namespace = namespace
        self._own = tuple(name.lower() for name in own)
        self._own_addresses = tuple(ip_address(address) for address in own_addresses if address)
        self._addresses: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self._wildcards: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self._reverse: dict[str, str] = {}
        self._of_host: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self.replace({})

    def replace(self, table: Mapping[str, Sequence[str]]) -> None:
        """Take a new table: full host name to addresses, as the control plane sends it; a name may begin with `*.`."""
        addresses: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        wildcards: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        reverse: dict[str, str] = {}
        for host, texts in table.items():
            name = host.lower().rstrip(".")
            values = tuple(ip_address(text) for text in texts)
            if name.startswith("*."):
                wildcards[name[2:]] = values
                continue
            addresses[name] = values
            for value in values:
                reverse.setdefault(value.reverse_pointer, name)
        # Short forms never hide a full name, and a name of the program's own hides everything.
        for name in list(addresses):
            for short in self._short_forms(name):
                addresses.setdefault(short, addresses[name])
        for name in self._own:
            addresses[name] = self._own_addresses
        for value in self._own_addresses:
            reverse[value.reverse_pointer] = self._own[0] if self._own else "localhost"
        self._addresses, self._wildcards, self._reverse = addresses, wildcards, reverse

    def know_of_host(self, entries: Mapping[str, Sequence[str]]) -> None:
        """
        Take names (lower case) that the program's hosts file is without, with their addresses in the host's.

        Once no service has such a name the file has it again, and yet it is asked for here, by whoever read the file just before.
        """
        for name, texts in entries.items():
            addresses = []
            for text in texts:
                with contextlib.suppress(ValueError):  # people's files have lines that resolvers pass over
                    addresses.append(ip_address(text))
            self._of_host[name] = tuple(addresses)

    def _short_forms(self, name: str) -> list[str]:
        labels = name.split(".")
        if len(labels) < 5 or labels[2] != "svc":
            return []
        service, namespace = labels[0], labels[1]
        forms = [f"{service}.{namespace}.svc", f"{service}.{namespace}"]
        return [*forms, service] if namespace == self._namespace else forms

    def answer(self, query: Query) -> bytes | None:
        """The answer from the table, or None if the host's resolvers are to be asked."""
        if query.flags & 0x7800:
            return compose(query, NOTIMP)
        if query.klass not in (_IN, 255):
            return compose(query, REFUSED)
        if query.kind == PTR:
            return self._answer_reverse(query)
        addresses = self._find(query.name)
        if addresses is None:
            addresses = self._of_host.get(query.name)
        if addresses is None:
            if query.name == "localhost" or query.name.endswith(".localhost"):
                return compose(query, NOERROR, _records(_LOCAL.get(query.kind, ())))
            # Nobody else serves the mesh's own domain: without this, `search` would show its names to the host's resolvers.
            return compose(query, NXDOMAIN) if query.name.endswith(f".svc.{_MESH_DOMAIN}") else None
        # A name that exists is never NXDOMAIN, whatever type was asked: musl takes that for the name's end.
        return compose(
            query, NOERROR, _records(a for a in addresses if query.kind in (ANY, AAAA if a.version == 6 else A))
        )

    def without_proxy(self) -> list[str]:
        """Return the mesh's names as NO_PROXY takes them: their domain for those that end with it, and the others."""
        domain = f".svc.{_MESH_DOMAIN}"
        others = sorted(name for name in self._addresses if not name.endswith(domain) and name not in self._own)
        return [domain, *others, *(f".{name}" for name in sorted(self._wildcards))]

    def has(self, name: str) -> bool:
        """Whether *name*, in any case, is one of the mesh's."""
        return self._find(name.lower().rstrip(".")) is not None

    def _find(self, name: str) -> tuple[IPv4Address | IPv6Address, ...] | None:
        found = self._addresses.get(name)
        while found is None and self._wildcards and "." in name:
            name = name.partition(".")[2]
            found = self._wildcards.get(name)
        return found

    def _answer_reverse(self, query: Query) -> bytes | None:
        name = self._reverse.get(query.name)
        if name is None and query.name.endswith(".127.in-addr.arpa"):
            name = "localhost"
        if name is not None:
            return compose(query, NOERROR, [(PTR, _encode(name))])
        # 240.240.0.0/16 holds service addresses, and nobody outside knows them.
        return compose(query, NXDOMAIN) if query.name.endswith(".240.240.in-addr.arpa") else None


def _records(addresses: object) -> list[tuple[int, bytes]]:
    return [(AAAA if a.version == 6 else A, a.packed) for a in addresses]  # type: ignore[attr-defined]


def compose(query: Query, code: int, records: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """An answer to *query*; each record is (type, data) of the name that was asked."""
    recursion_desired = query.flags & 0x0100
    opcode = query.flags & 0x7800
    flags = 0x8000 | opcode | 0x0400 | recursion_desired | 0x0080 | code
    header = struct.pack("!6H", query.identity, flags, 1, len(records), 0, 1 if query.edns else 0)
    pointer = 0xC00C  # to the question's name
    body = b"".join(struct.pack("!HHHIH", pointer, k, _IN, _TTL_SECONDS, len(data)) + data for k, data in records)
    option = struct.pack("!BHHIH", 0, OPT, _OUR_UDP_BYTES, 0, 0) if query.edns else b""
    return header + query.question + body + option


def _encode(name: str) -> bytes:
    labels = name.encode("latin-1").split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def truncate(query: Query, answer: bytes) -> bytes:
    """*answer* if it fits the asker's datagram, else an empty one with TC set, so that the asker comes again by TCP."""
    if len(answer) <= min(query.udp_bytes, _OUR_UDP_BYTES):
        return answer
    (flags,) = struct.unpack_from("!H", answer, 2)
    header = struct.pack("!6H", query.identity, flags | 0x0200, 1, 0, 0, 1 if query.edns else 0)
    option = struct.pack("!BHHIH", 0, OPT, _OUR_UDP_BYTES, 0, 0) if query.edns else b""
    return header + query.question + option


def malformed_answer(message: bytes) -> bytes | None:
    """FORMERR for what cannot be read, if it can be answered at all: an answer to an answer could go round for ever."""
    if len(message) < 12 or message[2] & 0x80:
        return None
    return message[:2] + struct.pack("!HHHHH", 0x8000 | FORMERR, 0, 0, 0, 0)


class Server:
    """
    Answers one program.

    Args:
        namespaces: Where to stand.
        names: May be replaced in place while the server runs.
        forward: Asks the host's resolvers: a query in, its answer out; any exception becomes SERVFAIL.
        unknown: Is told of each question and its answer.
    """

    def __init__(self, namespaces: ProgramNamespaces, names: Names, forward: Forward, unknown: UnknownHosts) -> None:
        self._namespaces = namespaces
        self._names = names
        self._forward = forward
        self._unknown = unknown
        self._under_way: set[asyncio.Task[None]] = set()
        self._datagrams: list[socket.socket] = []
        self._streams: list[asyncio.Server] = []

    async def start(self) -> None:
        """
        Stand on `DNS_PORT`, UDP and TCP, IPv4 and IPv6. The program must not be started before this has returned.

        Raises:
            OSError: The sockets cannot be made.
        """
        loop = asyncio.get_running_loop()
        families = [socket.AF_INET, socket.AF_INET6] if self._namespaces.address6 else [socket.AF_INET]
        for family in families:
            datagrams, stream = self._namespaces.run(lambda family=family: _listeners(family))  # type: ignore[misc]
            self._datagrams.append(datagrams)
            loop.add_reader(datagrams, self._receive, datagrams, family)
            self._streams.append(await asyncio.start_server(self._converse, sock=stream))

    async def stop(self) -> None:
        """Close everything; questions under way are dropped."""
        loop = asyncio.get_running_loop()
        for datagrams in self._datagrams:
            loop.remove_reader(datagrams)
            datagrams.close()
        for stream in self._streams:
            stream.close()
        for task in list(self._under_way):
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _receive(self, datagrams: socket.socket, family: int) -> None:
        """Take what has come, some at a time so that TCP gets its turn."""
        for _turn in range(32):
            try:
                message, ancillary, _flags, asker = datagrams.recvmsg(_OUR_UDP_BYTES, socket.CMSG_SPACE(28))
            except OSError:
                return  # nothing more, or an error report of an earlier answer
            asked = _original_destination(ancillary)
            if asked is not None:
                self._take(message, family, asked, asker)

    def _take(self, message: bytes, family: int, asked: tuple[str, int], asker: tuple[str, int]) -> None:
        try:
            query = parse(message)
        except Malformed:
            answer = malformed_answer(message)
            if answer is not None:
                self._reply(answer, family, asked, asker)
            return
        answer = self._answer_here(query, busy=len(self._under_way) >= _CONCURRENT)
        if answer is not None:
            self._reply(truncate(query, answer), family, asked, asker)
        else:

            async def later() -> None:
                self._reply(truncate(query, await self._ask_host(query, message)), family, asked, asker)

            self._spawn(later())

    def _reply(self, answer: bytes, family: int, asked: tuple[str, int], asker: tuple[str, int]) -> None:
        """Send from the address that was asked: a connected socket takes an answer from nowhere else."""

        def send() -> None:
            with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as source:
                _make_transparent(source, family)
                source.bind(asked)
                source.sendto(answer, asker)

        with contextlib.suppress(OSError):  # the asker is gone, or it asked from where nothing can be sent to
            self._namespaces.run(send)

    def _answer_here(self, query: Query, *, busy: bool = False) -> bytes | None:
        """Return the answer that the mesh has, or that there is none if it is too *busy* to ask the host; None: ask the host."""
        self._unknown.asked(query)
        answer = self._names.answer(query)
        if answer is None and busy:
            answer = compose(query, SERVFAIL)
        if answer is not None:
            self._unknown.answered(query, answer)
        return answer

    async def _ask_host(self, query: Query, message: bytes) -> bytes:
        answer = await self._forwarded(query, message)
        self._unknown.answered(query, answer)
        return answer

    async def _forwarded(self, query: Query, message: bytes) -> bytes:
        try:
            async with asyncio.timeout(_FORWARD_SECONDS):
                answer = await self._forward(message)
            # It is the host's, but the program's resolver must be able to take it for an answer to its question.
            if len(answer) >= 12 and answer[2] & 0x80:
                return message[:2] + answer[2:]
        except Exception:  # whatever the reason, the program's resolver wants an answer now and not its own timeout  # noqa: BLE001 - whatever a foreign packet provokes, the server lives
            pass
        return compose(query, SERVFAIL)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A TCP connection: questions one after the other, each with its length before it."""
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        self._under_way.add(task)
        try:
            while True:
                async with asyncio.timeout(_IDLE_SECONDS):
                    (length,) = struct.unpack("!H", await reader.readexactly(2))
                    message = await reader.readexactly(length)
                answer = await self._answer_stream(message)
                if answer is None:
                    return
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._under_way.discard(task)
            writer.close()

    async def _answer_stream(self, message: bytes) -> bytes | None:
        try:
            query = parse(message)
        except Malformed:
            return malformed_answer(message)
        answer = self._answer_here(query)
        return answer if answer is not None else await self._ask_host(query, message)

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


def _listeners(family: int) -> tuple[socket.socket, socket.socket]:
    """A datagram and a listening socket on `DNS_PORT` of the calling thread's network namespace, both transparent."""
    made = []
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        one = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        _make_transparent(one, family)
        one.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", DNS_PORT))
        made.append(one)
    datagrams, stream = made
    if family == socket.AF_INET6:
        datagrams.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
    else:
        datagrams.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
    stream.listen(128)
    return datagrams, stream


def _make_transparent(one: socket.socket, family: int) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        one.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)


def _original_destination(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[str, int] | None:
    """What IP_ORIGDSTADDR says: a sockaddr of the address to which the program sent."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_RECVORIGDSTADDR:
            return socket.inet_ntop(socket.AF_INET, data[4:8]), struct.unpack_from("!H", data, 2)[0]
        if level == socket.IPPROTO_IPV6 and kind == _IPV6_RECVORIGDSTADDR:
            return socket.inet_ntop(socket.AF_INET6, data[8:24]), struct.unpack_from("!H", data, 2)[0]
    return None
