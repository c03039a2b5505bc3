"""What configuration points at and is not there."""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent

import pytest

from weft.api.parse import parse
from weft.api.references import dangling
from weft.model import (
    ConfigKey,
    Identity,
    Problem,
    Protocol,
    Service,
    ServicePort,
    Severity,
    Snapshot,
    Workload,
    WorkloadPort,
)


def warnings(view: Snapshot) -> list[Problem]:
    """Return what dangles, in the order of the objects."""
    return [problem for problems in dangling(view).values() for problem in problems]


def service(name: str, *numbers: int) -> Service:
    return Service(
        name,
        "default",
        f"{name}.default.svc.cluster.local",
        "240.240.0.9",
        tuple(ServicePort(f"http-{number}", number) for number in numbers),
        {"app": name},
    )


def workload(name: str, of: str = "", **labels: str) -> Workload:
    return Workload(
        name,
        "default",
        "10.244.0.9",
        Identity("cluster.local", "default", name),
        labels,
        (f"{of}.default.svc.cluster.local",) if of else (),
    )


SERVICES = (service("reviews", 9080), service("ratings", 9080), service("shop", 80, 443))
WORKLOADS = (
    workload("reviews-v1-0", "reviews", app="reviews", version="v1"),
    workload("reviews-v2-0", "reviews", app="reviews", version="v2"),
    workload("ingress-0", istio="ingressgateway"),
)
SUBSETS = """\
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
"""
GATEWAY = """\
kind: Gateway
metadata: {name: gw}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example.com, "*.example.org"]}]
"""


def snapshot(*documents: str) -> Snapshot:
    """Return a mesh with *documents*, each its own file `f0`, `f1`, ..., in order of age; line 1 is `kind`."""
    config = {}
    for index, text in enumerate(documents):
        group = "security" if "kind: PeerAuthentication" in text else "networking"
        version = "v1" if "kind: Service" in text else f"{group}.istio.io/v1"
        whole = f"{dedent(text)}\napiVersion: {version}\n"
        result = parse([(f"f{index}", whole)])
        assert not result.errors, [str(problem) for problem in result.errors]
        for item in result.objects:
            config[item.key] = replace(item, created=index)
    return Snapshot(
        config=config,
        services={item.hostname: item for item in SERVICES},
        workloads={(item.namespace, item.name): item for item in WORKLOADS},
    )


def brief(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(str(problem.origin), problem.code) for problem in problems]


def virtual_service(route: str, hosts: str = "[reviews]", name: str = "x", more: str = "") -> str:
    spec = f"{{hosts: {hosts}, http: [{{route: [{route}]}}]{more}}}"
    return f"kind: VirtualService\nmetadata: {{name: {name}}}\nspec: {spec}\n"


def test_what_is_complete_has_no_warnings() -> None:
    view = snapshot(
        SUBSETS,
        GATEWAY,
        virtual_service("{destination: {host: reviews, subset: v1, port: {number: 9080}}}"),
        virtual_service(
            "{destination: {host: shop.default.svc.cluster.local, port: {number: 443}}}",
            "[shop.example.com]",
            "y",
            ", gateways: [gw]",
        ),
        virtual_service("{destination: {host: ratings.default}}", "[ratings.default]", "z"),
    )
    assert warnings(view) == []


