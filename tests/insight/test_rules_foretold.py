"""What `weft why` says beforehand of rules that divide, edit, break off and lead nowhere: what the proxy then does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.controlplane.peers import Mesh
from tests.insight.test_http_routes import applied as route_applied
from tests.insight.test_why import ask
from weft.insight import Explanation, Question, render

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: own}
spec:
  hosts: [%s]
%s
"""

SUBSETS = """\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: own}
spec:
  host: %s
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v7, labels: {version: v7}}
"""


@contextmanager
def applied(mesh: Mesh, rules: str, host: str = "productpage") -> Iterator[None]:
    """Let *host* have a VirtualService whose rules begin at line 6 of own.yaml, and subsets v1, and v7 that nobody is of."""
    mesh.apply(RULE % (host, rules) + SUBSETS % host, file="own.yaml")
    try:
        yield
    finally:
        kinds = ("VirtualService", "DestinationRule")
        mesh.client.post(
            "/v1/delete", {"keys": [{"kind": kind, "namespace": "default", "name": "own"} for kind in kinds]}
        )


def told(mesh: Mesh, rules: str, path: str = "/", **more: Any) -> tuple[Explanation, str]:
    with applied(mesh, rules):
        said = ask(mesh, replace(Question("reviews-v1-0", f"http://productpage:9080{path}"), **more))
    return said, render(said)


def going(text: str) -> str:
    return text.split("\n\n")[1]


ABORT = "fault: {abort: {httpStatus: 418, percentage: {value: %d}}}"


@pytest.mark.parametrize(
    ("rest", "without"),
    [
        ("route: [{destination: {host: productpage, subset: v1}}]", " Without it: 100 % to productpage subset v1 port 9080."),
        (
            "route: [{destination: {host: productpage, subset: v7}}]",
            " Without it: 100 % to productpage subset v7 port 9080 (which has no endpoint: answered with 503 (UH)).",
        ),
        (
            "route: [{destination: {host: productpage, subset: v8}}]",
            " Without it: 100 % to productpage subset v8 port 9080 (which is not there: answered with 503 (NC)).",
        ),
    ],
)  # fmt: skip
def test_an_abort_of_everything_comes_before_all_else(bookinfo: Mesh, rest: str, without: str) -> None:
    """The proxy asks the fault filter before it looks where a request goes."""
    said, text = told(bookinfo, f"  http:\n  - {{{ABORT % 100}, {rest}}}")
    assert (said.outbound.outcome, said.outbound.status, said.outbound.flags) == ("fault", 418, "FI")
    assert going(text) == f"The proxy answers 418 itself, every time: a fault is injected.{without}"


def test_an_abort_of_some_is_told_with_what_becomes_of_the_others(bookinfo: Mesh) -> None:
    _, text = told(
        bookinfo, f"  http:\n  - {{{ABORT % 25}, route: [{{destination: {{host: productpage, subset: v7}}}}]}}"
    )
    assert going(text).startswith(
        "25 % are answered 418 by the proxy itself: a fault is injected. Otherwise it would go 100 % to productpage subset v7"
        " port 9080, but the proxy answers 503 itself (UH)"
    )


SPLIT = """\
  http:
  - route:
    - {destination: {host: productpage, subset: %s}, weight: 80}
    - {destination: {host: productpage, subset: %s}, weight: 20}"""


@pytest.mark.parametrize(
    ("subset", "why"),
    [
        ("v7", "which has no endpoint: answered with 503 (UH)"),
        ("v8", "which is not there: answered with 503 (NC)"),
    ],
)
def test_a_share_that_nobody_takes_is_told_where_the_shares_are(bookinfo: Mesh, subset: str, why: str) -> None:
    _, text = told(bookinfo, SPLIT % ("v1", subset))
    first = "80 % to productpage subset v1 port 9080"
    assert going(text) == f"It goes {first}, 20 % to productpage subset {subset} port 9080 ({why})."
    _, text = told(bookinfo, SPLIT % ("v7", subset))
    assert going(text).startswith("It would go 80 % to productpage subset v7 port 9080 (which has no endpoint: ")


