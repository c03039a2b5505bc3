"""HTTP/2 frame by frame, for scripted clients and upstreams of either data plane."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from tests.conformance.proxies import LIMIT

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, ENABLE_CONNECT_PROTOCOL = 1, 3, 4, 8

LAST_STREAM = (1 << 31) - 1
"""Of all that there can be, as in a GOAWAY that goes before the last (RFC 9113 6.8)."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

GET = (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"up")
POST = (b":method", b"POST"), *GET[1:]

OK = b"\x88"
"""`:status: 200` (RFC 7541 appendix A)."""

STATUSES = dict(enumerate((200, 204, 206, 304, 400, 404, 500), 0x88))
"""Those that have a place in the static table."""

DIGITS = {f"{digit:05b}": str(digit) for digit in range(3)} | {
    f"{22 + digit:06b}": str(digit) for digit in range(3, 10)
}
"""In the Huffman code (RFC 7541 appendix B)."""


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """Fields as literals that no table keeps (RFC 7541 6.2.2)."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in pairs)


def _string(text: bytes) -> bytes:
    """Text without the Huffman code (RFC 7541 5.2)."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    head, rest = b"\x7f", len(text) - 127
    while rest >= 128:
        head, rest = head + bytes([rest % 128 + 128]), rest // 128
    return head + bytes([rest]) + text


def status(block: bytes) -> int:
    """Return the status in the block of an answer, in which it comes first."""
    if block[0] >> 5 == 1:  # the table's size changes: an integer with a prefix of five bits (RFC 7541 5.1)
        length = 1 if block[0] & 0x1F < 0x1F else 2 + next(at for at, byte in enumerate(block[1:]) if byte < 128)
        block = block[length:]
    if block[0] in STATUSES:
        return STATUSES[block[0]]
    assert block[0] in {0x08, 0x18, 0x48}, f"no status: {block!r}"  # a literal of this name
    text = block[2 : 2 + block[1] % 128]
    if block[1] < 128:
        return int(text)
    said, bits = "", ""
    for bit in "".join(f"{byte:08b}" for byte in text):
        bits += bit
        if bits in DIGITS:
            said, bits = said + DIGITS[bits], ""
    return int(said)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in values.items()))


def values(found: Frame) -> dict[int, int]:
    """What a SETTINGS frame says."""
    entries = [found.payload[at : at + 6] for at in range(0, len(found.payload), 6)]
    return {int.from_bytes(entry[:2]): int.from_bytes(entry[2:]) for entry in entries}


def number(value: int) -> bytes:
    """The payload of RST_STREAM and of WINDOW_UPDATE."""
    return value.to_bytes(4)


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Why, of RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4])


class Wire:
    """One end of a connection of HTTP/2."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LIMIT)
        self.socket = connection
        self.passed_over: list[Frame] = []
        """PINGs that came before what was waited for."""
        self._incoming = connection.makefile("rb")

    @classmethod
    @contextlib.contextmanager
    def client(cls, port: int, values: dict[int, int] | None = None) -> Iterator[Wire]:
        """Connect with prior knowledge."""
        with (
            socket.create_connection(("127.0.0.1", port), LIMIT) as connection,
            cls.calling(connection, values) as wire,
        ):
            yield wire

    @classmethod
    @contextlib.contextmanager
    def calling(cls, connection: socket.socket, values: dict[int, int] | None = None) -> Iterator[Wire]:
        """Call by a *connection* that there is, while the block lasts."""
        wire = cls(connection)
        wire.write(PREFACE + settings(values or {}))
        with contextlib.closing(wire):
            yield wire

    @classmethod
    def server(cls, connection: socket.socket, values: dict[int, int] | None = None) -> Wire:
        """Serve who has connected: the preface is read, the settings are out."""
        wire = cls(connection)
        preface = wire._incoming.read(len(PREFACE))
        assert preface in {PREFACE, b""}, preface
        wire.write(settings(values or {}))
        return wire

    @classmethod
    @contextlib.contextmanager
    def serving(cls, connection: socket.socket, values: dict[int, int] | None = None) -> Iterator[Wire]:
        """Serve who has connected while the block lasts."""
        wire = cls.server(connection, values)
        with contextlib.closing(wire):
            yield wire

    def close(self) -> None:
        """Close, with what has not been read."""
        self._incoming.close()
        self.socket.close()

    def write(self, data: bytes) -> None:
        """Write *data*, or as much as the other side takes before it closes."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.write(frame(kind, flags, stream, payload))

    def get(self, stream: int, path: str = "/") -> None:
        """Ask for *path*."""
        head = fields(*GET[:2], (b":path", path.encode()), GET[3])
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, head)

    def answer(self, stream: int, body: bytes = b"") -> None:
        """Answer with 200 and *body*."""
        self.write(frame(HEADERS, END_HEADERS, stream, OK) + frame(DATA, END_STREAM, stream, body))

    def frame(self) -> Frame | None:
        """Return the next frame; None: the connection has ended. Settings are acknowledged."""
        with contextlib.suppress(ConnectionError):
            head = self._incoming.read(9)
            payload = self._incoming.read(int.from_bytes(head[:3]))
            if len(head) < 9:
                return None
            found = Frame(head[3], head[4], int.from_bytes(head[5:9]), payload)
            if found.kind == SETTINGS and not found.flags & ACK:
                self.send(SETTINGS, ACK, 0)
            return found
        return None

    def rest(self) -> Iterator[Frame]:
        """Yield what comes until the connection ends."""
        while (found := self.frame()) is not None:
            yield found

    def next(self, *kinds: int) -> Frame:
        """Return the next frame of these *kinds*, by default any but SETTINGS, WINDOW_UPDATE and PING."""
        for found in self.rest():
            if found.kind in kinds or (not kinds and found.kind not in {SETTINGS, WINDOW_UPDATE, PING}):
                return found
            if found.kind == PING:
                self.passed_over.append(found)
        raise ConnectionError(f"it has ended without {kinds}")

    def body(self, stream: int) -> bytes:
        """Return the body of *stream*, which ends with DATA or trailers."""
        body = b""
        while True:
            found = self.next(DATA, HEADERS, RST_STREAM)
            assert found.stream == stream, found
            assert found.kind != RST_STREAM, found
            body += found.payload if found.kind == DATA else b""
            if found.flags & END_STREAM:
                return body


def answered(client: Wire, stream: int) -> tuple[int, bytes]:
    """Status and body of the next answer, which is that to *stream*."""
    head = client.next(HEADERS, RST_STREAM)
    assert (head.kind, head.stream) == (HEADERS, stream), head
    return status(head.payload), client.body(stream)
