"""Properties of translation as a whole, and what each kind of proxy is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.translate.meshes import (
    applied,
    destination_rule,
    gateway,
    ingress,
    mesh,
    service,
    sidecar,
    virtual_service,
    workload,
)
from tests.translate.readable import read
from weft._native import Engine
from weft.api.networking import REDIRECT_CODES
from weft.model import ConfigObject, Interception, LocalCaller, Protocol, Proxy, Published, ServicePort, Snapshot
from weft.translate import http_route
from weft.translate import index as tables
from weft.translate.check import check
from weft.translate.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    LISTENER,
    ROUTE_CONFIGURATION,
    Difference,
    affected,
)
from weft.translate.translator import Translator, translate

SUFFIX = ".default.svc.cluster.local"
HOSTS = ["service-0", "service-1", "service-2", "*", "*.default.svc.cluster.local", "gone", "out.example"]
SPELLINGS = [
    f"{host}{rest}" for host in ("service-0", "service-1") for rest in ("", ".default", ".default.svc", SUFFIX)
]
GATEWAYS = [
    [],
    ["front"],
    ["front", "mesh"],
    ["mesh", "front", "mesh", "default/front"],
    ["front.default"],
    ["front.default.svc.cluster.local", "front", "mesh"],
]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    rule: dict[str, Any] = {"route": [{"destination": {"host": draw(st.sampled_from([*HOSTS[:3], "gone"]))}}]}
    if draw(st.booleans()):
        rule["route"][0]["destination"]["subset"] = draw(st.sampled_from(["v1", "v9"]))
    if draw(st.booleans()):
        rule["timeout"] = f"{draw(st.integers(1, 9))}s"
    if draw(st.booleans()):
        rule["headers"] = {"request": {"set": draw(st.dictionaries(st.sampled_from("abc"), st.just("x")))}}
    condition = draw(
        st.sampled_from(
            [
                None,
                {"uri": {"prefix": "/a"}},
                {"headers": {"b": {"exact": "1"}, "a": {"regex": ".*"}}},
                {"sourceLabels": {"app": "service-1"}},
                {"port": 9080},
                {"gateways": ["front"]},
                {"gateways": ["front.default", "mesh"]},
            ]
        )
    )
    return rule if condition is None else rule | {"match": [condition]}


@st.composite
def documents(draw: st.DrawFn) -> list[ConfigObject]:
    made = []
    for index in range(draw(st.integers(0, 4))):
        hosts = draw(st.lists(st.sampled_from(HOSTS), min_size=1, max_size=2, unique=True))
        hosts += draw(st.lists(st.sampled_from(SPELLINGS), max_size=2))
        bound = draw(st.sampled_from(GATEWAYS))
        http = draw(st.lists(rules(), min_size=1, max_size=3))
        made.append(virtual_service(f"vs-{index}", created=index % 2, hosts=hosts, gateways=bound, http=http))
    for index in range(draw(st.integers(0, 2))):
        spec: dict[str, Any] = {"subsets": [{"name": "v1", "labels": {"version": "v1"}}]}
        if draw(st.booleans()):
            spec["trafficPolicy"] = {"loadBalancer": {"simple": "RANDOM"}}
        made.append(destination_rule(f"dr-{index}", created=index, host=draw(st.sampled_from(HOSTS[:5])), **spec))
    if draw(st.booleans()):
        server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
        made.append(gateway("front", selector={"istio": "ingressgateway"}, servers=[server]))
    return made


PROXIES = (
    sidecar(),
    sidecar("service-1-v1-0", labels={"app": "service-1"}, access_log_path="/tmp/access.log"),
    sidecar(namespace="other", data_plane="envoy"),
    ingress(published=(Published(8080, "127.0.0.1", 18080),)),
)


@settings(max_examples=60, deadline=None)
@given(documents(), st.randoms(use_true_random=False))
def test_the_order_of_objects_means_nothing(items: list[ConfigObject], random: Any) -> None:
    """The same objects in any order give the same bytes, and nothing in them waits for what is not there."""
    base = mesh(3, rules=False)
    snapshot = applied(base, *items)
    config, services, workloads = (list(part.items()) for part in (snapshot.config, base.services, base.workloads))
    for part in (config, services, workloads):
        random.shuffle(part)
    shuffled = Snapshot(2, config=dict(config), services=dict(services), workloads=dict(workloads))
    for proxy in PROXIES:
        made = translate(snapshot, proxy)
        assert made == translate(shuffled, proxy)
        assert check(made) == ()
        assert list(made) == sorted(made, key=lambda item: (item.type_url, item.name))
        assert len({(item.type_url, item.name) for item in made}) == len(made)


@settings(max_examples=60, deadline=None)
@given(st.lists(documents(), min_size=2, max_size=4))
def test_memory_changes_nothing(changes: list[list[ConfigObject]]) -> None:
    """One translator that sees snapshots come and go says what a new one says."""
    translator, base = Translator(), mesh(3, replicas=2, rules=False)
    for turn, items in enumerate(changes):
        workloads = dict(base.workloads)
        if turn % 2:
            key = ("default", "service-0-v1-1")
            workloads[key] = replace(workloads[key], ready=False)
        snapshot = applied(replace(base, workloads=workloads), *items)
        for proxy in PROXIES:
            assert translator.translate(snapshot, proxy) == translate(snapshot, proxy)


@pytest.mark.parametrize(
    "spec",
    [
        {"hosts": ["service-0", "service-0.default.svc.cluster.local"]},
        {"hosts": ["service-0", "service-0.default"]},
        {"hosts": ["gone", "gone.default.svc.cluster.local"]},
        {"hosts": ["*.example", "*.example"]},
        {"hosts": ["service-0"], "gateways": ["mesh", "mesh"]},
        {"hosts": ["service-0"], "gateways": ["front", "default/front", "front.default"]},
    ],
)
def test_what_is_named_twice_comes_once_and_goes(spec: dict[str, Any]) -> None:
    """A host or a gateway in two spellings: the fault is in force while the rule is applied, and not after it."""
    abort = {"abort": {"httpStatus": 418, "percentage": {"value": 100}}}
    rule = virtual_service("twice", http=[{"fault": abort, "route": to("service-0")}], **spec)
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    base = applied(mesh(1, rules=False), gateway("front", selector={"istio": "ingressgateway"}, servers=[server]))
    translator = Translator()
    for snapshot in (base, applied(base, rule), base, applied(base, rule), base):
        for proxy in PROXIES:
            assert translator.translate(snapshot, proxy) == translate(snapshot, proxy)


def test_an_index_that_failed_to_turn_reads_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever broke half-way: the next translation is right, of the snapshot that failed and of the one before."""
    base = mesh(2, rules=False)
    first = virtual_service("service-0", http=[{"timeout": "3s", "route": to("service-0")}])
    second = virtual_service("service-1", http=[{"timeout": "4s", "route": to("service-1")}])
    whole, read = tables._of_document, []

    def broken(snapshot: Snapshot, item: ConfigObject | None) -> Any:
        read.append(item)
        if item is second:
            raise KeyError("of the test")
        return whole(snapshot, item)

    for after in (base, applied(base, first), applied(base, first, second)):
        translator = Translator()
        translator.translate(base, sidecar())
        with monkeypatch.context() as patch:
            patch.setattr(tables, "_of_document", broken)
            with pytest.raises(KeyError):
                translator.translate(applied(base, first, second), sidecar())
        assert first in read
        assert translator.translate(after, sidecar()) == translate(after, sidecar())


