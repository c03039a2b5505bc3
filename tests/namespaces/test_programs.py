"""A program in the mesh is the user's own program: same user, same files, same surroundings; only without a way around."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces.harness import USERS, Mesh, as_user, in_mesh, parsed, run_python, until

pytestmark = pytest.mark.timeout(90)


@in_mesh
async def test_the_uid_and_the_files_are_the_users_own(mesh: Mesh) -> None:
    (mesh.place / "private").write_text("mine")
    (mesh.place / "private").chmod(0o600)
    source = """
import json, os
open("made", "w").write("by the program")
print(json.dumps([os.getuid(), os.geteuid(), os.getgid(), open("private").read(), os.stat("private").st_uid]))
"""
    uid, gid = os.getuid(), os.getgid()
    assert parsed(await mesh.python(source)) == [uid, uid, gid, "mine", uid]
    made = (mesh.place / "made").stat()
    assert (made.st_uid, made.st_gid) == (uid, gid)


ESCAPES = """
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(result): return "done" if result >= 0 else os.strerror(ctypes.get_errno())
status = dict(map(str.strip, l.split(":", 1)) for l in open("/proc/self/status"))
found = {"caps": {k: int(status[k], 16) for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}}
found["no_new_privs"] = status["NoNewPrivs"]
NEWNET, NEWNS = 0x40000000, 0x00020000
found["new network namespace"] = tried(libc.unshare(NEWNET))
found["new mount namespace"] = tried(libc.unshare(NEWNS))
found["unmount of a mask"] = tried(libc.umount2(sys.argv[1].encode(), 2))
found["mount"] = tried(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))
found["agent's network"] = tried(libc.setns(int(sys.argv[2]), NEWNET)) if len(sys.argv) > 2 else ""
try:
    n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    begin, end = (struct.pack("=IHHII", 20, k, 1, 1, 0) + struct.pack("!BBH", 0, 0, 10) for k in (0x10, 0x11))
    delete = struct.pack("=IHHII", 20, 10 << 8 | 2, 5, 2, 0) + struct.pack("!BBH", 1, 0, 0)
    n.send(begin + delete + end)
    n.settimeout(5)
    found["flush of the rules"] = os.strerror(-struct.unpack_from("=i", n.recv(4096), 16)[0])
