"""The Gateway API's samples for Bookinfo in place of Istio's, on a mesh of real processes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import BOOKINFO, Mesh, Person, eventually

pytestmark = pytest.mark.e2e

REQUESTS = 12


@pytest.fixture(scope="module")
def mesh(person: Person) -> Iterator[Mesh]:
    """Bookinfo with nothing applied; its gateway publishes port 80, which the sample's Gateway has."""
    for file in (*BOOKINFO.glob("*.py"), *BOOKINFO.glob("*.html"), *(BOOKINFO / "static").iterdir()):
        place = Path("gateway-api") / file.relative_to(BOOKINFO)
        person.write(str(place), file.read_text())
    text = (BOOKINFO / "weft.yaml").read_text().replace("apply: [mesh]\n", "").replace("mesh: bookinfo", "mesh: routes")
    text = text.replace("127.0.0.1:0:8080", "127.0.0.1:0:80").replace("{ingressgateway:8080}", "{ingressgateway:80}")
    person.write("gateway-api/weft.yaml", text)
    with person.mesh(str(person.home / "gateway-api")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_stays(person: Person, mesh: Mesh) -> Iterator[None]:
    """Every test begins and ends without configuration."""
    yield
    person.delete_everything()


@pytest.fixture
def versions(person: Person, corpus: Path) -> Path:
    sample = corpus / "istio" / "samples" / "bookinfo" / "platform" / "kube" / "bookinfo-versions.yaml"
    return person.write("samples/bookinfo-versions.yaml", sample.read_text())


def sample(person: Person, corpus: Path, name: str) -> Path:
    """A sample of Istio's for the Gateway API as a file that the person may read, unchanged."""
    file = corpus / "istio" / "samples" / "bookinfo" / "gateway-api" / f"{name}.yaml"
    return person.write(f"samples/{file.name}", file.read_text())


def apply(person: Person, *files: Path) -> None:
    """Apply without a warning, and wait until the proxies have it."""
    arguments = [part for file in files for part in ("-f", str(file))]
    done = person.weft("apply", *arguments, "--strict", "--wait", "--timeout", "20s")
    assert done.returncode == 0, done.stdout + done.stderr


def reviews(person: Person) -> Counter[str]:
    """Which versions of reviews answer productpage's program, by the colour of the stars."""
    ask = f"for i in $(seq {REQUESTS}); do curl -s http://reviews:9080/reviews/0; echo; done"
    done = person.weft("exec", "productpage-v1-0", "--", "sh", "-c", ask)
    lines = [line for line in done.stdout.splitlines() if line]
    assert len(lines) == REQUESTS, done.stdout + done.stderr
    seen: Counter[str] = Counter()
    for line in lines:
        color = re.search(r'"color": ?"(\w+)"', line)
        seen["v1" if color is None else {"black": "v2", "red": "v3"}[color[1]]] += 1
    return seen


def conditions(item: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in item["conditions"]}


def test_the_samples_apply_unchanged_and_route(person: Person, mesh: Mesh, corpus: Path, versions: Path) -> None:
    apply(person, versions, sample(person, corpus, "bookinfo-gateway"), sample(person, corpus, "route-all-v1"))
    eventually(mesh.is_reached, "the gateway's port is listened on", seconds=2.0)
    status, page = mesh.get("/productpage")
    assert (status, "<h1>Middlemarch</h1>" in page and "Sorry" not in page) == (200, True)
    assert mesh.get("/nothing-there")[0] == 404
    assert set(reviews(person)) == {"v1"}
    apply(person, sample(person, corpus, "route-reviews-v3"))
    assert set(reviews(person)) == {"v3"}
    apply(person, sample(person, corpus, "route-reviews-50-v3"))
    both: Counter[str] = Counter()
    while len(both) < 2 and both.total() < 40 * REQUESTS:
        both += reviews(person)
    assert set(both) == {"v1", "v3"}
    apply(person, sample(person, corpus, "route-reviews-90-10"))
    assert set(reviews(person)) <= {"v1", "v2"}
    apply(person, sample(person, corpus, "route-reviews-v1"))
    assert set(reviews(person)) == {"v1"}


def test_status_says_what_became_of_it(person: Person, mesh: Mesh, corpus: Path, versions: Path) -> None:
    apply(person, versions, sample(person, corpus, "bookinfo-gateway"))
    route = person.json("get", "httproute", "bookinfo")
    (parent,) = route["status"]["parents"]
    assert parent["parentRef"] == {"name": "bookinfo-gateway"}
    assert conditions(parent) == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    gateway = person.json("get", "gtw", "bookinfo-gateway")["status"]
    assert conditions(gateway)["Programmed"] == ("True", "Programmed")
    assert gateway["addresses"] == [{"type": "IPAddress", "value": "127.0.0.1"}]
    assert [(item["name"], item["attachedRoutes"]) for item in gateway["listeners"]] == [("http", 1)]
    lines = person.weft("get", "gateway", "bookinfo-gateway").stdout.splitlines()
    assert lines[0].split() == ["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"]
    assert lines[1].split()[:4] == ["bookinfo-gateway", "istio", "127.0.0.1", "True"]


LOST = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost}
spec:
  parentRefs:
  - {name: nowhere}
  - {group: "", kind: Service, name: reviews}
  rules:
  - backendRefs:
    - {name: reviews-v9, port: 9080}
