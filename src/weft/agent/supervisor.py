"""
`weft up` as a supervisor: it starts the mesh's processes and the programs, in order, and watches them to the end.

What it is told is a Plan; what it tells is events to a Screen. It never prints, and never starts a thread: it forks.
The order: lock, runtime directory, published ports, then control plane, edge and holder at once, then each program as soon as those it
depends on are ready. The end runs the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from weft.agent import explicit, holder, limits, paths, published, syscalls
from weft.agent.holder import Channel
from weft.agent.namespaces import choose_cidr
from weft.agent.paths import MeshPaths
from weft.agent.proxy import describe, ended
from weft.agent.workload import WorkloadSpec
from weft.data_plane import WEFT_PROXY
from weft.errors import InvalidConfiguration, ModeUnavailable, StoreError, WeftError
from weft.model import SERVICE_CIDR, loopback

BOOT_SECONDS = 20.0
"""For control plane, edge and holder. They take about one second; a machine that is busy compiling takes ten."""

SETTLE_SECONDS = 10
"""For proxies to take what follows from the last program that became ready; they take milliseconds."""

SOCKET_POLL_SECONDS = 0.01
OLD_HOLDER_SECONDS = 6.0
"""The holder of a mesh whose `weft up` was killed is gone after five."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STEADY_SECONDS = 0.1, 5.0, 10.0
"""Before a dead process of the mesh is started again: doubled each time, from the first again after a steady run."""

NO_ROOM_SECONDS = 1.0
"""Before a file that a full disk did not take is written again."""

EVENTS_BEFORE_US = 20
"""Of the control plane's boot, before `weft up` could listen."""

EVENT_BYTES = 1 << 20

AGENTS_END_SECONDS = 1.4
REST_END_SECONDS = 2.0
"""
Programs have one second after SIGTERM, proxies what is left, half a second at most, to drain. The whole mesh ends within two, and what
comes after the agents takes up to half a second on a busy machine.
"""


class MeshRunning(WeftError):
    """A mesh of this name runs already."""


class MeshBroken(WeftError):
    """A process that the mesh cannot do without could not be started, or died."""


class OutputClosed(WeftError):
    """Whoever read what `weft up` writes has gone."""


class NotStarted(WeftError):
    """The control plane ended before it served, with the code of something that starting it again does not mend."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


FINAL = frozenset({InvalidConfiguration.exit_code, StoreError.exit_code})
"""How a control plane ends that would end the same way each time."""

LOG_RECORD = re.compile(r"\d{4}-\d{2}-\d{2} ")
"""How a record of a process's log begins; what it says as it ends begins otherwise."""


