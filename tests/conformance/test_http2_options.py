"""Options of HTTP/2 act: what weft-proxy and Envoy announce of them, and what they do under those of an upstream."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, over_http2
from tests.conformance.frames import (
    ACK,
    COMPRESSION_ERROR,
    DATA,
    ENABLE_CONNECT_PROTOCOL,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    POST,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    fields,
    frame,
    number,
    status,
    values,
)
from tests.conformance.proxies import Static
from tests.conformance.upstream import Upstream, read_head, several
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

DEFAULT_WINDOW = 65_535
"""RFC 9113 6.9.2."""

STREAMS, STREAM_WINDOW, CONNECTION_WINDOW, TABLE = 7, 70_000, 200_000, 1000

CONFIGURED = {
    "max_concurrent_streams": STREAMS,
    "initial_stream_window_size": STREAM_WINDOW,
    "initial_connection_window_size": CONNECTION_WINDOW,
    "hpack_table_size": TABLE,
}

WEBSOCKET = [{"upgrade_type": "websocket"}]

LISTENERS: dict[str, tuple[Json, Json]] = {
    "announced": ({"http2_protocol_options": CONFIGURED}, over_http2(**CONFIGURED)),
    "streams": ({"http2_protocol_options": {"max_concurrent_streams": STREAMS}}, over_http2()),
    "table": ({"http2_protocol_options": {"hpack_table_size": TABLE}}, over_http2()),
    "window": ({"http2_protocol_options": {"initial_stream_window_size": STREAM_WINDOW}}, over_http2()),
    "limited": ({}, over_http2()),
    "unlimited": ({}, over_http2()),
    "websocket": ({"http2_protocol_options": {"allow_connect": True}, "upgrade_configs": WEBSOCKET}, {}),
    "unallowed": ({"upgrade_configs": WEBSOCKET}, {}),
}
"""By name of a listener and its cluster: what its connection manager is told, and what its cluster."""


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    with several(LISTENERS) as found:
        yield found


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, upstreams: dict[str, Upstream]
) -> Iterator[tuple[Static, Static]]:
    def resources(ports: dict[str, int]) -> Json:
        clusters, listeners = [], []
        for name, (manager, options) in LISTENERS.items():
            route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
            clusters.append(cluster(name, upstreams[name].port, **options))
            listeners.append(listener(name, ports[name], http_filters([route], manager=manager)))
        return {"clusters": clusters, "listeners": listeners}

    with both(tmp_path_factory.mktemp("options"), tuple(LISTENERS), resources) as running:
        yield running


@pytest.fixture(params=(ENVOY, WEFT_PROXY))
def proxy(
    request: pytest.FixtureRequest, proxies: tuple[Static, Static], upstreams: dict[str, Upstream]
) -> Iterator[Static]:
    """Each of them, whose upstreams nobody has called."""
    yield next(proxy for proxy in proxies if proxy.kind == request.param)
    for upstream in upstreams.values():
        upstream.forget()


def announced(wire: Wire) -> tuple[dict[int, int], int]:
    """What the other side says of itself first: its settings, and by how much it opens the connection's window."""
    settings = values(wire.next(SETTINGS))
    opened = wire.next(WINDOW_UPDATE)
    assert opened.stream == 0
    return settings, int.from_bytes(opened.payload)