# documents, code, place, words; the last document is the one at fault
CASES = {
    "destination that nobody serves": (
        (virtual_service("{destination: {host: revews}}"),),
        "dangling-host",
        "f0:3:57",
        "Did you mean `reviews`? Services: ratings, reviews, shop.",
    ),
    "subset of a destination that nobody serves": (
        (virtual_service("{destination: {host: revews, subset: v1}}"),),
        "dangling-host",
        "f0:3:57",
        "Did you mean `reviews`?",
    ),
    "host outside the mesh that nobody serves": (
        (virtual_service("{destination: {host: api.example.com}}"),),
        "dangling-host",
        "f0:3:57",
        "answered with 503",
    ),
    "wildcard, which no service is called": (
        (virtual_service('{destination: {host: "*.default.svc.cluster.local"}}'),),
        "dangling-host",
        "f0:3:57",
        "answered with 503",
    ),
    "mirror that nobody serves": (
        (virtual_service("{destination: {host: reviews}}], mirror: {host: rating}, match: ["),),
        "dangling-host",
        "f0:3:84",
        "no copy is sent. Did you mean `ratings`?",
    ),
    "subset of a mirror without a DestinationRule": (
        (
            virtual_service(
                "{destination: {host: reviews}}], mirrors: [{destination: {host: ratings, subset: v1}}], match: ["
            ),
        ),
        "dangling-subset",
        "f0:3:115",
        "no copy is sent",
    ),
    "host of the rules themselves": (
        (virtual_service("{destination: {host: reviews}}", "[review]"),),
        "dangling-host",
        "f0:3:16",
        "no sidecar applies these rules",
    ),
    "subset without a DestinationRule": (
        (virtual_service("{destination: {host: reviews, subset: v1}}"),),
        "dangling-subset",
        "f0:3:72",
        "Apply a DestinationRule for `reviews`",
    ),
    "subset that the DestinationRule lacks": (
        (SUBSETS, virtual_service("{destination: {host: reviews, subset: v3}}")),
        "dangling-subset",
        "f1:3:72",
        "Subsets: v1, v2. They are in f0:3:23.",
    ),
    "port that the service lacks": (
        (virtual_service("{destination: {host: reviews, port: {number: 80}}}"),),
        "dangling-port",
        "f0:3:79",
        "It has 9080.",
    ),
    "port not chosen": (
        (virtual_service("{destination: {host: shop}}"),),
        "port-required",
        "f0:3:57",
        "has the ports 80, 443",
    ),
    "gateway that does not exist": (
        (GATEWAY, virtual_service("{destination: {host: reviews}}", "[shop.example.com]", "x", ", gateways: [gww]")),
        "dangling-gateway",
        "f1:3:97",
        "Did you mean `gw`?",
    ),
    "gateway of another namespace": (
        (
            GATEWAY,
            virtual_service("{destination: {host: reviews}}", "[shop.example.com]", "x", ", gateways: [prod/gw]"),
        ),
        "dangling-gateway",
        "f1:3:97",
        "no Gateway `prod/gw` exists",
    ),
    "host that the gateway does not answer for": (
        (GATEWAY, virtual_service("{destination: {host: reviews}}", "[example.net]", "x", ", gateways: [gw]")),
        "host-not-in-gateway",
        "f1:3:92",
        "It answers for shop.example.com, *.example.org (f0:5:3).",
    ),
    "rule for an unknown host": (
        ("kind: DestinationRule\nmetadata: {name: x}\nspec: {host: ratngs}\n",),
        "dangling-host",
        "f0:3:8",
        "Did you mean `ratings`?",
    ),
    "subset that no workload belongs to": (
        (
            "kind: DestinationRule\nmetadata: {name: x}\n"
            "spec: {host: reviews, subsets: [{name: v9, labels: {version: v9}}]}\n",
        ),
        "empty-subset",
        "f0:3:33",
        "They carry version: v1, version: v2.",
    ),
    "settings of a port that the service lacks": (
        (
            "kind: DestinationRule\nmetadata: {name: x}\n"
            "spec: {host: reviews, trafficPolicy: {portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]}}\n",
        ),
        "dangling-port",
        "f0:3:67",
        "It has 9080.",
    ),
    "selector that no gateway carries": (
        (GATEWAY.replace("ingressgateway", "ingress"),),
        "dangling-selector",
        "f0:4:3",
        "There is istio: ingressgateway.",
    ),
}


@pytest.mark.parametrize(("documents", "code", "place", "words"), CASES.values(), ids=CASES.keys())
def test_a_reference_that_leads_nowhere_warns(documents: tuple[str, ...], code: str, place: str, words: str) -> None:
    problems = warnings(snapshot(*documents))
    assert brief(problems) == [(place, code)]
    assert problems[0].severity is Severity.WARNING
    assert words in f"{problems[0].message} {problems[0].remedy}"


TO_V1 = "{destination: {host: reviews, subset: v1}}"
WILD = """\
kind: DestinationRule
metadata: {name: wild}
spec: {host: "*.default.svc.cluster.local", subsets: [{name: v1, labels: {version: v1}}]}
"""
BARE = "kind: DestinationRule\nmetadata: {name: bare}\nspec: {host: reviews, trafficPolicy: {tls: {mode: DISABLE}}}\n"


