"""Thrift's own Python library on both sides, with weft-proxy and with Envoy between: what one answers the other does too."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocol, TCompactProtocolFactory
from thrift.protocol.THeaderProtocol import THeaderProtocol, THeaderProtocolFactory
from thrift.protocol.TMultiplexedProtocol import TMultiplexedProtocol
from thrift.server.TServer import TThreadedServer
from thrift.Thrift import TApplicationException, TMessageType, TProcessor, TType
from thrift.transport.THeaderTransport import THeaderClientType, THeaderSubprotocolID
from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TTransport import TFramedTransport, TFramedTransportFactory

from tests.conformance.proxies import LIMIT
from tests.conformance.rpc import NETWORK, endpoints, pair
from tests.ports import free_port, until_listening

pytestmark = pytest.mark.conformance

RECORD = {
    "cluster": "%UPSTREAM_CLUSTER%",
    "host": "%UPSTREAM_HOST%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}


def write_text(protocol: Any, name: str, number: int, value: str) -> None:
    protocol.writeFieldBegin(name, TType.STRING, number)
    protocol.writeString(value)
    protocol.writeFieldEnd()


class Greeter(TProcessor):  # type: ignore[misc]
    """
    What the compiler would make of a failing method and of these:

    `string hello(1: string) throws (1: Refused)`, `string headers(1: string)`, `oneway void note(1: string)`.
    """

    def __init__(self, name: str, noted: list[str]) -> None:
        self.name = name
        self.noted = noted

    def process(self, incoming: Any, outgoing: Any) -> bool:
        name, kind, sequence = incoming.readMessageBegin()
        argument = read_struct(incoming).get(1, "")
        incoming.readMessageEnd()
        method = name.rpartition(":")[2]
        if kind == TMessageType.ONEWAY:
            self.noted.append(argument)
            return True
        if method not in {"hello", "headers", "refuse", "lost", "dead"}:
            outgoing.writeMessageBegin(name, TMessageType.EXCEPTION, sequence)
            TApplicationException(TApplicationException.UNKNOWN_METHOD, f"unknown: {name}").write(outgoing)
        else:
            outgoing.writeMessageBegin(name, TMessageType.REPLY, sequence)
            outgoing.writeStructBegin("result")
            if method == "refuse":
                outgoing.writeFieldBegin("refused", TType.STRUCT, 1)
                outgoing.writeStructBegin("Refused")
                write_text(outgoing, "why", 1, argument)
                outgoing.writeFieldStop()
                outgoing.writeStructEnd()
                outgoing.writeFieldEnd()
            elif method == "headers":
                write_text(outgoing, "success", 0, headers_of(incoming))
            else:
                write_text(outgoing, "success", 0, f"{argument} from {self.name}")
            outgoing.writeFieldStop()
            outgoing.writeStructEnd()
        outgoing.writeMessageEnd()
        outgoing.trans.flush()
        return True


def headers_of(protocol: Any) -> str:
    """Those of the header transport that came with what was read last, in JSON."""
    return json.dumps({name.decode(): value.decode() for name, value in protocol.trans.get_headers().items()})


def read_struct(protocol: Any) -> dict[int, Any]:
    """Texts and structs by their numbers."""
    found: dict[int, Any] = {}
    protocol.readStructBegin()
    while True:
        _, kind, number = protocol.readFieldBegin()
        if kind == TType.STOP:
            break
        if kind == TType.STRING:
            found[number] = protocol.readString()
        else:
            assert kind == TType.STRUCT
            found[number] = read_struct(protocol)
        protocol.readFieldEnd()
    protocol.readStructEnd()
    return found


class Kind:
    """A transport and a protocol, on both sides."""

    def __init__(self, transport: str, protocol: str) -> None:
        self.transport = transport
        self.protocol = protocol

    def server(self, name: str, noted: list[str]) -> tuple[int, TThreadedServer]:
        port = free_port()
        listening = TServerSocket("127.0.0.1", port)
        if self.transport == "HEADER":
            factories: tuple[Any, Any] = (_Same(), THeaderProtocolFactory([THeaderClientType.HEADERS]))
        else:
            made = TBinaryProtocolFactory() if self.protocol == "BINARY" else TCompactProtocolFactory()
            factories = (TFramedTransportFactory(), made)
        server = TThreadedServer(Greeter(name, noted), listening, *factories, daemon=True)
        listening.listen()

        def serve() -> None:
            # Its own loop goes on for ever when the socket is closed.
            with contextlib.suppress(AttributeError, OSError):
                while True:
                    threading.Thread(target=server.handle, args=(listening.accept(),), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        until_listening(port)
        return port, server

    def client(self, port: int) -> tuple[TSocket, Any]:
        plain = TSocket("127.0.0.1", port)
        plain.setTimeout(int(LIMIT * 1000))
        plain.open()
        if self.transport == "HEADER":
            number = THeaderSubprotocolID.BINARY if self.protocol == "BINARY" else THeaderSubprotocolID.COMPACT
            return plain, THeaderProtocol(plain, [THeaderClientType.HEADERS], default_protocol=number)
        framed = TFramedTransport(plain)
        return plain, TBinaryProtocol(framed) if self.protocol == "BINARY" else TCompactProtocol(framed)


class _Same:
    def getTransport(self, transport: Any) -> Any:  # noqa: N802 - Thrift's name
        return transport


def call(protocol: Any, method: str, argument: str, *, service: str = "", one_way: bool = False) -> Any:
    """What a call returns; a declared exception or Thrift's own as a pair of what it is and its number or content."""
    writer = TMultiplexedProtocol(protocol, service) if service else protocol
    writer.writeMessageBegin(method, TMessageType.ONEWAY if one_way else TMessageType.CALL, 7)
    writer.writeStructBegin("args")
    write_text(writer, "text", 1, argument)
    writer.writeFieldStop()
    writer.writeStructEnd()
    writer.writeMessageEnd()
    protocol.trans.flush()
    if one_way:
        return None
    _, kind, sequence = protocol.readMessageBegin()
    assert sequence == 7
    if kind == TMessageType.EXCEPTION:
        error = TApplicationException()
        error.read(protocol)
        protocol.readMessageEnd()
        return "TApplicationException", error.type
    result = read_struct(protocol)
    protocol.readMessageEnd()
    return result.get(0, ("declared", result.get(1)))


