"""
Who is attached to what in the Gateway API: which listeners of a Gateway admit a route and for which hostnames, and
whether a reference to a backend holds.

Pure questions about objects, asked by translation (which routes a proxy gets) and by `weft.api.conditions` (what
people are told about it), so that both answer alike. Source: the Gateway API's reference, HTTPRoute and Gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from weft.api.gateway_api import (
    BackendObjectReference,
    Gateway,
    HTTPRoute,
    LabelSelector,
    Listener,
    ParentReference,
)
from weft.api.kinds import GATEWAY_API
from weft.model import ConfigObject, Service, ServicePort

CONTROLLER = "weft.dev/gateway-controller"
"""The controller that weft is to a GatewayClass."""

CONTROLLERS = frozenset({CONTROLLER, "istio.io/gateway-controller"})
"""Controllers whose classes weft implements: its own, and Istio's, whose documents it takes as they are."""

CLASSES = frozenset({"istio", "weft"})
"""Classes that are there without a document, as Istio makes its own."""

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The one label that a namespace has here: Kubernetes sets it on each, and weft has no objects for namespaces."""

GATEWAY_NAME_LABEL = "gateway.networking.k8s.io/gateway-name"
"""Of a gateway workload: the one Gateway that it implements (GEP-1762)."""

EVERY_HOST = "*"


class Reason(StrEnum):
    """Why a route is not accepted by a parent, or a reference not resolved, by the API's names."""

    NO_MATCHING_PARENT = "NoMatchingParent"
    NOT_ALLOWED = "NotAllowedByListeners"
    NO_MATCHING_HOSTNAME = "NoMatchingListenerHostname"
    NOT_PERMITTED = "RefNotPermitted"
    BACKEND_NOT_FOUND = "BackendNotFound"


def of_service(ref: ParentReference) -> bool:
    """Whether *ref* means a Service: the route is for the mesh (GAMMA)."""
    return ref.kind == "Service" and ref.group in ("", "core")


def parent_key(ref: ParentReference | BackendObjectReference, namespace: str) -> str:
    """Return `namespace/name` of what *ref* in an object of *namespace* means."""
    return f"{ref.namespace or namespace}/{ref.name}"


@dataclass(frozen=True, slots=True)
class Admission:
    """
    What a Gateway says to one reference of a route.

    Attributes:
        listeners: The listeners that admit it: (index in `spec.listeners`, hostnames). At least one host each.
        reason, message: Why there are none.
    """

    listeners: tuple[tuple[int, tuple[str, ...]], ...] = ()
    reason: Reason | None = None
    message: str = ""


def admission(route: ConfigObject, ref: ParentReference, gateway: ConfigObject) -> Admission:
    """Return which listeners of *gateway*, that *ref* of *route* means, admit it."""
    spec: Gateway = gateway.spec
    meant = [
        (index, listener)
        for index, listener in enumerate(spec.listeners)
        if ref.section_name in ("", listener.name) and ref.port in (None, listener.port)
    ]
    if not meant:
        wanted = f"called `{ref.section_name}`" if ref.section_name else f"on port {ref.port}"
        return Admission((), Reason.NO_MATCHING_PARENT, f"the Gateway has no listener {wanted}.")
    allowed = [
        (index, listener)
        for index, listener in meant
        if _admits_kind(listener, route.key.kind) and _admits_namespace(listener, route, gateway)
    ]
    if not allowed:
        message = "no listener of the Gateway allows routes of this kind from this namespace."
        return Admission((), Reason.NOT_ALLOWED, message)
    hosts = [(index, intersection(listener.hostname, route.spec.hostnames)) for index, listener in allowed]
    if not (shared := tuple((index, names) for index, names in hosts if names)):
        offered = ", ".join(listener.hostname for _, listener in allowed)
        message = f"no hostname of the route is one of the Gateway's ({offered})."
        return Admission((), Reason.NO_MATCHING_HOSTNAME, message)
    return Admission(shared)


def _admits_kind(listener: Listener, kind: str) -> bool:
    kinds = listener.allowed_routes.kinds
    return not kinds or any(allowed.group == GATEWAY_API and allowed.kind == kind for allowed in kinds)


