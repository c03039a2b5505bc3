"""`weft ca`: the mesh's certificate authority, and the rotation of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from weft.cli.client import connect
from weft.cli.main import ExampleCommand
from weft.cli.output import columns, duration, emit, mesh_option, output_option

EXAMPLES = """
weft ca status                    roots, the intermediate that signs, how long each lasts
weft ca rotate --intermediate     sign by a new intermediate of the same root
weft ca rotate --root             let the standby root sign, and make the next standby
"""

SHOWN_DIGITS = 16
"""Of a fingerprint; enough to tell a few roots apart."""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@click.argument("action", type=click.Choice(["status", "rotate"]), default="status")
@click.option("--root", "what", flag_value="root", help="Let a new root sign: the standby, which proxies trust by now.")
@click.option("--intermediate", "what", flag_value="intermediate", help="Let the same root sign a new intermediate.")
@output_option()
@mesh_option
def command(*, action: str, what: str | None, output: str, mesh: str | None) -> None:
    """
    Show the certificate authority: which roots are trusted, what signs, how long each lasts. Or rotate its keys.

    After a rotation agents renew their certificates within seconds, and no connection is closed. A root is rotated
    only once every proxy trusts the next one; the old one is trusted until the last certificate that it vouches for
    has expired.
    """
    if action == "rotate" and what is None:
        raise click.UsageError("Say what to rotate: --root or --intermediate.")
    if action == "status" and what is not None:
        raise click.UsageError("`weft ca status` takes neither --root nor --intermediate.")
    client = connect(mesh)
    found = client.get("/v1/ca") if action == "status" else client.post("/v1/ca/rotate", {"what": what})
    emit(found, output, lambda: table(found))


def table(authority: Mapping[str, Any]) -> str:
    """Return one line for each root and the intermediate, and below it what is in the way of a rotation."""
    now = datetime.now(UTC)
    rows = [
        [
            f"root {root['number']}",
            root["state"],
            root["fingerprint"][:SHOWN_DIGITS],
            _left(root["until"] or root["not_after"], now),
            root["key"],
        ]
        for root in authority["roots"]
    ]
    intermediate = authority["intermediate"]
    signed_by = f"of root {intermediate['root']}"
    until = _left(intermediate["not_after"], now)
    rows.append(["intermediate", signed_by, intermediate["fingerprint"][:SHOWN_DIGITS], until, "online"])
    parts = [
        columns(["certificate", "state", "fingerprint", "trusted for", "key"], rows),
        f"Workloads' certificates last {duration(authority['leaf_seconds'])} and are renewed at half of it.",
    ]
    if authority["not_trusting"]:
        names = ", ".join(authority["not_trusting"])
        parts.append(f"The standby root is not trusted yet by {names}: until it is, the root cannot be rotated.")
    return "\n".join(parts)


def _left(end: str, now: datetime) -> str:
    return duration((datetime.fromisoformat(end) - now).total_seconds())