def route(cluster: str, *, headers: list[dict[str, Any]] | None = None, **match: Any) -> dict[str, Any]:
    return {"match": {**match, "headers": headers or []}, "route": {"cluster": cluster}}


@contextlib.contextmanager
def servers(kind: Kind, noted: list[str]) -> Iterator[list[dict[str, Any]]]:
    made = {name: kind.server(name, noted) for name in ("green", "blue")}
    try:
        clusters = [endpoints(name, port) for name, (port, _) in made.items()]
        yield [*clusters, endpoints("dead", free_port())]
    finally:
        for _, server in made.values():
            server.serverTransport.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("configured", ["named", "found out"])
@pytest.mark.parametrize("protocol", ["BINARY", "COMPACT"])
@pytest.mark.parametrize("transport", ["FRAMED", "HEADER"])
def test_calls_get_envoys_answers(tmp_path: Path, transport: str, protocol: str, configured: str) -> None:
    """Routing by method, service and header; results, declared exceptions and Thrift's own; calls without an answer; records and counts."""
    kind = Kind(transport, protocol)
    noted: list[str] = []
    tenant = {"name": "tenant", "string_match": {"exact": "blue"}}
    routes = [
        route("blue", method_name="", headers=[tenant]),
        route("blue", service_name="Blue"),
        route("nowhere", method_name="lost"),
        route("dead", method_name="dead"),
        route("green", method_name="hidden", invert=True),
    ]
    log = {"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": "RECORDS"}
    filter_config = {
        "@type": f"{NETWORK}.thrift_proxy.v3.ThriftProxy",
        "stat_prefix": "judged",
        "route_config": {"name": "all", "validate_clusters": False, "routes": routes},
        "access_log": [{"name": "file", "typed_config": {**log, "log_format": {"json_format": RECORD}}}],
    }
    if configured == "named":
        filter_config |= {"transport": transport, "protocol": protocol}
    answers: dict[str, list[Any]] = {}
    with servers(kind, noted) as clusters, pair(tmp_path, filter_config, clusters) as proxies:
        for name, port in proxies.ports.items():
            plain, client = kind.client(port)
            answers[name] = [
                call(client, "hello", "one"),
                call(client, "hello", "two", service="Blue"),
                call(client, "note", f"three by {name}", one_way=True),
                call(client, "refuse", "four"),
                call(client, "unknown", "five"),
                call(client, "hello", "x" * 300_000),
            ]
            if transport == "HEADER":
                client.trans.set_header(b"tenant", b"blue")
                answers[name].append(call(client, "hello", "seven"))
                client.trans.clear_headers()
            plain.close()
            for failing in ("hidden", "lost", "dead"):
                plain, client = kind.client(port)
                answers[name].append(call(client, failing, "eight"))
                # `close_downstream_on_upstream_error` is on where nothing is said.
                assert plain.handle.recv(1) == b""
                plain.close()
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        green = "from green"
        seven = ["seven from blue"] if transport == "HEADER" else []
        unknown = ("TApplicationException", TApplicationException.UNKNOWN_METHOD)
        internal = ("TApplicationException", TApplicationException.INTERNAL_ERROR)
        expected = [f"one {green}", "two from blue", None, ("declared", {1: "four"}), unknown]
        expected += [f"{'x' * 300_000} {green}", *seven, unknown, internal, internal]
        assert answers == {"weft": expected, "envoy": expected}
        until(lambda: sorted(noted) == ["three by envoy", "three by weft"])
        weft, envoy = proxies.stats("weft"), proxies.stats("envoy")
        counted = {key: count for key, count in weft.items() if key.startswith("envoy_thrift_")}
        # Of connections that it closes for an error Envoy counts the call as under way, and never as one that was made.
        del counted["envoy_thrift_cx_destroy_local_with_active_rq"], counted["envoy_thrift_request_decoding_error"]
        assert counted.pop("envoy_thrift_request") == len(expected) == envoy["envoy_thrift_request"] + 3
        assert counted == {key: envoy[key] for key in counted}
        assert weft["envoy_thrift_request_decoding_error"] == 1

        def records(name: str) -> list[dict[str, Any]]:
            path = proxies.records[name]
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

        until(lambda: all(len(records(name)) >= len(expected) for name in proxies.ports))
        # Envoy's record of a call that it answers by itself is empty.
        told = {name: [(it["host"], it["sent"]) for it in records(name)[: len(expected) - 3]] for name in proxies.ports}
        assert told["weft"] == told["envoy"]
        assert [it["cluster"] for it in records("weft")[-3:]] == [None, "nowhere", "dead"]


TRACE = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "x-request-id": "f058ebd6-02f7-9d3f-942e-904344e8cde5",
    "baggage": "userId=Am%C3%A9lie, serverNode=DF%2028;internal, isProduction=false",
}


@pytest.mark.parametrize("protocol", ["BINARY", "COMPACT"])
def test_the_trace_of_a_call_reaches_its_server_as_it_is(tmp_path: Path, protocol: str) -> None:
    """By headers, which neither proxy adds to; and those of one call are not the next one's."""
    kind = Kind("HEADER", protocol)
    filter_config = {
        "@type": f"{NETWORK}.thrift_proxy.v3.ThriftProxy",
        "stat_prefix": "traced",
        "transport": "HEADER",
        "protocol": protocol,
        "route_config": {"name": "all", "routes": [route("green", method_name="")]},
    }
    with servers(kind, []) as clusters, pair(tmp_path, filter_config, clusters) as proxies:
        for name, port in proxies.ports.items():
            plain, client = kind.client(port)
            for key, value in TRACE.items():
                client.trans.set_header(key.encode(), value.encode())
            told = [json.loads(call(client, "headers", "")) for _ in range(2)]
            plain.close()
            assert told == [TRACE, {}], name


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
