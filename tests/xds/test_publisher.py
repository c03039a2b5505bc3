"""The publisher with the real stream core and real gRPC clients."""

from __future__ import annotations

import asyncio
import collections
import os
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster

from tests.xds.clients import bodies, names, stream
from weft.xds import (
    Connected,
    Disconnected,
    Event,
    Publisher,
    Refused,
    Rejected,
    Synced,
)

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
LIMIT = 10.0

Test = Callable[["Bench"], Coroutine[Any, Any, None]]


class Bench:
    """A publisher and what it reported."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.events: list[Event] = []
        self._news = asyncio.Condition()
        self.publisher = Publisher(path, observe=self._observe, **options)

    def _observe(self, event: Event) -> None:
        self.events.append(event)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def until(self, kind: type[Any], count: int = 1) -> Any:
        """The *count*-th event of a kind."""
        found: list[Event] = []

        def enough() -> bool:
            found[:] = [event for event in self.events if isinstance(event, kind)]
            return len(found) >= count

        async with asyncio.timeout(LIMIT), self._news:
            await self._news.wait_for(enough)
        return found[count - 1]


def run(path: Path, test: Test, **options: Any) -> None:
    async def main() -> None:
        bench = Bench(path, **options)
        try:
            await test(bench)
        finally:
            bench.publisher.close()

    asyncio.run(main())


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "xds.sock"


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "state of the world"])
def test_a_proxy_is_sent_its_own_view(socket: Path, delta: bool) -> None:
    async def test(bench: Bench) -> None:
        publisher = bench.publisher
        assert publisher.publish({"a": [(CLUSTER, "x", b"mine")], "b": [(CLUSTER, "x", b"other")]}, 1) == {"a", "b"}
        async with stream(socket, "a", delta=delta) as proxy:
            await proxy.subscribe(CLUSTER)
            response = await proxy.take()
            found = [item.resource for item in response.resources] if delta else response.resources
            assert bodies(found) == [b"mine"]
            assert await bench.until(Connected) == Connected("a", os.getpid())
            assert await bench.until(Synced) == Synced("a", 1)
            receipt = await publisher.wait(1, timeout=0)
            assert (receipt.acknowledged, receipt.silent) == ({"a"}, {"b"})
            status = publisher.proxies()["a"]
            assert (status.connected, status.published, status.acknowledged, status.synced) == (True, 1, 1, True)
        assert await bench.until(Disconnected) == Disconnected("a")
        assert publisher.proxies()["a"].acknowledged == 1, "what it had acknowledged, it still has"
        assert not publisher.proxies()["a"].synced

    run(socket, test)


def test_an_equal_view_is_not_sent_and_a_changed_one_only_in_part(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        publisher = bench.publisher
        publisher.publish({"a": [(CLUSTER, "x", b"1"), (CLUSTER, "y", b"1")]}, 1)
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            assert names(await proxy.take()) == ["x", "y"]
            assert publisher.publish({"a": [(CLUSTER, "y", b"1"), (CLUSTER, "x", b"1")]}, 2) == frozenset()
            assert publisher.publish({"a": [(CLUSTER, "x", b"2"), (CLUSTER, "y", b"1")]}, 3) == {"a"}
            assert names(await proxy.take()) == ["x"]
            assert (await publisher.wait(3, timeout=LIMIT)).complete

    run(socket, test)


def test_wait_ends_with_the_last_answer_and_names_the_silent(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        publisher = bench.publisher
        waiting = asyncio.create_task(publisher.wait(1, timeout=LIMIT))
        await asyncio.sleep(0)
        assert not waiting.done(), "not published yet"
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            publisher.publish({"a": [(CLUSTER, "x", b"1")]}, 1)
            response = await proxy.receive()
            receipt = await publisher.wait(1, timeout=0.05)
            assert (receipt.published, receipt.silent) == (True, {"a"})
            assert not waiting.done()
            await proxy.answer(response)
            assert (await waiting).acknowledged == {"a"}

    run(socket, test)


def test_a_refusal_is_reported_with_the_proxys_reason(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        publisher = bench.publisher
        publisher.publish({"a": [(CLUSTER, "bad", b"1"), (CLUSTER, "good", b"1")]}, 1)
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            sizes = []
            while not any(isinstance(event, Synced) for event in bench.events):
                response = await proxy.receive()
                sizes.append(len(response.resources))
                await proxy.answer(response, error="I will not" if "bad" in names(response) else "")
                if len(sizes) == 3:
                    await bench.until(Synced)
            assert sizes == [2, 1, 1]
            refused = await bench.until(Refused)
            assert (refused.resource.name, refused.resource.message) == ("bad", "I will not")
            receipt = publisher.receipt(1)
            assert set(receipt.refused) == {"a"}
            assert receipt.complete

    run(socket, test)


def test_a_view_is_kept_from_whom_it_is_not_for(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(CLUSTER, "x", b"secret")], "b": [(CLUSTER, "x", b"yours")]}, 1)
        async with stream(socket, "a") as thief, stream(socket, "b") as proxy:
            await thief.subscribe(CLUSTER)
            rejected = await bench.until(Rejected)
            assert rejected == Rejected("a", os.getpid(), "not yours")
            await proxy.subscribe(CLUSTER)
            await proxy.take()
            await bench.until(Synced)
            assert not bench.publisher.proxies()["a"].connected
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await thief.receive()

    run(socket, test, admit=lambda node, pid: "not yours" if node == "a" else "")


def test_a_proxy_may_come_before_its_view_and_stay_after_it(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        publisher = bench.publisher
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            await bench.until(Connected)
            publisher.publish({"a": [(CLUSTER, "x", b"1")]}, 1)
            assert publisher.proxies()["a"].connected
            assert names(await proxy.take()) == ["x"]
            await bench.until(Synced)
            publisher.withdraw("a")
            assert publisher.proxies() == {}
            assert publisher.resources("a") is None
            publisher.publish({"a": [(CLUSTER, "x", b"1"), (CLUSTER, "y", b"1")]}, 2)
            assert names(await proxy.take()) == ["y"]
            assert (await publisher.wait(2, timeout=LIMIT)).acknowledged == {"a"}

    run(socket, test)


def test_a_new_control_plane_sends_nothing_to_a_proxy_that_has_everything(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(CLUSTER, "x", b"1"), (ROUTE, "r", b"1")]}, 1)
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            response = await proxy.take()
        versions = {item.name: item.version for item in response.resources}
        bench.publisher.close()
        again = Bench(socket)
        again.publisher.publish({"a": [(CLUSTER, "x", b"1"), (ROUTE, "r", b"1")]}, 8)
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER, versions=versions)
            assert (await again.until(Synced)).revision == 8
            # The first thing it hears is the answer to something new.
            await proxy.subscribe(ROUTE, "r")
            assert (await proxy.take()).type_url == ROUTE
        again.publisher.close()

    run(socket, test)


def test_a_proxy_of_two_processes_has_what_both_have(socket: Path) -> None:
    """A hot restart: the old process is slow, the new one has everything; then the new one goes."""

    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(CLUSTER, "x", b"1")]}, 1)
        async with stream(socket, "a") as old:
            await old.subscribe(CLUSTER)
            await old.take()
            assert (await bench.publisher.wait(1, timeout=LIMIT)).acknowledged == {"a"}
            async with stream(socket, "a") as new:
                await new.subscribe(CLUSTER)
                await new.take()
                assert (await bench.publisher.wait(1, timeout=LIMIT)).acknowledged == {"a"}
                bench.publisher.publish({"a": [(CLUSTER, "x", b"2")]}, 2)
                held = await old.receive()
                await new.take()
                await bench.until(Synced, 3)
                receipt = bench.publisher.receipt(2)
                assert (receipt.silent, receipt.complete) == ({"a"}, False)
                await old.answer(held)
                assert (await bench.publisher.wait(2, timeout=LIMIT)).acknowledged == {"a"}
        await bench.until(Disconnected)
        assert bench.publisher.proxies()["a"].acknowledged == 2

    run(socket, test)


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "state of the world"])
def test_envoy_that_comes_back_is_sent_its_endpoints_once(socket: Path, delta: bool) -> None:
    """Its cluster may still wait for them, though it says that it has them; for it that is no change."""
    cluster = Cluster(name="x", type=Cluster.EDS).SerializeToString()

    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(CLUSTER, "x", cluster), (ENDPOINTS, "x", b"")]}, 1)
        versions = {item.type_url: item.version for item in bench.publisher.resources("a") or ()}
        async with stream(socket, "a", delta=delta, user_agent="envoy") as proxy:
            await proxy.subscribe(CLUSTER, versions={"x": versions[CLUSTER]})
            if not delta:  # which cannot say what it has
                assert (await proxy.take()).type_url == CLUSTER
            await proxy.subscribe(ENDPOINTS, "x", versions={"x": versions[ENDPOINTS]})
            response = await proxy.receive()
            assert response.type_url == ENDPOINTS
            assert len(response.resources) == 1
            await proxy.answer(response)
            await proxy.subscribe(LISTENER)
            assert (await proxy.take()).type_url == LISTENER, "and not the endpoints again"
            assert (await bench.publisher.wait(1, timeout=LIMIT)).acknowledged == {"a"}

    run(socket, test)


def test_the_published_resources_can_be_read_back(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(ROUTE, "r", b"1"), (CLUSTER, "y", b"2"), (CLUSTER, "x", b"3")]}, 1)
        resources = bench.publisher.resources("a")
        assert resources is not None
        assert [(item.type_url, item.name, item.value) for item in resources] == [
            (CLUSTER, "x", b"3"),
            (CLUSTER, "y", b"2"),
            (ROUTE, "r", b"1"),
        ]
        assert all(len(item.version) == 16 for item in resources)

    run(socket, test)


CHILD = """
import asyncio, pathlib, sys, time
from tests.xds.clients import stream

