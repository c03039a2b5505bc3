"""
The answer of `weft._native.Engine.explain`, typed (docs/reference/interfaces.md, section 5).

Only what people are told is read; the JSON itself stays at hand in `Decision.raw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT = "default"
"""The origin of what nobody wrote."""

HTTP_ROUTE = "HTTPRoute"
"""Kind of a rule that calls its settings otherwise than a VirtualService does, and answers nothing of its own."""

BY_CALLER, BY_ENDPOINT = "downstream", "endpoint"
"""Versions of HTTP that the caller's program, or the endpoint's proxy, decides about."""

Metadata = Mapping[str, Any]
"""`filter_metadata["weft"]`: kind, namespace, name, origin, rule, origins."""


@dataclass(frozen=True, slots=True)
class Considered:
    """Something that was compared with the request: `subject` is `filter_chain`, `virtual_host` or `route`."""

    subject: str
    name: str
    matched: bool
    reason: str
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hash:
    """
    How consistent hashing chooses an endpoint.

    Attributes:
        by: `ring` or `maglev`.
        properties: What is looked at, in order (`header x-user`), each with what the request has of it.
        key: The hash in hexadecimal; empty if the request has none of them, and then chance decides.
        endpoint: Whose the key is.
        makes_cookie: The proxy gives the client a cookie, by which its next requests come to the same endpoint.
        of_unknown_client: The key follows from the client's address, which is not known; `key` is empty then, too.
        origin: Where that is written, or `default`.
    """

    by: str
    properties: tuple[tuple[str, str | None], ...]
    key: str
    endpoint: str
    makes_cookie: bool
    of_unknown_client: bool
    origin: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of `percent` of the requests to another cluster, whose endpoints are `endpoints`, if it exists."""

    cluster: str
    percent: float
    exists: bool
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """
    A destination: its cluster, the share of requests that it gets (0 to 1), and whether it exists.

    `status` is what is answered where it does not. `hash` is set where a hash chooses the endpoint. `metadata` is the
    rule's for this share, where it shares requests out, else the cluster's, which `own` is always, if it is known.
    `request_headers`, `response_headers` and `authority`, the host that it becomes, are done to what this share gets only,
    where there are several.
    """

    cluster: str
    share: float
    exists: bool = True
    metadata: Metadata = field(default_factory=dict)
    status: int = 503
    hash: Hash | None = None
    own: Metadata = field(default_factory=dict)
    request_headers: Mapping[str, Any] = field(default_factory=dict)
    response_headers: Mapping[str, Any] = field(default_factory=dict)
    authority: str = ""

    @property
    def parts(self) -> tuple[str, str, str]:
        """(host, port, subset) of a cluster with Istio's name; the whole name as host otherwise."""
        return cluster_parts(self.cluster)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    Attributes:
        address: `10.244.0.5:9080`.
        workload: Name of the workload there; empty if it is none of the mesh.
        share: Of the requests to its cluster, 0 to 1; 0 if it is not eligible.
        checked: Only while it passes the proxy's active health checks.
        tls: How it is called: sni, names (what its certificate must say), ...; None in plaintext.
        version: `HTTP/1.1`, `HTTP/2`, `BY_CALLER`, `BY_ENDPOINT`; empty for bytes.
        version_origin: Where that is written, or `default`.
    """

    cluster: str
    address: str
    workload: str
    healthy: bool
    share: float
    tls: Mapping[str, Any] | None
    version: str = ""
    version_origin: str = DEFAULT
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What one proxy does with a request.

    Attributes:
        outcome: `forward`, `direct_response`, `redirect`, `no_route`, `no_cluster`, `tcp`, `refused`, `fault`,
            `denied` (by RBAC rules), `turned_away` (before any rule was looked for), `preflight` (a browser is told what a
            page of another site may do).
        status: HTTP status, where the proxy itself answers.
        route: Metadata of the route that matched; empty if none did.
        origins: For each setting of that route the place that set it, or `default`.
    """

    outcome: str
    raw: Mapping[str, Any]
    status: int | None = None
    flags: str = ""
    explanation: str = ""
    route: Metadata = field(default_factory=dict)
    conditions: str = ""
    shares: tuple[Share, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    considered: tuple[Considered, ...] = ()

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Decision:
        """Read the parsed answer."""
        route = raw.get("route") or {}
        return cls(
            outcome=raw["outcome"],
            raw=raw,
            status=raw.get("status"),
            flags=str(raw.get("response_flags") or "").strip("-"),
            explanation=str(raw.get("explanation") or ""),
            route=route.get("metadata") or raw.get("metadata") or {},
            conditions=str(route.get("match") or ""),
            shares=tuple(
                Share(
                    item["name"],
                    float(item["share"]),
                    bool(item.get("exists", True)),
                    item.get("metadata") or {},
                    int(item.get("status") or 503),
                    _hash(item["hash"]) if item.get("hash") else None,
                    request_headers=item.get("request_headers") or {},
                    response_headers=item.get("response_headers") or {},
                    authority=item.get("authority") or "",
                )
                for item in raw.get("clusters") or ()
            ),
            endpoints=tuple(_endpoint(item) for item in raw.get("endpoints") or ()),
            considered=tuple(_considered(item) for item in raw.get("considered") or ()),
        )

    @property
    def is_of_bytes(self) -> bool:
        """Whether bytes are passed on as they are, so that nothing can be answered."""
        return self.outcome == "tcp" or (self.outcome == "no_cluster" and self.status is None)

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """Where copies go."""
        return tuple(
            Mirror(
                item["cluster"],
                float(item["percent"]),
                bool(item.get("exists", True)),
                tuple(_endpoint(endpoint) for endpoint in item.get("endpoints") or ()),
            )
            for item in self.raw.get("mirror") or ()
        )

    @property
    def origins(self) -> Mapping[str, str]:
        found = self.route.get("origins")
        return found if isinstance(found, Mapping) else {}


def cluster_parts(name: str) -> tuple[str, str, str]:
    """Return (host, port, subset) of `outbound|9080|v1|reviews.default.svc.cluster.local`."""
    parts = name.split("|")
    return (parts[3], parts[1], parts[2]) if len(parts) == 4 else (name, "", "")


def _endpoint(item: Mapping[str, Any]) -> Endpoint:
    workload = str((item.get("metadata") or {}).get("workload") or "").partition(";")[0]
    return Endpoint(
        cluster=str(item.get("cluster") or ""),
        address=item["address"],
        workload=workload,
        healthy=bool(item.get("healthy", True)),
        share=float(item.get("share", 0.0)),
        tls=item.get("tls"),
        version=str((item.get("http") or {}).get("version") or ""),
        version_origin=str((item.get("http") or {}).get("origin") or DEFAULT),
        checked=bool(item.get("checked", False)),
    )


def _hash(item: Mapping[str, Any]) -> Hash:
    return Hash(
        by=item["by"],
        properties=tuple((policy["of"], policy["value"]) for policy in item["policies"]),
        key=item["key"] or "",
        endpoint=item["endpoint"] or "",
        makes_cookie=bool(item["makes_cookie"]),
        of_unknown_client=bool(item["of_unknown_client"]),
        origin=str(item["origin"] or DEFAULT),
    )


def _considered(item: Mapping[str, Any]) -> Considered:
    subject = next(kind for kind in ("filter_chain", "virtual_host", "route") if kind in item)
    return Considered(subject, item[subject], bool(item["matched"]), item["reason"], item.get("metadata") or {})
