"""A person at a terminal: a real pseudo-terminal with a shell that has job control."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping

CTRL_C, CTRL_Z, CTRL_BACKSLASH, CTRL_D = "\x03", "\x1a", "\x1c", "\x04"


class Terminal:
    """Types into an interactive bash, and reads what the screen shows."""

    def __init__(self, *, uid: int, environment: Mapping[str, str], directory: str) -> None:
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            try:
                os.chdir("/")
                if uid != os.getuid():
                    os.setgroups([])
                    os.setgid(uid)
                    os.setuid(uid)
                os.chdir(directory)
                settings = {**environment, "PS1": "$ ", "TERM": "dumb"}
                os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], settings)
            finally:
                os._exit(127)
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
        self.shown = ""
        self.expect(r"\$ ")

    def type(self, text: str) -> None:
        """Press the keys of *text*."""
        os.write(self._screen, text.encode())

    def enter(self, line: str) -> None:
        """Type *line* and the return key."""
        self.type(f"{line}\n")

    def expect(self, pattern: str, *, seconds: float = 60.0) -> re.Match[str]:
        """Wait until *pattern* is on the screen, after what was last waited for; return the match."""
        deadline = time.monotonic() + seconds
        while (match := re.search(pattern, self.shown)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} is not on the screen within {seconds:.0f} s:\n{self.shown}"
            if select.select([self._screen], [], [], left)[0]:
                try:
                    data = os.read(self._screen, 4096)
                except OSError:  # EIO: every process of it is gone
                    data = b""
                assert data, f"the terminal closed, and {pattern!r} was not on the screen:\n{self.shown}"
                self.shown += data.decode(errors="replace")
        self.shown = self.shown[match.end() :]
        return match

    def front(self) -> int:
        """The process group that keys such as Ctrl-C signal: the shell's own (`pid`) while it waits for a line."""
        return os.tcgetpgrp(self._screen)

    def hang_up(self) -> None:
        """Close the terminal's window: the kernel tells its session."""
        os.close(self._screen)
        self._screen = -1

    def close(self) -> None:
        """End the shell and all that runs in it."""
        if self._screen >= 0:
            os.close(self._screen)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
