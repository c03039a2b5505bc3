"""
Where a request would go, and why: asked of the proxy's own decision code, on both sides of the connection.

The caller brings the workloads and services as the control plane lists them, and a way to read the resources that were
published to a proxy; this finds the caller's proxy, resolves the host as its program's DNS server would, asks the
outbound side, and then the inbound side of each destination.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from weft._native import Engine
from weft.api.nearest import nearest
from weft.data_plane import WEFT_PROXY
from weft.errors import NotFound, UsageError, WeftError
from weft.insight import called, home, unknown_host
from weft.insight.decision import BY_ENDPOINT, Decision, Endpoint
from weft.insight.endpoint_health import Found, marked
from weft.insight.mutual_tls import Acceptance, Refusal, acceptance, client_rule, foreign_tls, refusal
from weft.model import Interception, loopback
from weft.translate import names
from weft.translate.listening import listening_ports
from weft.translate.resource import LISTENER

Resource: TypeAlias = tuple[str, str, bytes]
"""(type URL, name, serialised message)."""

Json: TypeAlias = Mapping[str, Any]

SOMEWHERE = "192.0.2.1"
"""Stands for a host outside of the mesh whose address does not matter to the decision (RFC 5737)."""

DIRECT = names.MESH_PASSTHROUGH
"""What takes calls of a workload's own address."""

UNSEEN = Decision("not_caught", {"outcome": "not_caught"})
"""What a proxy decides about a call that does not come to it."""

PROGRAMS_ALPN = ["h2", "http/1.1"]
"""What programs offer that speak TLS themselves: browsers, curl, most libraries."""

PORTS = {"http": 80, "https": 443}

FORBIDDEN = 403
"""Status for a caller that the proxy does not take for its program."""

FORWARDED_PROTO = "x-forwarded-proto"
"""Header by which a proxy says whether a request came to it by TLS."""


@dataclass(frozen=True, slots=True)
class Question:
    """
    A request that a program might send.

    Attributes:
        source: A workload's name, or a service's: then one of its workloads is chosen.
        url: `http://reviews:9080/reviews/0`.
        headers: In the order in which they are sent.
    """

    source: str
    url: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """
    A URL taken apart and its host resolved.

    Attributes:
        address: What the program would connect to.
        connect_port: On which port, where that is not the URL's: that of the HTTP proxy.
        hostname: Full name of the service; empty for a host outside of the mesh.
    """

    scheme: str
    authority: str
    host: str
    port: int
    path: str
    address: str
    hostname: str = ""
    connect_port: int = 0


@dataclass(frozen=True, slots=True)
class UnknownHost:
    """
    The host is a name, and no service's: whether the call is made is decided by a resolver that is not asked here.

    Attributes:
        asked_by: `program`, or `proxy` in explicit mode, where the program's HTTP proxy looks it up.
        remedy: What to do if a service was meant; empty where nothing says so.
    """

    name: str
    asked_by: str
    remedy: str


