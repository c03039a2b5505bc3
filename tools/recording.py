"""
Record docs/images/demo.svg: what `weft up`, `apply`, `why` and `status` really print, on a terminal, with Bookinfo.

`make build && .venv/bin/python tools/recording.py [WEFT]`. The mesh runs from a copy of examples/ in a temporary directory with
its own state, so that nothing of this machine is in the picture. Pictures differ from run to run (pids, times), so
`make gen` does not make this one.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/demo.svg"
COLUMNS, ROWS = 122, 50
SECONDS = 120.0
UP = ["up", "examples/bookinfo"]
LATER = [
    ["apply", "-f", "examples/bookinfo/try/reviews-for-jason.yaml"],
    ["why", "--from", "productpage", "--to", "http://reviews:9080/reviews/0", "-H", "end-user: jason"],
    ["status"],
]


class Terminal:
    """*argv* on a terminal of its own."""

    def __init__(self, argv: list[str], directory: Path, environment: dict[str, str]) -> None:
        self._screen, other = pty.openpty()
        self.text = ""
        os.set_blocking(self._screen, False)
        self.process = subprocess.Popen(
            argv, cwd=directory, env=environment, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)

    def read_until(self, wanted: str | None) -> str:
        """
        Return what was printed, once *wanted* is in it; None: once the command has ended.

        Raises:
            RuntimeError: It ended before, with another code than 0, or did not come to that in time.
        """
        deadline = time.monotonic() + SECONDS
        while wanted is None or wanted not in self.text:
            if not select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"{self.process.args!r}: nothing more after {SECONDS:.0f} s:\n{self.text}")
            try:
                self.text += os.read(self._screen, 65536).decode()
            except OSError:  # EIO: nobody has the other end any more
                break
        if (wanted is None and self.process.wait() != 0) or (wanted is not None and wanted not in self.text):
            raise RuntimeError(f"{self.process.args!r} failed:\n{self.text}")
        return self.text.replace("\r\n", "\n")

    def end(self) -> None:
        """Interrupt it as Ctrl-C does, and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(2)
            self.process.wait()
        os.close(self._screen)


def record(weft: str) -> list[tuple[str, str]]:
    """Return each command line with what it printed, escape sequences included."""
    with tempfile.TemporaryDirectory(prefix="weft-recording-") as temporary:
        directory = Path(temporary)
        shutil.copytree(ROOT / "examples", directory / "examples")
        (directory / "run").mkdir(mode=0o700)
        environment = {
            "PATH": f"{Path(weft).parent}:/usr/bin:/bin",
            "HOME": temporary,
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
        }
        up = Terminal([weft, *UP], directory, environment)
        try:
            shown = [(_line(UP), up.read_until("Ctrl-C ends the mesh."))]
            for arguments in LATER:
                command = Terminal([weft, *arguments], directory, environment)
                try:
                    shown.append((_line(arguments), command.read_until(None)))
                finally:
                    command.end()
        finally:
            up.end()
        if temporary in repr(shown):
            raise RuntimeError(f"{temporary} is in what was printed")
        return shown


def _line(arguments: list[str]) -> str:
    return " ".join(["weft", *(f"'{item}'" if " " in item else item for item in arguments)])


def draw(shown: list[tuple[str, str]]) -> str:
    """Return the picture. What `weft up` proposes to try is left out, since it is what follows."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for number, (line, printed) in enumerate(shown):
        text = re.split(r"\n\nTry ", printed)[0] if number == 0 else printed
        console.print(Text.assemble(("$ ", "bold green"), (line, "bold")))
        console.print(Text.from_ansi(text.strip("\n")))
        console.print()
    svg = console.export_svg(title="weft", theme=MONOKAI)
    return re.sub(r"\s*@font-face \{.*?\n\s*\}", "", svg, flags=re.DOTALL)  # fonts of other sites: none is fetched


def main() -> None:
    weft = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / ".venv/bin/weft")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw(record(str(Path(weft).absolute()))))


if __name__ == "__main__":
    main()
