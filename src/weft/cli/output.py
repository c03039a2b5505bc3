"""
What a command prints: a table for people, JSON or YAML for programs. The only home of `-o`.

A command builds plain data first and hands it to `emit` with a function that makes the table, so that all formats
always say the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import UsageError
from weft.model import shown

F = TypeVar("F", bound=Callable[..., Any])

TABLE, NAME = "table", "name"


def mesh_option(function: F) -> F:
    """Give a command `-m/--mesh`, passed as `mesh`; what stood before the command's name counts if it is absent."""
    return _mesh_option("Which mesh; needed only if several run.")(function)


def new_mesh_option(function: F) -> F:
    """As `mesh_option`, for the command that starts the mesh: it says what it is called."""
    return _mesh_option("What the mesh is called, in the place of weft.yaml's `mesh`; WEFT_MESH says it, too.")(
        function
    )


def _mesh_option(help_text: str) -> Callable[[F], F]:
    def inherit(ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
        return value if value is not None else (ctx.find_root().obj or {}).get("mesh")

    return click.option("-m", "--mesh", metavar="NAME", callback=inherit, help=help_text)


def proxy_option(help_text: str) -> Callable[[F], F]:
    """Give a command `--proxy`, passed as `proxy`: the name of a data plane, or None."""
    return click.option("--proxy", type=click.Choice([WEFT_PROXY, ENVOY]), help=help_text)


def output_option(*formats: str, default: str = TABLE) -> Callable[[F], F]:
    """Give a command `-o`, passed as `output`: table, json, yaml, and the *formats* that only it knows."""
    choices = [*dict.fromkeys((default, TABLE, "json", "yaml", *formats))]
    return click.option(
        "-o", "--output", type=click.Choice(choices), default=default, show_default=True, help="How to print."
    )


def place(origin: str) -> str:
    """Return where something is written (`FILE:LINE:COLUMN`) as whoever reads it here may open it."""
    return shown(origin, str(Path.cwd()))


def emit(data: Any, output: str, table: Callable[[], str]) -> None:
    """Print *data* as *output* says: `json`, `yaml`, or the text that *table* returns; of an empty one no line."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        click.echo(to_yaml(data), nl=False)
    elif text := table():
        click.echo(text)


def as_list(manifests: Sequence[Mapping[str, Any]], *, single: bool = True) -> Mapping[str, Any]:
    """Return *manifests* as one value, as kubectl prints them: a List, or the only one itself, if *single* permits that."""
    if single and len(manifests) == 1:
        return manifests[0]
    return {"apiVersion": "v1", "kind": "List", "items": manifests}


def to_yaml(data: Any) -> str:
    """Return *data* as block YAML, keys in their own order."""
    import yaml  # slow to import, and most commands never need it

    return yaml.safe_dump(data, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110)


def columns(head: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "") -> str:
    """
    Return *rows* under *head* in aligned columns, as kubectl prints them.

    Args:
        head: Column names, printed in capitals.
        rows: Cells; None and the empty string print as `-`.
        empty: What to say when there are no rows.
    """
    if not rows and empty:
        return empty
    cells = [[name.upper() for name in head]]
    cells += [["-" if cell is None or cell == "" else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(head))]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Return a length of time for people: `12 ms`, `4.2 s`, `5 m 10 s`, `23 h 59 m`, `6 d 4 h`."""
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // lower_size} {lower}"
    return f"{whole} s"


def plural(count: int, noun: str, many: str = "") -> str:
    """Return `1 proxy`, `4 proxies`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def check_name(option: str, name: str, what: str) -> None:
    """
    Let pass what can be a name: a label of RFC 1123.

    Raises:
        UsageError: It cannot; says so of *option* and of *what* it names (`a namespace`).
    """
    from weft.api.names import label_fault

    if (fault := label_fault(name, what)) is not None:
        raise UsageError(f"{option} {name!r}: {fault}")