@dataclass(frozen=True, slots=True)
class InboundSide:
    """
    What the proxy of a destination does with the request.

    Attributes:
        address: `10.244.0.5:9080`, where it is called.
        tls: How it is called, see `Endpoint`.
        accepted: What it takes of its callers.
        refusal: Why it does not take this one; None if it does.
        decision: What becomes of a request that it takes.
        version: The HTTP in which it comes; empty for bytes.
    """

    workload: str
    identity: str
    address: str
    tls: Mapping[str, Any] | None
    accepted: Acceptance
    refusal: Refusal | None
    decision: Decision
    version: str = ""

    @property
    def requires_tls(self) -> bool:
        """Whether a caller without a certificate is refused."""
        return self.accepted.mutual and not self.accepted.plain


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    Everything that `weft why` says. `assumptions` are whole sentences.

    Attributes:
        refusal: Why the call does not come to the mesh, or no further than to the caller's own proxy; None if it goes on.
        http_refusal: Why a request of HTTP comes to nothing, where all else is about other bytes to the same place.
        unused: Endpoints of its destinations that the caller's proxy has found to be unwell, now; None if it was not asked,
            or does not answer.
    """

    question: Question
    workload: str
    identity: str
    target: Target
    outbound: Decision
    inbound: tuple[InboundSide, ...] = ()
    assumptions: tuple[str, ...] = ()
    is_gateway: bool = False
    refusal: Refusal | None = None
    unknown_host: UnknownHost | None = None
    http_refusal: Refusal | None = None
    unused: Found | None = None

    @property
    def is_caught(self) -> bool:
        """Whether a proxy sees the call."""
        return self.outbound is not UNSEEN


def explain(
    question: Question,
    *,
    workloads: Sequence[Json],
    services: Sequence[Json],
    resources: Callable[[str], Sequence[Resource]],
    health: Callable[[str], Found | None],
    machine: str = "",
    place: Callable[[str], str] = str,
) -> Explanation:
    """
    Answer *question*.

    Args:
        question: A request that somebody thinks of; nothing is sent.
        workloads: What `GET /v1/workloads` says.
        services: What `GET /v1/services` says.
        resources: Workload name -> what was last published to its proxy.
        health: Workload name -> what its proxy has found of its endpoints by itself, None if it does not answer; asked at
            most once, where the request goes to endpoints.
        machine: The host's name, which means each program itself in its own namespaces.
        place: Makes of where something is written (`FILE:LINE:COLUMN`) what the reader may open; for the sentences.

    Raises:
        NotFound: There is no such workload or service to ask from, or what is called has no such port.
        UsageError: The URL is none.
        WeftError: The engine cannot read the resources, or the question makes no sense to it.
    """
    resources = functools.cache(resources)
    assumptions: list[str] = []
    if "://" not in question.url:
        assumptions.append(f"{question.url} means {_without_scheme(question.url)}, as to curl.")
    source = _source(question.source, workloads, assumptions)
    is_gateway = source["kind"] == "gateway"
    published = resources(source["workload"])
    engine = _engine(published, source)
    service = None if is_gateway else _resolve(_split(question.url)[2], source, services)
    if is_gateway:
        target = _gateway_target(question, source, published)
        unseen = None
    else:
        target, unseen = _target(question, source, service, services, published, machine, assumptions)
    unknown = None if is_gateway else _unknown_host(source, target, services)
    if unseen is not None:
        return _explanation(question, source, target, UNSEEN, unseen, unknown, assumptions)
    asked = _request(question, target, "gateway" if is_gateway else "outbound")
    if not is_gateway and not _is_explicit(source):
        asked["source"] = _source_address(source, target.address)
    outbound = _ask(engine, asked)
    assumptions += _assumed_reading(source, outbound, is_gateway=is_gateway)
    refused = _refused_at_home(engine, asked, outbound, target, service, workloads, is_gateway=is_gateway)
    if refused is not None:
        return _explanation(question, source, target, outbound, refused, unknown, assumptions)
    unused = _unused(outbound, health(source["workload"])) if outbound.endpoints else None
    if unused:
        outbound = _ask(_engine(marked(published, unused), source), asked)
    inbound = _inbound_sides(outbound, asked, source, target, workloads, resources, place)
    assumptions += _stand_ins(source, inbound, workloads)
    if outbound.endpoints:
        assumptions.append(_assumed_health(source["workload"], unused))
    if _is_chance(outbound):
        assumptions.append("Each share is what many requests get; a single one is decided by chance.")
    explanation = _explanation(question, source, target, outbound, None, unknown, assumptions)
    not_http = None
    if service is not None and _is_explicit(source) and target.scheme == "http" and outbound.outcome == "tcp":
        not_http = home.http_to_bytes(source, service, target.address, target.port)
    return replace(explanation, inbound=inbound, unused=unused, http_refusal=not_http)


def _explanation(
    question: Question,
    source: Json,
    target: Target,
    outbound: Decision,
    refused: Refusal | None,
    unknown: UnknownHost | None,
    assumptions: Sequence[str],
) -> Explanation:
    return Explanation(
        question,
        source["workload"],
        source["identity"],
        target,
        outbound,
        assumptions=tuple(assumptions),
        is_gateway=source["kind"] == "gateway",
        refusal=refused,
        unknown_host=unknown,
    )


def _refused_at_home(
    engine: Engine,
    asked: Mapping[str, Any],
    outbound: Decision,
    target: Target,
    service: Json | None,
    workloads: Sequence[Json],
    *,
    is_gateway: bool,
) -> Refusal | None:
    """Return why the call goes no further than to the caller's own proxy, None if it does."""
    going = {share.cluster for share in outbound.shares if share.share > 0}
    if going == {DIRECT}:
        return home.nobody_there(workloads, target.address, target.port)
    only_services = going == {names.BLACK_HOLE}
    if going == {names.PASSTHROUGH}:
        # What is not HTTP tells: to the range of services it is refused, to everywhere else passed on.
        other = _ask(engine, {**asked, "tls": False, "alpn": ["none"]})
        only_services = any(share.cluster == names.BLACK_HOLE for share in other.shares)
    if only_services and service is not None:
        _check_port(service, target.port)
    return home.refused_by_own_proxy(
        outbound,
        scheme=target.scheme,
        authority=str(asked["authority"]),
        address=target.address,
        port=target.port,
        service=service,
        is_gateway=is_gateway,
        only_services=only_services,
    )


