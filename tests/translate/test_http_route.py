"""HTTPRoutes at gateways, asked of the proxy's own decision code; those of the mesh are in tests/behaviour."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from textwrap import dedent
from typing import Any

import pytest

from tests.translate.meshes import ingress, mesh, sidecar, virtual_service
from weft._native import Engine, validate
from weft.api.parse import parse
from weft.model import Proxy, Snapshot
from weft.translate.capabilities import DATA_PLANES, refusals
from weft.translate.translator import translate

GATEWAY = """
    apiVersion: gateway.networking.k8s.io/v1
    kind: Gateway
    metadata: {name: gw}
    spec:
      gatewayClassName: istio
      listeners: [{name: http, port: 80, protocol: HTTP}]
"""


def applied(snapshot: Snapshot, text: str, created: int = 1) -> Snapshot:
    result = parse([("f.yaml", dedent(text))])
    assert not result.errors, result.errors
    more = {item.key: replace(item, created=created) for item in result.objects}
    return replace(snapshot, config={**snapshot.config, **more})


def route(name: str, backend: str, *, namespace: str = "default", parents: str = "[{name: gw}]", **spec: str) -> str:
    more = "".join(f"      {key}: {value}\n" for key, value in spec.items())
    if "rules" not in spec:
        more += f"      rules: [{{backendRefs: [{{name: {backend}, port: 9080}}]}}]\n"
    return f"""
    ---
    apiVersion: gateway.networking.k8s.io/v1
    kind: HTTPRoute
    metadata: {{name: {name}, namespace: {namespace}}}
    spec:
      parentRefs: {parents}
{more}"""


def ask(
    snapshot: Snapshot, authority: str, path: str = "/", *, proxy: Proxy | None = None, port: int = 80
) -> dict[str, Any]:
    """What the gateway does with a request."""
    proxy = proxy or ingress()
    resources = [(item.type_url, item.name, item.value) for item in translate(snapshot, proxy)]
    assert not [fault for type_url, _, value in resources for fault in validate(type_url, value)]
    question = {
        "direction": "gateway",
        "destination": f"{proxy.address}:{port}",
        "method": "GET",
        "scheme": "http",
        "authority": authority,
        "path": path,
        "headers": [],
    }
    answer: dict[str, Any] = json.loads(Engine(resources).explain(json.dumps(question)))
    return answer


def served(answer: Mapping[str, Any]) -> str:
    """The service that gets the request, or the status of the answer."""
    if answer["outcome"] != "forward":
        return str(answer.get("status"))
    (cluster,) = answer["clusters"]
    return str(cluster["name"].split("|")[3].split(".")[0])


def test_a_gateway_forwards_by_the_routes_that_are_attached_to_it() -> None:
    snapshot = applied(mesh(2, rules=False), GATEWAY + route("r", "service-1", hostnames="[a.example.com]"))
    answer = ask(snapshot, "a.example.com")
    assert served(answer) == "service-1"
    assert answer["route"]["origin"] == "f.yaml:16:11"
    assert answer["route"]["rule"] == "spec.rules[0]"
    assert answer["route"]["metadata"]["kind"] == "HTTPRoute"
    assert served(ask(snapshot, "b.example.com")) == "404"


def test_codes_without_a_name_are_retried_too() -> None:
    """499 and 520 are in nobody's registry, and programs answer them; what is no code to translation would be a condition."""
    rules = "[{backendRefs: [{name: service-1, port: 9080}], retry: {attempts: 1, codes: [499, 503, 520]}}]"
    answer = ask(applied(mesh(2, rules=False), GATEWAY + route("r", "service-1", rules=rules)), "a.example.com")
    assert served(answer) == "service-1"
    assert answer["retry"]["on"].endswith(",retriable-status-codes")
    assert not set("0123456789") & set(answer["retry"]["on"])


@pytest.mark.parametrize(
    ("offered", "wanted", "asked", "expected"),
    [
        ("", "[]", "any.example.com", "service-1"),
        ("", "[a.example.com]", "b.example.com", "404"),
        ('"*.example.com"', "[]", "a.b.example.com", "service-1"),
        ('"*.example.com"', "[]", "example.com", "404"),
        ('"*.example.com"', "[a.example.com, other.com]", "a.example.com", "service-1"),
        ('"*.example.com"', "[a.example.com, other.com]", "other.com", "404"),
        ("a.example.com", '["*.example.com"]', "a.example.com", "service-1"),
        ("a.example.com", '["*.example.com"]', "b.example.com", "404"),
        ("a.example.com", "[other.com]", "a.example.com", "404"),
        ('"*.example.com"', '["*.com"]', "x.example.com", "service-1"),
        ('"*.example.com"', '["*.com"]', "x.com", "404"),
        ('"*.com"', '["*.example.com"]', "x.com", "404"),
    ],
)
def test_a_route_is_for_the_hosts_that_it_has_in_common_with_the_listener(
    offered: str, wanted: str, asked: str, expected: str
) -> None:
    hostname = f", hostname: {offered}" if offered else ""
    gateway = GATEWAY.replace("protocol: HTTP", f"protocol: HTTP{hostname}")
    assert (
        served(ask(applied(mesh(2, rules=False), gateway + route("r", "service-1", hostnames=wanted)), asked))
        == expected
    )


