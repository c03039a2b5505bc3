"""
What became of each revision, on disk: what the ledger (`status.py`) notes, for the control plane after this one.

Written on the loop, a row for each publication and for each refusal. It is with the kernel before anybody is told, and so
survives `kill -9`; nothing is synced. A file that cannot be used is begun anew, and one that cannot be written stops
nothing: what it may lack is not known any more then, rather than told wrongly.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS publications (revision INTEGER PRIMARY KEY, affected TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS refusals (
    node_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    type_url TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
    message TEXT NOT NULL,
    superseded_by INTEGER,
    taken INTEGER NOT NULL,
    PRIMARY KEY (revision, node_id, type_url, name)
) STRICT;
"""


class NotedRefusal(NamedTuple):
    """
    A resource that a proxy refused.

    Attributes:
        revision: The publication with which that version came.
        message: The proxy's own.
        superseded_by: The publication that replaced that version or removed the resource; None while it is published.
        taken: Whether the proxy has taken that very version since.
    """

    node_id: str
    revision: int
    type_url: str
    name: str
    version: str
    message: str
    superseded_by: int | None = None
    taken: bool = False

    @property
    def key(self) -> tuple[int, str, str]:
        """Which of the proxy's refusals it is."""
        return (self.revision, self.type_url, self.name)


class Journal:
    """
    Publications and refusals, in the file *path*, which is made if it is not there; by default in memory.

    Args:
        last: The last revision that there was. What the file has of later ones is dropped: they will be others.
    """

    def __init__(self, path: Path | None = None, *, last: int = 0) -> None:
        self._gap = False
        """Something could not be written."""
        self._db = _usable(path, last) if path else _open(":memory:", last)

    def publications(self) -> list[tuple[int, frozenset[str]]]:
        """Return each publication and the node ids that it affected, oldest first; up to the first one nothing is known."""
        return _publications(self._db)

    def refusals(self) -> list[NotedRefusal]:
        """Return every refusal that is kept, oldest first."""
        return _refusals(self._db)

    def published(self, revision: int, affected: Iterable[str], *, oldest: int) -> None:
        """Note a publication, and forget those before *oldest*."""

        def work() -> None:
            if self._gap:
                _begin(self._db, revision - 1)
            self._db.execute(
                "INSERT OR REPLACE INTO publications VALUES (?, ?)", (revision, json.dumps(sorted(affected)))
            )
            self._db.execute("DELETE FROM publications WHERE revision < ?", (oldest,))
            self._db.execute("DELETE FROM refusals WHERE revision < ?", (oldest,))

        self._gap = not self._write(work)

    def refused(self, refusal: NotedRefusal) -> None:
        """Note a refusal, or what is new of it."""
        self._write(
            lambda: self._db.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?, ?, ?, ?, ?, ?)", refusal)
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write(self, work: Callable[[], object]) -> bool:
        """Do *work* in one transaction, and say whether it is done. A full disk costs the memory, not the mesh."""
        try:
            with self._db:
                work()
        except sqlite3.Error as error:
            if not self._gap:
                log.warning("after a restart, what became of revisions until now will not be known: %s", error)
            self._gap = True
            return False
        return True


def _usable(path: Path, last: int) -> sqlite3.Connection:
    """Open the file as it is, else anew; where there can be none, in memory."""
    try:
        path.touch(mode=0o600, exist_ok=True)
        return _open(path, last)
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be used (%s): receipts begin anew", path, error)
    try:
        for part in ("", "-wal"):
            path.with_name(path.name + part).unlink(missing_ok=True)
        path.touch(mode=0o600)
        return _open(path, last)
    except (sqlite3.Error, OSError) as error:
        log.warning("%s cannot be made (%s): receipts are lost with this process", path, error)
        return _open(":memory:", last)


def _open(path: Path | str, last: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        # Exclusive before WAL, as in the store: one process reads it, and there is no third file to have no space for.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA)
        _check(db)
        with db:
            db.execute("DELETE FROM publications WHERE revision > ?", (last,))
            db.execute("DELETE FROM refusals WHERE revision > ?", (last,))
            db.execute("UPDATE refusals SET superseded_by = NULL WHERE superseded_by > ?", (last,))
            if not db.execute("SELECT 1 FROM publications LIMIT 1").fetchone():
                _begin(db, last)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    """Raise unless everything in the file can be read: after a crash of the machine there may be zeros for any page of it."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    _publications(db)
    _refusals(db)


def _publications(db: sqlite3.Connection) -> list[tuple[int, frozenset[str]]]:
    rows = db.execute("SELECT revision, affected FROM publications ORDER BY revision")
    return [(revision, frozenset(json.loads(affected))) for revision, affected in rows]


def _refusals(db: sqlite3.Connection) -> list[NotedRefusal]:
    columns = ", ".join(NotedRefusal._fields)
    rows = db.execute(f"SELECT {columns} FROM refusals ORDER BY revision")
    return [NotedRefusal._make((*row[:-1], bool(row[-1]))) for row in rows]


def _begin(db: sqlite3.Connection, last: int) -> None:
    """Know nothing of any revision up to *last*."""
    db.execute("DELETE FROM publications")
    db.execute("DELETE FROM refusals")
    db.execute("INSERT INTO publications VALUES (?, '[]')", (last,))
