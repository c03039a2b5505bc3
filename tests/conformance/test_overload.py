"""
Too many connections, and a process that runs short: stock Envoy and weft-proxy, in one run.

Envoy takes the pressure of connections for a limit only, and does nothing about it before that is reached. Where something is to
be done in time, its pressure is told by a file, and weft-proxy's is made of connections: the monitor is all that differs.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest

from tests.conformance.both import (
    Json,
    both,
    cluster,
    file_log,
    http_filters,
    listener,
    one,
    over_http2,
    records,
    typed,
)
from tests.conformance.frames import ACK, GOAWAY, LAST_STREAM, NO_ERROR, PING, Wire, answered, number
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Answer, read_answer, read_rest
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

FIELDS = {
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "grpc": "%GRPC_STATUS_NUMBER%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
}

MOST = 20
"""Connections of which weft-proxy's pressure is a share."""

CONNECTIONS = "envoy.resource_monitors.global_downstream_max_connections"
HEAP = "envoy.resource_monitors.fixed_heap"
INJECTED = "envoy.resource_monitors.injected_resource"


class Hello(BaseHTTPRequestHandler):
    """Answers everything, what is under `/held` when it may, and keeps its connection."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []  # noqa: RUF012 - of all
    may_answer = Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/held"):
            self.may_answer.wait(LIMIT)
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_request(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()


class Echo(grpc.GenericRpcHandler):
    """Says each message again."""

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(lambda messages, _context: messages)


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=(Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


def monitor(name: str, **fields: object) -> Json:
    kinds = {CONNECTIONS: "downstream_connections.v3.DownstreamConnectionsConfig"}
    kinds |= {HEAP: "fixed_heap.v3.FixedHeapConfig", INJECTED: "injected_resource.v3.InjectedResourceConfig"}
    return {"name": name, "typed_config": typed(f"resource_monitors.{kinds[name]}", **fields)}


def action(name: str, resource: str, threshold: float) -> Json:
    trigger = {"name": resource, "threshold": {"value": threshold}}
    return {"name": f"envoy.overload_actions.{name}", "triggers": [trigger]}


def serving(directory: Path, upstream: int, *echo: int, **listeners: Json) -> Callable[[dict[str, int]], Json]:
    """
    Listeners with these fields, filters before that of HTTP (`before`) and more for its `manager`, each with a log of its requests and connections.

    Calls of gRPC go to the port *echo*, if there is one.
    """

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, fields in listeners.items():
            more = dict(fields)
            log = file_log(directory / f"{ports[name]}.log", FIELDS)
            routes = [
                {"match": {"prefix": "/high"}, "route": {"cluster": "up", "priority": "HIGH"}},
                {"match": {"prefix": "/echo"}, "route": {"cluster": "echo"}},
                {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
            ]
            manager = {"access_log": log, **more.pop("manager", {})}
            filters = more.pop("before", []) + http_filters(routes, manager=manager)
            made.append(listener(name, ports[name], filters, access_log=log, **more))
        return {"clusters": [cluster("up", upstream), cluster("echo", *echo, **over_http2())], "listeners": made}

    return resources


def connect(proxy: Static, name: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)


def ask(client: socket.socket, path: str = "/") -> Answer:
    client.sendall(f"GET {path} HTTP/1.1\r\nhost: up\r\n\r\n".encode())
    return read_answer(client)


SERVED = Answer(200, b"hello", closes=False)
LAST = SERVED._replace(closes=True)
SHED = Answer(503, b"envoy overloaded", closes=True)


def is_served(proxy: Static, name: str) -> bool:
    """Whether a new connection is served; it may be closed instead, at any moment."""
    with connect(proxy, name) as client, contextlib.suppress(ConnectionError):
        return ask(client) == SERVED
    return False


def recorded(directory: Path, proxy: Static, name: str, why: str) -> Json:
    """The first record that tells this reason, once it is there."""
    log = directory / f"{proxy.ports[name]}.log"
    until(f"{proxy.kind} has recorded {why}", lambda: any(it["why"] == why for it in records(log)))
    return next(it for it in records(log) if it["why"] == why)


def test_connections_beyond_a_limit_are_closed_counted_and_recorded_and_the_others_stay(
    tmp_path: Path, upstream: int
) -> None:
    """The process's limit, a listener that is left out of it, and the limit of a filter chain."""
    few = typed(
        "filters.network.connection_limit.v3.ConnectionLimit", stat_prefix="few", max_connections=1, delay="0.2s"
    )
    resources = serving(
        tmp_path,
        upstream,
        counted={},
        excepted={"ignore_global_conn_limit": True},
        few={"ignore_global_conn_limit": True, "before": [{"name": "few", "typed_config": few}]},
    )
    manager = {
        "refresh_interval": "3600s",
        "resource_monitors": [monitor(CONNECTIONS, max_active_downstream_connections="2")],
    }
    with both(tmp_path, ("counted", "excepted", "few"), resources, overload_manager=manager) as proxies:
        for proxy in proxies:
            until("nobody is there", proxy.is_alone)
            before = proxy.stat("envoy_listener_downstream_global_cx_overflow")
            with connect(proxy, "counted") as first, connect(proxy, "counted") as second:
                assert [ask(first), ask(second)] == [SERVED, SERVED]
                # It may be reset before there was time to look.
                with contextlib.suppress(ConnectionResetError), connect(proxy, "counted") as third:
                    assert read_rest(third) == b""
                # Envoy closes first and counts then.
                overflows = functools.partial(proxy.stat, "envoy_listener_downstream_global_cx_overflow")
                until("it is counted", lambda overflows=overflows, so_far=before: overflows() == so_far + 1)
                if proxy.kind != ENVOY:  # which only counts
                    assert recorded(tmp_path, proxy, "counted", "downstream_global_cx_overflow")["flags"] == "OM"
                with connect(proxy, "excepted") as other, connect(proxy, "excepted") as another:
                    assert [ask(other), ask(another), ask(first)] == [SERVED, SERVED, SERVED]
                first.close()
                until("there is room again", lambda proxy=proxy: is_served(proxy, "counted"))
                assert ask(second) == SERVED

            before = proxy.stat("envoy_connection_limit_limited_connections")
            until("nobody is there", proxy.is_alone)
            with connect(proxy, "few") as first:
                assert ask(first) == SERVED
                began = time.monotonic()
                with connect(proxy, "few") as second:
                    assert read_rest(second) == b""
                # Envoy rounds its clock.
                assert time.monotonic() - began >= 0.2 * 0.9
                assert proxy.stat("envoy_connection_limit_limited_connections") == before + 1
                if proxy.kind != ENVOY:
                    recorded(tmp_path, proxy, "few", "connection_limit")
                assert ask(first) == SERVED
            until("there is room again", lambda proxy=proxy: is_served(proxy, "few"))


