"""
Changes under load: random changes of rules, subsets, programs and mutual TLS while callers never stop.

Each answer is compared with what the reference evaluator allows for the configurations that were in force while the request was
under way: during a change the old or the new one. Everything else, a 503 of any kind above all, is a failure. In the end every
proxy holds exactly what `translate` made for it.

WEFT_CHANGES says how many changes there are, WEFT_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Person, Started
from tests.reference.evaluate import Outcome, Request, Service, evaluate
from tests.resilience.conftest import Loaded, loaded, until_steady

CHANGES = int(os.environ.get("WEFT_CHANGES", "60"))

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600 + CHANGES)]
EFFECT_SECONDS = 0.1
"""From the last acknowledgement until a change must be in effect everywhere."""

REQUESTS = {
    "plain": Request("server", 8080, "/plain/1", source_labels={"app": "client"}),
    "jason": Request("server", 8080, "/plain/1", headers={"end-user": "jason"}, source_labels={"app": "client"}),
    "special": Request("server", 8080, "/special/x", source_labels={"app": "client"}),
    "large": Request("server", 8080, "/bytes/9/1", source_labels={"app": "client"}),
    "post": Request("server", 8080, "/plain/1", method="POST", source_labels={"app": "client"}),
}
"""What the callers of `programs/client.py` send, as far as rules can tell."""


@dataclass(frozen=True)
class State:
    """What is in force: the rules for `server`, the versions that have an endpoint, and the mode of mutual TLS."""

    rules: tuple[Mapping[str, Any], ...]
    versions: frozenset[str]
    mode: str = "STRICT"

    def allowed(self, kind: str) -> list[Outcome]:
        workloads = {f"server-{version}": {"app": "server", "version": version} for version in sorted(self.versions)}
        service = Service("server", "default", (8080,), workloads)
        return [
            outcome
            for share, outcome in evaluate(REQUESTS[kind], [*self.rules, subsets(self.versions)], [service])
            if share
        ]


@dataclass
class Timeline:
    """States with the time from when they may and until when they might be seen (monotonic)."""

    states: list[list[Any]] = field(default_factory=list)

    def begin(self, state: State) -> None:
        self.states.append([time.monotonic(), float("inf"), state])

    def in_effect(self) -> None:
        """The last state is in force everywhere: those before are over."""
        over = time.monotonic() + EFFECT_SECONDS
        for entry in self.states[:-1]:
            entry[1] = min(entry[1], over)

    def faults(self, lines: list[dict[str, Any]]) -> list[Any]:
        """Return each answer that no state allows, with those that were in force."""
        found = []
        for line in lines:
            states = [state for since, until, state in self.states if since <= line["end"] and until >= line["start"]]
            if not any(fits(line, outcome) for state in states for outcome in state.allowed(line["kind"])):
                found.append((line, states))
        return found


def fits(line: Mapping[str, Any], outcome: Outcome) -> bool:
    if outcome.kind == "forward":
        versions = {name.removeprefix("server-") for name in outcome.workloads}
        return line.get("status") == 200 and line["who"] in versions and bool(line["whole"])
    return outcome.kind == "respond" and line.get("status") == outcome.status


def subsets(versions: frozenset[str]) -> dict[str, Any]:
    found = [{"name": version, "labels": {"version": version}} for version in sorted(versions)]
    return document("DestinationRule", {"host": "server", "subsets": found})


def document(kind: str, spec: Mapping[str, Any], group: str = "networking.istio.io") -> dict[str, Any]:
    return {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": {"name": "server", "namespace": "default"},
        "spec": spec,
    }


def rules(dice: random.Random, versions: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    """Return random rules that name living subsets only; sometimes none."""

    def to(*chosen: str) -> dict[str, Any]:
        weights = [dice.randrange(1, 100) for _ in chosen]
        weights[-1] = 100 - sum(weights[:-1]) if sum(weights[:-1]) < 100 else 1
        targets = [{"destination": {"host": "server", "subset": name}} for name in chosen]
        if len(chosen) > 1:
            targets = [target | {"weight": weight} for target, weight in zip(targets, weights, strict=True)]
        return {"route": targets}

    def some() -> list[str]:
        return dice.sample(sorted(versions), dice.randint(1, min(2, len(versions))))

    http: list[dict[str, Any]] = []
    if dice.random() < 0.5:
        http.append({"match": [{"headers": {"end-user": {"exact": "jason"}}}], **to(*some())})
    if dice.random() < 0.3:
        abort = {"fault": {"abort": {"httpStatus": 418, "percentage": {"value": dice.choice([30, 100])}}}}
        http.append({"match": [{"uri": {"prefix": "/special"}}], **abort, **to(*some())})
    if dice.random() < 0.2:
        http.append({"match": [{"method": {"exact": "POST"}}], "timeout": "15s", **to(*some())})
    if not http and dice.random() < 0.3:
        return ()
    return (document("VirtualService", {"hosts": ["server"], "http": [*http, to(*some())]}),)


class Driver:
    """Carries out changes, and writes down when each could be seen."""

    def __init__(self, mesh: Loaded, person: Person, dice: random.Random) -> None:
        self.mesh, self.person, self.dice = mesh, person, dice
        self.timeline = Timeline()
        self.state = State((), frozenset({"v1", "v2"}))
        self.joined: Started | None = None
        self.timeline.begin(self.state)
        self.done: list[str] = []

    def change(self) -> None:
        """Make one change of any kind."""
        kind = self.dice.choices(["rules", "mode", "program"], [10, 2, 1])[0]
        self.done.append(kind)
        getattr(self, f"change_{kind}")()

    def change_rules(self) -> None:
        self.put(State(rules(self.dice, self.state.versions), self.state.versions, self.state.mode))

    def change_mode(self) -> None:
        mode = self.dice.choice(["STRICT", "PERMISSIVE", "DISABLE"])
        self.put(State(self.state.rules, self.state.versions, mode))

    def change_program(self) -> None:
        """Another version appears, with its subset; or its rules go, and then it goes itself."""
        if self.joined is None:
            self.start()
        else:
            self.stop()

    def start(self) -> None:
        both = self.state.versions | {"v3"}
        self.timeline.begin(State(self.state.rules, both, self.state.mode))
        directory = self.mesh.traffic.record.parent
        command = ["run", "--mesh", self.mesh.paths.mesh, "--name", "server", "--version", "v3", "--port", "8080"]
        self.joined = self.person.start(*command, "--", "python3", "server.py", "v3", "8080", cwd=directory)
        until_steady(lambda: any(item["version"] == "v3" and item["ready"] for item in self.workloads()), "v3 is ready")
        until_steady(lambda: self.mesh.differences() or True, "every proxy knows v3")
        self.state = self.timeline.states[-1][2]
        self.timeline.in_effect()
        self.put(self.state)

    def stop(self) -> None:
        assert self.joined is not None
        left = self.state.versions - {"v3"}
        # First nobody is sent there by name, then the subset goes, then the program.
        self.put(State(rules(self.dice, left), self.state.versions, self.state.mode))
        self.timeline.begin(State(self.state.rules, left, self.state.mode))
        self.joined.send_signal(signal.SIGTERM)
        _, errors = self.joined.communicate(timeout=30)
        assert self.joined.returncode in (0, -signal.SIGTERM), errors
        self.joined = None
        until_steady(
            lambda: not any(item["version"] == "v3" for item in self.workloads()) or "v3 is there", "v3 is gone"
        )
        self.state = self.timeline.states[-1][2]
        self.timeline.in_effect()
        self.put(self.state)

    def workloads(self) -> list[Any]:
        return [*self.mesh.workloads().values()]

    def put(self, state: State) -> None:
        """Apply what makes *state*, and wait until every proxy has it."""
        self.timeline.begin(state)
        mode = document("PeerAuthentication", {"mtls": {"mode": state.mode}}, "security.istio.io")
        wanted = [subsets(state.versions), mode, *state.rules]
        if not state.rules and self.state.rules:
            self.mesh.delete("VirtualService", "server")
        self.mesh.apply("---\n".join(yaml.safe_dump(item) for item in wanted))
        self.state = state
        self.timeline.in_effect()


def test_no_request_is_lost_to_a_change(person: Person) -> None:
    seed = int(os.environ.get("WEFT_SEED") or time.time_ns() % 1_000_000)
    print(f"WEFT_SEED={seed}")
    with loaded(person, "changes", threads=4, pause=0.005) as mesh:
        mesh.traffic.forget()
        driver = Driver(mesh, person, random.Random(seed))
        try:
            judged = 0
            for number in range(CHANGES):
                driver.change()
                new = mesh.traffic.take()
                judged += len(new)
                faults = driver.timeline.faults(new)
                assert not faults, (
                    f"after change {number} ({driver.done[-3:]}): {len(faults)} of {len(new)}: {faults[:3]}"
                )
                del driver.timeline.states[:-20]
            until_steady(lambda: mesh.differences() or True, "every proxy holds what it should")
            assert judged > CHANGES
        finally:
            if driver.joined is not None:
                driver.joined.send_signal(signal.SIGTERM)
                driver.joined.communicate(timeout=30)
