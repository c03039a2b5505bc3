"""
Telling about UDP that was refused.

The kernel refuses it (nftables: `reject`), so a connected socket of the program sees ECONNREFUSED at once, without the agent.
The agent asks from time to time what was refused and says one sentence for each destination, with how often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.agent.namespaces import ProgramNamespaces

_SENTENCES = 20  # a program that tries every host of a network is told about once
_OTHERS = "UDP to more destinations was refused; they are counted and not named from here on."


class RefusedUdp:
    """What one program's namespace refused."""

    def __init__(self, namespaces: ProgramNamespaces) -> None:
        self._namespaces = namespaces
        self._named: set[tuple[str, int]] = set()
        self.counts: dict[tuple[str, int], int] = {}
        """Datagrams refused since the start, by destination (address, port), as of the last `poll`."""

    def poll(self) -> dict[str, int]:
        """Bring `counts` up to date; returns sentence -> datagrams for each whose count has grown."""
        before, self.counts = self.counts, self._namespaces.refused_udp()
        grown: dict[str, int] = {}
        for destination in sorted(self.counts.keys() - self._named):
            if len(self._named) < _SENTENCES:
                self._named.add(destination)
        for destination, count in sorted(self.counts.items()):
            if count == before.get(destination):
                continue
            if destination in self._named:
                grown[_sentence(*destination)] = count
            else:
                grown[_OTHERS] = sum(self.counts[other] for other in self.counts.keys() - self._named)
        return grown


def _sentence(address: str, port: int) -> str:
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    what = "QUIC (HTTP/3); clients fall back to TCP" if port == 443 else "UDP other than DNS"
    return f"UDP to {target} was refused: the mesh does not carry {what}."
