"""
YAML and JSON texts as values with the place of every part: the strict reader of everything that users write.

`read` splits a text into documents, composes each with libyaml, and constructs values and positions from the nodes in
one walk. A document that cannot be read does not hide the mistakes of the others. No I/O.

What a plain (unquoted) scalar is:

- `null`, `~` and nothing at all are null; `true` and `false` (also `True`, `TRUE`, ...) are booleans;
- a number is what JSON or Go's strconv writes in decimal: `7`, `-1`, `1.5`, `.5`, `1e3`;
- everything else is a string, as written: `on`, `no`, `yes`, `22:30`, `0o7`, `007`, `0x10`, `0b1`, `1_000`, `.inf`,
  `2001-01-01`.

Kubernetes (sigs.k8s.io/yaml on go-yaml v2) agrees about sexagesimal numbers, dates and all that is plainly typed, but
takes `on`, `no`, `yes`, `0o7`, `007`, `0x10`, `0b1` and `1_000` for booleans and numbers. A field of strings takes them here and is
refused there; a field of booleans or numbers refuses them here, with the spelling that both understand. So no document
that both accept means two things, except one that has such a word for a mapping's *key*: it is the word itself here.

Refused: duplicate keys, keys that are not scalars, tabs as indentation, tags that JSON has no word for, an anchor
defined twice, aliases that contain themselves or multiply the document beyond its own size, nesting deeper than
`MAX_DEPTH`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed does not list it
from typing import Any, NoReturn

import yaml
from yaml._yaml import CParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from weft.model import Origin, Problem

MAX_DEPTH = 100
"""Istio's deepest field is 12 levels down; the walk is recursive, so the limit stands well below Python's."""

ALIAS_ALLOWANCE = 10_000
"""A document of n characters holds at most n nodes; aliases may add this many and nine times n again."""

Path = tuple[str | int, ...]

_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+\Z")
_NUMERIC = frozenset("0123456789+-.")

_SEPARATOR = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_DIRECTIVES_ONLY = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n|%[^\n]*\n)*\Z")

_STRING_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "binary", "timestamp", "merge", "value")} | {"!"}
_CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """
    One document of a text.

    Attributes:
        file: As the user named it.
        value: Mappings as dicts with string keys, sequences as lists, scalars as JSON has them.
        positions: Path -> place of the key (in a mapping) or of the item (in a sequence); `()` is the document.
        flawed: A key stood twice, and the first counts. It is read on only to say what else is wrong with it.

    The nodes are not kept, they would be most of the memory; the few questions that need them compose again.
    """

    file: str
    value: Any
    positions: Mapping[Path, Origin]
    _chunk: str = field(repr=False)
    _line_offset: int = 0
    _index: int = 0
    flawed: bool = False

    def locate(self, path: Sequence[str | int]) -> Origin:
        """Return the place of the key or item at *path*, or of its nearest ancestor that exists."""
        path = tuple(path)
        while path and path not in self.positions:
            path = path[:-1]
        return self.positions[path]

    def locate_value(self, path: Sequence[str | int]) -> Origin:
        """Return the place of the value at *path*: behind the key. An absent or empty value: as `locate`."""
        node = self._node(path)
        if node is None or (isinstance(node, ScalarNode) and not node.value and not node.style):
            return self.locate(path)
        return Origin(self.file, node.start_mark.line + 1 + self._line_offset, node.start_mark.column + 1)

    def written(self, path: Sequence[str | int]) -> str:
        """Return the value at *path* as it stands in the text: scalars with their quotes, the rest by its kind."""
        node = self._node(path)
        if isinstance(node, ScalarNode):
            text = node.value if len(node.value) <= 60 else f"{node.value[:57]}..."
            if node.style in ("'", '"'):
                return f"{node.style}{text}{node.style}"
            return text or ('""' if node.style else "null")
        return "a list" if isinstance(node, SequenceNode) else "a mapping"

    def _node(self, path: Sequence[str | int]) -> Node | None:
        node: Node | None = next(islice(_compose(self._chunk), self._index, None))
        for step in path:
            if isinstance(node, MappingNode):
                node = _lookup(node, str(step))
            elif isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return None
        return node


def _lookup(node: MappingNode, name: str) -> Node | None:
    """Return the value of key *name*, from the mapping itself before what it merges."""
    merged: list[Node] = []
    for key, value in node.value:
        if _is_merge(key):
            merged.extend(value.value if isinstance(value, SequenceNode) else [value])
        elif key.value == name:
            return value  # type: ignore[no-any-return]
    mappings = (part for part in merged if isinstance(part, MappingNode))
    return next((found for part in mappings if (found := _lookup(part, name)) is not None), None)


def read(file: str, text: str) -> tuple[list[Document], list[Problem]]:
    """
    Return the documents of *text* that can be read, in order, and what is wrong with them and with the others.

    Empty documents are left out: that is what a trailing `---` makes.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    text = text.removeprefix("\ufeff")
    for chunk, line_offset in _split(text):
        try:
            for index, root in enumerate(_compose(chunk)):
                reader = _Construction(file, line_offset, len(chunk))
                if isinstance(root, ScalarNode) and not root.tag and not root.style and root.value in _NULLS:
                    continue
                value = reader.document(root)
                problems.extend(reader.problems)
                flawed = bool(reader.problems)
                documents.append(Document(file, value, reader.positions, chunk, line_offset, index, flawed))
        except yaml.YAMLError as exc:
            problems.append(_syntax_problem(file, line_offset, chunk, exc))
        except _UnreadableError as exc:
            problems.append(Problem(exc.origin, dotted(exc.path), exc.message, exc.remedy, code=exc.code))
    return documents, problems


