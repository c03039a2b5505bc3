"""S6: 1 MiB answers over HTTP/1.1, through one bare proxy and through a pair with mTLS and mesh features."""

from __future__ import annotations

from bench import backends, role
from bench.certificates import Authority
from bench.contest import by_wrk, contest
from bench.measure import CPU_PER_GIB, Run, Table
from bench.role import Role
from bench.scenarios import s3

BODY_BYTES = 1024 * 1024
CONNECTIONS = 8
SCALE = 1024 * 1e3
"""From CPU seconds for a MiB to milliseconds for a GiB."""


def run(run: Run) -> list[Table]:
    work = run.folder("s6")
    authority = Authority(run.folder("certificates"))
    tables = []
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest, impostor=authority.stranger) as ports:
        target = s3.roles(authority, ports, "h1")[0].target
        host = f"Host: {role.host(target)}"
        apply = by_wrk(run, work, length=BODY_BYTES, connections=CONNECTIONS, headers=(host,))
        bare, among = Role(ports, role.BARE), ("weft-proxy", "envoy", "haproxy", "nginx")
        series = contest(run, "s6-plain", bare, apply, among=among, unit=CPU_PER_GIB, scale=SCALE)
        tables.append(Table("s6.plain", "S6: 1 MiB answers over HTTP/1.1, bare", series))
        for link, key in (("h1", "s6.pair"), ("h2", "s6.pair.h2")):
            outbound, inbound = s3.roles(authority, ports, link)
            series = contest(
                run,
                f"s6-{link}",
                outbound,
                apply,
                among=s3.PEERS,
                behind=inbound,
                unit=CPU_PER_GIB,
                scale=SCALE,
            )
            protocol = "HTTP/2" if link == "h2" else "HTTP/1.1"
            tables.append(
                Table(key, f"S6: 1 MiB answers over a pair with mTLS and mesh features, {protocol} link", series)
            )
    return tables