def _unused(outbound: Decision, found: Found | None) -> Found | None:
    """Return what the proxy has *found* of the endpoints to which the request would go."""
    if found is None:
        return None
    endpoints = {(item.cluster, item.address) for item in outbound.endpoints}
    return {key: state for key, state in found.items() if key in endpoints}


def _assumed_health(workload: str, unused: Found | None) -> str:
    if unused is None:
        return (
            f"Every endpoint that is listed answers: {workload}'s proxy, which would know of ejections and failed health"
            " checks, could not be asked."
        )
    if not unused:
        return f"Every endpoint that is listed answers: {workload}'s proxy knows nothing else of any of them now."
    return (
        f"Every other endpoint answers, and those that {workload}'s proxy does not use now are still not used then: an"
        " ejection ends by itself, and so does a failed check when one succeeds."
    )


def _source_address(source: Json, target: str) -> str:
    """Return from where the program in namespaces of its own calls *target*, by a port that does not matter."""
    return f"[{source['address6']}]:0" if ":" in target and source.get("address6") else f"{source['address']}:0"


def _assumed_reading(source: Json, decision: Decision, *, is_gateway: bool) -> Iterator[str]:
    """Say as what the proxy reads the request, where that is not as it was written, and who else may send it."""
    if path := decision.raw.get("path"):
        yield f"The proxy makes paths normal before it looks for a rule: this one is {path}."
    if decision.outcome == "turned_away" and decision.status == FORBIDDEN and not is_gateway:
        yield (
            "The program calls the service's address by itself; by HTTP_PROXY, which carries its credential, what web pages"
            f" have {source['workload']} ask for is let in, too."
        )


def _is_chance(decision: Decision) -> bool:
    fault = decision.raw.get("fault") or {}
    shares = [share.share for share in decision.shares]
    shares += [fault.get(key, 0) / 100 for key in ("delay_percent", "abort_percent")]
    shares += [mirror.percent / 100 for mirror in decision.mirrors]
    return any(0 < share < 1 for share in shares)


def _source(name: str, workloads: Sequence[Json], assumptions: list[str]) -> Json:
    """Return the workload to ask from."""
    for workload in workloads:
        if workload["workload"] == name:
            return workload
    found = [item for item in workloads if name in (item["service"], f"{item['service']}.{item['namespace']}")]
    if not found:
        known = sorted({item["service"] for item in workloads} | {item["workload"] for item in workloads})
        meant = nearest(name, known)
        hint = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(known) or 'none'}."
        raise NotFound(f"There is no program {name!r}. {hint}")
    chosen = next((item for item in found if item["ready"]), found[0])
    if len(found) > 1:
        others = ", ".join(item["workload"] for item in found if item is not chosen)
        assumptions.append(
            f"{name} has {len(found)} workloads; this is asked from {chosen['workload']} (not {others})."
        )
    return chosen


