"""
S3: a pair of sidecars with mutual TLS and mesh features between two HTTP/1.1 programs.

The link between the two is HTTP/1.1 (what Istio ships for HTTP/1.1 programs) or HTTP/2, at 1 and at 64 requests in
flight: an HTTP/2 link saves writes only where there is something to gather. CPU of both proxies is summed.
"""

from __future__ import annotations

from bench import backends, role
from bench.certificates import Authority
from bench.contest import contest
from bench.load import Load, wrk
from bench.measure import Run, Table
from bench.peers import Peer
from bench.role import Feature, Role

BODY_BYTES = 1024
PEERS = ("weft-proxy", "envoy", "haproxy")


def roles(run: Run, ports: role.Ports, *, http2: bool) -> tuple[Role, Role]:
    """Return the roles of the caller's proxy and of the called one's; the former's backend is filled in by the pair."""
    authority = Authority(run.folder("certificates"))
    caller, called = authority.issue("caller", peer="called"), authority.issue("called", peer="caller")
    # Of a pair the called side asks who may call.
    features = role.OUTBOUND_MESH - {Feature.RBAC}
    outbound = Role(ports, features, upstream_tls=caller, upstream_http2=http2)
    inbound = Role(ports, role.INBOUND_MESH, inbound=True, hosts=1, downstream_tls=called)
    return outbound, inbound


def run(run: Run) -> list[Table]:
    work = run.folder("s3")
    tables = []
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        for link in ("h1", "h2"):
            outbound, inbound = roles(run, ports, http2=link == "h2")
            for in_flight in (1, 64):

                def apply(
                    peer: Peer, seconds: float, in_flight: int = in_flight, host: str = role.host(outbound.target)
                ) -> Load:
                    return wrk.apply(
                        f"http://127.0.0.1:{peer.port}/",
                        seconds=seconds,
                        connections=in_flight,
                        cores=run.cores.rest,
                        length=BODY_BYTES,
                        letter=backends.BODY_LETTER,
                        work=work,
                        headers=(f"Host: {host}",),
                    )

                series = contest(run, f"s3-{link}", outbound, apply, among=PEERS, behind=inbound)
                protocol = "HTTP/2" if link == "h2" else "HTTP/1.1"
                title = f"S3: pair with mTLS and mesh features, {protocol} link, {in_flight} in flight"
                tables.append(Table(f"s3.{link}.{in_flight}", title, series))
    return tables