"""


def test_what_does_not_hold_is_warned_about_where_it_is_written(person: Person, mesh: Mesh) -> None:
    file = person.write("lost.yaml", LOST)
    refused = person.weft("apply", "-f", str(file), "--strict")
    assert refused.returncode == 3
    done = person.weft("apply", "-f", str(file))
    assert done.returncode == 0
    for text in (done.stderr, refused.stderr):
        assert f"{file}:6:5" in text or "lost.yaml:6:5" in text, text
        assert "lost.yaml:10:8" in text, text
    parents = person.json("get", "httproute", "lost")["status"]["parents"]
    assert [conditions(parent) for parent in parents] == [
        {"Accepted": ("False", "NoMatchingParent"), "ResolvedRefs": ("False", "BackendNotFound")},
        {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("False", "BackendNotFound")},
    ]


def test_why_explains_the_rule_and_what_came_before(person: Person, mesh: Mesh, versions: Path, corpus: Path) -> None:
    text = """\
        apiVersion: gateway.networking.k8s.io/v1
        kind: HTTPRoute
        metadata: {name: reviews}
        spec:
          parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]
          rules:
          - matches: [{headers: [{name: end-user, value: jason}]}]
            backendRefs: [{name: reviews-v2, port: 9080}]
          - backendRefs: [{name: reviews-v3, port: 9080}]
        """
    apply(person, versions, person.write("jason.yaml", text))
    ask = ("why", "--from", "productpage-v1-0", "--to", "http://reviews:9080/reviews/0")
    jason = person.weft(*ask, "-H", "end-user: jason")
    assert "HTTPRoute default/reviews, spec.rules[0]" in jason.stdout, jason.stdout + jason.stderr
    assert "jason.yaml:7:" in jason.stdout
    others = person.weft(*ask).stdout
    assert "HTTPRoute default/reviews, spec.rules[1]" in others
    assert "jason.yaml:7:" in others, "it says why the rule before did not match"
    answer = json.loads(person.weft(*ask, "-o", "json").stdout)
    assert "reviews-v3" in json.dumps(answer)


def test_the_examples_own_document_stands_beside_istios(person: Person, mesh: Mesh) -> None:
    """The example publishes port 8080; here it is the listener's port that differs, and nothing else."""
    text = (BOOKINFO / "try" / "gateway-api.yaml").read_text().replace("port: 8080", "port: 80")
    apply(person, person.write("example.yaml", text))
    eventually(mesh.is_reached, "the gateway's port is listened on", seconds=2.0)
    assert mesh.get("/productpage", Host="gateway-api.localhost")[0] == 200
    assert mesh.get("/productpage")[0] == 404
    ask = ("exec", "productpage-v1-0", "--", "curl", "-s", "-H", "end-user: jason", "http://reviews:9080/reviews/0")
    assert '"red"' in person.weft(*ask).stdout
