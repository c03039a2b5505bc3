"""
Meshes under load that lose parts of themselves, or are changed all the time: nothing may be noticed that need not be.

The callers and servers are `programs/`; what the callers saw is a `Traffic`, judged by the tests.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import ne
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import REPOSITORY, UNPRIVILEGED_UID, Mesh, Person, Started, eventually, someone
from tests.held import DUMP, Held, of_dump, of_published
from weft.agent.paths import MeshPaths
from weft.cli.client import Client, UnixConnection
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import WeftError

PROGRAMS = Path(__file__).parent / "programs"

MESH = """\
mesh: {name}
programs:
  server-v1: {{service: server, version: v1, replicas: {replicas}, command: [python3, server.py, v1, "8080"], ports: [8080], {server-v1}}}
  server-v2: {{service: server, version: v2, replicas: {replicas}, command: [python3, server.py, v2, "8080"], ports: [8080], {server-v2}}}
  client:
    command: [python3, client.py, "http://server:8080", "{threads}", "{pause}", "{record}", {more}]
    depends_on: [server-v1, server-v2]
    restart: always
    host_ports: {host_ports}
    {client}
gateways:
  ingressgateway:
    publish: ["127.0.0.1:0:8080"]
    {ingressgateway}
apply: [start.yaml]
"""

CHAINED = """\
  relay: {{command: [python3, server.py, relay, "8081", "http://server:8080"], ports: [8081], depends_on: [server-v1, server-v2], {relay}}}
  caller:
    command: [python3, client.py, "http://relay:8081", "{threads}", "{pause}", "{record}", "--prefix", "chained-"]
    depends_on: [relay]
    restart: always
    {caller}
"""
"""Programs of a mesh whose callers also call through another program, and so through four proxies."""

STREAMS = """\
  echo-v1: {{service: echo, version: v1, command: {streamed}, ports: {streamed_ports}, {echo-v1}}}
  echo-v2: {{service: echo, version: v2, command: {streamed}, ports: {streamed_ports}, {echo-v2}}}
  streams: {{command: {streams_command}, depends_on: [echo-v1, echo-v2], restart: always, {streams}}}
  streams-2: {{command: {streams_command}, depends_on: [echo-v1, echo-v2], restart: always, {streams-2}}}
"""
"""Programs that speak gRPC, TCP and WebSocket."""

STREAMED_PORTS = (
    "[{number: 9101, protocol: GRPC}, {number: 9102, protocol: TCP}, 9103,"
    " {number: 9104, protocol: GRPC}, {number: 9105, protocol: TCP}, 9106]"
)
STREAMED_ARGUMENTS = '"9101", "9102", "9103", "9104", "9105", "9106"'
HELD = """\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: held}
spec:
  selector: {matchLabels: {app: echo}}
  portLevelMtls: {"9104": {mode: STRICT}, "9105": {mode: STRICT}, "9106": {mode: STRICT}}
"""
"""The last three ports are those of connections that are held: a change of mode, which closes connections, is not about them."""

NAMES = (
    *("server-v1", "server-v2", "client", "relay", "caller", "ingressgateway"),
    *("echo-v1", "echo-v2", "streams", "streams-2"),
)

SUBSETS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*"]
"""


SERVERS = frozenset({"v1", "v2"})
"""Who answers, of those that say so."""

LOST_EACH = 2
"""What a caller may lose to one crash: the request under way, and one that went the same way before anybody knew."""


UNDER_WAY_SECONDS = 1.0
"""
A request that began so long after a crash may have met it: a caller, or its proxy, that gets no turn on a busy machine uses a
connection whose other end is gone already. How many may is what is strict, `LOST_EACH`.
"""


def may_be_lost(line: Mapping[str, Any]) -> bool:
    """
    Whether the request of *line* got no answer of a server: then a crash can be the reason.

    It never is for what came whole and is wrong: other bytes, another server, a status that no rule gives.
    """
    return "broken" not in line and ("error" in line or line["status"] >= 500)


