"""
The case of field names over HTTP/1.1 and the reason phrases of answers, where they are asked to be preserved and where not.

Stock Envoy and weft-proxy, in one run.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener, typed
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Upstream, read_exactly, read_head
from weft.data_plane import ENVOY

pytestmark = pytest.mark.conformance


def preserve_case(**more: bool) -> Json:
    config = typed("http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig", **more)
    return {"header_key_format": {"stateful_formatter": {"name": "preserve_case", "typed_config": config}}}


OPTIONS: dict[str, tuple[Json, Json]] = {
    "asked": (preserve_case(), preserve_case()),
    "not asked": ({}, {}),
    "phrases of the cluster": ({}, preserve_case(forward_reason_phrase=True)),
    "phrases of the listener": (preserve_case(forward_reason_phrase=True), preserve_case()),
}
"""By name: what a listener and its cluster are told of HTTP/1.1."""

ADDED = {b"x-forwarded-proto", b"x-request-id", b"x-envoy-expected-rq-timeout-ms", b"x-envoy-upstream-service-time"}
ADDED |= {b"date", b"server"}
"""By the proxies, whose names are in lower case."""

REQUESTS = {
    "a length": (b"HOST: up\r\nX-One: 1\r\nx-TWO: 2\r\nContent-LENGTH: 2\r\n", b"hi"),
    "chunks": (b"Host: up\r\nX-One: 1\r\nTransfer-Encoding: chunked\r\n", b"2\r\nhi\r\n0\r\n\r\n"),
}
ANSWERS = {
    "a length": (b"X-Answer: 1\r\nSet-COOKIE: a\r\nContent-Length: 2\r\n", b"ho"),
    "chunks": (b"X-Answer: 1\r\nTransfer-ENCODING: chunked\r\n", b"2\r\nho\r\n0\r\n\r\n"),
}


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[Static, Static], Upstream]]:
    upstream = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        clusters, listeners = [], []
        for name, port in ports.items():
            of_listener, of_cluster = OPTIONS[name]
            http = http_options(explicit_http_config={"http_protocol_options": of_cluster})
            clusters.append(cluster(name, upstream.port, **http))
            manager = {"http_protocol_options": of_listener}
            filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": name}}], manager=manager)
            listeners.append(listener(name, port, filters))
        return {"clusters": clusters, "listeners": listeners}

    with (
        upstream.socket,
        both(tmp_path_factory.mktemp("case"), tuple(OPTIONS), resources) as proxies,
    ):
        yield proxies, upstream


def names(head: bytes) -> list[bytes]:
    """The names in *head*, in order of the alphabet, without those that a proxy adds."""
    found = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:] if line]
    return sorted(name for name in found if name not in ADDED)


def passed(proxy: Static, name: str, body: str, upstream: Upstream) -> tuple[list[bytes], list[bytes]]:
    """The names of a request that reach the upstream, and those of its answer that reach the client."""
    (fields, content), (answer, answered) = REQUESTS[body], ANSWERS[body]
    with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client:
        client.sendall(b"POST / HTTP/1.1\r\n" + fields + b"\r\n" + content)
        with upstream.accept() as server:
            asked = read_head(server)
            assert read_exactly(server, len(content)) == content
            server.sendall(b"HTTP/1.1 200 OK\r\n" + answer + b"\r\n" + answered)
            told = read_head(client)
            assert read_exactly(client, len(answered)) == answered
    return names(asked), names(told)


@pytest.mark.parametrize("body", REQUESTS)
def test_names_go_on_as_they_are_written_where_that_is_asked_for(
    planes: tuple[tuple[Static, Static], Upstream], body: str
) -> None:
    """Those too that a proxy reads and writes again; in lower case otherwise, but for the others at weft-proxy."""
    proxies, upstream = planes
    for proxy in proxies:
        written = names(b"\r\n" + REQUESTS[body][0]), names(b"\r\n" + ANSWERS[body][0])
        assert passed(proxy, "asked", body, upstream) == written, proxy.kind
        found = passed(proxy, "not asked", body, upstream)
        if proxy.kind == ENVOY:
            assert found == tuple(sorted(name.lower() for name in part) for part in written)
        else:
            again = {b"host", b"content-length", b"transfer-encoding"}
            expected = ((name.lower() if name.lower() in again else name for name in part) for part in written)
            assert found == tuple(map(sorted, expected))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("status", ["200 Very Well", "299 Odd", "503 "])
def test_reason_phrases_go_on_where_the_cluster_asks_for_it(
    planes: tuple[tuple[Static, Static], Upstream], name: str, status: str
) -> None:
    """They are an upstream's: a listener has nothing to forward."""
    proxies, upstream = planes
    usual = {"200 Very Well": "200 OK", "299 Odd": "299 Unknown", "503 ": "503 Service Unavailable"}[status]
    expected = status if name == "phrases of the cluster" and not status.endswith(" ") else usual
    for proxy in proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            with upstream.accept() as server:
                read_head(server)
                server.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
                line = read_head(client).partition(b"\r\n")[0].decode()
        assert line == f"HTTP/1.1 {expected}", proxy.kind
