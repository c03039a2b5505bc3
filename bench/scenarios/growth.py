"""
Growth: CPU per request as virtual hosts with their clusters, or routes of one host, grow a thousandfold; and with 2 workers.

Requests go to a few hosts, or routes, that are spread over all; more would measure connections and caches instead.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping

from bench import backends, peers, probes, role
from bench.contest import WARM_UP_SECONDS, by_wrk, measured
from bench.load import Load
from bench.measure import CPU, Run, Series, Table, alternate
from bench.role import Feature, Ports, Role

BODY_BYTES = 1024
CONNECTIONS = 64
COUNTS = (10, 1000, 10_000)
SPREAD = 10
PEERS = ("weft-proxy", "envoy")
FEATURES = role.BARE | {Feature.VIRTUAL_HOSTS}


def run(run: Run) -> list[Table]:
    work = run.folder("growth")
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        return [
            _grown(run, "hosts", "virtual hosts and clusters", {count: _hosts(ports, count) for count in COUNTS}),
            _grown(run, "routes", "routes of one host", {count: _routes(ports, count) for count in COUNTS}),
            _grown(
                run, "regexes", "regular expressions of one host", {count: _regexes(ports, count) for count in COUNTS}
            ),
            _grown(run, "workers", "workers", {count: _workers(ports, count) for count in (1, 2)}),
        ]


_Grown = tuple[Role, list[str], list[str]]
"""A role, and the hosts and paths under load."""


def _hosts(ports: Ports, count: int) -> _Grown:
    wanted = Role(ports, FEATURES, hosts=count)
    step = max(1, count // SPREAD)
    return wanted, [role.host(service) for service in wanted.services[::step]], ["/"]


def _routes(ports: Ports, count: int) -> _Grown:
    wanted = Role(ports, FEATURES, hosts=1, paths=count // 2)
    numbers = range(0, count // 2, max(1, count // SPREAD))
    paths = [path for number in numbers for path in (f"/exact/{number}", f"/prefix/{number}/x")]
    return wanted, [role.host(wanted.target)] * len(paths), paths


def _regexes(ports: Ports, count: int) -> _Grown:
    wanted = Role(ports, FEATURES, hosts=1, regexes=count // 2)
    numbers = range(0, count // 2, max(1, count // SPREAD))
    paths = [path for number in numbers for path in (f"/regex/{number}/x", f"/any/item-{number}")]
    return wanted, [role.host(wanted.target)] * len(paths), paths


def _workers(ports: Ports, count: int) -> _Grown:
    wanted = Role(ports, role.OUTBOUND_MESH, workers=count)
    return wanted, [role.host(wanted.target)], ["/"]


def _grown(run: Run, key: str, what: str, roles: Mapping[int, _Grown]) -> Table:
    """Return one table, with a line for each peer and size; sizes alternate as peers do elsewhere."""
    series: dict[str, Series] = {}
    for name in (each for each in PEERS if each in run.peers):
        with contextlib.ExitStack() as stack:
            ways: dict[str, Callable[[], tuple[float, Load]]] = {}
            for count, (wanted, hosts, paths) in roles.items():
                spread = (hosts, paths)
                apply = by_wrk(run, run.work, length=BODY_BYTES, connections=CONNECTIONS, spread=spread)
                cores = run.cores.proxy if wanted.workers == 1 else run.cores.proxy | run.cores.rest
                peer = stack.enter_context(peers.start(name, wanted, run.folder(f"growth-{key}-{count}"), cores))
                probes.check(peer, wanted)
                probes.check_held(peer, wanted)
                apply(peer, WARM_UP_SECONDS)
                requests: Callable[[Load], int] = lambda seen: seen.requests  # noqa: E731
                ways[f"{name}, {count:,}"] = functools.partial(measured, peer, wanted, apply, run.seconds, requests)
            for each, (seconds, seen) in alternate(run.rounds, ways):
                series.setdefault(each, Series(CPU)).samples.append(seconds / seen.requests * 1e6)
    return Table(f"growth.{key}", f"Growth with {what}", series)
