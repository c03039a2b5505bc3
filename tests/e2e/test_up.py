"""`weft up` in any directory with a weft.yaml, and what shows a running mesh."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import yaml

from tests.e2e.conftest import REPOSITORY, Mesh, Person, eventually, processes_of
from weft.agent.forward_proxies import exempted
from weft.agent.paths import mesh_paths
from weft.agent.supervisor import BOOT_SECONDS
from weft.errors import StoreError

pytestmark = pytest.mark.e2e

SERVER = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{os.environ['WHO']} {os.uname().nodename} {os.getcwd()} {open('/proc/net/fib_trie').read()}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        print("served", self.path, flush=True)
    def log_message(self, *arguments): pass
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 0
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

SHOP = """\
mesh: shop
programs:
  front:
    command: [python3, ../server.py, "8000"]
    directory: front
    environment: {WHO: the front, NUMBER: 7}
    ports: [8000]
    depends_on: [slow]
    replicas: 2
  slow:
    command: sh -c 'sleep 0.5; echo slow begins; exec python3 server.py 8001'
    environment: {WHO: slow}
    ports: [{number: 80, target_port: 8001}]
  fragile:
    command: ["sh", "-c", "echo I am fragile; echo and done; exit 3"]
    restart: never
  stubborn:
    command: ["sh", "-c", "echo again; sleep 0.1; exit 4"]
    restart: on-failure
  content:
    command: ["true"]
    restart: on-failure
gateways:
  door: {publish: ["0:8000", "0:8001"]}
apply: [mesh.yaml]
notes: Look at port {door:8000}.
"""

APPLIED = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {istio: door}
  servers:
    - {port: {number: 8000, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door}
spec:
  hosts: ["*"]
  gateways: [door]
  http: [{route: [{destination: {host: front, port: {number: 8000}}}]}]
"""


@pytest.fixture(scope="module")
def shop(person: Person) -> Iterator[Mesh]:
    person.write("shop/server.py", SERVER)
    person.write("shop/mesh.yaml", APPLIED)
    person.write("shop/front/keep", "")
    with person.mesh(str(person.write("shop/weft.yaml", SHOP).parent)) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def empty(person: Person) -> Iterator[Mesh]:
    person.write("empty/weft.yaml", "mesh: empty\nprograms: {}\n")
    with person.mesh(str(person.home / "empty")) as mesh:
        yield mesh


def test_replicas_have_names_and_addresses_of_their_own_and_share_the_requests(person: Person, shop: Mesh) -> None:
    programs = shop.programs()
    addresses = {programs[name]["address"] for name in ("front-0", "front-1")}
    assert len(addresses) == 2
    seen: set[str] = set()

    def look() -> bool:
        shown = person.weft("run", "-m", "shop", "--", "curl", "-sS", "http://front:8000/").stdout
        seen.update(address for address in addresses if f"-- {address}\n" in shown)
        return seen == addresses

    eventually(look, "both replicas have answered")


def test_programs_get_their_environment_and_directory(person: Person, shop: Mesh) -> None:
    shown = person.weft("run", "-m", "shop", "--", "curl", "-sS", "http://front:8000/").stdout
    assert shown.startswith("the front ")
    assert f" {person.home}/shop/front " in shown


def test_a_services_port_may_differ_from_the_programs(person: Person, shop: Mesh) -> None:
    assert person.weft("run", "-m", "shop", "--", "curl", "-sS", "http://slow/").stdout.startswith("slow ")


def test_a_program_starts_when_those_it_depends_on_are_ready(shop: Mesh) -> None:
    order = re.findall(r"^ +[\d.]+ s +(slow-0|front-\d) +ready$", shop.output(), re.MULTILINE)
    assert order[0] == "slow-0"
    assert sorted(order[1:]) == ["front-0", "front-1"]


def test_the_gateway_is_published_where_the_notes_say(shop: Mesh) -> None:
    match = re.search(r"Look at port (\d+)\.", shop.output())
    assert match
    assert int(match[1]) == shop.ingress[1]
    status, body = shop.get("/")
    assert (status, body.startswith("the front ")) == (200, True)


