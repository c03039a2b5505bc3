"""A directory of YAML files is read whole, and read again when a person saves a file in it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from weft.errors import StoreError
from weft.store import FileSource


def test_yaml_files_are_found_in_order_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.yaml", "a.yml", "sub/c.yaml", "e.json", "notes.md", ".hidden.yaml", ".git/d.yaml", "weft.yaml"):
        (tmp_path / name).write_text(name)

    found = ("a.yml", "b.yaml", "e.json", "sub/c.yaml")
    assert list(FileSource(tmp_path).load()) == [str(tmp_path / name) for name in found]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        FileSource(tmp_path / "nowhere").load()


def test_text_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=r"a\.yaml:1:1: .*not UTF-8"):
        FileSource(tmp_path).load()


def fail(error: StoreError) -> None:
    raise error


async def _follow(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one")
    source = FileSource(tmp_path, poll_seconds=0.001)
    seen = source.watch(source.load(), fail)

    async def following() -> dict[str, str]:
        found = await asyncio.wait_for(anext(seen), 10)
        return {Path(name).name: text for name, text in found.items()}

    (tmp_path / "a.yaml").write_text("two!")
    assert await following() == {"a.yaml": "two!"}
    (tmp_path / "b.yaml").write_text("b")
    assert await following() == {"a.yaml": "two!", "b.yaml": "b"}
    (tmp_path / "a.yaml").unlink()
    assert await following() == {"b.yaml": "b"}
    (tmp_path / "new").write_text("atomically")
    (tmp_path / "new").replace(tmp_path / "b.yaml")
    assert await following() == {"b.yaml": "atomically"}


def test_changes_are_followed_one_after_the_other(tmp_path: Path) -> None:
    asyncio.run(_follow(tmp_path))


class Counted(FileSource):
    """A source that says how often it has read the directory, or has tried to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, poll_seconds=0.001)
        self.loads = 0

    def load(self) -> Mapping[str, str]:
        try:
            return super().load()
        finally:
            self.loads += 1


async def _touch(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one")
    source = Counted(tmp_path)
    step = asyncio.ensure_future(anext(source.watch({str(tmp_path / "a.yaml"): "one"}, fail)))
    while source.loads < 1:
        await asyncio.sleep(0)
    (tmp_path / "a.yaml").write_text("one")
    while source.loads < 2:
        await asyncio.sleep(0)
    assert not step.done()
    (tmp_path / "b.yaml").write_text("two")
    assert len(await asyncio.wait_for(step, 10)) == 2


def test_a_file_saved_without_an_edit_wakes_nobody(tmp_path: Path) -> None:
    asyncio.run(_touch(tmp_path))


async def _cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("one")
    source = Counted(tmp_path)
    told: list[str] = []
    step = asyncio.ensure_future(anext(source.watch(source.load(), lambda error: told.append(str(error)))))
    for number, name in enumerate(("a.yaml", "b.yaml"), 1):
        (tmp_path / name).write_bytes(b"\xff")
        while len(told) < number:
            await asyncio.sleep(0)
        tried = source.loads + 5
        while source.loads < tried:
            await asyncio.sleep(0)
        assert len(told) == number, "once"
        assert f"{name}:1:1" in told[-1]
    (tmp_path / "a.yaml").write_text("two!")
    (tmp_path / "b.yaml").unlink()
    assert list((await asyncio.wait_for(step, 10)).values()) == ["two!"]
    assert len(told) in (2, 3), "between the two there may be a look"


def test_what_cannot_be_read_is_told_once_until_something_changes(tmp_path: Path) -> None:
    asyncio.run(_cannot_be_read(tmp_path))
