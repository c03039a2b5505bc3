"""HTTP/1.1 at full speed: wrk with a script that checks each answer's status and content."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.load import Load, WrongAnswersError
from bench.process import program

# Counts in each thread, summed in done(); a wrong answer fails the whole run.
SCRIPT = """
local expected_length = %(length)d
local letter = string.byte("%(letter)s")
wrong = 0
local threads = {}
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
  if status ~= 200 or #body ~= expected_length or string.byte(body, 1) ~= letter
     or string.byte(body, -1) ~= letter or string.byte(body, expected_length / 2) ~= letter then wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local wrong_total = 0
  for _, thread in ipairs(threads) do wrong_total = wrong_total + thread:get("wrong") end
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests": %%d, "seconds": %%.6f, "wrong": %%d, "errors": %%d, '
    .. '"p50_us": %%d, "p99_us": %%d}\\n',
    summary.requests, summary.duration / 1e6, wrong_total, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

SPREAD = """
local hosts, paths = {%(hosts)s}, {%(paths)s}
local made, turn = {}, 0
function init(args)
  for i, host in ipairs(hosts) do
    wrk.headers["Host"] = host
    made[i] = wrk.format("GET", paths[(i - 1) %% #paths + 1])
  end
end
function request() turn = turn %% #made + 1; return made[turn] end
"""
"""Each request to another of the hosts and paths."""


def apply(
    url: str,
    *,
    seconds: float,
    connections: int,
    cores: set[int],
    length: int,
    letter: str,
    work: Path,
    headers: Sequence[str] = (),
    spread: tuple[Sequence[str], Sequence[str]] = ((), ()),
    enter: Callable[[], None] | None = None,
) -> Load:
    """
    Load *url* for *seconds* and return what was seen.

    Args:
        headers: Of each request, `Name: value`.
        spread: Hosts and paths that requests take in turn.
        enter: Called in wrk's process before it starts.

    Raises:
        WrongAnswersError: One answer was not as expected.
    """
    script = work / "check.lua"
    text = SCRIPT % {"length": length, "letter": letter}
    if spread[0]:
        hosts, paths = (", ".join(f'"{each}"' for each in some) for some in spread)
        text += SPREAD % {"hosts": hosts, "paths": paths}
    script.write_text(text)
    command = ["taskset", "-c", ",".join(map(str, sorted(cores))), program("wrk"), "-t1", f"-c{connections}"]
    command += [f"-d{seconds:g}s", "--timeout", "10s", "--latency", "-s", str(script)]
    for header in headers:
        command += ["-H", header]
    output = subprocess.run([*command, url], capture_output=True, text=True, check=True, preexec_fn=enter).stdout
    line = next((line for line in output.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk said nothing usable: {output!r}")
    result = json.loads(line.removeprefix("RESULT "))
    if result["wrong"] or result["errors"] or not result["requests"]:
        raise WrongAnswersError(f"{url}: {result}")
    return Load(result["requests"], result["seconds"], result["p50_us"], result["p99_us"])
