"""CONNECT and other changes of protocol, only where the configuration allows them: stock Envoy and weft-proxy, over both versions of HTTP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, over_http2
from tests.conformance.frames import (
    DATA,
    ENABLE_CONNECT_PROTOCOL,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    OK,
    PROTOCOL_ERROR,
    RST_STREAM,
    Wire,
    answered,
    fields,
    number,
    status,
)
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Upstream, fields_of, read_head, read_rest
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

TARGET = b"up:443"


def upgrade(name: str, *, enabled: bool = True, terminates: bool = False) -> Json:
    return {"upgrade_type": name, "enabled": enabled} | ({"connect_config": {}} if terminates else {})


def connects(*upgrades: Json, to: str = "up") -> Json:
    """A route for CONNECT."""
    return {"match": {"connect_matcher": {}}, "route": {"cluster": to, "timeout": "0s", "upgrade_configs": upgrades}}


def by_path(prefix: str = "/", *upgrades: Json, to: str = "up") -> Json:
    return {"match": {"prefix": prefix}, "route": {"cluster": to, "timeout": "0s", "upgrade_configs": upgrades}}


def direct(match: Json) -> Json:
    return {"match": match, "direct_response": {"status": 200, "body": {"inline_string": "direct"}}}


TERMINATES = upgrade("CONNECT", terminates=True)
ONLY_TARGET = {"domains": [TARGET.decode()]}


@dataclass(frozen=True)
class Refusal:
    """A listener that opens no tunnel to `other:443`."""

    routes: list[Json]
    status: int = 403
    manager: tuple[str, ...] = ()
    """Upgrades that the connection manager allows."""
    domains: tuple[str, ...] = ("*",)
    envoy: int | None = None
    """What Envoy says, if it is something else; why is said beside it."""


REFUSALS = {
    # To Envoy no route is for CONNECT that does not say so, and what has no route is not found.
    "nothing is configured": Refusal([by_path()], envoy=404),
    "a route that does not say so": Refusal([connects()]),
    "a route that forbids it": Refusal(
        [connects(upgrade("CONNECT", enabled=False, terminates=True))], manager=("CONNECT",)
    ),
    "another upgrade is allowed": Refusal([connects(upgrade("websocket"))]),
    "routes by path only": Refusal([by_path(), by_path("")], 404, manager=("CONNECT",)),
    "another target": Refusal([connects(TERMINATES), by_path()], domains=("up:443",), envoy=404),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    with upstream.socket:
        yield upstream


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[tuple[Static, Static]]:
    def chain(routes: list[Json], *upgrades: str, **host: object) -> list[Json]:
        manager = {"upgrade_configs": [{"upgrade_type": name} for name in upgrades]}
        return http_filters(routes, manager=manager | {"http2_protocol_options": {"allow_connect": True}}, **host)

    chains = {
        name: chain(case.routes, *case.manager, domains=list(case.domains)) for name, case in REFUSALS.items()
    } | {
        "ends here": chain([connects(TERMINATES), by_path()], **ONLY_TARGET),
        "goes on": chain([connects(upgrade("CONNECT"))]),
        "goes on over HTTP/2": chain([connects(upgrade("CONNECT"), to="http2"), by_path(to="http2")], "websocket"),
        "goes nowhere": chain([connects(TERMINATES, to="gone")]),
        "echo": chain([by_path("/")], "echo"),
        "direct": chain([direct({"connect_matcher": {}}), direct({"prefix": "/"})], "CONNECT", "websocket"),
    }

    def resources(ports: dict[str, int]) -> Json:
        clusters = [
            cluster("up", upstream.port),
            cluster("gone", free_port()),
            cluster("http2", upstream.port, **over_http2(allow_connect=True)),
        ]
        return {"clusters": clusters, "listeners": [listener(name, ports[name], it) for name, it in chains.items()]}

    with both(tmp_path_factory.mktemp("connect"), tuple(chains), resources) as running:
        yield running


@contextlib.contextmanager
def client(proxy: Static, name: str, *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as connection:
        connection.sendall(b"".join(sent))
        yield connection


def connect(target: bytes, *more: bytes) -> bytes:
    return b"CONNECT " + target + b" HTTP/1.1\r\nhost: " + target + b"\r\n" + b"".join(more) + b"\r\n"


def send_connect(wire: Wire, target: bytes, *more: tuple[bytes, bytes]) -> None:
    """Ask for a tunnel as stream 1."""
    wire.send(HEADERS, END_HEADERS, 1, fields((b":method", b"CONNECT"), (b":authority", target), *more))


def ask_for(wire: Wire, target: bytes, *more: tuple[bytes, bytes]) -> int:
    """Ask for a tunnel as stream 1; return the status."""
    send_connect(wire, target, *more)
    return status(wire.next(HEADERS).payload)


def expect(connection: socket.socket, data: bytes) -> None:
    found = b""
    while len(found) < len(data) and (part := connection.recv(len(data) - len(found))):
        found += part
    assert found == data


WEBSOCKET = (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/")


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_route_allows_is_no_tunnel(proxies: tuple[Static, Static], upstream: Upstream, name: str) -> None:
    case = REFUSALS[name]
    found = {}
    for proxy in proxies:
        # A client that does not wait for the answer has sent the tunnel's first bytes. They are no request.
        with client(proxy, name, connect(b"other:443"), b"GET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n") as connection:
            answer = read_rest(connection)
        assert answer.count(b"HTTP/1.1 ") == 1, (proxy.kind, answer)
        assert b"\r\nconnection: close\r\n" in answer.lower(), (proxy.kind, answer)
        with Wire.client(proxy.ports[name]) as wire:
            found[proxy.kind] = int(answer.split()[1]), ask_for(wire, b"other:443")
    assert found == {WEFT_PROXY: (case.status,) * 2, ENVOY: (case.envoy or case.status,) * 2}
    assert upstream.forget() == 0


def test_an_answer_of_our_own_never_opens_a_tunnel(proxies: tuple[Static, Static], upstream: Upstream) -> None:
    """A success of CONNECT agrees to it (RFC 9110 9.3.6, RFC 8441 5), whoever says it. Envoy says 200 of its own all the same."""
    for proxy in proxies:
        own = 403 if proxy.kind == WEFT_PROXY else 200
        with client(proxy, "direct", connect(TARGET)) as connection:
            assert read_head(connection).split()[1] == str(own).encode(), proxy.kind
        for more in ((), WEBSOCKET):
            with Wire.client(proxy.ports["direct"]) as wire:
                assert ask_for(wire, TARGET, *more) == own, proxy.kind
        # A refusal in the words of gRPC would be a success of HTTP, and no tunnel is gRPC.
        kind = (b"content-type", b"application/grpc")
        with Wire.client(proxy.ports["a route that forbids it"]) as wire:
            assert ask_for(wire, TARGET, kind) == 403, proxy.kind
    assert upstream.forget() == 0


def test_a_tunnel_that_ends_here_carries_bytes(proxies: tuple[Static, Static], upstream: Upstream) -> None:
    """Over both versions; the bytes need no sense, and do not wait for the answer."""
    for proxy in proxies:
        with client(proxy, "ends here", connect(TARGET), b"early") as connection, upstream.accept() as peer:
            expect(peer, b"early")
            head = read_head(connection).lower()
            assert head.startswith(b"http/1.1 200 ok\r\n"), proxy.kind
            # RFC 9110 9.3.6, 9112 6.1: what follows is the tunnel, and has no length.
            for name in (b"content-length", b"transfer-encoding", b"connection"):
                assert b"\r\n" + name + b":" not in head, (proxy.kind, head)
            peer.sendall(b"GET / HTTP/9.9\n\0")
            expect(connection, b"GET / HTTP/9.9\n\0")
            connection.sendall(b"\xff\0more")
            expect(peer, b"\xff\0more")
            connection.shutdown(socket.SHUT_WR)
            assert read_rest(peer) == b"", proxy.kind
            if proxy.kind == WEFT_PROXY:  # Envoy ends both directions with one
                peer.sendall(b"last")
                peer.close()
            assert read_rest(connection) == (b"last" if proxy.kind == WEFT_PROXY else b""), proxy.kind

        with Wire.client(proxy.ports["ends here"]) as wire:
            assert ask_for(wire, TARGET) == 200, proxy.kind
            with upstream.accept() as peer:
                wire.send(DATA, 0, 1, b"to the server")
                expect(peer, b"to the server")
                peer.sendall(b"to the client")
                assert wire.next(DATA).payload == b"to the client", proxy.kind
                # Other requests share the connection.
                wire.send(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    3,
                    fields((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", TARGET)),
                )
                with upstream.taken() as other:
                    other.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                    assert (answer := wire.next(HEADERS)).stream == 3, proxy.kind
                    assert status(answer.payload) == 204, proxy.kind
                wire.send(DATA, END_STREAM, 1)
                assert read_rest(peer) == b"", proxy.kind
        assert upstream.forget() == 0


def test_a_tunnel_whose_upstream_is_gone_is_refused(proxies: tuple[Static, Static]) -> None:
    for proxy in proxies:
        with client(proxy, "goes nowhere", connect(TARGET)) as connection:
            assert read_head(connection).startswith(b"HTTP/1.1 503 "), proxy.kind
        with Wire.client(proxy.ports["goes nowhere"]) as wire:
            assert ask_for(wire, TARGET) == 503, proxy.kind


def test_a_tunnel_may_be_the_upstreams(proxies: tuple[Static, Static], upstream: Upstream) -> None:
    """CONNECT is passed on, in the upstream's own version, and so is its answer: success or refusal."""
    for proxy in proxies:
        with Wire.client(proxy.ports["goes on"]) as wire:
            send_connect(wire, TARGET)
            with upstream.accept() as peer:
                start, *lines = read_head(peer).lower().split(b"\r\n")
                assert start == b"connect up:443 http/1.1", proxy.kind
                assert b"host: up:443" in lines, proxy.kind
                assert not [it for it in lines if it.startswith((b"transfer-encoding:", b"content-length:"))], (
                    proxy.kind
                )
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                assert status(wire.next(HEADERS).payload) == 200, proxy.kind
                wire.send(DATA, 0, 1, b"to the server")
                expect(peer, b"to the server")
                peer.sendall(b"to the client")
                assert wire.next(DATA).payload == b"to the client", proxy.kind

        with client(proxy, "goes on", connect(TARGET)) as connection, upstream.taken() as peer:
            peer.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno")
            answer = read_rest(connection)
            assert answer.startswith(b"HTTP/1.1 407 "), proxy.kind
            assert answer.endswith(b"\r\n\r\nno"), (proxy.kind, "what follows was the tunnel's")

        with client(proxy, "goes on over HTTP/2", connect(TARGET)) as connection, upstream.accept() as plain:
            server = Wire.server(plain)
            request = server.next(HEADERS)
            assert not request.flags & END_STREAM, proxy.kind
            server.send(HEADERS, END_HEADERS, request.stream, b"\x88")
            assert read_head(connection).startswith(b"HTTP/1.1 200 OK\r\n"), proxy.kind
            connection.sendall(b"to the server")
            assert server.next(DATA).payload == b"to the server", proxy.kind
            server.send(DATA, 0, request.stream, b"to the client")
            expect(connection, b"to the client")
        assert upstream.forget() == 0


