"""
At a cluster's limits: connections of bytes are refused at once, requests and CONNECT tunnels wait in a queue that has a limit of its own.

Stock Envoy and weft-proxy, in one run.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Json, address, both, http_filters, listener, typed
from tests.conformance.proxies import LIMIT, Static, until

pytestmark = pytest.mark.conformance

FIELDS = {
    "flags": "%RESPONSE_FLAGS%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "status": "%RESPONSE_CODE%",
    "upstream": "%UPSTREAM_HOST%",
    "received": "%BYTES_RECEIVED%",
}
LISTENERS = ("bytes", "tunnel", "http")


def access_log(directory: Path, port: int) -> list[Json]:
    log = typed(
        "access_loggers.file.v3.FileAccessLog",
        path=str(directory / f"{port}.log"),
        log_format={"json_format": FIELDS},
    )
    return [{"name": "file", "typed_config": log}]


@contextlib.contextmanager
def limited(directory: Path, upstream: Upstream, **thresholds: int) -> Iterator[tuple[Static, Static]]:
    """Both proxies with these listeners before one endpoint, each with a cluster of its own that has these limits."""

    def resources(ports: dict[str, int]) -> Json:
        proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="bytes", cluster="bytes")
        proxy["access_log"] = access_log(directory, ports["bytes"])
        connect = {"upgrade_type": "CONNECT", "connect_config": {}}
        tunnel = http_filters(
            [{"match": {"connect_matcher": {}}, "route": {"cluster": "tunnel", "upgrade_configs": [connect]}}]
        )
        http = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "http", "timeout": "0s"}}])
        for name, filters in (("tunnel", tunnel), ("http", http)):
            filters[0]["typed_config"]["access_log"] = access_log(directory, ports[name])
        at = {"endpoint": {"address": address(upstream.port)}}
        return {
            "listeners": [
                listener("bytes", ports["bytes"], [{"name": "bytes", "typed_config": proxy}]),
                listener("tunnel", ports["tunnel"], tunnel),
                listener("http", ports["http"], http),
            ],
            "clusters": [
                {
                    "name": name,
                    "connect_timeout": "3600s",
                    "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [at]}]},
                    "circuit_breakers": {"thresholds": [thresholds]},
                }
                for name in LISTENERS
            ],
        }

    with both(directory, LISTENERS, resources) as proxies:
        yield proxies


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    """What closes them at the end."""
    with contextlib.ExitStack() as stack:
        yield stack


def call(sockets: contextlib.ExitStack, proxy: Static, name: str) -> socket.socket:
    return sockets.enter_context(socket.create_connection(("127.0.0.1", proxy.ports[name]), timeout=LIMIT))


def records(directory: Path, proxy: Static, name: str) -> list[Json]:
    log = directory / f"{proxy.ports[name]}.log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def recorded(directory: Path, proxy: Static, name: str, count: int) -> list[Json]:
    """Return what *proxy* has recorded, once there are so many."""
    until(f"{proxy.kind} has {count} records of {name}", lambda: len(records(directory, proxy, name)) >= count)
    found = records(directory, proxy, name)
    assert len(found) == count, found
    return found


class Upstream:
    """A server whose connections are taken by hand."""

    def __init__(self, sockets: contextlib.ExitStack) -> None:
        self.sockets = sockets
        self.socket = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.socket.settimeout(LIMIT)
        self.port = int(self.socket.getsockname()[1])

    def take(self) -> socket.socket:
        connection = self.sockets.enter_context(self.socket.accept()[0])
        connection.settimeout(LIMIT)
        return connection


def ask_for_tunnel(sockets: contextlib.ExitStack, proxy: Static) -> socket.socket:
    client = call(sockets, proxy, "tunnel")
    client.sendall(b"CONNECT up:1 HTTP/1.1\r\nhost: up:1\r\n\r\n")
    return client


def ask(sockets: contextlib.ExitStack, proxy: Static) -> socket.socket:
    client = call(sockets, proxy, "http")
    client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
    return client


def status(client: socket.socket) -> str:
    """The status of the answer, whose head comes at once."""
    return client.recv(4096).split(b" ")[1].decode()


def test_a_connection_of_bytes_too_many_is_refused_at_once(tmp_path: Path, sockets: contextlib.ExitStack) -> None:
    """None waits for another to end, none is made for a client that has gone, and no endpoint is named."""
    upstream = Upstream(sockets)
    with limited(tmp_path, upstream, max_connections=1) as proxies:
        for proxy in proxies:
            first = call(sockets, proxy, "bytes")
            server = upstream.take()
            with contextlib.suppress(ConnectionError):
                second = call(sockets, proxy, "bytes")
                second.sendall(b"for nobody")
                assert second.recv(1) == b""
            (record,) = recorded(tmp_path, proxy, "bytes", 1)
            assert (record["flags"], record["upstream"], record["received"]) == ("UO", None, 0), proxy.kind
            # What is there goes on.
            first.sendall(b"x")
            assert server.recv(1) == b"x", proxy.kind
            first.close()
            server.close()
            recorded(tmp_path, proxy, "bytes", 2)
            third = call(sockets, proxy, "bytes")
            third.sendall(b"y")
            server = upstream.take()
            assert server.recv(10) == b"y", proxy.kind
            third.close()
            server.close()


@pytest.mark.parametrize("name", ["tunnel", "http"])
def test_a_request_waits_in_a_queue_that_has_a_limit_and_leaves_it_with_its_client(
    tmp_path: Path, sockets: contextlib.ExitStack, name: str
) -> None:
    """Of HTTP/1, and of CONNECT, which asks for bytes but waits as a request."""
    upstream = Upstream(sockets)
    begin = ask_for_tunnel if name == "tunnel" else ask
    with limited(tmp_path, upstream, max_connections=1, max_pending_requests=1) as proxies:
        for proxy in proxies:
            first = begin(sockets, proxy)
            server = upstream.take()
            others = [begin(sockets, proxy), begin(sockets, proxy)]
            (refused, *_), _, _ = select.select(others, [], [], LIMIT)
            assert status(refused) == "503", proxy.kind
            [waiting] = [client for client in others if client is not refused]
            waiting.close()
            flags = [record["flags"] for record in recorded_until(tmp_path, proxy, name, "DC")]
            assert set(flags) == {"UO", "DC"}, (proxy.kind, flags)
            first.close()
            server.close()


def test_what_is_left_of_the_limits_is_told_where_it_is_to_be_tracked(
    tmp_path: Path, sockets: contextlib.ExitStack
) -> None:
    """Of a request in progress one connection and one request are taken, and given back when they end."""
    upstream = Upstream(sockets)
    most = {"max_connections": 5, "max_pending_requests": 6, "max_requests": 7, "max_retries": 8}
    with limited(tmp_path, upstream, track_remaining=True, **most) as proxies:
        for proxy in proxies:

            def remaining(proxy: Static = proxy) -> list[int]:
                names = ("cx", "pending", "rq", "retries")
                return [proxy.count(f"circuit_breakers_default_remaining_{name}", "http") for name in names]

            assert remaining() == [5, 6, 7, 8], proxy.kind
            client = ask(sockets, proxy)
            server = upstream.take()
            assert server.recv(4096).startswith(b"GET / "), proxy.kind
            assert remaining() == [4, 6, 6, 8], proxy.kind
            server.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            assert status(client) == "200", proxy.kind
            server.close()
            until(f"{proxy.kind} gives all back", lambda: remaining() == [5, 6, 7, 8])


def recorded_until(directory: Path, proxy: Static, name: str, flag: str) -> list[Json]:
    """Return what *proxy* has recorded, once there is one with this flag."""
    until(
        f"{proxy.kind} has a record of {name} with {flag}",
        lambda: any(record["flags"] == flag for record in records(directory, proxy, name)),
    )
    return records(directory, proxy, name)
