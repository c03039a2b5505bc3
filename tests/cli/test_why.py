"""What `weft why` does beside asking the control plane."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.cli import why
from weft.cli.client import Client
from weft.cli.proxy_config import FOUND
from weft.insight.endpoint_health import SAID


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
