"""
HTTPRoutes as Envoy's routes: which rules hold for a service or a host, in which order, and what each of them does.

Called by `routes.py` for sidecars and by `kubernetes_gateways.py` for gateways. Source: the Gateway API's reference of
HTTPRoute; where it leaves the choice, what istiod generates (tests/translate/test_istiod_oracle.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from envoy.config.route.v3 import route_components_pb2

from weft.api.attachment import Backend, Reason, backend, covers, parent_key, service_ports, specificity
from weft.api.gateway_api import (
    EVERYTHING,
    BackendObjectReference,
    HTTPBackendRef,
    HTTPCORSFilter,
    HTTPHeader,
    HTTPHeaderFilter,
    HTTPPathMatch,
    HTTPPathModifier,
    HTTPRequestMirrorFilter,
    HTTPRequestRedirectFilter,
    HTTPRouteFilter,
    HTTPRouteMatch,
    HTTPRouteRule,
    HTTPURLRewriteFilter,
    HTTPValueMatch,
    filter_of,
)
from weft.api.networking import CorsPolicy, HeaderOperations, Headers, HTTPRetry, StringMatch
from weft.model import ConfigObject, ProxyKind, Service
from weft.translate import matching, names
from weft.translate.destinations import consistent_hash
from weft.translate.fragments import Reading
from weft.translate.index import Rank, age
from weft.translate.origin import DEFAULT, annotate, describe
from weft.translate.policies.cors import apply as cors
from weft.translate.policies.headers import apply as headers
from weft.translate.policies.load_balancing import apply as load_balancing
from weft.translate.policies.retry import apply as retry
from weft.translate.policies.timeout import apply as timeout

NO_BACKEND = 500
"""What the API wants answered where a rule has no valid backend."""

DEFAULT_PORTS = {"http": 80, "https": 443}

ROOT = "/"


@dataclass(frozen=True, slots=True)
class Attached:
    """
    An HTTPRoute that some parent has accepted.

    Attributes:
        age: Orders it among others.
        hosts: For which names; empty for a service, which has its own.
    """

    item: ConfigObject
    age: Rank
    hosts: tuple[str, ...] = ()

    def covers(self, host: str) -> bool:
        """Whether this route is for *host*."""
        return not self.hosts or any(covers(mine, host) for mine in self.hosts)

    def specificity(self, host: str) -> tuple[bool, int]:
        """Return how closely this route means *host*; larger is closer."""
        return max((specificity(mine) for mine in self.hosts if covers(mine, host)), default=(False, 0))


def attached_to_service(reading: Reading, service: Service, port: int) -> list[Attached]:
    """
    Return the HTTPRoutes for one port of *service* at this proxy.

    Routes of the service's own namespace are its owner's, for every caller. Those of another namespace are a caller's:
    they hold for the callers of that namespace, in place of the owner's.
    """
    found: dict[str, dict[Any, Attached]] = {service.namespace: {}}
    for index, item in reading.service_routes(f"{service.namespace}/{service.name}"):
        ref = item.spec.parent_refs[index]
        if any(mine.number == port for mine in service_ports(ref, service)):
            found.setdefault(item.key.namespace, {}).setdefault(item.key, Attached(item, age(item)))
    if len(found) > 1 and (mine := found.get(reading.namespace)):
        return list(mine.values())
    return list(found[service.namespace].values())


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One match of one rule; `index` and `place` are where they stand, `place` None for a rule without matches."""

    route: Attached
    index: int
    rule: HTTPRouteRule
    place: int | None
    match: HTTPRouteMatch

    def rank(self, host: str) -> Rank:
        """Return what puts this before others, smallest first: the reference's list of criteria, one by one."""
        named, length = self.route.specificity(host)
        path = self.match.path
        return (
            (not named, -length),
            _PATH_ORDER[path.type],
            -len(path.value if path.type != "PathPrefix" else _elements(path.value)),
            self.match.method is None,
            -len({item.name.lower() for item in self.match.headers}),
            -len({item.name for item in self.match.query_params}),
            self.route.age,
            self.index,
            self.place or 0,
        )


_PATH_ORDER = {"Exact": 0, "PathPrefix": 1, "RegularExpression": 2}
"""Where regular expressions stand is each implementation's to say; Istio has them last."""


def routes(reading: Reading, attached: Sequence[Attached], port: int, *, host: str = "") -> list[Any]:
    """
    Return the routes of all rules of *attached* that are for *host*, in order of precedence.

    Args:
        reading: Where services, grants and destinations come from.
        attached: The HTTPRoutes of one parent.
        port: The port that clients call.
        host: The virtual host's name; nothing for a service.
    """
    candidates = [candidate for route in attached if route.covers(host) for candidate in _candidates(route)]
    made = []
    for candidate in sorted(candidates, key=lambda one: one.rank(host)):
        route = _route(reading, candidate, port)
        made.append(route)
        if matching.catches_all(route.match):
            break
    return made


