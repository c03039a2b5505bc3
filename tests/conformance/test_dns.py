"""The same clusters found by DNS, the same answers: stock Envoy and weft-proxy make the same endpoints of them, in one run."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import socketserver
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.proxies import Static, socket_address, static_listener, typed, until
from tests.ports import free_port, until_listening
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

KINDS = ("STRICT_DNS", "LOGICAL_DNS")


def name_of(cluster: str, kind: str) -> str:
    """The name of the endpoints of *cluster*, of a data plane of this *kind*."""
    return f"{cluster}.{kind}.test".lower().replace("_", "-")


TTL = 1
"""Of what is answered, in seconds."""

NEVER = "1000s"
"""Longer than a test waits."""


class Names:
    """A DNS server that says of every name what `addresses` says: A records for `TTL` seconds, or the code with which it fails."""

    def __init__(self) -> None:
        self.addresses: list[str] | int = []
        self.speaks = True
        """Whether it answers; else what it is asked waits until it does."""
        self.asked: dict[str, list[float]] = defaultdict(list)
        """When which name was asked for."""
        self._questions = queue.SimpleQueue[tuple[bytes, Any]]()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def speak(self) -> None:
        """Answer, also what has waited for it."""
        self.speaks = True
        with contextlib.suppress(queue.Empty):
            while True:
                question, peer = self._questions.get_nowait()
                self._socket.sendto(self._answer(question), peer)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                question, peer = self._socket.recvfrom(4096)
                self.asked[_name(question)].append(time.monotonic())
                self._questions.put((question, peer))
                if self.speaks:
                    self.speak()

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5  # the root's label, type and class
        said = self.addresses
        code = said if isinstance(said, int) else 0
        records = b""
        is_v4 = question[end - 4 : end - 2] == b"\0\1"
        found = said if not isinstance(said, int) and is_v4 else []
        for address in found:
            records += struct.pack("!HHHIH", 0xC00C, 1, 1, TTL, 4) + socket.inet_aton(address)
        return question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(found), 0, 0) + question[12:end] + records

    def close(self) -> None:
        self._socket.close()


def _name(question: bytes) -> str:
    """What is asked for; there is always one (RFC 1035 4.1.2)."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length])
        at += 1 + length
    return b".".join(labels).decode().lower()


class Upstream(socketserver.ThreadingTCPServer):
    """Says its own address."""

    daemon_threads = True
    allow_reuse_address = True


class Saying(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        text = str(self.connection.getsockname()[0])
        while line := self.rfile.readline():
            if line == b"\r\n":
                self.wfile.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())


class Proxy(Static):
    """A data plane with a listener for a cluster of each kind; *more* adds to the clusters."""

    def __init__(
        self, kind: str, directory: Path, names: int, upstream: int, *, drains: bool = False, **more: Any
    ) -> None:
        ports = {cluster: free_port() for cluster in KINDS}
        cares = typed(
            "network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            resolvers=[socket_address("127.0.0.1", names)],
            dns_resolver_options={"no_default_search_domain": True},
            query_tries=1,
        )

        def cluster(name: str) -> dict[str, Any]:
            endpoint = {"endpoint": {"address": socket_address(name_of(name, kind), upstream)}}
            return {
                "name": name,
                "type": name,
                "dns_refresh_rate": "0.1s",
                "dns_lookup_family": "V4_ONLY",
                "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": cares},
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
                **more,
            }

        listeners = [static_listener(name, port) for name, port in ports.items()]
        flags = {"envoy.reloadable_features.enable_new_dns_implementation": drains}
        runtime = {"layers": [{"name": "static", "static_layer": flags}]}
        resources = {"clusters": list(map(cluster, KINDS)), "listeners": listeners}
        super().__init__(kind, directory, ports, resources, layered_runtime=runtime)

    def endpoints(self, cluster: str) -> list[str]:
        """Addresses of the cluster's endpoints, sorted."""
        found = json.loads(self.ask("/clusters?format=json"))
        status = next(item for item in found["cluster_statuses"] if item["name"] == cluster)
        return sorted(host["address"]["socket_address"]["address"] for host in status.get("host_statuses", ()))

    def updates(self, cluster: str, what: str) -> int:
        return self.count(f"update_{what}", cluster)