def _split(url: str) -> tuple[str, str, str, int, str]:
    """Return scheme, authority, host, port, path."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"{url!r} is no URL: {exc}") from exc
    if parts.scheme not in PORTS or not parts.hostname:
        raise UsageError(f"{url!r} is no URL: write http://HOST:PORT/PATH.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, parts.netloc.rpartition("@")[2], parts.hostname, port or PORTS[parts.scheme], path


def _without_scheme(url: str) -> str:
    """Return the URL that a *url* without `http://` means: a word alone is a host, and before a query there is a path."""
    host, mark, query = url.partition("?")
    return f"http://{host}" + ("" if "/" in host else "/") + mark + query


def _target(
    question: Question,
    source: Json,
    service: Json | None,
    services: Sequence[Json],
    published: Sequence[Resource],
    machine: str,
    assumptions: list[str],
) -> tuple[Target, Refusal | None]:
    """Return where the program *source* connects to, and why no proxy sees that, if none does."""
    scheme, authority, host, port, path = _split(question.url)
    explicit = _is_explicit(source)
    if not explicit and host.lower() in (source["workload"], machine):
        service, address = None, source["address"]  # /etc/hosts of the program, which comes before the mesh's names
    else:
        address = _literal(host)
    if service is not None:
        target = Target(
            scheme, authority, host, port, path, called.address_for(source["address"], service), service["hostname"]
        )
        if explicit and scheme == "https" and not address:
            return target, home.not_by_proxy(source, scheme, host, address)
        if explicit:
            _check_port(service, port)
        unseen = None if explicit else home.not_caught(source, host, target.address, port, granted=False)
        return target, unseen
    if explicit:
        unseen = home.not_by_proxy(source, scheme, host, address)
        if unseen is None:
            assumptions.append(
                f"No service of the mesh is called {host}; this is what the program's HTTP proxy (HTTP_PROXY) does with"
                " the request. A program that does not use it is not seen by the mesh, and neither is https."
            )
        at = loopback.FORWARD_PROXY_PORT
        return Target(scheme, authority, host, port, path, source["address"], "", at), unseen
    if not address:
        address = SOMEWHERE
        if unknown_host.is_only_the_meshs(host):
            meant = unknown_host.remedy(host, source["namespace"], services)
            return Target(scheme, authority, host, port, path, ""), home.no_such_name(host, meant)
        assumptions.append(
            f"The host's resolver has an address for {host}, for which {SOMEWHERE} stands; it was not asked."
        )
    granted = home.granted(published, port)
    return Target(scheme, authority, host, port, path, address), home.not_caught(
        source, host, address, port, granted=granted
    )


def _unknown_host(source: Json, target: Target, services: Sequence[Json]) -> UnknownHost | None:
    """Return that the host is a name of which the mesh knows nothing; None if it is a service's, the program's, or an address."""
    is_own = not _is_explicit(source) and target.address == source["address"]
    if target.hostname or is_own or _literal(target.host):
        return None
    asked_by = "proxy" if target.connect_port and target.scheme == "http" else "program"
    return UnknownHost(target.host, asked_by, unknown_host.remedy(target.host, source["namespace"], services))


def _literal(host: str) -> str:
    """Return the address that *host* is, or that its name means everywhere (RFC 6761 6.3); "" for any other name."""
    try:
        return home.dialled(host)
    except ValueError:
        return "127.0.0.1" if host.lower().rstrip(".").rpartition(".")[2] == "localhost" else ""


def _check_port(service: Json, port: int) -> None:
    ports = [item["number"] for item in service["ports"]]
    if port not in ports:
        there_are = ", ".join(map(str, sorted(ports))) or "none"
        raise NotFound(
            f"The service {service['hostname']} has no port {port}: the proxy refuses the call. Its ports: {there_are}."
        )


def _is_explicit(source: Json) -> bool:
    return source.get("interception") == Interception.EXPLICIT


def _resolve(host: str, source: Json, services: Sequence[Json]) -> Json | None:
    """Return the service that *host* means to the program *source*, by its names and addresses."""
    return called.resolve(host, source["namespace"], source["address"], services)


def _gateway_target(question: Question, source: Json, published: Sequence[Resource]) -> Target:
    """A gateway is called on its own ports, or on the ports of the host that are published for them."""
    scheme, authority, host, port, path = _split(question.url)
    own = next((item["port"] for item in source["published"] if item["host_port"] == port), port)
    taken = listening_ports(value for type_url, _, value in published if type_url == LISTENER)
    if own not in taken:
        raise NotFound(_no_gateway_port(source, port, own, taken))
    return Target(scheme, authority, host, own, path, source["address"])


def _no_gateway_port(source: Json, port: int, own: int, taken: Sequence[int]) -> str:
    """Say that nothing takes *port*, which means the gateway's port *own*, and what would be right."""
    places: dict[int, list[str]] = {}
    for item in source["published"]:
        host = f"[{item['host_address']}]" if ":" in item["host_address"] else item["host_address"]
        places.setdefault(item["port"], []).append(f"http://{host}:{item['host_port']}")
    name = source["workload"]
    if own != port:
        return (
            f"Port {port} of this machine is published for port {own} of {name}, and no Gateway that is applied names port"
            f" {own}: the call is refused. It takes: {', '.join(map(str, taken)) or 'none'}."
        )
    if not taken:
        ports = ", ".join(f"{own} ({', '.join(at)})" for own, at in sorted(places.items())) or "none"
        return f"No Gateway that is applied selects {name}, so it takes no port, and {port} neither. Published for it: {ports}."
    there = [
        f"{number}, which is {' and '.join(places[number])} on this machine"
        if number in places
        else f"{number}, which is not published on this machine"
        for number in taken
    ]
    return f"The gateway {name} does not take port {port}. It takes {'; '.join(there)}."


