"""
The proxies that can stand beside a workload, one module each: `weft_proxy` (the default) and `envoy`.

What they have in common as processes (start, readiness, starting again) is `weft.agent.proxy`; what they are told and
can do is `weft.translate`. Here is what differs: where the executable is, how it is called, how it is asked to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.agent.data_planes.base import DataPlane, Executable, ProxyMissing, ProxyTooOld
from weft.agent.data_planes.envoy import Envoy
from weft.agent.data_planes.weft_proxy import WeftProxy
from weft.data_plane import ENVOY, WEFT_PROXY

if TYPE_CHECKING:
    from weft.agent.paths import MeshPaths, WorkloadPaths
    from weft.agent.workload import WorkloadSpec

__all__ = ["DATA_PLANES", "DataPlane", "Executable", "ProxyMissing", "ProxyTooOld", "files_of"]

DATA_PLANES: dict[str, DataPlane] = {WEFT_PROXY: WeftProxy(), ENVOY: Envoy()}
"""By the name in `WorkloadSpec.data_plane`."""


def files_of(mesh: MeshPaths, name: str, spec: WorkloadSpec) -> WorkloadPaths:
    """
    Return the files of the workload *name*, with those that the proxy of *spec* needs.

    Raises:
        UsageError: As `MeshPaths.workload` says.
    """
    published = [item.port for item in spec.published]
    return mesh.workload(name, relayed=DATA_PLANES[spec.data_plane].relayed, published=published)
