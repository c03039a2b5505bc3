"""What is tried again, how often a circuit breaker lets it, and what is told of that: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, http_options, listener, records
from tests.conformance.proxies import LIMIT, until
from tests.ports import free_port
from weft.translate.access_log import RETRIABLE_GRPC

pytestmark = pytest.mark.conformance

FIELDS = {
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}

asked: Counter[tuple[int, str]] = Counter()
"""Requests that came, by the port of the proxy's listener and path."""


class Busy(BaseHTTPRequestHandler):
    """Refuses every request, and keeps its connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked[int(self.headers["host"]), self.path] += 1
        self.send_response(503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Says nothing."""


def test_as_many_retries_as_the_limit_allows_at_once(tmp_path: Path) -> None:
    """A request's retries follow one another: one at once is enough for all of them, and where none may be made it is said."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def limited(name: str, port: int, most: int) -> Json:
        return cluster(f"{name}-{most}", port, circuit_breakers={"thresholds": [{"max_retries": most}]})

    clusters = [limited("busy", int(server.server_address[1]), most) for most in (0, 1, 2)]
    clusters += [limited("refused", free_port(), most) for most in (0, 1)]
    names = [each["name"] for each in clusters]

    def resources(ports: dict[str, int]) -> Json:
        policy = {"retry_on": "5xx,connect-failure", "num_retries": 2}
        routes = [
            {"match": {"prefix": f"/{name}"}, "route": {"cluster": name, "retry_policy": policy}} for name in names
        ]
        log = file_log(tmp_path / f"{ports['http']}.log", FIELDS)
        filters = http_filters(routes, manager={"access_log": log})
        return {"clusters": clusters, "listeners": [listener("http", ports["http"], filters)]}

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            found = []
            for proxy in proxies:
                port = proxy.ports["http"]
                log = tmp_path / f"{port}.log"
                told = {}
                for number, name in enumerate(names, start=1):
                    status, _ = proxy.get("http", f"/{name}", host=str(port))
                    assert status == 503
                    until("it is recorded", lambda: len(records(log)) == number)  # noqa: B023
                    record = records(log)[-1]
                    record["flags"] = sorted(record["flags"].split(","))  # their order is each data plane's own
                    told[name] = record | {"asked": asked[port, f"/{name}"]}
                found.append(told)
    finally:
        server.shutdown()
        server.server_close()
    envoy, weft = found
    assert weft == envoy
    said = {"status": 503, "why": "via_upstream"}
    assert weft["busy-0"] == said | {"flags": ["UO"], "attempts": 1, "asked": 1}
    assert weft["busy-1"] == weft["busy-2"] == said | {"flags": ["URX"], "attempts": 3, "asked": 3}
    assert [weft[f"refused-{most}"]["flags"] for most in (0, 1)] == [["UF", "UO"], ["UF", "URX"]]


OK, CANCELLED, DEADLINE, EXHAUSTED, INTERNAL, UNAVAILABLE = 0, 1, 4, 8, 13, 14


@dataclass(frozen=True)
class Call:
    """A call of gRPC whose first two tries fail."""

    on: str
    """What the route says to try again on."""
    status: int
    """Of the tries that fail."""
    tries: int
    """That reach the server."""
    flags: str = "-"
    retries: int = 2
    """As many the route allows."""
    late: bool = False
    """Whether the status comes in trailers after a head, and not in an answer that is all trailers."""
    asks: str = ""
    """What the caller itself asks to be tried again on."""


CALLS = {
    "cancelled": Call("cancelled", CANCELLED, 3),
    "deadline exceeded": Call("deadline-exceeded", DEADLINE, 3),
    "resource exhausted": Call("resource-exhausted", EXHAUSTED, 3),
    "internal": Call("internal", INTERNAL, 3),
    "unavailable": Call("unavailable", UNAVAILABLE, 3),
    "one of several": Call("connect-failure,cancelled,unavailable", UNAVAILABLE, 3),
    "fewer than it takes": Call("unavailable", UNAVAILABLE, 2, flags="URX", retries=1),
    "another": Call("unavailable", INTERNAL, 1),
    "of HTTP only": Call("5xx,gateway-error,reset", UNAVAILABLE, 1),
    # Then the head is with the caller already.
    "after a head": Call("unavailable", UNAVAILABLE, 1, late=True),
    # x-envoy-retry-grpc-on of a request that is not known to come from inside is taken away.
    "that a stranger asks for": Call("", UNAVAILABLE, 1, asks="unavailable"),
}


class Failing(grpc.GenericRpcHandler):
    """Lets the first two tries of each case and data plane fail, and answers the third."""

    def __init__(self) -> None:
        self.tries: dict[tuple[str, str], list[bytes]] = {}
        """The message of each, by data plane and case."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        told = {str(key): str(value) for key, value in details.invocation_metadata}
        call = CALLS[told["case"]]
        tries = self.tries.setdefault((told["plane"], told["case"]), [])

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            tries.append(request)
            if call.late:
                context.send_initial_metadata((("x-head", "1"),))
            if len(tries) <= 2:
                context.abort(next(code for code in grpc.StatusCode if code.value[0] == call.status), "try again")
            return b"answer"

        return grpc.unary_unary_rpc_method_handler(answer)


