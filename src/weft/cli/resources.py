"""
Envoy's resources as Python values: decoded for `weft proxy-config`, whatever is packed inside them.

The message types come from the package `xds-protos`; a type is imported when it is met.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from weft.errors import WeftError

TYPES = {
    "listeners": "type.googleapis.com/envoy.config.listener.v3.Listener",
    "routes": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "clusters": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "endpoints": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
}


def decode(type_url: str, value: bytes) -> dict[str, Any]:
    """
    Return the whole message as protobuf JSON with the protos' own field names; everything packed inside is unpacked.

    Raises:
        WeftError: The type is unknown or the bytes are not of it.
    """
    message = _class(type_url)()
    try:
        message.ParseFromString(value)
    except DecodeError as exc:
        raise WeftError(f"This is no {type_url}: {exc}") from exc
    _import_packed(message)
    # By way of the text: what protobuf makes of a packed message is an OrderedDict, which YAML has no form for.
    decoded = json.loads(json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None))
    assert isinstance(decoded, dict)
    return decoded


def decode_all(items: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return what `GET /v1/proxies/{workload}/resources` answers, decoded, in order of name."""
    return [
        decode(item["type_url"], base64.b64decode(item["value"]))
        for item in sorted(items, key=lambda item: item["name"])
    ]


def _class(type_url: str) -> type[Message]:
    name = type_url.rpartition("/")[2]
    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName(name)
    except KeyError:
        _import_package(name.rpartition(".")[0])
        try:
            found = pool.FindMessageTypeByName(name)
        except KeyError as exc:
            raise WeftError(f"This weft does not know the type {name}.") from exc
    return GetMessageClass(found)


def _import_package(package: str) -> None:
    """Import every generated module of a proto package (`envoy.config.listener.v3`), which registers its messages."""
    try:
        module = import_module(package)
    except ModuleNotFoundError:
        return
    for found in iter_modules(module.__path__):
        if found.name.endswith("_pb2"):
            import_module(f"{package}.{found.name}")


def _import_packed(message: Message) -> None:
    """Import the types of every `Any` in *message*, at any depth."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        inner = _class(message.type_url)()  # type: ignore[attr-defined]
        inner.ParseFromString(message.value)  # type: ignore[attr-defined]
        _import_packed(inner)
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        else:
            values = list(value) if field.is_repeated else [value]
        for item in values:
            _import_packed(item)