def test_a_host_belongs_to_the_most_specific_listener_alone() -> None:
    gateway = GATEWAY.replace(
        "[{name: http, port: 80, protocol: HTTP}]",
        '[{name: wide, port: 80, protocol: HTTP, hostname: "*.example.com"},'
        " {name: narrow, port: 80, protocol: HTTP, hostname: a.example.com},"
        " {name: all, port: 80, protocol: HTTP}]",
    )
    text = gateway + route("wide", "service-0", parents="[{name: gw, sectionName: wide}]")
    text += route(
        "narrow",
        "service-1",
        parents="[{name: gw, sectionName: narrow}]",
        rules="""[{
        matches: [{path: {value: /only}}], backendRefs: [{name: service-1, port: 9080}]}]""",
    )
    text += route("all", "service-2", parents="[{name: gw, sectionName: all}]")
    snapshot = applied(mesh(3, rules=False), text)
    assert served(ask(snapshot, "b.example.com")) == "service-0"
    assert served(ask(snapshot, "a.example.com", "/only/this")) == "service-1"
    assert served(ask(snapshot, "a.example.com", "/else")) == "404"
    assert served(ask(snapshot, "elsewhere.org")) == "service-2"


def test_rules_for_the_more_specific_hostname_come_first_and_the_others_follow() -> None:
    named = "[{matches: [{path: {value: /a}}], backendRefs: [{name: service-1, port: 9080}]}]"
    text = GATEWAY + route("all", "service-0") + route("named", "", hostnames="[a.example.com]", rules=named)
    text += route(
        "wild", "service-2", hostnames='["*.example.com"]', rules=named.replace("/a", "/a/b").replace("-1", "-2")
    )
    snapshot = applied(mesh(3, rules=False), text)
    assert served(ask(snapshot, "a.example.com", "/a/b")) == "service-1"
    assert served(ask(snapshot, "a.example.com", "/other")) == "service-0"
    assert served(ask(snapshot, "b.example.com", "/a/b")) == "service-2"
    assert served(ask(snapshot, "b.example.com", "/a")) == "service-0"


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ("{namespaces: {from: Same}}", "404"),
        ("{namespaces: {from: All}}", "service-1"),
        ("{namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: other}}}}", "service-1"),
        ("{namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: third}}}}", "404"),
        (
            "{namespaces: {from: Selector, selector: {matchExpressions:"
            " [{key: kubernetes.io/metadata.name, operator: NotIn, values: [third]}]}}}",
            "service-1",
        ),
        ("{namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}", "service-1"),
        ("{namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}", "404"),
    ],
)
def test_a_listener_says_which_routes_it_admits(allowed: str, expected: str) -> None:
    gateway = GATEWAY.replace("protocol: HTTP", f"protocol: HTTP, allowedRoutes: {allowed}")
    grant = """
    ---
    apiVersion: gateway.networking.k8s.io/v1
    kind: ReferenceGrant
    metadata: {name: g}
    spec:
      from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]
      to: [{group: "", kind: Service, name: service-1}]
    """
    rules = "[{backendRefs: [{name: service-1, namespace: default, port: 9080}]}]"
    text = gateway + grant + route("r", "", namespace="other", parents="[{name: gw, namespace: default}]", rules=rules)
    assert served(ask(applied(mesh(2, rules=False), text), "a")) == expected


@pytest.mark.parametrize(
    ("source", "target", "status"),
    [
        ("namespace: other", "kind: Service", None),
        ("namespace: other", "kind: Service, name: service-1", None),
        ("namespace: other", "kind: Service, name: service-0", "500"),
        ("namespace: third", "kind: Service", "500"),
    ],
)
def test_a_service_of_another_namespace_is_reached_only_with_a_grant(
    source: str, target: str, status: str | None
) -> None:
    gateway = GATEWAY.replace("protocol: HTTP", "protocol: HTTP, allowedRoutes: {namespaces: {from: All}}")
    grant = f"""
    ---
    apiVersion: gateway.networking.k8s.io/v1
    kind: ReferenceGrant
    metadata: {{name: g}}
    spec:
      from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, {source}}}]
      to: [{{group: "", {target}}}]
    """
    rules = "[{backendRefs: [{name: service-1, namespace: default, port: 9080}]}]"
    text = gateway + grant + route("r", "", namespace="other", parents="[{name: gw, namespace: default}]", rules=rules)
    assert served(ask(applied(mesh(2, rules=False), text), "a")) == (status or "service-1")


