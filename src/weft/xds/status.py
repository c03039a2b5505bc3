"""
What became of each revision: which proxies it changed, and what they answered.

Pure bookkeeping. The publisher feeds it with what it publishes and with the events of the stream core; the API and
`apply --wait` read receipts from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

REMEMBERED_REVISIONS = 4096
"""Receipts of older revisions are forgotten; nobody waits for them any more, and a mesh lives for months."""


class PublishedResource(NamedTuple):
    """A resource as it was last published: `value` is the serialised message, `version` a hash of it."""

    type_url: str
    name: str
    version: str
    value: bytes


class RefusedResource(NamedTuple):
    """A version that a proxy will not have. The last good one stays in force there; `message` is the proxy's own."""

    type_url: str
    name: str
    version: str
    message: str


@dataclass(frozen=True, slots=True)
class Connected:
    """A proxy has opened a stream. `pid` is the process at the other end, as the kernel says it."""

    node_id: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A stream may not see the view that it asks for; it is left without any."""

    node_id: str
    pid: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The last stream of a proxy is closed."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Synced:
    """A proxy has everything of this revision, but what it refused."""

    node_id: str
    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A proxy has refused a resource (NACK)."""

    node_id: str
    resource: RefusedResource


Event: TypeAlias = Connected | Rejected | Disconnected | Synced | Refused


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    """
    Attributes:
        connected: Whether a stream is open.
        published: The last revision that changed anything for this proxy.
        acknowledged: The last revision of which it has everything but what it refused; None if it has not said yet.
        refused: What it refused and is still published.
    """

    node_id: str
    connected: bool
    published: int
    acknowledged: int | None
    refused: tuple[RefusedResource, ...]

    @property
    def synced(self) -> bool:
        """Whether it is there and has everything that is published to it."""
        current = self.acknowledged is not None and self.acknowledged >= self.published
        return self.connected and current and not self.refused


@dataclass(frozen=True, slots=True)
class Receipt:
    """
    What became of one revision. `acknowledged`, `silent` and `refused` divide `affected`.

    Attributes:
        published: Whether it has been published at all; until then `affected` is empty and means nothing.
        affected: Node ids of the proxies for which the revision changed something, and which still exist.
        refused: Those that refused something that came with this revision, with what they refused.
        complete: Nothing more is to be expected: it is published and each affected proxy has everything but what it
            refused. While a culprit is being looked for, a proxy is in `refused` and the receipt is not complete.
    """

    revision: int
    published: bool
    affected: frozenset[str]
    acknowledged: frozenset[str]
    silent: frozenset[str]
    refused: Mapping[str, tuple[RefusedResource, ...]]
    complete: bool


@dataclass(slots=True)
class _Proxy:
    """What is published to one proxy and what it said."""

    resources: dict[tuple[str, str], PublishedResource]
    introduced: dict[tuple[str, str], int]
    """At which revision the present version of each resource came."""
    published: int
    streams: set[int] = field(default_factory=set)
    acknowledged: int | None = None
    refused: dict[tuple[str, str], RefusedResource] = field(default_factory=dict)

    def still_refused(self, *, since: int = 0) -> tuple[RefusedResource, ...]:
        """What was refused, is still published in that version, and came after revision *since*."""
        return tuple(
            refused
            for key, refused in sorted(self.refused.items())
            if (current := self.resources.get(key)) is not None
            and current.version == refused.version
            and self.introduced[key] > since
        )