def elsewhere(rule: str, namespace: str) -> str:
    written = rule.replace("host: reviews", "host: reviews.default.svc.cluster.local")
    return written.replace("{name: ", f"{{namespace: {namespace}, name: ", 1)


def test_a_subset_in_a_rule_that_a_more_specific_one_hides_is_not_there() -> None:
    (problem,) = warnings(snapshot(WILD, BARE, virtual_service(TO_V1)))
    assert (str(problem.origin), problem.code) == ("f2:3:72", "dangling-subset")
    assert "not in force for calls from default: requests sent there are answered with 503." in problem.message
    assert problem.remedy == (
        "It is default/wild (f0:3:45). default/bare (f1:3:1) is in force: define the subset there."
    )


def test_a_subset_in_a_namespace_where_nobody_looks_is_not_there() -> None:
    """The rule itself is warned about, too."""
    hidden, dangles = sorted(warnings(snapshot(elsewhere(SUBSETS, "other"), virtual_service(TO_V1))), key=str)
    assert (str(hidden.origin), hidden.code) == ("f0:2:12", "no-effect")
    assert "where the service is (default), or in istio-system" in hidden.remedy
    assert (str(dangles.origin), dangles.code) == ("f1:3:72", "dangling-subset")
    assert "other/reviews (f0:3:49). Rules are looked up where the caller is" in dangles.remedy


@pytest.mark.parametrize(
    "rules",
    [
        (elsewhere(SUBSETS, "istio-system"),),
        (WILD, BARE.replace("host: reviews", 'host: "*.default.svc.cluster.local"')),
    ],
    ids=["of the root", "of a merged wildcard"],
)
def test_a_subset_in_a_rule_that_is_in_force_somewhere_here_is_there(rules: tuple[str, ...]) -> None:
    assert warnings(snapshot(*rules, virtual_service(TO_V1))) == []


def test_a_subset_is_looked_for_where_each_caller_looks() -> None:
    """The callers of a namespace with a rule of its own do not see the service's."""
    view = snapshot(SUBSETS, elsewhere(BARE, "front"), virtual_service(TO_V1))
    assert warnings(replace(view, config={key: item for key, item in view.config.items() if key.name != "bare"})) == []
    caller = replace(workload("web-0"), namespace="front")
    (problem,) = warnings(replace(view, workloads={**view.workloads, ("front", "web-0"): caller}))
    assert (problem.code, str(problem.origin)) == ("dangling-subset", "f2:3:72")
    assert "for calls from front" in problem.message


def test_a_subset_for_the_mesh_is_not_looked_for_where_only_a_gateway_is() -> None:
    """Istio's egress gateway: one VirtualService for both, whose rule for the mesh has the subset."""
    to_gateway = virtual_service(
        TO_V1 + "], match: [{gateways: [mesh]}", more=", gateways: [mesh, gw]", hosts="[shop.example.com]"
    )
    view = snapshot(elsewhere(SUBSETS, "front"), GATEWAY, to_gateway)
    workloads = {
        (namespace, each.name): replace(each, namespace=namespace)
        for each in view.workloads.values()
        for namespace in ["edge" if "istio" in each.labels else "front"]
    }
    assert [
        problem for problem in warnings(replace(view, workloads=workloads)) if problem.code == "dangling-subset"
    ] == []


def spoken(*protocols: Protocol, host: str = "reviews") -> dict[str, Service]:
    ports = tuple(ServicePort(f"p-{number}", number, protocol) for number, protocol in enumerate(protocols, start=9080))
    named = {item.hostname: item for item in SERVICES}
    return {**named, f"{host}.default.svc.cluster.local": replace(service(host), ports=ports)}


def rules_of(kind: str, more: str = "", hosts: str = "[reviews]") -> str:
    spec = f"{{hosts: {hosts}, {kind}: [{{route: [{{destination: {{host: ratings}}}}]}}]{more}}}"
    return f"kind: VirtualService\nmetadata: {{name: x}}\nspec: {spec}\n"


