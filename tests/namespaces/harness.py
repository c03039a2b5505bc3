"""
Runs a test's body inside a mesh's namespaces, in a process of its own, as an unprivileged user and as root.

A test is an async function that takes a `Mesh`; `@in_mesh` turns it into a pytest function that starts
`python -m tests.namespaces.harness MODULE NAME` as the wanted user and fails with that process's traceback.
That process plays the holder and the agent. A second one, `outside.py`, plays the host and the internet in a network
namespace of its own, with a real edge in it. In place of weft-proxy a transparent listener says what it caught.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import weft

REPOSITORY = Path(__file__).parents[2]
WEFT = Path(weft.__file__).parents[1]
"""Where the package is that these tests are about: installed, or in `src/`."""
UNPRIVILEGED_UID = 54321
USERS = ("unprivileged", "root") if os.geteuid() == 0 else ("unprivileged",)
TIMEOUT_SECONDS = 60

MESH_NAME = "test"
ADDRESS, ADDRESS6 = "10.244.0.7", "fd77:ef7::7"
SERVICE_ADDRESS = "240.240.0.3"

Body = Callable[["Mesh"], Awaitable[None]]


@pytest.fixture
def place(user: str) -> Iterator[Path]:
    """A directory of the user under test, outside of pytest's own, which others may not enter."""
    directory = Path(tempfile.mkdtemp(prefix="weft-test-", dir="/tmp"))
    if user == "unprivileged" and os.geteuid() == 0:
        os.chown(directory, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    yield directory
    shutil.rmtree(directory)


def as_user(user: str, place: Path) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that make a process *user*'s."""
    environment = {
        "HOME": str(place),
        "XDG_RUNTIME_DIR": str(place),
        "XDG_STATE_HOME": str(place / "state"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{WEFT}:{REPOSITORY}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        **{name: os.environ[name] for name in ("WEFT_PROXY",) if name in os.environ},
    }
    arguments: dict[str, Any] = {"env": environment, "cwd": place}
    if user == "unprivileged" and os.geteuid() == 0:
        arguments |= {"user": UNPRIVILEGED_UID, "group": UNPRIVILEGED_UID, "extra_groups": []}
    return arguments


def run_python(user: str, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python as *user*; whatever it leaves behind is ended with its process group."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **as_user(user, place),
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, output, "")


def in_mesh(body: Body) -> Callable[..., None]:
    """Make a pytest function, once for each kind of user, of a test's *body*."""

    @pytest.mark.namespaces
    @pytest.mark.parametrize("user", USERS)
    def test(user: str, place: Path) -> None:
        done = run_python(user, place, "-m", "tests.namespaces.harness", body.__module__, body.__name__)
        if done.returncode:
            pytest.fail(done.stdout, pytrace=False)

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    test.body = body  # type: ignore[attr-defined]
    return test


@dataclass
class Outcome:
    """How a program ended, and what it wrote to its standard output and error."""

    code: int
    output: str


@dataclass
class Mesh:
    """What a body works with: a mesh with one workload, `cart-v1-0`, and the world outside."""

    paths: Any
    place: Path
    root: bool
    control: socket.socket
    workload: Any = None
    caught: list[tuple[str, int]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    _listeners: list[asyncio.Server] = field(default_factory=list)

    def make_workload(self, name: str = "cart-v1-0", *, host_ports: Sequence[int] = ()) -> Any:
        """Make the namespace of a workload; the first is `mesh.workload`."""
        from weft.agent.namespaces import ProgramNamespaces

        made = ProgramNamespaces.create(self.paths, name, ADDRESS, ADDRESS6, host_ports=host_ports)
        if self.workload is None:
            self.workload = made
        return made

    async def spawn(
        self, argv: Sequence[str], *, environment: dict[str, str] | None = None, **options: Any
    ) -> tuple[Any, asyncio.Task[str]]:
        """Start a program in the workload; returns it and a task that reads its output to the end."""
        from weft.agent import init, mounts

        if self.workload is None:
            self.make_workload()
        view = mounts.view(
            own_names=[self.workload.workload], address=ADDRESS, address6=ADDRESS6, hidden=self.paths.masked
        )
        reader, writer = os.pipe()
        nothing = os.open("/dev/null", os.O_RDONLY)
        options = {
            "directory": str(self.place),
            "new_session": True,
            "stdin": nothing,
            "stdout": writer,
            "stderr": writer,
            **options,
        }
        try:
            program = init.spawn(
                self.workload,
                view,
                argv,
                environment=environment or dict(os.environ),
                **options,
            )
        finally:
            os.close(writer)
            os.close(nothing)
        return program, asyncio.create_task(_read_all(reader))

    async def run(self, *argv: str, **options: Any) -> Outcome:
        """Run a program of the workload to its end."""
        program, output = await self.spawn(argv, **options)
        code = await program.wait()
        return Outcome(code, await output)

    async def python(self, source: str, *arguments: str, **options: Any) -> Outcome:
        """Run Python source as the program."""
        return await self.run(sys.executable, "-c", source, *arguments, **options)

    async def catch(self) -> None:
        """
        Stand where the proxy's outbound listener stands, and answer HTTP requests with where they were sent to.

        Destinations are kept in `caught`.
        """

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A transparent listener's connection has the address that was dialled as its own.
            address, port = writer.get_extra_info("sockname")[:2]
            self.caught.append((address, port))
            with contextlib.suppress(asyncio.IncompleteReadError):
                request = await reader.readuntil(b"\r\n\r\n")
                answer = f"caught {request.split()[1].decode()} for {address} {port}\n".encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
                )
                await writer.drain()
            writer.close()

        await self._stand(converse)

    async def relay(self) -> None:
        """Stand where the proxy's outbound listener stands, and connect everything through the edge."""
        from weft.agent import edge

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            address, port = writer.get_extra_info("sockname")[:2]
            self.caught.append((address, port))
            target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            try:
                _, outside = await edge.ask(
                    self.paths.edge_socket, {"dial": target, "workload": self.workload.workload}
                )
            except edge.EdgeRefused:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(sock=outside)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

        await self._stand(converse)

    async def _stand(self, converse: Callable[..., Awaitable[None]]) -> None:
        if self.workload is None:
            self.make_workload()
        for family in (socket.AF_INET, socket.AF_INET6):
            listener = self.workload.run(functools.partial(transparent_listener, family))
            self._listeners.append(await asyncio.start_server(converse, sock=listener))

    async def names(self, table: dict[str, list[str]]) -> Any:
        """Start the workload's DNS server with *table* and the edge behind it; names that nobody has go to `unknown`."""
        from weft.agent import dns, edge, mounts
        from weft.agent.unknown_hosts import UnknownHosts

        if self.workload is None:
            self.make_workload()
        names = dns.Names(own=[self.workload.workload], own_addresses=[ADDRESS, ADDRESS6])
        names.replace(table)
        forward = functools.partial(edge.resolve, self.paths.edge_socket)
        unknown = UnknownHosts(
            lambda name, answer: self.unknown.append((name, answer)), search=mounts.search_list("default")
        )
        server = dns.Server(self.workload, names, forward, unknown)
        await server.start()
        return server

    def outside(self, request: str) -> str:
        """Ask the process that plays the host and the internet (see outside.py)."""
        self.control.send(request.encode())
        return self.control.recv(65536).decode()


def transparent_listener(family: int) -> socket.socket:
    """A listening socket as weft-proxy makes one for the outbound listener, in the calling thread's namespace."""
    from weft.model.reserved import OUTBOUND_PORT

    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
        listener.bind(("::", OUTBOUND_PORT))
    else:
        listener.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT
        listener.bind(("0.0.0.0", OUTBOUND_PORT))
    listener.listen(128)
    listener.setblocking(False)
    return listener


async def until(condition: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Wait until *condition* holds and return its value; fail after *seconds*."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {condition}"
        await asyncio.sleep(0.01)
    return value


async def _read_all(descriptor: int) -> str:
    reader = asyncio.StreamReader()
    with open(descriptor, "rb") as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            return (await reader.read()).decode(errors="replace")
        finally:
            transport.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def main(module: str, name: str) -> None:
    """Be the process in which the body *name* of *module* runs."""
    from tests.namespaces import outside
    from weft.agent import namespaces, paths

    place = Path.cwd()
    mesh_paths = paths.mesh_paths(MESH_NAME)
    mesh_paths.make()
    control = outside.start(mesh_paths.edge_socket, place)
    made = namespaces.MeshNamespaces.create(mesh_paths, namespaces.choose_cidr())
    assert made.rootless == (os.geteuid() != 0)
    mesh = Mesh(mesh_paths, place, os.geteuid() == 0, control)
    body: Body = getattr(importlib.import_module(module), name).body
    try:
        asyncio.run(_run(mesh, body))
    except AssertionError as error:
        # pytest explains asserts in its own process only; here the locals of the body have to do.
        for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack[-2:]:
            print(frame.name, json.dumps(frame.locals, indent=1))
        raise


async def _run(mesh: Mesh, body: Body) -> None:
    await body(mesh)
    for listener in mesh._listeners:
        listener.close()
    if mesh.workload is not None:
        mesh.workload.close()


def parsed(outcome: Outcome) -> Any:
    """The JSON that a program printed, having ended well."""
    assert outcome.code == 0, outcome
    return json.loads(outcome.output)


if __name__ == "__main__":
    main(*sys.argv[1:])