def _split(text: str) -> Iterator[tuple[str, int]]:
    """
    Yield each document's text with the number of lines before it.

    A line that begins with `---` separates documents wherever it stands (YAML 1.2.2, 9.1.2), so that it is safe to
    split before parsing, as Kubernetes does; directives stay with the document they belong to.
    """
    start = lines = 0
    for separator in _SEPARATOR.finditer(text):
        chunk = text[start : separator.start()]
        if _DIRECTIVES_ONLY.match(chunk) and "%" in chunk:
            continue
        if chunk.strip():
            yield chunk, lines
        lines += chunk.count("\n")
        start = separator.start()
    if text[start:].strip():
        yield text[start:], lines


# Composing: text to nodes


class _Composer(CParser):
    """libyaml's parser and composer alone; which type a scalar has is decided when it is constructed."""

    def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> str:
        return ""

    def descend_resolver(self, parent: Node | None, index: Node | int | None) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


def _compose(chunk: str) -> Iterator[Node]:
    """Yield the root node of each document in *chunk* (one, unless `...` or JSON without separators divides it)."""
    body = chunk[3:] if chunk.startswith("---") else chunk
    if body.lstrip()[:1] in ("{", "[", '"'):
        try:
            roots = list(_JsonScanner(chunk, len(chunk) - len(body)).values())
        except _NotJsonError:
            pass  # YAML's flow style begins alike; libyaml says what is wrong with it
        else:
            yield from roots
            return
    if _LONG_LINE.search(chunk) or chunk.count("[") + chunk.count("{") > LONG:
        _check_depth(chunk)
    composer = _Composer(chunk)
    while composer.check_node():
        if (root := composer.get_node()) is not None:
            yield root


LONG = 500
_LONG_LINE = re.compile(f"[^\n]{{{LONG}}}")


