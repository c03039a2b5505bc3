"""
What programs and proxies write: kept in files of bounded size, each line of a program with the time it came.

The agent owns one OutputLog for its program and caps the access log that the proxy writes. `weft logs` reads both
back with `lines`. The runtime directory usually lives in memory, so nothing here may grow without bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 4 * 1024 * 1024
"""Of one log file; there is one older generation (`.1`) beside it, so twice that is the most a log can take."""

LONGEST_LINE_BYTES = 64 * 1024
"""A program that never ends its line is cut here, as Docker and Kubernetes do with 16 KiB."""

REMEMBERED_LINES = 10
"""The last lines that are shown when a program dies."""


class OutputLog:
    """
    A program's output: `<RFC 3339 time> <line>` in a file.

    Lines for which the disk has no room are lost, and the program does not notice.

    Args:
        path: The file; it is appended to.
        tee: Called with each whole line, without its line end.
        warn: Called with a sentence when lines begin to be lost.
        now: The clock; for tests.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        tee: Callable[[str], None] | None = None,
        warn: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path, self._limit, self._tee, self._warn, self._now = path, limit_bytes, tee, warn, now
        self._partial = b""
        self._last: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self._losing = False
        self._file = self._open()

    @property
    def last(self) -> list[str]:
        """The last lines of this run, oldest first."""
        return list(self._last)

    def begin(self) -> None:
        """Another run of the program begins: `last` tells of this one only, and its lines are its own."""
        self.end_line()
        self._last.clear()

    def feed(self, data: bytes) -> None:
        """Take what was read from the program; a line that has not ended yet waits for its end."""
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > LONGEST_LINE_BYTES:
            whole.append(self._partial[:LONGEST_LINE_BYTES])
            self._partial = self._partial[LONGEST_LINE_BYTES:]
        if whole:
            self._write(whole)

    def end_line(self) -> None:
        """Write what is left of a line that will not end any more: who wrote it has ended."""
        if self._partial:
            self._write([self._partial])
            self._partial = b""

    def close(self) -> None:
        """Write what is left, even if its line never ended."""
        self.end_line()
        self._file.close()

    def _write(self, lines: list[bytes]) -> None:
        texts = [line.decode("utf-8", "backslashreplace").rstrip("\r") for line in lines]
        self._last.extend(texts)
        time = stamp(self._now())
        try:
            self._append("".join(f"{time} {text}\n" for text in texts).encode())
            self._losing = False
        except OSError as exc:
            if not self._losing:
                self._warn(f"what the program writes is lost, {self._path} cannot be written: {exc.strerror}")
            self._losing = True
        if self._tee:
            for text in texts:
                self._tee(text)

    def _append(self, records: bytes) -> None:
        """Write all of *records*; raises OSError if none of it could be written."""
        if self._size() + len(records) > self._limit:
            with contextlib.suppress(FileNotFoundError):  # it was set aside, and no other could be opened
                self._path.replace(older(self._path))
            full, self._file = self._file, self._open()
            full.close()
        before = self._size()
        if self._file.write(records) != len(records):
            self._file.truncate(before)  # the next line is not to begin in the middle of one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _open(self) -> FileIO:
        # Without a buffer: what a full disk does not take would wait in it, and fail whoever writes or closes next.
        return FileIO(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def stamp(time: datetime) -> str:
    """Return *time* as `2026-01-31T12:00:00.123Z`, as access records have it."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def older(path: Path) -> Path:
    """Return where the older half of the log at *path* is."""
    return path.with_name(path.name + ".1")


def cap(path: Path, limit_bytes: int = LIMIT_BYTES) -> bool:
    """
    Cut a log that another process keeps open for appending: copy it aside, then empty it.

    Lines that arrive between the copy and the cut are lost; the writer cannot be asked to reopen, and this happens
    once in some ten thousand requests.

    Returns:
        Whether the file was over the limit.
    """
    try:
        size = path.stat().st_size
        if size <= limit_bytes:
            return False
        # Piece by piece: the memory for all of it at once would stay with the process.
        with path.open("r+b") as file:
            try:
                with older(path).open("wb") as kept:
                    file.seek(size - limit_bytes)
                    shutil.copyfileobj(file, kept)
            except OSError:  # no space for a copy: all the more must the log be cut
                older(path).unlink(missing_ok=True)
            file.truncate(0)
    except FileNotFoundError:
        return False
    return True


class Follower:
    """Reads a log from its beginning (older half included), then whatever is appended, across rotation and cuts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._partial = b""
        self._history = True

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that are new since the last call."""
        if self._history:
            self._history = False
            with contextlib.suppress(FileNotFoundError):
                # A program's line may hold what str.splitlines takes for the end of one: form feed, U+2028, "\r".
                *past, cut_off = older(self._path).read_bytes().split(b"\n")
                for line in [*past, cut_off] if cut_off else past:
                    yield line.decode("utf-8", "replace")
        while True:
            if self._file is None:
                try:
                    self._file = self._path.open("rb")
                except FileNotFoundError:
                    return
            size = os.fstat(self._file.fileno()).st_size
            if size < self._file.tell():  # it was cut
                self._file.seek(0)
                self._partial = b""
            *whole, self._partial = (self._partial + self._file.read()).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace")
            if not self._replaced():
                return
            self._file.close()  # it was rotated, and the rest of the old one has been read
            self._file, self._partial = None, b""

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _replaced(self) -> bool:
        assert self._file is not None
        try:
            return self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False
