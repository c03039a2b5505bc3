"""Mistakes in documents, printed for the person who made them: position, sentence, remedy, the line with a caret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.cli.output import plural
from weft.errors import InvalidConfiguration
from weft.model import Origin, Problem, Severity, shown


class Refused(InvalidConfiguration):
    """Documents that the control plane refused, with their texts (`sources`: file -> text) for the excerpts."""

    def __init__(self, problems: Sequence[Problem], sources: Mapping[str, str]) -> None:
        super().__init__(problems)
        self.sources = dict(sources)


def render(problem: Problem, sources: Mapping[str, str]) -> str:
    """
    Return *problem* as several lines.

    Args:
        sources: Texts by file name; a file that is not among them is read from disk if it can be.
    """
    where = shown(str(problem.origin), str(Path.cwd()))
    lines = [f"{where}: {problem.severity}: {problem.path}: {problem.message}".replace(": : ", ": ")]
    if (text := _line(problem.origin, sources)) is not None:
        number = str(problem.origin.line)
        # Tabs stay tabs before the caret, so that it stands under the same column whatever a tab's width is.
        before = "".join("\t" if char == "\t" else " " for char in text[: problem.origin.column - 1])
        lines.append(f"  {number} | {text}")
        lines.append(f"  {'':{len(number)}} | {before}^")
    if problem.remedy:
        lines.append(f"  {problem.remedy}")
    return "\n".join(lines)


def render_all(problems: Sequence[Problem], sources: Mapping[str, str], outcome: str) -> str:
    """Return all *problems* in order of position and a closing line that says how many there are, and the *outcome*."""
    blocks = [render(problem, sources) for problem in sorted(problems, key=lambda problem: problem.origin)]
    count = len(problems)
    if any(problem.severity is Severity.ERROR for problem in problems):
        counted = plural(count, "problem")
    else:  # nothing else refuses a warning
        counted = f"{plural(count, 'warning')}, which --strict refuses"
    blocks.append(f"error: {counted}; {outcome}.")
    return "\n".join(blocks)


def from_json(items: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Read what the HTTP API calls `problems` and `warnings`."""
    return [
        Problem(
            origin=Origin(item["file"], item["line"], item["column"]),
            path=item["path"],
            message=item["message"],
            remedy=item.get("remedy", ""),
            severity=Severity(item.get("severity", "error")),
            code=item.get("code", "invalid"),
        )
        for item in items
    ]


def _line(origin: Origin, sources: Mapping[str, str]) -> str | None:
    text = sources.get(origin.file)
    if text is None:
        try:
            text = Path(origin.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
    lines = text.splitlines()
    return lines[origin.line - 1] if 0 < origin.line <= len(lines) else None
