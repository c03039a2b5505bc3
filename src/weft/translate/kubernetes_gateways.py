"""
The listeners of the Gateway API that a gateway proxy implements, and the virtual hosts of the HTTPRoutes attached to
them. Called by `gateways.py`, which has the listener's socket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from envoy.config.route.v3 import route_components_pb2

from weft.api.attachment import (
    EVERY_HOST,
    GATEWAY_NAME_LABEL,
    admission,
    gateway_address,
    implemented,
    patterns,
)
from weft.api.gateway_api import Listener
from weft.model import ConfigObject
from weft.translate import http_route, names
from weft.translate.fragments import Reading
from weft.translate.http_route import Attached
from weft.translate.index import age
from weft.translate.origin import annotate, describe
from weft.translate.routes import VirtualHost, virtual_host


@dataclass(frozen=True, slots=True)
class BoundListener:
    """A listener of a Gateway at this proxy: `index` is its place in `spec.listeners`."""

    item: ConfigObject
    index: int
    listener: Listener

    @property
    def hostname(self) -> str:
        return self.listener.hostname or EVERY_HOST


def listeners(reading: Reading) -> list[BoundListener]:
    """Return the listeners for this proxy, of the oldest Gateway first."""
    return [
        BoundListener(item, index, listener)
        for item in reading.kubernetes_gateways()
        if implemented(item.spec.gateway_class_name, reading.gateway_classes()) and _is_mine(reading, item)
        for index, listener in enumerate(item.spec.listeners)
    ]


def _is_mine(reading: Reading, item: ConfigObject) -> bool:
    """
    Whether this proxy implements a Gateway.

    In a cluster a controller starts a workload for each Gateway. Here gateways are programs of the mesh: the one that
    `addresses` names, else those whose label names the Gateway, else every gateway that is not some other Gateway's.
    """
    if item.spec.addresses:
        wanted = [gateway_address(address.value, item.key.namespace) for address in item.spec.addresses]
        return (reading.namespace, reading.label("app")) in wanted
    if label := reading.label(GATEWAY_NAME_LABEL):
        return (reading.namespace, label) == (item.key.namespace, item.key.name)
    return not reading.gateway_workloads(f"{item.key.namespace}/{item.key.name}")


def virtual_hosts(reading: Reading, bound: Sequence[BoundListener]) -> list[VirtualHost]:
    """
    Return the virtual hosts of listeners on one port.

    A host belongs to the listener whose hostname is the most specific one for it, and to its routes alone; a listener
    without routes for it answers 404. Of the routes those for the most specific hostname come first.
    """
    table = {(one.item.key, one.index): _by_host(_attached(reading, one)) for one in bound}
    by_hostname: dict[str, list[BoundListener]] = defaultdict(list)
    for one in bound:
        by_hostname[one.hostname].append(one)
    hosts = {*by_hostname, *(host for routes in table.values() for host in routes)}
    made = []
    for host in sorted(hosts):
        # The narrowest listener for the host; `patterns` names the narrower ones first.
        best = next((pattern for pattern in patterns(host) if pattern in by_hostname), None)
        if best is None:
            continue
        owners = by_hostname[best]
        found = {
            route.item.key: route
            for one in owners
            for pattern in patterns(host)
            for route in table[one.item.key, one.index].get(pattern, ())
        }
        routes = list(found.values())
        message = route_components_pb2.VirtualHost(
            name=names.virtual_host(host, owners[0].listener.port), domains=[host], include_request_attempt_count=True
        )
        message.routes.extend(http_route.routes(reading, routes, owners[0].listener.port, host=host))
        first = min(routes, key=lambda route: route.age, default=None)
        if first is not None:
            annotate(message.metadata, describe(first.item, "spec"))
        else:
            annotate(message.metadata, describe(owners[0].item, "spec", "listeners", owners[0].index))
        made.append(virtual_host(message))
    return made


def _by_host(routes: Iterable[Attached]) -> dict[str, list[Attached]]:
    found: dict[str, list[Attached]] = defaultdict(list)
    for route in routes:
        for host in route.hosts:
            found[host].append(route)
    return found


def _attached(reading: Reading, bound: BoundListener) -> Iterator[Attached]:
    """Yield the routes that a listener has admitted."""
    seen = set()
    for index, item in reading.gateway_routes(f"{bound.item.key.namespace}/{bound.item.key.name}"):
        ref = item.spec.parent_refs[index]
        admitted = dict(admission(item, ref, bound.item).listeners)
        if bound.index in admitted and item.key not in seen:
            seen.add(item.key)
            yield Attached(item, age(item), admitted[bound.index])
