"""Any program is caught, unprivileged or as root, and notices nothing. All parts are real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import program_or_skip
from tests.e2e.conftest import REPOSITORY, Mesh, Person, eventually

pytestmark = pytest.mark.e2e

SERVER = """\
import http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{sys.argv[1]} {self.path}\\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
host, port = sys.argv[1], int(sys.argv[2])
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    def server_bind(self):  # without the reverse look-up of http.server's own
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = host, port
Server((host, port), Handler).serve_forever()
"""

MESH = """\
mesh: capture
programs:
  loopback:   {command: [python3, server.py, 127.0.0.1, "8080"], ports: [8080]}
  loopback6:  {command: [python3, server.py, "::1", "8080"], ports: [8080]}
  everywhere: {command: [python3, server.py, 0.0.0.0, "8080"], ports: [8080]}
  everywhere6: {command: [python3, server.py, "::", "8080"], ports: [8080]}
  own-name:   {command: [python3, server.py, own-name, "8080"], ports: [8080]}
  low:        {command: [python3, server.py, 127.0.0.1, "80"], ports: [80]}
  database-client:
    command: [sleep, "100000"]
    host_ports: [5432]
"""

STATIC_CLIENT = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr *)&to, sizeof to)) { perror("connect"); return 1; }
    const char *request = "GET /from-static HTTP/1.1\r\nHost: everywhere:8080\r\nConnection: close\r\n\r\n";
    write(s, request, strlen(request));
    char answer[4096];
    for (ssize_t n; (n = read(s, answer, sizeof answer)) > 0;) fwrite(answer, 1, n, stdout);
    return 0;
}
"""


@pytest.fixture(scope="module")
def mesh(person: Person) -> Iterator[Mesh]:
    """A mesh on a machine with an internet, a resolver and a database of its own."""
    person.write("capture/server.py", SERVER)
    directory = person.write("capture/weft.yaml", MESH).parent
    wrapper = [sys.executable, "-m", "tests.e2e.machine", str(person.home)]
    path = f"{person.environment.get('PYTHONPATH', '')}:{REPOSITORY}".strip(":")
    with person.mesh(str(directory), wrapper=wrapper, environment={"PYTHONPATH": path}) as mesh:
        yield mesh


def run(person: Person, *argv: str) -> str:
    done = person.weft("run", "--", *argv)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def python(person: Person, source: str) -> str:
    return run(person, "python3", "-c", source)


@pytest.mark.parametrize(
    ("service", "bound"),
    [
        ("loopback", "127.0.0.1"),
        ("loopback6", "::1"),
        ("everywhere", "0.0.0.0"),
        ("everywhere6", "::"),
        ("own-name", "own-name"),
    ],
)
def test_a_program_is_reached_wherever_it_listens(person: Person, mesh: Mesh, service: str, bound: str) -> None:
    assert run(person, "curl", "-sS", f"http://{service}:8080/x") == f"{bound} /x\n"


def test_port_80_is_served_without_privilege(person: Person, mesh: Mesh) -> None:
    assert run(person, "curl", "-sS", "http://low/x") == "127.0.0.1 /x\n"


def test_a_python_program_is_caught(person: Person, mesh: Mesh) -> None:
    source = "import urllib.request as u; print(u.urlopen('http://everywhere:8080/python').read().decode(), end='')"
    assert python(person, source) == "0.0.0.0 /python\n"


def test_a_node_program_is_caught(person: Person, mesh: Mesh) -> None:
    program_or_skip("node", "nodejs")
    source = "fetch('http://everywhere:8080/node').then(r => r.text()).then(t => process.stdout.write(t))"
    assert run(person, "node", "-e", source) == "0.0.0.0 /node\n"


def test_a_static_binary_is_caught(person: Person, mesh: Mesh) -> None:
    source = person.write("client.c", STATIC_CLIENT)
    binary = source.with_suffix("")
    subprocess.run(["cc", "-static", "-o", str(binary), str(source)], check=True)
    address = run(person, "getent", "ahostsv4", "everywhere").split()[0]
    assert "0.0.0.0 /from-static\n" in run(person, str(binary), address, "8080")


def test_the_call_was_carried_by_both_sidecars_under_mutual_tls(person: Person, mesh: Mesh) -> None:
    source = "curl -sS http://loopback:8080/who-calls; hostname -i"
    done = person.weft("run", "--name", "caller", "--", "sh", "-c", source)
    shown, addresses = done.stdout.splitlines()
    assert shown == "127.0.0.1 /who-calls"

    def record() -> dict[str, str] | None:
        lines = person.weft("logs", "--access", "-o", "json", "loopback-0").stdout.splitlines()
        mine = [json.loads(line)["access"] for line in lines if "/who-calls" in line]
        return mine[0] if mine else None

    record_ = eventually(record, "the inbound proxy has recorded it")
    assert record_["downstream_peer_uri_san"] == "spiffe://cluster.local/ns/default/sa/caller"
    # Not its own address, from which the kernel would connect to it.
    address = record_["downstream_remote_address"].rpartition(":")[0]
    assert address in addresses.split()


