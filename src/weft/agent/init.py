"""
Running a program in its namespaces: spawn it under a tiny init, wait for it, signal it, enter its view, end as it ended.

`spawn` is called by an agent; `enter` by `weft exec` and `weft shell` from the host. Both leave the program in the caller's
session with the caller's terminal, descriptors 0 to 2, umask and limits, so that job control works as without weft: what the
terminal sends to the foreground group reaches the program directly, and the caller stops when the program stops.

A program that has the terminal to itself gets a process group of its own and the terminal with it, as from a shell: it could not
see the number of a group from outside its PID namespace, and shells need it. In a pipeline it stays in the caller's group,
which the shell manages.

    agent ── launcher (makes the PID namespace, ends at once) ── init (process 1: mounts, reaps, reports) ── program

Init is a fork of the agent and holds its memory, keys included. It keeps its capabilities, so the program, which has none,
may not trace it or read its memory (ptrace(2), "access mode checking").

In explicit mode there is no namespace to end with its first process. The process between agent and program is then a
guardian: a child subreaper, to which every orphan below it comes; when the program or the agent has ended it ends all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from weft.agent import limits, mounts, namespaces, sockets, syscalls, terminal
from weft.agent.capabilities import restrict
from weft.agent.processes import stat
from weft.agent.signals import FROM_KERNEL, PASSED_ON
from weft.errors import ModeUnavailable, NotFound

if TYPE_CHECKING:
    from weft.agent.mounts import View
    from weft.agent.namespaces import ProgramNamespaces

_MESSAGE_BYTES = 4096
_SETTLE_SECONDS = 0.05  # between a program's stop and ours: a stop of the whole group, and its end, reach us both ways
_FAILED_BEFORE_EXEC = 127
_END_SECONDS = 1.0  # for the processes below a guardian to die of SIGKILL; who does not is of another user
_END_POLL_SECONDS = 0.005
_FOR_THE_GROUP = frozenset({signal.SIGTSTP, signal.SIGCONT, signal.SIGHUP})


class _Command(NamedTuple):
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    new_session: bool
    own_group: bool = False
    capabilities: Collection[str] = ()
    in_namespaces: bool = True


def _ignored_at_start() -> frozenset[int]:
    """Signals that were ignored when this process was executed (nohup), without those that Python itself ignores."""
    with open("/proc/self/status") as status:
        mask = next((int(line.split()[1], 16) for line in status if line.startswith("SigIgn:")), 0)
    return frozenset(n for n in range(1, 65) if mask >> (n - 1) & 1) - {signal.SIGPIPE, signal.SIGXFSZ}


# Read once, at import: later the agent's own handlers have taken their place.
_IGNORED = _ignored_at_start()
_BLOCKED = signal.pthread_sigmask(signal.SIG_BLOCK, ())


class Program:
    """
    A running program.

    Attributes:
        pid: Of the program, in the caller's numbering.
        init_pid: Of its init, the first process of its PID namespace; ending it ends every process of the program.
        limits: One sentence for each thing that could not be done (a fresh /proc in some containers).
        hosts: A descriptor to write the program's hosts file by (`weft.agent.mounts.rewrite`), ours until the program has
            ended; -1 if there is none.
    """

    def __init__(
        self, channel: socket.socket, init_pid: int, *, follows_stops: bool, own_group: bool, in_namespaces: bool
    ) -> None:
        """Use `spawn`."""
        self._in_namespaces = in_namespaces
        self._own_group = own_group
        self._channel = channel
        self.init_pid = init_pid
        self.pid = -1
        self.hosts = -1
        self.limits: tuple[str, ...] = ()
        self._init = os.pidfd_open(init_pid)
        self._program = -1
        self._follows_stops = follows_stops
        self._reported: int | None = None
        self._ended: asyncio.Future[int] | None = None
        self._returncode: int | None = None

    async def wait(self) -> int:
        """
        Wait until the program has ended; everything it left running is ended with it before this returns.

        Returns:
            Its exit code, or minus the number of the signal that killed it. May be called again, also at the same time.
        """
        if self._returncode is not None:
            return self._returncode
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self._init, self._finish)
            loop.add_reader(self._channel, self._read_report)
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """
        Send a signal to the program (not to its children). Nothing happens if it has ended.

        What a shell sends to stop, continue or hang up a job goes to the program's whole group, if it has one of its own.
        """
        if self._program >= 0:
            with contextlib.suppress(ProcessLookupError):
                if self._own_group and number in _FOR_THE_GROUP:
                    os.killpg(self.pid, number)
                else:
                    signal.pidfd_send_signal(self._program, number)

    def pass_on(self, number: int) -> None:
        """Have the program get what the terminal sent to our group: nothing is to do if the program is in it, or has ended."""
        if self._program >= 0 and self._own_group:
            terminal.pass_on(number, to_group=self.pid)

    def kill(self) -> None:
        """End every process of the program at once, without appeal."""
        if self._init >= 0 and not self._in_namespaces:
            with contextlib.suppress(OSError):  # the guardian sees it, ends everything and itself
                self._channel.shutdown(socket.SHUT_WR)
        elif self._init >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)

    def _read_report(self) -> None:
        while True:
            try:
                data = self._channel.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            report = json.loads(data)
            if "ended" in report:
                self._reported = report["ended"]
            elif "stopped" in report and self._follows_stops:
                asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._stop_too, report["stopped"])

    def _stop_too(self, by: int) -> None:
        """Stop this process if the program still is stopped, so that whoever waits for us sees it; continue it when we are continued."""
        if self._returncode is None and _state(self.pid) == "T":
            terminal.stop_with(self.pid, by=by, own_group=self._own_group)
            self.send_signal(signal.SIGCONT)

    def _finish(self) -> None:
        """Init has ended, and the kernel has ended all processes of its namespace before that became visible."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._init)
        self._read_report()
        loop.remove_reader(self._channel)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.init_pid, 0)
        self._close()
        if self._follows_stops:
            terminal.take_back(from_group=self.pid if self._own_group else 0)
        # Without a report somebody killed init, and the kernel the program with it.
        self._returncode = -signal.SIGKILL if self._reported is None else self._reported
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self._returncode)

    def _await_start(self) -> None:
        """Read what init says until the program runs. Raises what it failed with."""
        limits: list[str] = []
        while True:
            room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4)
            data, ancillary, _, _ = self._channel.recvmsg(_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
            came = {kind: value for _, kind, value in ancillary}
            if not data:
                self._abandon()
                raise ModeUnavailable("the program's init ended before the program was started")
            report = json.loads(data)
            if "limit" in report:
                limits.append(report["limit"])
            elif "program" in report:
                # Sent by the program itself just before exec: the kernel says its pid in our numbering.
                self.pid = struct.unpack("=3i", came[socket.SCM_CREDENTIALS])[0]
                with contextlib.suppress(ProcessLookupError):  # it was quick: it has ended, and been reaped, already
                    self._program = os.pidfd_open(self.pid)
            elif "hosts" in report:
                self.hosts = struct.unpack("=i", came[socket.SCM_RIGHTS])[0]
            elif "running" in report:
                break
            else:
                self._abandon()
                if "unavailable" in report:
                    raise ModeUnavailable(report["unavailable"])
                number, filename = report["errno"], report["filename"]
                raise OSError(number, os.strerror(number), filename)
        self.limits = tuple(limits)
        self._channel.setblocking(False)

    def _abandon(self) -> None:
        self.kill()
        os.waitpid(self.init_pid, 0)
        if self._follows_stops:
            terminal.take_back()  # it may have been given to who then could not become the program
        self._close()

    def _close(self) -> None:
        """Let go of what is held of a program that has ended."""
        self._channel.close()
        for descriptor in (self._init, self._program, self.hosts):
            if descriptor >= 0:
                os.close(descriptor)
        self._init = self._program = self.hosts = -1


def spawn(
    namespaces: ProgramNamespaces | None,
    view: View | None,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    new_session: bool = False,
    capabilities: Collection[str] = (),
) -> Program:
    """
    Start *argv* in its namespaces and return once it has been executed.

    Args:
        namespaces: None in explicit mode: the program has the caller's, and its capabilities.
        view: See `weft.agent.mounts.view`; None where there are no namespaces.
        argv: As to `os.execvp`; a name without a slash is looked up in *environment*'s PATH.
        stdin, stdout, stderr: Descriptors that become 0, 1, 2; no other descriptor reaches the program.
        new_session: Detach from the terminal (a program of `weft up`); otherwise it stays in the caller's process group.
        capabilities: Names of those that it keeps as real root; all others are gone for good.

    Raises:
        OSError: The program cannot be executed (FileNotFoundError, PermissionError, ...: `filename` is set).
        ModeUnavailable: A namespace cannot be made.

    The program is killed when the agent ends (PR_SET_PDEATHSIG of its init): call from the agent's main thread.
    The agent becomes a child subreaper.
    """
    own_group = not new_session and terminal.is_ours_alone((stdin, stdout, stderr))
    # The launcher ends at once; init must become our child then, or nobody could wait for it.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    launcher = os.fork()
    if launcher == 0:
        gc.disable()  # an object of the agent that is collected here would close a descriptor by its number

        in_namespaces = namespaces is not None
        command = _Command(argv, environment, directory, new_session, own_group, capabilities, in_namespaces)
        _guard(theirs, lambda: _launch(namespaces, view, (stdin, stdout, stderr), theirs, command))
    theirs.close()
    try:
        init_pid = _launched(ours, launcher)
        program_ = Program(
            ours,
            init_pid,
            follows_stops=not new_session,
            own_group=own_group,
            in_namespaces=namespaces is not None,
        )
    except BaseException:
        ours.close()
        raise
    # Only now, with the launcher reaped, is this process init's parent, whose death init wants to hear of.
    ours.send(b"go")
    program_._await_start()
    return program_


def _launched(channel: socket.socket, launcher: int) -> int:
    """Reap the launcher and return init's pid."""
    data = channel.recv(_MESSAGE_BYTES)
    os.waitpid(launcher, 0)
    report: dict[str, Any] = json.loads(data) if data else {"unavailable": "the launcher of the program was killed"}
    if "unavailable" in report:
        raise ModeUnavailable(report["unavailable"])
    pid: int = report["init"]
    return pid


def _guard(channel: socket.socket, body: Callable[[], None]) -> NoReturn:
    """Run a forked child's *body*: whatever happens, its stack never unwinds into the agent's code."""
    try:
        body()
    except OSError as error:
        _report(
            channel,
            unavailable=f"the program's namespaces cannot be made: {error.strerror or error} {error.filename or ''}".rstrip(),
        )
    except BaseException as error:  # noqa: BLE001 - a forked child must not return
        _report(channel, unavailable=f"the program's init failed: {error!r}")
    os._exit(_FAILED_BEFORE_EXEC)


def _launch(
    where: ProgramNamespaces | None,
    view: View | None,
    standard: tuple[int, int, int],
    channel: socket.socket,
    command: _Command,
) -> None:
    if where is not None:
        syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        _report(channel, init=pid)
        os._exit(0)
    if where is None or view is None:
        _guard(channel, lambda: _serve_as_guardian(standard, channel, command))
    _guard(channel, lambda: _serve_as_init(where, view, standard, channel, command))


def _serve_as_init(
    where: ProgramNamespaces,
    view: View,
    standard: tuple[int, int, int],
    channel: socket.socket,
    command: _Command,
) -> None:
    """Process 1 of the program's PID namespace; when it ends, the kernel ends all others of it."""
    channel.recv(2)  # "go", or nothing if the agent is gone
    syscalls.set_death_signal(signal.SIGKILL)
    if select.select([channel], [], [], 0)[0]:
        os._exit(_FAILED_BEFORE_EXEC)  # the agent died before the line above could tell
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # which process 1 of a namespace ignores, SIGTSTP and SIGTERM included
    syscalls.setns(where.descriptor, syscalls.CLONE_NEWNET)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    namespaces.detach_mounts()
    if (hosts := mounts.apply(view)) >= 0:
        with contextlib.suppress(OSError):  # the agent is gone
            socket.send_fds(channel, [json.dumps({"hosts": True}).encode()], [hosts])
        os.close(hosts)
    try:
        mounts.mount_proc()
    except OSError as error:
        _report(
            channel,
            limit=f"a fresh /proc is refused here ({error.strerror}), as in containers: the program sees /proc of all processes",
        )
    channel, child = _start_program(standard, channel, command)
    _report(channel, ended=_reap_until(child, channel))
    os._exit(0)


def _start_program(
    standard: tuple[int, int, int], channel: socket.socket, command: _Command
) -> tuple[socket.socket, int]:
    """Start the program from its init; return the channel under its new number, and the program's pid."""
    channel = socket.socket(fileno=_arrange_descriptors(standard, channel.detach()))
    failure_read, failure_write = os.pipe()
    child = os.fork()
    if child == 0:
        _become(command, failure_write, announce=channel)
    os.close(failure_write)
    # Init has no use for the program's terminal or pipes, and a pipe's reader waits for every writer to close it.
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    with open(failure_read, "rb") as pipe:
        failure = pipe.read()  # its other end is closed by exec
    if failure:
        channel.send(failure)
        os._exit(_FAILED_BEFORE_EXEC)
    _report(channel, running=True)
    return channel, child


def _serve_as_guardian(standard: tuple[int, int, int], channel: socket.socket, command: _Command) -> None:
    """The process above a program that has no PID namespace: whatever ends first, nothing below it is left."""
    if not channel.recv(2):
        os._exit(_FAILED_BEFORE_EXEC)  # the agent is gone
    signal.set_wakeup_fd(-1)
    # What a terminal sends to its foreground group is for the program; the guardian outlives it.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    channel, child = _start_program(standard, channel, command)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    code: int | None = None
    while code is None:
        # First: what has ended before the line above is not told.
        code = _reap(child, channel)
        if code is None and channel.fileno() in select.select([channel.fileno(), woken], [], [])[0]:
            break  # the agent says no more: it wants the end, or is gone
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
    killed = _end_descendants(child)
    _report(channel, ended=killed if code is None else code)
    os._exit(0)


def _reap(child: int, channel: socket.socket) -> int | None:
    """Reap every child that has ended; returns *child*'s code if it is among them, and tells of its stops."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        except ChildProcessError:
            return None
        if found is None:
            return None
        if found.si_pid == child and (code := _told(found, channel)) is not None:
            return code


def _end_descendants(child: int) -> int:
    """Kill every process below this one until there is none, or none that dies; returns *child*'s code if it is among them."""
    code = -signal.SIGKILL
    deadline = time.monotonic() + _END_SECONDS
    while True:
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
                if found.si_pid == child and found.si_code == os.CLD_EXITED:
                    code = found.si_status
        left = sockets.descendants(os.getpid())
        if not left or time.monotonic() > deadline:
            return code
        for pid in left:
            with contextlib.suppress(OSError):  # gone, or of another user: then it cannot be ended by us
                os.kill(pid, signal.SIGKILL)
        select.select([], [], [], _END_POLL_SECONDS)


def _reap_until(child: int, channel: socket.socket) -> int:
    """Reap every orphan of the namespace and tell of *child*'s stops until it has ended; returns its code."""
    while True:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED)
        if found is not None and found.si_pid == child and (code := _told(found, channel)) is not None:
            return code