class Pressure:
    """What makes one data plane run short, to a share that the test says."""

    def __init__(self, proxy: Static, file: Path) -> None:
        self.proxy, self.file = proxy, file
        self.silent: list[socket.socket] = []

    def be(self, share: float) -> None:
        """Have *share* of the resource used, by connections that ask nothing if not by word."""
        if self.proxy.kind == ENVOY:
            told = self.file.with_suffix(".new")
            told.write_text(str(share))
            told.rename(self.file)  # Envoy watches for that
            return
        count = round(share * MOST)
        while len(self.silent) > count:
            self.silent.pop().close()
        while len(self.silent) < count:
            self.silent.append(connect(self.proxy, "pressure"))

    def does(self, action: str) -> bool:
        return self.proxy.stat(f"envoy_overload_envoy_overload_actions_{action}_active") == 1

    def until(self, action: str, *, done: bool = True) -> None:
        until(f"{self.proxy.kind}: {action} {done}", lambda: self.does(action) == done)


@contextlib.contextmanager
def pressed(directory: Path, upstream: int, *echo: int, **thresholds: float) -> Iterator[list[Pressure]]:
    """Both data planes, which do the actions of *thresholds* from those shares on."""
    with contextlib.ExitStack() as stack:
        running = []
        for kind in (ENVOY, WEFT_PROXY):
            resource = INJECTED if kind == ENVOY else CONNECTIONS
            file = directory / "pressure"
            file.write_text("0")
            told = {"filename": str(file)} if kind == ENVOY else {"max_active_downstream_connections": MOST}
            manager = {
                "refresh_interval": "0.02s",
                "resource_monitors": [monitor(resource, **told)],
                "actions": [action(name, resource, share) for name, share in thresholds.items()],
            }
            # So long Envoy waits between a GOAWAY and the last; weft-proxy until a PING behind it is answered.
            soon = {"manager": {"drain_timeout": "0.1s"}} if kind == ENVOY else {}
            resources = serving(directory, upstream, *echo, http=soon, pressure={})
            proxy = stack.enter_context(one(kind, directory, ("http", "pressure"), resources, overload_manager=manager))
            pressure = Pressure(proxy, file)
            stack.callback(lambda pressure=pressure: [it.close() for it in pressure.silent])
            running.append(pressure)
        yield running


