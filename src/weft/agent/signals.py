"""
Signals as `weft run` needs them: read in the event loop, with the knowledge of who sent them.

A key pressed at the terminal signals the whole foreground group, so a program of our group has had that signal already; one that
somebody sent with kill(1) to us is meant for the program and must be passed on. Only siginfo tells the two apart, and
Python's own handlers do not see it; signalfd(2) does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterable

PASSED_ON = tuple(
    getattr(signal, name)
    for name in (
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGTERM",
        "SIGUSR1",
        "SIGUSR2",
        "SIGALRM",
        "SIGWINCH",
        "SIGTSTP",
        "SIGCONT",
    )
)
"""What a program may be sent through us. SIGKILL and SIGSTOP cannot be caught: the kernel ends the program with us."""

FROM_KERNEL = 0x80
"""`si_code` of a signal that the terminal's driver sent: SI_KERNEL, asm-generic/siginfo.h."""

_INFO_BYTES = 128  # struct signalfd_siginfo


class Signals:
    """
    Blocks *numbers* and calls *received* on the running loop with each that arrives.

    The mask is inherited by children, which must empty it before they execute a program.

    Args:
        received: Called with the signal's number and whether the terminal sent it to the whole group.
    """

    def __init__(self, numbers: Iterable[int], received: Callable[[int, bool], None]) -> None:
        chosen = frozenset(numbers)
        self._received = received
        signal.pthread_sigmask(signal.SIG_BLOCK, chosen)
        mask = struct.pack("=Q", sum(1 << (number - 1) for number in chosen)).ljust(128, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_CLOEXEC | os.O_NONBLOCK  # SFD_CLOEXEC and SFD_NONBLOCK are the same numbers
        self._descriptor = libc.signalfd(-1, ctypes.create_string_buffer(mask, len(mask)), flags)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "signalfd")
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _INFO_BYTES * 16)
        except BlockingIOError:
            return
        for start in range(0, len(data), _INFO_BYTES):
            number, _, code = struct.unpack_from("=Iii", data, start)
            self._received(number, code == FROM_KERNEL)
