"""
Real Envoy follows the publisher, by delta and by the state of the world.

Envoy is the judge of the order in which the stream core sends things: it warms clusters, holds back ACKs while it does,
and answers requests meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401 - registers the type for Any
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from tests.ports import free_port
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes import DATA_PLANES
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.xds import Publisher

pytestmark = pytest.mark.conformance

LIMIT = 30.0
SOURCE = "127.0.77.1"
"""The address from which Envoy connects, by its bootstrap."""
NODE = "sidecar~127.0.0.1~envoy.default~default.svc.cluster.local"

Resource = tuple[str, str, bytes]


def resource(name: str, message: Message) -> Resource:
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}", name, message.SerializeToString(deterministic=True)


def ads(**more: str) -> dict[str, Any]:
    """The source of what comes by the one stream."""
    return {"ads": {}, "resource_api_version": "V3", **more}


def cluster(name: str, *, connect_timeout: str = "1s", policy: str = "ROUND_ROBIN", **source: str) -> Resource:
    """A cluster of EDS; *source* adds to where its endpoints come from."""
    content = {
        "name": name,
        "type": "EDS",
        "connect_timeout": connect_timeout,
        "lb_policy": policy,
        "eds_cluster_config": {"eds_config": ads(**source)},
    }
    return resource(name, ParseDict(content, Cluster()))


def endpoints(name: str, port: int) -> Resource:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    content = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    return resource(name, ParseDict(content, ClusterLoadAssignment()))


def listener(name: str, *, route: str = "web", port: int = 0, **source: str) -> Resource:
    """A listener of HTTP; *source* adds to where its routes come from."""
    manager: dict[str, Any] = {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "rds": {"config_source": ads(**source), "route_config_name": route},
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    content = {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return resource(name, ParseDict(content, Listener()))


def route(name: str, to: str) -> Resource:
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}]}
    return resource(name, ParseDict({"name": name, "virtual_hosts": [host]}, RouteConfiguration()))


@contextlib.asynccontextmanager
async def upstream(body: str, callers: set[str] | None = None) -> AsyncIterator[int]:
    """Serve *body* to every request, noting the addresses of *callers*; yields the port."""

    open_connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_connections[writer] = asyncio.current_task()
        if callers is not None:
            callers.add(writer.get_extra_info("peername")[0])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_connections:
            writer.close()
        await asyncio.gather(*filter(None, open_connections.values()))


class Follower:
    """A running data plane that follows a `Mesh`, Envoy if nothing else is said, and what one asks it."""

    def __init__(self, directory: Path, api_type: str, kind: str = ENVOY) -> None:
        self.admin = directory / "admin.sock"
        config = bootstrap(
            {"id": NODE, "cluster": "test"},
            admin=self.admin,
            xds=directory / "xds.sock",
            sds=directory / "sds.sock",
            records=directory / "records.sock",
            source=SOURCE,
        )
        config["dynamic_resources"]["ads_config"]["api_type"] = api_type
        path = directory / "bootstrap.json"
        path.write_text(json.dumps(config))
        self.log = directory / "proxy.log"
        command = [DATA_PLANES[kind].find().path, "-c", str(path), "--concurrency", "1", "--log-level", "warning"]
        command += ["--use-dynamic-base-id"] if kind == ENVOY else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        print(self.log.read_text()[-4000:])

    def ask(self, path: str) -> str:
        connection = http.client.HTTPConnection("envoy", timeout=LIMIT)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.admin))
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def stats(self, pattern: str) -> dict[str, int]:
        content = json.loads(self.ask(f"/stats?format=json&filter={pattern}"))
        return {item["name"]: item["value"] for item in content["stats"] if "value" in item}

    def port(self, name: str) -> int:
        for status in json.loads(self.ask("/listeners?format=json"))["listener_statuses"]:
            if status["name"] == name:
                return int(status["local_address"]["socket_address"]["port_value"])
        raise KeyError(name)


def get(port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, response.read().decode()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that Envoy does and announces nowhere."""
    async with asyncio.timeout(LIMIT):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


