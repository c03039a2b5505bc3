"""The same health checks, the same endpoints: stock Envoy and weft-proxy send requests to the same of them, in one run."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conformance.proxies import Static, socket_address, static_listener, typed, until
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

KINDS = ("http", "tcp", "grpc")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
SERVICE = b"\x0a\x09shop.Cart"  # HealthCheckRequest{service: "shop.Cart"}


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    endpoint: Endpoint


class Requests(socketserver.StreamRequestHandler):
    """Says the endpoint's name; to checks, the status at hand."""

    server: Server

    def handle(self) -> None:
        endpoint, checks = self.server.endpoint, 0
        while line := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            if endpoint.is_closed:
                return
            status, headers = 200, ""
            if b" /health" in line:
                checks += 1
                status = 200 if endpoint.is_good else 503
                if endpoint.flaps and checks % 2 == 0:
                    status = 500
            elif b" /fail" in line:
                headers = "x-envoy-immediate-health-check-fail: true\r\n"
            text = endpoint.name
            self.wfile.write(f"HTTP/1.1 {status} Said\r\n{headers}content-length: {len(text)}\r\n\r\n{text}".encode())


class Pings(socketserver.StreamRequestHandler):
    """Answers PING, while all is well."""

    server: Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while self.rfile.read(4) == b"PING" and self.server.endpoint.is_good:
                self.wfile.write(b"+PONG")


class Health(grpc.GenericRpcHandler):
    """grpc.health.v1.Health, as bytes: bad to whoever does not send the metadata that checks should have."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != "/grpc.health.v1.Health/Check":
            return None
        if dict(handler_call_details.invocation_metadata).get("x-check") != "shop":
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: NOT_SERVING)
        return grpc.unary_unary_rpc_method_handler(self._check)

    def _check(self, request: bytes, context: Any) -> bytes:
        if request != SERVICE:
            return SERVICE_UNKNOWN
        return SERVING if self._endpoint.is_good else NOT_SERVING


class Endpoint:
    """Serves HTTP at one port, and is checked there, at another by TCP, and at a third by gRPC."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_good, self.is_closed = True, False
        self.flaps = False
        """Every second check of a connection is answered 500, which counts to the threshold only."""
        self._servers = [self._serve(Requests), self._serve(Pings)]
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        self._grpc.add_generic_rpc_handlers((Health(self),))
        ports = [int(server.server_address[1]) for server in self._servers]
        self.port = ports[0]
        self.checked_at = dict(zip(KINDS, [*ports, self._grpc.add_insecure_port("127.0.0.1:0")], strict=True))
        self._grpc.start()

    def _serve(self, handler: type[socketserver.StreamRequestHandler]) -> Server:
        server = Server(("127.0.0.1", 0), handler)
        server.endpoint = self
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def close(self) -> None:
        self.is_closed = True
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._grpc.stop(None).wait()


def hexadecimal(text: str) -> dict[str, str]:
    return {"text": text.encode().hex()}


CHECKS: dict[str, dict[str, Any]] = {
    "http": {
        "http_health_check": {
            "path": "/health",
            "expected_statuses": [{"start": 200, "end": 300}],
            "retriable_statuses": [{"start": 500, "end": 501}],
        }
    },
    "tcp": {
        "tcp_health_check": {"send": hexadecimal("PING"), "receive": [hexadecimal("+"), hexadecimal("ONG")]},
        "reuse_connection": False,
    },
    "grpc": {
        "grpc_health_check": {
            "service_name": "shop.Cart",
            "initial_metadata": [{"header": {"key": "x-check", "value": "shop"}}],
        }
    },
}


STAT_NAMES = {"http": "http", "tcp": "bytes", "grpc": "calls"}
"""How metrics name the cluster of each kind."""


def cluster(kind: str, endpoints: list[Endpoint]) -> dict[str, Any]:
    """Checked every 50 ms; of HTTP without panic, the others with Envoy's default of half of the endpoints."""

    def at(endpoint: Endpoint) -> dict[str, Any]:
        config = {"port_value": endpoint.checked_at[kind]}
        return {"endpoint": {"address": socket_address("127.0.0.1", endpoint.port), "health_check_config": config}}

    check = {
        "timeout": "5s",
        "interval": "0.05s",
        "no_traffic_interval": "0.05s",
        "interval_jitter_percent": 10,
        "unhealthy_threshold": 2,
        "healthy_threshold": 2,
        **CHECKS[kind],
    }
    # Envoy checks by gRPC only what may speak HTTP/2.
    options = typed(
        "upstreams.http.v3.HttpProtocolOptions",
        use_downstream_protocol_config={"http_protocol_options": {}, "http2_protocol_options": {}},
    )
    return {
        "name": kind,
        "alt_stat_name": STAT_NAMES[kind],
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": kind, "endpoints": [{"lb_endpoints": list(map(at, endpoints))}]},
        "health_checks": [check],
        **({"common_lb_config": {"healthy_panic_threshold": {"value": 0}}} if kind == "http" else {}),
    }