def test_what_is_configured_is_announced_on_both_sides(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The table, the windows, and to clients how many streams they may open."""
    with Wire.client(proxy.ports["announced"]) as client:
        client.get(1)
        with Wire.serving(upstreams["announced"].accept()) as server:
            for wire, own in ((client, {MAX_CONCURRENT_STREAMS: STREAMS}), (server, {})):
                expected = {HEADER_TABLE_SIZE: TABLE, INITIAL_WINDOW_SIZE: STREAM_WINDOW} | own
                settings, opened = announced(wire)
                assert expected.items() <= settings.items()
                assert opened == CONNECTION_WINDOW - DEFAULT_WINDOW


def test_more_streams_than_allowed_are_refused(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """Those alone, with the code that says that nobody has looked at them."""
    streams = [2 * index + 1 for index in range(STREAMS + 2)]
    with Wire.client(proxy.ports["streams"]) as client:
        for stream in streams:
            client.get(stream, f"/{stream}")
        with Wire.serving(upstreams["streams"].accept()) as server:
            for stream in streams[STREAMS:]:
                refused = client.next()
                assert (refused.kind, refused.stream, refused.code) == (RST_STREAM, stream, REFUSED_STREAM)
            for _ in streams[:STREAMS]:
                server.answer(server.next(HEADERS).stream, b"x")
            answered = [client.next(HEADERS, RST_STREAM) for _ in streams[:STREAMS]]
            assert {found.kind for found in answered} == {HEADERS}
            assert sorted(found.stream for found in answered) == streams[:STREAMS]
            # There is room again.
            client.get(streams[-1] + 2)
            server.answer(server.next(HEADERS).stream, b"x")
            assert client.next(HEADERS).stream == streams[-1] + 2


def test_a_table_larger_than_announced_is_an_error(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """RFC 7541 6.3. What was announced is allowed."""
    grow = {size: b"\x3f" + bytes([(size - 31) % 128 + 128, (size - 31) // 128]) for size in (TABLE, TABLE + 1)}
    with Wire.client(proxy.ports["table"]) as client:
        client.next(SETTINGS)
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, grow[TABLE] + fields(*GET))
        with Wire.serving(upstreams["table"].accept()) as server:
            server.answer(server.next(HEADERS).stream, b"x")
            assert status(client.next(HEADERS).payload) == 200
            assert client.body(1) == b"x"
            client.send(HEADERS, END_HEADERS | END_STREAM, 3, grow[TABLE + 1] + fields(*GET))
            assert client.next(GOAWAY).code == COMPRESSION_ERROR
            assert not list(client.rest())


def test_a_body_may_fill_the_configured_window_at_once(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """More than the standard's default is sent without a word of the proxy's, and passed on."""
    body = bytes(range(256)) * (STREAM_WINDOW // 256 + 1)
    parts = [body[at : at + 10_000] for at in range(0, STREAM_WINDOW, 10_000)]
    with Wire.client(proxy.ports["window"]) as client:
        client.next(SETTINGS)
        head = frame(HEADERS, END_HEADERS, 1, fields(*POST))
        client.write(head + b"".join(frame(DATA, 0, 1, part) for part in parts) + frame(DATA, END_STREAM, 1))
        room = {INITIAL_WINDOW_SIZE: 1 << 20}
        with Wire.serving(upstreams["window"].accept(), room) as server:
            server.send(WINDOW_UPDATE, 0, 0, number(1 << 20))
            stream = server.next(HEADERS).stream
            assert server.body(stream) == b"".join(parts)
            server.answer(stream)
            assert status(client.next(HEADERS).payload) == 200


@pytest.mark.parametrize(("name", "limit", "connections"), [("limited", 1, 3), ("unlimited", 100, 1)])
def test_the_upstreams_limit_of_streams_is_kept_to(
    name: str, limit: int, connections: int, proxy: Static, upstreams: dict[str, Upstream]
) -> None:
    """What does not fit on one connection goes by another; what fits shares it."""
    servers: list[Wire] = []
    with contextlib.ExitStack() as stack:
        for path in ("/1", "/2", "/3"):
            client = stack.enter_context(Wire.client(proxy.ports[name]))
            client.get(1, path)
            if len(servers) < connections:
                accepted = upstreams[name].accept()
                servers.append(stack.enter_context(Wire.serving(accepted, {MAX_CONCURRENT_STREAMS: limit})))
            servers[-1].next(HEADERS)
            # It knows the limit before the next request comes.
            while len(servers) < connections and not servers[-1].next(SETTINGS).flags & ACK:
                pass
        assert len(servers) == connections
        assert upstreams[name].forget() == 0


def accept_of(key: bytes) -> bytes:
    """What answers *key* (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def extended_connect(*more: tuple[bytes, bytes]) -> bytes:
    """The head that opens a WebSocket (RFC 8441 5)."""
    pseudo = {b":method": b"CONNECT", b":protocol": b"websocket", b":path": b"/chat"}
    return fields(*(dict(GET) | pseudo).items(), (b"sec-websocket-version", b"13"), *more)


KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize("own", [KEY, b""], ids=["a key", "no key"])
def test_a_websocket_of_http2_reaches_a_program_of_http1(
    own: bytes, proxy: Static, upstreams: dict[str, Upstream]
) -> None:
    """
    Bytes pass both ways, the end of the client's too.

    RFC 8441 5 has no use for a key, and HTTP/1.1 must have one (RFC 6455 4.1): where the client sends none, weft-proxy makes
    it and checks its answer. Envoy asks without, which a program that keeps to RFC 6455 refuses.
    """
    with Wire.client(proxy.ports["websocket"]) as client:
        assert values(client.next(SETTINGS))[ENABLE_CONNECT_PROTOCOL] == 1
        more = [(b"sec-websocket-key", own)] if own else []
        client.send(HEADERS, END_HEADERS, 1, extended_connect(*more))
        with upstreams["websocket"].accept() as program:
            head = read_head(program)
            assert head.startswith(b"GET /chat HTTP/1.1\r\n")
            for line in (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-version: 13"):
                assert b"\r\n" + line + b"\r\n" in head.lower()
            keys = re.findall(rb"\r\nsec-websocket-key: (\S+)\r\n", head)
            if own:
                assert keys == [own]
            elif proxy.kind == ENVOY:
                assert keys == []
                return
            else:
                assert len(base64.b64decode(keys[0], validate=True)) == 16
            lines = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: " + accept_of(keys[0])
            program.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n\r\nhello")
            opened = client.next()
            assert (status(opened.payload), opened.flags & END_STREAM) == (200, 0)
            assert client.next(DATA).payload == b"hello"
            client.send(DATA, 0, 1, b"question")
            assert program.recv(100) == b"question"
            program.sendall(b"answer")
            assert client.next(DATA).payload == b"answer"
            client.send(RST_STREAM, 0, 1, number(PROTOCOL_ERROR))
            with contextlib.suppress(ConnectionResetError):
                assert program.recv(100) == b""


def test_extended_connect_is_not_announced_and_refused_unless_allowed(
    proxy: Static, upstreams: dict[str, Upstream]
) -> None:
    """An upgrade that is configured does not allow it: `allow_connect` does. Who asks all the same sends a malformed head."""
    with Wire.client(proxy.ports["unallowed"]) as client:
        assert not values(client.next(SETTINGS)).get(ENABLE_CONNECT_PROTOCOL)
        client.send(HEADERS, END_HEADERS, 1, extended_connect((b"sec-websocket-key", KEY)))
        ends = [found for found in client.rest() if found.kind == GOAWAY] if proxy.kind == ENVOY else [client.next()]
        # As with every malformed head, Envoy ends the connection and says nothing.
        expected = [] if proxy.kind == ENVOY else [(RST_STREAM, PROTOCOL_ERROR)]
        assert [(found.kind, found.code) for found in ends] == expected
    assert upstreams["unallowed"].forget() == 0
