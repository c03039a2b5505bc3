"""
Programs of the mesh as they are while somebody asks: which of a service are not ready, and what their agents noticed.

Read from what the control plane says of workloads and proxies; the caller brings that. Records tell what was, this tells
what is: it explains why there was no endpoint, which no record knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ENDED = "program-ended"
"""Code of the notice that a program had ended."""

STOPPED = "stopped"
"""Code of the notice that a program is stopped, as by Ctrl-Z; its proxy is not, and goes on taking requests for it."""

IS_STOPPED = {"code": STOPPED, "text": "it is stopped now, as by Ctrl-Z, and answers nothing until it goes on."}

ENDING_SECONDS = 1.0
"""A connection breaks before anybody has seen why; an agent's word comes when a busy machine lets it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What the agent of *workload* noticed; `code` is for programs: `listens-elsewhere`."""

    workload: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """
    An end of a program; times in seconds since 1970.

    Attributes:
        how: `was killed by SIGKILL`.
        back: When it was ready again; None if it was not.
    """

    time: float
    how: str
    back: float | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """
    Attributes:
        services: Full host names of those that it serves.
        state: `starting`, `running` or `exited`.
        ready: Whether it is an endpoint of its services.
        labels: Its workload's, which subsets ask for.
    """

    workload: str
    services: tuple[str, ...] = ()
    state: str = "running"
    ready: bool = True
    notices: tuple[Notice, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    endings: tuple[Ending, ...] = ()

    def ended(self, since: float, until: float, *, away: bool) -> Notice | None:
        """Return its last end between those times as a notice, or, with *away*, the one after which it was not ready then."""
        for ending in reversed(self.endings):
            last = (ending.back or until) if away else ending.time
            if ending.time > until + ENDING_SECONDS or last < since - ENDING_SECONDS:
                continue
            at = f"{datetime.fromtimestamp(ending.time, UTC).astimezone():%H:%M:%S}"
            again = f", and was ready again {ending.back - ending.time:.1f} s later" if ending.back else ""
            return Notice(self.workload, ENDED, f"its program {ending.how} at {at}{again}.")
        return None

    @property
    def condition(self) -> str:
        """Whether it is an endpoint or why not, as the end of a sentence: `web-0 is running, but not ready`."""
        if self.ready:
            return f"{self.workload} is ready"
        if self.state == "exited":
            return f"{self.workload} has ended"
        return f"{self.workload} is {self.state}, but not ready"


def programs(workloads: Iterable[Mapping[str, Any]], proxies: Iterable[Mapping[str, Any]]) -> tuple[Program, ...]:
    """Return the programs that `GET /v1/workloads` names, with the notices of `GET /v1/proxies`."""
    notices = {
        (item["namespace"], item["workload"]): tuple(
            Notice(item["workload"], notice["code"], notice["text"])
            for notice in (*item["notices"], *([IS_STOPPED] if item.get("agent", {}).get("state") == "stopped" else []))
        )
        for item in proxies
    }
    return tuple(
        Program(
            workload=item["workload"],
            services=tuple(item["services"]),
            state=item["state"],
            ready=item["ready"],
            notices=notices.get((item["namespace"], item["workload"]), ()),
            labels=item.get("labels", {}),
            endings=tuple(Ending(end["time"], end["how"], end["back"]) for end in item.get("endings", ())),
        )
        for item in workloads
    )