@pytest.mark.parametrize("name", ["front", "default/front", "front.default", "front.default.svc.cluster.local"])
def test_a_gateway_is_known_by_its_old_names_too(name: str) -> None:
    """`name.namespace` as of old binds, and matches; Istio resolves it so."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    rule = {"match": [{"gateways": [name]}], "route": to("service-0")}
    snapshot = applied(
        mesh(1, rules=False),
        gateway("front", selector={"istio": "ingressgateway"}, servers=[server]),
        virtual_service("x", hosts=["x.example"], gateways=[name], http=[rule]),
    )
    assert clusters_of(table(snapshot, ingress(), "http.8080")["x.example:8080"]) == ["service-0"]


@pytest.mark.parametrize("code", [0, *REDIRECT_CODES])
def test_each_code_of_a_redirect_that_is_accepted_has_a_name(code: int) -> None:
    """Of both APIs; one without would fail all that is translated with it."""
    redirect = {"uri": "/x", "redirectCode": code}
    snapshot = applied(mesh(1, rules=False), virtual_service("service-0", http=[{"redirect": redirect}]))
    (route,) = table(snapshot)["service-0.default.svc.cluster.local:9080"]["routes"]
    assert route["redirect"].get("responseCode", "MOVED_PERMANENTLY").isupper()
    assert set(http_route.REDIRECT_CODES) == set(REDIRECT_CODES)


@settings(max_examples=40, deadline=None)
@given(documents())
def test_virtual_hosts_never_share_a_domain(items: list[ConfigObject]) -> None:
    """Envoy refuses a whole table for one domain that stands twice."""
    for proxy in PROXIES:
        made = translate(applied(mesh(3, rules=False), *items), proxy)
        for table in read(made, ROUTE_CONFIGURATION).values():
            domains = [domain.lower() for host in table["virtualHosts"] for domain in host["domains"]]
            assert len(domains) == len(set(domains))


def table(snapshot: Snapshot, proxy: Proxy | None = None, name: str = "9080") -> dict[str, Any]:
    """Return the virtual hosts of a route configuration by name."""
    made = read(translate(snapshot, proxy or sidecar()), ROUTE_CONFIGURATION)[name]
    return {host["name"]: host for host in made["virtualHosts"]}


def clusters_of(host: dict[str, Any]) -> list[str]:
    return [route["route"]["cluster"].split("|")[-1].split(".")[0] for route in host["routes"]]


def to(host: str) -> list[dict[str, Any]]:
    return [{"destination": {"host": host}}]


def test_the_oldest_of_two_virtual_services_for_a_host_rules_in_the_mesh() -> None:
    """The younger one is ignored, as in Istio."""
    younger = virtual_service("b", created=2, hosts=["service-0"], http=[{"route": to("service-2")}])
    older = virtual_service("a", created=1, hosts=["service-0"], http=[{"route": to("service-1")}])
    host = table(applied(mesh(3, rules=False), younger, older))["service-0.default.svc.cluster.local:9080"]
    assert clusters_of(host) == ["service-1"]


def test_rules_of_two_virtual_services_for_a_host_are_merged_at_a_gateway() -> None:
    """Oldest first, and what matches everything stands last."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    snapshot = applied(
        mesh(3, rules=False),
        gateway("front", selector={"istio": "ingressgateway"}, servers=[server]),
        virtual_service("old", created=1, hosts=["x.example"], gateways=["front"], http=[{"route": to("service-0")}]),
        virtual_service(
            "new",
            created=2,
            hosts=["x.example"],
            gateways=["front"],
            http=[{"match": [{"uri": {"prefix": "/a"}}], "route": to("service-1")}],
        ),
    )
    assert clusters_of(table(snapshot, ingress(), "http.8080")["x.example:8080"]) == ["service-1", "service-0"]


