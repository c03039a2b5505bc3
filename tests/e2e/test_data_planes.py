"""Envoy stands where weft-proxy does, in one mesh with it, and `weft status` says what is different."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Mesh, Person, eventually, processes_of

pytestmark = [pytest.mark.e2e, pytest.mark.any_data_plane]

SERVER = """\
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{sys.argv[1]} {self.headers.get('x-forwarded-for')}\\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", 0
Server(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""

MIXED = """\
mesh: mixed
programs:
  ours: {command: [python3, server.py, ours, "8000"], ports: [8000]}
  theirs: {command: [python3, server.py, theirs, "8000"], ports: [8000], proxy: envoy}
  both-ours: {service: both, command: [python3, server.py, both-ours, "8000"], ports: [8000]}
  both-theirs: {service: both, version: v2, command: [python3, server.py, both-theirs, "8000"], ports: [8000], proxy: envoy}
gateways:
  our-door: {publish: ["0:8000"]}
  their-door: {publish: ["0:8000"], proxy: envoy}
apply: [mesh.yaml]
notes: "{our-door:8000} {their-door:8000}"
"""

APPLIED = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: door}
spec:
  selector: {app: our-door}
  servers:
    - {port: {number: 8000, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: other-door}
spec:
  selector: {app: their-door}
  servers:
    - {port: {number: 8000, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door}
spec:
  hosts: ["*"]
  gateways: [door, other-door]
  http:
    - match: [{uri: {prefix: /ours}}]
      route: [{destination: {host: ours, port: {number: 8000}}}]
    - route: [{destination: {host: theirs, port: {number: 8000}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: both}
spec:
  host: both
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: both}
spec:
  hosts: [both]
  http:
    - match: [{headers: {who: {exact: theirs}}}]
      route: [{destination: {host: both, subset: v2}}]
    - match: [{headers: {who: {exact: nobody}}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
      route: [{destination: {host: both, subset: v1}}]
    - route: [{destination: {host: both, subset: v1}}]
"""


@pytest.fixture(scope="module")
def mixed(person: Person) -> Iterator[Mesh]:
    person.write("mixed/server.py", SERVER)
    person.write("mixed/mesh.yaml", APPLIED)
    with person.mesh(str(person.write("mixed/weft.yaml", MIXED).parent)) as mesh:
        yield mesh


def records(person: Person, workload: str, path: str) -> list[dict[str, Any]]:
    """The access records of *workload* for *path*."""
    lines = person.weft("logs", "-m", "mixed", "--access", "-o", "json", workload).stdout.splitlines()
    found = (json.loads(line)["access"] for line in lines)
    return [item for item in found if item.get("path") == path]


CALLERS = ["ours", "theirs"]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("called", CALLERS)
def test_each_calls_each_under_mutual_tls_and_both_record_it_alike(
    person: Person, mixed: Mesh, caller: str, called: str
) -> None:
    path = f"/{caller}-calls-{called}"
    done = person.weft("exec", "-m", "mixed", caller, "--", "curl", "-sS", f"http://{called}:8000{path}")
    assert done.stdout == f"{called} None\n", done.stderr
    (outbound,) = eventually(lambda: records(person, f"{caller}-0", path)[:1] if caller != called else [{}], "recorded")
    inbound = eventually(
        lambda: [item for item in records(person, f"{called}-0", path) if item["direction"] == "inbound"], "recorded"
    )[0]
    assert inbound["downstream_peer_uri_san"] == f"spiffe://cluster.local/ns/default/sa/{caller}"
    assert (inbound["response_code"], inbound["method"], inbound["authority"]) == (200, "GET", f"{called}:8000")
    if caller != called:
        assert outbound["direction"] == "outbound"
        assert outbound["upstream_cluster"] == f"outbound|8000||{called}.default.svc.cluster.local"
        assert outbound["request_id"] == inbound["request_id"]
        assert set(outbound) == set(inbound)


@pytest.mark.parametrize("caller", CALLERS)
def test_rules_hold_for_callers_beside_either(person: Person, mixed: Mesh, caller: str) -> None:
    script = (
        "curl -sS http://both:8000/; curl -sS -H 'who: theirs' http://both:8000/;"
        " curl -sS -o /dev/null -w '%{http_code}' -H 'who: nobody' http://both:8000/"
    )
    done = person.weft("exec", "-m", "mixed", caller, "--", "sh", "-c", script)
    assert done.stdout == "both-ours None\nboth-theirs None\n418"


@pytest.mark.parametrize("data_plane", ["weft-proxy", "envoy"])
def test_a_program_joins_with_either(person: Person, mixed: Mesh, data_plane: str) -> None:
    ask = "curl -sS http://ours:8000/; curl -sS http://theirs:8000/"
    done = person.weft("run", "-m", "mixed", "--proxy", data_plane, "--", "sh", "-c", ask)
    assert (done.returncode, done.stdout) == (0, "ours None\ntheirs None\n"), done.stderr


@pytest.mark.parametrize(("door", "number"), [("our-door-0", 0), ("their-door-0", 1)])
def test_published_ports_of_either_bring_the_clients_address(
    person: Person, mixed: Mesh, door: str, number: int
) -> None:
    import http.client

    shown = mixed.output().rpartition("\n\n")[0]
    ports = re.findall(r"^(\d+) (\d+)$", shown, re.MULTILINE)[-1]
    connection = http.client.HTTPConnection("127.0.0.1", int(ports[number]), timeout=30)
    for path, answer in (("/ours", b"ours 127.0.0.1\n"), (f"/through-{door}", b"theirs 127.0.0.1\n")):
        connection.request("GET", path)
        assert connection.getresponse().read() == answer
    client = f"127.0.0.1:{connection.sock.getsockname()[1]}"
    connection.close()
    (record,) = eventually(lambda: records(person, door, f"/through-{door}"), "the gateway has recorded it")
    assert (record["direction"], record["downstream_remote_address"]) == ("gateway", client)
    # And with its address the gateway's own rule is found, which is asked for by it.
    ask = ("why", "-m", "mixed", record["request_id"])
    (told,) = eventually(lambda: person.json(*ask), "it is recorded, and can be explained")
    assert (told["record"]["workload"], told["record"]["downstream"]) == (door, client)
    assert told["decision"] is not None, told["record"]
    text = person.weft(*ask).stdout
    assert re.search(r"rule: VirtualService default/door, spec\.http\[1\] \(\S*mesh\.yaml:\d+:\d+\)", text), text
    assert re.search(r"try 1: \S+ theirs-0 answered 200", text), text


def test_status_says_which_stands_where_and_what_it_lacks(person: Person, mixed: Mesh) -> None:
    proxies = {item["workload"]: item for item in person.json("status", "-m", "mixed")}
    assert {name for name, item in proxies.items() if item["data_plane"] == "envoy"} >= {"theirs-0", "their-door-0"}
    assert re.fullmatch(r"1\.\d+\.\d+", proxies["theirs-0"]["data_plane_version"])
    assert {item["code"] for item in proxies["theirs-0"]["lacks"]} >= {"slow-start", "relayed"}
    assert "relayed" not in {item["code"] for item in proxies["ours-0"]["lacks"]}
    table = person.weft("status", "-m", "mixed").stdout
    assert re.search(r"^theirs-0 .* envoy 1\.\d+\.\d+$", table, re.MULTILINE)
    lacks = [item["text"] for item in proxies["theirs-0"]["lacks"]]
    assert "\n".join(["Beside weft-proxy, envoy", *(f"  - {text}" for text in lacks)]) in table
    detail = person.weft("status", "-m", "mixed", "theirs-0").stdout
    assert re.findall(r"^(?:Lacks:)? +it (.*)$", detail, re.MULTILINE) == lacks


def test_why_says_who_decides(person: Person, mixed: Mesh) -> None:
    done = person.weft("why", "-m", "mixed", "--from", "theirs", "--to", "http://both:8000/", "-H", "who: theirs")
    assert done.returncode == 0, done.stderr
    assert "mesh.yaml:" in done.stdout
    told = re.search(r"Another data plane decides at (.*); this is what", " ".join(done.stdout.split()))
    assert told
    assert set(told[1].split(", ")) == {"theirs-0 (envoy)", "both-theirs-0 (envoy)"}


def test_envoy_stops_after_its_program(person: Person, mixed: Mesh) -> None:
    """The program's last word goes through Envoy after SIGTERM has come."""
    script = (
        "import os, signal, sys, time, urllib.request\n"
        "def last(*_):\n"
        "    os.write(1, urllib.request.urlopen('http://ours:8000/last').read())\n"
        "    sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, last)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    with person.start("run", "-m", "mixed", "--proxy", "envoy", "--", "python3", "-c", script) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.terminate()
        output, errors = process.communicate(timeout=20)
        assert (output, errors, process.returncode) == ("ours None\n", "", 9)


def test_a_program_keeps_the_callers_limit_of_open_files(person: Person, mixed: Mesh) -> None:
    """Its agent, which relays, raises its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with person.start(
        "run", "-m", "mixed", "--proxy", "envoy", "--", "sh", "-c", "ulimit -Sn; ulimit -Hn",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (777, hard)),
    ) as process:  # fmt: skip
        assert process.communicate(timeout=60) == (f"777\n{hard}\n", "")


def test_records_of_both_have_values_of_the_same_kinds(person: Person, mixed: Mesh) -> None:
    path = "/records-of-both"
    done = person.weft(
        "exec", "-m", "mixed", "both-ours", "--", "sh", "-c",
        f"curl -sS http://ours:8000{path}; curl -sS http://theirs:8000{path}",
    )  # fmt: skip
    assert done.stdout == "ours None\ntheirs None\n"
    ours = eventually(lambda: records(person, "ours-0", path), "weft-proxy has recorded it")[0]
    theirs = eventually(lambda: records(person, "theirs-0", path), "Envoy has recorded it")[0]
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}
    for name, record in (("ours", ours), ("theirs", theirs)):
        assert record["requested_server_name"] == f"outbound_.8000_._.{name}.default.svc.cluster.local"
    same = set(ours) - {"start_time", "duration_ms", "request_id", "authority", "requested_server_name"}
    same -= {"upstream_host", "downstream_remote_address", "bytes_sent"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(form, ours["start_time"])
    assert re.fullmatch(form, theirs["start_time"])


def test_an_envoy_that_dies_is_started_again(person: Person, mixed: Mesh) -> None:
    def envoy() -> int | None:
        return next((pid for pid, line in processes_of(person).items() if "/theirs-0/bootstrap.json" in line), None)

    first = envoy()
    assert first
    os.kill(first, signal.SIGKILL)
    eventually(lambda: "the proxy was killed by SIGKILL; starting it again" in mixed.output(), "it is told")
    eventually(lambda: envoy() not in (None, first), "there is another")

    def answers() -> bool:
        done = person.weft("exec", "-m", "mixed", "theirs", "--", "curl", "-sS", "http://ours:8000/again")
        return done.stdout == "ours None\n"

    eventually(answers, "the program calls others again")

    def is_answered() -> bool:
        done = person.weft("exec", "-m", "mixed", "ours", "--", "curl", "-sS", "http://theirs:8000/again")
        return done.stdout == "theirs None\n"

    eventually(is_answered, "others call the program again")


def test_without_envoy_nothing_starts_and_the_remedy_is_named(person: Person, mixed: Mesh) -> None:
    environment = person.environment | {"WEFT_ENVOY": "/no/such/envoy"}
    person.write("none/weft.yaml", "mesh: none\nprograms: {one: {command: [sleep, '9'], proxy: envoy}}\n")
    for command in (("up", str(person.home / "none")), ("run", "-m", "mixed", "--proxy", "envoy", "--", "true")):
        done = person.weft(*command, env=environment)
        assert done.returncode == 7
        assert "/no/such/envoy cannot be executed as Envoy" in done.stderr
        assert "pip install 'weft[envoy]'" in done.stderr
    assert not (person.runtime / "weft" / "none" / "mesh.json").exists()
