"""The keeper of listening sockets, spoken to as weft-proxy speaks to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from weft.agent.keeper import Keeper
from weft.agent.proxy import ABSENT_SECONDS, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STEADY_SECONDS, Pauses, Proxy

KEY = {"address": "127.0.0.1:8080", "namespace": None, "transparent": False}
OTHER = {"address": "[::]:15001", "namespace": "/run/weft/ns/one", "transparent": True}


def run(body: Callable[[Keeper], Coroutine[Any, Any, None]]) -> None:
    async def test() -> None:
        keeper = Keeper()
        try:
            async with asyncio.timeout(20):
                await body(keeper)
        finally:
            keeper.close()

    asyncio.run(test())


def say(channel: socket.socket, message: object, *sockets: socket.socket) -> None:
    socket.send_fds(channel, [json.dumps(message).encode() + b"\n"], [item.fileno() for item in sockets])


def inherited(channel: socket.socket) -> list[tuple[dict[str, Any], socket.socket]]:
    """What a process finds in its channel before it reads its configuration."""
    found = []
    while True:
        line, descriptors, _, _ = socket.recv_fds(channel, 4096, 4)
        message = json.loads(line)
        if message == "end":
            return found
        found.append((message["keep"], socket.socket(fileno=descriptors[0])))


def test_the_next_process_gets_the_sockets_and_callers_wait_meanwhile() -> None:
    async def body(keeper: Keeper) -> None:
        with keeper.channel() as first, socket.create_server(("127.0.0.1", 0)) as listener:
            assert inherited(first) == []
            address = listener.getsockname()
            say(first, {"keep": KEY}, listener)
        with socket.create_connection(address, 5) as caller:  # nobody has it now but the keeper
            caller.sendall(b"hello")
            with keeper.channel() as second:
                ((key, kept),) = inherited(second)
                assert key == KEY
                with kept, kept.accept()[0] as accepted:
                    assert accepted.recv(5) == b"hello"

    run(body)


def test_the_next_process_gets_more_sockets_than_a_channel_holds() -> None:
    """What does not fit is sent as the process takes out what does."""

    async def body(keeper: Keeper) -> None:
        count = 400
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for _ in range(count // 100):
                # A process leaves a hundred sockets at a time: that much fits in any channel.
                with keeper.channel() as channel:
                    await asyncio.to_thread(inherited_and_closed, channel)
                    for _ in range(100):
                        say(channel, {"keep": KEY}, listener)
        with keeper.channel() as last:
            assert await asyncio.to_thread(inherited_and_closed, last) == count

    run(body)


def inherited_and_closed(channel: socket.socket) -> int:
    found = inherited(channel)
    for _, kept in found:
        kept.close()
    return len(found)


def test_what_a_starting_proxy_has_inherited_is_kept_when_it_is_late(tmp_path: Path) -> None:
    """It is told as absent after a second; but only without any process are the kept sockets given up."""

    async def body(keeper: Keeper) -> None:
        told: list[bool] = []

        async def drain(pid: int, _admin: Path) -> None:
            os.kill(pid, signal.SIGKILL)

        proxy = Proxy(
            ["sh", "-c", "exec sleep 60"],  # which takes `--keeper-fd N` for its own arguments
            admin=tmp_path / "admin.sock",
            log=tmp_path / "proxy.log",
            drain=drain,
            retire=lambda pid, admin, _patience: drain(pid, admin),
            on_ready=told.append,
            on_notice=lambda _: None,
            keeper=keeper,
        )
        with keeper.channel() as first, socket.create_server(("127.0.0.1", 0)) as listener:
            inherited(first)
            say(first, {"keep": KEY}, listener)
        proxy._process = proxy._start()
        proxy._tell_absence()
        assert told == [False]
        with keeper.channel() as second:
            ((key, kept),) = inherited(second)
            kept.close()
            assert key == KEY
        proxy._process, process = None, proxy._process
        proxy._tell_absence()
        with keeper.channel() as third:
            assert inherited(third) == []
        process.kill()
        process.wait()

    run(body)


def test_a_proxy_that_has_served_is_back_before_it_counts_as_gone_however_often_it_dies() -> None:
    pauses = Pauses()
    served = [pauses.after(0.2, served=True) for _ in range(20)]
    assert served[0] == 0.0
    assert max(served) == FIRST_PAUSE_SECONDS < ABSENT_SECONDS / 2
    # One that does not come to serve only costs; one that ran for long has died of something else.
    assert pauses.after(0.2, served=False) == LONGEST_PAUSE_SECONDS
    assert pauses.after(STEADY_SECONDS + 1, served=False) == 0.0


def test_what_is_forgotten_is_closed() -> None:
    async def body(keeper: Keeper) -> None:
        before = len([*Path("/proc/self/fd").iterdir()])
        with keeper.channel() as first, socket.create_server(("127.0.0.1", 0)) as listener:
            inherited(first)
            say(first, {"keep": KEY}, listener)
            say(first, {"keep": OTHER}, listener)
            say(first, {"forget": {**reversed_(KEY)}})
        with keeper.channel() as second:
            ((key, kept),) = inherited(second)
            kept.close()
            assert key == OTHER
        keeper.close()
        assert len([*Path("/proc/self/fd").iterdir()]) == before

    run(body)


def reversed_(key: dict[str, Any]) -> dict[str, Any]:
    """The same key with its fields in another order."""
    return dict(reversed([*key.items()]))
