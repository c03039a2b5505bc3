"""`weft run` joins one more program from another terminal, as if weft were not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Mesh, Person, eventually, processes_of
from tests.e2e.terminal import CTRL_BACKSLASH, CTRL_C, CTRL_Z, Terminal
from weft.agent.forward_proxies import exempted

pytestmark = pytest.mark.e2e

SERVER = """\
import http.server, os, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{os.environ.get('WHO', 'nobody')} {self.path}\\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
if len(sys.argv) > 2:
    import select; select.select([open(sys.argv[2])], [], [])
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def terminal(person: Person, bookinfo: Mesh) -> Iterator[Terminal]:
    window = Terminal(uid=person.uid, environment=person.environment, directory=str(person.home))
    alias = " ".join(["weft() {", subprocess.list2cmdline([*_weft()]), '"$@"; }'])
    window.enter(alias)
    window.expect(r"\$ ")
    try:
        yield window
    finally:
        window.close()


def _weft() -> list[str]:
    from tests.e2e.conftest import weft

    return weft()


@pytest.fixture
def server(person: Person) -> Path:
    return person.write("server.py", SERVER)


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=20)


def test_a_client_calls_services_by_name(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("run", "--", "curl", "-s", "http://reviews:9080/reviews/0")
    assert (done.returncode, done.stderr) == (0, "")
    assert [review["reviewer"] for review in json.loads(done.stdout)["reviews"]] == ["Dorothea", "Edward"]


@pytest.mark.parametrize(
    "url", ["http://reviews:9080/reviews/0", "http://reviews.default.svc.cluster.local:9080/reviews/0"]
)
def test_behind_a_companys_proxy_services_are_called_without_it(person: Person, bookinfo: Mesh, url: str) -> None:
    """Which is said; everything else is asked of that proxy, which is not there."""
    options = ("--env", "http_proxy=http://127.0.0.1:1", "--env", "NO_PROXY=intern.example")
    done = person.weft("run", *options, "--", "curl", "-s", url)
    assert (done.returncode, done.stderr) == (0, f"weft: {exempted('http_proxy')}\n")
    assert [review["reviewer"] for review in json.loads(done.stdout)["reviews"]] == ["Dorothea", "Edward"]
    assert person.weft("run", *options, "--", "curl", "-s", "http://outside.example/").returncode == 7


def test_a_client_gets_no_service_of_its_own(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("run", "--name", "loner", "--", "sh", "-c", "getent hosts loner || echo unknown")
    assert done.stdout == "unknown\n"


def test_a_program_with_a_port_is_called_by_its_services_name(person: Person, bookinfo: Mesh, server: Path) -> None:
    options = ("--name", "cart", "--version", "v2", "--port", "8080", "--env", "WHO=cart-v2")
    joined = person.start("run", *options, "--", "python3", str(server), "8080")
    try:
        eventually(lambda: bookinfo.programs().get("cart-v2-0", {}).get("ready"), "cart is ready")
        done = person.weft("run", "--", "curl", "-s", "http://cart:8080/hello")
        assert done.stdout == "cart-v2 /hello\n"
        program = bookinfo.programs()["cart-v2-0"]
        assert (program["service"], program["version"]) == ("cart", "v2")
        assert program["identity"].endswith("/sa/cart")
    finally:
        ended(joined)
    eventually(lambda: "cart-v2-0" not in bookinfo.programs(), "cart has left", seconds=2.0)


def test_no_endpoint_is_published_before_its_port_answers(person: Person, bookinfo: Mesh, server: Path) -> None:
    go = person.home / "go"
    os.mkfifo(go)
    os.chown(go, person.uid, person.uid)
    joined = person.start("run", "--name", "late", "--port", "8081", "--", "python3", str(server), "8081", str(go))
    try:
        eventually(lambda: bookinfo.programs().get("late-v1-0", {}).get("state") == "running", "the program runs")
        program = bookinfo.programs()["late-v1-0"]
        assert (program["ready"], program["ports"][0]["listening"]) == (False, None)
        services = {item["name"]: item["workloads"] for item in _services(person)}
        assert [each["ready"] for each in services["late"]] == [False]
        go.write_text("go")
        eventually(lambda: bookinfo.programs()["late-v1-0"]["ready"], "it is ready once it listens")
        done = person.weft("run", "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://late:8081/")
        assert done.stdout == "200"
    finally:
        ended(joined)


def _services(person: Person) -> list[dict[str, object]]:
    import http.client
    import socket

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(person.runtime / "weft" / "bookinfo" / "api.sock"))

    connection = Connection("weft")
    connection.request("GET", "/v1/services")
    found: list[dict[str, object]] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_a_program_that_joins_a_service_without_its_port_is_told(person: Person, bookinfo: Mesh, server: Path) -> None:
    said = "the service ratings has port 9080 too, which this program does not serve: it gets none of the calls there."
    options = ("--name", "ratings", "--version", "other", "--port", "9081")
    with person.start("run", *options, "--", "python3", str(server), "9081") as process:
        eventually(lambda: [text for text in person.notices("text") if text.startswith(said)], "it is told")
        process.terminate()
        _, errors = process.communicate(timeout=20)
        assert f"weft: {said}" in errors


def test_a_program_that_listens_on_another_port_is_told(person: Person, bookinfo: Mesh, server: Path) -> None:
    """Nobody can call it, and its declaration or its arguments are what is wrong: `weft why` says so to who tries."""
    said = "the program listens on port 8001, and not on 8000, which it declares"
    with person.start("run", "--name", "lost", "--port", "8000", "--", "python3", str(server), "8001") as process:
        eventually(lambda: [text for text in person.notices("text") if text.startswith(said)], "it is told")
        assert person.call("http://lost:8000/", request_id="to-lost") == "503"
        told = eventually(lambda: person.weft("why", "to-lost").stdout, "it is recorded")
        assert "could take a request; by now lost-v1-0 is running, but not ready. (UH)" in told, told
        assert f"Noticed of lost-v1-0: {said}" in told, told
        ended(process)


def test_that_a_program_listens_on_another_port_is_taken_back_when_it_listens_on_its_own(
    person: Person, bookinfo: Mesh, server: Path
) -> None:
    """A port for debugging may be open long before the one that is declared."""
    go = person.home / "debugged"
    os.mkfifo(go)
    os.chown(go, person.uid, person.uid)
    both = f"python3 {server} 9229 & exec python3 {server} 8000 {go}"
    with person.start("run", "--name", "slow", "--port", "8000", "--", "sh", "-c", both) as process:
        eventually(lambda: "listens-elsewhere" in person.notices("code"), "it is told")
        go.write_text("go")
        eventually(lambda: "listens-elsewhere" not in person.notices("code"), "it is taken back")
        process.terminate()
        assert process.communicate(timeout=20)[1] == ""


def test_a_port_of_the_host_is_not_where_a_slow_program_listens(person: Person, bookinfo: Mesh, server: Path) -> None:
    options = ("--name", "slow", "--port", "8000", "--host-port", "5432")
    late = f"sleep 2; exec python3 {server} 8000"  # longer than a program may listen elsewhere unnoticed
    with person.start("run", *options, "--", "sh", "-c", late) as process:
        eventually(lambda: bookinfo.programs().get("slow-v1-0", {}).get("ready"), "it is ready")
        assert "listens-elsewhere" not in person.notices("code")
        process.terminate()
        assert process.communicate(timeout=20)[1] == ""


def test_a_proxy_that_was_killed_is_not_blamed_on_its_program(person: Person, bookinfo: Mesh) -> None:
    """The request that was under way is lost; its program has done nothing."""
    slow = (
        "import socket; server = socket.create_server(('127.0.0.1', 8000))\n"
        "while True:\n"
        "    client = server.accept()[0]; client.recv(65536)\n"
        "    client.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 100\\r\\n\\r\\nonly this'); client.recv(1)"
    )
    with person.start("run", "--name", "halved", "--port", "8000", "--", "python3", "-c", slow) as process:
        eventually(lambda: bookinfo.programs().get("halved-v1-0", {}).get("ready"), "it is ready")
        # The caller stays: its proxy tells of the request while it runs, and need not hurry to.
        ask = "curl -sN -H 'X-Request-Id: to-halved' http://halved:8000/; exec sleep 600"
        with person.start("run", "--", "sh", "-c", ask) as call:
            assert call.stdout is not None
            assert call.stdout.read(9) == "only this"
            (proxy,) = [
                pid
                for pid, line in processes_of(person).items()
                if "-c " in line and "/workloads/halved-v1-0/bootstrap" in line
            ]
            os.kill(proxy, signal.SIGKILL)
            told = eventually(lambda: person.weft("why", "to-halved").stdout, "it is recorded")
            ended(call)
        assert "The connection to the proxy of halved-v1-0 broke before the answer was complete" in told, told
        assert "Cause: the proxy of halved-v1-0." in told, told
        assert "Noticed of halved-v1-0: the proxy was killed" in told, told
        ended(process)


FAILING = """\
import http.server, sys, urllib.error, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = 503
        if len(sys.argv) > 2:
            try:
                headers = {"x-request-id": self.headers["x-request-id"]}
                status = urllib.request.urlopen(urllib.request.Request(sys.argv[2], headers=headers)).status
            except urllib.error.HTTPError as error:
                status = error.code
        self.send_response(status)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_an_error_that_a_program_hands_on_is_told_with_whose_it_was(person: Person, bookinfo: Mesh) -> None:
    """Who looks for the reason is not sent to the output of the one in the middle."""
    script = str(person.write("failing.py", FAILING))
    end = ("--name", "broken", "--port", "8000", "--", "python3", script, "8000")
    middle = ("--name", "middle", "--port", "8001", "--", "python3", script, "8001", "http://broken:8000/")
    with person.start("run", *end) as broken, person.start("run", *middle) as relay:
        for name in ("broken-v1-0", "middle-v1-0"):
            eventually(lambda name=name: bookinfo.programs().get(name, {}).get("ready"), f"{name} is ready")
        assert person.call("http://middle:8001/", request_id="to-middle") == "503"
        told = eventually(lambda: person.weft("why", "to-middle").stdout, "it is recorded")
        assert "The program of middle-v1-0 answered 503 itself" in told, told
        assert "GET http://broken:8000/ was answered 503 by the program of broken-v1-0." in told, told
        assert "`weft logs --output broken-v1-0`" in told, told
        ended(relay)
        ended(broken)


CRASHING = """\
import http.server, os, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        os._exit(3)
ended = pathlib.Path("crashed")
if ended.exists():
    open(sys.argv[1]).read()
ended.touch()
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


@pytest.mark.parametrize(
    ("host", "statuses", "said"),
    [
        (
            "shop.example",
            {"503"},
            ("called port 9080 of reviews and named the host shop.example", "Send the host `reviews`"),
        ),
        # Envoy takes an empty one for one that nobody has.
        ("", {"400", "503"}, ()),
    ],
)
def test_a_host_that_is_none_of_the_services_is_told(
    person: Person, bookinfo: Mesh, host: str, statuses: set[str], said: tuple[str, ...]
) -> None:
    """As a reverse proxy sends it that hands on the Host of those that called it, and as nothing should."""
    name = f"host-{host or 'none'}"
    call = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"x-request-id: {name}", "-H", f"host:{host}")
    done = person.weft("exec", "ratings", "--", *call, "http://reviews:9080/reviews/0")
    assert done.stdout in statuses, done.stderr
    told = eventually(lambda: person.weft("why", name).stdout, "it is recorded")
    if done.stdout == "400":
        said = ("The client's request breaks the rules of HTTP", "Mend the client.")
    for words in said or ("called port 9080 of reviews and named no host, so", "Send the host `reviews`"):
        assert words in told, told
    assert "outside of the mesh: `curl" not in told
    assert "as its configuration says" not in told


