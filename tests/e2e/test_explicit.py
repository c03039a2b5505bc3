"""The demo where namespaces are not permitted, as root and unprivileged."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import BOOKINFO, UNPRIVILEGED_UID, Mesh, Person, eventually, processes_of
from tests.e2e.test_demo import stars
from weft.agent.processes import parent

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


def test_an_unknown_host_is_explained(explicit: Mesh) -> None:
    """Here it is the program's HTTP proxy that is asked for the host, and that finds no address."""
    person = explicit.person
    assert person.call("http://reviws:9080/", request_id="to-reviws") == "503"
    told = eventually(lambda: person.weft("why", "to-reviws").stdout, "its record has arrived")
    assert "was asked for the host reviws: no service of the mesh is called so" in told, told
    assert "What to do: Did you mean `reviews`?" in told, told
    said = person.weft("why", "--from", "productpage", "--to", "http://reviws:9080/").stdout
    assert "if not, the proxy answers 503 itself (DF)." in said, said
    assert "To mend it: did you mean `reviews`?" in said, said


@pytest.mark.parametrize("port", [":9081", ""])
def test_a_port_that_a_service_lacks_is_told_with_those_that_it_has(explicit: Mesh, port: str) -> None:
    """The HTTP proxy has no rule for it, and looks for a host of that name outside of the mesh."""
    person, request = explicit.person, f"to-ratings{port.replace(':', '-')}"
    assert person.call(f"http://ratings{port}/", request_id=request) == "503"
    told = eventually(lambda: person.weft("why", request).stdout, "its record has arrived")
    assert f"The service ratings has no port {port[1:] or 80}, so the call came to nothing. (DF)" in told, told
    assert "What to do: Call one of its ports: 9080;" in told, told
    assert "by now" not in told, told


@pytest.mark.parametrize("call", ["curl -sk https://$RATINGS_SERVICE_HOST:9080/", "printf 'HELO there\\r\\n\\r\\n'"])
def test_what_is_not_http_is_told_with_the_port_that_it_was_sent_to(explicit: Mesh, call: str) -> None:
    """The listener of a port reads everything as HTTP: what TLS begins with is no request line, and has no request id."""
    person, started = explicit.person, time.time()
    to = call if call.startswith("curl") else f"exec 3<>/dev/tcp/$RATINGS_SERVICE_HOST/9080; {call} >&3; head -1 <&3"
    person.weft("exec", "productpage-v1-0", "--", "bash", "-c", to)

    def about() -> str:
        (told,) = person.json("why", "--last-failed", "--from", "productpage") or [None]
        is_it = told is not None and told["record"]["start"] > started and told["record"]["status"] == 400
        return person.weft("why", "--last-failed", "--from", "productpage").stdout if is_it else ""

    told = eventually(about, "it is recorded")
    assert "The port 9080 of ratings speaks HTTP; what came from productpage-v1-0 was TLS, or" in told, told
    assert "Cause: the program of productpage-v1-0." in told, told
    assert "What to do: Call it by http://ratings:9080/;" in told, told
    assert "PassthroughCluster" not in told, told


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
    return run_as(uid, ASK, place[0], str(place[1]), json.dumps(named))


def run_as(uid: int, script: str, *argv: str) -> str:
    """Run a Python *script* as the user *uid*; return what it writes, errors last."""
    other: dict[str, Any] = {} if uid == os.getuid() else {"user": uid, "group": uid, "extra_groups": []}
    command = [sys.executable, "-c", script, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, **other)
    return done.stdout + done.stderr


ASK_PROXY = """
import http.client, sys
host, port = sys.argv[1], int(sys.argv[2])
headers = {"Proxy-Authorization": f"Basic {sys.argv[3]}"} if sys.argv[3] else {}
connection = http.client.HTTPConnection(host, port, timeout=30)
connection.request("GET", "http://ratings:9080/ratings/0", headers=headers)
print(connection.getresponse().status)
connection = http.client.HTTPConnection(host, port, timeout=30)
connection.set_tunnel("ratings", 9080, headers=headers)
try:
    connection.request("GET", "/ratings/0")
    print(connection.getresponse().status)
except OSError as error:
    print(error)
"""