def _admits_namespace(listener: Listener, route: ConfigObject, gateway: ConfigObject) -> bool:
    allowed = listener.allowed_routes.namespaces
    if allowed.from_ == "Selector":
        return allowed.selector is not None and selects(allowed.selector, {NAMESPACE_LABEL: route.key.namespace})
    return allowed.from_ == "All" or route.key.namespace == gateway.key.namespace


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether *selector* holds for something that carries *labels*, by Kubernetes' rules."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for requirement in selector.match_expressions:
        there, value = requirement.key in labels, labels.get(requirement.key)
        holds = {
            "In": value in requirement.values,
            "NotIn": value not in requirement.values,
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not holds[requirement.operator]:
            return False
    return True


def intersection(offered: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """
    Return the hosts that a listener's hostname and a route's have in common; of a wildcard and a name in it, the name.

    Empty *offered* and *wanted* stand for every host.
    """
    if not wanted:
        return (offered or EVERY_HOST,)
    found = []
    for host in wanted:
        if covers(offered or EVERY_HOST, host):
            found.append(host)
        elif covers(host, offered):
            found.append(offered)
    return tuple(dict.fromkeys(found))


def covers(pattern: str, host: str) -> bool:
    """Whether every name that *host* stands for is one of *pattern*'s; both may have a wildcard in front."""
    if pattern.startswith("*"):
        # `*.example.com` is not `example.com`; `*` is everything.
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern == host


def patterns(host: str) -> Iterator[str]:
    """Yield every host that covers *host*, the most specific first: itself, the wildcards around it, all."""
    yield host
    rest = host.removeprefix("*.")
    labels = rest.split(".")
    for index in range(0 if rest != host else 1, len(labels)):
        if (pattern := "*." + ".".join(labels[index:])) != host:
            yield pattern
    if host != EVERY_HOST:
        yield EVERY_HOST


def specificity(host: str) -> tuple[bool, int]:
    """Return what orders hosts by the API's precedence: names before wildcards, then by length."""
    return ("*" not in host, len(host))


@dataclass(frozen=True, slots=True)
class Backend:
    """
    What a reference to a backend means.

    Attributes:
        hostname: Of the service, whether it is there or not.
        reason, message: Why requests sent there are answered with 500; None if it holds.
        field: The field at fault.
    """

    hostname: str
    port: int
    reason: Reason | None = None
    message: str = ""
    field: str = "name"


def backend(
    ref: BackendObjectReference,
    namespace: str,
    *,
    hostname: str,
    service: Service | None,
    grants: Iterable[ConfigObject],
) -> Backend:
    """
    Return what *ref* in an HTTPRoute of *namespace* means.

    Args:
        ref: The reference.
        namespace: Of the route.
        hostname: The full name of the service that is meant.
        service: That service, if there is one.
        grants: The ReferenceGrants of the service's namespace.
    """
    port = ref.port or 0
    if ref.namespace not in ("", namespace) and not granted(ref, namespace, grants):
        message = f"no ReferenceGrant in `{ref.namespace}` allows HTTPRoutes of `{namespace}` to refer to `{ref.name}`."
        return Backend(hostname, port, Reason.NOT_PERMITTED, message, "namespace")
    if service is None:
        message = f"there is no service `{parent_key(ref, namespace)}`."
        return Backend(hostname, port, Reason.BACKEND_NOT_FOUND, message)
    if service.port(port) is None:
        has = ", ".join(str(item.number) for item in service.ports) or "none"
        message = f"the service `{ref.name}` has no port {port}; it has {has}."
        return Backend(hostname, port, Reason.BACKEND_NOT_FOUND, message, "port")
    return Backend(hostname, port)


def granted(ref: BackendObjectReference, namespace: str, grants: Iterable[ConfigObject]) -> bool:
    """Whether one of *grants* allows HTTPRoutes of *namespace* to refer to *ref*."""
    return any(
        any(
            source.group == GATEWAY_API and source.kind == "HTTPRoute" and source.namespace == namespace
            for source in grant.spec.from_
        )
        and any(
            target.group in ("", "core") and target.kind == "Service" and target.name in ("", ref.name)
            for target in grant.spec.to
        )
        for grant in grants
    )


def service_ports(ref: ParentReference, service: Service) -> tuple[ServicePort, ...]:
    """Return the ports of *service* that a reference to it as a parent means."""
    return tuple(
        port for port in service.ports if ref.port in (None, port.number) and ref.section_name in ("", port.name)
    )


def references(route: HTTPRoute) -> Iterator[tuple[tuple[str | int, ...], BackendObjectReference]]:
    """Yield each reference to a backend with its path from the document's root."""
    for index, rule in enumerate(route.rules):
        at = ("spec", "rules", index)
        for position, ref in enumerate(rule.backend_refs):
            yield (*at, "backendRefs", position), ref
        for position, item in enumerate(rule.filters):
            if item.request_mirror is not None:
                yield (*at, "filters", position, "requestMirror", "backendRef"), item.request_mirror.backend_ref


def implemented(class_name: str, classes: Iterable[ConfigObject]) -> bool:
    """Whether weft implements Gateways of the class *class_name*; *classes* are the GatewayClasses."""
    for item in classes:
        if item.key.name == class_name:
            return item.spec.controller_name in CONTROLLERS
    return class_name in CLASSES


def gateway_address(value: str, namespace: str) -> tuple[str, str]:
    """Return (namespace, name) of the gateway that an address `gateway` or `gateway.namespace...` means."""
    name, dot, rest = value.partition(".")
    return (rest.partition(".")[0] if dot else namespace, name)
