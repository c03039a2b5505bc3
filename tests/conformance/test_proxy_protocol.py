"""HAProxy, whose protocol it is, hands connections to either data plane and takes them from it, with the client's address in front."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.certificates import Authority, client_context, common_context, downstream, upstream
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Upstream, read_exactly, read_rest
from tests.conftest import program_or_skip
from tests.ports import free_port, until_listening

pytestmark = pytest.mark.conformance


class Way(NamedTuple):
    """What a listener makes of its connections, and how their upstream is told of them."""

    carries: str
    version: str
    inner: str
    """What follows the header."""


VERSIONS = ("V1", "V2")

WAYS = {" ".join(way): Way(*way) for way in itertools.product(("HTTP", "TCP"), VERSIONS, ("plain", "TLS"))}
"""Of each a listener of that name."""

EXPECTING: dict[str, Json] = {
    "either version": {},
    "version 1": {"disallowed_versions": ["V2"]},
    "version 2": {"disallowed_versions": ["V1"]},
    "either version, or none": {"allow_requests_without_proxy_protocol": True},
    "version 1, or none": {"allow_requests_without_proxy_protocol": True, "disallowed_versions": ["V2"]},
    "version 2, or none": {"allow_requests_without_proxy_protocol": True, "disallowed_versions": ["V1"]},
}
"""What the filter of a listener of that name, which carries bytes, is told."""

INSPECTOR = {"name": "tls", "typed_config": typed("filters.listener.tls_inspector.v3.TlsInspector")}

SEALED: dict[str, list[Json]] = {"TLS": [], "TLS that is looked for": [INSPECTOR]}
"""What the listeners of that name, which end TLS, look at behind a header."""

SENDS = ("send-proxy", "send-proxy-v2 proxy-v2-options unique-id,crc32c")
"""In which HAProxy tells."""

# What it answers is what it was told: the client's end and the end that the client connected to.
BEHIND = """
defaults
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend behind
    mode http
    bind 127.0.0.1:{behind} accept-proxy
    bind 127.0.0.1:{sealed} accept-proxy ssl crt {identity}
    http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]"
"""

BEFORE = """
listen {before}
    mode tcp
    bind 127.0.0.1:{before}
    server proxy 127.0.0.1:{proxy} {send}
"""


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    before: dict[tuple[str, str, str], int]
    """Ports of HAProxy, by the data plane it leads to, what it sends and the listener there."""
    up: Upstream
    """Behind the listeners of `EXPECTING`; it is told in version 1."""
    client: ssl.SSLContext
    """Whom the listeners of `SEALED` let in."""


def carrying(to: str) -> list[Json]:
    return [{"name": "tcp", "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=to, cluster=to)}]


def telling(version: str, inner: Json) -> Json:
    """The transport socket of a cluster whose endpoints are told in *version*, before what *inner* does."""
    config = typed(
        "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        config={"version": version},
        transport_socket=inner,
    )
    return {"name": "proxy_protocol", "typed_config": config}


def expecting(**fields: object) -> list[Json]:
    """The filters of a listener that expects a header, with *fields*."""
    config = typed("filters.listener.proxy_protocol.v3.ProxyProtocol", **fields)
    return [{"name": "proxy_protocol", "typed_config": config}]


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("proxy_protocol")
    haproxy = program_or_skip("haproxy", "haproxy")
    authority = Authority(folder / "certificates")
    identity = folder / "identity.pem"
    identity.write_text("".join(path.read_text() for path in authority.issue("behind", x509.DNSName("localhost"))))
    plain = {"name": "raw", "typed_config": typed("transport_sockets.raw_buffer.v3.RawBuffer")}
    sealing = upstream(common_context(authority.issue("proxy"), authority.roots.read_text()), sni="localhost")
    behind = {"plain": (free_port(), plain), "TLS": (free_port(), sealing)}
    own = downstream(common_context(authority.issue("own", x509.DNSName("localhost")), authority.roots.read_text()))
    up = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        clusters = [cluster("up", up.port, transport_socket=telling("V1", plain))]
        clusters += [
            cluster(f"{version} {inner}", port, transport_socket=telling(version, content))
            for version in VERSIONS
            for inner, (port, content) in behind.items()
        ]
        made = [
            listener(name, ports[name], carrying("up"), listener_filters=expecting(**fields))
            for name, fields in EXPECTING.items()
        ]
        for name, way in WAYS.items():
            to = f"{way.version} {way.inner}"
            routed = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": to}}])
            filters = routed if way.carries == "HTTP" else carrying(to)
            made.append(listener(name, ports[name], filters, listener_filters=expecting()))
        for name, more in SEALED.items():
            routed = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "V1 plain"}}])
            made.append(listener(name, ports[name], routed, listener_filters=[*expecting(), *more]))
            made[-1]["filter_chains"][0]["transport_socket"] = own
        return {"clusters": clusters, "listeners": made}

    with up.socket, both(folder, (*WAYS, *EXPECTING, *SEALED), resources) as proxies:
        before = {(proxy.kind, send, name): free_port() for proxy in proxies for send in SENDS for name in WAYS}
        text = BEHIND.format(behind=behind["plain"][0], sealed=behind["TLS"][0], identity=identity)
        for proxy in proxies:
            for send, name in itertools.product(SENDS, WAYS):
                port = before[proxy.kind, send, name]
                text += BEFORE.format(before=port, proxy=proxy.ports[name], send=send)
        path = folder / "haproxy.cfg"
        path.write_text(text)
        process = subprocess.Popen([haproxy, "-db", "-f", str(path)], stdin=subprocess.DEVNULL)
        try:
            for port in (behind["plain"][0], behind["TLS"][0], *before.values()):
                until_listening(port, process)
            yield Planes(proxies, before, up, client_context(authority, authority.issue("client")))
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("send", SENDS)
def test_haproxy_and_a_data_plane_tell_each_other_the_same_client(planes: Planes, send: str, name: str) -> None:
    """client -> HAProxy -> data plane -> HAProxy: the last one knows the first one's client, whichever versions are between."""
    for proxy in planes.proxies:
        port = planes.before[proxy.kind, send, name]
        # Two clients, and two requests of each: nobody is told another's address.
        clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT) for _ in range(2)]
        for client in clients * 2:
            client.request("GET", "/")
            answer = client.getresponse().read().decode()
            assert client.sock is not None
            assert answer == f"127.0.0.1:{client.sock.getsockname()[1]} 127.0.0.1:{port}", proxy.kind
        for client in clients:
            client.close()


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
OWN = "its own"