def test_rules_of_a_virtual_service_for_two_gateways_on_one_port_all_hold() -> None:
    """What is for either stands once, what matches everything last."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    http = [
        {"match": [{"uri": {"prefix": "/both"}}], "route": to("service-2")},
        {"match": [{"gateways": ["one"]}], "route": to("service-0")},
        {"match": [{"uri": {"prefix": "/two"}, "gateways": ["two"]}], "route": to("service-1")},
    ]
    snapshot = applied(
        mesh(3, rules=False),
        gateway("one", created=1, selector={"istio": "ingressgateway"}, servers=[server]),
        gateway("two", created=2, selector={"istio": "ingressgateway"}, servers=[server]),
        virtual_service("x", hosts=["x.example"], gateways=["one", "two"], http=http),
    )
    found = clusters_of(table(snapshot, ingress(), "http.8080")["x.example:8080"])
    assert found == ["service-2", "service-1", "service-0"]


def test_the_policy_of_the_port_that_is_meant_holds_where_another_is_called() -> None:
    """A destination without a port means the service's only one; what its port's settings stick by holds there."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    balancer = {"consistentHash": {"httpHeaderName": "x-user"}}
    settings = [{"port": {"number": 9080}, "loadBalancer": balancer}]
    snapshot = applied(
        mesh(1, rules=False),
        gateway("front", selector={"istio": "ingressgateway"}, servers=[server]),
        virtual_service("old", hosts=["x.example"], gateways=["front"], http=[{"route": to("service-0")}]),
        destination_rule("service-0", trafficPolicy={"portLevelSettings": settings}),
    )
    (route,) = table(snapshot, ingress(), "http.8080")["x.example:8080"]["routes"]
    assert route["route"]["cluster"] == "outbound|9080||service-0.default.svc.cluster.local"
    assert [policy["header"]["headerName"] for policy in route["route"]["hashPolicy"]] == ["x-user"]


