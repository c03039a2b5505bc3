"""
What became of each revision: which proxies it changed, and what they answered.

Pure bookkeeping. The publisher feeds it with what it publishes and with the events of the stream core; the API and
`apply --wait` read receipts from it. What a control plane after this one needs to know is noted in `journal.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, TypeAlias

from weft.xds.journal import Journal, NotedRefusal

REMEMBERED_REVISIONS = 4096
"""Receipts of older revisions are forgotten, and said to be; nobody waits for them any more, and a mesh lives for months."""


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
    """A proxy has said on a stream that it has everything of this revision, but what it refused."""

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
        acknowledged: The last revision of which it has everything but what it refused, by each of its streams; None if
            one has not said yet.
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
class Refusal:
    """
    What a proxy refused of one revision, which it therefore never had as a whole.

    Attributes:
        resources: At least one.
        superseded_by: The revision with which the last of them had been replaced or removed; None while one of them is
            still published.
        mended: Whether the proxy has that revision, and what came in their place.
    """

    resources: tuple[RefusedResource, ...]
    superseded_by: int | None
    mended: bool


@dataclass(frozen=True, slots=True)
class Receipt:
    """
    What became of one revision. `acknowledged`, `silent` and `refused` divide `affected`.

    Attributes:
        published: Whether it has been published at all; until then `affected` is empty and means nothing.
        affected: Node ids of the proxies for which the revision changed something, and which still exist.
        acknowledged: Those that have it, or a later one.
        refused: Those that refused something that came with this revision, whatever has been published since.
        complete: Nothing more is to be expected: it is published and each affected proxy has everything but what it
            refused. While a culprit is being looked for, a proxy is in `refused` and the receipt is not complete.
    """

    revision: int
    published: bool
    affected: frozenset[str]
    acknowledged: frozenset[str]
    silent: frozenset[str]
    refused: Mapping[str, Refusal]
    complete: bool


@dataclass(slots=True)
class _Stream:
    """What was said on one stream: the last revision of which it has everything but what it refused, and that."""

    acknowledged: int | None = None
    refused: dict[tuple[str, str], RefusedResource] = field(default_factory=dict)


@dataclass(slots=True)
class _Proxy:
    """
    What is published to one proxy and what it said.

    During a hot restart it is two processes, each with a stream: it has what both have, and refuses what one of them does.
    """

    resources: dict[tuple[str, str], PublishedResource]
    introduced: dict[tuple[str, str, str], int]
    """At which revision each version (type URL, name, version) came: of the present ones, and of those before them to
    which an answer may be on its way."""
    published: int
    streams: dict[int, _Stream] = field(default_factory=dict)
    """Those that are open."""
    last: _Stream = field(default_factory=_Stream)
    """What holds while none is open: that of the last one that was."""

    @property
    def said(self) -> tuple[_Stream, ...]:
        """What counts of what was said; never empty."""
        return tuple(self.streams.values()) or (self.last,)

    @property
    def acknowledged(self) -> int | None:
        """The last revision of which all of it has everything but what it refused; None if a part has not said yet."""
        revisions = [stream.acknowledged for stream in self.said]
        known = [revision for revision in revisions if revision is not None]
        return min(known) if len(known) == len(revisions) else None

    def publishes(self, item: RefusedResource | NotedRefusal) -> bool:
        """Whether the version that was refused is still published."""
        current = self.resources.get((item.type_url, item.name))
        return current is not None and current.version == item.version

    def still_refused(self) -> tuple[RefusedResource, ...]:
        """What was refused and is still published in that version."""
        refused = {key: item for stream in self.said for key, item in stream.refused.items() if self.publishes(item)}
        return tuple(item for _, item in sorted(refused.items()))


class Ledger:
    """
    Revisions, proxies and answers.

    A revision that was never published itself (several changes were gathered into one) is covered by the next one that
    was: its receipt is that one's.

    Args:
        journal: Tells what became of revisions before, and is told of everything that must be known afterwards.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._proxies: dict[str, _Proxy] = {}
        publications = journal.publications()
        self._revisions: list[int] = [revision for revision, _ in publications]
        """Of publications, the oldest first. Nothing is known of the first of them and of what was before it."""
        self._affected: list[frozenset[str]] = [affected for _, affected in publications]
        self._refusals: dict[str, dict[tuple[int, str, str], NotedRefusal]] = {}
        """Node id -> (revision, type URL, name) -> what that proxy refused."""
        for refusal in journal.refusals():
            self._keep(refusal)

    @property
    def revision(self) -> int:
        """The last published revision; 0 before the first."""
        return self._revisions[-1]

    @property
    def oldest(self) -> int:
        """The first revision of which it is known what became of it."""
        return self._revisions[0] + 1

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
        if self._revisions[-1] == revision:
            self._affected[-1] |= affected
        else:
            self._revisions.append(revision)
            self._affected.append(affected)
            self._forget()
        self._journal.published(revision, self._affected[-1], oldest=self._revisions[0])
        for node_id in affected:
            self._supersede(node_id, revision)
        return affected

    def _replace(self, node_id: str, view: dict[tuple[str, str], PublishedResource], revision: int) -> bool:
        proxy = self._proxies.get(node_id)
        if proxy is None:
            introduced = dict.fromkeys(((*key, item.version) for key, item in view.items()), revision)
            self._proxies[node_id] = _Proxy(view, introduced, revision)
            return True
        before = proxy.resources
        changed = {key for key, item in view.items() if key not in before or before[key].version != item.version}
        if not changed and len(view) == len(before):
            return False
        proxy.resources = view
        present = {
            (*key, item.version): revision if key in changed else proxy.introduced[*key, item.version]
            for key, item in view.items()
        }
        # What was replaced may still be refused, by a proxy that is there and has not answered it.
        earlier = {version: at for version, at in proxy.introduced.items() if proxy.streams and at > self._revisions[0]}
        proxy.introduced = earlier | present
        proxy.published = revision
        for stream in proxy.said:
            if stream.acknowledged is not None and stream.acknowledged >= revision:
                # Changed once more under the same number: what was acknowledged is not this.
                stream.acknowledged = revision - 1
        return True

    def _supersede(self, node_id: str, revision: int) -> None:
        """Note which of a proxy's refusals are over, because something else is published now."""
        proxy = self._proxies[node_id]
        for refusal in self._present(node_id):
            if not proxy.publishes(refusal):
                self._note(refusal._replace(superseded_by=revision))

    def _forget(self) -> None:
        """Forget all but the last revisions, and what was refused of them."""
        forgotten = self._revisions[: -REMEMBERED_REVISIONS - 1]
        if not forgotten:
            return
        del self._revisions[: len(forgotten)], self._affected[: len(forgotten)]
        for refusal in [*chain.from_iterable(of_node.values() for of_node in self._refusals.values())]:
            if refusal.revision <= self._revisions[0]:
                del self._refusals[refusal.node_id][refusal.key]

    def withdraw(self, node_id: str) -> None:
        """Forget a proxy; it is no longer affected by anything. Unknown ones are none."""
        self._proxies.pop(node_id, None)

    def connected(self, node_id: str, stream: int) -> None:
        """A stream of a proxy was opened. What it has is not known until it says so, even if it said so on another."""
        if proxy := self._proxies.get(node_id):
            proxy.streams[stream] = _Stream()

    def disconnected(self, node_id: str, stream: int) -> None:
        """A stream of a proxy was closed. What others have still holds; what the last one had, the proxy still has."""
        if (proxy := self._proxies.get(node_id)) and stream in proxy.streams:
            proxy.last = proxy.streams.pop(stream)
            self._settle(node_id, proxy)

    def synced(self, node_id: str, stream: int, revision: int) -> None:
        """A proxy has said on a stream that it has everything of *revision* but what it refused."""
        if (proxy := self._proxies.get(node_id)) and (said := proxy.streams.get(stream)):
            said.acknowledged = max(revision, said.acknowledged or 0)
            self._settle(node_id, proxy)

    def _settle(self, node_id: str, proxy: _Proxy) -> None:
        """Note what a proxy that has answered everything has of what it had refused."""
        if proxy.acknowledged is None or proxy.acknowledged < proxy.published:
            return
        proxy.introduced = {
            version: proxy.introduced[version]
            for version in ((*key, item.version) for key, item in proxy.resources.items())
        }
        # What it refuses no longer, after it had been away and was asked again, it has.
        refused = {(item.type_url, item.name) for item in proxy.still_refused()}
        for refusal in self._present(node_id):
            if not refusal.taken and (refusal.type_url, refusal.name) not in refused:
                self._note(refusal._replace(taken=True))

    def refused(self, node_id: str, stream: int, resource: RefusedResource) -> None:
        """A proxy has said on a stream that it will not have this version of a resource."""
        if (proxy := self._proxies.get(node_id)) is None or (said := proxy.streams.get(stream)) is None:
            return
        said.refused[resource.type_url, resource.name] = resource
        revision = proxy.introduced.get((resource.type_url, resource.name, resource.version))
        if revision is not None:
            self._note(NotedRefusal(node_id, revision, *resource))
            self._supersede(node_id, proxy.published)
        for refusal in self._present(node_id):
            # One that comes back is in sync until it asks for what it had refused before.
            if refusal.taken and (refusal.type_url, refusal.name, refusal.version) == resource[:3]:
                self._note(refusal._replace(taken=False))

    def _present(self, node_id: str) -> list[NotedRefusal]:
        """What a proxy refused, whenever that was, and is still published in that version."""
        return [item for item in self._refusals.get(node_id, {}).values() if item.superseded_by is None]

    def _note(self, refusal: NotedRefusal) -> None:
        self._keep(refusal)
        self._journal.refused(refusal)

    def _keep(self, refusal: NotedRefusal) -> None:
        self._refusals.setdefault(refusal.node_id, {})[refusal.key] = refusal

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
        """Return what became of *revision*. One that is older than `oldest` affects nobody."""
        forgotten = revision < self.oldest
        if forgotten or revision > self.revision:
            nobody: frozenset[str] = frozenset()
            return Receipt(revision, forgotten, nobody, nobody, nobody, {}, forgotten)
        place = bisect_left(self._revisions, revision)
        covering = self._revisions[place]
        affected = {node_id: self._proxies[node_id] for node_id in self._affected[place] if node_id in self._proxies}
        refused = {node_id: found for node_id in affected if (found := self._refusal(node_id, covering))}
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

    def _refusal(self, node_id: str, revision: int) -> Refusal | None:
        """Return what a proxy refused of what came with the publication *revision*; None if nothing."""
        refusals = {key: item for key, item in sorted(self._refusals.get(node_id, {}).items()) if not item.taken}
        found = [item for item in refusals.values() if item.revision == revision]
        if not found:
            return None
        resources = tuple(RefusedResource(it.type_url, it.name, it.version, it.message) for it in found)
        ends = [item.superseded_by for item in found if item.superseded_by is not None]
        if len(ends) < len(found):
            return Refusal(resources, None, mended=False)
        acknowledged = self._proxies[node_id].acknowledged
        has_it = acknowledged is not None and acknowledged >= max(ends)
        # What came in its place may have been refused as well.
        again = any((it.superseded_by, it.type_url, it.name) in refusals for it in found)
        return Refusal(resources, max(ends), mended=has_it and not again)
