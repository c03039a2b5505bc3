"""Rules for the Gateway API's Gateway, GatewayClass and ReferenceGrant. Those for HTTPRoute are `http_route.py`."""

from __future__ import annotations

from collections.abc import Iterator

from weft.api.attachment import CONTROLLERS, NAMESPACE_LABEL
from weft.api.check import Finding
from weft.api.gateway_api import Gateway, GatewayClass, LabelSelector, Listener, ReferenceGrant
from weft.api.names import host_fault, label_fault, object_name_fault
from weft.api.nearest import did_you_mean
from weft.api.rules import shared
from weft.api.yaml import Path
from weft.model import Severity

PROTOCOLS = ("HTTP", "HTTPS", "TLS", "TCP", "UDP")
ROUTE_KINDS = ("HTTPRoute", "GRPCRoute")
"""Kinds of routes that a listener for HTTP may allow; weft has the first."""

OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")

MAX_LISTENERS = 64


def gateway(spec: Gateway, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of a Gateway."""
    if not spec.listeners:
        message = "a Gateway needs at least one entry in `listeners`."
        yield Finding((), message, code="missing-field", concerns=("listeners",))
    if len(spec.listeners) > MAX_LISTENERS:
        message = f"`listeners` has at most {MAX_LISTENERS} items, not {len(spec.listeners)}."
        yield Finding(("listeners",), message, code="out-of-range")
    for index, address in enumerate(spec.addresses):
        if address.type == "IPAddress":
            message = "weft does not honour `type: IPAddress` yet, which is the default."
            remedy = "Write `type: Hostname` and the name of a gateway, or leave `addresses` out."
            yield Finding(("addresses", index), message, remedy, "not-honoured", concerns=("type",))
        elif host_fault(address.value, wildcard=False) is not None:
            message = f"`{address.value}` is no name of a gateway."
            remedy = "Write the name that weft.yaml gives it under `gateways`."
            yield Finding(("addresses", index), message, remedy, "bad-host", concerns=("value",))
    names: dict[str, int] = {}
    places: dict[tuple[int, str, str], int] = {}
    for index, listener in enumerate(spec.listeners):
        path: Path = ("listeners", index)
        yield from _listener(path, listener)
        if listener.name in names:
            message = f"the listener name `{listener.name}` is already used at {{first}}."
            first = ("listeners", names[listener.name], "name")
            yield Finding((*path, "name"), message, "Give each its own.", "duplicate-name", at_value=True, first=first)
        names.setdefault(listener.name, index)
        place = (listener.port, listener.protocol, listener.hostname)
        if place in places:
            message = "the listener at {first} has the same port, protocol and hostname."
            yield Finding(path, message, "Keep one.", "conflict", first=("listeners", places[place]))
        places.setdefault(place, index)


def _listener(path: Path, listener: Listener) -> Iterator[Finding]:
    if (fault := object_name_fault(listener.name)) is not None:
        yield Finding((*path, "name"), fault, code="bad-name", at_value=True)
    if listener.protocol not in PROTOCOLS and "/" not in listener.protocol:
        message = f"`{listener.protocol}` is no protocol of a listener."
        remedy = did_you_mean(listener.protocol, PROTOCOLS)
        yield Finding((*path, "protocol"), message, remedy, "unknown-value", at_value=True)
    if listener.hostname:
        yield from shared.hostname((*path, "hostname"), listener.hostname)
    place = (*path, "allowedRoutes", "kinds")
    for index, kind in enumerate(listener.allowed_routes.kinds):
        if kind.kind not in ROUTE_KINDS:
            message = f"no {kind.kind} can be attached to a listener for {listener.protocol}."
            yield Finding((*place, index, "kind"), message, "Allow HTTPRoute.", "unknown-value", at_value=True)
        elif kind.kind != "HTTPRoute":
            message = f"weft does not honour kind `{kind.kind}` yet, so none can be attached."
            yield Finding((*place, index, "kind"), message, "", "no-effect", Severity.WARNING, at_value=True)
    namespaces = listener.allowed_routes.namespaces
    place = (*path, "allowedRoutes", "namespaces")
    if namespaces.from_ == "Selector" and namespaces.selector is None:
        message = "`selector` is missing, so routes of no namespace are allowed."
        yield Finding(place, message, "Add it.", "missing-field", concerns=("from", "selector"))
    if namespaces.selector is not None:
        if namespaces.from_ != "Selector":
            message = f"`selector` has no effect with `from: {namespaces.from_}`."
            yield Finding(
                (*place, "selector"), message, "Write `from: Selector`.", "conflict", hinges=((*place, "from"),)
            )
        yield from _selector((*place, "selector"), namespaces.selector)


def _selector(path: Path, selector: LabelSelector) -> Iterator[Finding]:
    message = f"a namespace of weft has the label `{NAMESPACE_LABEL}` and no other."
    for key in selector.match_labels:
        if key != NAMESPACE_LABEL:
            yield Finding((*path, "matchLabels", key), message, "", "unknown-label", Severity.WARNING)
    for index, requirement in enumerate(selector.match_expressions):
        place = (*path, "matchExpressions", index)
        if requirement.key != NAMESPACE_LABEL:
            yield Finding((*place, "key"), message, "", "unknown-label", Severity.WARNING, at_value=True)
        if requirement.operator not in OPERATORS:
            fault = f"`{requirement.operator}` is no operator of a selector."
            remedy = did_you_mean(requirement.operator, OPERATORS)
            yield Finding((*place, "operator"), fault, remedy, "unknown-value", at_value=True)
            continue
        wants = requirement.operator in ("In", "NotIn")
        if wants is not bool(requirement.values):
            fault = f"`{requirement.operator}` {'wants' if wants else 'has no'} `values`."
            code = "missing-field" if wants else "conflict"
            yield Finding(place, fault, code=code, concerns=("operator", "values"))


def gateway_class(spec: GatewayClass, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong with a GatewayClass."""
    if "/" not in spec.controller_name:
        message = f"a controller's name is a domain and a path, not `{spec.controller_name}`."
        remedy = f"Write {sorted(CONTROLLERS)[0]}."
        yield Finding(("controllerName",), message, remedy, "bad-name", at_value=True)
    elif spec.controller_name not in CONTROLLERS:
        message = f"weft is not `{spec.controller_name}`, so it leaves Gateways of this class alone."
        remedy = f"Its classes have one of {', '.join(sorted(CONTROLLERS))}."
        yield Finding(("controllerName",), message, remedy, "foreign-class", Severity.WARNING, at_value=True)


def reference_grant(spec: ReferenceGrant, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong with a ReferenceGrant."""
    for field, items in (("from", spec.from_), ("to", spec.to)):
        if not items:
            message = f"`{field}` is empty, so nothing is granted."
            yield Finding((field,), message, code="missing-field")
    for index, source in enumerate(spec.from_):
        if (fault := label_fault(source.namespace, "a namespace")) is not None:
            yield Finding(("from", index, "namespace"), fault, code="bad-name", at_value=True)
        if source.kind != "HTTPRoute":
            message = f"weft follows no reference of a {source.kind}."
            yield Finding(("from", index, "kind"), message, "", "no-effect", Severity.WARNING, at_value=True)
    for index, target in enumerate(spec.to):
        if target.kind != "Service":
            message = f"weft follows no reference to a {target.kind}."
            yield Finding(("to", index, "kind"), message, "", "no-effect", Severity.WARNING, at_value=True)
