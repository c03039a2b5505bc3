"""
The reference evaluator's other half: what an HTTPRoute for a Service of the mesh does to one request.

From the text of the Gateway API's reference alone (gateway-api.sigs.k8s.io, HTTPRoute, and GAMMA for routes whose
parent is a Service); the sentence relied on is quoted where it decides. Where the text leaves the choice to the
implementation, Istio's documentation decides: regular expressions come after prefixes, retries default to two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.reference.evaluate import (
    DEFAULT_RETRY_ON,
    Document,
    Outcome,
    Possible,
    Request,
    Service,
    namespace_of,
    seconds,
    target,
    with_headers,
)

GROUP = "gateway.networking.k8s.io"
DEFAULT_PORTS = {"http": 80, "https": 443}
EVERYTHING: Document = {}
EMPTY: Document = {}


def described(documents: Sequence[Document], services: Sequence[Service]) -> list[Service]:
    """The services, with those that documents of kind Service describe: "Route traffic to pods with label keys ..."."""
    workloads = {name: labels for service in services for name, labels in service.workloads.items()}
    found = []
    for document in documents:
        if document["kind"] == "Service":
            spec = document["spec"]
            chosen = {name: labels for name, labels in workloads.items() if spec["selector"].items() <= labels.items()}
            ports = tuple(port["port"] for port in spec["ports"])
            found.append(Service(document["metadata"]["name"], namespace_of(document), ports, chosen))
    return [*services, *found]


def routes_for(service: Service, request: Request, documents: Sequence[Document]) -> list[Document]:
    """
    The HTTPRoutes for *service* on the request's port.

    GAMMA: a route in the Service's namespace is a producer route, for all clients; one in another namespace is a
    consumer route, for clients of that namespace, and then it overrides the producer's.
    """
    attached = [
        document
        for document in documents
        if document["kind"] == "HTTPRoute"
        and any(
            ref.get("kind") == "Service"
            and ref["name"] == service.name
            and ref.get("namespace", namespace_of(document)) == service.namespace
            and ref.get("port", request.port) == request.port
            for ref in document["spec"].get("parentRefs", [])
        )
    ]
    consumers = [route for route in attached if namespace_of(route) == request.namespace != service.namespace]
    return consumers or [route for route in attached if namespace_of(route) == service.namespace]


def evaluate(
    request: Request, routes: Sequence[Document], documents: Sequence[Document], services: Sequence[Service]
) -> Possible:
    """What *routes*, all attached to the service that is called, do to *request*."""
    best: tuple[tuple[Any, ...], Document, Document, Document] | None = None
    for route in routes:
        for index, rule in enumerate(route["spec"].get("rules", [EMPTY])):
            # "If no matches are specified, the default is a prefix path match on "/"".
            for place, match in enumerate(rule.get("matches") or [EVERYTHING]):
                if not holds(request, match):
                    continue
                ranked = (*precedence(match), age_of(route), index, place)
                if best is None or ranked < best[0]:
                    best = (ranked, route, rule, match)
    if best is None:
        # "When no rules matching a request have been successfully attached ..., a HTTP 404 status code MUST be returned."
        return [(1.0, Outcome("respond", status=404, rule="no rule matches"))]
    _, route, rule, match = best
    return list(act(request, route, rule, match, documents, services))


def age_of(route: Document) -> tuple[str, str]:
    """All documents of a case are applied at once, so "the Route appearing first in alphabetical order" decides."""
    return (namespace_of(route), route["metadata"]["name"])


def holds(request: Request, match: Document) -> bool:
    """Whether all conditions of one HTTPRouteMatch are satisfied: they "are ANDed together"."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    parameters: dict[str, str] = {}
    for pair in filter(None, request.query.split("&")):
        name, _, value = pair.partition("=")
        parameters.setdefault(name, value)
    path = match.get("path", EMPTY)
    return (
        path_holds(request.path, path.get("type", "PathPrefix"), path.get("value", "/"))
        and match.get("method", request.method) == request.method
        and all(value_holds(headers.get(name), wanted) for name, wanted in by_name(match, "headers").items())
        and all(value_holds(parameters.get(name), wanted) for name, wanted in by_name(match, "queryParams").items())
    )


