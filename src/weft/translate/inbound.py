"""
The inbound side of a sidecar: for each port that its workload declares, a listener in the mesh and a cluster to the
program behind it. A workload that declares no port is a client only and has neither. Called by the translator.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2

from weft.api.networking import ConnectionPoolSettings
from weft.data_plane import ENVOY
from weft.model import Interception, Protocol, Workload, WorkloadPort
from weft.translate import matching, names
from weft.translate.access_log import add_listener_logs
from weft.translate.clusters import bind_in, fill_address
from weft.translate.destinations import destination
from weft.translate.explicit import listening_network
from weft.translate.fragments import Reading
from weft.translate.http_manager import HTTP_MANAGER, TCP_PROXY, add_network_filter, http_manager, tcp_proxy
from weft.translate.listeners import TLS_INSPECTOR, inspect
from weft.translate.origin import annotate, describe, describe_default
from weft.translate.peer_authentication import Accepted, Mode
from weft.translate.policies.circuit_breaker import apply as circuit_breaker
from weft.translate.policies.http_version.apply import Version
from weft.translate.policies.timeout import apply as timeout
from weft.translate.policies.tls import apply as tls
from weft.translate.resource import CLUSTER, LISTENER, Resource, resource, serialise

LOOPBACK = "127.0.0.1"
"""Where a program is tried while nobody has found it listening: most bind a wildcard or this."""

UNDECIDED = timedelta(seconds=3)
"""
How long an Envoy looks for mutual TLS on a TCP port that accepts plain text too. A sidecar sends its ClientHello as soon as it is connected;
who says nothing waits for a server that speaks first. And what could be the beginning of a TLS record, of any kind, and is followed by less
than that (one in a thousand of texts of random bytes) would wait for ever. weft-proxy reads closer, and dials for who is silent.
"""

RETRIES = 2
"""On `reset-before-request` only: the program closed an idle connection just as a request came (Istio's inbound)."""


def inbound(reading: Reading) -> tuple[Resource, ...]:
    """Return listener and cluster of each declared port of the proxy's workload."""
    workload = reading.workload(reading.namespace, reading.workload_name)
    if workload is None:
        return ()
    made = []
    for port in workload.ports:
        made.append(_listener(reading, workload, port))
        made.append(_cluster(reading, workload, port))
    return tuple(made)


def _listener(reading: Reading, workload: Workload, port: WorkloadPort) -> Resource:
    name = names.inbound_listener(port.number)
    message = listener_pb2.Listener(name=name, traffic_direction=base_pb2.TrafficDirection.INBOUND)
    fill_address(message.address, reading.address, port.number, listening_network(reading))
    policy = reading.accepted(workload, port.number)
    if workload.meshed and port.number in reading.accepting_both(workload.namespace, workload.name):
        # Nobody wrote it; and whatever is written, old or new, it is the same listener.
        policy = Accepted(Mode.PERMISSIVE)
    mode = policy.mode if workload.meshed else Mode.DISABLE
    http = reading.speaks_http(port.protocol)
    chains = [message.filter_chains.add(name=name)]
    if mode is Mode.PERMISSIVE:
        _accept_both(message, reading.data_plane, http=http)
        chains = list(message.filter_chains)
    elif mode is Mode.STRICT and reading.data_plane == ENVOY:
        # For the records: Envoy knows from the inspector alone which server the caller named.
        inspect(message, TLS_INSPECTOR, tls_inspector_pb2.TlsInspector())
    if mode is not Mode.DISABLE:
        # Whoever comes this way proves an identity of the mesh, or is not answered.
        alpn = tls.ALPN_SERVER if http else ()
        chains[0].transport_socket.CopyFrom(tls.downstream(reading.trust_domain(), alpn))
    for chain in chains:
        if http:
            manager = http_manager(reading, "inbound", name)
            _fill_routes(manager.route_config, port)
            add_network_filter(chain, HTTP_MANAGER, manager)
        else:
            proxied = tcp_proxy(reading, "inbound", {names.inbound_cluster(port.number): 1})
            add_network_filter(chain, TCP_PROXY, proxied)
        if policy.item is None:
            annotate(chain.metadata, describe_default())
        else:
            annotate(chain.metadata, describe(policy.item, *policy.path))
    add_listener_logs(reading, message.access_log, "inbound")
    return resource(LISTENER, name, serialise(message))


def _accept_both(message: Any, data_plane: str, *, http: bool) -> None:
    """
    Tell mutual TLS from plain text by the first bytes, and add the filter chains for the latter.

    TLS that does not name Istio's protocols is the program's own: it is passed on to a TCP port, and to an HTTP port,
    which could not read it, not at all.
    """
    inspect(message, TLS_INSPECTOR, tls_inspector_pb2.TlsInspector())
    if data_plane == ENVOY and not http:
        message.listener_filters_timeout.FromTimedelta(UNDECIDED)
    mutual = message.filter_chains[0].filter_chain_match
    mutual.transport_protocol = "tls"
    mutual.application_protocols.extend(tls.ALPN_PEERS)
    if not http:
        own = message.filter_chains.add(name=f"{message.name}|tls")
        own.filter_chain_match.transport_protocol = "tls"
    plain = message.filter_chains.add(name=f"{message.name}|plain")
    plain.filter_chain_match.transport_protocol = "raw_buffer"


def _fill_routes(table: Any, port: WorkloadPort) -> None:
    table.name = names.inbound_cluster(port.number)
    table.validate_clusters.value = False
    host = table.virtual_hosts.add(name=f"inbound|http|{port.number}", domains=["*"])
    route = host.routes.add(name="default")
    route.match.prefix = matching.EVERYTHING
    route.route.cluster = names.inbound_cluster(port.number)
    # The caller's proxy has the caller's timeout; here none runs beside it.
    timeout.apply(None, route.route)
    route.route.retry_policy.retry_on = "reset-before-request"
    route.route.retry_policy.num_retries.value = RETRIES
    annotate(route.metadata, describe_default(("timeout", "retries")))
    annotate(host.metadata, describe_default())


def _cluster(reading: Reading, workload: Workload, port: WorkloadPort) -> Resource:
    name = names.inbound_cluster(port.number)
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.STATIC)
    pool, description = _limits(reading, workload, port)
    # What the program declared, whatever its callers' proxies speak to this one.
    http2 = reading.speaks_http(port.protocol) and port.protocol is not Protocol.HTTP
    circuit_breaker.apply(pool, message, Version.HTTP2 if http2 else Version.HTTP1)
    message.load_assignment.cluster_name = name
    address = port.listening or LOOPBACK
    # In EXPLICIT mode the loopback is everybody's: who listens there at this port may be somebody else's program.
    if port.listening or reading.interception is not Interception.EXPLICIT:
        endpoint = message.load_assignment.endpoints.add().lb_endpoints.add().endpoint
        fill_address(endpoint.address, address, port.program_port)
    if reading.namespace_path:
        bind_in(message.upstream_bind_config, reading.namespace_path, ("::" if ":" in address else "0.0.0.0",))
    annotate(message.metadata, description)
    return resource(CLUSTER, name, serialise(message))


def _limits(
    reading: Reading, workload: Workload, port: WorkloadPort
) -> tuple[ConnectionPoolSettings | None, dict[str, Any]]:
    """
    Return the limits that the DestinationRule of a service behind *port* sets, and where they come from.

    Istio applies them on this side too, so that what clients may open together does not overrun the program.
    """
    for hostname in workload.services:
        service = reading.service(hostname)
        for offered in service.ports if service else ():
            if service is None or offered.target != port.number:
                continue
            rules = destination(reading, hostname, service.namespace)
            policy = rules.policy(offered.number)
            if rules.item is not None and policy.connection_pool is not None:
                origins = {"connectionPool": policy.origins["connectionPool"]}
                return policy.connection_pool, describe(rules.item, "spec", origins=origins)
    return None, describe_default(("connectionPool",))
