"""`weft why` says who refuses a connection, by which line, and what to do about it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.controlplane.peers import Mesh, running_mesh
from tests.insight.test_why import ask
from weft.cli.main import cli
from weft.insight import Question, render

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
