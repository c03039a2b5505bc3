"""A workload: one running instance of a program, with one address, one identity and one proxy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weft.model.service import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """A SPIFFE ID (SPIFFE-ID section 2), in Istio's form."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


@dataclass(frozen=True, slots=True)
class WorkloadPort:
    """
    A port on which the program serves.

    Attributes:
        number: The port that the program binds.
        protocol: What it speaks.
        listening: The address inside the program's namespace on which it was found listening (`127.0.0.1`, `::1`,
            the workload's own address), or None while nothing answers there. Wildcards are reported as loopback.
        bound: The port on which it was found listening, where that is another than `number` (EXPLICIT mode).
    """

    number: int
    protocol: Protocol = Protocol.HTTP
    listening: str | None = None
    bound: int = 0

    @property
    def program_port(self) -> int:
        """Where the program itself is to be called."""
        return self.bound or self.number


@dataclass(frozen=True, slots=True)
class Workload:
    """
    Attributes:
        name: Unique in its namespace (`reviews-v1-0`).
        address: Its IPv4 address in the mesh network; where peers reach its sidecar.
        labels: `app`, `version` and the user's own; what subsets and selectors match.
        services: Hostnames of the services that it serves.
        ready: Whether endpoints may be published: the proxy is ready and every declared port answers.
        meshed: Whether a sidecar that speaks mutual TLS stands before it.
        weight: Relative share of traffic among the endpoints of one locality.
    """

    name: str
    namespace: str
    address: str
    identity: Identity
    labels: Mapping[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    ports: tuple[WorkloadPort, ...] = ()
    ready: bool = False
    meshed: bool = True
    weight: int = 1

    def port(self, number: int) -> WorkloadPort | None:
        """Return the port that the program binds as *number*."""
        return next((port for port in self.ports if port.number == number), None)