def test_a_program_that_crashed_is_told_with_its_end(person: Person, bookinfo: Mesh) -> None:
    """Of the request on which it did, and of one that found nobody until it was ready again."""
    script, go = person.write("crashing.py", CRASHING), person.home / "go-on"
    os.mkfifo(go)
    os.chown(go, person.uid, person.uid)
    options = ("--name", "crashing", "--port", "8000", "--restart", "on-failure")
    with person.start("run", *options, "--", "python3", str(script), str(go)) as process:
        eventually(lambda: bookinfo.programs().get("crashing-v1-0", {}).get("ready"), "it is ready")
        assert person.call("http://crashing:8000/", request_id="to-crash") == "503"
        eventually(lambda: bookinfo.programs()["crashing-v1-0"]["ready"] is False, "its end is known")
        assert person.call("http://crashing:8000/", request_id="to-nobody") == "503"
        for request, sentence in (
            ("to-crash", "closed the connection before the head of an answer had come"),
            ("to-nobody", "had no endpoint"),
        ):
            told = eventually(lambda request=request: person.weft("why", request).stdout, "it is recorded")
            assert sentence in told, told
            assert "Noticed of crashing-v1-0: its program exited with code 3 at" in told, told
            assert "Find out why it ended: its last words are in `weft logs --output crashing-v1-0`." in told, told
        process.kill()  # SIGTERM is for the program, which starts again
        process.communicate(timeout=20)


