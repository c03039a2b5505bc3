"""What is sent to an agent, and what it owes an answer to."""

from __future__ import annotations

from typing import Any, cast

from weft.controlplane.agents import Session


class Writer:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def names(**addresses: str) -> dict[str, list[str]]:
    return {name: [address] for name, address in addresses.items()}


def test_an_agent_owes_an_answer_to_the_revisions_that_changed_its_names() -> None:
    session = Session(cast(Any, Writer()), "1:1")
    session.send_names(names(reviews="240.240.0.3"), revision=7)
    assert [session.owed(revision) for revision in (5, 7, 8)] == [1, 1, 0], (
        "the first tells what was before it came, too"
    )
    session.take_names(1)
    session.send_names(names(reviews="240.240.0.3"), revision=8)
    assert session.owed() == 0, "nothing is sent that has not changed"
    session.send_names(names(reviews="240.240.0.4"), revision=9)
    session.send_names(names(reviews="240.240.0.5"), revision=11)
    assert [session.owed(revision) for revision in (8, 9, 10, 11)] == [0, 2, 0, 3]
    session.take_names(2)
    assert [session.owed(revision) for revision in (9, 11, None)] == [0, 3, 3]
