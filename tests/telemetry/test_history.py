"""The configuration that was in force at a time is found again, also by the next process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

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
    assert (history.resource("v5"), history.resource("v7")) == (b"routes of 5", b"")
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


def test_one_that_a_crash_of_the_machine_has_damaged_is_begun_anew(tmp_path: Path) -> None:
    """Whichever page holds zeros: the control plane starts, and what is asked of it is answered."""
    clock = Clock()
    path = tmp_path / "history.db"
    history = History(path, clock)
    for revision in range(1, 60):
        publish(history, clock, revision, published=revision, acknowledged=revision)
    many = [("CDS", f"cluster-{number}", f"many-{number}", b"x" * 99) for number in range(200)]
    history.published("another", 60, many)  # more than a page
    history.close()
    content, anew = path.read_bytes(), 0
    size = int.from_bytes(content[16:18], "big")
    for at in range(0, len(content), size):
        path.write_bytes(content[:at] + bytes(size) + content[at + size :])
        history = History(path, clock)
        known = [len(history.at(node, 100)) for node in ("node", "another")]
        assert known in ([2, 1], [0, 0]), at
        anew += known == [0, 0]
        publish(history, clock, 61, published=200, acknowledged=201)
        assert history.revision("node", 300) == 61
        history.close()
    assert anew > 10


def test_a_clock_that_is_set_back_does_not_hide_what_is_in_force(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    node = "sidecar~10.244.0.2~curl-0.default~default.svc.cluster.local"
    for revision, at in ((1, 1000), (2, 2000), (3, 100)):
        clock.now = at
        history.published(node, revision, [("RDS", "9080", f"v{revision}", b"")])
        if revision != 2:
            history.acknowledged(node, revision)
    clock.now = 200
    assert [item.revision for item in history.at(node, 150)] == [3, 2]
    assert [item.revision for item in history.at(node, 50)] == [1, 2]
    assert history.node_at("10.244.0.2", 50) == node
    history.close()


def test_who_had_an_address_at_a_time_is_known_also_when_it_is_gone(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    first, next_one = (f"sidecar~10.244.0.2~{name}.default~default.svc.cluster.local" for name in ("curl-0", "shop-0"))
    for at, node in ((10, first), (20, next_one)):
        clock.now = at
        history.published(node, at, [])
    assert [history.node_at("10.244.0.2", at) for at in (5, 15, 25)] == ["", first, next_one]
    assert history.node_at("10.244.0.20", 25) == history.node_at("0.244.0.2", 25) == ""
    history.close()


def test_an_index_finds_who_had_an_address_and_it_is_who_a_look_at_every_row_finds(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    addresses = ("10.244.0.2", "10.244.0.20", "0.244.0.2", "127.77.2.1", "router", "curl-0.default")
    nodes = [
        f"{kind}~{address}~{name}.default~default.svc.cluster.local"
        for kind in ("sidecar", "router")
        for address in addresses
        for name in ("curl-0", "shop-0")
    ]
    published = [(at, nodes[at * 7 % len(nodes)]) for at in range(1, 4 * len(nodes))]
    for at, node in published:
        clock.now = at
        history.published(node, at, [("RDS", "9080", f"v{at}", b"")])
    for address in (*addresses, "10.244.0.3", "default.svc.cluster.local", "sidecar", "%", "10.244.0._"):
        for at in (0, 1, 30.5, 60, 1000):
            had = [node for when, node in published if when <= at and node.split("~")[1] == address]
            assert history.node_at(address, at) == (had[-1] if had else ""), (address, at)

    asked: list[str] = []
    history._db.set_trace_callback(asked.append)
    history.node_at("10.244.0.2", 60)
    history._db.set_trace_callback(None)
    plan = [row[-1] for row in history._db.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
    assert plan == ["SEARCH configurations USING INDEX configurations_of_address (<expr>=?)"]
    history.close()


def test_a_file_of_before_is_served_by_the_index_too(tmp_path: Path) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    clock.now = 10
    history.published("sidecar~10.244.0.2~curl-0.default~default.svc.cluster.local", 1, [])
    history._db.execute("DROP INDEX configurations_of_address")
    history.close()
    history = History(tmp_path / "history.db", clock)
    assert history.node_at("10.244.0.2", 15).split("~")[2] == "curl-0.default"
    (indices,) = history._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'configurations_of_address'")
    assert indices == (1,)
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


def test_what_is_listed_reads_no_contents(tmp_path: Path) -> None:
    """A record's revision is asked for each that is listed; a configuration may be large."""
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    for revision in range(1, 10):
        publish(history, clock, revision, published=revision * 10, acknowledged=revision * 10 + 1)
    asked: list[str] = []
    history._db.set_trace_callback(asked.append)
    assert history.revision("node", 55) == 5
    assert not any("content" in text for text in asked)
    asked.clear()
    assert [item.revision for item in history.at("node", 55)] == [5, 4]
    assert sum("content" in text for text in asked) == 2
    history.close()


def test_a_sweep_looks_at_nothing_but_what_goes(tmp_path: Path) -> None:
    """It holds the control plane up, and there may be many proxies; what several configurations have stays with the last."""
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    for number in range(KEPT_CONFIGURATIONS + SWEEP_EVERY - 1):
        publish(history, clock, number, published=number * 10, acknowledged=None)
    asked: list[str] = []
    history._db.set_trace_callback(asked.append)
    publish(history, clock, 1000, published=100_000, acknowledged=None)
    history._db.set_trace_callback(None)
    assert any("RETURNING content" in text for text in asked)
    assert not any(text.startswith("SELECT content FROM configurations") and "WHERE" not in text for text in asked)
    assert history.resource("same") == b"cluster"
    assert history.resource("v0") == b""
    history.close()


def test_when_it_is_full_the_oldest_goes_whosever_it_is_but_not_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that come and go do not take the place of those that stay."""
    monkeypatch.setattr("weft.telemetry.history.KEPT_BYTES", 1 << 20)
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    clock.now = 1.0
    history.published("steady", 1, [("RDS", "9080", "steady", b"what it has")])
    for number in range(10 * SWEEP_EVERY):
        clock.now = 10.0 + number
        node = f"job-{number}"
        history.published(node, number, [("RDS", "9080", f"v{number}", bytes(9000))])
        history.withdrawn(node)
    (size,) = history._db.execute("SELECT sum(length(value)) FROM resources").fetchone()
    assert size < 2 << 20
    clock.now = 10_000.0
    assert history.revision("steady", 9_000.0) == 1
    assert history.resource("steady") == b"what it has"
    assert history.revision("job-0", 9_000.0) is None
    assert history.revision(f"job-{10 * SWEEP_EVERY - 1}", 9_000.0) is not None
    history.close()


def test_after_a_gap_what_is_kept_is_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    history = History(tmp_path / "history.db", clock)
    publish(history, clock, 1, published=10, acknowledged=11)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(history, "_note", fail)
        publish(history, clock, 2, published=20, acknowledged=None)
    publish(history, clock, 3, published=30, acknowledged=31)
    assert [item.revision for item in history.at("node", 40)] == [3, 1]
    assert history.at("node", 40)[0].resources == (("CDS", "a", b"cluster"), ("RDS", "9080", b"routes of 3"))
    history.close()


def test_a_broken_file_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_bytes(b"this is no database, and long enough to be read as one" * 100)
    history = History(tmp_path / "history.db", Clock())
    assert history.at("node", 5000) == ()
    history.published("node", 1, [("CDS", "a", "1", b"x")])
    assert history.revision("node", 5000) == 1
    history.close()
