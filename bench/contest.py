"""
The body of most scenarios: start all peers with one role, probe them, load them in turn, take what each cost.

Peers that are not loaded idle; each is alone on the proxy's core while it is measured, as far as this bench is concerned.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from bench import backends, peers, probes
from bench.goals import US
from bench.load import Load, wrk
from bench.measure import CPU, Run, Series, alternate
from bench.peers import Peer
from bench.role import Role

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
    variants: Mapping[str, tuple[str, Role]] | None = None,
    counted: Callable[[Load], int] = lambda seen: seen.requests,
    unit: str = CPU,
    scale: float = 1e6,
) -> dict[str, Series]:
    """
    Return what each peer, and each variant, cost in each round.

    Args:
        run: Cores, rounds, and which peers at all.
        name: Of the folder, and of the configurations that are kept.
        role: Of each proxy; of the first of a pair, if there is *behind*, the role of the second.
        apply: The load.
        among: Names of the peers that can do this.
        behind: See *role*.
        variants: Further lines of the table: a peer with another role than *role*.
        counted: How many records and counts a load must leave behind; of TCP they are its connections.
        unit: What a sample counts: CPU seconds per request, times *scale*.
        scale: See *unit*.
    """
    lines = {each: (each, role, run.folder(name)) for each in among}
    for line, (each, other) in (variants or {}).items():
        lines[line] = (each, other, run.folder("-".join([name, *re.findall(r"\w+", line)])))
    lines = {line: what for line, what in lines.items() if what[0] in run.peers}
    result = {line: Series(unit) for line in lines}
    with contextlib.ExitStack() as stack:
        ways = {}
        for line, (each, wanted, folder) in lines.items():
            peer = stack.enter_context(_start(run, folder, each, wanted, behind))
            probes.check(peer, wanted)
            if behind is not None:
                # Asked without the first of the pair, whose features would hide that the second lacks them.
                probes.check(peer.behind[0], behind)
            apply(peer, WARM_UP_SECONDS)
            ways[line] = functools.partial(measured, peer, wanted, apply, run.seconds, counted)
        for each, (seconds, seen) in alternate(run.rounds, ways):
            result[each].samples.append(seconds / seen.requests * scale)
            result[each].notes["requests per second"] = round(seen.requests / seen.seconds)
            if seen.p50_us:
                result[each].notes |= {"p50 us": seen.p50_us, "p99 us": seen.p99_us}
    return result


def _start(run: Run, folder: Path, peer: str, role: Role, behind: Role | None) -> AbstractContextManager[Peer]:
    if peer != US:
        role = replace(role, upstream_default=False)
    if behind is None:
        return peers.start(peer, role, folder, run.cores.proxy)
    return peers.pair(peer, role, behind, folder, run.cores.proxy)


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
