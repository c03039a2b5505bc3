"""The registry gives names and addresses that last, and publishes nothing before it answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.api.parse import parse
from weft.errors import WeftError
from weft.model import (
    ConfigObject,
    Interception,
    LocalCaller,
    Protocol,
    ProxyKind,
    Published,
    ServicePort,
    WorkloadPort,
    loopback,
)
from weft.registry import Declared, Programs, Registration, RegistrationRefused
from weft.registry.addresses import Addresses, ipv6_of

HTTP_9080 = (WorkloadPort(9080, Protocol.HTTP),)
REVIEWS = "reviews.default.svc.cluster.local"


def test_replicas_get_the_lowest_free_number_and_a_released_name_its_address_again() -> None:
    programs = Programs()
    keys = [programs.register(Registration("reviews", ports=HTTP_9080)) for _ in range(3)]
    assert [name for _, name in keys] == ["reviews-v1-0", "reviews-v1-1", "reviews-v1-2"]
    address = programs.programs[keys[1]].address
    programs.release(keys[1])
    again = programs.register(Registration("reviews", ports=HTTP_9080))
    assert again == keys[1]
    assert programs.programs[again].address == address


def test_a_name_is_unique_in_the_mesh_and_not_in_its_namespace_only() -> None:
    """Files have the name alone: two agents would write into each other's."""
    programs = Programs()
    first = programs.register(Registration("reviews", ports=HTTP_9080))
    assert programs.register(Registration("reviews", namespace="other", ports=HTTP_9080)) == ("other", "reviews-v1-1")
    with pytest.raises(RegistrationRefused, match="'reviews-v1-0' is running already, in namespace 'default'"):
        programs.register(Registration("reviews", namespace="other", name="reviews-v1-0", ports=HTTP_9080))
    programs.release(first)
    programs.register(Registration("reviews", namespace="other", name="reviews-v1-0", ports=HTTP_9080))


def test_a_service_keeps_its_address_while_the_store_lives() -> None:
    programs = Programs(service_addresses={REVIEWS: "240.240.3.7"})
    programs.register(Registration("ratings", ports=HTTP_9080))
    programs.register(Registration("reviews", ports=HTTP_9080))
    assert programs.view().services[REVIEWS].address == "240.240.3.7"


def test_a_declared_service_is_there_without_a_workload_and_its_ports_meet_those_of_programs() -> None:
    declared = Declared("reviews", ports=(ServicePort("http", 80, Protocol.HTTP, target_port=9080),))
    programs = Programs(services=[declared])
    assert programs.view().services[REVIEWS].ports == declared.ports
    programs.register(Registration("reviews", ports=(*HTTP_9080, WorkloadPort(9090, Protocol.GRPC))))
    assert [(port.number, port.target) for port in programs.view().services[REVIEWS].ports] == [
        (80, 9080),
        (9090, 9090),
    ]


def test_an_undeclared_service_lives_as_long_as_its_last_workload() -> None:
    programs = Programs()
    keys = [programs.register(Registration("cart", ports=HTTP_9080)) for _ in range(2)]
    programs.release(keys[0])
    assert list(programs.view().services) == ["cart.default.svc.cluster.local"]
    programs.release(keys[1])
    assert programs.view().services == {}


def test_a_program_is_told_which_ports_of_its_service_it_does_not_serve() -> None:
    declared = Declared("reviews", ports=(ServicePort("http", 80, Protocol.HTTP, 9080),))
    programs = Programs(services=[declared])
    serving = programs.register(Registration("reviews", ports=HTTP_9080))
    assert programs.lacking(serving) == []
    other = programs.register(Registration("reviews", ports=(WorkloadPort(9081, Protocol.HTTP),)))
    assert (programs.lacking(other), programs.lacking(serving)) == ([80], [9081])
    assert programs.lacking(programs.register(Registration("reviews", client_only=True))) == []


def test_a_client_is_no_service_and_serves_none() -> None:
    programs = Programs()
    key = programs.register(Registration("curl", client_only=True))
    view = programs.view()
    assert view.services == {}
    assert view.workloads[key].services == ()
    assert list(view.proxies) == [key]


