"""What the Gateway API's objects are told to have become, and where the author is warned."""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent
from typing import Any

import pytest

from tests.translate.meshes import ingress, mesh, virtual_service
from weft.api.conditions import Status, statuses
from weft.api.parse import parse
from weft.model import ConfigKey, Protocol, Proxy, Published, ServicePort, Snapshot

GATEWAY = """
    apiVersion: gateway.networking.k8s.io/v1
    kind: Gateway
    metadata: {name: gw}
    spec:
      gatewayClassName: istio
      listeners: [{name: http, port: 80, protocol: HTTP, hostname: "*.example.com"}]
    ---
"""

KEY = ConfigKey("HTTPRoute", "default", "r")
GATEWAY_KEY = ConfigKey("Gateway.gateway.networking.k8s.io", "default", "gw")


def route(parent: str, backend: str = "{name: service-1, port: 9080}", more: str = "") -> str:
    return f"""
    apiVersion: gateway.networking.k8s.io/v1
    kind: HTTPRoute
    metadata: {{name: r}}
    spec:
      {more}
      parentRefs: [{parent}]
      rules: [{{backendRefs: [{backend}]}}]
    """


def asked(text: str, *proxies: Proxy, snapshot: Snapshot | None = None) -> dict[ConfigKey, Status]:
    result = parse([("f", dedent(text))])
    assert not result.errors, result.errors
    snapshot = snapshot or mesh(2, rules=False)
    config = {**snapshot.config, **{item.key: item for item in result.objects}}
    return statuses(replace(snapshot, config=config), proxies)


def conditions(status: Status, *place: Any) -> dict[str, tuple[str, str]]:
    found = status.manifest(1, "now")
    for step in place:
        found = found[step]
    return {item["type"]: (item["status"], item["reason"]) for item in found["conditions"]}


@pytest.mark.parametrize(
    ("parent", "more", "reason", "words"),
    [
        ("{name: gw}", "", None, ""),
        ("{name: gw, sectionName: http, port: 80}", "hostnames: [a.example.com]", None, ""),
        ("{name: nowhere}", "", "NoMatchingParent", "there is no Gateway `default/nowhere`. Gateways: default/gw."),
        ("{name: gw, sectionName: https}", "", "NoMatchingParent", "has no listener called `https`"),
        ("{name: gw, port: 81}", "", "NoMatchingParent", "has no listener on port 81"),
        ("{name: gw}", "hostnames: [other.org]", "NoMatchingListenerHostname", "(*.example.com)"),
        ('{group: "", kind: Service, name: service-0}', "", None, ""),
        ('{group: "", kind: Service, name: service-0, port: 9080}', "", None, ""),
        ('{group: "", kind: Service, name: service-9}', "", "NoMatchingParent", "no service `default/service-9`"),
        ('{group: "", kind: Service, name: service-0, port: 1}', "", "NoMatchingParent", "it has 9080 (http)"),
    ],
)
def test_whether_a_parent_accepts_a_route(parent: str, more: str, reason: str | None, words: str) -> None:
    status = asked(GATEWAY + route(parent, more=more), ingress())[KEY]
    accepted = conditions(status, "parents", 0)["Accepted"]
    assert accepted == (("False", reason) if reason else ("True", "Accepted"))
    assert [(problem.path, problem.code) for problem in status.problems] == (
        [("spec.parentRefs[0]", "not-accepted")] if reason else []
    )
    if reason:
        assert words in str(status.problems[0])


def test_a_route_of_another_namespace_is_not_admitted_unless_the_listener_says_so() -> None:
    text = GATEWAY + route("{name: gw, namespace: default}").replace("name: r}", "name: r, namespace: other}")
    status = asked(text, ingress())[ConfigKey("HTTPRoute", "other", "r")]
    assert conditions(status, "parents", 0)["Accepted"] == ("False", "NotAllowedByListeners")


@pytest.mark.parametrize(
    ("backend", "reason", "path"),
    [
        ("{name: service-9, port: 9080}", "BackendNotFound", "name"),
        ("{name: service-1, port: 80}", "BackendNotFound", "port"),
        ("{name: service-1, namespace: other, port: 80}", "RefNotPermitted", "namespace"),
    ],
)
def test_references_that_do_not_resolve(backend: str, reason: str, path: str) -> None:
    status = asked(GATEWAY + route("{name: gw}", backend), ingress())[KEY]
    assert conditions(status, "parents", 0) == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("False", reason),
    }
    (problem,) = status.problems
    assert problem.path == f"spec.rules[0].backendRefs[0].{path}"
    assert "answered with 500" in problem.message


