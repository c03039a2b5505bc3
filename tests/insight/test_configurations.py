"""Which configuration a request is explained by, where a change came about at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener

from tests.controlplane.peers import Mesh
from tests.insight.test_copies import TO, published, sent
from weft.insight import Hop, Program, happened, programs, tell
from weft.telemetry import Configuration, Record
from weft.telemetry.history import ACKNOWLEDGE_SECONDS
from weft.translate import names

CATALOG_SERVICE = "catalog.default.svc.cluster.local"
PRODUCTPAGE = "outbound|9080||productpage.default.svc.cluster.local"

EJECTING = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ejecting}
spec:
  host: productpage
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1}
"""

START = 1000.0


def refused(cluster: str = TO, **more: object) -> Record:
    """A request of `START` for which there was no endpoint, as the caller's proxy told."""
    nowhere = {"upstream": "", "upstream_local": "", "attempts": 0, "status": 503, "details": "no_healthy_upstream"}
    return replace(sent(flags=("UH",), cluster=cluster, **nowhere, **more), start=START)


def without(configuration: Configuration, cluster: str = TO) -> Configuration:
    """The same before an endpoint of *cluster* was there."""
    resources = tuple(
        (type_url, name, ClusterLoadAssignment(cluster_name=cluster).SerializeToString())
        if type_url.endswith(".ClusterLoadAssignment") and name == cluster
        else (type_url, name, value)
        for type_url, name, value in configuration.resources
    )
    assert resources != configuration.resources
    return replace(configuration, resources=resources)


def explained(record: Record, *configurations: Configuration, now: tuple[Program, ...] = ()) -> Hop:
    (hop,) = happened([record], (), lambda _node, _at: configurations, now)
    return hop


def code(hop: Hop) -> str:
    assert hop.finding is not None
    return hop.finding.code


def test_no_endpoint_is_explained_by_the_configuration_that_had_none(bookinfo: Mesh) -> None:
    """An endpoint came back a moment after the request: what was acknowledged then is not what had refused it."""
    there = replace(published(bookinfo, refused().node), revision=9, acknowledged=START + ACKNOWLEDGE_SECONDS / 2)
    before = replace(without(there), revision=8, acknowledged=START - 60)
    ready = Program("catalog-v1-0", services=(CATALOG_SERVICE,))
    hop = explained(refused(), there, before, now=(ready,))
    assert (code(hop), hop.revision) == ("no-endpoint", 8)
    assert "had no endpoint that could take a request; by now catalog-v1-0 is ready. (UH)" in tell([hop])


def test_a_configuration_that_was_over_explains_nothing(bookinfo: Mesh) -> None:
    """Nobody asks for ejection, though, so it is not what happened."""
    record = refused(PRODUCTPAGE, authority="productpage:9080", origin="")
    there = replace(published(bookinfo, record.node), revision=9, acknowledged=START - 60)
    hop = explained(record, there, replace(without(there, PRODUCTPAGE), revision=8, acknowledged=START - 90))
    assert (code(hop), hop.revision) == ("no-endpoint", 9)


def test_ejection_is_named_where_somebody_has_asked_for_it(bookinfo: Mesh) -> None:
    record = refused(PRODUCTPAGE, authority="productpage:9080", origin="")
    bookinfo.apply(EJECTING, file="ejecting.yaml")
    try:
        there = replace(published(bookinfo, record.node), revision=9, acknowledged=START - 60)
    finally:
        key = {"kind": "DestinationRule", "namespace": "default", "name": "ejecting"}
        bookinfo.client.post("/v1/delete", {"keys": [key]})
    before = replace(without(there, PRODUCTPAGE), revision=8, acknowledged=START - 90)
    hop = explained(record, there, before)
    assert code(hop) == "all-ejected"
    # The command of the remedy must not find this same request.
    text = tell([hop])
    assert "Find out why they fail (`weft why --last-failed --from productpage-v1-0`)" in text
    assert "Policy: outlierDetection (ejecting.yaml:7:5)\n" in text
    late = replace(there, acknowledged=START + ACKNOWLEDGE_SECONDS / 2)
    assert code(explained(record, late, before)) == "no-endpoint"


@pytest.mark.parametrize("upstream", ["10.244.0.11:9080", "10.244.0.99:9080"])
def test_a_configuration_that_lacks_the_endpoint_that_was_called_is_not_the_one(bookinfo: Mesh, upstream: str) -> None:
    called = replace(sent(upstream=upstream), start=START)
    there = replace(published(bookinfo, called.node), revision=9, acknowledged=START)
    gone = replace(without(there), revision=8, acknowledged=START - 60)
    found = explained(called, replace(gone, revision=10, acknowledged=START), there)
    # Where none has it, the likeliest is taken.
    assert found.revision == (9 if upstream == "10.244.0.11:9080" else 10)


