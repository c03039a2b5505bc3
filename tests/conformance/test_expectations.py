"""Clients that wait for 100 Continue: the proxy itself tells them to go on, unless that is the upstream's to say. Both data planes, in one run."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener
from tests.conformance.frames import DATA, END_HEADERS, END_STREAM, HEADERS, POST, Wire, fields, status
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Upstream, fields_of, read_exactly, read_head, read_whole
from weft.data_plane import ENVOY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BODY = b"hello"


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    up: Upstream


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    up = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        routes: list[Json] = [
            {"match": {"prefix": "/refused"}, "direct_response": {"status": 403}},
            {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
        ]
        said = http_filters(routes, manager={"proxy_100_continue": True})
        listeners = [listener("own", ports["own"], http_filters(routes)), listener("said", ports["said"], said)]
        return {"clusters": [cluster("up", up.port)], "listeners": listeners}

    with up.socket, both(tmp_path_factory.mktemp("expectations"), ("own", "said"), resources) as running:
        yield Planes(running, up)


def head(path: str = "/", expectation: str = "100-continue") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: up", f"content-length: {len(BODY)}", f"expect: {expectation}", "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
def test_the_proxy_tells_the_client_to_go_on(planes: Planes, expectation: str) -> None:
    """Though the upstream is silent, which hears of no expectation; and not once more if it says so all the same."""
    for proxy in planes.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["own"]), LIMIT) as client:
            client.sendall(head(expectation=expectation))
            assert read_head(client) == CONTINUE, proxy.kind
            with planes.up.accept() as peer:
                assert b"expect" not in fields_of(read_head(peer)), proxy.kind
                client.sendall(BODY)
                assert read_exactly(peer, len(BODY)) == BODY, proxy.kind
                peer.sendall(CONTINUE + ANSWER)
                answer, body = read_whole(client)
                assert (answer.split()[1], body) == (b"200", b"ok"), proxy.kind


def test_the_proxy_tells_a_client_of_http2_to_go_on(planes: Planes) -> None:
    for proxy in planes.proxies:
        with Wire.client(proxy.ports["own"]) as client:
            block = fields(*POST, (b"expect", b"100-continue"), (b"content-length", str(len(BODY)).encode()))
            client.send(HEADERS, END_HEADERS, 1, block)
            found = client.next(HEADERS)
            assert (status(found.payload), found.flags & END_STREAM) == (100, 0), proxy.kind
            with planes.up.accept() as peer:
                assert b"expect" not in fields_of(read_head(peer)), proxy.kind
                client.send(DATA, END_STREAM, 1, BODY)
                assert read_exactly(peer, len(BODY)) == BODY, proxy.kind
                peer.sendall(ANSWER)
                assert status(client.next(HEADERS).payload) == 200, proxy.kind
                assert client.body(1) == b"ok", proxy.kind


def test_what_the_upstream_says_is_waited_for_where_the_manager_wants_that(planes: Planes) -> None:
    for proxy in planes.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["said"]), LIMIT) as client:
            client.sendall(head())
            with planes.up.accept() as peer:
                assert fields_of(read_head(peer))[b"expect"] == b"100-continue", proxy.kind
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
                client.settimeout(LIMIT)
                peer.sendall(CONTINUE)
                assert read_head(client) == CONTINUE, proxy.kind
                client.sendall(BODY)
                assert read_exactly(peer, len(BODY)) == BODY, proxy.kind
                peer.sendall(ANSWER)
                assert read_whole(client)[1] == b"ok", proxy.kind


def test_another_expectation_is_the_upstreams_to_meet(planes: Planes) -> None:
    for proxy in planes.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["own"]), LIMIT) as client:
            client.sendall(head(expectation="fire") + BODY)
            with planes.up.accept() as peer:
                assert fields_of(read_head(peer))[b"expect"] == b"fire", proxy.kind
                assert read_exactly(peer, len(BODY)) == BODY, proxy.kind
                peer.sendall(ANSWER)
                assert read_head(client).split()[1] == b"200", proxy.kind


def test_a_request_that_goes_nowhere_is_answered_before_its_body(planes: Planes) -> None:
    """By weft-proxy at once (RFC 9110 10.1.1: the final status is what spares the body); Envoy asks for the body first, and does not read it."""
    for proxy in planes.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["own"]), LIMIT) as client:
            client.sendall(head("/refused"))
            if proxy.kind == ENVOY:
                assert read_head(client) == CONTINUE
            answer, _ = read_whole(client)
            assert answer.split()[1] == b"403", proxy.kind
            assert fields_of(answer)[b"connection"] == b"close", proxy.kind
            assert client.recv(1) == b"", proxy.kind
