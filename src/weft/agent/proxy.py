"""
The proxy beside a workload: start it, know when it serves, start it again when it dies, drain it at the end; and replace
it by another process while it serves.

Called by the agent only. Traffic that is under way when the proxy dies is lost. Its listening sockets survive in the
agent, and it comes back with its last good configuration: whoever calls in between waits, some tens of milliseconds for
weft-proxy and some tenths of a second for Envoy. What differs between the data planes is `weft.agent.data_planes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from weft.agent import admin as questions
from weft.agent import capabilities, limits, syscalls
from weft.agent.data_planes.base import DRAIN_SECONDS
from weft.agent.output import cap
from weft.errors import WeftError

READY_POLL_SECONDS = 0.005
"""The proxy serves some 20 ms after its start, and a program waits for it."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 5.0
"""Before a proxy that has died soon after its start is started again; doubled each time, and never more than the first for
one that has served: what comes meanwhile waits for it. The first time there is none."""

ABSENT_SECONDS = 1.0
"""A proxy that is away for longer counts as gone: its endpoints are withdrawn, and callers are refused, not kept waiting."""

REPLACED_SUFFIX = ".old"
"""Of the admin socket of a process that is being replaced: its successor has the name."""

STEADY_SECONDS = 1.0
"""A proxy that ran this long is no proxy that cannot start: it starts again with the first pause."""


class NotReplaced(WeftError):
    """The process is the one that it was; the message says why."""


class ListenerKeeper(Protocol):
    """What keeps a proxy's listening sockets beyond its death, in the way in which that proxy takes them."""

    def succession(self) -> AbstractContextManager[tuple[list[str], list[int]]]:
        """Make ready for the next process, which the block starts with these arguments and inherited descriptors."""

    def prepare(self) -> None:
        """Do in the child, between fork and exec, what the way of taking them asks for."""

    def forget(self) -> None:
        """Close all that is kept: who waits in the queues is refused, and the next process opens everything anew."""

    def close(self) -> None:
        """Keep nothing any more: the proxy is about to be told to end."""


class Pauses:
    """Seconds from a proxy's death until its next start: none at first, doubled while it dies soon after its start."""

    def __init__(self) -> None:
        self._pause = 0.0

    def after(self, ran_seconds: float, *, served: bool) -> float:
        """The pause after a process that ran so long, and came to serve or did not."""
        if ran_seconds > STEADY_SECONDS:
            self._pause = 0.0
        pause = min(self._pause, FIRST_PAUSE_SECONDS) if served else self._pause
        self._pause = min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        return pause


