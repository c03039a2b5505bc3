"""
S9: a new connection for each request, plain and with a full mTLS handshake (TLS 1.3, P-256 certificates, X25519).

Proxies offer to resume sessions; the client that loads keeps none, and fails if a handshake was not a full one.
Behind the proxy there is no TLS, so no session of an upstream either.
"""

from __future__ import annotations

from bench import backends, role
from bench.certificates import Authority
from bench.contest import by_wrk, contest
from bench.load import Load, handshakes
from bench.measure import Run, Table
from bench.peers import Peer
from bench.role import Role

BODY_BYTES = 1024
CONNECTIONS = 16
PEERS = ("weft-proxy", "envoy", "haproxy", "nginx")


def run(run: Run) -> list[Table]:
    work = run.folder("s9")
    authority = Authority(run.folder("certificates"))
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        plain = by_wrk(run, work, length=BODY_BYTES, connections=CONNECTIONS, headers=("Connection: close",))

        def mtls(peer: Peer, seconds: float) -> Load:
            return handshakes.apply(
                peer.port,
                authority.caller,
                seconds=seconds,
                cores=run.cores.rest,
                length=BODY_BYTES,
                letter=backends.BODY_LETTER,
                work=work,
            )

        bare = Role(ports, role.BARE)
        terminating = Role(ports, role.BARE, inbound=True, downstream_tls=authority.called, callers=authority.callers)
        return [
            Table(
                "s9.plain",
                "S9: a new plain connection for each request",
                contest(run, "s9-plain", bare, plain, among=PEERS),
            ),
            Table(
                "s9.mtls",
                "S9: a full mTLS handshake for each request",
                contest(run, "s9-mtls", terminating, mtls, among=PEERS),
            ),
        ]