@pytest.fixture
def names() -> Iterator[Names]:
    running = Names()
    yield running
    running.close()


@pytest.fixture
def upstream() -> Iterator[int]:
    """Upstreams on 127.0.0.1 to 127.0.0.3, at the port that this returns."""
    first = Upstream(("127.0.0.1", 0), Saying)
    port = int(first.server_address[1])
    servers = [first, *(Upstream((f"127.0.0.{last}", port), Saying) for last in (2, 3))]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield port
    for server in servers:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def running(directory: Path, names: Names, upstream: int, **more: Any) -> Iterator[list[Proxy]]:
    """Both data planes, until the block ends; *more* is as for `Proxy`."""
    proxies = [Proxy(kind, directory / kind, names.port, upstream, **more) for kind in (ENVOY, WEFT_PROXY)]
    try:
        yield proxies
    finally:
        for proxy in proxies:
            proxy.stop()


@pytest.fixture
def both(tmp_path: Path, names: Names, upstream: int, drains: bool) -> Iterator[list[Proxy]]:
    names.addresses = ["127.0.0.2", "127.0.0.1"]
    with running(tmp_path, names, upstream, drains=drains) as proxies:
        for proxy in proxies:
            until("it is ready", proxy.is_ready)
        yield proxies


@pytest.mark.timeout(120)
@pytest.mark.parametrize("drains", [False, True])
def test_both_make_the_same_endpoints_of_the_same_answers(both: list[Proxy], names: Names, drains: bool) -> None:
    """
    Envoy has two implementations (*drains* chooses), which differ in one thing: its documentation says that connections of
    LOGICAL_DNS are never drained, and the newer one drains them when the address changes. weft-proxy does as is documented.
    """
    strict, logical = KINDS
    for proxy in both:
        assert proxy.endpoints(strict) == ["127.0.0.1", "127.0.0.2"]
        assert proxy.endpoints(logical) == ["127.0.0.2"]
        assert {proxy.get(strict) for _ in range(4)} == {(200, "127.0.0.1"), (200, "127.0.0.2")}
        assert proxy.get(logical) == (200, "127.0.0.2")

    names.addresses = ["127.0.0.3", "127.0.0.1"]
    for proxy in both:
        until("the new answer is in force", lambda proxy=proxy: proxy.endpoints(strict) == ["127.0.0.1", "127.0.0.3"])  # type: ignore[misc]
        until("it is for one endpoint too", lambda proxy=proxy: proxy.endpoints(logical) == ["127.0.0.3"])  # type: ignore[misc]
        assert {proxy.get(strict) for _ in range(4)} == {(200, "127.0.0.1"), (200, "127.0.0.3")}
        # The idle connection to where the name pointed before is still good.
        kept = not (drains and proxy.kind == ENVOY)
        assert proxy.get(logical) == (200, "127.0.0.2" if kept else "127.0.0.3")

    names.addresses = 2  # SERVFAIL
    for proxy in both:
        for cluster in KINDS:
            seen = proxy.updates(cluster, "failure")
            until("failures count", lambda: proxy.updates(cluster, "failure") >= seen + 2)  # noqa: B023
        assert proxy.endpoints(strict) == ["127.0.0.1", "127.0.0.3"]
        assert proxy.endpoints(logical) == ["127.0.0.3"]

    names.addresses = 3  # NXDOMAIN: an answer, except where exactly one endpoint has to be
    for proxy in both:
        until("the endpoints are gone", lambda proxy=proxy: proxy.endpoints(strict) == [])  # type: ignore[misc]
        assert proxy.get(strict)[0] == 503
        seen = proxy.updates(logical, "failure")
        until("failures count", lambda: proxy.updates(logical, "failure") >= seen + 2)  # noqa: B023
        assert proxy.endpoints(logical) == ["127.0.0.3"]
        assert proxy.updates(strict, "success") > 0
        assert proxy.updates(strict, "attempt") >= proxy.updates(strict, "success")


