"""`weft shell NAME`: a shell where a program of the mesh runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from weft.cli.capabilities import cap_add_option
from weft.cli.main import ExampleCommand
from weft.cli.output import mesh_option

EXAMPLES = """
weft shell productpage-v1-0
SHELL=/bin/sh weft shell ratings
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@mesh_option
@cap_add_option
@click.argument("name")
def command(mesh: str | None, name: str, capabilities: Sequence[str]) -> None:
    """Open your shell ($SHELL) beside the running program NAME."""
    from weft.cli.exec import enter

    enter(mesh, name, [os.environ.get("SHELL") or "/bin/sh"], capabilities)
