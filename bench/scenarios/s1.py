"""S1: a bare HTTP/1.1 reverse proxy, keep-alive, 1 KiB answers; request id, access record and metrics on."""

from __future__ import annotations

from bench import backends, role
from bench.contest import by_wrk, contest
from bench.measure import Run, Table
from bench.role import Role

BODY_BYTES = 1024
CONNECTIONS = 64


def run(run: Run) -> list[Table]:
    work = run.folder("s1")
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        apply = by_wrk(run, work, length=BODY_BYTES, connections=CONNECTIONS)
        among = ("weft-proxy", "envoy", "haproxy", "nginx", "relay")
        series = contest(run, "s1", Role(ports, role.BARE), apply, among=among)
    return [Table("s1", "S1: bare HTTP/1.1 reverse proxy, 64 connections, 1 KiB answers", series)]