@dataclass(frozen=True, slots=True)
class Planned:
    """
    One program instance or gateway.

    Attributes:
        identifier: The workload's name.
        spec: What it is.
        after: Identifiers of those that must be ready before it is started.
        ready_seconds: How long it may take until its ports answer.
    """

    identifier: str
    spec: WorkloadSpec
    after: tuple[str, ...] = ()
    ready_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Attributes:
        mesh: Name of the mesh.
        declaration: What the control plane is told (docs/reference/interfaces.md, 4.3a), without `mesh_cidr`.
        workloads: In order of the file.
        cidr: The range of workload addresses; empty lets weft choose one that meets no route of the host, or in
            explicit mode one of the loopback.
        interception: `tproxy`, `explicit`, or `auto`: explicit only where namespaces are not permitted.
        verbose: Have the programs' output reported, line by line.
    """

    mesh: str
    declaration: Mapping[str, Any]
    workloads: Sequence[Planned] = ()
    cidr: str = ""
    interception: str = holder.AUTO
    verbose: bool = False


Screen = Callable[[str, Mapping[str, Any]], None]
"""Takes what happens: the event's name and its facts; `id` is the workload's identifier where it is about one."""


Prepare = Callable[[], Callable[[Sequence[str]], NoReturn]]
"""Loads a program into this process; what it returns runs it with the given arguments."""


class Early:
    """
    What is forked before `weft up` has threads or has read anything: the holder and the first control plane.

    Make it first thing. Both load what they need while `weft up` reads its file, and wait for a message; if it never
    comes they end with us. What `weft up` and the control plane both load is loaded between the two forks, once for
    both: it is half of what the control plane needs, and the holder, whose memory every agent has, needs none of it.

    Args:
        load: Loads what `weft up` itself needs of what stands above this package.
        prepare: Loads the rest of the control plane, and is handed in for the same reason.
    """

    def __init__(self, load: Callable[[], None], prepare: Prepare) -> None:
        self.lifeline, self._our_end = os.pipe()
        self.commands, holder_commands = Channel.pair()
        self.reports, holder_reports = Channel.pair()
        self._go, wait = Channel.pair()

        def hold() -> NoReturn:
            self._forget()
            wait.close()
            holder.hold(holder_commands, holder_reports, self.lifeline)

        def control() -> NoReturn:
            self._forget()
            _become_daemon()
            holder.set_process_name(b"weft-control")
            start = prepare()
            if (go := wait.receive()) is None:
                os._exit(0)
            _write_to(Path(go["log"]))
            start(go["arguments"])

        self.holder = fork(hold)
        holder_commands.close()
        holder_reports.close()
        load()
        self.control_plane = fork(control)
        wait.close()

    def start_control_plane(self, arguments: Sequence[str], log: Path) -> int:
        """Let the control plane that waits begin; return its pid. Once only: a later one is started afresh."""
        self._go.send(arguments=list(arguments), log=str(log))
        return self.control_plane

    def edge(self, mesh: MeshPaths, reserved: Mapping[str, socket.socket]) -> int:
        """Fork the edge of *mesh*, with the host's ports that it is to listen on; return its pid."""

        def run() -> NoReturn:
            self._forget()
            _become_daemon()
            holder.set_process_name(b"weft-edge")
            _write_to(mesh.log("edge"))
            from weft.agent.edge import Edge

            limits.raise_open_files()
            edge = Edge(inside=paths.mesh_ranges(mesh), reserved=reserved)
            asyncio.run(_until_closed(edge.serve(mesh.edge_socket), self.lifeline))
            os._exit(0)

        return fork(run)

    def _forget(self) -> None:
        """In a child: let go of what only `weft up` may hold, or its end would not be seen."""
        os.close(self._our_end)
        for channel in (self.commands, self.reports, self._go):
            channel.close()

    def cut(self) -> None:
        """Let the lifeline go: whoever holds the other end ends."""
        if self._our_end >= 0:
            os.close(self._our_end)
            self._our_end = -1


