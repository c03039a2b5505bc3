"""
What translation makes: serialised xDS resources, and what differs between two sets of them.

The bytes are deterministic: equal messages have equal bytes in one build of protobuf, so a version is a hash of the
bytes and "nothing changed" can be decided without looking inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import attrgetter
from typing import Any, TypeAlias

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE_CONFIGURATION = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
CLUSTER_LOAD_ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

VERSION_BYTES = 8
"""64 bits: two contents of one resource that collide would be one in 2^64 changes."""


@dataclass(frozen=True, slots=True)
class Resource:
    """
    One resource as it travels.

    Attributes:
        type_url: Of the message in *value*.
        name: Istio's name for it (docs/reference/interfaces.md, 4.1).
        version: Hexadecimal hash of *value*.
        value: The serialised message.
    """

    type_url: str
    name: str
    version: str = field(repr=False)
    value: bytes = field(repr=False)


Resources: TypeAlias = tuple[Resource, ...]
"""The whole content of one proxy's view, in order of type URL and name."""


def serialise(message: Any) -> bytes:
    """Return the bytes of a protobuf message; maps inside it are in order of key."""
    value: bytes = message.SerializeToString(deterministic=True)
    return value


def resource(type_url: str, name: str, value: bytes) -> Resource:
    """Return the resource with these bytes and their version."""
    return Resource(type_url, name, blake2b(value, digest_size=VERSION_BYTES).hexdigest(), value)


def in_order(resources: list[Resource]) -> Resources:
    """Return *resources* in the order that `Resources` promises; they may be in it mostly already."""
    return tuple(sorted(resources, key=attrgetter("type_url", "name")))


@dataclass(frozen=True, slots=True)
class Difference:
    """Names of one type: made new, made different, taken away. Each in order."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def affected(before: Resources, after: Resources) -> Mapping[str, Difference]:
    """
    Return what differs between two sets of resources, by type URL; a type without a difference is absent.

    For `weft diff`, `apply --dry-run` and receipts: empty means that the proxy need not hear of the change.
    """
    old = {(item.type_url, item.name): item.version for item in before}
    new = {(item.type_url, item.name): item.version for item in after}
    differences = {}
    for type_url in sorted({key[0] for key in old.keys() | new.keys()}):
        mine = {name: version for (kind, name), version in old.items() if kind == type_url}
        theirs = {name: version for (kind, name), version in new.items() if kind == type_url}
        difference = Difference(
            added=tuple(sorted(theirs.keys() - mine.keys())),
            changed=tuple(sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name])),
            removed=tuple(sorted(mine.keys() - theirs.keys())),
        )
        if difference != Difference():
            differences[type_url] = difference
    return differences
