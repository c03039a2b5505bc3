"""The one place of `weft.api` that opens files: from what people name to (file, text) pairs."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from weft import model
from weft.api.meshfile import Mesh, MeshResult, parse_mesh
from weft.api.parse import parse
from weft.api.yaml import Document
from weft.errors import InvalidConfiguration, UsageError
from weft.model import MESH_FILE, Origin, Problem, Severity, decode, is_document, without_documents

STANDARD_INPUT = "-"
"""The name that stands for it; its document is called `weft.model.STANDARD_INPUT`."""

ABSENT = "unreadable-file"
"""Code of the problem of a file or directory that is not there, or that may not be read."""


def read_documents(
    names: Iterable[str], *, directory: Path | None = None, standard_input: TextIO | None = None
) -> tuple[list[tuple[str, str]], list[Problem]]:
    """
    Return file and text of all that *names* name, each file once, and what cannot be read.

    A name is a file, a directory (those of its own files that are documents, in order of name), a pattern (`*`, `?`,
    `[...]`, `**` for any depth; the weft.yaml that it meets is left out), or `-` for standard input. Relative names
    start from *directory*, else from where the process stands; files are called as they were named.
    """
    documents: dict[str, str] = {}
    problems: list[Problem] = []
    for name in names:
        if name == STANDARD_INPUT:
            documents[model.STANDARD_INPUT] = (standard_input or sys.stdin).read()
            continue
        try:
            files = _expand(name, directory, problems)
        except OSError as exc:
            problems.append(_problem(name, f"cannot be read: {exc.strerror}."))
            continue
        for file in files:
            if file in documents:
                continue
            try:
                text = decode(file, _under(directory, file).read_bytes())
            except OSError as exc:
                problems.append(_problem(file, f"cannot be read: {exc.strerror}."))
                continue
            if isinstance(text, Problem):
                problems.append(text)
            else:
                documents[file] = text
    return list(documents.items()), problems


NOTHING_STARTED = "nothing was started"
"""What mistakes in a weft.yaml come to."""


@dataclass(frozen=True, slots=True)
class LoadedMesh:
    """
    A weft.yaml and what it applies.

    Attributes:
        mesh: What the file describes.
        directory: Where it is.
        documents: File, absolute, and text of all that `apply` names.
        warnings: What is odd but no mistake, in all of them.
        text: The file's own, for the places of what is found wrong later.
    """

    mesh: Mesh
    directory: Path
    documents: Sequence[tuple[str, str]]
    warnings: Sequence[Problem]
    text: Document = field(repr=False)


def load_mesh(path: Path, *, interception: str | None = None) -> LoadedMesh:
    """
    Return the mesh that the file at *path*, or in the directory at *path*, describes.

    Args:
        interception: The mode, if not what the file says.

    Raises:
        InvalidConfiguration: Something is wrong with it, with a document that it applies, or a file or directory that
            it names does not exist: everything that is, at once.
        UsageError: There is no such file.
    """
    try:
        file = path / MESH_FILE if path.is_dir() else path
        text = decode(str(file), file.read_bytes())
    except OSError as exc:
        raise UsageError(f"{exc.filename}: {exc.strerror}.") from exc
    if isinstance(text, Problem):
        raise InvalidConfiguration([text], NOTHING_STARTED)
    directory = file.resolve().parent
    result = parse_mesh(str(file), text, directory_name=directory.name, interception=interception)
    documents, unreadable = _applied(result, file.absolute().parent)
    namespace = result.mesh.namespace if result.mesh is not None else "default"
    parsed = parse(documents, default_namespace=namespace)
    problems = sorted(
        (*result.problems, *_directories(result, directory), *unreadable, *parsed.problems),
        key=lambda problem: (problem.origin.file != str(file), problem.origin),
    )
    if errors := [problem for problem in problems if problem.severity is Severity.ERROR]:
        raise InvalidConfiguration(errors, NOTHING_STARTED)
    assert result.mesh is not None  # else it has an error
    assert result.document is not None
    return LoadedMesh(result.mesh, directory, documents, problems, result.document)


def _applied(result: MeshResult, directory: Path) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Return what the text's `apply` names, also that of a text with mistakes, and what of it cannot be read."""
    document = result.document
    names = document.value.get("apply") if document is not None and isinstance(document.value, Mapping) else None
    documents: dict[str, str] = {}
    problems: list[Problem] = []
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if not isinstance(name, str):
            continue
        if not name:
            assert document is not None
            place = document.locate_value(("apply", index))
            remedy = "Write `.` for the directory of weft.yaml."
            problems.append(Problem(place, f"apply[{index}]", "an empty name is no file.", remedy, code=ABSENT))
            continue
        found, unreadable = read_documents([str(directory / name)])
        documents.update(found)
        for problem in unreadable:
            if problem.code == ABSENT:
                assert document is not None
                origin = document.locate_value(("apply", index))
                message = problem.message.replace(f"`{directory / name}`", f"`{name}`")
                problem = replace(problem, origin=origin, path=f"apply[{index}]", message=message)  # noqa: PLW2901
            problems.append(problem)
    return list(documents.items()), list(dict.fromkeys(problems))


def _directories(result: MeshResult, directory: Path) -> Iterator[Problem]:
    """Say which directories are not there that programs work in or that is followed, also of a text with other mistakes."""
    document = result.document
    if document is None or not isinstance(document.value, Mapping):
        return
    programs = document.value.get("programs")
    named = {("follow",): document.value.get("follow")} | {
        ("programs", name, "directory"): program.get("directory")
        for name, program in (programs.items() if isinstance(programs, Mapping) else ())
        if isinstance(program, Mapping)
    }
    for place, wanted in named.items():
        if isinstance(wanted, str) and (fault := _directory_fault(directory / wanted)) is not None:
            yield Problem(document.locate_value(place), ".".join(map(str, place)), f"`{wanted}` {fault}", code=ABSENT)


def _directory_fault(path: Path) -> str | None:
    try:
        return None if path.is_dir() else "is no directory."
    except OSError as exc:  # too long a name, or what is above it may not be looked into
        return f"cannot be read: {exc.strerror}."


def _expand(name: str, directory: Path | None, problems: list[Problem]) -> Sequence[str]:
    path = _under(directory, name)
    if path.is_dir():
        found = sorted(item.name for item in path.iterdir() if is_document(item.name) and item.is_file())
        if not found:
            problems.append(_problem(name, without_documents(mesh_file=(path / MESH_FILE).exists())))
        return [str(Path(name) / item) for item in found]
    if path.exists() or not glob.has_magic(name):
        if not path.exists():
            problems.append(_problem(name, "does not exist."))
            return []
        return [name]
    # Path.glob refuses absolute patterns, and knows no root directory.
    matched = sorted(glob.glob(name, root_dir=directory, recursive=True))  # noqa: PTH207
    files = [item for item in matched if Path(item).name != MESH_FILE and _under(directory, item).is_file()]
    if not files:
        problems.append(_problem(name, "matches no file."))
    return files


def _under(directory: Path | None, name: str) -> Path:
    return directory / name if directory is not None else Path(name)


def _problem(file: str, message: str) -> Problem:
    return Problem(Origin(file, 1), "(file)", f"`{file}` {message}", code=ABSENT)
