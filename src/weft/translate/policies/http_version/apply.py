"""`h2UpgradePolicy` and `useClientProtocol`, and the rule where nothing is said -> the HTTP that a cluster is spoken to in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from weft.api.networking import ConnectionPoolSettings, HTTPSettings, TCPSettings
from weft.data_plane import WEFT_PROXY
from weft.model import Protocol
from weft.translate.destinations import Policy
from weft.translate.origin import DEFAULT
from weft.translate.policies.tls.apply import ALPN_EITHER, ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP
from weft.translate.resource import serialise

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

FIELD = "h2UpgradePolicy"
"""By this name a cluster's description says where its version comes from."""

_COUNTS_CONNECTIONS = (
    (("tcp", "max_connections"), ("tcp", "maxConnections")),
    (("http", "http1_max_pending_requests"), ("http", "http1MaxPendingRequests")),
    (("http", "max_requests_per_connection"), ("http", "maxRequestsPerConnection")),
)
"""Who limits connections, or what waits for one, means those of one request at a time."""

_MESH_TLS = ("", "ISTIO_MUTUAL")
"""Modes in which a sidecar of the mesh is at the other end."""


class Version(Enum):
    """How the version of HTTP towards an endpoint comes about."""

    HTTP1 = "HTTP/1.1"
    HTTP2 = "HTTP/2"
    CALLER = "the caller's"
    EITHER = "HTTP/2 where the endpoint's sidecar takes it, HTTP/1.1 elsewhere and for upgrades"


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Attributes:
        version: What is spoken.
        origin: The place that says so, or `"default"`.
        reads_http: The proxy reads HTTP on this port.
    """

    version: Version
    origin: str = DEFAULT
    reads_http: bool = True

    @property
    def alpn(self) -> tuple[str, ...]:
        """What to offer to a sidecar."""
        if self.version is Version.HTTP2:
            return ALPN_HTTP2
        if self.version is Version.EITHER:
            return ALPN_EITHER
        return ALPN_HTTP1 if self.reads_http else ALPN_TCP


def choose(policy: Policy, protocol: Protocol, *, reads_http: bool, data_plane: str) -> Choice:
    """
    Choose the version for a service's port; what is written wins (decision 0012).

    Args:
        policy: In force for the port and subset.
        protocol: Of the port.
        reads_http: Whether the proxy reads HTTP there.
        data_plane: The caller's.
    """
    pool = policy.connection_pool
    http = (pool.http if pool else None) or HTTPSettings()
    if http.h2_upgrade_policy == "UPGRADE":
        return Choice(Version.HTTP2, _place(policy, "http", FIELD), reads_http)
    if http.use_client_protocol:
        return Choice(Version.CALLER, _place(policy, "http", "useClientProtocol"), reads_http)
    if not reads_http:
        return Choice(Version.HTTP1, reads_http=False)
    if protocol is not Protocol.HTTP:
        return Choice(Version.HTTP2)
    if http.h2_upgrade_policy == "DO_NOT_UPGRADE":
        return Choice(Version.HTTP1, _place(policy, "http", FIELD))
    for (part, name), where in _COUNTS_CONNECTIONS:
        if getattr(getattr(pool, part, None), name, 0):
            return Choice(Version.HTTP1, _place(policy, *where))
    mode = policy.tls.mode if policy.tls else ""
    # Envoy chooses for a whole cluster, its endpoints without a sidecar and all requests included.
    if mode in _MESH_TLS and data_plane == WEFT_PROXY:
        return Choice(Version.EITHER)
    return Choice(Version.HTTP1)


def _place(policy: Policy, *path: str) -> str:
    return policy.locate("connection_pool", *path)


def apply(pool: ConnectionPoolSettings | None, cluster: Any, version: Version) -> None:
    """
    Write *version* and the life of connections into *cluster* (a `Cluster`).

    Args:
        pool: None stands for no limits.
        cluster: The message.
        version: What is spoken, whatever *pool* says of it: a program behind its own sidecar is not asked for more than it declared.
    """
    tcp = (pool.tcp if pool else None) or TCPSettings()
    http = (pool.http if pool else None) or HTTPSettings()
    options = http_protocol_options_pb2.HttpProtocolOptions()
    common = options.common_http_protocol_options
    if http.idle_timeout is not None:
        common.idle_timeout.FromTimedelta(http.idle_timeout)
    if http.max_requests_per_connection:
        common.max_requests_per_connection.value = http.max_requests_per_connection
    if tcp.max_connection_duration is not None:
        common.max_connection_duration.FromTimedelta(tcp.max_connection_duration)
    # Reading a field of a message does not set it: only what was written above makes the options necessary.
    if version is Version.HTTP1 and not options.HasField("common_http_protocol_options"):
        return
    if version is Version.HTTP1:
        options.explicit_http_config.http_protocol_options.SetInParent()
    else:
        _fill_http2(http, _http2(options, version))
    packed = cluster.typed_extension_protocol_options[HTTP_OPTIONS]
    packed.type_url = f"type.googleapis.com/{HTTP_OPTIONS}"
    packed.value = serialise(options)


def _http2(options: Any, version: Version) -> Any:
    """Return the options of HTTP/2 in those of *version*, with HTTP/1.1 beside them where it may be spoken."""
    if version is Version.HTTP2:
        return options.explicit_http_config.http2_protocol_options
    both = options.use_downstream_protocol_config if version is Version.CALLER else options.auto_config
    both.http_protocol_options.SetInParent()
    return both.http2_protocol_options


def _fill_http2(http: HTTPSettings, options: Any) -> None:
    options.allow_connect = True  # for Envoy: upgrades may go by it (RFC 8441)
    if http.max_concurrent_streams:
        options.max_concurrent_streams.value = http.max_concurrent_streams
    if http.http2_keep_alive is not None:
        if http.http2_keep_alive.interval is not None:
            options.connection_keepalive.interval.FromTimedelta(http.http2_keep_alive.interval)
        if http.http2_keep_alive.timeout is not None:
            options.connection_keepalive.timeout.FromTimedelta(http.http2_keep_alive.timeout)