def _request(question: Question, target: Target, direction: str) -> dict[str, Any]:
    address = f"[{target.address}]" if ":" in target.address else target.address
    asked: dict[str, Any] = {
        "direction": direction,
        "destination": f"{address}:{target.connect_port or target.port}",
        "method": question.method,
        "authority": next((value for name, value in question.headers if name.lower() == "host"), target.authority),
        "path": target.path,
        "headers": [[name.lower(), value] for name, value in question.headers if name.lower() != "host"],
    }
    if target.connect_port:  # only a proxy is asked in the absolute form, which says a scheme (RFC 9112 3.2.2)
        asked["scheme"] = target.scheme
    asked["tls"] = target.scheme == "https"
    if asked["tls"]:
        asked["alpn"] = PROGRAMS_ALPN
        if not _literal(target.host):  # RFC 6066 3: an address is no server name
            asked["sni"] = target.host
    return asked


def _engine(resources: Sequence[Resource], workload: Json) -> Engine:
    """
    Return the decision code on what was published to the proxy of *workload*.

    Where that is another data plane, what only it can do (its relay, HTTP/2) is left out: none of it chooses a route.
    """
    name = workload["workload"]
    if not resources:
        raise WeftError(f"Nothing has been published to the proxy of {name} yet.")
    try:
        return Engine(list(resources), strict=workload["data_plane"] == WEFT_PROXY)
    except ValueError as exc:
        raise WeftError(f"The proxy of {name} could not honour what it was told: {exc}") from exc


def _stand_ins(source: Json, inbound: Sequence[InboundSide], workloads: Sequence[Json]) -> list[str]:
    """Say whose decisions weft-proxy's code stands in for."""
    asked = {source["workload"], *(side.workload for side in inbound)}
    others = [item for item in workloads if item["workload"] in asked and item["data_plane"] != WEFT_PROXY]
    if not others:
        return []
    names = ", ".join(f"{item['workload']} ({item['data_plane']})" for item in others)
    return [f"Another data plane decides at {names}; this is what {WEFT_PROXY} makes of the same resources."]


def _ask(engine: Engine, request: Mapping[str, Any]) -> Decision:
    try:
        return Decision.from_json(json.loads(engine.explain(json.dumps(request))))
    except ValueError as exc:
        raise WeftError(f"The engine cannot answer this: {exc}") from exc


