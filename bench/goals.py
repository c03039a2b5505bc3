"""The goals: what weft-proxy's figure may be beside those of its peers in the same run, or alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.measure import Table

US = "weft-proxy"
FLOOR = "relay"
"""Makes the same calls of the kernel and understands nothing: what it misses, nothing that passes bytes can meet on that machine."""


@dataclass(frozen=True)
class Goal:
    """
    At most *limit* times the median of *peer* in the table *key*; without a peer, at most *limit* itself.

    *best_of* may name more peers, of which the cheapest counts.
    """

    key: str
    limit: float
    peer: str = ""
    best_of: tuple[str, ...] = ()
    ours: str = US
    """Whose figure is judged: its name in the table."""


GOALS = (
    Goal("s1", 0.33, "envoy"),
    Goal("s1", 0.85, "haproxy"),
    Goal("s2.1", 0.30, "envoy"),
    Goal("s2.1", 0.90, "haproxy"),
    Goal("s2.14", 0.30, "envoy"),
    Goal("s2.14", 0.90, "haproxy"),
    Goal("s3.h2.1", 0.35, "envoy"),
    Goal("s3.h2.1", 1.0, "haproxy"),
    Goal("s3.h2.64", 0.35, "envoy"),
    Goal("s3.h2.64", 1.0, "haproxy"),
    Goal("s3.h1.1", 1.0, "haproxy"),
    Goal("s3.h1.64", 1.0, "haproxy"),
    # What weft ships (HTTP/2, decision 0012) beside what Istio ships (HTTP/1.1).
    Goal("s3.default.1", 0.25, "envoy"),
    Goal("s3.default.64", 0.25, "envoy"),
    Goal("s4.bare", 0.42, "envoy"),
    Goal("s4.bare", 0.85, "haproxy"),
    Goal("s4.mesh", 0.35, "envoy"),
    Goal("s4.mesh", 0.80, "haproxy"),
    Goal("s5.small", 1.0, "haproxy"),
    Goal("s5.large", 1.0, "envoy"),
    Goal("s6.plain", 1.0, "envoy", best_of=("nginx",)),
    Goal("s6.pair", 1.0, "envoy"),
    Goal("s9.plain", 1.0, "haproxy"),
    Goal("s9.mtls", 1.0, "envoy"),
    Goal("s10.s2", 0.35, "envoy"),
    Goal("s10.s9", 0.35, "envoy"),
    Goal("s10.s9.mtls", 0.35, "envoy"),
    Goal("memory.idle", 8),
    Goal("memory.idle", 0.125, "envoy"),
    Goal("memory.loaded", 30),
    Goal("memory.loaded", 0.25, "envoy"),
    Goal("memory.plain", 2),
    Goal("memory.mtls", 16),
    Goal("demo", 8),
    Goal("start.answering", 10),
    Goal("latency.p50", 1.0, "envoy"),
    Goal("latency.p50", 1.0, "haproxy"),
    # Flat, as far as a shared machine can tell.
    Goal("growth.hosts", 1.1, f"{US}, 10", ours=f"{US}, 10,000"),
    Goal("growth.routes", 1.1, f"{US}, 10", ours=f"{US}, 10,000"),
    Goal("growth.regexes", 1.1, f"{US}, 10", ours=f"{US}, 10,000"),
    Goal("growth.workers", 1.1, f"{US}, 1", ours=f"{US}, 2"),
)


def judged(tables: Sequence[Table]) -> Iterator[tuple[str, str, str, str, bool]]:
    """
    Yield title, goal, what was measured and whether it is met, of each goal that these tables can judge.

    Before the last there is the same of the byte relay, empty where it does not take part.
    """
    by_key = {table.key: table for table in tables}
    for goal in GOALS:
        table = by_key.get(goal.key)
        if table is None or goal.ours not in table.series:
            continue
        if goal.peer:
            theirs = {peer: table.series[peer].median for peer in (goal.peer, *goal.best_of) if peer in table.series}
            if goal.peer not in theirs:
                continue
            cheapest = min(theirs, key=lambda peer: theirs[peer])
            scale, digits, unit = theirs[cheapest], 2, f"x {cheapest}"
        else:
            scale, digits, unit = 1.0, 1, table.series[goal.ours].unit
        found = {name: table.series[name].median / scale for name in (goal.ours, FLOOR) if name in table.series}
        measured, floor = (f"{found[name]:.{digits}f}" if name in found else "" for name in (goal.ours, FLOOR))
        yield table.title, f"<= {goal.limit:g} {unit}", measured, floor, found[goal.ours] <= goal.limit
