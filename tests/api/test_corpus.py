"""Real documents: Istio's samples are taken, everything else is taken or refused with a place and a reason."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from weft.api.kinds import KINDS
from weft.api.parse import ParseResult, parse
from weft.api.references import dangling
from weft.api.yaml import read
from weft.model import Snapshot

BOOKINFO = (
    "bookinfo-gateway",
    "destination-rule-all",
    "destination-rule-all-mtls",
    "virtual-service-all-v1",
    "virtual-service-reviews-v3",
    "virtual-service-reviews-50-v3",
    "virtual-service-reviews-80-20",
    "virtual-service-reviews-90-10",
    "virtual-service-reviews-jason-v2-v3",
    "virtual-service-reviews-test-v2",
    "virtual-service-ratings-test-delay",
    "virtual-service-ratings-test-abort",
    "virtual-service-details-v2",
)


@pytest.mark.parametrize("name", BOOKINFO)
def test_bookinfo_is_taken_unchanged(name: str, corpus: Path) -> None:
    path = corpus / "istio" / "samples" / "bookinfo" / "networking" / f"{name}.yaml"
    text = path.read_text()
    result = parse([(str(path), text)])
    assert result.problems == ()
    assert len(result.objects) == text.count("\nkind: ")


def test_every_document_of_the_corpus_is_taken_or_refused_with_a_place_and_a_reason(corpus: Path) -> None:
    """Without the schemas and what istiod generated: megabytes that nobody applies."""
    files = [
        file
        for file in sorted((*corpus.rglob("*.yaml"), *corpus.rglob("*.json")))
        if "crds" not in file.parent.as_posix() and not (file.suffix == ".json" and "istiod-xds" in file.parts)
    ]
    assert len(files) > 400
    taken = 0
    for file in files:
        text = file.read_text()
        lines = text.count("\n") + 1
        result = parse([(str(file), text)])
        taken += len(result.objects)
        for problem in result.problems:
            assert problem.origin.file == str(file)
            assert 1 <= problem.origin.line <= lines + 1
            assert problem.origin.column >= 1
            assert problem.message.endswith((".", "?")), str(problem)
            assert problem.code
        for item in result.objects:
            _every_part_has_a_place(item.manifest["spec"], ("spec",), dict(item.positions))
    assert taken > 200


def _every_part_has_a_place(value: Any, path: tuple[str | int, ...], positions: dict[Any, Any]) -> None:
    assert path in positions
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _every_part_has_a_place(part, (*path, key), positions)


def test_nothing_of_an_honoured_kind_is_left_out_in_silence(corpus: Path) -> None:
    """What is parsed and put back has every field that was written: none was dropped on the way."""
    checked = 0
    for file in sorted((corpus / "istio" / "samples").rglob("*.yaml")):
        for item in parse([(str(file), file.read_text())]).objects:
            dumped = json.loads(item.spec.model_dump_json(by_alias=True, exclude_unset=True))
            assert _keys(dumped) == _keys(item.manifest["spec"]), file
            checked += 1
    assert checked > 40


def _keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _keys(part) for key, part in value.items() if part is not None}
    return [_keys(part) for part in value] if isinstance(value, list) else None


def test_what_the_api_server_refuses_is_refused_for_the_same_field(corpus: Path) -> None:
    for kind in ("destinationrule",):
        folder = corpus / "istio" / "api-crd-validation"
        documents, _ = read("f", (folder / f"{kind}-invalid.yaml").read_text())
        assert documents
        for document in documents:
            expected = document.value.pop("_err")
            text = json.dumps(document.value)
            path, _, reason = expected.partition(": ")
            found = [(problem.path, problem.code) for problem in parse([("f", text)]).problems]
            codes = {"Invalid value": "out-of-range", "Required value": "missing-field"}
            assert (path, codes[reason]) in found


def test_what_the_api_server_takes_is_taken_or_not_honoured(corpus: Path) -> None:
    result = parse([("f", (corpus / "istio" / "api-crd-validation" / "destinationrule-valid.yaml").read_text())])
    assert {problem.code for problem in result.problems} <= {"not-honoured"}


# Istio's analyzers, for those that look at kinds and references that weft has


@pytest.fixture(scope="session")
def expected(corpus: Path) -> dict[str, Any]:
    cases = json.loads((corpus / "istio" / "analyzers-testdata" / "expected.json").read_text())
    return {case["name"]: case for case in cases}


def honoured_only(corpus: Path, files: list[str]) -> tuple[ParseResult, Snapshot]:
    folder = corpus / "istio" / "analyzers-testdata"
    result = parse([(name, (folder / name).read_text()) for name in files])
    return result, Snapshot(config={item.key: item for item in result.objects})


def resources(case: dict[str, Any], message: str) -> set[str]:
    names = (resource for found, resource in case["expected"] if found == message)
    return {name if "/" in name else name.replace(" ", " default/") for name in names}


def test_hosts_that_a_gateway_does_not_have_are_those_of_istio(corpus: Path, expected: dict[str, Any]) -> None:
    """With one mend: two servers of a Gateway share a port's name there, which Istio's own validation refuses."""
    case = expected["host defined in virtualservice not found in the gateway"]
    (name,) = case["inputFiles"]
    lines = (corpus / "istio" / "analyzers-testdata" / name).read_text().splitlines()
    assert [str(problem.origin) for problem in parse([("f", "\n".join(lines))]).errors] == ["f:195:13"]
    lines[194] = lines[194].replace("http", "http-2")
    result = parse([(name, "\n".join(lines))])
    assert not result.errors
    view = Snapshot(config={item.key: item for item in result.objects})
    found = {
        str(key)
        for key, problems in dangling(view).items()
        if any(problem.code == "host-not-in-gateway" for problem in problems)
    }
    assert found == resources(case, "VirtualServiceHostNotFoundInGateway")


def test_conflicting_hosts_are_those_of_istio(corpus: Path, expected: dict[str, Any]) -> None:
    """Those that weft reads: what is exported to some namespaces only is refused before."""
    case = expected["virtualServiceConflictingMeshGatewayHosts"]
    result, view = honoured_only(corpus, case["inputFiles"])
    assert {problem.code for problem in result.errors} == {"not-honoured"}
    assert all(problem.path.startswith("spec.exportTo") for problem in result.errors)
    found = {
        str(key) for key, problems in dangling(view).items() if any(problem.code == "same-host" for problem in problems)
    }
    read_objects = {str(item.key) for item in result.objects}
    assert found == {
        name for name in resources(case, "ConflictingMeshGatewayVirtualServiceHosts") if name in read_objects
    }


def test_unreachable_rules_are_those_of_istios_own_duplicates(corpus: Path) -> None:
    text = (corpus / "istio" / "analyzers-testdata" / "virtualservice_dupmatches.yaml").read_text()
    warnings = [
        (problem.origin.line, problem.code)
        for problem in parse([("f", text)]).problems
        if problem.code in ("unreachable-rule", "ineffective-match")
    ]
    assert (18, "unreachable-rule") in warnings
    assert (41, "unreachable-rule") in warnings
    assert (66, "ineffective-match") in warnings
    assert (64, "unreachable-rule") not in warnings


def test_a_thousand_documents_are_read_in_half_a_second(corpus: Path) -> None:
    """The reader alone, best of three; the machines are shared."""
    folder = corpus / "istio" / "samples" / "bookinfo" / "networking"
    documents = [
        part for path in sorted(folder.glob("*.yaml")) for part in path.read_text().split("\n---") if "kind: " in part
    ]
    texts = [documents[index % len(documents)] for index in range(1000)]
    best = min(_seconds(texts) for _ in range(3))
    assert best < 0.5


def _seconds(texts: list[str]) -> float:
    started = time.process_time()
    for text in texts:
        documents, problems = read("f", text)
        assert len(documents) == 1
        assert not problems
    return time.process_time() - started


def test_all_kinds_have_real_documents_in_the_corpus(corpus: Path) -> None:
    found = set()
    for file in sorted((corpus / "istio").rglob("*.yaml")):
        if "crds" not in file.parts:
            found |= {item.key.kind for item in parse([(str(file), file.read_text())]).objects}
    assert found == set(KINDS)


def test_peer_authentications_are_judged_as_the_api_server_does(corpus: Path) -> None:
    folder = corpus / "istio" / "api-crd-validation"
    taken = parse([("f", (folder / "peerauth-valid.yaml").read_text())])
    assert not taken.problems
    assert len(taken.objects) == 2
    documents, _ = read("f", (folder / "peerauth-invalid.yaml").read_text())
    for document in documents:
        assert document.value.pop("_err")
        result = parse([("f", json.dumps(document.value))])
        assert result.errors
        assert not result.objects