class Ledger:
    """
    Revisions, proxies and answers.

    A revision that was never published itself (several changes were gathered into one) is covered by the next one that
    was: its receipt is that one's.
    """

    def __init__(self) -> None:
        self._proxies: dict[str, _Proxy] = {}
        self._revisions: list[int] = []
        self._affected: list[frozenset[str]] = []

    @property
    def revision(self) -> int:
        """The last published revision; 0 before the first."""
        return self._revisions[-1] if self._revisions else 0

    def record(self, views: Mapping[str, Mapping[tuple[str, str], PublishedResource]], revision: int) -> frozenset[str]:
        """
        Take note of a publication.

        Args:
            views: Node id -> (type URL, name) -> resource. Views that are not named stay as they are.
            revision: Not less than the last one.

        Returns:
            The node ids whose contents differ from what was published before.

        Raises:
            ValueError: *revision* lies before the last one.
        """
        if revision < self.revision:
            raise ValueError(f"revision {revision} is published after revision {self.revision}")
        affected = frozenset(node_id for node_id, view in views.items() if self._replace(node_id, dict(view), revision))
        if self._revisions and self._revisions[-1] == revision:
            self._affected[-1] |= affected
        else:
            self._revisions.append(revision)
            self._affected.append(affected)
        del self._revisions[:-REMEMBERED_REVISIONS], self._affected[:-REMEMBERED_REVISIONS]
        return affected

    def _replace(self, node_id: str, view: dict[tuple[str, str], PublishedResource], revision: int) -> bool:
        proxy = self._proxies.get(node_id)
        if proxy is None:
            self._proxies[node_id] = _Proxy(view, dict.fromkeys(view, revision), revision)
            return True
        before = proxy.resources
        changed = {key for key, item in view.items() if key not in before or before[key].version != item.version}
        if not changed and len(view) == len(before):
            return False
        proxy.resources = view
        proxy.introduced = {key: revision if key in changed else proxy.introduced[key] for key in view}
        proxy.published = revision
        if proxy.acknowledged is not None and proxy.acknowledged >= revision:
            # Changed once more under the same number: what was acknowledged is not this.
            proxy.acknowledged = revision - 1
        return True

    def withdraw(self, node_id: str) -> None:
        """Forget a proxy; it is no longer affected by anything. Unknown ones are none."""
        self._proxies.pop(node_id, None)

    def connected(self, node_id: str, stream: int) -> None:
        """A stream of a proxy was opened. What it has is not known until it says so, even if it said so before."""
        if proxy := self._proxies.get(node_id):
            proxy.streams.add(stream)
            proxy.acknowledged = None
            proxy.refused.clear()

    def disconnected(self, node_id: str, stream: int) -> None:
        """A stream of a proxy was closed. What it had acknowledged, it still has."""
        if proxy := self._proxies.get(node_id):
            proxy.streams.discard(stream)

    def synced(self, node_id: str, revision: int) -> None:
        """A proxy has everything of *revision* but what it refused."""
        if proxy := self._proxies.get(node_id):
            proxy.acknowledged = max(revision, proxy.acknowledged or 0)

    def refused(self, node_id: str, resource: RefusedResource) -> None:
        """A proxy will not have this version of a resource."""
        if proxy := self._proxies.get(node_id):
            proxy.refused[resource.type_url, resource.name] = resource

    def resources(self, node_id: str) -> tuple[PublishedResource, ...] | None:
        """What is published to a proxy, by type and name; None for an unknown one."""
        proxy = self._proxies.get(node_id)
        return tuple(item for _, item in sorted(proxy.resources.items())) if proxy else None

    def proxies(self) -> dict[str, ProxyStatus]:
        """The present state of each proxy, by node id."""
        return {
            node_id: ProxyStatus(
                node_id, bool(proxy.streams), proxy.published, proxy.acknowledged, proxy.still_refused()
            )
            for node_id, proxy in sorted(self._proxies.items())
        }

    def behind(self) -> frozenset[str]:
        """The node ids of the proxies that have not answered everything that is published to them."""
        return frozenset(
            node_id
            for node_id, proxy in self._proxies.items()
            if proxy.acknowledged is None or proxy.acknowledged < proxy.published
        )

    def receipt(self, revision: int) -> Receipt:
        """Return what became of *revision*. One older than is remembered affects nobody."""
        place = bisect_left(self._revisions, revision)
        if place == len(self._revisions):
            nobody: frozenset[str] = frozenset()
            return Receipt(revision, False, nobody, nobody, nobody, {}, False)
        covering = self._revisions[place]
        before = self._revisions[place - 1] if place else covering - 1
        affected = {node_id: self._proxies[node_id] for node_id in self._affected[place] if node_id in self._proxies}
        refused = {
            node_id: resources
            for node_id, proxy in affected.items()
            if (resources := tuple(it for it in proxy.still_refused(since=before) if _came_by(proxy, it, covering)))
        }
        answered = {
            node_id
            for node_id, proxy in affected.items()
            if proxy.acknowledged is not None and proxy.acknowledged >= covering
        }
        return Receipt(
            revision=revision,
            published=True,
            affected=frozenset(affected),
            acknowledged=frozenset(answered - refused.keys()),
            silent=frozenset(affected.keys() - answered - refused.keys()),
            refused=refused,
            complete=affected.keys() <= answered,
        )


def _came_by(proxy: _Proxy, resource: RefusedResource, revision: int) -> bool:
    """Whether the refused version was there at *revision* already, rather than later."""
    return proxy.introduced[resource.type_url, resource.name] <= revision
