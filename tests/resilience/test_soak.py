"""What an hour's soak takes for noise and what for a finding, on samples and answers that are made up."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resilience import soak
from tests.resilience.changes import KINDS, REQUESTS
from tests.resilience.conftest import LOST_EACH, Traffic
from tests.resilience.programs import websocket
from tests.resilience.soak import DIRECT, STREAMS, THREADS, Crash, Memory, Seen, grown, reported, text
from tests.resilience.test_crashes import Death, unexpected

HALF_SECONDS = 1800.0
"""Of memory that an hour's soak looks at."""


def sampled(size: Callable[[float], float], seconds: float = HALF_SECONDS) -> list[tuple[float, float]]:
    """Return a sample each two seconds, with noise of half a MiB."""
    dice = random.Random(1)
    return [(float(now), size(now) + dice.uniform(-0.5, 0.5)) for now in range(0, int(seconds) + 1, 2)]


@pytest.mark.parametrize(
    ("size", "flat"),
    [
        pytest.param(lambda _: 10.0, True, id="noise"),
        pytest.param(
            lambda now: 10.0 + 6.0 * now / 3600, False, id="six MiB an hour, of which half an hour shows three"
        ),
        pytest.param(lambda now: 10.0 + 3.0 * now / 3600, True, id="less than is allowed"),
        pytest.param(lambda now: 10.0 + 1.5 * (now > HALF_SECONDS / 2), True, id="one step"),
        pytest.param(lambda now: 100.0 + 15.0 * now / 3600, True, id="a share of what is large"),
        pytest.param(lambda now: 10.0 - 6.0 * now / 3600, True, id="shrinking"),
    ],
)
def test_memory_of_an_hours_soak_is_judged_by_growth_within_an_hour(size: Callable[[float], float], flat: bool) -> None:
    assert grown(sampled(size), 0.0, HALF_SECONDS)["flat"] is flat


@pytest.mark.parametrize(("growth", "flat"), [(3.0, True), (9.0, False)])
def test_memory_of_a_short_soak_is_judged_by_its_ends(growth: float, flat: bool) -> None:
    """A minute's growth says nothing of an hour's."""
    row = grown(sampled(lambda now: 10.0 + growth * now / 60, 60.0), 0.0, 60.0)
    assert (row["flat"], row["mib_per_hour"]) == (flat, None)


@pytest.mark.parametrize(
    ("name", "mib", "descriptors", "flat"),
    [
        ("weft-proxy of a-0", 0.0, 0, True),
        ("weft-proxy of a-0", 20.0, 0, False),
        ("weft-proxy of a-0", 0.0, 60, False),
        ("python3 server.py 8080", 20.0, 0, True),
        ("python3 server.py 8080", 0.0, 60, False),
    ],
)
def test_a_program_may_keep_its_memory_but_no_connections(name: str, mib: float, descriptors: int, flat: bool) -> None:
    memory = Memory.__new__(Memory)
    memory._samples = {
        (1, name): [
            (float(now), 10.0 + mib * now / HALF_SECONDS, 10 + int(descriptors * now / HALF_SECONDS))
            for now in range(1801)
        ]
    }
    (row,) = memory.growth(0.0, HALF_SECONDS)
    assert row["flat"] is flat


def test_what_ends_late_is_met_late() -> None:
    """Where there is no turn for a process that was killed, its connections break when there is."""
    late = Crash("agent server-v2-1", DIRECT, 10.0, ended=12.1)
    assert not judged(late, answer(12.05), answer(13.0)).unexplained
    assert len(judged(Crash("agent server-v2-1", DIRECT, 10.0, ended=10.2), answer(12.05)).unexplained) == 1


def test_a_program_that_died_is_met_until_everybody_knows() -> None:
    """Its own proxy answers for it until then, however many come; of what comes later only a few were under way."""
    bound = LOST_EACH * THREADS
    crash = Crash("program server-v2-0", DIRECT, 10.0, ended=10.1, known=11.5)
    seen = judged(crash, *(answer(11.4) for _ in range(3 * bound)), answer(11.6))
    assert (crash.lost, len(seen.unexplained)) == (3 * bound, 1)
    crash = Crash("program server-v2-0", DIRECT, 10.0, ended=10.1, known=10.2)
    seen = judged(crash, answer(10.15), *(answer(10.9) for _ in range(bound + 1)))
    assert (crash.lost, len(seen.unexplained)) == (1 + bound, 1)


def test_the_second_half_begins_when_the_last_crash_is_over() -> None:
    seen = Seen(seed=0, seconds=60.0, started=100.0)
    assert (seen.middle, seen.end) == (130.0, 160.0)
    seen.whole = 140.0
    assert (seen.middle, seen.end) == (140.0, 170.0)


def answer(start: float, **more: Any) -> dict[str, Any]:
    return {"kind": "plain", "start": start, "end": start + 0.01, "status": 503, "flags": "", "whole": False} | more


class NothingAllowed:
    """Stands for a `Driver` of whose configurations none allows an answer."""

    def __init__(self) -> None:
        self.timeline = self
        self.over, self.late, self.is_prompt = 0, set[float](), True

    def faults(self, lines: list[dict[str, Any]]) -> list[Any]:
        return [(line, []) for line in lines]

    def forget(self) -> None:
        """There is nothing."""


def judged(crash: Crash, *answers: dict[str, Any]) -> Seen:
    seen = Seen(seed=0, seconds=60.0, crashes=[crash], started=0.0)
    seen.judge(NothingAllowed(), list(answers))  # type: ignore[arg-type]
    return seen


