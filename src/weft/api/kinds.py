"""
Which kinds weft reads: group, versions, the model of the spec. Everything else is refused by name.

A kind that is listed with a model of None is one that weft knows and does not honour yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from weft.api import gateway_api, kubernetes
from weft.api.names import object_name_fault, service_name_fault
from weft.api.networking import DestinationRule, Gateway, VirtualService
from weft.api.security import PeerAuthentication


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind.

    Attributes:
        name: Unique: the kind, with its group behind a dot where two groups have a kind of that name.
        group: Empty for Kubernetes' own.
        versions: In order of preference; the first is what weft writes.
        model: The spec's class.
        name_fault: Says what is wrong with an object's name; one of `weft.api.names`.
        namespaced: Whether its objects are in namespaces; those of others are the whole mesh's (Kubernetes: cluster-scoped).
    """

    name: str
    group: str
    versions: tuple[str, ...]
    model: type[BaseModel] | None = None
    name_fault: Callable[[str], str | None] = object_name_fault
    namespaced: bool = True

    @property
    def kind(self) -> str:
        """What `kind` says (`Gateway`)."""
        return self.name.partition(".")[0]

    @property
    def api_versions(self) -> tuple[str, ...]:
        """What `apiVersion` may say (`networking.istio.io/v1`)."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)


_NETWORKING = "networking.istio.io"
_SECURITY = "security.istio.io"
_THREE = ("v1", "v1beta1", "v1alpha3")
_GATEWAY_API = gateway_api.GROUP

KUBERNETES_GATEWAY = f"Gateway.{_GATEWAY_API}"
"""The Gateway of the Gateway API; `Gateway` alone is Istio's."""

KNOWN: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("VirtualService", _NETWORKING, _THREE, VirtualService),
        Kind("DestinationRule", _NETWORKING, _THREE, DestinationRule),
        Kind("Gateway", _NETWORKING, _THREE, Gateway),
        Kind("HTTPRoute", _GATEWAY_API, ("v1", "v1beta1"), gateway_api.HTTPRoute),
        Kind(KUBERNETES_GATEWAY, _GATEWAY_API, ("v1", "v1beta1"), gateway_api.Gateway),
        Kind("GatewayClass", _GATEWAY_API, ("v1", "v1beta1"), gateway_api.GatewayClass, namespaced=False),
        Kind("ReferenceGrant", _GATEWAY_API, ("v1", "v1beta1"), gateway_api.ReferenceGrant),
        Kind("Service", "", ("v1",), kubernetes.Service, service_name_fault),
        Kind("ServiceEntry", _NETWORKING, _THREE),
        Kind("Sidecar", _NETWORKING, _THREE),
        Kind("WorkloadEntry", _NETWORKING, _THREE),
        Kind("WorkloadGroup", _NETWORKING, _THREE),
        Kind("ProxyConfig", _NETWORKING, ("v1beta1",)),
        Kind("EnvoyFilter", _NETWORKING, ("v1alpha3",)),
        Kind("AuthorizationPolicy", _SECURITY, ("v1", "v1beta1")),
        Kind("PeerAuthentication", _SECURITY, ("v1", "v1beta1"), PeerAuthentication),
        Kind("RequestAuthentication", _SECURITY, ("v1", "v1beta1")),
        Kind("Telemetry", "telemetry.istio.io", ("v1", "v1alpha1")),
        Kind("WasmPlugin", "extensions.istio.io", ("v1alpha1",)),
        Kind("TrafficExtension", "extensions.istio.io", ("v1alpha1",)),
        Kind("GRPCRoute", _GATEWAY_API, ("v1",)),
        Kind("TLSRoute", _GATEWAY_API, ("v1", "v1alpha3", "v1alpha2")),
        Kind("TCPRoute", _GATEWAY_API, ("v1", "v1alpha2")),
        Kind("UDPRoute", _GATEWAY_API, ("v1", "v1alpha2")),
        Kind("ListenerSet", _GATEWAY_API, ("v1",)),
        Kind("BackendTLSPolicy", _GATEWAY_API, ("v1", "v1alpha3")),
    )
}
"""Every kind of Istio's API and of the Gateway API by name, honoured or not."""

KINDS: Mapping[str, Kind] = {name: kind for name, kind in KNOWN.items() if kind.model is not None}
"""The kinds that weft honours."""


def find(kind: str, group: str) -> Kind | None:
    """Return the kind that a document with this `kind` means; *group* decides where two have it."""
    return KNOWN.get(f"{kind}.{group}") or KNOWN.get(kind)