def test_an_exact_host_hides_wildcards_and_the_longest_wildcard_the_rest() -> None:
    """The most specific VirtualService rules a service, whatever its age."""
    snapshot = applied(
        mesh(3, rules=False),
        virtual_service("all", created=1, hosts=["*"], http=[{"route": to("service-0")}]),
        virtual_service("some", created=2, hosts=["*.svc.cluster.local"], http=[{"route": to("service-1")}]),
        virtual_service("one", created=3, hosts=["service-2"], http=[{"route": to("service-2")}]),
    )
    hosts = table(snapshot)
    found = [clusters_of(hosts[f"service-{number}.default.svc.cluster.local:9080"]) for number in range(3)]
    assert found == [["service-1"], ["service-1"], ["service-2"]]


def test_a_service_whose_rules_are_all_for_others_has_its_default_route() -> None:
    """Rules for another caller, port or gateway leave the proxy what it would have without them."""
    match = [{"sourceLabels": {"app": "else"}}, {"port": 1}, {"gateways": ["front"]}, {"sourceNamespace": "far"}]
    match += [{**one, "gateways": ["mesh"]} for one in match if "gateways" not in one]
    item = virtual_service("service-0", http=[{"match": match, "route": to("service-1")}])
    host = table(applied(mesh(2, rules=False), item))["service-0.default.svc.cluster.local:9080"]
    assert clusters_of(host) == ["service-0"]
    assert host["routes"][0]["name"] == "default"


def test_rules_for_this_caller_hold() -> None:
    """sourceLabels, sourceNamespace and `mesh` as a gateway are decided for the proxy that asks."""
    match = [{"sourceLabels": {"app": "service-0"}, "sourceNamespace": "default", "port": 9080}]
    item = virtual_service("service-1", http=[{"match": match, "route": to("service-0")}, {"route": to("service-1")}])
    host = table(applied(mesh(2, rules=False), item))["service-1.default.svc.cluster.local:9080"]
    assert clusters_of(host) == ["service-0"]


def test_short_names_mean_the_callers_namespace() -> None:
    """`service-0` alone is not a name for it elsewhere; `service-0.default` is."""
    host = table(mesh(1), sidecar(namespace="other"))["service-0.default.svc.cluster.local:9080"]
    assert "service-0" not in host["domains"]
    assert {"service-0.default", "service-0.default.svc", "240.240.0.1"} <= set(host["domains"])


