"""Rules for HTTPRoute: what the CRD's schema demands between fields, and what no proxy could carry out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import timedelta

from weft.api.attachment import of_service
from weft.api.check import Finding
from weft.api.gateway_api import (
    EVERYTHING,
    FILTER_FIELDS,
    BackendObjectReference,
    HTTPCORSFilter,
    HTTPHeaderFilter,
    HTTPPathMatch,
    HTTPPathModifier,
    HTTPRequestMirrorFilter,
    HTTPRoute,
    HTTPRouteFilter,
    HTTPRouteMatch,
    HTTPRouteRule,
    HTTPValueMatch,
    ParentReference,
)
from weft.api.names import framing_fault, header_name_fault, host_fault, is_address, object_name_fault
from weft.api.networking import json_name
from weft.api.rules import shared
from weft.api.yaml import Path
from weft.model import Severity

LIMITS = {"parentRefs": 32, "hostnames": 16, "rules": 16, "matches": 64, "filters": 16, "backendRefs": 16}
"""The CRD's `maxItems`."""

MAX_MATCHES = 128
"""Of all rules of a route together."""

NONE = timedelta(0)
"""A timeout of zero is none."""

_PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})+\Z")
_NOT_IN_PATH = ("//", "/./", "/../", "%2f", "%2F", "#")
_HEADER_VALUE = re.compile(r"[!-~]+(?:[\t ][!-~]+)*\Z")
"""The CRD's pattern, written so that each text can be read in one way only: this engine tries all of them."""

_ORIGIN = re.compile(r"(?:\*|https?://(?:(?:\*\.)?(?:[a-zA-Z0-9-]+\.)*[a-zA-Z0-9-]+|\*)(?::[0-9]{1,5})?)\Z")
"""The CRD's pattern."""


