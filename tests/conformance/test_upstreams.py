"""How endpoints are connected to: from which address, by a Unix socket, with keep-alive, and for how long. Both data planes, in one run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, http_options, listener, records
from tests.conformance.frames import DATA, END_STREAM, HEADERS, Wire
from tests.conformance.proxies import Static, until
from tests.conformance.telling import Teller, Telling, Told, telling
from tests.conformance.upstream import Upstream, read_head

pytestmark = pytest.mark.conformance

OF_BOOTSTRAP, OF_CLUSTER = "127.11.0.1", "127.11.0.2"
"""Addresses to connect from."""

TIME, INTERVAL, PROBES = 600, 7, 3
"""Seconds until the kernel asks whether an upstream is still there, seconds until it asks again, and how often it asks."""

LASTING = 0.5
"""Seconds for which a connection is used, or kept while nobody does."""

HTTP1, HTTP2 = "http_protocol_options", "http2_protocol_options"

ENDING = {
    "aging": (HTTP1, {"max_connection_duration": f"{LASTING}s"}),
    "idle": (HTTP1, {"idle_timeout": f"{LASTING}s"}),
    "idle over HTTP/2": (HTTP2, {"idle_timeout": f"{LASTING}s"}),
    "of two requests": (HTTP1, {"max_requests_per_connection": 2}),
    "of two requests over HTTP/2": (HTTP2, {"max_requests_per_connection": 2}),
}
"""Clusters whose connections end: the version of HTTP, and what is said of both versions."""


class OnPath(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Tells what reaches it, on a Unix socket."""

    daemon_threads = True
    heard: list[str]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()
        return connection, ("a path", 0)


def source(address: str) -> Json:
    return {"upstream_bind_config": {"source_address": {"address": address, "port_value": 0}}}


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    folder: Path
    path: Path
    told: Teller
    on_path: OnPath
    up: Upstream
    """For the listeners of keep-alive and of `ENDING`."""


