"""The parent of hot restart, asked as Envoy asks it; tests/conformance/test_envoy_restart.py has Envoy ask."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port
from weft.agent import protobuf, syscalls
from weft.agent.hot_restart import Parent, Place

BASE_ID = os.getpid()
MEMORY = Path(f"/dev/shm/envoy_shared_memory_{BASE_ID * 10}")

PASS_LISTEN_SOCKET, SHUTDOWN_ADMIN, STATS, DRAIN_LISTENERS = 1, 2, 3, 4


def run(body: Callable[[Parent], Coroutine[Any, Any, None]]) -> None:
    async def test() -> None:
        parent = Parent(BASE_ID)
        try:
            async with asyncio.timeout(20):
                await body(parent)
        finally:
            parent.end()
        assert not MEMORY.exists()

    asyncio.run(test())


class Child(socket.socket):
    """A successor's end of the channel."""

    def __init__(self, arguments: list[str]) -> None:
        scaled = int(arguments[arguments.index("--base-id") + 1]) * 10
        own, self.parent = (
            f"\0weft_hot_restart_{who}_{scaled}".encode().ljust(108, b"\0") for who in ("child", "parent")
        )
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.bind(own)
        self.settimeout(10)


@contextmanager
def child(parent: Parent) -> Iterator[Child]:
    with parent.succession() as (arguments, _):
        pass
    with Child(arguments) as made:
        yield made


def ask(child: Child, kind: int, content: bytes = b"") -> tuple[bytes, list[int]]:
    """Return the content of the reply, and the descriptors that came with it."""
    request = protobuf.field(1, protobuf.field(kind, content))
    child.sendto(struct.pack(">Q", len(request)) + request, child.parent)
    data, descriptors, _, _ = socket.recv_fds(child, 4096, 2)
    assert struct.unpack(">Q", data[:8]) == (len(data) - 8,)
    ((_, reply),) = protobuf.fields(data[8:])
    assert isinstance(reply, bytes)
    ((answered, value),) = protobuf.fields(reply)
    assert answered == kind
    assert isinstance(value, bytes)
    return value, descriptors


async def passed(child: Child, address: str, worker: int = 0) -> socket.socket | None:
    """Return the listening socket that the parent passes for *address*."""
    content = protobuf.field(1, address.encode()) + (protobuf.number(2, worker) if worker else b"")
    value, descriptors = await asyncio.to_thread(ask, child, PASS_LISTEN_SOCKET, content)
    if descriptors:
        return socket.socket(fileno=descriptors[0])
    assert value == protobuf.number(1, -1)
    return None


