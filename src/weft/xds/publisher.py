"""
From views to streams: gives each proxy its resources through the stream core and hears what it answers.

Runs on one asyncio loop. Publishing hands bytes to Rust threads and returns; nothing here waits for a proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from hashlib import blake2b
from os import PathLike

from envoy.config.core.v3.base_pb2 import Node

from weft._native import StreamCore
from weft.xds.journal import Journal
from weft.xds.status import (
    Connected,
    Disconnected,
    Event,
    Ledger,
    ProxyStatus,
    PublishedResource,
    Receipt,
    Refused,
    RefusedResource,
    Rejected,
    Synced,
)


def admit_all(node_id: str, pid: int | None) -> str:
    """Admit whoever can open the socket."""
    return ""


def ignore(event: Event) -> None:
    """Tell nobody."""


def version_of(value: bytes) -> str:
    """
    Return the version of a resource: a hash of its serialised message, 16 hexadecimal digits.

    It says nothing about when, so that a control plane that starts again gives the same versions to the same contents
    and a proxy that comes back is sent nothing.
    """
    return blake2b(value, digest_size=8).hexdigest()


class Publisher:
    """
    The proxies' side of the control plane. The package's docstring shows its use.

    Args:
        path: Where to listen (`xds.sock`).
        admit: Says why a process may not have a view; "" admits it.
        observe: Is called on the loop with each event, after the status has taken it in.
        journal: What became of revisions before, and where it is noted; by default, in memory.

    Raises:
        OSError: The socket cannot be made.
        RuntimeError: No asyncio loop is running.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        admit: Callable[[str, int | None], str] = admit_all,
        observe: Callable[[Event], None] = ignore,
        journal: Journal | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._admit = admit
        self._observe = observe
        self._ledger = Ledger(journal or Journal())
        self._streams: dict[int, str] = {}
        """Stream -> node id, of the streams that were admitted."""
        self._answered = asyncio.Event()
        """Set, and replaced, whenever a receipt may have changed."""
        self._core = StreamCore(path)
        self._fileno = self._core.fileno()
        self._loop.add_reader(self._fileno, self._drain)

    def publish(self, views: Mapping[str, Iterable[tuple[str, str, bytes]]], revision: int) -> frozenset[str]:
        """
        Give each named proxy a new set of resources; the streams follow by themselves.

        Args:
            views: Node id -> every resource of that proxy as (type URL, name, serialised message). Proxies that are not
                named keep what they have. May be empty, to say that the revision changes nothing.
            revision: Of the snapshot; never less than before.

        Returns:
            The affected proxies: those whose resources differ from what was published before.

        Raises:
            ValueError: A view has two resources of one type and name, or *revision* goes backwards.
        """
        contents = {node_id: _index(node_id, resources) for node_id, resources in views.items()}
        newcomers = contents.keys() - self._ledger.proxies().keys()
        affected = self._ledger.record(contents, revision)
        for node_id in sorted(affected):
            self._core.publish(node_id, revision, list(contents[node_id].values()))
        for stream, node_id in self._streams.items():
            if node_id in newcomers:
                # It connected before anything was known of its workload.
                self._ledger.connected(node_id, stream)
        self._wake()
        return affected

    def withdraw(self, node_id: str) -> None:
        """Stop publishing to a proxy that is gone. An unknown one is none."""
        self._core.withdraw(node_id)
        self._ledger.withdraw(node_id)
        self._wake()

    def proxies(self) -> dict[str, ProxyStatus]:
        """Return the state of each proxy, by node id."""
        return self._ledger.proxies()

    def resources(self, node_id: str) -> tuple[PublishedResource, ...] | None:
        """Return what is published to a proxy, by type and name; None if nothing ever was."""
        return self._ledger.resources(node_id)

    @property
    def oldest(self) -> int:
        """The first revision of which it is known what became of it."""
        return self._ledger.oldest

    def receipt(self, revision: int) -> Receipt:
        """Return what has become of *revision* until now. One that is older than `oldest` affects nobody."""
        return self._ledger.receipt(revision)

    async def wait(self, revision: int, timeout: float) -> Receipt:
        """
        Wait until each affected proxy has answered, at most *timeout* seconds, and return the receipt.

        A revision that is not published yet is waited for. After the time-out the receipt tells who is silent.
        """
        await self._until(lambda: self.receipt(revision).complete, timeout)
        return self.receipt(revision)

    async def wait_for_all(self, timeout: float) -> frozenset[str]:
        """Wait until every proxy has answered all that is published, at most *timeout* seconds; return who has not."""
        await self._until(lambda: not self._ledger.behind(), timeout)
        return self._ledger.behind()

    async def _until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until *condition*, looked at after each answer, holds or *timeout* seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not condition():
                    await self._answered.wait()

    def close(self) -> None:
        """End all streams and remove the socket. The proxies keep what they have."""
        if self._fileno >= 0:
            self._loop.remove_reader(self._fileno)
            self._fileno = -1
            self._core.close()

    def _wake(self) -> None:
        self._answered.set()
        self._answered = asyncio.Event()

    def _drain(self) -> None:
        """Take in what the streams report."""
        for event in self._core.events():
            if event[0] == "connected":
                self._connected(*event[1:])
            elif event[0] == "synced":
                _, stream, view, revision = event
                # A report that crossed the withdrawal of its view, or its stream's end, is about nobody.
                if self._streams.get(stream) == view:
                    self._ledger.synced(view, stream, revision)
                    self._observe(Synced(view, revision))
            elif event[0] == "refused":
                _, stream, view, *refused = event
                if self._streams.get(stream) == view:
                    resource = RefusedResource(*refused)
                    self._ledger.refused(view, stream, resource)
                    self._observe(Refused(view, resource))
            else:
                self._closed(event[1])
        self._wake()

    def _connected(self, stream: int, node: bytes, pid: int | None) -> None:
        node_id = Node.FromString(node).id
        if reason := self._admit(node_id, pid):
            self._observe(Rejected(node_id, pid, reason))
            return
        self._streams[stream] = node_id
        self._ledger.connected(node_id, stream)
        self._core.attach(stream, node_id)
        self._observe(Connected(node_id, pid))

    def _closed(self, stream: int) -> None:
        node_id = self._streams.pop(stream, None)
        if node_id is None:
            return
        self._ledger.disconnected(node_id, stream)
        if node_id not in self._streams.values():
            self._observe(Disconnected(node_id))


def _index(node_id: str, resources: Iterable[tuple[str, str, bytes]]) -> dict[tuple[str, str], PublishedResource]:
    """Return the resources of one view by type and name, with their versions."""
    index: dict[tuple[str, str], PublishedResource] = {}
    for type_url, name, value in resources:
        if (type_url, name) in index:
            raise ValueError(f"the view of {node_id} has two resources {name!r} of type {type_url}")
        index[type_url, name] = PublishedResource(type_url, name, version_of(value), value)
    return index