LISTENERS = ("tcp", "own source", "path", "gone path", "kept alive", "not kept alive", *ENDING)


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("upstreams")
    path = folder / "app.sock"
    up = Upstream()

    def at(path: Path) -> Json:
        return {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}}]}]}

    def resources(ports: dict[str, int]) -> Json:
        keepalive = {"keepalive_time": TIME, "keepalive_interval": INTERVAL, "keepalive_probes": PROBES}
        clusters = [
            cluster("tcp", told.port),
            cluster("own source", told.port, **source(OF_CLUSTER)),
            cluster("path", load_assignment={"cluster_name": "path", **at(path)}),
            cluster("gone path", load_assignment={"cluster_name": "gone path", **at(folder / "nobody.sock")}),
            cluster("kept alive", up.port, upstream_connection_options={"tcp_keepalive": keepalive}),
            cluster("not kept alive", up.port),
        ]
        for name, (version, common) in ENDING.items():
            options = http_options(common_http_protocol_options=common, explicit_http_config={version: {}})
            clusters.append(cluster(name, up.port, **options))
        made = []
        for name in LISTENERS:
            log = file_log(folder / f"{ports[name]}.log", {"flags": "%RESPONSE_FLAGS%", "host": "%UPSTREAM_HOST%"})
            routes = [{"match": {"prefix": "/"}, "route": {"cluster": name}}]
            made.append(listener(name, ports[name], http_filters(routes, manager={"access_log": log})))
        return {"clusters": clusters, "listeners": made}

    with up.socket, telling() as told, OnPath(str(path), Telling) as on_path:
        on_path.heard = []
        threading.Thread(target=on_path.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        manager = {"cluster_manager": source(OF_BOOTSTRAP)}
        with both(folder, LISTENERS, resources, **manager) as running:
            yield Planes(running, folder, path, told, on_path, up)
        on_path.shutdown()


def record(planes: Planes, proxy: Static, name: str) -> Json:
    """Return the last record of *name*, of which there is one."""
    log = planes.folder / f"{proxy.ports[name]}.log"
    until("it is recorded", lambda: bool(records(log)))
    return records(log)[-1]


@pytest.mark.parametrize(("name", "address"), [("tcp", OF_BOOTSTRAP), ("own source", OF_CLUSTER)])
def test_connections_come_from_the_address_of_the_cluster_or_else_of_the_bootstrap(
    planes: Planes, name: str, address: str
) -> None:
    for proxy in planes.proxies:
        status, body = proxy.get(name)
        assert status == 200, proxy.kind
        # Port 0 is the kernel's choice.
        assert Told.of(body).client[0] == address, proxy.kind
        assert Told.of(body).client[1] != 0, proxy.kind


def test_an_upstream_may_be_a_unix_socket(planes: Planes) -> None:
    for proxy in planes.proxies:
        planes.on_path.heard.clear()
        for path in ("/1", "/2"):
            status, body = proxy.get("path", path)
            assert (status, Told.of(body).path) == (200, path), proxy.kind
        assert planes.on_path.heard == ["/1", "/2"], proxy.kind
        assert record(planes, proxy, "path") == {"flags": "-", "host": str(planes.path)}, proxy.kind


def test_a_unix_socket_that_is_not_there_is_a_failure_of_the_connection(planes: Planes) -> None:
    for proxy in planes.proxies:
        assert proxy.get("gone path")[0] == 503, proxy.kind
        assert record(planes, proxy, "gone path")["flags"].split(",")[0] == "UF", proxy.kind


def timer_of(port: int) -> tuple[int, float] | None:
    """The kernel's timer of who is connected to *port*, as `/proc/net/tcp` shows it (proc(5)): kind, and seconds that are left."""
    wanted = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (words[2], words[3]) == (wanted, "01"):  # established
            kind, left = words[5].split(":")
            return int(kind, 16), int(left, 16) / os.sysconf("SC_CLK_TCK")
    return None


NO_TIMER, KEEPALIVE = 0, 2

PIDFD_GETFD = 438
"""The number of pidfd_getfd(2), on every architecture."""


@contextlib.contextmanager
def socket_of(pid: int, port: int) -> Iterator[socket.socket]:
    """Yield the socket by which the process *pid* is connected to *port*: for as long as the block lasts it is ours, too."""
    process = os.pidfd_open(pid)
    try:
        for number in (int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()):
            descriptor = ctypes.CDLL(None).syscall(PIDFD_GETFD, process, number, 0)
            if descriptor < 0:
                continue
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                continue
            with socket.socket(fileno=descriptor) as found:
                try:
                    peer = found.getpeername()
                except OSError:  # it is connected to nobody
                    continue
                if peer == ("127.0.0.1", port):
                    yield found
                    return
    finally:
        os.close(process)
    raise AssertionError(f"nobody is connected to {port}")


@pytest.mark.parametrize("name", ["kept alive", "not kept alive"])
def test_connections_are_kept_alive_as_the_cluster_says(planes: Planes, name: str) -> None:
    for proxy in planes.proxies:
        with ask(planes, proxy, name) as peer:
            expected = KEEPALIVE if name == "kept alive" else NO_TIMER

            def rests(expected: int = expected) -> bool:
                timer = timer_of(planes.up.port)
                return timer is not None and timer[0] == expected

            until(f"{proxy.kind}: the connection rests", rests)
            timer = timer_of(planes.up.port)
            assert timer is not None
            if expected == KEEPALIVE:
                assert TIME / 2 < timer[1] <= TIME, proxy.kind
                with socket_of(proxy.process.pid, planes.up.port) as ours:
                    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                    told = [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options]
                assert told == [TIME, INTERVAL, PROBES], proxy.kind
            peer.close()
            until("it is gone", lambda: timer_of(planes.up.port) is None)


Peer = socket.socket | Wire
"""The upstream's end of a connection."""


@contextlib.contextmanager
def asking(proxy: Static, name: str) -> Iterator[None]:
    """Have a request under way; it is answered when the block has ended."""
    found: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: found.append(proxy.get(name)))
    thread.start()
    yield
    thread.join()
    assert found == [(200, "ok")], proxy.kind


