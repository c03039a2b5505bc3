"""
What weft honours today, field by field: the one table. Everything else of a known kind is refused by name.

A path is the JSON names from `spec` down, without list indices and map keys. A path that is listed is honoured with all
that lies below it, or with the values named only. `docs/reference/api-support.md` is generated from this table by
`python -m weft.api.support`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weft.api.kinds import GATEWAY_API, KUBERNETES_GATEWAY


@dataclass(frozen=True, slots=True)
class Honour:
    """
    Whether a field is honoured.

    Attributes:
        values: The values that are; empty stands for all.
        below: Fields that are, where not all of them are; empty stands for all.
    """

    values: tuple[str, ...] = ()
    below: Mapping[str, Honour] = field(default_factory=dict)


WHOLLY = Honour()
_EXPORTED = ("*",)


def _under(prefix: str, names: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in (names.split() if isinstance(names, str) else names))


_VIRTUAL_SERVICE: Mapping[str, tuple[str, ...]] = {
    "hosts": (),
    "gateways": (),
    "exportTo": _EXPORTED,
    "http.name": (),
    **dict.fromkeys(
        _under(
            "http.match",
            "name uri scheme method authority headers queryParams withoutHeaders port gateways ignoreUriCase"
            " sourceLabels sourceNamespace",
        ),
        (),
    ),
    "http.route": (),
    "http.redirect": (),
    "http.directResponse": (),
    "http.rewrite": (),
    "http.timeout": (),
    **dict.fromkeys(_under("http", "mirror mirrors mirrorPercent mirrorPercentage"), ()),
    **dict.fromkeys(_under("http.retries", "attempts perTryTimeout retryOn backoff retryIgnorePreviousHosts"), ()),
    **dict.fromkeys(_under("http.fault.delay", "fixedDelay percentage percent"), ()),
    **dict.fromkeys(_under("http.fault.abort", "httpStatus percentage"), ()),
    "http.corsPolicy": (),
    "http.headers": (),
    "tcp.match.port": (),
    "tcp.route": (),
}

_PORT_POLICY: Mapping[str, tuple[str, ...]] = {
    "loadBalancer.simple": ("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "UNSPECIFIED", "LEAST_CONN"),
    "loadBalancer.consistentHash": (),
    **dict.fromkeys(_under("connectionPool.tcp", "maxConnections connectTimeout"), ()),
    **dict.fromkeys(
        _under(
            "connectionPool.http",
            "http1MaxPendingRequests http2MaxRequests maxRequestsPerConnection maxRetries h2UpgradePolicy",
        ),
        (),
    ),
    **dict.fromkeys(
        _under(
            "outlierDetection",
            "consecutive5xxErrors consecutiveGatewayErrors interval baseEjectionTime maxEjectionPercent"
            " minHealthPercent",
        ),
        (),
    ),
    "tls.mode": ("DISABLE", "ISTIO_MUTUAL"),
}

_POLICY: Mapping[str, tuple[str, ...]] = {
    **_PORT_POLICY,
    "portLevelSettings.port": (),
    **{f"portLevelSettings.{path}": values for path, values in _PORT_POLICY.items()},
}

_DESTINATION_RULE: Mapping[str, tuple[str, ...]] = {
    "host": (),
    "exportTo": _EXPORTED,
    **{f"trafficPolicy.{path}": values for path, values in _POLICY.items()},
    "subsets.name": (),
    "subsets.labels": (),
    **{f"subsets.trafficPolicy.{path}": values for path, values in _POLICY.items()},
}

_GATEWAY: Mapping[str, tuple[str, ...]] = {
    "selector": (),
    "servers.port.number": (),
    "servers.port.name": (),
    "servers.port.protocol": ("HTTP",),
    "servers.hosts": (),
}


_FILTERS = "type requestHeaderModifier responseHeaderModifier"
_FILTER_TYPES = ("RequestHeaderModifier", "ResponseHeaderModifier")
_MORE_FILTERS = "requestMirror requestRedirect urlRewrite cors"
_MORE_FILTER_TYPES = ("RequestMirror", "RequestRedirect", "URLRewrite", "CORS")
_PARENT_KINDS = ("Gateway", "Service")

_HTTP_ROUTE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_under("parentRefs", "name namespace sectionName port"), ()),
    "parentRefs.group": (GATEWAY_API, "", "core"),
    "parentRefs.kind": _PARENT_KINDS,
    "hostnames": (),
    "rules.name": (),
    "rules.matches": (),
    **dict.fromkeys(_under("rules.filters", f"{_FILTERS} {_MORE_FILTERS}"), ()),
    "rules.filters.type": (*_FILTER_TYPES, *_MORE_FILTER_TYPES),
    **dict.fromkeys(_under("rules.backendRefs", "name namespace port weight"), ()),
    "rules.backendRefs.group": ("", "core"),
    "rules.backendRefs.kind": ("Service",),
    **dict.fromkeys(_under("rules.backendRefs.filters", _FILTERS), ()),
    "rules.backendRefs.filters.type": _FILTER_TYPES,
    "rules.timeouts": (),
    "rules.retry": (),
    "useDefaultGateways": ("None",),
}

_KUBERNETES_GATEWAY: Mapping[str, tuple[str, ...]] = {
    "gatewayClassName": (),
    "addresses.type": ("Hostname",),
    "addresses.value": (),
    **dict.fromkeys(_under("listeners", "name hostname port allowedRoutes"), ()),
    "listeners.protocol": ("HTTP",),
    "defaultScope": ("None",),
}

_SERVICE: Mapping[str, tuple[str, ...]] = {
    "ports.name": (),
    "ports.port": (),
    "ports.targetPort": (),
    "ports.appProtocol": (),
    "ports.protocol": ("TCP",),
    "selector": (),
    "type": ("ClusterIP",),
    "sessionAffinity": ("None",),
    "ipFamilies": ("IPv4",),
    "ipFamilyPolicy": ("SingleStack", "PreferDualStack"),
}


def _tree(table: Mapping[str, tuple[str, ...]]) -> Honour:
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    for path, values in table.items():
        head, _, rest = path.partition(".")
        groups.setdefault(head, {})[rest] = values
    return Honour(
        below={head: Honour(values=group[""]) if "" in group else _tree(group) for head, group in groups.items()}
    )


HONOURED: Mapping[str, Honour] = {
    "VirtualService": _tree(_VIRTUAL_SERVICE),
    "DestinationRule": _tree(_DESTINATION_RULE),
    "Gateway": _tree(_GATEWAY),
    "PeerAuthentication": WHOLLY,
    "HTTPRoute": _tree(_HTTP_ROUTE),
    KUBERNETES_GATEWAY: _tree(_KUBERNETES_GATEWAY),
    "GatewayClass": _tree({"controllerName": (), "description": ()}),
    "ReferenceGrant": WHOLLY,
    "Service": _tree(_SERVICE),
}
"""By kind, rooted at `spec`."""
