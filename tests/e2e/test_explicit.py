"""The demo where namespaces are not permitted, as root and unprivileged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import BOOKINFO, UNPRIVILEGED_UID, Mesh, Person, eventually, processes_of
from tests.e2e.test_demo import stars

# Explicit mode is weft-proxy's alone.
pytestmark = [pytest.mark.e2e, pytest.mark.any_data_plane]

STRANGER_UID = UNPRIVILEGED_UID + 1


@pytest.fixture(scope="module")
def explicit(person: Person) -> Iterator[Mesh]:
    """Bookinfo in explicit mode."""
    with person.mesh("--interception", "explicit", str(BOOKINFO)) as mesh:
        yield mesh


def test_the_page_shows_all_kinds_of_stars(explicit: Mesh) -> None:
    seen: set[str] = set()

    def look() -> bool:
        status, html = explicit.get("/productpage", host="bookinfo.localhost")
        assert status == 200
        assert "George Eliot" in html
        assert "Sorry" not in html
        seen.add(stars(html))
        return seen == {"none", "black", "red"}

    eventually(look, "all three kinds of stars are seen")


def test_there_is_no_namespace_and_every_call_has_an_identity(explicit: Mesh) -> None:
    ours = {kind: Path(f"/proc/self/ns/{kind}").readlink() for kind in ("net", "mnt", "pid", "user")}
    for program in explicit.programs().values():
        if program["pid"]:
            assert {kind: Path(f"/proc/{program['pid']}/ns/{kind}").readlink() for kind in ours} == ours
    log = explicit.person.runtime / "weft" / "bookinfo" / "workloads" / "details-v1-0" / "access.log"

    def callers() -> set[str]:
        explicit.get("/productpage")
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        records = [json.loads(line) for line in lines]
        return {item["downstream_peer_uri_san"] for item in records if item["direction"] == "inbound"}

    eventually(lambda: callers() == {"spiffe://cluster.local/ns/default/sa/productpage"}, "the caller is named")


def test_rules_apply_and_are_explained(explicit: Mesh) -> None:
    person = explicit.person
    assert person.weft("apply", "-f", str(BOOKINFO / "try" / "reviews-for-jason.yaml"), "--wait").returncode == 0
    try:
        done = person.weft("run", "--", "curl", "-s", "-H", "end-user: jason", "http://reviews:9080/reviews/0")
        assert json.loads(done.stdout)["served_by"] == "reviews-v3", done.stderr
        why = person.weft(
            "why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0", "-H", "end-user: jason"
        )
        assert "reviews-v3-0" in why.stdout, why.stdout + why.stderr
    finally:
        assert person.weft("delete", "-f", str(BOOKINFO / "try" / "reviews-for-jason.yaml")).returncode == 0


def test_a_program_finds_services_by_variables_as_in_kubernetes(explicit: Mesh) -> None:
    call = "curl -s --noproxy '*' http://$RATINGS_SERVICE_HOST:$RATINGS_SERVICE_PORT/ratings/0"
    done = explicit.person.weft("run", "--", "sh", "-c", call)
    assert json.loads(done.stdout)["ratings"]["Edward"] == 3, done.stderr
    beside = explicit.person.weft("exec", "productpage-v1-0", "--", "sh", "-c", call)
    assert json.loads(beside.stdout)["ratings"]["Edward"] == 3, beside.stderr


def place_of(mesh: Mesh) -> tuple[str, int]:
    """Return where productpage's program calls ratings."""
    done = mesh.person.weft("exec", "productpage-v1-0", "--", "sh", "-c", "echo $RATINGS_SERVICE_HOST")
    return done.stdout.strip(), 9080


ASK = """
import http.client, json, sys
host, port, headers = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
connection = http.client.HTTPConnection(host, port, timeout=30)
connection.request("GET", "/ratings/0", headers=headers)
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def ask(place: tuple[str, int], uid: int, **headers: str) -> str:
    """GET the ratings at *place* as the user *uid*; return status and body, or the error."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    command = [sys.executable, "-c", ASK, place[0], str(place[1]), json.dumps(named)]
    other: dict[str, Any] = {} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **other)
    return done.stdout + done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become several users")