def findings(spec: HTTPRoute, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    yield from _limit(("parentRefs",), spec.parent_refs)
    yield from _limit(("hostnames",), spec.hostnames)
    yield from _limit(("rules",), spec.rules)
    if not spec.parent_refs:
        message = "without `parentRefs` this route is attached to nothing, so it has no effect."
        remedy = "Add `parentRefs: [{name: my-gateway}]`, or `{group: '', kind: Service, name: my-service}`."
        yield Finding((), message, remedy, "no-effect", Severity.WARNING, concerns=("parentRefs",))
    yield from _parents(spec.parent_refs, namespace)
    for index, host in enumerate(spec.hostnames):
        yield from shared.hostname(("hostnames", index), host)
    if spec.hostnames and spec.parent_refs and all(map(of_service, spec.parent_refs)):
        message = "`hostnames` have no effect on a route for a Service: it is for every name of the service."
        hinges = (("parentRefs",),)
        yield Finding(("hostnames",), message, "Remove them.", "no-effect", Severity.WARNING, hinges=hinges)
    seen: dict[str, int] = {}
    total = 0
    for index, rule in enumerate(spec.rules):
        path: Path = ("rules", index)
        if rule.name and rule.name in seen:
            message = f"the rule name `{rule.name}` is already used at {{first}}."
            first = ("rules", seen[rule.name], "name")
            yield Finding((*path, "name"), message, "Give each rule its own name.", at_value=True, first=first)
        if rule.name and (fault := object_name_fault(rule.name)) is not None:
            yield Finding((*path, "name"), fault, code="bad-name", at_value=True)
        seen.setdefault(rule.name, index)
        total += len(rule.matches)
        yield from _rule(path, rule)
    if total > MAX_MATCHES:
        message = f"all rules of a route together have at most {MAX_MATCHES} matches, not {total}."
        yield Finding(("rules",), message, "Divide it into two routes.", "out-of-range")


def _limit(path: Path, items: Sequence[object]) -> Iterator[Finding]:
    most = LIMITS[str(path[-1])]
    if len(items) > most:
        yield Finding(path, f"`{path[-1]}` has at most {most} items, not {len(items)}.", code="out-of-range")


def _parents(parents: Sequence[ParentReference], namespace: str) -> Iterator[Finding]:
    seen: dict[tuple[object, ...], int] = {}
    for index, ref in enumerate(parents):
        path: Path = ("parentRefs", index)
        yield from shared.reference(path, ref.name, ref.namespace)
        if (ref.kind == "Service") is not (ref.group in ("", "core")):
            right = '`group: ""`' if ref.kind == "Service" else "no `group`"
            message = f"there is no kind `{ref.kind}` in the group `{ref.group}`."
            where = "group" if ref.group in ("", "core") else "kind"
            remedy, hinges = f"A {ref.kind} has {right}.", ((*path, "group"), (*path, "kind"))
            yield Finding((*path, where), message, remedy, "unknown-value", at_value=True, hinges=hinges)
        whole = (ref.kind, ref.namespace or namespace, ref.name)
        section = (ref.section_name, ref.port)
        for other, position in seen.items():
            if other[:3] == whole and (other[3:] == section or not any(other[3:]) or not any(section)):
                message = f"`{ref.name}` is a parent at {{first}} already."
                remedy = "Give each a `sectionName` or `port` of its own."
                yield Finding(path, message, remedy, "duplicate-parent", first=("parentRefs", position))
                break
        seen.setdefault((*whole, *section), index)


def _rule(path: Path, rule: HTTPRouteRule) -> Iterator[Finding]:
    yield from _limit((*path, "matches"), rule.matches)
    yield from _limit((*path, "backendRefs"), rule.backend_refs)
    for index, match in enumerate(rule.matches):
        yield from _match((*path, "matches", index), match)
    yield from _filters(path, rule.filters, rule.matches)
    redirects = rule.filter("RequestRedirect") is not None
    if redirects and rule.backend_refs:
        message = "a rule either redirects or has `backendRefs`, not both."
        yield Finding((*path, "backendRefs"), message, "Keep one of them.", "conflict", concerns=())
    if not rule.backend_refs and not redirects:
        message = "this rule has no `backendRefs`: requests that it matches are answered with 500."
        yield Finding(path, message, "Add one.", "no-backend", Severity.WARNING, concerns=("backendRefs", "filters"))
    for index, ref in enumerate(rule.backend_refs):
        place = (*path, "backendRefs", index)
        yield from _backend(place, ref)
        yield from _filters(place, ref.filters, rule.matches)
    if rule.backend_refs and not any(ref.weight for ref in rule.backend_refs):
        message = "all weights are 0: requests that this rule matches are answered with 500."
        yield Finding((*path, "backendRefs"), message, "Give one of them a weight.", "no-backend", Severity.WARNING)
    request = (rule.timeouts and rule.timeouts.request) or NONE
    if rule.timeouts is not None and rule.timeouts.backend_request and rule.timeouts.backend_request > request > NONE:
        message = "`backendRequest` is for one try, so it cannot be longer than `request`, which is for all."
        yield Finding((*path, "timeouts", "backendRequest"), message, code="out-of-range", at_value=True)


def _backend(path: Path, ref: BackendObjectReference) -> Iterator[Finding]:
    yield from shared.reference(path, ref.name, ref.namespace)
    if ref.port is None:
        message = "`port` is missing: the port of the service."
        yield Finding(path, message, code="missing-field", concerns=("port",))


def _match(path: Path, match: HTTPRouteMatch) -> Iterator[Finding]:
    yield from _path((*path, "path"), match.path)
    yield from _values((*path, "headers"), match.headers, header=True)
    yield from _values((*path, "queryParams"), match.query_params, header=False)


def _path(path: Path, match: HTTPPathMatch) -> Iterator[Finding]:
    value, place = match.value, (*path, "value")
    hinges = ((*path, "type"),)  # what a path may be
    if match.type == "RegularExpression":
        yield from shared.regex(place, value)
        return
    if not value.startswith("/"):
        message = f"a path begins with a slash, not as `{value}`."
        yield Finding(place, message, code="bad-path", at_value=True, hinges=hinges)
        return
    wrong = next((part for part in _NOT_IN_PATH if part in value), None)
    if wrong is None:
        wrong = next((part for part in ("/..", "/.") if value.endswith(part)), None)
    if wrong is not None:
        message = f"no request has `{wrong}` in its path by the time it is matched."
        yield Finding(place, message, "Write the path in its normal form.", "bad-path", at_value=True, hinges=hinges)
    elif not _PATH.match(value):
        message = f"`{value}` holds a character that no path has."
        yield Finding(place, message, "Write it as %XX.", "bad-path", at_value=True, hinges=hinges)


def _values(path: Path, values: Sequence[HTTPValueMatch], *, header: bool) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        place = (*path, index)
        if (fault := header_name_fault(value.name)) is not None:
            yield Finding((*place, "name"), fault, code="bad-header", at_value=True)
        key = value.name.lower() if header else value.name
        if key in seen:
            message = f"`{value.name}` has a condition at {{first}} already; that one alone counts."
            first = (*path, seen[key])
            yield Finding(place, message, "Keep one.", "ineffective-match", Severity.WARNING, first=first)
        seen.setdefault(key, index)
        if value.type == "RegularExpression":
            yield from shared.regex((*place, "value"), value.value)
        elif header and not _HEADER_VALUE.match(value.value):
            message = "a header's value is printable ASCII, without a space at its ends."
            hinges = ((*place, "type"),)
            yield Finding((*place, "value"), message, code="bad-header", at_value=True, hinges=hinges)


# filters


def _filters(path: Path, filters: Sequence[HTTPRouteFilter], matches: Sequence[HTTPRouteMatch]) -> Iterator[Finding]:
    yield from _limit((*path, "filters"), filters)
    seen: dict[str, int] = {}
    for index, item in enumerate(filters):
        place = (*path, "filters", index)
        yield from _filter(place, item, matches or (EVERYTHING,))
        if item.type in seen and item.type != "RequestMirror":
            message = f"there is a {item.type} at {{first}} already."
            first = (*path, "filters", seen[item.type])
            yield Finding(place, message, "Join them.", "duplicate-filter", first=first)
        seen.setdefault(item.type, index)
    if {"RequestRedirect", "URLRewrite"} <= seen.keys():
        message = "a rule either redirects or rewrites, not both."
        yield Finding((*path, "filters", seen["URLRewrite"]), message, "Keep one of them.", "conflict")


def _filter(path: Path, item: HTTPRouteFilter, matches: Sequence[HTTPRouteMatch]) -> Iterator[Finding]:
    hinges = ((*path, "type"),)
    for kind, attribute in FILTER_FIELDS.items():
        name = json_name(attribute)
        given = getattr(item, attribute) is not None
        if given and kind != item.type:
            message = f"`{name}` has no place in a filter of type {item.type}."
            yield Finding((*path, name), message, f"Write `type: {kind}`.", "conflict", concerns=(), hinges=hinges)
        elif not given and kind == item.type:
            message = f"`{name}` is missing: the settings of a {kind}."
            yield Finding(path, message, code="missing-field", concerns=("type", name))
    for name, edits in (
        ("requestHeaderModifier", item.request_header_modifier),
        ("responseHeaderModifier", item.response_header_modifier),
    ):
        if edits is not None:
            yield from _header_edits((*path, name), edits)
    if item.request_redirect is not None:
        place = (*path, "requestRedirect")
        yield from _new_path((*place, "path"), item.request_redirect.path, matches)
        yield from _new_host((*place, "hostname"), item.request_redirect.hostname)
    if item.url_rewrite is not None:
        place = (*path, "urlRewrite")
        yield from _new_path((*place, "path"), item.url_rewrite.path, matches)
        yield from _new_host((*place, "hostname"), item.url_rewrite.hostname)
    if item.request_mirror is not None:
        yield from _mirror((*path, "requestMirror"), item.request_mirror)
    if item.cors is not None:
        yield from _cors((*path, "cors"), item.cors)


def _header_edits(path: Path, edits: HTTPHeaderFilter) -> Iterator[Finding]:
    for kind, names in (
        ("set", [header.name for header in edits.set]),
        ("add", [header.name for header in edits.add]),
        ("remove", list(edits.remove)),
    ):
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            place: Path = (*path, kind, index) if kind == "remove" else (*path, kind, index, "name")
            fault = header_name_fault(name) or framing_fault(name, removed=kind == "remove")
            if fault is not None:
                yield Finding(place, fault, code="bad-header", at_value=True)
            elif name.lower() == "host":
                message = "a header modifier cannot edit `host`."
                yield Finding(place, message, "Use a URLRewrite with `hostname`.", "bad-header", at_value=True)
            elif name.lower() in seen:
                first = (*path, kind, seen[name.lower()])
                message = f"`{name}` stands in `{kind}` at {{first}} already."
                yield Finding(place, message, "Keep one.", "conflict", at_value=True, first=first)
            seen.setdefault(name.lower(), index)
    for kind, headers in (("set", edits.set), ("add", edits.add)):
        for index, header in enumerate(headers):
            if not _HEADER_VALUE.match(header.value):
                message = "a header's value is printable ASCII, without a space at its ends."
                yield Finding((*path, kind, index, "value"), message, code="bad-header", at_value=True)


def _new_path(path: Path, modifier: HTTPPathModifier | None, matches: Sequence[HTTPRouteMatch]) -> Iterator[Finding]:
    if modifier is None:
        return
    full, prefix = modifier.replace_full_path, modifier.replace_prefix_match
    for kind, name, value in (
        ("ReplaceFullPath", "replaceFullPath", full),
        ("ReplacePrefixMatch", "replacePrefixMatch", prefix),
    ):
        if modifier.type == kind and value is None:
            yield Finding(path, f"`{name}` is missing.", code="missing-field", concerns=("type", name))
        elif modifier.type != kind and value is not None:
            message = f"`{name}` has no place beside `type: {modifier.type}`."
            yield Finding((*path, name), message, f"Write `type: {kind}`.", "conflict", hinges=((*path, "type"),))
        elif value and not value.startswith("/"):
            yield Finding((*path, name), f"a path begins with a slash, not as `{value}`.", code="bad-path")
        elif value and not _PATH.match(value):
            yield Finding((*path, name), f"`{value}` holds a character that no path has.", code="bad-path")
    if modifier.type == "ReplacePrefixMatch" and (len(matches) != 1 or matches[0].path.type != "PathPrefix"):
        hinges = ((*path[:2], "matches"),)
        message = "`ReplacePrefixMatch` wants a rule with one match, by `PathPrefix`: else no prefix is matched."
        yield Finding((*path, "type"), message, "Divide the rule.", "conflict", at_value=True, hinges=hinges)


def _new_host(path: Path, hostname: str) -> Iterator[Finding]:
    if hostname and (is_address(hostname) or host_fault(hostname, wildcard=False) is not None):
        yield Finding(path, f"`{hostname}` is no DNS name.", code="bad-host", at_value=True)


def _mirror(path: Path, mirror: HTTPRequestMirrorFilter) -> Iterator[Finding]:
    yield from _backend((*path, "backendRef"), mirror.backend_ref)
    ref = mirror.backend_ref
    if ref.kind != "Service" or ref.group not in ("", "core"):
        message = f"weft does not honour the kind `{ref.kind}` of `{ref.group}` here yet."
        yield Finding((*path, "backendRef"), message, "Name a Service.", "not-honoured")
    if mirror.percent is not None and mirror.fraction is not None:
        message = "a share is either `percent` or `fraction`, not both."
        yield Finding((*path, "fraction"), message, "Keep one of them.", "conflict")
    if mirror.fraction is not None and mirror.fraction.numerator > mirror.fraction.denominator:
        message = "a share is at most the whole: `numerator` is above `denominator`."
        yield Finding((*path, "fraction", "numerator"), message, code="out-of-range", at_value=True)


def _cors(path: Path, cors: HTTPCORSFilter) -> Iterator[Finding]:
    for name, values in (
        ("allowOrigins", cors.allow_origins),
        ("allowMethods", cors.allow_methods),
        ("allowHeaders", cors.allow_headers),
    ):
        if "*" in values and len(values) > 1:
            message = f'"*" stands for all, so nothing can stand beside it in `{name}`.'
            yield Finding((*path, name), message, 'Keep "*" or the others.', "conflict")
    for index, origin in enumerate(cors.allow_origins):
        if not _ORIGIN.match(origin):
            message = f"`{origin}` is no origin: a scheme and a host, perhaps a port."
            remedy = 'Write `https://example.com`, `https://*.example.com:8443` or `"*"`, say.'
            yield Finding((*path, "allowOrigins", index), message, remedy, "bad-origin", at_value=True)
    for name, headers in (("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for index, header in enumerate(headers):
            if (fault := header_name_fault(header)) is not None:
                yield Finding((*path, name, index), fault, code="bad-header", at_value=True)