def _candidates(route: Attached) -> Iterator[_Candidate]:
    for index, rule in enumerate(route.item.spec.rules):
        if not rule.matches:
            yield _Candidate(route, index, rule, None, EVERYTHING)
        for place, match in enumerate(rule.matches):
            yield _Candidate(route, index, rule, place, match)


def _route(reading: Reading, candidate: _Candidate, port: int) -> Any:
    item, rule, match = candidate.route.item, candidate.rule, candidate.match
    name = f"{item.key.namespace}.{item.key.name}.{rule.name or candidate.index}"
    route = route_components_pb2.Route(name=name)
    _match(match, route.match)
    headers.apply(_headers(rule.filters), route)
    redirect: HTTPRequestRedirectFilter | None = rule.filter("RequestRedirect")
    if redirect is not None:
        _redirect(reading, redirect, match.path, route.redirect, port)
    elif not any(ref.weight for ref in rule.backend_refs):
        route.direct_response.status = NO_BACKEND
    else:
        _forward(reading, candidate, route)
    cors.apply(_cors(rule.filter("CORS")), route)
    annotate(route.metadata, _described(candidate))
    return route


# match


def _match(match: HTTPRouteMatch, message: Any) -> None:
    """Write *match* into *message* (a `RouteMatch`)."""
    path = match.path
    message.case_sensitive.value = True
    if path.type == "Exact":
        message.path = path.value
    elif path.type == "RegularExpression":
        message.safe_regex.regex = path.value
    elif prefix := _elements(path.value):
        message.path_separated_prefix = prefix
    else:
        message.prefix = matching.EVERYTHING
    for name, value in sorted(_first(match.headers, lower=True).items()):
        _value(value, message.headers.add(name=name).string_match)
    if match.method is not None:
        message.headers.add(name=":method").string_match.exact = match.method
    for name, value in sorted(_first(match.query_params).items()):
        _value(value, message.query_parameters.add(name=name).string_match)


def _elements(prefix: str) -> str:
    """Return *prefix* without the slash at its end, which a prefix by elements does not count."""
    return prefix.rstrip("/")


def _first(values: Sequence[HTTPValueMatch], *, lower: bool = False) -> dict[str, HTTPValueMatch]:
    """Return conditions by name; of two with one name the first counts."""
    found: dict[str, HTTPValueMatch] = {}
    for value in values:
        found.setdefault(value.name.lower() if lower else value.name, value)
    return found


def _value(value: HTTPValueMatch, message: Any) -> None:
    if value.type == "RegularExpression":
        message.safe_regex.regex = value.value
    else:
        message.exact = value.value


# filters


def _headers(filters: tuple[HTTPRouteFilter, ...]) -> Headers | None:
    request: HTTPHeaderFilter | None = filter_of(filters, "RequestHeaderModifier")
    response: HTTPHeaderFilter | None = filter_of(filters, "ResponseHeaderModifier")
    if request is None and response is None:
        return None
    return Headers(request=_operations(request), response=_operations(response))


def _operations(edits: HTTPHeaderFilter | None) -> HeaderOperations | None:
    if edits is None:
        return None
    return HeaderOperations(set=_literal(edits.set), add=_literal(edits.add), remove=edits.remove)


def _literal(edits: Sequence[HTTPHeader]) -> dict[str, str]:
    """Return headers by name; a percent sign, which begins a variable to Envoy, is one here."""
    return {header.name: header.value.replace("%", "%%") for header in edits}


def _redirect(
    reading: Reading, redirect: HTTPRequestRedirectFilter, path: HTTPPathMatch, action: Any, port: int
) -> None:
    """
    Write *redirect* into *action* (a `RedirectAction`).

    Without a port the scheme's own is meant if there is a scheme, else the one that was called.
    """
    action.response_code = REDIRECT_CODES[redirect.status_code]
    action.host_redirect = redirect.hostname
    if redirect.scheme is not None:
        action.scheme_redirect = redirect.scheme
    default = DEFAULT_PORTS[redirect.scheme or "http"]
    if redirect.port is not None:
        # The port that the scheme implies is not written out, unless it stands in the way of the request's own.
        action.port_redirect = 0 if redirect.port == default and redirect.hostname else redirect.port
    elif redirect.scheme is not None:
        # A gateway's port 80 is called without a port; everywhere else the request's own would stay.
        called_with_port = reading.kind is ProxyKind.SIDECAR or port != DEFAULT_PORTS["http"]
        action.port_redirect = default if called_with_port and not redirect.hostname else 0
    elif redirect.hostname and port != default:
        action.port_redirect = port
    if redirect.path is None:
        return
    if redirect.path.replace_full_path is not None:
        action.path_redirect = redirect.path.replace_full_path or ROOT
    elif (rewrite := _new_prefix(redirect.path, path)) is not None:
        if isinstance(rewrite, str):
            action.prefix_rewrite = rewrite
        else:
            action.regex_rewrite.pattern.regex, action.regex_rewrite.substitution = rewrite