SHARED = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shared}
spec:
  host: productpage
  subsets: [{name: v1, labels: {version: v1}}, {name: v7, labels: {version: v7}}, {name: v8, labels: {version: v8}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shared}
spec:
  hosts: [productpage]
  http:
  - match: [{uri: {exact: /no-endpoint}}]
    route: [{destination: {host: productpage, subset: v1}, weight: 90}, {destination: {host: productpage, subset: v7}, weight: 10}]
  - match: [{uri: {exact: /no-endpoints}}]
    route: [{destination: {host: productpage, subset: v7}, weight: 90}, {destination: {host: productpage, subset: v8}, weight: 10}]
  - match: [{uri: {exact: /no-cluster}}]
    route: [{destination: {host: productpage, subset: v1}, weight: 90}, {destination: {host: productpage, subset: gone}, weight: 10}]
  - match: [{uri: {exact: /no-clusters}}]
    route: [{destination: {host: productpage, subset: gone}, weight: 90}, {destination: {host: productpage, subset: away}, weight: 10}]
"""


@pytest.fixture
def shared(bookinfo: Mesh) -> Iterator[Mesh]:
    """Rules that share requests out, and not all of the places take any."""
    bookinfo.apply(SHARED, file="shared.yaml")
    yield bookinfo
    kinds = ("DestinationRule", "VirtualService")
    keys = [{"kind": kind, "namespace": "default", "name": "shared"} for kind in kinds]
    bookinfo.client.post("/v1/delete", {"keys": keys})


@pytest.mark.parametrize(
    ("path", "flag", "subsets"),
    [
        ("/no-endpoint", "UH", ("v7",)),
        ("/no-endpoints", "UH", ("v7", "v8")),
        ("/no-cluster", "NC", ("gone",)),
        ("/no-clusters", "NC", ("gone", "away")),
    ],
)
def test_of_several_places_those_are_named_that_lead_to_such_an_end(
    shared: Mesh, path: str, flag: str, subsets: tuple[str, ...]
) -> None:
    """Envoy's record does not say where it went, and it went to none of the caller."""
    record = refused("", authority="productpage:9080", path=path, listener="240.240.0.2:9080", origin="")
    host = "productpage.default.svc.cluster.local"
    hop = explained(replace(record, flags=(flag,)), published(shared, record.node))
    text = tell([hop])
    assert hop.places == tuple(f"outbound|9080|{subset}|{host}" for subset in subsets)
    named = " or ".join(f"{host}:9080 (subset {subset})" for subset in subsets)
    sentence = f"{named} had no endpoint" if flag == "UH" else f"The rule sends the request to {named}, which"
    assert sentence in text, text
    assert f"to: {' or '.join(f'{host} port 9080, subset {subset}' for subset in subsets)}\n" in text, text


def test_labels_that_no_program_carries_are_named_with_those_that_they_carry(shared: Mesh) -> None:
    """Another program of the service does not help, so it is not said to start one."""
    record = refused("", authority="productpage:9080", path="/no-endpoint", listener="240.240.0.2:9080", origin="")
    host = "productpage.default.svc.cluster.local"
    there = published(shared, record.node)

    def told(*versions: str, ready: bool) -> str:
        found = [Program(f"p-{it}", services=(host,), ready=ready, labels={"version": it}) for it in versions]
        return tell([explained(record, there, now=tuple(found))])

    text = told("v1", "v2", ready=True)
    assert f"{host}:9080 (subset v7) had no endpoint: no program of {host} carries the labels of that subset" in text
    assert "(version: v7). (UH)" in text
    assert "; those that run carry version: v1, version: v2.\n" in text
    assert "  Policy: DestinationRule default/shared, spec.subsets[1] (shared.yaml:6:" in text
    # One that carries them and is not ready is another matter.
    assert "could take a request; by now p-v7 is running, but not ready. (UH)" in told("v1", "v7", ready=False)
    (workload,) = [item for item in shared.client.get("/v1/workloads") if item["workload"] == "productpage-v1-0"]
    assert programs([workload], [])[0].labels["version"] == "v1"


WRONG = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: wrong}
spec:
  parentRefs: [{group: "", kind: Service, name: productpage}]
  rules:
  - backendRefs:
    - {name: ratings, port: 9080, weight: 90}
    - {name: ratings, port: 9081, weight: 10}
"""

WRONG_VIRTUAL = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wrong}
spec:
  hosts: [productpage]
  http:
  - route: [{destination: {host: %s}}]
"""


