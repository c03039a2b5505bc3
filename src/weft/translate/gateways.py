"""
A gateway proxy: the listeners of the Gateway objects that select it, and the routes of the VirtualServices bound to
them, beside those of the Gateway API (`kubernetes_gateways.py`). Called by the translator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2

from weft.api.networking import Server
from weft.model import ConfigKey, ConfigObject
from weft.translate import kubernetes_gateways, matching, names
from weft.translate.clusters import fill_address
from weft.translate.explicit import listening_network
from weft.translate.fragments import Reading
from weft.translate.http_manager import (
    HTTP_MANAGER,
    TCP_PROXY,
    add_network_filter,
    http_manager,
    routes_over_ads,
    tcp_proxy,
)
from weft.translate.index import matches
from weft.translate.kubernetes_gateways import BoundListener
from weft.translate.listeners import weighted_clusters
from weft.translate.matching import for_this_proxy
from weft.translate.origin import annotate, describe
from weft.translate.resource import LISTENER, Resource, resource, serialise
from weft.translate.routes import VirtualHost, empty_table, http_routes, route_configuration, virtual_host

HTTP_PROTOCOLS = frozenset({"HTTP", "HTTP2", "GRPC"})
TCP_PROTOCOLS = frozenset({"TCP"})

PROXY_PROTOCOL = "envoy.filters.listener.proxy_protocol"


@dataclass(frozen=True, slots=True)
class Bound:
    """A server of a Gateway at this proxy: `index` is its place in `spec.servers`."""

    item: ConfigObject
    index: int
    server: Server


@dataclass(frozen=True, slots=True)
class _Part:
    """
    The routes of one VirtualService for one host.

    Attributes:
        number: The server's port.
        by_gateway: The routes of each Gateway that it is bound to: which rules hold hangs on their `match.gateways`.
    """

    item: ConfigObject
    number: int
    by_gateway: dict[str, list[Any]] = field(default_factory=dict)

    def routes(self) -> list[Any]:
        """Return the routes of all Gateways behind each other; a rule that holds for several of them counts once."""
        if len(self.by_gateway) == 1:
            return next(iter(self.by_gateway.values()))
        # By their bytes: to compare each with each would take long where there are thousands.
        first, *others = self.by_gateway.values()
        known = {route.SerializeToString(deterministic=True) for route in first}
        found = list(first)
        for route in chain.from_iterable(others):
            if (written := route.SerializeToString(deterministic=True)) not in known:
                known.add(written)
                found.append(route)
        return found


def gateway(reading: Reading) -> tuple[Resource, ...]:
    """Return the listeners and route configurations of this gateway, one for each port."""
    made: list[Resource] = []
    servers, listeners = _servers(reading), _listeners(reading)
    for port in sorted(servers.keys() | listeners.keys()):
        mine, more = servers.get(port, []), listeners.get(port, [])
        # Two servers on one port are one listener; what speaks first decides what the port speaks.
        alike = [bound for bound in mine if _is_http(bound) is _is_http(mine[0])]
        if not mine or _is_http(mine[0]):
            made += _http_listeners(reading, port, alike, more)
            made.append(_routes(reading, port, alike, more))
        elif mine[0].server.port.protocol.upper() in TCP_PROTOCOLS:
            made += _tcp_listeners(reading, port, alike)
    return tuple(made)


def _servers(reading: Reading) -> dict[int, list[Bound]]:
    """Return the servers for this proxy by the port on which its workload listens for them."""
    found: dict[int, list[Bound]] = defaultdict(list)
    for item in reading.gateways():
        if item.spec.selector and not reading.carries(item.spec.selector):
            continue
        for index, server in enumerate(item.spec.servers):
            found[_listening_port(reading, server.port.number)].append(Bound(item, index, server))
    return found


def _listeners(reading: Reading) -> dict[int, list[BoundListener]]:
    """Return the listeners of the Gateway API for this proxy, likewise."""
    found: dict[int, list[BoundListener]] = defaultdict(list)
    for bound in kubernetes_gateways.listeners(reading):
        found[_listening_port(reading, bound.listener.port)].append(bound)
    return found


def _is_http(bound: Bound) -> bool:
    return bound.server.port.protocol.upper() in HTTP_PROTOCOLS


def _listening_port(reading: Reading, number: int) -> int:
    """
    Return where the gateway listens for what clients of its service call as *number*.

    A Gateway's port is the port of the gateway's service; its workload may listen elsewhere (80 -> 8080).
    """
    workload = reading.workload(reading.namespace, reading.workload_name)
    for hostname in workload.services if workload else ():
        service = reading.service(hostname)
        port = service.port(number) if service else None
        if port is not None:
            return port.target
    return number


def _http_listeners(
    reading: Reading, port: int, servers: list[Bound], listeners: list[BoundListener]
) -> list[Resource]:
    message = _listener(reading, port)
    manager = http_manager(reading, "gateway", f"gateway_{message.name}")
    routes_over_ads(manager, names.gateway_routes(port))
    chain = message.filter_chains.add(name="http")
    annotate(chain.metadata, _described(servers, listeners))
    add_network_filter(chain, HTTP_MANAGER, manager)
    return _with_published(reading, port, message)


def _described(servers: list[Bound], listeners: list[BoundListener]) -> dict[str, Any]:
    if servers:
        return describe(servers[0].item, "spec", "servers", servers[0].index)
    return describe(listeners[0].item, "spec", "listeners", listeners[0].index)


def _listener(reading: Reading, port: int) -> Any:
    message = listener_pb2.Listener(
        name=names.http_listener(port), traffic_direction=base_pb2.TrafficDirection.OUTBOUND
    )
    host, number = reading.outbound_addresses.get(port, (reading.address, port))
    fill_address(message.address, host, number, listening_network(reading))
    for published in sorted(reading.published):
        if published.port == port and port not in reading.published_sockets:
            address = message.additional_addresses.add().address
            fill_address(address, published.host_address, published.host_port, reading.host_namespace_path)
    return message


def _with_published(reading: Reading, port: int, message: Any) -> list[Resource]:
    """
    Return the listener, and where the agent relays the published ports another that does the same for what it brings.

    Another one, because a caller in the mesh must not be able to claim by a PROXY header that it is somebody else.
    """
    made = [resource(LISTENER, message.name, serialise(message))]
    if (socket := reading.published_sockets.get(port)) is not None:
        relayed = listener_pb2.Listener()
        relayed.CopyFrom(message)
        relayed.name = names.published_listener(port)
        relayed.address.Clear()
        relayed.address.pipe.path, relayed.address.pipe.mode = socket, 0o600
        header = relayed.listener_filters.add(name=PROXY_PROTOCOL)
        header.typed_config.Pack(proxy_protocol_pb2.ProxyProtocol(), deterministic=True)
        made.append(resource(LISTENER, relayed.name, serialise(relayed)))
    return made


def _tcp_listeners(reading: Reading, port: int, servers: list[Bound]) -> list[Resource]:
    """Return listeners that pass connections on; none if no VirtualService says where to."""
    for bound in servers:
        name = f"{bound.item.key.namespace}/{bound.item.key.name}"
        number = bound.server.port.number
        for item in reading.gateway_virtual_services(name):
            for index, rule in enumerate(item.spec.tcp):
                if rule.match and not any(
                    for_this_proxy(reading, item, match, number, (name,)) for match in rule.match
                ):
                    continue
                message = _listener(reading, port)
                chain = message.filter_chains.add(name="tcp")
                annotate(chain.metadata, describe(item, "spec", "tcp", index))
                clusters = weighted_clusters(reading, item, rule.route, number)
                add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "gateway", clusters))
                return _with_published(reading, port, message)
    return []


def _routes(reading: Reading, port: int, servers: list[Bound], listeners: list[BoundListener]) -> Resource:
    """
    Return the virtual hosts of all servers on one port; a host that a VirtualService has is not also HTTPRoutes'.

    Of each VirtualService the hosts that a server offers; rules of several VirtualServices for one host stand behind
    each other, oldest first, as do those of one for several Gateways, and those that match everything move to the end,
    or they would hide the rest.
    """
    parts: dict[str, dict[ConfigKey, _Part]] = defaultdict(dict)
    for bound in servers:
        name = f"{bound.item.key.namespace}/{bound.item.key.name}"
        number = bound.server.port.number
        for item in reading.gateway_virtual_services(name):
            hosts = set(_offered(reading, bound, item)) if item.spec.http else set()
            made = http_routes(reading, item, number, gateways=(name,)) if hosts else []
            for host in hosts if made else ():
                # Two servers of a Gateway may offer one host of one VirtualService: its rules count once.
                parts[host].setdefault(item.key, _Part(item, number)).by_gateway.setdefault(name, made)
    table = []
    for host, by_key in sorted(parts.items()):
        ordered = sorted(by_key.values(), key=lambda part: (part.item.created, *part.item.key))
        oldest = ordered[0]
        message = route_components_pb2.VirtualHost(
            name=names.virtual_host(host, oldest.number), domains=[host], include_request_attempt_count=True
        )
        every = [route for part in ordered for route in part.routes()]
        message.routes.extend(sorted(every, key=lambda route: matching.catches_all(route.match)))
        annotate(message.metadata, describe(oldest.item, "spec"))
        table.append(virtual_host(message))
    table += kubernetes_gateways.virtual_hosts(reading, listeners)
    if not table:
        table.append(_black_hole(servers[0]))
    name = names.gateway_routes(port)
    return route_configuration(name, empty_table(reading, name), table)


def _black_hole(bound: Bound) -> VirtualHost:
    """Return the virtual host of a gateway without rules: every request is answered 404 (NR)."""
    message = route_components_pb2.VirtualHost(
        name=names.virtual_host("blackhole", bound.server.port.number), domains=["*"]
    )
    annotate(message.metadata, _described([bound], []))
    return virtual_host(message)


def _offered(reading: Reading, bound: Bound, item: ConfigObject) -> Iterator[str]:
    """Yield the hosts that both the server and the VirtualService name; of a wildcard and a name in it, the name."""
    for pattern in bound.server.hosts:
        namespace, _, host = pattern.rpartition("/")
        if namespace == ".":
            namespace = bound.item.key.namespace
        if namespace not in ("", "*", item.key.namespace):
            continue
        for wanted in item.spec.hosts:
            mine = reading.hostname(wanted, item.key.namespace)
            if matches(mine, host):
                yield mine
            elif matches(host, mine):
                yield host