def _told(found: os.waitid_result, channel: socket.socket) -> int | None:
    """Return how a child ended; of a stop tell the agent."""
    if found.si_code == os.CLD_EXITED:
        return found.si_status
    if found.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        return -found.si_status
    if found.si_code == os.CLD_STOPPED:
        _report(channel, stopped=found.si_status)
    return None


def _arrange_descriptors(standard: tuple[int, int, int], kept: int) -> int:
    """Make *standard* 0, 1 and 2 and *kept* the only other open descriptor, closed by exec; returns its new number, 3."""
    # First all out of the way of 0 to 3, so that none is overwritten while it still is needed.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16) for descriptor in (*standard, kept)]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=number < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


def _become(command: _Command, failure: int, *, announce: socket.socket | None) -> NoReturn:
    """Turn the calling forked child into the program, or write why not to *failure* and exit."""
    try:
        if command.new_session:
            os.setsid()
        if command.own_group:
            os.setpgid(0, 0)
            terminal.give_to(os.getpgrp())
        os.chdir(command.directory)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
        limits.restore_open_files()
        if command.in_namespaces:
            restrict(command.capabilities)
        else:
            syscalls.set_death_signal(signal.SIGKILL)  # should somebody kill the guardian
        if announce is not None:
            _report(announce, program=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
        _execute(list(command.argv), dict(command.environment))
    except OSError as error:
        # Most errors carry no name; those of chdir and of exec do.
        filename = error.filename if error.filename is not None else command.argv[0]
        os.write(failure, json.dumps({"errno": error.errno, "filename": os.fsdecode(filename)}).encode())
    except BaseException as error:  # noqa: BLE001 - a forked child must not return
        os.write(failure, json.dumps({"unavailable": f"the program cannot be started: {error!r}"}).encode())
    os._exit(_FAILED_BEFORE_EXEC)


def _execute(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """
    Execute as a shell would: what is nowhere in PATH does not exist, even if a directory of PATH may not be searched.

    Raises:
        OSError: `filename` is `argv[0]` as it was given, or the script's interpreter if it is that which is missing.
    """
    name, path = argv[0], argv[0]
    if "/" not in name:
        candidates = [os.path.join(each, name) for each in os.get_exec_path(environment)]
        files = [each for each in candidates if os.path.isfile(each)]
        path = next((each for each in files if os.access(each, os.X_OK)), files[0] if files else "")
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            missing = _interpreter(path) if error.errno == errno.ENOENT else ""
            raise OSError(error.errno, error.strerror, missing or name) from error
    # A script without a first line that names its interpreter: execvp(3).
    os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], environment)


