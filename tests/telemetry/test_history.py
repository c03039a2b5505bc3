"""The configuration that was in force at a time is found again, also by the next process."""

from __future__ import annotations

from pathlib import Path

from weft.telemetry import History
from weft.telemetry.history import KEPT_CONFIGURATIONS, SWEEP_EVERY


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def publish(history: History, clock: Clock, revision: int, *, published: float, acknowledged: float | None) -> None:
    clock.now = published
    value = f"routes of {revision}".encode()
    history.published("node", revision, [("RDS", "9080", f"v{revision}", value), ("CDS", "a", "same", b"cluster")])
    if acknowledged is not None:
        clock.now = acknowledged
        history.acknowledged("node", revision)


def test_what_was_acknowledged_last_comes_first_and_what_was_on_its_way_second(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "records" / "history.db", clock)
    publish(history, clock, 1, published=10, acknowledged=11)
    publish(history, clock, 5, published=20, acknowledged=30)
    publish(history, clock, 6, published=40, acknowledged=None)
    assert [item.revision for item in history.at("node", 15)] == [1]
    assert [item.revision for item in history.at("node", 25)] == [1, 5]
    assert [item.revision for item in history.at("node", 35)] == [5, 1]
    assert [item.revision for item in history.at("node", 45)] == [5, 6, 1]
    assert history.at("node", 5) == ()
    assert history.at("another", 45) == ()
    assert (history.revision("node", 35), history.revision("node", 5)) == (5, None)
    assert history.at("node", 35)[0].resources == (("CDS", "a", b"cluster"), ("RDS", "9080", b"routes of 5"))
    history.close()


def test_the_next_process_knows_it_and_a_restart_is_no_change(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    publish(history, clock, 1, published=10, acknowledged=11)
    history.close()
    history = History(tmp_path / "history.db", clock)
    clock.now = 50
    history.published("node", 9, [("CDS", "a", "same", b"cluster"), ("RDS", "9080", "v1", b"routes of 1")])
    (found,) = history.at("node", 60)
    assert (found.revision, found.published, found.acknowledged) == (1, 10, 11)
    history.close()


def test_old_configurations_go_with_what_only_they_had(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    last = KEPT_CONFIGURATIONS + 2 * SWEEP_EVERY
    for revision in range(1, last + 1):
        publish(history, clock, revision, published=revision * 10, acknowledged=revision * 10 + 1)
    assert history.at("node", 15) == ()
    (newest, *_) = history.at("node", last * 10 + 5)
    assert newest.resources == (("CDS", "a", b"cluster"), ("RDS", "9080", f"routes of {last}".encode()))
    (kept,) = history._db.execute("SELECT count(*) FROM resources").fetchone()
    assert kept <= KEPT_CONFIGURATIONS + SWEEP_EVERY + 1
    history.close()


def test_a_broken_file_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"this is no database, and long enough to be read as one" * 100)
    history = History(tmp_path / "history.db", Clock())
    assert history.at("node", 5000) == ()
    history.published("node", 1, [("CDS", "a", "1", b"x")])
    assert history.revision("node", 5000) == 1
    history.close()
