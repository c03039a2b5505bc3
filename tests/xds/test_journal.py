"""What became of revisions is kept whole or, where that cannot be, not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from weft.xds.journal import Journal, NotedRefusal

REFUSAL = NotedRefusal("a", 2, "RDS", "9080", "0123", "no")


def test_it_is_found_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "receipts.db")
    journal.published(1, {"b", "a"}, oldest=0)
    journal.published(2, {"a"}, oldest=0)
    journal.refused(REFUSAL)
    journal.refused(REFUSAL._replace(superseded_by=3))
    journal.refused(REFUSAL._replace(name="8080", superseded_by=2, taken=True))
    journal.close()
    journal = Journal(tmp_path / "receipts.db", last=2)
    assert journal.publications() == [(0, set()), (1, {"a", "b"}), (2, {"a"})]
    assert set(journal.refusals()) == {REFUSAL, REFUSAL._replace(name="8080", superseded_by=2, taken=True)}, (
        "revision 3 is not that one any more"
    )
    journal.close()


def test_what_the_store_does_not_know_is_dropped(tmp_path: Path) -> None:
    """Revisions that could not be stored, or those of a store that was removed, will be others."""
    journal = Journal(tmp_path / "receipts.db")
    journal.published(1, {"a"}, oldest=0)
    journal.published(2, {"a"}, oldest=0)
    journal.refused(REFUSAL)
    journal.close()
    journal = Journal(tmp_path / "receipts.db", last=1)
    assert (journal.publications(), journal.refusals()) == ([(0, set()), (1, {"a"})], [])
    journal.close()


def test_a_mesh_that_is_older_than_its_journal_knows_nothing_of_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "receipts.db", last=17)
    assert journal.publications() == [(17, set())]
    journal.close()


def test_a_file_that_is_no_journal_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "receipts.db"
    path.write_bytes(b"this is no database, and long enough to be read as one" * 100)
    journal = Journal(path, last=3)
    journal.published(4, {"a"}, oldest=3)
    journal.close()
    journal = Journal(path, last=4)
    assert journal.publications() == [(3, set()), (4, {"a"})]
    journal.close()


def test_one_that_a_crash_of_the_machine_has_damaged_is_begun_anew(tmp_path: Path) -> None:
    """Whichever page holds zeros: it is used whole, or not at all, and the control plane starts."""
    path = tmp_path / "receipts.db"
    journal = Journal(path)
    for revision in range(1, 301):
        journal.published(revision, {f"node-{number}" for number in range(9)}, oldest=0)
        journal.refused(REFUSAL._replace(revision=revision, message="no" * 20))
    journal.published(301, {f"node-{number}" for number in range(2000)}, oldest=0)  # more than a page
    journal.close()
    content, anew = path.read_bytes(), 0
    size = int.from_bytes(content[16:18], "big")
    for at in range(0, len(content), size):
        path.write_bytes(content[:at] + bytes(size) + content[at + size :])
        journal = Journal(path, last=301)
        found = len(journal.publications()), len(journal.refusals())
        assert found in ((302, 300), (1, 0)), at
        anew += found == (1, 0)
        journal.published(302, {"a"}, oldest=0)
        assert journal.publications()[-1] == (302, {"a"})
        journal.close()
    assert anew > 10


def test_where_there_can_be_no_file_it_lives_as_long_as_the_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing" / "receipts.db", last=3)
    journal.published(4, {"a"}, oldest=3)
    assert journal.publications() == [(3, set()), (4, {"a"})]
    journal.close()


def test_a_gap_makes_what_was_before_it_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else a revision that could not be written would be taken for the one after it."""
    journal = Journal(tmp_path / "receipts.db")
    journal.published(1, {"a"}, oldest=0)
    journal.refused(REFUSAL)
    journal._db.execute("PRAGMA query_only = ON")  # as on a full disk
    journal.published(2, {"a"}, oldest=0)
    journal.published(3, {"a"}, oldest=0)
    assert len(caplog.records) == 1, "it is told once"
    journal._db.execute("PRAGMA query_only = OFF")
    journal.published(4, {"b"}, oldest=0)
    assert (journal.publications(), journal.refusals()) == ([(3, set()), (4, {"b"})], [])
    journal.published(5, {"b"}, oldest=0)
    assert journal.publications() == [(3, set()), (4, {"b"}), (5, {"b"})]
    journal.close()


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "receipts.db")
    assert (tmp_path / "receipts.db").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(tmp_path / "receipts.db", timeout=0) as other, pytest.raises(sqlite3.OperationalError):
        other.execute("SELECT * FROM publications")
    other.close()
    journal.close()
