"""The line of a change when something on it fails or nobody waits for it any more: the mesh is right again by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.test_steps import POLICY
from weft.api.parse import identify, parse
from weft.controlplane import change
from weft.controlplane.change import ControlPlane
from weft.controlplane.edit import Action, Document, Edit
from weft.controlplane.events import Events
from weft.errors import StoreError, WeftError
from weft.model import Protocol, WorkloadPort
from weft.registry import Programs, Registration
from weft.store import Changes, Lease, SqliteStore
from weft.translate.check import check
from weft.translate.peer_authentication import modes
from weft.translate.resource import Resources, resource
from weft.xds import Receipt


class Disk(SqliteStore):
    """A store whose disk can be full or slow."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.full = False
        self.go = threading.Event()
        self.go.set()
        self.reached = threading.Event()

    def commit(self, changes: Changes, *, summary: str, time: float, at_least: int = 0) -> int:
        self.reached.set()
        self.go.wait()
        if self.full:
            raise StoreError("database or disk is full")
        return super().commit(changes, summary=summary, time=time, at_least=at_least)


class Line:
    """A control plane without sockets. `published` has (revision, modes of the ports as the proxies were shown them)."""

    def __init__(self, path: Path) -> None:
        self.disk = Disk(path / "store.db")
        self.registry = Programs()
        self.published: list[tuple[int, Mapping[str, Any]]] = []
        self.broken = False
        self.failing: set[str] = set()
        """Workloads for whose proxies translation fails."""
        self.twofold: set[str] = set()
        """Workloads for whose proxies a resource is made twice."""
        self.views: dict[str, Sequence[tuple[str, str, bytes]]] = {}
        """What each proxy was told last, by node id."""
        self.confirming = asyncio.Event()
        """Cleared while proxies are silent."""
        self.confirming.set()
        self.between: Callable[[], None] = lambda: None
        """Called between two steps."""
        self.shown: dict[str, Any] = {}
        self.events = Events()
        self.plane = ControlPlane(
            store=self.disk,
            registry=self.registry,
            leases=lambda: [
                Lease(namespace, name, program.address, "", program.ready)
                for (namespace, name), program in self.registry.programs.items()
            ],
            parse=parse,
            identify=identify,
            references=lambda _: {},
            statuses=lambda *_: {},
            translate=self._translate,
            refusals=lambda *_: (),
            check=check,
            publish=self._publish,
            confirm=self._confirm,
            withdraw=lambda _: None,
            announce=lambda revision: None,
            events=self.events,
        )
        self.plane.settled.set()

    def _translate(self, snapshot: Any, proxy: Any) -> Resources:
        if proxy.workload in self.failing:
            raise KeyError(304)
        both = any(snapshot.accepting_both.values())
        self.shown = {"both": both, "modes": {str(mode) for mode in modes(snapshot).values()}}
        self.shown["ready"] = {key[1] for key, item in snapshot.workloads.items() if item.ready}
        made = resource("type", "ready", repr(sorted(self.shown["ready"])).encode())
        return (made,) * (2 if proxy.workload in self.twofold else 1)

    def _publish(self, views: Mapping[str, Sequence[tuple[str, str, bytes]]], revision: int) -> frozenset[str]:
        if self.broken:
            raise OSError("this cannot be published")
        self.published.append((revision, self.shown))
        self.views.update(views)
        return frozenset(views)

    async def _confirm(self, revision: int, timeout: float) -> Receipt:
        self.between()
        await self.confirming.wait()
        nobody: frozenset[str] = frozenset()
        return Receipt(revision, True, nobody, nobody, nobody, {}, True)

    def join(self, name: str) -> tuple[str, str]:
        ports = (WorkloadPort(9080, Protocol.HTTP),)
        key = self.registry.register(Registration(service=name, version="v1", ports=ports))
        self.registry.report(key, proxy_ready=True)
        self.registry.listening(key, 9080, "127.0.0.1")
        return key


