"""`weft why` says what the proxy would do, where it is written, and what was assumed."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.controlplane.peers import Mesh
from weft.errors import NotFound, UsageError
from weft.insight import Explanation, Question, explain, render
from weft.insight.decision import Decision
from weft.insight.endpoint_health import SAID, Found
from weft.insight.why import Target

GOLDEN = Path(__file__).parent / "golden"

QUESTIONS = {
    "header": Question("productpage", "http://reviews:9080/reviews/0", headers=(("end-user", "jason"),)),
    "weights": Question("productpage", "http://reviews:9080/reviews/0"),
    "fault": Question("productpage-v1-0", "http://reviews.default:9080/x?beta=yes"),
    "page": Question("reviews-v2-0", "http://ratings:9080/pages", headers=(("origin", "https://shop.example"),)),
    "preflight": Question(
        "reviews-v2-0",
        "http://ratings:9080/pages",
        method="OPTIONS",
        headers=(("origin", "https://shop.example"), ("access-control-request-method", "PUT")),
    ),
    "copies-and-hash": Question("productpage", "http://catalog:9080/1", headers=(("end-user", "jason"),)),
    "hash-of-nothing": Question("productpage", "http://catalog:9080/1"),
    "redirect": Question("reviews", "http://ratings:9080/old/7"),
    "direct-response": Question("reviews-v2-0", "http://ratings:9080/teapot", method="POST"),
    "no-route": Question("productpage", "http://ratings:9080/ratings/0"),
    "no-rule": Question("reviews-v1-0", "http://productpage:9080/"),
    "outside": Question("productpage", "http://example.com/"),
    "unknown-host": Question("productpage", "http://reviws:9080/"),
    "tls-to-http": Question("productpage", "https://reviews:9080/"),
    "own-loopback": Question("productpage", "http://localhost:5432/"),
    "host-port": Question("shop", "http://localhost:5432/"),
    "gateway": Question("ingressgateway", "http://bookinfo.localhost:18080/productpage"),
}


def ask(mesh: Mesh, question: Question, found: Found | None = None) -> Explanation:
    """Ask with what the caller's proxy has *found* of its endpoints; these proxies do not run, and cannot be asked."""

    def resources(workload: str) -> list[tuple[str, str, bytes]]:
        found = mesh.client.get(f"/v1/proxies/{workload}/resources")
        return [(item["type_url"], item["name"], base64.b64decode(item["value"])) for item in found]

    return explain(
        question,
        workloads=mesh.client.get("/v1/workloads"),
        services=mesh.client.get("/v1/services"),
        resources=resources,
        health=lambda _: found,
        machine="this-machine",
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_text_is_what_it_was_reviewed_to_be(bookinfo: Mesh, name: str) -> None:
    """WEFT_GOLDEN=write refreshes the files; look at the difference before you commit it."""
    text = render(ask(bookinfo, QUESTIONS[name])) + "\n"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("WEFT_GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_the_rule_and_those_before_it_carry_their_lines(bookinfo: Mesh) -> None:
    decision = ask(bookinfo, QUESTIONS["weights"]).outbound
    routes = [(item.matched, item.metadata["rule"]) for item in decision.considered if item.subject == "route"]
    assert routes == [
        (False, "spec.http[0]"),
        (False, "spec.http[1]"),
        (False, "spec.http[1]"),
        (True, "spec.http[2]"),
    ]
    assert [(share.parts[2], share.share) for share in decision.shares] == [("v1", 0.8), ("v2", 0.2)]
    assert decision.route["origin"].startswith("rules.yaml:32:")


def test_every_value_has_its_origin(bookinfo: Mesh) -> None:
    decision = ask(bookinfo, QUESTIONS["header"]).outbound
    assert decision.raw["timeout_ms"] == 500
    assert decision.origins["timeout"] == "rules.yaml:19:5"
    assert decision.origins["retries"] == "rules.yaml:20:5"
    assert decision.origins["headers"] == "rules.yaml:21:5"
    assert ask(bookinfo, QUESTIONS["weights"]).outbound.origins["timeout"] == "default"


def test_the_destinations_proxy_requires_a_certificate(bookinfo: Mesh) -> None:
    (side,) = ask(bookinfo, QUESTIONS["header"]).inbound
    assert (side.workload, side.requires_tls) == ("reviews-v2-0", True)
    assert side.identity == "spiffe://cluster.local/ns/default/sa/reviews"
    assert side.decision.outcome == "forward"


def test_one_workload_of_a_service_is_chosen_and_said(bookinfo: Mesh) -> None:
    explanation = ask(bookinfo, QUESTIONS["redirect"])
    assert explanation.workload == "reviews-v1-0"
    assert explanation.assumptions[0].startswith("reviews has 3 workloads; this is asked from reviews-v1-0")


@pytest.mark.parametrize(
    "host", ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local", "REVIEWS."]
)
def test_a_host_is_found_as_the_meshs_dns_server_finds_it(bookinfo: Mesh, host: str) -> None:
    target = ask(bookinfo, Question("productpage", f"http://{host}:9080/")).target
    assert (target.hostname, target.address) == ("reviews.default.svc.cluster.local", "240.240.0.3")


def test_a_mistyped_program_is_guessed(bookinfo: Mesh) -> None:
    with pytest.raises(NotFound, match=r"no program 'productpag'\. Did you mean 'productpage'\?"):
        ask(bookinfo, Question("productpag", "http://reviews:9080/"))


def test_who_is_not_there_cannot_be_asked_from(bookinfo: Mesh) -> None:
    with pytest.raises(
        NotFound, match=r"no program 'nobody'\. There are: catalog, catalog-v1-0, catalog-v2-0, ingressgateway"
    ):
        ask(bookinfo, Question("nobody", "http://reviews:9080/"))


@pytest.mark.parametrize("url", ["reviews", "http://reviews/", "https://reviews.default/", "http://reviews:9081/"])
def test_a_port_that_the_service_does_not_have_is_named_with_those_that_it_has(bookinfo: Mesh, url: str) -> None:
    with pytest.raises(
        NotFound, match=r"reviews\.default\.svc\.cluster\.local has no port \d+: .*\. Its ports: 9080\."
    ):
        ask(bookinfo, Question("productpage", url))


@pytest.mark.parametrize("url", ["ftp://reviews/", "http://:9080/", "http://reviews:port/", "http://[::1/"])
def test_what_is_no_url_is_refused(bookinfo: Mesh, url: str) -> None:
    with pytest.raises(UsageError, match="is no URL"):
        ask(bookinfo, Question("productpage", url))


@pytest.mark.parametrize(
    ("word", "url"),
    [
        ("notaurl", "http://notaurl/"),
        ("reviews:9080", "http://reviews:9080/"),
        ("reviews:9080/reviews/0", "http://reviews:9080/reviews/0"),
        ("reviews:9080?beta=yes", "http://reviews:9080/?beta=yes"),
        ("reviews:9080?to=/x", "http://reviews:9080/?to=/x"),
    ],
)
def test_what_a_url_without_a_scheme_means_is_said(bookinfo: Mesh, word: str, url: str) -> None:
    said = ask(bookinfo, Question("productpage", word))
    assert said.target == ask(bookinfo, Question("productpage", url)).target
    assert said.assumptions[0] == f"{word} means {url}, as to curl."


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:5432/", "127.0.0.1 is the loopback of productpage-v1-0's own network"),
        ("http://[::1]:5432/", "::1 is the loopback of"),
        ("http://0.0.0.0:5432/", "0.0.0.0 (127.0.0.1) is the loopback of"),
        ("http://[::]:5432/", ":: (::1) is the loopback of"),
        ("http://[::ffff:127.0.0.1]:5432/", "(127.0.0.1) is the loopback of"),
        ("http://anything.localhost:5432/", "anything.localhost (127.0.0.1) is the loopback of"),
        ("http://{address}:9080/", "{address} is productpage-v1-0's own address, so the call reaches productpage-v1-0 itself"),
        ("http://[{address6}]:9081/", "is productpage-v1-0's own address, so the call reaches what that program has started"),
        ("http://productpage-v1-0:9080/", "productpage-v1-0 ({address}) is productpage-v1-0's own address"),
        ("http://this-machine:9080/", "this-machine ({address}) is productpage-v1-0's own address"),
        ("http://reviews:53/", "The mesh's DNS server takes every TCP connection to port 53"),
    ],
)  # fmt: skip
def test_what_the_mesh_does_not_catch_is_said(bookinfo: Mesh, url: str, sentence: str) -> None:
    (own,) = (item for item in bookinfo.client.get("/v1/workloads") if item["workload"] == "productpage-v1-0")
    places = {"address": own["address"], "address6": own["address6"]}
    explanation = ask(bookinfo, Question("productpage", url.format(**places)))
    assert not explanation.is_caught
    assert explanation.refusal is not None
    assert sentence.format(**places) in explanation.refusal.reason
    assert explanation.refusal.reason in render(explanation)


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("reviws", "Did you mean `reviews`?"),
        ("reviews.defalt", "Did you mean `reviews.default`?"),
        ("nobody", "The services are: catalog, ledger, productpage, ratings, reviews."),
        ("reviews-v2-0", "reviews-v2-0 is a workload, and what is called is its service: `reviews`."),
        ("www.example.com", ""),
    ],
)
def test_a_host_that_is_no_service_is_said_to_be_asked_of_this_machine(bookinfo: Mesh, host: str, meant: str) -> None:
    explanation = ask(bookinfo, Question("productpage", f"http://{host}:9080/"))
    assert explanation.unknown_host is not None
    assert (explanation.unknown_host.name, explanation.unknown_host.asked_by) == (host, "program")
    assert explanation.unknown_host.remedy.startswith(meant)
    assert bool(explanation.unknown_host.remedy) == bool(meant)
    text = render(explanation)
    assert f"{host} is no name of the mesh, so this machine's resolver is asked." in text
    assert meant[1:] in text


