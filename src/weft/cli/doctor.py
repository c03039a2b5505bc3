"""`weft doctor`: which modes this machine allows, and what is in the way of the others."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from weft.cli.main import ExampleCommand
from weft.cli.output import emit, output_option
from weft.errors import ModeUnavailable

EXAMPLES = """
weft doctor
weft doctor -o json
"""


@click.command(cls=ExampleCommand, examples=EXAMPLES)
@output_option()
def command(output: str) -> None:
    """
    Try everything that a mesh needs of this machine, by really doing it, and say what works.

    The last lines are the modes: with namespaces, which catch everything, and explicit mode, for machines that permit
    none; `weft up` takes the first that works. Ends with 0 if a mesh can run here, else with 7.
    """
    from weft.agent.doctor import Finding, diagnose, is_mode

    findings = diagnose()

    def row(finding: Finding) -> str:
        if finding.works:
            return f"{click.style('yes', fg='green')}  {finding.name}"
        mark = click.style("no ", fg="red" if finding.needed else "yellow")
        lines = [f"{mark}  {finding.name}: {finding.obstacle}"]
        if finding.remedy:
            lines.append(f"     {finding.remedy}")
        return "\n".join(lines)

    emit([asdict(finding) for finding in findings], output, lambda: "\n".join(row(item) for item in findings))
    if not any(finding.works for finding in findings if is_mode(finding)):
        sys.exit(ModeUnavailable.exit_code)
