"""What `weft why` foretells is what a program's call then meets: same proxy or none, same destination, same end."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from tests.e2e.conftest import REPOSITORY, Mesh, Person, eventually
from tests.e2e.test_capture import SERVER
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MESH = """\
mesh: foretold
programs:
  web:    {command: [python3, server.py, 127.0.0.1, "8080"], ports: [8080]}
  other:  {command: [python3, server.py, 0.0.0.0, "8080"], ports: [8080]}
  bytes:  {command: [python3, server.py, 127.0.0.1, "7000"], ports: [{number: 7000, protocol: TCP}]}
  open:   {command: [python3, server.py, 127.0.0.1, "8080"], ports: [8080]}
  broken: {command: [python3, broken.py], ports: [8080]}
  caller: {command: [python3, server.py, 127.0.0.1, "8090"], ports: [8090], host_ports: [5432]}
gateways:
  ingress: {publish: ["127.0.0.1:0:8080"]}
apply: [rules.yaml]
"""

BROKEN = """\
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""

EJECTION = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: broken}
spec:
  host: broken
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 300s, maxEjectionPercent: 100}
"""
"""For longer than the tests take, and longer than that after each end of it."""

RULES = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open}
spec:
  selector: {matchLabels: {app: open}}
  mtls: {mode: PERMISSIVE}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other}
spec:
  host: other
  trafficPolicy: {tls: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web, web.example.com]
  http:
  - match: [{uri: {prefix: /gone}}]
    directResponse: {status: 410}
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - match: [{uri: {prefix: /lost}}]
    route: [{destination: {host: web, subset: none}}]
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /elsewhere}}]
    route: [{destination: {host: open}}]
  - match: [{headers: {x-known: {exact: "yes"}}}]
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /}}]
    route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ingress}
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
  - match: [{uri: {exact: /}}]
    route: [{destination: {host: web}}]
"""

LOCAL_PORTS = itertools.count(20000)
"""From which the calls are made, each once, to know its record by: below those that the kernel gives to others."""

PROBE = """\
import http.client, json, socket, ssl, sys
for item in json.load(sys.stdin):
    found = {"status": None, "port": item["local"]}
    try:
        place = socket.getaddrinfo(item["host"].strip("[]"), item["port"], type=socket.SOCK_STREAM)[0]
        call = socket.socket(place[0])
        call.settimeout(20)
        call.bind(("::" if place[0] == socket.AF_INET6 else "0.0.0.0", item["local"]))
        call.connect(place[4])
        if item["scheme"] == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            call = context.wrap_socket(call, server_hostname=item["host"].strip("[]"))
        client = http.client.HTTPConnection("unused")
        client.sock = call
        authority = item["authority"] or f"{item['host']}:{item['port']}"
        client.request("GET", item["path"], headers={"host": authority, **dict(item["headers"])})
        found["status"] = client.getresponse().status
        call.close()
    except OSError as error:
        found["error"] = repr(error)
    except http.client.HTTPException as error:
        found["error"] = repr(error)
    print(json.dumps(found), flush=True)
"""


ASK = """\
import json, sys
from click.testing import CliRunner
from weft.cli.main import cli
for question in json.load(sys.stdin):
    done = CliRunner().invoke(cli, ["why", "--from", "caller", *question, "-o", "json"])
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""
"""`weft why` as often as there are questions, in one process: starting one for each takes longer than all the answers."""


@dataclass(frozen=True)
class Call:
    """A request; `authority` is the Host header where it is not the URL's."""

    scheme: str
    host: str
    port: int
    path: str = "/"
    authority: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def question(self) -> list[str]:
        """Options of `weft why`."""
        headers = [*self.headers, *([("Host", self.authority)] if self.authority else [])]
        options = [f"--header={name}: {value}" for name, value in headers]
        return ["--to", f"{self.scheme}://{self.host}:{self.port}{self.path}", *options]