def test_under_pressure_connections_close_after_their_answers_and_then_requests_are_shed(
    tmp_path: Path, upstream: int
) -> None:
    """Those of high priority last at weft-proxy; what is shed never comes to the upstream, and is recorded."""
    with pressed(tmp_path, upstream, disable_http_keepalive=0.3, stop_accepting_requests=0.6) as running:
        for pressure in running:
            proxy, envoy = pressure.proxy, pressure.proxy.kind == ENVOY
            with connect(proxy, "http") as kept, connect(proxy, "http") as fresh:
                assert ask(kept) == SERVED
                pressure.be(0.4)
                pressure.until("disable_http_keepalive")
                # weft-proxy makes room at once of those that have had an answer; Envoy with their next.
                assert (ask(kept) == LAST) if envoy else (read_rest(kept) == b"")
                assert ask(fresh) == LAST
                assert read_rest(fresh) == b""
            assert proxy.stat("envoy_http_downstream_cx_overload_disable_keepalive") >= 1

            pressure.be(0.7)
            pressure.until("stop_accepting_requests")
            with connect(proxy, "http") as client:
                assert ask(client, f"/{proxy.kind}/low") == SHED
                assert read_rest(client) == b""
            told = recorded(tmp_path, proxy, "http", "overload")
            # Envoy has the flag for requests that it ends under way.
            flags = "-" if envoy else "OM"
            assert (told["path"], told["status"], told["flags"]) == (f"/{proxy.kind}/low", 503, flags)
            with connect(proxy, "http") as client:
                assert ask(client, f"/high/{proxy.kind}") == (SHED if envoy else LAST)
            pressure.be(0.95)
            if not envoy:
                until("so much is not served either", lambda proxy=proxy: "of_high_priority" in proxy.ask("/ready"))
            with connect(proxy, "http") as client:
                assert ask(client, f"/high/{proxy.kind}/too") == SHED
            assert proxy.stat("envoy_http_downstream_rq_overload_close") == (3 if envoy else 2)
            assert not {f"/{proxy.kind}/low", f"/high/{proxy.kind}/too"} & {*Hello.asked}

            pressure.be(0)
            pressure.until("disable_http_keepalive", done=False)
            with connect(proxy, "http") as client:
                assert [ask(client), ask(client)] == [SERVED, SERVED]


def test_under_pressure_clients_of_http2_are_sent_away_and_their_open_streams_are_answered(
    tmp_path: Path, upstream: int
) -> None:
    """In good order: what they have sent before they heard of it is answered, too (RFC 9113 6.8)."""
    with pressed(tmp_path, upstream, disable_http_keepalive=0.3) as running:
        for pressure in running:
            proxy, path = pressure.proxy, f"/held/{pressure.proxy.kind}"
            Hello.may_answer.clear()
            with Wire.client(proxy.ports["http"]) as client:
                client.get(1, path)
                until("it is under way", lambda path=path: path in Hello.asked)
                pressure.be(0.4)
                pressure.until("disable_http_keepalive")
                # weft-proxy tells everybody at once; Envoy with the next answer.
                if proxy.kind == ENVOY:
                    client.get(3)
                told = client.next()
                assert (told.kind, told.code, told.payload[:4]) == (GOAWAY, NO_ERROR, number(LAST_STREAM))
                if proxy.kind != ENVOY:
                    client.get(3)
                assert answered(client, 3) == (200, b"hello")
                for ping in client.passed_over:
                    client.send(PING, ACK, 0, ping.payload)
                last = client.next()
                assert (last.kind, last.code, last.payload[:4]) == (GOAWAY, NO_ERROR, number(3))
                Hello.may_answer.set()
                assert answered(client, 1) == (200, b"hello")
                assert list(client.rest()) == []
            assert proxy.stat("envoy_http_downstream_cx_overload_disable_keepalive") == 1


def test_under_pressure_who_comes_by_http2_has_an_answer_before_it_is_sent_away(tmp_path: Path, upstream: int) -> None:
    """As by HTTP/1. Else a client that comes again and again, as those of gRPC do, has none while the pressure lasts."""
    with pressed(tmp_path, upstream, disable_http_keepalive=0.3) as running:
        for pressure in running:
            pressure.be(0.4)
            pressure.until("disable_http_keepalive")
            with Wire.client(pressure.proxy.ports["http"]) as client:
                client.send(PING, 0, 0, b"nothing?")
                assert client.next(PING, GOAWAY).payload == b"nothing?"
                client.get(1)
                told = client.next()
                assert (told.kind, told.code, told.payload[:4]) == (GOAWAY, NO_ERROR, number(LAST_STREAM))
                assert answered(client, 1) == (200, b"hello")


