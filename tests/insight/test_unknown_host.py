"""A host that nobody has: what was meant, said of a call that came to nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from weft.insight import happened, tell, tree_to_json, verdict
from weft.insight.unknown_host import LISTED, SOURCE, remedy
from weft.telemetry import Configuration, Record

NODE = "sidecar~10.244.0.3~caller-v1-0.default~default.svc.cluster.local"


def service(name: str, namespace: str = "default", workloads: Iterable[str] = ()) -> dict[str, Any]:
    """Return an item of `GET /v1/services`."""
    return {
        "hostname": f"{name}.{namespace}.svc.cluster.local",
        "name": name,
        "namespace": namespace,
        "workloads": [{"workload": each, "namespace": namespace, "ready": True} for each in workloads],
    }


SERVICES = [
    service("reviews", workloads=["reviews-v1-0"]),
    service("ratings"),
    service("stock", "shop", ["stock-v1-0"]),
]


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("revews", "Did you mean `reviews`?"),
        ("Reviews_", "Did you mean `reviews`?"),
        ("revews.default", "Did you mean `reviews.default`?"),
        ("revews.default.svc.cluster.local.", "Did you mean `reviews.default.svc.cluster.local`?"),
        ("reviews.defualt", "Did you mean `reviews.default`?"),
        ("stok.shop", "Did you mean `stock.shop`?"),
        ("stock", "The service stock is in another namespace than the program: call it `stock.shop`."),
        ("reviews-v1-0", "reviews-v1-0 is a workload, and what is called is its service: `reviews`."),
        ("stock-v1-0", "stock-v1-0 is a workload, and what is called is its service: `stock.shop`."),
        ("reviews", "reviews is a service of the mesh by now, and was not when it was called: call it again."),
        ("nosuch", "The services are: ratings, reviews."),
        # The long end that names have in common makes none of them near.
        ("nosuch.default.svc.cluster.local", "The services are: ratings, reviews."),
    ],
)
def test_what_was_meant_is_found_among_the_names_that_the_program_may_call(host: str, meant: str) -> None:
    assert remedy(host, "default", SERVICES) == f"{meant} {SOURCE}"


@pytest.mark.parametrize("host", ["www.example.com", "example.com", "db.corp.example"])
def test_of_a_place_outside_nothing_is_guessed(host: str) -> None:
    assert remedy(host, "default", SERVICES) == ""


def test_of_many_services_some_are_named_and_of_none_it_is_said() -> None:
    assert remedy("nosuch", "default", [service(f"s{number:03}-x-long") for number in range(100)]).startswith(
        f"The services are: {', '.join(f's{number:03}-x-long' for number in range(LISTED))}, ..."
    )
    assert remedy("nosuch", "default", []).startswith("There is no service yet.")


@pytest.mark.parametrize(
    ("name", "answer", "sentence", "what_to_do"),
    [
        ("reviws", "NXDOMAIN", "this machine's resolver knows no such name", "Did you mean `reviews`?"),
        ("www.example.com", "NXDOMAIN", "this machine's resolver knows no such name", "`getent hosts www.example.com`"),
        ("reviws", "SERVFAIL", "did not find out (SERVFAIL)", "Did you mean `reviews`?"),
        ("reviws.default.svc.cluster.local", "NXDOMAIN", "Nobody else is asked for names under svc.cluster.local.", "Did you mean"),
    ],
)  # fmt: skip
def test_a_lookup_in_vain_is_told_with_who_asked_and_what_was_meant(
    name: str, answer: str, sentence: str, what_to_do: str
) -> None:
    record = Record(NODE, "lookups", "DNS", "outbound", 0.0, 0.0, authority=name, flags=("DF",), details=answer)
    (hop,) = happened([record], (), lambda _node, _at: pytest.fail("no proxy decided anything"), services=SERVICES)
    end = verdict(hop)
    assert end.finding is not None
    assert (end.finding.code, end.by, end.workload) == ("unknown-host", "program", "caller-v1-0")
    text = tell([hop])
    first, *_ = text.splitlines()
    assert first.startswith(f"A call of the host {name}: not made  (")
    assert f"caller-v1-0 asked for the host {name}" in text
    assert sentence in text
    assert f"What to do: {end.finding.remedy}" in text
    assert what_to_do in end.finding.remedy
    assert tree_to_json(hop)["verdict"]["code"] == "unknown-host"


def test_the_http_proxy_of_explicit_mode_says_the_same_of_what_it_was_asked_for() -> None:
    record = Record(
        NODE, "requests", "HTTP/1.1", "outbound", 0.0, 1.0, request_id="1", method="GET", authority="reviws:9080",
        path="/", status=503, flags=("DF",), details="dns_resolution_failure",
    )  # fmt: skip
    (hop,) = happened([record], (), lambda _node, _at: (), services=SERVICES)
    end = verdict(hop)
    assert end.finding is not None
    assert (end.finding.code, end.by, end.workload) == ("unknown-host", "proxy", "caller-v1-0")
    assert "The proxy of caller-v1-0 was asked for the host reviws: no service" in end.finding.sentence
    assert end.finding.remedy.startswith("Did you mean `reviews`?")


EXPLICIT = "sidecar~127.150.3.1~caller-v1-0.default~default.svc.cluster.local"

CALLABLE = [
    service("server") | {"address": "240.240.0.2", "ports": [{"number": 8080, "protocol": "HTTP"}]},
    service("ledger") | {"address": "240.240.0.3", "ports": [{"number": 3306, "protocol": "TCP"}]},
    service("stock", "shop") | {"address": "240.240.0.4", "ports": [{"number": 80, "protocol": "HTTP"}]},
]

HAD_SERVER = Configuration(
    EXPLICIT, 5, 0.0, 0.0,
    (("type.googleapis.com/envoy.config.cluster.v3.Cluster", "outbound|8080||server.default.svc.cluster.local", b""),
     ("type.googleapis.com/envoy.config.cluster.v3.Cluster", "outbound|3306||ledger.default.svc.cluster.local", b"")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("authority", "more", "had", "code", "sentence", "what_to_do"),
    [
        ("server:8081", {}, HAD_SERVER, "no-such-port", "The service server has no port 8081", "its ports: 8080;"),
        ("server", {}, HAD_SERVER, "no-such-port", "The service server has no port 80,", "its ports: 8080;"),
        # Nothing is called too early that is not there now either.
        ("server:8081", {}, None, "no-such-port", "The service server has no port 8081", "its ports: 8080;"),
        ("server:8081", {"method": "CONNECT", "cluster": ""}, HAD_SERVER, "no-such-port", "has no port 8081", "8080;"),
        ("127.150.3.2:8081", {"flags": ("UF",), "transport_failure": "delayed connect error: Connection refused"},
         HAD_SERVER, "no-such-port", "The service server has no port 8081", "its ports: 8080;"),
        ("stock.shop:81", {}, HAD_SERVER, "no-such-port", "The service stock.shop has no port 81,", "its ports: 80;"),
        ("server:8080", {}, None, "called-too-early", "called port 8080 of server, which was not there yet", "call it again"),
        ("stock.shop", {}, HAD_SERVER, "called-too-early", "called port 80 of stock.shop, which was not", "call it again"),
        ("ledger:3306", {}, HAD_SERVER, "http-to-bytes", "The port 3306 of ledger takes bytes (TCP)", "`--port 3306`"),
        ("stock:80", {}, HAD_SERVER, "unknown-host", "was asked for the host stock: no service", "call it `stock.shop`"),
    ],
)  # fmt: skip
def test_of_a_service_it_says_what_its_ports_are_and_by_now_only_what_came_late(
    authority: str, more: dict[str, Any], had: Configuration | None, code: str, sentence: str, what_to_do: str
) -> None:
    """The HTTP proxy resolves every host that it has no rule for, and a rule is for one port of a service."""
    fields = {"method": "GET", "path": "/", "flags": ("DF",), "details": "dns_resolution_failure"}
    record = Record(
        *(EXPLICIT, "requests", "HTTP/1.1", "outbound", 0.0, 1.0),
        **({"cluster": "PassthroughCluster", "listener": "127.150.3.1:15001", "status": 503} | fields | more),
        authority=authority,
        request_id="1",
    )
    (hop,) = happened([record], (), lambda _node, _at: [had] if had else [], services=CALLABLE)
    assert hop.finding is not None
    assert hop.finding.code == code
    assert sentence in hop.finding.sentence
    assert what_to_do in hop.finding.remedy
    assert ("by now" in f"{hop.finding.sentence} {hop.finding.remedy}") == (code == "called-too-early")
