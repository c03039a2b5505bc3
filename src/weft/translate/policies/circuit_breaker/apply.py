"""`trafficPolicy.connectionPool` -> the cluster's limits and the life of its connections."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from weft.api.networking import ConnectionPoolSettings, HTTPSettings, TCPSettings
from weft.translate.policies.http_version import apply as http_version
from weft.translate.policies.http_version.apply import Version

CONNECT_TIMEOUT = timedelta(seconds=10)
"""Istio's, where nothing is said."""

UNLIMITED = 2**32 - 1
"""Istio's: Envoy's own defaults (1024 of each) would be limits that nobody asked for."""


def apply(pool: ConnectionPoolSettings | None, cluster: Any, version: Version = Version.HTTP1) -> None:
    """
    Set limits, timeouts and protocol options of *cluster* (a `Cluster`).

    Args:
        pool: None stands for no limits.
        cluster: The message.
        version: The HTTP that is spoken to it.
    """
    tcp = (pool.tcp if pool else None) or TCPSettings()
    http = (pool.http if pool else None) or HTTPSettings()
    cluster.connect_timeout.FromTimedelta(tcp.connect_timeout or CONNECT_TIMEOUT)
    limits = cluster.circuit_breakers.thresholds.add()
    limits.max_connections.value = tcp.max_connections or UNLIMITED
    limits.max_pending_requests.value = http.http1_max_pending_requests or UNLIMITED
    limits.max_requests.value = http.http2_max_requests or UNLIMITED
    limits.max_retries.value = http.max_retries or UNLIMITED
    if tcp.tcp_keepalive is not None:
        keepalive = cluster.upstream_connection_options.tcp_keepalive
        keepalive.SetInParent()
        if tcp.tcp_keepalive.probes:
            keepalive.keepalive_probes.value = tcp.tcp_keepalive.probes
        if tcp.tcp_keepalive.time is not None:
            keepalive.keepalive_time.value = int(tcp.tcp_keepalive.time.total_seconds())
        if tcp.tcp_keepalive.interval is not None:
            keepalive.keepalive_interval.value = int(tcp.tcp_keepalive.interval.total_seconds())
    http_version.apply(pool, cluster, version)
