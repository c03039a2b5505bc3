"""
Clusters: one for each service port and subset, and those that stand for the world outside.

Called by the translator. Endpoints are `endpoints.py`, the clusters of a workload's own ports `inbound.py`.
"""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, config_source_pb2, proxy_protocol_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from weft.data_plane import ENVOY
from weft.model import Interception, Service, ServicePort
from weft.translate import names
from weft.translate.destinations import Destination, destination
from weft.translate.endpoints import assignment, takes_plain_text_only
from weft.translate.fragments import Reading
from weft.translate.origin import annotate, describe, describe_default
from weft.translate.policies.circuit_breaker import apply as circuit_breaker
from weft.translate.policies.http_version import apply as http_version
from weft.translate.policies.load_balancing import apply as load_balancing
from weft.translate.policies.outlier_detection import apply as outlier_detection
from weft.translate.policies.tls import apply as tls
from weft.translate.resource import CLUSTER, Resource, resource, serialise

PASSTHROUGH_IDLE_SECONDS = 300
"""Istio's, for connections on behalf of programs to places that the mesh knows nothing about."""

RELAY_IDLE_SECONDS = 5
"""A relayed connection is its caller's alone (the PROXY header tells them apart): it is of no use for long."""

PROXY_PROTOCOL_SOCKET = "envoy.transport_sockets.upstream_proxy_protocol"


def service_clusters(reading: Reading, hostname: str) -> tuple[Resource, ...]:
    """Return the clusters of all ports of a service, the whole service and each subset."""
    service = reading.service(hostname)
    if service is None:
        return ()
    rules = destination(reading, hostname, service.namespace)
    subsets = ("", *(subset.name for _, _, subset in rules.subsets))
    identities = reading.identities(hostname)
    return tuple(
        _outbound(
            service,
            port,
            subset,
            rules,
            identities=identities,
            http=reading.speaks_http(port.protocol),
            plain_text=_plain_text(reading, service, port),
            data_plane=reading.data_plane,
        )
        for port in service.ports
        for subset in subsets
    )


def service_endpoints(reading: Reading, hostname: str) -> tuple[Resource, ...]:
    """Return the assignments of the clusters of *hostname* that look for one."""
    service = reading.service(hostname)
    if service is None:
        return ()
    rules = destination(reading, hostname, service.namespace)
    found = []
    for port in service.ports:
        for subset, labels in (("", {}), *((entry.name, entry.labels) for _, _, entry in rules.subsets)):
            if not _chosen_by_caller(rules, port, subset):
                found.append(assignment(reading, service, port, subset, labels))
    return tuple(found)


def _chosen_by_caller(rules: Destination, port: ServicePort, subset: str) -> bool:
    balancer = rules.policy(port.number, subset).load_balancer
    return balancer is not None and balancer.simple == "PASSTHROUGH"


def _plain_text(reading: Reading, service: Service, port: ServicePort) -> str:
    """
    Return how many of the sidecars behind *port* take plain text only: "", "some" or "all".

    A cluster says it, so that it is another one when a policy changes that: connections go with it. What an endpoint's
    metadata says is for new ones only, and a proxy may have one that it has opened in plain text and not used yet, which
    a server that has turned to mutual TLS meanwhile would refuse with the first request.
    """
    if not reading.peer_authentications(service.namespace):
        return ""
    sidecars = [workload for workload in reading.serving(service.hostname) if workload.meshed]
    plain = [workload for workload in sidecars if takes_plain_text_only(reading, workload, port.target)]
    return "" if not plain else "all" if len(plain) == len(sidecars) else "some"


def _outbound(
    service: Service,
    port: ServicePort,
    subset: str,
    rules: Destination,
    *,
    identities: tuple[str, ...],
    http: bool,
    plain_text: str,
    data_plane: str,
) -> Resource:
    """Return one cluster; *http* says whether the proxy, a *data_plane*, reads HTTP on this port."""
    name = names.outbound_cluster(service.hostname, port.number, subset)
    policy = rules.policy(port.number, subset)
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
    message.eds_cluster_config.service_name = name
    over_ads(message.eds_cluster_config.eds_config)
    version = http_version.choose(policy, port.protocol, reads_http=http, data_plane=data_plane)
    circuit_breaker.apply(policy.connection_pool, message, version.version)
    load_balancing.apply(policy.load_balancer, message)
    outlier_detection.apply(policy.outlier_detection, message)
    tls.apply(
        policy.tls,
        message,
        server_name=names.server_name(service.hostname, port.number, subset),
        identities=identities,
        alpn=version.alpn,
    )
    if message.type == cluster_pb2.Cluster.ORIGINAL_DST and message.transport_socket_matches:
        # Without endpoints there is no metadata to match on; a destination of the mesh speaks mutual TLS.
        message.transport_socket.CopyFrom(message.transport_socket_matches[0].transport_socket)
        del message.transport_socket_matches[:]
    origins = {**policy.origins, http_version.FIELD: version.origin} if http else policy.origins
    description = _described(rules, subset, origins)
    if plain_text and not (policy.tls and policy.tls.mode):
        description["plain_text"] = plain_text
    annotate(message.metadata, description)
    return resource(CLUSTER, name, serialise(message))


