"""
Where a refused resource comes from: the field that a proxy would not have, and the line that somebody wrote.

weft-proxy begins its reason with the field's path (`Cluster.outlier_detection.x: ...`); Envoy's is prose. Every
generated thing carries its origin in the metadata `weft`; the one nearest to the field is the one to look at.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import symbol_database
from google.protobuf.message import DecodeError, Message

FIELD = re.compile(
    r"^(?:[^:\s]+: )?((?:Listener|Cluster|RouteConfiguration|ClusterLoadAssignment)(?:\.\w+(?:\[[^\]]*\])?)+)"
)
STEP = re.compile(r"\.(\w+)(?:\[([^\]]*)\])?")

ORIGINS_SHOWN = 3
"""Of a resource whose reason names no field: where its parts come from."""


def field_of(message: str) -> str:
    """Return the path of the field that *message*, a proxy's reason, names; empty if it names none."""
    found = FIELD.match(message)
    return found.group(1) if found else ""


def origins_of(type_url: str, value: bytes, field: str) -> list[str]:
    """
    Return the places (`reviews.yaml:8:5`) that a resource, or what is at *field* in it, comes from.

    Empty where nobody wrote it: it is weft's own, and the refusal a mistake of weft's.
    """
    try:
        message = symbol_database.Default().GetSymbol(type_url.rpartition("/")[2])()
        message.ParseFromString(value)
    except (KeyError, DecodeError):
        return []
    if field and (nearest := _nearest(message, field)):
        return [nearest]
    found: dict[str, None] = {}
    _collect(message, found)
    return list(found)[:ORIGINS_SHOWN]


def _nearest(message: Message, field: str) -> str:
    """Follow *field* as far as it goes and return the last origin on the way."""
    origin = _origin(message)
    value: Any = message
    for name, index in STEP.findall(field):
        if not isinstance(value, Message):
            break
        if value.DESCRIPTOR.full_name == "google.protobuf.Any":
            value = _unpacked(value)
            if value is None:
                break
        if name not in value.DESCRIPTOR.fields_by_name:
            break
        value = getattr(value, name)
        if index:
            try:
                value = value[int(index)] if index.isdigit() else value[index]
            except (IndexError, KeyError, TypeError):
                break
        if isinstance(value, Message):
            origin = _origin(value) or origin
    return origin


def _collect(message: Message, found: dict[str, None]) -> None:
    if origin := _origin(message):
        found[origin] = None
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for item in value if isinstance(value, list) or hasattr(value, "add") else (value,):
            inner = _unpacked(item) if item.DESCRIPTOR.full_name == "google.protobuf.Any" else item
            if inner is not None and len(found) < ORIGINS_SHOWN:
                _collect(inner, found)


def _unpacked(packed: Any) -> Message | None:
    try:
        inner = symbol_database.Default().GetSymbol(packed.type_url.rpartition("/")[2])()
        inner.ParseFromString(packed.value)
    except (KeyError, DecodeError):
        return None
    return inner


def _origin(message: Any) -> str:
    """Return the place in a message's own metadata; empty if it has none, or nobody wrote it."""
    if "metadata" not in message.DESCRIPTOR.fields_by_name or not hasattr(message.metadata, "filter_metadata"):
        return ""
    if "weft" not in message.metadata.filter_metadata:
        return ""
    fields = message.metadata.filter_metadata["weft"].fields
    origin = str(fields["origin"].string_value) if "origin" in fields else ""
    return "" if origin == "default" else origin