def test_a_call_is_tried_again_on_the_status_of_grpc_that_is_asked_for(tmp_path: Path) -> None:
    """With its whole message each time; on no other status, and not once a part of an answer is on its way."""
    handler = Failing()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def resources(ports: dict[str, int]) -> Json:
        routes: list[Json] = []
        for number, call in enumerate(CALLS.values()):
            policy = {"retry_on": call.on, "num_retries": call.retries}
            route = {"cluster": "grpc", **({"retry_policy": policy} if call.on else {})}
            routes.append({"match": {"path": f"/case/{number}"}, "route": route})
        log = file_log(tmp_path / f"{ports['http']}.log", FIELDS)
        http2 = http_options(explicit_http_config={"http2_protocol_options": {}})
        filters = http_filters(routes, manager={"access_log": log})
        return {"clusters": [cluster("grpc", port, **http2)], "listeners": [listener("http", ports["http"], filters)]}

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            for proxy in proxies:
                log = tmp_path / f"{proxy.ports['http']}.log"
                with grpc.insecure_channel(f"127.0.0.1:{proxy.ports['http']}") as channel:
                    for number, (name, call) in enumerate(CALLS.items()):
                        metadata = [("plane", proxy.kind), ("case", name)]
                        metadata += [("x-envoy-retry-grpc-on", call.asks)] if call.asks else []
                        message = f"message of {name}".encode() * 1000
                        method = channel.unary_unary(f"/case/{number}")
                        found = method.future(message, metadata=metadata, timeout=LIMIT).code()
                        case = (proxy.kind, name)
                        assert handler.tries[case] == [message] * call.tries, case
                        assert found.value[0] == (OK if call.tries > 2 else call.status), case
                        until("it is recorded", lambda: len(records(log)) == number + 1)  # noqa: B023
                        told = {"status": 200, "why": "via_upstream", "flags": call.flags, "attempts": call.tries}
                        assert records(log)[-1] == told, case
    finally:
        server.stop(None)


