"""
Random changes of a mesh under load, and the judge of what its callers saw meanwhile.

`Driver` makes changes and writes down in a `Timeline` when each could be seen. An answer is right if the reference evaluator
allows it for a configuration that was in force while its request was under way: during a change the old or the new one.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.e2e.conftest import Person, Started
from tests.reference.evaluate import Outcome, Request, Service, evaluate
from tests.resilience.conftest import Loaded, until_steady
from weft.data_plane import WEFT_PROXY

EFFECT_SECONDS, EFFECT_LIMIT_SECONDS = 0.1, 1.0
"""From the last acknowledgement until a change is in effect everywhere; and at most, on a busy machine (`Timeline.late`)."""

MEMORY_SECONDS = 60.0
"""Callers give up sooner."""

LATE_SHARE = 0.25
"""Of the changes, that a busy machine may take longer for than is promised."""

Document = Mapping[str, Any]

EXTRA, EXTRA_PORT = "extra", 8090
EXTRA_HOST = f"{EXTRA}.default.svc.cluster.local"
"""
A host that comes and goes: a Service that chooses from the same programs. It is called by its full name, of which the mesh alone
knows whether it is one: a resolver elsewhere that does not answer would keep the callers.
"""
EXTRA_OPTIONS = ("--extra", f"http://{EXTRA_HOST}:{EXTRA_PORT}")

GATEWAY = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "ingress", "namespace": "default"},
    "spec": {
        "selector": {"istio": "ingressgateway"},
        "servers": [{"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}],
    },
}

LABELS = {"app": "client"}
INSIDE = {
    "plain": Request("server", 8080, "/plain/1", source_labels=LABELS),
    "jason": Request("server", 8080, "/plain/1", headers={"end-user": "jason"}, source_labels=LABELS),
    "special": Request("server", 8080, "/special/x", source_labels=LABELS),
    "large": Request("server", 8080, "/bytes/9/1", source_labels=LABELS),
    "post": Request("server", 8080, "/plain/1", method="POST", source_labels=LABELS),
}


def outside(request: Request) -> Request:
    """Return the same as it comes to the gateway's published port."""
    return Request(
        "127.0.0.1", 8080, request.path, "", request.method, headers=request.headers, gateway="default/ingress"
    )


REQUESTS = {
    **INSIDE,
    **{f"chained-{kind}": request for kind, request in INSIDE.items()},
    **{f"outside-{kind}": outside(request) for kind, request in INSIDE.items()},
    "extra": Request(EXTRA_HOST, EXTRA_PORT, "/plain/1", source_labels=LABELS),
}
"""What the callers of `programs/client.py` send, as far as rules can tell; what is chained, its last hop."""

HELD = frozenset({"held-grpc", "held-tcp", "held-websocket"})
STREAMS = frozenset({"grpc", "grpc-stream", "tcp", "websocket"}) | HELD
"""What those of `programs/streams.py` do: no rule is about it, so all of it succeeds."""


@dataclass(frozen=True, eq=False)
class State:
    """What is in force: the documents by (kind, name), the older ones first, and the versions that have an endpoint."""

    documents: Mapping[tuple[str, str], Document]
    versions: frozenset[str]
    _allowed: dict[str, list[Outcome]] = field(default_factory=dict)

    def allowed(self, kind: str) -> list[Outcome]:
        """Return what may become of a request."""
        if kind not in self._allowed:
            workloads = {
                f"server-{version}": {"app": "server", "version": version} for version in sorted(self.versions)
            }
            service = Service("server", "default", (8080,), workloads)
            possible = evaluate(REQUESTS[kind], self._in_force(), [service])
            self._allowed[kind] = [outcome for share, outcome in possible if share]
        return self._allowed[kind]

    def _in_force(self) -> list[Document]:
        """Of two APIs that rule one service the older does (docs/concepts/gateway-api.md); the documents are in that order."""
        rivals = [key for key in self.documents if key in (("VirtualService", "server"), ("HTTPRoute", "server"))]
        return [item for key, item in self.documents.items() if key not in rivals[1:]]

    def with_versions(self, versions: frozenset[str]) -> State:
        return State(self.documents, versions)