def run(path: Path, body: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
    async def test() -> None:
        line = Line(path)
        following = asyncio.ensure_future(line.plane.follow())
        try:
            async with asyncio.timeout(30):
                await body(line)
        finally:
            line.disk.go.set()
            following.cancel()
            line.disk.close()

    asyncio.run(test())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(change, "LINGER_SECONDS", 0.0)


def policy(mode: str) -> Edit:
    return Edit(documents=(Document("test.yaml", POLICY.format(mode=mode)),))


def test_a_caller_who_waits_no_longer_does_not_cut_a_change_in_two(tmp_path: Path) -> None:
    """A leave waits two seconds, and the disk takes longer: what was stored is published, and the next turn works."""

    async def body(line: Line) -> None:
        line.join("reviews")
        line.disk.go.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await line.plane.settle()
        assert line.disk.reached.is_set()
        line.disk.go.set()
        await until(lambda: line.published)
        line.join("ratings")
        assert await line.plane.settle() == 2
        assert [revision for revision, _ in line.published] == [1, 2]

    run(tmp_path, body)


def test_a_full_disk_does_not_keep_an_endpoint_from_being_withdrawn(tmp_path: Path) -> None:
    """It is published at once, told once, and stored by itself when there is space; an edit is refused meanwhile."""

    async def body(line: Line) -> None:
        line.join("reviews")
        key = line.join("ratings")
        await line.plane.settle()
        line.disk.full = True
        line.registry.report(key, proxy_ready=False)
        line.plane.report()
        await until(lambda: line.published[-1][1]["ready"] == {"reviews-v1-0"})
        with pytest.raises(StoreError):
            await line.plane.change(policy("STRICT"))
        assert not line.plane.configuration.objects
        line.disk.reached.clear()
        await until(line.disk.reached.is_set)  # tried again, though nobody has reported
        line.disk.full = False
        await until(lambda: not {lease.name: lease.ready for lease in line.disk.load().leases}[key[1]])
        await line.plane.change(policy("STRICT"))
        assert line.plane.revision == line.disk.load().revision

    run(tmp_path, body)


def test_the_steps_that_a_full_disk_meets_are_published_all_the_same(tmp_path: Path) -> None:
    async def body(line: Line) -> None:
        line.join("reviews")
        await line.plane.change(policy("DISABLE"))

        def fill() -> None:
            line.disk.full = True

        line.between = fill
        await line.plane.change(policy("STRICT"))
        assert line.published[-1][1]["both"] is False
        line.disk.full = False
        line.join("ratings")
        revision = await line.plane.settle()
        assert line.disk.load().revision == revision, "the store has a gap, and goes on after it"

    run(tmp_path, body)


def test_a_step_that_cannot_be_published_is_tried_again_until_it_is(tmp_path: Path) -> None:
    async def body(line: Line) -> None:
        line.join("reviews")
        await line.plane.change(policy("DISABLE"))

        def fail() -> None:
            line.broken = True

        line.between = fail
        with pytest.raises(OSError, match="cannot be published"):
            await line.plane.change(policy("STRICT"))
        line.between, line.broken = lambda: None, False
        count = len(line.published)
        await until(lambda: len(line.published) > count and not line.published[-1][1]["both"])

    run(tmp_path, body)


def test_who_does_not_wait_has_an_answer_after_the_first_step(tmp_path: Path) -> None:
    """All of the change is stored by then. The other steps follow, before the next edit."""

    async def body(line: Line) -> None:
        line.join("reviews")
        await line.plane.change(policy("DISABLE"))
        line.confirming.clear()
        outcome = await line.plane.change(replace(policy("STRICT"), wait=False))
        assert [action for _, action in outcome.results] == [Action.CONFIGURED]
        transition = line.disk.load().transition
        assert transition is not None
        assert transition.remaining == 3
        assert line.published[-1][1]["both"] is True
        following = asyncio.ensure_future(line.plane.change(policy("PERMISSIVE")))
        line.confirming.set()
        await following
        shown = [(item["modes"], item["both"]) for _, item in line.published[-4:]]
        assert ({"STRICT"}, False) in shown

    run(tmp_path, body)


def told_ready(line: Line, key: tuple[str, str]) -> str:
    """Return which workloads are ready, as the proxy of *key* was told."""
    ((_, _, value),) = line.views[line.plane.proxies[key].node_id]
    return value.decode()


async def told(line: Line) -> list[dict[str, Any]]:
    """Return the events until now."""
    line.events.emit("now")
    found = []
    async for event in line.events.listen(replay=100):
        if event["type"] == "now":
            break
        found.append(event)
    return found


def test_one_proxy_that_cannot_be_translated_for_does_not_hold_up_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its last good resources, which is told and logged once; when it is over it has the newest."""

    async def body(line: Line) -> None:
        reviews, ratings = line.join("reviews"), line.join("ratings")
        await line.plane.change()
        assert told_ready(line, ratings) == told_ready(line, reviews) == "['ratings-v1-0', 'reviews-v1-0']"
        line.failing = {"ratings-v1-0"}
        for ready in (False, True, False):
            line.registry.report(reviews, proxy_ready=ready)
            await line.plane.change()
        assert told_ready(line, reviews) == "['ratings-v1-0']"
        assert told_ready(line, ratings) == "['ratings-v1-0', 'reviews-v1-0']"
        withheld = [event for event in await told(line) if event["type"] == "withheld"]
        assert [(event["workload"], event["text"].rpartition(": ")[2]) for event in withheld] == [
            ("ratings-v1-0", "304")
        ]
        assert set(line.plane.withheld) == {line.plane.proxies[ratings].node_id}
        assert [record.message for record in caplog.records if record.exc_info] == [
            f"translation for {line.plane.proxies[ratings].node_id} failed"
        ]
        # An edit of now is not what brings it about, so it takes effect for the others.
        outcome = await line.plane.change(policy("PERMISSIVE"))
        assert outcome.results
        line.failing = set()
        await line.plane.settle()
        line.registry.report(reviews, proxy_ready=True)
        await line.plane.change()
        assert told_ready(line, ratings) == "['ratings-v1-0', 'reviews-v1-0']"
        assert line.plane.withheld == {}

    run(tmp_path, body)


def test_a_view_that_cannot_be_published_is_withheld_from_its_proxy_alone(tmp_path: Path) -> None:
    """The publisher takes all views or none. An edit that does not bring it about takes effect for the others."""

    async def body(line: Line) -> None:
        reviews, ratings = line.join("reviews"), line.join("ratings")
        await line.plane.change()
        line.twofold = {"ratings-v1-0"}
        line.registry.report(reviews, proxy_ready=False)
        await line.plane.change()
        assert told_ready(line, reviews) == "['ratings-v1-0']"
        assert told_ready(line, ratings) == "['ratings-v1-0', 'reviews-v1-0']"
        node_id = line.plane.proxies[ratings].node_id
        (reason,) = line.plane.withheld[node_id]
        assert "ready stands 2 times among the resources of type type" in reason
        assert (await line.plane.change(policy("PERMISSIVE"))).results
        assert line.plane.withheld == {node_id: (reason,)}

    run(tmp_path, body)


def test_an_edit_that_cannot_be_translated_is_refused_and_stored_nowhere(tmp_path: Path) -> None:
    """Its author is told for whom, and the next one takes effect."""

    async def body(line: Line) -> None:
        line.join("reviews")
        await line.plane.change()
        line.failing = {"reviews-v1-0"}
        with pytest.raises(WeftError, match=r"reviews-v1-0 would be told cannot be made \(KeyError: 304\)"):
            await line.plane.change(policy("PERMISSIVE"))
        assert line.plane.configuration.objects == {}
        assert line.plane.withheld == {}
        line.failing = set()
        assert (await line.plane.change(policy("PERMISSIVE"))).results

    run(tmp_path, body)


def test_a_proxy_that_was_told_nothing_yet_is_not_told_that_there_is_nothing(tmp_path: Path) -> None:
    """After a restart it may have what the control plane before told it; an empty view would take that away."""

    async def body(line: Line) -> None:
        line.failing = {"ratings-v1-0"}
        reviews, ratings = line.join("reviews"), line.join("ratings")
        await line.plane.change(policy("PERMISSIVE"))
        node_ids = {key: proxy.node_id for key, proxy in line.plane.proxies.items()}
        assert line.views.keys() == {node_ids[reviews]}
        assert line.plane.withheld.keys() == {node_ids[ratings]}
        line.failing = set()
        line.registry.report(reviews, proxy_ready=False)
        await line.plane.change()
        assert line.views.keys() == set(node_ids.values())

    run(tmp_path, body)
