"""
The outbound listeners of a sidecar: what catches the program's connections, and what each service port makes of them.

With TPROXY one listener is bound, in the program's namespace, and hands each connection to the listener of its
original destination, which is not bound. In EXPLICIT mode there is no original destination: what a program is told to
call is in `explicit.py`; here each port's listener is bound to an address of its own, open to everybody, for tests and
measurements. Called by the translator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2

from weft.api.names import MESH
from weft.api.networking import RouteDestination, TCPRoute
from weft.model import MESH_IPV6_CIDR, ConfigObject, Interception, Service
from weft.model.reserved import OUTBOUND_PORT
from weft.translate import explicit, names
from weft.translate.clusters import fill_address
from weft.translate.destinations import port_number, visible
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
from weft.translate.matching import for_this_proxy
from weft.translate.origin import annotate, describe, describe_default
from weft.translate.resource import LISTENER, Resource, resource, serialise

HTTP_INSPECTOR = "envoy.filters.listener.http_inspector"
TLS_INSPECTOR = "envoy.filters.listener.tls_inspector"


def virtual_outbound(reading: Reading) -> Resource:
    """Return the listener that catches everything, and sends on what no other listener knows."""
    message = _listener(names.VIRTUAL_OUTBOUND)
    fill_address(message.address, "0.0.0.0", OUTBOUND_PORT, reading.namespace_path)
    fill_address(message.additional_addresses.add().address, "::", OUTBOUND_PORT, reading.namespace_path)
    message.transparent.value = True
    message.use_original_dst.value = True
    _add_mesh_chain(reading, message)
    _add_undeclared_chain(reading, message)
    outside = message.default_filter_chain
    outside.name = names.PASSTHROUGH
    add_network_filter(outside, TCP_PROXY, tcp_proxy(reading, "outbound", {names.PASSTHROUGH: 1}))
    return resource(LISTENER, message.name, serialise(message))


def http_listener(reading: Reading, port: int) -> Resource | None:
    """Return the listener of all services' HTTP on *port*; None in EXPLICIT mode where no address is given for it."""
    message = _listener(names.http_listener(port))
    manager = http_manager(reading, "outbound", f"outbound_{message.name}")
    routes_over_ads(manager, names.sidecar_routes(port))
    if reading.interception is Interception.EXPLICIT:
        if (bound := reading.outbound_addresses.get(port)) is None:
            return None
        fill_address(message.address, *bound)
        add_network_filter(message.filter_chains.add(name="http"), HTTP_MANAGER, manager)
        return resource(LISTENER, message.name, serialise(message))
    fill_address(message.address, "0.0.0.0", port)
    message.bind_to_port.value = False
    # Other places may speak something else on the same port: what does not begin like HTTP goes where it was going.
    inspect(message, HTTP_INSPECTOR, http_inspector_pb2.HttpInspector())
    _add_mesh_chain(reading, message)
    # With the same transport as the HTTP chain, which otherwise is the better match and has no way back.
    _add_undeclared_chain(reading, message).filter_chain_match.transport_protocol = "raw_buffer"
    chain = message.filter_chains.add(name="http")
    # The range is said before the protocol is looked at: without it, the chain above would take the services' HTTP, too.
    for everywhere in (reading.service_cidr, "0.0.0.0/0", "::/0"):
        _add_range(chain.filter_chain_match, everywhere)
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    chain.filter_chain_match.application_protocols.extend(("http/1.1", "h2c"))
    add_network_filter(chain, HTTP_MANAGER, manager)
    outside = message.default_filter_chain
    outside.name = names.PASSTHROUGH
    add_network_filter(outside, TCP_PROXY, tcp_proxy(reading, "outbound", {names.PASSTHROUGH: 1}))
    return resource(LISTENER, message.name, serialise(message))


def tcp_listener(reading: Reading, hostname: str, port: int) -> Resource | None:
    """Return the listener of one service's port that is not HTTP; None in EXPLICIT mode without an address for it."""
    service = reading.service(hostname)
    if service is None or not service.address:
        return None
    message = _listener(names.tcp_listener(service.address, port))
    if reading.local_caller is not None:
        message.name = explicit.bind(reading, message, service, port)
    elif reading.interception is Interception.EXPLICIT:
        if (bound := reading.outbound_addresses.get(port)) is None:
            return None
        fill_address(message.address, *bound)
    else:
        fill_address(message.address, service.address, port)
        message.bind_to_port.value = False
    _add_tls_chains(reading, service, port, message)
    chain = message.filter_chains.add(name="tcp")
    found = _tcp_rule(reading, service, port)
    if found is None:
        clusters = {names.outbound_cluster(hostname, port): 1}
        annotate(chain.metadata, describe_default())
    else:
        item, index, rule = found
        clusters = weighted_clusters(reading, item, rule.route, port)
        annotate(chain.metadata, describe(item, "spec", "tcp", index))
    add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", clusters))
    return resource(LISTENER, message.name, serialise(message))