@pytest.mark.parametrize(
    ("document", "sentence", "remedy", "policy"),
    [
        (
            WRONG,
            "sends the request to ratings.default.svc.cluster.local:9081, and ratings.default.svc.cluster.local has no port 9081.",
            "Correct the port in the rule. ratings.default.svc.cluster.local has: 9080.",
            "HTTPRoute default/wrong, spec.rules[0].backendRefs[1] (wrong.yaml:9:7)",
        ),
        (
            WRONG_VIRTUAL % "ratings, port: {number: 9081}",
            "sends the request to ratings.default.svc.cluster.local:9081, and ratings.default.svc.cluster.local has no port 9081.",
            "Correct the port in the rule. ratings.default.svc.cluster.local has: 9080.",
            "VirtualService default/wrong, spec.http[0] (wrong.yaml:7:5)",
        ),
        (
            WRONG_VIRTUAL % "rating",
            "and no service of the mesh is called rating.default.svc.cluster.local.",
            "Correct the host in the rule",
            "VirtualService default/wrong, spec.http[0] (wrong.yaml:7:5)",
        ),
        (
            WRONG_VIRTUAL % "ratings, subset: v7",
            "which productpage-v1-0's proxy does not know.",
            "Correct the host or subset in the rule, or apply the DestinationRule that defines the subset.",
            "VirtualService default/wrong, spec.http[0] (wrong.yaml:7:5)",
        ),
    ],
)
def test_what_a_destination_lacks_is_named_with_what_there_is(
    bookinfo: Mesh, document: str, sentence: str, remedy: str, policy: str
) -> None:
    record = refused("", authority="productpage:9080", path="/", listener="240.240.0.2:9080", origin="")
    bookinfo.apply(document, file="wrong.yaml")
    try:
        there = published(bookinfo, record.node)
    finally:
        kind = "HTTPRoute" if document == WRONG else "VirtualService"
        bookinfo.client.post("/v1/delete", {"keys": [{"kind": kind, "namespace": "default", "name": "wrong"}]})
    services = bookinfo.client.get("/v1/services")
    (hop,) = happened([replace(record, flags=("NC",))], (), lambda _node, _at: [there], (), services)
    text = tell([hop])
    for words in (sentence, f"What to do: {remedy}", f"  Policy: {policy}\n"):
        assert words in text, text


@pytest.mark.parametrize("flag", ["UH", "NC", "UO", "UT"])
def test_who_called_is_never_named_as_where_it_went(flag: str) -> None:
    """Not even where the configuration of then is not known."""
    hop = explained(replace(refused(""), flags=(flag,)))
    assert hop.finding is not None
    assert "catalog:9080" in hop.finding.sentence
    assert not hop.finding.sentence.startswith("productpage-v1-0")
    assert " productpage-v1-0," not in hop.finding.sentence


@pytest.mark.parametrize("downstream", ["127.0.0.1:40000", "/run/weft/publish-8080.sock", ""])
def test_a_gateways_request_is_explained_whatever_is_told_of_who_called(bookinfo: Mesh, downstream: str) -> None:
    """A path is no address that the engine could be asked with; it needs none to say which rule was in force."""
    record = at_the_gateway(listener="10.244.0.8:8080", downstream=downstream)
    hop = explained(record, published(bookinfo, record.node))
    assert hop.decision is not None
    assert (hop.decision.route["name"], [share.cluster for share in hop.decision.shares]) == ("edge", [PRODUCTPAGE])


def test_what_an_agent_relays_from_a_published_port_is_explained_by_the_listener_at_its_socket(bookinfo: Mesh) -> None:
    """The record names the port of the host, which is no listener's."""
    socket = "/run/weft/publish-8080.sock"
    record = at_the_gateway(listener="127.0.0.1:43210", downstream="127.0.0.1:40000", relay=socket)
    plain = published(bookinfo, record.node)
    relayed = Listener(name=names.published_listener(8080))
    relayed.address.pipe.path = socket
    added = (f"type.googleapis.com/{relayed.DESCRIPTOR.full_name}", relayed.name, relayed.SerializeToString())
    hop = explained(record, replace(plain, resources=(*plain.resources, added)))
    assert hop.decision is not None
    assert hop.decision.route["name"] == "edge"


def at_the_gateway(**more: object) -> Record:
    taken = {"direction": "gateway", "authority": "shop.example", "path": "/productpage", "cluster": PRODUCTPAGE}
    record = sent(**taken, **more)
    return replace(record, node=record.node.replace("productpage-v1-0", "ingressgateway-v1-0"))
