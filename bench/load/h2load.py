"""
HTTP/2 at full speed, and either version at a fixed rate: h2load.

It counts statuses and bytes of bodies; trailers it does not show, so `grpc-status` is looked at by nghttp, on a
connection of its own, before and after each run.
"""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.load import Load, WrongAnswersError
from bench.process import program

LONGEST_SECONDS = 120
"""h2load waits forever for an answer that does not come."""


def apply(
    url: str,
    *,
    cores: set[int],
    length: int,
    requests: int,
    connections: int = 1,
    streams: int = 1,
    headers: Sequence[str] = (),
    http1: bool = False,
    data: Path | None = None,
    per_second: int = 0,
    log: Path | None = None,
) -> Load:
    """
    Load *url* with *requests*, as fast as it goes or at *per_second* over all connections.

    Args:
        length: Bytes that each answer's body must have.
        data: A body for each request, which makes it a POST.
        log: Where to keep the time of each request; percentiles are told from it.

    Raises:
        WrongAnswersError: One answer was not as expected.
    """
    command = [
        "taskset",
        "-c",
        ",".join(map(str, sorted(cores))),
        program("h2load"),
        f"-c{connections}",
        f"-m{streams}",
    ]
    command += [f"-n{requests}"]
    command += ["--h1"] if http1 else []
    command += [f"--rps={per_second / connections:g}"] if per_second else []
    command += ["-d", str(data)] if data else []
    if log:
        log.unlink(missing_ok=True)
        command += [f"--log-file={log}"]
    for header in headers:
        command += ["-H", header]
    output = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=LONGEST_SECONDS).stdout
    counts = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", output)
    good = re.search(r"status codes: (\d+) 2xx", output)
    body = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    took = re.search(r"finished in ([\d.]+)(s|ms|us)", output)
    if not (counts and good and body and took):
        raise RuntimeError(f"h2load said nothing usable: {output!r}")
    done, failed = int(counts[3]), int(counts[4])
    if failed or done != requests or int(good[1]) != done or int(body[1]) != done * length:
        raise WrongAnswersError(f"{url}: {output}")
    wall = float(took[1]) * {"s": 1, "ms": 1e-3, "us": 1e-6}[took[2]]
    if log is None:
        return Load(done, wall)
    times = _times(log)
    return Load(done, wall, times[len(times) // 2], statistics.quantiles(times, n=100)[98])


def _times(log: Path) -> list[int]:
    """Return the microseconds of each request of the log, in order; all must have had status 200."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    if wrong := [line for line in lines if line[1] != "200"]:
        raise WrongAnswersError(f"{len(wrong)} answers of {len(lines)} with another status than 200: {wrong[0]}")
    return sorted(int(line[2]) for line in lines)


def check_grpc(url: str, *, data: Path, length: int, headers: Sequence[str] = ()) -> None:
    """
    Call *url* once and look at all of the answer.

    Raises:
        WrongAnswersError: It was not 200 with a body of *length* bytes and then `grpc-status: 0`.
    """
    command = [program("nghttp"), "-nv", "-d", str(data), "-H:method: POST"]
    for header in headers:
        command.append(f"-H{header}")
    output = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=10).stdout
    received = sum(int(size) for size in re.findall(r"recv DATA frame <length=(\d+)", output))
    answer, _, trailers = output.partition("recv DATA frame")
    if ":status: 200" not in answer or received != length or "grpc-status: 0" not in trailers:
        raise WrongAnswersError(f"{url}: expected 200, {length} bytes, then grpc-status: 0; came: {output}")