class Proxy:
    """
    Args:
        command: Program and arguments.
        admin: Socket of the proxy's admin interface.
        log: File that takes what the proxy writes.
        drain: Tells process and admin socket to finish and exit, as `DataPlane.drain`.
        retire: Tells those of one that has been replaced, as `DataPlane.retire`.
        on_ready: Called with True when it serves, and with False when it has been away for `ABSENT_SECONDS`.
        on_notice: Called with a sentence when it dies.
        keeper: Keeps its listening sockets.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        admin: Path,
        log: Path,
        drain: Callable[[int, Path], Awaitable[None]],
        retire: Callable[[int, Path, float], Awaitable[None]],
        on_ready: Callable[[bool], None],
        on_notice: Callable[[str], None],
        keeper: ListenerKeeper,
    ) -> None:
        self._command = list(command)
        self._admin, self._log, self._drain, self._retire = admin, log, drain, retire
        self._replaced = asyncio.Event()
        self._retiring: asyncio.Task[None] | None = None
        self._replacing = asyncio.Lock()
        self._successor: subprocess.Popen[bytes] | None = None
        self._on_ready, self._on_notice = on_ready, on_notice
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = keeper
        self._ready = asyncio.Event()
        self._told_ready = False
        self._absence: asyncio.TimerHandle | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of the running proxy."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Keep a proxy running until `stop`. Ends by itself only then."""
        pauses = Pauses()
        loop = asyncio.get_running_loop()
        while not self._stopping:
            started = loop.time()
            # Where the last one died while it was being replaced, the next is there already.
            self._process, self._successor = self._successor or self._start(), None
            becoming_ready = asyncio.create_task(self._watch_ready())
            code = await self._end()
            becoming_ready.cancel()
            self._process = None
            if self._stopping:
                return
            served = self._ready.is_set()
            if served:
                self._ready.clear()
                self._absence = loop.call_later(ABSENT_SECONDS, self._tell_absence)
            elif not self._told_ready:
                self._keeper.forget()  # it is away for long already, and what the last one inherited is free now
            self._on_notice(f"the proxy {describe(code)}; starting it again. {self._last_words()}".rstrip())
            await asyncio.sleep(pauses.after(loop.time() - started, served=served))

    async def _end(self) -> int:
        """Wait for the end of the process, or of the one that has taken its place by then; return its code."""
        while True:
            assert self._process is not None
            ending = asyncio.ensure_future(ended(self._process))
            replaced = asyncio.ensure_future(self._replaced.wait())
            try:
                await asyncio.wait((ending, replaced), return_when=asyncio.FIRST_COMPLETED)
                if not self._replaced.is_set():
                    return ending.result()
                self._replaced.clear()
            finally:
                for task in (ending, replaced):
                    task.cancel()
                await asyncio.gather(ending, replaced, return_exceptions=True)

    async def replace(self, *, patience: float, drain: float) -> tuple[int, int]:
        """
        Start another process of the same command; once it serves, have the present one finish and exit.

        Args:
            patience: Seconds within which the new one must serve. If it does not, it is ended and all is as before.
            drain: Seconds that the old one has for what it has open.

        Returns:
            The pids of the old and of the new process.

        Raises:
            NotReplaced: It does not serve now, one is being replaced already, or the new one does not come to serve.
        """
        old = self._process
        if old is None or not self._ready.is_set() or self._stopping:
            raise NotReplaced("the proxy does not serve now: it is being started or stopped")
        if self._replacing.locked():
            raise NotReplaced("the proxy is being replaced already")
        if self._retiring is not None and not self._retiring.done():
            raise NotReplaced("the proxy has been replaced just now, and the one before it still finishes")
        async with self._replacing:
            left = self._admin.with_name(self._admin.name + REPLACED_SUFFIX)
            os.replace(self._admin, left)
            try:
                new = self._successor = self._start()
                async with asyncio.timeout(patience):
                    await self._serves(new)
            except (TimeoutError, NotReplaced, OSError) as problem:
                why = str(problem) or f"the new process does not serve within {patience:g} s"
                goes_on = await self._put_back(old, left)
                end = "the old one goes on" if goes_on else "the old one has died meanwhile, and is started again"
                raise NotReplaced(f"{why}; {end}. {self._last_words()}".rstrip()) from None
            except asyncio.CancelledError:
                await self._put_back(old, left)
                raise
            if self._process is not old:  # it has died meanwhile, and `run` takes the new one for the next
                left.unlink(missing_ok=True)
                return old.pid, new.pid
            self._process, self._successor = new, None
            self._replaced.set()
            self._retiring = asyncio.create_task(self._see_off(old, left, drain))
            await asyncio.sleep(0)  # what is cancelled before it has begun sees nobody off
            return old.pid, new.pid

    async def _put_back(self, old: subprocess.Popen[bytes], left: Path) -> bool:
        """End a replacement that came to nothing; whether *old*, whose admin socket is at *left*, is the proxy still."""
        if self._process is not old:
            left.unlink(missing_ok=True)
            return False
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.kill()
            await ended(successor)
        os.replace(left, self._admin)
        return True

    async def _serves(self, process: subprocess.Popen[bytes]) -> None:
        while not await questions.is_ready(self._admin):
            if self._stopping:
                raise NotReplaced("the workload ends")
            if (code := process.poll()) is not None:
                raise NotReplaced(f"the new process {describe(code)}")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _see_off(self, process: subprocess.Popen[bytes], admin: Path, patience: float) -> None:
        """Wait until a process that has been replaced is gone; one that does not end by itself is killed."""
        try:
            await self._retire(process.pid, admin, patience)
            async with asyncio.timeout(DRAIN_SECONDS * 2):
                await ended(process)
        except TimeoutError:
            pass
        finally:  # also when the mesh ends meanwhile
            if process.poll() is None:
                process.kill()
                process.wait()
            admin.unlink(missing_ok=True)

    async def ready(self) -> None:
        """Wait until the proxy serves."""
        await self._ready.wait()

    async def stop(self) -> None:
        """Drain it and wait until it is gone; one that does not end by itself is killed."""
        self._stopping = True
        self._cancel_absence()
        self._keeper.close()
        if self._retiring is not None:
            self._retiring.cancel()
            await asyncio.gather(self._retiring, return_exceptions=True)
        if self._successor is not None:
            self._successor.kill()
        async with self._replacing:  # it comes to nothing now, and the present one has its admin socket again
            pass
        if (process := self._process) is None:
            return
        try:
            async with asyncio.timeout(DRAIN_SECONDS * 2):
                await self._drain(process.pid, self._admin)
                await ended(process)
        except TimeoutError:
            process.kill()
            await ended(process)

    def _cancel_absence(self) -> None:
        if self._absence is not None:
            self._absence.cancel()
            self._absence = None

    def _tell_absence(self) -> None:
        self._told_ready = False
        # A process that is about to serve has inherited what is kept, and the next one would miss it.
        if self._process is None and self._successor is None:
            self._keeper.forget()
        self._on_ready(False)

    def _start(self) -> subprocess.Popen[bytes]:
        cap(self._log)
        self._admin.unlink(missing_ok=True)
        agent = os.getpid()

        def prepare_child() -> None:
            prepare(agent)
            self._keeper.prepare()

        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self._log.open("ab"))
            arguments, passed = stack.enter_context(self._keeper.succession())
            return subprocess.Popen(
                [*self._command, *arguments],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for the program
                restore_signals=True,
                preexec_fn=prepare_child,
            )

    async def _watch_ready(self) -> None:
        while not await questions.is_ready(self._admin):
            await asyncio.sleep(READY_POLL_SECONDS)
        self._cancel_absence()
        self._ready.set()
        if not self._told_ready:
            self._told_ready = True
            self._on_ready(True)

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return f"Its last line: {lines[-1]}" if lines else ""