@pytest.mark.parametrize(
    ("proxy_ready", "listening", "leaving", "ready"),
    [
        (False, {}, False, False),
        (True, {}, False, False),
        (False, {9080: "127.0.0.1"}, False, False),
        (True, {9080: "127.0.0.1"}, False, True),
        (True, {9081: "127.0.0.1"}, False, False),
        (True, {9080: "127.0.0.1"}, True, False),
    ],
)
def test_ready_needs_proxy_and_every_port(
    proxy_ready: bool, listening: dict[int, str], leaving: bool, ready: bool
) -> None:
    programs = Programs()
    key = programs.register(Registration("reviews", ports=HTTP_9080))
    programs.report(key, proxy_ready=proxy_ready, leaving=leaving)
    for port, address in listening.items():
        programs.listening(key, port, address)
    assert programs.view().workloads[key].ready is ready


def test_a_gateway_is_ready_with_its_proxy_and_carries_the_label_of_istios_samples() -> None:
    published = (Published(8080, "127.0.0.1", 8080),)
    programs = Programs(host_namespace_path="/run/ns/host")
    key = programs.register(Registration("ingress", kind=ProxyKind.GATEWAY, published=published))
    programs.report(key, proxy_ready=True)
    proxy = programs.view().proxies[key]
    assert programs.view().workloads[key].ready
    assert programs.view().services == {}
    assert proxy.labels["istio"] == "ingressgateway"
    assert proxy.node_id.startswith("router~")
    assert (proxy.published, proxy.host_namespace_path) == (published, "/run/ns/host")


CALLER = {"uid": 1000, "credential_sha256": "0" * 64}


def explicit_mesh() -> Programs:
    return Programs(
        mesh_cidr="127.77.0.0/16",
        service_cidr=loopback.SERVICE_CIDR,
        interception=Interception.EXPLICIT,
        host_namespace_path="/run/ns/host",
        namespace_path=lambda workload: f"/run/ns/{workload}",
    )


def test_in_explicit_mode_each_workload_has_addresses_of_the_loopback() -> None:
    programs = explicit_mesh()
    ports = [{"number": 9080}]
    first, second = (
        programs.register(Registration.from_json({"service": name, "ports": ports, "local_caller": CALLER}))
        for name in ("reviews", "ratings")
    )
    programs.listening(first, 9080, "127.77.1.254", 23017)
    view = programs.view()
    assert [view.workloads[key].address for key in (first, second)] == ["127.77.1.1", "127.77.2.1"]
    ratings = view.services["ratings.default.svc.cluster.local"]
    assert ratings.address == "240.240.0.3"
    # The same service has another address for each caller: it is what tells their proxies apart.
    assert [programs.reached_at(key, ratings) for key in (first, second)] == ["127.77.1.3", "127.77.2.3"]
    proxy = view.proxies[first]
    assert (proxy.interception, proxy.namespace_path) == (Interception.EXPLICIT, "")
    assert proxy.local_caller == LocalCaller(1000, "0" * 64)
    assert programs.programs[first].address6 == ""
    port = view.workloads[first].ports[0]
    assert (port.number, port.listening, port.program_port) == (9080, "127.77.1.254", 23017)


def test_an_agent_of_another_mode_is_refused() -> None:
    with pytest.raises(RegistrationRefused, match="explicit mode"):
        explicit_mesh().register(Registration("curl"))
    with pytest.raises(RegistrationRefused, match="tproxy mode"):
        Programs().register(Registration.from_json({"service": "curl", "local_caller": CALLER}))


def test_what_did_not_change_is_the_same_object_in_the_next_view() -> None:
    programs = Programs()
    first = programs.register(Registration("reviews", ports=HTTP_9080))
    before = programs.view()
    programs.register(Registration("ratings", ports=HTTP_9080))
    after = programs.view()
    assert after.workloads[first] is before.workloads[first]
    assert after.services[REVIEWS] is before.services[REVIEWS]
    assert after != before


def test_a_view_costs_nothing_while_nothing_changes() -> None:
    programs = Programs(services=[Declared("ratings", ports=(ServicePort("http", 9080, Protocol.HTTP),))])
    assert REVIEWS not in programs.view().services
    programs.register(Registration("reviews", ports=HTTP_9080))
    view = programs.view()
    assert REVIEWS in view.services
    assert programs.view() is view
    assert programs.view(is_trial=True) is view