def test_what_is_done_for_one_destination_is_told_of_that_one(bookinfo: Mesh) -> None:
    """With the line that says so, as with what is done to every request."""
    rules = """\
  http:
  - headers: {request: {set: {x-all: a}}}
    route:
    - destination: {host: productpage, subset: v1}
      weight: 80
      headers: {request: {set: {x-first: f, host: first.example}}}
    - destination: {host: productpage}
      weight: 20
      headers: {response: {remove: [x-second]}}"""
    _, text = told(bookinfo, rules)
    edits = [
        " ".join(line.split())
        for line in text.splitlines()
        if line.startswith(("  request h", "  response h", "  host"))
    ]
    assert edits == [
        "request header set x-all: a (own.yaml:7:5)",
        "request header set x-first: f, to productpage subset v1 port 9080 (own.yaml:11:7)",
        "host becomes first.example, to productpage subset v1 port 9080 (own.yaml:11:7)",
        "response header remove x-second, to productpage port 9080 (own.yaml:14:7)",
    ]


def test_what_an_only_destination_edits_has_its_line(bookinfo: Mesh) -> None:
    rules = """\
  http:
  - route:
    - destination: {host: productpage}
      headers: {request: {set: {x-first: f, host: first.example}}}"""
    _, text = told(bookinfo, rules)
    edits = [" ".join(line.split()) for line in text.splitlines() if line.startswith(("  request h", "  host"))]
    assert edits == ["request header set x-first: f (own.yaml:9:7)", "host becomes first.example (own.yaml:9:7)"]


PUBLIC = """\
  http:
  - match: [{uri: {prefix: /public}}]
    directResponse: {status: 200}
  - match: [{uri: {prefix: /admin}}]
    directResponse: {status: 403}"""


def test_a_path_is_read_as_the_proxy_reads_it(bookinfo: Mesh) -> None:
    said, text = told(bookinfo, PUBLIC, "/public/%2e%2e/admin")
    assert said.outbound.status == 403
    assert "The proxy makes paths normal before it looks for a rule: this one is /admin." in text
    said, text = told(bookinfo, PUBLIC, "/public/%00")
    assert (said.outbound.outcome, said.outbound.status) == ("turned_away", 400)
    assert going(text) == "The proxy answers 400 itself: the path has a NUL, or escaped slashes that are refused."
    said, text = told(bookinfo, PUBLIC, "/public/x")
    assert said.outbound.status == 200
    assert "makes paths normal" not in text


def test_headers_that_the_proxy_makes_are_there_for_its_rules(bookinfo: Mesh) -> None:
    rules = "  http:\n  - match: [{headers: {x-forwarded-proto: {exact: http}}}]\n    directResponse: {status: 204}"
    said, _ = told(bookinfo, rules)
    assert said.outbound.status == 204
    # Beside a program it is believed; a gateway is the first of the mesh, and believes nobody.
    said, _ = told(bookinfo, rules, headers=(("X-Forwarded-Proto", "https"),))
    assert said.outbound.outcome == "no_route"


def test_what_a_client_says_of_how_it_came_is_overwritten_by_a_gateway(bookinfo: Mesh) -> None:
    """It is the first of the mesh, and believes nobody."""
    rules = "  gateways: [edge]\n  http:\n  - match: [{headers: {x-forwarded-proto: {exact: http}}}]\n    directResponse: {status: 204}"
    question = Question("ingressgateway", "http://bookinfo.localhost:18080/")
    with applied(bookinfo, rules, host="bookinfo.localhost"):
        for said in ("http", "https", "gopher"):
            found = ask(bookinfo, replace(question, headers=(("X-Forwarded-Proto", said),)))
            assert (found.outbound.status, found.outbound.route["rule"]) == (204, "spec.http[0]")


def test_a_scheme_that_is_believed_is_the_requests(bookinfo: Mesh) -> None:
    rules = "  http:\n  - match: [{scheme: {exact: https}}]\n    directResponse: {status: 204}"
    outcomes = [
        told(bookinfo, rules, headers=headers)[0].outbound.outcome
        for headers in ((), (("X-Forwarded-Proto", "https"),), (("X-Forwarded-Proto", "gopher"),))
    ]
    assert outcomes == ["no_route", "direct_response", "no_route"]


