"""
Real Envoy is asked to end as its agent asks it: a request that is under way gets its whole answer; and to make room for a
successor: what it has open goes on, with TCP alone as with HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from weft.agent import admin
from weft.agent.data_planes import DATA_PLANES, envoy
from weft.agent.data_planes.base import RETIRE_POLL_SECONDS
from weft.data_plane import ENVOY

pytestmark = pytest.mark.conformance

LIMIT_SECONDS = 60.0


def typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{name}", **fields}


def bootstrap(directory: Path, upstream: int) -> dict[str, Any]:
    """Two listeners on Unix sockets, of HTTP and of TCP, and one upstream for both on this machine's loopback."""
    router = typed("envoy.extensions.filters.http.router.v3.Router")
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in",
        route_config={"virtual_hosts": [host]},
        http_filters=[{"name": "router", "typed_config": router}],
        drain_timeout="0.1s",
    )
    proxy = typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="tcp", cluster="up")

    def listener(name: str, config: dict[str, Any]) -> dict[str, Any]:
        chain = {"filters": [{"name": name, "typed_config": config}]}
        inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
        return {
            "name": name,
            "address": {"pipe": {"path": str(directory / f"{name}.sock")}},
            "listener_filters": [{"name": "tls", "typed_config": inspector}],
            "listener_filters_timeout": "0s",
            "filter_chains": [chain],
        }

    address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}
    return {
        "layered_runtime": {"layers": [{"name": "weft", "static_layer": envoy.RUNTIME}]},
        "admin": {"address": {"pipe": {"path": str(directory / "admin.sock")}}},
        "static_resources": {
            "listeners": [listener("in", manager), listener("tcp", proxy)],
            "clusters": [
                {
                    "name": "up",
                    "load_assignment": {
                        "cluster_name": "up",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ],
        },
    }


@contextlib.contextmanager
def running(directory: Path, upstream: int) -> Iterator[subprocess.Popen[bytes]]:
    path = directory / "bootstrap.json"
    path.write_text(json.dumps(bootstrap(directory, upstream)))
    command = [DATA_PLANES[ENVOY].find().path, "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
    command += ["--log-level", "error", *envoy.DRAIN_OPTIONS]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.asynccontextmanager
async def serving(
    directory: Path, upstream: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
) -> AsyncIterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run one that is ready, before a server that serves its connections by *upstream*; yields it with its admin socket."""
    async with await asyncio.start_server(upstream, "127.0.0.1", 0) as server:
        with running(directory, server.sockets[0].getsockname()[1]) as process:
            control = directory / "admin.sock"
            while not await admin.is_ready(control):
                assert process.poll() is None
                await asyncio.sleep(0.01)
            yield process, control


def test_a_request_under_way_is_answered_and_its_connection_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envoy, "DRAIN_SECONDS", LIMIT_SECONDS)  # the machine may be busy

    async def test() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await answer.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole")
            await writer.drain()
            writer.close()

        async with serving(tmp_path, upstream) as (process, control):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "in.sock"))
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await asked.wait()
            assert await envoy.open_requests(control) == 1

            draining = asyncio.create_task(DATA_PLANES[ENVOY].drain(process.pid, control))
            while await admin.is_ready(control):  # `/healthcheck/fail` has been heard
                await asyncio.sleep(0.01)
            assert not draining.done()
            answer.set()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert await reader.readexactly(5) == b"whole"
            assert b"connection: close" in head
            assert await reader.read() == b""
            writer.close()
            await draining
            assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0

    asyncio.run(asyncio.wait_for(test(), LIMIT_SECONDS))


def test_what_is_carried_over_tcp_goes_on_until_it_ends(tmp_path: Path) -> None:
    """Also where nothing else is open, and where the client has said nothing yet: Envoy itself does not count such connections apart."""

    async def test() -> None:
        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1024):
                writer.write(data)
            writer.close()

        async with serving(tmp_path, upstream) as (process, control):

            async def are_open(connections: int) -> None:
                while await envoy.open_connections(control) != connections:
                    await asyncio.sleep(0.01)

            async def is_carried(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
                stream[1].write(b"again")
                return await stream[0].readexactly(5) == b"again"

            assert (await envoy.open_requests(control), await envoy.open_connections(control)) == (0, 0)
            (_, resting) = await asyncio.open_unix_connection(str(tmp_path / "in.sock"))
            carried, silent = [await asyncio.open_unix_connection(str(tmp_path / "tcp.sock")) for _ in range(2)]
            assert await is_carried(carried)
            await are_open(3)
            assert await envoy.open_requests(control) == 1
            resting.close()

            retiring = asyncio.create_task(DATA_PLANES[ENVOY].retire(process.pid, control, LIMIT_SECONDS))
            while await admin.is_ready(control):
                await asyncio.sleep(0.01)
            assert await is_carried(carried)
            carried[1].close()
            await are_open(1)
            for _ in ("it says nothing", "it is carried"):
                # Longer than it takes to be seen, if it were taken for nothing.
                await asyncio.wait((retiring,), timeout=6 * RETIRE_POLL_SECONDS)
                assert not retiring.done()
                assert await is_carried(silent)
            silent[1].close()
            await retiring
            assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0

    asyncio.run(asyncio.wait_for(test(), LIMIT_SECONDS))


def test_a_connection_may_rest_for_longer_than_changed_listeners_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks at last is answered, and told to go to the successor."""
    seconds = 2
    monkeypatch.setattr(envoy, "DRAIN_OPTIONS", ("--drain-time-s", str(seconds), *envoy.DRAIN_OPTIONS[2:]))

    async def test() -> None:
        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole")
            writer.close()

        async with serving(tmp_path, upstream) as (process, control):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "in.sock"))
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"connection: close" not in (await reader.readuntil(b"\r\n\r\n")).lower()
            assert await reader.readexactly(5) == b"whole"
            retiring = asyncio.create_task(DATA_PLANES[ENVOY].retire(process.pid, control, LIMIT_SECONDS))
            # Envoy, left to itself, closes it within that time.
            ended = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
            await asyncio.wait((retiring, ended), timeout=1.5 * seconds, return_when=asyncio.FIRST_COMPLETED)
            assert not retiring.done()
            assert not ended.done()
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"connection: close" in (await ended).lower()
            assert await reader.read() == b"whole"
            writer.close()
            await retiring
            assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0

    asyncio.run(asyncio.wait_for(test(), LIMIT_SECONDS))


def test_an_envoy_that_does_not_answer_is_told_all_the_same(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, lambda _, writer: writer.close()) as (process, _):
            await DATA_PLANES[ENVOY].drain(process.pid, tmp_path / "nobody.sock")
            assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 0

    asyncio.run(asyncio.wait_for(test(), LIMIT_SECONDS))