@dataclass
class Timeline:
    """
    States with the time from when they may and until when they might be seen (monotonic).

    Attributes:
        over: How many states are over.
        late: Those of them, by their beginning, that were seen for longer than `EFFECT_SECONDS` after the next was
            acknowledged: nothing is lost by that.
    """

    states: list[list[Any]] = field(default_factory=list)
    over: int = 0
    late: set[float] = field(default_factory=set)

    @property
    def is_prompt(self) -> bool:
        """Whether changes are in effect when it is promised, but for a few."""
        return len(self.late) <= self.over * LATE_SHARE

    def begin(self, state: State) -> None:
        # The first one is how the mesh was when somebody began to look.
        self.states.append([time.monotonic() if self.states else 0.0, float("inf"), state])

    def in_effect(self) -> None:
        """The last state is in force everywhere: those before are over."""
        over = time.monotonic() + EFFECT_SECONDS
        for entry in self.states[:-1]:
            self.over += entry[1] == float("inf")
            entry[1] = min(entry[1], over)

    def forget(self) -> None:
        """Forget the states that no request can have met any more. One whose name is looked up elsewhere may take seconds."""
        earliest = time.monotonic() - MEMORY_SECONDS
        self.states[:-1] = [entry for entry in self.states[:-1] if entry[1] >= earliest]

    def faults(self, lines: list[dict[str, Any]]) -> list[Any]:
        """Return each answer that no state allows, with what those that were in force would allow."""
        found = []
        for line in lines:
            if line["kind"] in STREAMS:
                if line.get("status") != 200 or not line["whole"]:
                    found.append((line, []))
                continue
            states = [state for since, until, state in self.states if since <= line["end"] and until >= line["start"]]
            allowed = [outcome for state in states for outcome in state.allowed(line["kind"])]
            if any(fits(line, outcome) for outcome in allowed):
                continue
            if (late := self._just_over(line)) is not None:
                self.late.add(late)
            else:
                found.append((line, [(outcome.kind, outcome.status, sorted(outcome.workloads)) for outcome in allowed]))
        return found

    def _just_over(self, line: Mapping[str, Any]) -> float | None:
        """Return the beginning of a state that has been over for a moment and allows *line*."""
        earliest = line["start"] - EFFECT_LIMIT_SECONDS + EFFECT_SECONDS
        for since, until, state in reversed(self.states):
            if since <= line["end"] and until >= earliest and any(fits(line, it) for it in state.allowed(line["kind"])):
                return float(since)
        return None


