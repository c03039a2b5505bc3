"""
Where everything generated comes from, as xDS metadata under `weft` (docs/reference/interfaces.md, 4.1).

`weft why` reads it back; Envoy and weft-proxy carry it and never act on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import struct_pb2

from weft.model import ConfigObject

NAMESPACE = "weft"
DEFAULT = "default"
"""The origin of a value that nobody wrote."""


def rule(path: Sequence[str | int]) -> str:
    """Return the dotted form of *path*: `("spec", "http", 0)` is `spec.http[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def describe(
    item: ConfigObject, *path: str | int, origins: Mapping[str, str] | None = None, **more: str
) -> dict[str, Any]:
    """
    Return the description of something that *path* within *item* brought about.

    Args:
        item: The object.
        path: From the document's root (`"spec", "http", 0`).
        origins: Place of each single value, `"default"` for weft's own.
        more: Further entries.
    """
    description: dict[str, Any] = {
        "kind": item.key.kind,
        "namespace": item.key.namespace,
        "name": item.key.name,
        "origin": str(item.locate(*path)),
        "rule": rule(path),
        **more,
    }
    if origins:
        description["origins"] = dict(origins)
    return description


def describe_default(origins: Sequence[str] = (), **more: str) -> dict[str, Any]:
    """Return the description of something that is there without anyone's document."""
    description: dict[str, Any] = {"origin": DEFAULT, **more}
    if origins:
        description["origins"] = dict.fromkeys(origins, DEFAULT)
    return description


def annotate(metadata: Any, description: Mapping[str, Any]) -> None:
    """Write *description* into *metadata* (an `envoy.config.core.v3.Metadata`)."""
    _fill(metadata.filter_metadata[NAMESPACE], description)


def _fill(struct: struct_pb2.Struct, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, str):
            struct.fields[key].string_value = value
        else:
            _fill(struct.fields[key].struct_value, value)
