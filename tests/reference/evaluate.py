"""
The reference evaluator: what happens to one request, by Istio's documentation alone.

It judges translate, engine, weft-proxy and Envoy, so it imports nothing of weft and knows nothing of xDS: plain YAML
documents and a plain description of who serves what go in, the possible outcomes with their probabilities come out.
Slow and obvious on purpose. Sources are the pages of istio.io/docs/reference/config/networking: VirtualService,
DestinationRule, Gateway; the sentence relied on is quoted where it decides. HTTPRoutes are `gateway_api.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Document = Mapping[str, Any]

DEFAULT_RETRY_ON = "connect-failure,refused-stream,reset-before-request"
"""
HTTPRetry.retryOn, by default; attempts default to 2 (traffic management, "Retries").

Of Istio's conditions those that hold only for what no program has seen: weft's default repeats nothing else.
"""


@dataclass(frozen=True)
class Request:
    """As the program sends it. `gateway` names the Gateway it came in by (`namespace/name`), or `mesh`."""

    host: str
    port: int
    path: str = "/"
    query: str = ""
    method: str = "GET"
    scheme: str = "http"
    headers: Mapping[str, str] = field(default_factory=dict)
    source_labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "default"
    gateway: str = "mesh"

    @property
    def authority(self) -> str:
        return self.host if self.port == 80 else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Service:
    """`workloads`: name -> labels of the instances that serve it."""

    name: str
    namespace: str
    ports: tuple[int, ...]
    workloads: Mapping[str, Mapping[str, str]]

    @property
    def hostname(self) -> str:
        return f"{self.name}.{self.namespace}.svc.cluster.local"


@dataclass(frozen=True)
class Outcome:
    """
    One thing that may happen.

    `kind` is `forward` (to one of `workloads`), `respond` (the proxy answers `status` itself, abort faults included),
    `redirect` (with `location`), or `passthrough` (to where the program wanted to go).

    `copies`: for each mirror the workloads of which one gets a copy, and the share of requests that are copied.
    `sticks_by`: what decides on the one of `workloads`, with the request's value; empty if nothing does.
    """

    kind: str
    status: int = 0
    body: str = ""
    location: str = ""
    service: str = ""
    workloads: frozenset[str] = frozenset()
    path: str = ""
    authority: str = ""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    response_headers: Mapping[str, str] = field(default_factory=dict)
    removed_response_headers: frozenset[str] = frozenset()
    delay_seconds: float = 0.0
    timeout_seconds: float | None = None
    attempts: int = 0
    retry_on: str = ""
    per_try_timeout_seconds: float | None = None
    copies: tuple[tuple[frozenset[str], float], ...] = ()
    sticks_by: str = ""
    rule: str = ""


DEFAULT = Outcome("forward", rule="default", attempts=2, retry_on=DEFAULT_RETRY_ON)
"""Where no rule applies: "retries ... the default retry behavior for HTTP requests is to retry twice"."""

Possible = list[tuple[float, Outcome]]


def evaluate(request: Request, documents: Sequence[Document], services: Sequence[Service]) -> Possible:
    """Return what may happen to *request*, each with its probability; they add up to 1."""
    from tests.reference import gateway_api  # the other half, which is written in the words of this one

    documents = [document for document in documents if document]
    services = gateway_api.described(documents, services)
    mesh = Mesh(documents, services)
    if request.gateway != "mesh" and not mesh.gateway_accepts(request):
        return [(1.0, Outcome("respond", status=404, rule="no gateway server for this host"))]
    virtual_service = mesh.virtual_service(request)
    if virtual_service is None:
        service = mesh.service(request.host, request.namespace)
        if request.gateway != "mesh":
            return [(1.0, Outcome("respond", status=404, rule="no virtual service for this host"))]
        if service is None or request.port not in service.ports:
            # "ALLOW_ANY: outbound traffic to unknown destinations will be allowed" (OutboundTrafficPolicy).
            return [(1.0, Outcome("passthrough", path=request.path, authority=request.authority))]
        if routes := gateway_api.routes_for(service, request, documents):
            return gateway_api.evaluate(request, routes, documents, services)
        return [(1.0, mesh.forward(request, {"host": service.hostname}, DEFAULT))]
    for index, rule in enumerate(virtual_service["spec"].get("http", [])):
        # "The first rule matching an incoming request is used."
        for match in rule.get("match") or [{}]:
            if matches(request, match):
                name = f"{virtual_service['metadata']['name']}.http[{index}]"
                return list(mesh.apply(request, rule, match, name))
    return [(1.0, Outcome("respond", status=404, rule=f"{virtual_service['metadata']['name']}: nothing matched"))]


def matches(request: Request, match: Document) -> bool:
    """Whether every condition of one HTTPMatchRequest holds ("all conditions inside a single match block have AND")."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    parameters = dict(pair.partition("=")[::2] for pair in request.query.split("&") if pair)
    ignore_case = match.get("ignoreUriCase", False)
    conditions = [
        "uri" not in match or text_matches(request.path, match["uri"], ignore_case=ignore_case),
        "scheme" not in match or text_matches(request.scheme, match["scheme"]),
        "method" not in match or text_matches(request.method, match["method"]),
        "authority" not in match or text_matches(request.authority, match["authority"]),
        "port" not in match or match["port"] == request.port,
        "sourceNamespace" not in match or match["sourceNamespace"] == request.namespace,
        "gateways" not in match or request.gateway in qualified(match["gateways"], request.namespace),
        match.get("sourceLabels", {}).items() <= request.source_labels.items(),
        all(value_matches(headers.get(name.lower()), want) for name, want in match.get("headers", {}).items()),
        all(value_matches(parameters.get(name), want) for name, want in match.get("queryParams", {}).items()),
        not any(
            value_matches(headers.get(name.lower()), want) for name, want in match.get("withoutHeaders", {}).items()
        ),
    ]
    return all(conditions)


