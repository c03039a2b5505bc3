"""What an agent tells of its program."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent import agent


def told(monkeypatch: pytest.MonkeyPatch, looks: list[set[int]], declared: set[int]) -> list[str]:
    """Return what is noted (`+`) and taken back (`-`) of a program that listens on *looks*, one after the other."""
    monkeypatch.setattr(agent, "ODD_SECONDS", 0.0)
    found: list[str] = []
    control = agent.Control(started=True)
    member: Any = SimpleNamespace(
        spec=SimpleNamespace(ports=[(port, "HTTP") for port in declared]),
        around=SimpleNamespace(control=control, report=lambda *_: None),
        stream=SimpleNamespace(listening=lambda *_: None),
        note=lambda text, code: found.append(f"+{code}: {text.partition(',')[0]}"),
        over=lambda text, code: found.append(f"-{code}: {text}"),
    )

    def look() -> dict[int, agent.Where]:
        control.changed.set()  # the next look follows at once
        if (ports := next(left, None)) is None:
            raise EOFError
        return dict.fromkeys(ports, ("127.0.0.1", 0))

    left: Iterator[set[int]] = iter(looks)
    with pytest.raises(EOFError):
        asyncio.run(agent.watch_ports(member, look))
    return found


def test_a_program_that_listens_elsewhere_is_told_until_it_listens_where_it_declares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A port for debugging comes first, and then a slow start; what is wrong later is told again."""
    debugging, serving = {9229}, {9229, 8000}
    assert told(monkeypatch, [set(), *[debugging] * 3, serving, serving, set(), *[debugging] * 3], {8000}) == [
        "+listens-elsewhere: the program listens on port 9229",
        "-listens-elsewhere: the program listens on all ports now that it declares: 8000",
        "+listens-elsewhere: the program listens on port 9229",
    ]


def test_nothing_is_taken_back_that_was_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, [set(), {8000}, {8000, 9229}, set()], {8000}) == []


@pytest.mark.parametrize(
    ("asked", "code", "final"),
    [
        ({}, -15, False),
        ({signal.SIGTERM: 1000}, 1, True),
        ({signal.SIGINT: 1}, 130, True),
        ({signal.SIGINT: 1000, signal.SIGQUIT: 1000}, 1, False),
        ({signal.SIGQUIT: 1}, -3, True),
        ({signal.SIGHUP: 1}, 1, False),
        ({signal.SIGHUP: 1}, -1, True),
        ({signal.SIGHUP: 1}, 129, True),
    ],
)
def test_whoever_asked_for_an_end_has_it_and_a_reload_or_a_dump_is_none(
    asked: dict[int, float], code: int, *, final: bool
) -> None:
    """*asked* says how many seconds ago."""
    now = time.monotonic()
    control = agent.Control(asked={number: now - ago for number, ago in asked.items()})
    assert control.is_final(code) is final