@pytest.mark.any_data_plane
def test_the_uid_and_the_files_are_the_persons_own(person: Person, mesh: Mesh) -> None:
    note = person.home / "note"
    assert run(person, "sh", "-c", f"id -u; echo mine > {note}; cat {note}") == f"{person.uid}\nmine\n"
    assert note.stat().st_uid == person.uid


def capabilities_of(person: Person, *command: str) -> dict[str, int]:
    """What `cat`, run by weft's *command*, has: the five masks of its status."""
    done = person.weft(*command, "--", "cat", "/proc/self/status")
    assert done.returncode == 0, done.stderr
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[0].rstrip(":"): int(words[1], 16) for words in lines if words[0].startswith("Cap")}


@pytest.mark.parametrize("command", [("run",), ("exec", "low")])
def test_no_capability_is_left_in_the_program(person: Person, mesh: Mesh, command: tuple[str, ...]) -> None:
    """As root, too."""
    assert capabilities_of(person, *command) == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)


@pytest.mark.parametrize("command", ["run", "exec"])
def test_root_may_give_a_program_what_it_needs_to_change_its_user(person: Person, mesh: Mesh, command: str) -> None:
    """For anyone else it means nothing, and that is said; what would lead around the proxy is never given."""
    before, after = [command], ["low"] if command == "exec" else []
    given = capabilities_of(person, *before, "--cap-add", "setuid", "--cap-add", "CAP_SETGID", *after)
    assert given["CapEff"] == given["CapBnd"] == ((1 << 7 | 1 << 6) if person.uid == 0 else 0)
    done = person.weft(*before, "--cap-add", "SETUID", *after, "--", "true")
    said = "weft: --cap-add: capabilities are given to programs of root only; this one has none\n"
    assert (done.returncode, done.stderr) == (0, "" if person.uid == 0 else said)
    refused = person.weft(*before, "--cap-add", "NET_ADMIN", *after, "--", "true")
    assert refused.returncode == 2
    assert "NET_ADMIN is never given: with it a program could get around its proxy." in refused.stderr


@pytest.mark.any_data_plane
def test_names_of_the_mesh_resolve_by_udp_and_tcp_and_whatever_server_is_asked(person: Person, mesh: Mesh) -> None:
    source = """
import socket, struct
query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\\x0aeverywhere\\x00" + struct.pack("!2H", 1, 1)
udp = socket.socket(type=socket.SOCK_DGRAM); udp.settimeout(10); udp.sendto(query, ("198.51.100.9", 53))
print(socket.inet_ntoa(udp.recv(512)[-4:]))
tcp = socket.create_connection(("198.51.100.9", 53), 10); tcp.sendall(struct.pack("!H", len(query)) + query)
print(socket.inet_ntoa(tcp.recv(512)[-4:]))
print(socket.getaddrinfo("everywhere", 8080, family=socket.AF_INET, flags=socket.AI_ADDRCONFIG)[0][4][0])
"""
    answers = python(person, source).split()
    assert len(answers) == 3
    assert len(set(answers)) == 1
    assert answers[0].startswith("240.240.")


@pytest.mark.parametrize("service", ["everywhere", "everywhere.default", "everywhere6"])
def test_a_service_is_called_that_the_hosts_file_names_too(person: Person, mesh: Mesh, service: str) -> None:
    """People who use docker-compose write `127.0.0.1 reviews` into it; `weft why` answers of the service."""
    assert run(person, "curl", "-sS", f"http://{service}:8080/x").endswith(" /x\n")