def _described(rules: Destination, subset: str, origins: dict[str, str]) -> dict[str, Any]:
    found = rules.subset(subset) if subset else None
    if found is not None:
        description = describe(found[0], "spec", "subsets", found[1], origins=origins)
        return {**description, "labels": dict(found[2].labels)}
    if rules.item is not None:
        return describe(rules.item, "spec", origins=origins)
    return describe_default(tuple(origins))


def over_ads(source: Any) -> None:
    """Say in *source* (a `ConfigSource`) that the resource comes by this very stream, and is waited for."""
    source.ads.SetInParent()
    source.resource_api_version = config_source_pb2.ApiVersion.V3
    source.initial_fetch_timeout.SetInParent()


def black_hole(_: Reading) -> Resource:
    message = cluster_pb2.Cluster(name=names.BLACK_HOLE, type=cluster_pb2.Cluster.STATIC)
    message.connect_timeout.FromTimedelta(circuit_breaker.CONNECT_TIMEOUT)
    annotate(message.metadata, describe_default())
    return resource(CLUSTER, names.BLACK_HOLE, serialise(message))


def passthrough(reading: Reading) -> Resource:
    """Return the cluster for destinations outside the mesh; where the mesh has a network of its own, by the host's."""
    if reading.outside_socket:
        return _relayed(names.PASSTHROUGH, reading.outside_socket)
    # Envoy takes the source address of the destination's family; weft-proxy only asks which network it names.
    families = ("0.0.0.0", "::") if reading.data_plane == ENVOY else ("0.0.0.0",)
    if reading.interception is Interception.EXPLICIT:
        # From whatever address leads there: that of the workload, which others come from, is on the loopback.
        return _original_destination(names.PASSTHROUGH, "", families if reading.local_caller else ())
    network_path = reading.host_namespace_path
    return _original_destination(names.PASSTHROUGH, network_path, families if network_path else ())


def mesh_passthrough(_: Reading) -> Resource:
    """Return the cluster for addresses of the mesh that no listener knows by name."""
    return _original_destination(names.MESH_PASSTHROUGH)


def _original_destination(name: str, network_path: str = "", families: tuple[str, ...] = ()) -> Resource:
    message = cluster_pb2.Cluster(
        name=name, type=cluster_pb2.Cluster.ORIGINAL_DST, lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED
    )
    circuit_breaker.apply(None, message)
    _speak_as_the_caller(message, PASSTHROUGH_IDLE_SECONDS)
    if families:
        bind_in(message.upstream_bind_config, network_path, families)
    annotate(message.metadata, describe_default())
    return resource(CLUSTER, name, serialise(message))


def _relayed(name: str, socket: str) -> Resource:
    """Return the cluster whose connections the agent carries to where the program's connection was going."""
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.STATIC)
    circuit_breaker.apply(None, message)
    _speak_as_the_caller(message, RELAY_IDLE_SECONDS)
    message.load_assignment.cluster_name = name
    message.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = socket
    inner = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport()
    inner.config.version = proxy_protocol_pb2.ProxyProtocolConfig.V2
    inner.transport_socket.name = tls.PLAIN_SOCKET
    inner.transport_socket.typed_config.Pack(raw_buffer_pb2.RawBuffer(), deterministic=True)
    message.transport_socket.name = PROXY_PROTOCOL_SOCKET
    message.transport_socket.typed_config.Pack(inner, deterministic=True)
    annotate(message.metadata, describe_default())
    return resource(CLUSTER, name, serialise(message))


def _speak_as_the_caller(message: Any, idle_seconds: int) -> None:
    """Use the version of HTTP that the request came in."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.common_http_protocol_options.idle_timeout.seconds = idle_seconds
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    packed = message.typed_extension_protocol_options[http_version.HTTP_OPTIONS]
    packed.type_url = f"type.googleapis.com/{http_version.HTTP_OPTIONS}"
    packed.value = serialise(options)


def host_port(reading: Reading, port: int) -> Resource:
    """Return the cluster of a port of the host's loopback that the program may call."""
    name = names.host_cluster(port)
    if reading.outside_socket:
        return _relayed(name, reading.outside_socket)
    message = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.STATIC)
    circuit_breaker.apply(None, message)
    message.load_assignment.cluster_name = name
    endpoint = message.load_assignment.endpoints.add().lb_endpoints.add().endpoint
    fill_address(endpoint.address, "127.0.0.1", port)
    if reading.host_namespace_path:
        bind_in(message.upstream_bind_config, reading.host_namespace_path, ("0.0.0.0",))
    annotate(message.metadata, describe_default())
    return resource(CLUSTER, name, serialise(message))


def bind_in(bind: Any, network_path: str, families: tuple[str, ...]) -> None:
    """
    Make connections in the network that *network_path* names.

    Args:
        bind: A `BindConfig`.
        network_path: nsfs path, or the path that stands for the host's network.
        families: The wildcard of each address family that destinations may have.
    """
    first, *others = families
    _fill_socket(bind.source_address, first, 0, network_path)
    for other in others:
        _fill_socket(bind.extra_source_addresses.add().address, other, 0, network_path)


def fill_address(address: Any, host: str, port: int, network_path: str = "") -> None:
    """Write a TCP address into *address* (an `Address`), in the network of *network_path* if there is one."""
    _fill_socket(address.socket_address, host, port, network_path)


def _fill_socket(socket: address_pb2.SocketAddress, host: str, port: int, network_path: str) -> None:
    socket.address, socket.port_value = host, port
    if network_path:
        socket.network_namespace_filepath = network_path
