"""
How many files a process may have open: proxies and the relay hold two for each connection, a program keeps the caller's limit.

The soft limit of a shell, often 1024, protects programs that use select(2); nothing of ours does.
"""

from __future__ import annotations

import resource

_CALLERS = resource.getrlimit(resource.RLIMIT_NOFILE)
"""As it was when this process, or the one that it was forked from, began."""


def raise_open_files() -> None:
    """Let this process, and those that it starts, open as many files as the system allows them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def restore_open_files() -> None:
    """Take back what `raise_open_files` did: for a child that becomes a program."""
    resource.setrlimit(resource.RLIMIT_NOFILE, _CALLERS)
