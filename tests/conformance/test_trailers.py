"""Whether trailers of HTTP/1.1 pass, by what each side is told of them: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener
from tests.conformance.frames import DATA, END_HEADERS, END_STREAM, HEADERS, POST, Wire, fields, frame
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import END, Upstream, read_exactly, read_head
from weft.data_plane import ENVOY

pytestmark = pytest.mark.conformance

ASKED: dict[str, Json] = {"unset": {}, "off": {"enable_trailers": False}, "on": {"enable_trailers": True}}
"""What a side is told, as `http_protocol_options`."""

CHUNKED = b"te: trailers\r\ntransfer-encoding: chunked\r\n\r\n"
REQUEST = b"POST /%b HTTP/1.1\r\nhost: up\r\n" + CHUNKED + b"5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-end: 1\r\n\r\n"


@dataclass(frozen=True)
class Setup:
    """Both data planes with a listener and a route for each of `ASKED`, and the upstream of all."""

    proxies: tuple[Static, Static]
    upstream: Upstream


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    upstream = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        routes = [{"match": {"prefix": f"/{name}"}, "route": {"cluster": name}} for name in ASKED]
        listeners = [
            listener(name, ports[name], http_filters(routes, manager={"http_protocol_options": asked}))
            for name, asked in ASKED.items()
        ]
        clusters = [
            cluster(name, upstream.port, **http_options(explicit_http_config={"http_protocol_options": asked}))
            for name, asked in ASKED.items()
        ]
        return {"clusters": clusters, "listeners": listeners}

    with upstream.socket, both(tmp_path_factory.mktemp("trailers"), tuple(ASKED), resources) as proxies:
        yield Setup(proxies, upstream)


def read_chunks(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read the chunks that follow a head, and not one byte more: their data, and the trailers."""
    data = b""
    while True:
        size = int(read_line(connection), 16)
        if size == 0:
            break
        data += read_exactly(connection, size)
        assert read_line(connection) == b""
    trailers = []
    while line := read_line(connection):
        trailers.append(line)
    return data, b",".join(trailers)


def read_line(connection: socket.socket) -> bytes:
    """Read a line, without its end."""
    line = b""
    while not line.endswith(b"\r\n"):
        byte = connection.recv(1)
        assert byte, f"it has ended after {line!r}"
        line += byte
    return line[:-2]


@pytest.mark.parametrize("towards", ASKED)
@pytest.mark.parametrize("by", ASKED)
def test_trailers_pass_where_both_sides_enable_them(setup: Setup, by: str, towards: str) -> None:
    """Of requests and of answers. weft-proxy passes them in any case: there they are an end-to-end part of the message (RFC 9110 6.5)."""
    for proxy in setup.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports[by]), LIMIT) as client:
            client.sendall(REQUEST % towards.encode())
            with setup.upstream.taken() as connection:
                asked = read_chunks(connection)
                connection.sendall(ANSWER)
                assert read_head(client).endswith(END)
                answered = read_chunks(client)
        passes = proxy.kind != ENVOY or (by, towards) == ("on", "on")
        assert asked == (b"hello", b"x-sum: 5" if passes else b""), proxy.kind
        assert answered == (b"abc", b"x-end: 1" if passes else b""), proxy.kind


@pytest.mark.parametrize("towards", ASKED)
def test_trailers_of_http2_pass_to_http1_where_its_side_enables_them(setup: Setup, towards: str) -> None:
    """What the listener is told of HTTP/1.1 does not count for a client of HTTP/2."""
    head = fields(*((name, b"/" + towards.encode() if name == b":path" else value) for name, value in POST))
    request = (
        frame(HEADERS, END_HEADERS, 1, head + fields((b"te", b"trailers")))
        + frame(DATA, 0, 1, b"hello")
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, fields((b"x-sum", b"5")))
    )
    for proxy in setup.proxies:
        with Wire.client(proxy.ports["unset"]) as client:
            client.write(request)
            with setup.upstream.accept() as connection:
                assert re.match(rb"POST /%b HTTP/1.1\r\n" % towards.encode(), read_head(connection))
                asked = read_chunks(connection)
                connection.sendall(ANSWER)
                client.next(HEADERS)
                body, ended_by = b"", None
                while ended_by is None:
                    found = client.next(DATA, HEADERS)
                    body += found.payload if found.kind == DATA else b""
                    ended_by = found.kind if found.flags & END_STREAM else None
        passes = proxy.kind != ENVOY or towards == "on"
        assert asked == (b"hello", b"x-sum: 5" if passes else b""), proxy.kind
        assert (body, ended_by) == (b"abc", HEADERS if passes else DATA), proxy.kind
