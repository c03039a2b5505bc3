"""
The configurations that each proxy had, so that a request can be explained by the one that was in force then.

What is published to a proxy is kept as a list of hashes, each resource once whatever number of configurations has it:
a change of one route costs one resource. It lives in a SQLite file beside the access records, as long as they do; a
file that cannot be used is made anew, and one that cannot be written loses history and stops nothing.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

KEPT_CONFIGURATIONS = 256
"""For each proxy. More changes than that within the time that records are kept are those of a test."""

KEPT_BYTES = 64 << 20
"""Of the file; when it is full, the older half of all configurations goes, but for what proxies have that are there."""

SWEEP_EVERY = 64
"""Configurations between two looks for what is too old."""

ACKNOWLEDGE_SECONDS = 0.05
"""A proxy works by a new configuration a moment before its acknowledgement is here."""

ADDRESS = "substr(substr(node, instr(node, '~') + 1), 1, instr(substr(node, instr(node, '~') + 1), '~') - 1)"
"""The workload's address, of a node id `KIND~ADDRESS~NAME.NAMESPACE~DOMAIN`: an index serves it only if asked in the same words."""

BEFORE = "(published <= ? OR published > ?)"
"""Before a time, or after now: that was before a clock was set back, and nothing that is asked about was earlier."""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS resources (version TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS configurations (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    revision INTEGER NOT NULL,
    published REAL NOT NULL,
    acknowledged REAL,
    content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS configurations_of_node ON configurations (node, published);
CREATE INDEX IF NOT EXISTS configurations_of_address ON configurations ({ADDRESS});
"""


@dataclass(frozen=True, slots=True)
class Configuration:
    """
    What was published to one proxy.

    Attributes:
        revision: With which it came.
        published, acknowledged: When, in seconds since 1970; None: never, as far as is known.
        resources: (type URL, name, serialised message).
    """

    node: str
    revision: int
    published: float
    acknowledged: float | None
    resources: tuple[tuple[str, str, bytes], ...]


class History:
    """The configurations of every proxy, in the file *path*. *clock*: seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._since_sweep = 0
        self._uses: Counter[str] = Counter()
        """How many configurations have each version that is in the file."""
        self._is_counted = False
        self._there: set[str] = set()
        """Proxies that were published to, and have not gone since."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            log.warning("%s cannot be used (%s): the history of configurations begins anew", path, error)
            for part in ("", "-wal", "-shm"):
                path.with_name(path.name + part).unlink(missing_ok=True)
            self._db = _open(path)
        self._count()

    def published(self, node: str, revision: int, resources: Iterable[tuple[str, str, str, bytes]]) -> None:
        """Note what was just published to a proxy: (type URL, name, version, serialised message); equal versions, equal bytes."""
        self._there.add(node)
        values, content = {}, []
        for type_url, name, version, value in resources:
            content.append((type_url, name, version))
            if version not in self._uses:
                values[version] = value
        text = json.dumps(sorted(content), separators=(",", ":"))
        self._write(lambda: self._note(node, revision, text, values))

    def withdrawn(self, node: str) -> None:
        """Note that a proxy is gone: when the file is full, what it had last may go like anything else."""
        self._there.discard(node)

    def acknowledged(self, node: str, revision: int) -> None:
        """Note that a proxy has everything of *revision*, and so of those before."""
        self._write(
            lambda: self._db.execute(
                "UPDATE configurations SET acknowledged = ? WHERE node = ? AND revision <= ? AND acknowledged IS NULL",
                (self._clock(), node, revision),
            )
        )

    def revision(self, node: str, at: float) -> int | None:
        """Return the revision that a proxy had at a time, None if it is not known."""
        rows = self._in_force(node, at, 1)
        return rows[0][1] if rows else None

    def at(self, node: str, at: float) -> tuple[Configuration, ...]:
        """
        Return the configurations that a proxy may have had at a time, the likeliest first.

        The first is the last that it had acknowledged then. What was on its way to it follows, and what it had before:
        between being published and being acknowledged a configuration may already be at work.
        """
        return tuple(self._configuration(row) for row in self._in_force(node, at, 3))

    def node_at(self, address: str, at: float) -> str:
        """Return the node id of the proxy that had the workload address *address* at a time; empty if none had."""
        found = self._db.execute(
            f"SELECT node FROM configurations WHERE {ADDRESS} = ? AND {BEFORE} ORDER BY id DESC LIMIT 1",
            (address, at + ACKNOWLEDGE_SECONDS, self._clock()),
        ).fetchone()
        return str(found[0]) if found else ""

    def resource(self, version: str) -> bytes:
        """Return the serialised message of which *version* is the hash; empty if it is not kept any more."""
        found = self._db.execute("SELECT value FROM resources WHERE version = ?", (version,)).fetchone()
        return bytes(found[0]) if found else b""

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _in_force(self, node: str, at: float, limit: int) -> list[tuple[int, int, float, float | None]]:
        at += ACKNOWLEDGE_SECONDS
        now = self._clock()
        rows = self._db.execute(
            "SELECT id, revision, published, acknowledged FROM configurations"
            f" WHERE node = ? AND {BEFORE} ORDER BY id DESC LIMIT ?",
            (node, at, now, KEPT_CONFIGURATIONS),
        ).fetchall()
        acknowledged = (row[3] is not None and (row[3] <= at or row[3] > now) for row in rows)
        known = next((index for index, is_known in enumerate(acknowledged) if is_known), len(rows))
        # Newest first: what was on its way, what was in force, what was before.
        ordered = rows[known : known + 1] + rows[max(0, known - 1) : known] + rows[known + 1 : known + 2]
        return ordered[:limit]

    def _configuration(self, row: tuple[int, int, float, float | None]) -> Configuration:
        number, revision, published, acknowledged = row
        found = self._db.execute("SELECT node, content FROM configurations WHERE id = ?", (number,)).fetchone()
        node, content = found
        resources = []
        for type_url, name, version in json.loads(content):
            found = self._db.execute("SELECT value FROM resources WHERE version = ?", (version,)).fetchone()
            if found is not None:
                resources.append((type_url, name, found[0]))
        return Configuration(node, revision, published, acknowledged, tuple(resources))

    def _count(self) -> None:
        """Count what configurations have, of which a sweep that looked through all of them would take long."""
        counted: Counter[str] = Counter()
        for (content,) in self._db.execute("SELECT content FROM configurations"):
            counted.update(_versions(content))
        self._uses, self._is_counted = counted, True

    def _note(self, node: str, revision: int, content: str, values: dict[str, bytes]) -> None:
        if not self._is_counted:
            self._count()
        last = self._db.execute(
            "SELECT content FROM configurations WHERE node = ? ORDER BY id DESC LIMIT 1", (node,)
        ).fetchone()
        if last is not None and last[0] == content:
            return  # a control plane that started again publishes what was there
        self._db.executemany("INSERT OR IGNORE INTO resources VALUES (?, ?)", values.items())
        self._db.execute(
            "INSERT INTO configurations (node, revision, published, content) VALUES (?, ?, ?, ?)",
            (node, revision, self._clock(), content),
        )
        self._uses.update(_versions(content))
        self._since_sweep += 1
        if self._since_sweep >= SWEEP_EVERY:
            self._since_sweep = 0
            self._sweep()

    def _sweep(self) -> None:
        """Forget what is too old or too much."""
        for (node,) in self._db.execute("SELECT DISTINCT node FROM configurations").fetchall():
            self._forget(
                "node = ? AND id NOT IN (SELECT id FROM configurations WHERE node = ? ORDER BY id DESC LIMIT ?)",
                (node, node, KEPT_CONFIGURATIONS),
            )
        (pages,), (page,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        if (pages - free) * page > KEPT_BYTES:
            (count,) = self._db.execute("SELECT count(*) FROM configurations").fetchone()
            self._forget(
                "id IN (SELECT id FROM configurations WHERE id NOT IN"
                " (SELECT max(id) FROM configurations WHERE node IN (SELECT value FROM json_each(?)) GROUP BY node)"
                " ORDER BY id LIMIT ?)",
                (json.dumps(sorted(self._there)), count // 2),
            )

    def _forget(self, which: str, values: tuple[object, ...]) -> None:
        """Forget the configurations for which *which* holds, and what only they had."""
        gone = self._db.execute(f"DELETE FROM configurations WHERE {which} RETURNING content", values).fetchall()
        self._uses.subtract(version for (content,) in gone for version in _versions(content))
        unused = {version for (content,) in gone for version in _versions(content) if self._uses[version] <= 0}
        self._db.executemany("DELETE FROM resources WHERE version = ?", [(version,) for version in unused])
        for version in unused:
            del self._uses[version]

    def _write(self, work: Callable[[], object]) -> None:
        """Do *work* in one transaction. A full disk costs the history, not the mesh."""
        try:
            with self._db:
                work()
        except sqlite3.Error as error:
            # What was just written may not be there.
            self._uses.clear()
            self._is_counted = False
            log.warning("the history of configurations has a gap: %s", error)


def _versions(content: str) -> set[str]:
    """Return the versions that a configuration has."""
    return {version for _, _, version in json.loads(content)}


def _open(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600, exist_ok=True)
    # No request waits for these writes, but the loop does; losing them with the machine is no loss.
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA)
        _check(db)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection) -> None:
    """Raise unless everything in the file can be read: after a crash of the machine there may be zeros for any page of it."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok" or db.execute("SELECT 1 FROM configurations WHERE NOT json_valid(content) LIMIT 1").fetchone():
        raise sqlite3.DatabaseError(found if found != "ok" else "a configuration in it is no JSON")
