"""S1: a bare HTTP/1.1 reverse proxy, keep-alive, 1 KiB answers; request id, access record and metrics on."""

from __future__ import annotations

from bench import backends, role
from bench.contest import contest
from bench.load import Load, wrk
from bench.measure import Run, Table
from bench.peers import Peer
from bench.role import Role

BODY_BYTES = 1024
CONNECTIONS = 64


def run(run: Run) -> list[Table]:
    work = run.folder("s1")
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:

        def apply(peer: Peer, seconds: float) -> Load:
            return wrk.apply(
                f"http://127.0.0.1:{peer.port}/",
                seconds=seconds,
                connections=CONNECTIONS,
                cores=run.cores.rest,
                length=BODY_BYTES,
                letter=backends.BODY_LETTER,
                work=work,
            )

        among = ("weft-proxy", "envoy", "haproxy", "nginx", "relay")
        series = contest(run, "s1", Role(ports, role.BARE), apply, among=among)
    return [Table("s1", "S1: bare HTTP/1.1 reverse proxy, 64 connections, 1 KiB answers", series)]