def _check_depth(chunk: str) -> None:
    """
    Refuse nesting that would overflow the stack of libyaml's composer, which recurses in C.

    Only a text with lines or brackets enough to nest so deep is worth this second pass: block nesting needs a column
    for every two levels.
    """
    depth = 0
    for event in yaml.parse(chunk, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH + 1:
                raise _TooDeepError(event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _TooDeepError(yaml.MarkedYAMLError):
    def __init__(self, mark: Any) -> None:
        super().__init__(None, None, f"nested more than {MAX_DEPTH} levels deep", mark)


_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF_PAIR = "found half of a surrogate pair"


class _NotJsonError(Exception):
    """The text is not JSON."""


class _JsonScanner:
    r"""
    JSON as nodes. libyaml reads most of JSON, but no surrogate pairs (`"\ud83d\ude00"`) and no keys beyond 1024
    characters; Kubernetes hands a text that begins with `{` to its JSON reader too.
    """

    _SPACE = re.compile(r"[ \t\n\r]*")
    _ATOM = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")

    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.at = start
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.line = 0

    def values(self) -> Iterator[Node]:
        self._skip()
        while self.at < len(self.text):
            yield self._value(0)
            self._skip()

    def _skip(self) -> None:
        match = self._SPACE.match(self.text, self.at)
        assert match is not None  # matches the empty string too
        self.at = match.end()

    def _mark(self) -> yaml.Mark:
        while self.line + 1 < len(self.line_starts) and self.line_starts[self.line + 1] <= self.at:
            self.line += 1
        return yaml.Mark("", self.at, self.line, self.at - self.line_starts[self.line], None, 0)

    def _value(self, depth: int) -> Node:
        if depth > MAX_DEPTH + 1:  # the construction says it with a place
            raise _NotJsonError
        mark = self._mark()
        first = self.text[self.at : self.at + 1]
        if first == "{":
            pairs = [(key, value) for key, value in self._items(depth, "}", keyed=True) if key is not None]
            return MappingNode("", pairs, mark, mark, flow_style=True)
        if first == "[":
            return SequenceNode("", [value for _, value in self._items(depth, "]", keyed=False)], mark, mark, True)
        if first == '"':
            return self._string()
        atom = self._ATOM.match(self.text, self.at)
        if atom is None:
            raise _NotJsonError
        self.at = atom.end()
        return ScalarNode("", atom.group(), mark, mark, None)

    def _string(self) -> ScalarNode:
        mark = self._mark()
        if self.text[self.at : self.at + 1] != '"':
            raise _NotJsonError
        try:
            value, self.at = scanstring(self.text, self.at + 1, True)
        except ValueError as exc:
            raise _NotJsonError from exc
        if _SURROGATE.search(value):  # a pair is one character by now
            raise yaml.MarkedYAMLError(None, None, _HALF_PAIR, mark)
        return ScalarNode("", value, mark, mark, '"')

    def _items(self, depth: int, end: str, *, keyed: bool) -> Iterator[tuple[ScalarNode | None, Node]]:
        self.at += 1
        self._skip()
        if self.text[self.at : self.at + 1] == end:
            self.at += 1
            return
        while True:
            key = None
            if keyed:
                key = self._string()
                self._skip()
                self._expect(":")
                self._skip()
            yield key, self._value(depth + 1)
            self._skip()
            if self.text[self.at : self.at + 1] == end:
                self.at += 1
                return
            self._expect(",")
            self._skip()

    def _expect(self, character: str) -> None:
        if self.text[self.at : self.at + 1] != character:
            raise _NotJsonError
        self.at += 1


# Constructing: nodes to values and positions


class _UnreadableError(Exception):
    """The document cannot become a value; ends its construction."""

    def __init__(self, origin: Origin, path: Path, message: str, remedy: str, code: str) -> None:
        self.origin, self.path, self.message, self.remedy, self.code = origin, path, message, remedy, code
        super().__init__(message)


class _Construction:
    """The walk over one document's nodes. Duplicate keys are gathered in `problems`; the rest ends the walk."""

    def __init__(self, file: str, line_offset: int, size: int) -> None:
        self.file = file
        self.line_base = line_offset + 1
        self.budget = ALIAS_ALLOWANCE + 10 * size
        self.positions: dict[Path, Origin] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()  # containers being constructed: an alias to one of them is a cycle

    def document(self, root: Node) -> Any:
        self.positions[()] = self._origin(root)
        return self._value(root, ())

    def _origin(self, node: Node) -> Origin:
        mark = node.start_mark
        return Origin(self.file, mark.line + self.line_base, mark.column + 1)

    def _value(self, node: Node, path: Path) -> Any:
        self.budget -= 1
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self._enter(node, path)
        value: Any
        if isinstance(node, MappingNode):
            value = self._mapping(node, path)
        else:
            value = []
            for index, item in enumerate(node.value):
                below = (*path, index)
                self.positions[below] = self._origin(item)
                value.append(self._value(item, below))
        self._open.discard(id(node))
        return value

    def _enter(self, node: Node, path: Path) -> None:
        if id(node) in self._open:
            self._refuse(node, path, "this anchor's value contains itself.", code="alias-cycle")
        if self.budget < 0:
            self._refuse(node, path, "aliases multiply this document far beyond its own size.", code="alias-bomb")
        if len(path) > MAX_DEPTH:
            self._refuse(node, path[:5], f"nested more than {MAX_DEPTH} levels deep.", code="too-deep")
        expected = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag not in ("", f"{_CORE}{expected}"):
            self._refuse(node, path, f"the tag `{_short(node.tag)}` has no meaning here.", "Remove it.", "unknown-tag")
        self._open.add(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        own: dict[str, Node] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                merged.append(value_node)
                continue
            key = self._key(key_node, path)
            below = (*path, key)
            if key in own:
                first = self._origin(own[key])
                self.problems.append(
                    Problem(
                        self._origin(key_node),
                        dotted(below),
                        f"the key `{key}` is already at line {first.line}, column {first.column}.",
                        "Keep one of them.",
                        code="duplicate-key",
                    )
                )
                continue
            own[key] = key_node
            self.positions[below] = self._origin(key_node)
            value[key] = self._value(value_node, below)
        for value_node in merged:
            self._merge(value_node, value, path)
        return value

    def _merge(self, node: Node, into: dict[str, Any], path: Path) -> None:
        """Add what `<<` names and *into* does not have yet: the mapping's own keys win, then earlier merges."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        for part in parts:
            if not isinstance(part, MappingNode):
                self._refuse(part, path, "`<<` merges mappings, and this is none.", "Name an alias of a mapping.")
            self._enter(part, path)
            self.budget -= 1
            nested: list[Node] = []
            for key_node, value_node in part.value:
                if _is_merge(key_node):
                    nested.append(value_node)
                    continue
                key = self._key(key_node, path)
                if key not in into:
                    self.positions[(*path, key)] = self._origin(key_node)
                    into[key] = self._value(value_node, (*path, key))
            for value_node in nested:
                self._merge(value_node, into, path)
            self._open.discard(id(part))

    def _key(self, node: Node, path: Path) -> str:
        if not isinstance(node, ScalarNode):
            self._refuse(node, path, "a key must be a plain word, not a list or mapping.", "Write `key: value`.")
        if not node.style and node.value in _NULLS:
            self._refuse(node, path, "a key is missing before the colon.", "Write `key: value`.")
        self.budget -= 1
        return str(node.value)

    def scalar(self, node: ScalarNode, path: Path) -> Any:
        text: str = node.value
        if node.tag:
            return self._tagged(node, path)
        if node.style:
            return text
        if text in _NULLS:
            return None
        if text[0] in _NUMERIC:
            return _number(text)
        return _BOOLEANS.get(text, text)

    def _tagged(self, node: ScalarNode, path: Path) -> Any:
        if node.tag in _STRING_TAGS:
            return node.value
        name = node.tag.removeprefix(_CORE)
        value: Any = None
        if name == "null" and node.value in _NULLS:
            return None
        if name == "bool":
            value = _BOOLEANS.get(node.value)
        elif name == "int":
            value = int(node.value) if _INTEGER.match(node.value) else None
        elif name == "float":
            value = float(node.value) if _FLOAT.match(node.value) else None
        if value is None:
            message = f"the tag `{_short(node.tag)}` has no meaning for `{node.value}`."
            self._refuse(node, path, message, "Remove it.", "unknown-tag")
        return value

    def _refuse(self, node: Node, path: Path, message: str, remedy: str = "", code: str = "yaml") -> NoReturn:
        raise _UnreadableError(self._origin(node), path, message, remedy, code)


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == "<<" and not node.style and node.tag in ("", f"{_CORE}merge")


def _number(text: str) -> Any:
    """Return the number that *text* is, or *text* itself."""
    try:
        if _INTEGER.match(text):
            return int(text)
        if _FLOAT.match(text) and not _LEADING_ZERO.match(text):
            value = float(text)
            return value if value not in (float("inf"), float("-inf")) else text
    except ValueError:  # more digits than Python converts
        return text
    return text


def _short(tag: str) -> str:
    return tag.replace(_CORE, "!!")


def dotted(path: Sequence[str | int]) -> str:
    """Return *path* as people write it: `spec.http[0].match`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text or "(document)"


# What libyaml says, said for people


def _syntax_problem(file: str, line_offset: int, chunk: str, exc: yaml.YAMLError) -> Problem:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    if mark is None:  # ReaderError knows an offset in the text only, in bytes of UTF-8
        position = getattr(exc, "position", 0) or 0
        before = chunk.encode()[:position].decode(errors="ignore")
        origin = Origin(file, line_offset + before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        return Problem(origin, "(document)", f"not YAML: {_reason(exc)}.", code="yaml-syntax")
    problem = str(getattr(exc, "problem", "") or "")
    if problem in _AT_CONTEXT and getattr(exc, "context_mark", None) is not None:
        mark = exc.context_mark  # type: ignore[attr-defined]
    origin = Origin(file, line_offset + mark.line + 1, mark.column + 1)
    if isinstance(exc, _TooDeepError):
        return Problem(origin, "(document)", f"{problem}.", code="too-deep")
    if problem == _HALF_PAIR:  # whatever else stands in its line
        return Problem(origin, "(document)", *_WORDS[problem], code="yaml-syntax")
    lines = chunk.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    indentation = line[: len(line) - len(line.lstrip())]
    if "\t" in indentation or "'\\t'" in problem:
        origin = Origin(file, origin.line, line.find("\t") + 1 if "\t" in line else origin.column)
        return Problem(
            origin, "(document)", "a tab stands where YAML wants spaces.", "Indent with spaces.", code="yaml-syntax"
        )
    if "{{" in line:
        message = "a template stands here, not YAML."
        return Problem(origin, "(document)", message, "Render it first, or put `{{` in quotes.", code="yaml-syntax")
    if "duplicate anchor" in str(exc):
        return Problem(
            origin, "(document)", "this anchor is defined twice.", "Give them two names.", code="yaml-syntax"
        )
    message, remedy = _WORDS.get(problem, (f"not YAML: {_reason(exc)}.", ""))
    return Problem(origin, "(document)", message, remedy, code="yaml-syntax")


def _reason(exc: yaml.YAMLError) -> str:
    context, problem = getattr(exc, "context", None), getattr(exc, "problem", None)
    return ", ".join(str(part) for part in (context, problem or getattr(exc, "reason", None)) if part) or str(exc)


_AT_CONTEXT = {"found unexpected end of stream", "could not find expected ':'"}
"""Where libyaml notices these is far behind the place where they were made: the opening quote, the key."""

_WORDS = {
    _HALF_PAIR: (
        "this text has half of a surrogate pair, which is no character.",
        "Write both halves (`\\ud83d\\ude00`), or the character itself.",
    ),
    "mapping values are not allowed in this context": (
        "a second `:` stands where no key can begin.",
        "Check the indentation, or put a text that contains `: ` in quotes.",
    ),
    "did not find expected key": (
        "here a key of the mapping above is expected.",
        "Check the indentation of this line and the one before.",
    ),
    "did not find expected '-' indicator": (
        "here a `- ` item of the list above is expected.",
        "Check the indentation of this line and the one before.",
    ),
    "could not find expected ':'": ("a `:` is missing after this key.", "Write `key: value`."),
    "found undefined alias": ("this alias has no anchor before it.", "Define it with `&name`, or quote the `*`."),
    "found unexpected end of stream": ("a quote that was opened is never closed.", "Close it."),
}
