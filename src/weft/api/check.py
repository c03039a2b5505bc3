"""
From a document's value to a typed model: every unknown field, refused field and wrong value at once, with its place.

Used for the kinds' specs (`weft.api.parse`) and for `weft.yaml` (`weft.api.meshfile`). Two steps: a walk over the value
beside the model's shape finds names that are unknown, spelled twice or not honoured; pydantic then checks the values.
What pydantic refuses is taken out, or replaced by a placeholder where nothing can be left out, and the rest is checked
again, so that the rules between fields, which need a model, can still speak about everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, islice
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from weft.api.honoured import WHOLLY, Honour
from weft.api.nearest import did_you_mean, nearest
from weft.api.shapes import Container, Field, fields, names
from weft.api.yaml import Document, Path, dotted
from weft.model import Problem, Severity

M = TypeVar("M", bound=BaseModel)

_ROUNDS = 20
"""Each round mends at least one wrong value of every branch; real documents need one or two."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What a rule between fields has against a spec.

    Attributes:
        path: From the model's root to the key or item at fault, with names as in YAML.
        message, remedy, code, severity: As in `Problem`.
        at_value: Whether the place is the value's, not the key's.
        first: Path of the other party, if there is one; `{first}` in the message stands for its line and column.
        concerns: Fields or items right below *path* whose absence or content is the fault: if one of them is wrong in
            itself, the finding may be a consequence of that and is dropped. None for all that is below, empty for
            nothing: then it is the key that is at fault, whatever it holds.
        hinges: Whole paths of what elsewhere the fault hangs on; the same holds for them.
    """

    path: Path
    message: str
    remedy: str = ""
    code: str = "invalid"
    severity: Severity = Severity.ERROR
    at_value: bool = False
    concerns: Path | None = None
    first: Path = ()
    hinges: tuple[Path, ...] = ()


@dataclass(slots=True)
class Checked(Generic[M]):
    """
    A model and what was wrong on the way.

    Attributes:
        value: The model; without what was wrong if there are problems, None if too little is left.
        problems: What was wrong.
        pruned: Paths below the model's root that were taken out, by the names in YAML and the document's indices.
        doubtful: Paths below the model's root where `value` does not say what its author means: a placeholder stands
            there, or nothing, and an unknown field was probably meant for it.
        respelled: Path with names as in YAML -> path as written, where a snake_case spelling was used.
    """

    value: M | None
    problems: list[Problem]
    pruned: set[Path] = field(default_factory=set)
    doubtful: set[Path] = field(default_factory=set)
    respelled: dict[Path, Path] = field(default_factory=dict)

    def as_written(self, path: Path) -> Path:
        """Return *path* with the spellings that the document uses."""
        for length in range(len(path), 0, -1):
            if (written := self.respelled.get(path[:length])) is not None:
                return written + path[length:]
        return path

    def in_document(self, path: Path) -> Path:
        """Return *path* within `value` as it is in the document: items of lists that were taken out count again."""
        if not self.pruned:
            return path
        whole: Path = ()
        for step in path:
            if isinstance(step, int):
                there = (index for index in count() if (*whole, index) not in self.pruned)
                step = next(islice(there, step, None))  # noqa: PLW2901
            whole = (*whole, step)
        return whole

    def admit(self, findings: Iterator[Finding], document: Document, base: Path) -> Iterator[Problem]:
        """Yield the problems of *findings*, without those that only follow from what is wrong in itself."""
        for finding in findings:
            path = self.in_document(finding.path)
            places = [(*path, name) for name in finding.concerns or ()] + [*map(self.in_document, finding.hinges)]
            if finding.concerns is None:
                places.append(path)
            if self._within_wrong(path) or any(self._wrong(place) for place in places):
                continue
            message = finding.message
            if finding.first:
                other = self.in_document(finding.first)
                if self._wrong(other):
                    continue  # the other party is not what was written
                first = document.locate(base + self.as_written(other))
                message = message.replace("{first}", f"line {first.line}, column {first.column}")
            place = base + self.as_written(path)
            origin = document.locate_value(place) if finding.at_value else document.locate(place)
            yield Problem(origin, dotted(place), message, finding.remedy, finding.severity, finding.code)

    def _within_wrong(self, place: Path) -> bool:
        """Whether *place* is, or is below, something that was taken out or is in doubt."""
        return any(place[: len(wrong)] == wrong for wrongs in (self.pruned, self.doubtful) for wrong in wrongs)

    def _wrong(self, place: Path) -> bool:
        """Whether something at, above or below *place* was taken out or is in doubt."""
        return self._within_wrong(place) or any(
            wrong[: len(place)] == place for wrongs in (self.pruned, self.doubtful) for wrong in wrongs
        )


def check(
    model: type[M], value: Any, document: Document, *, base: Path = (), honour: Honour = WHOLLY, kind: str = ""
) -> Checked[M]:
    """
    Return *value*, which stands at *base* in *document*, as a *model*.

    *honour* says which fields may be used; the others are refused by name. *kind* is what the model is called in
    messages where its own name would not do.
    """
    walk = _Walk(document, base, model)
    tidy = walk.message(model, value, (), honour)
    checked: Checked[M] = Checked(None, walk.problems, doubtful=walk.meant, respelled=walk.respelled)
    placeholders: dict[Path, dict[str, Any]] = {}
    for _ in range(_ROUNDS):
        try:
            checked.value = model.model_validate(_mended(tidy, checked.pruned, placeholders))
        except ValidationError as exc:
            errors = exc.errors(include_url=False)
        else:
            return checked
        pruned: set[Path] = set()
        for error in errors:
            path = tuple(error["loc"])
            if path and path[-1] == "[key]":
                path = path[:-1]
            path = checked.in_document(path)
            if not (error["type"] == "missing" and path in walk.meant):
                name = kind or model.__name__
                checked.problems.append(_problem(error, path, checked, document, base=base, name=name))
            place, required = _place(model, path)
            if not place:
                return checked  # the whole is no mapping
            if required is None:
                pruned.add(place)
            else:
                checked.doubtful.add(place)
                placeholders.setdefault(place[:-1], {})[str(place[-1])] = placeholder(required.annotation)
        checked.pruned |= pruned
    return checked


class _Walk:
    """The walk over a value beside its model: names only. Lists become tuples, nulls are left out: absent to both."""

    def __init__(self, document: Document, base: Path, root: type[BaseModel]) -> None:
        self.document = document
        self.base = base
        self.root = root
        self.problems: list[Problem] = []
        self.respelled: dict[Path, Path] = {}
        self.meant: set[Path] = set()
        """Fields that are not there, and that an unknown one was probably meant for."""

    def message(
        self, model: type[BaseModel], value: Any, path: Path, honour: Honour, written: Path | None = None
    ) -> Any:
        if not isinstance(value, dict):
            return tuple(value) if isinstance(value, list) else value
        written = path if written is None else written
        known = fields(model)
        result: dict[str, Any] = {}
        for key, below in value.items():
            spelled = (*written, key)
            item = known.get(key)
            if item is None:
                self._unknown(model, key, spelled)
                given = {known[other].name for other in value if other in known}
                self.meant |= {(*path, name) for name in _meant(model, key) if name not in given}
                continue
            if below is None:
                continue
            if item.name in result:
                self._report(spelled, f"`{key}` is `{item.name}` in its other spelling.", "Keep one.", "duplicate-key")
                continue
            here = (*path, item.name)
            if spelled != here:
                self.respelled[here] = spelled
            result[item.name] = self._field(item, below, here, spelled, self._honoured(honour, item, below, spelled))
        return result

    def _field(self, item: Field, value: Any, path: Path, written: Path, honour: Honour) -> Any:
        if item.container is Container.LIST and isinstance(value, list):
            if item.message is None:
                return tuple(value)
            return tuple(
                self.message(item.message, part, (*path, index), honour, (*written, index))
                for index, part in enumerate(value)
            )
        if item.container is Container.MAP and isinstance(value, dict) and item.message is not None:
            return {
                key: self.message(item.message, part, (*path, key), honour, (*written, key))
                for key, part in value.items()
            }
        if item.message is not None and item.container is Container.ONE:
            return self.message(item.message, value, path, honour, written)
        return value

    def _honoured(self, honour: Honour, item: Field, value: Any, written: Path) -> Honour:
        """Refuse *item* if *honour* does not have it; return what is honoured below it."""
        if not honour.below:
            return WHOLLY
        below = honour.below.get(item.name)
        if below is None:
            others = ", ".join(honour.below)
            message = f"weft does not honour `{item.name}` yet."
            self._report(written, message, f"Remove it. Honoured here: {others}.", "not-honoured")
            return WHOLLY
        if below.values:
            parts = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, part in parts:
                if isinstance(part, str) and not {part, part.upper()} & {*below.values} and _acceptable(item, part):
                    place = written if index is None else (*written, index)
                    allowed = ", ".join(f'"{word}"' if word in ("", "*") else word for word in below.values)
                    message = f"weft does not honour `{item.name}: {part}` yet."
                    self._report(place, message, f"Honoured: {allowed}.", "not-honoured", at_value=True)
        return below

    def _unknown(self, model: type[BaseModel], key: str, written: Path) -> None:
        known = names(model)
        remedy = did_you_mean(key, known, otherwise="Nothing can stand here.")
        if nearest(key, known) is None:
            homes = list(_homes(self.root, key))
            if homes:
                remedy = f"`{key}` belongs to {' or '.join(f'`{home}`' for home in homes[:3])}."
        self._report(written, f"unknown field `{key}`.", remedy, "unknown-field")

    def _report(self, path: Path, message: str, remedy: str, code: str, *, at_value: bool = False) -> None:
        place = self.base + path
        origin = self.document.locate_value(place) if at_value else self.document.locate(place)
        self.problems.append(Problem(origin, dotted(place), message, remedy, code=code))


def _acceptable(item: Field, word: str) -> bool:
    """Return whether *word* is a value of the API at all: one that is not is pydantic's to refuse, once."""
    return " / " not in item.type or word in item.type.split(" / ")


