"""Latency that a mesh sidecar adds at a fixed rate that strains nobody, against the same client without a proxy."""

from __future__ import annotations

import contextlib
import functools

from bench import backends, peers, probes, role
from bench.load import Load, h2load
from bench.measure import Run, Series, Table, alternate
from bench.peers import Peer
from bench.role import Role

BODY_BYTES = 1024
PER_SECOND = 1000
CONNECTIONS = 10
PEERS = ("weft-proxy", "envoy", "haproxy", "nginx")


def run(run: Run) -> list[Table]:
    work = run.folder("latency")
    names = [each for each in PEERS if each in run.peers]
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports, contextlib.ExitStack() as stack:
        mesh = Role(ports, role.OUTBOUND_MESH)
        started: dict[str, Peer | None] = {"direct": None}
        for each in names:
            peer = started[each] = stack.enter_context(peers.start(each, mesh, work, run.cores.proxy))
            probes.check(peer, mesh)

        def measure(peer: Peer | None) -> Load:
            counts = probes.Counts(peer, mesh) if peer else None
            port = peer.port if peer else ports.answer[0]
            seen = h2load.apply(
                f"http://127.0.0.1:{port}/",
                requests=round(PER_SECOND * run.seconds),
                per_second=PER_SECOND,
                connections=CONNECTIONS,
                http1=True,
                cores=run.cores.rest,
                length=BODY_BYTES,
                headers=(f":authority: {role.host(mesh.target)}",),
                log=work / "times",
            )
            if counts:
                counts.check(seen.requests)
            return seen

        found: dict[str, list[Load]] = {each: [] for each in started}
        for each, seen in alternate(
            run.rounds, {each: functools.partial(measure, peer) for each, peer in started.items()}
        ):
            found[each].append(seen)
    tables = []
    for key, title in (("p50", "median"), ("p99", "99th percentile")):
        series = {}
        for each in names:
            pairs = zip(found[each], found["direct"], strict=True)
            added = [getattr(ours, f"{key}_us") - getattr(direct, f"{key}_us") for ours, direct in pairs]
            series[each] = Series("us", added)
        tables.append(Table(f"latency.{key}", f"Latency added at {PER_SECOND:,} requests a second, {title}", series))
    return tables
