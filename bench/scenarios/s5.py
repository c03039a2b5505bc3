"""S5: TCP. A request of HTTP is only what is carried: 1 KiB answers for the cost of a turn, 1 MiB for that of bytes."""

from __future__ import annotations

from bench import backends
from bench.contest import contest
from bench.load import Load, wrk
from bench.measure import CPU, CPU_PER_GIB, Run, Table
from bench.peers import Peer
from bench.role import Feature, Role

FEATURES = frozenset({Feature.ACCESS_RECORD, Feature.METRICS})
"""For each connection. nginx has no counters for TCP, so it takes no part."""
SIZES = {"small": (1024, 64, CPU, 1e6), "large": (1024 * 1024, 8, CPU_PER_GIB, 1024 * 1e3)}
"""Bytes of an answer, connections, unit and scale of the figure."""


def run(run: Run) -> list[Table]:
    work = run.folder("s5")
    tables = []
    for name, (length, connections, unit, scale) in SIZES.items():
        with backends.http(work, length=length, cores=run.cores.rest) as ports:

            def apply(peer: Peer, seconds: float, length: int = length, connections: int = connections) -> Load:
                return wrk.apply(
                    f"http://127.0.0.1:{peer.port}/",
                    seconds=seconds,
                    connections=connections,
                    cores=run.cores.rest,
                    length=length,
                    letter=backends.BODY_LETTER,
                    work=work,
                )

            series = contest(
                run,
                f"s5-{name}",
                Role(ports, FEATURES, tcp=True),
                apply,
                among=("weft-proxy", "envoy", "haproxy", "relay"),
                probed=False,
                counted=lambda _, connections=connections: connections,
                unit=unit,
                scale=scale,
            )
        tables.append(Table(f"s5.{name}", f"S5: TCP, {'1 KiB' if name == 'small' else '1 MiB'} answers", series))
    return tables