def test_a_name_that_only_the_mesh_could_have_is_never_called(bookinfo: Mesh) -> None:
    explanation = ask(bookinfo, Question("productpage", "http://reviws.default.svc.cluster.local:9080/"))
    assert not explanation.is_caught
    assert explanation.refusal is not None
    assert "the program is told that there is no such host" in explanation.refusal.reason
    assert explanation.refusal.remedy.startswith("Did you mean `reviews.default.svc.cluster.local`?")


@pytest.mark.parametrize("host", ["reviews", "10.1.2.3", "localhost", "this-machine", "productpage-v1-0"])
def test_what_has_an_address_is_no_unknown_host(bookinfo: Mesh, host: str) -> None:
    assert ask(bookinfo, Question("productpage", f"http://{host}:9080/")).unknown_host is None


def test_a_programs_own_service_is_called_through_the_mesh(bookinfo: Mesh) -> None:
    """Only its address and its workload's name mean itself."""
    explanation = ask(bookinfo, Question("productpage", "http://productpage:9080/"))
    assert explanation.is_caught
    assert explanation.outbound.outcome == "forward"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "db.localhost"])
def test_a_granted_port_of_the_host_is_asked_of_its_listener(bookinfo: Mesh, host: str) -> None:
    explanation = ask(bookinfo, Question("shop", f"http://{host}:5432/"))
    assert explanation.outbound.raw["listener"] == "host|5432"
    assert [share.cluster for share in explanation.outbound.shares] == ["host|5432||"]
    assert not ask(bookinfo, Question("shop", f"http://{host}:5433/")).is_caught


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (Question("productpage", "https://reviews:9080/"), "The connection is refused: reviews port 9080 speaks HTTP"),
        (Question("productpage", "http://240.240.0.99:9080/"), "240.240.0.99 is of the range of the mesh's services"),
        (Question("productpage", "https://240.240.0.99:443/"), "240.240.0.99 is of the range of the mesh's services"),
        (Question("productpage", "http://reviews:9080/", headers=(("Host", "other"),)), "No rule takes the host 'other'"),
        (Question("productpage", "http://10.244.99.99:9080/"), "no workload of the mesh has the address 10.244.99.99"),
        (Question("productpage", "http://{reviews}:9081/"), "reviews-v1-0 has no port 9081; its ports are 9080"),
        (Question("ingressgateway", "https://bookinfo.localhost:18080/productpage"), "and answers 400: "),
    ],
)  # fmt: skip
def test_what_the_callers_own_side_refuses_is_said(bookinfo: Mesh, question: Question, reason: str) -> None:
    (reviews,) = (item for item in bookinfo.client.get("/v1/workloads") if item["workload"] == "reviews-v1-0")
    explanation = ask(bookinfo, replace(question, url=question.url.format(reviews=reviews["address"])))
    assert explanation.refusal is not None
    assert reason in explanation.refusal.reason
    assert explanation.inbound == ()