async def main():
    async with stream(pathlib.Path(sys.argv[1]), "a") as proxy:
        await proxy.subscribe(sys.argv[2], "first")
        await proxy.take()
        print("attached", flush=True)
        assert sys.stdin.readline() == "busy\\n"
        for number in range(50):
            await proxy.subscribe(sys.argv[2], f"r{number}")
            await proxy.take()
        print(time.monotonic(), flush=True)

asyncio.run(main())
"""


def test_a_busy_interpreter_delays_no_stream(socket: Path) -> None:
    """While this process holds the interpreter's lock, another one is served fifty times."""

    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": [(ROUTE, name, b"x") for name in ["first", *(f"r{n}" for n in range(50))]]}, 1)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, str(socket), ROUTE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        async with asyncio.timeout(LIMIT):
            assert await child.stdout.readline() == b"attached\n"
        child.stdin.write(b"busy\n")
        await child.stdin.drain()
        collections.deque(repeat(None, 300_000_000), maxlen=0)  # one call of C code: nobody else runs Python meanwhile
        free = time.monotonic()
        async with asyncio.timeout(LIMIT):
            served = float(await child.stdout.readline())
            await child.wait()
        assert served < free

    run(socket, test)


def test_close_ends_streams_and_removes_the_socket(socket: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.publisher.publish({"a": []}, 1)
        async with stream(socket, "a") as proxy:
            await proxy.subscribe(CLUSTER)
            await proxy.take()
            bench.publisher.close()
            bench.publisher.close()
            assert not socket.exists()

    run(socket, test)
