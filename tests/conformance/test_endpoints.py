"""Which endpoints of a cluster are taken, by their localities, and how they are spoken to, by their labels: Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cryptography import x509

from tests.conformance.both import Json, address, both, cluster, http_filters, listener, typed
from tests.conformance.certificates import Authority, common_context, server_context, upstream
from tests.conformance.telling import telling

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

A, B, C = "A", "B", "C"
"""Three endpoints, all of which answer."""


def endpoint(port: int, health: str = "HEALTHY", **labels: object) -> Json:
    metadata = {"filter_metadata": {"envoy.transport_socket_match": labels}}
    return {
        "endpoint": {"address": address(port)},
        "health_status": health,
        **({"metadata": metadata} if labels else {}),
    }


def spread(name: str, *localities: Json) -> Json:
    """A cluster that divides requests by the weights of its localities."""
    return {
        "name": name,
        "type": "STATIC",
        "common_lb_config": {"locality_weighted_lb_config": {}},
        "load_assignment": {"cluster_name": name, "endpoints": localities},
    }


def locality(zone: str, *endpoints: Json, **more: int) -> Json:
    return {"locality": {"zone": zone}, "lb_endpoints": endpoints, **more}


def clusters(ports: dict[str, int]) -> list[Json]:
    return [
        spread("no weight at all", locality("a", endpoint(ports[A])), locality("b", endpoint(ports[B]))),
        spread(
            "no weight where anybody works",
            locality("a", endpoint(ports[A], "UNHEALTHY"), load_balancing_weight=3),
            locality("b", endpoint(ports[B]), endpoint(ports[C])),
        ),
        spread(
            "panic",
            locality("a", endpoint(ports[A], "UNHEALTHY"), load_balancing_weight=100),
            locality("b", endpoint(ports[B]), endpoint(ports[C], "UNHEALTHY"), load_balancing_weight=1),
        ),
    ]


EXPECTED = {
    "no weight at all": {A: 15, B: 15, C: 0},
    "no weight where anybody works": {A: 0, B: 15, C: 15},
    "panic": {A: 10, B: 10, C: 10},
}
"""How many of 30 requests come to which endpoint, by cluster; all of them take turns."""


def test_where_weights_say_nothing_all_endpoints_take_turns(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        tellers = {name: stack.enter_context(telling()) for name in (A, B, C)}

        def resources(ports: dict[str, int]) -> Json:
            listeners = [
                listener(name, port, http_filters([{"match": {"prefix": "/"}, "route": {"cluster": name}}]))
                for name, port in ports.items()
            ]
            return {"clusters": clusters({name: it.port for name, it in tellers.items()}), "listeners": listeners}

        for proxy in stack.enter_context(both(tmp_path, tuple(EXPECTED), resources)):
            for name, expected in EXPECTED.items():
                for teller in tellers.values():
                    teller.heard.clear()
                assert {proxy.get(name)[0] for _ in range(30)} == {200}, (proxy.kind, name)
                assert {at: len(it.heard) for at, it in tellers.items()} == expected, (proxy.kind, name)


LABELS: dict[str, tuple[dict[str, object], int]] = {
    "none": ({}, 200),
    "the same": ({"acceptMTLS": True}, 503),
    "another value": ({"acceptMTLS": False}, 200),
    "the value as text": ({"acceptMTLS": "true"}, 200),
    "another one": ({"other": True}, 200),
}
"""Labels of an endpoint without TLS, and what becomes of a request where those that `acceptMTLS: true` are spoken to in TLS."""


def test_labels_of_all_kinds_say_how_an_endpoint_is_spoken_to(tmp_path: Path) -> None:
    tls = {"name": "tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext")}
    match = {"name": "tls", "match": {"acceptMTLS": True}, "transport_socket": tls}
    with telling() as up:

        def resources(ports: dict[str, int]) -> Json:
            made = [
                {
                    "name": name,
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": name,
                        "endpoints": [{"lb_endpoints": [endpoint(up.port, **labels)]}],
                    },
                    "transport_socket_matches": [match],
                }
                for name, (labels, _) in LABELS.items()
            ]
            listeners = [
                listener(name, port, http_filters([{"match": {"prefix": "/"}, "route": {"cluster": name}}]))
                for name, port in ports.items()
            ]
            return {"clusters": made, "listeners": listeners}

        with both(tmp_path, tuple(LABELS), resources) as proxies:
            for proxy in proxies:
                found = {name: proxy.get(name)[0] for name in LABELS}
                assert found == {name: status for name, (_, status) in LABELS.items()}, proxy.kind


PLAIN, SECURED = "plain", ("first", "second")
"""Endpoints of one cluster; the latter are labelled with their names."""


def test_each_endpoint_is_spoken_to_in_its_own_way(tmp_path: Path) -> None:
    """In plain text, and in TLS with whom each has to be: nobody else would finish a handshake."""
    authority = Authority(tmp_path / "certificates")
    own, roots = authority.issue("proxy"), authority.roots.read_text()
    uris = {name: f"spiffe://mesh/{name}" for name in SECURED}
    matches = [
        {
            "name": name,
            "match": {"tlsMode": name},
            "transport_socket": upstream(common_context(own, roots, names=[uri])),
        }
        for name, uri in uris.items()
    ]
    raw = {"name": "raw", "typed_config": typed("transport_sockets.raw_buffer.v3.RawBuffer")}
    matches.append({"name": PLAIN, "match": {}, "transport_socket": raw})
    with contextlib.ExitStack() as stack:
        tellers = {PLAIN: stack.enter_context(telling())}
        for name, uri in uris.items():
            identity = authority.issue(name, x509.UniformResourceIdentifier(uri))
            tellers[name] = stack.enter_context(telling(server_context(authority, identity)))

        def resources(ports: dict[str, int]) -> Json:
            endpoints = [endpoint(tellers[name].port, tlsMode=name) for name in SECURED]
            endpoints.append(endpoint(tellers[PLAIN].port))
            made = cluster("up", transport_socket_matches=matches)
            made["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
            filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up"}}])
            return {"clusters": [made], "listeners": [listener("in", ports["in"], filters)]}

        for proxy in stack.enter_context(both(tmp_path, ("in",), resources)):
            for teller in tellers.values():
                teller.heard.clear()
            assert {proxy.get("in")[0] for _ in range(9)} == {200}, proxy.kind
            assert {name: len(it.heard) for name, it in tellers.items()} == dict.fromkeys(tellers, 3), proxy.kind
