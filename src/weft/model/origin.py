"""Where something that a person wrote stands, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """
    A place in a text.

    Attributes:
        file: Absolute, so that it means the same to whoever reads it (`shown` makes it short again); `stdin` is what
            came by standard input.
        line, column: From 1.
    """

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


STANDARD_INPUT = "stdin"
"""The file of what came by standard input."""


def shown(place: str, directory: str) -> str:
    """Return *place* (a file, or what `Origin` prints) as somebody who stands in *directory* may use it."""
    return place.removeprefix(f"{directory.rstrip('/')}/")


class Severity(StrEnum):
    """An ERROR refuses the whole apply; a WARNING is shown, and refuses only under `--strict`."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """
    One mistake: where, what, and what would be right.

    Attributes:
        origin: The place of the key or value at fault.
        path: Dotted path within the document (`spec.http[0].route[1].weight`).
        message: One sentence: what is wrong, with the value as written.
        remedy: What would be right; empty only if the message already says it.
        code: Stable identifier for programs (`unknown-field`, `wrong-type`, `dangling-host`, ...).
    """

    origin: Origin
    path: str
    message: str
    remedy: str = ""
    severity: Severity = Severity.ERROR
    code: str = "invalid"

    def __str__(self) -> str:
        text = f"{self.origin}: {self.severity}: {self.path}: {self.message}"
        return f"{text} {self.remedy}" if self.remedy else text


def decode(file: str, content: bytes) -> str | Problem:
    """Return what *file* says, or that it is not UTF-8: a mistake in a document, with its place, as any other."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as exc:
        before = content[: exc.start].decode("utf-8").split("\n")
        origin = Origin(file, len(before), len(before[-1]) + 1)
        message = f"byte 0x{content[exc.start]:02x} is not UTF-8."
        return Problem(origin, "(file)", message, "Save the file as UTF-8.", code="not-utf-8")
