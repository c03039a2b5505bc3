"""`weft hot-restart`: another process in a proxy's place, while it serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import click

from weft.cli.client import connect
from weft.cli.documents import DURATION
from weft.cli.main import ExampleCommand
from weft.cli.output import duration, emit, mesh_option, output_option
from weft.cli.workloads import resolve, told
from weft.errors import WeftError

ANSWER_SECONDS = 15.0
"""How long the control plane's answer may take beyond what the proxy is given."""

EXAMPLES = """
weft hot-restart reviews-v2-0                         after an upgrade, say: this proxy alone
weft hot-restart --all                                one after the other, until one fails
weft hot-restart --all --drain 10m                    for connections that last
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everyone", is_flag=True, help="Every proxy of the mesh.")
@click.option(
    "--drain",
    type=DURATION,
    default="30s",
    show_default=True,
    help="How long the old process may take for what it has open; then that is cut off.",
)
@click.option("--timeout", type=DURATION, default="10s", show_default=True, help="Until when the new one must serve.")
@output_option()
@mesh_option
def command(
    *, names: Sequence[str], everyone: bool, drain: float, timeout: float, output: str, mesh: str | None
) -> None:
    """
    Replace proxies by new processes of the same command, without losing a request.

    The new process takes over the listening sockets and has its configuration before the old one stops to accept. The
    old one says `connection: close` (or GOAWAY) with its answers and ends when nothing is open any more. If the new one
    does not come to serve, the old one goes on, and proxies that would have come next are left alone.
    """
    if bool(names) == everyone:
        raise click.UsageError("Name the workloads whose proxies are to be replaced, or say --all.")
    client = connect(mesh)
    services = told(client)
    chosen = (
        list(services)
        if everyone
        else list(dict.fromkeys(resolve(name, services, "running program") for name in names))
    )
    done: list[Mapping[str, Any]] = []
    for workload in chosen:
        body = {"patience": timeout, "drain": drain}
        path = f"/v1/proxies/{quote(workload)}/hot_restart"
        outcome = client.post(path, body, timeout=timeout + ANSWER_SECONDS)
        if problem := outcome.get("problem"):
            rest = chosen[len(done) + 1 :]
            left_alone = f"\nLeft alone: {', '.join(rest)}." if rest else ""
            raise WeftError(f"The proxy of {workload} is not replaced: {problem}{left_alone}")
        done.append(outcome)
        if output == "table":
            click.echo(line(outcome))
    emit(done, output, lambda: f"The old processes have {duration(drain)} for what they have open.")


def line(outcome: Mapping[str, Any]) -> str:
    """Return what was done, for people."""
    return f"{outcome['workload']}: process {outcome['new']} serves in the place of {outcome['old']}."
