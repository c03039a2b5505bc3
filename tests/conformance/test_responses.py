"""
Answers that two parties could read differently: what weft-proxy and Envoy make of them, and of the connections they come by.

The cases are those of `crates/proxy/tests/live/responses.rs`, and each says where Envoy reads it otherwise, and why.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from tests.conformance.both import both_before
from tests.conformance.proxies import LIMIT, ROOT, Static, until
from tests.conformance.upstream import END, Upstream, content, read_head, read_rest, read_whole, without
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

CASES = yaml.safe_load((ROOT / "crates/proxy/tests/live/responses.yaml").read_text())

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

ADDED = {b"date", b"server", b"x-envoy-upstream-service-time"}
"""What the proxies add to answers."""

EVIL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood"


class Planes(NamedTuple):
    upstream: Upstream
    proxies: tuple[Static, Static]


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    upstream = Upstream()
    with upstream.socket, both_before(upstream.port, tmp_path_factory.mktemp("responses")) as proxies:
        yield Planes(upstream, proxies)


class Seen(NamedTuple):
    """What a client was told, whose fields may come in any order, and whether its next request went by the same connection."""

    start: bytes
    fields: list[bytes]
    body: bytes
    reused: bool


def seen(answer: bytes, *, reused: bool) -> Seen:
    head, _, body = answer.partition(END)
    start, *fields = head.split(b"\r\n")
    return Seen(start, sorted(fields), body, reused)


REFUSED = (
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/plain\r\ncontent-length: 87\r\n\r\n",
    b"upstream connect error or disconnect/reset before headers. reset reason: protocol error",
)


def connect(proxy: Static) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT)


def exchange(proxy: Static, upstream: Upstream, case: dict[str, Any], first: bytes, second: bytes = b"") -> Seen:
    """Ask for *first*, have *second* said when it has been received, and see where the next request goes."""
    upstream.forget()  # what a case that failed may have left
    method = case.get("method", "GET")
    with connect(proxy) as client:
        client.sendall(f"{method} / HTTP/1.1\r\nhost: up\r\n\r\n".encode())
        with upstream.taken() as connection:
            connection.sendall(first)
            head, body = read_whole(client, method)
            connection.sendall(second)
            until("the proxy's host has it", lambda: unacknowledged_bytes(connection) == 0)
            reused = is_reused(connection, client, upstream)
    return seen(without(head, ADDED) + body, reused=reused)


def exchange_to_its_end(proxy: Static, upstream: Upstream, first: bytes, second: bytes = b"") -> Seen | None:
    """
    Ask for *first*, have *second* said when the client has the head, and see where another client's request goes.

    `None`: the connection ends before the answer does.
    """
    upstream.forget()
    with connect(proxy) as client:
        # Whoever would ask more is given some time by Envoy to read that it may not.
        client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
        with upstream.taken() as connection:
            connection.sendall(first)
            answer = read_head(client) if second else b""
            connection.sendall(second)
            answer += read_rest(client)
            with connect(proxy) as other:
                reused = is_reused(connection, other, upstream)
    if b"\r\n0\r\n\r\n" not in answer:
        assert not reused
        return None
    return seen(without(answer, ADDED | {b"connection"}), reused=reused)


def is_reused(connection: socket.socket, client: socket.socket, upstream: Upstream) -> bool:
    """Have *client* ask, and answer. Return whether its request came by *connection*, or else by a new one."""
    client.sendall(b"GET /next HTTP/1.1\r\nhost: up\r\n\r\n")
    reused = goes_on(connection)
    if reused:
        connection.sendall(GOOD)
    else:
        with upstream.taken() as fresh:
            fresh.sendall(GOOD)
    assert read_whole(client)[1] == b"good"
    return reused


def goes_on(connection: socket.socket) -> bool:
    """Whether another request comes before the connection ends, in whichever way."""
    try:
        return read_head(connection).endswith(END)
    except ConnectionError:
        return False


def unacknowledged_bytes(connection: socket.socket) -> int:
    """Bytes that were sent and not yet taken in by the other side's kernel."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def expected(case: dict[str, Any], answer: bytes, *, reused_by_envoy: bool) -> dict[str, Seen]:
    """What is to be seen of *case*, by kind of data plane: *answer* if it says nothing else of Envoy."""
    told = dict.fromkeys((ENVOY, WEFT_PROXY), seen(answer, reused=False))
    if envoy := case.get("envoy"):
        assert case["why"]
        told[ENVOY] = seen(envoy["passes"].encode(), reused=reused_by_envoy)
    return told


