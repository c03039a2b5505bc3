"""`weft version`: of the command line, the mesh, and its proxies."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.client import connect
from weft.cli.main import ExampleCommand
from weft.cli.output import emit, mesh_option, output_option, plural
from weft.errors import MeshNotRunning

EXAMPLES = """
weft version                 of everything that runs
weft version --client        of the command line alone
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.option("--client", "client_only", is_flag=True, help="Ask no mesh.")
@output_option()
@mesh_option
def command(*, client_only: bool, output: str, mesh: str | None) -> None:
    """
    Show the versions of client, mesh and proxies.

    No mesh need run; where several do, say which one with --mesh, or they are only named.
    """
    from weft.version import weft_version

    data: dict[str, Any] = {"client": weft_version()}
    if not client_only:
        try:
            data["mesh"] = connect(mesh).get("/v1/version")
        except MeshNotRunning as error:
            if mesh is not None:
                raise
            data |= {"mesh": None, "running": list(error.running)}
    emit(data, output, lambda: _text(data))


def _text(data: dict[str, Any]) -> str:
    lines = [f"client   {data['client']}"]
    if mesh := data.get("mesh"):
        lines.append(f"mesh     {mesh['version']} ({mesh['mesh']}, revision {mesh['revision']})")
        builds: dict[str, int] = {}
        for proxy in mesh["proxies"]:
            builds[proxy["data_plane"]] = builds.get(proxy["data_plane"], 0) + 1
        lines += [f"proxies  {name} ({plural(count, 'proxy', 'proxies')})" for name, count in sorted(builds.items())]
    elif running := data.get("running"):
        lines.append(f"mesh     several run: {', '.join(running)}; say which one with --mesh NAME")
    elif "mesh" in data:
        lines.append("mesh     none runs")
    return "\n".join(lines)
