"""What `weft up` makes of what it is told, with the holder and the processes played."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from weft.agent.supervisor import Early, MeshBroken, Plan, Planned, Supervisor
from weft.agent.workload import WorkloadSpec


class Played:
    """A supervisor of `a` and of `b`, which waits for `a`, and what it tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self._next: dict[str, Any] = {}
        channel = SimpleNamespace(receive=lambda: self._next, send=lambda **_: None)
        early = cast("Early", SimpleNamespace(holder=0, reports=channel, commands=channel))
        workloads = [
            Planned("a-0", WorkloadSpec("a", ports=((80, "HTTP"),)), ready_seconds=0.01),
            Planned("b-0", WorkloadSpec("b"), after=("a-0",)),
        ]
        plan = Plan("played", {}, workloads)
        self.supervisor = Supervisor(plan, early, lambda event, facts: self.told.append((event, facts)))

    def report(self, event: str, **facts: Any) -> None:
        """Have the holder report *event* of `a`."""
        self._next = {"event": event, "id": "a-0", **facts}
        self.supervisor._receive()


def test_a_workload_that_is_refused_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is tried again, and why it cannot join is the only reason that is told."""

    async def play() -> None:
        played = Played(monkeypatch, tmp_path)
        supervisor, (a, b) = played.supervisor, played.supervisor._plan.workloads
        starting = asyncio.create_task(supervisor._start(a))
        waiting = asyncio.create_task(supervisor._start(b))
        await asyncio.sleep(0)
        played.report("failed", message="a-0 is taken")
        played.report("agent-ended", code=1)
        await starting
        await asyncio.wait_for(supervisor._settled["b-0"].wait(), 10)
        assert supervisor._settled["a-0"].is_set()
        assert ("not-started", {"id": "b-0", "reason": "a-0 cannot join"}) in played.told
        assert "late" not in dict(played.told)
        played.report("ready")
        await asyncio.wait_for(_until(lambda: ("starting", {"id": "b-0"}) in played.told), 10)
        for task in (waiting, *supervisor._tasks):
            task.cancel()
        await asyncio.gather(waiting, *supervisor._tasks, return_exceptions=True)

    asyncio.run(play())


def test_what_breaks_in_keeping_a_process_ends_the_mesh_with_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else nobody would start that process again, nor say so."""

    async def play() -> None:
        played = Played(monkeypatch, tmp_path)

        def start() -> int:
            raise RuntimeError("out of processes")

        played.supervisor._process("edge", played.supervisor._keep("edge", start))
        await asyncio.wait_for(played.supervisor._stopping.wait(), 10)
        assert isinstance(played.supervisor._failure, MeshBroken)
        assert "out of processes" in str(played.supervisor._failure)

    asyncio.run(play())


async def _until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)