@pytest.mark.parametrize("code", [0, 1, 42, 255])
@pytest.mark.any_data_plane
def test_the_exit_code_is_the_programs(person: Person, bookinfo: Mesh, code: int) -> None:
    assert person.weft("run", "--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["TERM", "KILL", "SEGV", "INT"])
@pytest.mark.any_data_plane
def test_a_program_that_dies_by_a_signal_makes_weft_die_by_the_same(person: Person, bookinfo: Mesh, name: str) -> None:
    done = person.weft("run", "--", "sh", "-c", f"ulimit -c 0; kill -{name} $$")
    assert done.returncode == -signal.Signals[f"SIG{name}"]


@pytest.mark.any_data_plane
def test_a_program_that_does_not_exist_ends_as_in_a_shell(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("run", "--", "no-such-program")
    assert (done.returncode, done.stderr) == (127, "weft: no-such-program: command not found\n")


@pytest.mark.parametrize("how", [("run",), ("exec", "ratings")], ids=lambda how: how[0])
@pytest.mark.any_data_plane
def test_a_script_without_its_interpreter_says_so(person: Person, bookinfo: Mesh, how: tuple[str, ...]) -> None:
    script = person.write("ported.sh", "#!/no/such/shell\n")
    script.chmod(0o755)
    done = person.weft(*how, "--", str(script))
    assert (done.returncode, done.stderr) == (127, f"weft: {script}: /no/such/shell: No such file or directory\n")


@pytest.mark.parametrize("how", [("run",), ("exec", "ratings")], ids=lambda how: how[0])
@pytest.mark.any_data_plane
def test_a_directory_is_no_program_as_in_a_shell(person: Person, bookinfo: Mesh, how: tuple[str, ...]) -> None:
    done = person.weft(*how, "--", "/etc")
    assert (done.returncode, done.stderr) == (126, "weft: /etc: Is a directory\n")


@pytest.mark.any_data_plane
def test_names_that_cannot_be_names_are_mistakes_of_the_command_line(person: Person, bookinfo: Mesh) -> None:
    for option, value in (
        ("--name", "Bad Name"),
        ("--namespace", "Bad_NS"),
        ("--service-account", "x y"),
        ("--version", "v 2"),
        ("--label", "a=b c"),
    ):
        done = person.weft("run", option, value, "--", "true")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {option} ")


@pytest.mark.any_data_plane
def test_input_output_and_errors_are_the_programs_own(person: Person, bookinfo: Mesh) -> None:
    with person.start("run", "--", "sh", "-c", "cat; echo err >&2", stdin=subprocess.PIPE) as process:
        assert process.communicate("as it\nwas said", timeout=60) == ("as it\nwas said", "err\n")


@pytest.mark.any_data_plane
def test_environment_directory_and_arguments_are_as_without_weft(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("run", "--env", "A=1 2", "--", "sh", "-c", 'echo "$A|$HOME|$PWD|$1"', "sh", "x  y")
    assert done.stdout == f"1 2|{person.home}|{person.home}|x  y\n"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
@pytest.mark.any_data_plane
def test_a_signal_sent_to_weft_reaches_the_program_once(person: Person, bookinfo: Mesh, name: str) -> None:
    """Python, because a shell would wait for its child before it runs a trap."""
    script = (
        "import os, signal, sys\n"
        f"signal.signal(signal.{name}, lambda *_: os.write(1, b'got\\n'))\n"
        "print('up', flush=True)\n"
        "while sys.stdin.readline(): pass\n"
    )
    with person.start("run", "--", "python3", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.Signals[name])
        assert process.stdout.readline() == "got\n"
        output, errors = process.communicate("", timeout=20)
        assert (output, errors, process.returncode) == ("", "", 0)


@pytest.mark.any_data_plane
def test_ctrl_c_at_the_terminal_is_for_the_program(person: Person, terminal: Terminal) -> None:
    person.write(
        "catching.py",
        "import os, signal, time\n"
        "def caught(*_):\n"
        "    os.write(1, b'caught\\n')\n"
        "    os._exit(7)\n"
        "signal.signal(signal.SIGINT, caught)\n"
        "print('up', flush=True)\n"
        # Not signal.pause(): a signal that comes just before it is not handled until the next one.
        "while True: time.sleep(0.05)\n",
    )
    terminal.enter("weft run -- python3 catching.py")
    terminal.expect(r"\nup")
    terminal.type(CTRL_C)
    terminal.expect(r"caught\r\n")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=7")


@pytest.mark.any_data_plane
def test_a_program_that_ctrl_c_kills_looks_killed_to_the_shell(terminal: Terminal) -> None:
    terminal.enter("weft run -- sh -c 'echo up; exec sleep 1000'")
    terminal.expect(r"\nup")
    terminal.type(CTRL_C)
    terminal.enter("echo code=$?")
    terminal.expect(r"code=130")


BESIDE_A_TERMINAL = pytest.mark.parametrize("how", ["run", "exec ratings"], ids=["run", "exec"])
"""The two commands that put a program where the person types."""


@BESIDE_A_TERMINAL
def test_ctrl_z_and_fg_work(terminal: Terminal, how: str) -> None:
    terminal.enter(f"weft {how} -- sh -c 'echo up; read line; echo got $line; exit 3'")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    terminal.enter("echo stopped=$?")
    terminal.expect(r"stopped=148")
    terminal.enter("fg")
    terminal.expect(r"weft\.cli\.main")
    terminal.enter("hello")
    terminal.expect(r"got hello")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=3")


ANOTHER = """\
apiVersion: v1
kind: Service
metadata: {name: another}
spec: {selector: {app: ratings}, ports: [{port: 9080}]}
"""


def test_a_stopped_program_holds_up_nobodys_apply(person: Person, terminal: Terminal) -> None:
    """Its agent stops with it, and the new name reaches it when it goes on; until then all say that it is stopped."""
    terminal.enter("weft run --name paused -- sh -c 'echo up; exec sleep 4848'")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    eventually(lambda: agent_of(person, "paused-v1-0") == "stopped", "it is stopped")
    file = person.write("another.yaml", ANOTHER)
    done = person.weft("apply", "-f", str(file), "--timeout", "10m")
    assert done.returncode == 0, done.stderr
    assert "paused-v1-0 was not waited for: its agent, process " in done.stderr
    assert "is stopped, as by Ctrl-Z" in person.weft("status", "paused-v1-0").stdout
    assert "paused-v1-0 was not waited for: " in person.weft("wait", "--timeout", "10m").stderr
    terminal.enter("bg")
    eventually(lambda: agent_of(person, "paused-v1-0") == "answers", "it goes on, and has the name")
    done = person.weft("wait", "--timeout", "20s")
    assert (done.returncode, done.stderr) == (0, "")
    assert person.weft("delete", "-f", str(file)).returncode == 0
    terminal.enter("kill %1; fg")
    eventually(lambda: "sleep 4848" not in processes_of(person).values(), "the program is gone")


def test_a_call_of_a_stopped_program_says_that_it_is(person: Person, terminal: Terminal, server: Path) -> None:
    """Its proxy takes the call; no answer is all that a record shows."""
    terminal.enter(f"weft run --name halted --port 8000 -- python3 {server} 8000")
    ready = ("ready", "halted-v1-0")
    eventually(
        lambda: ready in {("ready" if it["ready"] else "", it["workload"]) for it in person.json("ps")}, "it is ready"
    )
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    eventually(lambda: agent_of(person, "halted-v1-0") == "stopped", "it is stopped")
    call = ("curl", "-sS", "-m", "1", "-H", "X-Request-Id: to-halted", "http://halted:8000/")
    assert person.weft("run", "--", *call).returncode == 28  # curl's "timed out"
    told = eventually(lambda: person.weft("why", "to-halted").stdout, "it is recorded")
    assert "Noticed of halted-v1-0: it is stopped now, as by Ctrl-Z" in told, told
    assert "What to do: Let it go on: `fg` in its terminal." in told, told
    terminal.enter("kill %1; fg")
    eventually(lambda: f"{server} 8000" not in " ".join(processes_of(person).values()), "the program is gone")


def agent_of(person: Person, workload: str) -> str:
    (state,) = (item["agent"]["state"] for item in person.json("status") if item["workload"] == workload)
    return str(state)


def in_front_after_bg_and_fg(terminal: Terminal, line: str) -> None:
    """Start *line*, which says `up`, stop it, let it go on in the background and bring it to the front: it runs all the while."""
    terminal.enter(line)
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    terminal.enter("bg")
    terminal.enter("until jobs | grep -q Running; do sleep 0.1; done; echo ru''ns")
    terminal.expect(r"runs")
    terminal.enter("fg")
    terminal.expect(r"\bfg\r\n.*weft\.cli\.main.*\n")
    eventually(lambda: terminal.front() != terminal.pid, "the job is in front")


@BESIDE_A_TERMINAL
@pytest.mark.parametrize(
    ("key", "code"), [(CTRL_C, 130), (CTRL_Z, 148), (CTRL_BACKSLASH, 131)], ids=["ctrl-c", "ctrl-z", "ctrl-backslash"]
)
@pytest.mark.any_data_plane
def test_keys_work_after_bg_and_fg(terminal: Terminal, how: str, key: str, code: int) -> None:
    """The shell puts weft's group in front then, and tells it nothing: the key reaches weft and not the program."""
    in_front_after_bg_and_fg(terminal, f"weft {how} -- sh -c 'ulimit -c 0; echo up; exec sleep 4747'")
    terminal.type(key)
    terminal.expect(r"\$ ")
    terminal.enter("echo code=$?")
    terminal.expect(rf"code={code}")


@BESIDE_A_TERMINAL
@pytest.mark.any_data_plane
def test_a_program_may_read_the_terminal_after_bg_and_fg(person: Person, terminal: Terminal, how: str) -> None:
    go = person.home / f"go-{how.partition(' ')[0]}"
    os.mkfifo(go)
    os.chown(go, person.uid, person.uid)
    person.write(
        "reading.py",
        "import sys\n"
        "print('up', flush=True)\n"
        "print(open(sys.argv[1]).read(), flush=True)\n"
        "print('got', sys.stdin.readline(), flush=True)\n"
        "print('and', sys.stdin.readline(), flush=True)\n"
        "sys.exit(3)\n",
    )
    in_front_after_bg_and_fg(terminal, f"weft {how} -- python3 reading.py {go}")
    go.write_text("it reads now")
    terminal.expect("it reads now")
    terminal.enter("hello")
    terminal.expect(r"got hello")
    terminal.enter("again")
    terminal.expect(r"and again")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=3")


@BESIDE_A_TERMINAL
@pytest.mark.any_data_plane
def test_ctrl_z_stops_nothing_where_no_shell_could_continue_it(person: Person, terminal: Terminal, how: str) -> None:
    """As in `xterm -e`: weft leads the terminal's session, and the kernel lets no key stop the leader."""
    person.write(
        "going_on.py",
        "import os, signal, time\n"
        "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'goes on\\n'))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(0.05)\n",
    )
    terminal.enter(f"exec {subprocess.list2cmdline(_weft())} {how} -- python3 going_on.py")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"goes on")
    terminal.type(CTRL_C)
    eventually(lambda: not any("going_on.py" in line for line in processes_of(person).values()), "it has ended")


@BESIDE_A_TERMINAL
@pytest.mark.any_data_plane
def test_closing_the_terminal_ends_a_stopped_program(person: Person, terminal: Terminal, how: str) -> None:
    terminal.enter(f"weft {how} -- sh -c 'echo up; exec sleep 4848'")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    terminal.hang_up()
    eventually(lambda: "sleep 4848" not in processes_of(person).values(), "the program is gone")


@pytest.mark.any_data_plane
def test_a_background_job_that_reads_the_terminal_stops_until_fg(terminal: Terminal) -> None:
    terminal.enter("weft run -- sh -c 'read line; echo got $line' &")
    terminal.expect(r"Stopped|\$ ")
    terminal.enter("wait -f 2>/dev/null; jobs")
    terminal.expect(r"Stopped")
    terminal.enter("fg")
    terminal.enter("hello")
    terminal.expect(r"got hello")


@pytest.mark.any_data_plane
def test_the_program_has_the_terminal(terminal: Terminal) -> None:
    terminal.enter(
        "weft run -- python3 -c 'import os; print([os.isatty(n) for n in range(3)], os.get_terminal_size())'"
    )
    terminal.expect(r"\[True, True, True\] os\.terminal_size\(columns=200, lines=24\)")


@pytest.mark.any_data_plane
def test_a_shell_in_the_mesh_has_job_control(person: Person, terminal: Terminal) -> None:
    terminal.enter("PS1='in''ner> ' weft run -- bash --norc --noediting -i")
    terminal.expect(r"inner> ")
    # Not a shell's loop: a stop between vfork and exec of its child would leave that shell waiting, with or without us.
    person.write(
        "pausing.py",
        "import os, signal, time\n"
        "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'continued'))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(0.05)\n",
    )
    terminal.enter("python3 pausing.py")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    terminal.enter("fg")
    terminal.expect(r"continued")
    terminal.type(CTRL_C)
    terminal.expect(r"inner> ")
    terminal.enter("exit 5")
    terminal.expect(r"\n\$ ")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=5")


@pytest.mark.any_data_plane
def test_closing_the_terminal_ends_the_program(person: Person, terminal: Terminal) -> None:
    terminal.enter("weft run -- sh -c 'echo up; exec sleep 4242'")
    terminal.expect(r"\nup")
    terminal.hang_up()
    eventually(lambda: "sleep 4242" not in processes_of(person).values(), "the program is gone")


@pytest.mark.any_data_plane
def test_dash_as_an_interactive_shell_ends_with_its_own_code(terminal: Terminal) -> None:
    """A shell that cannot see its process group's number complains, and ends with a code of its own."""
    terminal.enter("PS1='in''ner> ' weft run -- /bin/sh -i")
    terminal.expect(r"inner> ")
    terminal.enter("exit 8")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=8")


@pytest.mark.any_data_plane
def test_stopping_a_job_by_its_number_stops_the_program(person: Person, terminal: Terminal) -> None:
    terminal.enter("weft run -- sh -c 'echo up; exec sleep 4646'")
    terminal.expect(r"\nup")
    terminal.type(CTRL_Z)
    terminal.expect(r"Stopped")
    terminal.enter("bg")
    terminal.enter("kill -TSTP %1; until jobs | grep -q Stopped; do sleep 0.1; jobs >/dev/null; done; echo see''n")
    terminal.expect(r"\nseen")
    terminal.enter("kill %1; fg")
    eventually(lambda: "sleep 4646" not in processes_of(person).values(), "the program is gone")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=143")


@pytest.mark.any_data_plane
def test_a_pipeline_with_weft_in_it_is_an_ordinary_pipeline(terminal: Terminal) -> None:
    terminal.enter("weft run -- seq 5 | tac | head -2 | tr '\\n' ' '; echo \"${PIPESTATUS[0]}\"")
    terminal.expect(r"5 4 0")


@pytest.mark.any_data_plane
def test_what_a_program_left_running_ends_with_it(person: Person, bookinfo: Mesh) -> None:
    """A daemon: double fork, own session, reparented to init."""
    done = person.weft("run", "--", "sh", "-c", "(setsid sleep 4343 >/dev/null 2>&1 &) ; echo done")
    assert done.stdout == "done\n"
    assert "sleep 4343" not in processes_of(person).values()


def test_kill_9_of_weft_run_ends_its_program_and_its_proxy(person: Person, bookinfo: Mesh) -> None:
    with person.start("run", "--name", "victim", "--", "sh", "-c", "echo up; exec sleep 4444") as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.kill()
        process.wait()
        eventually(
            lambda: not any("sleep 4444" in line or "victim" in line for line in processes_of(person).values()),
            "program and proxy are gone",
            seconds=5.0,
        )
    eventually(lambda: not any(name.startswith("victim") for name in bookinfo.programs()), "it is off the list")


def test_the_proxy_starts_first_and_stops_last(person: Person, bookinfo: Mesh) -> None:
    """The very first and the very last thing that a program does may be a call."""
    script = (
        "import os, signal, sys, urllib.request\n"
        "def call(*_):\n"
        "    os.write(1, b'%d\\n' % urllib.request.urlopen('http://ratings:9080/ratings/0').status)\n"
        "def last(*_):\n"
        "    call()\n"
        "    sys.exit(9)\n"
        "signal.signal(signal.SIGTERM, last)\n"
        "call()\n"
        "sys.stdin.read()\n"
    )
    with person.start("run", "--", "python3", "-c", script, stdin=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "200\n"
        process.terminate()
        assert process.stdout.readline() == "200\n"
        output, errors = process.communicate(timeout=20)
        assert (output, errors, process.returncode) == ("", "", 9)


@pytest.mark.any_data_plane
def test_a_program_that_dies_is_started_again_as_its_policy_says(person: Person, bookinfo: Mesh) -> None:
    mark = person.home / "ran-before"
    script = f"if [ -e {mark} ]; then echo second; exit 0; fi; touch {mark}; echo first; exit 4"
    done = person.weft("run", "--restart", "on-failure", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "first\nsecond\n")
    assert "weft: sh exited with code 4; starting it again" in done.stderr


@pytest.mark.parametrize("policy", ["on-failure", "always"])
def test_a_program_that_is_asked_to_end_is_not_started_again(
    person: Person, bookinfo: Mesh, server: Path, policy: str
) -> None:
    options = ("--name", "asked", "--port", "8000", "--restart", policy)
    with person.start("run", *options, "--", "python3", str(server), "8000") as process:
        eventually(lambda: bookinfo.programs().get("asked-v1-0", {}).get("ready"), "it is ready")
        process.terminate()
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == -signal.SIGTERM


@pytest.mark.any_data_plane
def test_a_client_that_is_interrupted_is_not_started_again(person: Person, bookinfo: Mesh) -> None:
    argv = ("run", "--restart", "always", "--", "sh", "-c", "echo up; exec sleep 4949")
    with person.start(*argv) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == -signal.SIGINT


@pytest.mark.any_data_plane
def test_a_program_that_is_about_to_join_can_be_interrupted(person: Person, bookinfo: Mesh) -> None:
    """The control plane may be away for long, and Ctrl-C is for now."""
    control_plane = bookinfo.pids()["control-plane"]
    os.kill(control_plane, signal.SIGSTOP)
    try:
        with person.start("run", "--", "true") as process:
            eventually(lambda: reads(process.pid, signal.SIGINT), "it hears the signal")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == ("", "")
            assert process.returncode == -signal.SIGINT
    finally:
        os.kill(control_plane, signal.SIGCONT)


def reads(pid: int, number: int) -> bool:
    """Whether process *pid* takes the signal from a descriptor: for that it is blocked."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return bool(int(re.findall(r"^SigBlk:\s+(\w+)$", status, re.MULTILINE)[0], 16) >> (number - 1) & 1)


def test_exec_runs_where_a_program_runs(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("exec", "ratings-v1-0", "--", "curl", "-s", "http://localhost:9080/ratings/0")
    assert json.loads(done.stdout)["ratings"] == {"Dorothea": 5, "Edward": 3}
    address = bookinfo.programs()["ratings-v1-0"]["address"]
    done = person.weft("exec", "ratings", "--", "sh", "-c", "hostname -I 2>/dev/null; cat /proc/net/fib_trie; exit 6")
    assert (done.returncode, address in done.stdout) == (6, True)


@pytest.mark.any_data_plane
def test_exec_sees_the_programs_processes_and_no_others(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("exec", "ratings", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "ratings.py" in done.stdout
    assert "reviews.py" not in done.stdout


def test_exec_goes_out_under_the_programs_identity(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("exec", "productpage", "--", "curl", "-s", "http://ratings:9080/ratings/0?asked=by-productpage")
    assert done.returncode == 0

    def record() -> dict[str, str] | None:
        lines = person.weft("logs", "--access", "-o", "json", "ratings").stdout.splitlines()
        found = [json.loads(line)["access"] for line in lines]
        mine = [item for item in found if "asked=by-productpage" in str(item.get("path"))]
        return mine[0] if mine else None

    assert eventually(record, "ratings has recorded it")["downstream_peer_uri_san"].endswith("/sa/productpage")


@pytest.mark.any_data_plane
def test_exec_of_an_unknown_program_lists_the_known(person: Person, bookinfo: Mesh) -> None:
    done = person.weft("exec", "raitings-v1-0", "--", "true")
    assert (done.returncode, "Did you mean 'ratings-v1-0'?" in done.stderr) == (4, True)
    done = person.weft("exec", "reviews", "--", "true")
    assert (done.returncode, "reviews-v1-0, reviews-v2-0, reviews-v3-0" in done.stderr) == (4, True)


def test_shell_opens_the_persons_shell_there(person: Person, bookinfo: Mesh, terminal: Terminal) -> None:
    terminal.enter("SHELL=/bin/sh PS1='th''ere> ' weft shell ratings")
    terminal.expect(r"there> ")
    terminal.enter("curl -s -o /dev/null -w 'status=%{http_code}\\n' http://localhost:9080/ratings/0")
    terminal.expect(r"status=200")
    terminal.enter("exit 8")
    terminal.enter("echo code=$?")
    terminal.expect(r"code=8")


@pytest.mark.any_data_plane
def test_without_a_mesh_the_error_says_what_to_do(person: Person) -> None:
    done = person.weft("run", "--mesh", "nowhere", "--", "true")
    assert done.returncode == 5
    assert re.search(r"No mesh 'nowhere' runs.*`weft up` starts one", done.stderr)


def test_when_the_mesh_ends_so_does_a_joined_program(person: Person) -> None:
    person.write("empty/weft.yaml", "mesh: empty\nprograms: {}\n")
    with person.mesh(str(person.home / "empty")) as mesh:
        joined = person.start("run", "--mesh", "empty", "--", "sh", "-c", "echo up; exec sleep 4545")
        assert joined.stdout
        assert joined.stdout.readline() == "up\n"
        mesh.process.send_signal(signal.SIGINT)
        _, errors = joined.communicate(timeout=10)
        assert joined.returncode == -signal.SIGTERM
        assert "weft: The mesh 'empty' has ended, and sh with it." in errors