@pytest.mark.parametrize(
    ("kind", "protocols", "warned"),
    [
        ("http", (Protocol.HTTP,), False),
        ("http", (Protocol.TCP, Protocol.GRPC), False),
        ("http", (Protocol.TCP, Protocol.TLS), True),
        ("tcp", (Protocol.HTTP, Protocol.HTTP2), True),
        ("tcp", (Protocol.HTTP, Protocol.TCP), False),
        ("tcp", (), False),
    ],
)
def test_rules_for_what_no_port_speaks_warn(kind: str, protocols: tuple[Protocol, ...], warned: bool) -> None:
    problems = warnings(replace(snapshot(rules_of(kind)), services=spoken(*protocols)))
    assert [problem.code for problem in problems] == (["no-effect"] if warned else [])
    for problem in problems:
        assert (problem.path, str(problem.origin)) == (f"spec.{kind}", "f0:3:26")
        assert all(protocol in problem.remedy for protocol in protocols)


@pytest.mark.parametrize(
    "document",
    [
        rules_of("tcp", ", gateways: [mesh, gw]", "[reviews, shop.example.com]"),
        rules_of("tcp", "", "[reviews, api.example.com]"),
        rules_of("tcp", "", '["*.default.svc.cluster.local"]'),
    ],
    ids=["at a gateway too", "for a host outside the mesh", "for a wildcard"],
)
def test_rules_that_hold_elsewhere_or_for_others_do_not_warn(document: str) -> None:
    view = replace(snapshot(GATEWAY, document), services=spoken(Protocol.TCP, host="other"))
    assert [problem.code for problem in warnings(view) if problem.code == "no-effect"] == []


@pytest.mark.parametrize(
    ("hosts", "gateways", "port", "warned"),
    [
        ("[api.example.com]", "", 9080, True),
        ("[api.example.com]", "", 80, False),
        ("[reviews, api.example.com]", "", 9080, False),
        ('["*.example.com"]', ", gateways: [mesh, gw]", 9080, True),
        ("[shop.example.com]", ", gateways: [gw]", 9080, False),
        ('["*.default.svc.cluster.local"]', "", 9080, False),
    ],
)
def test_rules_for_names_outside_the_mesh_warn_where_no_sidecar_looks(
    hosts: str, gateways: str, port: int, warned: bool
) -> None:
    view = snapshot(GATEWAY, virtual_service("{destination: {host: reviews}}", hosts, more=gateways))
    offered = {each.hostname: each for each in (service("reviews", 9080), service("web", port))}
    problems = [problem for problem in warnings(replace(view, services=offered)) if problem.code == "no-effect"]
    assert [problem.path for problem in problems] == (["spec.hosts[0]"] if warned else [])


def test_a_port_of_which_nobody_says_what_it_speaks_does_not_warn() -> None:
    """Without workloads, a port of a Service document has the default's protocol, which says nothing yet."""
    document = "kind: Service\nmetadata: {name: reviews}\nspec: {selector: {app: reviews}, ports: [{port: 9080}]}\n"
    view = snapshot(document, rules_of("tcp"))
    assert [problem.code for problem in warnings(view)] == []
    serving = {
        key: replace(each, ports=(WorkloadPort(9080),) if each.services else ()) for key, each in view.workloads.items()
    }
    assert [problem.code for problem in warnings(replace(view, workloads=serving))] == ["no-effect"]


def test_two_virtual_services_for_one_host_warn_and_name_the_older() -> None:
    route = "{destination: {host: reviews}}"
    view = snapshot(
        virtual_service(route, "[reviews]", "one"),
        virtual_service(route, "[reviews.default.svc.cluster.local]", "two", ", gateways: [mesh]"),
    )
    problems = warnings(view)
    assert brief(problems) == [("f0:3:16", "same-host"), ("f1:3:16", "same-host")]
    for problem in problems:
        assert "the older: default/one." in problem.remedy
    assert "f1:3:8" in problems[0].message


@pytest.mark.parametrize("again", ["reviews.default", "reviews.default.svc.cluster.local"])
def test_one_host_in_two_spellings_is_warned_about(again: str) -> None:
    """Rules have no effect twice; short names are completed before it can be seen."""
    route = "{destination: {host: reviews}}"
    (problem,) = warnings(snapshot(virtual_service(route, f"[reviews, {again}]", "one")))
    assert brief([problem]) == [("f0:3:25", "duplicate-host")]
    assert f"`{again}` is the host that `reviews` (f0:3:16) names already." in problem.message


