"""
Whole meshes of real processes: `weft up` as root and as an unprivileged user, and `weft` commands beside it.

A test says what a person types and what that person sees. Nothing sleeps: `eventually` waits for a condition.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar
from zlib import crc32

import pytest

from tests.conftest import person_of
from tests.e2e import typist
from weft.data_plane import ENVOY, WEFT_PROXY

REPOSITORY = Path(__file__).resolve().parents[2]
BOOKINFO = REPOSITORY / "examples" / "bookinfo"

UNPRIVILEGED_UID = 61_977
"""Nobody's uid on any machine that we know."""

PATIENCE_SECONDS = 60.0
"""For anything that must happen; a machine that also compiles is slow. What is promised faster has its own limit."""

DATA_PLANES = (WEFT_PROXY, ENVOY)

Result = TypeVar("Result")


def eventually(condition: Callable[[], Result], what: str, *, seconds: float = PATIENCE_SECONDS) -> Result:
    """Return the first true value of *condition*; fail if there is none in time."""
    deadline = time.monotonic() + seconds
    pause = Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        pause.wait(0.02)
    return value


class Started(subprocess.Popen[str]):
    """A process that a failing test does not wait for."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


@dataclass
class Person:
    """
    A user of this machine with a home and a runtime directory of their own, who types commands.

    `data_plane` is what their meshes run beside programs, unless a test says otherwise.
    """

    name: str
    data_plane: str
    uid: int
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    @property
    def home(self) -> Path:
        return self.directory / "home"

    def options(self) -> dict[str, Any]:
        """Return what makes a subprocess this person's."""
        options: dict[str, Any] = {"env": self.environment, "cwd": self.home}
        if self.uid != os.getuid():
            options |= {"user": self.uid, "group": self.uid, "extra_groups": []}
        return options

    def start(self, *argv: str, **options: Any) -> Started:
        """Start `weft ARGV`."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("stdin", subprocess.DEVNULL)
        return Started(weft(*argv), text=True, **(self.options() | options))

    def weft(self, *argv: str, timeout: float = PATIENCE_SECONDS, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `weft ARGV` and return what it said."""
        try:
            if argv[0] in typist.TYPED and not options:
                return typist.run(
                    argv, uid=self.uid, environment=self.environment, directory=str(self.home), timeout=timeout
                )
            with self.start(*argv, **options) as process:
                output, errors = process.communicate(timeout=timeout)
                return subprocess.CompletedProcess(argv, process.returncode, output, errors)
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"weft {' '.join(argv)} did not end within {timeout} s\n{late.output}\n{late.stderr}")

    def write(self, name: str, text: str) -> Path:
        """Make a file of this person's in their home; return it."""
        path = self.home / name
        for directory in reversed([p for p in path.parents if p.is_relative_to(self.home)]):
            if not directory.exists():
                directory.mkdir()
                os.chown(directory, self.uid, self.uid)
        path.write_text(textwrap.dedent(text), "utf-8")
        os.chown(path, self.uid, self.uid)
        return path

    def json(self, *argv: str) -> Any:
        """Run `weft ARGV -o json` and return the value."""
        done = self.weft(*argv, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def notices(self, part: str) -> list[str]:
        """What agents have noticed, of every proxy: each one's `code` or `text`."""
        return [item[part] for proxy in self.json("status") for item in proxy["notices"]]

    def call(self, url: str, *, request_id: str) -> str:
        """Call *url* from a program that joins for it, under that id; return the status of the answer."""
        curl = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"X-Request-Id: {request_id}", url)
        done = self.weft("run", "--", *curl)
        print(done.stderr)  # shown where the status is not what it should be
        return done.stdout

    def delete_everything(self) -> None:
        """Leave the mesh without configuration."""
        names = []
        for item in self.json("get")["items"]:
            kind = f"{item['kind']}.{item['apiVersion'].rpartition('/')[0]}".rstrip(".")
            names.append(f"{kind}/{item['metadata']['name']}")
        if names:
            done = self.weft("delete", *names)
            assert done.returncode == 0, done.stderr

    @contextmanager
    def mesh(
        self, *argv: str, wrapper: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> Iterator[Mesh]:
        """Run `weft up ARGV` until the block is left; by *wrapper* and with more in its *environment* if given."""
        log = tempfile.NamedTemporaryFile("w", encoding="utf-8")  # noqa: SIM115 - closed below
        started = time.monotonic()
        proxy = () if "--proxy" in argv else ("--proxy", self.data_plane)
        process = subprocess.Popen(
            [*wrapper, *weft("up", *proxy, *argv)],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **(self.options() | {"env": {**self.environment, **(environment or {})}}),
        )
        mesh = Mesh(self, process, log, Path(f"/proc/{process.pid}/root") if wrapper else Path("/"))
        try:
            try:
                eventually(mesh.is_ready_or_gone, "weft up is ready")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{mesh.output()}") from None
            assert process.poll() is None, mesh.output()
            mesh.seconds_to_ready = time.monotonic() - started
            yield mesh
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                pytest.fail(f"weft up did not end\n{mesh.output()}")
            finally:
                log.close()


def weft(*argv: str) -> list[str]:
    """Return the command line of `weft ARGV`: the installed one, of the interpreter that runs the tests."""
    return [sys.executable, "-m", "weft.cli.main", *argv]


@dataclass
class Mesh:
    """A mesh that runs, as its user sees it."""

    person: Person
    process: subprocess.Popen[str]
    log: IO[str]
    root: Path = Path("/")
    """By which we see its files, where it has disks of its own."""
    seconds_to_ready: float = 0.0

    def output(self) -> str:
        """What `weft up` has printed so far."""
        # Not by the descriptor that is also `weft up`'s: both would write and read at one common offset.
        return Path(self.log.name).read_text("utf-8")

    def is_ready_or_gone(self) -> bool:
        # By the last line: the addresses, which tests read, are printed behind that it is ready.
        return "\nCtrl-C ends the mesh.\n" in self.output() or self.process.poll() is not None

    @property
    def ingress(self) -> tuple[str, int]:
        """Where the gateway is on the host."""
        match = re.search(r"http://(127\.0\.0\.1):(\d+)", self.output())
        assert match, self.output()
        return match[1], int(match[2])

    def is_reached(self) -> bool:
        """Whether anybody listens on the gateway's port: from 100 ms on after a Gateway has been applied."""
        with socket.socket() as probe:
            return probe.connect_ex(self.ingress) == 0

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """GET *path* at the gateway, as a browser would; return status and body."""
        connection = http.client.HTTPConnection(*self.ingress, timeout=30)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def pids(self) -> dict[str, int]:
        """The mesh's own processes, by name."""
        name = re.search(r"^weft  mesh (\S+)$", self.output(), re.MULTILINE)
        assert name, self.output()
        found: dict[str, int] = json.loads((self.runtime / name[1] / "mesh.json").read_text())["pids"]
        return found

    @property
    def runtime(self) -> Path:
        """Its runtime directory and those of all meshes of this person."""
        return self.root / self.person.runtime.relative_to("/") / "weft"

    def programs(self) -> dict[str, dict[str, Any]]:
        """`weft ps -o json` by name."""
        return {item["workload"]: item for item in self.person.json("ps")}


def processes_of(person: Person) -> dict[int, str]:
    """Command lines of the processes that were started with *person*'s runtime directory, whoever started them."""
    mark = f"XDG_RUNTIME_DIR={person.runtime}\0".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes() + b"\0":
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(entry.name)] = command
    return {pid: command for pid, command in found.items() if command}


