"""
Types `weft` commands quickly: each runs in a fork of one process that has imported the command line already.

An interpreter that starts anew takes a tenth of a second of a core, and the tests type some four thousand commands.
What is typed is the same (arguments, user, environment, directory, output, exit code). What starts processes that stay
(`weft up`, `run`, `shell`) is left to `Person.start`, which starts the installed command as a person does.

`python -m tests.e2e.typist NUMBER` is that process. It is told of a command by each message on the Unix socket that has
the descriptor NUMBER, and ends with that socket.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

TYPED = frozenset(
    [
        "apply",
        "ca",
        "delete",
        "diff",
        "exec",
        "get",
        "logs",
        "metrics",
        "proxy-config",
        "ps",
        "status",
        "version",
        "wait",
        "why",
    ]
)
"""The commands that it types: no process of weft's stays behind them."""

LARGEST_COMMAND = 1 << 20
"""Bytes of a message: a command with its environment."""


def run(
    argv: Sequence[str], *, uid: int, environment: Mapping[str, str], directory: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """
    Run `weft ARGV` as *uid* with nothing on standard input, and return what it said.

    Raises:
        subprocess.TimeoutExpired: It did not end within *timeout* seconds and was killed; with what it had said.
    """
    command = {"argv": list(argv), "uid": uid, "environment": dict(environment), "directory": directory}
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with theirs:
            descriptors = [output.fileno(), errors.fileno(), theirs.fileno()]
            socket.send_fds(_typist()[0], [json.dumps(command).encode()], descriptors)
        ours.settimeout(timeout)
        try:
            code = ours.recv(16)
        except TimeoutError:
            code = b""
            ours.shutdown(socket.SHUT_WR)
            ours.settimeout(None)
            ours.recv(16)  # it has been killed
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read())
    if not code:
        raise subprocess.TimeoutExpired(list(argv), timeout, *said)
    return subprocess.CompletedProcess(list(argv), int(code), *said)


@cache
def _typist() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that types, which ends with this one; return where it takes commands, and it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.typist", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return ours, process


def main(orders: socket.socket) -> None:
    """Start a process for each command of *orders*, tell each one's exit code, kill those that nobody waits for."""
    from weft import cli

    for module in pkgutil.iter_modules(cli.__path__, "weft.cli."):
        importlib.import_module(module.name)
    for name in ("rich.console", "rich.table", "weft.api.parse", "weft.insight", "weft.controlplane.edit"):
        importlib.import_module(name)
    events = selectors.DefaultSelector()
    events.register(orders, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj is orders:
                message, descriptors, _, _ = socket.recv_fds(orders, LARGEST_COMMAND, 3)
                if not message:
                    return
                output, errors, waiting = descriptors
                pid = os.fork()
                if pid == 0:
                    _type(json.loads(message), output, errors)
                os.close(output)
                os.close(errors)
                job = (pid, os.pidfd_open(pid), socket.socket(fileno=waiting))
                events.register(job[1], selectors.EVENT_READ, job)
                events.register(job[2], selectors.EVENT_READ, job)
                continue
            if key.fd not in events.get_map():
                continue  # it has ended, and nobody waits: both at once
            pid, ended, waiter = key.data
            if key.fileobj is waiter:
                os.kill(pid, signal.SIGKILL)
            events.unregister(ended)
            events.unregister(waiter)
            with waiter:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                waiter.send(str(code).encode())
            os.close(ended)


def _type(command: dict[str, Any], output: int, errors: int) -> NoReturn:
    """Become what `python -m weft.cli.main` is after its imports, and run the command."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.closerange(3, 1024)
        if command["uid"] != os.getuid():
            os.setgroups([])
            os.setgid(command["uid"])
            os.setuid(command["uid"])
        os.chdir(command["directory"])
        os.environ.clear()
        os.environ.update(command["environment"])
        sys.argv = ["weft", *command["argv"]]
        from weft.cli.main import main as weft

        try:
            weft()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - what the interpreter does with one that nobody caught
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
