"""Taking connections of a listening socket, each served in a task; what agents and the edge have in common."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

EXHAUSTED_PAUSE_SECONDS = 0.1
"""Before the next accept when no descriptor is left; the connections wait in the backlog."""


async def serve_each(
    listener: socket.socket,
    serve: Callable[[socket.socket], Coroutine[Any, Any, None]],
    tasks: set[asyncio.Task[None]],
) -> NoReturn:
    """
    Serve each connection of *listener* in a task of its own, which is one of *tasks* while it runs; until cancelled.

    A connection is closed when its task has ended, also if that was cancelled before it began, and none is lost between
    being accepted and having a task, as with `loop.sock_accept` of a task that is cancelled.
    """
    loop = asyncio.get_running_loop()
    while True:
        await readable(listener)
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            continue
        except OSError:
            await asyncio.sleep(EXHAUSTED_PAUSE_SECONDS)
            continue
        connection.setblocking(False)
        task = loop.create_task(serve(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_closing(connection))


def _closing(connection: socket.socket) -> Callable[[asyncio.Task[None]], None]:
    return lambda _task: connection.close()


async def readable(connection: socket.socket) -> None:
    """Wait until *connection* has something to read, or a listener somebody to accept."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(connection, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(connection)
