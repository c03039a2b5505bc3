"""
`python -m tests.resilience.soak SECONDS [REPORT.json]`: a mesh under mixed traffic, changes and crashes, for as long as you like.

Both data planes, each calling each; HTTP through up to four proxies and by the gateway, gRPC, TCP and WebSocket. Every answer is
judged as in test_changes.py: its content end to end, and its status by what the rules in force allow. In the first half parts are
killed, too, and only requests under way through what was killed may fail. In the second half the memory of every process has to
stay flat. Prints a report and writes it as JSON; exits with 1 if anything was not as it should be.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Person, processes_of, someone
from tests.resilience.changes import INSIDE, REQUESTS, STREAMS, Driver, called_from_outside
from tests.resilience.conftest import Loaded, loaded, until_steady
from weft.controlplane.agents import parent
from weft.data_plane import ENVOY, WEFT_PROXY

SAMPLE_SECONDS = 2.0
CRASH_EVERY_CHANGES = 6
UNDER_WAY_SECONDS = 1.0
"""A request that began so long after a crash may have met it: what died may be a program, which nobody repeats."""

FLAT_SHARE, FLAT_MIB = 0.15, 3.0
"""Growth of a process from the middle of the run to its end that is taken for noise: this share, and this much beside it."""

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


def crash(mesh: Loaded, what: str, workload: str) -> tuple[float, bool]:
    """
    Kill one part, and wait until the mesh is whole again.

    Returns:
        When it was killed, and whether the workload's endpoints were withdrawn meanwhile: a proxy that is away for longer
        than `weft.agent.proxy.ABSENT_SECONDS`, on a busy machine an Envoy that starts, counts as gone.
    """
    gone = False

    def is_whole() -> object:
        nonlocal gone
        workloads = mesh.workloads()
        gone |= what == "proxy" and not workloads[workload]["proxy_ready"]
        return mesh.behind() or [name for name, item in workloads.items() if not item["ready"]] or True

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

    before, moment = pid(), time.monotonic()
    os.kill(before, signal.SIGKILL)
    until_steady(lambda: pid() not in (0, before), f"another {what} {workload}")
    until_steady(is_whole, "the mesh is whole again")
    if workload:
        until_steady(holds, f"{workload} holds what it should")
    return moment, gone


def is_of_who_is_gone(line: Mapping[str, Any], absences: Iterable[tuple[float, float]]) -> bool:
    """Whether an answer says of a workload that it is gone while it was."""
    if line.get("status") != 503 or line["flags"] not in GONE_ANSWERS:
        return False
    return any(began <= line["start"] <= over for began, over in absences)


class Memory:
    """Resident size of every process of the mesh, over time."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._samples: dict[tuple[int, str], list[tuple[float, float]]] = {}
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
            except OSError:
                continue
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            if "VmRSS" in fields:
                size = int(fields["VmRSS"].split()[0]) / 1024
                self._samples.setdefault((pid, name_of(fields["Name"], command)), []).append((now, size))

    def growth(self, since: float, until: float) -> list[dict[str, Any]]:
        """Compare the first and the last third of that time, of each process that was there throughout."""
        found = []
        third = (until - since) / 3
        for (pid, name), samples in sorted(self._samples.items(), key=lambda item: item[0][1]):
            early = [size for now, size in samples if since <= now <= since + third]
            late = [size for now, size in samples if until - third <= now <= until]
            if samples[0][0] > since + third / 2 or samples[-1][0] < until - third / 2 or not early or not late:
                continue
            before, after = statistics.median(early), statistics.median(late)
            flat = after - before <= FLAT_SHARE * before + FLAT_MIB
            row = {
                "process": name,
                "pid": pid,
                "early_mib": round(before, 1),
                "late_mib": round(after, 1),
                "flat": flat,
            }
            found.append(row)
        return found


def name_of(comm: str, command: list[str]) -> str:
    """Return what a process is, for people."""
    files = [Path(word) for word in command if word.endswith("/bootstrap.json")]
    if files:
        return f"{comm} of {files[0].parent.name}"
    scripts = [word for word in command if word.endswith(".py")]
    return f"{comm} {' '.join(scripts + command[-2:])}" if scripts else comm