def test_no_other_user_can_call_under_a_programs_identity(explicit: Mesh) -> None:
    place = place_of(explicit)
    assert ask(place, explicit.person.uid).startswith("200 ")
    said = ask(place, STRANGER_UID)
    assert said.startswith("403 "), said
    assert "another user" in said


def test_no_web_page_can_call_under_a_programs_identity(explicit: Mesh) -> None:
    place, uid = place_of(explicit), explicit.person.uid
    assert ask(place, uid).startswith("200 ")
    assert ask(place, uid, Host="evil.example:9080").startswith("403 ")
    assert ask(place, uid, Origin="https://evil.example").startswith("403 ")
    assert ask(place, uid, Sec_Fetch_Site="cross-site").startswith("403 ")


def test_the_proxies_of_peers_take_mutual_tls_only(explicit: Mesh) -> None:
    address = explicit.programs()["ratings-v1-0"]["address"]
    said = ask((address, 9080), explicit.person.uid)
    assert "ConnectionResetError" in said or "RemoteDisconnected" in said, said


def test_a_program_that_ignores_where_to_listen_is_named_with_the_remedy(person: Person) -> None:
    """Its own proxy has the port; one that does not collide is told that nobody calls it there."""
    server = "import http.server as h; h.ThreadingHTTPServer(('', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
    text = f"""
    mesh: stubborn
    interception: explicit
    programs:
      stubborn:
        command: [python3, -c, "{server.format(port=9080)}"]
        ports: [9080]
        restart: never
    """
    path = person.write("stubborn/weft.yaml", text)
    with person.mesh(str(path)) as mesh:
        eventually(lambda: "stubborn-0 ended because port 9080 is taken: by its proxy" in mesh.output(), "it is named")
        assert re.search(r"HOST and the port\s+in PORT", mesh.output())


def test_after_kill_9_of_weft_up_nothing_is_left(person: Person) -> None:
    """No namespace ends what is left: daemons of programs included."""
    daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
    text = f"""
    mesh: killed
    interception: explicit
    programs:
      forking:
        command: "python3 -c '{daemon}'; exec sleep 600"
    """
    path = person.write("killed/weft.yaml", text)
    others = processes_of(person).keys()
    with person.mesh(str(path)) as mesh:
        eventually(lambda: any("time.sleep" in line for line in processes_of(person).values()), "the daemon runs")
        mesh.process.kill()
        mesh.process.wait()
        eventually(lambda: processes_of(person).keys() <= others, "every process is gone", seconds=10.0)
        assert not (person.runtime / "weft" / "killed").exists()


def test_envoy_is_refused_with_the_reason(person: Person) -> None:
    done = person.weft("up", "--proxy", "envoy", "--interception", "explicit", "--mesh", "theirs", str(BOOKINFO))
    assert done.returncode != 0
    assert "only weft-proxy can tell a program's calls from everybody else's" in done.stderr


CONTAINER = """
import os, sys
from tests.namespaces.test_doctor import SECCOMP
exec(SECCOMP)
filter_call(UNSHARE, 1)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_it_is_chosen_where_namespaces_are_not_permitted_and_says_why(person: Person) -> None:
    """As in a container whose seccomp filter refuses unshare(2)."""
    path = person.write("contained/weft.yaml", "mesh: contained\n")
    wrapper = [sys.executable, "-c", CONTAINER]
    with person.mesh(str(path), wrapper=wrapper, environment={"PYTHONPATH": str(BOOKINFO.parents[1])}) as mesh:
        shown = mesh.output()
        assert "Namespaces are not permitted here: a seccomp filter on this process refuses it" in shown
        assert "runs in explicit mode" in shown
        done = person.weft("run", "-m", "contained", "--", "sh", "-c", "echo $HTTP_PROXY")
        assert re.fullmatch(r"http://weft:[\w-]+@127\.\d+\.1\.1:15001\n", done.stdout), done.stderr
