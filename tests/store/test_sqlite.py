"""The embedded store keeps what it acknowledged, whole, through anything that may happen to its process."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weft.errors import StoreError
from weft.model import ConfigKey
from weft.store import Author, Changes, Content, Lease, SqliteStore, StoredObject, Transition, sqlite


def stored(name: str, text: str = "kind: X\n", **more: object) -> StoredObject:
    return StoredObject(ConfigKey("VirtualService", "default", name), "reviews.yaml", text, **more)  # type: ignore[arg-type]


def test_what_was_committed_is_loaded_by_the_next_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state" / "store.db")
    first = store.commit(
        Changes(
            put=(stored("a", "text of both"), stored("b", "text of both", author=Author.DECLARATION)),
            service_addresses={"reviews.default.svc.cluster.local": "240.240.0.1"},
            leases=(Lease("default", "reviews-v1-0", "10.244.0.2", "12:34", True),),
            boot="first",
        ),
        summary="apply two",
        time=1.5,
    )
    second = store.commit(Changes(delete=(ConfigKey("VirtualService", "default", "a"),)), summary="delete a", time=2.5)
    store.close()

    content = SqliteStore(tmp_path / "state" / "store.db").load()

    assert (first, second) == (1, 2)
    assert content == Content(
        revision=2,
        objects={
            ConfigKey("VirtualService", "default", "b"): stored(
                "b", "text of both", author=Author.DECLARATION, created=1
            )
        },
        service_addresses={"reviews.default.svc.cluster.local": "240.240.0.1"},
        leases=(Lease("default", "reviews-v1-0", "10.244.0.2", "12:34", True),),
        boot="first",
    )


def test_who_reads_in_another_thread_sees_nothing_of_a_commit_that_is_under_way(tmp_path: Path) -> None:
    """They share the connection, which would show it its own transaction."""
    store = SqliteStore(tmp_path / "store.db")
    read: list[Content] = []
    reader = threading.Thread(target=lambda: read.append(store.load()))

    class Slow(Sequence[StoredObject]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: Any) -> Any:
            if index == 0:
                return stored("a")
            if not reader.ident:  # the first object is written
                reader.start()
                reader.join(0.2)
            raise IndexError

    store.commit(Changes(put=Slow()), summary="", time=0)  # type: ignore[arg-type]
    reader.join()
    assert [(content.revision, len(content.objects)) for content in read] == [(1, 1)]


def test_the_followed_directory_is_kept_as_it_was_good_last(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    assert store.load().directory == {}
    store.commit(Changes(directory={"a.yaml": "one", "b.yaml": "two"}), summary="", time=0)
    store.commit(Changes(), summary="", time=0)
    assert store.load().directory == {"a.yaml": "one", "b.yaml": "two"}
    store.commit(Changes(directory={"a.yaml": "three"}), summary="", time=0)
    assert store.load().directory == {"a.yaml": "three"}
    store.close()


def test_a_change_that_is_not_over_is_kept_until_it_is(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    before = {stored("a").key: stored("a", created=1), stored("b").key: None}
    store.commit(Changes(transition=Transition(3, before)), summary="", time=0)
    assert store.load().transition == Transition(3, before)
    store.commit(Changes(), summary="", time=0)
    store.commit(Changes(transition=Transition(2, before)), summary="", time=0)
    assert store.load().transition == Transition(2, before)
    store.commit(Changes(transition=Transition(0)), summary="", time=0)
    assert store.load().transition is None


def test_a_status_is_kept_until_it_is_another_one_or_none(tmp_path: Path) -> None:
    keys = [ConfigKey("HTTPRoute", "default", name) for name in ("a", "b")]
    accepted, refused = (
        {"parents": [{"conditions": [{"type": "Accepted", "status": said}]}]} for said in ("True", "False")
    )
    store = SqliteStore(tmp_path / "store.db")
    store.commit(Changes(statuses=dict.fromkeys(keys, accepted)), summary="", time=0)
    store.commit(Changes(), summary="", time=0)
    assert store.load().statuses == dict.fromkeys(keys, accepted)
    store.commit(Changes(statuses={keys[0]: refused, keys[1]: None}), summary="", time=0)
    store.close()
    assert SqliteStore(tmp_path / "store.db").load().statuses == {keys[0]: refused}


def test_a_store_of_before_there_were_statuses_is_taken(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.commit(Changes(put=(stored("a"),)), summary="", time=0)
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("DROP TABLE statuses")
    db.close()
    content = SqliteStore(tmp_path / "store.db").load()
    assert (len(content.objects), content.statuses) == (1, {})


def test_an_object_keeps_the_revision_at_which_it_appeared(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.commit(Changes(put=(stored("a", "one"),)), summary="", time=0)
    (before,) = store.load().objects.values()
    store.commit(Changes(put=(stored("a", "two", generation=2, created=before.created),)), summary="", time=0)

    assert list(store.load().objects.values()) == [stored("a", "two", generation=2, created=1)]


def test_when_an_object_appeared_is_known_as_long_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revisions are many: each endpoint that comes or goes is one."""
    monkeypatch.setattr(sqlite, "KEPT_REVISIONS", 3)
    store = SqliteStore(tmp_path / "store.db")
    store.commit(Changes(put=(stored("a"), stored("b"))), summary="apply", time=7.5)
    for number in range(10):
        store.commit(Changes(), summary=f"endpoints {number}", time=100.0 + number)
    assert store.created_times() == {1: 7.5}
    assert [item.revision for item in store.revisions(100)] == [11, 10, 9, 1]
    store.commit(Changes(put=(stored("a", "other", created=1),)), summary="apply again", time=200.0)
    assert store.created_times() == {1: 7.5}
    store.commit(Changes(delete=(stored("a").key, stored("b").key)), summary="delete", time=201.0)
    assert store.created_times() == {}
    assert [item.revision for item in store.revisions(100)] == [13, 12, 11]


