"""
From texts to configuration objects: the `parse` of a configuration change.

The envelope (`apiVersion`, `kind`, `metadata`) is checked here; the spec by `weft.api.check` against the kind's model,
then by `weft.api.rules`. A document with any error yields no object; the others still do, so that the caller can say
everything that is wrong at once. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from weft.api.check import check
from weft.api.honoured import HONOURED
from weft.api.kinds import KINDS, KNOWN, Kind, find
from weft.api.names import label_fault, label_key_fault, label_value_fault, object_name_fault
from weft.api.nearest import did_you_mean, nearest
from weft.api.rules import RULES
from weft.api.yaml import Document, Path, dotted, read
from weft.model import MESH_FILE, ConfigKey, ConfigObject, Origin, Problem, Severity


@dataclass(frozen=True, slots=True)
class ParseResult:
    """
    What the texts hold.

    Attributes:
        objects: One for each identity, in the order of the texts; only those without an error.
        problems: All mistakes and warnings, in the order of the texts.
    """

    objects: tuple[ConfigObject, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that refuse the whole."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)


def parse(
    documents: Iterable[tuple[str, str]], *, default_namespace: str = "default", confined: bool = False
) -> ParseResult:
    """
    Return the objects that *documents* describe and everything that is wrong with them.

    Args:
        documents: File as the user named it, and its text: YAML or JSON, any number of documents, `kind: List` too.
        default_namespace: Of objects that name none, if their kind has namespaces.
        confined: That an object names another namespace is a mistake.
    """
    objects: dict[ConfigKey, ConfigObject] = {}

    def take(reader: _ObjectReader, value: Any) -> None:
        item = reader.read(value)
        if item is None or reader.document.flawed:
            return
        if (earlier := objects.pop(item.key, None)) is not None:
            reader.problems.append(_twice(item, earlier))
        objects[item.key] = item

    problems = _each_object(documents, default_namespace, take, confined=confined)
    return ParseResult(tuple(objects.values()), problems)


def identify(
    documents: Iterable[tuple[str, str]], *, default_namespace: str = "default", confined: bool = False
) -> tuple[tuple[ConfigKey, ...], tuple[Problem, ...]]:
    """
    Return which objects *documents* are about, each once, and what keeps that from being known. See `parse`.

    For deletion: no more is read than what tells an object from others, so that one whose text has been broken since it
    was applied can be deleted by it.
    """
    keys: dict[ConfigKey, None] = {}

    def take(reader: _ObjectReader, value: Any) -> None:
        if (key := reader.identify(value)) is not None:
            keys.setdefault(key)

    problems = _each_object(documents, default_namespace, take, confined=confined)
    return tuple(keys), problems


def _each_object(
    documents: Iterable[tuple[str, str]],
    default_namespace: str,
    take: Callable[[_ObjectReader, Any], None],
    *,
    confined: bool,
) -> tuple[Problem, ...]:
    """Have *take* read each object of *documents*, and return all that is wrong with them, file by file."""
    problems: list[Problem] = []
    for file, text in documents:
        found, unreadable = read(file, text)
        mine: list[Problem] = list(unreadable)
        for document in found:
            for base, value in _items(document, mine):
                reader = _ObjectReader(document, base, default_namespace, confined=confined)
                take(reader, value)
                mine.extend(reader.problems)
        problems.extend(sorted(mine, key=lambda problem: problem.origin))
    return tuple(problems)


def _twice(item: ConfigObject, earlier: ConfigObject) -> Problem:
    message = f"{item.key} is described already at {earlier.locate()}; this one takes its place."
    origin = item.locate("metadata", "name")
    return Problem(origin, "metadata.name", message, "Keep one of them.", Severity.WARNING, "duplicate-object")


def _items(document: Document, problems: list[Problem]) -> Iterator[tuple[Path, Any]]:
    """Yield the document itself, or each item of a `kind: List`, with its path."""
    value = document.value
    if not (isinstance(value, dict) and value.get("kind") == "List"):
        yield (), value
        return
    if value.get("apiVersion") != "v1":
        place = document.locate_value(("apiVersion",))
        problems.append(Problem(place, "apiVersion", "a List has `apiVersion: v1`.", code="unknown-version"))
    for key in value:
        if key not in ("apiVersion", "kind", "metadata", "items"):
            remedy = did_you_mean(key, ("apiVersion", "kind", "metadata", "items"))
            message = f"unknown field `{key}`."
            problems.append(Problem(document.locate((key,)), key, message, remedy, code="unknown-field"))
    items = value.get("items") or []
    if not isinstance(items, list):
        origin = document.locate_value(("items",))
        problems.append(Problem(origin, "items", "`items` wants a list.", code="wrong-type"))
        return
    for index, item in enumerate(items):
        yield ("items", index), item


_ENVELOPE = ("apiVersion", "kind", "metadata", "spec", "status")
"""`status` is what a control plane reports, this one too: nobody wants anything by it, and it is left out without a word."""

_METADATA = ("name", "namespace", "labels", "annotations")

_SERVER_OWNED = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "ownerReferences",
    "finalizers",
)
"""Fields of `metadata` that a Kubernetes API server writes; `kubectl get -o yaml` shows them."""


class _ObjectReader:
    """Reads one object; gathers what is wrong in `problems`."""

    def __init__(self, document: Document, base: Path, default_namespace: str, *, confined: bool) -> None:
        self.document = document
        self.base = base
        self.default_namespace = default_namespace
        self.confined = confined
        self.problems: list[Problem] = []

    def identify(self, value: Any) -> ConfigKey | None:
        """Read what tells the object from others, and nothing else."""
        if not self._is_object(value):
            return None
        kind = self._kind(value)
        metadata = self._metadata_mapping(value)
        name, namespace = ("", "") if metadata is None else self._names(metadata, kind, object_name_fault)
        if kind is None or self.problems:
            return None
        return ConfigKey(kind.name, namespace, name)

    def read(self, value: Any) -> ConfigObject | None:
        if not self._is_object(value):
            return None
        kind = self._kind(value)
        for key in value:
            # What another kind has at its top (`data`, `webhooks`) is no second mistake beside the kind itself.
            if key not in _ENVELOPE and (kind is not None or nearest(key, _ENVELOPE)):
                self._key((key,), f"unknown field `{key}`.", did_you_mean(key, _ENVELOPE), "unknown-field")
        name, namespace, labels = self._metadata(value, kind)
        if kind is None or kind.model is None:
            return None
        respelled, spec = self._spec(kind, value, name, namespace)
        if spec is None or any(problem.severity is Severity.ERROR for problem in self.problems):
            return None
        return ConfigObject(
            key=ConfigKey(kind.name, namespace, name),
            api_version=value["apiVersion"],
            spec=spec,
            manifest=_tidy(value),
            labels=labels,
            positions=self._positions(respelled),
        )

    # Problems

    def _key(self, path: Path, message: str, remedy: str, code: str, *, warning: bool = False) -> None:
        place = self.base + path
        severity = Severity.WARNING if warning else Severity.ERROR
        self.problems.append(Problem(self.document.locate(place), dotted(place), message, remedy, severity, code))

    def _value(self, path: Path, message: str, remedy: str, code: str) -> None:
        place = self.base + path
        self.problems.append(Problem(self.document.locate_value(place), dotted(place), message, remedy, code=code))

    def _string(self, value: Mapping[str, Any], path: Path) -> str | None:
        """Return the string at the end of *path*, None (and a problem) if there is none."""
        found = value.get(str(path[-1]))
        if found is None:
            self._key(path, f"`{path[-1]}` is missing.", "", "missing-field")
            return None
        if not isinstance(found, str):
            written = self.document.written(self.base + path)
            remedy = f'Put it in quotes: "{written}".' if isinstance(found, int | float | bool) else ""
            self._value(path, f"`{path[-1]}` wants a string, not `{written}`.", remedy, "wrong-type")
            return None
        return found

    # The envelope

    def _is_object(self, value: Any) -> bool:
        if not isinstance(value, dict):
            message = f"an object is a mapping with `apiVersion`, `kind`, `metadata`, not {_kind_of(value)}."
            self._value((), message, "", "wrong-type")
            return False
        if PurePath(self.document.file).name == MESH_FILE and not {"apiVersion", "kind"} & value.keys():
            message = f"{MESH_FILE} describes a mesh, which `weft up` starts; it is no object to apply."
            self._key((), message, "Name the files that its `apply` names.", "mesh-file")
            return False
        return True

    def _kind(self, value: Mapping[str, Any]) -> Kind | None:
        api_version = self._string(value, ("apiVersion",))
        name = self._string(value, ("kind",))
        if name is None:
            return None
        group = (api_version or "").rpartition("/")[0]
        kind = find(name, group)
        if kind is None:
            if api_version in _KUBERNETES_VERSIONS:
                message = f"weft does not read kind `{name}` of Kubernetes."
                remedy = "Programs are described in weft.yaml."
            else:
                message = f"unknown kind `{name}`."
                close = nearest(name, [known.kind for known in KNOWN.values()])
                # A kind of someone else's group is not ours misspelt, unless the group looks misspelt, too.
                if group and nearest(group, _GROUPS) is None and "." in group:
                    close = None
                remedy = f"Did you mean `{close}`?" if close else _HONOURED_KINDS
                meant = find(close, group) if close else None
                self._version(name, api_version, [meant] if meant else [k for k in KNOWN.values() if k.group == group])
            self._value(("kind",), message, remedy, "unknown-kind")
            return None
        self._version(name, api_version, [kind])
        if kind.model is None:
            message = f"weft does not honour kind `{name}` yet."
            self._value(("kind",), message, f"Remove the document. {_HONOURED_KINDS}", "kind-not-honoured")
        return kind

    def _version(self, name: str, api_version: str | None, kinds: Iterable[Kind]) -> None:
        """Refuse an `apiVersion` that none of *kinds* has, which a document with `kind: name` may be; none: anything."""
        known = [*dict.fromkeys(version for kind in kinds for version in kind.api_versions)]
        if api_version is not None and known and api_version not in known:
            message = f"kind `{name}` has no version `{api_version}`."
            self._value(("apiVersion",), message, f"Write one of {', '.join(known)}.", "unknown-version")

    def _metadata(self, value: Mapping[str, Any], kind: Kind | None) -> tuple[str, str, dict[str, str]]:
        """Return name, namespace and labels; empty where they are wrong."""
        metadata = self._metadata_mapping(value)
        if metadata is None:
            return "", self.default_namespace, {}
        self._metadata_fields(metadata)
        name, namespace = self._names(metadata, kind, kind.name_fault if kind is not None else object_name_fault)
        if kind is not None and not kind.namespaced and metadata.get("namespace") is not None:
            message = f"a {kind.kind} is in no namespace: it is the whole mesh's."
            self._key(("metadata", "namespace"), message, "Remove it.", "ignored", warning=True)
        labels = self._strings(metadata, "labels")
        for key, label in labels.items():
            if (fault := label_key_fault(key)) is not None:
                self._key(("metadata", "labels", key), fault, "", "bad-label")
            if (fault := label_value_fault(label)) is not None:
                self._value(("metadata", "labels", key), fault, "", "bad-label")
        self._strings(metadata, "annotations")
        return name, namespace, labels

    def _metadata_mapping(self, value: Mapping[str, Any]) -> Mapping[str, Any] | None:
        metadata = value.get("metadata")
        if isinstance(metadata, dict):
            return metadata
        if metadata is None:
            self._key(("metadata",), "`metadata` is missing.", "Add `metadata` with a `name`.", "missing-field")
        else:
            written = self.document.written((*self.base, "metadata"))
            self._value(("metadata",), f"`metadata` wants a mapping, not `{written}`.", "", "wrong-type")
        return None

    def _names(
        self, metadata: Mapping[str, Any], kind: Kind | None, name_fault: Callable[[str], str | None]
    ) -> tuple[str, str]:
        """Return name and namespace; empty where there is none."""
        name = self._string(metadata, ("metadata", "name")) or ""
        if name and (fault := name_fault(name)) is not None:
            self._value(("metadata", "name"), fault, "", "bad-name")
        if kind is not None and not kind.namespaced:
            return name, ""
        namespace = self.default_namespace
        if metadata.get("namespace") is not None:
            namespace = self._string(metadata, ("metadata", "namespace")) or namespace
            if (fault := label_fault(namespace, "a namespace")) is not None:
                self._value(("metadata", "namespace"), fault, "", "bad-name")
            elif self.confined and namespace != self.default_namespace:
                message = f"this is of namespace `{namespace}`, and `{self.default_namespace}` was asked for."
                remedy = f"Leave -n out, or write -n {namespace}."
                self._value(("metadata", "namespace"), message, remedy, "other-namespace")
        return name, namespace

    def _metadata_fields(self, metadata: Mapping[str, Any]) -> None:
        owned = [key for key in metadata if key in _SERVER_OWNED and metadata[key] is not None]
        for key in metadata:
            if key == "generateName":
                message = "`generateName` makes a new name each time, so the object could not be applied twice."
                self._key(("metadata", key), message, "Write `name`.", "not-honoured")
            elif key not in _METADATA and key not in _SERVER_OWNED:
                remedy = did_you_mean(key, _METADATA)
                self._key(("metadata", key), f"unknown field `{key}`.", remedy, "unknown-field")
        if owned:
            listed = ", ".join(f"`{key}`" for key in owned)
            message = f"{listed}: a Kubernetes API server's own; weft does not read it."
            self._key(("metadata", owned[0]), message, "Remove it.", "ignored", warning=True)

    def _strings(self, metadata: Mapping[str, Any], field: str) -> dict[str, str]:
        found = metadata.get(field)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self._value(("metadata", field), f"`{field}` wants a mapping of strings.", "", "wrong-type")
            return {}
        result: dict[str, str] = {}
        for key in found:
            text = self._string(found, ("metadata", field, key))
            if text is not None:
                result[key] = text
        return result

    # The spec

    def _spec(self, kind: Kind, value: Mapping[str, Any], name: str, namespace: str) -> tuple[Mapping[Path, Path], Any]:
        assert kind.model is not None
        raw = value.get("spec")
        if raw is None:
            self._key(("spec",), "`spec` is missing.", "", "missing-field")
            return {}, None
        base = (*self.base, "spec")
        checked = check(kind.model, raw, self.document, base=base, honour=HONOURED[kind.name], kind="spec")
        self.problems.extend(checked.problems)
        if checked.value is None:
            return {}, None
        found = RULES[kind.name](checked.value, name, namespace)
        self.problems.extend(checked.admit(found, self.document, base))
        # A word that the API does not know is one mistake, not also one that weft does not honour.
        unknown = {problem.path for problem in self.problems if problem.code == "unknown-value"}
        self.problems = [
            problem for problem in self.problems if problem.code != "not-honoured" or problem.path not in unknown
        ]
        return checked.respelled, checked.value

    def _positions(self, respelled: Mapping[Path, Path]) -> dict[Path, Origin]:
        """Return the places below the object, by the names that the reference has, whatever spelling was used."""
        cut = len(self.base)
        positions = {path[cut:]: origin for path, origin in self.document.positions.items() if path[:cut] == self.base}
        if not respelled:
            return positions
        canonical = {("spec", *written): ("spec", *path) for path, written in respelled.items()}
        return {_renamed(path, canonical): origin for path, origin in positions.items()}


def _renamed(path: Path, canonical: Mapping[Path, Path]) -> Path:
    for length in range(len(path), 0, -1):
        if (named := canonical.get(path[:length])) is not None:
            return named + path[length:]
    return path


_HONOURED_KINDS = f"Honoured: {', '.join(KINDS)}."
_GROUPS = frozenset(kind.group for kind in KNOWN.values())
_KUBERNETES_VERSIONS = ("v1", "apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1")


def _kind_of(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"`{value}`"


def _tidy(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest without what a server writes."""
    tidy = {key: part for key, part in value.items() if key != "status"}
    tidy["metadata"] = {key: part for key, part in value["metadata"].items() if key not in _SERVER_OWNED}
    return tidy
