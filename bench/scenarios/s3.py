"""
S3: a pair of sidecars with mutual TLS and mesh features between two HTTP/1.1 programs.

The link between the two is HTTP/1.1, or HTTP/2, or what each ships for HTTP/1.1 programs: weft-proxy offers both and
its other half takes HTTP/2 (decision 0012), the others speak HTTP/1.1. Each at 1 and at 64 requests in flight: an HTTP/2
link saves writes only where there is something to gather. CPU of both proxies is summed.

The caller's side takes nobody for the called one but whose certificate says so, and the called one takes requests of the caller
alone, by SPIFFE identities.
"""

from __future__ import annotations

from bench import backends, role
from bench.certificates import Authority
from bench.contest import by_wrk, contest
from bench.measure import Run, Table
from bench.role import Feature, Role

BODY_BYTES = 1024
PEERS = ("weft-proxy", "envoy", "haproxy")
LINKS = {"h1": "HTTP/1.1 link", "h2": "HTTP/2 link", "default": "each its default link"}


def roles(authority: Authority, ports: role.Ports, link: str) -> tuple[Role, Role]:
    """Return the roles of the caller's proxy and of the called one's; the former's backend is filled in by the pair."""
    # Of a pair the called side asks who may call.
    outbound = Role(
        ports,
        role.OUTBOUND_MESH - {Feature.RBAC} | {Feature.PEER_IDENTITY},
        upstream_tls=authority.caller,
        upstream_http2=link == "h2",
        upstream_default=link == "default",
    )
    inbound = Role(
        ports, role.INBOUND_MESH, inbound=True, hosts=1, downstream_tls=authority.called, callers=authority.callers
    )
    return outbound, inbound


def run(run: Run) -> list[Table]:
    work = run.folder("s3")
    authority = Authority(run.folder("certificates"))
    tables = []
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest, impostor=authority.stranger) as ports:
        for link, named in LINKS.items():
            outbound, inbound = roles(authority, ports, link)
            for in_flight in (1, 64):
                host = f"Host: {role.host(outbound.target)}"
                apply = by_wrk(run, work, length=BODY_BYTES, connections=in_flight, headers=(host,))
                series = contest(run, f"s3-{link}", outbound, apply, among=PEERS, behind=inbound)
                title = f"S3: pair with mTLS and mesh features, {named}, {in_flight} in flight"
                tables.append(Table(f"s3.{link}.{in_flight}", title, series))
    return tables