def by_name(match: Document, field: str) -> dict[str, Document]:
    """
    Conditions by name: "If multiple entries specify equivalent header names, only the first entry ... MUST be considered".

    Header names are case-insensitive, names of query parameters are compared exactly.
    """
    found: dict[str, Document] = {}
    for wanted in match.get(field, []):
        found.setdefault(wanted["name"].lower() if field == "headers" else wanted["name"], wanted)
    return found


def value_holds(value: str | None, wanted: Document) -> bool:
    if value is None:
        return False
    if wanted.get("type") == "RegularExpression":
        return re.fullmatch(wanted["value"], value) is not None
    return value == wanted["value"]


def path_holds(path: str, kind: str, value: str) -> bool:
    if kind == "Exact":
        return path == value
    if kind == "RegularExpression":
        return re.fullmatch(value, path) is not None
    # "Matches based on a URL path prefix split by `/`. Matching is case-sensitive and done on a path element by element
    # basis." "A trailing slash is ignored."
    elements = [part for part in value.split("/") if part]
    return path.split("/")[1 : len(elements) + 1] == elements


def precedence(match: Document) -> tuple[Any, ...]:
    """What puts one match before another, smallest first: the list of criteria under HTTPRouteRule.matches."""
    path = match.get("path", EMPTY)
    kind, value = path.get("type", "PathPrefix"), path.get("value", "/")
    return (
        ["Exact", "PathPrefix", "RegularExpression"].index(kind),
        -len(value.rstrip("/")) if kind == "PathPrefix" else 0,
        "method" not in match,
        -len(by_name(match, "headers")),
        -len(by_name(match, "queryParams")),
    )


def act(
    request: Request,
    route: Document,
    rule: Document,
    match: Document,
    documents: Sequence[Document],
    services: Sequence[Service],
) -> Iterator[tuple[float, Outcome]]:
    """What one rule does: its filters, then one of its backends by weight."""
    name = f"{route['metadata']['name']}: {rule}"
    filters: Mapping[str, Document] = {item["type"]: item for item in rule.get("filters", [])}
    edits = [header_edits(item) for item in rule.get("filters", [])]
    if "RequestRedirect" in filters:
        outcome = Outcome("redirect", rule=name)
        yield 1.0, redirect(request, filters["RequestRedirect"]["requestRedirect"], match, outcome)
        return
    rewrite = filters.get("URLRewrite", EMPTY).get("urlRewrite", EMPTY)
    timeouts, retry = rule.get("timeouts", EMPTY), rule.get("retry", EMPTY)
    base = Outcome(
        "forward",
        rule=name,
        path=target(new_path(request.path, rewrite.get("path"), match), request.query),
        authority=rewrite.get("hostname", request.authority),
        # "Setting a timeout to the zero duration (e.g. "0s") SHOULD disable the timeout completely."
        timeout_seconds=seconds(timeouts["request"]) or None if "request" in timeouts else None,
        per_try_timeout_seconds=seconds(timeouts["backendRequest"]) or None if "backendRequest" in timeouts else None,
        attempts=retry.get("attempts", 2),
        # The codes are repeated besides what no program has seen.
        retry_on=DEFAULT_RETRY_ON + (",retriable-status-codes" if retry.get("codes") else ""),
        copies=tuple(copies(route, rule, documents, services)),
    )
    backends = rule.get("backendRefs", [])
    total = sum(backend.get("weight", 1) for backend in backends)
    if not total:
        # "If all entries in BackendRefs are invalid, ... all traffic which matches this rule MUST receive a 500".
        yield 1.0, replace(base, kind="respond", status=500)
        return
    for backend in backends:
        share = backend.get("weight", 1) / total
        if share:
            own = [header_edits(item) for item in backend.get("filters", [])]
            yield share, with_headers(request, forward(route, backend, base, documents, services), edits + own)


