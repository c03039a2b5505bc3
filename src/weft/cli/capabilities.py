"""`--cap-add`: what a program may keep of real root's power. The only home of that option."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from weft.errors import UsageError
from weft.model.capability import NONE_GIVEN, canonical, capability_fault

F = TypeVar("F", bound=Callable[..., Any])


def cap_add_option(function: F) -> F:
    """Give a command `--cap-add`, passed as `capabilities`, a tuple of names."""
    return click.option(
        "--cap-add",
        "capabilities",
        multiple=True,
        metavar="NAME",
        callback=_checked,
        help="As root: a capability that it keeps, such as SETUID; by default there is none.",
    )(function)


def _checked(_context: click.Context, _option: click.Parameter, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if (fault := capability_fault(name)) is not None:
            raise UsageError(f"--cap-add {name}: {fault}")
    if names and os.geteuid() != 0:
        click.echo(f"weft: --cap-add: {NONE_GIVEN}", err=True)
    return tuple(dict.fromkeys(canonical(name) for name in names))
