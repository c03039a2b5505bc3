"""`weft._native.Engine` and `validate`: questions in JSON, answers from the proxy's own decision code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401 - registers the type for Any
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.dubbo_proxy.v3 import dubbo_proxy_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2  # noqa: F401 - as well
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from weft._native import Engine, validate

FAULT = "envoy.filters.http.fault"


def resource(message: Message, name: str) -> tuple[str, str, bytes]:
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}", name, message.SerializeToString(deterministic=True)


def cluster(name: str, *ports: int) -> tuple[str, str, bytes]:
    """A static cluster with an endpoint on 127.0.0.1 for each port."""
    endpoints = [
        {"endpoint": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": port}}}} for port in ports
    ]
    assignment = {"clusterName": name, "endpoints": [{"lbEndpoints": endpoints}]}
    return resource(
        json_format.ParseDict({"name": name, "type": "STATIC", "loadAssignment": assignment}, cluster_pb2.Cluster()),
        name,
    )


def routes(*rules: dict[str, Any]) -> tuple[str, str, bytes]:
    host = {"name": "reviews", "domains": ["reviews", "reviews:9080"], "routes": list(rules)}
    return resource(
        json_format.ParseDict({"name": "9080", "virtualHosts": [host]}, route_pb2.RouteConfiguration()), "9080"
    )


def listeners(**manager_fields: Any) -> list[tuple[str, str, bytes]]:
    """A capturing listener for everything, and the HTTP listener of port 9080."""
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix="s", **manager_fields)
    manager.rds.route_config_name = "9080"
    for name, config in ((FAULT, fault_pb2.HTTPFault()), ("envoy.filters.http.router", router_pb2.Router())):
        manager.http_filters.add(name=name).typed_config.Pack(config)
    made = []
    for name, port, network_filter in (
        ("virtualOutbound", 15001, tcp_proxy_pb2.TcpProxy(stat_prefix="p", cluster="Passthrough")),
        ("0.0.0.0_9080", 9080, manager),
    ):
        message = listener_pb2.Listener(name=name, traffic_direction="OUTBOUND")
        message.address.socket_address.address = "0.0.0.0"
        message.address.socket_address.port_value = port
        message.filter_chains.add().filters.add(name="f").typed_config.Pack(network_filter)
        capturing = name == "virtualOutbound"
        message.bind_to_port.value = capturing
        message.use_original_dst.value = capturing
        made.append(resource(message, name))
    return made


def fault(**content: Any) -> dict[str, Any]:
    return {FAULT: {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault", **content}}


def ask(engine: Engine, *, how: str = "explain", **question: Any) -> dict[str, Any]:
    asked = {"direction": "outbound", "destination": "240.240.0.3:9080", "authority": "reviews:9080", **question}
    answer: dict[str, Any] = json.loads(getattr(engine, how)(json.dumps(asked)))
    return answer


SPLIT = {
    "name": "split",
    "match": {"prefix": "/"},
    "route": {"weightedClusters": {"clusters": [{"name": "v1", "weight": 80}, {"name": "v2", "weight": 20}]}},
    "metadata": {"filterMetadata": {"weft": {"origin": "a.yaml:7:3", "rule": "spec.http[1]"}}},
}


def test_every_destination_is_shown_with_its_share() -> None:
    jason = {
        "name": "jason",
        "match": {"prefix": "/", "headers": [{"name": "end-user", "stringMatch": {"exact": "jason"}}]},
        "route": {"cluster": "v2"},
    }
    engine = Engine([*listeners(), routes(jason, SPLIT), cluster("v1", 1001), cluster("v2", 1002, 1003)])
    answer = ask(engine, path="/reviews/0")
    assert answer["outcome"] == "forward"
    assert answer["listener"] == "0.0.0.0_9080"
    assert (answer["route"]["name"], answer["route"]["origin"]) == ("split", "a.yaml:7:3")
    assert [(item["name"], item["share"]) for item in answer["clusters"]] == [("v1", 0.8), ("v2", 0.2)]
    assert "cluster" not in answer
    assert [item["address"] for item in answer["endpoints"]] == ["127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"]
    assert answer["timeout_ms"] == 15000
    passed_over = [item["reason"] for item in answer["considered"] if "route" in item and not item["matched"]]
    assert passed_over == ["wanted: header end-user equal to `jason`; the request has no such header"]


def test_a_decision_needs_the_dice_that_matter() -> None:
    engine = Engine([*listeners(), routes(SPLIT), cluster("v1", 1), cluster("v2", 2)])
    with pytest.raises(ValueError, match=r"random\.weight"):
        ask(engine, how="decide")
    assert ask(engine, how="decide", random={"weight": 0.79})["cluster"] == "v1"
    decided = ask(engine, how="decide", random={"weight": 0.81})
    assert decided["cluster"] == "v2"
    assert "considered" not in decided


def test_faults_are_shown_and_strike_when_the_die_says_so() -> None:
    rule = {
        "match": {"prefix": "/"},
        "route": {"cluster": "v1"},
        "typedPerFilterConfig": fault(
            delay={"fixedDelay": "7s", "percentage": {"numerator": 10}},
            abort={"httpStatus": 418, "percentage": {"numerator": 500000, "denominator": "MILLION"}},
        ),
    }
    engine = Engine([*listeners(), routes(rule), cluster("v1", 1)])
    answer = ask(engine)
    assert answer["fault"] == {"delay_ms": 7000, "delay_percent": 10.0, "abort_status": 418, "abort_percent": 50.0}
    assert answer["outcome"] == "forward"
    struck = ask(engine, how="decide", random={"fault_delay": 0.05, "fault_abort": 0.4})
    assert (struck["outcome"], struck["status"], struck["delayed_ms"]) == ("fault", 418, 7000)
    assert struck["response_flags"] == "DI,FI"
    spared = ask(engine, how="decide", random={"fault_delay": 0.2, "fault_abort": 0.6})
    assert (spared["outcome"], spared["cluster"]) == ("forward", "v1")


@pytest.mark.parametrize(
    "action",
    [
        {"route": {"cluster": "v1"}},
        {"route": {"cluster": "empty"}},
        {"route": {"cluster": "gone"}},
        {"redirect": {"pathRedirect": "/new"}},
        {"directResponse": {"status": 204}},
    ],
)
def test_an_abort_of_everything_needs_no_die(action: dict[str, Any]) -> None:
    """It comes before what the route does, and before what becomes of that."""
    rule = {
        "match": {"prefix": "/"},
        **action,
        "typedPerFilterConfig": fault(abort={"httpStatus": 418, "percentage": {"numerator": 100}}),
    }
    answer = ask(Engine([*listeners(), routes(rule), cluster("v1", 1), cluster("empty")]))
    assert (answer["outcome"], answer["status"], answer["response_flags"]) == ("fault", 418, "FI")


TOLD = ["x-forwarded-proto", "https"]
BY_TLS = {"source_principal": "spiffe://cluster.local/ns/shop/sa/web"}
FIRST = {"use_remote_address": {"value": True}}


@pytest.mark.parametrize(
    ("manager", "question", "scheme"),
    [
        ({}, {}, "http"),
        ({}, BY_TLS, "https"),
        ({}, {"headers": [TOLD]}, "https"),
        ({}, BY_TLS | {"headers": [["X-Forwarded-Proto", "http"]]}, "http"),
        ({}, {"headers": [TOLD, TOLD]}, "http"),
        ({}, {"headers": [TOLD], "scheme": "http"}, "http"),
        ({}, BY_TLS | {"scheme": "http"}, "http"),
        (FIRST, {"headers": [TOLD]}, "http"),
        (FIRST, BY_TLS | {"headers": [["x-forwarded-proto", "http"]]}, "https"),
        (FIRST | {"xff_num_trusted_hops": 1}, {"headers": [TOLD]}, "https"),
    ],
)
def test_a_request_has_the_scheme_that_the_proxy_would_find(
    manager: dict[str, Any], question: dict[str, Any], scheme: str
) -> None:
    """Its own, else what is told and believed, else its connection's; as what is asked of proxies in `tests/conformance/test_options.py`."""
    rule = {"match": {"prefix": "/"}, "redirect": {"pathRedirect": "/new"}}
    answer = ask(Engine([*listeners(**manager), routes(rule)]), **question)
    assert answer["location"] == f"{scheme}://reviews:9080/new"