def test_what_agents_report_makes_no_proxy_anew() -> None:
    """Its paths are dear to make, and a mesh that starts is asked for its view with each thing that is reported."""
    made: list[str] = []

    def path(workload: str) -> str:
        made.append(workload)
        return f"/ns/{workload}"

    programs = Programs(namespace_path=path)
    key = programs.register(Registration("reviews", ports=HTTP_9080))
    proxy = programs.view().proxies[key]
    programs.report(key, proxy_ready=True)
    programs.listening(key, 9080, "::1")
    assert programs.view().proxies[key] is proxy
    assert made == [key[1]]
    programs.register(Registration("reviews", name=key[1], version="v2", ports=HTTP_9080))
    assert programs.view().proxies[key].labels["version"] == "v2"
    programs.release(key)
    assert programs.view().proxies == {}


def test_an_agent_that_comes_back_keeps_what_it_had_reported() -> None:
    programs = Programs()
    key = programs.register(Registration("reviews", ports=HTTP_9080))
    programs.report(key, proxy_ready=True)
    programs.listening(key, 9080, "::1")
    before = programs.view()
    again = programs.register(Registration("reviews", name="reviews-v1-0", ports=HTTP_9080))
    assert again == key
    assert programs.view() == before


@pytest.mark.parametrize("name", ["", "Reviews", "a_b", "-a", "a.b", "x" * 64, "naïve"])
def test_a_name_that_cannot_be_part_of_a_host_is_refused(name: str) -> None:
    with pytest.raises(RegistrationRefused, match="cannot be the name of a service"):
        Programs().register(Registration(name))


@pytest.mark.parametrize(
    ("twice", "what"),
    [
        (
            {"ports": (WorkloadPort(8080, Protocol.HTTP), WorkloadPort(8080, Protocol.TCP))},
            "8080 twice among its `ports`",
        ),
        ({"host_ports": (5432, 6379, 5432)}, "5432 twice among its `host_ports`"),
    ],
)
def test_a_port_that_is_named_twice_is_refused(twice: dict[str, Any], what: str) -> None:
    """What its proxy is told would have two listeners of one name."""
    programs = Programs()
    with pytest.raises(RegistrationRefused, match=what):
        programs.register(Registration("cart", **twice))
    assert programs.programs == {}


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=60))
def test_equal_names_have_equal_addresses_and_different_ones_different(names: list[str]) -> None:
    addresses = Addresses("10.244.0.0/16", {}, reserved=["10.244.0.53"])
    given_out = {name: addresses.assign(name) for name in names}
    assert len(set(given_out.values())) == len(given_out)
    assert all(addresses.assign(name) == address for name, address in given_out.items())
    assert not {"10.244.0.0", "10.244.0.1", "10.244.0.53"} & set(given_out.values())


def test_when_all_addresses_are_given_an_idle_name_loses_its_own() -> None:
    addresses = Addresses("10.0.0.0/29", {})  # .2 to .6 can be given
    names = [f"n{number}" for number in range(5)]
    for name in names:
        addresses.assign(name)
    assert addresses.assign("new", in_use=[name for name in names if name != "n3"]) == "10.0.0.5"
    with pytest.raises(WeftError, match=r"Every address of 10\.0\.0\.0/29 is in use"):
        addresses.assign("more", in_use=[*names, "new"])


def test_an_address_of_another_range_is_forgotten() -> None:
    spaced = Addresses("127.77.0.0/16", {"b": "127.77.3.1", "other": "127.77.3.4"}, spacing=256)
    assert [spaced.assign(name) for name in "abc"] == ["127.77.1.1", "127.77.3.1", "127.77.2.1"]
    assert Addresses("10.99.0.0/16", {"a": "10.244.0.9"}).assign("a") == "10.99.0.2"


def test_the_ipv6_address_follows_the_ipv4_one() -> None:
    assert ipv6_of("10.244.0.7") == "fd77:ef7::7"
    assert ipv6_of("10.244.1.5") == "fd77:ef7::105"


def test_only_a_proxy_that_the_edge_cannot_serve_is_given_the_agents_relay() -> None:
    programs = Programs(
        host_namespace_path="/run/ns/host",
        outside_socket=lambda name: f"/run/{name}/outside.sock",
        published_socket=lambda name, port: f"/run/{name}/{port}",
    )
    published = (Published(80, "127.0.0.1", 8080),)
    for name, data_plane in (("ours", "weft-proxy"), ("envoys", "envoy")):
        programs.register(
            Registration("door", name=name, kind=ProxyKind.GATEWAY, published=published, data_plane=data_plane)
        )
    proxies = {name: proxy for (_, name), proxy in programs.view().proxies.items()}
    assert (proxies["ours"].outside_socket, dict(proxies["ours"].published_sockets)) == ("", {})
    assert proxies["envoys"].outside_socket == "/run/envoys/outside.sock"
    assert dict(proxies["envoys"].published_sockets) == {80: "/run/envoys/80"}
    # In explicit mode it is on the host itself, and must be one that knows who calls.
    with pytest.raises(RegistrationRefused, match="only weft-proxy"):
        explicit_mesh().register(Registration("door", kind=ProxyKind.GATEWAY, data_plane="envoy"))


