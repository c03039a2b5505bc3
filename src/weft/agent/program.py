"""
The program's life under its agent: start, output, end, and whether it starts again.

`Restarts` decides and does no I/O; `live` carries it out. The namespaces and the process itself are
`weft.agent.init`'s; this module never makes a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from weft.agent.output import OutputLog

if TYPE_CHECKING:
    from weft.agent.init import Program

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before a dead program is started again; doubled each time, as Kubernetes does from 10 s to 5 min."""

STEADY_SECONDS = 30.0
"""A program that ran this long starts again with the first pause."""

GRACE_SECONDS = 1.0
"""Between SIGTERM and SIGKILL when the mesh ends; all of it must be gone within two seconds."""


class Restart(StrEnum):
    """When a program that has ended starts again; the names are Docker's."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Restarts:
    """Decides about one program. Feed it each end; it returns how long to wait, or that this was the last."""

    def __init__(self, policy: Restart) -> None:
        self._policy = policy
        self._pause = FIRST_PAUSE_SECONDS
        self.count = 0

    def after(self, code: int, ran_seconds: float) -> float | None:
        """
        Return the seconds to wait before the next start, or None if there is none.

        Args:
            code: Exit code, or minus the number of the signal.
            ran_seconds: How long the program had run.
        """
        if self._policy is Restart.NEVER or (self._policy is Restart.ON_FAILURE and code == 0):
            return None
        if ran_seconds >= STEADY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self.count += 1
        return pause


class Life:
    """
    Runs a program, again and again if its policy says so.

    Args:
        start: Starts it; raises OSError if it cannot be executed, which counts as an end with code 127 or 126.
        own_session: Whether the program leads a session, so that the whole group can be asked to end.
        on_state: Called with `starting`, `running`, `exited`, and after `exited` its code and whether it starts again.
        is_final: Whether the end that has come, with this code, is the last one, whatever the policy says.
    """

    def __init__(
        self,
        start: Callable[[], Program],
        policy: Restart,
        *,
        own_session: bool,
        on_state: Callable[[str, int | None, bool], None],
        is_final: Callable[[int], bool] = lambda code: False,
    ) -> None:
        self._start, self._on_state, self._own_session, self._is_final = start, on_state, own_session, is_final
        self.restarts = Restarts(policy)
        self.program: Program | None = None
        self.failure: OSError | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Return how the program ended at last: its exit code, or minus the signal's number."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            self._on_state("starting", None, True)
            code = await self._once()
            final = self._stopping.is_set() or self._is_final(code)
            pause = None if final else self.restarts.after(code, loop.time() - started)
            self._on_state("exited", code, pause is not None)
            if pause is None:
                return code
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return code
            except TimeoutError:
                pass

    async def stop(self) -> None:
        """Ask the program to end (SIGTERM), insist after GRACE_SECONDS, and do not start it again."""
        self._stopping.set()
        if (program := self.program) is None:
            return
        self._ask(program)
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                await program.wait()
        except TimeoutError:
            program.kill()
            await program.wait()

    def _ask(self, program: Program) -> None:
        if not self._own_session:
            program.send_signal(signal.SIGTERM)
            return
        # It leads a session and a group of its own: a shell that waits for its child dies without telling it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)

    async def _once(self) -> int:
        self.failure = None
        try:
            self.program = self._start()
        except OSError as exc:
            self.failure = exc
            return 127 if isinstance(exc, FileNotFoundError) else 126  # as a shell has it (POSIX XCU 2.8.2)
        self._on_state("running", None, False)
        try:
            return await self.program.wait()
        finally:
            self.program = None


_READS_A_TURN = 16
"""So that a program that floods its output cannot keep the agent from its other work."""


class Capture:
    """A pipe that takes a program's output into its log, on the running loop; its input is empty."""

    def __init__(self, log: OutputLog) -> None:
        self.log = log
        self._nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self._take)

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """What each start of the program gets as 0, 1 and 2."""
        return self._nothing, self._write_end, self._write_end

    def drain(self) -> None:
        """Take what is in the pipe now, all of it; called when the program has ended, before its last lines are shown."""
        self._take()
        self.log.end_line()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._read_end)
        self._take()
        for descriptor in (self._nothing, self._read_end, self._write_end):
            os.close(descriptor)
        self.log.close()

    def _take(self) -> None:
        for _ in range(_READS_A_TURN):
            try:
                data = os.read(self._read_end, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            self.log.feed(data)
