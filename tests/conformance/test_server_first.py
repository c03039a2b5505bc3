"""Servers that speak first, where the protocol of a port is declared and where first bytes tell it: Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Accepting, read_answer, read_exactly, read_rest

pytestmark = pytest.mark.conformance

LISTENERS = "declared", "undeclared"

GREETING = b"220 ready\r\n"


class Greeter(Accepting):
    """Greets whoever connects, and keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(GREETING)
            self.heard.append(read_rest(connection))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Greeter]:
    with Greeter() as found:
        yield found


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, upstream: Greeter) -> Iterator[tuple[Static, Static]]:
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
            # Long enough for a busy machine to have a client say something first.
            listener_filters_timeout="2s",
            continue_on_listener_filters_timeout=True,
        )
        of_web = {"filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]}, "filters": web}
        undeclared["filter_chains"].append(of_web)
        return {
            "clusters": [cluster("up", upstream.port)],
            "listeners": [listener("declared", ports["declared"], bytes_alone), undeclared],
        }

    with both(tmp_path_factory.mktemp("first"), LISTENERS, resources) as running:
        yield running


def connect(proxy: Static, name: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)


@pytest.mark.parametrize("name", LISTENERS)
def test_a_client_that_waits_for_its_server_hears_it(
    proxies: tuple[Static, Static], upstream: Greeter, name: str
) -> None:
    """Where nothing is declared for as long as first bytes are waited for, at the most; then it may say what it likes, HTTP too."""
    for proxy in proxies:
        said = f"GET /{proxy.kind} HTTP/1.1\r\n\r\n".encode()
        with connect(proxy, name) as client:
            assert read_exactly(client, len(GREETING)) == GREETING, proxy.kind
            client.sendall(said)
        until(f"the server is told by {proxy.kind}", lambda said=said: said in upstream.heard)
        upstream.heard.clear()


def test_who_speaks_first_is_known_by_what_it_says(proxies: tuple[Static, Static], upstream: Greeter) -> None:
    for proxy in proxies:
        with connect(proxy, "undeclared") as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            assert read_answer(client).status == 204, proxy.kind
        said = b"\0\1\2\3" + proxy.kind.encode()
        with connect(proxy, "undeclared") as client:
            client.sendall(said)
            assert read_exactly(client, len(GREETING)) == GREETING, proxy.kind
        until(f"the server is told by {proxy.kind}", lambda said=said: said in upstream.heard)