def test_a_child_that_changes_its_death_signal_keeps_the_agents() -> None:
    """As Envoy does in hot restart (hot_restart_impl.cc), with SIGTERM, which it does not always hear."""
    change_and_read = (
        "import ctypes, signal\n"
        "number, libc = ctypes.c_int(), ctypes.CDLL(None)\n"
        "print(libc.prctl(1, signal.SIGTERM), libc.prctl(2, ctypes.byref(number)), number.value)\n"
        "print(libc.prctl(15, b'renamed'), open('/proc/self/comm').read().strip())\n"
    )

    async def body(parent: Parent) -> None:
        def before_exec() -> None:
            syscalls.set_death_signal(signal.SIGKILL)
            parent.prepare()

        command = [sys.executable, "-c", change_and_read]
        done = subprocess.run(command, preexec_fn=before_exec, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [f"0 0 {signal.SIGKILL.value}", "0 renamed"]

    run(body)


def test_callers_wait_for_the_next_process() -> None:
    async def body(parent: Parent) -> None:
        port = free_port()
        with child(parent) as first:
            made = await passed(first, f"tcp://127.0.0.1:{port}")
            assert made is not None
            assert not os.get_blocking(
                made.fileno()
            )  # the flag is of the open socket, and Envoy accepts until none is left
            made.listen()
            made.close()
        with socket.create_connection(("127.0.0.1", port), 5) as caller, child(parent) as second:
            caller.sendall(b"hello")
            again = await passed(second, f"tcp://127.0.0.1:{port}")
            assert again is not None
            with again, again.accept()[0] as accepted:
                assert accepted.recv(5) == b"hello"

    run(body)


def test_each_worker_has_a_socket_of_its_own() -> None:
    async def body(parent: Parent) -> None:
        address = f"tcp://[::1]:{free_port()}"
        with child(parent) as envoy:
            made = [await passed(envoy, address, worker) for worker in (0, 1, 0)]
            inodes = [os.fstat(item.fileno()).st_ino for item in made if item]
            assert inodes[0] == inodes[2] != inodes[1]
            for item in made:
                assert item is not None
                item.close()

    run(body)


def test_only_the_places_of_listeners_are_kept() -> None:
    async def body(parent: Parent) -> None:
        kept, dropped = free_port(), free_port()
        with child(parent) as envoy:
            for port in (kept, dropped):
                made = await passed(envoy, f"tcp://127.0.0.1:{port}")
                assert made is not None
                made.listen()
                made.close()
        parent.keep_only([Place("127.0.0.1", kept), Place("0.0.0.0", 9)])
        assert answers(kept)
        assert not answers(dropped)
        parent.forget()
        assert not answers(kept)

    run(body)


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def test_what_it_does_not_have_the_child_opens() -> None:
    """Unix sockets, ports that are to be chosen, what somebody else has, and everything once the proxy is to end."""

    async def body(parent: Parent) -> None:
        with child(parent) as envoy, socket.create_server(("127.0.0.1", 0)) as other:
            assert await passed(envoy, "unix:///run/publish-80.sock") is None
            assert await passed(envoy, "tcp://127.0.0.1:0") is None
            assert await passed(envoy, f"tcp://127.0.0.1:{other.getsockname()[1]}") is None
            parent.close()
            assert await passed(envoy, f"tcp://127.0.0.1:{free_port()}") is None

    run(body)


def test_the_other_questions_are_answered() -> None:
    async def body(parent: Parent) -> None:
        with child(parent) as envoy:
            value, _ = await asyncio.to_thread(ask, envoy, SHUTDOWN_ADMIN)
            assert dict(protobuf.fields(value)) == {2: True}  # enable_reuse_port_default
            assert await asyncio.to_thread(ask, envoy, STATS) == (b"", [])
            envoy.sendto(bytes(7) + b"\4" + protobuf.field(1, protobuf.field(DRAIN_LISTENERS, b"")), envoy.parent)
            value, _ = await asyncio.to_thread(ask, envoy, SHUTDOWN_ADMIN)  # the one before had no answer
            assert value

    run(body)


def test_the_memory_is_there_until_it_is_mapped() -> None:
    async def body(parent: Parent) -> None:
        with parent.succession() as (arguments, descriptors):
            assert descriptors == []
            assert arguments[:2] == ["--restart-epoch", "1"]
            assert MEMORY.stat().st_size == 104
        with Child(arguments) as envoy:
            await asyncio.to_thread(ask, envoy, SHUTDOWN_ADMIN)
        assert not MEMORY.exists()
        with parent.succession() as (arguments, _):
            assert "--restart-epoch" in arguments

    run(body)


def test_a_successor_is_answered_beside_the_process_that_it_replaces() -> None:
    async def body(parent: Parent) -> None:
        address = f"tcp://127.0.0.1:{free_port()}"
        with child(parent) as first:
            one = await passed(first, address)
            with child(parent) as second:
                assert first.parent != second.parent
                other, again = await passed(second, address), await passed(first, address)
                inodes = set()
                for item in (one, other, again):
                    assert item is not None
                    with item:
                        inodes.add(os.fstat(item.fileno()).st_ino)
                assert len(inodes) == 1

    run(body)


def test_after_a_process_that_said_nothing_one_runs_alone() -> None:
    async def body(parent: Parent) -> None:
        found = []
        for _ in range(3):
            with parent.succession() as (arguments, _):
                found.append(arguments[0])
        assert found == ["--restart-epoch", "--disable-hot-restart", "--restart-epoch"]

    run(body)
