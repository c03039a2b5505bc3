"""The same mirror policies: stock Envoy and weft-proxy send the same copies, in one run."""

from __future__ import annotations

import contextlib
import queue
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both import Json, address, both, http_filters, listener
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Accepting

pytestmark = pytest.mark.conformance

PASSING = ("x-request-id", "x-forwarded-for")
"""Fields whose values belong to one request or to one proxy's place in the network."""


class Upstream(Accepting):
    """Answers every request, and keeps what it was asked: start line, fields by name, and the body with its framing."""

    def __init__(self, status: int) -> None:
        self.answer = f"HTTP/1.1 {status} OK\r\nx-from: {status}\r\ncontent-length: 2\r\n\r\nok".encode()
        self.asked: queue.Queue[tuple[str, dict[str, str], bytes]] = queue.Queue()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError), connection.makefile("rb") as incoming:
            while start := incoming.readline():
                fields = {}
                while (line := incoming.readline()) != b"\r\n":
                    name, _, value = line.decode().partition(":")
                    fields[name.lower()] = value.strip()
                self.asked.put((start.decode().strip(), fields, _body(incoming, fields)))
                connection.sendall(self.answer)

    def next(self) -> tuple[str, dict[str, str], bytes]:
        """The next request, without what is its own alone."""
        start, fields, body = self.asked.get(timeout=LIMIT)
        return start, {name: value for name, value in fields.items() if name not in PASSING}, body


def _body(incoming: Any, fields: dict[str, str]) -> bytes:
    """The data of a body; of one in chunks its trailers, too."""
    if fields.get("transfer-encoding") != "chunked":
        return bytes(incoming.read(int(fields.get("content-length", 0))))
    body = b""
    while size := int(incoming.readline(), 16):
        body += incoming.read(size)
        incoming.readline()
    while (line := incoming.readline()) != b"\r\n":
        body += b"|" + line.strip()
    return body


def static_resources(ports: dict[str, int], upstreams: dict[str, int]) -> Json:
    copied = {"cluster": "copy"}
    routes: list[Json] = [
        {"match": {"prefix": "/same"}, "route": _to(copied | {"disable_shadow_host_suffix_append": True})},
        {"match": {"prefix": "/named"}, "route": _to(copied | {"host_rewrite_literal": "copy.example"})},
        {
            "match": {"prefix": "/edited/"},
            "route": _to(copied) | {"prefix_rewrite": "/new/", "host_rewrite_literal": "other:1"},
            "request_headers_to_add": [{"header": {"key": "x-added", "value": "%REQ(:path)%"}}],
            "request_headers_to_remove": ["x-gone"],
        },
        {"match": {"prefix": "/retried"}, "route": _to(copied) | {"retry_policy": {"retry_on": "5xx"}}},
        {"match": {"prefix": "/own"}, "route": {"cluster": "main"}},
        {"match": {"prefix": "/dead"}, "route": _to({"cluster": "dead"}, copied)},
        {"match": {"prefix": "/"}, "route": _to(copied)},
    ]
    filters = http_filters(
        routes, include_request_attempt_count=True, request_mirror_policies=[copied | {"host_rewrite_literal": "level"}]
    )
    return {
        "listeners": [listener("http", ports["http"], filters)],
        "clusters": [
            {
                "name": name,
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
                },
            }
            for name, port in upstreams.items()
        ],
    }


def _to(*mirrors: Json) -> Json:
    return {"cluster": "main", "request_mirror_policies": list(mirrors)}


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    with Upstream(200) as main, Upstream(500) as copy:
        yield {"main": main, "copy": copy}


@pytest.fixture(scope="module")
def planes(upstreams: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Static, Static]]:
    directory: Path = tmp_path_factory.mktemp("mirror")
    ports = {name: upstream.port for name, upstream in upstreams.items()} | {"dead": 1}
    with both(directory, ("http",), lambda own: static_resources(own, ports)) as running:
        yield running


REQUESTS = {
    "without a body": "GET /plain?a=b HTTP/1.1\r\nhost: shop:80\r\nx-more: 1\r\n\r\n",
    "of no port": "GET / HTTP/1.1\r\nhost: shop\r\n\r\n",
    "of an address": "GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n",
    "with a length": "POST / HTTP/1.1\r\nhost: shop:80\r\ncontent-length: 5\r\n\r\nwords",
    "in chunks": "POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\nwor\r\n2\r\nds\r\n0\r\n\r\n",
    "for the head": "HEAD / HTTP/1.1\r\nhost: shop\r\n\r\n",
    "that expects": "POST / HTTP/1.1\r\nhost: shop\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
    "as it is": "GET /same HTTP/1.1\r\nhost: shop:80\r\n\r\n",
    "with a host of its own": "GET /named HTTP/1.1\r\nhost: shop:80\r\n\r\n",
    "with the route's edits": "GET /edited/1 HTTP/1.1\r\nhost: shop:80\r\nx-gone: 1\r\nx-stays: 1\r\n\r\n",
    "that may be retried": "PUT /retried HTTP/1.1\r\nhost: shop\r\ncontent-length: 2\r\n\r\nab",
    "by the virtual host's word": "GET /own HTTP/1.1\r\nhost: shop\r\n\r\n",
    "beside one that nobody takes": "GET /dead HTTP/1.1\r\nhost: shop\r\n\r\n",
}


@pytest.mark.parametrize("text", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_copy_is_the_same_of_both(planes: tuple[Static, Static], upstreams: dict[str, Upstream], text: str) -> None:
    found = []
    for plane in planes:
        with socket.create_connection(("127.0.0.1", plane.ports["http"]), timeout=LIMIT) as connection:
            connection.sendall(text.encode())
            answer = b""
            while b"x-from: 200" not in answer:
                part = connection.recv(65536)
                assert part, answer
                answer += part
            assert b"x-from: 500" not in answer
            found.append((upstreams["main"].next(), upstreams["copy"].next()))
        assert upstreams["main"].asked.empty()
        assert upstreams["copy"].asked.empty()
    assert found[0] == found[1]
