"""`auto_config`: the version by which endpoints are called is the one that they choose by ALPN. Both data planes, in one run."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener
from tests.conformance.certificates import Authority, Identity, common_context, server_context, upstream
from tests.conformance.frames import END_STREAM, HEADERS, Wire, status
from tests.conformance.proxies import Static
from tests.conformance.upstream import Accepting

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

HTTP1, HTTP2 = "HTTP/1.1", "HTTP/2"

OFFERS: dict[str, tuple[Sequence[str], str]] = {
    "h2 first": (("h2", "http/1.1"), HTTP2),
    "h2 only": (("h2",), HTTP2),
    "http1.1 first": (("http/1.1", "h2"), HTTP1),
    "http1.1 only": (("http/1.1",), HTTP1),
    "nothing": ((), HTTP1),
}
"""By name: what an upstream offers in its order of preference, and the version by which it is called."""


class Offering(Accepting):
    """An upstream over TLS that speaks the version of HTTP that has been agreed on, and answers with its name."""

    def __init__(self, context: ssl.SSLContext, protocols: Sequence[str]) -> None:
        self.context = context
        self.connections = 0
        if protocols:
            context.set_alpn_protocols(list(protocols))
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as peer:
            self.connections += 1
            if peer.selected_alpn_protocol() == "h2":
                wire = Wire.server(peer)
                for found in wire.rest():
                    if found.kind == HEADERS and found.flags & END_STREAM:
                        wire.answer(found.stream, HTTP2.encode())
            while read_head_of(peer):
                peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n" + HTTP1.encode())


def read_head_of(peer: ssl.SSLSocket) -> bytes:
    """Read a head; nothing follows it. (A connection over TLS has no bytes to peek at.)"""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (part := peer.recv(4096)):
        head += part
    return head


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    upstreams: dict[str, Offering]


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("alpn")
    authority = Authority(folder / "certificates")
    client, server = authority.issue("client"), authority.issue("server")
    common = common_context(client, authority.roots.read_text(), alpn_protocols=["h2", "http/1.1"])
    options = http_options(auto_config={"http_protocol_options": {}, "http2_protocol_options": {}})

    with contextlib.ExitStack() as stack:
        upstreams = {name: stack.enter_context(offering(authority, server, *OFFERS[name][0])) for name in OFFERS}

        def resources(ports: dict[str, int]) -> Json:
            clusters = [
                cluster(name, up.port, transport_socket=upstream(common), **options) for name, up in upstreams.items()
            ]
            listeners = [
                listener(name, port, http_filters([{"match": {"prefix": "/"}, "route": {"cluster": name}}]))
                for name, port in ports.items()
            ]
            return {"clusters": clusters, "listeners": listeners}

        yield Planes(stack.enter_context(both(folder, tuple(OFFERS), resources)), upstreams)


def offering(authority: Authority, identity: Identity, *protocols: str) -> Offering:
    return Offering(server_context(authority, identity), protocols)


@pytest.mark.parametrize("name", OFFERS)
def test_an_upstream_is_called_by_the_version_that_it_chooses(planes: Planes, name: str) -> None:
    """Whatever the client speaks; over one connection, as long as there is one request at a time."""
    expected = OFFERS[name][1]
    for proxy in planes.proxies:
        before = planes.upstreams[name].connections
        for _ in range(2):
            assert proxy.get(name) == (200, expected), proxy.kind
        with Wire.client(proxy.ports[name]) as client:
            client.get(1)
            assert status(client.next(HEADERS).payload) == 200, proxy.kind
            assert client.body(1).decode() == expected, proxy.kind
        assert planes.upstreams[name].connections == before + 1, proxy.kind
