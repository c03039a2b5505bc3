"""
The terminal that a program shares with the process that started it: whose it is, and what happens to both when a job stops.

Called by `weft.agent.init`, whose programs have a process group of their own where they have the terminal to themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal


def is_ours_alone(standard: tuple[int, int, int]) -> bool:
    """
    Whether the caller is the only process of the terminal's foreground group, and all of *standard* are that terminal.

    It leads the group, as a shell arranges it for a simple command; in a pipeline at least one descriptor is a pipe.
    """
    try:
        alone = os.getpgrp() == os.getpid() == os.tcgetpgrp(standard[0])
    except OSError:
        return False
    return alone and all(os.isatty(descriptor) for descriptor in standard)


def stop_with(child: int, *, own_group: bool) -> None:
    """
    Stop this process, as *child* has stopped; returns when somebody has continued us.

    Whoever waits for us (a shell) takes the terminal when we stop, and gives it to our group when it wants us in front.
    """
    if own_group:
        take_back(from_group=child)
    os.kill(os.getpid(), signal.SIGSTOP)
    if own_group:
        with contextlib.suppress(OSError):
            if os.tcgetpgrp(0) == os.getpgrp():
                give_to(child)


def give_to(group: int) -> None:
    """Make *group* the foreground process group of the terminal at descriptor 0."""
    # A process of a background group that does this is stopped by SIGTTOU unless that is blocked (tcsetpgrp(3)).
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(0, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_back(*, from_group: int = 0) -> None:
    """
    Make our process group the foreground one if *from_group* is it, or one that has no process left.

    A program with groups of its own, such as a shell, leaves it to them; and *from_group* is what we gave it to.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        front = os.tcgetpgrp(terminal)
        try:
            os.killpg(front, 0)
            vacant = front == from_group
        except ProcessLookupError:
            vacant = True
        if vacant:
            os.tcsetpgrp(terminal, os.getpgrp())
    except OSError:
        pass  # the terminal is gone
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(terminal)
