"""
The crash matrix: one part of a loaded mesh is killed (SIGKILL) at a random moment, and what may be noticed is said here.

A request that is under way through a process which dies is lost with it, and no other. `MOMENTS` is how often each part dies.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import DATA_PLANES, Person, eventually
from tests.resilience.conftest import Loaded, loaded, until_steady
from weft.controlplane.agents import parent
from weft.errors import WeftError

MOMENTS = int(os.environ.get("WEFT_CRASHES", "2"))

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600 + 60 * MOMENTS),
    pytest.mark.parametrize("person", DATA_PLANES, indirect=True, scope="module"),
]

THREADS = 4
UNDER_WAY_SECONDS = 0.1
"""A connection to what was killed may be used for this long before its end is seen."""

WITHDRAWN_SECONDS = 0.3
"""From the end of a program until no proxy sends to it any more: some ten milliseconds, on a busy machine more."""

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
def mesh(person: Person) -> Iterator[Loaded]:
    with loaded(person, "crashes", replicas=2, threads=THREADS) as mesh:
        yield mesh


@pytest.fixture(autouse=True)
def whole_again(mesh: Loaded) -> Iterator[None]:
    """Each cell begins with a mesh that is as it should be, and leaves one."""
    until_steady(mesh.is_whole, "the mesh is whole before")
    mesh.traffic.forget()
    yield
    until_steady(mesh.is_whole, "the mesh is whole afterwards")
    assert mesh.differences() == {}


def moments() -> Iterator[float]:
    """Wait for random moments; yields the time of each (monotonic)."""
    seed = int(os.environ.get("WEFT_SEED") or time.time_ns() % 100_000)
    print(f"WEFT_SEED={seed}")
    dice = random.Random(seed)
    for _ in range(MOMENTS):
        time.sleep(dice.uniform(0.0, 0.3))  # the moment is the point: no condition to wait for
        yield time.monotonic()


def unexpected(mesh: Loaded, killed: list[float], *, seconds: float = UNDER_WAY_SECONDS) -> list[dict[str, Any]]:
    """Failures that are not of requests under way when something was killed, or begun within *seconds* after that."""
    return [
        line
        for line in mesh.traffic.failures()
        if not any(line["start"] - seconds <= moment <= line["end"] for moment in killed)
    ]


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
    answered = None
    for number, _ in enumerate(moments()):
        name = f"half-{number}"
        pid = mesh.mesh.pids()["control-plane"]
        if os.fork() == 0:
            time.sleep(random.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        try:
            mesh.client.post(
                "/v1/apply", {"documents": [{"file": "half.yaml", "text": ROUTE.format(name=name, subset="v1")}]}
            )
            answered = name
        except Exception:  # noqa: BLE001 - the connection broke: that is the other outcome
            answered = None
        os.wait()
        eventually(lambda pid=pid: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
        until_steady(mesh.is_whole, "all proxies are synced again")
        stored = [item["key"]["name"] for item in mesh.client.get("/v1/config", kind="VirtualService")]
        assert stored == [name] if answered else stored in ([], [name])
        if stored:
            mesh.delete(("VirtualService", name))


def test_control_plane_in_the_middle_of_a_change_of_mode(mesh: Loaded) -> None:
    """Servers, clients and servers again move in steps; whichever was under way, the next control plane goes on with it."""
    dice = random.Random()
    for mode in ("DISABLE", "STRICT"):
        pid, revision = mesh.mesh.pids()["control-plane"], mesh.client.get("/v1/version")["revision"]
        if os.fork() == 0:
            time.sleep(dice.uniform(0.05, 2.5))  # each of the two steps before the last lasts a second or more
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        with suppress(WeftError):
            mesh.client.post("/v1/apply", {"documents": [{"file": "mode.yaml", "text": MODE.format(mode=mode)}]})
        os.wait()
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


def test_proxies_and_programs_restart_while_the_control_plane_is_away(mesh: Loaded) -> None:
    """They come back with the last good configuration; a stopped control plane answers nobody."""
    pid, program = mesh.mesh.pids()["control-plane"], mesh.workloads()["server-v1-1"]["pid"]
    until_steady(lambda: all(map(mesh.is_saved, mesh.status())), "what they have is on the disk")
    os.kill(pid, signal.SIGSTOP)
    try:
        killed = []
        for workload in ("server-v1-0", "server-v2-1", "client-0"):
            proxy, had = mesh.pid_of_proxy(workload), mesh.held(workload)
            killed.append(time.monotonic())
            os.kill(proxy, signal.SIGKILL)
            eventually(lambda w=workload, p=proxy: mesh.pid_of_proxy(w) not in (0, p), f"another proxy of {workload}")
            until_steady(lambda w=workload, h=had: mesh.held(w) == h, f"{workload} holds what it had")
            traffic_goes_on(mesh, time.monotonic())
        assert not (lost := unexpected(mesh, killed)), (killed, lost)
        assert [line for line in mesh.traffic.failures() if line.get("phase") == "connect"] == []
        # Nobody can withdraw the endpoint of a program now, so requests fail until it is there again.
        os.kill(program, signal.SIGKILL)
        eventually(lambda: steadily_answered(mesh), "the program serves again")
    finally:
        os.kill(pid, signal.SIGCONT)


def steadily_answered(mesh: Loaded) -> bool:
    """Whether none of the last requests failed, all begun since this was asked first or failed last."""
    if mesh.traffic.failures():
        mesh.traffic.forget()
    return len(mesh.traffic.seen) >= THREADS * 40


@pytest.mark.parametrize("workload", ["server-v1-0", "client-0"])
def test_proxy(mesh: Loaded, workload: str) -> None:
    """It is back on the same sockets: connections are not refused, and only requests under way are lost."""
    killed = []
    for moment in moments():
        pid = mesh.pid_of_proxy(workload)
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)
        traffic_goes_on(mesh, moment)
        eventually(lambda pid=pid: mesh.pid_of_proxy(workload) not in (0, pid), "another proxy")
    assert not (lost := unexpected(mesh, killed)), (killed, lost)
    refused = [line for line in mesh.traffic.failures() if line.get("phase") == "connect"]
    assert refused == []
    assert len(mesh.traffic.failures()) <= THREADS * MOMENTS


def test_agent(mesh: Loaded) -> None:
    """Its program and proxy die with it, and all three are started again; another replica serves meanwhile."""
    killed = []
    for moment in moments():
        agent = parent(mesh.pid_of_proxy("server-v1-0"))
        killed.append(time.monotonic())
        os.kill(agent, signal.SIGKILL)
        traffic_goes_on(mesh, moment)
        eventually(lambda agent=agent: parent(mesh.pid_of_proxy("server-v1-0")) not in (0, agent), "another agent")
        until_steady(mesh.is_whole, "its program serves again")
    assert not (lost := unexpected(mesh, killed)), (killed, lost)
    # The first new agent finds what the dead one has left, and clears it away.
    assert "Traceback" not in mesh.mesh.output()


def test_agent_of_a_proxy_that_hangs(mesh: Loaded) -> None:
    """Nobody is left who holds the sockets of the one that comes: what would not end by itself is killed."""
    proxy = mesh.pid_of_proxy("server-v1-0")
    agent = parent(proxy)
    os.kill(proxy, signal.SIGSTOP)
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{proxy}").exists(), "its proxy is gone")
    eventually(lambda: parent(mesh.pid_of_proxy("server-v1-0")) not in (0, agent), "another agent")


def test_edge(mesh: Loaded) -> None:
    """What is inside of the mesh notices nothing, and the gateway's port stays open."""
    for moment in moments():
        pid = mesh.mesh.pids()["edge"]
        os.kill(pid, signal.SIGKILL)
        assert mesh.mesh.get("/")[0] == 404  # no rule: the gateway answers itself
        eventually(lambda pid=pid: mesh.mesh.pids()["edge"] != pid, "another edge")
        traffic_goes_on(mesh, moment)
        assert mesh.mesh.get("/")[0] == 404
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
    killed = []
    for moment in moments():
        pid = mesh.workloads()["server-v2-0"]["pid"]
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)
        traffic_goes_on(mesh, moment)
        until_steady(lambda pid=pid: mesh.workloads()["server-v2-0"]["pid"] not in (0, pid), "another program")
        until_steady(lambda: mesh.workloads()["server-v2-0"]["ready"], "it serves")
    assert not (lost := unexpected(mesh, killed, seconds=UNDER_WAY_SECONDS + WITHDRAWN_SECONDS)), (killed, lost)