def test_a_service_that_comes_later_is_found_for_as_long_as_it_is_there(person: Person, mesh: Mesh) -> None:
    source = "import socket, sys\nfor _ in sys.stdin: print(socket.gethostbyname('late'), flush=True)"
    with person.start("run", "--", "python3", "-c", source, stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        asking, answers = client.stdin, client.stdout

        def address() -> str:
            asking.write("\n")
            asking.flush()
            return answers.readline().strip()

        assert address() == "127.0.0.1"
        with person.start("run", "--name", "late", "--port", "8080", "--", "sleep", "100000") as late:
            eventually(lambda: address().startswith("240.240."), "the service is found")
            late.terminate()
        eventually(lambda: address() == "127.0.0.1", "the host's entry is back")
        asking.close()
        assert client.wait() == 0


def test_other_names_of_the_hosts_file_stay(person: Person, mesh: Mesh) -> None:
    assert run(person, "getent", "hosts", "compose-only").split()[0] == "93.184.216.34"


def test_names_outside_the_mesh_are_answered_by_the_hosts_resolver(person: Person, mesh: Mesh) -> None:
    assert run(person, "getent", "ahostsv4", "www.example.com").split()[0] == "93.184.216.34"
    assert person.weft("run", "--", "getent", "hosts", "no-such.example.com").returncode == 2


def test_https_to_outside_the_mesh(person: Person, mesh: Mesh) -> None:
    certificate = str(person.home / "outside.pem")
    for family in ("-4", "-6"):
        shown = run(person, "curl", "-sS", family, "--cacert", certificate, "https://www.example.com/")
        assert shown == "the internet\n"


def test_http_to_outside_the_mesh(person: Person, mesh: Mesh) -> None:
    assert run(person, "curl", "-sS", "http://www.example.com/") == "the internet\n"


def test_a_port_that_the_service_does_not_declare_is_refused(person: Person, mesh: Mesh) -> None:
    """It never leaves the mesh, whatever is spoken; `weft why` names the ports that there are."""
    source = """
import socket
for port, first in ((9999, b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"), (9999, b""), (8080, b"\\0\\1\\2")):
    try:  # on a busy machine the reset is there before connect() has returned
        call = socket.create_connection(("everywhere", port), 10)
        call.settimeout(20)
        call.sendall(first)
        print(call.recv(1))
    except ConnectionResetError:
        print(b"")
"""
    assert python(person, source) == "b''\n" * 3
    # A name that is no service's on a port that some services have is HTTP to anywhere; the address gives it away.
    call = (
        "curl -sS -o /dev/null -w '%{http_code}' -H 'Host: elsewhere' -H 'X-Request-Id: to-elsewhere' http://low:8080/"
    )
    assert person.weft("exec", "everywhere", "--", "sh", "-c", call).stdout == "503"
    # No program of the mesh is blamed for what none was asked.
    told = eventually(lambda: person.weft("why", "to-elsewhere", "-o", "json").stdout, "its record has arrived")
    verdict = json.loads(told)[0]["verdict"]
    assert verdict["code"] == "no-such-port", verdict
    assert verdict["sentence"] == "The service low has no port 8080, so the call came to nothing.", verdict
    said = person.weft("why", "--from", "everywhere", "--to", "http://everywhere:9999/")
    assert said.returncode != 0
    assert "has no port 9999: the proxy refuses the call. Its ports: 8080." in said.stderr


def test_a_program_that_binds_the_port_it_calls(person: Person, mesh: Mesh) -> None:
    source = """
import socket
listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 8080)); listener.listen()
call = socket.create_connection(("everywhere", 8080), 10)
call.sendall(b"GET /same-port HTTP/1.1\\r\\nHost: everywhere:8080\\r\\nConnection: close\\r\\n\\r\\n")
print(call.makefile().read().splitlines()[-1])
"""
    assert python(person, source) == "0.0.0.0 /same-port\n"


@pytest.mark.any_data_plane
def test_udp_other_than_dns_is_refused_with_a_sentence_and_counted(person: Person, mesh: Mesh) -> None:
    source = """
import socket, time
udp = socket.socket(type=socket.SOCK_DGRAM); udp.settimeout(10); udp.connect(("198.51.100.9", 9999))
try: udp.send(b"x"); udp.recv(10)
except ConnectionRefusedError: print("refused", flush=True)
import sys; sys.stdin.read()
"""
    with person.start("run", "--name", "chatty", "--", "python3", "-c", source, stdin=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "refused\n"
        sentence = "UDP to 198.51.100.9:9999 was refused"
        eventually(lambda: sentence in person.weft("status", "-o", "json").stdout, "weft status tells of it")
        eventually(lambda: sentence in mesh.output(), "weft up tells of it")
        _, errors = process.communicate("", timeout=20)
        assert f"weft: {sentence}" in errors
        assert "(1 time)" in errors


def test_udp_of_a_program_that_ends_at_once_is_told_of(person: Person, mesh: Mesh) -> None:
    done = person.weft("run", "--name", "brief", "--", "bash", "-c", "echo > /dev/udp/198.51.100.7/9998")
    sentence = "UDP to 198.51.100.7:9998 was refused"
    assert f"weft: {sentence}" in done.stderr
    assert "(1 time)" in done.stderr
    eventually(lambda: sentence in mesh.output(), "weft up tells of it")


@pytest.mark.any_data_plane
def test_refused_udp_is_counted_for_whoever_ran_the_program(person: Person, mesh: Mesh) -> None:
    """The workload is gone from `weft status` when it ends; the number is said there and then."""
    send = "for n in 1 2 3; do echo > /dev/udp/198.51.100.6/9996; done; sleep 3; echo > /dev/udp/198.51.100.6/9996"
    done = person.weft("run", "--name", "many", "--", "bash", "-c", send)
    assert [line for line in done.stderr.splitlines() if "198.51.100.6:9996 was refused" in line] == [
        "weft: UDP to 198.51.100.6:9996 was refused: the mesh does not carry UDP other than DNS. (4 times)"
    ]


def test_notices_and_their_counts_outlive_the_control_plane(person: Person, mesh: Mesh) -> None:
    """The agents tell theirs to the next one; `weft up` says nothing twice."""

    def count() -> int:
        done = person.weft("status", "-o", "json")
        proxies = json.loads(done.stdout) if done.returncode == 0 else []
        notices = [item for proxy in proxies if proxy["workload"] == "low-0" for item in proxy["notices"]]
        return next((item["count"] for item in notices if "198.51.100.8:9997" in item["text"]), 0)

    send = "for n in 1 2 3; do echo > /dev/udp/198.51.100.8/9997; done"
    person.weft("exec", "low", "--", "bash", "-c", send)
    eventually(lambda: count() == 3, "weft status counts the datagrams")
    before = mesh.pids()["control-plane"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: mesh.pids()["control-plane"] != before and count() == 3, "the next control plane knows")
    assert mesh.output().count("198.51.100.8:9997 was refused") == 1


def test_the_hosts_database_is_reached_when_weft_yaml_says_so(person: Person, mesh: Mesh) -> None:
    call = "exec 3<>/dev/tcp/127.0.0.1/5432; echo hello >&3; head -1 <&3"
    done = person.weft("exec", "database-client", "--", "bash", "-c", call)
    assert done.stdout == "database says hello\n", done.stderr


def test_the_hosts_database_is_reached_when_the_option_says_so(person: Person, mesh: Mesh) -> None:
    call = "exec 3<>/dev/tcp/localhost/5432; echo hello >&3; head -1 <&3"
    done = person.weft("run", "--host-port", "5432", "--", "bash", "-c", call)
    assert (done.returncode, done.stdout) == (0, "database says hello\n"), done.stderr


def test_a_hint_is_given_when_it_was_needed_and_not_said(person: Person, mesh: Mesh) -> None:
    call = "(exec 3<>/dev/tcp/127.0.0.1/5432); read"
    with person.start("run", "--", "bash", "-c", call, stdin=subprocess.PIPE) as process:
        eventually(lambda: "localhost:5432" in person.weft("status", "-o", "json").stdout, "weft status has the hint")
        _, errors = process.communicate("\n", timeout=20)
    assert "weft: A call of localhost:5432 was refused" in errors
    assert "`weft run --host-port 5432`" in errors


@pytest.mark.any_data_plane
def test_the_hint_is_given_to_whoever_typed_the_command(person: Person, mesh: Mesh) -> None:
    """Each time: by `weft exec`, and so by `weft shell`."""
    call = "exec 3<>/dev/tcp/127.0.0.1/{}"
    for _ in range(2):
        done = person.weft("exec", "low", "--", "bash", "-c", call.format(5432))
        assert done.returncode == 1
        hints = [line for line in done.stderr.splitlines() if line.startswith("weft: ")]
        assert len(hints) == 1, done.stderr
        assert hints[0].startswith("weft: A call of localhost:5432 was refused")
        assert hints[0].endswith("`host_ports: [5432]` in weft.yaml or `weft run --host-port 5432`.")
    # Nobody listens there on the host either; and here somebody does, who is reached.
    for quiet in (call.format(5431), "true"):
        assert "weft: " not in person.weft("exec", "low", "--", "bash", "-c", quiet).stderr


def test_no_external_program_is_called(person: Person, mesh: Mesh) -> None:
    """A PATH that has what the test runs and nothing else: no ip, no nft, no newuidmap."""
    tools = person.home / "tools"
    if not tools.exists():
        tools.mkdir()
        for name in ("python3", "sleep", "true"):
            (tools / name).symlink_to(Path(shutil.which(name) or name).resolve())
    person.write("bare/weft.yaml", 'mesh: bare\nprograms:\n  one: {command: [sleep, "1000"]}\n')
    with person.mesh(str(person.home / "bare"), environment={"PATH": str(tools)}):
        done = person.weft("run", "--mesh", "bare", "--", "true", env=person.environment | {"PATH": str(tools)})
        assert (done.returncode, done.stderr) == (0, "")
