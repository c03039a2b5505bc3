"""
A directory of YAML files as a source of configuration: read only, followed as it changes.

Polls the names, sizes and times of the files. A poll of some hundred files costs well under a millisecond, works on
every file system (inotify is silent on network and shared folders), and finds a file that an editor replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from weft.errors import StoreError
from weft.model import Problem, decode, is_document

POLL_SECONDS = 0.25
"""How late a change may be noticed; a person who saves a file does not feel it."""


class FileSource:
    """
    A `weft.store.Source`: every document (`weft.model.is_document`) under *directory*, hidden ones left out, in order of
    name. The weft.yaml of a mesh that follows its own directory is none.

    Raises (load):
        StoreError: The directory or a file in it cannot be read, or is not UTF-8.
    """

    def __init__(self, directory: Path, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._directory = directory
        self._poll_seconds = poll_seconds

    def load(self) -> Mapping[str, str]:
        try:
            texts = {str(path): decode(str(path), path.read_bytes()) for path in self._files()}
        except OSError as exc:
            raise StoreError(f"{self._directory}: {exc}") from exc
        if mistakes := [str(text) for text in texts.values() if isinstance(text, Problem)]:
            raise StoreError("\n".join(mistakes))
        return {file: text for file, text in texts.items() if isinstance(text, str)}

    async def watch(
        self, known: Mapping[str, str], tell: Callable[[StoreError], None]
    ) -> AsyncIterator[Mapping[str, str]]:
        stamp, last, content = None, None, known
        failed, told = None, None
        while True:
            now = await asyncio.to_thread(self._stamp)
            # Read only what has been still for one poll: an editor that truncates and then writes is not caught
            # between the two. The stamp is older than the content, so that a later write is seen again.
            if now != stamp and now == last:
                try:
                    found = await asyncio.to_thread(self.load)
                except StoreError as error:
                    found = content
                    # A file that went away between listing and reading is no news: what is there then is seen next. What
                    # stays is tried again, for a permission that is given changes no time.
                    if now == failed != told:
                        tell(error)
                        told = now
                    failed = now
                else:
                    stamp, failed, told = now, None, None
                if found != content:
                    content = found
                    yield content
            last = now
            await asyncio.sleep(self._poll_seconds)

    def _files(self) -> list[Path]:
        if not self._directory.is_dir():
            raise NotADirectoryError(f"{self._directory} is not a directory")
        found = (path for path in self._directory.rglob("*") if is_document(path.name) and path.is_file())
        return sorted(
            path for path in found if not any(p.startswith(".") for p in path.relative_to(self._directory).parts)
        )

    def _stamp(self) -> frozenset[tuple[str, int, int, int]]:
        stamps = set()
        try:
            for path in self._files():
                status = path.stat()
                stamps.add((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            pass  # differs from the last stamp, or is as empty as before: either way the next poll decides
        return frozenset(stamps)