def whose() -> tuple[str, int]:
    """
    Return name and uid of the one whose meshes these are: ourselves.

    With WEFT_UNPRIVILEGED in the environment of root somebody without privilege, in whose meshes a user namespace is around everything.
    """
    uid = UNPRIVILEGED_UID if os.getuid() == 0 and os.environ.get("WEFT_UNPRIVILEGED") else os.getuid()
    return "unprivileged" if uid else "root", uid


@pytest.fixture(scope="module")
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    """
    Somebody with a home of their own (`whose`).

    With a parameter, the data plane of these meshes.
    """
    data_plane = getattr(request, "param", WEFT_PROXY)
    with someone(*whose(), data_plane) as person:
        yield person


@dataclass
class Traffic:
    """What the callers of one mesh have seen, read as it comes."""

    record: Path
    answer: int = 200
    """The status that is expected."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    since: float = 0.0
    _read: int = 0

    def take(self) -> list[dict[str, Any]]:
        """Return what is new since the last call."""
        if not self.record.exists():
            return []
        with self.record.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        new = [line for line in map(json.loads, whole.splitlines()) if line["start"] >= self.since]
        self.seen += new
        return new

    def forget(self) -> None:
        """Judge nothing that has begun until now."""
        self.take()
        self.seen.clear()
        self.since = time.monotonic()

    def wait_for(self, count: int, since: float = 0.0) -> None:
        """Wait until *count* requests that began after *since* (monotonic) are over."""

        def enough() -> bool:
            self.take()
            return sum(line["start"] >= since for line in self.seen) >= count

        eventually(enough, f"{count} requests since {since:.3f}")

    def failures(self) -> list[dict[str, Any]]:
        """All that was not answered as the servers answer."""
        self.take()
        return [
            line
            for line in self.seen
            if line.get("status") != self.answer or not line["whole"] or line.get("who") not in (None, *SERVERS)
        ]

    def refusals(self) -> list[dict[str, Any]]:
        """Those that could not even connect."""
        return [line for line in self.failures() if line.get("phase") == "connect"]


@dataclass
class Loaded:
    """A mesh with callers that never stop."""

    mesh: Mesh
    paths: MeshPaths
    traffic: Traffic
    client: Client
    size: int
    _data_planes: dict[str, str] = field(default_factory=dict)

    def lost(self) -> list[dict[str, Any]]:
        """The traffic's failures. If there are any they are printed whole, with weft's own account of the last one."""
        failures = self.traffic.failures()
        if failures:
            print(*map(json.dumps, failures), self.mesh.person.weft("why", "--last-failed").stdout, sep="\n")
        return failures

    def apply(self, *documents: str, wait: float = 30.0) -> int:
        """Apply, wait until every affected proxy has acknowledged, and return the revision."""
        done = self.client.post(
            "/v1/apply", {"documents": [{"file": f"{n}.yaml", "text": text} for n, text in enumerate(documents)]}
        )
        self.acknowledged(done["revision"], wait)
        return int(done["revision"])

    def delete(self, *objects: tuple[str, str], wait: float = 30.0) -> None:
        """Delete objects, (kind, name) each, at once, and wait as `apply` does."""
        keys = [{"kind": kind, "namespace": "default", "name": name} for kind, name in objects]
        self.acknowledged(self.client.post("/v1/delete", {"keys": keys})["revision"], wait)

    def acknowledged(self, revision: int, wait: float = 30.0) -> None:
        """Wait for every proxy that *revision* is about."""
        receipt = self.client.get(f"/v1/revisions/{revision}", wait=str(wait))
        assert not receipt["silent"], receipt
        assert not receipt["late"], receipt
        assert not receipt["refused"], receipt

    def status(self) -> dict[str, Any]:
        return {item["workload"]: item for item in self.client.get("/v1/proxies")}

    def expiries(self) -> dict[str, datetime]:
        """When the certificate of each workload expires."""
        ends = {name: item["certificate"]["not_after"] for name, item in self.status().items()}
        return {name: datetime.fromisoformat(end) for name, end in ends.items() if end}

    def have_others(self, before: Mapping[str, datetime], differ: Callable[[datetime, datetime], bool] = ne) -> bool:
        """Whether the end of each workload's certificate *differ*s from that of *before*; KeyError: one is away."""
        now = self.expiries()
        return all(differ(now[name], end) for name, end in before.items())

    def workloads(self) -> dict[str, Any]:
        return {item["workload"]: item for item in self.client.get("/v1/workloads")}

    def pid_of_proxy(self, workload: str) -> int:
        """Of the running proxy of *workload*; 0 if there is none."""
        mark = f"/workloads/{workload}/bootstrap.json".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if mark in command and f"{self.mesh.person.runtime}/weft/{self.paths.mesh}/".encode() in command:
                    return int(entry.name)
        return 0

    def data_plane(self, workload: str) -> str:
        """What stands beside *workload*."""
        if workload not in self._data_planes:
            self._data_planes[workload] = self.status()[workload]["data_plane"]
        return self._data_planes[workload]

    def held(self, workload: str) -> Held:
        """What the proxy of *workload* itself says that it holds."""
        data_plane = self.data_plane(workload)
        connection = UnixConnection(self.paths.workload(workload).admin_socket, 30)
        try:
            connection.request("GET", DUMP)
            return of_dump(data_plane, json.loads(connection.getresponse().read()))
        finally:
            connection.close()  # Envoy would keep it

    def published(self, workload: str) -> Held:
        """The same of what `translate` made for it."""
        return of_published(self.data_plane(workload), self.client.get(f"/v1/proxies/{workload}/resources"))

    def is_saved(self, workload: str) -> bool:
        """Whether weft-proxy has written down what was published to it, which it does a moment later; Envoy's agent has."""
        if self.data_plane(workload) == ENVOY:
            return True
        saved = b"".join(file.read_bytes() for file in self.paths.workload(workload).proxy_state.iterdir())
        return all(version.encode() in saved for version in self.published(workload).values())

    def is_whole(self) -> object:
        """Whether every workload is there, ready, and holds what it should; else what is wrong."""
        if len(self.workloads()) != self.size:
            return sorted(self.workloads())
        if len(self.status()) != self.size:
            return f"the control plane has published to {sorted(self.status())} only"
        unready = [name for name, item in self.workloads().items() if not item["ready"]]
        return unready or self.differences() or True

    def behind(self) -> list[str]:
        """Whose proxies or agents have not all that was published to them; costs little, beside `differences`."""
        return [
            workload
            for workload, status in self.status().items()
            if not status["synced"] or status["agent"]["state"] != "answers"
        ]

    def differences(self, *workloads: str) -> dict[str, list[Any]]:
        """What any proxy, or only those of *workloads*, holds and should not, or should and does not."""
        found: dict[str, list[Any]] = {}
        for workload, status in self.status().items():
            if workloads and workload not in workloads:
                continue
            self._data_planes[workload] = status["data_plane"]  # the name of a program that has left may be another's
            if not status["synced"]:
                found[workload] = [f"not synced, connected: {status['connected']}, refused: {status['refused']}"]
                continue
            held, published = self.held(workload), self.published(workload)
            if held != published:
                found[workload] = sorted(held.items() ^ published.items())
        return found