def namespaces_of(pids: dict[int, str]) -> set[str]:
    """The network, mount, PID and user namespaces in which *pids* are and we are not."""
    found = set()
    for pid in pids:
        for kind in ("net", "mnt", "pid", "user"):
            try:
                name = str(Path(f"/proc/{pid}/ns/{kind}").readlink())
            except OSError:
                continue
            if name != str(Path(f"/proc/self/ns/{kind}").readlink()):
                found.add(name)
    return found


def processes_in(namespaces: set[str]) -> set[tuple[int, str]]:
    """Return (pid, start time) of every process that is in one of *namespaces*, whoever's it is."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if any(str((entry / "ns" / kind).readlink()) in namespaces for kind in ("net", "mnt", "pid", "user")):
                    found.add((int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()[19]))
    return found


def people() -> list[tuple[str, str]]:
    """Whose meshes are tested, and with which data plane: both kinds of users if we are root, else our own."""
    names = ["root", "unprivileged"] if os.getuid() == 0 else ["unprivileged"]
    return [(name, data_plane) for name in names for data_plane in DATA_PLANES]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Run what is marked `any_data_plane` with the default one only: nothing in it passes through a proxy.

    With WEFT_EVERY_DATA_PLANE in the environment single tests that are marked run with each: what stands beside a program is no part of
    them, and this shows it. A module that is marked as a whole is about one of the two, or about both at once. With WEFT_PAIRS each test
    runs as each user and with each data plane, but not with each of both.
    """
    twice = [item for item in items if item.get_closest_marker("any_data_plane") and ENVOY in person_of(item)]
    if os.environ.get("WEFT_EVERY_DATA_PLANE"):
        twice = [item for item in twice if all(mark.name != "any_data_plane" for mark in item.own_markers)]
    if os.environ.get("WEFT_PAIRS"):
        twice += [item for item in items if item.get_closest_marker("any_data_plane") is None and not is_paired(item)]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]


