"""Servers that speak first, where the protocol of a port is declared and where first bytes tell it: Envoy and weft-proxy, in one run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_answer, read_exactly

pytestmark = pytest.mark.conformance

LISTENERS = "declared", "undeclared"

GREETING = b"220 ready\r\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    with found.socket:
        yield found


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[tuple[Static, Static]]:
    proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="bytes", cluster="up")
    bytes_alone = [{"name": "tcp", "typed_config": proxy}]
    inspector = typed("filters.listener.http_inspector.v3.HttpInspector")
    web = http_filters([{"match": {"prefix": "/"}, "direct_response": {"status": 204}}])

    def resources(ports: dict[str, int]) -> Json:
        undeclared = listener(
            "undeclared",
            ports["undeclared"],
            bytes_alone,
            listener_filters=[{"name": "http_inspector", "typed_config": inspector}],
            listener_filters_timeout="0.3s",
            continue_on_listener_filters_timeout=True,
        )
        of_web = {"filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]}, "filters": web}
        undeclared["filter_chains"].append(of_web)
        return {
            "clusters": [cluster("up", upstream.port)],
            "listeners": [listener("declared", ports["declared"], bytes_alone), undeclared],
        }

    with both(tmp_path_factory.mktemp("first"), LISTENERS, resources) as running:
        for running_proxy in running:
            until("it is ready", running_proxy.is_ready)
        upstream.forget()
        yield running


def connect(proxy: Static, name: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)


@pytest.mark.parametrize("name", LISTENERS)
def test_a_client_that_waits_for_its_server_hears_it(
    proxies: tuple[Static, Static], upstream: Upstream, name: str
) -> None:
    """Where nothing is declared for as long as first bytes are waited for, at the most; then it may say what it likes, HTTP too."""
    for proxy in proxies:
        with connect(proxy, name) as client, upstream.accept() as server:
            server.sendall(GREETING)
            assert read_exactly(client, len(GREETING)) == GREETING, proxy.kind
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_exactly(server, 18) == b"GET / HTTP/1.1\r\n\r\n", proxy.kind


def test_who_speaks_first_is_known_by_what_it_says(proxies: tuple[Static, Static], upstream: Upstream) -> None:
    for proxy in proxies:
        with connect(proxy, "undeclared") as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            assert read_answer(client).status == 204, proxy.kind
        upstream.forget()
        with connect(proxy, "undeclared") as client:
            client.sendall(b"\0\1\2\3")
            with upstream.accept() as server:
                assert read_exactly(server, 4) == b"\0\1\2\3", proxy.kind