def test_a_published_port_that_no_gateway_takes_is_called_that(shop: Mesh) -> None:
    """The address is the mesh's and shown, and whoever calls it is refused."""
    found = dict(re.findall(r"^door port (\d+) is http://127\.0\.0\.1:(\d+)$", shop.output(), re.MULTILINE))
    assert shop.get("/")[0] == 200
    assert "until a Gateway names port 8000" not in shop.output()
    assert "It refuses calls until a Gateway names port 8001: `weft apply -f FILE`." in shop.output()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found["8001"]))) == errno.ECONNREFUSED


def test_a_program_that_dies_is_reported_with_its_last_words_and_stays_dead(shop: Mesh) -> None:
    shown = eventually(lambda: re.search(r"fragile-0 +exited with code 3\n(.*\n)(.*\n)", shop.output()), "it is told")
    assert (shown[1], shown[2]) == ("    I am fragile\n", "    and done\n")
    program = shop.programs()["fragile-0"]
    assert (program["state"], program["code"], program["restarts"]) == ("exited", 3, 0)


def test_a_program_that_fails_starts_again_if_its_policy_says_so(shop: Mesh) -> None:
    eventually(lambda: shop.programs()["stubborn-0"]["restarts"] >= 2, "it was started again twice")
    assert re.search(r"stubborn-0 +exited with code 4; starting it again", shop.output())


def test_a_program_that_ends_well_is_left_alone_on_failure(shop: Mesh) -> None:
    eventually(lambda: shop.programs()["content-0"]["state"] == "exited", "it has ended")
    program = shop.programs()["content-0"]
    assert (program["code"], program["restarts"]) == (0, 0)