def test_two_virtual_services_for_one_host_at_different_gateways_do_not_meet() -> None:
    route = "{destination: {host: reviews}}"
    view = snapshot(
        GATEWAY,
        virtual_service(route, "[shop.example.com]", "one", ", gateways: [gw]"),
        virtual_service(route, "[shop.example.com]", "two"),
    )
    assert warnings(view) == []


def test_at_a_gateway_the_rules_are_joined() -> None:
    route = "{destination: {host: reviews}}"
    one = virtual_service(route, "[shop.example.com]", "one", ", gateways: [gw]")
    two = virtual_service(route, "[shop.example.com]", "two", ", gateways: [default/gw]")
    problems = warnings(snapshot(GATEWAY, one, two))
    assert [problem.code for problem in problems] == ["same-host", "same-host"]
    assert "A gateway joins them" in problems[0].remedy


def test_what_dangles_is_told_by_object() -> None:
    view = snapshot(
        virtual_service("{destination: {host: reviews}}", "[reviews]", "one"),
        virtual_service("{destination: {host: nobody}}", "[ratings]", "two"),
    )
    (key,) = dangling(view)
    assert key == ConfigKey("VirtualService", "default", "two")
    assert brief(dangling(view)[key]) == [("f1:3:57", "dangling-host")]


def test_tcp_routes_and_gateways_of_matches_are_looked_at() -> None:
    view = snapshot(
        "kind: VirtualService\nmetadata: {name: x}\nspec:\n  hosts: [reviews]\n"
        "  tcp: [{route: [{destination: {host: nobody}}]}]\n"
        "  http: [{match: [{gateways: [nowhere]}], route: [{destination: {host: reviews}}]}]\n"
    )
    problems = warnings(replace(view, services=spoken(Protocol.HTTP, Protocol.TCP)))
    assert [problem for problem in brief(problems) if problem[1].startswith("dangling")] == [
        ("f0:6:31", "dangling-gateway"),
        ("f0:5:33", "dangling-host"),
    ]


def peer_authentication(name: str, spec: str, namespace: str = "default") -> str:
    return f"kind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"


def test_a_policy_that_holds_for_nobody_warns() -> None:
    """A selector that selects nothing, a port that nobody binds, and the younger of two for the same workloads."""
    view = snapshot(
        peer_authentication("one", "{selector: {matchLabels: {app: reviews}}, portLevelMtls: {80: {mode: STRICT}}}"),
        peer_authentication("two", "{selector: {matchLabels: {app: review}}, mtls: {mode: STRICT}}"),
        peer_authentication("three", "{mtls: {mode: PERMISSIVE}}"),
        peer_authentication("four", "{mtls: {mode: STRICT}}"),
        peer_authentication("five", "{mtls: {mode: STRICT}}", "istio-system"),
        peer_authentication("six", "{mtls: {mode: STRICT}}", "elsewhere"),
    )
    found = warnings(view)
    assert brief(found) == [("f0:3:65", "dangling-port"), ("f1:3:8", "dangling-selector"), ("f3:3:1", "same-scope")]
    assert "app: reviews" in found[1].remedy
    assert "default/three (f2:3:1)" in found[2].message


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{selector: {app: reviews}, ports: [{port: 80, targetPort: 9080}]}", []),
        ("{selector: {app: reviews, version: v2}, ports: [{port: 9080}]}", []),
        ("{selector: {app: reviews, version: v9}, ports: [{port: 80}]}", [("f0:3:8", "dangling-selector")]),
        ("{selector: {app: reviews}, ports: [{port: 80}]}", [("f0:3:43", "dangling-port")]),
        ("{selector: {app: reviews}, ports: [{port: 80, targetPort: 81}]}", [("f0:3:53", "dangling-port")]),
        ("{selector: {istio: ingressgateway}, ports: [{port: 80, targetPort: 8080}]}", []),
    ],
)
def test_a_service_that_nobody_serves(spec: str, expected: list[tuple[str, str]]) -> None:
    view = snapshot(f"kind: Service\nmetadata: {{name: s}}\nspec: {spec}")
    ports = (WorkloadPort(9080),)
    serving = {key: replace(each, ports=ports if "app" in each.labels else ()) for key, each in view.workloads.items()}
    assert brief(warnings(replace(view, workloads=serving))) == expected
