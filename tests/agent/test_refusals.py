"""What the program's network refused, told to people."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weft.agent.agent import Refusals
from weft.agent.edge import Edge


def test_a_hint_comes_when_the_edge_can_be_asked_again(tmp_path: Path) -> None:
    """The edge that decides whether the host listens there was being started again when the call was refused."""
    notes: list[tuple[str, str]] = []
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        network: Any = SimpleNamespace(refused_loopback=lambda: {port: 1}, refused_udp=dict)
        member: Any = SimpleNamespace(
            mesh=SimpleNamespace(edge_socket=tmp_path / "edge"),
            spec=SimpleNamespace(ports=()),
            around=SimpleNamespace(attached=True),
            note=lambda text, code, **_more: notes.append((code, text)),
        )

        async def main() -> None:
            refusals = Refusals(member, network)
            await refusals.look()
            assert notes == []
            serving = asyncio.create_task(Edge().serve(tmp_path / "edge"))
            while not (tmp_path / "edge").exists():
                await asyncio.sleep(0)
            for _ in range(2):
                await refusals.look()
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

        asyncio.run(main())
    [(code, text)] = notes
    assert code == "host-port-hint"
    assert text.startswith(f"A call of localhost:{port} was refused")