EARLY = 0.9
"""A proxy counts from when its loop woke, a little before it read the answer."""


@pytest.mark.parametrize("rate", ["0.1s", NEVER])
def test_a_name_is_asked_for_again_when_its_answer_is_no_longer_good(
    tmp_path: Path, names: Names, upstream: int, rate: str
) -> None:
    """Where `respect_dns_ttl` says so: neither sooner nor later, whatever `dns_refresh_rate` is."""
    names.addresses = ["127.0.0.1"]
    with running(tmp_path, names, upstream, respect_dns_ttl=True, dns_refresh_rate=rate) as proxies:
        for proxy in proxies:
            for cluster in KINDS:
                name = name_of(cluster, proxy.kind)
                until("it has asked three times", lambda: len(names.asked[name]) >= 3)  # noqa: B023
                times = names.asked[name]
                assert all(later - earlier >= TTL * EARLY for earlier, later in itertools.pairwise(times)), proxy.kind


def test_a_proxy_is_ready_when_its_names_were_heard_of(tmp_path: Path, names: Names, upstream: int) -> None:
    names.addresses, names.speaks = ["127.0.0.1"], False
    with running(tmp_path, names, upstream) as proxies:
        until("each has asked for each cluster", lambda: len(names.asked) == len(proxies) * len(KINDS))
        assert not any(proxy.is_ready() for proxy in proxies)
        names.speak()
        for proxy in proxies:
            for cluster in KINDS:
                until_listening(proxy.ports[cluster], proxy.process)
                # The first request of all has an endpoint already.
                assert proxy.get(cluster) == (200, "127.0.0.1"), (proxy.kind, cluster)
            until("it is ready", proxy.is_ready)


def test_a_proxy_need_not_wait_for_names(tmp_path: Path, names: Names, upstream: int) -> None:
    """Where `wait_for_warm_on_init` says so. Before it hears of them there are no endpoints, and then there are."""
    names.addresses, names.speaks = ["127.0.0.1"], False
    with running(tmp_path, names, upstream, wait_for_warm_on_init=False) as proxies:
        for proxy in proxies:
            until("it is ready", proxy.is_ready)
            for cluster in KINDS:
                assert proxy.endpoints(cluster) == [], (proxy.kind, cluster)
                assert proxy.get(cluster)[0] == 503, (proxy.kind, cluster)
                assert proxy.updates(cluster, "failure") == 0, (proxy.kind, cluster)
        names.speak()
        for proxy in proxies:
            for cluster in KINDS:
                until("it has an endpoint", lambda: proxy.endpoints(cluster) == ["127.0.0.1"])  # noqa: B023
                assert proxy.get(cluster) == (200, "127.0.0.1"), (proxy.kind, cluster)


def test_a_name_that_is_not_found_is_asked_for_again_at_a_rate_of_its_own(
    tmp_path: Path, names: Names, upstream: int
) -> None:
    """`dns_failure_refresh_rate`, and as soon as it is found that is in force; `dns_refresh_rate` would be never."""
    names.addresses = 2  # SERVFAIL
    rates = {"base_interval": "0.1s", "max_interval": "0.2s"}
    more = {"dns_refresh_rate": NEVER, "dns_failure_refresh_rate": rates}
    with running(tmp_path, names, upstream, **more) as proxies:
        for proxy in proxies:
            until("it is ready", proxy.is_ready)
            for cluster in KINDS:
                until("failures count", lambda: proxy.updates(cluster, "failure") >= 3)  # noqa: B023
        names.addresses = ["127.0.0.1"]
        for proxy in proxies:
            for cluster in KINDS:
                until("it is found", lambda: proxy.endpoints(cluster) == ["127.0.0.1"])  # noqa: B023
                assert proxy.get(cluster) == (200, "127.0.0.1"), (proxy.kind, cluster)
