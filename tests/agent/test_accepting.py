"""Connections that are accepted: none is left open by the end of who accepts, whenever that comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.agent.accepting import serve_each


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "listener"))
        listening.listen()
        listening.setblocking(False)
        yield listening


def caller(listener: socket.socket) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(listener.getsockname())
    return connection


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_a_connection_is_closed_when_its_task_has_ended(listener: socket.socket) -> None:
    async def main() -> None:
        async def serve(connection: socket.socket) -> None:
            await asyncio.get_running_loop().sock_sendall(connection, b"served")

        accepting = asyncio.create_task(serve_each(listener, serve, set()))
        with caller(listener) as connection:
            assert await asyncio.to_thread(connection.recv, 100) == b"served"
            assert await asyncio.to_thread(connection.recv, 100) == b""
        await cancelled(accepting)

    asyncio.run(main())


def test_a_connection_is_closed_if_its_task_was_cancelled_before_it_began(listener: socket.socket) -> None:
    async def main() -> None:
        async def serve(connection: socket.socket) -> None:
            raise AssertionError("it never begins")

        tasks: set[asyncio.Task[None]] = set()
        accepting = asyncio.create_task(serve_each(listener, serve, tasks))
        with caller(listener) as connection:
            while not tasks:
                await asyncio.sleep(0)
            (task,) = tasks
            await cancelled(task)
            assert await asyncio.to_thread(connection.recv, 100) == b""
            assert not tasks
        await cancelled(accepting)

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(4))
def test_a_connection_waits_in_the_backlog_or_has_a_task(listener: socket.socket, steps: int) -> None:
    """However many steps of the loop lie between its coming and the end of who accepts."""

    async def main() -> None:
        begun: list[socket.socket] = []

        async def serve(connection: socket.socket) -> None:
            begun.append(connection)

        tasks: set[asyncio.Task[None]] = set()
        accepting = asyncio.create_task(serve_each(listener, serve, tasks))
        await asyncio.sleep(0)
        with caller(listener):
            for _ in range(steps):
                await asyncio.sleep(0)
            await cancelled(accepting)
            await asyncio.gather(*tasks)
            waiting = False
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                waiting = True
            assert len(begun) + waiting == 1

    asyncio.run(main())