@contextmanager
def loaded(
    person: Person,
    name: str,
    *,
    replicas: int = 1,
    threads: int = 4,
    pause: float = 0.01,
    start: str = SUBSETS,
    environment: Mapping[str, str] | None = None,
    wrapper: tuple[str, ...] = (),
    chained: bool = False,
    streams: bool = False,
    more: tuple[str, ...] = (),
    host_ports: Collection[int] = (),
    envoys: Collection[str] | None = None,
) -> Iterator[Loaded]:
    """
    Run a mesh of servers and callers until the block is left.

    Args:
        chained: Some callers call by way of `relay`.
        streams: Others speak gRPC, TCP and WebSocket.
        more: Further arguments of the client that calls the servers directly.
        host_ports: Of the host's loopback, for that client.
        envoys: Programs and gateways that have an Envoy, while the others have weft-proxy; None: what the person's meshes have.
    """
    directory = person.write(f"{name}/start.yaml", start + (HELD if streams else "")).parent
    for program in PROGRAMS.iterdir():
        if program.suffix == ".py":
            shutil.copy(program, directory)
    record = directory / "record.jsonl"
    also = (CHAINED if chained else "") + (STREAMS if streams else "")
    text = MESH.replace("gateways:\n", also + "gateways:\n")
    planes = dict.fromkeys(NAMES, f"proxy: {person.data_plane}")
    if envoys is not None:
        planes = {name: f"proxy: {ENVOY if name in envoys else WEFT_PROXY}" for name in NAMES}
    values = {"name": name, "replicas": replicas, "threads": threads, "pause": pause, "record": record}
    values |= {"more": json.dumps(more)[1:-1], "host_ports": [*host_ports], "streamed_ports": STREAMED_PORTS}
    values["streamed"] = f"[python3, streamed.py, {STREAMED_ARGUMENTS}]"
    values["streams_command"] = f'[python3, streams.py, echo, {STREAMED_ARGUMENTS}, "0.05", "{record}"]'
    person.write(f"{name}/weft.yaml", text.format_map(values | planes))
    with person.mesh(str(directory), environment=environment, wrapper=wrapper) as mesh:
        paths = MeshPaths(name, mesh.runtime / name, person.home / ".local/state/weft" / name)
        it = Loaded(
            mesh, paths, Traffic(record), Client(paths.api_socket), 2 * replicas + 2 + 2 * chained + 4 * streams
        )
        it.traffic.wait_for(threads * 5)
        yield it


