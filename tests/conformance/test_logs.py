"""Access logs: which records they take, in which format, and what a log service is told of them. Stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from tests.conformance.both import Json, both, cluster, http_filters, listener, over_http2, typed
from tests.conformance.proxies import LIMIT, until
from tests.conformance.upstream import Accepting, read_rest
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]


def status(op: str, value: int) -> Json:
    """A filter of statuses. Envoy wants the key of a runtime, in which nothing stands."""
    comparison = {"op": op, "value": {"default_value": value, "runtime_key": "of.nobody"}}
    return {"status_code_filter": {"comparison": comparison}}


def flags(*names: str) -> Json:
    return {"response_flag_filter": {"flags": names}}


ANSWERS = {"/ok": 200, "/gone": 404, "/busy": 503}
"""By path; any other has no route, which has a flag."""

PATHS = [*ANSWERS, "/none"]

TAKEN: dict[str, tuple[Json, list[str]]] = {
    "equal": (status("EQ", 404), ["/gone", "/none"]),
    "at least": (status("GE", 404), ["/gone", "/busy", "/none"]),
    "at most": (status("LE", 404), ["/ok", "/gone", "/none"]),
    "any flag": (flags(), ["/none"]),
    "one of the flags": (flags("UF", "NR"), ["/none"]),
    "another flag": (flags("UF"), []),
    "both": ({"and_filter": {"filters": [status("EQ", 404), flags("NR")]}}, ["/none"]),
    "either": ({"or_filter": {"filters": [status("EQ", 200), flags("NR")]}}, ["/ok", "/none"]),
    # What a status of HTTP means in gRPC's words counts where the answer has none of those.
    "gRPC": ({"grpc_status_filter": {"statuses": ["UNIMPLEMENTED"]}}, ["/gone", "/none"]),
    "no such gRPC": ({"grpc_status_filter": {"statuses": ["UNIMPLEMENTED"], "exclude": True}}, ["/ok", "/busy"]),
}
"""By log, its filter, and the paths of the requests whose records it takes."""

TEXT = "%RESPONSE_CODE% %REQ(X-NONE)%|\n"
MEMBERS = {"code": "%RESPONSE_CODE%", "none": "%REQ(X-NONE)%"}

WRITTEN: dict[str, tuple[Json, object]] = {
    "format": ({"format": TEXT}, "200 -|"),
    "text format": ({"log_format": {"text_format": TEXT}}, "200 -|"),
    "text format without empty values": ({"log_format": {"text_format": TEXT, "omit_empty_values": True}}, "200 |"),
    "typed JSON": ({"typed_json_format": MEMBERS}, {"code": 200, "none": None}),
    # Long ago Envoy wrote texts only by this one.
    "JSON": ({"json_format": MEMBERS}, {"code": 200, "none": None}),
    "JSON without empty values": ({"log_format": {"json_format": MEMBERS, "omit_empty_values": True}}, {"code": 200}),
}
"""By log, its format, and the line of the first request."""


CONVERSIONS = "%Y %C %y %m %b %h %B %d %e %j %a %A %w %u %H %k %I %l %p %P %M %S %c %D %x %F %R %T %X %r %% %t"
TIMES = f"%START_TIME(%s|{CONVERSIONS}|%9f|%f|%1f|%3f)%|%START_TIME()%\n"


def file_of(directory: Path, port: int, name: str) -> Path:
    return directory / f"{port} {name}"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def has(path: Path, count: int) -> bool:
    return len(lines(path)) >= count


def test_files_have_the_records_that_they_take_in_their_format(tmp_path: Path) -> None:
    def resources(ports: dict[str, int]) -> Json:
        def log(name: str, fields: Json, **more: object) -> Json:
            config = typed("access_loggers.file.v3.FileAccessLog", **fields)
            return {
                "name": name,
                "typed_config": config | {"path": str(file_of(tmp_path, ports["http"], name))},
                **more,
            }

        path = {"log_format": {"text_format": "%REQ(:PATH)%\n"}}
        logs = [log(name, path, filter=it) for name, (it, _) in TAKEN.items()]
        logs += [log(name, it) for name, (it, _) in WRITTEN.items()] + [log("all", path)]
        logs.append(log("times", {"log_format": {"text_format": TIMES}}))
        routes = [{"match": {"path": it}, "direct_response": {"status": status}} for it, status in ANSWERS.items()]
        return {"listeners": [listener("http", ports["http"], http_filters(routes, manager={"access_log": logs}))]}

    with both(tmp_path, ("http",), resources) as proxies:
        for proxy in proxies:
            for path in PATHS:
                assert proxy.get("http", path)[0] == ANSWERS.get(path, 404)
            of = partial(file_of, tmp_path, proxy.ports["http"])
            expected = {name: len(taken) for name, (_, taken) in TAKEN.items()}
            for name, count in {**dict.fromkeys(WRITTEN, len(PATHS)), **expected, "all": len(PATHS)}.items():
                until(f"{proxy.kind} writes {name}", partial(has, of(name), count))
            assert lines(of("all")) == PATHS, proxy.kind
            taken = {name: lines(of(name)) for name in TAKEN}
            assert taken == {name: paths for name, (_, paths) in TAKEN.items()}, proxy.kind
            for name, (_, line) in WRITTEN.items():
                first = lines(of(name))[0]
                assert (first if isinstance(line, str) else json.loads(first)) == line, (proxy.kind, name)
            until(f"{proxy.kind} writes times", partial(has, of("times"), len(PATHS)))
            seconds, text, *fractions, plain = lines(of("times"))[0].split("|")
            assert text == time.strftime(CONVERSIONS, time.gmtime(int(seconds))), proxy.kind
            digits = fractions[0]
            assert fractions == [digits, digits, digits[:1], digits[:3]], proxy.kind
            assert len(digits) == 9, proxy.kind
            assert plain == time.strftime("%FT%T", time.gmtime(int(seconds))) + f".{digits[:3]}Z", proxy.kind


class Records(grpc.GenericRpcHandler):
    """A log service, and beside it the program whose calls are recorded."""

    def __init__(self) -> None:
        self.http: dict[str, list[accesslog_pb2.HTTPAccessLogEntry]] = {}
        self.tcp: dict[str, list[accesslog_pb2.TCPAccessLogEntry]] = {}
        """By name of the log."""

    def has_call(self, log: str) -> bool:
        return len(self.http.get(log, [])) == 1

    def has_bytes(self, log: str, *, received: int, sent: int) -> bool:
        """Whether a connection is known that has carried so many."""
        seen = [it.connection_properties for it in self.tcp.get(log, [])]
        return any((it.received_bytes, it.sent_bytes) == (received, sent) for it in seen)

    def service(self, details: Any) -> Any:
        if details.method == "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs":
            return grpc.stream_unary_rpc_method_handler(self._take)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _take(self, messages: Iterator[bytes], _context: object) -> bytes:
        name = ""
        for content in messages:
            message = als_pb2.StreamAccessLogsMessage.FromString(content)
            name = message.identifier.log_name or name
            self.http.setdefault(name, []).extend(message.http_logs.log_entry)
            self.tcp.setdefault(name, []).extend(message.tcp_logs.log_entry)
        return b""

    def _answer(self, request: bytes, context: Any) -> bytes:
        context.send_initial_metadata((("x-cache", "hit"),))
        context.set_trailing_metadata((("x-sum", "5"),))
        return request


FLUSH_SECONDS = 0.2


def service_log(kind: str, name: str, flush: str, size: int, **more: object) -> Json:
    """A log by gRPC that sends after *flush* or *size* bytes; *more* adds to its extension."""
    common = {
        "log_name": name,
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "records"}},
        "buffer_flush_interval": flush,
        "buffer_size_bytes": size,
    }
    if kind == "Http":
        metadata = {"key": "weft", "path": [{"key": "origins"}, {"key": "match"}]}
        common["custom_tags"] = [
            {"tag": "mesh", "literal": {"value": "weft"}},
            {"tag": "match", "metadata": {"kind": {"route": {}}, "metadata_key": metadata}},
            {
                "tag": "none",
                "metadata": {
                    "kind": {"route": {}},
                    "metadata_key": {"key": "weft", "path": [{"key": "x"}]},
                    "default_value": "no",
                },
            },
        ]
    config = typed(f"access_loggers.grpc.v3.{kind}GrpcAccessLogConfig", common_config=common, **more)
    return {"name": name, "typed_config": config}


ADDITIONAL = {
    "additional_request_headers_to_log": ["X-User", ":method", ":path", "X-Nobody"],
    "additional_response_headers_to_log": ["X-Cache", ":status"],
    "additional_response_trailers_to_log": ["X-Sum"],
}


class Greeter(Accepting):
    """Greets whoever has said all."""

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            read_rest(connection)
            connection.sendall(b"hello")


def test_a_log_service_is_told_what_its_log_says_when_it_says(tmp_path: Path) -> None:
    """At once where the buffer has room for nothing, after the interval where it has, and not yet where that is long."""
    handlers = {kind: Records() for kind in (ENVOY, WEFT_PROXY)}
    servers = []

    def resources(ports: dict[str, int], handler: Records) -> Json:
        server = grpc.server(futures.ThreadPoolExecutor(16), handlers=(handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        http_logs = [
            service_log("Http", "at once", "3600s", 0, **ADDITIONAL),
            service_log("Http", "soon", f"{FLUSH_SECONDS}s", 1 << 20),
            service_log("Http", "late", "3600s", 1 << 20),
        ]
        metadata = {"filter_metadata": {"weft": {"origins": {"match": "all"}}}}
        routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up"}, "metadata": metadata}]
        proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="greeter")
        proxy["access_log"] = [service_log("Tcp", "bytes", "3600s", 0)]
        return {
            "clusters": [
                cluster("records", port, **over_http2()),
                cluster("up", port, **over_http2()),
                cluster("greeter", greeter.port),
            ],
            "listeners": [
                listener("http", ports["http"], http_filters(routes, manager={"access_log": http_logs})),
                listener("tcp", ports["tcp"], [{"name": "tcp", "typed_config": proxy}]),
            ],
        }

    try:
        made = iter(handlers.values())
        with (
            Greeter() as greeter,
            both(tmp_path, ("http", "tcp"), lambda ports: resources(ports, next(made))) as proxies,
        ):
            for proxy, handler in zip(proxies, handlers.values(), strict=True):
                with grpc.insecure_channel(f"127.0.0.1:{proxy.ports['http']}") as channel:
                    call = channel.unary_unary("/shop/Get")
                    users = [("x-user", "ann"), ("x-user", "bob")]
                    assert call(b"question", metadata=users, timeout=LIMIT) == b"question"
                with socket.create_connection(("127.0.0.1", proxy.ports["tcp"]), LIMIT) as client:
                    client.sendall(b"x")
                    client.shutdown(socket.SHUT_WR)
                    assert read_rest(client) == b"hello"
                for name in ("at once", "soon"):
                    until(f"{proxy.kind} tells of the call {name}", partial(handler.has_call, name))
                until(f"{proxy.kind} tells of bytes", partial(handler.has_bytes, "bytes", received=1, sent=5))
                assert not handler.http.get("late"), proxy.kind
                asked = {"x-user": "ann,bob", ":method": "POST", ":path": "/shop/Get"}
                (entry,), (plain,) = handler.http["at once"], handler.http["soon"]
                assert dict(entry.request.request_headers) == asked, proxy.kind
                assert dict(entry.response.response_headers) == {"x-cache": "hit", ":status": "200"}, proxy.kind
                assert dict(entry.response.response_trailers) == {"x-sum": "5"}, proxy.kind
                tags = {"mesh": "weft", "match": "all", "none": "no"}
                for told in (entry, plain):
                    assert (told.request.path, told.response.response_code.value) == ("/shop/Get", 200), proxy.kind
                    assert dict(told.common_properties.custom_tags) == tags, proxy.kind
                assert not plain.request.request_headers, proxy.kind
                assert not plain.response.response_headers, proxy.kind
                assert not plain.response.response_trailers, proxy.kind
    finally:
        for server in servers:
            server.stop(None)
