"""Both data planes are asked to drain by their admin interfaces, in one run, for a successor that has their sockets."""

from __future__ import annotations

import contextlib
import http.client
import select
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.certificates import Authority, client_context, common_context, downstream
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_answer, read_exactly, read_rest, several
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

LISTENERS = "http", "tcp"

GET = b"GET / HTTP/1.1\r\nhost: up\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
LAST = 200, b"hello", True
"""An answer that says that it is the last of its connection."""


@contextlib.contextmanager
def running(directory: Path) -> Iterator[tuple[tuple[Static, Static], dict[str, Upstream]]]:
    """Both data planes, with a listener of HTTP and one of TCP, and their upstreams."""
    with several(LISTENERS) as upstreams:

        def resources(ports: dict[str, int]) -> Json:
            filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "http", "timeout": "0s"}}])
            proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="tcp")
            bytes_alone = [{"name": "tcp", "typed_config": proxy}]
            return {
                "clusters": [cluster(name, upstream.port) for name, upstream in upstreams.items()],
                "listeners": [listener("http", ports["http"], filters), listener("tcp", ports["tcp"], bytes_alone)],
            }

        with both(directory, LISTENERS, resources) as proxies:
            yield proxies, upstreams


def connect(proxy: Static, name: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)


def is_refused(proxy: Static) -> bool:
    with contextlib.suppress(ConnectionRefusedError), connect(proxy, "http"):
        return False
    return True


def carry(upstream: Upstream, client: socket.socket) -> socket.socket:
    """Send something by a connection of TCP, and return the end where that comes out; others have only been tried."""
    client.sendall(b"one")
    while True:
        server = upstream.accept()
        if read_exactly(server, 3):
            return server
        server.close()


def test_what_is_open_goes_on_until_its_clients_are_answered(tmp_path: Path) -> None:
    """A request that is under way, a connection at rest, one of TCP; and one that comes later."""
    with running(tmp_path) as (proxies, upstreams):
        for proxy in proxies:
            http = upstreams["http"]
            with (
                connect(proxy, "http") as under_way,
                connect(proxy, "http") as resting,
                connect(proxy, "tcp") as carried,
            ):
                resting.sendall(GET)
                with http.taken() as server:
                    server.sendall(HELLO)
                assert read_answer(resting) == (200, b"hello", False)
                with carry(upstreams["tcp"], carried) as other_end:
                    under_way.sendall(GET)
                    with http.taken() as server:
                        # As its agent does it when a successor has taken over; Envoy tells clients at once only if its
                        # health check fails, too.
                        if proxy.kind == ENVOY:
                            proxy.ask("/healthcheck/fail", "POST")
                        proxy.ask("/drain_listeners?graceful", "POST")
                        assert proxy.ask("/ready") == "DRAINING\n"
                        if proxy.kind == WEFT_PROXY:
                            # Who comes is the successor's, who has the same sockets. Here there is none.
                            until("nobody listens", lambda proxy=proxy: is_refused(proxy))
                        server.sendall(HELLO)
                    assert read_answer(under_way) == LAST, proxy.kind
                    assert read_rest(under_way) == b""
                    other_end.sendall(b"two")
                    assert read_exactly(carried, 3) == b"two"
                if proxy.kind == ENVOY:
                    # It takes who comes, until all of its connections have been told.
                    with connect(proxy, "http") as late:
                        late.sendall(GET)
                        with http.taken() as server:
                            server.sendall(HELLO)
                        assert read_answer(late) == LAST
                resting.sendall(GET)
                with http.taken() as server:
                    server.sendall(HELLO)
                assert read_answer(resting) == LAST, proxy.kind
                assert read_rest(resting) == b""


def test_who_comes_too_late_is_refused(tmp_path: Path) -> None:
    """Where no successor is said to be there nobody listens any more, and what is under way is answered all the same."""
    with running(tmp_path) as (proxies, upstreams):
        for proxy in proxies:
            with connect(proxy, "http") as under_way:
                under_way.sendall(GET)
                with upstreams["http"].taken() as server:
                    proxy.ask("/drain_listeners", "POST")
                    until("nobody listens", lambda proxy=proxy: is_refused(proxy))
                    server.sendall(HELLO)
                # Envoy answers on, by the connections that it has.
                assert read_answer(under_way) == (200, b"hello", proxy.kind == WEFT_PROXY)


def test_weft_proxy_that_is_asked_to_end_finishes_what_was_begun_and_envoy_ends_at_once(tmp_path: Path) -> None:
    """
    By SIGTERM, in this order: nobody listens, who is at rest is let go, who waits is answered for the last time, the process ends.

    Envoy's agent has to drain it before (docs/reference/data-planes.md).
    """
    with running(tmp_path) as (proxies, upstreams):
        for proxy in proxies:
            http = upstreams["http"]
            with connect(proxy, "http") as under_way, connect(proxy, "http") as resting:
                resting.sendall(GET)
                with http.taken() as server:
                    server.sendall(HELLO)
                assert read_answer(resting) == (200, b"hello", False)
                under_way.sendall(GET)
                with http.taken() as server:
                    proxy.process.send_signal(signal.SIGTERM)
                    until("nobody listens", lambda proxy=proxy: is_refused(proxy))
                    assert read_rest(resting) == b"", proxy.kind
                    if proxy.kind == WEFT_PROXY:
                        assert proxy.ask("/ready") == "DRAINING\n"
                        server.sendall(HELLO)
                        assert read_answer(under_way) == LAST
                    assert read_rest(under_way) == b"", proxy.kind
                    assert proxy.process.wait(LIMIT) == 0, proxy.kind


def test_a_handshake_that_is_under_way_is_ended_and_answered(tmp_path: Path) -> None:
    """Weft-proxy is told to end, and does it when the client is gone; Envoy, which would end at once, to accept no more."""
    authority = Authority(tmp_path / "certificates")
    identity = authority.issue("server", x509.DNSName("localhost"))
    secure = downstream(common_context(identity, authority.roots.read_text()), require_client_certificate=False)

    def resources(ports: dict[str, int]) -> Json:
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}
        it = listener("http", ports["http"], http_filters([answer]))
        it["filter_chains"][0]["transport_socket"] = secure
        return {"listeners": [it]}

    context = client_context(authority, None)
    with both(tmp_path, ("http",), resources) as proxies:
        for proxy in proxies:
            with (
                connect(proxy, "http") as plain,
                context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname="localhost") as client,
            ):
                client.setblocking(False)
                # What it says leaves after this call, which else may find the answer, and be done.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                with pytest.raises(ssl.SSLWantReadError):
                    client.do_handshake()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                # The handshake has begun once something has come back.
                assert select.select([client], [], [], LIMIT)[0], proxy.kind
                if proxy.kind == WEFT_PROXY:
                    proxy.process.terminate()
                else:
                    proxy.ask("/drain_listeners", "POST")
                until("nobody listens", lambda proxy=proxy: is_refused(proxy))
                client.settimeout(LIMIT)
                client.do_handshake()
                client.sendall(GET)
                answer = http.client.HTTPResponse(client)
                answer.begin()
                assert (answer.status, answer.read()) == (200, b"hello"), proxy.kind