REDIRECT_CODES = {
    301: route_components_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_components_pb2.RedirectAction.FOUND,
    303: route_components_pb2.RedirectAction.SEE_OTHER,
    307: route_components_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_components_pb2.RedirectAction.PERMANENT_REDIRECT,
}
"""Of both APIs; `weft.api` lets no other through (`networking.REDIRECT_CODES`)."""


def _rewrite(rewrite: HTTPURLRewriteFilter | None, path: HTTPPathMatch, action: Any) -> None:
    """Write *rewrite* into *action* (a `RouteAction`)."""
    if rewrite is None:
        return
    if rewrite.hostname:
        action.host_rewrite_literal = rewrite.hostname
    if rewrite.path is None:
        return
    if rewrite.path.replace_full_path is not None:
        action.regex_rewrite.pattern.regex = "^.*$"
        action.regex_rewrite.substitution = _substitution(rewrite.path.replace_full_path or ROOT)
    elif (found := _new_prefix(rewrite.path, path)) is not None:
        if isinstance(found, str):
            action.prefix_rewrite = found
        else:
            action.regex_rewrite.pattern.regex, action.regex_rewrite.substitution = found


def _new_prefix(modifier: HTTPPathModifier, path: HTTPPathMatch) -> str | tuple[str, str] | None:
    """
    Return what puts a new prefix by elements in the place of the matched one: a prefix, or a pattern and substitution.

    `/foo/bar` with `/foo` for `/xyz` is `/xyz/bar`, for `/` it is `/bar`; slashes at the ends do not count.
    """
    old, new = _elements(path.value), _elements(modifier.replace_prefix_match or "")
    if old == new:
        return None
    if old and new:
        return new
    # Envoy joins texts, not elements: one of the two slashes has to go, or to come.
    return (f"^{re.escape(old)}/?", _substitution(f"{new}/"))


def _substitution(text: str) -> str:
    return text.replace("\\", "\\\\")


def _cors(policy: HTTPCORSFilter | None) -> CorsPolicy | None:
    if policy is None:
        return None
    return CorsPolicy(
        allow_origins=tuple(_origin(origin) for origin in policy.allow_origins),
        allow_methods=policy.allow_methods,
        allow_headers=policy.allow_headers,
        expose_headers=policy.expose_headers,
        max_age=timedelta(seconds=policy.max_age),
        allow_credentials=policy.allow_credentials,
        unmatched_preflights="IGNORE",
    )


def _origin(origin: str) -> StringMatch:
    if "*" not in origin or origin == "*":
        return StringMatch(exact=origin)
    return StringMatch(regex=re.escape(origin).replace(r"\*", ".*"))


# forward


def _forward(reading: Reading, candidate: _Candidate, route: Any) -> None:
    rule, action = candidate.rule, route.route
    namespace = candidate.route.item.key.namespace
    timeouts, retries = rule.timeouts, rule.retry
    timeout.apply(timeouts.request if timeouts else None, action)
    _rewrite(rule.filter("URLRewrite"), candidate.match.path, action)
    for item in rule.filters:
        if item.request_mirror is not None:
            _mirror(reading, item.request_mirror, namespace, action)
    # A reference that does not hold is answered 500, and so is, by Istio's habit, a service that is gone.
    action.cluster_not_found_response_code = (
        route_components_pb2.RouteAction.ClusterNotFoundResponseCode.INTERNAL_SERVER_ERROR
    )
    serving = [(place, ref) for place, ref in enumerate(rule.backend_refs) if ref.weight]
    hashes = [_hash(reading, ref, namespace) for _, ref in serving]
    if len(serving) == 1:
        action.cluster = _cluster(reading, serving[0][1], namespace)
        headers.apply(_headers(serving[0][1].filters), route)
    else:
        for place, ref in serving:
            weighted = action.weighted_clusters.clusters.add()
            weighted.name = _cluster(reading, ref, namespace)
            weighted.weight.value = ref.weight
            headers.apply(_headers(ref.filters), weighted)
            at = ("spec", "rules", candidate.index, "backendRefs", place)
            annotate(weighted.metadata_match, describe(candidate.route.item, *at, origins=_edited(candidate, place)))
    for hashed in hashes:
        load_balancing.apply_to_route(hashed, action)
    per_try = timeouts.backend_request if timeouts else None
    policy = None
    if retries is not None or per_try:
        policy = HTTPRetry(
            attempts=(retries.attempts if retries else None) or retry.DEFAULT_RETRIES,
            per_try_timeout=per_try or None,
            retry_on=_retry_on(retries.codes) if retries else "",
            backoff=(retries.backoff if retries else None) or None,
        )
    retry.apply(policy, action, sticky=len(hashes) == 1 and hashes[0] is not None)