def _inbound_sides(
    outbound: Decision,
    asked: Mapping[str, Any],
    source: Json,
    target: Target,
    workloads: Sequence[Json],
    resources: Callable[[str], Sequence[Resource]],
    place: Callable[[str], str],
) -> tuple[InboundSide, ...]:
    """Ask one workload of those at each destination that take the same of their callers: else they are told the same."""
    known = {workload["workload"]: workload for workload in workloads}
    sides = []
    for endpoint, published in _different(outbound, target, workloads, resources):
        workload = known[endpoint.workload]
        rewrite = outbound.raw.get("rewrite") or {}
        request = {
            **asked,
            "direction": "inbound",
            "destination": endpoint.address,
            "path": rewrite.get("path") or outbound.raw.get("path") or asked["path"],
            "headers": _forwarded_headers(asked["headers"], target.scheme),
            "authority": rewrite.get("authority") or asked["authority"],
        }
        if workload["kind"] == "gateway":
            request["direction"] = "gateway"
        if endpoint.tls is not None:
            request |= {"tls": True, "source_principal": source["identity"]}
            request |= {key: endpoint.tls[key] for key in ("sni", "alpn") if endpoint.tls.get(key)}
        decision = _ask(_engine(published, workload), request)
        accepted = acceptance(published, str(decision.raw.get("listener")), place)
        refused = refusal(
            accepted,
            server=endpoint.workload,
            secure=endpoint.tls is not None,
            certificate=bool((endpoint.tls or {}).get("certificate")),
            rule=client_rule(resources(source["workload"]), endpoint.cluster, place),
            direct=endpoint.cluster == DIRECT,
        )
        if refused is None and decision.outcome == "refused":
            refused = foreign_tls(server=endpoint.workload, own=target.scheme == "https" and endpoint.tls is None)
        version = endpoint.version
        if version == BY_ENDPOINT:
            version = accepted.version((endpoint.tls or {}).get("alpn") or ())
        sides.append(
            InboundSide(
                endpoint.workload,
                workload["identity"],
                endpoint.address,
                endpoint.tls,
                accepted,
                refused,
                decision,
                version,
            )
        )
    return tuple(sides)


def _different(
    outbound: Decision, target: Target, workloads: Sequence[Json], resources: Callable[[str], Sequence[Resource]]
) -> list[tuple[Endpoint, Sequence[Resource]]]:
    """
    Return the endpoints that may be called, each with what its proxy was told: one of those that take the same of callers.

    A PeerAuthentication whose selector means some of a destination's workloads makes them differ.
    """
    known = {workload["workload"]: workload for workload in workloads}
    hashed = {share.cluster: share.hash.endpoint for share in outbound.shares if share.hash is not None}
    found: list[tuple[Endpoint, Sequence[Resource]]] = []
    alike: list[tuple[str, str, Json]] = []
    heard: list[tuple[str, Acceptance]] = []
    for endpoint in (*outbound.endpoints, *_called_directly(outbound, target, workloads)):
        if endpoint.workload not in known or endpoint.share <= 0:
            continue
        if hashed.get(endpoint.cluster) not in (None, "", endpoint.address):
            continue
        # A selector goes by these, so one is asked for all replicas.
        selected = (endpoint.cluster, known[endpoint.workload]["namespace"], known[endpoint.workload]["labels"])
        if selected in alike or not (published := resources(endpoint.workload)):
            continue
        alike.append(selected)
        port = int(endpoint.address.rpartition(":")[2])
        taken = (endpoint.cluster, acceptance(published, names.inbound_listener(port)))
        if taken not in heard:
            heard.append(taken)
            found.append((endpoint, published))
    return found


def _forwarded_headers(headers: list[list[str]], scheme: str) -> list[list[str]]:
    """Return the headers of a request with what the caller's proxy says of how it came."""
    if any(name == FORWARDED_PROTO for name, _ in headers):
        return headers
    return [*headers, [FORWARDED_PROTO, scheme]]


def _called_directly(outbound: Decision, target: Target, workloads: Sequence[Json]) -> tuple[Endpoint, ...]:
    """Return the workload whose address the program calls, as the endpoint that the proxy does not know it to be."""
    if not any(share.cluster == DIRECT and share.share > 0 for share in outbound.shares):
        return ()
    return tuple(
        Endpoint(DIRECT, f"{target.address}:{target.port}", workload["workload"], True, 1.0, None)
        for workload in workloads
        if workload["address"] == target.address and target.port in [port["number"] for port in workload["ports"]]
    )