def _homes(root: type[BaseModel], name: str) -> Iterator[str]:
    """Yield where below *root* a field *name* exists (`http[]`, `http[].retries`), nearest to the root first."""
    queue: list[tuple[type[BaseModel], str, tuple[type[BaseModel], ...]]] = [(root, "spec", ())]
    while queue:
        model, path, above = queue.pop(0)
        for spelling, item in fields(model).items():
            if spelling != item.name:
                continue
            if item.name == name:
                yield path
            if item.message is not None and item.message not in above:
                suffix = "" if item.container is Container.ONE else "[]" if item.container is Container.LIST else ".*"
                queue.append((item.message, f"{path}.{item.name}{suffix}", (*above, model)))


def _meant(model: type[BaseModel], unknown: str) -> set[str]:
    """Return the fields of *model* that *unknown* was probably meant as, or was meant to stand in."""
    if (close := nearest(unknown, names(model))) is not None:
        return {close}
    return {home.split(".")[1].removesuffix("[]") for home in _homes(model, unknown) if "." in home}


def _place(model: type[BaseModel], path: Path) -> tuple[Path, FieldInfo | None]:
    """
    Return the part of *path* that a document has, and the field there if it cannot be left out.

    None instead of a field: an optional one, an item of a list, or an entry of a map. What is left out of *path* at its
    end is pydantic's own: which member of a union it tried.
    """
    here: type[BaseModel] | None = model
    item: Field | None = None
    required: FieldInfo | None = None
    for length, step in enumerate(path, start=1):
        if here is not None:
            item = fields(here).get(str(step))
            if item is None:
                return path[: length - 1], required
            required = here.model_fields[item.attribute] if item.required else None
            here = item.message if item.container is Container.ONE else None
        elif item is not None and item.container is not Container.ONE:
            required = None
            here = item.message
            item = None if here is None else item
        else:
            return path[: length - 1], required
    return path, required