def test_the_host_that_is_named_decides_on_a_port_that_other_services_have(bookinfo: Mesh) -> None:
    """The listener of a port takes HTTP to every service's address, whether or not that one has the port."""
    explanation = ask(bookinfo, Question("productpage", "http://ledger:9080/", headers=(("Host", "reviews"),)))
    assert {share.parts[0] for share in explanation.outbound.shares} == {"reviews.default.svc.cluster.local"}


def test_tls_to_a_port_of_bytes_is_the_programs_own(bookinfo: Mesh) -> None:
    explanation = ask(bookinfo, Question("productpage", "https://ledger:3306/"))
    assert explanation.refusal is None
    (side,) = explanation.inbound
    assert (side.workload, side.decision.outcome) == ("ledger-v1-0", "tcp")


@pytest.mark.parametrize("url", ["http://bookinfo.localhost:9999/", "http://bookinfo.localhost/productpage"])
def test_a_port_that_a_gateway_does_not_take_is_named_with_those_that_it_takes(bookinfo: Mesh, url: str) -> None:
    words = r"does not take port (9999|80)\. It takes 8080, which is http://127\.0\.0\.1:18080 on this machine\."
    with pytest.raises(NotFound, match=words):
        ask(bookinfo, Question("ingressgateway", url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://x.localhost/", r"No Gateway .* selects lonegateway-.*Published for it: 80 \(http://\[::1\]:18081\)\."),
        ("http://x.localhost:18081/", r"Port 18081 of this machine is published for port 80 of lonegateway-"),
    ],
)  # fmt: skip
def test_a_gateway_that_no_document_selects_takes_nothing(bookinfo: Mesh, url: str, words: str) -> None:
    with pytest.raises(NotFound, match=words):
        ask(bookinfo, Question("lonegateway", url))


