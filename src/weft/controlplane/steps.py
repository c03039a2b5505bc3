"""
The order of a change across proxies: which publications bring the mesh from one configuration to the next so that no
request meets a server that does not take what its client sends.

A port's mode (PeerAuthentication) is read on both sides: by the server, which accepts, and by every client, which sends
by the endpoint's label. No two proxies learn of a change at the same moment. So a port whose mode changes accepts both
for a while, and each step begins when the proxies of the one before have confirmed it:

    widen      servers accept mutual TLS and plain text      (left out where they did already: PERMISSIVE before)
    move       everybody else has the new configuration: clients send what the new mode asks for
    hold       servers accept what the new mode says         (left out where that is both: PERMISSIVE after)

Pure. `change.py` walks the steps; what is told while it waits is there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from weft.model import ConfigKey, ConfigObject, Snapshot
from weft.translate.peer_authentication import Mode, modes


@dataclass(frozen=True, slots=True)
class Step:
    """
    One publication.

    Attributes:
        config: The objects in force during it; None for those of the snapshot that is shown.
        accepting_both: As in `Snapshot`.
        what: What its proxies confirm, for people.
    """

    config: Mapping[ConfigKey, ConfigObject] | None = None
    accepting_both: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    what: str = "the change"

    def show(self, snapshot: Snapshot) -> Snapshot:
        """Return *snapshot* as proxies are to see it in this step."""
        config = snapshot.config if self.config is None else self.config
        return replace(snapshot, config=config, accepting_both=self.accepting_both)


WHOLE = Step()
"""The last step of every change, and the only one of nearly all."""


def steps(before: Snapshot, after: Snapshot) -> tuple[Step, ...]:
    """Return the publications that lead from *before* to *after*, in order; the last one is `WHOLE`."""
    old, new = modes(before), modes(after)
    changing = [port for port, mode in new.items() if old.get(port, mode) is not mode]
    if not changing:
        return (WHOLE,)
    both: dict[tuple[str, str], frozenset[int]] = {}
    for namespace, workload, port in changing:
        both[namespace, workload] = both.get((namespace, workload), frozenset()) | {port}
    found = []
    if any(old[port] is not Mode.PERMISSIVE for port in changing):
        found.append(Step(before.config, both, "that it accepts mutual TLS and plain text"))
    if any(new[port] is not Mode.PERMISSIVE for port in changing):
        found.append(Step(None, both, "that it sends what the new mode asks for"))
    return (*found, WHOLE)


def remaining(before: Snapshot, after: Snapshot, count: int) -> tuple[Step, ...]:
    """
    Return the last *count* publications of the change from *before* to *after*, which another control plane began.

    The one that was under way begins again: whoever has confirmed it is sent nothing, and the one before was confirmed.
    """
    return steps(before, after)[-count:]
