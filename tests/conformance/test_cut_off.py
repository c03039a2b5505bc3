"""What is under way when the process ends and does not wait for it: what stock Envoy and weft-proxy record, in one run."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from tests.conformance import frames
from tests.conformance.both import Json, both, cluster, file_log, http_filters, listener, records, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_exactly, read_head, several
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

FIELDS = {
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "cluster": "%UPSTREAM_CLUSTER%",
}

BEGUN = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"

UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
"""With the key of RFC 6455 1.3."""

ASKED, ANSWERED = b"question", b"answer"

EXPECTED = [
    {"path": "/before", "status": 0, "received": 0, "sent": 0},
    {"path": "/chat", "status": 101, "received": len(ASKED), "sent": len(ANSWERED)},
    {"path": "/stream", "status": 0, "received": 0, "sent": 0},
    {"path": "/within", "status": 200, "received": 0, "sent": len(ANSWERED)},
]

REASONS = {WEFT_PROXY: "cut_off", ENVOY: "purging_socket_that_have_not_progressed_to_connections"}
"""Why each has closed the client's connection, in its own words. Envoy's are those of its source, for all that its listener has left."""


def request(path: str, more: bytes = b"") -> bytes:
    return b"GET " + path.encode() + b" HTTP/1.1\r\nhost: up\r\n" + more + b"\r\n"


def stream(path: str) -> bytes:
    """A connection of HTTP/2 and its first request."""
    fields = frames.fields(*frames.GET[:2], (b":path", path.encode()), frames.GET[3])
    head = frames.frame(frames.HEADERS, frames.END_STREAM | frames.END_HEADERS, 1, fields)
    return frames.PREFACE + frames.settings({}) + head


def exchange(client: socket.socket, peer: socket.socket) -> None:
    """A word each way."""
    client.sendall(ASKED)
    assert read_exactly(peer, len(ASKED)) == ASKED
    peer.sendall(ANSWERED)
    assert read_exactly(client, len(ANSWERED)) == ANSWERED


def end(proxy: Static) -> None:
    """Have it end with what is under way. weft-proxy drains first, until it is told once more."""
    proxy.process.terminate()
    if proxy.kind == WEFT_PROXY:
        until("it drains", lambda: proxy.ask("/ready").startswith("DRAINING"))
        proxy.process.terminate()
    assert proxy.process.wait(LIMIT) == 0, proxy.kind


def test_each_request_and_connection_leaves_its_record(tmp_path: Path) -> None:
    """In whichever place it is; and the records are there when the process has ended."""

    def log(ports: dict[str, int], name: str) -> Path:
        return tmp_path / f"{ports[name]}.log"

    with several(("up", "bytes")) as upstreams:
        up, peers = upstreams["up"], upstreams["bytes"]

        def resources(ports: dict[str, int]) -> Json:
            manager = {
                "access_log": file_log(log(ports, "http"), FIELDS),
                "upgrade_configs": [{"upgrade_type": "websocket"}],
            }
            routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}]
            to_bytes = typed(
                "filters.network.tcp_proxy.v3.TcpProxy",
                stat_prefix="tcp",
                cluster="bytes",
                access_log=file_log(log(ports, "tcp"), FIELDS),
            )
            listeners = [
                listener("http", ports["http"], http_filters(routes, manager=manager)),
                listener("tcp", ports["tcp"], [{"name": "tcp", "typed_config": to_bytes}]),
            ]
            return {"clusters": [cluster(name, it.port) for name, it in upstreams.items()], "listeners": listeners}

        with both(tmp_path, ("http", "tcp"), resources) as proxies:
            for proxy in proxies:
                with contextlib.ExitStack() as stack:
                    under_way(proxy, up, peers, stack)
                    end(proxy)
                found = sorted(records(log(proxy.ports, "http")), key=lambda record: str(record["path"]))
                details = f"downstream_local_disconnect({REASONS[proxy.kind]})"
                common = {"flags": "DC", "details": details, "cluster": "up"}
                assert found == [record | common for record in EXPECTED], proxy.kind
                (carried,) = records(log(proxy.ports, "tcp"))
                counts = {"received": len(ASKED), "sent": len(ANSWERED)}
                nothing = {"path": None, "status": 0, "flags": "-", "details": None}
                assert carried == nothing | counts | {"cluster": "bytes"}, proxy.kind


def under_way(proxy: Static, up: Upstream, peers: Upstream, stack: contextlib.ExitStack) -> None:
    """Begin what EXPECTED tells of, and a connection of TCP, and leave it open as long as *stack* is."""

    def connect(name: str) -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT))

    def ask(message: bytes) -> tuple[socket.socket, socket.socket]:
        """Both ends of a request that its upstream has read."""
        client = connect("http")
        client.sendall(message)
        peer = stack.enter_context(up.accept())
        read_head(peer)
        return client, peer

    ask(request("/before"))
    ask(stream("/stream"))
    client, peer = ask(request("/within"))
    peer.sendall(BEGUN + ANSWERED)
    read_head(client)
    assert read_exactly(client, len(ANSWERED)) == ANSWERED
    client, peer = ask(request("/chat", UPGRADE))
    peer.sendall(SWITCHED)
    assert read_head(client).startswith(b"HTTP/1.1 101 ")
    exchange(client, peer)
    exchange(connect("tcp"), stack.enter_context(peers.accept()))