def test_a_service_without_ready_workloads_has_an_empty_assignment() -> None:
    """Not ready, or nothing found listening: no endpoint, and callers get 503 UH."""
    snapshot = mesh(1, replicas=2)
    (first, one), (second, two) = snapshot.workloads.items()
    silent = replace(one, ports=tuple(replace(port, listening=None) for port in one.ports))
    after = replace(snapshot, workloads={first: silent, second: replace(two, ready=False)})
    (assignment,) = read(translate(after, sidecar()), CLUSTER_LOAD_ASSIGNMENT).values()
    assert assignment == {"clusterName": "outbound|9080||service-0.default.svc.cluster.local"}


def test_endpoints_without_a_sidecar_are_called_in_plain_text() -> None:
    """Only meshed workloads carry the mark that chooses mutual TLS."""
    snapshot = mesh(1, replicas=2)
    key = ("default", "service-0-v1-0")
    after = replace(snapshot, workloads={**snapshot.workloads, key: replace(snapshot.workloads[key], meshed=False)})
    (assignment,) = read(translate(after, sidecar()), CLUSTER_LOAD_ASSIGNMENT).values()
    marks = [
        "envoy.transport_socket_match" in endpoint["metadata"]["filterMetadata"]
        for endpoint in assignment["endpoints"][0]["lbEndpoints"]
    ]
    assert marks == [False, True]


def test_a_client_only_workload_has_no_inbound_side() -> None:
    """No declared port, no inbound listener and no inbound cluster."""
    snapshot = mesh(1)
    client = replace(workload(service("client", 9), 0, "10.244.3.3"), services=(), ports=())
    after = replace(snapshot, workloads={**snapshot.workloads, ("default", client.name): client})
    names = {item.name for item in translate(after, sidecar(client.name))}
    assert not any("inbound" in name for name in names)
    assert "virtualOutbound" in names


def test_a_sidecar_in_its_own_network_binds_and_dials_there() -> None:
    """Program, host and mesh: each socket is in the network where the other end is."""
    made = translate(mesh(1), sidecar(host_ports=(5432,)))
    listeners, clusters = read(made, LISTENER), read(made, CLUSTER)
    program, host = "/run/weft/ns/service-0-v1-0", "/run/weft/ns/host"

    def network(address: dict[str, Any]) -> str:
        return str(address["socketAddress"].get("networkNamespaceFilepath", ""))

    assert network(listeners["virtualOutbound"]["address"]) == program
    assert network(listeners["host|5432"]["address"]) == program
    assert network(listeners["inbound|9080"]["address"]) == ""
    assert listeners["0.0.0.0_9080"]["bindToPort"] is False

    def dialled_in(name: str) -> str:
        bound = clusters[name].get("upstreamBindConfig", {}).get("sourceAddress", {})
        return str(bound.get("networkNamespaceFilepath", ""))

    assert dialled_in("inbound|9080||") == program
    assert dialled_in("PassthroughCluster") == host
    assert dialled_in("host|5432||") == host
    assert dialled_in("MeshPassthroughCluster") == ""
    assert dialled_in("outbound|9080||service-0.default.svc.cluster.local") == ""