except OSError as error: found["flush of the rules"] = error.strerror
def attempt(name, call):
    try: call(); found[name] = "done"
    except OSError as error: found[name] = error.strerror
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("transparent socket", lambda: socket.socket().setsockopt(socket.IPPROTO_IP, 19, 1))
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
attempt("init's memory", lambda: open("/proc/1/mem", "rb"))
attempt("init's network", lambda: os.readlink("/proc/1/ns/net"))
attempt("init's descriptors", lambda: os.readlink("/proc/1/fd/3"))
attempt("ptrace of init", lambda: (_ for _ in ()).throw(OSError(0, tried(libc.ptrace(16, 1, 0, 0)))))
print(json.dumps(found))
"""

FORBIDDEN = {
    **dict.fromkeys(
        ["new network namespace", "new mount namespace", "unmount of a mask", "mount", "flush of the rules"],
        "Operation not permitted",
    ),
    **dict.fromkeys(
        ["raw socket", "packet socket", "transparent socket", "mark", "ptrace of init"], "Operation not permitted"
    ),
    **dict.fromkeys(["init's memory", "init's network", "init's descriptors"], "Permission denied"),
}


@in_mesh
async def test_no_capability_is_left_in_the_program_and_no_way_out(mesh: Mesh) -> None:
    """As real root, too."""
    found = parsed(await mesh.python(ESCAPES, str(mesh.paths.masked[0])))
    assert set(found["caps"].values()) == {0}
    assert found["no_new_privs"] == "1"
    assert {name: found[name] for name in FORBIDDEN} == FORBIDDEN


@in_mesh
async def test_root_keeps_the_capabilities_that_it_was_given_and_no_way_out(mesh: Mesh) -> None:
    """All that can be given at once; without root they mean nothing, and there are none."""
    from weft.agent import syscalls
    from weft.model.capability import GRANTABLE

    found = parsed(await mesh.python(ESCAPES, str(mesh.paths.masked[0]), capabilities=tuple(GRANTABLE)))
    _, ours, _ = syscalls.capget()  # a container's root lacks some
    kept = ours & sum(1 << number for number in GRANTABLE.values()) if mesh.root else 0
    assert found["caps"] == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0}
    # NET_ADMIN, NET_RAW, SYS_MODULE, SYS_PTRACE, SYS_ADMIN, BPF.
    assert not any(kept >> number & 1 for number in (12, 13, 16, 19, 21, 39))
    assert {name: found[name] for name in FORBIDDEN} == FORBIDDEN


@in_mesh
async def test_root_becomes_another_user_only_with_the_capability_for_it(mesh: Mesh) -> None:
    """As nginx and `su postgres` do; for anyone else it is impossible either way."""
    source = "import os; os.setgid(65534); os.setuid(65534); print(os.getuid())"
    refused = await mesh.python(source)
    assert refused.code == 1
    assert ("Operation not permitted" if mesh.root else "Invalid argument") in refused.output
    granted = await mesh.python(source, capabilities=("SETUID", "SETGID"))
    assert (granted.output == "65534\n") == mesh.root


@in_mesh
async def test_a_program_that_has_ended_before_anybody_looked(mesh: Mesh) -> None:
    """On a busy machine the agent may come to it only when its init, too, has ended; the exit code is its own."""
    from weft.agent import init

    await_start = init.Program._await_start

    def late(program: init.Program) -> None:
        assert select.select([program._init], [], [], 30)[0]
        await_start(program)

    init.Program._await_start = late  # type: ignore[method-assign]
    assert (await mesh.run("sh", "-c", "exit 7")).code == 7


@in_mesh
async def test_a_setuid_program_gains_nothing(mesh: Mesh) -> None:
    """As an unprivileged user; as root there is nothing to gain."""
    source = """
