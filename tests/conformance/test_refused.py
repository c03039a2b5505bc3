"""
A resource of each kind that cannot be honoured, among others that can: Envoy and weft-proxy, by delta and by the state of the world.

Envoy refuses the whole answer that it is in, so the publisher finds which it was; weft-proxy names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from tests.conformance.test_envoy_xds import (
    LIMIT,
    Follower,
    Mesh,
    Resource,
    cluster,
    endpoints,
    get,
    listener,
    resource,
    route,
    run,
    upstream,
)
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]


def ended_twice(made: Resource) -> Resource:
    """A filter that ends a chain, and is not its last."""
    message = Listener.FromString(made[2])
    filters = message.filter_chains[0].filters
    filters.add().CopyFrom(filters[0])
    return resource(made[1], message)


def without_time(made: Resource) -> Resource:
    """A check of health that may take no time."""
    message = Cluster.FromString(made[2])
    check = message.health_checks.add()
    check.interval.seconds = 1
    check.unhealthy_threshold.value = check.healthy_threshold.value = 1
    check.tcp_health_check.SetInParent()
    return resource(made[1], message)


def everything_twice(made: Resource) -> Resource:
    """Two virtual hosts for all domains."""
    message = RouteConfiguration.FromString(made[2])
    message.virtual_hosts.add().CopyFrom(message.virtual_hosts[0])
    message.virtual_hosts[1].name = "other"
    return resource(made[1], message)


def no_port(made: Resource) -> Resource:
    message = ClusterLoadAssignment.FromString(made[2])
    message.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value = 70_000
    return resource(made[1], message)


SPOILED: dict[str, Callable[[Resource], Resource]] = {
    "Cluster": without_time,
    "ClusterLoadAssignment": no_port,
    "Listener": ended_twice,
    "RouteConfiguration": everything_twice,
}
"""By the kind that is spoiled."""


@pytest.fixture(params=["DELTA_GRPC", "GRPC"])
def api_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[ENVOY, WEFT_PROXY])
def follower(request: pytest.FixtureRequest, tmp_path: Path, api_type: str) -> Iterator[Follower]:
    process = Follower(tmp_path, api_type, request.param)
    yield process
    process.stop()


def all_of(name: str, port: int, to: int) -> dict[str, Resource]:
    """A listener with routes, a cluster and endpoints of its own, by kind."""
    return {
        "Cluster": cluster(name),
        "ClusterLoadAssignment": endpoints(name, to),
        "Listener": listener(name, route=name, port=port),
        "RouteConfiguration": route(name, name),
    }


def test_one_is_refused_by_name_and_the_rest_is_taken(follower: Follower, tmp_path: Path) -> None:
    """Each kind in turn: it is told with its reason, what came with it serves, and it is taken once it is whole."""

    async def test() -> None:
        mesh = Mesh(tmp_path)
        async with upstream("one") as one, upstream("two") as two:
            ports = {name: free_port() for name in ("first", *SPOILED)}
            serving = {name: all_of(name, port, one) for name, port in ports.items()}
            published = [*serving["first"].values()]
            await mesh.apply(*published)
            assert await asyncio.to_thread(get, ports["first"]) == (200, "one")
            for kind, spoil in SPOILED.items():
                good = serving[kind]
                # What is already there changes with the same answer.
                published = [*all_of("first", ports["first"], two).values(), *published[4:]]
                bad = good | {kind: spoil(good[kind])}
                receipt = await mesh.publisher.wait(mesh.publish(*published, *bad.values()), timeout=LIMIT)
                assert not receipt.silent, kind
                [[refused]] = [item.resources for item in receipt.refused.values()]
                assert (refused.type_url.rpartition(".")[2], refused.name) == (kind, kind)
                assert refused.message
                assert await asyncio.to_thread(get, ports["first"]) == (200, "two")
                published += good.values()
                await mesh.apply(*published)
                assert await asyncio.to_thread(get, ports[kind]) == (200, "one")
        mesh.publisher.close()

    run(test())
