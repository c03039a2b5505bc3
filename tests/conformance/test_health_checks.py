"""The same health checks, the same endpoints: stock Envoy and weft-proxy send requests to the same of them, in one run."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conformance.proxies import Static, socket_address, static_listener, until
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
        endpoint = self.server.endpoint
        while line := self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            status, headers = 200, ""
            if b" /health" in line:
                status = endpoint.status if endpoint.is_good else endpoint.bad_status
            elif b" /fail" in line:
                headers = "x-envoy-immediate-health-check-fail: true\r\n"
            text = endpoint.name
            self.wfile.write(f"HTTP/1.1 {status} Said\r\n{headers}content-length: {len(text)}\r\n\r\n{text}".encode())


class Pings(socketserver.StreamRequestHandler):
    """Answers PING, while all is well."""

    server: Server

    def handle(self) -> None:
        while self.rfile.read(4) == b"PING":
            if not self.server.endpoint.is_good:
                return
            self.wfile.write(b"+PONG")


class Health(grpc.GenericRpcHandler):
    """grpc.health.v1.Health, as bytes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != "/grpc.health.v1.Health/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(self._check)

    def _check(self, request: bytes, context: Any) -> bytes:
        if request != SERVICE:
            return SERVICE_UNKNOWN
        return SERVING if self._endpoint.is_good else NOT_SERVING


class Endpoint:
    """Serves HTTP at one port, and is checked there, at another by TCP, and at a third by gRPC."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_good = True
        self.status, self.bad_status = 200, 503
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
    "grpc": {"grpc_health_check": {"service_name": "shop.Cart"}},
}


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
    return {
        "name": kind,
        "type": "STATIC",
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

    def failed(self, cluster: str) -> set[int]:
        """Ports of endpoints that fail their active health check, as `/clusters` says."""
        found = json.loads(self.ask("/clusters?format=json"))
        if isinstance(found, list):
            hosts = next(item["endpoints"] for item in found if item["name"] == cluster)
            return {int(host["address"].rpartition(":")[2]) for host in hosts if host["failed_active_health_check"]}
        status = next(item for item in found["cluster_statuses"] if item["name"] == cluster)
        return {
            host["address"]["socket_address"]["port_value"]
            for host in status["host_statuses"]
            if host.get("health_status", {}).get("failed_active_health_check")
        }

    def answering(self, cluster: str) -> set[tuple[int, str]]:
        return {self.get(cluster) for _ in range(4)}


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
            assert proxy.answering(kind) == BOTH
            assert proxy.count("health_check_healthy", kind) == 2

    b.is_good = False
    for proxy in both:
        for kind in KINDS:
            until(f"{kind} fails", lambda: proxy.failed(kind) == {b.port})  # noqa: B023
            assert proxy.answering(kind) == {(200, "a")}
            assert proxy.count("health_check_healthy", kind) == 1
            assert proxy.count("health_check_failure", kind) >= 1
            assert (proxy.count("health_check_network_failure", kind) > 0) is (kind == "tcp")

    a.is_good = False
    for proxy in both:
        for kind in KINDS:
            until(f"{kind} fails", lambda: proxy.failed(kind) == {a.port, b.port})  # noqa: B023
            expected = {(503, "no healthy upstream")} if kind == "http" else BOTH
            assert proxy.answering(kind) == expected, "panic is as the cluster says"

    a.is_good = b.is_good = True
    for proxy in both:
        for kind in KINDS:
            until(f"{kind} passes", lambda: proxy.failed(kind) == set())  # noqa: B023
            assert proxy.answering(kind) == BOTH
            assert proxy.count("health_check_attempt", kind) >= proxy.count("health_check_success", kind) > 0


@pytest.mark.timeout(120)
def test_both_hear_an_endpoint_that_fails_in_an_answer(both: list[Proxy], endpoints: list[Endpoint]) -> None:
    a, b = endpoints
    for proxy in both:
        # Whoever answers fails by it; checks bring it back.
        status, name = proxy.get("http", "/fail")
        assert status == 200
        until("it counts", lambda: proxy.count("health_check_passive_failure", "http") == 1)  # noqa: B023
        until("it is back", lambda: proxy.failed("http") == set())  # noqa: B023
        assert name in {a.name, b.name}
        assert proxy.answering("http") == BOTH


@pytest.mark.timeout(120)
def test_an_endpoint_that_is_away_fails_on_both(both: list[Proxy], endpoints: list[Endpoint]) -> None:
    _, b = endpoints
    b.close()
    for proxy in both:
        for kind in KINDS:
            until(f"{kind} fails", lambda: proxy.failed(kind) == {b.port})  # noqa: B023
            assert proxy.answering(kind) == {(200, "a")}
            assert proxy.count("health_check_network_failure", kind) >= 2