def test_a_port_that_no_service_declares_is_refused_and_never_leaves_the_mesh() -> None:
    """By the proxy's own code: a service's address on another port, and other bytes than HTTP on a declared one."""
    offered = service("service-0", 0)
    made = translate(mesh(1), sidecar())
    engine = Engine([(item.type_url, item.name, item.value) for item in made])

    def cluster(address: str, port: int, **more: Any) -> str:
        request = {"direction": "outbound", "destination": f"{address}:{port}", "method": "GET", "scheme": "http"}
        request |= {"path": "/", "authority": f"{offered.name}:{port}", "headers": [], **more}
        return str(json.loads(engine.explain(json.dumps(request)))["cluster"])

    assert cluster(offered.address, 9080) == f"outbound|9080||{offered.hostname}"
    assert cluster(offered.address, 9081) == "BlackHoleCluster"
    assert cluster(offered.address, 9080, alpn=["no HTTP"]) == "BlackHoleCluster"
    assert cluster("240.240.255.254", 25) == "BlackHoleCluster"
    assert cluster("10.244.0.77", 9081) == cluster("[fd77:ef7::4d]", 9081) == "MeshPassthroughCluster"
    assert cluster("[fd77:ef7::4d]", 9080, alpn=["no HTTP"]) == "MeshPassthroughCluster"
    assert cluster("93.184.216.34", 9080, alpn=["no HTTP"]) == "PassthroughCluster"
    assert cluster("93.184.216.34", 9081) == "PassthroughCluster"
    assert cluster("[2001:db8::34]", 9081) == "PassthroughCluster"


@pytest.mark.parametrize(("listening", "source"), [("::1", "::"), ("127.0.0.1", "0.0.0.0"), (None, "0.0.0.0")])
def test_the_program_is_called_where_it_listens(listening: str | None, source: str) -> None:
    """The inbound cluster's endpoint is the address that was found, IPv6 too; loopback until then."""
    snapshot = mesh(1)
    ((key, one),) = snapshot.workloads.items()
    ports = tuple(replace(port, listening=listening) for port in one.ports)
    made = translate(replace(snapshot, workloads={key: replace(one, ports=ports)}), sidecar())
    cluster = read(made, CLUSTER)["inbound|9080||"]
    (endpoint,) = cluster["loadAssignment"]["endpoints"][0]["lbEndpoints"]
    assert endpoint["endpoint"]["address"]["socketAddress"]["address"] == (listening or "127.0.0.1")
    assert cluster["upstreamBindConfig"]["sourceAddress"]["address"] == source


def test_without_interception_each_port_is_bound_where_it_was_asked_for() -> None:
    """EXPLICIT: HTTP and TCP ports get their addresses; a port without one gets no listener."""
    web = service("web", 1, ports=(ServicePort("http", 80), ServicePort("more", 81)))
    database = service("database", 2, ports=(ServicePort("tcp", 3306, Protocol.TCP),))
    snapshot = Snapshot(1, services={item.hostname: item for item in (web, database)})
    proxy = sidecar(
        interception=Interception.EXPLICIT,
        namespace_path="",
        host_namespace_path="",
        outbound_addresses={80: ("127.0.0.1", 18080), 3306: ("127.0.0.2", 13306)},
    )
    made = translate(snapshot, proxy)
    bound = {
        name: (item["address"]["socketAddress"]["address"], item["address"]["socketAddress"]["portValue"])
        for name, item in read(made, LISTENER).items()
    }
    assert bound == {"0.0.0.0_80": ("127.0.0.1", 18080), "240.240.0.3_3306": ("127.0.0.2", 13306)}
    assert all("bindToPort" not in item for item in read(made, LISTENER).values())
    assert b"/run/weft" not in b"".join(item.value for item in made)


def explicit_mode() -> tuple[Snapshot, Proxy]:
    """A mesh in explicit mode as one of its sidecars is told of it: an HTTP service and a database."""
    web = service("web", 1, ports=(ServicePort("http", 80), ServicePort("more", 9080)))
    database = service("database", 2, ports=(ServicePort("tcp", 3306, Protocol.TCP),))
    snapshot = Snapshot(1, services={item.hostname: item for item in (web, database)})
    return snapshot, sidecar(
        address="127.77.3.1",
        interception=Interception.EXPLICIT,
        namespace_path="",
        host_namespace_path="/run/weft/ns/host",
        local_caller=LocalCaller(1000, "ab" * 32),
    )


