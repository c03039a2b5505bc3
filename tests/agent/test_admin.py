"""What the agent asks of an admin interface that is slow, silent or gone; the answers are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from weft.agent import admin

COUNT = "open"


async def count(path: Path) -> int:
    return (await admin.stats(path, COUNT))[COUNT]


async def finished(path: Path, answers: Sequence[str | None], *, patience: float) -> tuple[bool, list[str]]:
    """Return what `finish` makes of an interface with these answers, None for silence, and what it was asked."""
    asked: list[str] = []
    left = list(answers)
    answering: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" HTTP/")[0])
        text = left.pop(0) if left else None
        if text is None:
            await reader.read()  # until whoever asks gives up
        else:
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, str(path)):
        done = await admin.finish(path, ("/drain",), count, patience=patience, poll=0.0)
        await asyncio.gather(*filter(None, answering))
        return done, asked


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param(
            ["OK", f"{COUNT}: 2", f"{COUNT}: 0", f"{COUNT}: 1", f"{COUNT}: 0", f"{COUNT}: 0"], True, id="soon"
        ),
        pytest.param([None, "OK", None, None, f"{COUNT}: 1", None, f"{COUNT}: 0", f"{COUNT}: 0"], True, id="late"),
        pytest.param(["OK", None], False, id="never"),
    ],
)
def test_what_is_open_is_waited_for_though_answers_are_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str | None], expected: bool
) -> None:
    monkeypatch.setattr(admin, "TIMEOUT_SECONDS", 0.1)
    done, asked = asyncio.run(finished(tmp_path / "admin.sock", answers, patience=60.0 if expected else 0.5))
    assert done is expected
    drains = 1 + (answers[0] is None)
    assert asked[:drains] == ["POST /drain"] * drains
    assert set(asked[drains:]) == {f"GET /stats?filter={COUNT}"}
    assert len(asked) == len(answers) if expected else len(asked) > len(answers)


def test_who_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    assert asyncio.run(admin.finish(tmp_path / "nobody.sock", ("/drain",), count, patience=60.0, poll=0.0)) is False
