"""Processes under measurement: started on given cores, waited for, and read from /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from weft.agent import syscalls


def end_by_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: by an exception, on whose way out all that was started is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def free_port() -> int:
    """Return a TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(
    port: int, *, process: subprocess.Popen[bytes], timeout: float = 120.0, log: Path | None = None
) -> None:
    """Return once something accepts on *port*; raise, with *log*, if *process* ends or *timeout* (seconds) passes."""

    def said() -> str:
        return f": {log.read_text(errors='replace')[-2000:]}" if log else ""

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it listened on {port}{said()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return
        time.sleep(0.0005)
    raise TimeoutError(f"{process.args!r} did not listen on {port} within {timeout} s{said()}")


def program(name: str) -> str:
    """Return the path of an installed program; the error says what to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise RuntimeError(f"{name} is missing: run `make setup` (requirements/debian.txt lists it)")
    return found


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    cores: set[int] | None = None,
    log: Path,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run *command*, pinned to *cores* if given, with its output in *log*; end it and its children at the end.

    It ends with this process, too, if that is killed (its own children do not: nginx's worker). *prepare* is called in the
    new process before it executes the command.
    """

    def begin() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        if prepare is not None:
            prepare()
        # Last: what changes credentials or namespaces clears it.
        syscalls.set_death_signal(signal.SIGKILL)

    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=begin,  # noqa: PLW1509 - one thread here
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def family(pid: int) -> list[int]:
    """Return *pid* and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Return user + system time of *pid* and its descendants so far, from the scheduler's nanosecond account."""
    total = 0.0
    for member in family(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def resident_kib(pid: int) -> int:
    """Return VmRSS of *pid* in KiB."""
    return int(_status(pid, "VmRSS").split()[0])


def program_name(pid: int) -> str:
    """Return the name of what *pid* executes (its first 15 bytes)."""
    return _status(pid, "Name")


def _status(pid: int, key: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise RuntimeError(f"process {pid} has no {key}")
