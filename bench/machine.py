"""Where and of what a run was made: its machine, and the versions of what was measured and of what measured it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bench import peers
from bench.process import program

# Program, what shows its version, and how that looks.
_SHOWN = {
    "haproxy": ("-v", r"version (\d[\w.]*)"),
    "nginx": ("-v", r"nginx/([\w.]+)"),
    "wrk": ("-v", r"wrk \S*?(\d[\w.]*)"),
    "h2load": ("--version", r"nghttp2/([\w.]+)"),
    "nghttpd": ("--version", r"nghttp2/([\w.]+)"),
}


def described() -> dict[str, str | int]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those peers of *names* that have one, and of the clients and backends."""
    found = {}
    if "weft-proxy" in names:
        found["weft-proxy"] = f"{importlib.metadata.version('weft')}{_commit()}"
    if "envoy" in names:
        found["envoy"] = _version([peers.executable("envoy"), "--version"], r"/(\d+\.\d+\.\d+)/")
    for name, (option, pattern) in _SHOWN.items():
        if name in names or name not in peers.ALL:
            found[name] = _version([program(name), option], pattern)
    return found


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    """Return what this tree was made of: `+b3c1f00`, with `-dirty` if it was changed since; empty without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"+{done.stdout.strip()}" if done.returncode == 0 else ""


def _version(command: list[str], pattern: str) -> str:
    # Some say it as an error, because they were asked for nothing else.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"