GOES_ON = "goes on over HTTP/2"

TUNNELS: dict[str, tuple[tuple[bytes, bytes], ...]] = {"CONNECT": (), "extended CONNECT": WEBSOCKET}
"""By what a client of HTTP/2 asks for them: what its request says besides."""

UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: up:443\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
"""What a client of HTTP/1.1 asks instead of extended CONNECT."""


PROTOCOL = b"\x87\xb9]\x87I\xc8z?\x87\xf0X\xd0ru*\x7f"
"""`:protocol` and `websocket`, as both proxies write them: in the Huffman code (RFC 7541 appendix B)."""


@contextlib.contextmanager
def agreed(upstream: Upstream, name: str, answer: bytes = OK) -> Iterator[tuple[Wire, int]]:
    """Agree by the block *answer* to one of `TUNNELS`, which is asked for next; yield the upstream's end, and the stream."""
    with Wire.serving(upstream.accept(), {ENABLE_CONNECT_PROTOCOL: 1}) as server:
        request = server.next(HEADERS)
        assert not request.flags & END_STREAM
        assert (PROTOCOL in request.payload) == (name != "CONNECT"), request
        server.send(HEADERS, END_HEADERS, request.stream, answer)
        yield server, request.stream


@contextlib.contextmanager
def tunnel(
    proxy: Static, upstream: Upstream, name: str, answer: bytes = OK
) -> Iterator[tuple[tuple[Wire, int], tuple[Wire, int]]]:
    """Yield both ends, each with its stream, of one of `TUNNELS` that is *agreed* to; a word has gone each way."""
    with Wire.client(proxy.ports[GOES_ON]) as wire:
        send_connect(wire, TARGET, *TUNNELS[name])
        with agreed(upstream, name, answer) as (server, stream):
            opened = wire.next(HEADERS)
            assert (status(opened.payload), opened.flags & END_STREAM) == (200, 0), proxy.kind
            wire.send(DATA, 0, 1, b"to the server")
            assert server.next().payload == b"to the server", proxy.kind
            server.send(DATA, 0, stream, b"to the client")
            assert wire.next().payload == b"to the client", proxy.kind
            yield (wire, 1), (server, stream)


