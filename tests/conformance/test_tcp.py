"""Bytes that no data plane understands: carried by stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.conformance.both import Json, both, cluster, file_log, listener, records, typed
from tests.conformance.certificates import Authority, client_context, server_context
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Accepting, Upstream, read_exactly, read_rest, unanswering
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

RECORD = {
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}
IDLE, LASTING = 0.5, 0.5
"""Limits of a tunnel, in seconds."""

EARLY = 0.9
"""Envoy counts from when its loop woke, a little before it looked at the tunnel."""

LISTENERS = {
    "plain": {},
    "idle": {"idle_timeout": f"{IDLE}s"},
    "aging": {"max_downstream_connection_duration": f"{LASTING}s"},
}
AWAY = ("gone", "silent", "empty")
"""Clusters without an upstream: nobody listens, nobody answers, there is none."""

CONNECTING = 0.2
"""How long a connection to a silent one may take, in seconds."""

NAMES = ("exact", "wildcard", "rest")
"""Upstreams of TLS, by how their chain knows the server's name."""


@dataclass
class Planes:
    proxies: tuple[Static, Static]
    folder: Path
    up: Upstream
    named: dict[str, Upstream]
    seen: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many records have been looked at, by data plane and listener."""

    def log(self, proxy: Static, name: str) -> list[Json]:
        return records(self.folder / f"{proxy.ports[name]}.log")

    def recorded(self, proxy: Static, name: str) -> Json:
        """Return the record of the connection that has just ended, the only one since this was last asked."""
        count = self.seen.get((proxy.kind, name), 0) + 1
        self.seen[proxy.kind, name] = count
        until(f"{proxy.kind} has {count} records of {name}", lambda: len(self.log(proxy, name)) >= count)
        found = self.log(proxy, name)
        assert len(found) == count, found
        return found[-1]

    @contextlib.contextmanager
    def tunnel(self, proxy: Static, name: str) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Both ends of a connection through the listener *name*."""
        with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client, self.up.accept() as peer:
            yield client, peer


def carrying(to: str, **more: object) -> list[Json]:
    config = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=to, cluster=to, **more)
    return [{"name": "tcp", "typed_config": config}]


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("tcp")
    up, named = Upstream(), {name: Upstream() for name in NAMES}

    def resources(ports: dict[str, int]) -> Json:
        def of(name: str, to: str, **more: object) -> Json:
            log = file_log(folder / f"{ports[name]}.log", RECORD)
            return listener(name, ports[name], carrying(to, access_log=log, **more))

        made = [of(name, "up", **more) for name, more in LISTENERS.items()] + [of(name, name) for name in AWAY]
        inspector = typed("filters.listener.tls_inspector.v3.TlsInspector")
        passing = of("tls", "rest")
        passing["listener_filters"] = [{"name": "tls_inspector", "typed_config": inspector}]
        passing["default_filter_chain"], passing["filter_chains"] = (
            passing["filter_chains"][0],
            [
                {"filter_chain_match": {"server_names": [server], "transport_protocol": "tls"}, "filters": carrying(to)}
                for to, server in (("exact", "one.example"), ("wildcard", "*.example"))
            ],
        )
        silent = cluster("silent", full, connect_timeout=f"{CONNECTING}s")
        clusters = [cluster("up", up.port), cluster("gone", free_port()), cluster("empty"), silent]
        clusters += [cluster(name, it.port) for name, it in named.items()]
        return {"clusters": clusters, "listeners": [*made, passing]}

    names = (*LISTENERS, *AWAY, "tls")
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(unanswering())
        for upstream in (up, *named.values()):
            stack.enter_context(upstream.socket)
        running = stack.enter_context(both(folder, names, resources))
        yield Planes(running, folder, up, named)


def expect(connection: socket.socket, data: bytes) -> None:
    """The next bytes of *connection* are *data*."""
    assert read_exactly(connection, len(data)) == data


def end(connection: socket.socket) -> str:
    """How *connection* ends, after which nothing more comes."""
    try:
        return "finished" if connection.recv(1) == b"" else "goes on"
    except ConnectionResetError:
        return "reset"


