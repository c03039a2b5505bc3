"""
What must hold between the fields of a spec: the APIs' own validation, in weft's words.

One module for each kind or group of small ones, each with functions `findings(spec, name, namespace)`. The models have checked every single value by
then. Fields that weft refuses whole (`weft.api.honoured`) have no rules yet: a rule comes with the field.

Source: istio.io/istio `pkg/config/validation` of 2026-08; for the Gateway API its CRDs' own rules (CEL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from weft.api.check import Finding
from weft.api.kinds import KUBERNETES_GATEWAY
from weft.api.rules import (
    destination_rule,
    gateway,
    gateway_api,
    http_route,
    peer_authentication,
    service,
    virtual_service,
)

RULES: Mapping[str, Callable[[Any, str, str], Iterator[Finding]]] = {
    "VirtualService": virtual_service.findings,
    "DestinationRule": destination_rule.findings,
    "Gateway": gateway.findings,
    "PeerAuthentication": peer_authentication.findings,
    "HTTPRoute": http_route.findings,
    KUBERNETES_GATEWAY: gateway_api.gateway,
    "GatewayClass": gateway_api.gateway_class,
    "ReferenceGrant": gateway_api.reference_grant,
    "Service": service.findings,
}
"""By kind: the rules for a spec, given the object's name and namespace."""
