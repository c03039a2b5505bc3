"""
`python -m tests.resilience.soak SECONDS [REPORT.json]`: a mesh under mixed traffic, changes and crashes, for as long as you like.

Both data planes, each calling each; HTTP through up to four proxies and by the gateway, gRPC, TCP and WebSocket. Every answer is
judged as in test_changes.py: its content end to end, and its status by what the rules in force allow. In the first half parts are
killed, too, and only requests under way through what was killed may get no answer, at most so many as its callers can have under way;
an answer that is wrong is never excused. In the second half every kind of request goes on, connections that are held are never lost,
and the memory of every process of the mesh has to stay flat, and so have the descriptors of every process, those of the programs
that are called and call too: a connection that nobody closes is open there. Prints a report and writes it as JSON, also if the run
breaks off; exits with 1 if anything was not as it should be.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Person, eventually, processes_of, someone
from tests.resilience.changes import (
    EXTRA_OPTIONS,
    HELD,
    INSIDE,
    KINDS,
    REQUESTS,
    STREAMS,
    Driver,
    called_from_outside,
)
from tests.resilience.conftest import LOST_EACH, UNDER_WAY_SECONDS, Loaded, loaded, may_be_lost, until_steady, whose
from weft.agent.processes import parent, start_time
from weft.data_plane import ENVOY, WEFT_PROXY

SAMPLE_SECONDS = 2.0
CRASH_EVERY_CHANGES = 6
THREADS, STREAMING = 2, 2
"""Callers of each of `DIRECT`, `CHAINED` and `OUTSIDE`; programs that have one for each kind of `STREAMS`."""

FLAT_SHARE, FLAT_MIB = 0.15, 3.0
"""Growth of a process from the middle of the run to its end, or within an hour, that is taken for noise: this share, and this much."""

HOUR_SECONDS = 3600.0
TELLING_SECONDS = 900.0
"""Of memory looked at, from which growth within an hour can be told: in less, what fills once looks like what never ends."""

FLAT_DESCRIPTORS = 20
"""So many more that are open are noise, besides `FLAT_SHARE`: of connections that come and go."""

PIECES, DEVIATIONS = 12, 2.2
"""
A line is fitted to the medians of so many pieces of that time. Its slope less so many standard errors is what is judged, so that a
single step counts for less than steady growth (Student's t for ten degrees of freedom, 95 %).
"""

ENVOYS = frozenset({"relay", "server-v2", "ingressgateway", "echo-v2", "streams-2"})
"""What has an Envoy; all others have weft-proxy, so that each calls and is called by each."""

DIRECT = frozenset(INSIDE) | {"extra"}
CHAINED = frozenset(kind for kind in REQUESTS if kind.startswith("chained-"))
OUTSIDE = frozenset(kind for kind in REQUESTS if kind.startswith("outside-"))
HTTP = DIRECT | CHAINED | OUTSIDE

PARTS = {
    ("control-plane", ""): frozenset[str](),
    ("edge", ""): frozenset[str](),
    ("proxy", "server-v1-0"): HTTP,
    ("proxy", "server-v2-0"): HTTP,
    ("proxy", "client-0"): DIRECT,
    ("proxy", "relay-0"): CHAINED,
    ("proxy", "ingressgateway-0"): OUTSIDE,
    ("proxy", "echo-v1-0"): STREAMS,
    ("proxy", "echo-v2-0"): STREAMS,
    ("agent", "server-v1-1"): HTTP,
    ("agent", "server-v2-1"): HTTP,
    ("program", "server-v2-0"): HTTP,
}
"""What is killed, of whom, and which kinds of requests may be lost with it: those that are under way through it."""


CRASHING_SHARE = 0.4
"""Of the time; memory is compared over its second half, which must begin with processes that stay."""

GONE_ANSWERS = ("no healthy upstream",)
"""What callers are told of a workload whose endpoints are withdrawn, in the words of both data planes."""

GONE_SECONDS = 0.5
"""For how long after its return a caller's proxy may not know of it yet, on a busy machine."""

GONE_LIMIT_SECONDS = 10.0
"""Whose proxy is away for longer than that after its death has not just been slow to start, and what callers are told then is a fault."""

HELD_SILENCE_SECONDS = 30.0
"""A connection that is held and has had no exchange for so long is not one any more."""


@dataclass
class Crash:
    """
    Something that was killed, and what may be lost to it.

    Attributes:
        moment: When; monotonic, as all times here.
        ended: When the processes were gone that were killed, or end with what was: where there is no turn for them, later.
        known: When every proxy knew that a program had died, `GONE_LIMIT_SECONDS` after it at most: until then its own proxy
            answers 503. 0 for all else, so that every answer is one of `afterwards`.
        gone_until: Until when callers may be told that the workload has no endpoint; 0 if it never was withdrawn.
        lost: Answers that failed because of it.
        afterwards: Those of them that began when everybody knew: few, `bound`.
    """

    what: str
    kinds: frozenset[str]
    moment: float
    ended: float = 0.0
    known: float = 0.0
    gone_until: float = 0.0
    lost: int = 0
    afterwards: int = 0

    @property
    def bound(self) -> int:
        """Return how many answers may be lost, besides those that began before everybody knew of it."""
        threads = THREADS * sum(bool(self.kinds & group) for group in (DIRECT, CHAINED, OUTSIDE))
        return LOST_EACH * (threads + STREAMING * len(self.kinds & STREAMS))

    def met(self, line: Mapping[str, Any]) -> bool:
        """Whether the request of *line* was under way, or began just after, through what was killed."""
        until = max(max(self.moment, self.ended) + UNDER_WAY_SECONDS, self.known)
        was_under_way = line["start"] <= until and self.moment <= line["end"]
        return line["kind"] in self.kinds and was_under_way and may_be_lost(line)

    def takes(self, line: Mapping[str, Any]) -> bool:
        """Whether this is why *line* failed; then it counts."""
        if not self.met(line):
            return False
        if line["start"] > self.known:
            if self.afterwards >= self.bound:
                return False
            self.afterwards += 1
        self.lost += 1
        return True

    def explains_gone(self, line: Mapping[str, Any]) -> bool:
        """Whether *line* is an answer that says of the workload that it is gone, while it was."""
        if line["kind"] not in self.kinds or line.get("status") != 503 or line.get("flags") not in GONE_ANSWERS:
            return False
        return self.moment <= line["start"] <= min(self.gone_until, self.moment + GONE_LIMIT_SECONDS)


def crash(mesh: Loaded, what: str, workload: str) -> Crash:
    """
    Kill one part, and wait until the mesh is whole again.

    A workload's endpoints may be withdrawn meanwhile: a proxy that is away for longer than `weft.agent.proxy.ABSENT_SECONDS`, on
    a busy machine an Envoy that starts, counts as gone.
    """

    def is_whole() -> object:
        return mesh.behind() or [name for name, item in mesh.workloads().items() if not item["ready"]] or True

    def holds() -> object:
        whole = is_whole()  # it may be found gone only now, a second after it was killed
        return whole if whole is not True else mesh.differences(workload) or True

    if what in ("control-plane", "edge"):

        def pid() -> int:
            return mesh.mesh.pids()[what]
    elif what == "program":

        def pid() -> int:
            return int(mesh.workloads()[workload]["pid"] or 0)
    elif what == "agent":

        def pid() -> int:
            return parent(mesh.pid_of_proxy(workload)) if mesh.pid_of_proxy(workload) else 0
    else:

        def pid() -> int:
            return mesh.pid_of_proxy(workload)

    until_steady(is_whole, "the mesh is whole before")
    revision, known = newest(mesh), 0.0
    before, with_it = pid(), mesh.pid_of_proxy(workload) if what == "agent" else 0
    assert before, f"there is no {what} {workload}"
    moment = time.monotonic()
    os.kill(before, signal.SIGKILL)
    until_steady(lambda: not (start_time(before) or start_time(with_it)), f"the end of {what} {workload}")
    ended = time.monotonic()
    if what == "program":
        withdrawn = eventually(lambda: withdrawal(mesh, workload, revision), f"{workload} is withdrawn")
        eventually(lambda: not mesh.client.get(f"/v1/revisions/{withdrawn}", wait="30")["silent"], "everybody knows")
        known = min(time.monotonic(), ended + GONE_LIMIT_SECONDS)
    until_steady(lambda: pid() not in (0, before), f"another {what} {workload}")
    until_steady(is_whole, "the mesh is whole again")
    if workload:
        until_steady(holds, f"{workload} holds what it should")
    gone = what == "proxy" and withdrawal(mesh, workload, revision) != 0
    over = time.monotonic() + GONE_SECONDS if gone else 0.0
    return Crash(f"{what} {workload}".strip(), PARTS[what, workload], moment, ended, known, over)


def newest(mesh: Loaded) -> int:
    """Return the number of the newest revision."""
    return max((int(item["revision"]) for item in mesh.client.get("/v1/revisions")), default=0)


def withdrawal(mesh: Loaded, workload: str, since: int) -> int:
    """
    Return the first revision after *since* that withdrew its endpoints, be it for so short a time that a look at it would miss it.

    0 if none did.
    """
    said = f"{workload} is not ready"
    found = (
        int(item["revision"])
        for item in mesh.client.get("/v1/revisions")
        if item["revision"] > since and said in item["summary"].removeprefix("workloads: ").split(", ")
    )
    return min(found, default=0)


class Memory:
    """Resident size, and the number of descriptors, of every process of the mesh and of its programs, over time."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._samples: dict[tuple[int, str], list[tuple[float, float, int]]] = {}
        self._next = 0.0

    def sample(self, now: float, *, last: bool = False) -> None:
        """Look, if it is time to, or for the last time."""
        if now < self._next and not last:
            return
        self._next = now + SAMPLE_SECONDS
        for pid in processes_of(self._person):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            except OSError:
                continue
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if "VmRSS" in fields:
                size = int(fields["VmRSS"].split()[0]) / 1024
                self._samples.setdefault((pid, name_of(fields["Name"], command)), []).append((now, size, descriptors))

    def growth(self, since: float, until: float) -> list[dict[str, Any]]:
        """Judge each process that was there throughout that time."""
        third = (until - since) / 3
        found = []
        for (pid, name), samples in sorted(self._samples.items(), key=lambda item: item[0][1]):
            times = [now for now, _, _ in samples]
            if times[0] > since + third / 2 or times[-1] < until - third / 2:
                continue
            if any(since <= now <= since + third for now in times):
                memory = grown([(now, size) for now, size, _ in samples], since, until)
                early, late = ends([(now, count) for now, _, count in samples], since, until)
                # What a program of the tests makes of its memory is its own.
                flat = (memory["flat"] or is_program(name)) and late - early <= FLAT_SHARE * early + FLAT_DESCRIPTORS
                found.append({"process": name, "pid": pid, **memory, "descriptors": [early, late], "flat": flat})
        return found


def grown(samples: Sequence[tuple[float, float]], since: float, until: float) -> dict[str, Any]:
    """
    Compare the first and the last third of a time, and if it is long enough the growth within an hour, with what is noise.

    Args:
        samples: (time, MiB), at least one in each third.
    """
    before, after = ends(samples, since, until)
    allowed = FLAT_SHARE * before + FLAT_MIB
    hourly = hourly_growth(samples, since, until) if until - since >= TELLING_SECONDS else None
    return {
        "early_mib": round(before, 1),
        "late_mib": round(after, 1),
        "mib_per_hour": None if hourly is None else round(hourly, 1),
        "flat": after - before <= allowed and (hourly is None or hourly <= allowed),
    }


def ends(samples: Sequence[tuple[float, float]], since: float, until: float) -> tuple[float, float]:
    """Return the medians of the first and the last third of a time."""
    third = (until - since) / 3
    before = statistics.median(size for now, size in samples if since <= now <= since + third)
    after = statistics.median(size for now, size in samples if until - third <= now <= until)
    return before, after


def is_program(name: str) -> bool:
    """Whether the process of that name is none of the mesh's own."""
    return name.startswith("python3 ")


def hourly_growth(samples: Sequence[tuple[float, float]], since: float, until: float) -> float:
    """Return the least growth, MiB within an hour, that *samples* tell for sure; 0 if they tell none."""
    length = (until - since) / PIECES
    pieces: list[list[tuple[float, float]]] = [[] for _ in range(PIECES)]
    for now, size in samples:
        if since <= now <= until:
            pieces[min(int((now - since) / length), PIECES - 1)].append((now, size))
    times = [statistics.mean(now for now, _ in piece) for piece in pieces if piece]
    sizes = [statistics.median(size for _, size in piece) for piece in pieces if piece]
    slope, start = statistics.linear_regression(times, sizes)
    squares = sum((size - start - slope * now) ** 2 for now, size in zip(times, sizes, strict=True))
    spread = sum((now - statistics.mean(times)) ** 2 for now in times)
    error = (squares / (len(times) - 2) / spread) ** 0.5
    return max(0.0, slope - DEVIATIONS * error) * HOUR_SECONDS


def name_of(comm: str, command: list[str]) -> str:
    """Return what a process is, for people."""
    files = [Path(word) for word in command if word.endswith("/bootstrap.json")]
    if files:
        return f"{comm} of {files[0].parent.name}"
    scripts = [word for word in command if word.endswith(".py")]
    return f"{comm} {' '.join(scripts + command[-2:])}" if scripts else comm


@dataclass
class Seen:
    """
    What a run has seen so far.

    Attributes:
        whole: When the mesh was whole again after the last crash.
        middle: From there nothing is killed, and memory and connections that are held are looked at.
        later: The requests that began after the middle.
        prompt, late: Whether changes were in effect when it is promised, and how many steps of them were not.
        held: When each connection that is held had its last exchange, of those in the second half.
        aborted: Why the run broke off; empty if it did not.
    """

    seed: int
    seconds: float
    changes: Counter[str] = field(default_factory=Counter)
    crashes: list[Crash] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    later: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    gone_meanwhile: int = 0
    prompt: bool = True
    late: str = ""
    unexplained: list[Any] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    growth: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    whole: float = 0.0
    ended: float = 0.0
    aborted: str = ""
    done: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=6))

    @property
    def middle(self) -> float:
        return max(self.started + self.seconds / 2, self.whole)

    @property
    def end(self) -> float:
        return self.middle + self.seconds / 2

    def judge(self, driver: Driver, new: list[dict[str, Any]]) -> None:
        """Take what callers saw since the last time, and find the reason of whatever went wrong."""
        self.requests.update(line["kind"] for line in new)
        self.later.update(line["kind"] for line in new if line["start"] >= self.middle)
        self.prompt = driver.timeline.is_prompt
        self.late = f"{len(driver.timeline.late)} of {driver.timeline.over}"
        self.times += [line["end"] - line["start"] for line in new[:: max(1, len(new) // 50)]]
        for line in new:
            if line["kind"] in HELD and line["start"] >= self.middle:
                self.held[line["connection"]] = line["end"]
        recent = self.crashes[-5:]
        for line, allowed in driver.timeline.faults(new):
            if any(item.takes(line) for item in recent):
                continue
            if any(item.explains_gone(line) for item in recent):
                self.gone_meanwhile += 1
            else:
                self.unexplained.append({"answer": line, "allowed": allowed, "before": list(self.done)})
        driver.timeline.forget()

    def report(self) -> dict[str, Any]:
        """Return all of it, and whether it is as it should be."""
        times = sorted(self.times)
        lost: Counter[str] = Counter()
        for item in self.crashes:
            lost[item.what] += item.lost
        # One for each kind of each program that calls, the same from the middle to the end.
        silent = sum(last < self.ended - HELD_SILENCE_SECONDS for last in self.held.values())
        kept = len(self.held) == STREAMING * len(HELD) and not silent
        # A run that has looked at nothing has found nothing.
        missing = sorted((REQUESTS.keys() | STREAMS) - self.later.keys())
        missing += [f"changes of {kind}" for kind in sorted(KINDS.keys() - self.changes.keys())]
        missing += [] if self.crashes else ["crashes"]
        flat = all(row["flat"] for row in self.growth) and bool(self.growth)
        return {
            "seed": self.seed,
            "seconds": round(self.ended - self.started),
            "aborted": self.aborted,
            "requests": self.requests.total(),
            "kinds": dict(self.requests),
            "missing": missing,
            "changes": dict(self.changes),
            "late": self.late,
            "crashes": dict(Counter(item.what for item in self.crashes)),
            "lost_with_what_was_killed": dict(lost),
            "gone_meanwhile": self.gone_meanwhile,
            "unexplained": self.unexplained,
            "held": {"expected": STREAMING * len(HELD), "connections": len(self.held), "silent": silent},
            "milliseconds": {
                name: round(times[int(len(times) * share)] * 1000, 1) if times else None
                for name, share in (("p50", 0.5), ("p99", 0.99))
            },
            "memory": self.growth,
            "good": not self.aborted and not self.unexplained and not missing and self.prompt and kept and flat,
        }


def run(seen: Seen) -> None:
    """Run the mesh for as long as *seen* says, and write down there what happens."""
    dice = random.Random(seen.seed)
    left: list[tuple[str, str]] = []
    options = {"chained": True, "streams": True, "more": EXTRA_OPTIONS, "envoys": ENVOYS}
    with (
        someone(*whose()) as person,
        loaded(person, "soak", replicas=2, threads=THREADS, pause=0.02, **options) as mesh,
        called_from_outside(mesh, threads=THREADS, pause=0.02),
    ):
        mesh.traffic.forget()
        driver, memory = Driver(mesh, person, dice, (WEFT_PROXY, ENVOY)), Memory(person)
        first = driver.kinds(len(KINDS) + 1)  # so that a short run has each
        seen.started = time.monotonic()
        try:
            while (now := time.monotonic()) < seen.end:
                crashing = now < seen.started + seen.seconds * CRASHING_SHARE
                if crashing and seen.changes.total() % CRASH_EVERY_CHANGES == 1:  # soon, so that a short run has one
                    left = left or dice.sample(sorted(PARTS), len(PARTS))  # each before any is killed again
                    seen.crashes.append(crash(mesh, *left.pop()))
                    seen.whole = time.monotonic()
                    seen.done.append((seen.crashes[-1].moment, f"crash of {seen.crashes[-1].what}"))
                began = time.monotonic()
                driver.change(first.pop() if first else "")
                seen.changes[driver.done[-1]] += 1
                seen.done.append((began, driver.done.pop()))
                memory.sample(time.monotonic())
                new = mesh.traffic.take()
                mesh.traffic.seen.clear()
                seen.judge(driver, new)
            seen.ended = time.monotonic()
            memory.sample(seen.ended, last=True)
            seen.growth = memory.growth(seen.middle, seen.ended)
            until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
        finally:
            driver.end()


def reported(seen: Seen) -> dict[str, Any]:
    """Run, and return the report, also of a run that breaks off."""
    try:
        run(seen)
    except (Exception, pytest.fail.Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it is reported
        traceback.print_exc()
        seen.aborted = f"{type(error).__name__}: {error}"
        seen.ended = seen.ended or time.monotonic()
    return seen.report()


def text(report: Mapping[str, Any]) -> str:
    """Return *report* for people."""
    lost = Counter(report["lost_with_what_was_killed"])
    held = report["held"]
    lines = [
        f"{report['requests']} requests in {report['seconds']} s (seed {report['seed']}), "
        f"p50 {report['milliseconds']['p50']} ms, p99 {report['milliseconds']['p99']} ms",
        "of these " + ", ".join(f"{count} {kind}" for kind, count in sorted(report["kinds"].items())),
        "changes: " + ", ".join(f"{count} of {name}" for name, count in sorted(report["changes"].items())),
        f"steps of changes that were in effect late: {report['late']}",
        *([f"never, or not in the second half: {', '.join(report['missing'])}"] if report["missing"] else []),
        "crashes: " + (", ".join(f"{count} of {name}" for name, count in sorted(report["crashes"].items())) or "none"),
        f"lost with what was killed: {lost.total()} ("
        + ", ".join(f"{count} with {what}" for what, count in sorted(lost.items()) if count)
        + f"); unexplained: {len(report['unexplained'])}",
        *(f"  {item}" for item in report["unexplained"][:10]),
        f"told that a workload is gone whose proxy was away for more than a second: {report['gone_meanwhile']}",
        f"held in the second half: {held['connections']} connections, {held['silent']} of them silent at the end; {held['expected']} callers",
        "memory, MiB, in the middle and at the end, and growth within an hour where the time was long enough to tell; descriptors:",
        *(
            f"  {row['early_mib']:7.1f} {row['late_mib']:7.1f} {'-' if row['mib_per_hour'] is None else row['mib_per_hour']:>6}"
            f"  {row['descriptors'][0]:5.0f} {row['descriptors'][1]:5.0f}  {'' if row['flat'] else 'GROWS  '}{row['process']}"
            for row in report["memory"]
        ),
        *([] if report["memory"] else ["  no process was there throughout: the time was too short"]),
        *([f"aborted: {report['aborted']}"] if report["aborted"] else []),
        "all is well" if report["good"] else "not as it should be",
    ]
    return "\n".join(lines)


def main() -> None:
    seed = int(os.environ.get("WEFT_SEED") or time.time_ns() % 1_000_000)
    report = reported(Seen(seed, float(sys.argv[1])))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(report, indent=1), "utf-8")
    print(text(report))
    raise SystemExit(0 if report["good"] else 1)


if __name__ == "__main__":
    main()