@pytest.mark.any_data_plane
def test_ps_is_a_table_for_people(person: Person, shop: Mesh) -> None:
    lines = person.weft("ps", "-m", "shop").stdout.splitlines()
    assert lines[0].split() == ["NAME", "SERVICE", "VERSION", "PID", "STATE", "RESTARTS", "PORTS", "ADDRESS", "READY"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert re.search(r"running +0 +8000 +10\.\S+ +yes$", rows["front-0"])
    assert "exited (3)" in rows["fragile-0"]


@pytest.mark.parametrize("output", ["json", "yaml"])
@pytest.mark.any_data_plane
def test_ps_is_data_for_programs(person: Person, shop: Mesh, output: str) -> None:
    import yaml

    done = person.weft("ps", "-m", "shop", "-o", output)
    names = {item["workload"] for item in yaml.safe_load(done.stdout)}
    assert {"front-0", "front-1", "slow-0", "door-0"} <= names


def test_logs_shows_output_and_requests_together(person: Person, shop: Mesh) -> None:
    assert shop.get("/look-for-me")[0] == 200

    def complete() -> bool:
        lines = person.weft("logs", "-m", "shop").stdout.splitlines()
        found = [line for line in lines if "/look-for-me" in line]
        kinds = {kind for kind in ("==>", "<--", "served") if any(kind in line for line in found)}
        return kinds == {"==>", "<--", "served"}

    eventually(complete, "gateway, sidecar and program have written it down")


def test_logs_follows(person: Person, shop: Mesh) -> None:
    with person.start("logs", "-m", "shop", "-f", "front") as process:
        assert process.stdout
        for path in ("/first", "/second"):
            shop.get(path)
            awaited = {f"served {path}", f"{path} from "}  # what the program wrote, and the request that its proxy saw
            while awaited:
                line = process.stdout.readline()
                awaited = {text for text in awaited if text not in line}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


@pytest.mark.any_data_plane
def test_logs_of_one_program_are_of_that_program(person: Person, shop: Mesh) -> None:
    lines = person.weft("logs", "-m", "shop", "--output", "fragile", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["I am fragile", "and done"]
    done = person.weft("logs", "-m", "shop", "fragiel")
    assert (done.returncode, "Did you mean" in done.stderr) == (4, True)


@pytest.mark.parametrize("kind", ["listeners", "routes", "clusters", "endpoints", "secrets", "log"])
def test_proxy_config_shows_what_a_proxy_has(person: Person, shop: Mesh, kind: str) -> None:
    asked = ("proxy-config", kind, "front-0", "-m", "shop")
    assert person.weft(*asked).stdout.strip()
    assert person.json(*asked)
    done = person.weft(*asked, "-o", "yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)


@pytest.mark.any_data_plane
def test_version(person: Person, shop: Mesh) -> None:
    assert re.search(r"client +\d", person.weft("version", "-m", "shop").stdout)


@pytest.mark.any_data_plane
def test_every_command_has_help_with_examples(person: Person) -> None:
    shown = person.weft("--help").stdout
    commands = re.findall(r"^  ([a-z][a-z-]*)  ", shown, re.MULTILINE)
    assert {"up", "run", "exec", "shell", "apply", "ps", "logs", "why", "doctor"} <= set(commands)
    for command in commands:
        done = person.weft(command, "--help")
        assert (done.returncode, f"weft {command}" in done.stdout.partition("Examples")[2]) == (0, True), command


@pytest.mark.any_data_plane
def test_a_mesh_of_the_same_name_is_refused(person: Person, empty: Mesh) -> None:
    done = person.weft("up", str(person.home / "empty"))
    assert done.returncode == 1
    assert "'empty' runs already" in done.stderr
    assert person.weft("ps", "-m", "empty").returncode == 0


@pytest.mark.any_data_plane
def test_what_was_applied_is_kept_for_the_next_start_unless_that_is_fresh(person: Person) -> None:
    directory = person.write("keeper/weft.yaml", "mesh: keeper\nprograms: {}\n").parent
    rule = person.write("keeper/rule.yaml", APPLIED.partition("---\n")[0])
    told = "kept from an earlier run: Gateway default/door (--fresh forgets it)"
    with person.mesh(str(directory)) as mesh:
        assert person.weft("apply", "-m", "keeper", "-f", str(rule)).returncode == 0
        assert told not in mesh.output()
    with person.mesh(str(directory)) as mesh:
        eventually(lambda: told in mesh.output(), "weft up says what it kept")
        assert "door" in person.weft("get", "gateway", "-m", "keeper").stdout
    with person.mesh("--fresh", str(directory)) as mesh:
        assert "door" not in person.weft("get", "gateway", "-m", "keeper").stdout
        assert told not in mesh.output()


@pytest.mark.any_data_plane
def test_a_directory_is_followed_as_its_files_change(person: Person) -> None:
    """What is saved is in force, what is wrong is said and changes nothing, and what begins wrong starts nothing."""
    rule, _, other = APPLIED.partition("---\n")
    person.write("followed/rules/deep/gateway.yaml", rule)
    directory = person.write("followed/weft.yaml", "mesh: followed\nfollow: rules\n").parent

    def there(kind: str) -> list[str]:
        return person.weft("get", kind, "-m", "followed", "-o", "name").stdout.splitlines()

    with person.mesh(str(directory)) as mesh:
        assert there("gateway") == ["gateway.networking.istio.io/door"]
        file = person.write("followed/rules/routes.yaml", other)
        eventually(lambda: there("vs") == ["virtualservice.networking.istio.io/door"], "a new file is in force")
        person.write("followed/rules/routes.yaml", other.replace("hosts", "hsots"))
        eventually(lambda: "unknown field `hsots`" in mesh.output(), "a mistake is said")
        assert there("vs") == ["virtualservice.networking.istio.io/door"]
        file.unlink()
        eventually(lambda: there("vs") == [], "what is gone is deleted")
    person.write("followed/rules/routes.yaml", other.replace("hosts", "hsots"))
    done = person.weft("up", str(directory))
    assert done.returncode == 3
    assert re.search(r"rules/routes\.yaml:5:3: error: spec\.hsots", done.stderr)


@pytest.mark.any_data_plane
def test_a_store_that_cannot_be_used_ends_weft_up_at_once_with_its_own_code(person: Person) -> None:
    """It will not be another one at the next try: nobody waits until the mesh is given up."""
    directory = person.write("newer/weft.yaml", "mesh: newer\nprograms: {}\n").parent
    with person.mesh(str(directory)):
        pass
    store = mesh_paths("newer", environment=person.environment).state / "store.db"
    with closing(sqlite3.connect(store)) as db:
        db.execute("PRAGMA user_version = 99")
    began = time.monotonic()
    done = person.weft("up", str(directory))
    assert time.monotonic() - began < BOOT_SECONDS
    assert done.returncode == StoreError.exit_code, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: The control plane cannot start: {store} has layout 99")
    assert "starting it again" not in done.stdout


@pytest.mark.any_data_plane
def test_mistakes_are_shown_all_at_once_with_their_places(person: Person) -> None:
    bad = person.write(
        "bad/weft.yaml",
        """\
        mesh: bad
        programs:
          one:
            comand: [true]
            command: ["true"]
            replicas: many
          two:
            command: ["true"]
            depends_on: [three]
        """,
    )
    done = person.weft("up", str(bad))
    assert done.returncode == 3
    assert "bad/weft.yaml:4:5" in done.stderr
    assert "bad/weft.yaml:6:" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("; nothing was started.")
    assert not (person.runtime / "weft" / "bad").exists()


@pytest.mark.any_data_plane
def test_a_mistake_in_what_is_applied_starts_nothing(person: Person) -> None:
    """And it is said together with the mistakes of weft.yaml itself."""
    person.write("wrong/mesh.yaml", APPLIED.replace("selector", "sellector"))
    directory = person.write("wrong/weft.yaml", "mesh: wrong\nprogams: {}\napply: [mesh.yaml]\n").parent
    done = person.weft("up", str(directory))
    assert done.returncode == 3
    assert re.search(r"weft\.yaml:2:1.*progams", done.stderr)
    assert re.search(r"mesh\.yaml:5:3.*sellector", done.stderr)


@pytest.mark.any_data_plane
def test_without_a_weft_yaml_the_error_says_so(person: Person) -> None:
    done = person.weft("up", str(person.runtime))
    assert (done.returncode, "weft.yaml" in done.stderr) == (2, True)


@pytest.mark.any_data_plane
def test_a_program_that_cannot_be_started_is_reported(person: Person) -> None:
    text = "mesh: missing\nprograms:\n  ghost: {command: [/no/such/program], restart: never}\n"
    directory = person.write("missing/weft.yaml", text).parent
    with person.start("up", str(directory), stderr=subprocess.STDOUT) as process:
        assert process.stdout
        line = ""
        while "ghost-0" not in line:
            line = process.stdout.readline()
            assert line, "weft up ended"
        assert "cannot be started: No such file or directory: /no/such/program" in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_what_depends_on_a_program_that_has_ended_is_said_not_to_be_started(person: Person) -> None:
    """And what does not is ready: nobody waits for a readiness that cannot come."""
    text = """\
    mesh: halted
    programs:
      db: {command: "echo no disk; exit 3", ports: [{number: 5432, protocol: TCP}], restart: never}
      shop: {command: sleep 600, depends_on: [other, db]}
      page: {command: sleep 600, depends_on: [shop]}
      migrate: {command: "true", restart: never}
      other: {command: sleep 600, depends_on: [migrate]}
    """
    directory = person.write("halted/weft.yaml", text).parent
    with person.mesh(str(directory)) as mesh:
        said = [" ".join(line.split()[2:]) for line in mesh.output().splitlines() if " is not started: " in line]
        assert said == ["shop-0 is not started: db-0 has ended", "page-0 is not started: shop-0 is not started"]
        states = {item["workload"]: item["state"] for item in person.json("ps", "--mesh", "halted")}
        assert states == {"db-0": "exited", "migrate-0": "exited", "other-0": "running"}


@pytest.mark.any_data_plane
def test_long_last_lines_and_a_large_environment_break_nothing(person: Person) -> None:
    """Neither fits in a datagram: the agent broke, and its program was started again, whatever its policy says."""
    text = """\
    mesh: large
    programs:
      last:
        command: ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo $A; done; exit 3"]
        restart: never
    """
    directory = person.write("large/weft.yaml", text).parent
    environment = {"A": "x" * 70_000, "C": "x" * 70_000, "D": "x" * 120_000}
    with person.mesh("-v", str(directory), environment=environment) as mesh:
        eventually(lambda: "exited with code 3" in mesh.output(), "the end is told")
        eventually(lambda: f"    {'x' * 4000}" in mesh.output(), "and what it said last, line after line")
        assert "broke" not in mesh.output()
        [program] = person.json("ps", "-m", "large")
        assert (program["state"], program["restarts"]) == ("exited", 0)


def test_behind_a_companys_proxy_programs_are_told_to_call_services_without_it(person: Person) -> None:
    text = "mesh: company\nprograms: {sleeper: {command: python3 -m http.server 8000, ports: [8000]}}\n"
    directory = person.write("company/weft.yaml", text).parent
    with person.mesh(str(directory), environment={"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "intern"}) as mesh:
        assert mesh.output().count(exempted("HTTPS_PROXY")) == 1
        done = person.weft("exec", "--mesh", "company", "sleeper", "--", "sh", "-c", "echo $no_proxy; echo $NO_PROXY")
        told = "intern,.svc.cluster.local,sleeper,sleeper.default,sleeper.default.svc,240.240.0.0/16,10."
        assert [line[: len(told)] for line in done.stdout.splitlines()] == [told, told]


@pytest.mark.parametrize("name", ["control-plane", "edge"])
def test_a_part_of_the_mesh_that_dies_is_started_again(person: Person, name: str) -> None:
    directory = person.write(
        "phoenix/weft.yaml", "mesh: phoenix\nprograms:\n  one: {command: [sleep, '9999']}\n"
    ).parent
    with person.mesh(str(directory)) as mesh:
        runtime = person.runtime / "weft" / "phoenix"
        before = json.loads((runtime / "mesh.json").read_text())["pids"][name]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: f"{name}" in mesh.output() and "starting it again" in mesh.output(), "it is told")
        eventually(lambda: json.loads((runtime / "mesh.json").read_text())["pids"][name] != before, "there is another")
        eventually(lambda: _state(person) == "running", "the mesh answers, and knows that the program runs")
        assert person.weft("run", "-m", "phoenix", "--", "true").returncode == 0


def _state(person: Person) -> str:
    done = person.weft("ps", "-m", "phoenix", "-o", "json")
    found = json.loads(done.stdout) if done.returncode == 0 else []
    return next((item["state"] for item in found if item["workload"] == "one-0"), "")


def test_a_proxy_that_dies_is_started_again(person: Person) -> None:
    directory = person.write("mortal/weft.yaml", "mesh: mortal\nprograms:\n  one: {command: [sleep, '9999']}\n").parent
    with person.mesh(str(directory)) as mesh:

        def proxy() -> int | None:
            return next((pid for pid, line in processes_of(person).items() if "/one-0/bootstrap.json" in line), None)

        first = proxy()
        assert first
        os.kill(first, signal.SIGKILL)
        eventually(lambda: "the proxy was killed by SIGKILL; starting it again" in mesh.output(), "it is told")
        eventually(lambda: proxy() not in (None, first), "there is another")


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    from weft import errors

    text = (REPOSITORY / "docs" / "reference" / "exit-codes.md").read_text("utf-8")
    for error in errors.WeftError.__subclasses__():
        assert re.search(rf"^\| {error.exit_code} \|", text, re.MULTILINE), error


@pytest.mark.any_data_plane
def test_doctor_says_what_works_here(person: Person) -> None:
    findings = person.json("doctor")
    # The mode with namespaces; explicit mode, which works everywhere, comes after it.
    modes = {finding["name"]: finding["works"] for finding in findings}
    assert modes.get("root namespaces", modes.get("rootless namespaces")) is True, findings
    assert person.weft("doctor").stdout.count("yes") >= 5