@pytest.mark.parametrize("first", ["client", "upstream"])
@pytest.mark.parametrize("name", TUNNELS)
def test_each_direction_of_a_tunnel_between_streams_has_its_own_end(
    proxies: tuple[Static, Static], upstream: Upstream, name: str, first: str
) -> None:
    """Whichever ends first. With the upstream's Envoy ends both, as with any answer that is whole before its request is."""
    for proxy in proxies:
        with tunnel(proxy, upstream, name) as ends:
            (one, its), (other, others) = ends if first == "client" else ends[::-1]
            one.send(DATA, END_STREAM, its, b"first")
            assert other.body(others) == b"first", proxy.kind
            if proxy.kind == ENVOY and first == "upstream":
                resets = [(found.kind, found.code) for found in (other.next(), one.next())]
                assert resets == [(RST_STREAM, NO_ERROR), (RST_STREAM, INTERNAL_ERROR)]
            else:
                other.send(DATA, 0, others, b"still ")
                other.send(DATA, END_STREAM, others, b"open")
                assert one.body(its) == b"still open", proxy.kind
        assert upstream.forget() == 0, proxy.kind


@pytest.mark.parametrize("length", [b"0", b"3"])
@pytest.mark.parametrize("name", TUNNELS)
def test_a_length_in_an_answer_that_opens_a_tunnel_means_nothing(
    proxies: tuple[Static, Static], upstream: Upstream, name: str, length: bytes
) -> None:
    """RFC 9110 9.3.6: what follows is the tunnel's. In HTTP/1.1 the answer says none."""
    answer = OK + fields((b"content-length", length))
    for proxy in proxies:
        with tunnel(proxy, upstream, name, answer) as ((wire, _), (server, stream)):
            server.send(DATA, END_STREAM, stream, b"last")
            assert wire.body(1) == b"last", proxy.kind
        request = connect(TARGET) if name == "CONNECT" else UPGRADE
        with client(proxy, GOES_ON, request) as connection, agreed(upstream, name, answer) as (server, stream):
            head = read_head(connection)
            assert head.split()[1] == (b"200" if name == "CONNECT" else b"101"), proxy.kind
            assert not fields_of(head).keys() & {b"content-length", b"transfer-encoding"}, proxy.kind
            connection.sendall(b"to the server")
            assert server.next().payload == b"to the server", proxy.kind
            server.send(DATA, 0, stream, b"to the client")
            expect(connection, b"to the client")
        assert upstream.forget() == 0, proxy.kind