def reviews(subset: str, last: int, state: str) -> Found:
    return {(f"outbound|9080|{subset}|reviews.default.svc.cluster.local", f"10.244.0.{last}:9080"): state}


@pytest.mark.parametrize("state", SAID)
def test_a_destination_whose_only_endpoint_the_proxy_does_not_use_is_one_that_it_answers_for(
    bookinfo: Mesh, state: str
) -> None:
    said = ask(bookinfo, QUESTIONS["header"], reviews("v2", 4, state))
    text = render(said)
    assert (said.outbound.status, said.outbound.flags, said.inbound) == (503, "UH", ())
    assert "\nIt would go 100 % to reviews subset v2 port 9080, but the proxy answers 503 itself (UH):" in text
    assert (
        f"\nAs productpage-v1-0's proxy sees it now, reviews-v2-0 (10.244.0.4:9080) of reviews subset v2 port 9080 is {SAID[state]}."
        in text
    )
    assert f"10.244.0.4:9080  reviews-v2-0  not eligible, mutual TLS, {SAID[state]} now" in text
    assert "Every endpoint that is listed answers" not in text
    assert "those that productpage-v1-0's proxy does not use now are still not used then" in text


def test_one_of_several_destinations_may_have_nobody_while_others_have(bookinfo: Mesh) -> None:
    said = ask(bookinfo, QUESTIONS["weights"], reviews("v2", 4, "EJECTED"))
    text = render(said)
    assert (
        "\nIt goes 80 % to reviews subset v1 port 9080, 20 % to reviews subset v2 port 9080 (none of whose endpoints"
        in text
    )
    assert "is used now: answered with 503 (UH))." in text
    assert [side.workload for side in said.inbound] == ["reviews-v1-0"]


