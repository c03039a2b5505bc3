"""
Names that programs asked for in vain, as their agents tell them: the newest, in memory.

No proxy sees a call whose host has no address, so no proxy records it. Each name becomes a record of the log `lookups`,
beside those of the proxies, for `weft why`. Used by the control plane.
"""

from __future__ import annotations

from collections.abc import Collection

from weft.telemetry.records import Record

KEPT_LOOKUPS = 1000
"""Of all workloads; those of workloads that are gone too, as of `weft run -- curl ...`."""

KEPT_OF_ONE = 100
"""Of one workload: one that asks for anything must not push out what others asked for."""

NAME_LETTERS = 255
"""Of a name in DNS (RFC 1035 2.3.4)."""


class Lookups:
    """What was asked for in vain; a name that the same workload asks for again is kept once, with the newest time."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Record] = {}

    def add(self, node: str, name: str, answer: str, *, at: float) -> None:
        """
        Keep that the program beside the proxy *node* asked for *name*.

        Args:
            node: Node id of the proxy.
            answer: Code of the answer: `NXDOMAIN`, `SERVFAIL`, ...
            at: Seconds since 1970, not before the last one's.
        """
        name = name[:NAME_LETTERS]
        self._kept.pop((node, name), None)
        of_one = [key for key in self._kept if key[0] == node]
        if len(of_one) >= KEPT_OF_ONE:
            del self._kept[of_one[0]]
        elif len(self._kept) >= KEPT_LOOKUPS:
            del self._kept[next(iter(self._kept))]
        self._kept[node, name] = Record(
            node, "lookups", "DNS", "outbound", at, 0.0, authority=name, flags=("DF",), details=answer[:NAME_LETTERS]
        )

    def recent(self, limit: int, *, nodes: Collection[str] | None = None) -> list[Record]:
        """Return at most *limit*, the newest first; only of the proxies *nodes*, if given."""
        found = [record for record in reversed(self._kept.values()) if nodes is None or record.node in nodes]
        return found[:limit]