class Mesh:
    """A publisher with one proxy, and its revisions."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.publisher = Publisher(directory / "xds.sock")
        self.revision = 0

    def publish(self, *resources: Resource) -> int:
        self.revision += 1
        affected = self.publisher.publish({NODE: resources}, self.revision)
        assert affected == {NODE}
        return self.revision

    async def apply(self, *resources: Resource) -> None:
        receipt = await self.publisher.wait(self.publish(*resources), timeout=LIMIT)
        assert receipt.acknowledged == {NODE}, receipt


@pytest.fixture(params=["DELTA_GRPC", "GRPC"])
def api_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def envoy(tmp_path: Path, api_type: str) -> Iterator[Follower]:
    process = Follower(tmp_path, api_type)
    yield process
    process.stop()


def run(test: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(100):
            await test

    asyncio.run(limited())


def test_envoy_follows_changes_without_losing_a_request(envoy: Follower, tmp_path: Path) -> None:
    """Endpoints, a changed cluster, a route to a new cluster: each is in force when it is acknowledged."""

    async def test() -> None:
        mesh = Mesh(tmp_path)
        async with upstream("one") as one, upstream("two") as two, upstream("three") as three:
            rest = (listener("in"), route("web", "a"))
            await mesh.apply(cluster("a"), endpoints("a", one), *rest)
            port = envoy.port("in")
            assert await asyncio.to_thread(get, port) == (200, "one")

            answers: list[tuple[int, str]] = []
            ended = False

            async def hammer() -> None:
                while not ended:
                    answers.append(await asyncio.to_thread(get, port))

            hammering = asyncio.gather(*(hammer() for _ in range(3)))
            await mesh.apply(cluster("a"), endpoints("a", two), *rest)
            assert await asyncio.to_thread(get, port) == (200, "two")

            # The changed cluster is warmed again and needs its endpoints again, though they are the same.
            await mesh.apply(cluster("a", connect_timeout="2s"), endpoints("a", two), *rest)
            stats = await asyncio.to_thread(envoy.stats, "cluster_manager")
            assert stats["cluster_manager.warming_clusters"] == 0
            assert await asyncio.to_thread(get, port) == (200, "two")

            # The new cluster is there before the route names it, the old one until no route does.
            for number in range(10):
                name = f"b{number}"
                await mesh.apply(cluster(name), endpoints(name, three), listener("in"), route("web", name))
                seen = len(answers)
                await until(lambda seen=seen: len(answers) >= seen + 2)
            assert await asyncio.to_thread(get, port) == (200, "three")

            # Both at once: the cluster changed, and its endpoints.
            rest = (listener("in"), route("web", "b9"))
            await mesh.apply(cluster("b9", policy="LEAST_REQUEST"), endpoints("b9", one), *rest)
            assert await asyncio.to_thread(get, port) == (200, "one")
            ended = True
            await hammering
            assert {status for status, _ in answers} == {200}
        mesh.publisher.close()

    run(test())


def test_a_restart_of_the_control_plane_changes_nothing(envoy: Follower, tmp_path: Path, api_type: str) -> None:
    """
    Envoy serves on while nobody is there; by delta it is sent its endpoints again and nothing else, then follows the next
    change.
    """

    async def test() -> None:
        async with upstream("one") as one, upstream("two") as two:
            mesh = Mesh(tmp_path)
            content = (cluster("a"), endpoints("a", one), listener("in"), route("web", "a"))
            await mesh.apply(*content)
            port = envoy.port("in")
            pattern = r"^(listener_manager.lds|cluster_manager.cds|http.in.rds.web|cluster.a).update_success$"
            before = await asyncio.to_thread(envoy.stats, pattern)
            assert len(before) == 4
            mesh.publisher.close()
            assert await asyncio.to_thread(get, port) == (200, "one")

            again = Mesh(tmp_path)
            again.revision = mesh.revision
            await again.apply(*content)
            if api_type == "DELTA_GRPC":
                # Envoy cannot say whether a cluster still waits for them.
                sent = {"cluster.a.update_success": before["cluster.a.update_success"] + 1}
                assert await asyncio.to_thread(envoy.stats, pattern) == before | sent
            await again.apply(cluster("a"), endpoints("a", two), *content[2:])
            assert await asyncio.to_thread(get, port) == (200, "two")
            again.publisher.close()

    run(test())


def test_removed_resources_go(envoy: Follower, tmp_path: Path) -> None:
    """Listeners and clusters that are no longer published are gone, and the receipt waits for it."""

    async def test() -> None:
        mesh = Mesh(tmp_path)
        async with upstream("one") as one:
            both = [item for name in ("a", "b") for item in (cluster(name), endpoints(name, one))]
            await mesh.apply(*both, listener("x"), listener("y", route="other"), route("web", "a"), route("other", "b"))
            await mesh.apply(cluster("a"), endpoints("a", one), listener("x"), route("web", "a"))
            names = [item["name"] for item in json.loads(envoy.ask("/listeners?format=json"))["listener_statuses"]]
            assert names == ["x"]
            assert "b::" not in envoy.ask("/clusters")
        mesh.publisher.close()

    run(test())


def test_envoy_connects_from_the_workloads_address(envoy: Follower, tmp_path: Path) -> None:
    """The bootstrap's source holds for clusters that have none of their own, and the sockets of the streams bear with it."""

    async def test() -> None:
        mesh = Mesh(tmp_path)
        callers: set[str] = set()
        async with upstream("one", callers) as one:
            await mesh.apply(cluster("a"), endpoints("a", one), listener("in"), route("web", "a"))
            assert await asyncio.to_thread(get, envoy.port("in")) == (200, "one")
        assert callers == {SOURCE}
        mesh.publisher.close()

    run(test())


@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_what_does_not_come_in_time_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """A cluster whose endpoints do not come has none, routes that do not come lead nowhere; both come late all the same."""

    async def test() -> None:
        mesh = Mesh(tmp_path)
        limit = {"initial_fetch_timeout": "0.2s"}
        ports = {name: free_port() for name in ("with", "without")}

        def answers(name: str, expected: tuple[int, str]) -> bool:
            with contextlib.suppress(ConnectionError):
                return get(ports[name]) == expected
            return False

        async with upstream("one") as one:
            # Of the state of the world nobody is told that something does not exist.
            follower = Follower(tmp_path, "GRPC", kind)
            try:
                names = (cluster("a", **limit), listener("with", route="a", port=ports["with"], **limit))
                rest = (route("a", "a"), listener("without", route="b", port=ports["without"], **limit))
                mesh.publish(*names, *rest)
                await until(lambda: answers("without", (404, "")))
                await until(lambda: get(ports["with"])[0] == 503)
                mesh.publish(*names, *rest, endpoints("a", one), route("b", "a"))
                for name in ports:
                    await until(lambda name=name: answers(name, (200, "one")))
            finally:
                follower.stop()
        mesh.publisher.close()

    run(test())