def run(seconds: float, seed: int) -> dict[str, Any]:
    """Return the report."""
    dice = random.Random(seed)
    changes: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    requests: Counter[str] = Counter()
    times: list[float] = []
    unexplained: list[Any] = []
    lost: Counter[str] = Counter()
    moments: list[tuple[float, frozenset[str]]] = []
    left: list[tuple[str, str]] = []
    absences: deque[tuple[float, float]] = deque(maxlen=5)
    gone_meanwhile = 0
    done: deque[tuple[float, str]] = deque(maxlen=6)
    options = {"chained": True, "streams": True, "more": ("--extra", "http://extra:8090"), "envoys": ENVOYS}
    with (
        someone("root" if os.getuid() == 0 else "unprivileged", os.getuid()) as person,
        loaded(person, "soak", replicas=2, threads=2, pause=0.02, **options) as mesh,
        called_from_outside(mesh, threads=2, pause=0.02),
    ):
        mesh.traffic.forget()
        driver, memory = Driver(mesh, person, dice, (WEFT_PROXY, ENVOY)), Memory(person)
        started = time.monotonic()
        try:
            while (now := time.monotonic()) < started + seconds:
                if (
                    now < started + seconds * CRASHING_SHARE
                    and changes.total() % CRASH_EVERY_CHANGES == CRASH_EVERY_CHANGES - 1
                ):
                    left = left or dice.sample(sorted(PARTS), len(PARTS))  # each before any is killed again
                    part = left.pop()
                    moment, gone = crash(mesh, *part)
                    moments.append((moment, PARTS[part]))
                    crashes[" ".join(part).strip()] += 1
                    if gone:
                        absences.append((moment, time.monotonic() + GONE_SECONDS))
                    done.append((moments[-1][0], f"crash of {' '.join(part)}"))
                began = time.monotonic()
                driver.change()
                changes[driver.done[-1]] += 1
                done.append((began, driver.done.pop()))
                memory.sample(time.monotonic())
                new = mesh.traffic.take()
                mesh.traffic.seen.clear()
                requests.update(line["kind"] for line in new)
                times += [line["end"] - line["start"] for line in new[:: max(1, len(new) // 50)]]
                for line, allowed in driver.timeline.faults(new):
                    if any(
                        line["kind"] in kinds and line["start"] - UNDER_WAY_SECONDS <= moment <= line["end"]
                        for moment, kinds in moments
                    ):
                        lost[line["kind"]] += 1
                    elif is_of_who_is_gone(line, absences):
                        gone_meanwhile += 1
                    else:
                        unexplained.append({"answer": line, "allowed": allowed, "before": list(done)})
                del driver.timeline.states[:-20]
                del moments[:-5]
            ended = time.monotonic()
            memory.sample(ended, last=True)
            until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
        finally:
            driver.end()
        growth = memory.growth(started + seconds / 2, ended)
    times.sort()
    return {
        "seed": seed,
        "seconds": round(ended - started),
        "requests": requests.total(),
        "kinds": dict(requests),
        "changes": dict(changes),
        "crashes": dict(crashes),
        "lost_with_what_was_killed": lost.total(),
        "gone_meanwhile": gone_meanwhile,
        "unexplained": unexplained,
        "milliseconds": {
            name: round(times[int(len(times) * share)] * 1000, 1) for name, share in (("p50", 0.5), ("p99", 0.99))
        },
        "memory": growth,
        "good": not unexplained and all(row["flat"] for row in growth) and bool(growth),
    }


def text(report: Mapping[str, Any]) -> str:
    """Return *report* for people."""
    lines = [
        f"{report['requests']} requests in {report['seconds']} s (seed {report['seed']}), "
        f"p50 {report['milliseconds']['p50']} ms, p99 {report['milliseconds']['p99']} ms",
        "of these " + ", ".join(f"{count} {kind}" for kind, count in sorted(report["kinds"].items())),
        "changes: " + ", ".join(f"{count} of {name}" for name, count in sorted(report["changes"].items())),
        "crashes: " + (", ".join(f"{count} of {name}" for name, count in sorted(report["crashes"].items())) or "none"),
        f"lost with what was killed: {report['lost_with_what_was_killed']}; unexplained: {len(report['unexplained'])}",
        *(f"  {item}" for item in report["unexplained"][:10]),
        f"told that a workload is gone whose proxy was away for more than a second: {report['gone_meanwhile']}",
        "memory, MiB, in the middle and at the end:",
        *(
            f"  {row['early_mib']:7.1f} {row['late_mib']:7.1f}  {'' if row['flat'] else 'GROWS  '}{row['process']}"
            for row in report["memory"]
        ),
        *([] if report["memory"] else ["  no process was there throughout: the time was too short"]),
        "all is well" if report["good"] else "not as it should be",
    ]
    return "\n".join(lines)


def main() -> None:
    report = run(float(sys.argv[1]), int(os.environ.get("WEFT_SEED") or time.time_ns() % 1_000_000))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(report, indent=1), "utf-8")
    print(text(report))
    raise SystemExit(0 if report["good"] else 1)


if __name__ == "__main__":
    main()
