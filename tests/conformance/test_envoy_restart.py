"""
A real Envoy is killed and started again by its agent: callers wait, and its configuration is there without a control plane.

Envoy is the judge of the parent that it asks for its sockets, and of the shared memory that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401 - registers the type for Any
from google.protobuf.json_format import ParseDict

from tests.conformance.test_envoy_xds import NODE, Resource, cluster, endpoints, listener, resource, route, upstream
from tests.ports import free_port
from weft.agent import admin, hot_restart
from weft.agent.data_planes import DATA_PLANES
from weft.agent.data_planes.base import Place
from weft.agent.discovery import Discovery, Saved
from weft.agent.proxy import Proxy
from weft.data_plane import ENVOY
from weft.xds import Publisher

pytestmark = pytest.mark.conformance

LIMIT_SECONDS = 60.0

SECONDS_AFTER_CHANGE = 2.5
"""For how long a connection is used after its listener has changed."""


class Agent:
    """As much of an agent as an Envoy needs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parent = hot_restart.Parent()
        plane = DATA_PLANES[ENVOY]
        place = Place(
            workload="web-0",
            address="127.0.0.1",
            node={"id": NODE, "cluster": "test"},
            bootstrap=directory / "bootstrap.json",
            admin=directory / "admin.sock",
            xds=directory / "led.sock",
            sds=directory / "sds.sock",
            records=directory / "records.sock",
            edge=directory / "edge.sock",
            state=directory / "state",
        )
        place.bootstrap.write_text(json.dumps(plane.bootstrap(place)))
        self.notices: list[str] = []
        self.told_ready: list[bool] = []
        self.proxy = Proxy(
            plane.command(plane.find().path, place),
            admin=place.admin,
            log=directory / "proxy.log",
            drain=plane.drain,
            retire=plane.retire,
            on_ready=self.told_ready.append,
            on_notice=self.notices.append,
            keeper=self.parent,
        )
        saved = Saved(self.parent.keep_only)
        self.discovery = Discovery(directory / "xds.sock", directory / "saved.sock", self.proxy.ready, saved)
        self.discovery.open(place.xds)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        task = asyncio.create_task(self.proxy.run())
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                yield self
        finally:
            await self.proxy.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.discovery.close()
            self.parent.end()

    async def kill(self) -> None:
        """End the process that runs, and return when it is gone."""
        pid = self.proxy.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while self.proxy.pid == pid:
            await asyncio.sleep(0.001)

    async def dump(self) -> object:
        _, text = await admin.ask(self.directory / "admin.sock", "/config_dump?include_eds")
        return json.loads(text)


async def ask(port: int) -> bytes:
    """Return the body of what is answered at *port*; a refused connection is an error."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.rpartition(b"\r\n\r\n")[2]


async def refuses(port: int) -> bool:
    try:
        await ask(port)
    except ConnectionRefusedError:
        return True
    return False


def everything(port: int, to: int) -> list[Resource]:
    return [cluster("up"), endpoints("up", to), listener("web", port=port), route("web", "up")]


def test_it_is_back_on_its_sockets_with_what_it_had(tmp_path: Path) -> None:
    """Twice, without a control plane; when that is back nothing is sent, and what is new is taken."""

    async def test() -> None:
        port, other = free_port(), free_port()
        async with upstream("first") as first, upstream("second") as second, Agent(tmp_path).running() as agent:
            publisher = Publisher(tmp_path / "xds.sock")
            publisher.publish({NODE: everything(port, first)}, 1)
            await agent.proxy.ready()
            assert await ask(port) == b"first"
            publisher.close()

            for _ in range(2):
                await agent.kill()
                assert await ask(port) == b"first"  # it was accepted by the next process
            assert len(agent.notices) == 2
            assert all("SIGKILL" in notice for notice in agent.notices)
            assert agent.told_ready == [True]  # it was never away for long
            await agent.proxy.ready()

            before = await agent.dump()
            back = Publisher(tmp_path / "xds.sock")
            back.publish({NODE: everything(port, first)}, 1)
            assert not (await back.wait(1, LIMIT_SECONDS)).silent
            assert await agent.dump() == before  # with the times of the last updates

            back.publish({NODE: everything(other, second)}, 2)
            assert not (await back.wait(2, LIMIT_SECONDS)).silent
            assert await ask(other) == b"second"
            async with asyncio.timeout(LIMIT_SECONDS):
                while not await refuses(port):  # nobody keeps a socket of a listener that is no more
                    await asyncio.sleep(0.01)
            await agent.kill()
            assert await ask(other) == b"second"
            back.close()

    asyncio.run(test())


def test_without_shared_memory_of_its_layout_it_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Envoy may have another: the process that aborts is followed by one that is no successor."""
    monkeypatch.setattr(hot_restart, "LAYOUT_VERSION", hot_restart.LAYOUT_VERSION + 1)

    async def test() -> None:
        port = free_port()
        async with upstream("first") as first, Agent(tmp_path).running() as agent:
            publisher = Publisher(tmp_path / "xds.sock")
            publisher.publish({NODE: everything(port, first)}, 1)
            await agent.proxy.ready()
            assert await ask(port) == b"first"
            assert "SIGABRT" in agent.notices[0]
            assert "Hot restart version mismatch" in (tmp_path / "proxy.log").read_text()
            publisher.close()

    asyncio.run(test())


def carrying(port: int, stat_prefix: str) -> Resource:
    """Return a listener that carries TCP to the cluster `up`."""
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": stat_prefix,
        "cluster": "up",
    }
    content = {
        "name": "carries",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }
    return resource("carries", ParseDict(content, Listener()))


def test_a_connection_outlives_a_change_of_its_listener(tmp_path: Path) -> None:
    """It was cut off one second after any change, whoever it belonged to."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(100):
            writer.write(part)
        writer.close()

    async def test() -> None:
        port = free_port()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as up, Agent(tmp_path).running() as agent:
            common = [cluster("up"), endpoints("up", up.sockets[0].getsockname()[1])]
            publisher = Publisher(tmp_path / "xds.sock")
            publisher.publish({NODE: [*common, carrying(port, "before")]}, 1)
            await agent.proxy.ready()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            publisher.publish({NODE: [*common, carrying(port, "after")]}, 2)
            assert not (await publisher.wait(2, LIMIT_SECONDS)).silent
            changed = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < changed + SECONDS_AFTER_CHANGE:
                writer.write(b"one more")
                assert await reader.readexactly(8) == b"one more"
                await asyncio.sleep(0.05)
            _, gauges = await admin.ask(tmp_path / "admin.sock", "/stats?filter=total_filter_chains_draining")
            assert gauges.strip().endswith(b": 1"), "it was not the old filter chain that carried this"
            writer.close()
            await writer.wait_closed()
            publisher.close()

    asyncio.run(test())


def memories(base_ids: set[int]) -> list[Path]:
    """What is left of those that Envoys with these base ids have shared; other runs of tests have some, too."""
    return [path for base in base_ids for path in Path("/dev/shm").glob(f"envoy_shared_memory_{base}?")]


def base_ids() -> set[int]:
    """Of the Envoys that this process has started."""
    commands = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    return {int(words[words.index("--base-id") + 1]) for words in commands if "--base-id" in words}


def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    async def test() -> None:
        async with Agent(tmp_path).running() as agent:
            publisher = Publisher(tmp_path / "xds.sock")
            publisher.publish({NODE: everything(free_port(), 9)}, 1)
            await agent.proxy.ready()
            assert (ours := base_ids())
            assert not memories(ours)
            publisher.close()
        assert not memories(ours)

    asyncio.run(test())
