"""What is made of `grpc-timeout`, and what access records say of gRPC: weft-proxy and Envoy, on the same calls of the same server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, http_options, listener, records
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_head, read_rest

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

FORMAT = {
    "path": "%REQ(:PATH)%",
    "code": "%RESPONSE_CODE%",
    "number": "%GRPC_STATUS_NUMBER%",
    "also number": "%GRPC_STATUS(NUMBER)%",
    "camel": "%GRPC_STATUS%",
    "also camel": "%GRPC_STATUS(CAMEL_STRING)%",
    "snake": "%GRPC_STATUS(SNAKE_STRING)%",
    "text": "is %GRPC_STATUS_NUMBER% %GRPC_STATUS%",
    "header": "%RESP(GRPC-STATUS)%",
    "trailer": "%TRAILER(GRPC-STATUS)%",
    "one or the other": "%TRAILER(X-NONE?X-MORE):3%",
}


class Server(grpc.GenericRpcHandler):
    """Answers each method with the status that it is named for, after a head of its own (`late-14`) or with trailers only."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        kind, _, number = details.method.rpartition("/")[2].partition("-")

        def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
            if kind == "late":
                context.send_initial_metadata((("x-head", "1"),))
            context.set_trailing_metadata((("x-more", "abcdef"),))
            if int(number):
                # With an answer beside the status, it would come after a head.
                context.abort(next(code for code in grpc.StatusCode if code.value[0] == int(number)), "as it was asked")
            return b"ok"

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def upstream() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Server(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


def resources(ports: dict[str, int], directory: Path, upstream: int) -> Json:
    routes = [
        {"match": {"prefix": "/teapot"}, "direct_response": {"status": 418}},
        {"match": {"prefix": "/nowhere"}, "route": {"cluster": "nowhere"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "grpc"}},
    ]
    log = file_log(directory / f"{ports['http']}.log", FORMAT)
    filters = http_filters(routes, manager={"access_log": log})
    http2 = http_options(explicit_http_config={"http2_protocol_options": {}})
    clusters = [cluster("grpc", upstream, **http2), cluster("nowhere", **http2)]
    return {"listeners": [listener("http", ports["http"], filters)], "clusters": clusters}


CALLS = [*(f"/s/late-{code.value[0]}" for code in grpc.StatusCode), "/s/only-14", "/nowhere/x"]


def told_of(proxy: Static, directory: Path) -> dict[str, Json]:
    """Make the calls, and requests that are none of gRPC; return what was written of each, by its path."""
    with grpc.insecure_channel(f"127.0.0.1:{proxy.ports['http']}") as channel:
        for path in CALLS:
            try:
                channel.unary_unary(path)(b"", timeout=LIMIT)
            except grpc.RpcError as error:
                print(path, error)
    assert [proxy.get("http", path)[0] for path in ("/teapot?plain", "/nowhere/plain")] == [418, 503]
    log = directory / f"{proxy.ports['http']}.log"
    until("every record", lambda: len(records(log)) == len(CALLS) + 2)
    return {record["path"]: record for record in records(log)}


def test_the_status_of_grpc_is_told_alike_and_of_nothing_else(tmp_path: Path, upstream: int) -> None:
    """As a number and by both names, from trailers, from an answer that is all trailers, and from the proxy's own answer."""
    with both(tmp_path, ("http",), lambda ports: resources(ports, tmp_path, upstream)) as (envoy, weft):
        told, expected = told_of(weft, tmp_path), told_of(envoy, tmp_path)
    assert told == expected
    late = told["/s/late-14"]
    assert (late["number"], late["text"], late["trailer"], late["header"]) == (14, "is 14 Unavailable", "14", None)
    only = told["/s/only-14"]
    assert (only["number"], only["header"], only["trailer"]) == (14, "14", None)
    assert told["/s/late-1"]["snake"] == "CANCELLED"
    assert (told["/s/late-0"]["number"], told["/nowhere/x"]["number"], told["/teapot?plain"]["number"]) == (0, 14, None)


SHORT_SECONDS = 0.3

LIMITED = {"status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "why": "%RESPONSE_CODE_DETAILS%"}


@dataclass(frozen=True)
class Limited:
    """A call that gets no answer, and by which of the limits it ends after `SHORT_SECONDS`."""

    asked: str
    """The caller's `grpc-timeout`."""
    told: str
    """The server's."""
    route: Json
    status: int
    """Of HTTP."""
    grpc: bytes
    """Of gRPC; empty if it is not told."""
    why: str
    flags: str = "-"
    kind: str = "application/grpc"


SHORT, SHORT_ASKED, LONG, LONG_ASKED, NEVER = f"{SHORT_SECONDS}s", f"{SHORT_SECONDS * 1000:.0f}m", "60s", "70S", "0s"


def stream(limit: str, most: str) -> Json:
    """A route that lets a stream last so long, and a caller of gRPC ask for no more than *most*; 0 is without a limit."""
    return {"timeout": NEVER, "max_stream_duration": {"max_stream_duration": limit, "grpc_timeout_header_max": most}}


LIMITS = {
    "the caller's": Limited(SHORT_ASKED, SHORT_ASKED, stream(LONG, NEVER), 200, b"4", "max_duration_timeout"),
    "the caller's, where nothing else is limited": Limited(
        SHORT_ASKED, SHORT_ASKED, stream(NEVER, NEVER), 200, b"4", "max_duration_timeout"
    ),
    "the most that a caller may ask for": Limited(
        LONG_ASKED, SHORT_ASKED, stream(LONG, SHORT), 200, b"4", "max_duration_timeout"
    ),
    "the route's, as what is asked for is none": Limited(
        "soon", SHORT_ASKED, stream(SHORT, NEVER), 200, b"4", "max_duration_timeout"
    ),
    "the route's, which obeys no caller": Limited(
        LONG_ASKED,
        SHORT_ASKED,
        {"max_stream_duration": {"max_stream_duration": SHORT}},
        200,
        b"4",
        "max_duration_timeout",
    ),
    "the caller's, of a request that is no call": Limited(
        SHORT_ASKED, SHORT_ASKED, stream(LONG, NEVER), 504, b"", "max_duration_timeout", kind="text/plain"
    ),
    "the caller's, by the older field": Limited(
        SHORT_ASKED, SHORT_ASKED, {"timeout": LONG, "max_grpc_timeout": NEVER}, 200, b"14", "response_timeout", "UT"
    ),
    "the most that a caller may ask for, by the older field": Limited(
        LONG_ASKED, SHORT_ASKED, {"timeout": LONG, "max_grpc_timeout": SHORT}, 200, b"14", "response_timeout", "UT"
    ),
    "the route's older one, which obeys no caller": Limited(
        LONG_ASKED, LONG_ASKED, {"timeout": SHORT}, 200, b"14", "response_timeout", "UT"
    ),
    "the route's older one, as it is no call": Limited(
        LONG_ASKED,
        LONG_ASKED,
        {"timeout": SHORT, "max_grpc_timeout": NEVER},
        504,
        b"",
        "response_timeout",
        "UT",
        "text/plain",
    ),
}


def test_a_call_may_last_as_long_as_its_caller_asks_where_the_route_obeys(tmp_path: Path) -> None:
    """By either of two fields and up to what they allow; elsewhere it may last longer. The server is told, and not kept waiting."""
    upstream = Upstream()
    names = [*LIMITS, "unlimited"]

    def limited(ports: dict[str, int]) -> Json:
        told = [case.route for case in LIMITS.values()] + [{"timeout": NEVER}]
        routes = [
            {"match": {"path": f"/{number}"}, "route": {"cluster": "up", **route}} for number, route in enumerate(told)
        ]
        log = file_log(tmp_path / f"{ports['http']}.log", LIMITED)
        filters = http_filters(routes, manager={"access_log": log})
        return {"listeners": [listener("http", ports["http"], filters)], "clusters": [cluster("up", upstream.port)]}

    def call(client: socket.socket, name: str, asked: str, told: str, kind: str) -> socket.socket:
        """Call by HTTP/1.1, as it is the same to all that is tested; return the upstream's end."""
        path = f"/{names.index(name)}"
        lines = (f"POST {path} HTTP/1.1", "host: up", f"content-type: {kind}", f"grpc-timeout: {asked}")
        client.sendall("\r\n".join((*lines, "te: trailers", "content-length: 0", "", "")).encode())
        connection = upstream.accept()
        assert f"\r\ngrpc-timeout: {told}\r\n".encode() in read_head(connection), name
        return connection

    with upstream.socket, both(tmp_path, ("http",), limited) as proxies:
        for proxy in proxies:
            log = tmp_path / f"{proxy.ports['http']}.log"
            with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as patient:
                unlimited = call(patient, "unlimited", "50m", "50m", "application/grpc")
                for number, (name, case) in enumerate(LIMITS.items(), start=1):
                    with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as client:
                        began = time.monotonic()
                        with call(client, name, case.asked, case.told, case.kind) as connection:
                            status, grpc_status = told_by(read_head(client))
                            assert time.monotonic() - began >= SHORT_SECONDS * 0.9, (proxy.kind, name)
                            assert read_rest(connection) == b""
                        assert (status, grpc_status) == (case.status, case.grpc), (proxy.kind, name)
                    until("it is recorded", lambda: len(records(log)) == number)  # noqa: B023
                    expected = {"status": case.status, "flags": case.flags, "why": case.why}
                    assert records(log)[-1] == expected, (proxy.kind, name)
                with unlimited:
                    unlimited.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ngrpc-status: 0\r\n\r\n")
                    assert told_by(read_head(patient)) == (200, b"0"), proxy.kind


def told_by(head: bytes) -> tuple[int, bytes]:
    """Status of HTTP, and that of gRPC if there is one."""
    rest = head.lower().partition(b"\r\ngrpc-status: ")[2]
    return int(head.split()[1]), rest.partition(b"\r\n")[0]
