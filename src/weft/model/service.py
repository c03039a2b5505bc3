"""A service: a name that programs call, the ports it has, and a virtual address that only the mesh routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Protocol(StrEnum):
    """What a port speaks, by Istio's names (`istio.io/docs/ops/configuration/traffic-management/protocol-selection`)."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"

    @property
    def is_http(self) -> bool:
        """Whether routes of kind `http` apply."""
        return self in (Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`number` is what clients call; `target_port` is where the workload listens."""

    name: str
    number: int
    protocol: Protocol = Protocol.HTTP
    target_port: int = 0

    @property
    def target(self) -> int:
        """The workload's port: `target_port`, or `number` where none is set."""
        return self.target_port or self.number


@dataclass(frozen=True, slots=True)
class Service:
    """
    Attributes:
        name, namespace: Short name (`reviews`) and mesh namespace (`default`).
        hostname: Fully qualified (`reviews.default.svc.cluster.local`); the key everywhere.
        address: Virtual IPv4 address that the name resolves to inside the mesh.
        ports: In order of number.
        selector: Labels that a workload must carry to serve it; a workload's `service` label is `app`.
    """

    name: str
    namespace: str
    hostname: str
    address: str
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)

    def port(self, number: int) -> ServicePort | None:
        """Return the port that clients call as *number*."""
        return next((port for port in self.ports if port.number == number), None)
