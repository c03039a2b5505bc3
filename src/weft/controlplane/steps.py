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
from dataclasses import dataclass, replace

from weft.model import ConfigKey, ConfigObject, Snapshot
from weft.translate.peer_authentication import Mode, modes


@dataclass(frozen=True, slots=True)
class Step:
    """
    One publication.

    Attributes:
        config: The objects in force during it; None for those of the snapshot that is shown.
        before: The objects before the change: ports of which they say another mode than the snapshot that is shown
            accept both. None: no port does.
        what: What its proxies confirm, for people.
    """

    config: Mapping[ConfigKey, ConfigObject] | None = None
    before: Mapping[ConfigKey, ConfigObject] | None = None
    what: str = "the change"

    def show(self, snapshot: Snapshot) -> Snapshot:
        """Return *snapshot* as proxies are to see it in this step; what has joined since the step before, too."""
        config = snapshot.config if self.config is None else self.config
        both: dict[tuple[str, str], frozenset[int]] = {}
        if self.before is not None:
            for namespace, workload, port in _changing(replace(snapshot, config=self.before), snapshot):
                both[namespace, workload] = both.get((namespace, workload), frozenset()) | {port}
        return replace(snapshot, config=config, accepting_both=both)


WHOLE = Step()
"""The last step of every change, and the only one of nearly all."""


def steps(before: Snapshot, after: Snapshot) -> tuple[Step, ...]:
    """Return the publications that lead from *before* to *after*, in order; the last one is `WHOLE`."""
    changing = _changing(before, after)
    found = []
    if any(old is not Mode.PERMISSIVE for old, _ in changing.values()):
        found.append(Step(before.config, before.config, "that it accepts mutual TLS and plain text"))
    if any(new is not Mode.PERMISSIVE for _, new in changing.values()):
        found.append(Step(None, before.config, "that it sends what the new mode asks for"))
    return (*found, WHOLE)


def _changing(before: Snapshot, after: Snapshot) -> dict[tuple[str, str, int], tuple[Mode, Mode]]:
    """Return the mode before and after of each port, by namespace, workload and port, that is in both and has another one."""
    old, new = modes(before), modes(after)
    return {port: (old[port], mode) for port, mode in new.items() if old.get(port, mode) is not mode}


def remaining(before: Snapshot, after: Snapshot, count: int) -> tuple[Step, ...]:
    """
    Return the last *count* publications of the change from *before* to *after*, which another control plane began.

    The one that was under way begins again: whoever has confirmed it is sent nothing, and the one before was confirmed.
    """
    return steps(before, after)[-count:]
