"""Rules for VirtualService."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus

from weft.api import header_format
from weft.api.check import Finding
from weft.api.names import (
    MESH,
    PSEUDO_HEADERS,
    control_character_fault,
    framing_fault,
    header_name_fault,
    host_fault,
    is_address,
    label_fault,
    port_fault,
    qualified_gateway,
    subset_fault,
)
from weft.api.nearest import did_you_mean
from weft.api.networking import (
    REDIRECT_CODES,
    CorsPolicy,
    Destination,
    HeaderOperations,
    Headers,
    HTTPDirectResponse,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRetry,
    HTTPRewrite,
    HTTPRoute,
    HTTPRouteDestination,
    Message,
    Percent,
    RegexRewrite,
    RouteDestination,
    StringMatch,
    TCPRoute,
    VirtualService,
)
from weft.api.regex import capturing_groups
from weft.api.rules import shared
from weft.api.yaml import Path
from weft.model import Severity

MAX_TOTAL_WEIGHT = 2**32 - 1
"""Envoy's limit for the sum of a weighted route."""

# fmt: off
RETRY_CONDITIONS = frozenset((
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
    "retriable-status-codes", "retriable-headers", "envoy-ratelimited", "cancelled",
    "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
))
# fmt: on
"""What `retryOn` may list beside status codes: Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`."""

CONDITIONS_AFTER_SENDING = frozenset(("5xx", "gateway-error", "reset"))
"""Those that hold, too, when a connection breaks after the whole request was sent."""

IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))
"""RFC 9110 9.2.2."""

HTTP3_CONDITION = "http3-post-connect-failure"
"""Istio takes it; weft speaks no HTTP/3."""

_JWT_CLAIM = "@request.auth.claims"


