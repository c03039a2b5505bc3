"""The proxy's process, replaced while it dies, cannot start or is told to end: by programs that answer as a proxy's admin does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from weft.agent import admin
from weft.agent.keeper import Keeper
from weft.agent.proxy import NotReplaced, Proxy

LIMIT_SECONDS = 20

PROGRAM = """\
import os, pathlib, signal, socket, sys, threading
admin, folder = sys.argv[1], pathlib.Path(sys.argv[2])
number = len(list(folder.glob("started-*")))
(folder / f"started-{number}").write_text(str(os.getpid()))
gate = threading.Event()
while number and not (folder / "gate").exists():
    gate.wait(0.005)
listener = socket.socket(socket.AF_UNIX)
listener.bind(admin)
listener.listen()
while True:
    call = listener.accept()[0]
    call.recv(4096)
    call.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 5\\r\\nconnection: close\\r\\n\\r\\nLIVE\\n")
    call.close()
"""
"""The first one serves at once, later ones once there is a file `gate`. It knows nothing of the keeper's arguments."""


class Beside:
    """A proxy that runs, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keeper = folder, Keeper()
        self.told: list[bool] = []
        self.drained: list[bool] = []
        (folder / "program.py").write_text(PROGRAM)
        self.executable = folder / "python"
        self.executable.symlink_to(sys.executable)
        self.proxy = Proxy(
            [str(self.executable), str(folder / "program.py"), str(self.admin), str(folder)],
            admin=self.admin,
            log=folder / "proxy.log",
            drain=self.drain,
            retire=lambda pid, path, _patience: self.drain(pid, path),
            on_ready=self.told.append,
            on_notice=lambda _: None,
            keeper=self.keeper,
        )

    @property
    def admin(self) -> Path:
        return self.folder / "admin.sock"

    async def drain(self, pid: int, path: Path) -> None:
        """Notes whether the process could be asked at that socket."""
        self.drained.append(await admin.is_ready(path))
        with contextlib.suppress(ProcessLookupError):  # a process that has died meanwhile
            os.kill(pid, signal.SIGTERM)

    def started(self) -> list[int]:
        """Processes in the order of their start."""
        files = sorted(self.folder.glob("started-*"), key=lambda path: int(path.name.partition("-")[2]))
        return [int(text) for text in (path.read_text() for path in files) if text]

    def running(self) -> list[int]:
        return [pid for pid in self.started() if is_running(pid)]

    def open_the_gate(self) -> None:
        (self.folder / "gate").touch()


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def beside(folder: Path) -> AsyncIterator[Beside]:
    """Run one that serves until the block is left."""
    made = Beside(folder)
    running = asyncio.create_task(made.proxy.run())
    try:
        await made.proxy.ready()
        yield made
    finally:
        await made.proxy.stop()
        await running
        made.keeper.close()
        for pid in made.running():
            os.kill(pid, signal.SIGKILL)


def check(folder: Path, body: Callable[[Beside], Awaitable[None]]) -> None:
    async def test() -> None:
        async with asyncio.timeout(LIMIT_SECONDS), beside(folder) as made:
            await body(made)

    asyncio.run(test())


def test_one_that_dies_while_it_is_replaced_is_followed_by_its_successor(tmp_path: Path) -> None:
    async def body(made: Beside) -> None:
        replacing = asyncio.create_task(made.proxy.replace(patience=LIMIT_SECONDS, drain=1))
        await until(lambda: len(made.started()) == 2)
        old, new = made.started()
        os.kill(old, signal.SIGKILL)
        await until(lambda: made.proxy.pid == new)
        made.open_the_gate()
        assert await replacing == (old, new)
        await made.proxy.ready()
        assert made.running() == made.started()[1:] == [new]
        assert await admin.is_ready(made.admin)
        # All is as if it had never been away: it can be replaced.
        assert (await made.proxy.replace(patience=LIMIT_SECONDS, drain=1))[0] == new
        await until(lambda: not is_running(new))
        assert made.drained == [True]
        await until(lambda: [path.name for path in tmp_path.glob("*.sock*")] == [made.admin.name])

    check(tmp_path, body)


def test_one_that_dies_while_its_successor_does_not_come_to_serve_has_it_for_the_next(tmp_path: Path) -> None:
    async def body(made: Beside) -> None:
        replacing = asyncio.create_task(made.proxy.replace(patience=1, drain=1))
        await until(lambda: len(made.started()) == 2)
        old, new = made.started()
        os.kill(old, signal.SIGKILL)
        with pytest.raises(NotReplaced, match="does not serve within 1 s; the old one has died meanwhile"):
            await replacing
        await until(lambda: made.told == [True, False])
        made.open_the_gate()
        await made.proxy.ready()
        assert (made.proxy.pid, made.running(), made.started()) == (new, [new], [old, new])

    check(tmp_path, body)


def test_one_whose_successor_cannot_be_executed_goes_on(tmp_path: Path) -> None:
    async def body(made: Beside) -> None:
        made.executable.rename(tmp_path / "elsewhere")
        with pytest.raises(NotReplaced, match="the old one goes on"):
            await made.proxy.replace(patience=LIMIT_SECONDS, drain=1)
        (tmp_path / "elsewhere").rename(made.executable)
        assert made.running() == [made.proxy.pid]
        assert await admin.is_ready(made.admin)
        made.open_the_gate()
        await made.proxy.replace(patience=LIMIT_SECONDS, drain=1)

    check(tmp_path, body)


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_what_ends_while_it_is_replaced_is_drained(tmp_path: Path, how: str) -> None:
    async def body(made: Beside) -> None:
        replacing = asyncio.create_task(made.proxy.replace(patience=LIMIT_SECONDS, drain=1))
        await until(lambda: len(made.started()) == 2)
        if how == "cancelled":
            replacing.cancel()
        else:
            await made.proxy.stop()
            assert made.drained == [True]
        with pytest.raises(NotReplaced if how == "stopped" else asyncio.CancelledError):
            await replacing
        assert made.running() == ([made.started()[0]] if how == "cancelled" else [])
        assert await admin.is_ready(made.admin) is (how == "cancelled")

    check(tmp_path, body)
