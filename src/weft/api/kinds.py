"""
Which kinds weft reads: group, versions, the model of the spec. Everything else is refused by name.

A kind that is listed without a model is one that weft knows and does not honour yet. The models themselves are loaded
when one is asked for: to build them takes a quarter of a second, and who only names a kind need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from weft.api.names import object_name_fault, service_name_fault

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind.

    Attributes:
        name: Unique: the kind, with its group behind a dot where two groups have a kind of that name.
        group: Empty for Kubernetes' own.
        versions: In order of preference; the first is what weft writes.
        spec: Where the spec's class is (`module:class`); empty for a kind that is not honoured.
        name_fault: Says what is wrong with an object's name; one of `weft.api.names`.
        namespaced: Whether its objects are in namespaces; those of others are the whole mesh's (Kubernetes: cluster-scoped).
    """

    name: str
    group: str
    versions: tuple[str, ...]
    spec: str = ""
    name_fault: Callable[[str], str | None] = object_name_fault
    namespaced: bool = True

    @property
    def kind(self) -> str:
        """What `kind` says (`Gateway`)."""
        return self.name.partition(".")[0]

    @property
    def model(self) -> type[BaseModel] | None:
        """The spec's class; None for a kind that is not honoured."""
        if not self.spec:
            return None
        module, _, name = self.spec.partition(":")
        model: type[BaseModel] = getattr(import_module(module), name)
        return model

    @property
    def api_versions(self) -> tuple[str, ...]:
        """What `apiVersion` may say (`networking.istio.io/v1`)."""
        return tuple(f"{self.group}/{version}" if self.group else version for version in self.versions)


GATEWAY_API = "gateway.networking.k8s.io"

_NETWORKING = "networking.istio.io"
_SECURITY = "security.istio.io"
_THREE = ("v1", "v1beta1", "v1alpha3")

KUBERNETES_GATEWAY = f"Gateway.{GATEWAY_API}"
"""The Gateway of the Gateway API; `Gateway` alone is Istio's."""

KNOWN: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("VirtualService", _NETWORKING, _THREE, "weft.api.networking:VirtualService"),
        Kind("DestinationRule", _NETWORKING, _THREE, "weft.api.networking:DestinationRule"),
        Kind("Gateway", _NETWORKING, _THREE, "weft.api.networking:Gateway"),
        Kind("HTTPRoute", GATEWAY_API, ("v1", "v1beta1"), "weft.api.gateway_api:HTTPRoute"),
        Kind(KUBERNETES_GATEWAY, GATEWAY_API, ("v1", "v1beta1"), "weft.api.gateway_api:Gateway"),
        Kind("GatewayClass", GATEWAY_API, ("v1", "v1beta1"), "weft.api.gateway_api:GatewayClass", namespaced=False),
        Kind("ReferenceGrant", GATEWAY_API, ("v1", "v1beta1"), "weft.api.gateway_api:ReferenceGrant"),
        Kind("Service", "", ("v1",), "weft.api.kubernetes:Service", service_name_fault),
        Kind("ServiceEntry", _NETWORKING, _THREE),
        Kind("Sidecar", _NETWORKING, _THREE),
        Kind("WorkloadEntry", _NETWORKING, _THREE),
        Kind("WorkloadGroup", _NETWORKING, _THREE),
        Kind("ProxyConfig", _NETWORKING, ("v1beta1",)),
        Kind("EnvoyFilter", _NETWORKING, ("v1alpha3",)),
        Kind("AuthorizationPolicy", _SECURITY, ("v1", "v1beta1")),
        Kind("PeerAuthentication", _SECURITY, ("v1", "v1beta1"), "weft.api.security:PeerAuthentication"),
        Kind("RequestAuthentication", _SECURITY, ("v1", "v1beta1")),
        Kind("Telemetry", "telemetry.istio.io", ("v1", "v1alpha1")),
        Kind("WasmPlugin", "extensions.istio.io", ("v1alpha1",)),
        Kind("TrafficExtension", "extensions.istio.io", ("v1alpha1",)),
        Kind("GRPCRoute", GATEWAY_API, ("v1",)),
        Kind("TLSRoute", GATEWAY_API, ("v1", "v1alpha3", "v1alpha2")),
        Kind("TCPRoute", GATEWAY_API, ("v1", "v1alpha2")),
        Kind("UDPRoute", GATEWAY_API, ("v1", "v1alpha2")),
        Kind("ListenerSet", GATEWAY_API, ("v1",)),
        Kind("BackendTLSPolicy", GATEWAY_API, ("v1", "v1alpha3")),
    )
}
"""Every kind of Istio's API and of the Gateway API by name, honoured or not."""

KINDS: Mapping[str, Kind] = {name: kind for name, kind in KNOWN.items() if kind.spec}
"""The kinds that weft honours."""


def find(kind: str, group: str) -> Kind | None:
    """Return the kind that a document with this `kind` means; *group* decides where two have it."""
    return KNOWN.get(f"{kind}.{group}") or KNOWN.get(kind)
