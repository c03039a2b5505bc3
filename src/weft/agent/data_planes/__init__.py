"""
The proxies that can stand beside a workload, one module each: `weft_proxy` (the default) and `envoy`.

What they have in common as processes (start, readiness, starting again) is `weft.agent.proxy`; what they are told and
can do is `weft.translate`. Here is what differs: where the executable is, how it is called, how it is asked to end.
"""

from __future__ import annotations

from weft.agent.data_planes.base import DataPlane, Executable, ProxyMissing, ProxyTooOld
from weft.agent.data_planes.envoy import Envoy
from weft.agent.data_planes.weft_proxy import WeftProxy
from weft.data_plane import ENVOY, WEFT_PROXY

__all__ = ["DATA_PLANES", "DataPlane", "Executable", "ProxyMissing", "ProxyTooOld"]

DATA_PLANES: dict[str, DataPlane] = {WEFT_PROXY: WeftProxy(), ENVOY: Envoy()}
"""By the name in `WorkloadSpec.data_plane`."""