@contextmanager
def knocking(
    mesh: Loaded, host: str, port: int, *, inside: int = 0, answer: int = 200, keep: bool = False
) -> Iterator[Traffic]:
    """
    Call *host* over and over until the block is left, a new connection each time (`knocks`).

    Args:
        inside: A process in whose network the caller stands; 0 for the host's.
        answer: The status that is expected.
        keep: All by one connection.
    """
    person = mesh.mesh.person
    with tempfile.TemporaryDirectory(prefix="knocks-", dir=mesh.traffic.record.parent) as directory:
        os.chown(directory, person.uid, person.uid)
        traffic = Traffic(Path(directory, "record.jsonl"), answer)
        command = [sys.executable, "-m", "tests.resilience.knocks", str(traffic.record), host, str(port), str(inside)]
        command += ["--keep"] if keep else []
        with Started(command, **(person.options() | {"env": person.environment | with_tests(person)})) as caller:
            traffic.wait_for(10)
            traffic.forget()
            yield traffic
            assert caller.poll() is None, "the caller has ended"
            caller.terminate()


def with_tests(person: Person) -> dict[str, str]:
    """What lets a process of *person* import these tests."""
    path = f"{person.environment.get('PYTHONPATH', '')}:{REPOSITORY}".strip(":")
    return {"PYTHONPATH": path}


def until_steady(condition: Callable[[], object], what: str, *, seconds: float = 60.0) -> None:
    """Wait for *condition*, taking a control plane that is away for "not yet"."""
    last: list[object] = [None]

    def holds() -> bool:
        try:
            last[0] = condition()
        except (WeftError, OSError, http.client.HTTPException, KeyError) as error:
            last[0] = error
        return last[0] is True

    try:
        eventually(holds, what, seconds=seconds)
    except AssertionError as late:
        raise AssertionError(f"{late}\nat last: {last[0]!r}") from None
