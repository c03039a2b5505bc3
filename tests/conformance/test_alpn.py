"""ALPN towards upstreams: what is offered, and `auto_config`, where endpoints are called by the version that they choose of it.

Both data planes, in one run.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener, typed
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


AUTO = http_options(auto_config={"http_protocol_options": {}, "http2_protocol_options": {}})

UNLISTED: dict[str, tuple[Json, Sequence[str | None]]] = {
    "auto": (AUTO, ("h2", "http/1.1")),
    "http1": (http_options(explicit_http_config={"http_protocol_options": {}}), ("http/1.1", "http/1.1")),
    "http2": (http_options(explicit_http_config={"http2_protocol_options": {}}), ("h2", "h2")),
    "tcp": ({}, (None, None)),
}
"""By name: options of a cluster whose TLS lists no protocols, and what an upstream agrees to that prefers h2, or http/1.1."""


class Offering(Accepting):
    """An upstream over TLS that speaks the version of HTTP that has been agreed on, and answers with its name."""

    def __init__(self, context: ssl.SSLContext, protocols: Sequence[str]) -> None:
        self.context = context
        self.connections = 0
        self.agreed: set[str | None] = set()
        if protocols:
            context.set_alpn_protocols(list(protocols))
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as peer:
            self.connections += 1
            self.agreed.add(peer.selected_alpn_protocol())
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

    with contextlib.ExitStack() as stack:
        upstreams = {name: stack.enter_context(offering(authority, server, *OFFERS[name][0])) for name in OFFERS}

        def resources(ports: dict[str, int]) -> Json:
            clusters = [
                cluster(name, up.port, transport_socket=upstream(common), **AUTO) for name, up in upstreams.items()
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


@pytest.fixture
def preferring(tmp_path: Path) -> Iterator[tuple[Authority, Sequence[Offering]]]:
    """Upstreams that prefer h2 and http/1.1, and who certifies them."""
    authority = Authority(tmp_path / "certificates")
    server = authority.issue("server")
    with offering(authority, server, "h2", "http/1.1") as h2, offering(authority, server, "http/1.1", "h2") as http1:
        yield authority, (h2, http1)


@pytest.mark.parametrize("name", UNLISTED)
def test_without_a_list_the_versions_are_offered_that_the_upstream_may_be_called_by(
    preferring: tuple[Authority, Sequence[Offering]], name: str, tmp_path: Path
) -> None:
    """And none where it is not HTTP that is spoken, as far as the proxy knows."""
    authority, upstreams = preferring
    options, expected = UNLISTED[name]
    socket_options = upstream(common_context(authority.issue("client"), authority.roots.read_text()))

    def resources(ports: dict[str, int]) -> Json:
        clusters = [
            cluster(to, up.port, transport_socket=socket_options, **options)
            for to, up in zip(ports, upstreams, strict=True)
        ]
        return {
            "clusters": clusters,
            "listeners": [listener(to, port, passing(name, to)) for to, port in ports.items()],
        }

    with both(tmp_path, ("prefers h2", "prefers http1"), resources) as proxies:
        for proxy in proxies:
            for up in upstreams:
                up.agreed.clear()
            versions = [proxy.get(to) for to in proxy.ports]
            assert versions == [(200, HTTP2 if protocol == "h2" else HTTP1) for protocol in expected], proxy.kind
            assert [up.agreed for up in upstreams] == [{protocol} for protocol in expected], proxy.kind


def passing(kind: str, to: str) -> list[Json]:
    """The filters of a chain that passes all on to a cluster: requests, or bytes if *kind* is `tcp`."""
    if kind == "tcp":
        config = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster=to)
        return [{"name": "tcp", "typed_config": config}]
    return http_filters([{"match": {"prefix": "/"}, "route": {"cluster": to}}])