class Supervisor:
    """One mesh, from its lock to its end. Use `run`; `stop` asks it to end."""

    def __init__(self, plan: Plan, early: Early, screen: Screen) -> None:
        self._plan, self._early, self._screen = plan, early, screen
        self._mesh = paths.mesh_paths(plan.mesh)
        self._lock = -1
        self._reserved: dict[str, socket.socket] = {}
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._pids: dict[str, int] = {"up": os.getpid(), "holder": early.holder}
        self._holding = asyncio.Event()
        self._serves = False
        """All of the mesh's own processes have served."""
        self._interception = "tproxy"
        self._claim: socket.socket | None = None
        self._failure: WeftError | None = None
        self._ready: dict[str, asyncio.Event] = {item.identifier: asyncio.Event() for item in plan.workloads}
        # Ready once, or given up: what is waited for before all of it is called ready.
        self._settled: dict[str, asyncio.Event] = {item.identifier: asyncio.Event() for item in plan.workloads}
        # Ended for good, or not started for want of one that has: it becomes ready only if somebody helps.
        self._given_up: dict[str, asyncio.Event] = {item.identifier: asyncio.Event() for item in plan.workloads}
        self._how: dict[str, str] = {}
        """In which way those that were given up came to it."""
        self._alive: set[str] = set()
        self._all_gone = asyncio.Event()
        self._pauses: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes: dict[str, asyncio.Task[None]] = {}

    def stop(self) -> None:
        """End the mesh in order; called a second time, without waiting for anyone."""
        if self._stopping.is_set():
            self._hurried.set()
        self._stopping.set()

    async def run(self) -> None:
        """
        Bring the mesh up, keep it until `stop`, take it down.

        Raises:
            MeshRunning: A mesh of this name runs.
            UsageError: A port cannot be published.
            ModeUnavailable: The machine does not allow namespaces.
            MeshBroken: A process of the mesh could not be started, or died and cannot be replaced.
            NotStarted: The control plane refuses what it is to begin with, or cannot use its store.
        """
        loop = asyncio.get_running_loop()
        self._take_lock()
        try:
            loop.add_reader(self._early.reports.fileno(), self._receive)
            self._publish()
            self._process("holder", self._watch_holder())
            await self._boot()
            for planned in self._plan.workloads:
                self._task(self._start(planned))
            self._task(self._announce_ready())
            await self._stopping.wait()
        finally:
            await self._end()
            loop.remove_reader(self._early.reports.fileno())
        if self._failure is not None:
            raise self._failure

    # --- up ---

    def _take_lock(self) -> None:
        """
        Become the mesh's one `weft up`, in an empty runtime directory.

        Raises:
            MeshRunning: Another one is.
        """
        while True:
            self._mesh.make()
            self._lock = os.open(self._mesh.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                os.close(self._lock)
                raise MeshRunning(
                    f"A mesh named {self._plan.mesh!r} runs already (see `weft ps`). End it first, or give this one"
                    " another name: `weft up --mesh NAME`."
                ) from exc
            # The janitor of an earlier mesh may have removed the file between our open and our lock.
            with contextlib.suppress(FileNotFoundError):
                if self._mesh.lock.stat().st_ino == os.fstat(self._lock).st_ino:
                    break
            os.close(self._lock)
        self._await_old_holder()
        for entry in self._mesh.runtime.iterdir():
            if entry != self._mesh.lock:
                holder.remove_entry(entry)
        self._mesh.make()

    def _await_old_holder(self) -> None:
        """A mesh whose `weft up` was killed a moment ago may still be cleaning up; what it removes must not be ours."""
        try:
            pid = json.loads(self._mesh.mesh_file.read_text("utf-8"))["pids"]["holder"]
            descriptor = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError, TypeError):
            return
        try:
            comm = Path(f"/proc/{pid}/comm").read_text("utf-8").strip()
            deadline = time.monotonic() + OLD_HOLDER_SECONDS
            while comm == holder.PROCESS_NAME and time.monotonic() < deadline:
                try:
                    signal.pidfd_send_signal(descriptor, 0)
                except ProcessLookupError:
                    return
                time.sleep(SOCKET_POLL_SECONDS)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _publish(self) -> None:
        """
        Bind the host's ports of the gateways, and put those that were got into the plan.

        Raises:
            UsageError: One cannot be had.
        """
        workloads = []
        for planned in self._plan.workloads:
            got, bound = published.reserve(planned.spec.published)
            self._reserved |= bound
            workloads.append(replace(planned, spec=replace(planned.spec, published=tuple(got))))
            if got:
                self._screen("published", {"id": planned.identifier, "ports": got})
        self._plan = replace(self._plan, workloads=workloads)

    async def _boot(self) -> None:
        """Start control plane, edge and holder, and wait until all three serve."""
        plan = self._plan
        cidr = plan.cidr or (str(choose_cidr()) if plan.interception != "explicit" else "")
        self._screen("booting", {})
        self._early.commands.send(mesh=plan.mesh, cidr=cidr, verbose=plan.verbose, interception=plan.interception)
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                # Which mode it is decides about addresses, so the control plane is told after that; it loads meanwhile.
                await first_of(self._holding.wait(), self._stopping.wait())
                if self._stopping.is_set():
                    return
                if self._interception == "explicit":
                    self._check_data_planes()
                    explicit.check_ranges(plan.cidr, str(plan.declaration.get("service_cidr") or ""))
                    cidr, self._claim = explicit.claim_range(plan.mesh, plan.cidr)
                is_explicit = self._interception == "explicit"
                declaration = {
                    "service_cidr": loopback.SERVICE_CIDR if is_explicit else SERVICE_CIDR,
                    **plan.declaration,
                    "mesh": plan.mesh,
                    "mesh_cidr": cidr,
                    "interception": self._interception,
                }
                self._mesh.declaration.write_text(json.dumps(declaration), "utf-8")
                # Both read the declaration. The edge serves long before the control plane does.
                self._process("edge", self._keep("edge", self._start_edge))
                self._process("control-plane", self._keep("control-plane", self._start_control_plane))
                for path in (
                    self._mesh.edge_socket,
                    self._mesh.xds_socket,
                    self._mesh.agents_socket,
                    self._mesh.api_socket,
                ):
                    while not path.exists() and not self._stopping.is_set():
                        await asyncio.sleep(SOCKET_POLL_SECONDS)
        except TimeoutError as exc:
            raise MeshBroken(
                f"The mesh did not come up within {BOOT_SECONDS:.0f} seconds. {self._last_words()}".rstrip()
            ) from exc
        if not self._stopping.is_set():
            self._serves = True
            self._write_mesh_file()
            self._task(self._follow_control_plane())
            self._screen("up", {"runtime": str(self._mesh.runtime)})

    async def _start(self, planned: Planned) -> None:
        """Start one program or gateway once those it depends on are ready."""
        for identifier in planned.after:
            await self._await_dependency(identifier, planned)
        if self._stopping.is_set():
            return
        self._screen("starting", {"id": planned.identifier})
        self._given_up[planned.identifier].clear()
        self._alive.add(planned.identifier)
        self._started[planned.identifier] = time.monotonic()
        self._early.commands.send(start=planned.identifier, spec=planned.spec.to_json())
        try:
            async with asyncio.timeout(planned.ready_seconds):
                await self._ready[planned.identifier].wait()
        except TimeoutError:
            if self._settled[planned.identifier].is_set():
                return  # it has ended for good or could not join, and that was told
            ports = ", ".join(str(number) for number, _ in planned.spec.ports)
            reason = f"it does not listen on port {ports}" if ports else "its proxy has no configuration yet"
            facts = {"id": planned.identifier, "seconds": planned.ready_seconds, "reason": reason}
            self._screen("late", facts)

    async def _await_dependency(self, identifier: str, planned: Planned) -> None:
        """Wait until *identifier* is ready; if that cannot be expected any more, say so, and do not hold up the others."""
        ready = self._ready[identifier]
        await first_of(ready.wait(), self._given_up[identifier].wait())
        if not ready.is_set():
            self._screen("not-started", {"id": planned.identifier, "reason": f"{identifier} {self._how[identifier]}"})
            self._give_up(planned.identifier, "is not started")
            await ready.wait()

    def _give_up(self, identifier: str, how: str) -> None:
        """Let nobody wait any longer for what can be ready only if somebody helps."""
        self._how[identifier] = how
        self._given_up[identifier].set()
        self._settled[identifier].set()

    async def _announce_ready(self) -> None:
        for event in self._settled.values():
            await event.wait()
        self._screen("all-ready", {"untaken": await self._published_to_all()})

    async def _published_to_all(self) -> Mapping[str, Sequence[int]]:
        """
        Wait, not for ever, until what is ready has reached every proxy: an address that is shown must answer.

        Returns:
            Gateway -> its published ports that no Gateway that is applied takes: what is shown of them must say so.
        """
        untaken: Mapping[str, Sequence[int]] = {}
        ready = ",".join(identifier for identifier, event in self._ready.items() if event.is_set())
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS + 1):
                target = f"/v1/settled?ready={quote(ready)}&wait={SETTLE_SECONDS}"
                async for answer in lines(self._mesh.api_socket, target):
                    untaken = answer["untaken"]
                    for identifier in (*answer["unready"], *answer["behind"]):
                        facts = {
                            "id": identifier,
                            "seconds": SETTLE_SECONDS,
                            "reason": "its configuration is on the way",
                        }
                        self._screen("late", facts)
        return untaken

    # --- the mesh's own processes ---

    async def _keep(self, name: str, start: Callable[[], subprocess.Popen[bytes] | int]) -> None:
        """Run a process of the mesh again each time it dies."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            child = start()
            self._pids[name] = child if isinstance(child, int) else child.pid
            if self._mesh.mesh_file.exists():
                self._task(self._renew_mesh_file())
            code = await (ended_pid(child) if isinstance(child, int) else ended(child))
            if self._stopping.is_set():
                return
            if name == "control-plane" and not self._serves and code in FINAL:
                self.fail(NotStarted(f"The control plane cannot start: {self._said(name)}", code))
                return
            self._screen("died", {"process": name, "how": describe(code), "log": str(self._mesh.log(name))})
            if time.monotonic() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _check_data_planes(self) -> None:
        for planned in self._plan.workloads:
            if planned.spec.data_plane != WEFT_PROXY:
                raise MeshBroken(
                    f"{planned.identifier} is to run beside {planned.spec.data_plane}, and this mesh runs in explicit"
                    f" mode: there only {WEFT_PROXY} can tell a program's calls from everybody else's."
                )

    async def _renew_mesh_file(self) -> None:
        """Write it again, on a full disk as soon as there is room: until then it names a process that has ended."""
        while True:
            try:
                self._write_mesh_file()
                return
            except OSError:
                await asyncio.sleep(NO_ROOM_SECONDS)

    def _write_mesh_file(self) -> None:
        paths.write_mesh_file(self._mesh, self._pids, interception=self._interception)

    def _start_edge(self) -> int:
        return self._early.edge(self._mesh, self._reserved)

    def _start_control_plane(self) -> subprocess.Popen[bytes] | int:
        lifeline, us, log = self._early.lifeline, os.getpid(), self._mesh.log("control-plane")
        arguments = ["--runtime", str(self._mesh.runtime), "--state", str(self._mesh.state)]
        arguments += ["--declaration", str(self._mesh.declaration), "--lifeline", str(lifeline)]
        if "control-plane" not in self._pids:
            return self._early.start_control_plane(arguments, log)
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "weft.cli.main", "control-plane", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lifeline,),
                start_new_session=True,
                preexec_fn=lambda: _die_with(us),
            )

    async def _watch_holder(self) -> None:
        code = await ended_pid(self._early.holder)
        if not self._stopping.is_set():
            self.fail(MeshBroken(f"The mesh holder {describe(code)}; the mesh ends."))

    # --- what is reported ---

    def _receive(self) -> None:
        message = self._early.reports.receive()
        if message is None:
            asyncio.get_running_loop().remove_reader(self._early.reports.fileno())
            return
        event, identifier = message.pop("event"), message.get("id")
        if identifier is None:
            if event == "holding":
                self._interception = message["interception"]
                self._holding.set()
                self._screen("mode", message)
            elif event == "failed":
                broken = ModeUnavailable if message.get("exit_code") == ModeUnavailable.exit_code else MeshBroken
                self.fail(broken(message["message"]))
            return
        match event:
            case "ready":
                self._ready[identifier].set()
                self._settled[identifier].set()
                self._given_up[identifier].clear()
            case "program" if message["state"] == "exited" and not message["again"]:
                self._give_up(identifier, "has ended")
            case "unready":
                self._ready[identifier].clear()
            case "failed":
                # It is tried again, for whoever is in its way may go; nobody can wait for that.
                self._give_up(identifier, "cannot join")
            case "agent-ended":
                self._ready[identifier].clear()
                self._alive.discard(identifier)
                if self._stopping.is_set():
                    if not self._alive:
                        self._all_gone.set()
                    return
                self._task(self._start_again(identifier))
        self._screen(event, message)

    async def _follow_control_plane(self) -> None:
        """Show what only the control plane knows: what joined programs notice, what proxies refuse, what was kept."""
        ours = {planned.identifier for planned in self._plan.workloads}
        replay = EVENTS_BEFORE_US
        while True:
            with contextlib.suppress(OSError):
                async for event in events(self._mesh.api_socket, replay=replay):
                    kind = event.pop("type", "")
                    # Our own agents have reported their notices themselves.
                    if kind != "notice" or event.get("workload") not in ours:
                        self._screen(f"mesh-{kind}", event)
            replay = 0
            await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def _start_again(self, identifier: str) -> None:
        """An agent that could not join, or broke, is started again: its program may be blameless."""
        steady = time.monotonic() - self._started.get(identifier, 0.0) > STEADY_SECONDS
        pause = FIRST_PAUSE_SECONDS if steady else self._pauses.get(identifier, FIRST_PAUSE_SECONDS)
        self._pauses[identifier] = min(pause * 2, LONGEST_PAUSE_SECONDS)
        await asyncio.sleep(pause)
        await self._start(next(item for item in self._plan.workloads if item.identifier == identifier))

    def fail(self, error: WeftError) -> None:
        """End the mesh in order, for that reason."""
        if self._failure is None:
            self._failure = error
        self._stopping.set()

    def _said(self, name: str) -> str:
        """Return what a process of the mesh said as it ended: what stands in its log after the last record."""
        said = list(takewhile(lambda line: not LOG_RECORD.match(line), reversed(self._logged(name))))
        return "\n".join(reversed(said)).removeprefix("error: ") or f"see {self._mesh.log(name)}."

    def _last_words(self) -> str:
        words = []
        for name in ("control-plane", "edge"):
            if lines := self._logged(name):
                words.append(f"The last line of {name}: {lines[-1]}")
        return " ".join(words)

    def _logged(self, name: str) -> list[str]:
        """Return the lines of a process's log; none if it has no log."""
        try:
            return self._mesh.log(name).read_text("utf-8", "replace").splitlines()
        except OSError:
            return []

    # --- down ---

    async def _end(self) -> None:
        """Programs first, then proxies (both by their agents), then the rest; the holder removes the directory."""
        self._stopping.set()
        self._screen("ending", {})
        if self._alive:
            self._early.commands.send(signal=signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGENTS_END_SECONDS):
                    await first_of(self._all_gone.wait(), self._hurried.wait(), self._holder_gone())
            self._early.commands.send(signal=signal.SIGKILL)
        for task in self._tasks:
            task.cancel()
        # The holder takes the lock to remove the directory, so it must be free before the lifeline is cut.
        if self._lock >= 0:
            os.close(self._lock)
        self._early.cut()
        if self._processes:
            await asyncio.wait(self._processes.values(), timeout=REST_END_SECONDS)
        for name, task in self._processes.items():
            if not task.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[name], signal.SIGKILL)
        await asyncio.gather(*self._tasks, *self._processes.values(), return_exceptions=True)

    async def _holder_gone(self) -> None:
        await asyncio.shield(self._processes["holder"])

    def _process(self, name: str, keeping: Coroutine[Any, Any, None]) -> None:
        self._processes[name] = asyncio.create_task(keeping)
        self._processes[name].add_done_callback(self._done)

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error if isinstance(error, WeftError) else MeshBroken(f"weft up broke: {error!r}"))