class Grpc(Busy):
    """Answers calls with nothing but trailers, whose status is the next one of the path: `/14-0` fails, then succeeds."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        asked[key := (int(self.headers["host"]), self.path)] += 1
        statuses = self.path.removeprefix("/").split("-")
        self.send_response(200)
        self.send_header("content-type", "application/grpc")
        self.send_header("grpc-status", statuses[min(asked[key], len(statuses)) - 1])
        self.send_header("content-length", "0")
        self.end_headers()


TRIES = {
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "grpc": "%GRPC_STATUS_NUMBER%",
    "flags": "%RESPONSE_FLAGS%",
}


def test_a_try_that_grpc_calls_failed_is_in_the_log_of_tries(tmp_path: Path) -> None:
    """HTTP says 200 of each; the filter asks what gRPC says."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grpc)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    expected = {"/14-0": ["14"], "/14-1-14": ["14", "1", "14"], "/0": [], "/5": [], "/13-0": ["13"]}

    def resources(ports: dict[str, int]) -> Json:
        policy = {"retry_on": "unavailable,cancelled", "num_retries": 2}
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "grpc", "retry_policy": policy}}])
        wanted = {"grpc_status_filter": {"statuses": RETRIABLE_GRPC}}
        (log,) = file_log(tmp_path / f"{ports['http']}.log", TRIES)
        filters[0]["typed_config"]["http_filters"][0]["typed_config"]["upstream_log"] = [
            log | {"filter": {"or_filter": {"filters": [wanted, wanted]}}}
        ]
        breakers = {"thresholds": [{"max_retries": 3}]}
        clusters = [cluster("grpc", int(server.server_address[1]), circuit_breakers=breakers)]
        return {"clusters": clusters, "listeners": [listener("http", ports["http"], filters)]}

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            for proxy in proxies:
                port = proxy.ports["http"]
                log = tmp_path / f"{port}.log"
                for path in expected:
                    client = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
                    headers = {"host": str(port), "content-type": "application/grpc", "content-length": "0"}
                    client.request("POST", path, headers=headers)
                    assert client.getresponse().status == 200
                    client.close()
                count = sum(map(len, expected.values()))
                until("tries are recorded", lambda: len(records(log)) >= count)  # noqa: B023
                told = {path: [str(it["grpc"]) for it in records(log) if it["path"] == path] for path in expected}
                assert told == expected, proxy.kind
                assert {(it["status"], it["flags"]) for it in records(log)} == {(200, "-")}, proxy.kind
    finally:
        server.shutdown()
        server.server_close()


class Hasty(Busy):
    """Takes a request and answers it; at `/late` it begins before the request has ended, and does not end."""

    def do_POST(self) -> None:
        asked[int(self.headers["host"]), self.path] += 1
        self.send_response(200)
        self.send_header("content-length", "3")
        self.end_headers()
        if self.path == "/late":
            self.rfile.read(1)
            with contextlib.suppress(ConnectionError):
                self.connection.recv(1)  # until it is given up
            self.close_connection = True


class Patient(Busy):
    """Answers a request when it has ended."""

    def do_POST(self) -> None:
        asked[int(self.headers["host"]), self.path] += 1
        self.rfile.read(1)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


def test_time_begins_where_the_request_ends(tmp_path: Path) -> None:
    """That of a try, for clients who are slow; and that of the whole request, even if its answer has begun before."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Patient, Hasty)]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    limit = 0.5

    def resources(ports: dict[str, int]) -> Json:
        policy = {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": f"{limit}s"}
        routes = [
            {"match": {"path": "/slow"}, "route": {"cluster": "patient", "retry_policy": policy}},
            {"match": {"path": "/late"}, "route": {"cluster": "hasty", "timeout": f"{limit}s"}},
        ]
        log = file_log(tmp_path / f"{ports['http']}.log", FIELDS)
        clusters = [
            cluster(name, int(it.server_address[1])) for name, it in zip(("patient", "hasty"), servers, strict=True)
        ]
        filters = http_filters(routes, manager={"access_log": log})
        return {"clusters": clusters, "listeners": [listener("http", ports["http"], filters)]}

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            for proxy in proxies:
                port = proxy.ports["http"]
                log = tmp_path / f"{port}.log"
                for number, path in enumerate(("/slow", "/late"), start=1):
                    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                        head = f"POST {path} HTTP/1.1\r\nhost: {port}\r\ncontent-length: 1\r\n\r\n"
                        client.sendall(head.encode())
                        began = time.monotonic()
                        until("the server has the head", lambda: asked[port, path] == 1)  # noqa: B023
                        until("a try's time has passed", lambda: time.monotonic() > began + 1.2 * limit)  # noqa: B023
                        client.sendall(b"x")
                        assert client.recv(100).startswith(b"HTTP/1.1 200 "), (proxy.kind, path)
                        until("it is recorded", lambda: len(records(log)) == number)  # noqa: B023
                slow, late = records(log)
                assert slow == {"status": 200, "flags": "-", "why": "via_upstream", "attempts": 1}, proxy.kind
                assert (late["status"], late["flags"], late["attempts"]) == (200, "UT", 1), proxy.kind
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
