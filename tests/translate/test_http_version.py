"""Which HTTP a sidecar speaks to a destination, and whose word that is (decision 0012)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.meshes import service, sidecar, workload
from tests.translate.readable import KINDS, read
from weft.api.parse import parse
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.model import Protocol, ServicePort, Snapshot
from weft.translate.translator import translate

RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: reviews}}
spec:
  host: "{host}"
  trafficPolicy: {policy}
"""

OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
EITHER, HTTP1, HTTP2 = "either", "HTTP/1.1", "HTTP/2"
DEFAULT = "default"


def cluster(policy: str, *, data_plane: str, protocol: Protocol, host: str = "reviews") -> dict[str, Any]:
    """Return the cluster of reviews as a caller's sidecar has it."""
    rule = RULE.format(host=host, policy=policy) if policy else ""
    parsed = parse([("rule.yaml", rule)] if rule else [])
    assert not parsed.errors, parsed.errors
    reviews = service("reviews", 1, ports=(ServicePort("main", 9080, protocol),))
    running = workload(reviews, 0, "10.244.0.7", "v1")
    caller = workload(service("caller", 2), 0, "10.244.0.8", "v1")
    snapshot = Snapshot(
        revision=1,
        config={item.key: item for item in parsed.objects},
        services={reviews.hostname: reviews},
        workloads={(item.namespace, item.name): item for item in (running, caller)},
    )
    made = translate(snapshot, sidecar("caller-v1-0", address="10.244.0.8", data_plane=data_plane))
    found: dict[str, Any] = read(made, KINDS["clusters"])["outbound|9080||reviews.default.svc.cluster.local"]
    return found


def version(message: dict[str, Any]) -> str:
    options = message.get("typedExtensionProtocolOptions", {}).get(OPTIONS, {})
    if "autoConfig" in options:
        return EITHER
    return HTTP2 if "http2ProtocolOptions" in options.get("explicitHttpConfig", {}) else HTTP1


def offered(message: dict[str, Any]) -> list[str]:
    """Return the ALPN list towards a sidecar."""
    sockets = [item["transportSocket"] for item in message.get("transportSocketMatches", ())]
    sockets += [message["transportSocket"]] if "transportSocket" in message else []
    found: list[str] = next(
        item["typedConfig"]["commonTlsContext"]["alpnProtocols"] for item in sockets if item["name"].endswith(".tls")
    )
    return found


H2, MOST, PENDING, PER_CONNECTION = (
    f"{{connectionPool: {{{text}}}}}"
    for text in (
        "http: {h2UpgradePolicy: %s}",
        "tcp: {maxConnections: %s}",
        "http: {http1MaxPendingRequests: %s}",
        "http: {maxRequestsPerConnection: %s}",
    )
)
AT = "rule.yaml:6:"


@pytest.mark.parametrize(
    ("policy", "data_plane", "protocol", "want", "origin"),
    [
        ("", WEFT_PROXY, Protocol.HTTP, EITHER, DEFAULT),
        ("", ENVOY, Protocol.HTTP, HTTP1, DEFAULT),
        ("", WEFT_PROXY, Protocol.HTTP2, HTTP2, DEFAULT),
        ("", ENVOY, Protocol.GRPC, HTTP2, DEFAULT),
        (H2 % "DEFAULT", WEFT_PROXY, Protocol.HTTP, EITHER, DEFAULT),
        (H2 % "UPGRADE", WEFT_PROXY, Protocol.HTTP, HTTP2, AT),
        (H2 % "UPGRADE", ENVOY, Protocol.HTTP, HTTP2, AT),
        (H2 % "DO_NOT_UPGRADE", WEFT_PROXY, Protocol.HTTP, HTTP1, AT),
        (H2 % "DO_NOT_UPGRADE", WEFT_PROXY, Protocol.GRPC, HTTP2, DEFAULT),
        (MOST % 1, WEFT_PROXY, Protocol.HTTP, HTTP1, AT),
        (MOST % 1, WEFT_PROXY, Protocol.HTTP2, HTTP2, DEFAULT),
        (MOST % 0, WEFT_PROXY, Protocol.HTTP, EITHER, DEFAULT),
        (PENDING % 1, WEFT_PROXY, Protocol.HTTP, HTTP1, AT),
        (PER_CONNECTION % 1, WEFT_PROXY, Protocol.HTTP, HTTP1, AT),
        ("{connectionPool: {http: {http2MaxRequests: 9, maxRetries: 1}}}", WEFT_PROXY, Protocol.HTTP, EITHER, DEFAULT),
        (
            "{connectionPool: {tcp: {maxConnections: 1}, http: {h2UpgradePolicy: UPGRADE}}}",
            WEFT_PROXY,
            Protocol.HTTP,
            HTTP2,
            AT,
        ),
        ("{tls: {mode: ISTIO_MUTUAL}}", WEFT_PROXY, Protocol.HTTP, EITHER, DEFAULT),
        ("{tls: {mode: DISABLE}}", WEFT_PROXY, Protocol.HTTP, HTTP1, DEFAULT),
    ],
)
def test_what_is_written_wins_and_the_rest_is_the_rule(
    policy: str, data_plane: str, protocol: Protocol, want: str, origin: str
) -> None:
    made = cluster(policy, data_plane=data_plane, protocol=protocol)
    assert version(made) == want
    written = made["metadata"]["filterMetadata"]["weft"]["origins"]["h2UpgradePolicy"]
    assert written.startswith(origin)


@pytest.mark.parametrize(
    ("policy", "alpn"),
    [
        ("", ["istio", "h2", "http/1.1"]),
        (H2 % "UPGRADE", ["istio", "h2"]),
        (H2 % "DO_NOT_UPGRADE", ["istio", "http/1.1"]),
    ],
)
def test_the_offer_is_what_will_be_spoken(policy: str, alpn: list[str]) -> None:
    """A server that agreed to something else would read it as that."""
    assert offered(cluster(policy, data_plane=WEFT_PROXY, protocol=Protocol.HTTP)) == alpn


def test_one_rule_says_it_for_the_whole_mesh() -> None:
    """As Istio's MeshConfig does; a rule for one host wins over it."""
    made = cluster(H2 % "DO_NOT_UPGRADE", data_plane=WEFT_PROXY, protocol=Protocol.HTTP, host="*.local")
    assert version(made) == HTTP1


def test_a_program_is_not_upgraded_by_what_its_callers_are_told() -> None:
    """The rule also limits what its own sidecar opens to it; the version stays what the port declares."""
    parsed = parse([("rule.yaml", RULE.format(host="reviews", policy=H2 % "UPGRADE"))])
    reviews = service("reviews", 1)
    running = workload(reviews, 0, "10.244.0.7", "v1")
    snapshot = Snapshot(
        revision=1,
        config={item.key: item for item in parsed.objects},
        services={reviews.hostname: reviews},
        workloads={(running.namespace, running.name): running},
    )
    made = read(translate(snapshot, sidecar("reviews-v1-0", address="10.244.0.7")), KINDS["clusters"])
    assert version(made["inbound|9080||"]) == HTTP1
    assert version(made["outbound|9080||reviews.default.svc.cluster.local"]) == HTTP2