def service_document(spec: str, name: str = "reviews-v1", namespace: str = "default") -> ConfigObject:
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    result = parse([("f", text)])
    assert not result.problems
    return result.objects[0]


def test_a_service_by_document_is_served_by_whom_it_selects() -> None:
    programs = Programs()
    one = programs.register(Registration("reviews", ports=HTTP_9080))
    two = programs.register(Registration("reviews", version="v2", ports=HTTP_9080))
    programs.register(Registration("reviews", namespace="other", ports=HTTP_9080))
    document = service_document("{selector: {app: reviews, version: v1}, ports: [{port: 80, targetPort: 9080}]}")
    name = "reviews-v1.default.svc.cluster.local"
    assert name not in programs.view().services
    asked = programs.view([document])
    assert asked.services[name].address.startswith("240.240.")
    assert [(port.number, port.target, port.protocol) for port in asked.services[name].ports] == [
        (80, 9080, Protocol.HTTP)
    ]
    assert asked.workloads[one].services == (name, REVIEWS) or asked.workloads[one].services == (REVIEWS, name)
    assert asked.workloads[two].services == (REVIEWS,)
    assert name not in programs.view().services, "to ask is not to adopt"
    programs.adopt([document])
    assert programs.view() == asked
    programs.adopt([])
    assert name not in programs.view().services


def test_a_document_takes_the_place_of_the_service_that_programs_make() -> None:
    programs = Programs()
    one = programs.register(Registration("reviews", ports=HTTP_9080))
    two = programs.register(Registration("reviews", version="v2", ports=HTTP_9080))
    view = programs.view([service_document("{selector: {version: v2}, ports: [{port: 81, name: tcp-x}]}", "reviews")])
    assert [(port.number, port.protocol) for port in view.services[REVIEWS].ports] == [(81, Protocol.TCP)]
    assert view.services[REVIEWS].address == programs.view().services[REVIEWS].address
    assert view.workloads[one].services == ()
    assert view.workloads[two].services == (REVIEWS,)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("{port: 80, name: http}", Protocol.HTTP),
        ("{port: 80, name: http2-x}", Protocol.HTTP2),
        ("{port: 80, name: grpc-web}", Protocol.GRPC),
        ("{port: 80, name: mysql}", Protocol.TCP),
        ("{port: 80, name: http, appProtocol: grpc}", Protocol.GRPC),
        ("{port: 80, appProtocol: kubernetes.io/h2c}", Protocol.HTTP2),
        ("{port: 80, name: web, targetPort: 9000}", Protocol.GRPC),
        ("{port: 80, name: web, targetPort: 9001}", Protocol.HTTP),
    ],
)
def test_what_a_port_of_a_document_speaks(port: str, expected: Protocol) -> None:
    programs = Programs()
    programs.register(Registration("reviews", ports=(WorkloadPort(9000, Protocol.GRPC),)))
    view = programs.view([service_document(f"{{selector: {{app: reviews}}, ports: [{port}]}}")])
    assert view.services["reviews-v1.default.svc.cluster.local"].ports[0].protocol is expected


def test_a_client_serves_no_document() -> None:
    programs = Programs()
    key = programs.register(Registration("curl", client_only=True))
    view = programs.view([service_document("{selector: {app: curl}, ports: [{port: 80}]}")])
    assert view.workloads[key].services == ()


def test_a_trial_gives_no_address_away() -> None:
    """A dry run of services that nobody applies takes none, and above all none from a name that had it before."""
    programs = Programs(service_cidr="240.240.0.0/29", service_addresses={REVIEWS: "240.240.0.2"})
    documents = [service_document("{selector: {app: x}, ports: [{port: 80}]}", f"s{number}") for number in range(5)]
    tried = programs.view(documents, is_trial=True)
    assert len({service.address for service in tried.services.values()}) == 5
    programs.register(Registration("cart", ports=HTTP_9080))
    programs.register(Registration("reviews", ports=HTTP_9080))
    found = programs.view().services
    assert found[REVIEWS].address == "240.240.0.2"
    assert found["cart.default.svc.cluster.local"].address == "240.240.0.3"