HEADERS: dict[str, tuple[bytes, str | None]] = {
    "version 1": (b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 4430\r\n", "192.0.2.1:56324 198.51.100.7:4430"),
    "version 1 of IPv6": (b"PROXY TCP6 2001:db8::1 2001:db8::7 56324 4430\r\n", "2001:db8::1:56324 2001:db8::7:4430"),
    "version 2, with an addition": (
        SIGNATURE + b"\x21\x11\0\x0f\xc0\0\x02\x01\xc6\x33\x64\x07\xdc\x04\x11\x4e\x04\0\0",
        "192.0.2.1:56324 198.51.100.7:4430",
    ),
    "version 2, who speaks for itself": (SIGNATURE + b"\x20\0\0\0", OWN),
    "version 1, who speaks for itself": (b"PROXY UNKNOWN 1.2.3.4 whatever\r\n", OWN),
    "none": (b"", None),
    "version 3": (SIGNATURE + b"\x31\x11\0\0", None),
    "version 1, cut short": (b"PROXY TCP4 192.0.2.1\r\n", None),
    "version 1, a port too high": (b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 4430\r\n", None),
    "version 1 that never ends": (b"PROXY " + b"A" * 200, None),
}
"""By name: what a connection begins with, and what the upstream is told then; `None`: it is closed."""


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_believed_or_ends_its_connection(planes: Planes, name: str) -> None:
    header, told = HEADERS[name]
    for proxy in planes.proxies:
        for way in WAYS:
            for size in (len(header) or 1, 5):  # at once, and in pieces
                with socket.create_connection(("127.0.0.1", proxy.ports[way]), LIMIT) as client:
                    own = f"127.0.0.1:{client.getsockname()[1]} 127.0.0.1:{proxy.ports[way]}"
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    answer = None
                    with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                        for start in range(0, len(header), size):
                            client.sendall(header[start : start + size])
                        client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
                        response = http.client.HTTPResponse(client)
                        response.begin()
                        answer = response.read().decode()
                    assert answer == (own if told == OWN else told), (proxy.kind, way, size)


@pytest.mark.parametrize("name", ["version 1", "version 1 of IPv6", "version 2, with an addition"])
@pytest.mark.parametrize("to", SEALED)
def test_a_header_stands_before_tls(planes: Planes, to: str, name: str) -> None:
    """In one packet with the ClientHello, which is for TLS then, and apart."""
    header, told = HEADERS[name]
    for proxy in planes.proxies:
        for flags in (socket.MSG_MORE, 0):  # with what follows, and at once
            with socket.create_connection(("127.0.0.1", proxy.ports[to]), LIMIT) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                plain.sendall(header, flags)
                with planes.client.wrap_socket(plain, server_hostname="localhost") as client:
                    client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
                    response = http.client.HTTPResponse(client)
                    response.begin()
                    assert response.read().decode() == told, (proxy.kind, flags)


BEGINNINGS = {
    "version 1": HEADERS["version 1"][0],
    "version 2": HEADERS["version 2, with an addition"][0],
    # None, though the first bytes may be those of a header. Where there must be one Envoy says so after the 16 of version 2.
    "a request that begins with P": b"PROPFIND / HTTP/1.1\r\n\r\n",
    "empty lines": b"\r\n\r\n\0" + bytes(16),
    "other bytes": b"GET / HTTP/1.1\r\n\r\n",
}
"""By name: what a connection begins with, before an `x`."""


def passes(expected: str, name: str, client: int, proxy: int) -> bytes | None:
    """What comes to the upstream of a connection that begins as *name* says, by what is expected of it; `None`: nothing does."""
    first = BEGINNINGS[name]
    own = b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (client, proxy)
    if name in {"version 1", "version 2"} and (name in expected or "either" in expected):
        return BEGINNINGS["version 1"] + b"x"
    # What is not looked for is no header, if there may be none.
    return own + first + b"x" if "none" in expected else None


@pytest.mark.parametrize("name", BEGINNINGS)
@pytest.mark.parametrize("expected", EXPECTING)
def test_a_header_must_be_there_in_a_version_that_is_allowed(planes: Planes, expected: str, name: str) -> None:
    planes.up.forget()
    for proxy in planes.proxies:
        port = proxy.ports[expected]
        for size in (len(BEGINNINGS[name]), 1):  # at once, and in pieces
            with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(ConnectionError):
                    for start in range(0, len(BEGINNINGS[name]), size):
                        client.sendall(BEGINNINGS[name][start : start + size])
                    client.sendall(b"x")
                wanted = passes(expected, name, client.getsockname()[1], port)
                if wanted is None:
                    assert read_rest(client) == b"", (proxy.kind, size)
                    continue
                with planes.up.accept() as peer:
                    assert read_exactly(peer, len(wanted)) == wanted, (proxy.kind, size)
                    peer.sendall(b"y")
                    assert read_exactly(client, 1) == b"y", (proxy.kind, size)
        assert planes.up.forget() == 0, proxy.kind