def test_a_gateway_tells_who_implements_it_and_what_is_attached() -> None:
    proxy = ingress(published=(Published(80, "127.0.0.1", 8080),))
    status = asked(GATEWAY + route("{name: gw}"), proxy)[GATEWAY_KEY]
    found = status.manifest(3, "now")
    assert conditions(status) == {"Accepted": ("True", "Accepted"), "Programmed": ("True", "Programmed")}
    assert found["addresses"] == [{"type": "IPAddress", "value": "127.0.0.1"}]
    assert found["listeners"][0]["attachedRoutes"] == 1
    assert found["listeners"][0]["supportedKinds"] == [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]
    assert found["conditions"][0]["observedGeneration"] == 3
    assert status.problems == ()


def test_a_gateway_that_nobody_implements_is_told_so() -> None:
    status = asked(GATEWAY)[GATEWAY_KEY]
    assert conditions(status)["Programmed"] == ("False", "NoResources")
    assert [problem.code for problem in status.problems] == ["dangling-gateway"]


def test_a_port_that_is_not_published_is_warned_about() -> None:
    proxy = ingress(published=(Published(8080, "127.0.0.1", 8080),))
    (problem,) = asked(GATEWAY, proxy)[GATEWAY_KEY].problems
    assert (problem.code, problem.path) == ("not-published", "spec.listeners[0].port")


def test_a_gateway_of_a_foreign_class_has_no_status_and_its_routes_are_not_accepted() -> None:
    found = asked(GATEWAY.replace("istio", "nginx") + route("{name: gw}"), ingress())
    assert GATEWAY_KEY not in found
    assert conditions(found[KEY], "parents", 0)["Accepted"] == ("False", "NoMatchingParent")


@pytest.mark.parametrize(("controller", "expected"), [("istio.io/gateway-controller", "True"), ("a.b/c", "False")])
def test_a_class_is_accepted_if_its_controller_is_one_that_weft_stands_for(controller: str, expected: str) -> None:
    text = f"""
    apiVersion: gateway.networking.k8s.io/v1
    kind: GatewayClass
    metadata: {{name: mine}}
    spec: {{controllerName: {controller}}}
    """
    (status,) = asked(text).values()
    assert conditions(status)["Accepted"][0] == expected


def test_a_virtual_service_for_the_same_service_is_warned_about_with_its_place() -> None:
    item = virtual_service("service-0", created=5, http=[{"route": [{"destination": {"host": "service-1"}}]}])
    snapshot = replace(mesh(2, rules=False), config={item.key: item})
    (problem,) = asked(route('{group: "", kind: Service, name: service-0}'), snapshot=snapshot)[KEY].problems
    assert (problem.code, problem.path) == ("same-host", "spec.parentRefs[0]")
    assert "HTTPRoute default/r" in problem.remedy


ISTIO = """
    apiVersion: networking.istio.io/v1
    kind: Gateway
    metadata: {{name: istio}}
    spec:
      selector: {{istio: ingressgateway}}
      servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: ["*"]}}]
    ---
    apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: v}}
    spec: {{hosts: [a.example.com], gateways: [istio], http: [{{route: [{{destination: {{host: service-1}}}}]}}]}}
    ---
"""


@pytest.mark.parametrize(("port", "codes"), [(80, ["same-host"]), (8080, [])])
def test_a_virtual_service_for_the_same_host_at_a_gateway_is_warned_about(port: int, codes: list[str]) -> None:
    text = ISTIO.format(port=port) + GATEWAY + route("{name: gw}", more="hostnames: [a.example.com]")
    for names in ("[istio]", "[default/istio]", "[istio.default]", "[istio, istio.default.svc.cluster.local]"):
        named = text.replace("[istio]", names)
        assert [problem.code for problem in asked(named, ingress())[KEY].problems] == codes


def test_a_port_that_does_not_speak_http_accepts_no_route() -> None:
    snapshot = mesh(2, rules=False)
    (name, service) = next(iter(snapshot.services.items()))
    plain = replace(service, ports=(ServicePort("db", 9080, Protocol.TCP),))
    snapshot = replace(snapshot, services={**snapshot.services, name: plain})
    status = asked(route('{group: "", kind: Service, name: service-0}'), snapshot=snapshot)[KEY]
    assert conditions(status, "parents", 0)["Accepted"] == ("False", "NoMatchingParent")


def test_the_time_of_a_condition_that_stays_is_kept() -> None:
    status = asked(GATEWAY + route("{name: gw}"), ingress())[KEY]
    before = status.manifest(1, "then")
    other = asked(GATEWAY + route("{name: gw}", "{name: nobody, port: 1}"), ingress())[KEY].manifest(2, "now", before)
    times = {item["type"]: item["lastTransitionTime"] for item in other["parents"][0]["conditions"]}
    assert times == {"Accepted": "then", "ResolvedRefs": "now"}
