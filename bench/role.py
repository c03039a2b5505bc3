"""
What a proxy is to do in a scenario, in no peer's language.

A scenario makes a `Role`; `bench/configurations` puts it into the words of each peer; `bench/probes.py` asks a running
proxy whether each of the role's features acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Feature(StrEnum):
    """What can be on or off; a feature that is on is on for every peer of the run, or the peer does not take part."""

    REQUEST_ID = "request-id"
    ACCESS_RECORD = "access-record"
    METRICS = "metrics"
    """Requests are counted, as each peer does it by itself."""
    LABELS = "metric-labels"
    """A counter and three histograms of requests with Istio's 25 labels. HAProxy and nginx have none and are let off."""
    VIRTUAL_HOSTS = "virtual-hosts"
    CANARY = "canary"
    RETRY = "retry"
    CIRCUIT_BREAKER = "circuit-breaker"
    OUTLIER_DETECTION = "outlier-detection"
    LEAST_REQUEST = "least-request"
    PATH_NORMALISATION = "path-normalisation"
    FAULT = "fault"
    CLIENT_CERTIFICATE = "client-certificate"
    RBAC = "rbac"
    PRINCIPAL = "principal"
    """Only one identity may call: by its SPIFFE ID where a peer knows those, else by the name of its certificate."""
    PEER_IDENTITY = "peer-identity"
    """Who is called must be who is meant, by its certificate."""
    CORS = "cors"


BARE = frozenset({Feature.REQUEST_ID, Feature.ACCESS_RECORD, Feature.METRICS})

OUTBOUND_MESH = BARE | {
    Feature.LABELS,
    Feature.VIRTUAL_HOSTS,
    Feature.CANARY,
    Feature.RETRY,
    Feature.CIRCUIT_BREAKER,
    Feature.OUTLIER_DETECTION,
    Feature.LEAST_REQUEST,
    Feature.PATH_NORMALISATION,
    Feature.FAULT,
    Feature.RBAC,
    Feature.CORS,
}
"""Of the sidecar beside the caller, which is also the only proxy of a scenario with one."""

INBOUND_MESH = BARE | {
    Feature.LABELS,
    Feature.PATH_NORMALISATION,
    Feature.FAULT,
    Feature.CLIENT_CERTIFICATE,
    Feature.RBAC,
    Feature.PRINCIPAL,
}
"""Of the sidecar beside the called program. Istio gives it one route without retries, and no outlier detection."""

HOSTS = 50
DOMAINS_EACH = 5
CANARY_HEADER = ("x-canary", "yes")
FAULT_HEADER = ("x-fault", "yes")
FAULT_STATUS = 429
RETRIES = 2
RETRIED_STATUS = 503
MAX_REQUESTS = 1024
CONSECUTIVE_5XX = 5
CORS_ORIGIN = "https://shop.example"
FORBIDDEN_PATH = "/forbidden"


PROBED = ("echo", "faulty", "retried", "ejecting", "narrow", "uneven", "impostor", "stranger")
"""Services of the probes; see `Role`."""


def domains(service: str) -> tuple[str, ...]:
    """Return the names by which a caller in the same namespace knows *service*, in Istio's order; the last is its VIP."""
    number = (
        int(service.rpartition("-")[2])
        if service[-1].isdigit()
        else (PROBED.index(service) + 1) << 17
        if service in PROBED
        else 1 << 23
    )
    return (
        f"{service}.shop.svc.cluster.local",
        service,
        f"{service}.shop.svc",
        f"{service}.shop",
        f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
    )


def host(service: str) -> str:
    """Return the name by which the load calls *service*."""
    return domains(service)[2]


@dataclass(frozen=True)
class Tls:
    """
    Mutual TLS 1.3 with P-256 certificates and key exchange by X25519 alone.

    HAProxy's side that calls cannot be told the latter; it comes to the same, because who is called takes nothing else.
    """

    chain: Path
    key: Path
    roots: Path
    peer: str
    """SPIFFE identity that the other side must have, where a peer can look at it."""


@dataclass(frozen=True)
class Callers:
    """Whose certificates probes show to a proxy that terminates TLS: one who may call, and one whom PRINCIPAL keeps out."""

    known: Tls
    stranger: Tls | None = None


@dataclass(frozen=True)
class Ports:
    """Where the backends are (bench/backends.py). `answer` is under load; the others are asked by probes only."""

    answer: tuple[int, ...]
    canary: int = 0
    echo: tuple[int, ...] = ()
    failing: int = 0
    """Answers 500 to everything."""
    busy: int = 0
    """Answers 503 to everything."""
    slow: int = 0
    """Holds what comes until it is told to let go, and then echoes."""
    impostor: int = 0
    """Echoes over TLS, with the certificate of `stranger`."""


@dataclass(frozen=True)
class Role:
    """
    One proxy's work.

    Services are called `service-0` ...; the probes' own are `echo`, `retried` (one endpoint of two answers 503),
    `ejecting` (one of two answers 500), `narrow` (one request at a time), `uneven` (one of two is slow), `faulty`, and
    `impostor` and `stranger`: one server over TLS, which is taken for the service under load, and for who it is.
    """

    ports: Ports
    features: frozenset[Feature] = BARE
    tcp: bool = False
    inbound: bool = False
    hosts: int = HOSTS
    paths: int = 0
    """So many prefix routes and as many exact ones before the default route of each virtual host."""
    regexes: int = 0
    """So many regular expressions with a beginning of their own, and as many that all begin alike, before it."""
    endpoints: int = 0
    """Of each service; 0 is one for each port of `answer`. The others are never connected to."""
    downstream_tls: Tls | None = None
    callers: Callers | None = None
    """With *downstream_tls*: what probes need to be let in."""
    upstream_tls: Tls | None = None
    downstream_http2: bool = False
    upstream_http2: bool = False
    upstream_default: bool = False
    """As each peer's mesh ships it: weft-proxy offers both versions of HTTP, the others speak HTTP/1.1."""
    workers: int = 1
    path: str = "/"
    """What the load asks for."""

    def has(self, feature: Feature) -> bool:
        return feature in self.features

    @property
    def services(self) -> list[str]:
        """Those under load; one if there are no virtual hosts."""
        return [f"service-{number}" for number in range(self.hosts if self.has(Feature.VIRTUAL_HOSTS) else 1)]

    @property
    def target(self) -> str:
        """The service under load: in the middle, so that a peer that searches a list finds it neither first nor last."""
        return self.services[len(self.services) // 2]