def test_what_is_asked_of_the_http_proxy_says_its_scheme_itself(explicit: Mesh) -> None:
    """In the absolute form; it comes before what is told of it."""
    rules = "  http:\n  - match: [{scheme: {exact: %s}}]\n    directResponse: {status: 204}"
    question = Question("ledger", "http://outside.example/", headers=(("X-Forwarded-Proto", "https"),))
    for scheme, expected in (("https", "no_route"), ("http", "direct_response")):
        with applied(explicit, rules % scheme, host="outside.example"):
            assert ask(explicit, question).outbound.outcome == expected


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ((("Origin", "https://evil.example"),), "the request says that a page of another site made it."),
        ((("Host", "evil.example"),), "the request's Host is not that service."),
    ],
)
def test_in_explicit_mode_it_is_said_whom_the_proxy_turns_away(
    explicit: Mesh, headers: tuple[tuple[str, str], ...], why: str
) -> None:
    said = ask(explicit, Question("ledger", "http://shop:9080/", headers=headers))
    assert (said.outbound.outcome, said.outbound.status, said.inbound) == ("turned_away", 403, ())
    text = render(said)
    assert going(text).startswith("The proxy answers 403 itself: this address ")
    assert going(text).endswith(why)
    assert "by HTTP_PROXY, which carries its credential" in text
    assert ask(explicit, Question("ledger", "http://shop:9080/")).outbound.outcome == "forward"


HASH = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-address}
spec:
  host: productpage
  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}
"""


def test_the_clients_address_decides_only_where_it_is_known(bookinfo: Mesh) -> None:
    """A program's is its workload's; who calls a gateway is anybody."""
    bookinfo.apply(HASH, file="hash.yaml")
    try:
        beside = ask(bookinfo, Question("reviews-v1-0", "http://productpage:9080/"))
        arriving = ask(bookinfo, Question("ingressgateway", "http://x.localhost:18080/productpage"))
    finally:
        bookinfo.client.post(
            "/v1/delete", {"keys": [{"kind": "DestinationRule", "namespace": "default", "name": "by-address"}]}
        )
    (share,) = beside.outbound.shares
    assert share.hash is not None
    (own,) = (item["address"] for item in bookinfo.client.get("/v1/workloads") if item["workload"] == "reviews-v1-0")
    assert share.hash.properties == (("source address", own),)
    assert share.hash.endpoint
    (share,) = arriving.outbound.shares
    assert share.hash is not None
    assert (share.hash.properties, share.hash.endpoint) == ((("source address", None),), "")
    assert "an endpoint for each client's address, which is not known here" in render(arriving)


def test_a_rule_for_bytes_is_told_with_its_line(bookinfo: Mesh) -> None:
    rules = """\
  tcp:
  - route:
    - {destination: {host: ledger, subset: %s}, weight: 90}
    - {destination: {host: ledger, subset: v7}, weight: 10}"""
    with applied(bookinfo, rules % "v1", host="ledger"):
        text = render(ask(bookinfo, Question("productpage", "http://ledger:3306/")))
    assert "\nRule\n  VirtualService default/own, spec.tcp[0] (own.yaml:7:5)\n" in text
    assert "no rule looks inside" not in text
    assert "10 % to ledger subset v7 port 3306 (which has no endpoint: the connection is reset (UH))." in text
    with applied(bookinfo, rules % "v8", host="ledger"):
        text = render(ask(bookinfo, Question("productpage", "http://ledger:3306/")))
    assert "90 % to ledger subset v8 port 3306 (which is not there: the connection is closed (NC))" in text
    assert "does not exist: the connection is closed (NC)" in text
    one = "  tcp:\n  - route: [{destination: {host: ledger, subset: v8}}]"
    with applied(bookinfo, one, host="ledger"):
        text = render(ask(bookinfo, Question("productpage", "http://ledger:3306/")))
    assert going(text) == "The rule names a destination that is not there: the proxy closes the connection (NC)."
    assert "(own.yaml:7:5)" in text
    assert "does not exist: the connection is closed (NC)" in text
    assert "503" not in text


def test_what_a_backend_of_an_http_route_edits_has_its_line(bookinfo: Mesh) -> None:
    edits = "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-first, value: f}]}}]"
    first = f"{{name: catalog, port: 9080, {edits}}}"
    for backends, end in (
        (f"[{first}]", ""),
        (f"[{first}, {{name: ratings, port: 9080}}]", ", to catalog port 9080"),
    ):
        with route_applied(bookinfo, f"  - backendRefs: {backends}"):
            text = render(ask(bookinfo, Question("reviews-v1-0", "http://productpage:9080/")))
        (line,) = (line for line in text.splitlines() if line.startswith("  request header"))
        assert " ".join(line.split()) == f"request header set x-first: f{end} (own.yaml:7:57)"
