"""
Every error that weft raises on purpose, in one tree.

Errors from outside (sqlite3, yaml, OSError) are translated at the edge where they appear, `from exc`.
A command-line error knows its exit code; the codes are documented in docs/reference/exit-codes.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.model.origin import Problem


class WeftError(Exception):
    """The root. `exit_code` is what a command that ends with this error returns to the shell."""

    exit_code = 1


class UsageError(WeftError):
    """The command line itself is wrong (click's own usage errors exit with 2 as well)."""

    exit_code = 2


class InvalidConfiguration(WeftError):
    """One or more documents were refused. Nothing of the whole set took effect."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem], outcome: str = "nothing was changed") -> None:
        self.problems = tuple(problems)
        self.outcome = outcome
        super().__init__("\n".join(str(problem) for problem in self.problems))


class NotFound(WeftError):
    """The named object, program, proxy or revision does not exist, or is not known any more. The message says what does."""

    exit_code = 4


class MeshNotRunning(WeftError):
    """No mesh of that name runs for this user; or none was named, and none runs or several do. The message lists them."""

    exit_code = 5

    def __init__(self, message: str, *, running: Sequence[str] = ()) -> None:
        self.running = tuple(running)
        super().__init__(message)


class NotSynced(WeftError):
    """
    `--wait` ended before every affected proxy had acknowledged and every agent had the names, or one refused.

    `silent` and `refused` name proxies, `late` those whose agents are silent.
    """

    exit_code = 6

    def __init__(
        self, message: str, *, silent: Sequence[str] = (), refused: Sequence[str] = (), late: Sequence[str] = ()
    ) -> None:
        self.silent = tuple(silent)
        self.refused = tuple(refused)
        self.late = tuple(late)
        super().__init__(message)


class ModeUnavailable(WeftError):
    """This machine does not allow what was asked (namespaces, say). The message names obstacle and remedy."""

    exit_code = 7


class StoreError(WeftError):
    """The store could not be read or written (disk full, permissions, damaged file)."""

    exit_code = 8