def test_no_crash_excuses_more_than_its_callers_can_have_under_way() -> None:
    bound = LOST_EACH * THREADS
    seen = judged(Crash("proxy client-0", DIRECT, 10.0), *(answer(10.1) for _ in range(bound + 3)))
    assert (seen.crashes[0].lost, len(seen.unexplained)) == (bound, 3)


def test_a_crash_excuses_only_what_went_through_it_and_only_then() -> None:
    seen = judged(Crash("proxy client-0", DIRECT, 10.0), answer(10.1, kind="tcp"), answer(11.1), answer(9.0))
    assert len(seen.unexplained) == 3
    assert Crash("proxy echo-v1-0", STREAMS, 0.0).bound > Crash("proxy client-0", DIRECT, 0.0).bound > 0
    assert Crash("control-plane", frozenset(), 0.0).bound == 0


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"status": 200, "who": "v1"}, id="other bytes"),
        pytest.param({"status": 200, "who": "v9", "whole": True}, id="another server"),
        pytest.param({"status": 404}, id="a status that no rule gives"),
        pytest.param({"broken": "ValueError()"}, id="something that no caller expects"),
    ],
)
def test_no_crash_excuses_an_answer_that_is_wrong(wrong: dict[str, Any], tmp_path: Path) -> None:
    line = answer(10.1, **wrong)
    seen = judged(Crash("proxy client-0", DIRECT, 10.0), line)
    assert (seen.crashes[0].lost, [item["answer"] for item in seen.unexplained]) == (0, [line])
    traffic = Traffic(tmp_path / "record.jsonl", seen=[line, answer(10.1), answer(10.1, error="ConnectionResetError")])
    assert unexpected(traffic, [Death(10.0, 10.2)]) == [line]


def test_a_websocket_message_that_breaks_off_is_not_a_wrong_one() -> None:
    whole = io.BytesIO()
    websocket.send(whole, b"x" * 200)
    for size in range(len(whole.getvalue())):
        assert websocket.receive(io.BytesIO(whole.getvalue()[:size])) is None
    assert websocket.receive(io.BytesIO(whole.getvalue())) == b"x" * 200
    with pytest.raises(ValueError, match="no binary message"):
        websocket.receive(io.BytesIO(b"HTTP/1.1 200 OK"))


def test_who_is_gone_is_told_for_a_while_and_to_its_callers_only() -> None:
    crash = Crash("proxy client-0", DIRECT, 10.0, gone_until=40.0)
    gone = {"flags": "no healthy upstream"}
    seen = judged(crash, answer(12.0, **gone), answer(12.0, kind="tcp", **gone), answer(30.0, **gone))
    assert (seen.gone_meanwhile, len(seen.unexplained)) == (1, 2)


def test_a_soak_that_breaks_off_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was seen before; pytest's own failures are not an `Exception`."""

    def run(seen: Seen) -> None:
        seen.requests["plain"] += 7
        pytest.fail("it does not come back")

    monkeypatch.setattr(soak, "run", run)
    report = reported(Seen(seed=1, seconds=1.0))
    assert report["aborted"] == "Failed: it does not come back"
    assert (report["requests"], report["good"]) == (7, False)
    assert "aborted: Failed: it does not come back" in text(report)


@pytest.mark.parametrize(
    ("last", "connections", "good"), [(3600.0, 6, True), (3600.0, 7, False), (3600.0, 5, False), (3000.0, 6, False)]
)
def test_a_held_connection_that_is_lost_or_falls_silent_is_a_finding(last: float, connections: int, good: bool) -> None:
    seen = busy()
    seen.held = {str(number): 3600.0 for number in range(connections)} | {"0": last}
    assert seen.report()["good"] is good


FLAT = {
    "process": "weft",
    "early_mib": 10.0,
    "late_mib": 10.0,
    "mib_per_hour": 0.0,
    "descriptors": [9, 9],
    "flat": True,
}


def busy() -> Seen:
    """A run of an hour that was as it should be."""
    seen = Seen(seed=1, seconds=3600.0, started=0.0, ended=3600.0, growth=[FLAT])
    seen.held = {str(number): 3600.0 for number in range(6)}
    seen.changes.update(KINDS.keys())
    seen.crashes.append(Crash("edge", frozenset(), 10.0))
    seen.later.update(REQUESTS.keys() | STREAMS)
    return seen


def test_a_run_that_has_looked_at_nothing_is_not_good() -> None:
    assert busy().report()["good"]
    for kind in (*REQUESTS, *STREAMS):
        seen = busy()
        del seen.later[kind]
        report = seen.report()
        assert (report["missing"], report["good"]) == ([kind], False)
        assert f"never, or not in the second half: {kind}" in text(report)
    for kind in KINDS:
        seen = busy()
        del seen.changes[kind]
        assert (seen.report()["missing"], seen.report()["good"]) == ([f"changes of {kind}"], False)
    calm = busy()
    calm.crashes.clear()
    assert (calm.report()["missing"], calm.report()["good"]) == (["crashes"], False)


def test_changes_that_are_late_as_a_rule_are_a_finding() -> None:
    seen = busy()
    seen.prompt, seen.late = False, "9 of 10"
    assert not seen.report()["good"]
    assert "steps of changes that were in effect late: 9 of 10" in text(seen.report())


def test_requests_of_the_first_half_are_not_taken_for_those_of_the_second() -> None:
    seen = judged(Crash("edge", frozenset(), 10.0), answer(29.0, status=200), answer(31.0, kind="tcp"))
    assert set(seen.later) == {"tcp"}