def findings(spec: VirtualService, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    for_mesh = not spec.gateways or MESH in spec.gateways
    yield from _hosts(spec, for_mesh)
    yield from _gateway_names(("gateways",), spec.gateways)
    yield from shared.export_to(spec.export_to, namespace)
    if not (spec.http or spec.tcp or spec.tls):
        yield Finding((), "a VirtualService needs rules.", "Add `http` or `tcp`.", concerns=("http", "tcp", "tls"))
    for index, route in enumerate(spec.http):
        yield from _http_route(("http", index), route)
    for index, tcp in enumerate(spec.tcp):
        yield from _tcp_route(("tcp", index), tcp)
    if spec.tcp and any(name != MESH for name in spec.gateways):
        yield _no_tcp_at_gateways(for_mesh)
    for field, routes in (("http", spec.http), ("tcp", spec.tcp), ("tls", spec.tls)):
        yield from _unreachable(field, routes)


def _no_tcp_at_gateways(for_mesh: bool) -> Finding:
    """What `weft.api.honoured` cannot say field by field: the servers of gateways speak HTTP, so nothing follows `tcp`."""
    hinges = (("gateways",),)
    if for_mesh:
        message = "`tcp` is for sidecars alone: weft does not honour it at gateways yet."
        return Finding(("tcp",), message, "", "no-effect", Severity.WARNING, concerns=(), hinges=hinges)
    message = "weft does not honour `tcp` at gateways yet."
    remedy = "Remove it, or name `mesh` in `gateways`, for sidecars."
    return Finding(("tcp",), message, remedy, "not-honoured", concerns=(), hinges=hinges)


def _hosts(spec: VirtualService, for_mesh: bool) -> Iterator[Finding]:
    if not spec.hosts:
        message = "`hosts` is missing: a VirtualService without hosts is a delegate, which weft does not honour yet."
        yield Finding((), message, "Add `hosts`.", "missing-field", concerns=("hosts",))
    for index, host in enumerate(spec.hosts):
        fault = host_fault(host)
        if fault and not is_address(host):
            yield Finding(("hosts", index), fault, code="bad-host", at_value=True)
        elif host == "*" and for_mesh:
            message = "`*` cannot stand for every host of the mesh."
            remedy = "Name the hosts, or name `gateways` without `mesh`."
            hinges = (("gateways",),)
            yield Finding(("hosts", index), message, remedy, "bad-host", at_value=True, hinges=hinges)
        for earlier, other in enumerate(spec.hosts[:index]):
            if host_covers(other, host) or host_covers(host, other):
                message = f"`{host}` is already covered by `{other}` at {{first}}."
                yield Finding(
                    ("hosts", index),
                    message,
                    "Keep one of them.",
                    "duplicate-host",
                    at_value=True,
                    first=("hosts", earlier),
                )
                break


def host_covers(pattern: str, host: str) -> bool:
    """Return whether every name that *host* stands for (it may be a wildcard too) is one that *pattern* stands for."""
    if pattern == host:
        return True
    return pattern.startswith("*") and host.removeprefix("*").endswith(pattern[1:])


def _gateway_names(path: Path, names: Sequence[str]) -> Iterator[Finding]:
    for index, name in enumerate(names):
        namespace, slash, gateway = name.partition("/")
        place = (*path, index)
        if slash:
            for part, what in ((namespace, "a namespace"), (gateway, "a gateway's name")):
                if (fault := label_fault(part, what)) is not None:
                    yield Finding(place, fault, "Write `namespace/name` or `name`.", "bad-name", at_value=True)
        elif (fault := host_fault(name, wildcard=False)) is not None:
            yield Finding(place, fault, "Write `namespace/name` or `name`.", "bad-name", at_value=True)
        elif "." in name:
            yield Finding(
                place,
                f"`{name}` is the old way to name a gateway.",
                f"Write `{qualified_gateway(name, '')}`.",
                "deprecated",
                Severity.WARNING,
                at_value=True,
            )


# http


def _http_route(path: Path, route: HTTPRoute) -> Iterator[Finding]:
    yield from _one_action(path, route)
    for index, match in enumerate(route.match):
        yield from _http_match((*path, "match", index), match)
    yield from _headers((*path, "headers"), route.headers)
    yield from _weights((*path, "route"), route.route)
    for index, target in enumerate(route.route):
        yield from _destination((*path, "route", index, "destination"), target.destination)
        yield from _headers((*path, "route", index, "headers"), target.headers)
    if route.redirect is not None:
        yield from _redirect((*path, "redirect"), route.redirect, route.match)
    if route.direct_response is not None:
        yield from _direct_response((*path, "directResponse"), route.direct_response)
    if route.rewrite is not None:
        yield from _rewrite((*path, "rewrite"), route.rewrite)
    yield from _authority_set_once(path, route)
    if route.retries is not None:
        yield from _retries((*path, "retries"), route.retries)
        yield from _unsafe_retries((*path, "retries"), route.retries, route.match)
    if route.fault is not None:
        yield from _fault((*path, "fault"), route.fault)
    if route.cors_policy is not None:
        yield from _cors((*path, "corsPolicy"), route.cors_policy)


def _one_action(path: Path, route: HTTPRoute) -> Iterator[Finding]:
    actions = {
        "route": bool(route.route),
        "redirect": route.redirect is not None,
        "directResponse": route.direct_response is not None,
        "delegate": route.delegate is not None,
    }
    given = [name for name, there in actions.items() if there]
    if not given:
        message = "a rule needs exactly one of `route`, `redirect`, `directResponse`."
        yield Finding(path, message, "Add `route` with a destination.", "missing-action", concerns=tuple(actions))
    for name in given[1:]:
        message = f"a rule has either `{given[0]}` or `{name}`, not both."
        yield Finding((*path, name), message, "Keep one of them.", "conflict", concerns=())
    if route.redirect is not None or route.direct_response is not None:
        answer = "redirect" if route.redirect is not None else "directResponse"
        # Istio's validation refuses the first two, too; the others it takes, and no proxy makes anything of them.
        for name, there, refused in (
            ("fault", route.fault, True),
            ("rewrite", route.rewrite, True),
            ("corsPolicy", route.cors_policy, False),
            ("mirror", route.mirror, False),
            ("mirrors", route.mirrors or None, False),
            ("timeout", route.timeout, False),
            ("retries", route.retries, False),
        ):
            if there is not None:
                message = f"`{name}` has no effect beside `{answer}`: nothing is forwarded."
                if refused:
                    yield Finding((*path, name), message, "Remove one of them.", "conflict", concerns=())
                else:
                    yield Finding((*path, name), message, "Remove it.", "no-effect", Severity.WARNING, concerns=())
    if route.mirror is not None and route.mirrors:
        yield Finding(
            (*path, "mirrors"), "`mirror` and `mirrors` exclude each other.", "Keep `mirrors`.", "conflict", concerns=()
        )
    yield from _mirror_share(path, route)
    for index, copy in enumerate(route.mirrors):
        yield from _percentage((*path, "mirrors", index, "percentage"), copy.percentage)


def _mirror_share(path: Path, route: HTTPRoute) -> Iterator[Finding]:
    """What says how much is mirrored, in one of the two ways, the older of which counts whole percents."""
    given = [
        name
        for name, there in (("mirrorPercentage", route.mirror_percentage), ("mirrorPercent", route.mirror_percent))
        if there is not None
    ]
    for name in given if route.mirror is None else ():
        message = f"`{name}` has no effect without `mirror`."
        remedy = "Say `percentage` in an item of `mirrors`." if route.mirrors else "Add `mirror`, or remove it."
        yield Finding((*path, name), message, remedy, "conflict", concerns=("mirror",))
    if len(given) > 1:
        message = "`mirrorPercent` is the older form of `mirrorPercentage`; they exclude each other."
        yield Finding((*path, "mirrorPercent"), message, "Keep `mirrorPercentage`.", "conflict", concerns=())
    if route.mirror_percent is not None and route.mirror_percent > 100:
        message = f"a percentage is 0 to 100, not {route.mirror_percent}."
        yield Finding((*path, "mirrorPercent"), message, code="out-of-range", at_value=True)
    yield from _percentage((*path, "mirrorPercentage"), route.mirror_percentage)


def _http_match(path: Path, match: HTTPMatchRequest) -> Iterator[Finding]:
    yield from _string_match((*path, "uri"), match.uri, empty_prefix=True)
    for name in ("scheme", "method", "authority"):
        yield from _string_match((*path, name), getattr(match, name))
    for field, conditions in (
        ("headers", match.headers),
        ("withoutHeaders", match.without_headers),
        ("queryParams", match.query_params),
    ):
        for key, condition in conditions.items():
            place = (*path, field, key)
            if field != "queryParams":
                yield from _matched_header(place, key)
            elif not key:
                yield Finding(place, "the name of a query parameter is empty.", "Write its name.", "bad-name")
            if not (field == "withoutHeaders" and condition.regex == "*"):  # Istio reads that as "present"
                yield from _string_match(place, condition)
    if match.port and (fault := port_fault(match.port)) is not None:
        yield Finding((*path, "port"), fault, code="bad-port", at_value=True)
    yield from shared.labels((*path, "sourceLabels"), match.source_labels)
    yield from _gateway_names((*path, "gateways"), match.gateways)
    if match.source_namespace and (fault := label_fault(match.source_namespace, "a namespace")) is not None:
        yield Finding((*path, "sourceNamespace"), fault, code="bad-name", at_value=True)


def _matched_header(path: Path, name: str) -> Iterator[Finding]:
    if name.startswith(_JWT_CLAIM):
        message = "weft does not honour matches on the claims of a token yet."
        yield Finding(path, message, "Remove it.", "not-honoured")
    elif name not in PSEUDO_HEADERS and (fault := header_name_fault(name)) is not None:
        yield Finding(path, fault, code="bad-header")


def _string_match(path: Path, match: StringMatch | None, *, empty_prefix: bool = False) -> Iterator[Finding]:
    if match is None:
        return
    given = [name for name in ("exact", "prefix", "regex") if getattr(match, name) is not None]
    for name in given[1:]:
        message = f"a match has either `{given[0]}` or `{name}`, not both."
        yield Finding((*path, name), message, "Keep one of them.", "conflict", concerns=())
    if match.prefix == "" and not empty_prefix:
        message = "an empty prefix matches everything."
        yield Finding((*path, "prefix"), message, "Leave the condition out.", "empty-match", at_value=True)
    if match.regex is not None:
        yield from shared.regex((*path, "regex"), match.regex)


def _headers(path: Path, headers: Headers | None) -> Iterator[Finding]:
    if headers is None:
        return
    if headers.request is not None:
        yield from _header_operations((*path, "request"), headers.request, authority=True)
    if headers.response is not None:
        yield from _header_operations((*path, "response"), headers.response, authority=False)


def is_authority(header: str) -> bool:
    """Return whether *header* names the host that is asked for."""
    return header.lower() in (":authority", "host")


def _header_operations(path: Path, operations: HeaderOperations, *, authority: bool) -> Iterator[Finding]:
    for field, values in (("set", operations.set), ("add", operations.add)):
        for name, value in values.items():
            yield from _edited_header((*path, field, name), name, allow_authority=authority)
            if (fault := header_format.fault(value)) is not None:
                yield Finding((*path, field, name), fault.message, fault.remedy, "bad-header", at_value=True)
    for index, name in enumerate(operations.remove):
        yield from _edited_header((*path, "remove", index), name, allow_authority=False, removed=True)


def _edited_header(path: Path, name: str, *, allow_authority: bool, removed: bool = False) -> Iterator[Finding]:
    if is_authority(name):
        if not allow_authority:
            yield Finding(path, f"`{name}` cannot be edited here.", "Use `rewrite.authority`.", "bad-header")
    elif name.startswith(":"):
        yield Finding(path, f"`{name}` cannot be edited: it is part of the request line.", code="bad-header")
    elif (fault := header_name_fault(name) or framing_fault(name, removed=removed)) is not None:
        yield Finding(path, fault, code="bad-header")


def _authority_set_once(path: Path, route: HTTPRoute) -> Iterator[Finding]:
    """Refuse a second place that sets the authority: which one wins would be a matter of chance."""
    already = "rewrite.authority" if route.rewrite is not None and route.rewrite.authority else ""
    if route.headers is None or route.headers.request is None:
        return
    for field in ("set", "add"):
        for name in getattr(route.headers.request, field):
            if not is_authority(name):
                continue
            if already:
                message = f"the authority is already set by `{already}`."
                yield Finding(
                    (*path, "headers", "request", field, name), message, "Keep one of them.", "conflict", concerns=()
                )
            already = already or f"headers.request.{field}"


def _weights(path: Path, targets: Sequence[HTTPRouteDestination | RouteDestination]) -> Iterator[Finding]:
    total = 0
    for index, target in enumerate(targets):
        if target.weight < 0:
            message = f"a weight is a whole number from 0, not {target.weight}."
            remedy = "Each destination gets its weight's share of the rule's sum; usually they add up to 100."
            yield Finding((*path, index, "weight"), message, remedy, "out-of-range", at_value=True)
        total += max(target.weight, 0)
    if len(targets) > 1 and total == 0:
        message = "the weights of these destinations add up to 0, so none of them would be chosen."
        remedy = "Give each its `weight`; usually they add up to 100."
        yield Finding(path, message, remedy, "bad-weights", concerns=tuple(range(len(targets))))
    if total > MAX_TOTAL_WEIGHT:
        yield Finding(path, f"the weights add up to more than {MAX_TOTAL_WEIGHT}.", code="bad-weights")


def _destination(path: Path, destination: Destination) -> Iterator[Finding]:
    if destination.host == "*":
        message = "a destination is one host, not `*`."
        yield Finding((*path, "host"), message, code="bad-host", at_value=True)
    elif (fault := host_fault(destination.host)) is not None:
        yield Finding((*path, "host"), fault, code="bad-host", at_value=True)
    if destination.subset and (fault := subset_fault(destination.subset)) is not None:
        yield Finding((*path, "subset"), fault, code="bad-name", at_value=True)
    if destination.port is not None and (fault := port_fault(destination.port.number)) is not None:
        yield Finding((*path, "port", "number"), fault, code="bad-port", at_value=True)


def _printable(path: Path, **values: str) -> Iterator[Finding]:
    """Refuse control characters in what becomes part of a request or of `location`."""
    for name, value in values.items():
        if (fault := control_character_fault(value)) is not None:
            yield Finding((*path, name), fault, code="bad-host" if name == "authority" else "bad-path", at_value=True)


def _redirect(path: Path, redirect: HTTPRedirect, matches: Sequence[HTTPMatchRequest]) -> Iterator[Finding]:
    yield from _printable(path, uri=redirect.uri, prefixRewrite=redirect.prefix_rewrite, authority=redirect.authority)
    if redirect.port is not None and redirect.derive_port is not None:
        message = "a redirect has either `port` or `derivePort`, not both."
        yield Finding((*path, "derivePort"), message, "Keep one of them.", "conflict", concerns=())
    if redirect.uri and redirect.prefix_rewrite:
        message = "a redirect has either `uri` or `prefixRewrite`, not both."
        yield Finding((*path, "prefixRewrite"), message, "Keep one of them.", "conflict", concerns=())
    if redirect.prefix_rewrite and any(match.uri is not None and match.uri.prefix is None for match in matches):
        message = "`prefixRewrite` replaces the matched prefix, but a match of this rule has none."
        hinges = ((*path[:-1], "match"),)
        yield Finding((*path, "prefixRewrite"), message, "Match `uri` by `prefix`.", "conflict", hinges=hinges)
    port = redirect.port is not None or redirect.derive_port is not None
    if not (redirect.uri or redirect.prefix_rewrite or redirect.authority or redirect.scheme or port):
        names = ("uri", "prefixRewrite", "authority", "scheme", "port", "derivePort")
        message = "a redirect changes at least one of `uri`, `prefixRewrite`, `authority`, `scheme`, `port`."
        yield Finding(path, message, code="missing-field", concerns=names)
    if redirect.redirect_code and redirect.redirect_code not in REDIRECT_CODES:
        *codes, last = map(str, REDIRECT_CODES)
        message = (
            f"a redirect's code is {', '.join(codes)} or {last}, not {redirect.redirect_code}: proxies have no other."
        )
        yield Finding((*path, "redirectCode"), message, code="out-of-range", at_value=True)
    if redirect.scheme not in ("", "http", "https"):
        message = f"a scheme is `http` or `https`, not `{redirect.scheme}`."
        yield Finding((*path, "scheme"), message, code="unknown-value", at_value=True)
    if redirect.port and (fault := port_fault(redirect.port)) is not None:
        yield Finding((*path, "port"), fault, code="bad-port", at_value=True)


LARGE_BODY = 100 * 1024
"""Bytes above which a body of `directResponse` weighs on every proxy's configuration; Istio warns there too."""

LARGEST_BODY = 1024 * 1024


def _direct_response(path: Path, response: HTTPDirectResponse) -> Iterator[Finding]:
    yield from _status((*path, "status"), response.status)
    body = response.body
    if body is None:
        return
    if body.string is not None and body.bytes is not None:
        message = "a body has either `string` or `bytes`, not both."
        yield Finding((*path, "body", "bytes"), message, "Keep one of them.", "conflict", concerns=())
    size = len((body.string or "").encode())
    if body.bytes is not None:
        try:
            size = len(base64.b64decode(body.bytes, validate=True))
        except ValueError:  # `binascii.Error`, or plainly this where it is not ASCII
            yield Finding((*path, "body", "bytes"), "`bytes` wants base64.", code="wrong-type", at_value=True)
    if size > LARGEST_BODY:
        yield Finding((*path, "body"), f"a body has at most {LARGEST_BODY} bytes, not {size}.", code="out-of-range")
    elif size > LARGE_BODY:
        message = f"this body of {size} bytes becomes part of the configuration of every proxy."
        yield Finding((*path, "body"), message, "Serve it from a program.", "large-body", Severity.WARNING)


def _status(path: Path, status: int) -> Iterator[Finding]:
    if not 200 <= status <= 599:
        message = f"an answer's status is 200 to 599, not {status}."
        yield Finding(path, message, code="out-of-range", at_value=True)


def _rewrite(path: Path, rewrite: HTTPRewrite) -> Iterator[Finding]:
    yield from _printable(path, uri=rewrite.uri, authority=rewrite.authority)
    regex = rewrite.uri_regex_rewrite
    if rewrite.uri and regex is not None:
        message = "a rewrite has either `uri` or `uriRegexRewrite`, not both."
        yield Finding((*path, "uriRegexRewrite"), message, "Keep one of them.", "conflict", concerns=())
    if not rewrite.uri and regex is None and not rewrite.authority:
        names = ("uri", "uriRegexRewrite", "authority")
        message = "a rewrite changes at least one of `uri`, `uriRegexRewrite`, `authority`."
        yield Finding(path, message, code="missing-field", concerns=names)
    if regex is not None:
        place = (*path, "uriRegexRewrite")
        for name in ("match", "rewrite"):
            if not getattr(regex, name):
                yield Finding(place, f"`{name}` is missing.", code="missing-field", concerns=(name,))
        if regex.match:
            yield from shared.regex((*place, "match"), regex.match)
        yield from _printable(place, rewrite=regex.rewrite)
        yield from _substitution(place, regex)


def _substitution(path: Path, regex: RegexRewrite) -> Iterator[Finding]:
    """A backslash in what replaces a match begins the number of a group, or stands for itself (RE2's `Rewrite`)."""
    groups = capturing_groups(regex.match)
    for match in _ESCAPE.finditer(regex.rewrite):
        what = match[1]
        if what == "\\" or (what.isascii() and what.isdigit() and int(what) <= groups):
            continue
        message = f"`{match[0]}` in `{regex.rewrite}` is neither a group of `match` nor a backslash."
        remedy = f"It has the groups `\\1` to `\\{min(groups, 9)}`" if groups > 1 else "It has the group `\\1`"
        if groups == 0:
            remedy = "It has no group in parentheses"
        remedy += "; `\\0` is all that it matched, `\\\\` a backslash."
        hinges = ((*path, "match"),)
        yield Finding((*path, "rewrite"), message, remedy, "bad-regex", at_value=True, hinges=hinges)
        return


_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)


