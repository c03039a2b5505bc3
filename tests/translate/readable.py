"""Serialised resources as plain values: for goldens, and to compare two sets of them field by field."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format

from weft.translate.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, Resources

KINDS = {
    "routes": ROUTE_CONFIGURATION,
    "clusters": CLUSTER,
    "endpoints": CLUSTER_LOAD_ASSIGNMENT,
    "listeners": LISTENER,
}

# What Any fields may hold is found by name among the imported messages.
_MODULES = (
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.config.route.v3.route_pb2",
    "envoy.extensions.access_loggers.file.v3.file_pb2",
    "envoy.extensions.filters.http.cors.v3.cors_pb2",
    "envoy.extensions.filters.http.fault.v3.fault_pb2",
    "envoy.extensions.filters.http.grpc_stats.v3.config_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2",
    "envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2",
    "envoy.extensions.filters.listener.proxy_protocol.v3.proxy_protocol_pb2",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2",
    "envoy.extensions.request_id.uuid.v3.uuid_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
    "envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2",
    "envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
)
_LOADED = [importlib.import_module(name) for name in _MODULES]
MESSAGES = {
    CLUSTER: _LOADED[0].Cluster,
    CLUSTER_LOAD_ASSIGNMENT: _LOADED[1].ClusterLoadAssignment,
    LISTENER: _LOADED[2].Listener,
    ROUTE_CONFIGURATION: _LOADED[3].RouteConfiguration,
}


def read(resources: Resources, type_url: str) -> dict[str, dict[str, Any]]:
    """Return the resources of one type as plain values, by name."""
    return {
        item.name: json.loads(json_format.MessageToJson(MESSAGES[type_url].FromString(item.value)))
        for item in resources
        if item.type_url == type_url
    }


def canonical(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded resource in the form of `read`: through its message, so that defaults are alike."""
    type_url = recorded["@type"]
    values = {name: value for name, value in recorded.items() if name != "@type"}
    return json_format.MessageToDict(json_format.ParseDict(values, MESSAGES[type_url]()))


_BY_NAME = frozenset({"virtualHosts", "httpFilters", "filters", "transportSocketMatches", "listenerFilters"})
_SETS = frozenset({"domains", "applicationProtocols"})


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """
    Yield (path, value) for each leaf. Lists whose order has no meaning are keyed by name; an empty message is a leaf.
    """
    if isinstance(value, dict) and value:
        for name, item in value.items():
            if name in _SETS:
                yield f"{path}.{name}", tuple(sorted(item))
            elif name in _BY_NAME:
                for index, element in enumerate(item):
                    yield from leaves(element, f"{path}.{name}[{element.get('name', index)}]")
            elif name == "filterChains":
                for element in item:
                    yield from leaves(element, f"{path}.{name}[{_chain(element)}]")
            elif name == "lbEndpoints":
                for element in item:
                    address = element["endpoint"]["address"]["socketAddress"]
                    yield from leaves(element, f"{path}.{name}[{address['address']}:{address['portValue']}]")
            else:
                yield from leaves(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value if not isinstance(value, dict | list) else "{}"


def _chain(chain: dict[str, Any]) -> str:
    """Return a name for a filter chain from what it is for: its names mean nothing."""
    match = chain.get("filterChainMatch", {})
    kind = chain["filters"][-1]["name"].rpartition(".")[2]
    ranges = ",".join(item["addressPrefix"] for item in match.get("prefixRanges", ()))
    if "0.0.0.0" in ranges.split(","):
        ranges = ""  # every destination
    seen = "tls" if match.get("transportProtocol") == "tls" else ""
    seen += " of a sidecar" if "istio" in match.get("applicationProtocols", ()) else ""
    port = str(match.get("destinationPort", ""))
    return ":".join(part for part in (kind, ranges, port, seen) if part)