def _retry_on(codes: Sequence[int]) -> str:
    """Return the conditions of the default policy, with *codes*."""
    return ",".join([retry.DEFAULT_CONDITIONS, *map(str, codes)])


def _cluster(reading: Reading, ref: BackendObjectReference, namespace: str) -> str:
    found = _backend(reading, ref, namespace)
    if found.reason is Reason.NOT_PERMITTED:
        return names.refused_cluster(found.hostname, found.port)
    return names.outbound_cluster(found.hostname, found.port)


def _backend(reading: Reading, ref: BackendObjectReference, namespace: str) -> Backend:
    owner, _, name = parent_key(ref, namespace).partition("/")
    hostname = f"{name}.{owner}.svc.{reading.domain_suffix()}"
    grants = reading.reference_grants(owner) if owner != namespace else ()
    return backend(ref, namespace, hostname=hostname, service=reading.service(hostname), grants=grants)


def _hash(reading: Reading, ref: HTTPBackendRef, namespace: str) -> Any:
    found = _backend(reading, ref, namespace)
    return consistent_hash(reading, found.hostname, found.port, namespace=namespace)


def _mirror(reading: Reading, mirror: HTTPRequestMirrorFilter, namespace: str, action: Any) -> None:
    share = mirror.fraction
    numerator, denominator = (share.numerator, share.denominator) if share else (mirror.percent, 100)
    if numerator == 0:
        return
    found = _backend(reading, mirror.backend_ref, namespace)
    if found.reason is not None:
        return  # to send a copy nowhere is to send none; the route's conditions say so
    policy = action.request_mirror_policies.add(
        cluster=names.outbound_cluster(found.hostname, found.port), disable_shadow_host_suffix_append=True
    )
    fraction = policy.runtime_fraction.default_value
    fraction.numerator = 1_000_000 if numerator is None else numerator * 1_000_000 // denominator
    fraction.denominator = fraction.MILLION
    policy.trace_sampled.value = False


# origin


def _described(candidate: _Candidate) -> dict[str, Any]:
    item, rule = candidate.route.item, candidate.rule
    at = ("spec", "rules", candidate.index)
    origins: dict[str, str] = {}
    for place, one in enumerate(rule.filters):
        origins.setdefault(_FILTER_ORIGINS[one.type], str(item.locate(*at, "filters", place)))
    if rule.backend_refs:
        timeouts = rule.timeouts
        has_timeout = timeouts is not None and timeouts.request is not None
        origins["timeout"] = str(item.locate(*at, "timeouts", "request")) if has_timeout else DEFAULT
        if rule.retry is not None:
            origins["retries"] = str(item.locate(*at, "retry"))
        elif timeouts is not None and timeouts.backend_request is not None:
            origins["retries"] = str(item.locate(*at, "timeouts", "backendRequest"))
        else:
            origins["retries"] = DEFAULT
        serving = [place for place, ref in enumerate(rule.backend_refs) if ref.weight]
        if len(serving) == 1 and (edited := _edited(candidate, serving[0])):
            origins["destinationHeaders"] = edited["headers"]
        if timeouts is not None and timeouts.backend_request is not None:
            origins["perTryTimeout"] = str(item.locate(*at, "timeouts", "backendRequest"))
    if candidate.place is not None:
        origins["match"] = str(item.locate(*at, "matches", candidate.place))
    return describe(item, *at, origins=origins)


def _edited(candidate: _Candidate, place: int) -> dict[str, str]:
    """Return where the backend at *place* says how headers are edited, under its name in the metadata; empty if nowhere."""
    filters = candidate.rule.backend_refs[place].filters
    index = next((index for index, one in enumerate(filters) if _FILTER_ORIGINS.get(one.type) == "headers"), None)
    if index is None:
        return {}
    at = ("spec", "rules", candidate.index, "backendRefs", place, "filters", index)
    return {"headers": str(candidate.route.item.locate(*at))}


_FILTER_ORIGINS = {
    "RequestHeaderModifier": "headers",
    "ResponseHeaderModifier": "headers",
    "RequestMirror": "mirror",
    "RequestRedirect": "redirect",
    "URLRewrite": "rewrite",
    "CORS": "corsPolicy",
}
"""A filter's name in the metadata (docs/reference/interfaces.md, 4.1)."""
