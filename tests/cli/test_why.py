"""What `weft why` does beside asking the control plane."""

from __future__ import annotations

import importlib
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.insight.test_tries import record
from weft.cli import why
from weft.cli.client import Client
from weft.cli.proxy_config import FOUND
from weft.insight.endpoint_health import SAID

happened = importlib.import_module("weft.insight.happened")  # the package's name for it is the function


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a proxy's admin socket would be, with a path that is short enough for one."""
    with tempfile.TemporaryDirectory(prefix="weft-t-") as directory:
        path = Path(directory) / "admin.sock"
        monkeypatch.setattr(Client, "admin_socket", lambda self, workload: path)
        yield path


def test_a_proxy_that_is_gone_is_not_asked(admin: Path) -> None:
    assert why._health(Client(admin), "caller-0") is None


def test_a_proxy_that_hangs_costs_a_bounded_time(admin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is stopped: the kernel takes the connection for it, and nobody answers."""
    assert why.HEALTH_SECONDS <= 1.0
    monkeypatch.setattr(why, "HEALTH_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(admin))
        hanging.listen()
        started = time.monotonic()
        assert why._health(Client(admin), "caller-0") is None
        assert time.monotonic() - started < 1.0


def test_there_are_words_for_each_state_that_is_shown() -> None:
    assert set(FOUND.values()) == set(SAID)


class OfOneId:
    """A control plane whose records are all of one request id."""

    def __init__(self, records: int) -> None:
        self.records = [record("client-0", "outbound", 0.01 * number).to_json() for number in range(records)]
        self.history = 0

    def get(self, path: str, **query: object) -> object:
        if path == "/v1/records":
            return {"records": self.records if "request_id" in query else []}
        if path == "/v1/history":
            self.history += 1
            return [{"revision": 7, "published": 0.0, "acknowledged": 0.0, "resources": []}]
        return []


@pytest.mark.parametrize("count", [3, 1000])
def test_one_id_for_everything_is_explained_in_part_and_that_is_said(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(why, "_whole", lambda ask: ask())
    monkeypatch.setattr(happened, "Engine", FailingEngine)
    monkeypatch.setattr(FailingEngine, "made", 0)
    client = OfOneId(count)
    why._past(client, "1", False, None, "json")  # type: ignore[arg-type]
    told = capsys.readouterr()
    explained = min(count, why.EXPLAINED)
    assert len(json.loads(told.out)) == client.history == explained
    assert FailingEngine.made == 1
    assert (f"1000 records have this id, of which the newest {explained} are explained" in told.err) is (count == 1000)


class FailingEngine:
    """One that no listener's configuration was given to."""

    made = 0

    def __init__(self, _: object, *, strict: bool) -> None:
        FailingEngine.made += not strict

    def explain(self, _: str) -> str:
        raise ValueError("no listener takes it")
