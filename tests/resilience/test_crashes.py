"""
The crash matrix: one part of a loaded mesh is killed (SIGKILL) at a random moment, and what may be noticed is said here.

A request that is under way through a process which dies is lost with it, and no other. `MOMENTS` is how often each part dies.

What is said of requests holds each time, on however busy a machine: which may be lost, and how many. Promises about time have a
bound that any machine meets, and the one that is promised in the better half of these moments.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import DATA_PLANES, Person, eventually
from tests.resilience.conftest import (
    LOST_EACH,
    UNDER_WAY_SECONDS,
    Loaded,
    Traffic,
    knocking,
    loaded,
    may_be_lost,
    until_steady,
)
from weft.agent.processes import parent
from weft.errors import WeftError

FEW_MOMENTS = 2
MOMENTS = int(os.environ.get("WEFT_CRASHES", FEW_MOMENTS))

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600 + 60 * MOMENTS),
    pytest.mark.parametrize("person", DATA_PLANES, indirect=True, scope="module"),
]

THREADS = 4

NEW_SECONDS = 0.1
"""The same for who makes a connection for each request: what is killed takes none after its end."""

WITHDRAWN_SECONDS, WITHDRAWN_LIMIT_SECONDS = 0.3, 3.0
"""From the end of a program until no proxy sends to it any more: some ten milliseconds; and at most, on a busy machine."""

UNSERVED_SECONDS = 15.0
"""
From the end of a program until it serves again where nobody can withdraw its endpoint: its pause before it is started again, five
seconds at most, and its start.
"""

ROUTE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: [server]
  http:
  - route: [{{destination: {{host: server, subset: {subset}}}}}]
"""

MODE = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: {mode}}}}}
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[int]:
    """The port of a server on the host's loopback, which the client may call."""
    server = OutsideServer(("127.0.0.1", 0), Outside)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server.server_address[1]
    server.shutdown()
    serving.join()
    server.server_close()


class OutsideServer(ThreadingHTTPServer):
    request_queue_size = 1024


class Outside(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def mesh(person: Person, outside: int) -> Iterator[Loaded]:
    with loaded(person, "crashes", replicas=2, threads=THREADS, host_ports=[outside]) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def whole_again(mesh: Loaded) -> Iterator[None]:
    """Each cell begins with a mesh that is as it should be, and leaves one."""
    until_steady(mesh.is_whole, "the mesh is whole before")
    mesh.traffic.forget()
    yield
    until_steady(mesh.is_whole, "the mesh is whole afterwards")
    assert mesh.differences() == {}


def seeded() -> random.Random:
    """Return this test's dice; WEFT_SEED throws them again."""
    seed = int(os.environ.get("WEFT_SEED") or time.time_ns() % 100_000)
    print(f"WEFT_SEED={seed}")
    return random.Random(seed)


def moments(dice: random.Random | None = None) -> Iterator[float]:
    """Wait for random moments; yields the time of each (monotonic)."""
    dice = dice or seeded()
    for _ in range(MOMENTS):
        time.sleep(dice.uniform(0.0, 0.3))  # the moment is the point: no condition to wait for
        yield time.monotonic()


def kill(pid: int) -> Death:
    """Kill process *pid*; a busy machine takes a moment until it has ended."""
    since = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} is gone")
    return Death(since, time.monotonic())


@contextmanager
def killed_in(seconds: float, pid: int) -> Iterator[None]:
    """Have process *pid* killed *seconds* after the beginning of the block, which is left when that is done."""
    killer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    killer.start()
    try:
        yield
    finally:
        killer.join()


class Death(NamedTuple):
    """When something was killed, and when it was gone; monotonic seconds."""

    since: float
    until: float

    def met(self, line: dict[str, Any], seconds: float) -> bool:
        """Whether the request of *line* may be lost to it: it was under way, or began within *seconds* after that."""
        return may_be_lost(line) and line["start"] - seconds <= self.until and self.since <= line["end"]


