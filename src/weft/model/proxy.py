"""A proxy as translation sees it: whose it is, what it can do, and how traffic reaches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from weft.data_plane import WEFT_PROXY

MESH_CIDR, SERVICE_CIDR = "10.244.0.0/16", "240.240.0.0/16"
"""The usual ranges of workload addresses and of service addresses; the latter is class E, which nobody routes."""

MESH_IPV6_CIDR = "fd77:ef7::/64"
"""The range of workloads' IPv6 addresses, in every mesh with namespaces. Services have none."""


class ProxyKind(StrEnum):
    """SIDECAR stands beside one workload; GATEWAY stands at the border of the mesh."""

    SIDECAR = "sidecar"
    GATEWAY = "gateway"


class Interception(StrEnum):
    """
    How the workload's traffic reaches the proxy.

    TPROXY: the workload has a network namespace of its own, `Proxy.namespace_path` names it; the outbound listener
    stands in that namespace, transparent. EXPLICIT: no interception and no namespaces; the program calls addresses of
    the host's loopback, one for each service (`weft.model.loopback`), or an HTTP proxy.
    """

    TPROXY = "tproxy"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """A gateway's port offered on the host: the edge listens at `host_address:host_port` for gateway port `port`."""

    port: int
    host_address: str
    host_port: int


@dataclass(frozen=True, slots=True)
class LocalCaller:
    """
    EXPLICIT mode: how a proxy knows its own program among all who can reach its addresses.

    Attributes:
        uid: Of the processes that may connect.
        credential_sha256: SHA-256, in hexadecimal, of the `user:password` that the program shows to the HTTP proxy.
    """

    uid: int
    credential_sha256: str


@dataclass(frozen=True, slots=True)
class Proxy:
    """
    Attributes:
        node_id: xDS node id (`sidecar~10.244.0.7~reviews-v1-0.default~default.svc.cluster.local`).
        workload: Name of the workload it stands beside (a gateway is a workload too).
        address: IPv4 address in the mesh network on which it accepts inbound connections.
        data_plane: `weft-proxy` or `envoy`; selects the capabilities.
        namespace_path: nsfs path of the program's network namespace; empty in EXPLICIT mode.
        host_namespace_path: The path that stands for the host's network: a socket with this
            `network_namespace_filepath` is dialled or bound by the edge. In EXPLICIT mode, where the proxy itself is
            there, the edge only keeps its listening sockets; empty where there is no edge.
        outside_socket: Unix socket at which the agent relays connections to the host's network, by PROXY protocol; for a
            data plane that cannot be handed sockets by the edge. Empty where the proxy is on the host itself.
        published_sockets: Gateway port -> Unix socket at which the proxy takes the connections that the agent relays to
            it from the published ports, by PROXY protocol; for the same data planes.
        mesh_cidr, service_cidr: The ranges of workload addresses and of service addresses; `MESH_IPV6_CIDR` is beside them.
        host_ports: Ports of the host's loopback that the program may call on its own loopback.
        local_caller: EXPLICIT mode: who may use its listeners.
        outbound_addresses: EXPLICIT mode without `local_caller`: service port -> (address, port) to bind for a listener
            of all services on that port, open to everybody. For tests of data planes and measurements.
        access_log_path: File for access records (interfaces.md, 4.6); empty writes none.
        access_log_cluster: Static cluster of the bootstrap to whose access log service records are sent; empty sends
            none.
    """

    node_id: str
    kind: ProxyKind
    workload: str
    namespace: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    data_plane: str = WEFT_PROXY
    interception: Interception = Interception.TPROXY
    namespace_path: str = ""
    host_namespace_path: str = ""
    outside_socket: str = ""
    published_sockets: Mapping[int, str] = field(default_factory=dict)
    mesh_cidr: str = MESH_CIDR
    service_cidr: str = SERVICE_CIDR
    host_ports: tuple[int, ...] = ()
    published: tuple[Published, ...] = ()
    local_caller: LocalCaller | None = None
    outbound_addresses: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    access_log_path: str = ""
    access_log_cluster: str = ""
