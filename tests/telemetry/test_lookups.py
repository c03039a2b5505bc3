"""What programs asked for in vain is kept within bounds, the newest first."""

from __future__ import annotations

from weft.telemetry import Lookups
from weft.telemetry.lookups import KEPT_LOOKUPS, KEPT_OF_ONE


def names(lookups: Lookups, limit: int = 10_000, *nodes: str) -> list[tuple[str, str]]:
    return [(record.node, record.authority) for record in lookups.recent(limit, nodes=nodes or None)]


def test_the_newest_come_first_and_each_once() -> None:
    lookups = Lookups()
    for at, (node, name) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]):
        lookups.add(node, name, "NXDOMAIN", at=at)
    assert names(lookups) == [("a", "x"), ("a", "y"), ("b", "x")]
    assert names(lookups, 1) == [("a", "x")]
    assert names(lookups, 10, "b") == [("b", "x")]
    (record,) = lookups.recent(1)
    assert (record.log, record.start, record.flags, record.details) == ("lookups", 3, ("DF",), "NXDOMAIN")


def test_one_workload_pushes_out_only_its_own_and_all_together_are_bounded() -> None:
    lookups = Lookups()
    lookups.add("quiet", "x", "NXDOMAIN", at=0)
    for number in range(2 * KEPT_OF_ONE):
        lookups.add("loud", f"n{number}", "NXDOMAIN", at=number)
    assert len(names(lookups)) == KEPT_OF_ONE + 1
    assert names(lookups)[-1] == ("quiet", "x")
    for number in range(2 * KEPT_LOOKUPS):
        lookups.add(f"node{number}", "x" * 1000, "NXDOMAIN", at=number)
    assert len(names(lookups)) == KEPT_LOOKUPS
    assert len(names(lookups)[0][1]) == 255
