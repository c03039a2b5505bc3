"""
`security.istio.io`: PeerAuthentication, whole, as frozen pydantic models; the conventions are those of
`weft.api.networking`.

Source: github.com/istio/api of 2026-07, `security/v1beta1/peer_authentication.proto`, and the schema of its CRD.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from weft.api.networking import Message, WorkloadSelector


class MutualTLS(Message):
    """What a port accepts. UNSET takes what the next wider policy says: workload, namespace, mesh, weft's default."""

    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] = "UNSET"


class PeerAuthentication(Message):
    """
    What workloads accept of their callers: mutual TLS, plain text, or both.

    Without a selector it holds for its namespace, and in the root namespace for the mesh. The keys of `portLevelMtls`
    are ports that the workload binds, not ports of a service.
    """

    selector: WorkloadSelector | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: Mapping[str, MutualTLS] | None = None