@pytest.mark.parametrize("case", CASES["heads"], ids=lambda case: case["name"])
def test_an_ambiguous_answer_is_not_passed_on(planes: Planes, case: dict[str, Any]) -> None:
    """The client is told that its upstream has failed, and asks nothing more of that connection."""
    head, body = REFUSED
    refused = head if case.get("method") == "HEAD" else head + body
    told = {proxy.kind: exchange(proxy, planes.upstream, case, case["bytes"].encode()) for proxy in planes.proxies}
    assert told == expected(case, refused, reused_by_envoy=True)


@pytest.mark.parametrize("case", CASES["beyond"], ids=lambda case: case["name"])
def test_bytes_beyond_an_answer_are_no_other_answer(planes: Planes, case: dict[str, Any]) -> None:
    """Neither those that come with it, nor those that come later, when nothing was asked."""
    answer = case["bytes"].encode()
    wanted = expected(case, case.get("passes", case["bytes"]).encode(), reused_by_envoy=False)
    for parts in ((answer + EVIL,), (answer, EVIL)):
        told = {proxy.kind: exchange(proxy, planes.upstream, case, *parts) for proxy in planes.proxies}
        assert told == wanted, len(parts)


@pytest.mark.parametrize("case", CASES["chunks"], ids=lambda case: case["name"])
def test_an_answer_with_an_ambiguous_chunk_is_never_completed(planes: Planes, case: dict[str, Any]) -> None:
    """Neither where it comes with its head, nor where the client has that already; and what follows is no other answer."""
    chunks = case["bytes"].encode() + EVIL
    wanted: dict[str, Seen | None] = dict.fromkeys((ENVOY, WEFT_PROXY))
    if envoy := case.get("envoy"):
        assert case["why"]
        wanted[ENVOY] = seen(envoy["passes"].encode(), reused=False)
    for parts in ((CHUNKED + chunks,), (CHUNKED, chunks)):
        told = {proxy.kind: exchange_to_its_end(proxy, planes.upstream, *parts) for proxy in planes.proxies}
        assert told == wanted, len(parts)


def test_valid_extensions_of_chunks_end_with_their_hop(planes: Planes) -> None:
    """They are about one connection (RFC 9112 7.1.1), and no content."""
    chunks = b'3;a\r\nabc\r\n2 \t; b=c;d="e;f"\r\nde\r\n0;g\r\n\r\n'
    for proxy in planes.proxies:
        told = exchange(proxy, planes.upstream, {}, CHUNKED + chunks)
        assert (told.start, content(told.body), told.reused) == (b"HTTP/1.1 200 OK", b"abcde", True), proxy.kind


def test_connection_takes_no_cookie_from_an_answer(planes: Planes) -> None:
    """RFC 9110 7.6.1: what is for the client is not to be nominated, and any other field that is ends here. With Envoy none does."""
    answer = (
        b"HTTP/1.1 200 OK\r\nconnection: Set-Cookie, x-hop\r\nset-cookie: a=b\r\nx-hop: 1\r\ncontent-length: 0\r\n\r\n"
    )
    told = {proxy.kind: exchange(proxy, planes.upstream, {}, answer) for proxy in planes.proxies}
    assert told == {
        WEFT_PROXY: seen(without(answer, {b"connection", b"x-hop"}), reused=True),
        ENVOY: seen(without(answer, {b"connection"}), reused=True),
    }
