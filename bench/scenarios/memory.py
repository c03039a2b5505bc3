"""
Resident memory: a started proxy with one route, one with a large mesh's configuration, and what an idle connection adds.

A connection counts as idle after a request: what was needed to read it is given back, or is not. Each sample is a process of its own.
Once it is weighed its features are probed, and a large configuration must be there whole; asking first would be weighed, too.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import time
from collections.abc import Iterator, Sequence

from bench import backends, peers, probes, role
from bench.certificates import Authority
from bench.load import handshakes, wrk
from bench.measure import Run, Series, Table
from bench.peers import Peer
from bench.role import Feature, Role

BODY_BYTES = 1024
SAMPLES = 3
CONNECTIONS = 1000
SERVICES = 1000
ENDPOINTS = 10
SETTLE_SECONDS = 1.0
MESH = role.BARE | {Feature.VIRTUAL_HOSTS, Feature.RETRY, Feature.CIRCUIT_BREAKER, Feature.LEAST_REQUEST}
PEERS = ("weft-proxy", "envoy", "haproxy")


def run(run: Run) -> list[Table]:
    work = run.folder("memory")
    # Both ends of connections to ourselves would not be measured, but ours count against our limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    authority = Authority(run.folder("certificates"))
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        bare, loaded = Role(ports, role.BARE), Role(ports, MESH, hosts=SERVICES, endpoints=ENDPOINTS)
        terminating = Role(ports, role.BARE, inbound=True, downstream_tls=authority.called, callers=authority.callers)
        context = handshakes.client_context(authority.caller)
        return [
            Table(
                "memory.idle",
                "Memory with one route, after a few requests",
                _resident(run, "idle", bare, (*PEERS, "nginx", "relay")),
            ),
            Table(
                "memory.loaded",
                f"Memory with {SERVICES:,} clusters x {ENDPOINTS} endpoints and as many virtual hosts",
                _resident(run, "loaded", loaded, PEERS),
            ),
            Table("memory.plain", "Memory of an idle connection", _connections(run, "plain", bare, None)),
            Table("memory.mtls", "Memory of an idle mTLS connection", _connections(run, "mtls", terminating, context)),
        ]


def _resident(run: Run, name: str, wanted: Role, among: Sequence[str]) -> dict[str, Series]:
    names = [each for each in among if each in run.peers]
    result = {each: Series("MiB resident") for each in names}
    for each, peer in _started(run, name, wanted, names):
        _ask_for_a_second(run, peer, wanted)
        result[each].samples.append(peer.resident_kib() / 1024)
        probes.check(peer, wanted)
        if each not in {"nginx", "relay"}:  # they hold one route
            probes.check_held(peer, wanted)
        counts = probes.Counts(peer, wanted)
        counts.check(_ask_for_a_second(run, peer, wanted))
    return result


def _started(run: Run, name: str, wanted: Role, names: list[str]) -> Iterator[tuple[str, Peer]]:
    """Yield each of *names*, so often, in turn, as there are samples: a new process each time, which ends with its turn."""
    for _ in range(SAMPLES):
        for each in names:
            with peers.start(each, wanted, run.folder(f"memory-{name}"), run.cores.proxy) as peer:
                yield each, peer


def _ask_for_a_second(run: Run, peer: Peer, wanted: Role) -> int:
    """Return how many requests were answered."""
    return wrk.apply(
        f"http://127.0.0.1:{peer.port}/",
        seconds=1,
        connections=1,
        cores=run.cores.rest,
        length=BODY_BYTES,
        letter=backends.BODY_LETTER,
        work=run.work,
        headers=(f"Host: {role.host(wanted.target)}",),
    ).requests


def _settle(peer: Peer) -> None:
    """Wait until *peer* gives nothing back any more of what its start needed; else the connections would seem to cost less."""
    before = peer.resident_kib()
    while True:
        time.sleep(SETTLE_SECONDS)
        after = peer.resident_kib()
        if after >= before:
            return
        before = after


def _connections(run: Run, name: str, wanted: Role, context: ssl.SSLContext | None) -> dict[str, Series]:
    names = [each for each in (*PEERS, "nginx") if each in run.peers]
    result = {each: Series("KiB each") for each in names}
    body = backends.BODY_LETTER.encode() * BODY_BYTES
    for each, peer in _started(run, name, wanted, names):
        with contextlib.ExitStack() as opened:

            def connect(port: int = peer.port, opened: contextlib.ExitStack = opened) -> None:
                plain: socket.socket = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                wrapped = context.wrap_socket(plain, server_hostname="localhost") if context else plain
                handshakes.ask(opened.enter_context(wrapped), body, close=False)

            _settle(peer)
            # The first ones need what all share: memory of a pool, a connection upstream.
            for _ in range(CONNECTIONS // 10):
                connect()
            before = peer.resident_kib()
            for _ in range(CONNECTIONS):
                connect()
            result[each].samples.append((peer.resident_kib() - before) / CONNECTIONS)
            probes.check(peer, wanted)
            counts = probes.Counts(peer, wanted)
            connect()
            counts.check(1)
    return result