def test_under_pressure_streams_of_http2_are_shed_alone_and_calls_in_the_words_of_grpc(
    tmp_path: Path, upstream: int, echo: int
) -> None:
    """A call under way goes on, beside one that is refused on its connection; which serves again when the pressure is over."""
    with pressed(tmp_path, upstream, echo, stop_accepting_requests=0.6) as running:
        for pressure in running:
            proxy, said = pressure.proxy, queue.SimpleQueue[bytes | None]()
            with (
                Wire.client(proxy.ports["http"]) as client,
                grpc.insecure_channel(f"127.0.0.1:{proxy.ports['http']}") as channel,
            ):
                call = channel.stream_stream("/echo/under-way")(iter(said.get, None), timeout=LIMIT)
                said.put(b"before")
                assert next(call) == b"before"
                pressure.be(0.7)
                pressure.until("stop_accepting_requests")
                with pytest.raises(grpc.RpcError) as failure:
                    channel.unary_unary("/echo/refused")(b"", timeout=LIMIT)
                refusal = failure.value.code(), failure.value.details()
                assert refusal == (grpc.StatusCode.UNAVAILABLE, "envoy overloaded"), proxy.kind
                client.get(1, f"/{proxy.kind}/refused")
                assert answered(client, 1) == (503, b"envoy overloaded")
                assert f"/{proxy.kind}/refused" not in Hello.asked
                said.put(b"after")
                assert next(call) == b"after"
                said.put(None)
                assert list(call) == []
                assert call.code() == grpc.StatusCode.OK
                pressure.be(0)
                pressure.until("stop_accepting_requests", done=False)
                client.get(3)
                assert answered(client, 3) == (200, b"hello")
            refused = recorded(tmp_path, proxy, "http", "overload")
            # As of any that is shed.
            flags = "-" if proxy.kind == ENVOY else "OM"
            assert (refused["path"], refused["status"], refused["grpc"]) == ("/echo/refused", 200, 14)
            assert refused["flags"] == flags
            beside = recorded(tmp_path, proxy, "http", "via_upstream")
            assert (beside["path"], beside["grpc"], beside["flags"]) == ("/echo/under-way", 0, "-")
            assert beside["client"] == refused["client"], "it went by a connection of its own"
            assert proxy.stat("envoy_http_downstream_rq_overload_close") == 2


def test_under_pressure_nobody_is_accepted_until_it_is_over_and_nobody_is_refused(
    tmp_path: Path, upstream: int
) -> None:
    """Who comes meanwhile waits; those that are there are served as ever."""
    with pressed(tmp_path, upstream, stop_accepting_connections=0.5) as running:
        for pressure in running:
            proxy = pressure.proxy
            with connect(proxy, "http") as there:
                assert ask(there) == SERVED
                pressure.be(0.6)
                pressure.until("stop_accepting_connections")
                with connect(proxy, "http") as waiting:
                    path = f"/{proxy.kind}/waiting"
                    waiting.sendall(f"GET {path} HTTP/1.1\r\nhost: up\r\n\r\n".encode())
                    for _ in range(20):
                        assert ask(there) == SERVED
                    assert path not in Hello.asked
                    pressure.be(0)
                    assert read_answer(waiting) == SERVED
                    assert path in Hello.asked
            pressure.until("stop_accepting_connections", done=False)


def test_memory_is_watched(tmp_path: Path, upstream: int) -> None:
    """A process that may have one byte sheds from its first request on."""
    manager = {
        "refresh_interval": "0.02s",
        "resource_monitors": [monitor(HEAP, max_heap_size_bytes=1)],
        "actions": [action("stop_accepting_requests", HEAP, 0.9)],
    }
    with both(tmp_path, ("http",), serving(tmp_path, upstream, http={}), overload_manager=manager) as proxies:
        for proxy in proxies:
            active = "envoy_overload_envoy_overload_actions_stop_accepting_requests_active"
            until("it does something", lambda proxy=proxy, active=active: proxy.stat(active) == 1)
            assert proxy.stat("envoy_overload_envoy_resource_monitors_fixed_heap_pressure") > 100
            with connect(proxy, "http") as client:
                # Envoy keeps the connection, whose next request costs it as much.
                assert ask(client, f"/{proxy.kind}/heap") == SHED._replace(closes=proxy.kind != ENVOY)
            assert f"/{proxy.kind}/heap" not in Hello.asked