def test_ejected_endpoints_are_used_where_too_few_are_left(bookinfo: Mesh) -> None:
    """Panic, by `minHealthPercent` of its DestinationRule: the decision code knows it, not what says it."""
    catalog = "outbound|9080||catalog.default.svc.cluster.local"
    first, _ = ask(bookinfo, QUESTIONS["hash-of-nothing"]).outbound.endpoints
    said = ask(bookinfo, QUESTIONS["hash-of-nothing"], {(catalog, first.address): "EJECTED"})
    assert all(0.4 < item.share < 0.6 for item in said.outbound.endpoints)
    text = render(said)
    (line,) = (line for line in text.splitlines() if line.strip().startswith(first.address))
    assert line.endswith(
        " % of it, mutual TLS, ejected by outlier detection now, and used since too few others are well"
    ), text
    assert said.unused == {(catalog, first.address): "EJECTED"}


def test_what_the_proxy_found_elsewhere_is_not_told(bookinfo: Mesh) -> None:
    said = ask(bookinfo, QUESTIONS["header"], reviews("v1", 3, "EJECTED"))
    assert (said.unused, said.outbound.status) == ({}, None)
    assert "now, reviews" not in render(said)
    assert "productpage-v1-0's proxy knows nothing else of any of them now." in render(said)


def test_bytes_to_a_destination_that_is_not_there_are_a_closed_connection() -> None:
    raw = {"outcome": "no_cluster", "status": None, "clusters": [{"name": "gone", "weight": 1, "share": 1.0}]}
    target = Target("https", "ledger:3306", "ledger", 3306, "/", "240.240.0.3")
    question = Question("productpage", "https://ledger:3306/")
    text = render(Explanation(question, "productpage-v1-0", "spiffe://mesh", target, Decision.from_json(raw)))
    assert "The rule names a destination that is not there: the proxy closes the connection (NC)." in text


def test_bytes_to_ejected_endpoints_are_a_reset_connection(bookinfo: Mesh) -> None:
    question = Question("productpage", "https://ledger:3306/")
    ledger = "outbound|3306||ledger.default.svc.cluster.local"
    (only,) = ask(bookinfo, question).outbound.endpoints
    text = render(ask(bookinfo, question, {(ledger, only.address): "EJECTED"}))
    assert "It would go 100 % to ledger port 3306, but the proxy resets the connection (UH):" in text
    assert f"now, ledger-v1-0 ({only.address}) of ledger port 3306 is ejected by outlier detection." in text


def test_a_proxy_that_does_not_answer_leaves_an_assumption_that_says_so(bookinfo: Mesh) -> None:
    assumed = ask(bookinfo, QUESTIONS["header"]).assumptions
    assert any("productpage-v1-0's proxy, which would know of ejections" in text for text in assumed)


@pytest.mark.parametrize("host", ["ledger", "127.78.1.3"])
def test_in_explicit_mode_http_does_not_get_to_a_port_of_bytes_and_other_bytes_do(explicit: Mesh, host: str) -> None:
    said = ask(explicit, Question("shop", f"http://{host}:3306/"))
    text = render(said)
    assert said.target.address == "127.78.1.3"
    assert (
        "\nhttp:// does not get there: port 3306 of ledger speaks TCP. By HTTP_PROXY shop-v1-0's proxy answers 503, for it"
        " has no rule for that port; at $LEDGER_SERVICE_HOST (127.78.1.3) it resets what begins with a request of HTTP"
        in text
    )
    assert "\nTo mend it: if that port speaks HTTP, declare it so: `protocol: HTTP`" in text
    assert "\nOf other bytes: it goes 100 % to ledger port 3306.\n" in text
    assert "ledger-v1-0  100 % of it, mutual TLS" in text


def test_what_is_no_http_or_comes_to_a_port_of_http_is_not_told_of_that(explicit: Mesh) -> None:
    for url in ("https://127.78.1.3:3306/", "http://shop:9080/"):
        said = ask(explicit, Question("ledger", url))
        assert said.http_refusal is None, url
        assert "Of other bytes" not in render(said)


def test_where_connections_are_caught_a_port_of_bytes_takes_http_too(bookinfo: Mesh) -> None:
    assert ask(bookinfo, Question("productpage", "http://ledger:3306/")).http_refusal is None