def is_paired(item: pytest.Item) -> bool:
    """Whether a test is one of the two that meet both users and both data planes; which two, differs from module to module."""
    person = person_of(item)
    if not person or len({name for name, _ in people()}) == 1:
        return True
    crosses = crc32(item.path.stem.encode()) % 2 == 1
    return (person[0] == "root") is ((person[1] == WEFT_PROXY) is not crosses)


@pytest.fixture(scope="module", params=people(), ids="-".join)
def person(request: pytest.FixtureRequest) -> Iterator[Person]:
    """Somebody who has never used weft."""
    name, data_plane = request.param
    uid = os.getuid() if name == "root" or os.getuid() != 0 else UNPRIVILEGED_UID
    with someone(name, uid, data_plane) as who:
        yield who


@contextmanager
def someone(name: str, uid: int, data_plane: str = WEFT_PROXY) -> Iterator[Person]:
    """Make a person of *uid*; when they go, nothing of theirs may be left running."""
    # Not pytest's own directory: that is closed to other users, and sockets have short paths.
    directory = Path(tempfile.mkdtemp(prefix="weft-e2e-", dir="/tmp"))
    try:
        directory.chmod(0o755)
        for part in ("run", "home", "tmp"):
            (directory / part).mkdir(mode=0o700)
            os.chown(directory / part, uid, uid)
        kept = ("PATH", "PYTHONPATH", "WEFT_PROXY", "WEFT_ENVOY", "LANG", "TERM")
        environment = {key: os.environ[key] for key in kept if key in os.environ}
        environment |= {
            "HOME": str(directory / "home"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "TMPDIR": str(directory / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        }
        who = Person(name, data_plane, uid, directory, environment)
        check_that_they_can_run_it(who)
        yield who
        try:
            # A machine's servers (machine.py) hear of the end of their parent a moment after we do.
            eventually(lambda: not processes_of(who), "everything that the tests started is gone")
        finally:
            for pid, command in processes_of(who).items():
                print(f"left running after the tests: {pid} {command}")
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check_that_they_can_run_it(person: Person) -> None:
    """Fail with the remedy where the repository or the interpreter is closed to other users."""
    done = subprocess.run(weft("version", "--help"), capture_output=True, text=True, check=False, **person.options())
    if done.returncode != 0:
        name = pwd.getpwuid(os.getuid()).pw_name
        pytest.fail(
            f"uid {person.uid} cannot run weft from {REPOSITORY}: clone to a directory that other users may read"
            f" (this is {name}'s), outside /root\n{done.stderr}"
        )


@pytest.fixture(scope="module")
def bookinfo(person: Person) -> Iterator[Mesh]:
    """Bookinfo, up and ready; shared by the tests of a module, which leave it as it was."""
    with person.mesh(str(BOOKINFO)) as mesh:
        yield mesh