import subprocess, sys
print(subprocess.run(["/bin/mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode != 0)
"""
    assert Path("/bin/mount").stat().st_mode & stat.S_ISUID, "mount is setuid where this test means something"
    assert (await mesh.python(source)).output == "True\n"


@in_mesh
async def test_a_program_with_a_user_namespace_of_its_own_has_no_power_over_the_mesh(mesh: Mesh) -> None:
    """Browsers make one for their sandbox; that must work, and lead nowhere."""
    source = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
print(libc.unshare(0x00020000), libc.umount2(sys.argv[1].encode(), 2), os.listdir(sys.argv[1]))
"""
    assert (await mesh.python(source, str(mesh.paths.masked[0]))).output == "0 -1 []\n"


@in_mesh
async def test_wefts_own_directories_are_empty_inside(mesh: Mesh) -> None:
    mesh.paths.store.write_text("secret")
    source = """
import json, os, sys
def write(path):
    try: open(path + "/x", "w"); return "written"
    except OSError as error: return error.strerror
print(json.dumps([[os.listdir(path), write(path)] for path in sys.argv[1:]]))
"""
    masked = [str(path) for path in mesh.paths.masked]
    assert parsed(await mesh.python(source, *masked)) == [[[], "Read-only file system"]] * 2


@in_mesh
async def test_the_hosts_files_are_as_they_were_and_the_programs_are_not(mesh: Mesh) -> None:
    before = {path: Path(path).read_text() for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")}
    source = "import json, sys; print(json.dumps([open(path).read() for path in sys.argv[1:]]))"
    resolv_conf, hosts, nsswitch = parsed(await mesh.python(source, *before))
    assert resolv_conf.startswith("nameserver 240.240.0.53\nsearch default.svc.cluster.local")
    assert hosts.splitlines()[0].split() == ["10.244.0.7", "cart-v1-0", socket.gethostname()]
    assert "hosts: files dns" in nsswitch.splitlines()
    assert {path: Path(path).read_text() for path in before} == before


@in_mesh
async def test_a_hosts_file_of_megabytes_is_seen_whole(mesh: Mesh) -> None:
    """Lists of names that are to be blocked have such sizes."""
    from weft.agent import mounts

    blocked = "".join(f"0.0.0.0\tads-{number:06}.example\n" for number in range(131_072))
    assert len(blocked) > 3 << 20
    mounts.view = functools.partial(mounts.view, read=lambda path: blocked if path == mounts.HOSTS else "")
    source = "text = open('/etc/hosts').read(); print(text.count('ads-'), text.splitlines()[-1].split())"
    assert (await mesh.python(source)).output == "131072 ['::1', 'localhost']\n"


@in_mesh
async def test_a_hosts_file_loses_and_regains_the_names_of_services_under_a_running_program(mesh: Mesh) -> None:
    """It stays read-only to the program."""
    from weft.agent import mounts

    host = "127.0.0.1 localhost late\n93.184.216.34 early\n"
    view = mounts.view(
        own_names=["cart-v1-0"],
        address="10.244.0.7",
        address6="",
        hidden=mesh.paths.masked,
        is_service={"early"}.__contains__,
        read=lambda path: host if path == mounts.HOSTS else "",
    )
    mounts.view = lambda **_: view
    source = """
import sys
for _ in sys.stdin:
    print([line.split()[1:] for line in open("/etc/hosts").read().splitlines()[1:] if line[0] != "#"], flush=True)
try: open("/etc/hosts", "r+")
except OSError as error: print(error.strerror)
"""
    stdin, asking = os.pipe()
    answers, stdout = os.pipe()
    program, _ = await mesh.spawn([sys.executable, "-c", source], stdin=stdin, stdout=stdout)
    os.close(stdin)
    os.close(stdout)
    seen = []
    with os.fdopen(answers) as lines:
        for now in ({"early"}, {"late"}, {"early", "late"}, set[str]()):
            mounts.rewrite(program.hosts, view.hosts, now.__contains__)
            os.write(asking, b"\n")
            seen.append(await asyncio.to_thread(lines.readline))
        os.close(asking)
        assert await asyncio.to_thread(lines.read) == "Read-only file system\n"
    assert await program.wait() == 0
    assert [line.strip() for line in seen] == [
        "[['localhost', 'late']]",
        "[['localhost'], ['early']]",
        "[['localhost']]",
        "[['localhost', 'late'], ['early']]",
    ]
    assert program.hosts == -1


def ignored_signals() -> list[int]:
    """What this process ignores: what its parent had it ignore, and SIGPIPE and SIGXFSZ, by being Python."""
    status = Path("/proc/self/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn"))
    return [number for number in range(1, 65) if mask >> (number - 1) & 1]


@in_mesh
async def test_surroundings_are_as_without_weft(mesh: Mesh) -> None:
    """Environment, directory, umask, limits, signals, arguments; descriptors 0 to 2 and no other."""
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_NOFILE, (321, 654))
    source = """
import json, os, resource, signal, sys
mask = next(int(l.split()[1], 16) for l in open("/proc/self/status") if l.startswith("SigIgn"))
print(json.dumps({
    "environment": dict(os.environ), "directory": os.getcwd(), "umask": os.umask(0), "arguments": sys.argv[1:],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "descriptors": [n for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)],
    "ignored": [n for n in range(1, 65) if mask >> (n - 1) & 1],
}))
"""
    leaked = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    environment = {"ONE": "two", "PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8"}
    found = parsed(await mesh.python(source, "a b", "", environment=environment))
    assert found == {
        "environment": environment,
        "directory": str(mesh.place),
        "umask": 0o027,
        "arguments": ["a b", ""],
        "files": [321, 654],
        "blocked": 0,
        "descriptors": ["0", "1", "2"],
        "ignored": ignored_signals(),
    }


@in_mesh
async def test_exit_codes_and_signals_are_the_programs(mesh: Mesh) -> None:
    for code in (0, 1, 7, 255):
        assert (await mesh.run("sh", "-c", f"exit {code}")).code == code
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT, signal.SIGPIPE):
        assert (await mesh.run("sh", "-c", f"ulimit -c 0; kill -{number.value} $$")).code == -number


@in_mesh
async def test_a_process_can_end_as_its_program_ended(mesh: Mesh) -> None:
    for returncode in (0, 3, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGQUIT):
        done = subprocess.run([sys.executable, "-c", f"from weft.agent.init import end_like; end_like({returncode})"])
        assert done.returncode == returncode


@in_mesh
async def test_signals_reach_the_program_and_only_it(mesh: Mesh) -> None:
    source = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; print('child', flush=True); signal.pause()"])
signal.signal(signal.SIGUSR1, lambda *_: (print("got it", child.poll(), flush=True), sys.exit(9)))
print("ready", flush=True); signal.pause()
"""
    reader, writer = os.pipe()
    program, _ = await mesh.spawn([sys.executable, "-c", source], stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        lines = [output.readline(), output.readline()]
        assert sorted(lines) == ["child\n", "ready\n"]
        program.send_signal(signal.SIGUSR1)
        assert await program.wait() == 9
        assert output.read() == "got it None\n"
    program.send_signal(signal.SIGUSR1)  # to what has ended: nothing


@in_mesh
async def test_what_cannot_be_executed_says_why(mesh: Mesh) -> None:
    (mesh.place / "data").write_text("no program")
    cases = [(["no-such-program"], FileNotFoundError, "no-such-program"), (["./data"], PermissionError, "./data")]
    for argv, error, name in cases:
        with pytest.raises(error) as caught:
            await mesh.run(*argv)
        assert caught.value.filename == name
    with pytest.raises(FileNotFoundError) as caught:
        await mesh.run("true", directory="/no/such/directory")
    assert caught.value.filename == "/no/such/directory"
    script = mesh.place / "script"
    script.write_text("#!/no/such/interpreter -x\n")
    script.chmod(0o755)
    with pytest.raises(FileNotFoundError) as caught:
        await mesh.run("./script")
    assert caught.value.filename == "/no/such/interpreter"
    script.write_text("echo no first line")
    script.chmod(0o755)
    assert (await mesh.run("./script")).output == "no first line\n", "as execvp(3) and every shell"
    assert (await mesh.run("true")).code == 0, "the namespace is as good as before"


def locked(path: Path) -> bool:
    """Whether some process holds the lock on *path*: the surest sign of life that crosses PID namespaces."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


DAEMON = """
import fcntl, os, signal, sys
lock = open(sys.argv[1], "a"); fcntl.flock(lock, fcntl.LOCK_EX)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        print(os.getppid(), flush=True)
        signal.pause()
    os._exit(0)
os.wait()
"""


@in_mesh
async def test_daemonised_grandchildren_are_ended(mesh: Mesh) -> None:
    lock = mesh.place / "lock"
    # The daemon keeps the output open, so its reader sees the end only when the daemon has ended.
    outcome = await mesh.python(DAEMON + "signal.sigtimedwait([signal.SIGUSR1], 0.3); sys.exit(5)", str(lock))
    assert outcome.code == 5
    assert not locked(lock), "wait() returned while a process of the program lived"


@in_mesh
async def test_orphans_of_a_running_program_are_reaped(mesh: Mesh) -> None:
    source = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
deadline = time.monotonic() + 10
while True:
    states = []
    for p in filter(str.isdigit, os.listdir("/proc")):
        try: states.append(open(f"/proc/{p}/stat").read().rpartition(")")[2].split()[0])
        except OSError: pass  # reaped meanwhile
    if len(states) == 2: break
    assert time.monotonic() < deadline, states
print(len(states))
"""
    outcome = await mesh.python(source)
    assert (outcome.code, outcome.output) == (0, "2\n"), "init and the program"


AGENT = """
import asyncio, os, sys
from weft.agent import init, mounts, namespaces, paths
mesh = paths.mesh_paths("other"); mesh.make()
namespaces.MeshNamespaces.create(mesh, namespaces.choose_cidr())
made = namespaces.ProgramNamespaces.create(mesh, "cart-v1-0", "10.244.0.7", "fd77:ef7::7")
view = mounts.view(own_names=["cart-v1-0"], address="10.244.0.7", address6="", hidden=mesh.masked)
program = init.spawn(made, view, [sys.executable, "-c", *sys.argv[1:]], environment=dict(os.environ),
                     directory=os.getcwd(), new_session=True, stdout=2)
print(os.stat("/proc/self/ns/net").st_ino, os.fstat(made.descriptor).st_ino, program.init_pid, flush=True)
asyncio.run(program.wait())
"""


@contextlib.contextmanager
def an_agent(user: str, place: Path, source: str, *arguments: str) -> Iterator[tuple[list[int], str]]:
    """
    A process outside of the test's that is holder and agent of a program of Python *source*; killed at the end.

    Yields what it says (inodes of both network namespaces, pid of the program's init), and the program's first line.
    """
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, source, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **as_user(user, place),
    ) as process:
        try:
            assert process.stdout is not None, "it is a pipe"
            assert process.stderr is not None, "it is a pipe"
            yield [int(word) for word in process.stdout.readline().split()], process.stderr.readline()
        finally:
            process.kill()


both_users = pytest.mark.parametrize("user", USERS)


@pytest.mark.namespaces
@both_users
def test_after_kill_9_of_an_agent_nothing_is_left(user: str, place: Path) -> None:
    """No process, no namespace, no mount: all hang on the agent's life."""
    lock = place / "lock"
    with an_agent(user, place, DAEMON + "signal.pause()", str(lock)) as (told, _):
        inodes = {f"net:[{inode}]" for inode in told[:2]}
        assert len(inodes) == 2
        assert locked(lock)
        assert inodes & set(network_namespaces()) == inodes

    async def gone() -> None:
        await until(lambda: not locked(lock), seconds=5)
        await until(lambda: not inodes & set(network_namespaces()), seconds=5)

    asyncio.run(gone())
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


def network_namespaces() -> list[str]:
    """Network namespaces in which some process is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append(str((entry / "ns/net").readlink()))
    return found


ENTER = """
import json, os, sys
from weft.agent import init
sys.exit(init.enter(int(sys.argv[1]), sys.argv[2:], environment=dict(os.environ), directory=os.getcwd()))
"""


LOOK = """
import json, os, sys
status = dict(map(str.strip, l.split(":", 1)) for l in open("/proc/self/status"))
print(json.dumps([os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt"), os.readlink("/proc/self/ns/user"),
    open("/etc/resolv.conf").read(), os.listdir(sys.argv[1]), status["CapEff"], status["CapBnd"], status["NoNewPrivs"],
    os.getuid(), os.getcwd(), "2" in os.listdir("/proc")]), flush=True)
"""


@pytest.mark.namespaces
@both_users
def test_a_command_enters_the_view_of_a_program(user: str, place: Path) -> None:
    masked = str(place / "weft")
    with an_agent(user, place, LOOK + "sys.stderr = None; import signal; signal.pause()", masked) as (told, line):
        init_pid = str(told[2])
        entered = run_python(user, place, "-c", ENTER, init_pid, sys.executable, "-c", LOOK, masked)
        assert json.loads(entered.stdout) == json.loads(line)
        assert run_python(user, place, "-c", ENTER, init_pid, "sh", "-c", "exit 42").returncode == 42
        missing = run_python(user, place, "-c", ENTER, init_pid, "no-such-program")
        assert "FileNotFoundError: [Errno 2] No such file or directory: 'no-such-program'" in missing.stdout

    asyncio.run(until_gone(int(init_pid)))
    assert "NotFound: the program's init" in run_python(user, place, "-c", ENTER, init_pid, "true").stdout


async def until_gone(pid: int) -> None:
    """Wait until there is no process *pid*."""
    await until(lambda: not Path(f"/proc/{pid}").exists(), seconds=5)
