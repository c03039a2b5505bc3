"""The names of resources, in one place: Istio's, so that its documentation and tools apply (interfaces.md, 4.1)."""

from __future__ import annotations

BLACK_HOLE = "BlackHoleCluster"
"""Connections to it are closed at once."""

PASSTHROUGH = "PassthroughCluster"
"""Where the connection was going before the proxy caught it, outside the mesh."""

MESH_PASSTHROUGH = "MeshPassthroughCluster"
"""The same for addresses of the mesh itself."""

SDS_CLUSTER = "sds-grpc"
"""Static cluster of the bootstrap: the agent's secret discovery service."""

CERTIFICATE = "default"
TRUST_BUNDLE = "ROOTCA"

ALLOW_ANY = "allow_any"
"""Virtual host and route for hosts that the mesh does not know."""


def outbound_cluster(hostname: str, port: int, subset: str = "") -> str:
    return f"outbound|{port}|{subset}|{hostname}"


def outbound_parts(cluster: str) -> tuple[str, int, str] | None:
    """Return hostname, port and subset of the cluster of a service, None for any other."""
    match cluster.split("|"):
        case ["outbound", port, subset, hostname]:
            return hostname, int(port), subset
    return None


def refused_cluster(hostname: str, port: int) -> str:
    """Return the name, of no cluster, that stands for a service to which a route may not refer."""
    return f"{_REFUSED}{port}||{hostname}"


def is_refused_cluster(cluster: str) -> bool:
    """Whether *cluster* stands for a service to which a route may not refer."""
    return cluster.startswith(_REFUSED)


_REFUSED = "refused|"


def inbound_cluster(port: int) -> str:
    return f"inbound|{port}||"


def host_cluster(port: int) -> str:
    """Return the cluster of a port of the host's loopback."""
    return f"host|{port}||"


def is_outside(cluster: str) -> bool:
    """Whether *cluster* leads to the host's network."""
    return cluster == PASSTHROUGH or cluster.startswith("host|")


def server_name(hostname: str, port: int, subset: str = "") -> str:
    """Return the SNI of a mutual TLS connection between sidecars."""
    return f"outbound_.{port}_.{subset}_.{hostname}"


def virtual_host(host: str, port: int) -> str:
    return f"{host}:{port}"


def http_listener(port: int) -> str:
    return f"0.0.0.0_{port}"


def tcp_listener(address: str, port: int) -> str:
    return f"{address}_{port}"


PUBLISHED = "published_"


def published_listener(port: int) -> str:
    """Return the listener for what the agent relays from the published ports of gateway port *port*."""
    return f"{PUBLISHED}{port}"


def published_port(listener: str) -> int:
    """Undo `published_listener`; 0 for any other listener."""
    port = listener.removeprefix(PUBLISHED)
    return int(port) if port != listener and port.isdecimal() else 0


def inbound_listener(port: int) -> str:
    return f"inbound|{port}"


def host_listener(port: int) -> str:
    return f"host|{port}"


FORWARD_PROXY = "http_proxy"
"""Listener and route configuration of requests that come as to an HTTP proxy (Istio's name of the latter)."""

VIRTUAL_OUTBOUND = "virtualOutbound"
"""The listener of connections to any place."""


def sidecar_routes(port: int) -> str:
    return str(port)


def gateway_routes(port: int) -> str:
    return f"http.{port}"