def reset(connection: socket.socket) -> None:
    """Close *connection* with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def content(size: int) -> bytes:
    """So many bytes, no two places of which look alike."""
    return b"".join(hashlib.sha256(number.to_bytes(8)).digest() for number in range(size // 32 + 1))[:size]


def test_bytes_pass_both_ways_unchanged(planes: Planes) -> None:
    """The server may speak first; much may be under way in both directions at once."""
    up, down = content(3_000_000), content(2_000_000)[::-1]
    for proxy in planes.proxies:
        with planes.tunnel(proxy, "plain") as (client, peer):
            peer.sendall(b"220 hello\r\n")
            expect(client, b"220 hello\r\n")
            found: list[bytes] = []

            def serve(peer: socket.socket = peer, found: list[bytes] = found) -> None:
                found.append(read_exactly(peer, len(up)))
                peer.sendall(down)

            thread = threading.Thread(target=serve)
            thread.start()
            client.sendall(up)
            assert read_exactly(client, len(down)) == down, proxy.kind
            thread.join()
            assert found == [up], proxy.kind
            client.shutdown(socket.SHUT_WR)
            assert end(peer) == "finished", proxy.kind
            peer.close()
            assert end(client) == "finished", proxy.kind
        record = planes.recorded(proxy, "plain")
        assert record == {"flags": "-", "details": None, "failure": None, "received": 3_000_000, "sent": 2_000_011}, (
            proxy.kind
        )


def test_each_direction_ends_by_itself(planes: Planes) -> None:
    for proxy in planes.proxies:
        with planes.tunnel(proxy, "plain") as (client, peer):
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_rest(peer) == b"question", proxy.kind
            peer.sendall(b"answer")
            expect(client, b"answer")
            peer.shutdown(socket.SHUT_WR)
            assert end(client) == "finished", proxy.kind
        assert planes.recorded(proxy, "plain")["flags"] == "-", proxy.kind
        with planes.tunnel(proxy, "plain") as (client, peer):
            peer.sendall(b"goodbye")
            peer.shutdown(socket.SHUT_WR)
            assert read_rest(client) == b"goodbye", proxy.kind
            client.sendall(b"wait")
            expect(peer, b"wait")
            client.shutdown(socket.SHUT_WR)
            assert end(peer) == "finished", proxy.kind
        assert planes.recorded(proxy, "plain")["flags"] == "-", proxy.kind


def test_a_reset_stays_a_reset(planes: Planes) -> None:
    """Recorded as the upstream's failure if it was the upstream's; Envoy and weft-proxy have different flags for that."""
    flags = {ENVOY: {"client": "-", "upstream": "UR"}, WEFT_PROXY: {"client": "-", "upstream": "UC"}}
    for proxy in planes.proxies:
        for who, other in (("client", "upstream"), ("upstream", "client")):
            with planes.tunnel(proxy, "plain") as (client, peer):
                client.sendall(b"x")
                expect(peer, b"x")
                ends = {"client": client, "upstream": peer}
                reset(ends[who])
                assert end(ends[other]) == "reset", (proxy.kind, who)
            assert planes.recorded(proxy, "plain")["flags"] == flags[proxy.kind][who], proxy.kind


def test_who_has_no_upstream_is_ended(planes: Planes) -> None:
    """By weft-proxy with a reset, so that nobody takes it for an orderly end of nothing; by Envoy in order."""
    flags = {
        ENVOY: {"gone": "UF,URX", "silent": "UF,URX", "empty": "UH"},
        WEFT_PROXY: {"gone": "UF", "silent": "UF", "empty": "UH"},
    }
    for proxy in planes.proxies:
        for name in AWAY:
            try:
                with socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as client:
                    found = end(client)
            except ConnectionResetError:  # before it was known here that there is a connection
                found = "reset"
            assert found == ("finished" if proxy.kind == ENVOY else "reset"), (proxy.kind, name)
            record = planes.recorded(proxy, name)
            assert record["flags"] == flags[proxy.kind][name], proxy.kind
            if name != "empty":
                # Envoy says nothing of a connection that took too long, by which `weft.insight.words` knows it.
                is_told = name == "gone" or proxy.kind == WEFT_PROXY
                assert bool(record["failure"] or record["details"]) is is_told, (proxy.kind, name, record)


SILENT = {ENVOY: ("-", None), WEFT_PROXY: ("SI", "stream_idle_timeout")}
"""How the end of a tunnel in which nothing moves is recorded; Envoy has no flag for it."""


def test_a_tunnel_in_which_nothing_moves_is_closed(planes: Planes) -> None:
    for proxy in planes.proxies:
        began = time.monotonic()
        with planes.tunnel(proxy, "idle") as (client, peer):
            client.sendall(b"x")
            expect(peer, b"x")
            assert (end(client), end(peer)) == ("finished",) * 2, proxy.kind
            assert EARLY * IDLE <= time.monotonic() - began < LIMIT, proxy.kind
        record = planes.recorded(proxy, "idle")
        assert (record["flags"], record["details"]) == SILENT[proxy.kind], proxy.kind


def speak_alone(speaker: socket.socket, listener: socket.socket) -> bool:
    """Speak for longer than the limit, in one direction; whether this machine was quick enough to never fall silent as long."""
    began = last = time.monotonic()
    pause = 0.0
    while last < began + 1.5 * IDLE and pause < IDLE:
        with contextlib.suppress(ConnectionError):
            speaker.sendall(b"x")
            said = listener.recv(1)
        now = time.monotonic()
        pause, last = max(pause, now - last), now
        assert said == b"x" or pause >= IDLE, "it was closed though it moved"
    return pause < IDLE


def test_only_silence_in_both_directions_is_idle(planes: Planes) -> None:
    for proxy in planes.proxies:
        for upstream_speaks in (True, False):
            spoke = False
            while not spoke:
                with planes.tunnel(proxy, "idle") as (client, peer):
                    spoke = speak_alone(peer, client) if upstream_speaks else speak_alone(client, peer)
                    # And then it does fall silent.
                    assert end(client) == end(peer) == "finished" or not spoke, proxy.kind
                assert planes.recorded(proxy, "idle")["flags"] == SILENT[proxy.kind][0] or not spoke, proxy.kind


def test_a_tunnel_that_lasts_too_long_is_closed_though_it_moves(planes: Planes) -> None:
    for proxy in planes.proxies:
        began = time.monotonic()
        with planes.tunnel(proxy, "aging") as (client, peer):
            with contextlib.suppress(ConnectionError):
                while time.monotonic() < began + LIMIT:
                    peer.sendall(b"x")
                    if not client.recv(1):
                        break
                    client.sendall(b"y")
                    if not peer.recv(1):
                        break
            assert EARLY * LASTING <= time.monotonic() - began < LIMIT, proxy.kind
        assert planes.recorded(proxy, "aging")["flags"] == "DT", proxy.kind


SERVERS = {
    "one.example": "exact",
    "ONE.example": "exact",
    "two.example": "wildcard",
    "a.b.example": "wildcard",
    "elsewhere.test": "rest",
    None: "rest",
}
"""By the server that a client names, or none: to which upstream it is led."""


def test_tls_goes_where_its_server_name_says_and_is_not_ended_here(planes: Planes, tmp_path: Path) -> None:
    """The certificate that the client sees, and the one that it shows, are those of the two ends: nobody is between."""
    authority = Authority(tmp_path / "certificates")
    servers = {name: authority.issue(name, x509.DNSName(name)) for name in NAMES}
    identity = authority.issue("client", x509.DNSName("client.example"))
    own = identity.certificate().public_bytes(serialization.Encoding.DER)
    client = client_context(authority, identity)
    client.check_hostname = False  # names lead to upstreams that are called otherwise
    contexts = {name: server_context(authority, identity) for name, identity in servers.items()}

    def serve(upstream: Upstream, context: ssl.SSLContext, shown: list[bytes | None]) -> None:
        with upstream.accept() as plain, context.wrap_socket(plain, server_side=True) as peer:
            shown.append(peer.getpeercert(binary_form=True))
            peer.sendall(read_exactly(peer, 4)[::-1])

    for proxy in planes.proxies:
        for server, to in SERVERS.items():
            for upstream in planes.named.values():
                upstream.forget()
            shown: list[bytes | None] = []
            thread = threading.Thread(target=serve, args=(planes.named[to], contexts[to], shown))
            thread.start()
            with (
                socket.create_connection(("127.0.0.1", proxy.ports["tls"]), LIMIT) as plain,
                client.wrap_socket(plain, server_hostname=server) as connection,
            ):
                certificate = connection.getpeercert(binary_form=True)
                assert certificate == servers[to].certificate().public_bytes(serialization.Encoding.DER), proxy.kind
                connection.sendall(b"ping")
                assert read_exactly(connection, 4) == b"gnip", proxy.kind
            thread.join()
            assert shown == [own], proxy.kind
            assert all(upstream.forget() == 0 for upstream in planes.named.values()), (proxy.kind, server)
        # What is no TLS at all.
        with socket.create_connection(("127.0.0.1", proxy.ports["tls"]), LIMIT) as plain:
            plain.sendall(b"hello")
            with planes.named["rest"].accept() as peer:
                expect(peer, b"hello")


class Naming(Accepting):
    """Says its name to whoever connects."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(self.name)