def placeholder(annotation: Any) -> Any:
    """
    Return a value that a required field of this type takes, as a document has it.

    Raises:
        TypeError: No required field had such a type so far; say here what stands for it.
    """
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        return ()
    if annotation is str:
        return ""
    if annotation is int:
        return 1  # within the limits of every required number: ports, statuses, shares
    if annotation is timedelta:
        return timedelta(seconds=1)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        below = {item.name: annotation.model_fields[item.attribute] for item in fields(annotation).values()}
        return {name: placeholder(info.annotation) for name, info in below.items() if info.is_required()}
    raise TypeError(f"nothing stands for {annotation}")


def _mended(value: Any, pruned: set[Path], placeholders: Mapping[Path, Mapping[str, Any]], path: Path = ()) -> Any:
    """Return *value*, which is at *path*, less what is at a path in *pruned*, with *placeholders* (by their parent)."""
    if not (pruned or placeholders):
        return value
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if (*path, key) not in pruned}
        mended = {key: _mended(part, pruned, placeholders, (*path, key)) for key, part in kept.items()}
        return {**mended, **placeholders.get(path, {})}
    if isinstance(value, tuple):
        return tuple(
            _mended(part, pruned, placeholders, (*path, index))
            for index, part in enumerate(value)
            if (*path, index) not in pruned
        )
    return value


# pydantic's errors in weft's words

