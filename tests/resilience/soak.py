"""
`python -m tests.resilience.soak SECONDS [REPORT.json]`: a mesh under mixed traffic, changes and crashes, for as long as you like.

Every answer is judged as in test_changes.py: its content end to end, and its status by what the rules in force allow. In the first
half parts are killed, too, and only requests under way through what was killed may fail. In the second half the memory of every
process has to stay flat. Prints a report and writes it as JSON; exits with 1 if anything was not as it should be.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Person, eventually, processes_of, someone
from tests.resilience.conftest import Loaded, loaded, until_steady
from tests.resilience.changes import Driver

SAMPLE_SECONDS = 2.0
CRASH_EVERY_CHANGES = 12
UNDER_WAY_SECONDS = 0.5
"""A request that began so long before or after a crash may have met it: what died may be a program, which nobody repeats."""

FLAT_SHARE, FLAT_MIB = 0.15, 3.0
"""Growth of a process from the middle of the run to its end that is taken for noise: this share, and this much beside it."""


def crash(mesh: Loaded, dice: random.Random) -> str:
    """Kill one part; return its name once the mesh is whole again."""
    part = dice.choice(["control-plane", "edge", "server-v1-0", "client-0", "program"])
    if part in ("control-plane", "edge"):
        pid = mesh.mesh.pids()[part]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: mesh.mesh.pids()[part] != pid, f"another {part}")
    elif part == "program":
        pid = mesh.workloads()["server-v2-0"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until_steady(lambda: mesh.workloads()["server-v2-0"]["pid"] not in (0, pid), "another program")
    else:
        pid = mesh.pid_of_proxy(part)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: mesh.pid_of_proxy(part) not in (0, pid), f"another proxy of {part}")
    until_steady(
        lambda: mesh.differences() or [n for n, item in mesh.workloads().items() if not item["ready"]] or True,
        "the mesh is whole again",
    )
    return part


class Memory:
    """Resident size of every process of the mesh, over time."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._samples: dict[tuple[int, str], list[tuple[float, float]]] = {}
        self._next = 0.0

    def sample(self, now: float) -> None:
        """Look, if it is time to."""
        if now < self._next:
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
    if "--workload" in command:
        return f"weft-proxy of {command[command.index('--workload') + 1]}"
    scripts = [word for word in command if word.endswith(".py")]
    return f"{comm} {' '.join(scripts + command[-2:])}" if scripts else comm


def run(seconds: float, seed: int) -> dict[str, Any]:
    """Return the report."""
    dice = random.Random(seed)
    changes: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    times: list[float] = []
    unexplained: list[Any] = []
    requests = lost = 0
    moments: list[tuple[float, float]] = []
    with (
        someone("root" if os.getuid() == 0 else "unprivileged", os.getuid()) as person,
        loaded(person, "soak", replicas=2, threads=6, pause=0.02) as mesh,
    ):
        mesh.traffic.forget()
        driver, memory = Driver(mesh, person, dice), Memory(person)
        started = time.monotonic()
        try:
            while (now := time.monotonic()) < started + seconds:
                if (
                    now < started + seconds / 2
                    and sum(changes.values()) % CRASH_EVERY_CHANGES == CRASH_EVERY_CHANGES - 1
                ):
                    crashes[crash(mesh, dice)] += 1
                    moments.append((now, time.monotonic()))
                driver.change()
                changes[driver.done.pop()] += 1
                memory.sample(time.monotonic())
                new = mesh.traffic.take()
                mesh.traffic.seen.clear()
                requests += len(new)
                times += [line["end"] - line["start"] for line in new[:: max(1, len(new) // 50)]]
                for line, states in driver.timeline.faults(new):
                    if any(
                        line["end"] >= began and line["start"] <= over + UNDER_WAY_SECONDS for began, over in moments
                    ):
                        lost += 1
                    else:
                        unexplained.append({"answer": line, "allowed": [str(state)[:300] for state in states]})
                del driver.timeline.states[:-20]
                del moments[:-5]
            until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
        finally:
            if driver.joined is not None:
                driver.joined.send_signal(signal.SIGTERM)
                driver.joined.communicate(timeout=30)
        ended = time.monotonic()
        growth = memory.growth(started + seconds / 2, ended)
    times.sort()
    return {
        "seed": seed,
        "seconds": round(ended - started),
        "requests": requests,
        "changes": dict(changes),
        "crashes": dict(crashes),
        "lost_with_what_was_killed": lost,
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
        "changes: " + ", ".join(f"{count} of {name}" for name, count in sorted(report["changes"].items())),
        "crashes: " + (", ".join(f"{count} of {name}" for name, count in sorted(report["crashes"].items())) or "none"),
        f"lost with what was killed: {report['lost_with_what_was_killed']}; unexplained: {len(report['unexplained'])}",
        *(f"  {item}" for item in report["unexplained"][:10]),
        "memory, MiB, in the middle and at the end:",
        *(
            f"  {row['early_mib']:7.1f} {row['late_mib']:7.1f}  {'' if row['flat'] else 'GROWS  '}{row['process']}"
            for row in report["memory"]
        ),
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
