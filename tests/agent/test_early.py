"""What `weft up` forks before it reads anything (the rest of it is in tests/e2e)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path


def test_what_is_loaded_for_both_is_loaded_once_and_before_the_control_plane_is_forked(tmp_path: Path) -> None:
    """In a process of its own: what is forked here would be a copy of pytest."""
    code = """
    import json, os, sys
    from pathlib import Path
    from weft.agent.supervisor import Early

    loaded = []

    def prepare():
        seen = list(loaded)
        def run(arguments):
            print(json.dumps([seen, os.getpid(), *arguments]), flush=True)
            os._exit(0)
        return run

    early = Early(lambda: loaded.append(os.getpid()), prepare)
    pid = early.start_control_plane(["--now"], Path(sys.argv[1]))
    os.waitpid(pid, 0)
    early.cut()
    early.commands.close()
    os.waitpid(early.holder, 0)
    print(json.dumps([os.getpid(), pid]))
    """
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(log)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    up, control_plane = json.loads(done.stdout)
    assert json.loads(log.read_text()) == [[up], control_plane, "--now"]
