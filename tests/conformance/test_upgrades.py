"""How the end of an upgraded connection is recorded: weft-proxy and Envoy, over HTTP/1.1 and over streams of HTTP/2."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Json, address, both, cluster, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Accepting, Upstream, read_exactly
from weft.data_plane import ENVOY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

RECORD = {
    "path": "%REQ(:PATH)%",
    "authority": "%REQ(:AUTHORITY)%",
    "code": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}

ASKED, ANSWERED = b"hello", b"world"

KEY = b"sec-websocket-key: "

ENDS = ("program-resets", "program-closes", "client-resets", "client-closes")
STREAM_ENDS = ("client-resets-stream", "client-ends-stream")
"""What only a client of HTTP/2 can do."""


def reset(connection: socket.socket) -> None:
    """Close *connection* with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read(connection: socket.socket, end: bytes) -> bytes:
    """Read until *end* has come."""
    data = b""
    while end not in data:
        data += (part := connection.recv(4096))
        assert part, data
    return data


def wait_for_end(connection: socket.socket) -> None:
    """Read what comes until the other side has ended or reset the connection."""
    try:
        while connection.recv(4096):
            pass
    except OSError:
        pass


def accept_of(key: bytes) -> bytes:
    """RFC 6455 4.2.2: what answers *key*."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


class Program(Accepting):
    """Agrees to every WebSocket, says a word after it, and then ends the connection as the head says; without HTTP, too."""

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(LIMIT)
            head, _, rest = read(connection, b"\r\n\r\n").partition(b"\r\n\r\n")
            if head.startswith(b"GET "):
                # A client of HTTP/2 gives none, and Envoy makes none for it.
                key = next((line[len(KEY) :] for line in head.splitlines() if line.lower().startswith(KEY)), b"")
                lines = (b"HTTP/1.1 101 Switching Protocols", b"connection: upgrade", b"upgrade: websocket")
                accepted = b"sec-websocket-accept: " + accept_of(key)
                connection.sendall(b"\r\n".join((*lines, accepted, b"", b"")))
            if ASKED not in rest:
                read(connection, ASKED[-1:])
            connection.sendall(ANSWERED)
            if b"program-" in head:
                read(connection, b"!")
            if b"program-resets" in head:
                reset(connection)
            elif b"program-closes" not in head:
                wait_for_end(connection)


@pytest.fixture
def program() -> Iterator[Program]:
    with Program() as running:
        yield running


def upgrade(port: int, path: str) -> None:
    """Upgrade a connection of HTTP/1.1, and end it as *path* says."""
    lines = (
        f"GET {path} HTTP/1.1",
        "host: a",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
        client.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode() + ASKED)
        end_connection(client, path)


def connect(port: int, path: str) -> None:
    """Open a tunnel by CONNECT, whose host is what *path* says, and end it like that."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
        authority = f"{path.removeprefix('/')}:80"
        client.sendall(f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n".encode())
        read(client, b"\r\n\r\n")
        client.sendall(f"{path}\r\n\r\n".encode() + ASKED)
        end_connection(client, path)


def end_connection(client: socket.socket, path: str) -> None:
    read(client, ANSWERED)
    if path.endswith("client-resets"):
        reset(client)
    elif not path.endswith("client-closes"):
        client.sendall(b"!")
        wait_for_end(client)


DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """RFC 7541 6.2.2: a field that no table holds, by a new name."""
    return b"\0" + b"".join(bytes((len(text),)) + text.encode() for text in (name, value))


def frames(client: socket.socket) -> Iterator[tuple[int, int]]:
    """Kinds and flags of what comes on streams, until the connection ends."""
    with client.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            stream.read(int.from_bytes(head[:3], "big"))
            if head[5:] != bytes(4):
                yield head[3], head[4]


def extended_connect(port: int, path: str) -> None:
    """Open a WebSocket on a stream of HTTP/2 (RFC 8441), and end it as *path* says."""
    fields = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": path, ":authority": "a"}
    head = b"".join(literal(name, value) for name, value in {**fields, "sec-websocket-version": "13"}.items())
    with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        client.sendall(frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, 0, 1, ASKED))
        assert any(kind == DATA for kind, _ in frames(client))
        if path.endswith("client-resets"):
            reset(client)
        elif path.endswith("client-resets-stream"):
            client.sendall(frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4, "big")))
        elif path.endswith("client-ends-stream"):
            client.sendall(frame(DATA, END_STREAM, 1))
        elif not path.endswith("client-closes"):
            client.sendall(frame(DATA, 0, 1, b"!"))
            # Envoy resets it, weft-proxy hands on what there was: an end in order, if it was one.
            next(kind for kind, flags in frames(client) if kind == RST_STREAM or flags & END_STREAM)