WEIGHTS = {"one": 1, "three": 3}
"""Of clusters that one listener leads to."""

CONNECTIONS = 400


def test_connections_are_divided_by_the_weights_of_clusters(tmp_path: Path) -> None:
    """1 and 3 of 4, by chance: of 400 connections 300 to the heavier, give or take five standard deviations of 8.7."""
    with contextlib.ExitStack() as stack:
        upstreams = {name: stack.enter_context(Naming(name)) for name in WEIGHTS}

        def resources(ports: dict[str, int]) -> Json:
            weighted = {"clusters": [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]}
            config = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="weighted", weighted_clusters=weighted)
            filters = [{"name": "tcp", "typed_config": config}]
            clusters = [cluster(name, upstream.port) for name, upstream in upstreams.items()]
            return {"clusters": clusters, "listeners": [listener("weighted", ports["weighted"], filters)]}

        for proxy in stack.enter_context(both(tmp_path, ("weighted",), resources)):
            found = Counter[bytes]()
            for _ in range(CONNECTIONS):
                with socket.create_connection(("127.0.0.1", proxy.ports["weighted"]), LIMIT) as client:
                    found[read_rest(client)] += 1
            assert found.keys() == {name.encode() for name in WEIGHTS}, proxy.kind
            assert 257 <= found[b"three"] <= 343, (proxy.kind, found)
