"""An upstream whose every byte a test says, and what a client of a proxy reads, to the byte as well."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from tests.conformance.proxies import LIMIT

END = b"\r\n\r\n"
"""Of a head."""


def read_head(connection: socket.socket) -> bytes:
    """Read a head, and not one byte more; less if the connection ends before."""
    head = b""
    while not head.endswith(END):
        peeked = connection.recv(65536, socket.MSG_PEEK)
        if not peeked:
            return head
        found = (head + peeked).find(END)
        taken = len(peeked) if found < 0 else found + len(END) - len(head)
        head += connection.recv(taken)
    return head


def read_rest(connection: socket.socket) -> bytes:
    """Read until the connection ends, in whichever way."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return data


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Read so many bytes; fewer if the connection ends before."""
    data = b""
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return data


class Answer(NamedTuple):
    status: int
    """0: there was none."""
    body: bytes
    closes: bool
    """Whether it says that it is the last on its connection."""


def read_answer(connection: socket.socket) -> Answer:
    """Read an answer whose length its head tells."""
    head = read_head(connection).lower()
    if not head:
        return Answer(0, b"", True)
    _, told, rest = head.partition(b"\r\ncontent-length:")
    body = read_exactly(connection, int(rest.split()[0])) if told else b""
    return Answer(int(head.split()[1]), body, b"\r\nconnection: close" in head)


def read_whole(connection: socket.socket, method: str = "GET") -> tuple[bytes, bytes]:
    """Read the head of an answer to *method* and its body, whose length must be said if there is one, and not one byte more."""
    head = read_head(connection)
    assert head.endswith(END), head
    status = int(head.split()[1])
    if method == "HEAD" or status < 200 or status in {204, 304}:
        return head, b""
    fields = fields_of(head)
    if fields.get(b"transfer-encoding") == b"chunked":
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(1)
        return head, body
    return head, connection.recv(int(fields[b"content-length"]), socket.MSG_WAITALL)


def fields_of(head: bytes) -> dict[bytes, bytes]:
    """Return the fields of *head*, their names in lower case; the last of each name."""
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in lines if name}


def content(body: bytes) -> bytes:
    """Return what the chunks of *body* hold."""
    whole = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return whole
        whole, body = whole + body[:size], body[size + 2 :]


def without(message: bytes, names: set[bytes]) -> bytes:
    """Return *message* without the fields called *names*."""
    return b"\r\n".join(line for line in message.split(b"\r\n") if line.partition(b":")[0] not in names)


class Upstream:
    """A server that takes a request and says what it is told."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(LIMIT)
        self.port = int(self.socket.getsockname()[1])

    def accept(self) -> socket.socket:
        """Return the next connection."""
        connection, _ = self.socket.accept()
        connection.settimeout(LIMIT)
        return connection

    @contextlib.contextmanager
    def taken(self) -> Iterator[socket.socket]:
        """Yield the connection of the next request, whose head has been read."""
        with self.accept() as connection:
            read_head(connection)
            yield connection

    def forget(self) -> int:
        """Close all that has come and nobody has taken; return how many that were."""
        self.socket.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.socket.accept()[0].close()
                count += 1
        self.socket.settimeout(LIMIT)
        return count


@contextlib.contextmanager
def unanswering() -> Iterator[int]:
    """Yield a port at which the kernel drops what asks for a connection: one waits to be accepted, and there is room for no other."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname(), LIMIT),
    ):
        yield int(full.getsockname()[1])


@contextlib.contextmanager
def several(names: Iterable[str]) -> Iterator[dict[str, Upstream]]:
    """Listen for each of *names* until the block ends."""
    with contextlib.ExitStack() as stack:
        found = {name: Upstream() for name in names}
        for upstream in found.values():
            stack.enter_context(upstream.socket)
        yield found


class Accepting:
    """A server that accepts in a thread, until the block ends, whoever comes; `serve` says what becomes of a connection."""

    ONE_BY_ONE = False
    """Whether a connection is served to its end before the next is accepted. Else each has a thread of its own."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def serve(self, connection: socket.socket) -> None:
        """Speak with who has connected; the connection is closed when this returns."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes who waits in accept(), as closing alone does not.
        self.socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join(LIMIT)
        self.socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            if self.ONE_BY_ONE:
                self._serve(connection)
            else:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self.serve(connection)


@dataclass
class Witnessed:
    """What has come by one connection of an upstream, and whether it has ended."""

    data: bytes = b""
    ended: bool = False


class Witness(Accepting):
    """An upstream of HTTP/1.1 that keeps every byte, and answers whoever has no body to send."""

    def __init__(self) -> None:
        self.connections: list[Witnessed] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        seen, rest = Witnessed(), b""
        self.connections.append(seen)
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                seen.data += part
                *heads, rest = (rest + part).split(END)
                for head in heads:
                    if b"\r\ncontent-length" not in head and b"\r\ntransfer-encoding" not in head:
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        seen.ended = True

    def forget(self) -> None:
        """Begin anew. A connection that is kept is seen on."""
        self.connections = [connection for connection in self.connections if not connection.ended]
        for connection in self.connections:
            connection.data = b""

    @property
    def data(self) -> bytes:
        return b"".join(connection.data for connection in self.connections)
