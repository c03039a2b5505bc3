"""More of the crash matrix, in meshes of their own: full disks, clocks that are set, and resources that a proxy refuses."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from operator import gt
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import DATA_PLANES, Person, Started, eventually
from tests.resilience.conftest import Loaded, loaded, may_be_lost, until_steady, with_tests
from tests.resilience.test_crashes import ROUTE
from weft.agent.processes import parent
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import WeftError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("person", DATA_PLANES, indirect=True, scope="module"),
]

THREADS = 2

NOTICED_SECONDS = 3.0
"""From the last certificate's issue until both of its proxies have it: some ten milliseconds, on a busy machine more."""

RENEWED_SECONDS = 20.0
"""From the setting of a clock until all certificates are others: agents look at the clock each second; on a busy machine more."""

OCCUPY = """
import socket, sys
from weft.agent import namespaces
namespaces.join_process(int(sys.argv[1]), ("user", "mnt", "net"))
taken = socket.create_server(("0.0.0.0", int(sys.argv[2])))
print("taken", flush=True)
sys.stdin.read()
"""


LONG_REGEX = "/plain/(" + "|".join(f"item-{number}-of-many" for number in range(40)) + "|[0-9]+)"
"""Envoy by itself takes only what compiles to a hundred instructions."""

HUGE_REGEX = "/(?:" + 50 * "abcdefghij" + "){1000}"
"""Well-formed, and its length and its repetitions are allowed; how large it becomes is known to the library of each proxy alone."""

