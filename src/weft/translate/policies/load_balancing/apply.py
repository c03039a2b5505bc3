"""`trafficPolicy.loadBalancer` -> the cluster's policy, and the route's hash policy."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2

from weft.api.networking import ConsistentHashLB, LoadBalancerSettings

DEFAULT_RING_SIZE = 1024
"""Istio's, where nothing is said."""

_SIMPLE = {
    "ROUND_ROBIN": cluster_pb2.Cluster.ROUND_ROBIN,
    "RANDOM": cluster_pb2.Cluster.RANDOM,
    "PASSTHROUGH": cluster_pb2.Cluster.CLUSTER_PROVIDED,
}


def apply(settings: LoadBalancerSettings | None, cluster: Any) -> None:
    """Set the policy of *cluster* (a `Cluster`). Everything that is not said is least request."""
    consistent_hash = settings.consistent_hash if settings else None
    if consistent_hash is not None:
        _apply_hash(consistent_hash, cluster)
        return
    simple = settings.simple if settings else None
    cluster.lb_policy = _SIMPLE.get(simple or "", cluster_pb2.Cluster.LEAST_REQUEST)
    if simple == "PASSTHROUGH":
        # The caller has chosen the address; there is nothing to look up.
        cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
        cluster.ClearField("eds_cluster_config")


def _apply_hash(settings: ConsistentHashLB, cluster: Any) -> None:
    if settings.maglev is not None:
        cluster.lb_policy = cluster_pb2.Cluster.MAGLEV
        if settings.maglev.table_size:
            cluster.maglev_lb_config.table_size.value = settings.maglev.table_size
        return
    size = settings.ring_hash.minimum_ring_size if settings.ring_hash else settings.minimum_ring_size
    cluster.lb_policy = cluster_pb2.Cluster.RING_HASH
    cluster.ring_hash_lb_config.minimum_ring_size.value = size or DEFAULT_RING_SIZE


def apply_to_route(settings: ConsistentHashLB | None, action: Any) -> None:
    """Say on *action* (a `RouteAction`) what property of a request the hash is taken of."""
    if settings is None:
        return
    if settings.http_header_name is not None:
        action.hash_policy.add().header.header_name = settings.http_header_name
    elif settings.http_cookie is not None:
        cookie = action.hash_policy.add().cookie
        cookie.name, cookie.path = settings.http_cookie.name, settings.http_cookie.path
        if settings.http_cookie.ttl is not None:
            cookie.ttl.FromTimedelta(settings.http_cookie.ttl)
        for attribute in settings.http_cookie.attributes:
            cookie.attributes.add(name=attribute.name, value=attribute.value)
    elif settings.use_source_ip is not None:
        action.hash_policy.add().connection_properties.source_ip = settings.use_source_ip
    elif settings.http_query_parameter_name is not None:
        action.hash_policy.add().query_parameter.name = settings.http_query_parameter_name


def apply_to_connections(settings: ConsistentHashLB | None, proxy: Any) -> None:
    """Say the same on *proxy* (a `TcpProxy`), to which a connection has one property: where it comes from."""
    if settings is not None and settings.use_source_ip:
        proxy.hash_policy.add().source_ip.SetInParent()
