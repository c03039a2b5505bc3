"""What `weft up` shows, where nothing can be shown."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from weft.agent.supervisor import Plan
from weft.cli.up import Screen, read_plan
from weft.errors import InvalidConfiguration


def test_on_a_full_disk_the_mesh_goes_on_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    screen = Screen(Plan("shop", {}), "", time.monotonic())
    screen.closed = lambda: closed.append(True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"))
        screen("booting", {})
        screen("all-ready", {"untaken": {}})
        screen.close()
        sys.stdout.close()
    assert not closed


def test_who_closes_the_pipe_has_seen_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    screen = Screen(Plan("shop", {}), "", time.monotonic())
    screen.closed = lambda: closed.append(True)
    reader, writer = os.pipe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writer, "w"))
        screen("booting", {})
        assert not closed
        os.close(reader)
        screen("up", {})
        screen.close()
        sys.stdout.close()
    assert closed == [True]


def test_why_a_workload_cannot_join_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """It is tried again and again; what changes is told again."""
    screen = Screen(Plan("shop", {}), "", time.monotonic())
    for message in ("taken", "taken", "full", "full"):
        screen("failed", {"id": "a-0", "message": message})
    assert [line.split("  ", 2)[-1] for line in capsys.readouterr().out.splitlines()] == [
        "a-0  cannot join: taken",
        "a-0  cannot join: full",
    ]


def test_names_too_long_for_a_sockets_path_are_refused_at_their_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What an agent could only be refused with, and again each time that it is started."""
    runtime = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own has too long a path of itself
    request.addfinalizer(runtime.rmdir)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    long = "r" * (107 - len(f"{runtime}/weft/shop/workloads/-0/admin.sock"))
    file = tmp_path / "weft.yaml"
    text = "mesh: shop\nprograms:\n  {name}: {{command: [sleep, '1'], replicas: 2}}\n"
    file.write_text(text.format(name=long))
    assert len(read_plan(file, mesh=None, fresh=False)[0].workloads) == 2
    file.write_text(text.format(name=f"{long}x"))
    with pytest.raises(InvalidConfiguration) as caught:
        read_plan(file, mesh=None, fresh=False)
    (problem,) = caught.value.problems
    assert (problem.origin.file, problem.origin.line, problem.origin.column) == (str(file), 3, 3)
    assert "has 108 bytes, and may have 107. Choose shorter names" in problem.message
