"""S5: TCP. A request of HTTP is only what is carried: 1 KiB answers for the cost of a turn, 1 MiB for that of bytes."""

from __future__ import annotations

from bench import backends
from bench.contest import by_wrk, contest
from bench.measure import CPU, CPU_PER_GIB, Run, Table
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
            series = contest(
                run,
                f"s5-{name}",
                Role(ports, FEATURES, tcp=True),
                by_wrk(run, work, length=length, connections=connections),
                among=("weft-proxy", "envoy", "haproxy", "relay"),
                counted=lambda _, connections=connections: connections,
                unit=unit,
                scale=scale,
            )
        tables.append(Table(f"s5.{name}", f"S5: TCP, {'1 KiB' if name == 'small' else '1 MiB'} answers", series))
    return tables
