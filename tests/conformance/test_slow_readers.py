"""Who reads nothing stops who writes, whatever lies between: the memory of weft-proxy and Envoy stays as it is, in one run."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener
from tests.conformance.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    OK,
    WINDOW_UPDATE,
    Wire,
    fields,
    number,
)
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_head, several
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


def resident_bytes(proxy: Static) -> int:
    return int(Path(f"/proc/{proxy.process.pid}/statm").read_text().split()[1]) * 4096


@dataclass
class Writer:
    """Writes `WHOLE` bytes of a body as fast as they are taken, in a thread of its own."""

    write: Callable[[], int]
    """Writes a part of it; how much of the body that was."""
    written: int = 0

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        # Who is let go before the end has failed its test.
        with contextlib.suppress(OSError):
            while self.written < WHOLE:
                self.written += self.write()

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


def pour(upstream: Upstream, stack: contextlib.ExitStack) -> Writer:
    """Answer by HTTP/1.1 whoever asks."""
    connection = stack.enter_context(upstream.taken())
    connection.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n".encode())
    return Writer(lambda: connection.send(bytes(PART)))


def pour_frames(upstream: Upstream, stack: contextlib.ExitStack) -> Writer:
    """Answer by HTTP/2 whoever asks, as far as windows are open (RFC 9113 5.2)."""
    connection = upstream.accept()
    # The last segment of a window would wait for an acknowledgement, each time.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = stack.enter_context(Wire.serving(connection))
    stream = wire.next(HEADERS).stream
    wire.send(HEADERS, END_HEADERS, stream, OK + fields((b"content-length", str(WHOLE).encode())))
    windows = {0: SMALLEST_WINDOW, stream: SMALLEST_WINDOW}
    parts = WHOLE // PART

    def write() -> int:
        nonlocal parts
        while min(windows.values()) < PART:
            more = wire.next(WINDOW_UPDATE)
            windows[more.stream] += int.from_bytes(more.payload)
        for at in windows:
            windows[at] -= PART
        parts -= 1
        wire.send(DATA, 0 if parts else END_STREAM, stream, bytes(PART))
        return PART

    return Writer(write)


UPSTREAMS = {"HTTP/1.1": pour, "HTTP/2": pour_frames}


class Reader(Protocol):
    """A client that has asked for the body."""

    def rest(self) -> int:
        """Read it all, and return how much that is."""


class Plain:
    """One of HTTP/1.1 that reads nothing."""

    def __init__(self, port: int, stack: contextlib.ExitStack) -> None:
        self.connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
        self.connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")

    def rest(self) -> int:
        read_head(self.connection)
        count = 0
        while count < WHOLE and (part := self.connection.recv(1 << 20)):
            count += len(part)
        return count


class Framed:
    """One of HTTP/2 whose windows are open, but which reads nothing."""

    OPEN = LARGEST_WINDOW

    def __init__(self, port: int, stack: contextlib.ExitStack) -> None:
        self.wire = stack.enter_context(Wire.client(port, {INITIAL_WINDOW_SIZE: self.OPEN}))
        if self.OPEN > SMALLEST_WINDOW:
            self.wire.send(WINDOW_UPDATE, 0, 0, number(self.OPEN - SMALLEST_WINDOW))
        self.wire.get(1)
        self.count = 0

    def rest(self) -> int:
        while True:
            found = self.wire.next(DATA)
            self.count += len(found.payload)
            if found.flags & END_STREAM:
                return self.count


class Closed(Framed):
    """One of HTTP/2 that reads all that comes, but opens no window."""

    OPEN = SMALLEST_WINDOW

    def __init__(self, port: int, stack: contextlib.ExitStack) -> None:
        super().__init__(port, stack)
        while self.count < self.OPEN:
            self.count += len(self.wire.next(DATA).payload)

    def rest(self) -> int:
        for at in (0, 1):
            self.wire.send(WINDOW_UPDATE, 0, at, number(LARGEST_WINDOW - SMALLEST_WINDOW))
        return super().rest()


READERS: dict[str, Callable[[int, contextlib.ExitStack], Reader]] = {
    "HTTP/1.1": Plain,
    "HTTP/2": Framed,
    "HTTP/2, its window closed": Closed,
}


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    with several(UPSTREAMS) as found:
        yield found


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, upstreams: dict[str, Upstream]
) -> Iterator[tuple[Static, Static]]:
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
            filters = http_filters([route], manager={"http2_protocol_options": windows})
            listeners.append(listener(name, ports[name], filters, **buffers))
        return {"clusters": clusters, "listeners": listeners}

    with both(tmp_path_factory.mktemp("readers"), tuple(UPSTREAMS), resources) as running:
        yield running


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_an_upstream_is_stopped_by_a_client_that_does_not_read(
    proxies: tuple[Static, Static], upstreams: dict[str, Upstream], kind: str, reader: str, upstream: str
) -> None:
    """Nothing is lost: when the client reads on, all of it comes."""
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    with contextlib.ExitStack() as stack:
        answering: list[Writer] = []

        def answer() -> None:
            answering.append(UPSTREAMS[upstream](upstreams[upstream], stack))

        before = resident_bytes(proxy)
        thread = threading.Thread(target=answer)
        thread.start()
        client = READERS[reader](proxy.ports[upstream], stack)
        thread.join(LIMIT)
        [writer] = answering
        assert writer.stopped() < HELD
        assert resident_bytes(proxy) - before < GROWN
        assert client.rest() == WHOLE
        writer.thread.join(LIMIT)
        assert writer.written == WHOLE
