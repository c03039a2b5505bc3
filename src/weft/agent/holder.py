"""
The mesh holder: it keeps the mesh's namespaces, forks the agents of `weft up`, and is the janitor.

Forked by `weft up` before anything else. It loads what agents need once, so that agents share that memory, and then
waits in one `poll`. It stays single-threaded and has no event loop: nothing in it may fail when all else does. When
`weft up` is gone, however it went, the holder ends what is left of the mesh and removes the runtime directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import select
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from weft.agent import sockets, syscalls
from weft.agent.namespaces import MeshNamespaces
from weft.agent.paths import MeshPaths, mesh_paths
from weft.agent.workload import WorkloadSpec
from weft.errors import WeftError

PROCESS_NAME = "weft-holder"
"""What the kernel says it is; `weft up` knows an earlier mesh's holder by it."""

DATAGRAM_BYTES = 32 * 1024
"""Longest message on the channels that is a datagram itself: far below what a socket may hold on any machine (`net.core.wmem_default`, 208 KiB)."""

AGENTS_END_SECONDS = 2.5
"""How long agents may take to end by themselves when `weft up` is gone; nothing may be left after five seconds."""


class Channel:
    """
    Messages as JSON between `weft up`, the holder and the agents: one datagram each, so writers do not mix.

    A message may have any length: a program's whole environment is in one, and its last lines are. One that is too long
    for a datagram lies in memory of its own (memfd_create(2)), and the datagram carries the descriptor: a writer that is
    killed leaves no half of it, and nobody waits for the rest.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two ends; what is sent into one comes out of the other."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ends[0]), cls(ends[1])

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, **message: object) -> None:
        """Send *message*; nobody at the other end is not an error, for then we are being ended anyway."""
        data = json.dumps(message).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if len(data) <= DATAGRAM_BYTES:
                self._end.sendall(data)
                return
            with open(os.memfd_create("weft-message"), "wb") as memory:
                memory.write(data)
                memory.flush()
                socket.send_fds(self._end, [_IN_MEMORY], [memory.fileno()])

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when no writer is left."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self._end, DATAGRAM_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        if not data:
            return None
        for descriptor in descriptors:
            with open(descriptor, "rb") as memory:
                memory.seek(0)  # the place in it came along
                data = memory.read()
        message: dict[str, Any] = json.loads(data)
        return message

    def close(self) -> None:
        self._end.close()


_IN_MEMORY = b"\0"
"""The datagram of a message that lies in memory: one without a byte is the end."""


def hold(commands: Channel, reports: Channel, lifeline: int) -> NoReturn:
    """
    Be the holder; called in a freshly forked process, never returns.

    Args:
        commands: From `weft up`: at first `{"mesh", "verbose", "interception", "cidr"}`, where *interception* may be
            `auto`; then `{"start": id, "spec": ...}` and `{"signal": number}`.
        reports: To `weft up`: `{"event": "holding", "interception", "reason"}`, what agents report, `{"event": "agent-ended", "id", "code"}`.
        lifeline: Read end of the pipe whose write end only `weft up` has.
    """
    code = 1
    try:
        os.setsid()
        set_process_name(PROCESS_NAME.encode())
        trial = Trial()  # it runs beside the next line, and all of it while `weft up` still reads its file
        _load_what_agents_need()
        if (go := commands.receive()) is not None:
            mesh = mesh_paths(go["mesh"])
            mode, reason = go["interception"], ""
            if mode == AUTO:
                reason = trial.obstacle()
                mode = "explicit" if reason else "tproxy"
            if mode == "tproxy":
                MeshNamespaces.create(mesh, IPv4Network(go["cidr"]))
            # What an agent that is killed leaves behind comes here, and is ended.
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            reports.send(event="holding", interception=mode, reason=reason)
            Holder(mesh, commands, reports, lifeline, explicit=mode == "explicit", verbose=go["verbose"]).run()
        code = 0
    except WeftError as error:
        reports.send(event="failed", message=str(error), exit_code=error.exit_code)
    except BaseException:  # noqa: BLE001 - the last thing this process does is to say why
        reports.send(event="failed", message="the mesh holder broke:\n" + traceback.format_exc(), exit_code=1)
    finally:
        os._exit(code)


AUTO = "auto"
"""The mode that is found out: namespaces where they are allowed, else explicit."""


class Trial:
    """What `weft doctor` finds about namespaces, found in a child so that the holder need not carry the doctor."""

    def __init__(self) -> None:
        self._result, result = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                from weft.agent.doctor import namespaces_obstacle

                os.write(result, namespaces_obstacle().encode())
            finally:
                os._exit(0)
        os.close(result)

    def obstacle(self) -> str:
        """Return why namespaces cannot be used, with the remedy; empty if they can. Waits for the trial's end."""
        with open(self._result, "rb") as pipe:
            words = pipe.read().decode()
        os.waitpid(self._child, 0)
        return words