AUTHORS = f"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: server}}
spec:
  hosts: [server]
  http:
  - match: [{{uri: {{regex: "{LONG_REGEX}"}}}}]
    route: [{{destination: {{host: server, subset: v2}}}}]
  - route: [{{destination: {{host: server, subset: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: relay}}
spec:
  hosts: [relay]
  http:
  - match: [{{uri: {{regex: "{HUGE_REGEX}"}}}}]
    route: [{{destination: {{host: relay}}}}]
"""
"""The second one is refused by both data planes."""

TOO_LARGE = {WEFT_PROXY: "exceeds size limit", ENVOY: "max program size"}
"""What they say of it."""

LINE = "rules.yaml:17:5"
"""Of its route."""


def small_disk(directory: Path, size: str) -> tuple[str, ...]:
    """What runs a command to which *directory* is a disk of *size*."""
    return (sys.executable, "-m", "tests.resilience.small_disk", str(directory), size)


def fill(file: Path) -> None:
    """Write until nothing more goes in."""
    with (
        Path("/dev/zero").open("rb") as zeros,
        file.open("ab", buffering=0) as filler,
        pytest.raises(OSError, match="No space left"),
    ):
        shutil.copyfileobj(zeros, filler, 4096)


def apply_until_refused(mesh: Loaded) -> None:
    """SQLite may have room left in pages that it owns; a hundred large documents are more than that."""
    for number in range(100):
        mesh.apply(ROUTE.format(name=f"more-{number}", subset="v1") + "#" * 4000 + "\n")


def test_a_full_disk(person: Person) -> None:
    """An apply is refused with the reason and changes nothing; traffic goes on; with room again everything is as before."""
    disk = person.home / "disk"
    disk.mkdir()
    os.chown(disk, person.uid, person.uid)
    wrapper = small_disk(disk, "4m")
    environment = {"XDG_STATE_HOME": str(disk)} | with_tests(person)
    with loaded(person, "full", threads=THREADS, wrapper=wrapper, environment=environment) as mesh:
        mesh.apply(ROUTE.format(name="before", subset="v2"))
        filler = mesh.mesh.root / disk.relative_to("/") / "filler"
        fill(filler)
        mesh.traffic.forget()
        with pytest.raises(WeftError, match="disk is full") as refused:
            apply_until_refused(mesh)
        assert "Traceback" not in str(refused.value)
        stored = {item["key"]["name"] for item in mesh.client.get("/v1/config", kind="VirtualService")}
        assert "before" in stored
        mesh.traffic.wait_for(THREADS * 40, mesh.traffic.since)
        filler.unlink()
        mesh.apply(ROUTE.format(name="after", subset="v1"))
        until_steady(mesh.is_whole, "every proxy holds what it should")
        assert mesh.lost() == []


def test_a_full_runtime_disk(person: Person) -> None:
    """What dies meanwhile comes back, and is told to be there; with room again it is found, and dies and comes as ever."""
    wrapper = small_disk(person.runtime, "16m")
    with loaded(person, "cramped", threads=THREADS, wrapper=wrapper, environment=with_tests(person)) as mesh:
        filler = mesh.mesh.runtime / "filler"
        fill(filler)
        for _ in range(2):
            another_program(mesh, "server-v1-0")
            fill(filler)  # a log may have been cut
        proxy, edge, moment = mesh.pid_of_proxy("server-v2-0"), mesh.mesh.pids()["edge"], time.monotonic()
        os.kill(proxy, signal.SIGKILL)
        os.kill(edge, signal.SIGKILL)
        eventually(lambda: mesh.pid_of_proxy("server-v2-0") not in (0, proxy), "another proxy")
        until_steady(mesh.is_whole, "every proxy holds what it should")
        eventually(mesh.mesh.is_reached, "another edge")
        mesh.traffic.wait_for(THREADS * 40, moment)
        mesh.traffic.forget()
        mesh.traffic.wait_for(THREADS * 40)
        assert mesh.lost() == []
        fill(filler)
        filler.unlink()

        eventually(lambda: mesh.mesh.pids()["edge"] != edge, "the mesh's file names the new edge")
        assert mesh.paths.workload("server-v1-0").read_init() == parent(mesh.workloads()["server-v1-0"]["pid"])
        another_program(mesh, "server-v1-0")
        until_steady(mesh.is_whole, "every proxy holds what it should")
        output = mesh.mesh.output()
        assert "cannot be started" not in output
        assert "Traceback" not in output
        assert "what the program writes is lost" in output


def another_program(mesh: Loaded, workload: str) -> None:
    """Kill the program of *workload* and wait until another one serves."""
    pid = mesh.workloads()[workload]["pid"]
    os.kill(pid, signal.SIGKILL)
    until_steady(lambda: mesh.workloads()[workload]["pid"] not in (0, pid), "another program")
    until_steady(lambda: mesh.workloads()[workload]["ready"], "it serves")


@contextmanager
def with_a_clock(person: Person) -> Iterator[tuple[Loaded, Callable[[timedelta], None]]]:
    """Run a mesh of which every process reads a clock of ours; yields it, and what sets that clock off the machine's."""
    library, offset = person.home / "set_clock.so", person.home / "offset"
    subprocess.run(
        ["gcc", "-O1", "-fPIC", "-shared", "-o", library, Path(__file__).with_name("set_clock.c")], check=True
    )
    offset.write_bytes(struct.pack("q", 0))
    os.chown(offset, person.uid, person.uid)

    def put(off: timedelta) -> None:
        with offset.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", round(off.total_seconds())))

    with loaded(person, "clock", threads=THREADS, environment=clock_of(person)) as mesh:
        mesh.traffic.forget()
        yield mesh, put


def clock_of(person: Person) -> dict[str, str]:
    """What lets a process read the clock of `with_a_clock`."""
    return {"LD_PRELOAD": str(person.home / "set_clock.so"), "CLOCK_OFFSET_FILE": str(person.home / "offset")}


@pytest.mark.parametrize("days", [3, -3])
def test_a_clock_that_is_set(person: Person, days: int) -> None:
    """
    Every certificate is expired, or not valid yet, at one blow: connections that are made until agents have looked at the clock
    are refused, and none is from then on.
    """
    with with_a_clock(person) as (mesh, put):
        before = mesh.expiries()
        put(timedelta(days=days))
        was_set = time.monotonic()
        until_steady(lambda: mesh.have_others(before), "all have other certificates", seconds=RENEWED_SECONDS)
        renewed = time.monotonic()
        mesh.traffic.wait_for(THREADS * 40, renewed + NOTICED_SECONDS)
        failures = mesh.traffic.failures()
        print(f"renewed after {renewed - was_set:.1f} s; {len(failures)} requests met it")
        assert all(map(may_be_lost, failures)), failures
        assert [line for line in failures if line["start"] > renewed + NOTICED_SECONDS] == []
        # A client of its own: its connections are new.
        call = ["run", "--mesh", "clock", "--", "curl", "-sf", "-o", "/dev/null", "http://server:8080/x"]
        done = person.weft(*call, env=person.environment | clock_of(person))
        assert done.returncode == 0, done.stderr
        until_steady(mesh.is_whole, "every proxy holds what it should")


@pytest.mark.parametrize(("hours", "are_renewed"), [(1, False), (14, True)])
def test_a_clock_that_is_set_within_the_life_of_certificates_loses_nothing(
    person: Person, hours: int, are_renewed: bool
) -> None:
    """As after a laptop's sleep: they are valid all the while, though their half-life may be over at one blow."""
    with with_a_clock(person) as (mesh, put):
        before = mesh.expiries()
        put(timedelta(hours=hours))
        was_set = time.monotonic()
        if are_renewed:
            until_steady(lambda: mesh.have_others(before, gt), "all have other certificates")
        mesh.traffic.wait_for(THREADS * 100, was_set)
        until_steady(mesh.is_whole, "every proxy holds what it should")
        assert mesh.lost() == []
        assert {name: moment > before[name] for name, moment in mesh.expiries().items()} == dict.fromkeys(
            before, are_renewed
        )


def test_a_control_plane_that_hangs_is_announced_long_before_anything_expires(person: Person) -> None:
    """
    More than half a certificate's life after it was heard last: `weft up` and `weft status` say so, hours before the end, and
    nothing is lost. When it is back nobody says so any more.
    """
    with with_a_clock(person) as (mesh, put):
        before = mesh.expiries()
        pid = mesh.mesh.pids()["control-plane"]
        os.kill(pid, signal.SIGSTOP)
        try:
            put(timedelta(hours=15))  # of a day: two fifths of their life are left when they are first told of
            was_set = time.monotonic()

            def announced() -> set[str]:
                said = re.findall(r"(\S+) +the certificate expires in (\d) hours and could not be", mesh.mesh.output())
                assert all(int(hours) >= 7 for _, hours in said), said
                return {name for name, _ in said}

            eventually(lambda: announced() >= before.keys(), "weft up says it of each program")
            told = person.weft("status", "-m", "clock", env=person.environment | clock_of(person))
            assert told.returncode == 1, told.stdout
            assert "The control plane does not answer." in told.stdout
            assert f"`kill -9 {pid}`, and `weft up` starts another." in told.stdout
            assert re.search(r"The first certificate, of \S+, expires in [78]", told.stdout), told.stdout
            mesh.traffic.wait_for(THREADS * 100, was_set)
            assert mesh.lost() == []
        finally:
            os.kill(pid, signal.SIGCONT)
        until_steady(lambda: mesh.have_others(before, gt), "all have other certificates")
        until_steady(mesh.is_whole, "every proxy holds what it should")
        until_steady(lambda: "certificate" not in person.notices("code") or person.notices("text"), "it is over")
        assert mesh.lost() == []


def test_what_an_author_wrote_and_a_proxy_refuses(person: Person) -> None:
    """
    The routes with it are refused by name and line, the rest of that very apply is in force, and what was refused stays as it
    was; the receipt tells all of it, also when everybody has forgotten the apply.
    """
    with loaded(person, "authors", threads=THREADS, chained=True) as mesh:
        here = mesh.traffic.record.parent
        (here / "rules.yaml").write_text(AUTHORS)
        os.chown(here / "rules.yaml", person.uid, person.uid)
        mesh.traffic.forget()
        done = person.weft("apply", "-m", mesh.paths.mesh, "-f", "rules.yaml", cwd=here)
        assert done.returncode == 6, (done.stdout, done.stderr)
        assert TOO_LARGE[person.data_plane] in done.stderr, done.stderr
        assert LINE in done.stderr, done.stderr
        applied = time.monotonic()
        revision = str(mesh.client.get("/v1/version")["revision"])

        until_steady(lambda: not receipt(mesh, revision)["silent"], "every proxy has answered")
        told = receipt(mesh, revision)
        # Who could call `relay` refuses its routes; the gateway has none of them and nothing to refuse.
        assert {item["workload"] for item in told["refused"]} == set(mesh.status()) - {"ingressgateway-0"}, told
        for item in told["refused"]:
            (part,) = item["resources"]
            # Envoy names no field, so all that the routes come from is told.
            assert part["name"] == "8081", part
            assert any(place.endswith(f"/{LINE}") for place in part["origins"]), part
        shown = person.weft("status", "-m", mesh.paths.mesh, "--revision", revision, cwd=here)
        assert shown.returncode == 0, shown.stderr
        for item in told["refused"]:
            assert any(
                f"refused  {item['workload']}: 8081: " in line and LINE in line for line in shown.stdout.splitlines()
            ), shown.stdout
        waited = person.weft("wait", "-m", mesh.paths.mesh, "--revision", revision, cwd=here)
        assert waited.returncode == 6, waited.stdout
        assert LINE in waited.stderr, waited.stderr

        mesh.traffic.wait_for(THREADS * 40, applied)
        assert {line["who"] for line in mesh.traffic.seen if line["start"] > applied} == {"v2"}
        mended = AUTHORS.replace(HUGE_REGEX, ".*")
        (here / "rules.yaml").write_text(mended)
        done = person.weft("apply", "-m", mesh.paths.mesh, "-f", "rules.yaml", cwd=here)
        assert done.returncode == 0, (done.stdout, done.stderr)
        until_steady(mesh.is_whole, "every proxy holds what it should")
        # Nobody ever had that revision, and nobody says so: not when it is mended, nor after a crash.
        mended_by = mesh.client.get("/v1/version")["revision"]
        never_had(person, mesh, revision, told, mended_by)
        pid = mesh.mesh.pids()["control-plane"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: mesh.mesh.pids()["control-plane"] != pid, "another control plane")
        until_steady(mesh.is_whole, "every proxy holds what it should")
        never_had(person, mesh, revision, told, mended_by)
        for number in (int(revision) - 1, mended_by):
            waited = person.weft("wait", "-m", mesh.paths.mesh, "--revision", str(number), cwd=here)
            assert waited.returncode == 0, waited.stderr
        assert mesh.lost() == []


def never_had(person: Person, mesh: Loaded, revision: str, told: Any, mended_by: int) -> None:
    """The receipt of *revision* is as it was *told* while it was refused, but for what came in its place."""
    found = receipt(mesh, revision)
    assert found["acknowledged"] == told["acknowledged"]
    assert found["refused"] == [{**item, "superseded_by": mended_by, "mended": True} for item in told["refused"]]
    words = f"superseded by revision {mended_by}, which"
    shown = person.weft("status", "-m", mesh.paths.mesh, "--revision", revision, cwd=person.home)
    assert f"Refused by {len(told['refused'])} of {len(told['affected'])} ({words} they have)." in shown.stdout
    waited = person.weft("wait", "-m", mesh.paths.mesh, "--revision", revision, cwd=person.home)
    assert waited.returncode == 6, waited.stdout
    assert waited.stderr.count(f"({words} it has)") == len(told["refused"]), waited.stderr


def receipt(mesh: Loaded, revision: str) -> Any:
    return mesh.client.get(f"/v1/revisions/{revision}")


def test_a_resource_that_a_proxy_refuses(person: Person) -> None:
    """It alone is refused and named with the reason; everything else applies, to that proxy too."""
    with loaded(person, "refusing", threads=THREADS) as mesh, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        holder = mesh.mesh.pids()["holder"]
        with Started(
            [sys.executable, "-c", OCCUPY, str(holder), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **person.options(),
        ) as occupant:
            assert occupant.stdout
            assert occupant.stdout.readline() == "taken\n"
            directory = mesh.traffic.record.parent
            late = ["run", "--mesh", "refusing", "--name", "late", "--port", str(port), "--"]
            with person.start(*late, "python3", "server.py", "v1", str(port), cwd=directory) as joined:
                eventually(lambda: "late-v1-0" in mesh.status(), "it has joined")
                refused = eventually(lambda: mesh.status()["late-v1-0"]["refused"], "its proxy refuses something")
                assert [item["name"] for item in refused] == [f"inbound|{port}"]
                assert f":{port}" in refused[0]["message"]
                assert mesh.data_plane("late-v1-0") == person.data_plane
                eventually(lambda: f"refuses inbound|{port}" in mesh.mesh.output(), "weft up says it, too")
                eventually(lambda: mesh.workloads()["late-v1-0"]["pid"], "its program runs")
                done = person.weft(
                    "exec", "-m", "refusing", "late", "--", "curl", "-s", "http://server:8080/x", "-o", "/dev/null"
                )
                assert done.returncode == 0, done.stderr
                joined.terminate()
                joined.communicate(timeout=30)
        assert mesh.lost() == []
