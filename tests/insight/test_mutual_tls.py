"""`weft why` says who refuses a connection, by which line, and what to do about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from tests.controlplane.peers import Mesh, running_mesh
from tests.insight.test_copies import published, record
from tests.insight.test_why import ask
from weft.cli.main import cli
from weft.insight import Question, happened, render, tell
from weft.translate import names

TO_REVIEWS = Question("productpage", "http://reviews:9080/")
PLAIN = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    tls: {mode: DISABLE}
"""
POLICY = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec:
  mtls: {{mode: {mode}}}
"""


def explained(documents: dict[str, str], question: Question | None = None) -> str:
    """Return what is said of a request to reviews, in a mesh with *documents* by file name."""
    declaration = {"boot": "1", "documents": [{"file": file, "text": text} for file, text in documents.items()]}
    for mesh in running_mesh(declaration):
        return render(ask(mesh, question or calls(mesh)))
    raise AssertionError("unreachable")


def calls(mesh: Mesh) -> Question:
    mesh.running("productpage", port=None)
    mesh.running("reviews")
    return TO_REVIEWS


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (
            {"rule.yaml": PLAIN},
            [
                "It would go 100 % to reviews port 9080, but it is refused there: The proxy of reviews-v1-0 accepts nothing but"
                " mutual TLS, by weft's default, STRICT: no PeerAuthentication says otherwise. DestinationRule"
                " default/reviews, trafficPolicy.tls (rule.yaml:7:5) makes the caller speak plain text.",
                "To mend it: remove `tls` from DestinationRule default/reviews, or write mode ISTIO_MUTUAL there; or let"
                " reviews-v1-0 accept plain text, too: PeerAuthentication with mode PERMISSIVE.",
            ],
        ),
        (
            {"rule.yaml": PLAIN, "strict.yaml": POLICY.format(mode="STRICT")},
            ["by PeerAuthentication default/default, spec.mtls.mode (strict.yaml:5:10)."],
        ),
        (
            {"rule.yaml": PLAIN.replace("DISABLE", "ISTIO_MUTUAL"), "off.yaml": POLICY.format(mode="DISABLE")},
            [
                "The proxy of reviews-v1-0 takes plain text only, by PeerAuthentication default/default, spec.mtls.mode"
                " (off.yaml:5:10). DestinationRule default/reviews, trafficPolicy.tls (rule.yaml:7:5) makes the caller"
                " speak mutual TLS.",
                "To mend it: remove DestinationRule default/reviews's `tls`",
            ],
        ),
        (
            {"rule.yaml": PLAIN, "both.yaml": POLICY.format(mode="PERMISSIVE")},
            [
                "It goes 100 % to reviews port 9080.",
                "reviews-v1-0 takes callers without a certificate, by PeerAuthentication default/default, spec.mtls.mode",
            ],
        ),
        (
            {"strict.yaml": POLICY.format(mode="STRICT")},
            [
                "It goes 100 % to reviews port 9080.",
                "plaintext is refused\n    by PeerAuthentication default/default, spec.mtls.mode (strict.yaml:5:10)",
            ],
        ),
    ],
)  # fmt: skip
def test_who_refuses_by_which_line_and_what_to_do(documents: dict[str, str], words: list[str]) -> None:
    text = explained(documents)
    for sentence in words:
        assert sentence in text, text


def test_workloads_of_one_destination_that_differ_are_asked_each() -> None:
    """A PeerAuthentication with a selector is for some of them."""
    one = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: one}
spec:
  selector: {matchLabels: {version: v1}}
  mtls: {mode: PERMISSIVE}
"""
    for mesh in running_mesh():
        mesh.running("productpage", port=None)
        for version in ("v1", "v1", "v2", "v2"):
            mesh.running("reviews", version)
        for file, text in (("rule.yaml", PLAIN), ("one.yaml", one)):
            mesh.apply(text, file=file)
        said = ask(mesh, TO_REVIEWS)
        assert [(side.workload, side.refusal is None) for side in said.inbound] == [
            ("reviews-v1-0", True),
            ("reviews-v2-0", False),
        ]
        text = render(said)
        assert (
            "It would go 100 % to reviews port 9080, but it is refused in part: The proxy of reviews-v2-0 accepts"
            in text
        )
        assert "reviews-v1-0 takes callers without a certificate" in text


def test_a_call_of_a_workloads_address_is_plain_text_and_explained() -> None:
    """Its proxy knows no identity to expect there, so it passes the bytes on."""
    for mesh in running_mesh():
        mesh.running("productpage", port=None)
        server = mesh.running("reviews")
        explanation = ask(mesh, Question("productpage", f"http://{server.registered['address']}:9080/"))
        (side,) = explanation.inbound
        assert (side.workload, side.requires_tls) == (server.name, True)
        text = render(explanation)
        assert "A program that calls a workload's address, not its service's name, is passed on in plain text." in text
        assert "Call it by the name of its service" in text.replace("call it", "Call it")