def resources(ports: dict[str, int], directory: Path, program: int, behind: int) -> Json:
    """
    Listeners by the versions that they speak in front and behind.

    What speaks HTTP/2 behind calls *behind*, a listener that takes that and speaks HTTP/1.1 with the program.
    """
    listeners = []
    for name, port in ports.items():
        route: Json = {"match": {"prefix": "/"}, "route": {"cluster": "h2" if name == "h1-h2" else "h1"}}
        if name == "connect":
            route["match"] = {"connect_matcher": {}}
            route["route"]["upgrade_configs"] = [{"upgrade_type": "CONNECT", "connect_config": {}}]
        filters = http_filters([route])
        manager = filters[0]["typed_config"]
        manager["upgrade_configs"] = [{"upgrade_type": "CONNECT" if name == "connect" else "websocket"}]
        manager["http2_protocol_options"] = {"allow_connect": True}
        log = {"path": str(directory / f"{port}.log"), "log_format": {"json_format": RECORD}}
        manager["access_log"] = [{"name": "file", "typed_config": typed("access_loggers.file.v3.FileAccessLog", **log)}]
        listeners.append(listener(name, port, filters))
    http2 = {"explicit_http_config": {"http2_protocol_options": {"allow_connect": True}}}
    clusters = [
        {
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
            },
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                    "upstreams.http.v3.HttpProtocolOptions", **options
                )
            },
        }
        for name, port, options in (
            ("h1", program, {"explicit_http_config": {"http_protocol_options": {}}}),
            ("h2", behind, http2),
        )
    ]
    return {"listeners": listeners, "clusters": clusters}


WAYS = {"h1-h1": upgrade, "h1-h2": upgrade, "h2-h1": extended_connect, "connect": connect}


def told(proxy: Static, directory: Path) -> dict[str, Json]:
    """End upgraded connections in every way; return what was recorded of each."""
    found = {}
    for name, way in WAYS.items():
        ends = (*ENDS, *STREAM_ENDS) if name == "h2-h1" else ENDS
        for end in ends:
            way(proxy.ports[name], f"/{end}")
        log = directory / f"{proxy.ports[name]}.log"

        def lines(log: Path = log) -> list[str]:
            return log.read_text().splitlines() if log.exists() else []

        until(f"every record of {name}", lambda lines=lines, count=len(ends): len(lines()) == count)  # type: ignore[misc]
        for line in lines():
            record = json.loads(line)
            # Of a stream that the other side reset, Envoy tells the code, too.
            record["details"] = record["details"].replace("{remote_error_with_CONNECT_request}", "{remote_reset}")
            found[f"{name} {record['path'] or record['authority']}"] = record
    return found


def test_both_record_alike_who_ended_an_upgraded_connection(tmp_path: Path, program: Program) -> None:
    """By a reset or in order: UC and DC, as there is no other end."""
    behind: list[int] = []

    def bootstrap(ports: dict[str, int]) -> Json:
        # Envoy's, for both: what a stream's end looks like is its sender's choice.
        behind.append(ports["behind"])
        return resources(ports, tmp_path, program.port, behind[0])

    with both(tmp_path, (*WAYS, "behind"), bootstrap) as pair:
        expected, seen = (told(proxy, tmp_path) for proxy in pair)
    differing = {key: (seen.get(key), record) for key, record in expected.items() if seen.get(key) != record}
    assert not differing, "\n".join(f"{key}\n  weft  {pair[0]}\n  envoy {pair[1]}" for key, pair in differing.items())
    flags = {key: record["flags"] for key, record in seen.items()}
    assert flags["h1-h1 /program-resets"] == flags["h1-h1 /program-closes"] == "UC"
    assert flags["h1-h1 /client-resets"] == flags["h1-h1 /client-closes"] == "DC"


BODIES = {
    "chunks": (b"transfer-encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    "a length": (b"content-length: 5", b"hello"),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_body_of_a_request_to_upgrade_goes_before_the_protocol(tmp_path: Path, name: str) -> None:
    """
    Also where the upstream agrees before it has come.

    Envoy takes it for the beginning of the other protocol: it leaves after the agreement, chunks as they are, of which the head says nothing.
    """
    field, body = BODIES[name]
    up = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        manager = {"upgrade_configs": [{"upgrade_type": "websocket"}]}
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up"}}], manager=manager)
        return {"clusters": [cluster("up", up.port)], "listeners": [listener("http", ports["http"], filters)]}

    wish, end = b"connection: upgrade\r\nupgrade: websocket\r\n", b"\r\n\r\n"
    with up.socket, both(tmp_path, ("http",), resources) as proxies:
        for proxy in proxies:
            with socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT) as client:
                client.sendall(b"POST / HTTP/1.1\r\nhost: up\r\n" + wish + field + end + body[:3])
                with up.accept() as server:
                    head, _, begun = read(server, end).partition(end)
                    server.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + wish + b"\r\n" + ANSWERED)
                    client.sendall(body[3:] + b"in it")
                    missing = len(body) + len(b"in it") - len(begun)
                    assert begun + read_exactly(server, missing) == body + b"in it", proxy.kind
                    assert read(client, ANSWERED).startswith(b"HTTP/1.1 101 "), proxy.kind
            declared = field in head.lower()
            assert declared == (proxy.kind != ENVOY or name == "a length"), proxy.kind
