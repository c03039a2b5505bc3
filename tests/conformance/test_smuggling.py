"""
Requests that two parties could read differently: what weft-proxy and Envoy answer, and to the byte what reaches the upstream.

The cases are those of `crates/proxy/tests/live/smuggling.rs`, and each says where Envoy reads it otherwise, and why.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from tests.conformance.both import both_before
from tests.conformance.proxies import LIMIT, ROOT, Static
from tests.conformance.upstream import END, Accepting, content, fields_of, read_head, read_rest, read_whole, without
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

CASES = yaml.safe_load((ROOT / "crates/proxy/tests/live/smuggling.yaml").read_text())

ADDED = {b"x-forwarded-proto", b"x-request-id", b"x-envoy-expected-rq-timeout-ms"}
"""What the proxies add to requests."""

CHUNKED = b"POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n"
"""Follows each case, and must not be taken for a request where the case is refused."""

PASSED_ON = b"GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n"
"""What the upstream gets of it otherwise."""


class Seen(NamedTuple):
    """Of one connection of a client: statuses that it was answered with, and the whole requests that reached the upstream."""

    statuses: list[int]
    requests: list[bytes]


class Upstream(Accepting):
    """
    Takes one request on each connection, one connection after the other, and keeps what came in the order of its coming.

    So whoever is answered knows that all which the proxy had sent before is kept.
    """

    ONE_BY_ONE = True

    def __init__(self) -> None:
        self.whole: list[bytes] = []
        self.broken: list[bytes] = []
        self.begun = threading.Event()
        """The head of a request is there."""
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(LIMIT)
            self.take(connection)

    def take(self, connection: socket.socket) -> None:
        """Read a request, and answer it if it comes to its end."""
        request = read_head(connection)
        if request:
            self.begun.set()
        try:
            if b"\r\ntransfer-encoding: chunked\r\n" in request:
                with connection.makefile("rb") as incoming:
                    while not request.endswith(b"\r\n0\r\n\r\n"):
                        line = incoming.readline()
                        request += line + incoming.read(int(line, 16) + 2)
        except (OSError, ValueError, OverflowError):
            self.broken.append(request)
            return
        if not request.endswith(END):
            self.broken.append(request)
            return
        self.whole.append(without(request, ADDED))
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")


class Planes(NamedTuple):
    upstream: Upstream
    proxies: tuple[Static, Static]


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    with Upstream() as upstream, both_before(upstream.port, tmp_path_factory.mktemp("smuggling")) as proxies:
        yield Planes(upstream, proxies)


def connect(proxy: Static) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT)


def answers(client: socket.socket) -> list[int]:
    """Read answers until one says that it is the last, and then the end of the connection; return their statuses."""
    statuses = []
    while True:
        head, _ = read_whole(client)
        statuses.append(int(head.split()[1]))
        if fields_of(head).get(b"connection") == b"close":
            # Envoy gives a client some time to read this, and closes at once when that has nothing more to say.
            client.shutdown(socket.SHUT_WR)
            assert read_rest(client) == b""
            return statuses


def exchange(proxy: Static, upstream: Upstream, *parts: bytes) -> Seen:
    """Send each of *parts* when the upstream has the head of what was sent before."""
    upstream.whole.clear()
    upstream.broken.clear()
    upstream.begun.clear()
    with connect(proxy) as client:
        for number, part in enumerate(parts):
            assert number == 0 or upstream.begun.wait(LIMIT)
            client.sendall(part)
        statuses = answers(client)
    # Once this is answered, nothing of the other is under way.
    with connect(proxy) as client:
        client.sendall(b"GET /last HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
        assert answers(client) == [200]
    *whole, last = upstream.whole
    assert last == b"GET /last HTTP/1.1\r\nhost: up\r\n\r\n"
    assert not any(b"/smuggled" in request for request in upstream.broken), upstream.broken
    return Seen(statuses, whole)


def expected(case: dict[str, Any]) -> dict[str, Seen]:
    """What is to be seen of *case*, by kind of data plane."""
    seen = {WEFT_PROXY: Seen([400], []), ENVOY: Seen([400], [])}
    if envoy := case.get("envoy"):
        assert case["why"]
        if "passes" in envoy:
            closes = "connection: close" in case["bytes"]
            requests = [envoy["passes"].encode()] if closes else [envoy["passes"].encode(), PASSED_ON]
            seen[ENVOY] = Seen([200] * len(requests), requests)
        else:
            seen[ENVOY] = Seen([envoy["status"]], [])
    return seen


@pytest.mark.parametrize("case", CASES["heads"], ids=lambda case: case["name"])
def test_an_ambiguous_head_goes_nowhere(planes: Planes, case: dict[str, Any]) -> None:
    """It is refused and the connection closed, so that what follows is nobody's request."""
    seen = {}
    for proxy in planes.proxies:
        seen[proxy.kind] = exchange(proxy, planes.upstream, case["bytes"].encode() + NEXT)
        assert not planes.upstream.broken, proxy.kind
    assert seen == expected(case)


@pytest.mark.parametrize("case", CASES["chunks"], ids=lambda case: case["name"])
def test_a_request_with_an_ambiguous_chunk_is_never_completed(planes: Planes, case: dict[str, Any]) -> None:
    """Neither where it comes with its head, nor where the upstream has that already."""
    chunks = case["bytes"].encode() + NEXT
    for parts in ((CHUNKED + chunks,), (CHUNKED, chunks)):
        seen = {proxy.kind: exchange(proxy, planes.upstream, *parts) for proxy in planes.proxies}
        assert seen == expected(case), len(parts)


def test_valid_extensions_of_chunks_end_with_their_hop(planes: Planes) -> None:
    """They are about one connection (RFC 9112 7.1.1), and no content."""
    chunks = b'3;a\r\nabc\r\n2 \t; b=c;d="e;f"\r\nde\r\n0;g\r\n\r\n'
    for proxy in planes.proxies:
        seen = exchange(proxy, planes.upstream, CHUNKED + chunks + NEXT)
        extended, after = seen.requests
        _, _, body = extended.partition(END)
        assert (seen.statuses, content(body), after) == ([200, 200], b"abcde", PASSED_ON), proxy.kind


LONG = b"x" * 61 * 1024
LARGE = {
    "a long value": b"GET / HTTP/1.1\r\nhost: up\r\nx: " + LONG + END,
    "a long target": b"GET /" + LONG + b" HTTP/1.1\r\nhost: up" + END,
    "a line without end": b"GET /" + LONG,
    "many fields": b"GET / HTTP/1.1\r\nhost: up\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(101)) + b"\r\n",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_head_that_is_too_large_goes_nowhere(planes: Planes, name: str) -> None:
    """By the limits that both have if nobody sets others: 60 KiB, and a hundred fields."""
    for proxy in planes.proxies:
        assert exchange(proxy, planes.upstream, LARGE[name]) == Seen([431], []), proxy.kind


def test_an_empty_line_before_a_request_is_passed_over(planes: Planes) -> None:
    """RFC 9112 2.2: some clients end a body so."""
    request = b"GET / HTTP/1.1\r\nhost: up\r\n\r\n"
    for proxy in planes.proxies:
        seen = exchange(proxy, planes.upstream, b"\r\n" + request + b"\r\n" + NEXT)
        assert seen == Seen([200, 200], [request, PASSED_ON]), proxy.kind