def test_in_explicit_mode_a_program_has_an_address_for_each_service_and_a_proxy_for_the_rest() -> None:
    """All are bound by the edge, and nobody but the program's user is let in."""
    made = translate(*explicit_mode())
    bound = {
        name: (at["address"], at["portValue"], at.get("networkNamespaceFilepath"))
        for name, item in read(made, LISTENER).items()
        if (at := item["address"]["socketAddress"]) and item.get("bindToPort", True)
    }
    edge = "/run/weft/ns/host"
    assert bound == {
        "http_proxy": ("127.77.3.1", 15001, edge),
        "127.77.3.2_80": ("127.77.3.2", 80, edge),
        "127.77.3.2_9080": ("127.77.3.2", 9080, edge),
        "127.77.3.3_3306": ("127.77.3.3", 3306, edge),
    }
    for name in bound:
        (check,) = read(made, LISTENER)[name]["listenerFilters"]
        assert check["typedConfig"]["uids"] == [1000], name
    # Nothing is dialled by the edge: the proxy is on the host itself.
    outside = read(made, CLUSTER)["PassthroughCluster"]["upstreamBindConfig"]["sourceAddress"]
    assert outside == {"address": "0.0.0.0", "portValue": 0}


def test_in_explicit_mode_each_request_shows_that_it_is_the_programs() -> None:
    """A service's listener takes its own hosts only; the HTTP proxy takes any, with the credential."""
    listeners = read(translate(*explicit_mode()), LISTENER)

    def check(name: str) -> dict[str, Any]:
        manager = listeners[name]["filterChains"][0]["filters"][0]["typedConfig"]
        first = manager["httpFilters"][0]
        assert first["name"] == "weft.filters.http.local_caller"
        assert first["typedConfig"]["credentialSha256"] == "ab" * 32
        return dict(first["typedConfig"])

    own = check("127.77.3.2_80")
    assert {"web", "web.default", "web.default.svc.cluster.local", "127.77.3.2"} <= set(own["authorities"])
    assert "127.77.3.3" not in own["authorities"]
    assert "forwardProxy" not in own
    proxy = check("http_proxy")
    tunnels = {item["authority"]: item["listener"] for item in proxy["tunnels"]}
    assert (proxy["forwardProxy"], tunnels["database:3306"], tunnels["*"]) == (
        True,
        "127.77.3.3_3306",
        "virtualOutbound",
    )
    assert listeners["virtualOutbound"]["bindToPort"] is False


def test_the_http_proxy_tells_services_apart_by_the_port_in_host() -> None:
    """Port 80 need not be written; what no service has goes where the URL says."""
    made = translate(*explicit_mode())
    configuration = read(made, ROUTE_CONFIGURATION)["http_proxy"]
    assert "ignorePortInHostMatching" not in configuration
    domains = {host["name"]: host["domains"] for host in configuration["virtualHosts"]}
    name = "web.default.svc.cluster.local"
    assert {"web", "web:80", "127.77.3.2:80"} <= set(domains[f"{name}:80"])
    assert {"web:9080", "127.77.3.2:9080"} <= set(domains[f"{name}:9080"])
    assert "web" not in domains[f"{name}:9080"]
    assert domains["allow_any"] == ["*"]
    (last,) = [host for host in configuration["virtualHosts"] if host["name"] == "allow_any"]
    assert last["routes"][0]["route"]["cluster"] == "PassthroughCluster"


def test_in_explicit_mode_a_program_is_called_where_it_was_found_and_nowhere_before() -> None:
    """Who listens at the declared port of the loopback may be somebody else's program."""
    _, proxy = explicit_mode()
    snapshot = mesh(1)
    ((key, one),) = snapshot.workloads.items()
    made = {}
    for listening, bound in ((None, 0), ("127.77.3.254", 23017)):
        ports = tuple(replace(port, listening=listening, bound=bound) for port in one.ports)
        placed = replace(snapshot, workloads={key: replace(one, ports=ports)})
        made[listening] = read(translate(placed, replace(proxy, workload=key[1])), CLUSTER)["inbound|9080||"]
    assert "endpoints" not in made[None]["loadAssignment"]
    (endpoint,) = made["127.77.3.254"]["loadAssignment"]["endpoints"][0]["lbEndpoints"]
    address = endpoint["endpoint"]["address"]["socketAddress"]
    assert (address["address"], address["portValue"]) == ("127.77.3.254", 23017)


