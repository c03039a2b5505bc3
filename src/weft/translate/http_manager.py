"""
The HTTP connection manager and the TCP proxy of every kind of listener: one home for what they have in common.

Istio's settings with what only its own build of Envoy has (metadata exchange, stats, tracing) left out.
Called by `listeners.py`, `inbound.py` and `gateways.py`.
"""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from weft.translate import names
from weft.translate.access_log import Direction, add_connection_logs, add_request_logs, add_try_logs
from weft.translate.clusters import over_ads
from weft.translate.destinations import consistent_hash_of
from weft.translate.extensions import LOCAL_CALLER
from weft.translate.fragments import Reading
from weft.translate.policies.cors.apply import FILTER as CORS
from weft.translate.policies.fault.apply import FILTER as FAULT
from weft.translate.policies.load_balancing import apply as load_balancing

HTTP_MANAGER = "envoy.filters.network.http_connection_manager"
TCP_PROXY = "envoy.filters.network.tcp_proxy"
ROUTER = "envoy.filters.http.router"

HEAD_SECONDS = 60
"""For the head of a request from its first byte on: who sends it byte by byte does not keep a connection for ever."""

_ORIGINAL_DESTINATION = "%DOWNSTREAM_LOCAL_ADDRESS%"


def http_manager(reading: Reading, direction: Direction, statistics: str, *, local_caller: Any = None) -> Any:
    """
    Return a connection manager without routes.

    Args:
        reading: For the data plane and where access records go.
        direction: Whose requests these are.
        statistics: Prefix of Envoy's own counters.
        local_caller: What a request must show to be let in (`extensions.LocalCaller`), where others could call too.
    """
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix=statistics)
    # The program's own `server` header, or none: the mesh stays invisible.
    manager.server_header_transformation = http_connection_manager_pb2.HttpConnectionManager.PASS_THROUGH
    manager.normalize_path.value = True
    manager.path_with_escaped_slashes_action = http_connection_manager_pb2.HttpConnectionManager.KEEP_UNCHANGED
    manager.proxy_100_continue = True  # or it would answer `Expect: 100-continue` for the program
    manager.stream_idle_timeout.SetInParent()  # zero: no limit. Envoy's 5 minutes would cut quiet streams
    manager.request_headers_timeout.seconds = HEAD_SECONDS
    manager.generate_request_id.value = True
    manager.upgrade_configs.add(upgrade_type="websocket")
    manager.http2_protocol_options.allow_connect = True  # RFC 8441, or a WebSocket could not come by HTTP/2
    manager.use_remote_address.value = direction == "gateway"
    if direction == "inbound":
        manager.forward_client_cert_details = http_connection_manager_pb2.HttpConnectionManager.APPEND_FORWARD
    elif direction == "gateway":
        manager.forward_client_cert_details = http_connection_manager_pb2.HttpConnectionManager.SANITIZE_SET
    if direction != "outbound":
        details = manager.set_current_client_cert_details
        details.subject.value = details.uri = details.dns = True
        details.cert = direction == "gateway"
    if local_caller is not None:
        _add_filter(manager, LOCAL_CALLER, local_caller)
    _add_filter(manager, FAULT, fault_pb2.HTTPFault())
    _add_filter(manager, CORS, cors_pb2.Cors())
    router = router_pb2.Router()
    add_try_logs(reading, router.upstream_log, direction)
    _add_filter(manager, ROUTER, router)
    add_request_logs(reading, manager.access_log, direction)
    return manager


def routes_over_ads(manager: Any, name: str) -> None:
    """Have *manager* take its routes from the route configuration *name*."""
    manager.rds.route_config_name = name
    over_ads(manager.rds.config_source)


def tcp_proxy(reading: Reading, direction: Direction, clusters: dict[str, int]) -> Any:
    """Return a TCP proxy to *clusters*, by weight; the weight of a single one does not matter."""
    (first, *others) = clusters
    # A relayed connection ends at the relay's socket; who reads the record asks where it was going.
    relayed = bool(reading.outside_socket) and names.is_outside(first)
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=first)
    if others:
        for name, weight in clusters.items():
            proxy.weighted_clusters.clusters.add(name=name, weight=weight)
    else:
        proxy.cluster = first
    # A connection has one hash for all of them; whoever does not ask for it passes over it.
    hashes = (consistent_hash_of(reading, cluster) for cluster in clusters)
    load_balancing.apply_to_connections(next(filter(None, hashes), None), proxy)
    upstream_host = _ORIGINAL_DESTINATION if relayed else ""
    add_connection_logs(reading, proxy.access_log, direction, upstream_host=upstream_host)
    return proxy


def add_network_filter(chain: Any, name: str, config: Any) -> None:
    """Append the filter to *chain* (a `FilterChain`)."""
    chain.filters.add(name=name).typed_config.Pack(config, deterministic=True)


def _add_filter(manager: Any, name: str, config: Any) -> None:
    manager.http_filters.add(name=name).typed_config.Pack(config, deterministic=True)