def copies(
    route: Document, rule: Document, documents: Sequence[Document], services: Sequence[Service]
) -> Iterator[tuple[frozenset[str], float]]:
    """HTTPRequestMirrorFilter: "If neither Fraction nor Percent is specified, then 100% of requests will be mirrored"."""
    for item in rule.get("filters", []):
        if item["type"] == "RequestMirror":
            mirror = item["requestMirror"]
            fraction = mirror.get("fraction", {"numerator": mirror.get("percent", 100)})
            share = fraction["numerator"] / fraction.get("denominator", 100)
            taken = forward(route, mirror["backendRef"], Outcome("forward"), documents, services).workloads
            if taken and share:
                yield taken, share


def forward(
    route: Document, backend: Document, base: Outcome, documents: Sequence[Document], services: Sequence[Service]
) -> Outcome:
    """Where one backendRef leads: "500 status codes MUST be returned for requests ... to an invalid backend"."""
    namespace = backend.get("namespace", namespace_of(route))
    invalid = replace(base, kind="respond", status=500)
    if namespace != namespace_of(route) and not granted(route, backend, namespace, documents):
        return invalid
    service = next((item for item in services if (item.name, item.namespace) == (backend["name"], namespace)), None)
    if service is None or backend["port"] not in service.ports:
        return invalid
    if not service.workloads:
        # "When a HTTPBackendRef refers to a Service that has no ready endpoints, implementations SHOULD return a 503".
        return replace(base, kind="respond", status=503, service=service.hostname)
    return replace(base, service=service.hostname, workloads=frozenset(service.workloads))


def granted(route: Document, backend: Document, namespace: str, documents: Sequence[Document]) -> bool:
    """ReferenceGrant: "a list of ... From ... To describes the trusted namespaces and kinds that can reference"."""
    for grant in documents:
        if grant["kind"] != "ReferenceGrant" or namespace_of(grant) != namespace:
            continue
        from_here = any(
            (source["group"], source["kind"], source["namespace"]) == (GROUP, "HTTPRoute", namespace_of(route))
            for source in grant["spec"]["from"]
        )
        to_there = any(
            (wanted["group"], wanted["kind"]) == ("", "Service")
            and wanted.get("name", backend["name"]) == backend["name"]
            for wanted in grant["spec"]["to"]
        )
        if from_here and to_there:
            return True
    return False


def header_edits(item: Document) -> Document:
    """A header modifier in the words of the other half: names to values."""
    side = {"RequestHeaderModifier": "request", "ResponseHeaderModifier": "response"}.get(item["type"])
    if side is None:
        return {}
    edits = item[f"{side}HeaderModifier"]
    named = {kind: {entry["name"]: entry["value"] for entry in edits.get(kind, [])} for kind in ("set", "add")}
    return {side: {**named, "remove": edits.get("remove", [])}}


def new_path(path: str, modifier: Document | None, match: Document) -> str:
    """The table under HTTPPathModifier.replacePrefixMatch: `/foo/bar`, `/foo` -> `/xyz`: `/xyz/bar`; never empty."""
    if modifier is None:
        return path
    if modifier["type"] == "ReplaceFullPath":
        return str(modifier["replaceFullPath"]) or "/"
    matched = match.get("path", EMPTY).get("value", "/").rstrip("/")
    return modifier["replacePrefixMatch"].rstrip("/") + path[len(matched) :] or "/"


def redirect(request: Request, spec: Document, match: Document, outcome: Outcome) -> Outcome:
    """
    HTTPRequestRedirectFilter.

    "If no port is specified: if redirect scheme is not-empty, the redirect port MUST be the well-known port associated
    with the redirect scheme ...; if redirect scheme is empty, the redirect port MUST be the Gateway Listener port."
    """
    scheme = spec.get("scheme", request.scheme)
    port = spec.get("port", DEFAULT_PORTS[scheme] if "scheme" in spec else request.port)
    host = spec.get("hostname", request.host)
    # "Implementations SHOULD NOT add the port number in the 'Location' header" if the scheme implies it.
    authority = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    path = target(new_path(request.path, spec.get("path"), match), request.query)
    return replace(outcome, status=spec.get("statusCode", 302), location=f"{scheme}://{authority}{path}")