def unexpected(traffic: Traffic, deaths: list[Death], *, seconds: float = UNDER_WAY_SECONDS) -> list[dict[str, Any]]:
    """Failures that are not of requests under way when something was killed, or begun within *seconds* after that."""
    return [line for line in traffic.failures() if not any(death.met(line, seconds) for death in deaths)]


def losses(traffic: Traffic, deaths: list[Death], *, seconds: float = UNDER_WAY_SECONDS) -> list[list[dict[str, Any]]]:
    """Return which requests each death has cost, the last that a request met; fails if there are others."""
    found: list[list[dict[str, Any]]] = [[] for _ in deaths]
    for line in traffic.failures():
        met = [lost for death, lost in zip(deaths, found, strict=True) if death.met(line, seconds)]
        assert met, (deaths, line)
        met[-1].append(line)
    print("lost with each:", *map(len, found))
    return found


def lost_at_most(traffic: Traffic, deaths: list[Death]) -> None:
    """Only what was under way is lost, and of that no more than callers can have under way."""
    assert max(map(len, losses(traffic, deaths))) <= LOST_EACH * THREADS, (deaths, traffic.failures())


def traffic_goes_on(mesh: Loaded, since: float) -> None:
    mesh.traffic.wait_for(THREADS * 40, since)


def test_control_plane(mesh: Loaded) -> None:
    """Not one request is lost; what was applied is kept; proxies see no change when it is back."""
    mesh.apply(ROUTE.format(name="kept", subset="v2"))
    mesh.traffic.forget()
    for moment in moments():
        before = {workload: mesh.held(workload) for workload in mesh.status()}
        pid = mesh.mesh.pids()["control-plane"]
        os.kill(pid, signal.SIGKILL)
        traffic_goes_on(mesh, moment)
        eventually(lambda pid=pid: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
        until_steady(mesh.is_whole, "all proxies are synced again")
        assert {workload: mesh.held(workload) for workload in mesh.status()} == before
        assert [item["key"]["name"] for item in mesh.client.get("/v1/config", kind="VirtualService")] == ["kept"]
    assert mesh.lost() == []
    assert {line["who"] for line in mesh.traffic.seen} == {"v2"}
    mesh.delete(("VirtualService", "kept"))


def test_control_plane_in_the_middle_of_an_apply(mesh: Loaded) -> None:
    """What was answered is kept, and what was not is there whole or not at all."""
    answered, dice = None, seeded()
    for number, _ in enumerate(moments(dice)):
        name = f"half-{number}"
        pid = mesh.mesh.pids()["control-plane"]
        document = {"file": "half.yaml", "text": ROUTE.format(name=name, subset="v1")}
        with killed_in(dice.uniform(0.0, 0.05), pid):
            try:
                mesh.client.post("/v1/apply", {"documents": [document]})
                answered = name
            except Exception:  # noqa: BLE001 - the connection broke: that is the other outcome
                answered = None
        eventually(lambda pid=pid: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
        until_steady(mesh.is_whole, "all proxies are synced again")
        stored = [item["key"]["name"] for item in mesh.client.get("/v1/config", kind="VirtualService")]
        assert stored == [name] if answered else stored in ([], [name])
        if stored:
            mesh.delete(("VirtualService", name))


def test_control_plane_in_the_middle_of_a_change_of_mode(mesh: Loaded) -> None:
    """Servers, clients and servers again move in steps; whichever was under way, the next control plane goes on with it."""
    dice = seeded()
    for mode in ("DISABLE", "STRICT"):
        pid, revision = mesh.mesh.pids()["control-plane"], mesh.client.get("/v1/version")["revision"]
        # Each of the two steps before the last lasts a second or more.
        with killed_in(dice.uniform(0.05, 2.5), pid), suppress(WeftError):
            mesh.client.post("/v1/apply", {"documents": [{"file": "mode.yaml", "text": MODE.format(mode=mode)}]})
        eventually(lambda pid=pid: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
        until_steady(lambda: bool(mesh.client.get("/v1/version")), "it answers")
        if mode_in_force(mesh) != mode:  # killed before it was stored
            mesh.apply(MODE.format(mode=mode))
        until_steady(lambda revision=revision: steps_since(mesh, revision) == 2, "both further steps are published")
        until_steady(mesh.is_whole, "all proxies are synced again")
    assert mesh.lost() == []
    mesh.delete(("PeerAuthentication", "default"))


def mode_in_force(mesh: Loaded) -> str:
    found = mesh.client.get("/v1/config", kind="PeerAuthentication")
    return found[0]["manifest"]["spec"]["mtls"]["mode"] if found else ""


def steps_since(mesh: Loaded, revision: int) -> int:
    since = [item for item in mesh.client.get("/v1/revisions") if item["revision"] > revision]
    return sum("next step" in item["summary"] for item in since)


@contextmanager
def stopped(mesh: Loaded) -> Iterator[None]:
    """A control plane that is there and answers nobody."""
    pid = mesh.mesh.pids()["control-plane"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def dead(mesh: Loaded) -> Iterator[None]:
    """No control plane: each that is started is killed before it serves anybody."""
    ending = threading.Event()
    killed: list[int] = []

    def kill_each() -> None:
        while not ending.wait(0.005):
            if (pid := mesh.mesh.pids()["control-plane"]) not in killed:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill_each)
    killing.start()
    try:
        eventually(lambda: len(killed) > 1, "it was started again, and killed again")
        yield
    finally:
        ending.set()
        killing.join()
    assert mesh.mesh.pids()["control-plane"] in killed


@pytest.mark.parametrize("away", [stopped, dead])
def test_proxies_and_programs_restart_while_the_control_plane_is_away(
    mesh: Loaded, away: Callable[[Loaded], AbstractContextManager[None]]
) -> None:
    """They come back with the last good configuration, and it finds them as it left them."""
    program = mesh.workloads()["server-v1-1"]["pid"]
    before = {workload: mesh.held(workload) for workload in mesh.status()}
    until_steady(lambda: all(map(mesh.is_saved, before)), "what they have is on the disk")
    with away(mesh):
        killed = []
        for workload in ("server-v1-0", "server-v2-1", "client-0"):
            proxy = mesh.pid_of_proxy(workload)
            killed.append(kill(proxy))
            eventually(lambda w=workload, p=proxy: mesh.pid_of_proxy(w) not in (0, p), f"another proxy of {workload}")
            until_steady(lambda w=workload: mesh.held(w) == before[w], f"{workload} holds what it had")
            traffic_goes_on(mesh, time.monotonic())
        lost_at_most(mesh.traffic, killed)
        assert mesh.traffic.refusals() == []
        # Nobody can withdraw the endpoint of a program now, so requests fail until it is there again.
        os.kill(program, signal.SIGKILL)
        died = time.monotonic()
        eventually(lambda: steadily_answered(mesh.traffic), "the program serves again")
        assert mesh.traffic.since - died <= UNSERVED_SECONDS
    until_steady(mesh.is_whole, "all proxies are synced again")
    assert {workload: mesh.held(workload) for workload in mesh.status()} == before


def steadily_answered(traffic: Traffic) -> bool:
    """Whether none of the last requests failed, all begun since this was asked first or failed last."""
    if failures := traffic.failures():
        assert all(map(may_be_lost, failures)), failures
        traffic.forget()
    return len(traffic.seen) >= THREADS * 40


@pytest.mark.parametrize("workload", ["server-v1-0", "client-0"])
def test_proxy(mesh: Loaded, workload: str) -> None:
    """It is back on the same sockets: connections are not refused, and only requests under way are lost."""
    killed = []
    for moment in moments():
        pid = mesh.pid_of_proxy(workload)
        killed.append(kill(pid))
        traffic_goes_on(mesh, moment)
        eventually(lambda pid=pid: mesh.pid_of_proxy(workload) not in (0, pid), "another proxy")
    lost_at_most(mesh.traffic, killed)
    assert mesh.traffic.refusals() == []
    assert len(mesh.traffic.failures()) <= THREADS * MOMENTS


@pytest.mark.parametrize("workload", ["server-v1-0", "client-0", "ingressgateway-0"])
def test_whoever_connects_while_a_proxy_is_started_again_waits(mesh: Loaded, workload: str) -> None:
    """
    Its sockets themselves are asked, so that no replica and no retry hides anything: that for other proxies' connections, that for
    its program's, and the published port. It holds however long the proxy needs.
    """
    killed = []
    with at_the_door(mesh, workload) as knocks:
        for _ in moments():
            pid = mesh.pid_of_proxy(workload)
            killed.append(kill(pid))
            eventually(lambda pid=pid: mesh.pid_of_proxy(workload) not in (0, pid), "another proxy")
            until_steady(mesh.is_whole, "it serves again")
            knocks.wait_for(20, time.monotonic())
    # 100 ms are promised, and its agent has its sockets all the while.
    assert knocks.refusals() == []
    assert unexpected(knocks, killed, seconds=NEW_SECONDS) == [], killed


@contextmanager
def at_the_door(mesh: Loaded, workload: str) -> Iterator[Traffic]:
    """Have somebody connect over and over to what the proxy of *workload* listens on."""
    match workload:
        case "ingressgateway-0":
            with knocking(mesh, *mesh.mesh.ingress, answer=404) as knocks:  # no rule: the gateway answers itself
                yield knocks
        case "client-0":
            with knocking(mesh, "server", 8080, inside=mesh.workloads()[workload]["pid"]) as knocks:
                yield knocks
        case _:
            mesh.apply(MODE.format(mode="PERMISSIVE"))  # who knocks has no certificate
            until_steady(mesh.is_whole, "the mode is in force")
            address, holder = mesh.workloads()[workload]["address"], mesh.mesh.pids()["holder"]
            with knocking(mesh, address, 8080, inside=holder) as knocks:
                yield knocks
            mesh.delete(("PeerAuthentication", "default"))


def test_agent(mesh: Loaded) -> None:
    """Its program and proxy die with it, and all three are started again; another replica serves meanwhile."""
    killed = []
    for moment in moments():
        agent = parent(mesh.pid_of_proxy("server-v1-0"))
        killed.append(kill(agent))
        traffic_goes_on(mesh, moment)
        eventually(lambda agent=agent: parent(mesh.pid_of_proxy("server-v1-0")) not in (0, agent), "another agent")
        until_steady(mesh.is_whole, "its program serves again")
    lost_at_most(mesh.traffic, killed)
    # The first new agent finds what the dead one has left, and clears it away.
    assert "Traceback" not in mesh.mesh.output()


def test_agent_of_a_proxy_that_hangs(mesh: Loaded) -> None:
    """Nobody is left who holds the sockets of the one that comes: what would not end by itself is killed."""
    proxy = mesh.pid_of_proxy("server-v1-0")
    agent, since = parent(proxy), time.monotonic()
    os.kill(proxy, signal.SIGSTOP)
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{proxy}").exists(), "its proxy is gone")
    killed = [Death(since, time.monotonic())]
    traffic_goes_on(mesh, killed[0].until)
    eventually(lambda: parent(mesh.pid_of_proxy("server-v1-0")) not in (0, agent), "another agent")
    until_steady(mesh.is_whole, "its program serves again")
    traffic_goes_on(mesh, time.monotonic())
    lost_at_most(mesh.traffic, killed)


def test_agent_of_the_gateway(mesh: Loaded) -> None:
    """The published port is the mesh's own: who connects while nobody is there to take it waits."""
    killed = []
    with at_the_door(mesh, "ingressgateway-0") as knocks:
        for _ in moments():
            proxy = mesh.pid_of_proxy("ingressgateway-0")
            agent = parent(proxy)
            since, _ = kill(agent)
            eventually(lambda proxy=proxy: not Path(f"/proc/{proxy}").exists(), "its proxy is gone")
            killed.append(Death(since, time.monotonic()))
            eventually(
                lambda agent=agent: parent(mesh.pid_of_proxy("ingressgateway-0")) not in (0, agent), "another agent"
            )
            until_steady(mesh.is_whole, "it serves again")
            knocks.wait_for(20, time.monotonic())
    assert knocks.refusals() == []
    assert unexpected(knocks, killed, seconds=NEW_SECONDS) == [], killed


def test_edge(mesh: Loaded, outside: int) -> None:
    """
    What is inside of the mesh notices nothing, nor does who calls from outside, nor a connection to outside that is open. Only who
    begins to call outside while there is no edge is refused.
    """
    client = mesh.workloads()["client-0"]["pid"]
    with (
        knocking(mesh, *mesh.mesh.ingress, answer=404) as arriving,  # no rule: the gateway answers itself
        knocking(mesh, *mesh.mesh.ingress, answer=404, keep=True) as arrived,
        knocking(mesh, "127.0.0.1", outside, inside=client, keep=True) as left,
        knocking(mesh, "127.0.0.1", outside, inside=client) as leaving,
    ):
        for moment in moments():
            pid = mesh.mesh.pids()["edge"]
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: mesh.mesh.pids()["edge"] != pid, "another edge")
            eventually(lambda: steadily_answered(leaving), "calls to outside are answered again")
            traffic_goes_on(mesh, moment)
            for traffic in (arriving, arrived, left):
                traffic.wait_for(20, time.monotonic())
        assert [traffic.failures() for traffic in (arriving, arrived, left)] == [[], [], []]
    assert mesh.lost() == []


def test_gateway_proxy_after_the_edge(mesh: Loaded) -> None:
    """A new edge has no duplicate of the published port; a new proxy gets one all the same."""
    edge, proxy = mesh.mesh.pids()["edge"], mesh.pid_of_proxy("ingressgateway-0")
    os.kill(edge, signal.SIGKILL)
    eventually(lambda: mesh.mesh.pids()["edge"] != edge, "another edge")
    os.kill(proxy, signal.SIGKILL)
    eventually(lambda: answers(mesh), "the published port answers")


def answers(mesh: Loaded) -> bool:
    try:
        return mesh.mesh.get("/")[0] == 404
    except OSError:
        return False


def test_program(mesh: Loaded) -> None:
    """
    It is started again by its restart policy. Another replica serves meanwhile, as soon as every caller's proxy knows: until
    then its own proxy answers 503, which nobody may repeat unasked.
    """
    killed, dice = [], seeded()

    def is_known_soon() -> bool:
        """Whether callers are told in time of half of the deaths: the machine is shared, and how soon is told of one with the rest idle."""
        found = losses(mesh.traffic, killed, seconds=WITHDRAWN_LIMIT_SECONDS)
        told = [
            max((line["start"] - death.until for line in lost), default=0.0)
            for death, lost in zip(killed, found, strict=True)
        ]
        print("for seconds:", *told)
        return median_low(map(len, found)) <= LOST_EACH * THREADS and median_low(told) <= WITHDRAWN_SECONDS

    # Where only few were killed, a few more tell whether it was the machine.
    while len(killed) < 3 * FEW_MOMENTS:
        for moment in moments(dice):
            pid = mesh.workloads()["server-v2-0"]["pid"]
            killed.append(kill(pid))
            traffic_goes_on(mesh, moment)
            until_steady(lambda pid=pid: mesh.workloads()["server-v2-0"]["pid"] not in (0, pid), "another program")
            until_steady(lambda: mesh.workloads()["server-v2-0"]["ready"], "it serves")
        if is_known_soon():
            return
    pytest.fail("callers are told late")