@pytest.mark.once
def test_nobody_without_its_credential_can_use_a_programs_http_proxy(explicit: Mesh) -> None:
    """Programs of the same user are who could otherwise; of another user not even the right one helps."""
    person = explicit.person
    done = person.weft("exec", "productpage-v1-0", "--", "sh", "-c", "echo $HTTP_PROXY")
    proxy = urlsplit(done.stdout.strip())
    host, port, secret = str(proxy.hostname), str(proxy.port), f"{proxy.username}:{proxy.password}"

    def asked(uid: int, credential: str) -> list[str]:
        shown = base64.b64encode(credential.encode()).decode() if credential else ""
        return run_as(uid, ASK_PROXY, host, port, shown).splitlines()

    assert asked(person.uid, secret) == ["200", "200"]
    for credential in ("", f"{proxy.username}:", secret[:-1] + ("A" if secret[-1] != "A" else "B")):
        plain, tunnel = asked(person.uid, credential)
        assert (plain, "407" in tunnel) == ("407", True), (credential, tunnel)
    if os.getuid() == 0:
        plain, tunnel = asked(STRANGER_UID, secret)
        assert (plain, "403" in tunnel) == ("403", True), tunnel


@pytest.mark.once
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become several users")
def test_no_other_user_can_call_under_a_programs_identity(explicit: Mesh) -> None:
    place = place_of(explicit)
    assert ask(place, explicit.person.uid).startswith("200 ")
    said = ask(place, STRANGER_UID)
    assert said.startswith("403 "), said
    assert "another user" in said


TAKE = """
import socket, sys
for option in (0, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    with socket.socket() as taken:
        if option:
            taken.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            taken.bind((sys.argv[1], int(sys.argv[2])))
            taken.listen()
            print("taken")
        except OSError as error:
            print(error.strerror)
"""


def test_when_a_proxy_dies_nobody_takes_its_addresses_and_callers_wait(explicit: Mesh) -> None:
    """Whoever had them would be called by programs, and answer under another's name."""
    person, (address, port) = explicit.person, place_of(explicit)
    workload = "/workloads/productpage-v1-0/bootstrap"
    (proxy,) = [pid for pid, line in processes_of(person).items() if "-c " in line and workload in line]
    agent = parent(proxy)
    os.kill(agent, signal.SIGSTOP)  # so that no other comes meanwhile
    try:
        os.kill(proxy, signal.SIGKILL)
        for uid in {person.uid, STRANGER_UID if os.getuid() == 0 else person.uid}:
            assert run_as(uid, TAKE, address, str(port)) == "Address already in use\n" * 3
    finally:
        os.kill(agent, signal.SIGCONT)
    assert ask((address, port), person.uid).startswith("200 ")


@pytest.mark.once
def test_no_web_page_can_call_under_a_programs_identity(explicit: Mesh) -> None:
    place, uid = place_of(explicit), explicit.person.uid
    assert ask(place, uid).startswith("200 ")
    assert ask(place, uid, Host="evil.example:9080").startswith("403 ")
    assert ask(place, uid, Origin="https://evil.example").startswith("403 ")
    assert ask(place, uid, Sec_Fetch_Site="cross-site").startswith("403 ")

    def told() -> str:
        return in_one_line(explicit.person.weft("why", "--last-failed", "--from", "productpage").stdout)

    eventually(lambda: "a page of another site made it" in told(), "it is found among what failed")


LEDGER = """
import os, socketserver

class Session(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"+ready\\r\\n")
        for line in self.rfile:
            with open("arrived", "ab") as arrived:
                arrived.write(line)
            self.wfile.write(b"+" + line)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

Server((os.environ["HOST"], int(os.environ["PORT"])), Session).serve_forever()
"""

SAY = """
import socket, sys
with socket.create_connection((sys.argv[1], 6380), timeout=30) as ledger, ledger.makefile("r") as lines:
    print(lines.readline().strip())
    ledger.sendall(bytes.fromhex(sys.argv[2]))
    print(lines.readline().strip())
"""

PAGE = b"POST / HTTP/1.1\r\nHost: evil.example\r\nOrigin: https://evil.example\r\n\r\nFLUSHALL\r\n"


