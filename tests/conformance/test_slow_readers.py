"""
Who reads nothing stops who writes, whatever lies between: the memory of weft-proxy and Envoy stays as it is, in one run.

And nothing is lost, changed or moved; unless it takes too long, which ends both sides.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, http_options, listener, records
from tests.conformance.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    OK,
    POST,
    RST_STREAM,
    WINDOW_UPDATE,
    Wire,
    fields,
    number,
    status,
)
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_answer, read_head, read_rest, several
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(180)]

WHOLE = 32 << 20
"""Bytes of a body: far more than what lies between its two ends can hold."""

PART = 16_384

HELD = 12 << 20
"""Most of what one may write to another who reads nothing: the kernel's buffers of two connections, and those of the proxy."""

GROWN = 8 << 20
"""Most by which a proxy may grow meanwhile."""

STILL_SECONDS = 0.3

SMALLEST_WINDOW, LARGEST_WINDOW = 65_535, 2**31 - 1

IDLE_SECONDS = 1.0
"""The longest that a stream may stand still at listeners that are impatient; at the others it may for minutes."""

IMPATIENT = "impatient"
"""Behind the name of the upstream in that of such a listener."""

RECORD = {"status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "why": "%RESPONSE_CODE_DETAILS%"}

LENGTH = b"content-length", str(WHOLE).encode()


@functools.cache
def content() -> bytes:
    """A body of which no part is like another."""
    return hashlib.shake_256(b"a body").digest(WHOLE)


@functools.cache
def whole() -> str:
    """Its digest."""
    return digest([content()])


def digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def resident_bytes(proxy: Static) -> int:
    return int(Path(f"/proc/{proxy.process.pid}/statm").read_text().split()[1]) * 4096


# ------------------------------------------------------------------------------------------------------ who writes


@dataclass
class Writer:
    """Writes the `content` as fast as it is taken, in a thread of its own."""

    write: Callable[[memoryview], int]
    """Writes something of what is left; how much that was."""
    written: int = 0

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        # Who is let go before the end has failed its test, or was to be.
        with contextlib.suppress(OSError):
            while self.written < WHOLE:
                self.written += self.write(memoryview(content())[self.written :])

    def stopped(self) -> int:
        """Wait until nothing more is taken, and return what was."""
        last, since = -1, time.monotonic()

        def is_still() -> bool:
            nonlocal last, since
            if self.written != last:
                last, since = self.written, time.monotonic()
            return time.monotonic() - since > STILL_SECONDS

        until("nothing more is taken", is_still)
        return last

    def ended(self) -> int:
        """Wait until it has written all or was let go, and return what it has written."""
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        return self.written


def plain(connection: socket.socket) -> Writer:
    """A writer by HTTP/1.1, of a body whose length has been said."""
    return Writer(lambda rest: connection.send(rest[:PART]))


def framed(wire: Wire, stream: int) -> Writer:
    """A writer by HTTP/2, as far as windows are open (RFC 9113 5.2)."""
    # The last segment of a window would wait for an acknowledgement, each time.
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    windows = {0: SMALLEST_WINDOW, stream: SMALLEST_WINDOW}

    def write(rest: memoryview) -> int:
        while min(windows.values()) < PART:
            more = wire.next(WINDOW_UPDATE, RST_STREAM)
            if more.kind == RST_STREAM:
                raise ConnectionError(f"the stream was reset: {more.code}")
            windows[more.stream] += int.from_bytes(more.payload)
        for at in windows:
            windows[at] -= PART
        wire.send(DATA, END_STREAM if len(rest) == PART else 0, stream, bytes(rest[:PART]))
        return PART

    return Writer(write)


def answer(upstream: Upstream, stack: contextlib.ExitStack) -> Writer:
    """Answer by HTTP/1.1 whoever asks."""
    connection = stack.enter_context(upstream.taken())
    connection.sendall(b"HTTP/1.1 200 OK\r\n%s: %s\r\n\r\n" % LENGTH)
    return plain(connection)


def answer_in_frames(upstream: Upstream, stack: contextlib.ExitStack) -> Writer:
    """Answer by HTTP/2 whoever asks."""
    wire = stack.enter_context(Wire.serving(upstream.accept()))
    stream = wire.next(HEADERS).stream
    wire.send(HEADERS, END_HEADERS, stream, OK + fields(LENGTH))
    return framed(wire, stream)


UPSTREAMS = {"HTTP/1.1": answer, "HTTP/2": answer_in_frames}

Told = Callable[[], int]
"""Waits for the status of an answer."""


def upload(port: int, stack: contextlib.ExitStack) -> tuple[Writer, Told]:
    """Send a request with the body by HTTP/1.1."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
    connection.sendall(b"POST / HTTP/1.1\r\nhost: up\r\n%s: %s\r\n\r\n" % LENGTH)
    return plain(connection), lambda: read_answer(connection).status


def upload_in_frames(port: int, stack: contextlib.ExitStack) -> tuple[Writer, Told]:
    """Send a request with the body by HTTP/2."""
    wire = stack.enter_context(Wire.client(port))
    wire.send(HEADERS, END_HEADERS, 1, fields(*POST, LENGTH))
    return framed(wire, 1), lambda: status(wire.next(HEADERS).payload)


UPLOADS = {"HTTP/1.1": upload, "HTTP/2": upload_in_frames}

# ------------------------------------------------------------------------------------------------------ who does not read


class Reader(Protocol):
    """A client that has asked for the body, or an upstream to which it is on its way."""

    @classmethod
    def ask(cls, port: int, stack: contextlib.ExitStack) -> Self:
        """Ask the proxy at *port*."""

    @classmethod
    def serve(cls, upstream: Upstream, stack: contextlib.ExitStack) -> Self:
        """Take the proxy's request."""

    def begin(self) -> None:
        """Read what is read at once."""

    def rest(self) -> str:
        """Read it all, and return its digest."""

    def cut_off(self) -> bytes:
        """Read what comes before it ends amid the body, and return that."""

    def answer(self) -> None:
        """Answer the request."""


class Plain:
    """One of HTTP/1.1 that reads nothing."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    @classmethod
    def ask(cls, port: int, stack: contextlib.ExitStack) -> Self:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
        connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
        return cls(connection)

    @classmethod
    def serve(cls, upstream: Upstream, stack: contextlib.ExitStack) -> Self:
        return cls(stack.enter_context(upstream.accept()))

    def begin(self) -> None:
        pass

    def rest(self) -> str:
        read_head(self.connection)
        return digest(self._parts())

    def cut_off(self) -> bytes:
        read_head(self.connection)
        return read_rest(self.connection)

    def answer(self) -> None:
        self.connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def _parts(self) -> Iterator[bytes]:
        left = WHOLE
        while left and (part := self.connection.recv(min(left, 1 << 20))):
            left -= len(part)
            yield part


class Framed:
    """One of HTTP/2 whose windows are open, but which reads nothing."""

    OPEN = LARGEST_WINDOW
    """How far its only stream, which is the first, is open."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        if self.OPEN > SMALLEST_WINDOW:
            wire.send(WINDOW_UPDATE, 0, 0, number(self.OPEN - SMALLEST_WINDOW))
        self.begun: list[bytes] = []

    @classmethod
    def ask(cls, port: int, stack: contextlib.ExitStack) -> Self:
        it = cls(stack.enter_context(Wire.client(port, {INITIAL_WINDOW_SIZE: cls.OPEN})))
        it.wire.get(1)
        return it

    @classmethod
    def serve(cls, upstream: Upstream, stack: contextlib.ExitStack) -> Self:
        return cls(stack.enter_context(Wire.serving(upstream.accept(), {INITIAL_WINDOW_SIZE: cls.OPEN})))

    def begin(self) -> None:
        pass

    def rest(self) -> str:
        return digest(self._parts())

    def cut_off(self) -> bytes:
        came = self.begun
        while (found := self.wire.next(DATA, RST_STREAM)).kind == DATA:
            assert not found.flags & END_STREAM
            came.append(found.payload)
        assert found.code == INTERNAL_ERROR
        return b"".join(came)

    def answer(self) -> None:
        self.wire.answer(1)

    def _parts(self) -> Iterator[bytes]:
        yield from self.begun
        while True:
            found = self.wire.next(DATA)
            yield found.payload
            if found.flags & END_STREAM:
                return


class Closed(Framed):
    """One of HTTP/2 that reads all that comes, but opens no window."""

    OPEN = SMALLEST_WINDOW

    def begin(self) -> None:
        while sum(map(len, self.begun)) < self.OPEN:
            self.begun.append(self.wire.next(DATA).payload)

    def rest(self) -> str:
        for at in (0, 1):
            self.wire.send(WINDOW_UPDATE, 0, at, number(LARGEST_WINDOW - SMALLEST_WINDOW))
        return super().rest()


class Shut(Closed):
    """One whose window is closed from the beginning: what comes is a head."""

    OPEN = 0


# Their names begin with the version.
READERS: dict[str, type[Reader]] = {
    "HTTP/1.1": Plain,
    "HTTP/2": Framed,
    "HTTP/2, its window closed": Closed,
    "HTTP/2, without a window": Shut,
}


# ------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    with several(UPSTREAMS) as found:
        yield found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.fixture(scope="module")
def proxies(directory: Path, upstreams: dict[str, Upstream]) -> Iterator[tuple[Static, Static]]:
    windows = {"initial_stream_window_size": SMALLEST_WINDOW, "initial_connection_window_size": SMALLEST_WINDOW}

    def resources(ports: dict[str, int]) -> Json:
        buffers = {"per_connection_buffer_limit_bytes": 32_768}
        clusters, listeners = [], []
        for name, upstream in upstreams.items():
            version = {"http2_protocol_options": windows} if name == "HTTP/2" else {"http_protocol_options": {}}
            # No connection of an earlier test is taken again.
            once = {"max_requests_per_connection": 1}
            options = http_options(explicit_http_config=version, common_http_protocol_options=once)
            clusters.append(cluster(name, upstream.port, **options, **buffers))
            route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
            # Of a client Envoy buffers as much as its own window is, and that is of 256 MiB by default.
            patient = {"http2_protocol_options": windows}
            for own, told in (("", {}), (IMPATIENT, {"stream_idle_timeout": f"{IDLE_SECONDS}s"})):
                log = file_log(directory / f"{ports[name + own]}.log", RECORD)
                filters = http_filters([route], manager={**patient, **told, "access_log": log})
                listeners.append(listener(name + own, ports[name + own], filters, **buffers))
        return {"clusters": clusters, "listeners": listeners}

    names = tuple(name + own for name in UPSTREAMS for own in ("", IMPATIENT))
    with both(directory, names, resources) as running:
        yield running


@pytest.fixture(params=(ENVOY, WEFT_PROXY))
def proxy(request: pytest.FixtureRequest, proxies: tuple[Static, Static]) -> Static:
    return next(proxy for proxy in proxies if proxy.kind == request.param)


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("reader", READERS)
def test_an_upstream_is_stopped_by_a_client_that_does_not_read(
    proxy: Static, upstreams: dict[str, Upstream], reader: str, upstream: str
) -> None:
    """Nothing is lost: when the client reads on, all of it comes."""
    before = resident_bytes(proxy)
    with contextlib.ExitStack() as stack:
        client = READERS[reader].ask(proxy.ports[upstream], stack)
        writer = UPSTREAMS[upstream](upstreams[upstream], stack)
        client.begin()
        assert writer.stopped() < HELD
        assert resident_bytes(proxy) - before < GROWN
        assert client.rest() == whole()
        assert writer.ended() == WHOLE


@pytest.mark.parametrize("client", UPLOADS)
@pytest.mark.parametrize("reader", READERS)
def test_a_client_is_stopped_by_an_upstream_that_does_not_read(
    proxy: Static, upstreams: dict[str, Upstream], reader: str, client: str
) -> None:
    """Nothing is lost: when the upstream reads on, all of it comes, and its answer is the client's."""
    upstream, _, _ = reader.partition(",")
    before = resident_bytes(proxy)
    with contextlib.ExitStack() as stack:
        writer, told = UPLOADS[client](proxy.ports[upstream], stack)
        server = READERS[reader].serve(upstreams[upstream], stack)
        server.begin()
        assert writer.stopped() < HELD
        assert resident_bytes(proxy) - before < GROWN
        assert server.rest() == whole()
        assert writer.ended() == WHOLE
        server.answer()
        assert told() == 200


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("reader", READERS)
def test_a_client_that_does_not_read_for_too_long_is_given_up(
    proxy: Static, directory: Path, upstreams: dict[str, Upstream], reader: str, upstream: str
) -> None:
    """The upstream is not kept waiting, and the client, should it read on, sees that its answer is not whole."""
    until("nobody is there", proxy.is_alone)
    port = proxy.ports[upstream + IMPATIENT]
    log = directory / f"{port}.log"
    before = len(records(log))
    with contextlib.ExitStack() as stack:
        client = READERS[reader].ask(port, stack)
        began = time.monotonic()
        writer = UPSTREAMS[upstream](upstreams[upstream], stack)
        client.begin()
        assert writer.ended() < HELD
        # Envoy rounds its clock, and reads it seldom.
        assert IDLE_SECONDS * 0.9 < time.monotonic() - began < LIMIT / 2
        until("it is recorded", lambda: len(records(log)) > before)
        assert records(log)[before:] == [{"status": 200, "flags": "SI", "why": "stream_idle_timeout"}]
        if reader == "HTTP/1.1":
            # The connection is of no more use: it ends, although what waits in it is not read.
            until("it is closed", proxy.is_alone)
        came = client.cut_off()
        assert came or READERS[reader] is Shut
        assert content().startswith(came)
