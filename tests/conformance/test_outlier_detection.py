"""The same rules of outlier detection, the same endpoints out: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both import one
from tests.conformance.proxies import socket_address, static_listener, until
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

RULES: dict[str, dict[str, Any]] = {
    "consecutive": {"consecutive_5xx": 2},
    "gateway": {
        "enforcing_consecutive_5xx": 0,
        "consecutive_gateway_failure": 2,
        "enforcing_consecutive_gateway_failure": 100,
    },
    # One of three is more than a hundredth.
    "always-one": {"consecutive_5xx": 2, "max_ejection_percent": 1, "always_eject_one_host": True},
    "success-rate": {
        "enforcing_consecutive_5xx": 0,
        "success_rate_minimum_hosts": 3,
        "success_rate_request_volume": 5,
        "success_rate_stdev_factor": 1000,
    },
    "failure-percentage": {
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "enforcing_failure_percentage": 100,
        "failure_percentage_minimum_hosts": 3,
        "failure_percentage_request_volume": 5,
        "failure_percentage_threshold": 60,
    },
}
"""By cluster. One of three endpoints is out for good as soon as it is found."""

COMMON = {"interval": "1s", "base_ejection_time": "300s", "max_ejection_percent": 40}


CALL = {"content-type": "application/grpc"}


class Endpoint(BaseHTTPRequestHandler):
    """Answers 503 or 200, as its server says; in gRPC it says so in a head that is all."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        fails, is_call = self.server.fails(), self.headers["content-type"] == CALL["content-type"]
        self.send_response(503 if fails and not is_call else 200)
        if is_call:
            self.send_header("content-type", CALL["content-type"])
            self.send_header("grpc-status", "14" if fails else "0")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    """Fails *failing* of four requests."""

    daemon_threads = True

    def __init__(self, failing: int) -> None:
        super().__init__(("127.0.0.1", 0), Endpoint)
        self._failing, self._served, self._lock = failing, 0, threading.Lock()

    def fails(self) -> bool:
        with self._lock:
            self._served += 1
            return self._served % 4 < self._failing


@contextlib.contextmanager
def servers(*failing: int) -> Iterator[list[int]]:
    """Yields the ports."""
    running = [Server(each) for each in failing]
    for each in running:
        threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield [int(each.server_address[1]) for each in running]
    finally:
        for each in running:
            each.shutdown()
            each.server_close()


def cluster(name: str, ports: list[int]) -> dict[str, Any]:
    targets = [{"endpoint": {"address": socket_address("127.0.0.1", port)}} for port in ports]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": targets}]},
        "outlier_detection": COMMON | {"enforcing_success_rate": 100 if name == "success-rate" else 0} | RULES[name],
    }


@pytest.mark.parametrize("headers", [{}, CALL], ids=["HTTP", "gRPC"])
@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_who_fails_more_often_than_the_others_is_ejected(tmp_path: Path, kind: str, headers: dict[str, str]) -> None:
    """By each of the rules, as `weft proxy-config endpoints` shows it; who fails now and then stays."""
    with servers(0, 1, 3) as ports:

        def resources(listening: dict[str, int]) -> dict[str, Any]:
            return {
                "clusters": [cluster(name, ports) for name in RULES],
                "listeners": [static_listener(name, port) for name, port in listening.items()],
            }

        with one(kind, tmp_path, tuple(RULES), resources) as proxy:
            for name in RULES:

                def out(name: str = name) -> set[int]:
                    for _ in range(30):
                        proxy.get(name, **headers)
                    return proxy.found(name, "EJECTED")

                assert out() <= {ports[2]}
                until(f"{name} ejects the one", lambda: out() == {ports[2]})
                assert out() == {ports[2]}
