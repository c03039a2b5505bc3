"""A configuration object as it was applied: who it is, its typed spec, and where each part of it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from weft.model.origin import Origin

ROOT_NAMESPACE = "istio-system"
"""Where policies without a selector hold for the whole mesh: Istio's default for `rootNamespace`."""


class ConfigKey(NamedTuple):
    """
    What identifies an object; `namespace` is empty for kinds that have none.

    `kind` implies the API group: it is the bare kind (`VirtualService`), with the group behind a dot where another API
    has a kind of that name (`Gateway.gateway.networking.k8s.io`).
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class ConfigObject:
    """
    One applied object.

    Attributes:
        key: Kind, namespace, name.
        api_version: As written (`networking.istio.io/v1`).
        spec: The frozen pydantic model of the kind (`weft.api.networking.VirtualService`, ...).
        manifest: The document as parsed, for `get -o yaml` and `diff`.
        labels: `metadata.labels`.
        positions: Path within the document -> its place. Holds at least every mapping and list item under `spec`.
        generation: Counts the changes of this object's spec, from 1.
        created: Revision at which this object first appeared; older objects win where Istio says so.
    """

    key: ConfigKey
    api_version: str
    spec: Any
    manifest: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[tuple[str | int, ...], Origin] = field(default_factory=dict, compare=False, repr=False)
    generation: int = 1
    created: int = 0

    def locate(self, *path: str | int) -> Origin:
        """Return the place of *path* (`"spec", "http", 0`), or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if (origin := self.positions.get(path[:length])) is not None:
                return origin
        return Origin("-", 1)