@pytest.fixture(scope="module")
def mesh(person: Person) -> Iterator[Mesh]:
    """A mesh on a machine with an internet and a database of its own."""
    person.write("foretold/server.py", SERVER)
    person.write("foretold/broken.py", BROKEN)
    person.write("foretold/rules.yaml", RULES)
    directory = person.write("foretold/weft.yaml", MESH).parent
    wrapper = [sys.executable, "-m", "tests.e2e.machine", str(person.home)]
    path = f"{person.environment.get('PYTHONPATH', '')}:{REPOSITORY}".strip(":")
    with person.mesh(str(directory), wrapper=wrapper, environment={"PYTHONPATH": path}) as mesh:
        yield mesh


def make(person: Person, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Make *calls* where the program `caller` runs; return for each its status, if it was answered, and its local port."""
    probe = person.write("foretold/probe.py", PROBE)
    numbered = [asdict(call) | {"local": next(LOCAL_PORTS)} for call in calls]
    file = person.write("foretold/calls.json", json.dumps(numbered))
    with file.open() as source:
        done = person.weft("exec", "caller", "--", "python3", str(probe), stdin=source, timeout=300)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(calls), done.stderr
    return found


def ask(person: Person, calls: Sequence[Call]) -> list[tuple[int, Any, str]]:
    """Ask `weft why` about *calls*; return for each exit code, answer, and what it complained of."""
    questions = json.dumps([call.question for call in calls])
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=questions, text=True, capture_output=True, timeout=300, **person.options()
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(calls), done.stderr
    return [(code, json.loads(output) if code == 0 else None, errors) for code, output, errors in lines]


def records(person: Person) -> list[dict[str, Any]]:
    """Access records of the caller's outbound side."""
    lines = person.weft("logs", "--access", "-o", "json", "caller").stdout.splitlines()
    found = [json.loads(line)["access"] for line in lines]
    return [record for record in found if record["direction"] == "outbound"]


def by_local_port(records: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The *records* of calls whose local ports differ: two connections to different addresses may have the same."""
    return {int(record["downstream_remote_address"].rpartition(":")[2]): record for record in records}


def difference(call: Call, said: Any, met: dict[str, Any], record: dict[str, Any] | None) -> str:
    """Return how what `weft why` said differs from what was met; empty if it does not."""
    outbound, refusal = said["outbound"], said["refusal"]
    if is_unknown(met):
        return "" if said["unknown_host"] is not None and record is None else "there is no such host"
    if not is_caught(said):
        return "it was seen by the proxy" if record is not None else ""
    if record is None:
        return "the proxy has not seen it"
    if not record["method"] and not record["downstream_local_address"].endswith(f":{call.port}"):
        return f"the record says that it was going to {record['downstream_local_address']}"
    clusters = {share["name"] for share in outbound.get("clusters", ())}
    if record["upstream_cluster"] and record["upstream_cluster"] not in clusters:
        return f"it went to {record['upstream_cluster']}"
    flags = outbound.get("response_flags", "-")
    if flags not in ("-", record["response_flags"]):
        return f"the record has the flags {record['response_flags']}"
    refused_there = any(side["refusal"] for side in said["inbound"])
    if outbound.get("fault", {}).get("abort_percent") == 100:
        expected = outbound["fault"]["abort_status"]
    elif outbound.get("status") is not None:
        expected = outbound["status"]
    elif refusal is not None or refused_there or flags != "-":
        return f"it was answered {met['status']}" if met["status"] not in (None, 503) else ""
    elif call.scheme == "https" and outbound["outcome"] == "tcp":
        return ""  # the mesh passes it on, and the programs of this mesh speak no TLS
    else:
        expected = 200
    return "" if met["status"] == expected else f"it was answered {met['status']}"


def compare(person: Person, calls: Sequence[Call]) -> list[str]:
    """Make *calls*, ask `weft why` about each, and return every difference."""
    met = make(person, calls)
    told = ask(person, calls)
    assert all(code in (0, 4) for code, _, _ in told), [errors for _, _, errors in told]
    should = {
        end["port"]
        for end, (_, said, _) in zip(met, told, strict=True)
        if said and is_caught(said) and not is_unknown(end)
    }
    with contextlib.suppress(AssertionError):  # then `difference` says which is missing
        eventually(lambda: should <= by_local_port(records(person)).keys(), "all calls are recorded", seconds=10)
    found = by_local_port(records(person))
    wrong = []
    for call, end, (_, said, errors) in zip(calls, met, told, strict=True):
        record = found.get(end["port"])
        how = difference(call, said, end, record) if said else no_port(person.data_plane, end, record)
        if how:
            answer = f"{said['refusal']} {said['outbound']}" if said else errors
            wrong.append(f"{call}: {how}\n  met {end}\n  record {record}\n  said {answer}")
    return wrong


def is_caught(said: Any) -> bool:
    return bool(said["outbound"]["outcome"] != "not_caught")


REFUSED_FLAGS = {WEFT_PROXY: {"UH", "UF"}, ENVOY: {"UH", "UC"}}
"""Of a port that is none: no cluster has an endpoint for it, or who reaches the outside does not call it (UC beside a relay)."""


def is_unknown(met: dict[str, Any]) -> bool:
    """Whether the program found no address for the host."""
    return "gaierror" in met.get("error", "")


def no_port(data_plane: str, met: dict[str, Any], record: dict[str, Any] | None) -> str:
    """Return what happened other than a refusal where `weft why` says that there is no such port."""
    refused = record is not None and record["response_flags"] in REFUSED_FLAGS[data_plane]
    return "" if met["status"] in (None, 503) and refused else "it was not refused"


def test_what_the_edge_refuses_is_told_with_its_reason(person: Person, mesh: Mesh) -> None:
    """Beside Envoy it is the agent that asks the edge, and knows; beside weft-proxy the proxy itself."""
    call = (
        "curl -s -o /dev/null -w '%{http_code}' -H 'Host: elsewhere' -H 'X-Request-Id: to-elsewhere' http://web:8080/"
    )
    assert person.weft("exec", "caller", "--", "sh", "-c", call).stdout == "503"
    told = eventually(lambda: person.weft("why", "to-elsewhere").stdout, "it is recorded")
    assert "is an address of the mesh, and means nothing outside of it" in told


def test_a_request_of_a_method_beyond_the_usual_is_told_like_any_other(person: Person, mesh: Mesh) -> None:
    """Envoy's records name a dozen methods by a number, and WebDAV's are not among them."""
    call = "curl -s -o /dev/null -w '%{http_code}' -X PROPFIND -H 'X-Request-Id: of-webdav' http://web:8080/gone"
    assert person.weft("exec", "caller", "--", "sh", "-c", call).stdout == "410"
    told = eventually(lambda: person.weft("why", "of-webdav").stdout, "it is recorded")
    assert "PROPFIND http://web:8080/gone" in told
    assert "rules.yaml" in told


SPEAK = """\
import socket, ssl, sys
host, port, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
try:
    call = socket.create_connection((host, port), timeout=20)
    if what == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.wrap_socket(call, server_hostname=host)
    else:
        call.sendall(b"HELO there\\r\\n")
        call.recv(1)
except OSError:
    pass
print("done")
"""


@pytest.mark.parametrize(
    ("port", "what", "code"),
    [
        (8080, "tls", "not-http-called"),
        (8080, "words", "not-http-called"),
        (8081, "tls", "no-such-port"),
        (8081, "words", "no-such-port"),
    ],
)
def test_what_is_not_http_is_told_as_it_is_foretold(
    person: Person, mesh: Mesh, port: int, what: str, code: str
) -> None:
    """Such a connection has no request id, and no host but its address."""
    file = person.write("foretold/speak.py", SPEAK)
    started = time.time()
    done = person.weft("exec", "caller", "--", "python3", str(file), "web", str(port), what)
    assert done.stdout == "done\n", done.stderr

    def about() -> Any:
        (told,) = person.json("why", "--last-failed", "--from", "caller") or [None]
        record = told["record"] if told else {"start": 0.0, "listener": ""}
        return told["verdict"] if record["start"] > started and record["listener"].endswith(f":{port}") else None

    end = eventually(about, "it is recorded")
    assert end["code"] == code, end
    if code == "not-http-called":
        assert (end["by"], end["workload"]) == ("program", "caller-0"), end
        assert f"The port {port} of web speaks HTTP" in end["sentence"], end
        said = person.json("why", "--from", "caller", "--to", f"https://web:{port}/")
        assert f"web port {port} speaks HTTP" in said["refusal"]["reason"], said
    else:
        assert end["sentence"] == f"The service web has no port {port}, so the call came to nothing.", end
        assert "Call one of its ports: 8080;" in end["remedy"], end


def test_a_port_that_only_another_service_has_is_told_as_it_is_foretold(person: Person, mesh: Mesh) -> None:
    """The proxy takes the request, has no rule for the host at that port, and passes it on to an address where nobody is."""
    call = "curl -s -o /dev/null -w '%{http_code}' -H 'X-Request-Id: to-8090' http://web:8090/"
    assert person.weft("exec", "caller", "--", "sh", "-c", call).stdout == "503"
    told = eventually(lambda: person.weft("why", "to-8090").stdout, "it is recorded")
    assert "The service web has no port 8090" in told, told
    assert "What to do: Call one of its ports: 8080;" in told, told
    said = person.weft("why", "--from", "caller", "--to", "http://web:8090/").stderr
    assert "has no port 8090" in said, said


def unknown_host(person: Person, host: str) -> Any:
    """Return what `weft why --last-failed` says, once that is about *host*."""

    def about() -> Any:
        told = person.json("why", "--last-failed")
        return told[0] if told and told[0]["record"]["authority"] == host else None

    return eventually(about, f"the lookup of {host} is told of")


def test_an_unknown_host_is_explained(person: Person, mesh: Mesh) -> None:
    """No proxy sees such a call: the agents tell which names nobody has, of programs that live and of those that ended."""
    done = person.weft("exec", "caller", "--", "curl", "-sS", "http://webb:8080/")
    assert done.returncode == 6, done.stderr  # curl's "could not resolve host"
    told = unknown_host(person, "webb")
    verdict = told["verdict"]
    assert (verdict["code"], verdict["by"], verdict["workload"]) == ("unknown-host", "program", "caller-0")
    text = person.weft("why", "--last-failed", "--from", "caller").stdout
    assert "caller-0 asked for the host webb, which nobody has" in text, text
    assert "What to do: Did you mean `web`? The mesh's names are those of its services" in text, text
    done = person.weft("run", "--name", "brief", "--", "curl", "-sS", "http://opn.default.svc.cluster.local:8080/")
    assert done.returncode == 6, done.stderr
    # It was told before its program's end was: nothing is to be waited for.
    text = person.weft("why", "--last-failed").stdout
    assert "asked for the host opn.default.svc.cluster.local, and no service of the mesh is called so." in text, text
    assert "Did you mean `open.default.svc.cluster.local`?" in text, text


def test_an_unknown_host_is_foretold(person: Person, mesh: Mesh) -> None:
    text = person.weft("why", "--from", "caller", "--to", "http://webb:8080/").stdout
    assert "webb is no name of the mesh, so this machine's resolver is asked." in text, text
    assert "To mend it: did you mean `web`?" in text, text


def addresses(person: Person) -> dict[str, str]:
    return {item["service"]: item["address"] for item in person.json("ps")}


def test_what_is_foretold_is_what_happens(person: Person, mesh: Mesh) -> None:
    """TLS to HTTP, loopbacks, own and other addresses, undeclared ports, foreign hosts: the calls that are easily told wrong."""
    at = addresses(person)
    calls = [
        *(Call("http", host, port) for host in ("localhost", "127.0.0.1", "[::1]", "0.0.0.0") for port in (8090, 5433)),
        *(Call("http", host, 8090) for host in (at["caller"], "caller-0", "caller")),
        *(Call(scheme, host, 8080) for scheme in ("http", "https") for host in ("web", "other", "open", at["web"], at["open"])),
        *(Call(scheme, "bytes", 7000) for scheme in ("http", "https")),
        *(Call("http", at["web"], port) for port in (8081, 15001)),
        *(Call("http", at["ingress"], port) for port in (8080, 8081)),
        *(Call(scheme, "240.240.77.77", port) for scheme in ("http", "https") for port in (8080, 81)),
        *(Call(scheme, "www.example.com", 80 if scheme == "http" else 443) for scheme in ("http", "https")),
        *(Call("http", host, 8080) for host in ("webb", "web.defalt", "webb.default.svc.cluster.local", "no.example.com")),
        Call("http", "10.244.77.77", 8080),
        Call("http", "web", 8080, authority="elsewhere"),
        Call("http", "web", 8080, authority="open"),
        Call("http", "93.184.216.34", 80, authority="web"),
        *(Call("http", "web", 8080, path) for path in ("/gone", "/old/x", "/lost", "/fault", "/elsewhere", "/none")),
    ]  # fmt: skip
    assert not (wrong := compare(person, calls)), "\n".join(wrong)


def test_a_granted_port_of_this_machine_is_foretold(person: Person, mesh: Mesh) -> None:
    """The listener `host|5432` takes it, at each of the loopback's addresses."""
    call = "exec 3<>/dev/tcp/{}/5432; echo hello >&3; head -1 <&3"
    for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
        done = person.weft("exec", "caller", "--", "bash", "-c", call.format(host))
        assert done.stdout == "database says hello\n", f"{host}: {done.stderr}"
        url = f"http://{f'[{host}]' if ':' in host else host}:5432/"
        said = person.json("why", "--from", "caller", "--to", url)
        assert [share["name"] for share in said["outbound"]["clusters"]] == ["host|5432||"]

    # Whatever their local ports: that of a connection over IPv4 and of one over IPv6 may be the same.
    def clusters() -> list[str]:
        to = [record for record in records(person) if record.get("downstream_local_address", "").endswith(":5432")]
        return [record["upstream_cluster"] for record in to]

    with contextlib.suppress(AssertionError):  # then the comparison says which is missing
        eventually(lambda: len(clusters()) == 4, "each is recorded")
    assert clusters() == ["host|5432||"] * 4


def test_ejected_endpoints_are_foretold_as_the_callers_proxy_knows_them(person: Person, mesh: Mesh) -> None:
    """No control plane knows that outlier detection has taken the only endpoint out; its proxy says so, and what it does."""
    rule = str(person.write("foretold/ejection.yaml", EJECTION))
    question = ("why", "--from", "caller", "--to", "http://broken:8080/")
    done = person.weft("apply", "-f", rule, "--wait")
    assert done.returncode == 0, done.stderr
    try:
        before = person.json(*question)
        assert (before["unused_endpoints"], before["outbound"].get("status")) == ([], None)
        call = ("exec", "caller", "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://broken:8080/")
        eventually(lambda: person.weft(*call).stdout == "503", "the endpoint is ejected")
        said = person.json(*question)
        (unused,) = said["unused_endpoints"]
        assert (unused["cluster"], unused["state"]) == ("outbound|8080||broken.default.svc.cluster.local", "EJECTED")
        assert (said["outbound"]["status"], said["outbound"]["response_flags"]) == (503, "UH")
        text = person.weft(*question).stdout
        assert "It would go 100 % to broken port 8080, but the proxy answers 503 itself (UH):" in text, text
        assert f"As caller-0's proxy sees it now, broken-0 ({unused['address']}) of broken port 8080 is ejected" in text
    finally:
        assert person.weft("delete", "-f", rule).returncode == 0


def test_random_calls_are_foretold(person: Person, mesh: Mesh) -> None:
    """Anything with anything: schemes, names and addresses, ports, hosts, paths, headers."""
    at = addresses(person)
    hosts = [
        "web",
        "web.default",
        "open",
        "other",
        "bytes",
        "caller",
        "localhost",
        "[::1]",
        "240.240.77.78",
        *at.values(),
    ]
    everything = list(
        itertools.product(
            ("http", "https"),
            hosts,
            (8080, 7000, 8090, 8081, 80),
            ("/", "/gone", "/lost", "/fault", "/elsewhere", "/none"),
            ("", "", "", "web", "web.example.com", "other:8080", "nobody"),
            ((), (("x-known", "yes"),)),
        )
    )
    seed = random.randrange(2**32)
    chosen = random.Random(seed).sample(everything, 100)
    assert not (wrong := compare(person, [Call(*each) for each in chosen])), f"seed {seed}\n" + "\n".join(wrong)