# --- processes ---


def fork(run: Callable[[], NoReturn]) -> int:
    """Fork a child that runs *run*; return its pid. An error in it ends the child only."""
    if pid := os.fork():
        return pid
    try:
        run()
    except BaseException:  # noqa: BLE001 - it must not run on as a second `weft up`
        traceback.print_exc()
    finally:
        os._exit(1)


async def ended_pid(pid: int) -> int:
    """
    Wait for the end of a child that was forked, without a thread.

    Returns:
        Its exit code, or minus the signal's number.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, done.set)
        await done.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of *waits* is over; the others are cancelled."""
    tasks = [asyncio.ensure_future(item) for item in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def events(api: Path, *, replay: int) -> AsyncIterator[dict[str, Any]]:
    """Yield the control plane's events until it ends the stream. Raises OSError: nobody is there."""
    return lines(api, f"/v1/events?replay={replay}")


async def lines(api: Path, target: str) -> AsyncIterator[dict[str, Any]]:
    """
    Yield each line, a JSON object, of the control plane's answer to `GET target`.

    Raises:
        OSError: Nobody is there.
    """
    reader, writer = await asyncio.open_unix_connection(str(api), limit=EVENT_BYTES)
    try:
        # HTTP/1.0, so that the answer comes without chunks and ends with the connection.
        writer.write(f"GET {target} HTTP/1.0\r\nhost: weft\r\n\r\n".encode())
        if b" 200 " not in (status := await reader.readline()):
            raise ConnectionError(f"the control plane answers {status!r} to {target}")
        while (await reader.readline()).strip():
            pass
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        writer.close()


async def _until_closed(work: Coroutine[Any, Any, None], lifeline: int) -> None:
    """Do *work* until it ends or the lifeline does."""
    ended_ = asyncio.Event()
    asyncio.get_running_loop().add_reader(lifeline, ended_.set)
    await first_of(work, ended_.wait())


def _become_daemon() -> None:
    """In a fresh child: own session, no terminal, gone when `weft up` is."""
    parent = os.getppid()
    os.setsid()
    _die_with(parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def _write_to(log: Path) -> None:
    """Send the output of this process to *log*."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _die_with(parent: int) -> None:
    syscalls.set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
