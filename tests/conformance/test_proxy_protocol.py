"""HAProxy, whose protocol it is, hands connections to either data plane and takes them from it, with the client's address in front."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static
from tests.conftest import program_or_skip
from tests.ports import free_port, until_listening

pytestmark = pytest.mark.conformance

VERSIONS = ("V1", "V2")
"""In which upstreams are told; of each a listener of that name."""

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
    """Ports of HAProxy, by the data plane it leads to, what it sends and what the data plane's upstream is told."""


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("proxy_protocol")
    haproxy = program_or_skip("haproxy", "haproxy")
    behind = free_port()
    header = {"name": "proxy_protocol", "typed_config": typed("filters.listener.proxy_protocol.v3.ProxyProtocol")}

    def resources(ports: dict[str, int]) -> Json:
        clusters, made = [], []
        for version in VERSIONS:
            inner = {"name": "raw", "typed_config": typed("transport_sockets.raw_buffer.v3.RawBuffer")}
            transport = typed(
                "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
                config={"version": version},
                transport_socket=inner,
            )
            telling = {"name": "proxy_protocol", "typed_config": transport}
            clusters.append(cluster(version, behind, transport_socket=telling))
            filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": version}}])
            made.append(listener(version, ports[version], filters, listener_filters=[header]))
        return {"clusters": clusters, "listeners": made}

    with both(folder, VERSIONS, resources) as proxies:
        before = {
            (proxy.kind, send, version): free_port() for proxy in proxies for send in SENDS for version in VERSIONS
        }
        text = BEHIND.format(behind=behind)
        for proxy in proxies:
            for send in SENDS:
                for version in VERSIONS:
                    port = before[proxy.kind, send, version]
                    text += BEFORE.format(before=port, proxy=proxy.ports[version], send=send)
        path = folder / "haproxy.cfg"
        path.write_text(text)
        process = subprocess.Popen([haproxy, "-db", "-f", str(path)], stdin=subprocess.DEVNULL)
        try:
            for port in (behind, *before.values()):
                until_listening(port, process)
            yield Planes(proxies, before)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("send", SENDS)
def test_haproxy_and_a_data_plane_tell_each_other_the_same_client(planes: Planes, send: str, version: str) -> None:
    """client -> HAProxy -> data plane -> HAProxy: the last one knows the first one's client, whichever versions are between."""
    for proxy in planes.proxies:
        port = planes.before[proxy.kind, send, version]
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
        for version in VERSIONS:
            for size in (len(header) or 1, 5):  # at once, and in pieces
                with socket.create_connection(("127.0.0.1", proxy.ports[version]), LIMIT) as client:
                    own = f"127.0.0.1:{client.getsockname()[1]} 127.0.0.1:{proxy.ports[version]}"
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    answer = None
                    with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                        for start in range(0, len(header), size):
                            client.sendall(header[start : start + size])
                        client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
                        response = http.client.HTTPResponse(client)
                        response.begin()
                        answer = response.read().decode()
                    assert answer == (own if told == OWN else told), (proxy.kind, version, size)
