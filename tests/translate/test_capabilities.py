"""What a data plane cannot do is refused aloud, and nothing that it would refuse is made for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.translate.meshes import destination_rule, service, sidecar, virtual_service, workload
from tests.translate.readable import read
from weft.model import Protocol, ServicePort, Severity, Snapshot
from weft.translate.capabilities import DATA_PLANES, Capability, able, refusals, shortfalls
from weft.translate.resource import CLUSTER, LISTENER, ROUTE_CONFIGURATION
from weft.translate.translator import translate

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "data-planes.md"
NO_LACK = "-"

ROUTE = [{"destination": {"host": "service-0"}}]


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> str:
    """A data plane that can do nothing that not every one must; those of today can do everything."""
    monkeypatch.setitem(DATA_PLANES, "simple", frozenset())
    return "simple"


@pytest.mark.parametrize(
    ("spec", "path", "capability"),
    [
        ({"mirror": {"host": "service-1"}}, "spec.http[0].mirror", Capability.MIRROR),
        ({"mirrors": [{"destination": {"host": "service-1"}}]}, "spec.http[0].mirrors", Capability.MIRROR),
    ],
)
def test_rules_that_a_data_plane_cannot_follow_are_refused(
    spec: dict[str, Any], path: str, capability: Capability, simple: str
) -> None:
    """With the field, and who could do it; the others take it."""
    item = virtual_service("service-0", http=[{"route": ROUTE, **spec}])
    (problem,) = refusals(item, simple)
    assert (problem.path, problem.severity) == (path, Severity.ERROR)
    assert capability in problem.message
    assert "envoy or weft-proxy" in problem.remedy
    assert refusals(item, "envoy") == refusals(item, "weft-proxy") == ()


def test_policies_that_a_data_plane_cannot_follow_are_refused_at_every_level(simple: str) -> None:
    """Of the rule, of a port, of a subset."""
    sticky = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    item = destination_rule(
        "service-0",
        trafficPolicy={**sticky, "portLevelSettings": [{"port": {"number": 9080}, **sticky}]},
        subsets=[{"name": "v1", "trafficPolicy": sticky}],
    )
    assert [problem.path for problem in refusals(item, simple)] == [
        "spec.trafficPolicy.loadBalancer.consistentHash",
        "spec.trafficPolicy.portLevelSettings[0].loadBalancer.consistentHash",
        "spec.subsets[0].trafficPolicy.loadBalancer.consistentHash",
    ]


def test_an_unknown_data_plane_is_a_mistake() -> None:
    """Nobody is told that something unknown can do everything."""
    with pytest.raises(KeyError):
        able("nginx", Capability.MIRROR)


@pytest.mark.parametrize("data_plane", ["weft-proxy", "envoy"])
def test_grpc_is_http_with_http2_towards_the_endpoint(data_plane: str) -> None:
    """A port of gRPC has routes, a listener that reads requests, and HTTP/2 on both sides."""
    grpc = service("grpc", 1, ports=(ServicePort("grpc", 9000, Protocol.GRPC),))
    one = workload(grpc, 0, "10.244.0.7")
    snapshot = Snapshot(1, services={grpc.hostname: grpc}, workloads={(one.namespace, one.name): one})
    made = translate(snapshot, sidecar(one.name, data_plane=data_plane))
    assert "9000" in read(made, ROUTE_CONFIGURATION)
    assert "0.0.0.0_9000" in read(made, LISTENER)
    assert "240.240.0.2_9000" not in read(made, LISTENER)
    for name in ("outbound|9000||grpc.default.svc.cluster.local", "inbound|9000||"):
        assert "typedExtensionProtocolOptions" in read(made, CLUSTER)[name]
    (chain,) = read(made, LISTENER)["inbound|9000"]["filterChains"]
    assert chain["filters"][0]["name"].endswith("http_connection_manager")


def test_what_a_proxy_lacks_depends_on_where_it_stands(simple: str) -> None:
    """Only an Envoy whose agent relays is told to be relayed; what documents may be refused for is lacking."""
    relayed = sidecar(data_plane="envoy", outside_socket="/run/outside.sock")
    beside_any = {item.code for item in shortfalls(sidecar(data_plane="envoy"))}
    assert {item.code for item in shortfalls(relayed)} == beside_any | {"relayed"}
    assert "relayed" not in beside_any
    assert shortfalls(sidecar(data_plane="weft-proxy")) == ()
    lacks = [item.text for item in shortfalls(sidecar(data_plane=simple))]
    assert lacks == [f"cannot do {capability}" for capability in Capability]


def test_status_says_what_the_page_about_data_planes_says() -> None:
    """Each difference of the page has the code of what is lacking, or `-`; and each code has its difference."""
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").partition("## Differences")[2].splitlines()]
    told = {row[0].removeprefix("| "): row[-1].removesuffix(" |").strip("`") for row in rows if len(row) > 1}
    del told["|"], told["---"]
    relayed = sidecar(data_plane="envoy", outside_socket="/run/outside.sock")
    codes = [item.code for item in shortfalls(relayed)]
    assert len(set(codes)) == len(codes)
    assert {name: code for name, code in told.items() if code not in (*codes, NO_LACK)} == {}
    assert set(codes) - set(told.values()) == set()