class Holder:
    """The holder once its namespaces stand, or without any in explicit mode."""

    def __init__(
        self, mesh: MeshPaths, commands: Channel, reports: Channel, lifeline: int, *, explicit: bool, verbose: bool
    ) -> None:
        self._mesh, self._commands, self._reports, self._lifeline = mesh, commands, reports, lifeline
        self._explicit, self._verbose = explicit, verbose
        self._agents: dict[int, str] = {}

    def run(self) -> None:
        """Serve until `weft up` is gone, then clean up."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends when `weft up` does, and not before
        poll = select.poll()
        for descriptor in (self._commands.fileno(), self._lifeline, woken):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._lifeline:
                    self._clean_up()
                    return
                if descriptor == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                    self._reap()
                elif (command := self._commands.receive()) is None:
                    poll.unregister(descriptor)
                else:
                    self._obey(command)

    def _obey(self, command: Mapping[str, Any]) -> None:
        if "start" in command:
            pid = self._fork_agent(command["start"], WorkloadSpec.from_json(command["spec"]))
            self._agents[pid] = command["start"]
        elif "signal" in command:
            self._signal(command["signal"])

    def _fork_agent(self, identifier: str, spec: WorkloadSpec) -> int:
        if pid := os.fork():
            return pid
        # In the child. Nothing here may return into the holder's own line.
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            self._commands.close()
            surroundings = Around(self._reports, self._lifeline, explicit=self._explicit, verbose=self._verbose)
            code = asyncio.run(_agent(self._mesh, spec, identifier, surroundings))
        except WeftError as error:
            self._reports.send(event="failed", id=identifier, message=str(error))
        except BaseException:  # noqa: BLE001 - as above
            self._reports.send(event="failed", id=identifier, message="its agent broke:\n" + traceback.format_exc())
        finally:
            os._exit(0 if code == 0 else 1)

    def _reap(self) -> None:
        while self._agents:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (identifier := self._agents.pop(pid, None)) is not None:
                self._reports.send(event="agent-ended", id=identifier, code=os.waitstatus_to_exitcode(status))
            self._end_orphans()

    def _end_orphans(self) -> None:
        """
        Kill what a dead agent or guardian has left to us, and all below it.

        A guardian that has just lost its agent ends its program by itself, with its children; killing it too is sooner.
        An Envoy is asked to end (SIGTERM) by the kernel, and could be waiting for an answer of the agent that is gone.
        """
        for pid in sockets.children(os.getpid()):
            if pid not in self._agents:
                for each in (pid, *sockets.descendants(pid)):
                    with contextlib.suppress(OSError):
                        os.kill(each, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for pid in self._agents:
            os.kill(pid, number)  # our own children, not reaped: the pid cannot be somebody else's

    def _clean_up(self) -> None:
        """End what is left. Agents see the end of `weft up` as we do; those that hang are killed."""
        deadline = time.monotonic() + AGENTS_END_SECONDS
        while self._agents and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)
        self._signal(signal.SIGKILL)
        while self._agents:
            self._reap()
            time.sleep(0.005)
        self._end_orphans()
        remove(self._mesh)


def remove(mesh: MeshPaths) -> None:
    """
    Remove the runtime directory, and the directory of all meshes if this was the last.

    A `weft up` that starts meanwhile holds the lock, and is waiting for the holder to be gone: it keeps its lock file.
    """
    with contextlib.suppress(OSError):
        syscalls.umount(str(mesh.namespaces))
    try:
        lock = os.open(mesh.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        lock = -1
    try:
        if lock >= 0:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        for entry in mesh.runtime.iterdir():
            if entry != mesh.lock:
                remove_entry(entry)
        return
    shutil.rmtree(mesh.runtime, ignore_errors=True)
    with contextlib.suppress(OSError):
        mesh.runtime.parent.rmdir()


def remove_entry(entry: Path) -> None:
    """Remove a file or a directory with all it holds."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


class Around(NamedTuple):
    """What every agent of this mesh has from its holder."""

    reports: Channel
    lifeline: int
    explicit: bool
    verbose: bool


async def _agent(mesh: MeshPaths, spec: WorkloadSpec, identifier: str, around: Around) -> int:
    """Be the agent of one workload of `weft up`."""
    from weft.agent.agent import Surroundings, serve

    os.setsid()
    syscalls.set_death_signal(signal.SIGKILL)
    set_process_name(b"weft-agent")
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    def mesh_ended() -> None:
        loop.remove_reader(around.lifeline)
        ending.set()

    loop.add_reader(around.lifeline, mesh_ended)

    def report(event: str, **facts: object) -> None:
        around.reports.send(event=event, id=identifier, **facts)

    return await serve(mesh, spec, Surroundings(report, ending, tee=around.verbose, explicit=around.explicit))


def _load_what_agents_need() -> None:
    """Import it before the first fork, and keep the collector from writing into the shared pages."""
    import weft.agent.agent  # noqa: F401

    gc.collect()
    gc.freeze()


def set_process_name(text: bytes) -> None:
    """Say in `ps` and `top` which process this is; the kernel copies at most 15 bytes."""
    import ctypes

    buffer = ctypes.create_string_buffer(text)
    syscalls.prctl(syscalls.PR_SET_NAME, ctypes.addressof(buffer))