@pytest.mark.parametrize(
    ("case", "resources", "question", "expected"),
    [
        ("no route", [], {"authority": "other"}, ("no_route", 404, "NR")),
        ("no cluster", [], {}, ("no_cluster", 503, "NC")),
        ("no endpoint", [cluster("v1")], {}, ("forward", 503, "UH")),
    ],
)
def test_what_fails_is_answered_as_the_proxy_would(
    case: str, resources: list[tuple[str, str, bytes]], question: dict[str, Any], expected: tuple[str, int, str]
) -> None:
    rule = {"match": {"prefix": "/"}, "route": {"cluster": "v1"}}
    answer = ask(Engine([*listeners(), routes(rule), *resources]), **question)
    assert (answer["outcome"], answer["status"], answer["response_flags"]) == expected, case


def test_other_ports_go_to_the_capturing_listener_as_bytes() -> None:
    passthrough = cluster_pb2.Cluster(name="Passthrough", type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED")
    engine = Engine([*listeners(), routes(SPLIT), resource(passthrough, "Passthrough")])
    answer = ask(engine, destination="93.184.216.34:443")
    assert (answer["outcome"], answer["cluster"], answer["listener"]) == ("tcp", "Passthrough", "virtualOutbound")
    assert [item["address"] for item in answer["endpoints"]] == ["93.184.216.34:443"]


def test_tls_is_known_only_where_an_inspector_looks_for_it() -> None:
    """An outbound HTTP listener has `http_inspector` alone, so a ClientHello is bytes to it, whatever its SNI."""
    listener = listener_pb2.Listener(name="0.0.0.0_9080", traffic_direction="OUTBOUND")
    listener.address.socket_address.address = "0.0.0.0"
    listener.address.socket_address.port_value = 9080
    bytes_only = tcp_proxy_pb2.TcpProxy(stat_prefix="p", cluster="bytes")
    listener.filter_chains.add(name="bytes").filters.add(name="f").typed_config.Pack(bytes_only)
    listener.filter_chains[0].filter_chain_match.transport_protocol = "raw_buffer"
    listener.default_filter_chain.name = "outside"
    listener.default_filter_chain.filters.add(name="f").typed_config.Pack(
        tcp_proxy_pb2.TcpProxy(stat_prefix="p", cluster="outside")
    )
    blind = Engine([resource(listener, listener.name)])
    listener.listener_filters.add(name="tls").typed_config.Pack(tls_inspector_pb2.TlsInspector())
    seeing = Engine([resource(listener, listener.name)])
    for question in ({"sni": "reviews"}, {"tls": True}):
        assert ask(blind, **question)["filter_chain"] == "bytes"
        assert ask(seeing, **question)["filter_chain"] == "outside"


@pytest.mark.parametrize(
    ("secure", "tls", "expected"),
    [
        (False, False, ("forward", None)),
        (False, True, ("refused", 400)),  # the HTTP codec cannot read a ClientHello
        (True, False, ("refused", None)),  # closed without a word
        (True, True, ("forward", None)),
        (True, None, ("forward", None)),  # the question does not say, and asks about the rest
    ],
)
def test_a_listener_takes_tls_or_plain_text_and_not_the_other(
    secure: bool, tls: bool | None, expected: tuple[str, int | None]
) -> None:
    type_url, name, value = listeners()[1]
    listener = listener_pb2.Listener.FromString(value)
    if secure:
        context = tls_pb2.DownstreamTlsContext()
        secret = context.common_tls_context.tls_certificate_sds_secret_configs.add(name="default")
        secret.sds_config.api_config_source.grpc_services.add().envoy_grpc.cluster_name = "sds-grpc"
        secret.sds_config.api_config_source.api_type = "GRPC"
        listener.filter_chains[0].transport_socket.typed_config.Pack(context)
    rule = {"match": {"prefix": "/"}, "route": {"cluster": "v1"}}
    engine = Engine([(type_url, name, listener.SerializeToString()), routes(rule), cluster("v1", 1)])
    answer = ask(engine, **({} if tls is None else {"tls": tls}))
    assert (answer["outcome"], answer.get("status")) == expected


def test_bytes_to_a_cluster_without_endpoints_are_reset() -> None:
    nowhere = cluster_pb2.Cluster(name="Passthrough", type="STATIC")
    answer = ask(Engine([*listeners(), resource(nowhere, "Passthrough")]), destination="93.184.216.34:443")
    assert (answer["outcome"], answer["response_flags"], answer.get("status")) == ("tcp", "UH", None)


def test_a_connection_that_ends_has_no_status() -> None:
    """Neither where the cluster of its bytes is not there, nor where no filter chain takes it."""
    lost = ask(Engine(listeners()), destination="93.184.216.34:443")
    assert (lost["outcome"], lost["response_flags"], lost["status"]) == ("no_cluster", "NC", None)
    listener = listener_pb2.Listener.FromString(listeners()[1][2])
    listener.filter_chains[0].filter_chain_match.transport_protocol = "tls"
    untaken = ask(Engine([resource(listener, listener.name)]))
    assert (untaken["outcome"], untaken["response_flags"], untaken["status"]) == ("refused", "NR", None)


def test_a_decision_about_shared_out_bytes_needs_the_die() -> None:
    share = {"clusters": [{"name": "v1", "weight": 1}, {"name": "v2", "weight": 3}]}
    proxy = json_format.ParseDict({"statPrefix": "p", "weightedClusters": share}, tcp_proxy_pb2.TcpProxy())
    listener = listener_pb2.Listener.FromString(listeners()[1][2])
    listener.filter_chains[0].filters[0].typed_config.Pack(proxy)
    engine = Engine([resource(listener, listener.name), cluster("v1", 1), cluster("v2", 2)])
    assert "cluster" not in ask(engine)
    with pytest.raises(ValueError, match=r"random\.weight: the decision depends on it"):
        ask(engine, how="decide")
    assert ask(engine, how="decide", random={"weight": 0.2})["cluster"] == "v1"


def calls(*routes: dict[str, Any]) -> tuple[str, str, bytes]:
    """A listener for calls of Dubbo."""
    table = {"name": "t", "interface": "demo.*", "routes": list(routes)}
    proxy = json_format.ParseDict(
        {"statPrefix": "p", "multipleRouteConfig": {"name": "all", "routeConfig": [table]}},
        dubbo_proxy_pb2.DubboProxy(),
    )
    message = listener_pb2.Listener(name="0.0.0.0_9080", traffic_direction="OUTBOUND")
    message.address.socket_address.address = "0.0.0.0"
    message.address.socket_address.port_value = 9080
    message.filter_chains.add().filters.add(name="f").typed_config.Pack(proxy)
    return resource(message, "0.0.0.0_9080")


def test_calls_are_asked_about_as_service_and_method() -> None:
    """Attachments are the question's headers; an outcome says protocol and cluster, and `considered` why other routes were not taken."""
    blue = {"match": {"headers": [{"name": "tenant", "stringMatch": {"exact": "blue"}}]}, "route": {"cluster": "v1"}}
    split = {
        "match": {"method": {"name": {"exact": "hello"}}},
        "route": {"weightedClusters": {"clusters": [{"name": "v1", "weight": 1}, {"name": "v2", "weight": 3}]}},
    }
    engine = Engine([calls(blue, split), cluster("v1", 1), cluster("v2")])
    answer = ask(engine, path="/demo.Greeter/hello", headers=[["Tenant", "blue"]])
    assert (answer["outcome"], answer["protocol"], answer["cluster"]) == ("call", "dubbo", "v1")
    assert [endpoint["address"] for endpoint in answer["endpoints"]] == ["127.0.0.1:1"]
    answer = ask(engine, path="/demo.Greeter/hello")
    assert [(it["name"], it["share"]) for it in answer["clusters"]] == [("v1", 0.25), ("v2", 0.75)]
    assert "cluster" not in answer
    assert [it["reason"] for it in answer["considered"] if "route" in it] == [
        "wanted: header tenant equal to `blue`",
        "service demo.*, method equal to `hello`",
    ]
    answer = ask(engine, path="/demo.Greeter/hello", random={"weight": 0.5})
    assert (answer["cluster"], answer["status"], answer["response_flags"]) == ("v2", 503, "UH")
    answer = ask(engine, path="/other.Greeter/hello")
    assert (answer["outcome"], answer["status"], answer["response_flags"]) == ("no_route", 404, "NR")
    with pytest.raises(ValueError, match=r"random\.weight: the decision depends on it"):
        ask(engine, how="decide", path="/demo.Greeter/hello")


def test_redirects_say_where_to() -> None:
    rule = {"match": {"prefix": "/old"}, "redirect": {"pathRedirect": "/new", "responseCode": "FOUND"}}
    answer = ask(Engine([*listeners(), routes(rule)]), path="/old?x=1")
    assert (answer["outcome"], answer["status"]) == ("redirect", 302)
    assert answer["location"] == "http://reviews:9080/new?x=1"


def test_unhealthy_endpoints_are_shown_and_get_nothing() -> None:
    assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name="v1")
    group = assignment.endpoints.add()
    for port, health in ((1, "HEALTHY"), (2, "UNHEALTHY"), (3, "HEALTHY")):
        host = group.lb_endpoints.add(health_status=health)
        host.endpoint.address.socket_address.address = "10.0.0.1"
        host.endpoint.address.socket_address.port_value = port
    eds = cluster_pb2.Cluster(name="v1", type="EDS")
    rule = {"match": {"prefix": "/"}, "route": {"cluster": "v1"}}
    answer = ask(Engine([*listeners(), routes(rule), resource(eds, "v1"), resource(assignment, "v1")]))
    assert [(item["healthy"], item["share"]) for item in answer["endpoints"]] == [(True, 0.5), (False, 0), (True, 0.5)]