async def ended(process: subprocess.Popen[bytes]) -> int:
    """
    Wait for the end of a child without a thread: by its pidfd.

    Returns:
        Its exit code, or minus the signal's number.
    """
    loop = asyncio.get_running_loop()
    while (code := process.poll()) is None:
        done = asyncio.Event()
        descriptor = os.pidfd_open(process.pid)
        try:
            loop.add_reader(descriptor, done.set)
            await done.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return code


def describe(code: int) -> str:
    """Return how a process ended, as the end of a sentence about it: `exited with code 3`, `was killed by SIGSEGV`."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


# --- in the child, between fork and exec ---

_PR_CAP_AMBIENT_RAISE = 2  # linux/prctl.h
_KEPT = (capabilities.NET_BIND_SERVICE, capabilities.NET_ADMIN, capabilities.SYS_ADMIN)


def prepare(agent: int) -> None:
    """
    Die with the agent, open many files, and keep across exec what a transparent proxy needs.

    IP_TRANSPARENT needs CAP_NET_ADMIN (ip(7)), entering a program's network namespace CAP_SYS_ADMIN (setns(2)). A
    process whose uid is not 0 loses every capability at exec unless it is inheritable and ambient (capabilities(7)).
    """
    syscalls.set_death_signal(signal.SIGKILL)
    if os.getppid() != agent:
        os._exit(1)
    limits.raise_open_files()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.geteuid() == 0:
        return
    _, permitted, inheritable = syscalls.capget()
    kept = permitted & sum(1 << number for number in _KEPT)
    syscalls.capset(permitted, permitted, inheritable | kept)
    for number in _KEPT:
        if kept >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