def answer(peer: Peer, *, late: float = 0) -> None:
    """Take the next request, and answer it so many seconds *late*."""
    if isinstance(peer, Wire):
        stream = peer.next(HEADERS).stream
        until("it is late", functools.partial(has_come, time.monotonic() + late))
        peer.answer(stream, b"ok")
    else:
        read_head(peer)
        until("it is late", functools.partial(has_come, time.monotonic() + late))
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def ends(peer: Peer) -> bool:
    """Whether its end comes, and no request before."""
    if isinstance(peer, Wire):
        return all(found.kind != HEADERS for found in peer.rest())
    return read_head(peer) == b""


@contextlib.contextmanager
def ask(planes: Planes, proxy: Static, name: str, *, late: float = 0) -> Iterator[Peer]:
    """Have a request answered over a new connection, which stays; yield the upstream's end of it."""
    with contextlib.ExitStack() as stack:
        with asking(proxy, name):
            peer: Peer = stack.enter_context(planes.up.accept())
            if ENDING.get(name, (HTTP1,))[0] == HTTP2:
                peer = stack.enter_context(Wire.serving(peer))
            answer(peer, late=late)
        yield peer


def has_come(moment: float) -> bool:
    return time.monotonic() >= moment


@pytest.mark.parametrize("name", ["aging", "idle", "idle over HTTP/2"])
def test_a_connection_that_has_lasted_or_rested_long_enough_is_not_used_again(planes: Planes, name: str) -> None:
    """Though it was idle when it came to be too old, and nobody may have closed it yet."""
    for proxy in planes.proxies:
        with ask(planes, proxy, name) as first:
            too_old = time.monotonic() + 1.5 * LASTING
            until("it is too old", functools.partial(has_come, too_old))
            with ask(planes, proxy, name):  # over a connection of its own
                assert ends(first), proxy.kind
        assert planes.up.forget() == 0, proxy.kind


@pytest.mark.parametrize("name", ["idle", "idle over HTTP/2"])
def test_a_connection_that_nobody_uses_is_closed(planes: Planes, name: str) -> None:
    """It is in use for as long as an answer takes. The next request goes by another."""
    for proxy in planes.proxies:
        began = time.monotonic()
        with ask(planes, proxy, name, late=2 * LASTING) as first:
            assert ends(first), proxy.kind
            # Envoy rounds its clock, and reads it seldom.
            assert time.monotonic() - began >= 2.9 * LASTING, proxy.kind
            with ask(planes, proxy, name):
                pass
        assert planes.up.forget() == 0, proxy.kind


@pytest.mark.parametrize("name", ["of two requests", "of two requests over HTTP/2"])
def test_a_connection_takes_as_many_requests_as_the_cluster_says(planes: Planes, name: str) -> None:
    """It is closed with its last answer; the next request goes by another."""
    for proxy in planes.proxies:
        with ask(planes, proxy, name) as first:
            with asking(proxy, name):
                answer(first)
            assert ends(first), proxy.kind
            with ask(planes, proxy, name):
                pass
        assert planes.up.forget() == 0, proxy.kind


def test_of_requests_that_come_at_once_none_is_too_many_for_a_connection_of_http2(planes: Planes) -> None:
    name = "of two requests over HTTP/2"
    streams = range(1, 11, 2)
    for proxy in planes.proxies:
        with Wire.client(proxy.ports[name]) as client, contextlib.ExitStack() as stack:
            for stream in streams:
                client.get(stream)
            for count in (2, 2, 1):
                peer = stack.enter_context(Wire.serving(stack.enter_context(planes.up.accept())))
                for _ in range(count):
                    answer(peer)
            bodies, open_streams = dict.fromkeys(streams, b""), set(streams)
            while open_streams:
                found = client.next(DATA)
                bodies[found.stream] += found.payload
                if found.flags & END_STREAM:
                    open_streams.remove(found.stream)
            assert bodies == dict.fromkeys(streams, b"ok"), proxy.kind
        assert planes.up.forget() == 0, proxy.kind
