"""Clusters of type ORIGINAL_DST: a connection goes on to where it was going, at stock Envoy and at weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, file_log, http_filters, listener, records, typed
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import read_head, read_rest

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

HOSTS = ("127.0.0.1", "127.0.0.2")
"""Of the destinations, which have the same port."""

LISTENERS = ("http", "tcp", "plain http", "plain tcp")
"""The first two are told by the PROXY protocol where a connection was going; nothing tells the others."""

FIELDS = {"flags": "%RESPONSE_FLAGS%", "upstream": "%UPSTREAM_HOST%"}


class Destination(socketserver.BaseRequestHandler):
    """Answers HTTP, and whatever else begins with a line, with where it is; HTTP on every request of a connection."""

    def handle(self) -> None:
        here = self.request.getsockname()[0].encode()
        while first := self.request.recv(4, socket.MSG_PEEK):
            if first != b"GET ":
                self.request.sendall(here + b" " + self.request.recv(100))
                return
            read_head(self.request)
            self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(here), here))


@dataclass(frozen=True)
class Running:
    proxies: tuple[Static, Static]
    port: int
    directory: Path

    def log(self, proxy: Static, name: str) -> Path:
        return self.directory / f"{proxy.ports[name]}.log"

    def going_to(self, proxy: Static, name: str, host: str) -> socket.socket:
        """Connect to the listener *name* on the way to *host*."""
        connection = socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)
        connection.sendall(f"PROXY TCP4 192.0.2.1 {host} 40000 {self.port}\r\n".encode())
        return connection


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("original")
    header = {"name": "proxy_protocol", "typed_config": typed("filters.listener.proxy_protocol.v3.ProxyProtocol")}

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, port in ports.items():
            log = file_log(directory / f"{port}.log", FIELDS)
            if name.endswith("http"):
                filters = http_filters(
                    [{"match": {"prefix": "/"}, "route": {"cluster": "original"}}], manager={"access_log": log}
                )
            else:
                proxy = typed(
                    "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="original", access_log=log
                )
                filters = [{"name": "tcp", "typed_config": proxy}]
            made.append(
                listener(name, port, filters, **({} if name.startswith("plain") else {"listener_filters": [header]}))
            )
        original = {
            "name": "original",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "5s",
        }
        return {"clusters": [original], "listeners": made}

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socketserver.ThreadingTCPServer((HOSTS[0], 0), Destination))]
        port = int(servers[0].server_address[1])
        servers += [
            stack.enter_context(socketserver.ThreadingTCPServer((host, port), Destination)) for host in HOSTS[1:]
        ]
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
        proxies = stack.enter_context(both(directory, LISTENERS, resources))
        yield Running(proxies, port, directory)


def test_each_connection_of_http_goes_on_to_its_own_destination(running: Running) -> None:
    """Also while others of the same cluster are kept: a request is for the destination of its own client alone."""
    for proxy in running.proxies:
        with contextlib.ExitStack() as stack:
            clients = []
            for host in HOSTS:
                client = http.client.HTTPConnection("up")
                client.sock = stack.enter_context(running.going_to(proxy, "http", host))
                clients.append((host, client))
            for host, client in clients * 2:
                client.request("GET", "/")
                assert client.getresponse().read().decode() == host, proxy.kind
        log = running.log(proxy, "http")
        until("all is recorded", lambda log=log: len(records(log)) == 2 * len(HOSTS))
        expected = [{"flags": "-", "upstream": f"{host}:{running.port}"} for host in HOSTS * 2]
        assert records(log) == expected, proxy.kind


def test_each_connection_of_tcp_goes_on_to_its_own_destination(running: Running) -> None:
    for proxy in running.proxies:
        for host in HOSTS:
            with running.going_to(proxy, "tcp", host) as client:
                client.sendall(b"hello\n")
                assert read_rest(client) == host.encode() + b" hello\n", proxy.kind
        log = running.log(proxy, "tcp")
        until("all is recorded", lambda log=log: len(records(log)) == len(HOSTS))
        assert records(log) == [{"flags": "-", "upstream": f"{host}:{running.port}"} for host in HOSTS], proxy.kind


@pytest.mark.parametrize("name", [name for name in LISTENERS if name.startswith("plain")])
def test_who_called_the_proxy_itself_was_going_nowhere(running: Running, name: str) -> None:
    """It is not led to the proxy again, and again by that: there is no upstream."""
    for proxy in running.proxies:
        answer = b""
        # TCP may be closed at once: before the client has written, or even looked whether it is connected.
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
            answer = read_rest(client)
        assert answer.startswith(b"HTTP/1.1 503 ") if name.endswith("http") else answer == b"", proxy.kind
        log = running.log(proxy, name)
        until("it is recorded", lambda log=log: bool(records(log)))
        assert records(log) == [{"flags": "UH", "upstream": None}], proxy.kind
