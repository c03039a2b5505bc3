"""
The documents that `-f` names, `--dry-run`, and how long `--timeout` is: what several commands read from the command line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from weft.cli.main import ExampleCommand
from weft.cli.problems import Refused
from weft.errors import UsageError, WeftError
from weft.model import MESH_FILE, STANDARD_INPUT, Problem, decode, is_document, without_documents

if TYPE_CHECKING:
    from weft.api.parse import ParseResult

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """A length of time, `500ms`, `10s`, `1m30s`, or a bare number of seconds; passed as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
        if not re.fullmatch(r"\d+(\.\d+)?", value):
            self.fail(f"{value!r} is not a duration: write 500ms, 10s or 1m30s.", param, ctx)
        return float(value)


DURATION = Duration()


class DocumentsCommand(ExampleCommand):
    """A command whose `--dry-run` has a value only behind `=`, so that what stands after it is never taken for one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        args = ["--dry-run=server" if item == "--dry-run" and at < end else item for at, item in enumerate(args)]
        return super().parse_args(ctx, args)


def dry_run_option(help_text: str) -> Callable[[F], F]:
    """Give a `DocumentsCommand` kubectl's `--dry-run`, passed as `dry_run`: `none`, `server` (also bare) or `client`."""
    return click.option(
        "--dry-run",
        type=click.Choice(["none", "server", "client"]),
        default="none",
        metavar="[=server|client|none]",
        help=help_text,
    )


def file_option(*, required: bool) -> Callable[[F], F]:
    """Give a command `-f`, which may be repeated, passed as `files`, and `-R`, passed as `recursive`."""

    def decorate(function: F) -> F:
        function = click.option(
            "-R", "--recursive", is_flag=True, help="Of each directory of -f read those below it, too."
        )(function)
        return click.option(
            "-f",
            "--filename",
            "files",
            multiple=True,
            required=required,
            metavar="FILE|DIR|-",
            help="A file, a directory (its .yaml, .yml and .json files without weft.yaml), or - for standard input."
            " May be repeated.",
        )(function)

    return decorate


class Sources(NamedTuple):
    """What `-f` names: file name (as given) -> text, and the mistakes of those files that are no text."""

    texts: Mapping[str, str]
    unreadable: Sequence[Problem] = ()


def read(files: Sequence[str], *, recursive: bool = False) -> Sources:
    """
    Return what *files* hold, called as `weft.model.Origin` calls files. A directory's files come in order of name.

    Raises:
        UsageError: A name is empty or a URL, a file cannot be read, or a directory holds none; names all of them.
    """
    texts: dict[str, str] = {}
    unreadable: list[Problem] = []
    mistakes: list[str] = []

    def add(name: str, content: bytes) -> None:
        text = decode(name, content)
        if isinstance(text, Problem):
            unreadable.append(text)
        else:
            texts[name] = text

    for name in files:
        if not name:  # a path that is empty is the current directory to all that open files
            mistakes.append("-f '': an empty name, as of a variable that is not set; the current directory is -f .")
        elif "://" in name:
            mistakes.append(f"{name}: weft does not fetch from the network; download it first.")
        elif name == "-" and files.count("-") > 1:
            mistakes.append("-: standard input can be read only once.")
        elif name == "-":
            add(STANDARD_INPUT, sys.stdin.buffer.read())
        else:
            try:
                found = _expand(Path(name), recursive=recursive)
                if not found:
                    hint = "" if recursive else " -R reads the directories in it, too."
                    told = without_documents(mesh_file=(Path(name) / MESH_FILE).exists())
                    mistakes.append(f"{name}: {told}{hint}")
                for path in found:
                    add(str(path.absolute()), path.read_bytes())
            except OSError as exc:
                mistakes.append(f"{exc.filename or name}: {exc.strerror}.")
    if mistakes:
        raise UsageError("\n".join(dict.fromkeys(mistakes)))
    return Sources(texts, unreadable)


def _expand(path: Path, *, recursive: bool) -> Sequence[Path]:
    if not path.is_dir():
        return [path]
    found = path.rglob("*") if recursive else path.iterdir()
    return sorted(item for item in found if is_document(item.name) and item.is_file())


def parsed(
    sources: Sources, *, strict: bool = False, namespace: str = "default", confined: bool = False
) -> ParseResult:
    """
    Return what *sources* hold, read in this process: no mesh need run, and none is asked what else it has.

    *namespace* is that of objects that name none; *confined*, one that names another is a mistake.

    Raises:
        Refused: They have mistakes, or under *strict* what would be warned about.
    """
    from weft.api.parse import parse  # pydantic models

    result = parse(sources.texts.items(), default_namespace=namespace, confined=confined)
    if sources.unreadable or result.errors or (strict and result.problems):
        raise Refused([*sources.unreadable, *(result.errors or (result.problems if strict else ()))], sources.texts)
    return result


def no_objects(files: Sequence[str], verb: str) -> WeftError:
    """Return the error for *files* without any object in them: what should have written them has probably failed."""
    places = ", ".join("standard input" if file == "-" else file for file in files)
    return WeftError(f"no objects passed to {verb}: there is none in {places}.")