def _interpreter(path: str) -> str:
    """The interpreter that the script *path* names in its first line; "" if there is no such script."""
    with contextlib.suppress(OSError), open(path, "rb") as script:
        first = script.readline(256)  # as far as the kernel reads: BINPRM_BUF_SIZE
        if first.startswith(b"#!") and (words := first[2:].split()):
            return os.fsdecode(words[0])
    return ""


def _report(channel: socket.socket, **report: object) -> None:
    with contextlib.suppress(OSError):  # the agent is gone; the kernel ends us in a moment
        channel.send(json.dumps(report).encode())


def _state(pid: int) -> str:
    """The state letter of a process (proc(5)), "" if it is gone."""
    return b"".join(stat(pid)[:1]).decode()


def enter(
    init_pid: int,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: str,
    capabilities: Collection[str] = (),
    in_namespaces: bool = True,
    entered: Callable[[], None] = lambda: None,
) -> int:
    """
    Run *argv* with the same view as the program under *init_pid* (network, mounts, processes) and wait for it.

    It has the *capabilities* named, as real root, and no others.

    Called in a single-threaded process on the host; that process is inside the namespaces afterwards.
    What *argv* leaves running in the background ends with the program, if that has namespaces of its own
    (*in_namespaces*). *entered* is called there, before *argv* is started.

    Returns:
        Its exit code, or minus the signal's number.

    Raises:
        OSError: The program cannot be executed (`filename` is set).
        NotFound: There is no process *init_pid*.
        ModeUnavailable: Its namespaces may not be entered.
    """
    try:
        namespaces.join_process(init_pid, ("user", "mnt", "net", "pid"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFound(f"the program's init ({init_pid}) is gone") from error
    except OSError as error:
        raise ModeUnavailable(f"the program's namespaces cannot be entered: {error.strerror}") from error
    entered()
    failure_read, failure_write = os.pipe()
    awaited = {*PASSED_ON, signal.SIGCHLD}
    own_group = terminal.is_ours_alone((0, 1, 2))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = os.fork()
        if child == 0:
            gc.disable()
            syscalls.set_death_signal(signal.SIGKILL)
            command = _Command(argv, environment, directory, False, own_group, capabilities, in_namespaces)
            _become(command, failure_write, announce=None)
        os.close(failure_write)
        with open(failure_read, "rb") as pipe:
            failure = pipe.read()
        returncode = _wait_forwarding(child, awaited, own_group=own_group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    terminal.take_back(from_group=child if own_group else 0)
    if failure:
        report = json.loads(failure)
        if "unavailable" in report:
            raise ModeUnavailable(report["unavailable"])
        raise OSError(report["errno"], os.strerror(report["errno"]), report["filename"])
    return returncode


def _wait_forwarding(child: int, awaited: set[signal.Signals], *, own_group: bool) -> int:
    """Wait for *child*, stop when it stops, and hand on every blocked signal of *awaited* that it has not got itself."""
    while True:
        got = signal.sigwaitinfo(awaited)
        if got.si_signo != signal.SIGCHLD:
            if got.si_code != FROM_KERNEL:
                (os.killpg if own_group and got.si_signo in _FOR_THE_GROUP else os.kill)(child, got.si_signo)
            elif own_group:
                terminal.pass_on(got.si_signo, to_group=child)
            continue
        # A stop is looked at and left, and taken if it is there still: SIGCONT withdraws it. /proc, where a state could be
        # read, belongs to the program's PID namespace by now and does not know our numbers.
        while found := os.waitid(os.P_PID, child, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
            if found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                os.waitpid(child, 0)
                return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            select.select([], [], [], _SETTLE_SECONDS)
            if stopped := os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG):
                terminal.stop_with(child, by=stopped.si_status, own_group=own_group)
                (os.killpg if own_group else os.kill)(child, signal.SIGCONT)


def end_like(returncode: int) -> NoReturn:
    """End the calling process as the program ended: exit with *returncode*, or die by signal *-returncode*, without a core dump."""
    if returncode >= 0:
        raise SystemExit(returncode)
    number = -returncode
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 of a container does not die by a signal; this is what shells make of one
