"""`weft exec NAME -- COMMAND`: run something where a program of the mesh runs, with its network and its view."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from weft.cli.capabilities import cap_add_option
from weft.cli.main import ExampleCommand
from weft.cli.output import mesh_option
from weft.cli.run import not_runnable, not_started
from weft.cli.workloads import resolve

EXAMPLES = """
weft exec productpage-v1-0 -- curl -s http://reviews:9080/reviews/0
weft exec ratings -- cat /etc/resolv.conf
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES, context_settings={"allow_interspersed_args": False})
@mesh_option
@cap_add_option
@click.argument("name")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGUMENTS]...")
def command(mesh: str | None, name: str, capabilities: Sequence[str], argv: Sequence[str]) -> None:
    """
    Run COMMAND beside the running program NAME, and end as it ends.

    NAME is a workload's name as `weft ps` shows it, or the name of a service that has one program only. The command
    sees the program's network and processes; its calls go through the program's proxy, under its identity.
    """
    enter(mesh, name, argv[1:] if argv[0] == "--" and len(argv) > 1 else argv, capabilities)


def enter(mesh: str | None, name: str, argv: Sequence[str], capabilities: Sequence[str] = ()) -> NoReturn:
    """
    Run *argv* beside the program *name*, and end as it ends.

    Raises:
        NotFound: There is no such program, or it does not run now.
    """
    from weft.agent import host_ports, init, paths

    found = paths.find(mesh)
    workload = resolve(name, paths.running(found), "running program")
    environment = {**os.environ, **given(found.workload(workload).environment)}
    init_pid = found.workload(workload).read_init()
    in_namespaces = not paths.is_explicit(found)
    tries = host_ports.Tries(found.edge_socket)
    try:
        code = init.enter(
            init_pid,
            argv,
            environment=environment,
            directory=str(Path.cwd()),
            capabilities=capabilities,
            in_namespaces=in_namespaces,
            entered=tries.begin if in_namespaces else lambda: None,
        )
        for hint in tries.hints():
            click.echo(f"weft: {hint}", err=True)
    except OSError as exc:
        # execve(2) has one error for a directory and for what may not be executed; shells tell them apart.
        said = not_started(argv[0], exc.filename, exc.errno or 0), 127 if isinstance(exc, FileNotFoundError) else 126
        text, code = not_runnable(argv[0], environment.get("PATH")) or said
        click.echo(f"weft: {argv[0]}: {text}", err=True)
    init.end_like(code)


def given(environment: Path) -> dict[str, str]:
    """Return the variables by which a program of explicit mode finds the mesh; none in other modes."""
    try:
        content: dict[str, str] = json.loads(environment.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    # Where to listen is for the program itself.
    return {name: value for name, value in content.items() if name != "HOST" and name.partition("_")[0] != "PORT"}