_WANTED: Mapping[str, str] = {
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "duration": "a duration such as 7s, 300ms or 1.5h",
    "short_duration": "a duration of at least 1ms",
    "finite_number": "a number",
}

_BOOLEAN_WORDS = {
    **dict.fromkeys(("on", "yes", "y"), "true"),
    **dict.fromkeys(("off", "no", "n"), "false"),
}


def _problem(
    error: ErrorDetails,
    path: Path,
    checked: Checked[Any],
    document: Document,
    *,
    base: Path,
    name: str,
) -> Problem:
    written_path = base + checked.as_written(path)
    label = f"`{path[-1]}`" if path and isinstance(path[-1], str) else _label(path, name)
    if error["type"] == "missing":
        message = f"{label} is missing."
        return Problem(document.locate(written_path), dotted(written_path), message, code="missing-field")
    written = document.written(written_path)
    origin = document.locate_value(written_path)
    wanted, remedy, code = _wanted(error, written)
    shown = written if written in ("a list", "a mapping") else f"`{written}`"
    message = f"{label} wants {wanted}, not {shown}." if wanted else f"{label}: {error['msg']}"
    return Problem(origin, dotted(written_path), message, remedy, code=code)


def _decimal(text: str) -> int | None:
    """Return the whole number for which YAML 1.1, and so Kubernetes, takes *text* (`0x10`, `0b1`, `0o7`, `007`, `1_000`)."""
    digits = text.replace("_", "")
    for base in (0, 8):
        try:
            return int(digits, base)
        except ValueError:
            continue
    return None


def _is_plain_number(text: str) -> bool:
    """Return whether *text* is digits with a point at most: those of other scripts are none (`²`)."""
    return text.isascii() and text.replace(".", "", 1).isdigit()


def _label(path: Path, kind: str) -> str:
    """Name an item or the whole by what is around it (`hosts[0]`)."""
    length = len(path)
    while length and isinstance(path[length - 1], int):
        length -= 1
    return f"`{dotted(path[max(length - 1, 0) :])}`" if path else f"`{kind}`"


def _wanted(error: ErrorDetails, written: str) -> tuple[str, str, str]:
    """Return what the value should be, the remedy, and the problem's code."""
    kind, context = error["type"], error.get("ctx", {})
    plain = written.strip("'\"")
    if kind == "literal_error":
        allowed = [word.strip().strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        close = nearest(plain, allowed)
        return f"one of {', '.join(allowed)}", f"Did you mean `{close}`?" if close else "", "unknown-value"
    if kind in ("greater_than_equal", "less_than_equal"):
        limit = context.get("ge", context.get("le"))
        side = "at least" if kind == "greater_than_equal" else "at most"
        return f"{side} {limit}", "", "out-of-range"
    if kind in ("too_short", "too_long"):
        limit = context.get("min_length", context.get("max_length"))
        side = "at least" if kind == "too_short" else "at most"
        return f"{side} {limit} items", "", "out-of-range"
    if kind in ("model_type", "model_attributes_type"):
        return "a mapping", "Write its fields as `key: value` below it.", "wrong-type"
    if kind in ("duration", "short_duration"):
        unit = _is_plain_number(plain) and float(plain) > 0
        return _WANTED[kind], f"Add the unit: `{plain}s` or `{plain}ms`." if unit else "", "bad-duration"
    if kind == "string_type" and written not in ("a list", "a mapping", "null"):
        return _WANTED[kind], f'Put it in quotes: "{plain}".', "wrong-type"
    if kind == "bool_type" and plain.lower() in _BOOLEAN_WORDS:
        return _WANTED[kind], f"Write `{_BOOLEAN_WORDS[plain.lower()]}`.", "wrong-type"
    if kind == "bool_type" and plain.lower() in ("true", "false"):
        return _WANTED[kind], "Leave the quotes out.", "wrong-type"
    if kind in ("int_type", "float_type") and written == plain and (number := _decimal(plain)) is not None:
        return _WANTED[kind], f"Write `{number}`: numbers are decimal.", "wrong-type"
    if kind in ("int_type", "float_type") and written != plain and _is_plain_number(plain):
        return _WANTED[kind], "Leave the quotes out.", "wrong-type"
    if kind == "tuple_type":
        return _WANTED[kind], "Begin each item with `- `.", "wrong-type"
    if kind in _WANTED:
        return _WANTED[kind], "", "wrong-type"
    if kind == "wanted":  # a model's own words, see weft.api.meshfile
        return str(context["what"]), "", "wrong-type"
    return "", "", "invalid"