def test_the_older_route_wins_a_tie() -> None:
    snapshot = applied(mesh(2, rules=False), GATEWAY + route("z", "service-1"), created=1)
    snapshot = applied(snapshot, route("a", "service-0"), created=2)
    assert served(ask(snapshot, "x")) == "service-1"


@pytest.mark.parametrize(
    ("gateway", "labels", "is_mine"),
    [
        (GATEWAY, {}, True),
        (GATEWAY.replace("istio", "weft"), {}, True),
        (GATEWAY.replace("istio", "nginx"), {}, False),
        (GATEWAY, {"gateway.networking.k8s.io/gateway-name": "gw"}, True),
        (GATEWAY, {"gateway.networking.k8s.io/gateway-name": "another"}, False),
        (GATEWAY + "      addresses: [{type: Hostname, value: ingress}]\n", {}, True),
        (GATEWAY + "      addresses: [{type: Hostname, value: ingress.default.svc.cluster.local}]\n", {}, True),
        (GATEWAY + "      addresses: [{type: Hostname, value: another}]\n", {}, False),
        (
            GATEWAY.replace("istio", "mine") + "    ---\n    apiVersion: gateway.networking.k8s.io/v1\n"
            "    kind: GatewayClass\n    metadata: {name: mine}\n    spec: {controllerName: weft.dev/gateway-controller}\n",
            {},
            True,
        ),
    ],
)
def test_which_gateway_implements_a_gateway(gateway: str, labels: dict[str, str], is_mine: bool) -> None:
    snapshot = applied(mesh(2, rules=False), gateway + route("r", "service-1"))
    proxy = ingress()
    proxy = replace(proxy, labels={**proxy.labels, **labels})
    made = {item.name for item in translate(snapshot, proxy)}
    assert ("0.0.0.0_80" in made) is is_mine


def test_a_consumers_route_holds_for_its_own_namespace_in_place_of_the_owners() -> None:
    parents = '[{group: "", kind: Service, name: service-0, namespace: default}]'
    rules = "[{backendRefs: [{name: service-0, namespace: default, port: 9080}], timeouts: {request: 1s}}]"
    text = route("owner", "service-1", parents=parents)
    text += route("mine", "", namespace="other", parents=parents, rules=rules)
    snapshot = applied(mesh(2, rules=False), text)
    for namespace, expected in (
        ("default", "default.owner.0"),
        ("third", "default.owner.0"),
        ("other", "other.mine.0"),
    ):
        proxy = sidecar(namespace=namespace)
        resources = [(item.type_url, item.name, item.value) for item in translate(snapshot, proxy)]
        question = {
            "direction": "outbound",
            "destination": "240.240.0.1:9080",
            "method": "GET",
            "scheme": "http",
            "authority": "service-0.default:9080",
            "path": "/",
            "headers": [],
        }
        answer = json.loads(Engine(resources).explain(json.dumps(question)))
        assert answer["route"]["name"] == expected


@pytest.mark.parametrize(("route_age", "expected"), [(1, "HTTPRoute"), (9, "VirtualService")])
def test_of_a_virtual_service_and_an_http_route_the_older_one_rules_a_service(route_age: int, expected: str) -> None:
    item = virtual_service("service-0", created=5, http=[{"route": [{"destination": {"host": "service-1"}}]}])
    snapshot = mesh(2, rules=False)
    snapshot = replace(snapshot, config={item.key: item})
    parents = '[{group: "", kind: Service, name: service-0}]'
    snapshot = applied(snapshot, route("r", "service-1", parents=parents), created=route_age)
    resources = [(item.type_url, item.name, item.value) for item in translate(snapshot, sidecar())]
    question = {
        "direction": "outbound",
        "destination": "240.240.0.1:9080",
        "method": "GET",
        "scheme": "http",
        "authority": "service-0:9080",
        "path": "/",
        "headers": [],
    }
    answer = json.loads(Engine(resources).explain(json.dumps(question)))
    assert answer["route"]["metadata"]["kind"] == expected


def test_filters_that_a_data_plane_cannot_do_are_refused_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_PLANES, "simple", frozenset())
    rules = """[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: service-1, port: 9080}}},
        {type: CORS, cors: {allowOrigins: ["https://*.example.com"]}}], backendRefs: [{name: service-0, port: 9080}]}]"""
    (item,) = parse([("f.yaml", dedent(route("r", "", rules=rules)))]).objects
    assert [(str(problem.origin), problem.path) for problem in refusals(item, "simple")] == [
        ("f.yaml:8:22", "spec.rules[0].filters[0]"),
    ]
    assert refusals(item, "envoy") == refusals(item, "weft-proxy") == ()