def test_programs_read_the_refusal_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for mesh in running_mesh({"boot": "1", "documents": [{"file": "rule.yaml", "text": PLAIN}]}):
        calls(mesh)
        for name, value in mesh.environment.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(cli, ["why", "--from", "productpage", "--to", "http://reviews:9080/", "-o", "json"])
        (side,) = json.loads(result.stdout)["inbound"]
        assert side["accepts"] == {"mutual_tls": True, "plain_text": False}
        assert side["policy"] == {"origin": "default"}
        assert side["refusal"]["reason"].startswith("The proxy of reviews-v1-0 accepts nothing but mutual TLS")


def happened_to(document: str, policy: str, *, direct: bool = False, **fields: Any) -> str:
    """Return what is said of a request of productpage to reviews that met *fields*; in plain text it is refused there."""
    documents = [{"file": file, "text": text} for file, text in (("rule.yaml", document), ("policy.yaml", policy))]
    declaration = {"boot": "1", "documents": [item for item in documents if item["text"]]}
    for mesh in running_mesh(declaration):
        mesh.running("productpage", port=None)
        reviews = mesh.running("reviews").registered["address"]
        (service,) = [item for item in mesh.client.get("/v1/services") if item["name"] == "reviews"]
        called, local = f"{reviews}:9080", "10.244.0.2:40000"
        listener = called if direct else f"{service['address']}:9080"
        cluster = names.MESH_PASSTHROUGH if direct else f"outbound|9080||{service['hostname']}"
        known = {"status": 503, "attempts": 1, "upstream": called, "upstream_local": local, "details": "upstream_reset"}
        call = record(
            "productpage-v1-0",
            0.0,
            direction="outbound",
            downstream="10.244.0.2:39999",
            authority=listener if direct else "reviews:9080",
            **(known | {"listener": listener, "cluster": cluster} | fields),
        )
        end = {"direction": "inbound", "listener": called, "downstream": local, "client": "productpage-v1-0"}
        there = record("reviews-v1-0", 0.001, "connections", downstream_failure="plaintext_to_tls_listener", **end)
        refused = [there] if "transport_failure" not in fields else []
        return tell(happened([call], refused, lambda node, _, mesh=mesh: [published(mesh, node)]))
    raise AssertionError("unreachable")


def test_plain_text_by_a_rule_is_told_with_the_rule() -> None:
    """Who called the service by its name is not told to do so."""
    text = happened_to(PLAIN, POLICY.format(mode="STRICT"), flags=("UC",))
    assert (
        "productpage-v1-0 spoke plain text, as DestinationRule default/reviews says, and reviews-v1-0 requires" in text
    )
    assert (
        "Policy: PeerAuthentication default/default, spec.mtls.mode (policy.yaml:5:10); DestinationRule default/reviews,"
        " trafficPolicy.tls (rule.yaml:7:5)\n"
    ) in text
    assert "Remove `tls` from DestinationRule default/reviews, or write mode ISTIO_MUTUAL there; or let" in text
    assert "by the name of its service" not in text
    # Its proxy has told of the connection, so it is not said that it tells nothing.
    assert "UC: The proxy of reviews-v1-0 refused the connection." in text
    assert "tells nothing of the request" not in text


WEIGHTED = """\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews}, weight: 9}, {destination: {host: productpage}, weight: 1}]}]
"""


def test_plain_text_by_a_rule_is_told_of_a_share_too() -> None:
    """Of several destinations the route's own line is at hand; the rule is the cluster's."""
    text = happened_to(PLAIN + WEIGHTED, "", flags=("UC",), origin="rule.yaml:15:10")
    assert "productpage-v1-0 spoke plain text, as DestinationRule default/reviews says" in text
    assert "DestinationRule default/reviews, trafficPolicy.tls (rule.yaml:7:5)\n" in text


def test_plain_text_to_an_address_is_told_with_the_name() -> None:
    text = happened_to("", "", direct=True, flags=("UC",))
    assert "productpage-v1-0 spoke plain text, and reviews-v1-0 requires mutual TLS (STRICT)." in text
    assert "Call it by the name of its service" in text
    assert "DestinationRule" not in text


@pytest.mark.parametrize("failure", ["TLS_error: WRONG_VERSION_NUMBER", "corrupt message of type InvalidContentType"])
def test_tls_by_a_rule_to_plain_text_is_told_with_the_rule(failure: str) -> None:
    """In the words of either library; the server is in the mesh, and not told to join it."""
    rule = PLAIN.replace("DISABLE", "ISTIO_MUTUAL")
    text = happened_to(rule, POLICY.format(mode="DISABLE"), flags=("UF",), transport_failure=failure)
    assert "reviews-v1-0 takes plain text only, and productpage-v1-0's proxy spoke TLS, as DestinationRule" in text
    assert "Policy: DestinationRule default/reviews, trafficPolicy.tls (rule.yaml:7:5)\n" in text
    assert (
        "What to do: Remove `tls` from DestinationRule default/reviews, or let reviews-v1-0 accept mutual TLS" in text
    )
    assert "join the mesh" not in text
