"""What stands between an agent and its program, without namespaces; with them it is `tests/namespaces/test_programs.py`."""

from __future__ import annotations

import subprocess
import sys

UNENDABLE = """
import os, subprocess, time
from weft.agent import init

def refused(pid, number):
    raise PermissionError(1, "Operation not permitted")

with subprocess.Popen("cat", stdin=subprocess.PIPE) as child:  # which ends with us, however we end
    os.kill = refused
    begun = time.monotonic()
    print(init._end_descendants(child.pid), time.monotonic() - begun < 10.0)
"""


def test_a_guardian_does_not_wait_for_whom_it_may_not_end() -> None:
    """A program that became another user's lives on; the workload ends all the same."""
    done = subprocess.run([sys.executable, "-c", UNENDABLE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("-9 True\n", "")
