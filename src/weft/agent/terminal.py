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


def stop_with(child: int, *, by: int, own_group: bool) -> None:
    """
    Stop this process by the signal *by*, as it has stopped *child*; returns when *child* shall go on.

    Whoever waits for us (a shell) takes the terminal when we stop, and gives it to our group when it wants us in front.
    `fg` of a job that runs in the background does that, too, and we are not told: it shows when a *child* with a group
    of its own asks for the terminal (*by* is SIGTTIN or SIGTTOU), and may have it. Then nothing stops.

    If nobody could continue us (our group is orphaned: an `xterm -e`, a container's first process), the kernel lets no
    key of the terminal stop us, and *child* goes on.
    """
    if own_group:
        if by in (signal.SIGTTIN, signal.SIGTTOU) and _give_if_ours(child):
            return
        take_back(from_group=child)
    # Where it is blocked it waits until it is not, beside one that the terminal may have sent; SIGCONT removes both.
    signal.raise_signal(by)
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {by})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if own_group:
        _give_if_ours(child)


def pass_on(number: int, *, to_group: int) -> None:
    """
    Send *to_group*, the program's own, the signal that the terminal has sent to ours.

    That ours had the terminal comes of an `fg` (see `stop_with`); it is the program that shall have it.
    """
    _give_if_ours(to_group)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(to_group, number)


def _give_if_ours(group: int) -> bool:
    """Give the terminal to *group* if our group has it; returns whether it was given."""
    try:
        if os.tcgetpgrp(0) != os.getpgrp():
            return False
        give_to(group)
    except OSError:  # the terminal or the group is gone
        return False
    return True


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
