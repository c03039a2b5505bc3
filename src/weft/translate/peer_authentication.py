"""
What a port of a workload accepts of its callers: the PeerAuthentication in force there.

Used by the inbound side (which filter chains), by endpoints (what clients send) and by the control plane (which order
a change of it needs). Source: Istio's documentation of PeerAuthentication, and its ComposePeerAuthentication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from weft.model import ROOT_NAMESPACE, ConfigObject, Snapshot, Workload

Path = tuple[str | int, ...]


class Mode(StrEnum):
    """STRICT accepts mutual TLS only, DISABLE plain text only, PERMISSIVE both."""

    STRICT = "STRICT"
    PERMISSIVE = "PERMISSIVE"
    DISABLE = "DISABLE"


DEFAULT_MODE = Mode.STRICT
"""Where no policy says anything. Istio's is PERMISSIVE, for workloads that had no sidecar yesterday; here each has."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """
    What a port accepts, and why.

    Attributes:
        item: The policy that says so; None for weft's default.
        path: Where in it.
    """

    mode: Mode = DEFAULT_MODE
    item: ConfigObject | None = None
    path: Path = ()


def accepted(policies: Sequence[ConfigObject], labels: Mapping[str, str], port: int) -> Accepted:
    """
    Return what a workload with *labels* accepts on *port*, which it binds.

    The narrowest policy decides: port, workload, namespace, mesh; what says UNSET leaves it to the next wider one. Of
    several that are equally wide the oldest holds.

    Args:
        policies: Those of the root namespace and of the workload's, oldest first.
    """
    found = Accepted()
    mesh, namespace, workload = _levels(policies, labels)
    for item in (mesh, namespace, workload):
        if item is not None and item.spec.mtls is not None and item.spec.mtls.mode != "UNSET":
            found = Accepted(Mode(item.spec.mtls.mode), item, ("spec", "mtls", "mode"))
    if workload is not None and workload.spec.port_level_mtls:
        for key, settings in workload.spec.port_level_mtls.items():
            if int(key) == port and settings.mode != "UNSET":
                return Accepted(Mode(settings.mode), workload, ("spec", "portLevelMtls", key, "mode"))
    return found


def _levels(
    policies: Sequence[ConfigObject], labels: Mapping[str, str]
) -> tuple[ConfigObject | None, ConfigObject | None, ConfigObject | None]:
    """Return the policy of the mesh, of the namespace and of the workload."""
    mesh = namespace = workload = None
    for item in policies:
        wanted = item.spec.selector.match_labels if item.spec.selector is not None else {}
        if not wanted and item.key.namespace == ROOT_NAMESPACE:
            mesh = mesh or item
        elif not wanted:
            namespace = namespace or item
        elif item.key.namespace != ROOT_NAMESPACE and all(labels.get(key) == value for key, value in wanted.items()):
            workload = workload or item
    return mesh, namespace, workload


def modes(snapshot: Snapshot) -> dict[tuple[str, str, int], Mode]:
    """Return what each port in the mesh accepts, by namespace, workload and port; only those behind a sidecar."""
    by_namespace: dict[str, list[ConfigObject]] = {}
    for item in snapshot.of_kind("PeerAuthentication"):
        by_namespace.setdefault(item.key.namespace, []).append(item)
    mesh = by_namespace.get(ROOT_NAMESPACE, [])
    return {
        (workload.namespace, workload.name, port.number): _of_port(mesh, by_namespace, workload, port.number)
        for workload in snapshot.workloads.values()
        if workload.meshed
        for port in workload.ports
    }


def _of_port(
    mesh: Sequence[ConfigObject], by_namespace: Mapping[str, Sequence[ConfigObject]], workload: Workload, port: int
) -> Mode:
    own = by_namespace.get(workload.namespace, ()) if workload.namespace != ROOT_NAMESPACE else ()
    return accepted((*mesh, *own), workload.labels, port).mode