METHODS = IDEMPOTENT_METHODS | {"POST", "PATCH", "CONNECT"}
"""RFC 9110 9.3 and RFC 5789."""


def _cors(path: Path, cors: CorsPolicy) -> Iterator[Finding]:
    if cors.allow_origin and cors.allow_origins:
        message = "`allowOrigin` is the old way to write `allowOrigins`, and has no effect beside it."
        yield Finding((*path, "allowOrigin"), message, "Move its origins to `allowOrigins`.", "conflict", concerns=())
    for index, origin in enumerate(cors.allow_origins):
        place = (*path, "allowOrigins", index)
        if origin == StringMatch():
            message = "an origin is given by `exact`, `prefix` or `regex`."
            remedy = 'Write `regex: ".*"` for every origin.'
            yield Finding(place, message, remedy, "missing-field", concerns=("exact", "prefix", "regex"))
        yield from _string_match(place, origin)
    for index, method in enumerate(cors.allow_methods):
        if method != "*" and method not in METHODS:
            message = f"`{method}` is no method of HTTP."
            meant = did_you_mean(method.upper(), METHODS)
            yield Finding((*path, "allowMethods", index), message, meant, "unknown-value", at_value=True)
    for field, values in (("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for index, name in enumerate(values):
            if name != "*" and (fault := header_name_fault(name)) is not None:
                yield Finding((*path, field, index), fault, code="bad-header", at_value=True)
    if cors.max_age is not None and cors.max_age % timedelta(seconds=1):
        message = "`maxAge` has whole seconds: browsers read no other."
        yield Finding((*path, "maxAge"), message, code="out-of-range", at_value=True)


def _retries(path: Path, retries: HTTPRetry) -> Iterator[Finding]:
    if retries.attempts < 0:
        message = f"the number of retries is from 0, not {retries.attempts}."
        yield Finding((*path, "attempts"), message, code="out-of-range", at_value=True)
    given = {
        "perTryTimeout": retries.per_try_timeout is not None,
        "retryOn": bool(retries.retry_on),
        "retryRemoteLocalities": retries.retry_remote_localities is not None,
        "retryIgnorePreviousHosts": retries.retry_ignore_previous_hosts is not None,
        "backoff": retries.backoff is not None,
    }
    if retries.attempts == 0 and any(given.values()):
        first = next(name for name, there in given.items() if there)
        message = f"`{first}` has no effect: without `attempts` there are no retries."
        hinges = ((*path, "attempts"),)
        yield Finding((*path, first), message, "Add `attempts: 2`, say.", "conflict", concerns=(), hinges=hinges)
    for condition in retries.retry_on.split(",") if retries.retry_on else ():
        if condition == HTTP3_CONDITION:
            message = f"weft does not honour `{condition}` yet."
            yield Finding((*path, "retryOn"), message, "Remove it.", "not-honoured", at_value=True)
        elif condition not in RETRY_CONDITIONS and not _is_status(condition):
            message = f"`{condition}` is no condition to retry on."
            remedy = _retry_remedy(condition)
            yield Finding((*path, "retryOn"), message, remedy, "unknown-value", at_value=True)


def _unsafe_retries(path: Path, retries: HTTPRetry, match: Sequence[HTTPMatchRequest]) -> Iterator[Finding]:
    """RFC 9110 9.2.2: what is not idempotent is not to be sent again by itself, for it may have been acted on already."""
    unsafe = [condition for condition in retries.retry_on.split(",") if condition in CONDITIONS_AFTER_SENDING]
    methods = [item.method.exact if item.method is not None else None for item in match]
    only_idempotent = bool(methods) and all(method in IDEMPOTENT_METHODS for method in methods)
    if retries.attempts > 0 and unsafe and not only_idempotent:
        message = (
            f"`{unsafe[0]}` sends a request again that a program may have acted on already, POST and PATCH as well."
        )
        remedy = (
            "Leave `retryOn` out (by default POST and PATCH are repeated only where no program has seen them), or match"
            " idempotent methods only: `method: {exact: GET}`."
        )
        yield Finding(
            (*path, "retryOn"), message, remedy, "unsafe-retries", Severity.WARNING, hinges=((*path[:-1], "match"),)
        )


def _retry_remedy(condition: str) -> str:
    if condition.strip() in RETRY_CONDITIONS:
        return "Write the list without spaces."
    return did_you_mean(condition.strip(), RETRY_CONDITIONS)


def _is_status(text: str) -> bool:
    return len(text) == 3 and text.isascii() and text.isdigit() and int(text) in set(HTTPStatus)


def _fault(path: Path, fault: HTTPFaultInjection) -> Iterator[Finding]:
    if fault.delay is None and fault.abort is None:
        message = "a fault is a `delay`, an `abort`, or both."
        yield Finding(path, message, code="missing-field", concerns=("delay", "abort"))
    if fault.delay is not None:
        place = (*path, "delay")
        yield from _percentage((*place, "percentage"), fault.delay.percentage)
        percent = fault.delay.percent
        if percent is not None and not 0 <= percent <= 100:
            message = f"a percentage is 0 to 100, not {percent}."
            yield Finding((*place, "percent"), message, code="out-of-range", at_value=True)
        if percent is not None and fault.delay.percentage is not None:
            message = "`percent` is the old spelling of `percentage`; only one of them can count."
            yield Finding((*place, "percent"), message, "Keep `percentage`.", "conflict", concerns=())
        delays = ("fixedDelay", "exponentialDelay")
        if fault.delay.fixed_delay is not None and fault.delay.exponential_delay is not None:
            message = "a delay has either `fixedDelay` or `exponentialDelay`, not both."
            yield Finding((*place, "exponentialDelay"), message, "Keep `fixedDelay`.", "conflict", concerns=())
        elif fault.delay.fixed_delay is None and fault.delay.exponential_delay is None:
            yield Finding(
                place, "`fixedDelay` is missing: nothing would be delayed.", code="missing-field", concerns=delays
            )
        if percent is None and fault.delay.percentage is None:
            yield _never(place, "delayed")
    if fault.abort is not None:
        yield from _abort((*path, "abort"), fault)


def _abort(path: Path, fault: HTTPFaultInjection) -> Iterator[Finding]:
    abort = fault.abort
    assert abort is not None
    yield from _percentage((*path, "percentage"), abort.percentage)
    statuses = {"httpStatus": abort.http_status, "grpcStatus": abort.grpc_status, "http2Error": abort.http2_error}
    given = [name for name, value in statuses.items() if value is not None]
    for name in given[1:]:
        message = f"an abort has either `{given[0]}` or `{name}`, not both."
        yield Finding((*path, name), message, "Keep one of them.", "conflict", concerns=())
    if not given:
        message = "`httpStatus` is missing: nothing would be aborted."
        yield Finding(path, message, code="missing-field", concerns=tuple(statuses))
    if abort.percentage is None:
        yield _never(path, "aborted")
    if abort.http_status is not None:
        yield from _status((*path, "httpStatus"), abort.http_status)


def _never(path: Path, done: str) -> Finding:
    message = f"without `percentage` nothing is {done}."
    remedy = "Add `percentage: {value: 100}` for every request."
    return Finding(path, message, remedy, "no-effect", Severity.WARNING, concerns=("percentage", "percent"))


def _percentage(path: Path, percentage: Percent | None) -> Iterator[Finding]:
    if percentage is None:
        return
    value = percentage.value
    if not 0 <= value <= 100:
        message = f"a percentage is 0.0 to 100.0, not {value:g}."
        yield Finding((*path, "value"), message, code="out-of-range", at_value=True)
    elif 0 < value < 0.0001:
        message = f"a percentage above 0 is at least 0.0001, not {value:g}: proxies count in millionths."
        yield Finding((*path, "value"), message, code="out-of-range", at_value=True)


# tcp


def _tcp_route(path: Path, route: TCPRoute) -> Iterator[Finding]:
    if not route.route:
        yield Finding(path, "`route` is missing.", "Add a destination.", "missing-action", concerns=("route",))
    for index, match in enumerate(route.match):
        place = (*path, "match", index)
        if match.port and (fault := port_fault(match.port)) is not None:
            yield Finding((*place, "port"), fault, code="bad-port", at_value=True)
        yield from shared.labels((*place, "sourceLabels"), match.source_labels)
        yield from _gateway_names((*place, "gateways"), match.gateways)
    yield from _weights((*path, "route"), route.route)
    for index, target in enumerate(route.route):
        yield from _destination((*path, "route", index, "destination"), target.destination)


# What can never be reached


def _unreachable(field: str, routes: Sequence[Message]) -> Iterator[Finding]:
    """Warn of rules and matches that an earlier rule takes everything from: Istio's analyzers do too."""
    seen: list[tuple[int, int, Message]] = []
    catch_all: int | None = None
    for index, route in enumerate(routes):
        matches: Sequence[Message] = route.match  # type: ignore[attr-defined]
        if catch_all is not None:
            message = "this rule is never reached: the one at {first} matches everything."
            remedy = "Put the rule without `match` last."
            yield Finding(
                (field, index), message, remedy, "unreachable-rule", Severity.WARNING, first=(field, catch_all)
            )
            continue
        if not matches:
            catch_all = index
            continue
        covered: list[Path] = []
        for position, match in enumerate(matches):
            earlier = next((item for item in seen if _covers(item[2], match)), None)
            if earlier is not None:
                message = "this match is never reached: the one at {first} takes all of it."
                path = (field, index, "match", position)
                remedy = "Put the narrower match first, or remove it."
                first = (field, earlier[0], "match", earlier[1])
                covered.append(first)
                yield Finding(path, message, remedy, "ineffective-match", Severity.WARNING, first=first)
            else:
                seen.append((index, position, match))
        if len(covered) == len(matches):
            message = "this rule is never reached: earlier rules take all of its matches."
            concerns, hinges = ("match",), tuple(covered)
            yield Finding(
                (field, index),
                message,
                "Remove it.",
                "unreachable-rule",
                Severity.WARNING,
                concerns=concerns,
                hinges=hinges,
            )


def _covers(earlier: Message, later: Message) -> bool:
    """Return whether all that *later* matches is matched by *earlier*: each of its conditions is at least as wide."""
    for name in type(earlier).model_fields:
        if name in ("name", "stat_prefix", "ignore_uri_case"):
            continue
        wide, narrow = getattr(earlier, name), getattr(later, name)
        if wide == narrow or not wide:
            continue
        if isinstance(wide, StringMatch):
            if not _string_covers(wide, narrow, earlier, later):
                return False
        elif name == "without_headers":
            if not _exclusion_covers(wide, narrow):
                return False
        elif isinstance(wide, Mapping):
            if not isinstance(narrow, Mapping) or not _map_covers(wide, narrow):
                return False
        elif isinstance(wide, tuple):
            if not narrow or not set(narrow) <= set(wide):
                return False
        else:
            return False
    return not (getattr(later, "ignore_uri_case", False) and not getattr(earlier, "ignore_uri_case", False))


def _exclusion_covers(earlier: Mapping[str, StringMatch], later: Mapping[str, StringMatch]) -> bool:
    """Return whether *later* excludes each request that *earlier* excludes: what leaves out less takes in more."""
    return all(key in later and _string_covers(later[key], condition) for key, condition in earlier.items())


def _map_covers(wide: Mapping[str, object], narrow: Mapping[str, object]) -> bool:
    for key, condition in wide.items():
        other = narrow.get(key)
        if other is None:
            return False
        if isinstance(condition, StringMatch) and isinstance(other, StringMatch):
            if condition != other and not _string_covers(condition, other):
                return False
        elif condition != other:
            return False
    return True


def _string_covers(
    wide: StringMatch, narrow: StringMatch | None, earlier: Message | None = None, later: Message | None = None
) -> bool:
    if narrow is None:
        return wide.prefix == "" or (wide.prefix == "/" and earlier is not None)  # every path begins with a slash
    if wide == narrow or wide == StringMatch():
        return True
    if wide.prefix is None:
        return False
    value = narrow.prefix if narrow.prefix is not None else narrow.exact
    return value is not None and value.startswith(wide.prefix)
