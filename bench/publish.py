"""
What a whole run leaves in the repository: its result, configurations that it gave to the peers, and the pages that tell of it.

`python -m bench` does it after a run of all scenarios and peers in which nothing failed; `python -m bench.publish` makes the pages again of the
result that is there, for who has changed their form. tests/bench/test_publish.py compares them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bench import plot, report

ROOT = Path(__file__).parent.parent
RESULTS = Path("bench/results")
RESULT = RESULTS / "latest.json"
CONFIGURATIONS = RESULTS / "configurations"
UNPUBLISHED = ("growth-", "memory-loaded-")
"""Scenarios whose configurations are thousands of entries alike, by the beginnings of the files' names; all others are kept."""

PICTURE = Path("docs/images/cost.svg")
README = Path("README.md")
EXPLANATION = Path("docs/decisions/0013-what-is-left-of-the-cost.md")

BEGIN, END = "<!-- {}: made by `make bench` of bench/results/latest.json -->", "<!-- end of {} -->"
FIGURES, GOALS = "figures", "goals"


def publish(result: str, configurations: Path, root: Path = ROOT) -> None:
    """Keep *result*, as JSON, and its *configurations* below *root*, in place of those of the run before; make the pages."""
    shutil.rmtree(root / CONFIGURATIONS, ignore_errors=True)
    (root / CONFIGURATIONS).mkdir(parents=True)
    for file in configurations.iterdir():
        if not file.name.startswith(UNPUBLISHED):
            shutil.copyfile(file, root / CONFIGURATIONS / file.name)
    (root / RESULT).write_text(result)
    for path, text in pages(json.loads(result), root).items():
        path.write_text(text)


def pages(result: dict[str, Any], root: Path = ROOT) -> dict[Path, str]:
    """Return what stands in each page that tells of *result*; around its sections as it is now."""
    tables = report.tables_of(result)
    return {
        root / README: _with_section((root / README).read_text("utf-8"), FIGURES, report.readme(result)),
        root / EXPLANATION: _with_section((root / EXPLANATION).read_text("utf-8"), GOALS, report.goals(tables)),
        root / PICTURE: plot.picture(tables),
    }


def _with_section(text: str, name: str, content: str) -> str:
    """Return *text* with *content* between the marks of *name*."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"expected {begin!r} and then {end!r}, which stand around what is made")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


if __name__ == "__main__":
    for _path, _text in pages(json.loads((ROOT / RESULT).read_text())).items():
        _path.write_text(_text)