def test_texts_that_nobody_refers_to_are_dropped(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.commit(Changes(put=(stored("a", "old"),)), summary="", time=0)
    store.commit(Changes(put=(stored("a", "new"),)), summary="", time=0)
    store.close()

    with sqlite3.connect(tmp_path / "store.db") as db:
        assert db.execute("SELECT text FROM texts").fetchall() == [("new",)]
    db.close()


def test_a_commit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A value that SQLite cannot hold comes after an object that it can; that object is gone too."""
    store = SqliteStore(tmp_path / "store.db")
    with pytest.raises(StoreError):
        store.commit(Changes(put=(stored("a"), stored("b", "\ud800"))), summary="", time=0)
    assert store.load() == Content()
    assert store.commit(Changes(put=(stored("a"),)), summary="", time=0) == 1


def test_an_address_that_was_taken_over_belongs_to_the_new_name_only(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.commit(
        Changes(service_addresses={"a": "240.240.0.2"}, leases=(Lease("n", "a", "10.244.0.2"),)), summary="", time=0
    )
    store.commit(
        Changes(service_addresses={"b": "240.240.0.2"}, leases=(Lease("n", "b", "10.244.0.2"),)), summary="", time=0
    )
    content = store.load()
    assert content.service_addresses == {"b": "240.240.0.2"}
    assert content.leases == (Lease("n", "b", "10.244.0.2"),)


def test_a_second_control_plane_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.store.sqlite.LOCK_SECONDS", 0.05)
    first = SqliteStore(tmp_path / "store.db")
    with pytest.raises(StoreError, match="in use by another control plane"):
        SqliteStore(tmp_path / "store.db")
    first.close()
    SqliteStore(tmp_path / "store.db").close()


def test_a_store_of_a_newer_weft_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "store.db").close()
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="layout 99"):
        SqliteStore(tmp_path / "store.db")


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, not at all\n" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(tmp_path / "store.db")


def test_the_log_shows_the_newest_first(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    for number in range(5):
        store.commit(Changes(), summary=f"change {number}", time=float(number))
    assert [(item.revision, item.summary) for item in store.revisions(2)] == [(5, "change 4"), (4, "change 3")]


WRITER = """
import sys
from pathlib import Path
from weft.model import ConfigKey
from weft.store import Changes, SqliteStore, StoredObject

store = SqliteStore(Path(sys.argv[1]))
number = store.load().revision
while True:
    number += 1
    # Every commit writes a pair that must appear together, and deletes the pair before the last one.
    pair = [ConfigKey("Pair", str(number), half) for half in ("left", "right")]
    old = [ConfigKey("Pair", str(number - 2), half) for half in ("left", "right")]
    put = tuple(StoredObject(key, "f", f"{number} " * 2000) for key in pair)
    assert store.commit(Changes(put=put, delete=tuple(old)), summary=str(number), time=0.0) == number
    print(number, flush=True)
"""

KILLS = 50


def test_every_acknowledged_commit_survives_kill_9_and_none_is_half_there(tmp_path: Path) -> None:
    """A writer is killed after a random number of its acknowledgements and a random part of the next commit."""
    path = tmp_path / "store.db"
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    total = 0
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 6)):
                acknowledged = int(writer.stdout.readline())
            for _ in range(rng.randrange(40_000)):  # a moment within the next commit, without sleeping
                pass
            writer.kill()
            # What it could still print before the signal counts as acknowledged too.
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().splitlines())])
        store = SqliteStore(path)
        content = store.load()
        logged = [item.summary for item in store.revisions(1)]
        store.close()
        assert content.revision in (acknowledged, acknowledged + 1)
        assert logged == [str(content.revision)]
        expected = {str(number) for number in (content.revision - 1, content.revision) if number > 0}
        assert set(content.objects) == {
            ConfigKey("Pair", number, half) for number in expected for half in ("left", "right")
        }
        for key, item in content.objects.items():
            assert item.text == f"{key.namespace} " * 2000
        total = content.revision
    assert total >= KILLS
