"""What is stored, and what a store must be able to do. Values only; no I/O."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from weft.errors import StoreError
from weft.model import ConfigKey


class Author(StrEnum):
    """Who applied an object: the USER by `weft apply`, or the DECLARATION (`apply` of weft.yaml) at `weft up`."""

    USER = "user"
    DECLARATION = "declaration"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """
    One applied object, as text.

    Attributes:
        key: Which of the objects in *text* this is.
        file: Name of the file as the user gave it; `-` is standard input.
        text: The whole file, so that line numbers are those that the user sees.
        generation: Counts the changes of the object's content, from 1.
        created: Revision at which the object first appeared.
    """

    key: ConfigKey
    file: str
    text: str
    generation: int = 1
    created: int = 0
    author: Author = Author.USER


@dataclass(frozen=True, slots=True)
class Lease:
    """
    A workload's address, and the agent that holds it.

    Attributes:
        address: IPv4 in the mesh network; stays with the name after the workload is gone, so that it gets it again.
        agent: `<pid>:<start time in ticks>` of the process that registered it, or empty once it has left. After a
            restart this tells which workloads are about to come back.
        ready: Whether its endpoints were published.
    """

    namespace: str
    name: str
    address: str
    agent: str = ""
    ready: bool = False


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """One line of the log of revisions; `time` is seconds since the epoch."""

    revision: int
    time: float
    summary: str


@dataclass(frozen=True, slots=True)
class Transition:
    """
    A change that is published in steps and is not over: what another control plane needs to go on with it.

    Attributes:
        remaining: Publications that are not confirmed, the present one included; 0 ends the transition.
        before: Each object that the change touches as it was before; None if there was none.
    """

    remaining: int
    before: Mapping[ConfigKey, StoredObject | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What one commit writes, all of it or nothing. `boot`, `transition` and `directory` None leave what is there.

    `directory` is the followed directory, file name -> text. `statuses` is what stands under `status` of each object
    where that is another one now; None if there is none any more.
    """

    put: tuple[StoredObject, ...] = ()
    delete: tuple[ConfigKey, ...] = ()
    service_addresses: Mapping[str, str] = field(default_factory=dict)
    leases: tuple[Lease, ...] = ()
    boot: str | None = None
    transition: Transition | None = None
    statuses: Mapping[ConfigKey, Mapping[str, Any] | None] = field(default_factory=dict)
    directory: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """
    All that a store holds: the last revision, objects by key and their statuses, service addresses by hostname, leases,
    the change that is not over, and the followed directory (file name -> text) as it was when it was good last.

    `boot` names the `weft up` that last used it, which tells a restart within one from the next one.
    """

    revision: int = 0
    objects: Mapping[ConfigKey, StoredObject] = field(default_factory=dict)
    service_addresses: Mapping[str, str] = field(default_factory=dict)
    leases: tuple[Lease, ...] = ()
    boot: str = ""
    transition: Transition | None = None
    statuses: Mapping[ConfigKey, Mapping[str, Any]] = field(default_factory=dict)
    directory: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """
    Keeps everything, for one control plane at a time, and for any of its threads.

    `commit` returns once the change would survive the loss of power, and a reader never sees a part of one.

    Raises (every method):
        StoreError: Disk full, no permission, a damaged file, or another control plane holds the store.
    """

    def load(self) -> Content: ...

    def commit(self, changes: Changes, *, summary: str, time: float, at_least: int = 0) -> int:
        """Write *changes*; return the new revision: one more than the last, or *at_least* if that is more."""
        ...

    def revisions(self, limit: int) -> list[StoredRevision]:
        """Return the newest *limit* revisions, newest first."""
        ...

    def created_times(self) -> Mapping[int, float]:
        """Return the time of each revision in which an object that is there appeared, however long ago; seconds since the epoch."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Documents that somebody else writes."""

    def load(self) -> Mapping[str, str]:
        """Return file name -> text of everything there is now."""
        ...

    def watch(self, known: Mapping[str, str], tell: Callable[[StoreError], None]) -> AsyncIterator[Mapping[str, str]]:
        """
        Yield the whole content each time it differs from what was yielded last, at first from *known*.

        *tell* is called while it cannot be read, once until something changes.
        """
        ...
