"""
The embedded store: one SQLite file, one writer.

WAL with `synchronous=FULL` syncs the log at each commit, so an acknowledged commit survives power loss; a commit that
was cut off by `kill -9` is not replayed (sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous). Exclusive
locking keeps a second control plane out; the kernel releases the lock with the process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from weft.errors import StoreError
from weft.model import ConfigKey
from weft.store.base import Author, Changes, Content, Lease, StoredObject, StoredRevision, Transition

SCHEMA_VERSION = 2

LOCK_SECONDS = 5.0
"""How long to wait for a control plane that is just ending to let go of the file."""

KEPT_REVISIONS = 1000
"""
Lines of the log that are kept; receipts older than that are of no use to anybody waiting. Beside them the lines of those in which an
object appeared that is still there: its age is theirs.
"""

SCHEMA = """
CREATE TABLE texts (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    text TEXT NOT NULL
) STRICT;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    file TEXT NOT NULL,
    text INTEGER NOT NULL REFERENCES texts (id),
    generation INTEGER NOT NULL,
    created INTEGER NOT NULL,
    author TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT;
CREATE INDEX objects_text ON objects (text);
CREATE TABLE service_addresses (hostname TEXT PRIMARY KEY, address TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE leases (
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    address TEXT NOT NULL UNIQUE,
    agent TEXT NOT NULL,
    ready INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;
CREATE TABLE boots (only INTEGER PRIMARY KEY CHECK (only = 1), boot TEXT NOT NULL) STRICT;
CREATE TABLE transitions (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    remaining INTEGER NOT NULL,
    before TEXT NOT NULL
) STRICT;
CREATE TABLE revisions (revision INTEGER PRIMARY KEY, time REAL NOT NULL, summary TEXT NOT NULL) STRICT;
"""

STATUSES = """
CREATE TABLE IF NOT EXISTS statuses (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT
"""
"""Beside `SCHEMA`: files of the same layout were made before there was any, and who knows nothing of it may use them still."""

FOLLOWED = "CREATE TABLE IF NOT EXISTS followed (file TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT"
"""As `STATUSES`."""


class SqliteStore:
    """
    A `weft.store.Store` in the file *path*, which is made if it is not there.

    Any thread may use it; one at a time does, since there is one connection, of which a reader would see what another
    thread has not committed yet.

    Raises:
        StoreError: The file cannot be opened, is no store, is of a newer weft, or is held by another control plane.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._using = threading.Lock()
        with self._used():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def load(self) -> Content:
        with self._used():
            rows = self._db.execute(
                "SELECT kind, namespace, name, file, texts.text, generation, created, author"
                " FROM objects JOIN texts ON texts.id = objects.text ORDER BY created, kind, namespace, name"
            )
            objects = {
                (key := ConfigKey(kind, namespace, name)): StoredObject(
                    key, file, text, generation, created, Author(author)
                )
                for kind, namespace, name, file, text, generation, created, author in rows
            }
            addresses = dict(self._db.execute("SELECT hostname, address FROM service_addresses"))
            leases = tuple(
                Lease(namespace, name, address, agent, bool(ready))
                for namespace, name, address, agent, ready in self._db.execute(
                    "SELECT namespace, name, address, agent, ready FROM leases ORDER BY namespace, name"
                )
            )
            (boot,) = self._db.execute("SELECT coalesce(max(boot), '') FROM boots").fetchone()
            found = self._db.execute("SELECT remaining, before FROM transitions").fetchone()
            transition = Transition(found[0], _before_from_json(found[1])) if found else None
            statuses = {
                ConfigKey(kind, namespace, name): json.loads(status)
                for kind, namespace, name, status in self._db.execute(
                    "SELECT kind, namespace, name, status FROM statuses"
                )
            }
            directory = dict(self._db.execute("SELECT file, text FROM followed"))
            return Content(self._revision(), objects, addresses, leases, boot, transition, statuses, directory)

    def commit(self, changes: Changes, *, summary: str, time: float, at_least: int = 0) -> int:
        with self._used(), self._transaction():
            revision = max(self._revision() + 1, at_least)
            for item in changes.put:
                self._put(item, revision)
            self._db.executemany(
                "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?",
                [tuple(key) for key in changes.delete],
            )
            if changes.put or changes.delete:
                self._db.execute("DELETE FROM texts WHERE id NOT IN (SELECT text FROM objects)")
            self._db.executemany(
                "INSERT OR REPLACE INTO service_addresses VALUES (?, ?)",
                list(changes.service_addresses.items()),
            )
            self._db.executemany(
                # REPLACE: an address that was taken over from an idle name leaves that name without a lease.
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)",
                [(lease.namespace, lease.name, lease.address, lease.agent, lease.ready) for lease in changes.leases],
            )
            if changes.boot is not None:
                self._db.execute("INSERT OR REPLACE INTO boots VALUES (1, ?)", (changes.boot,))
            if (transition := changes.transition) is not None:
                self._db.execute("DELETE FROM transitions")
                if transition.remaining:
                    row = (transition.remaining, _before_to_json(transition))
                    self._db.execute("INSERT INTO transitions VALUES (1, ?, ?)", row)
            if changes.directory is not None:
                self._db.execute("DELETE FROM followed")
                self._db.executemany("INSERT INTO followed VALUES (?, ?)", list(changes.directory.items()))
            for key, status in changes.statuses.items():
                if status is None:
                    self._db.execute("DELETE FROM statuses WHERE kind = ? AND namespace = ? AND name = ?", tuple(key))
                else:
                    self._db.execute("INSERT OR REPLACE INTO statuses VALUES (?, ?, ?, ?)", (*key, json.dumps(status)))
            self._db.execute("INSERT INTO revisions VALUES (?, ?, ?)", (revision, time, summary))
            self._db.execute(
                "DELETE FROM revisions WHERE revision <= ? AND revision NOT IN (SELECT created FROM objects)",
                (revision - KEPT_REVISIONS,),
            )
        return revision

    def revisions(self, limit: int) -> list[StoredRevision]:
        with self._used():
            rows = self._db.execute(
                "SELECT revision, time, summary FROM revisions ORDER BY revision DESC LIMIT ?", (limit,)
            )
            return [StoredRevision(*row) for row in rows]

    def created_times(self) -> dict[int, float]:
        with self._used():
            rows = self._db.execute(
                "SELECT revision, time FROM revisions WHERE revision IN (SELECT created FROM objects)"
            )
            return dict(rows.fetchall())

    def close(self) -> None:
        with self._used():
            self._db.close()

    def _open(self) -> None:
        # Exclusive before WAL: then SQLite keeps the WAL index in memory and no other process can open the file.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():  # takes the lock now, so that a second control plane fails here and not later
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StoreError(f"{self._path} has layout {version}, and this weft knows {SCHEMA_VERSION} only.")
            self._db.execute(STATUSES)
            self._db.execute(FOLLOWED)

    def _revision(self) -> int:
        (revision,) = self._db.execute("SELECT coalesce(max(revision), 0) FROM revisions").fetchone()
        return int(revision)

    def _put(self, item: StoredObject, revision: int) -> None:
        digest = hashlib.sha256(item.text.encode()).digest()
        self._db.execute("INSERT INTO texts (digest, text) VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, item.text))
        self._db.execute(
            "INSERT OR REPLACE INTO objects SELECT ?, ?, ?, ?, id, ?, ?, ? FROM texts WHERE digest = ?",
            (*item.key, item.file, item.generation, item.created or revision, item.author.value, digest),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Use the connection; what goes wrong with it is a StoreError."""
        try:
            with self._using:
                yield
        except sqlite3.OperationalError as exc:
            if "locked" in str(exc):
                raise StoreError(f"{self._path} is in use by another control plane of this mesh.") from exc
            raise StoreError(f"{self._path}: {exc}") from exc
        except (sqlite3.Error, OSError, UnicodeError) as exc:
            raise StoreError(f"{self._path}: {exc}") from exc


def _before_to_json(transition: Transition) -> str:
    return json.dumps([[key, item and asdict(item)] for key, item in transition.before.items()])


def _before_from_json(text: str) -> dict[ConfigKey, StoredObject | None]:
    return {
        (key := ConfigKey(*parts)): fields
        and StoredObject(**{**fields, "key": key, "author": Author(fields["author"])})
        for parts, fields in json.loads(text)
    }
