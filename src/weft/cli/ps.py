"""`weft ps`: the programs of the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from weft.agent.published import target
from weft.cli.client import connect
from weft.cli.main import ExampleCommand
from weft.cli.output import columns, emit, mesh_option, output_option
from weft.model import Published

EXAMPLES = """
weft ps
weft ps -o json | jq '.[].address'
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@mesh_option
@output_option()
def command(mesh: str | None, output: str) -> None:
    """List the programs and gateways of the mesh, and whether requests can reach them."""
    workloads = connect(mesh).get("/v1/workloads")
    head = ("name", "service", "version", "pid", "state", "restarts", "ports", "address", "ready")
    emit(workloads, output, lambda: columns(head, [row(item) for item in workloads], empty="No programs."))


def row(item: Mapping[str, Any]) -> tuple[object, ...]:
    """Return one workload as cells."""
    gateway = item["kind"] == "gateway"
    return (
        item["workload"],
        item["service"],
        item["version"],
        "" if gateway or item["state"] == "exited" else item["pid"],
        state(item),
        item["restarts"],
        ports(item),
        item["address"],
        "yes" if item["ready"] else "no",
    )


def state(item: Mapping[str, Any]) -> str:
    """Return the program's state, with how it ended if it did."""
    if item["kind"] == "gateway":
        return "running" if item["proxy_ready"] else "starting"
    if item["state"] != "exited" or item.get("code") is None:
        return str(item["state"])
    code = int(item["code"])
    return f"exited ({code})" if code >= 0 else f"killed ({-code})"


def ports(item: Mapping[str, Any]) -> str:
    """Return the ports: of a gateway where each is on the host, of a program each that does not answer with `?`."""
    if item["kind"] == "gateway":
        published = [Published(**each) for each in item["published"]]
        return ",".join(f"{target(each)}->{each.port}" for each in published)
    return ",".join(f"{each['number']}{'' if each['listening'] else '?'}" for each in item["ports"])