def value_matches(value: str | None, want: Document | None) -> bool:
    """A header or query parameter: "If the value is empty and only the name is specified, presence is checked"."""
    if value is None:
        return False
    return not want or text_matches(value, want)


def text_matches(value: str, want: Document, *, ignore_case: bool = False) -> bool:
    """StringMatch: exact, prefix, or regex ("RE2 style", of the whole value); `ignoreUriCase` not for regex."""
    if "regex" in want:
        return re.fullmatch(want["regex"], value) is not None
    if ignore_case:
        value = value.lower()
        want = {kind: text.lower() for kind, text in want.items()}
    if "exact" in want:
        return value == want["exact"]
    return value.startswith(want["prefix"])


def qualified(gateways: Sequence[str], namespace: str) -> list[str]:
    """Gateway names as `namespace/name`: "<gateway namespace>/<gateway name>; without namespace, the rule's"."""
    return [name if name == "mesh" or "/" in name else f"{namespace}/{name}" for name in gateways]


def seconds(text: str) -> float:
    """A duration: `1h`, `1m`, `1s`, `1ms`, and sums of them."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|[hms])", text))


class Mesh:
    """The documents and services, with the look-ups that Istio's documentation describes."""

    def __init__(self, documents: Sequence[Document], services: Sequence[Service]) -> None:
        self.documents = [document for document in documents if document]
        self.services = services

    def of_kind(self, kind: str) -> Iterator[Document]:
        return (document for document in self.documents if document["kind"] == kind)

    def hostname(self, host: str, namespace: str) -> str:
        """Short names are "interpreted based on the namespace of the rule"; unknown longer ones are left alone."""
        service = self.service(host, namespace)
        return service.hostname if service else host

    def service(self, host: str, namespace: str) -> Service | None:
        for service in self.services:
            names = [f"{service.name}.{service.namespace}", f"{service.name}.{service.namespace}.svc", service.hostname]
            if host in names or (host == service.name and namespace == service.namespace):
                return service
        return None

    def gateway_accepts(self, request: Request) -> bool:
        """A server with this port whose hosts cover the request's: "exact or wildcard in the left-most component"."""
        for gateway in self.of_kind("Gateway"):
            if f"{namespace_of(gateway)}/{gateway['metadata']['name']}" != request.gateway:
                continue
            for server in gateway["spec"]["servers"]:
                hosts = [host.rpartition("/")[2] for host in server["hosts"]]
                if server["port"]["number"] == request.port and any(covers(host, request.host) for host in hosts):
                    return True
        return False

    def virtual_service(self, request: Request) -> Document | None:
        """The one whose host covers the request best: exact, then the longest wildcard; the older of two equals."""
        best: tuple[int, Document] | None = None
        for document in self.of_kind("VirtualService"):
            namespace = namespace_of(document)
            if request.gateway not in qualified(document["spec"].get("gateways") or ["mesh"], namespace):
                continue
            for host in document["spec"]["hosts"]:
                want = self.hostname(host, namespace)
                asked = self.hostname(request.host, request.namespace) if request.gateway == "mesh" else request.host
                if covers(want, asked):
                    rank = len(want) + (1000 if "*" not in want else 0)
                    if best is None or rank > best[0]:
                        best = (rank, document)
        return best[1] if best else None

    def apply(self, request: Request, rule: Document, match: Document, name: str) -> Iterator[tuple[float, Outcome]]:
        """What one HTTPRoute does: faults first, then redirect, direct response or one of the destinations."""
        actions = list(self.actions(request, rule, match, name))
        fault = rule.get("fault") or {}
        for delay_share, delay in shares(fault.get("delay"), "fixedDelay"):
            for abort_share, abort in shares(fault.get("abort"), "httpStatus"):
                for share, outcome in actions:
                    probability = delay_share * abort_share * share
                    if not probability:
                        continue
                    if abort is not None:
                        outcome = Outcome("respond", status=abort, body="fault filter abort", rule=name)
                    yield probability, replace(outcome, delay_seconds=seconds(delay) if delay else 0.0)

    def actions(self, request: Request, rule: Document, match: Document, name: str) -> Iterator[tuple[float, Outcome]]:
        from tests.reference import cors  # which is written in the words of this one

        if "redirect" in rule:
            yield 1.0, redirect(request, rule["redirect"], match, name)
            return
        if "directResponse" in rule:
            body = rule["directResponse"].get("body", {}).get("string", "")
            yield 1.0, Outcome("respond", status=rule["directResponse"]["status"], body=body, rule=name)
            return
        path, authority = rewritten(request, rule.get("rewrite") or {}, match)
        retries = rule.get("retries")
        base = Outcome(
            "forward",
            rule=name,
            path=path,
            authority=authority,
            # "timeout: default is disabled".
            timeout_seconds=seconds(rule["timeout"]) if rule.get("timeout") else None,
            attempts=(retries or {}).get("attempts", 2),
            retry_on=(retries or {}).get("retryOn", DEFAULT_RETRY_ON),
            per_try_timeout_seconds=seconds(retries["perTryTimeout"]) if (retries or {}).get("perTryTimeout") else None,
        )
        base = replace(base, copies=tuple(self.copies(request, rule)))
        destinations = rule["route"]
        # "weight: ... If there is only one destination in a rule, it will receive all traffic".
        total = sum(route.get("weight", 0) for route in destinations)
        for route in destinations:
            share = 1.0 if len(destinations) == 1 else route.get("weight", 0) / total
            edits = [rule.get("headers") or {}, route.get("headers") or {}]
            outcome = self.forward(request, route["destination"], base)
            yield share, cors.apply(request, rule.get("corsPolicy"), with_headers(request, outcome, edits))

    def copies(self, request: Request, rule: Document) -> Iterator[tuple[frozenset[str], float]]:
        """
        Who gets a copy: "mirrored traffic is on a best effort basis where the sidecar/gateway will not wait for the
        mirrored cluster to respond before returning the response from the original destination".
        """
        policies = list(rule.get("mirrors", []))
        if "mirror" in rule:
            # "If this field is absent, all the traffic (100%) will be mirrored."
            whole = {"value": rule.get("mirrorPercent", 100)}
            policies = [{"destination": rule["mirror"], "percentage": rule.get("mirrorPercentage", whole)}]
        for policy in policies:
            taken = self.forward(request, policy["destination"], DEFAULT).workloads
            share = policy.get("percentage", {"value": 100}).get("value", 0) / 100
            if taken and share:
                yield taken, share

    def sticks_by(self, request: Request, service: Service, subset: str) -> str:
        """
        What decides on the instance: "Consistent Hash-based load balancing can be used to provide soft session affinity".
        A subset's own policy comes before the host's.
        """
        rules = self.destination_rules(request, service)
        # Of several rules for one host "only the first" top-level policy holds, and the subsets of all.
        policies = [rule["spec"] for rule in rules if "trafficPolicy" in rule["spec"]][:1]
        policies += [item for rule in rules for item in rule["spec"].get("subsets", []) if item["name"] == subset][:1]
        found: Document = {}
        for policy in policies:
            found = policy.get("trafficPolicy", {}).get("loadBalancer", {}).get("consistentHash", found)
        headers = {name.lower(): value for name, value in request.headers.items()}
        parameters = dict(pair.partition("=")[::2] for pair in request.query.split("&") if pair)
        cookies = dict(pair.strip().partition("=")[::2] for pair in headers.get("cookie", "").split(";") if pair)
        if "httpHeaderName" in found:
            name, value = found["httpHeaderName"], headers.get(found["httpHeaderName"].lower())
        elif "httpQueryParameterName" in found:
            name, value = found["httpQueryParameterName"], parameters.get(found["httpQueryParameterName"])
        elif "httpCookie" in found:
            name, value = found["httpCookie"]["name"], cookies.get(found["httpCookie"]["name"])
        else:
            name, value = "source", "the client" if found.get("useSourceIp") else None
        return f"{name}={value}" if value is not None else ""

    def forward(self, request: Request, destination: Document, base: Outcome) -> Outcome:
        """The instances that a destination names: all of the service, or those with the labels of the subset."""
        base = replace(
            base, path=base.path or target(request.path, request.query), authority=base.authority or request.authority
        )
        service = self.service(destination["host"], request.namespace)
        unavailable = replace(base, kind="respond", status=503, workloads=frozenset())
        if service is None:
            return unavailable
        port = destination.get("port", {}).get("number", request.port if request.port in service.ports else None)
        if port is None and len(service.ports) == 1:
            # "port ... If a service exposes only a single port it is not required to explicitly select the port".
            port = service.ports[0]
        if port not in service.ports:
            return unavailable
        labels: Document = {}
        if subset := destination.get("subset"):
            found = self.subset(request, service, subset)
            if found is None:
                return replace(unavailable, service=service.hostname)
            labels = found
        chosen = frozenset(name for name, have in service.workloads.items() if labels.items() <= have.items())
        if not chosen:
            return replace(unavailable, service=service.hostname)
        sticks_by = self.sticks_by(request, service, destination.get("subset", ""))
        return replace(base, service=service.hostname, workloads=chosen, sticks_by=sticks_by)

    def subset(self, request: Request, service: Service, name: str) -> Document | None:
        for rule in self.destination_rules(request, service):
            for subset in rule["spec"].get("subsets", []):
                if subset["name"] == name:
                    return subset.get("labels", {})  # type: ignore[no-any-return]
        return None

    def destination_rules(self, request: Request, service: Service) -> list[Document]:
        """
        The rules in force: "the client namespace, the service namespace, the meshconfig.rootNamespace namespace", the
        first that has one, decide (best practices, "Cross-namespace configuration sharing"). In it the most specific
        host; several rules for one host are one (best practices, "Multiple virtual services and destination rules for
        the same host").
        """
        for namespace in (request.namespace, service.namespace, "istio-system"):
            ranked: dict[int, list[Document]] = {}
            for rule in self.of_kind("DestinationRule"):
                host = self.hostname(rule["spec"]["host"], namespace_of(rule))
                if namespace_of(rule) == namespace and covers(host, service.hostname):
                    ranked.setdefault(len(host) + (1000 if "*" not in host else 0), []).append(rule)
            if ranked:
                return ranked[max(ranked)]
        return []


