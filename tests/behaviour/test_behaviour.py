"""
The behaviour suite: each case through four executors that must agree.

(a) the reference evaluator, written from Istio's documentation; (b) the engine in process; (c) weft-proxy live;
(d) Envoy live, driven by the same translation. (a) says what may happen with which probability; the others are held
against it. Hand-pinned `check` entries hold (a) itself to account.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.behaviour import engine, mesh
from tests.behaviour.cases import Asked, Case, all_cases, services
from tests.behaviour.live import Answer, DataPlane, data_plane
from tests.behaviour.upstreams import Upstreams
from tests.reference.evaluate import Outcome, Possible, evaluate

CASES = all_cases()

COPY_SECONDS = 10.0
"""For copies, which are on their way when the answer is there."""


def documents(case: Case) -> list[dict[str, object]]:
    import yaml

    return [document for document in yaml.safe_load_all(case.config) if document]


def expected(case: Case, asked: Asked) -> Possible:
    return evaluate(asked.request, documents(case), services())


@pytest.fixture(scope="module")
def upstreams() -> Iterator[Upstreams]:
    servers = Upstreams(mesh.addresses())
    yield servers
    servers.close()


@pytest.fixture(
    scope="module", params=["weft-proxy", pytest.param("envoy", marks=pytest.mark.conformance)], ids=lambda name: name
)
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataPlane]:
    with data_plane(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_says_what_was_pinned_by_hand(case: Case) -> None:
    for asked in case.asked:
        outcomes = expected(case, asked)
        assert math.isclose(sum(share for share, _ in outcomes), 1.0)
        pinned = {name: value for name, value in asked.check.items() if name != "live_status"}
        if not pinned:
            continue
        assert len(outcomes) == 1, f"{asked.request}: pinned, but several outcomes: {outcomes}"
        for name, value in pinned.items():
            found = getattr(outcomes[0][1], name)
            assert (sorted(found) if name == "workloads" else found) == value, f"{asked.request}: {outcomes[0][1]}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_engine_agrees_with_the_reference(case: Case) -> None:
    resources = mesh.resources(case.config, data_plane="weft-proxy", port=15001, target_port=9080)
    for asked in case.asked:
        found = engine.possible(resources, asked.request, "127.0.0.1:15001")
        want = expected(case, asked)
        assert shares(found) == pytest.approx(shares(want)), f"{asked.request}"
        assert policies(found) == policies(want), f"{asked.request}"
        assert [outcome.copies for _, outcome in found] == [outcome.copies for _, outcome in want], f"{asked.request}"
        decided = [bool(outcome.sticks_by) for _, outcome in want]
        assert [outcome.sticks_by in outcome.workloads for _, outcome in found] == decided, f"{asked.request}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_live_proxy_agrees_with_the_reference(case: Case, plane: DataPlane, upstreams: Upstreams) -> None:
    resources = mesh.resources(case.config, data_plane=plane.name, port=plane.port, target_port=upstreams.port)
    plane.publish(resources)
    for asked in case.asked:
        want = expected(case, asked)
        answers = []
        for _ in range(asked.repeat):
            upstreams.behave(**asked.upstream)
            answers.append(plane.send(asked.request))
        if "live_status" in asked.check:
            assert {answer.status for answer in answers} == {asked.check["live_status"]}, f"{asked.request}"
            continue
        for answer in answers:
            agreed = [outcome for share, outcome in want if share and agrees(answer, outcome)]
            assert agreed, f"{asked.request}\nanswered {answer}\nbut could only be one of {want}"
        if asked.repeat > 1:
            compare_shares(answers, want)
        if len(want) == 1 and want[0][1].sticks_by:
            # As the engine foretells, which does not know what the data plane is.
            ((_, foretold),) = engine.possible(resources, asked.request, f"127.0.0.1:{plane.port}")
            reached = {answer.echo["workload"] for answer in answers if answer.echo is not None}
            assert reached == {foretold.sticks_by}, f"{asked.request}"
        if len(want) == 1:
            compare_copies(answers, want[0][1], upstreams)


def shares(possible: Possible) -> dict[str, float]:
    """Outcomes by what tells them apart, with their probability."""
    found: Counter[str] = Counter()
    for share, outcome in possible:
        if outcome.kind == "redirect":
            what = f"redirect {outcome.status}"
        elif outcome.kind == "forward":
            what = "forward " + " ".join(sorted(outcome.workloads))
        else:
            what = f"{outcome.kind} {outcome.status or ''}"
        found[f"{what} after {outcome.delay_seconds} s"] += share  # type: ignore[assignment]
    return {what: share for what, share in found.items() if share}


def policies(possible: Possible) -> set[tuple[object, ...]]:
    """Timeouts and retries in force where a request is forwarded."""
    return {
        (
            outcome.timeout_seconds,
            outcome.attempts,
            frozenset(outcome.retry_on.split(",")) if outcome.attempts else frozenset(),
            outcome.per_try_timeout_seconds,
        )
        for share, outcome in possible
        if share and outcome.kind == "forward"
    }


def compare_copies(answers: list[Answer], want: Outcome, upstreams: Upstreams) -> None:
    """Wait until as many copies have come as the shares promise, within five standard deviations; none goes elsewhere."""
    ids = [answer.echo["headers"]["x-request-id"] for answer in answers if answer.echo is not None]
    total = len(ids)
    for workloads, share in want.copies:
        allowed = 5 * math.sqrt(total * share * (1 - share)) + 1e-9
        deadline = time.monotonic() + COPY_SECONDS
        while True:
            arrived = [came for id_ in ids for came in upstreams.received[id_][:] if came[0] in workloads]
            if abs(len(arrived) - total * share) <= allowed:
                break
            assert time.monotonic() < deadline, f"{len(arrived)} of {total} copies have come, expected {share:.0%}"
            time.sleep(0.01)
        assert {path for _, path in arrived} == {want.path}
    everybody = want.workloads.union(*(workloads for workloads, _ in want.copies))
    assert {name for id_ in ids for name, _ in upstreams.received[id_]} <= everybody


def agrees(answer: Answer, outcome: Outcome) -> bool:
    """Whether *answer* is what *outcome* promises."""
    if answer.seconds < outcome.delay_seconds * 0.95:
        return False
    if outcome.kind == "respond":
        return (
            answer.status == outcome.status
            and answer.echo is None
            and outcome.body in answer.body.decode()
            and all(answer.headers.get(name) == value for name, value in outcome.response_headers.items())
            and not any(name in answer.headers for name in outcome.removed_response_headers)
        )
    if outcome.kind == "redirect":
        return (answer.status, normal(answer.headers.get("location", ""))) == (outcome.status, normal(outcome.location))
    if answer.echo is None or answer.echo["workload"] not in outcome.workloads:
        return False
    received = answer.echo["headers"]
    gone = outcome.removed_response_headers
    return (
        answer.echo["path"] == outcome.path
        and received["host"] == outcome.authority
        and all(received.get(name) == value for name, value in outcome.request_headers.items())
        and "x-removed" not in received
        and all(answer.headers.get(name) == value for name, value in outcome.response_headers.items())
        and not any(name in answer.headers for name in gone)
    )


def normal(location: str) -> str:
    """A URL without the port that its scheme implies: the same place (RFC 3986 6.2.3)."""
    parts = urlsplit(location)
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return parts._replace(netloc=parts.netloc.removesuffix(default) if default else parts.netloc).geturl()


def compare_shares(answers: list[Answer], want: Possible) -> None:
    """Observed shares lie within five standard deviations of the probability (one false alarm in two million)."""
    total = len(answers)
    for share, outcome in want:
        seen = sum(agrees(answer, outcome) for answer in answers)
        allowed = 5 * math.sqrt(total * share * (1 - share)) + 1e-9
        assert abs(seen - total * share) <= allowed, f"{outcome}: {seen} of {total}, expected a share of {share}"
