"""`weft diff`: what an apply would change, in the objects and in the proxies; nothing is changed."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.apply import send
from weft.cli.client import connect
from weft.cli.documents import file_option, no_objects, read
from weft.cli.kinds import namespace_option
from weft.cli.main import ExampleCommand
from weft.cli.output import emit, mesh_option, output_option, to_yaml
from weft.cli.problems import from_json, render
from weft.errors import WeftError
from weft.model import ConfigKey

EXAMPLES = """
weft diff -f reviews.yaml                 what would change
weft diff -f reviews.yaml -n shop         in namespace shop, where the file names none
weft diff -f networking/ && echo same     exit code 0: nothing would; 1: something would
"""

DIFFERENT, FAILED = 1, 2
"""Exit codes: something would change, and the least of what any failure ends with (diff(1), `kubectl diff`)."""

NOUNS = {
    "Cluster": "cluster",
    "Listener": "listener",
    "RouteConfiguration": "route",
    "ClusterLoadAssignment": "endpoint",
}
"""Last part of a type URL -> what `proxy-config` calls it."""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@file_option(required=True)
@namespace_option
@output_option()
@mesh_option
def command(*, files: Sequence[str], recursive: bool, namespace: str | None, output: str, mesh: str | None) -> None:
    """
    Show what an apply would change: each object as a unified diff, and the proxies that would be told.

    Where an object is written is no difference. Exits with 0 if nothing would change, with 1 if something would, with 2
    or more if that cannot be told.
    """
    try:
        sources = read(files, recursive=recursive)
        answer = send(connect(mesh), "/v1/diff", sources, namespace=namespace)
        if not answer["changes"]:
            raise no_objects(files, "diff")
    except WeftError as error:
        error.exit_code = max(error.exit_code, FAILED)
        raise
    for problem in from_json(answer["warnings"]):
        click.echo(render(problem, sources.texts), err=True)
    different = [change for change in answer["changes"] if change["before"] != change["after"]]
    emit({**answer, "changes": different}, output, lambda: _text(different, answer["resources"]))
    if different:
        sys.exit(DIFFERENT)


def _text(changes: Sequence[Mapping[str, Any]], resources: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    lines: list[str] = []
    for change in changes:
        name = str(ConfigKey(**change["key"]))
        before, after = _yaml(change["before"]), _yaml(change["after"])
        lines += difflib.unified_diff(before, after, f"live: {name}", f"applied: {name}", lineterm="")
    for workload, found in resources.items():
        counts = Counter((item["type_url"].rpartition(".")[2], item["change"]) for item in found)
        parts = [
            f"{count} {NOUNS.get(kind, kind)}{'' if count == 1 else 's'} {verb}"
            for (kind, verb), count in sorted(counts.items())
        ]
        lines.append(f"# proxy {workload}: {', '.join(parts)}")
    return "\n".join(lines) if lines else "Nothing would change."


def _yaml(manifest: Mapping[str, Any] | None) -> list[str]:
    return to_yaml(manifest).splitlines() if manifest else []
