"""
What people ask of the configuration, and how it is merged with what is there. Values and pure functions; no I/O.

Called by `change.py` only: `merge` is its room between parsing and the snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from weft.errors import NotFound, UsageError
from weft.model import ConfigKey, ConfigObject, Problem
from weft.store import Author, Changes, StoredObject


class Action(StrEnum):
    """What became of one object, in kubectl's words."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """weft.yaml declares the object, and the user has applied another one under its key since."""
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the name by which the user knows it; it may hold many YAML documents."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """
    One request to change the configuration.

    Attributes:
        documents: Texts to apply.
        delete: Objects to delete.
        delete_documents: Texts whose objects are to be deleted.
        ignore_missing: Delete those that exist, and be silent about those that do not.
        namespace: Of objects that name none, and then of all: one that names another is refused. None: the mesh's own,
            and objects may name any.
        directory: The whole content of the followed directory (`follow` in weft.yaml), if it changed.
        author: USER by `weft apply`. The DECLARATION is the whole of what weft.yaml applies: what it applied at an
            earlier start and no longer names is deleted, and what the user has applied since stays.
        fresh: Of a declaration: the user's objects do not stay.
        boot: Of a declaration: which `weft up` this is.
        strict: Warnings refuse, too.
        dry_run: Everything but storing and publishing.
        unmoved: What is applied as it is stays where it is written: of a diff, which is about what it says.
        wait: Of a change in steps: until the last one is published. Otherwise for the first, with which all of it is
            stored, and the others follow.
    """

    documents: tuple[Document, ...] = ()
    delete: tuple[ConfigKey, ...] = ()
    delete_documents: tuple[Document, ...] = ()
    ignore_missing: bool = False
    namespace: str | None = None
    directory: tuple[Document, ...] | None = None
    author: Author = Author.USER
    fresh: bool = False
    boot: str | None = None
    strict: bool = False
    dry_run: bool = False
    unmoved: bool = False
    wait: bool = True

    def summary(self, results: Sequence[tuple[ConfigKey, Action]]) -> str:
        """Return one line for the log of revisions (`apply: VirtualService default/reviews configured`)."""
        if self.author is Author.DECLARATION:
            verb = "up"
        elif self.directory is not None:
            verb = "follow"
        else:
            verb = "delete" if self.delete or self.delete_documents else "apply"
        changed = [f"{key} {action}" for key, action in results if action not in (Action.UNCHANGED, Action.KEPT)]
        return f"{verb}: {', '.join(changed) or 'nothing changed'}"

    @property
    def asks(self) -> bool:
        """Whether this says anything about the configuration."""
        return self != Edit()


@dataclass(frozen=True, slots=True)
class Configuration:
    """
    All objects in force.

    Attributes:
        objects: Parsed, by key.
        stored: The texts of those that are kept in the store.
        directory: Keys that come from the followed directory, with their files; nobody may apply or delete these.
    """

    objects: Mapping[ConfigKey, ConfigObject] = field(default_factory=dict)
    stored: Mapping[ConfigKey, StoredObject] = field(default_factory=dict)
    directory: Mapping[ConfigKey, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Merged:
    """A configuration after an edit: what to store, and what became of each object that the edit named."""

    configuration: Configuration
    changes: Changes = field(default_factory=Changes)
    results: tuple[tuple[ConfigKey, Action], ...] = ()


def merge(
    before: Configuration,
    edit: Edit,
    *,
    applied: Sequence[tuple[ConfigObject, Document]],
    deleted: Sequence[ConfigKey],
    directory: Sequence[tuple[ConfigObject, Document]] | None,
    revision: int,
) -> Merged:
    """
    Return the configuration after *edit*.

    Args:
        before: What is in force.
        edit: Who asks, and how; its texts come parsed, below.
        applied: The parsed objects of the edit's documents, each with the text that it stands in.
        deleted: The keys to delete.
        directory: The parsed objects of the followed directory, or None if it did not change.
        revision: What the change will be called; new objects are created at it.

    Raises:
        NotFound: An object to delete does not exist, and the edit minds. Nothing is deleted then.
        UsageError: An object belongs to the followed directory.
    """
    _check_owned(before, [item.key for item, _ in applied] + [*deleted])
    objects, stored, owned = dict(before.objects), dict(before.stored), dict(before.directory)
    results: list[tuple[ConfigKey, Action]] = []
    put: list[StoredObject] = []
    taken: list[ConfigKey] = []
    if missing := [key for key in deleted if key not in objects]:
        if not edit.ignore_missing:
            raise NotFound(_missing(missing, objects))
        deleted = [key for key in deleted if key in objects]
    for key in dict.fromkeys(deleted):
        del objects[key], stored[key]
        results.append((key, Action.DELETED))
    if edit.author is Author.DECLARATION:
        named = {item.key for item, _ in applied}
        outdated = [
            key
            for key, item in stored.items()
            if (item.author is Author.DECLARATION and key not in named) or (item.author is Author.USER and edit.fresh)
        ]
        for key in outdated:
            taken.append(key)
            del objects[key], stored[key]
            if key not in named:
                results.append((key, Action.DELETED))
    for item, document in applied:
        there = stored.get(item.key)
        if edit.author is Author.DECLARATION and there is not None and there.author is Author.USER:
            results.append((item.key, Action.KEPT))
            continue
        placed, action = _place(objects.get(item.key), item, revision)
        results.append((item.key, action))
        if edit.unmoved and action is Action.UNCHANGED:
            continue
        kept = StoredObject(
            item.key, document.file, document.text, placed.generation, placed.created, author=edit.author
        )
        objects[item.key] = placed
        if stored.get(item.key) != kept:
            put.append(kept)
            taken = [key for key in taken if key != item.key]
            stored[item.key] = kept
    if directory is not None:
        for key in owned.keys() - {item.key for item, _ in directory}:
            results.append((key, Action.DELETED))
            del owned[key], objects[key]
        for item, document in directory:
            # Created at 0: the same after each restart, and older than anything that was applied.
            placed, action = _place(objects.get(item.key), item, 0)
            results.append((item.key, action))
            objects[item.key], owned[item.key] = placed, document.file
            if stored.pop(item.key, None) is not None:
                taken.append(item.key)  # one home for one object: the directory's, from now on
    return Merged(
        Configuration(objects, stored, owned),
        Changes(put=tuple(put), delete=tuple(dict.fromkeys([*deleted, *taken])), boot=edit.boot),
        tuple(results),
    )


def _place(before: ConfigObject | None, item: ConfigObject, revision: int) -> tuple[ConfigObject, Action]:
    if before is None:
        return replace(item, generation=1, created=revision), Action.CREATED
    # Labels and annotations are no part of the spec; Kubernetes counts generations by the spec alone.
    grown = before.manifest.get("spec") != item.manifest.get("spec")
    placed = replace(item, generation=before.generation + grown, created=before.created)
    return placed, Action.UNCHANGED if before.manifest == item.manifest else Action.CONFIGURED


def _check_owned(before: Configuration, keys: Sequence[ConfigKey]) -> None:
    for key in keys:
        if (file := before.directory.get(key)) is not None:
            raise UsageError(f"{key} comes from {file} in the directory that this mesh follows; change it there.")


def _missing(missing: Sequence[ConfigKey], objects: Mapping[ConfigKey, ConfigObject]) -> str:
    names = ", ".join(map(str, missing))
    known = ", ".join(str(key) for key in sorted(objects)) or "none"
    return f"Not found: {names}. There are: {known}."


def key_to_json(key: ConfigKey) -> dict[str, str]:
    """Return *key* as the HTTP API has it."""
    return key._asdict()


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Return *problem* as the HTTP API has it."""
    return {
        "file": problem.origin.file,
        "line": problem.origin.line,
        "column": problem.origin.column,
        "path": problem.path,
        "message": problem.message,
        "remedy": problem.remedy,
        "severity": problem.severity.value,
        "code": problem.code,
    }