def namespace_of(document: Document) -> str:
    namespace: str = document["metadata"].get("namespace", "default")
    return namespace


def covers(host: str, asked: str) -> bool:
    """Whether a host of a rule, exact or with a wildcard in front, covers the host asked for."""
    if host == "*":
        return True
    if host.startswith("*"):
        return asked.endswith(host[1:]) and asked != host[1:]
    return host.lower() == asked.lower()


def shares(fault: Document | None, value: str) -> list[tuple[float, Any]]:
    """With which probability a fault happens, and with which not; "if left unspecified, no request" has it."""
    if fault is None or value not in fault:
        return [(1.0, None)]
    percent = fault.get("percentage", {}).get("value", 0) if "percentage" in fault else fault.get("percent", 0)
    return [(percent / 100, fault[value]), (1 - percent / 100, None)]


def target(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def rewritten(request: Request, rewrite: Document, match: Document) -> tuple[str, str]:
    """Path (with query) and authority after HTTPRewrite: the matched prefix is replaced, else the whole path."""
    path = request.path
    if "uriRegexRewrite" in rewrite:
        substitution = re.sub(r"\\(\d)", r"\\g<\1>", rewrite["uriRegexRewrite"]["rewrite"])
        path = re.sub(rewrite["uriRegexRewrite"]["match"], substitution, path)
    elif "uri" in rewrite:
        prefix = match.get("uri", {}).get("prefix")
        path = rewrite["uri"] + path[len(prefix) :] if prefix is not None else rewrite["uri"]
    return target(path, request.query), rewrite.get("authority", request.authority)


def redirect(request: Request, spec: Document, match: Document, name: str) -> Outcome:
    """HTTPRedirect: each field overwrites its portion of the URL, what it does not name stays; 301 by default."""
    scheme = spec.get("scheme", request.scheme)
    known = {"http": 80, "https": 443}[scheme]
    # "port: On a redirect, overwrite the port portion of the URL with this value." "FROM_PROTOCOL_DEFAULT:
    # automatically set to 80 for HTTP and 443 for HTTPS. FROM_REQUEST_PORT: automatically use the port of the request."
    derived = {"FROM_PROTOCOL_DEFAULT": known, "FROM_REQUEST_PORT": request.port}
    port = spec.get("port", derived.get(spec.get("derivePort", "")))
    if port is None:
        authority = spec.get("authority", request.authority)
    else:
        host = spec.get("authority", request.host)
        authority = host if port == known else f"{host}:{port}"
    path = spec.get("uri") or request.path
    if "prefixRewrite" in spec:
        # It replaces the prefix that was matched; a rule that matches no path has matched the slash.
        path = spec["prefixRewrite"] + path[len(match.get("uri", {}).get("prefix", "/")) :]
    location = f"{scheme}://{authority}{target(path, request.query)}"
    return Outcome("redirect", status=spec.get("redirectCode", 301), location=location, rule=name)


def with_headers(request: Request, outcome: Outcome, edits: Sequence[Document]) -> Outcome:
    """Headers after `remove`, `set` and `add` of the rule and of the destination; `add` joins values by a comma."""
    sent = {name.lower(): value for name, value in request.headers.items()}
    answered: dict[str, str] = {}
    removed: set[str] = set()
    for edit in edits:
        operations = edit.get("request", {})
        for name in operations.get("remove", []):
            sent.pop(name.lower(), None)
        for name, value in operations.get("set", {}).items():
            sent[name.lower()] = value
        for name, value in operations.get("add", {}).items():
            sent[name.lower()] = f"{sent[name.lower()]},{value}" if name.lower() in sent else value
        operations = edit.get("response", {})
        removed |= {name.lower() for name in operations.get("remove", [])}
        for name, value in {**operations.get("set", {}), **operations.get("add", {})}.items():
            answered[name.lower()] = value
    if outcome.kind == "respond":
        # What the proxy answers by itself is no response of a destination.
        return outcome
    return replace(
        outcome, request_headers=sent, response_headers=answered, removed_response_headers=frozenset(removed)
    )
