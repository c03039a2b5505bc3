"""What a sidecar weighs with the configuration of a real mesh: the demo's, by `weft up` with either data plane."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.measure import Run, Series, Table
from bench.process import family, program_name, resident_kib, running

BOOKINFO = Path(__file__).parent.parent.parent / "examples" / "bookinfo"
READY_SECONDS = 60.0
END_SECONDS = 20.0
PAGES = 50


def run(run: Run) -> list[Table]:
    """A sample for each proxy of the demo; HAProxy, nginx and the relay cannot stand there."""
    found = {name: sidecars_mib(run.work, name) for name in peers.DATA_PLANES if name in run.peers}
    series = {name: Series("MiB resident", sizes) for name, sizes in found.items()}
    return [Table("demo", "Memory in the demo, a sample for each of its proxies", series)]


def sidecars_mib(
    work: Path, data_plane: str, pages: int = PAGES, look: Callable[[], object] = lambda: None
) -> list[float]:
    """
    Return the resident MiB of each proxy of Bookinfo after some pages, gateway included; *data_plane* is a name.

    *look* is called when the pages have come, while all runs.
    """
    # Short: paths of Unix sockets end after 107 bytes.
    home = work / f"d-{data_plane}"
    home.mkdir(mode=0o700)
    environment = {"XDG_RUNTIME_DIR": str(home), "XDG_STATE_HOME": str(home / "state"), "HOME": str(home)}
    command = [sys.executable, "-m", "weft.cli.main", "up", "--mesh", "bench", "--proxy", data_plane, str(BOOKINFO)]
    log = home / "log"
    # The kernel keeps 15 bytes of a program's name.
    program = Path(peers.executable(data_plane)).name[:15]
    with running(command, log=log, environment=environment) as process:
        page = _address(process, log) + "/productpage"
        for _ in range(pages):
            with urllib.request.urlopen(page, timeout=30) as answer:
                answer.read()
        sizes = [resident_kib(pid) / 1024 for pid in family(process.pid) if program_name(pid) == program]
        if not sizes:
            raise RuntimeError(f"no {data_plane} among the processes of weft up: {log.read_text()}")
        look()
        process.send_signal(signal.SIGINT)
        process.wait(END_SECONDS)
        return sizes


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where the gateway is, once the mesh is ready and all has been said of it."""
    deadline = time.monotonic() + READY_SECONDS
    while "\nCtrl-C ends the mesh.\n" not in (text := log.read_text("utf-8")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"weft up is not ready: {text}")
        time.sleep(0.05)
    found = re.search(r"http://127\.0\.0\.1:\d+", text)
    assert found, text
    return found[0]