REFUSED = ("gaierror", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected")
"""Envoy takes a connection that leads nowhere, and closes it."""


def fits(line: Mapping[str, Any], outcome: Outcome) -> bool:
    """Whether *outcome* is what a caller saw."""
    if outcome.kind == "forward":
        versions = {name.removeprefix("server-") for name in outcome.workloads}
        return line.get("status") == 200 and line["who"] in versions and bool(line["whole"])
    if outcome.kind == "passthrough":
        # A name that is none: not found, or a connection that is refused if it was found just before; never an answer.
        return line.get("error") in REFUSED
    return line.get("status") == outcome.status


def document(kind: str, name: str, spec: Document, api: str = "networking.istio.io/v1") -> Document:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def keyed(*documents: Document) -> dict[tuple[str, str], Document]:
    return {(item["kind"], item["metadata"]["name"]): item for item in documents}


def mutual_tls(mode: str) -> Document:
    return document("PeerAuthentication", "server", {"mtls": {"mode": mode}}, "security.istio.io/v1")


def described(name: str, port: int, selector: Mapping[str, str]) -> Document:
    """A Service of some of the servers."""
    return document("Service", name, {"selector": selector, "ports": [{"port": port, "targetPort": 8080}]}, "v1")


def destination(versions: Collection[str], policy: Document) -> Document:
    """The rule that gives every version a subset."""
    subsets = [{"name": version, "labels": {"version": version}} for version in sorted(versions)]
    spec: dict[str, Any] = {"host": "server", "subsets": subsets}
    return document("DestinationRule", "server", spec | ({"trafficPolicy": policy} if policy else {}))


class Rules:
    """Random documents that name living versions only."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def _some(self, versions: Collection[str]) -> list[str]:
        return self._dice.sample(sorted(versions), self._dice.randint(1, min(2, len(versions))))

    def _weights(self, count: int) -> list[int]:
        first = self._dice.randrange(1, 100)
        return [100] if count == 1 else [first, 100 - first]

    def virtual_service(self, name: str, hosts: list[str], versions: Collection[str], **spec: Any) -> list[Document]:
        """A VirtualService; sometimes none."""
        dice = self._dice

        def to() -> dict[str, Any]:
            chosen = self._some(versions)
            targets = [{"destination": {"host": "server", "subset": name}} for name in chosen]
            if len(chosen) > 1:
                pairs = zip(targets, self._weights(2), strict=True)
                targets = [target | {"weight": weight} for target, weight in pairs]
            return {"route": targets}

        http: list[dict[str, Any]] = []
        if dice.random() < 0.5:
            http.append({"match": [{"headers": {"end-user": {"exact": "jason"}}}], **to()})
        if dice.random() < 0.3:
            abort = {"fault": {"abort": {"httpStatus": 418, "percentage": {"value": dice.choice([30, 100])}}}}
            http.append({"match": [{"uri": {"prefix": "/special"}}], **abort, **to()})
        if dice.random() < 0.2:
            http.append({"match": [{"method": {"exact": "POST"}}], "timeout": "15s", **to()})
        if not http and dice.random() < 0.3:
            return []
        return [document("VirtualService", name, {"hosts": hosts, **spec, "http": [*http, to()]})]

    def http_route(self, versions: Collection[str]) -> list[Document]:
        """An HTTPRoute of the service, with a Service for each version that it sends to."""
        dice, used = self._dice, set()

        def to() -> dict[str, Any]:
            chosen = self._some(versions)
            used.update(chosen)
            pairs = zip(chosen, self._weights(len(chosen)), strict=True)
            return {"backendRefs": [{"name": f"only-{name}", "port": 8080, "weight": weight} for name, weight in pairs]}

        found: list[dict[str, Any]] = []
        if dice.random() < 0.5:
            found.append({"matches": [{"headers": [{"name": "end-user", "value": "jason"}]}], **to()})
        if dice.random() < 0.3:
            away = {"type": "RequestRedirect", "requestRedirect": {"hostname": "elsewhere.example", "statusCode": 302}}
            found.append({"matches": [{"path": {"type": "PathPrefix", "value": "/special"}}], "filters": [away]})
        if dice.random() < 0.2:
            found.append({"matches": [{"method": "POST"}], "timeouts": {"request": "15s"}, **to()})
        found.append(to())
        parent = {"group": "", "kind": "Service", "name": "server", "port": 8080}
        route = document(
            "HTTPRoute", "server", {"parentRefs": [parent], "rules": found}, "gateway.networking.k8s.io/v1"
        )
        services = [described(f"only-{name}", 8080, {"app": "server", "version": name}) for name in sorted(used)]
        return [route, *services]

    def policy(self) -> Document:
        """Settings of the service's clusters, none of which may refuse a request of these few callers."""
        dice, found = self._dice, {}
        if dice.random() < 0.5:
            http = {
                "http1MaxPendingRequests": dice.choice([500, 1000]),
                "maxRequestsPerConnection": dice.choice([1, 3, 50]),
            }
            tcp = {"maxConnections": dice.choice([200, 300]), "connectTimeout": dice.choice(["5s", "10s"])}
            found["connectionPool"] = {"tcp": tcp, "http": http}
        if dice.random() < 0.5:
            found["outlierDetection"] = {
                "consecutive5xxErrors": dice.choice([3, 5]),
                "interval": dice.choice(["1s", "10s"]),
                "baseEjectionTime": "1s",
                "maxEjectionPercent": dice.choice([10, 50]),
            }
        if dice.random() < 0.5:
            found["loadBalancer"] = {"simple": dice.choice(["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])}
        return found


KINDS = {"rules": 8, "outside": 3, "policy": 3, "extra": 2, "mode": 2, "program": 1}
"""What is changed, and how often in proportion."""


class Driver:
    """Carries out changes, and writes down when each could be seen. `planes` are those of programs that join."""

    def __init__(
        self, mesh: Loaded, person: Person, dice: random.Random, planes: Collection[str] = (WEFT_PROXY,)
    ) -> None:
        self.mesh, self.person, self.dice, self._planes = mesh, person, dice, tuple(planes)
        self.timeline = Timeline()
        self._make = Rules(dice)
        self.joined: Started | None = None
        self.done: list[str] = []
        self._mode, self._policy = mutual_tls("STRICT"), {}
        self._inside: list[Document] = []
        self._outside: list[Document] = []
        self._extra: list[Document] = []
        self.state = State(keyed(destination(("v1", "v2"), {}), GATEWAY), frozenset({"v1", "v2"}))
        self.timeline.begin(self.state)

    def kinds(self, count: int) -> list[str]:
        """Return what to change, *count* times: each of `KINDS` at least once, and a program twice, which comes and goes."""
        wanted = [*KINDS, "program"]
        wanted += self.dice.choices(list(KINDS), list(KINDS.values()), k=max(0, count - len(wanted)))
        return self.dice.sample(wanted, count)

    def change(self, kind: str = "") -> None:
        """Make one change, of any kind if none is given."""
        if not kind:
            (kind,) = self.dice.choices(list(KINDS), list(KINDS.values()))
        self.done.append(kind)
        getattr(self, f"change_{kind}")()

    def change_rules(self) -> None:
        """How callers inside of the mesh reach the servers."""
        versions = self.state.versions
        if self.dice.random() < 0.35:
            self._inside = self._make.http_route(versions)
        else:
            self._inside = self._make.virtual_service("server", ["server"], versions)
        self.put(versions)

    def change_outside(self) -> None:
        """How the gateway's callers do; without a rule it answers 404."""
        versions = self.state.versions
        self._outside = self._make.virtual_service("outside", ["*"], versions, gateways=["ingress"])
        self.put(versions)

    def change_policy(self) -> None:
        self._policy = self._make.policy()
        self.put(self.state.versions)

    def change_extra(self) -> None:
        """The host appears, is of other programs, or vanishes."""
        if self._extra and self.dice.random() < 0.5:
            self._extra = []
        else:
            chosen = self.dice.choice([{"app": "server"}, {"app": "server", "version": "v1"}])
            self._extra = [described(EXTRA, EXTRA_PORT, chosen)]
        self.put(self.state.versions)

    def change_mode(self) -> None:
        """To one of the two others."""
        others = [item for mode in ("STRICT", "PERMISSIVE", "DISABLE") if (item := mutual_tls(mode)) != self._mode]
        self._mode = self.dice.choice(others)
        self.put(self.state.versions)

    def change_program(self) -> None:
        """Another version appears, with its subset; or its rules go, and then it goes itself."""
        if self.joined is None:
            self.start()
        else:
            self.stop()

    def start(self) -> None:
        both = self.state.versions | {"v3"}
        self.timeline.begin(self.state.with_versions(both))
        directory = self.mesh.traffic.record.parent
        command = ["run", "--mesh", self.mesh.paths.mesh, "--proxy", self.dice.choice(self._planes)]
        command += ["--name", "server", "--version", "v3", "--port", "8080"]
        self.joined = self.person.start(*command, "--", "python3", "server.py", "v3", "8080", cwd=directory)
        until_steady(
            lambda: any(item["version"] == "v3" and item["ready"] for item in self._workloads()), "v3 is ready"
        )
        until_steady(lambda: self.mesh.behind() or True, "every proxy knows v3")
        self._settle()
        self.put(both)

    def stop(self) -> None:
        assert self.joined is not None
        left = self.state.versions - {"v3"}
        # First nobody is sent there by name, then the program goes, then its subset.
        self._inside = self._make.virtual_service("server", ["server"], left)
        self._outside = self._make.virtual_service("outside", ["*"], left, gateways=["ingress"])
        self.put(self.state.versions)
        self.timeline.begin(self.state.with_versions(left))
        self.joined.send_signal(signal.SIGTERM)
        _, errors = self.joined.communicate(timeout=30)
        assert self.joined.returncode in (0, -signal.SIGTERM), errors
        self.joined = None
        until_steady(
            lambda: not any(item["version"] == "v3" for item in self._workloads()) or "v3 is there", "v3 is gone"
        )
        self._settle()
        self.put(left)

    def end(self) -> None:
        """End the program that has joined, if any."""
        if self.joined is not None:
            self.joined.send_signal(signal.SIGTERM)
            self.joined.communicate(timeout=30)

    def _workloads(self) -> list[Any]:
        return [*self.mesh.workloads().values()]

    def _settle(self) -> None:
        self.state = self.timeline.states[-1][2]
        self.timeline.in_effect()

    def put(self, versions: frozenset[str]) -> None:
        """Make the mesh have what is wanted now, and wait until every proxy has it: what is new first, then what is gone."""
        rules = destination(versions, self._policy)
        wanted = keyed(rules, GATEWAY, self._mode, *self._inside, *self._outside, *self._extra)
        before = self.state.documents
        gone = before.keys() - wanted.keys()
        changed = {key: item for key, item in wanted.items() if before.get(key) != item}
        if changed:
            self.timeline.begin(State({**before, **changed}, versions))
            self.mesh.apply("---\n".join(yaml.safe_dump(item) for item in changed.values()))
            self._settle()
        if gone:
            self.timeline.begin(State(wanted, versions))
            self.mesh.delete(*sorted(gone))
            self._settle()


@contextmanager
def called_from_outside(mesh: Loaded, *, threads: int, pause: float) -> Iterator[None]:
    """Have the gateway's published port called as long as the block lasts; with the same record as all."""
    host, port = mesh.mesh.ingress
    program = mesh.traffic.record.with_name("client.py")
    command = [program, f"http://{host}:{port}", str(threads), str(pause), mesh.traffic.record, "--prefix", "outside-"]
    with subprocess.Popen([sys.executable, *command]) as callers:
        try:
            yield
            assert callers.poll() is None, "the callers from outside have ended"
        finally:
            callers.kill()
