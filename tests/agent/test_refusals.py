"""What the program's network refused, told to people."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent import edge
from weft.agent.agent import Refusals
from weft.agent.edge import Edge


def refusals(tmp_path: Path, refused: dict[int, int]) -> tuple[Refusals, list[tuple[str, str]]]:
    """Return what tells of a program that was *refused* ports of its loopback so often, and what it has told."""
    notes: list[tuple[str, str]] = []
    network: Any = SimpleNamespace(refused_loopback=lambda: refused, refused_udp=dict)
    member: Any = SimpleNamespace(
        mesh=SimpleNamespace(edge_socket=tmp_path / "edge"),
        spec=SimpleNamespace(ports=()),
        around=SimpleNamespace(attached=True),
        note=lambda text, code, **_more: notes.append((code, text)),
    )
    return Refusals(member, network), notes


@contextlib.asynccontextmanager
async def serving_edge(tmp_path: Path) -> AsyncIterator[None]:
    """Have an edge while the context lasts."""
    serving = asyncio.create_task(Edge().serve(tmp_path / "edge"))
    while not (tmp_path / "edge").exists():
        await asyncio.sleep(0)
    yield
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def test_a_hint_comes_when_the_edge_can_be_asked_again(tmp_path: Path) -> None:
    """The edge that decides whether the host listens there was being started again when the call was refused."""
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        refusing, notes = refusals(tmp_path, {port: 1})

        async def main() -> None:
            await refusing.look()
            assert notes == []
            async with serving_edge(tmp_path):
                for _ in range(2):
                    await refusing.look()

        asyncio.run(main())
    [(code, text)] = notes
    assert code == "host-port-hint"
    assert text.startswith(f"A call of localhost:{port} was refused")


def test_a_hint_comes_when_the_host_listens_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program tries its database again and again, which is started after it; the host is looked at for each try only once."""
    refused = {5432: 1}
    refusing, notes = refusals(tmp_path, refused)
    asked: list[int] = []
    listening = False

    async def host_listening(_edge: Path, port: int) -> bool:
        asked.append(port)
        return listening

    monkeypatch.setattr(edge, "host_listening", host_listening)

    async def look() -> tuple[int, int]:
        for _ in range(3):
            await refusing.look()
        return len(asked), len(notes)

    async def main() -> None:
        nonlocal listening
        assert await look() == (1, 0)
        refused[5432] += 1
        assert await look() == (2, 0)
        listening = True
        assert await look() == (2, 0), "it was not tried since"
        for _ in range(2):
            refused[5432] += 1
            assert await look() == (3, 1)

    asyncio.run(main())
