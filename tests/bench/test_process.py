"""What the bench starts ends with it, however it is ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import records

BENCH = """
import sys
from pathlib import Path
from bench.process import end_by_sigterm, running

end_by_sigterm()
# A shell with a child of its own, as nginx is.
with running(["sh", "-c", "sleep 1000 & echo $!; wait"], log=Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    process.wait()
"""


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, "all"), (signal.SIGKILL, "those it started")])
def test_what_was_started_ends_with_the_bench(tmp_path: Path, number: signal.Signals, ended: str) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", BENCH, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
        assert bench.stdout
        started = int(bench.stdout.readline())
        while not (shown := log.read_text()).endswith("\n"):
            assert bench.poll() is None
        child = int(shown)
        watched = [os.pidfd_open(pid) for pid in ((started, child) if ended == "all" else (started,))]
        bench.send_signal(number)
        bench.wait(20)
    if ended != "all":
        os.kill(child, signal.SIGKILL)
    for descriptor in watched:
        # Readable once the process has ended.
        assert select.select([descriptor], [], [], 20)[0]
        os.close(descriptor)


def test_records_that_are_sent_are_written_in_order(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    with records.taken(file, os.sched_getaffinity(0)) as port:
        for sent in (b"one\ntwo\n", b"three\n"):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
        assert file.read_bytes() == b"one\ntwo\nthree\n"
