"""
Resident memory: a started proxy with one route, one with a large mesh's configuration, and what an idle connection adds.

A connection counts as idle after a request: what was needed to read it is given back, or is not.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl

from bench import backends, peers, role
from bench.certificates import Authority
from bench.load import handshakes, wrk
from bench.measure import Run, Series, Table
from bench.role import Feature, Ports, Role

BODY_BYTES = 1024
CONNECTIONS = 1000
SERVICES = 1000
ENDPOINTS = 10
MESH = role.BARE | {Feature.VIRTUAL_HOSTS, Feature.RETRY, Feature.CIRCUIT_BREAKER, Feature.LEAST_REQUEST}
PEERS = ("weft-proxy", "envoy", "haproxy")


def run(run: Run) -> list[Table]:
    work = run.folder("memory")
    # Both ends of connections to ourselves would not be measured, but ours count against our limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    authority = Authority(run.folder("certificates"))
    client, called = authority.issue("caller", peer="called"), authority.issue("called", peer="caller")
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        bare, loaded = Role(ports, role.BARE), Role(ports, MESH, hosts=SERVICES, endpoints=ENDPOINTS)
        terminating = Role(ports, role.BARE, inbound=True, downstream_tls=called)
        context = handshakes.client_context(client)
        return [
            Table(
                "memory.idle", "Memory with one route, after a few requests", _resident(run, "idle", bare, relay=ports)
            ),
            Table(
                "memory.loaded",
                f"Memory with {SERVICES:,} clusters x {ENDPOINTS} endpoints and as many virtual hosts",
                _resident(run, "loaded", loaded),
            ),
            Table("memory.plain", "Memory of an idle connection", _connections(run, "plain", bare, None)),
            Table("memory.mtls", "Memory of an idle mTLS connection", _connections(run, "mtls", terminating, context)),
        ]


def _resident(run: Run, name: str, wanted: Role, *, relay: Ports | None = None) -> dict[str, Series]:
    result = {}
    for each in (*PEERS, "nginx", "relay") if relay else PEERS:
        if each not in run.peers:
            continue
        with peers.start(each, wanted, run.folder(f"memory-{name}"), run.cores.proxy) as peer:
            wrk.apply(
                f"http://127.0.0.1:{peer.port}/",
                seconds=1,
                connections=1,
                cores=run.cores.rest,
                length=BODY_BYTES,
                letter=backends.BODY_LETTER,
                work=run.work,
                headers=(f"Host: {role.host(wanted.target)}",),
            )
            result[each] = Series("MiB resident", [peer.resident_kib() / 1024])
    return result


def _connections(run: Run, name: str, wanted: Role, context: ssl.SSLContext | None) -> dict[str, Series]:
    result = {}
    body = backends.BODY_LETTER.encode() * BODY_BYTES
    for each in (*PEERS, "nginx"):
        if each not in run.peers:
            continue
        with (
            peers.start(each, wanted, run.folder(f"memory-{name}"), run.cores.proxy) as peer,
            contextlib.ExitStack() as opened,
        ):

            def connect(port: int = peer.port, opened: contextlib.ExitStack = opened) -> None:
                plain: socket.socket = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                wrapped = context.wrap_socket(plain, server_hostname="localhost") if context else plain
                handshakes.ask(opened.enter_context(wrapped), body, close=False)

            # The first ones need what all share: memory of a pool, a connection upstream.
            for _ in range(CONNECTIONS // 10):
                connect()
            before = peer.resident_kib()
            for _ in range(CONNECTIONS):
                connect()
            result[each] = Series("KiB each", [(peer.resident_kib() - before) / CONNECTIONS])
    return result
