"""What the judge of changes takes for lost, for late and for right, on states and answers that are made up."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.resilience.changes import (
    EFFECT_LIMIT_SECONDS,
    GATEWAY,
    KINDS,
    MEMORY_SECONDS,
    Driver,
    State,
    Timeline,
    document,
    keyed,
)


def to(version: str) -> State:
    """A state in which every request goes to *version*."""
    rule = document(
        "VirtualService",
        "server",
        {"hosts": ["server"], "http": [{"route": [{"destination": {"host": "server", "subset": version}}]}]},
    )
    subsets = [{"name": name, "labels": {"version": name}} for name in ("v1", "v2")]
    destination = document("DestinationRule", "server", {"host": "server", "subsets": subsets})
    return State(keyed(destination, GATEWAY, rule), frozenset({"v1", "v2"}))


def from_v1_to_v2() -> tuple[Timeline, float]:
    """Return what was acknowledged just now, and until when the old rule may be seen."""
    timeline = Timeline()
    timeline.begin(to("v1"))
    timeline.begin(to("v2"))
    timeline.in_effect()
    return timeline, timeline.states[0][1]


def answer(who: str, start: float, **more: Any) -> dict[str, Any]:
    return {"kind": "plain", "start": start, "end": start + 0.01, "status": 200, "who": who, "whole": True} | more


@pytest.mark.parametrize(
    ("after", "late", "wrong"),
    [(-0.02, False, False), (0.02, True, False), (EFFECT_LIMIT_SECONDS, False, True)],
    ids=["in time", "late", "never"],
)
def test_an_answer_by_the_rule_before_is_right_then_late_and_then_wrong(after: float, late: bool, wrong: bool) -> None:
    timeline, until = from_v1_to_v2()
    line = answer("v1", until + after)
    faults = timeline.faults([line, answer("v2", until + after)])
    assert (len(timeline.late), [found for found, _ in faults]) == (late, [line] if wrong else [])
    assert (timeline.over, timeline.is_prompt) == (1, not late)


def test_many_changes_are_not_forgotten_while_a_request_that_has_met_them_is_under_way() -> None:
    timeline, until = from_v1_to_v2()
    for _ in range(40):
        timeline.begin(to("v2"))
        timeline.in_effect()
        timeline.forget()
    slow = answer("v1", until - 0.01) | {"end": until + 2}
    assert timeline.faults([slow]) == []
    timeline.states[0][1] -= 2 * MEMORY_SECONDS
    timeline.forget()
    assert timeline.faults([slow]) != []


def test_the_first_rule_was_in_force_before_the_judge_came() -> None:
    timeline, until = from_v1_to_v2()
    assert timeline.faults([answer("v1", until - 5)]) == []


@pytest.mark.parametrize("lost", [{"status": 503}, {"whole": False}, {"who": "v9"}, {"broken": "ValueError()"}])
def test_what_no_rule_allows_is_never_only_late(lost: dict[str, Any]) -> None:
    timeline, until = from_v1_to_v2()
    line = answer("v1", until + 0.02) | lost
    if "broken" in lost:
        del line["status"]
    assert [found for found, _ in timeline.faults([line])] == [line]
    assert not timeline.late


@pytest.mark.parametrize("seed", range(20))
def test_forty_changes_have_one_of_every_kind_and_a_program_that_comes_and_goes(seed: int) -> None:
    driver = Driver(SimpleNamespace(), SimpleNamespace(), random.Random(seed))  # type: ignore[arg-type]
    kinds = driver.kinds(40)
    assert (len(kinds), set(kinds)) == (40, KINDS.keys())
    assert kinds.count("program") >= 2