def host_listener(reading: Reading, port: int) -> Resource:
    """Return the listener that is a port of the host's loopback on the program's own loopback."""
    message = _listener(names.host_listener(port))
    fill_address(message.address, "127.0.0.1", port, reading.namespace_path)
    fill_address(message.additional_addresses.add().address, "::1", port, reading.namespace_path)
    chain = message.filter_chains.add(name="tcp")
    annotate(chain.metadata, describe_default())
    add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", {names.host_cluster(port): 1}))
    return resource(LISTENER, message.name, serialise(message))


def weighted_clusters(
    reading: Reading, item: ConfigObject, targets: Sequence[RouteDestination], port: int
) -> dict[str, int]:
    """Return cluster -> weight for the destinations of a TCP or TLS rule; a single one counts without a weight."""
    found: dict[str, int] = {}
    for target in targets:
        if len(targets) > 1 and target.weight == 0:
            continue
        hostname = reading.hostname(target.destination.host, item.key.namespace)
        number = port_number(reading, hostname, target.destination.port, port)
        cluster = names.outbound_cluster(hostname, number, target.destination.subset)
        found[cluster] = found.get(cluster, 0) + (target.weight or 1)
    return found


def inspect(message: Any, name: str, config: Any) -> None:
    """Look at the first bytes before a filter chain is chosen, as long as it takes: a program may open and wait."""
    message.listener_filters.add(name=name).typed_config.Pack(config, deterministic=True)
    message.listener_filters_timeout.SetInParent()
    message.continue_on_listener_filters_timeout = True


def _listener(name: str) -> Any:
    return listener_pb2.Listener(name=name, traffic_direction=base_pb2.TrafficDirection.OUTBOUND)


def _add_mesh_chain(reading: Reading, message: Any) -> None:
    """
    Send connections to addresses of workloads over the mesh's network: the outside does not know them.

    Those of IPv6 nobody is told, and nobody listens on them there: they are refused, as a port is that nobody declared.
    """
    chain = message.filter_chains.add(name=names.MESH_PASSTHROUGH)
    for everybody in (reading.mesh_cidr, MESH_IPV6_CIDR):
        _add_range(chain.filter_chain_match, everybody)
    add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", {names.MESH_PASSTHROUGH: 1}))


def _add_undeclared_chain(reading: Reading, message: Any) -> Any:
    """
    Refuse connections to a service's address that no other chain or listener takes: nobody declared such a port.

    The range means something inside of the mesh only; sent on, the bytes would leave the host in plain text.
    """
    chain = message.filter_chains.add(name=names.BLACK_HOLE)
    _add_range(chain.filter_chain_match, reading.service_cidr)
    annotate(chain.metadata, describe_default())
    add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", {names.BLACK_HOLE: 1}))
    return chain


def _add_range(match: Any, cidr: str) -> None:
    """Add *cidr* to the destinations of a `FilterChainMatch`."""
    network, _, length = cidr.partition("/")
    match.prefix_ranges.add(address_prefix=network).prefix_len.value = int(length)


def _of_mesh(reading: Reading, hostname: str) -> list[ConfigObject]:
    """Return the VirtualServices of the mesh for a service, the deciding ones first."""
    exact = [item for item in reading.virtual_services(hostname) if visible(reading, item)]
    if exact:
        return exact
    wild = (item for host, item in reading.wildcard_virtual_services() if matches(hostname, host))
    return [item for item in wild if visible(reading, item)][:1]


def _tcp_rule(reading: Reading, service: Service, port: int) -> tuple[ConfigObject, int, TCPRoute] | None:
    for item in _of_mesh(reading, service.hostname):
        for index, rule in enumerate(item.spec.tcp):
            if not rule.match or any(for_this_proxy(reading, item, match, port, (MESH,)) for match in rule.match):
                return item, index, rule
    return None


def _add_tls_chains(reading: Reading, service: Service, port: int, message: Any) -> None:
    """Add a filter chain for each TLS rule of the service that is for this proxy: chosen by SNI, never opened."""
    for item in _of_mesh(reading, service.hostname):
        for index, rule in enumerate(item.spec.tls):
            for match in rule.match:
                if not for_this_proxy(reading, item, match, port, (MESH,)):
                    continue
                chain = message.filter_chains.add()
                chain.filter_chain_match.server_names.extend(match.sni_hosts)
                annotate(chain.metadata, describe(item, "spec", "tls", index))
                clusters = weighted_clusters(reading, item, rule.route, port)
                add_network_filter(chain, TCP_PROXY, tcp_proxy(reading, "outbound", clusters))
    if message.filter_chains:
        inspect(message, TLS_INSPECTOR, tls_inspector_pb2.TlsInspector())