def test_inbound_is_strict_for_meshed_workloads_only() -> None:
    """A meshed workload's port demands a client certificate of the trust domain; another's speaks plain text."""
    snapshot = replace(mesh(1), trust_domain="example.org")
    (chain,) = read(translate(snapshot, sidecar()), LISTENER)["inbound|9080"]["filterChains"]
    context = chain["transportSocket"]["typedConfig"]
    validation = context["commonTlsContext"]["combinedValidationContext"]["defaultValidationContext"]
    assert context["requireClientCertificate"] is True
    assert validation["matchTypedSubjectAltNames"] == [
        {"sanType": "URI", "matcher": {"prefix": "spiffe://example.org/"}}
    ]
    ((key, one),) = snapshot.workloads.items()
    plain = replace(snapshot, workloads={key: replace(one, meshed=False)})
    (chain,) = read(translate(plain, sidecar()), LISTENER)["inbound|9080"]["filterChains"]
    assert "transportSocket" not in chain


def test_a_gateway_without_rules_answers_404() -> None:
    """Its table has one virtual host for everything, without routes."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    snapshot = applied(mesh(1), gateway("front", selector={"istio": "ingressgateway"}, servers=[server]))
    (name, host), *rest = table(snapshot, ingress(), "http.8080").items()
    assert (name, host["domains"], host.get("routes", []), rest) == ("blackhole:8080", ["*"], [], [])
    assert not read(translate(snapshot, ingress(labels={"istio": "other"})), LISTENER)


def test_a_gateway_publishes_its_ports_on_the_host() -> None:
    """Beside its address in the mesh it listens where the edge does."""
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    snapshot = applied(mesh(1), gateway("front", selector={"istio": "ingressgateway"}, servers=[server]))
    proxy = ingress(published=(Published(8080, "127.0.0.1", 80), Published(9999, "127.0.0.1", 9999)))
    (listener,) = read(translate(snapshot, proxy), LISTENER).values()
    assert listener["address"]["socketAddress"] == {"address": "10.244.9.9", "portValue": 8080}
    (published,) = listener["additionalAddresses"]
    assert published["address"]["socketAddress"] == {
        "address": "127.0.0.1",
        "portValue": 80,
        "networkNamespaceFilepath": "/run/weft/ns/host",
    }


def test_rules_for_names_outside_the_mesh_hold_on_port_80() -> None:
    """A VirtualService for a host that no service has rules calls to it on port 80, and on no other port."""
    web = service("web", 1, ports=(ServicePort("http", 80), ServicePort("more", 81)))
    snapshot = applied(
        Snapshot(1, services={web.hostname: web}),
        virtual_service("out", hosts=["out.example"], http=[{"route": to("web")}]),
    )
    assert "out.example:80" in table(snapshot, name="80")
    assert "out.example:81" not in table(snapshot, name="81")


def test_affected_names_what_differs() -> None:
    """Added, changed and removed names by type; equal sets differ in nothing."""
    before = translate(mesh(2), sidecar())
    assert affected(before, before) == {}
    snapshot = applied(mesh(2), destination_rule("service-1", subsets=[{"name": "v1"}]))
    differences = affected(before, translate(snapshot, sidecar()))
    name = "outbound|9080|{}|service-1.default.svc.cluster.local"
    assert differences[CLUSTER] == Difference(added=(name.format("v1"),), changed=(name.format(""),))
    assert affected(translate(snapshot, sidecar()), before)[CLUSTER_LOAD_ASSIGNMENT] == Difference(
        removed=(name.format("v1"),)
    )
