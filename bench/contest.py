"""
The body of most scenarios: start all peers with one role, probe them, load them in turn, take what each cost.

Peers that are not loaded idle; each is alone on the proxy's core while it is measured, as far as this bench is concerned.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from bench import backends, peers, probes
from bench.goals import US
from bench.load import Load, wrk
from bench.measure import CPU, Run, Series, alternate
from bench.peers import Peer
from bench.role import Role, Tls

WARM_UP_SECONDS = 1.0
Apply = Callable[[Peer, float], Load]
"""Loads a peer for so many seconds, and raises if one answer was wrong."""


def by_wrk(
    run: Run,
    work: Path,
    *,
    length: int,
    connections: int,
    headers: Sequence[str] = (),
    spread: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Apply:
    """Return what loads a peer by HTTP/1.1 from the cores that proxies leave; for the rest see `wrk.apply`."""

    def apply(peer: Peer, seconds: float) -> Load:
        return wrk.apply(
            f"http://127.0.0.1:{peer.port}/",
            seconds=seconds,
            connections=connections,
            cores=run.cores.rest,
            length=length,
            letter=backends.BODY_LETTER,
            work=work,
            headers=headers,
            spread=spread,
        )

    return apply


def contest(
    run: Run,
    name: str,
    role: Role,
    apply: Apply,
    *,
    among: Iterable[str],
    behind: Role | None = None,
    probe_tls: Tls | None = None,
    probed: bool = True,
    counted: Callable[[Load], int] = lambda seen: seen.requests,
    unit: str = CPU,
    scale: float = 1e6,
) -> dict[str, Series]:
    """
    Return what each peer cost in each round.

    Args:
        run: Cores, rounds, and which peers at all.
        name: Of the folder, and of the configurations that are kept.
        role: Of each proxy; of the first of a pair, if there is *behind*, the role of the second.
        apply: The load.
        among: Names of the peers that can do this.
        behind: See *role*.
        probe_tls: What probes need to be let in.
        probed: Whether features can be asked by HTTP.
        counted: How many records and counts a load must leave behind; of TCP they are its connections.
        unit: What a sample counts: CPU seconds per request, times *scale*.
        scale: See *unit*.
    """
    names = [each for each in among if each in run.peers]
    result = {each: Series(unit) for each in names}
    with contextlib.ExitStack() as stack:
        started = {each: stack.enter_context(_start(run, name, each, role, behind)) for each in names}
        for peer in started.values():
            # nginx's clear-text ports speak one version of HTTP only, and probes speak HTTP/1.1.
            speaks = peer.name != "relay" and not (peer.name == "nginx" and role.downstream_http2)
            if probed and speaks:
                probes.check(peer, role, tls=probe_tls)
                if behind is not None:
                    # Through the first of the pair; what only the second has must act, too.
                    probes.check(
                        peer, Role(role.ports, behind.features - role.features, upstream_tls=role.upstream_tls)
                    )
            apply(peer, WARM_UP_SECONDS)
        ways = {
            each: functools.partial(measured, peer, role, apply, run.seconds, counted) for each, peer in started.items()
        }
        for each, (seconds, seen) in alternate(run.rounds, ways):
            result[each].samples.append(seconds / seen.requests * scale)
            result[each].notes["requests per second"] = round(seen.requests / seen.seconds)
            if seen.p50_us:
                result[each].notes |= {"p50 us": seen.p50_us, "p99 us": seen.p99_us}
    return result


def _start(run: Run, name: str, peer: str, role: Role, behind: Role | None) -> AbstractContextManager[Peer]:
    if peer != US:
        role = replace(role, upstream_default=False)
    if behind is None:
        return peers.start(peer, role, run.folder(name), run.cores.proxy)
    return peers.pair(peer, role, behind, run.folder(name), run.cores.proxy)


def measured(
    peer: Peer, role: Role, apply: Apply, seconds: float, counted: Callable[[Load], int]
) -> tuple[float, Load]:
    """Return the CPU seconds that *peer* spent on a load, once it has recorded and counted it; and the load."""
    counts = probes.Counts(peer, role)
    before = peer.cpu_seconds()
    seen = apply(peer, seconds)
    spent = peer.cpu_seconds() - before
    counts.check(counted(seen))
    return spent, seen