@pytest.mark.parametrize("name", TUNNELS)
def test_a_success_without_content_opens_a_tunnel_between_streams(
    proxies: tuple[Static, Static], upstream: Upstream, name: str
) -> None:
    """RFC 9110 9.3.6: any success does. Envoy takes what the upstream says then for content, which 204 must not have."""
    for proxy in proxies:
        with Wire.client(proxy.ports[GOES_ON]) as wire:
            send_connect(wire, TARGET, *TUNNELS[name])
            with agreed(upstream, name, fields((b":status", b"204"))) as (server, stream):
                opened = wire.next(HEADERS)
                assert (status(opened.payload) // 100, opened.flags & END_STREAM) == (2, 0), proxy.kind
                wire.send(DATA, 0, 1, b"to the server")
                assert server.next().payload == b"to the server", proxy.kind
                server.send(DATA, 0, stream, b"to the client")
                found = wire.next()
                if proxy.kind == ENVOY:
                    assert (found.kind, found.code) == (RST_STREAM, INTERNAL_ERROR)
                else:
                    assert (found.kind, found.payload) == (DATA, b"to the client")
        assert upstream.forget() == 0, proxy.kind


@pytest.mark.parametrize("name", TUNNELS)
def test_a_refusal_of_a_tunnel_between_streams_is_an_answer(
    proxies: tuple[Static, Static], upstream: Upstream, name: str
) -> None:
    """Its length counts, and what follows in the client's direction was the tunnel's."""
    refused = fields((b":status", b"407"), (b"content-length", b"2"))
    for proxy in proxies:
        with Wire.client(proxy.ports[GOES_ON]) as wire:
            send_connect(wire, TARGET, *TUNNELS[name])
            with agreed(upstream, name, refused) as (server, stream):
                server.send(DATA, END_STREAM, stream, b"no")
                assert answered(wire, 1) == (407, b"no"), proxy.kind
                reset = wire.next()
                assert (reset.kind, reset.code) == (RST_STREAM, NO_ERROR), proxy.kind
        assert upstream.forget() == 0, proxy.kind


@pytest.mark.parametrize("sender", ["client", "upstream"])
@pytest.mark.parametrize("name", TUNNELS)
def test_fields_in_a_tunnel_between_streams_are_an_error(
    proxies: tuple[Static, Static], upstream: Upstream, name: str, sender: str
) -> None:
    """RFC 9113 8.5: of a stream that is a tunnel. Envoy passes them on as trailers."""
    for proxy in proxies:
        with tunnel(proxy, upstream, name) as ends:
            (one, its), (other, _) = ends if sender == "client" else ends[::-1]
            one.send(HEADERS, END_HEADERS | END_STREAM, its, fields((b"x-end", b"1")))
            found = other.next()
            if proxy.kind == ENVOY:
                assert (found.kind, found.flags & END_STREAM) == (HEADERS, END_STREAM)
            else:
                assert found.kind == RST_STREAM, found
                reset = one.next()
                assert (reset.kind, reset.code) == (RST_STREAM, PROTOCOL_ERROR)
        assert upstream.forget() == 0, proxy.kind


@contextlib.contextmanager
def websocket(proxy: Static, version: str) -> Iterator[Callable[[], int]]:
    """Ask in this *version* of HTTP for a WebSocket over HTTP/2; yield what waits for the status of the answer."""
    if version == "HTTP/1.1":
        with client(proxy, GOES_ON, UPGRADE) as connection:
            yield lambda: int(read_head(connection).split()[1])
    else:
        with Wire.client(proxy.ports[GOES_ON]) as wire:
            send_connect(wire, TARGET, *WEBSOCKET)
            yield lambda: status(wire.next(HEADERS).payload)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_an_upstream_that_takes_no_extended_connect_is_sent_none(
    proxies: tuple[Static, Static], upstream: Upstream, version: str
) -> None:
    """
    RFC 8441 3: not before its settings have said that it does.

    Envoy does not look at them. The client is told the same when the upstream finds `:protocol` malformed (RFC 9113 8.3.1).
    """
    for proxy in proxies:
        with websocket(proxy, version) as answer, Wire.serving(upstream.accept()) as server:
            if proxy.kind == ENVOY:
                server.send(RST_STREAM, 0, server.next(HEADERS).stream, number(PROTOCOL_ERROR))
            assert answer() == 502, proxy.kind
            with Wire.client(proxy.ports[GOES_ON]) as other:
                other.get(1)
                request = server.next()
                assert request.kind == HEADERS, proxy.kind
                # It is the first that weft-proxy has sent.
                assert request.stream == (3 if proxy.kind == ENVOY else 1), proxy.kind
                server.answer(request.stream, b"x")
                assert answered(other, 1) == (200, b"x"), proxy.kind
        assert upstream.forget() == 0, proxy.kind


def test_any_protocol_that_is_allowed_may_be_upgraded_to(proxies: tuple[Static, Static], upstream: Upstream) -> None:
    request = b"GET /x HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\n"
    for proxy in proxies:
        with client(proxy, "echo", request) as connection, upstream.accept() as peer:
            assert b"\r\nupgrade: echo\r\n" in read_head(peer).lower(), proxy.kind
            peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\nhello")
            head = read_head(connection).lower()
            assert head.startswith(b"http/1.1 101 "), proxy.kind
            assert b"\r\nupgrade: echo\r\n" in head, proxy.kind
            expect(connection, b"hello")
            connection.sendall(b"\0world")
            expect(peer, b"\0world")
        with client(proxy, "echo", request.replace(b"Echo", b"websocket")) as connection:
            assert read_head(connection).startswith(b"HTTP/1.1 403 "), (proxy.kind, "that was not named")
        # RFC 9110 7.8: in HTTP/1.0 it is no wish.
        assert upstream.forget() == 0


H2C = b"connection: %b\r\nupgrade: %b\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
"""RFC 7540 3.2, which RFC 9113 3.1 has made obsolete."""


@pytest.mark.parametrize("name", ["nothing is configured", "echo"])
@pytest.mark.parametrize("protocol", [b"h2c", b"H2C"])
def test_a_wish_for_http2_ends_here(
    proxies: tuple[Static, Static], upstream: Upstream, name: str, protocol: bytes
) -> None:
    """Whoever grants it would speak HTTP/2 behind the proxy's back. The request is one of HTTP/1.1, and so is what follows it."""
    for connection in (b"upgrade, http2-settings", b"HTTP2-Settings, Upgrade"):
        head = b"POST /1 HTTP/1.1\r\nhost: up\r\ncontent-length: 4\r\n" + H2C % (connection, protocol) + b"\r\n"
        following = b"GET /2 HTTP/1.1\r\nhost: up\r\n\r\n"
        for proxy in proxies:
            with client(proxy, name, head, b"body", following) as asking, upstream.accept() as peer:
                for path, body in ((b"POST /1 ", b"body"), (b"GET /2 ", b"")):
                    request = read_head(peer)
                    assert request.startswith(path + b"HTTP/1.1\r\n"), proxy.kind
                    assert not fields_of(request).keys() & {b"connection", b"upgrade", b"http2-settings"}, proxy.kind
                    expect(peer, body)
                    peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                    assert read_head(asking).startswith(b"HTTP/1.1 204 "), proxy.kind
            assert upstream.forget() == 0, proxy.kind