def test_endpoints_that_are_checked_are_taken_to_pass() -> None:
    """What checks find is known to the proxy that makes them; a question says where it depends on them."""
    checked = cluster_pb2.Cluster(name="v1", type="STATIC")
    check = checked.health_checks.add()
    for duration in (check.timeout, check.interval):
        duration.seconds = 1
    check.unhealthy_threshold.value = check.healthy_threshold.value = 1
    check.tcp_health_check.SetInParent()
    host = checked.load_assignment.endpoints.add().lb_endpoints.add()
    host.endpoint.address.socket_address.address = "10.0.0.1"
    host.endpoint.address.socket_address.port_value = 1
    rule = {"match": {"prefix": "/"}, "route": {"cluster": "v1"}}
    answer = ask(Engine([*listeners(), routes(rule), resource(checked, "v1")]))
    assert answer["outcome"] == "forward"
    assert [(item["healthy"], item["checked"], item["share"]) for item in answer["endpoints"]] == [(True, True, 1.0)]


def test_what_cannot_be_honoured_is_refused_by_resource_and_field_or_collected() -> None:
    odd = cluster_pb2.Cluster(name="odd")
    odd.connection_pool_per_downstream_connection = True
    with pytest.raises(ValueError, match=r"odd: Cluster\.connection_pool_per_downstream_connection: "):
        Engine([resource(odd, "odd")])
    type_url, name, value = resource(odd, "odd")
    assert [path for path, _ in validate(type_url, value)] == ["Cluster.connection_pool_per_downstream_connection"]
    collected = Engine([(type_url, name, value)], strict=False).not_applied
    assert [item[:3] for item in collected] == [(type_url, "odd", "Cluster.connection_pool_per_downstream_connection")]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("nonsense", "not JSON"),
        ("{}", "destination"),
        ('{"destination": "reviews"}', "destination"),
        ('{"destination": "1.2.3.4:5", "direction": "up"}', "direction"),
        ('{"destination": "1.2.3.4:5", "random": {"weight": 2}}', r"random\.weight"),
        ('{"destination": "1.2.3.4:5", "taken": {"match": "a.yaml:9:7"}}', r"taken\.origin"),
        ('{"destination": "1.2.3.4:5", "direction": "inbound"}', "no listener"),
    ],
)
def test_questions_without_sense_are_refused_in_words(question: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(listeners()).explain(question)


def guarded() -> list[tuple[str, str, bytes]]:
    """An inbound listener whose rules ask who calls, before requests that its rules ask about as well."""
    types = "type.googleapis.com/envoy.extensions.filters"
    by_name = {"authenticated": {"principal_name": {"prefix": "spiffe://cluster.local/ns/shop/"}}}
    allow = {"action": "ALLOW", "policies": {"shop": {"permissions": [{"any": True}], "principals": [by_name]}}}
    secret = {"url_path": {"path": {"prefix": "/secret"}}}
    outside = {"remote_ip": {"address_prefix": "203.0.113.0", "prefix_len": 24}}
    deny = {"action": "DENY", "policies": {"secret": {"permissions": [secret], "principals": [outside]}}}
    network = {"@type": f"{types}.network.rbac.v3.RBAC", "stat_prefix": "tcp", "rules": allow}
    http = {"@type": f"{types}.http.rbac.v3.RBAC", "rules": deny, "shadow_rules": {"action": "LOG"}}
    router = {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "s",
        "rds": {"route_config_name": "9080", "config_source": {"ads": {}}},
        "http_filters": [{"name": "envoy.filters.http.rbac", "typed_config": http}, router],
    }
    filters = [{"name": "rbac", "typed_config": network}, {"name": "http", "typed_config": manager}]
    content = {
        "name": "in",
        "traffic_direction": "INBOUND",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
        "filter_chains": [{"filters": filters}],
    }
    return [resource(json_format.ParseDict(content, listener_pb2.Listener()), "in")]


def test_rules_say_who_is_let_in_and_by_which_policy() -> None:
    """A connection by the name in its certificate, a request by its path and by the client that it comes from."""
    rule = {"name": "r", "match": {"prefix": "/"}, "route": {"cluster": "c"}}
    engine = Engine([*guarded(), routes(rule), cluster("c", 1)])
    asked = {"direction": "inbound", "destination": "10.244.0.3:9080"}
    stranger = ask(engine, **asked)
    assert (stranger["outcome"], stranger["status"]) == ("denied", None)
    assert stranger["explanation"] == "rbac_access_denied_matched_policy[none]"
    rules = {"action": "ALLOW", "allowed": False, "policy": None}
    assert stranger["rbac"] == [{"filter": "envoy.filters.network.rbac", "rules": rules, "shadow_rules": None}]
    # A listener without TLS is not spoken to in TLS, but this question says only who calls.
    known = {**asked, "source_principal": "spiffe://cluster.local/ns/shop/sa/web"}
    answer = ask(engine, **known, path="/secret")
    assert answer["outcome"] == "forward"
    assert [item["filter"].rpartition(".")[0] for item in answer["rbac"]] == [
        "envoy.filters.network",
        "envoy.filters.http",
    ]
    assert answer["rbac"][1]["shadow_rules"] == {"action": "LOG", "allowed": True, "policy": None}
    refused = ask(engine, **known, path="/secret", client="203.0.113.9")
    assert (refused["outcome"], refused["status"]) == ("denied", 403)
    assert refused["explanation"] == "rbac_access_denied_matched_policy[secret]"
    with pytest.raises(ValueError, match="client: not an IP address"):
        ask(engine, **known, client="nobody")


def test_a_share_of_a_cors_policy_is_decided_by_its_die() -> None:
    """Where the policy holds for some requests, one outcome needs the die."""
    policy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": "https://shop.example"}],
        "filter_enabled": {"default_value": {"numerator": 50}},
    }
    rule = {
        "name": "r",
        "match": {"prefix": "/"},
        "route": {"cluster": "c"},
        "typed_per_filter_config": {"envoy.filters.http.cors": policy},
    }
    listener = listener_pb2.Listener.FromString(listeners()[1][2])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    packed = listener.filter_chains[0].filters[0].typed_config
    packed.Unpack(manager)
    manager.http_filters.insert(0, http_connection_manager_pb2.HttpFilter(name="envoy.filters.http.cors"))
    manager.http_filters[0].typed_config.Pack(cors_pb2.Cors())
    packed.Pack(manager)
    engine = Engine([resource(listener, "0.0.0.0_9080"), routes(rule), cluster("c", 1)])
    page = {"headers": [["origin", "https://shop.example"]], "how": "decide"}
    on, off = (ask(engine, **page, random={"cors": die})["cors"] for die in (0.4, 0.6))
    assert (on["treatment"], on["response_headers"]) == (
        "passed_on",
        [["access-control-allow-origin", "https://shop.example"]],
    )
    assert (off["treatment"], off["response_headers"], off["percent"]) == (None, [], 50.0)
    with pytest.raises(ValueError, match=r"random\.cors"):
        ask(engine, **page)