class Proxy(Static):
    """A data plane with a listener for a cluster of each kind of check."""

    def __init__(self, kind: str, directory: Path, endpoints: list[Endpoint]) -> None:
        ports = {name: free_port() for name in KINDS}
        listeners = [static_listener(name, port) for name, port in ports.items()]
        clusters = [cluster(name, endpoints) for name in KINDS]
        super().__init__(kind, directory, ports, {"clusters": clusters, "listeners": listeners})

    def count(self, metric: str, cluster: str) -> int:
        return super().count(metric, STAT_NAMES[cluster])

    def failed(self, cluster: str) -> set[int]:
        """Ports of endpoints that fail their active health check."""
        return self.found(cluster, "FAILED CHECK")

    def answering(self, cluster: str) -> set[tuple[int, str]]:
        return {self.get(cluster) for _ in range(4)}

    def expect(self, cluster: str, answers: set[tuple[int, str]]) -> None:
        """Requests come to be answered so: Envoy's workers learn a little later what `/clusters` says."""
        until(f"{self.kind} answers {answers} for {cluster}", lambda: self.answering(cluster) == answers)

    def expect_failed(self, cluster: str, *endpoints: Endpoint) -> None:
        expected = {endpoint.port for endpoint in endpoints}
        until(f"{self.kind} finds {expected} failing by {cluster}", lambda: self.failed(cluster) == expected)


@pytest.fixture
def endpoints() -> Iterator[list[Endpoint]]:
    running = [Endpoint("a"), Endpoint("b")]
    yield running
    for endpoint in running:
        endpoint.close()


@pytest.fixture
def both(tmp_path: Path, endpoints: list[Endpoint]) -> Iterator[list[Proxy]]:
    running = [Proxy(kind, tmp_path / kind, endpoints) for kind in (ENVOY, WEFT_PROXY)]
    try:
        for proxy in running:
            until("it is ready", proxy.is_ready)
        yield running
    finally:
        for proxy in running:
            proxy.stop()


BOTH = {(200, "a"), (200, "b")}


@pytest.mark.timeout(120)
def test_both_send_requests_to_the_same_endpoints(both: list[Proxy], endpoints: list[Endpoint]) -> None:
    a, b = endpoints
    for proxy in both:
        for kind in KINDS:
            assert proxy.failed(kind) == set(), "ready before the first checks"
            proxy.expect(kind, BOTH)
            assert proxy.count("health_check_healthy", kind) == 2

    b.is_good = False
    for proxy in both:
        for kind in KINDS:
            proxy.expect_failed(kind, b)
            proxy.expect(kind, {(200, "a")})
            assert proxy.count("health_check_healthy", kind) == 1
            assert proxy.count("health_check_failure", kind) >= 1
            assert (proxy.count("health_check_network_failure", kind) > 0) is (kind == "tcp")

    a.is_good = False
    for proxy in both:
        for kind in KINDS:
            proxy.expect_failed(kind, a, b)
            # Panic is as the cluster says.
            proxy.expect(kind, {(503, "no healthy upstream")} if kind == "http" else BOTH)

    a.is_good = b.is_good = True
    for proxy in both:
        for kind in KINDS:
            proxy.expect_failed(kind)
            proxy.expect(kind, BOTH)
            assert proxy.count("health_check_attempt", kind) >= proxy.count("health_check_success", kind) > 0


@pytest.mark.timeout(120)
def test_failures_that_are_not_in_a_row_change_nothing_on_both(both: list[Proxy], endpoints: list[Endpoint]) -> None:
    endpoints[1].flaps = True
    for proxy in both:
        until("it flaps", lambda: proxy.count("health_check_failure", "http") >= 4)  # noqa: B023
        assert proxy.failed("http") == set()
        assert proxy.answering("http") == BOTH


@pytest.mark.timeout(120)
def test_both_hear_an_endpoint_that_fails_in_an_answer(both: list[Proxy]) -> None:
    for proxy in both:
        assert proxy.get("http", "/fail")[0] == 200
        until("it counts", lambda: proxy.count("health_check_passive_failure", "http") == 1)  # noqa: B023
        # Checks bring it back.
        proxy.expect_failed("http")
        proxy.expect("http", BOTH)


@pytest.mark.timeout(120)
def test_an_endpoint_that_is_away_fails_on_both(both: list[Proxy], endpoints: list[Endpoint]) -> None:
    _, b = endpoints
    b.close()
    for proxy in both:
        for kind in KINDS:
            proxy.expect_failed(kind, b)
            proxy.expect(kind, {(200, "a")})
            assert proxy.count("health_check_network_failure", kind) >= 2