@pytest.mark.once
def test_no_web_page_and_no_other_user_can_call_a_tcp_port(person: Person) -> None:
    """HTTP is all that a page can send in the clear; a server that speaks first is heard at once."""
    text = """
    mesh: ledger
    interception: explicit
    programs:
      ledger: {command: [python3, ledger.py], ports: [{number: 6380, protocol: TCP}]}
      app: {command: [sleep, "600"]}
    """
    path = person.write("ledger/weft.yaml", text)
    person.write("ledger/ledger.py", LEDGER)

    def why() -> str:
        return in_one_line(person.weft("why", "-m", "ledger", "--last-failed", "--from", "app").stdout)

    with person.mesh(str(path)):
        done = person.weft("exec", "-m", "ledger", "app-0", "--", "sh", "-c", "echo $LEDGER_SERVICE_HOST")
        place = done.stdout.strip()

        def say(what: bytes, uid: int = person.uid) -> str:
            return run_as(uid, SAY, place, what.hex())

        assert say(b"PING\r\n") == "+ready\n+PING\n"
        said = say(PAGE)
        assert said.startswith("+ready\n"), said
        assert "ConnectionResetError" in said
        eventually(lambda: "began with an HTTP request" in why(), "it is explained, among what failed")
        assert ":6380: refused after " in why()
        assert "took the connection" not in why()

        def logged() -> str:
            return in_one_line(person.weft("logs", "-m", "ledger", "--access", "app").stdout)

        eventually(lambda: "caller_http_on_tcp" in logged(), "its line says why")
        if os.getuid() == 0:
            assert "ConnectionResetError" in say(b"PING\r\n", STRANGER_UID)
            eventually(lambda: "A process of another user called" in why(), "it is explained")
        curl = "curl -s -o /dev/null -w '%{http_code}' "
        for url, status in (("http://ledger:6380/", "503"), ("--noproxy '*' http://$LEDGER_SERVICE_HOST:6380/", "000")):
            done = person.weft("exec", "-m", "ledger", "app-0", "--", "sh", "-c", curl + url)
            assert done.stdout == status, done.stderr
        told = person.weft("why", "-m", "ledger", "--from", "app", "--to", "http://ledger:6380/").stdout
        assert "http:// does not get there: port 6380 of ledger speaks TCP." in told, told
        assert f"at $LEDGER_SERVICE_HOST ({place}) it resets what begins with a request of HTTP" in told, told
        assert "Of other bytes: it goes 100 % to ledger port 6380." in told, told
        assert (path.parent / "arrived").read_bytes() == b"PING\r\n"


@pytest.mark.once
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

        def named() -> bool:
            said = "stubborn-0 ended because a port is taken, most likely 9080: by its proxy"
            return said in in_one_line(mesh.output())

        eventually(named, "it is named")
        assert "HOST and the port in PORT" in in_one_line(mesh.output())


def in_one_line(shown: str) -> str:
    """Return *shown* without the line breaks of the terminal's width."""
    return " ".join(shown.split())


STUBBORN = """
import socket, sys
port, wordy = int(sys.argv[1]), sys.argv[2:]
try:
    socket.create_server(("", port))
except OSError:
    sys.exit(f"listen tcp :{port}: bind: address already in use" if wordy else "Error: cannot serve.")
"""


def test_weft_run_names_a_program_that_ignores_where_to_listen(explicit: Mesh) -> None:
    """It has the terminal: what it says is not read, and the kernel shows that it never had its port."""
    run = ("run", "--port", "9080", "--name", "stubborn", "--")
    done = explicit.person.weft(*run, sys.executable, "-c", STUBBORN, "9080")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot serve.\n"), done.stderr
    said = in_one_line(done.stderr)
    assert re.search(r"weft: stubborn-\S+ ended before it listened where its proxy calls it", said), said
    assert "If it tried port 9080: that is taken, by its proxy" in said
    assert "sh -c './app --listen $HOST:$PORT'" in said
    ended = explicit.person.weft(*run, "true")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_program_that_collides_with_somebody_else_is_not_told_of_its_proxy(person: Person) -> None:
    with socket.create_server(("", 0)) as other:
        person.write("unlucky/unlucky.py", STUBBORN)
        text = f"""
        mesh: unlucky
        interception: explicit
        programs:
          unlucky:
            command: [python3, unlucky.py, "{other.getsockname()[1]}", words]
            ports: [9080]
            restart: never
        """
        with person.mesh(str(person.write("unlucky/weft.yaml", text))) as mesh:
            eventually(lambda: "address already in use" in mesh.output(), "it has ended")
            eventually(lambda: person.json("ps", "-m", "unlucky")[0]["state"] == "exited", "that is known")
            assert "by its proxy" not in in_one_line(mesh.output())


def test_who_calls_a_program_that_listens_at_another_place_is_told_of_it(explicit: Mesh) -> None:
    """It runs, where nobody looks for it: not at the address and port that it was told."""
    person = explicit.person
    server = (
        "import os, socket; place = (os.environ['HOST'], int(os.environ['PORT']))\n"
        "astray = socket.create_server(('127.0.0.2', 0)); print(place, astray.getsockname()); astray.accept()"
    )
    with person.start("run", "--name", "astray", "--port", "8000", "--", "python3", "-c", server) as process:
        eventually(lambda: "misplaced" in person.notices("code"), "it is noticed")
        assert person.call("http://astray:8000/", request_id="to-astray") == "503"
        told = eventually(lambda: person.weft("why", "to-astray").stdout, "it is recorded")
        assert "could take a request; by now astray-v1-0 is running, but not ready. (UH)" in told, told
        assert "Noticed of astray-v1-0: astray-v1-0 listens at 127.0.0.2:" in told, told
        assert "HOST" in told, told
        process.terminate()
        process.communicate(timeout=20)


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
