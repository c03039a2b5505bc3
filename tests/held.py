"""
What a proxy says that it holds, and what was published to it, in one form: (type URL, name, state) -> version.

Of endpoints Envoy tells no version, and of a listener of which only filter chains were changed that of before the
change; so these are compared by what they say, on both sides. weft-proxy is taken at its word, its versions.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.json_format import MessageToDict, ParseDict

import weft.translate.translator  # noqa: F401 - registers the types that are in an Any
from weft.data_plane import ENVOY
from weft.xds.publisher import version_of

Held = dict[tuple[str, str, str], str]

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

VIRTUAL_HOST = "type.googleapis.com/envoy.config.route.v3.VirtualHost"

DUMP = "/config_dump?include_eds"
"""What to ask the admin interface of either data plane for."""


def of_dump(data_plane: str, dump: Any) -> Held:
    """Read what the admin interface of a proxy answers; secrets, and what its bootstrap brought, are left out."""
    return dict((_of_envoy if data_plane == ENVOY else _of_weft_proxy)(dump["configs"]))


def of_published(data_plane: str, resources: Iterable[Mapping[str, str]]) -> Held:
    """Read what the control plane says that it has published."""
    found = {}
    for item in resources:
        version = item["version"]
        if data_plane == ENVOY and item["type_url"] == ENDPOINTS:
            message = ClusterLoadAssignment.FromString(base64.b64decode(item["value"]))
            version = _endpoints(MessageToDict(message, preserving_proto_field_name=True))
        if data_plane == ENVOY and item["type_url"] == LISTENER:
            version = _listener(Listener.FromString(base64.b64decode(item["value"])))
        found[item["type_url"], item["name"], "active"] = version
    return found


def _of_envoy(configs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield what of a dump came by discovery. Listeners that drain are held no more."""
    clusters: set[str] = set()
    endpoints: dict[str, Mapping[str, Any]] = {}
    for config in configs:
        for state in ("active", "warming"):
            for item in config.get(f"dynamic_{state}_clusters", ()):
                if item["cluster"]["type"] == "EDS":
                    clusters.add(item["cluster"]["name"])
                yield (CLUSTER, item["cluster"]["name"], state), item["version_info"]
        for item in config.get("dynamic_listeners", ()):
            for state in ("active", "warming", "error"):
                if (held := item.get(f"{state}_state")) is not None:
                    content = {key: value for key, value in held.get("listener", {}).items() if key != "@type"}
                    yield (LISTENER, item["name"], state), _listener(ParseDict(content, Listener()))
        for item in config.get("dynamic_route_configs", ()):
            yield (ROUTES, item["route_config"]["name"], "active"), item["version_info"]
        for item in config.get("dynamic_endpoint_configs", ()):
            endpoints[item["endpoint_config"]["cluster_name"]] = item["endpoint_config"]
    # The endpoints of other clusters are dumped, too, though they came with their cluster.
    for name in clusters:
        yield (ENDPOINTS, name, "active"), _endpoints(endpoints[name])


def _of_weft_proxy(configs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield the same of a dump of weft-proxy's; what it refused last, too."""
    plain = {
        "dynamic_active_clusters": (CLUSTER, "cluster", "name", "active"),
        "dynamic_warming_clusters": (CLUSTER, "cluster", "name", "warming"),
        "dynamic_endpoint_configs": (ENDPOINTS, "endpoint_config", "cluster_name", "active"),
        "dynamic_route_configs": (ROUTES, "route_config", "name", "active"),
        "dynamic_virtual_hosts": (VIRTUAL_HOST, "virtual_host", "name", "active"),
    }
    for config in configs:
        for item in config.get("dynamic_listeners", ()):
            for state in ("active", "warming", "error"):
                if (held := item.get(f"{state}_state")) is not None:
                    yield (LISTENER, item["name"], state), held["version_info"]
        for place, (type_url, content, key, state) in plain.items():
            for item in config.get(place, ()):
                name = item.get("name") or item[content][key]
                if "version_info" in item:
                    yield (type_url, name, state), item["version_info"]
                if "error_state" in item:
                    yield (type_url, name, "error"), item["error_state"]["version_info"]


def _listener(message: Listener) -> str:
    """Return a hash of a listener; messages within it are not compared by their bytes, whose order is anybody's."""
    return version_of(json.dumps(MessageToDict(message), sort_keys=True).encode())


def _endpoints(assignment: Mapping[str, Any]) -> str:
    """Return what matters of a `ClusterLoadAssignment`, without what is a default on one side and absent on the other."""
    found = []
    for locality in assignment.get("endpoints", ()):
        for item in locality.get("lb_endpoints", ()):
            address = item["endpoint"]["address"]["socket_address"]
            health = item.get("health_status", "UNKNOWN").replace("UNKNOWN", "HEALTHY")
            metadata = item.get("metadata", {}).get("filter_metadata", {})
            place = f"{address['address']}:{address['port_value']}"
            found.append([place, health, item.get("load_balancing_weight", 1), locality.get("priority", 0), metadata])
    return json.dumps(sorted(found), sort_keys=True)
