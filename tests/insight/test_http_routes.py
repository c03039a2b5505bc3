"""What is told of a request that an HTTPRoute had its say in: in the words of that kind, and of what the route may not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.controlplane.peers import Mesh
from tests.insight.test_configurations import explained, refused
from tests.insight.test_copies import published, sent
from weft.insight import Hop, happened, tell
from weft.telemetry import Configuration, Record

ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own}
spec:
  parentRefs: [{group: "", kind: Service, name: productpage}]
  rules:
%s
"""

NODE = refused("").node


@contextmanager
def applied(mesh: Mesh, rules: str) -> Iterator[Configuration]:
    """Yield what productpage's proxy has while its own HTTPRoute has these *rules*."""
    mesh.apply(ROUTE % rules, file="own.yaml")
    try:
        yield published(mesh, NODE)
    finally:
        mesh.client.post("/v1/delete", {"keys": [{"kind": "HTTPRoute", "namespace": "default", "name": "own"}]})


def called(**more: object) -> Record:
    return replace(refused(""), authority="productpage:9080", path="/", listener="240.240.0.2:9080", origin="", **more)  # type: ignore[arg-type]


def test_a_reference_without_a_grant_is_no_missing_destination(bookinfo: Mesh) -> None:
    with applied(bookinfo, "  - backendRefs: [{name: ratings, namespace: elsewhere, port: 9080}]") as there:
        services = bookinfo.client.get("/v1/services")
        for known in ((), services):
            (hop,) = happened([called(flags=("NC",))], (), lambda _node, _at: [there], (), known)
            text = tell([hop])
            assert hop.finding is not None
            assert hop.finding.code == "not-permitted"
            assert (
                "no ReferenceGrant of that service's namespace allows HTTPRoutes of `default` to refer to it." in text
            )
            assert "ratings.elsewhere.svc.cluster.local:9080" in text
            assert "What to do: Apply a ReferenceGrant" in text
            assert "subset" not in text
            assert "Policy: HTTPRoute default/own, spec.rules[0] (own.yaml:7:5)" in text


@pytest.mark.parametrize("rules", ["  - {}", "  - backendRefs: [{name: ratings, port: 9080, weight: 0}]"])
def test_a_rule_without_a_backend_says_so(bookinfo: Mesh, rules: str) -> None:
    with applied(bookinfo, rules) as there:
        hop = explained(called(flags=(), status=500, details="direct_response"), there)
    text = tell([hop])
    assert "The rule has no backend that is sent anything" in text
    assert "What to do: Add one to `backendRefs`, or give one of them a weight." in text
    assert "Policy: HTTPRoute default/own, spec.rules[0] (own.yaml:7:5)" in text


@pytest.mark.parametrize(
    ("details", "policy"),
    [
        ("upstream_per_try_timeout", "timeouts.backendRequest 200 ms (own.yaml:7:43)"),
        ("response_timeout", "timeouts.request 2 s (own.yaml:7:29)"),
    ],
)
@pytest.mark.parametrize("retry", ["", ", retry: {attempts: 2}"])
def test_timeouts_are_called_as_the_route_calls_them(bookinfo: Mesh, details: str, policy: str, retry: str) -> None:
    with applied(
        bookinfo,
        f"  - {{timeouts: {{request: 2s, backendRequest: 200ms}}, backendRefs: [{{name: ratings, port: 9080}}]{retry}}}",
    ) as there:
        ratings = "outbound|9080||ratings.default.svc.cluster.local"
        hop = explained(called(flags=("UT",), status=504, details=details, cluster=ratings), there)
    text = tell([hop])
    name, value = policy.split(" ", 1)
    assert f"What to do: Raise `{name}` of the rule" in text
    assert f"Policy: {name} {value.split(' (')[0]} (own.yaml:7:" in text
    assert "perTryTimeout" not in text


@pytest.mark.parametrize(
    ("listener", "code"), [("240.240.0.2:9080", "foreign-host"), ("203.0.113.5:9080", "outside-failed")]
)
@pytest.mark.parametrize("flag", ["UF", "UC"])
def test_a_service_that_is_called_by_a_strange_host_is_no_place_outside(
    bookinfo: Mesh, listener: str, code: str, flag: str
) -> None:
    """What hands on the Host of those that called it, as many reverse proxies do, meets this first."""
    services = bookinfo.client.get("/v1/services")
    address = next(item["address"] for item in services if item["name"] == "productpage")
    record = sent(
        flags=(flag,),
        status=503,
        cluster="PassthroughCluster",
        authority="shop.example",
        listener=listener.replace("240.240.0.2", address),
        transport_failure="the edge refused: 240.240.0.4:8080 is an address of the mesh, and means nothing outside of it",
    )
    there = published(bookinfo, record.node)
    (hop,) = happened([record], (), lambda _node, _at: [there], (), services)
    assert code_of(hop) == code
    text = tell([hop])
    if code == "foreign-host":
        assert "called port 9080 of productpage and named the host shop.example" in text
        assert "What to do: Send the host `productpage`" in text
        assert "Cause: the place outside" not in text


def code_of(hop: Hop) -> str:
    assert hop.finding is not None
    return hop.finding.code
