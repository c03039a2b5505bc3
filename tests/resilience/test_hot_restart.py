"""
Proxies are replaced under load, as after an upgrade: not one request is lost, and a bad new one changes nothing.

What is open for long, streams of gRPC, connections of TCP and WebSockets, goes on by the process that is replaced: until it ends, or
until that process's time is over.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import DATA_PLANES, Person, eventually
from tests.resilience.changes import HELD
from tests.resilience.conftest import Loaded, loaded, until_steady
from weft.agent.data_planes import DATA_PLANES as PROCESSES
from weft.data_plane import ENVOY

ROUNDS = int(os.environ.get("WEFT_CRASHES", "2"))

THREADS = 4

STREAMING = 2
"""Programs that hold a connection of each of `HELD`, through two proxies each."""

DRAIN_SECONDS = 8
"""Some thirty exchanges of each."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600 + 60 * ROUNDS),
    pytest.mark.parametrize("person", DATA_PLANES, indirect=True, scope="module"),
]

DOOR = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door}
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
  - route: [{destination: {host: server}}]
"""


@pytest.fixture(scope="module")
def executable(person: Person) -> Path:
    """The proxy that the mesh runs, at a place where the test can put another."""
    place = person.home / "proxy"
    shutil.copy(PROCESSES[person.data_plane].find().path, place)
    return place


@pytest.fixture(scope="module")
def mesh(person: Person, executable: Path) -> Iterator[Loaded]:
    variable = "WEFT_ENVOY" if person.data_plane == ENVOY else "WEFT_PROXY"
    with loaded(person, "replaced", threads=THREADS, environment={variable: str(executable)}) as mesh:
        mesh.apply(DOOR)
        until_steady(mesh.is_whole, "the mesh is whole")
        mesh.traffic.forget()
        yield mesh


def hot_restart(mesh: Loaded, *argv: str) -> list[dict[str, Any]]:
    """No promise is made of how soon a new process serves; six that start at once take their time on a busy machine."""
    named = ("--mesh", mesh.paths.mesh, "--timeout", "60s")  # two of them run here
    done: list[dict[str, Any]] = mesh.mesh.person.json("hot-restart", *argv, *named)
    return done


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists()


def test_no_request_is_lost_while_every_proxy_is_replaced(mesh: Loaded) -> None:
    for _ in range(ROUNDS):
        before = {workload: mesh.pid_of_proxy(workload) for workload in mesh.workloads()}
        done = hot_restart(mesh, "--all", "--drain", "20s")
        assert {item["workload"]: item["old"] for item in done} == before
        for item in done:
            eventually(lambda pid=item["old"]: not is_running(pid), f"the old proxy of {item['workload']} has ended")
        assert {item["workload"]: item["new"] for item in done} == {it: mesh.pid_of_proxy(it) for it in before}
        until_steady(mesh.is_whole, "every proxy has everything again")
        mesh.traffic.wait_for(len(mesh.traffic.seen) + THREADS * 10)
    assert mesh.lost() == []


def test_who_comes_anew_is_taken_by_the_successor_and_by_the_one_after_its_death(mesh: Loaded) -> None:
    """No pooled connection helps a caller that has just joined; and the agent still keeps the sockets."""
    caller = ("run", "--", "curl", "-s", "-m", "30", "-o", "/dev/null", "-w", "%{http_code}", "http://server:8080/")
    (done, _) = hot_restart(mesh, "server-v1-0", "server-v2-0", "--drain", "5m")
    for _ in range(4):
        assert mesh.mesh.person.weft(*caller).stdout == "200"
    os.kill(done["new"], signal.SIGKILL)
    for _ in range(4):
        assert mesh.mesh.person.weft(*caller).stdout == "200"
    until_steady(mesh.is_whole, "every proxy has everything again")
    mesh.traffic.forget()  # what was under way through the one that was killed is lost


def test_a_process_that_is_replaced_ends_when_its_clients_have_gone(mesh: Loaded) -> None:
    """A connection may rest as long as it likes: what it asks at last is answered, and by the old process."""
    resting, another = (http.client.HTTPConnection(*mesh.mesh.ingress, timeout=30) for _ in range(2))
    try:
        resting.request("GET", "/")
        assert resting.getresponse().read()
        (done,) = hot_restart(mesh, "ingressgateway", "--drain", "5m")
        another.request("GET", "/")
        answer = another.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, None)
        answer.read()
        assert is_running(done["old"])
        refused = mesh.mesh.person.weft("hot-restart", "ingressgateway-0")
        assert refused.returncode == 1
        assert "still finishes" in refused.stderr
        resting.request("GET", "/")
        answer = resting.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        answer.read()
        eventually(lambda: not is_running(done["old"]), "nothing keeps it any more")
    finally:
        resting.close()
        another.close()


def test_a_new_process_that_does_not_come_to_serve_changes_nothing(mesh: Loaded, executable: Path) -> None:
    mesh.traffic.forget()
    good = executable.with_name("good")
    executable.rename(good)
    executable.write_text("#!/bin/sh\necho cannot begin >&2; exit 3\n")
    executable.chmod(0o755)
    try:
        before = mesh.pid_of_proxy("client-0")
        done = mesh.mesh.person.weft("hot-restart", "--all")
        assert done.returncode == 1
        for part in ("client-0", "exited with code 3", "cannot begin", "the old one goes on", "Left alone: "):
            assert part in done.stderr
        assert mesh.pid_of_proxy("client-0") == before
        mesh.traffic.wait_for(THREADS * 10)
        assert mesh.differences() == {}
    finally:
        good.rename(executable)
    # Nothing of the attempt is in the way of the next.
    (after,) = hot_restart(mesh, "client-0", "--drain", "20s")
    assert after["old"] == before
    eventually(lambda: not is_running(before), "the old proxy has ended")
    mesh.traffic.wait_for(len(mesh.traffic.seen) + THREADS * 10)
    assert mesh.lost() == []


def test_mistakes_are_told(mesh: Loaded) -> None:
    for argv, code, text in (
        (("hot-restart",), 2, "--all"),
        (("hot-restart", "nobody"), 4, "nobody"),
        (("hot-restart", "server", "--drain", "soon"), 2, "soon"),
    ):
        done = mesh.mesh.person.weft(*argv)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr


@pytest.fixture(scope="module")
def streaming(person: Person) -> Iterator[Loaded]:
    with loaded(person, "streaming", threads=1, pause=0.05, streams=True) as mesh:
        until_steady(mesh.is_whole, "the mesh is whole")
        yield mesh


Exchanges = dict[str, list[dict[str, Any]]]


def of_connections(mesh: Loaded, since: float) -> Exchanges:
    """What was said on connections that are held, of what began after *since*, by connection."""
    mesh.traffic.take()
    found: Exchanges = defaultdict(list)
    for line in mesh.traffic.seen:
        if line["kind"] in HELD and line["start"] >= since:
            found[line["connection"]].append(line)
    return found


def is_good(line: dict[str, Any]) -> bool:
    return line.get("status") == 200 and bool(line["whole"])


def answered(mesh: Loaded, since: float) -> Exchanges:
    """Wait until every connection that is held has had an answer since then; return those that had."""

    def all_of_them() -> Exchanges | None:
        found = {name: lines for name, lines in of_connections(mesh, since).items() if is_good(lines[-1])}
        return found if len(found) >= STREAMING * len(HELD) else None

    return eventually(all_of_them, "every connection that is held has an answer") or {}


def test_what_is_open_for_long_goes_on_through_the_process_that_is_replaced_until_its_time_is_over(
    streaming: Loaded,
) -> None:
    """The restart breaks none of it; what is cut off in the end is made anew at once, and nothing short is lost on the way."""
    streaming.traffic.forget()
    before = answered(streaming, time.monotonic())
    assert len(before) == STREAMING * len(HELD)
    began = time.monotonic()
    done = hot_restart(streaming, "--all", "--drain", f"{DRAIN_SECONDS}s")
    replaced = time.monotonic()
    for item in done:
        eventually(lambda pid=item["old"]: not is_running(pid), f"the old proxy of {item['workload']} has ended")
    after = answered(streaming, time.monotonic())
    assert not before.keys() & after.keys(), "it cannot have outlived its process"
    for connection, lines in of_connections(streaming, began).items():
        assert not [line for line in lines if "broken" in line], lines
        if connection in before:
            good, lost = [line for line in lines if is_good(line)], [line for line in lines if not is_good(line)]
            # Those that began in the process of before went on in it: also after the new one had taken its place.
            assert good[-1]["start"] > replaced or replaced > began + DRAIN_SECONDS, lines
            assert all(line["end"] >= began + DRAIN_SECONDS for line in lost), lines
    assert not [line for line in streaming.lost() if line["kind"] not in HELD]


def test_a_process_that_is_replaced_ends_with_what_it_has_open_for_long(streaming: Loaded) -> None:
    """It need not wait for its time to be over."""
    workload = "streams-0"
    until_steady(streaming.is_whole, "every proxy has everything")
    streaming.traffic.forget()
    before = answered(streaming, time.monotonic())
    (done,) = hot_restart(streaming, workload, "--drain", "5m")
    assert answered(streaming, time.monotonic()).keys() == before.keys()
    assert is_running(done["old"])
    assert streaming.lost() == []
    os.kill(streaming.workloads()[workload]["pid"], signal.SIGKILL)
    eventually(lambda: not is_running(done["old"]), "nothing keeps it any more")
    ended = time.monotonic()
    after = answered(streaming, ended)
    assert len(after.keys() - before.keys()) == len(HELD), "those of the other program go on"
