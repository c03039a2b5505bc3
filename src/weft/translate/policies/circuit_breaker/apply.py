"""`trafficPolicy.connectionPool` -> the cluster's limits and the life of its connections."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from weft.api.networking import ConnectionPoolSettings, HTTPSettings, TCPSettings
from weft.translate.resource import serialise

CONNECT_TIMEOUT = timedelta(seconds=10)
"""Istio's, where nothing is said."""

UNLIMITED = 2**32 - 1
"""Istio's: Envoy's own defaults (1024 of each) would be limits that nobody asked for."""

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def apply(pool: ConnectionPoolSettings | None, cluster: Any, *, http2: bool = False) -> None:
    """
    Set limits, timeouts and protocol options of *cluster* (a `Cluster`).

    Args:
        pool: None stands for no limits.
        cluster: The message.
        http2: The destination's port speaks HTTP/2.
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
    _apply_protocol(tcp, http, cluster, http2=http2)


def _apply_protocol(tcp: TCPSettings, http: HTTPSettings, cluster: Any, *, http2: bool) -> None:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    common = options.common_http_protocol_options
    if http.idle_timeout is not None:
        common.idle_timeout.FromTimedelta(http.idle_timeout)
    if http.max_requests_per_connection:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp.max_connection_duration is not None:
        common.max_connection_duration.FromTimedelta(tcp.max_connection_duration)
    # Reading a field of a message does not set it: only what was written above makes the options necessary.
    written = options.HasField("common_http_protocol_options")
    http2 = http2 or http.h2_upgrade_policy == "UPGRADE"
    if not (written or http2 or http.use_client_protocol):
        return
    if http.use_client_protocol:
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        h2 = options.use_downstream_protocol_config.http2_protocol_options
        h2.SetInParent()
    elif http2:
        h2 = options.explicit_http_config.http2_protocol_options
        h2.SetInParent()
    else:
        h2 = None
        options.explicit_http_config.http_protocol_options.SetInParent()
    if h2 is not None and http.max_concurrent_streams:
        h2.max_concurrent_streams.value = http.max_concurrent_streams
    if h2 is not None and http.http2_keep_alive is not None:
        if http.http2_keep_alive.interval is not None:
            h2.connection_keepalive.interval.FromTimedelta(http.http2_keep_alive.interval)
        if http.http2_keep_alive.timeout is not None:
            h2.connection_keepalive.timeout.FromTimedelta(http.http2_keep_alive.timeout)
    packed = cluster.typed_extension_protocol_options[HTTP_OPTIONS]
    packed.type_url = f"type.googleapis.com/{HTTP_OPTIONS}"
    packed.value = serialise(options)
