"""The life of a program: whether it starts again, how it is stopped, where its output goes."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.agent.output import OutputLog
from weft.agent.program import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Capture, Life, Restart, Restarts


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        (Restart.NEVER, 0, False),
        (Restart.NEVER, 1, False),
        (Restart.NEVER, -9, False),
        (Restart.ON_FAILURE, 0, False),
        (Restart.ON_FAILURE, 1, True),
        (Restart.ON_FAILURE, -9, True),
        (Restart.ALWAYS, 0, True),
        (Restart.ALWAYS, 1, True),
    ],
)
def test_the_policy_decides_whether_a_program_starts_again(policy: Restart, code: int, again: bool) -> None:
    restarts = Restarts(policy)
    assert (restarts.after(code, 1.0) is not None) is again
    assert restarts.count == int(again)


def test_a_program_that_keeps_dying_waits_longer_each_time_up_to_a_limit() -> None:
    restarts = Restarts(Restart.ALWAYS)
    pauses = [restarts.after(1, 0.1) for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2, FIRST_PAUSE_SECONDS * 4]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_a_program_that_ran_well_starts_again_at_once() -> None:
    restarts = Restarts(Restart.ALWAYS)
    for _ in range(5):
        restarts.after(1, 0.1)
    assert restarts.after(1, 3600.0) == FIRST_PAUSE_SECONDS


class Child:
    """A real process without namespaces, as `weft.agent.init.Program` is one with."""

    def __init__(self, script: str, **options: Any) -> None:
        self.pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], dict(os.environ), setsid=True, **options)
        self._code: int | None = None

    async def wait(self) -> int:
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            await asyncio.sleep(0.005)
        return self._code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)


async def states_of(
    script: str, policy: Restart, enough: int, *, begun: Callable[[], bool] = lambda: True
) -> tuple[int, list[tuple[str, int | None, bool]], Life]:
    """Run *script* until *enough* states were told and it has *begun*, and stop it; return code, states and the life."""
    seen: list[tuple[str, int | None, bool]] = []
    life = Life(lambda: Child(script), policy, own_session=True, on_state=lambda *state: seen.append(state))  # type: ignore[arg-type, return-value]
    running = asyncio.create_task(life.run())
    while not running.done() and not (len(seen) >= enough and begun()):
        await asyncio.sleep(0.005)
    await life.stop()
    return await running, seen, life


def test_a_program_is_started_again_after_a_failure_and_each_end_is_told() -> None:
    code, seen, life = asyncio.run(states_of("exit 3", Restart.ON_FAILURE, 6))
    assert code == 3
    assert seen[:6] == [
        ("starting", None, True),
        ("running", None, False),
        ("exited", 3, True),
        ("starting", None, True),
        ("running", None, False),
        ("exited", 3, True),
    ]
    assert life.restarts.count == 2


def test_stopping_asks_the_whole_group_and_does_not_start_it_again() -> None:
    """A shell that waits for its child would not pass the signal on."""
    code, seen, _ = asyncio.run(states_of("sleep 60; exit 5", Restart.ALWAYS, 2))
    assert code == -signal.SIGTERM
    assert seen[-1] == ("exited", -signal.SIGTERM, False)


def test_an_end_that_was_asked_for_is_the_last() -> None:
    """Whoever signals the program by us has not called `stop`: it may take its time."""
    life = Life(
        lambda: Child("exit 3"),
        Restart.ALWAYS,
        own_session=True,
        on_state=lambda *_: None,
        is_final=lambda code: code == 3,
    )  # type: ignore[arg-type, return-value]
    assert asyncio.run(life.run()) == 3
    assert life.restarts.count == 0


def test_a_program_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    script = f"trap '' TERM; : > {deaf}; while :; do sleep 0.05; done"
    code, _, _ = asyncio.run(states_of(script, Restart.NEVER, 2, begun=deaf.exists))
    assert code == -signal.SIGKILL


@pytest.mark.parametrize(("error", "code"), [(FileNotFoundError(2, "no"), 127), (PermissionError(13, "no"), 126)])
def test_a_program_that_cannot_be_started_ends_as_in_a_shell(error: OSError, code: int) -> None:
    def start() -> Any:
        raise error

    life = Life(start, Restart.NEVER, own_session=True, on_state=lambda *_: None)
    assert asyncio.run(life.run()) == code
    assert life.failure is error


def test_captured_output_is_complete_when_the_program_has_ended(tmp_path: Path) -> None:
    async def run() -> list[str]:
        capture = Capture(OutputLog(tmp_path / "output.log"))
        child = Child(
            "echo out; echo err >&2; printf unfinished",
            file_actions=[(os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(capture.descriptors)],
        )
        await child.wait()
        capture.drain()
        last = capture.log.last
        capture.close()
        return last

    assert asyncio.run(run()) == ["out", "err", "unfinished"]
