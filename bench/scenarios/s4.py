"""S4: unary gRPC over clear-text HTTP/2, 1 KiB answers; bare and with mesh features."""

from __future__ import annotations

from bench import backends, role
from bench.contest import contest
from bench.load import Load, h2load
from bench.measure import Run, Table
from bench.peers import Peer
from bench.role import Role

MESSAGE_BYTES = 1024
CONNECTIONS = 16
STREAMS = 8
SHARE_OF_GUESS = 0.7
"""h2load with a number of requests checks the sum of all bodies, which it cannot when it is cut off by time; so the
number is guessed from the run before, a little lower."""


def run(run: Run) -> list[Table]:
    work = run.folder("s4")
    request = work / "request"
    request.write_bytes(backends.grpc_message("r", 64))
    body = len(backends.grpc_message(backends.BODY_LETTER, MESSAGE_BYTES))
    per_second: dict[str, float] = {}
    tables = []
    with backends.grpc(work, length=MESSAGE_BYTES, cores=run.cores.rest) as ports:
        for name, features, among in (
            ("bare", role.BARE, ("weft-proxy", "envoy", "haproxy", "nginx")),
            ("mesh", role.OUTBOUND_MESH, ("weft-proxy", "envoy", "haproxy")),
        ):
            mesh = Role(ports, features, downstream_http2=True, upstream_http2=True, path=backends.GRPC_PATH)
            host = role.host(mesh.target)

            def apply(peer: Peer, seconds: float, host: str = host) -> Load:
                url = f"http://127.0.0.1:{peer.port}{backends.GRPC_PATH}"
                headers = (f":authority: {host}", "content-type: application/grpc", "te: trailers")
                h2load.check_grpc(url, data=request, length=body, headers=headers)
                count = max(500, int(per_second.get(peer.name, 1000) * seconds * SHARE_OF_GUESS))
                seen = h2load.apply(
                    url,
                    requests=count,
                    connections=CONNECTIONS,
                    streams=STREAMS,
                    cores=run.cores.rest,
                    length=body,
                    data=request,
                    headers=headers,
                )
                h2load.check_grpc(url, data=request, length=body, headers=headers)
                per_second[peer.name] = seen.requests / seen.seconds
                return seen

            series = contest(run, f"s4-{name}", mesh, apply, among=among)
            title = f"S4: unary gRPC, {'mesh features' if name == 'mesh' else 'bare'}"
            tables.append(Table(f"s4.{name}", title, series))
    return tables
