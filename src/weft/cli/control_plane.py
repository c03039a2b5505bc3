"""`weft control-plane`: the control plane's process. `weft up` starts it; people do not."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from weft.cli.main import ExampleCommand
from weft.errors import UsageError

EXAMPLES = """
weft control-plane --runtime /run/user/1000/weft/demo --state ~/.local/state/weft/demo --declaration -
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES, hidden=True)
@click.option("--runtime", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--state", type=click.Path(path_type=Path), required=True)
@click.option("--declaration", type=click.File(), required=True, help="JSON; - is standard input.")
@click.option("--lifeline", type=int, help="Descriptor of a pipe; its end ends the control plane.")
def command(*, runtime: Path, state: Path, declaration: Any, lifeline: int | None) -> None:
    """Run the control plane of one mesh. `weft up` does this."""
    from weft.controlplane.main import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        declared = json.load(declaration)
    except ValueError as exc:
        raise UsageError(f"{declaration.name} is not JSON: {exc}") from exc
    sys.exit(run(runtime, state, declared, lifeline=lifeline))
