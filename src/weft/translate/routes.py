"""
Routes: a VirtualService's HTTP rules as Envoy's, and the virtual hosts of a sidecar that hold them.

Called by the translator for sidecars; `gateways.py` uses `http_routes` too. HTTPRoutes are `http_route.py`. Source: Istio's documentation of
VirtualService; where it is silent, what istiod generates (tests/translate/test_istiod_oracle.py).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from envoy.config.route.v3 import route_components_pb2, route_pb2

from weft.api.names import MESH
from weft.api.networking import (
    ConsistentHashLB,
    Destination,
    HTTPDirectResponse,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRoute,
)
from weft.data_plane import ENVOY
from weft.model import ConfigObject, Service, loopback
from weft.translate import http_route, matching, names
from weft.translate.destinations import consistent_hash, port_number, visible
from weft.translate.fragments import Reading
from weft.translate.index import age, matches
from weft.translate.origin import DEFAULT, annotate, describe, describe_default
from weft.translate.policies.cors import apply as cors
from weft.translate.policies.fault import apply as fault
from weft.translate.policies.headers import apply as headers
from weft.translate.policies.load_balancing import apply as load_balancing
from weft.translate.policies.mirror import apply as mirror
from weft.translate.policies.retry import apply as retry
from weft.translate.policies.timeout import apply as timeout
from weft.translate.resource import ROUTE_CONFIGURATION, Resource, resource, serialise

DEFAULT_ROUTE = "default"
"""Name of the route of a service for which nobody wrote rules."""

HTTP_PORT = 80

LARGEST_DIRECT_RESPONSE_BYTES = 1024 * 1024
"""Istio's limit; Envoy's own is 4 KiB, weft-proxy has none."""


def service_virtual_host(reading: Reading, hostname: str, port: int) -> VirtualHost:
    """Return the virtual host of a service on one of its HTTP ports, for sidecars."""
    service = reading.service(hostname)
    message = route_components_pb2.VirtualHost(
        name=names.virtual_host(hostname, port), include_request_attempt_count=True
    )
    message.domains.extend(domains(reading, service) if service else (hostname,))
    routes, described = _rules(reading, hostname, service, port)
    message.routes.extend(routes)
    annotate(message.metadata, described)
    return virtual_host(message)


def _rules(reading: Reading, hostname: str, service: Service | None, port: int) -> tuple[Sequence[Any], dict[str, Any]]:
    """
    Return the routes of a service on one port for this sidecar, and the description of where they come from.

    Either a VirtualService rules the host, or the HTTPRoutes that are attached to the service do: whichever is older,
    since neither API says how the rules of one would stand between those of the other.
    """
    attached = http_route.attached_to_service(reading, service, port) if service else []
    first = min((item for item in attached), key=lambda item: item.age, default=None)
    for item in _governing(reading, hostname):
        if first is not None and first.age < age(item):
            break
        if routes := http_routes(reading, item, port, gateways=(MESH,)):
            return routes, describe(item, "spec")
    if first is not None:
        return http_route.routes(reading, attached, port), describe(first.item, "spec")
    return [_default_route(reading, hostname, port)], describe_default()


def unserved_virtual_hosts(reading: Reading, port: int) -> tuple[VirtualHost, ...]:
    """Return virtual hosts for names that rules speak of and no service of *port* has."""
    found, seen = [], set()
    for host, item in reading.unserved_hosts(port):
        if host in seen or not visible(reading, item):
            continue
        routes = http_routes(reading, item, port, gateways=(MESH,))
        if not routes:
            continue
        seen.add(host)
        message = route_components_pb2.VirtualHost(
            name=names.virtual_host(host, port), domains=[host], include_request_attempt_count=True, routes=routes
        )
        annotate(message.metadata, describe(item, "spec"))
        found.append(virtual_host(message))
    return tuple(found)


def allow_any(_: Reading) -> VirtualHost:
    """Return the last virtual host: a name that the mesh does not know goes where the connection was going."""
    message = route_components_pb2.VirtualHost(name=names.ALLOW_ANY, domains=["*"], include_request_attempt_count=True)
    route = message.routes.add(name=names.ALLOW_ANY)
    route.match.prefix = matching.EVERYTHING
    route.route.cluster = names.PASSTHROUGH
    timeout.apply(None, route.route)
    annotate(route.metadata, describe_default())
    annotate(message.metadata, describe_default())
    return virtual_host(message)


class VirtualHost(NamedTuple):
    """
    A virtual host, ready to be joined into a table.

    Attributes:
        domains: In lower case, as Envoy compares them.
        entry: The serialised message with its tag and length, as it stands in a serialised route configuration.
    """

    domains: tuple[str, ...]
    entry: bytes


def virtual_host(message: Any) -> VirtualHost:
    """Return the `VirtualHost` message as an entry of a table."""
    value = serialise(message)
    # A message with a repeated embedded message is its serialisation without them, followed by tag, length and bytes
    # of each (protobuf.dev, "Encoding": the order of fields has no meaning). Joining kept entries costs a fiftieth of
    # building the table of a thousand hosts from objects.
    return VirtualHost(
        tuple(domain.lower() for domain in message.domains), b"".join((_TABLE_ENTRY, _varint(len(value)), value))
    )


def with_port(host: VirtualHost, port: int) -> VirtualHost:
    """Return *host* for a table of all ports: its domains mean that port only, which `http://` leaves out if it is 80."""
    (message,) = route_pb2.RouteConfiguration.FromString(host.entry).virtual_hosts
    # `example.*` cannot be said together with a port.
    domains = [f"{domain}:{port}" for domain in message.domains if domain == "*" or not domain.endswith("*")]
    if port == HTTP_PORT:
        domains += message.domains
    del message.domains[:]
    message.domains.extend(domains)
    return virtual_host(message)


def empty_table(reading: Reading, name: str, *, all_ports: bool = False) -> bytes:
    """Return a serialised route configuration without virtual hosts; one of *all_ports* tells them by the port in Host."""
    message = route_pb2.RouteConfiguration(name=name, ignore_port_in_host_matching=not all_ports)
    message.validate_clusters.value = False  # a route to a cluster that is not there answers 503; the rest must live
    if reading.data_plane == ENVOY:
        message.max_direct_response_body_size_bytes.value = LARGEST_DIRECT_RESPONSE_BYTES
    return serialise(message)


def route_configuration(name: str, empty: bytes, hosts: Sequence[VirtualHost]) -> Resource:
    """
    Return a route configuration: the `empty_table` of that name joined with virtual hosts.

    A domain that a virtual host before has taken is left out (Envoy refuses the whole table otherwise); a virtual host
    without any domain left is left out too.
    """
    different = len(set(chain.from_iterable(host.domains for host in hosts)))
    kept = hosts if different == sum(len(host.domains) for host in hosts) else list(_without_repetition(hosts))
    return resource(ROUTE_CONFIGURATION, name, b"".join([empty, *(host.entry for host in kept)]))


def _without_repetition(hosts: Sequence[VirtualHost]) -> Iterator[VirtualHost]:
    taken: set[str] = set()
    for host in hosts:
        (message,) = route_pb2.RouteConfiguration.FromString(host.entry).virtual_hosts
        free = [domain for domain in message.domains if domain.lower() not in taken]
        taken.update(host.domains)
        if free:
            del message.domains[:]
            message.domains.extend(free)
            yield virtual_host(message)


_TABLE_ENTRY = bytes([route_pb2.RouteConfiguration.DESCRIPTOR.fields_by_name["virtual_hosts"].number << 3 | 2])


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def domains(reading: Reading, service: Service) -> tuple[str, ...]:
    """
    Return every `Host` that means *service*. Ports are not listed: the table ignores them when it matches.

    `reviews` alone means a service of the caller's own namespace, as the resolver's search list would have it.
    """
    found = [service.hostname, f"{service.hostname}."]
    if service.hostname == f"{service.name}.{service.namespace}.svc.{reading.domain_suffix()}":
        within = f"{service.name}.{service.namespace}"
        if reading.namespace == service.namespace:
            found.append(service.name)
        found += [f"{within}.svc", within]
    if service.address:
        found.append(service.address)
        if reading.local_caller is not None:
            found.append(loopback.service_address(reading.address, service.address))
    return tuple(found)


def _governing(reading: Reading, hostname: str) -> Iterator[ConfigObject]:
    """
    Yield the VirtualServices that may rule *hostname* in the mesh, the one that does first.

    The oldest for exactly this host; the next only if none of the first's rules is for this proxy. Without any, the
    one with the most specific wildcard.
    """
    exact = [item for item in reading.virtual_services(hostname) if visible(reading, item)]
    yield from exact
    if not exact:
        for host, item in reading.wildcard_virtual_services():
            if matches(hostname, host) and visible(reading, item):
                yield item
                return


def http_routes(reading: Reading, item: ConfigObject, port: int, *, gateways: Sequence[str]) -> list[Any]:
    """
    Return the routes of a VirtualService for this proxy, in order.

    Args:
        reading: Where services, destinations and the proxy's labels come from.
        item: The VirtualService.
        port: The port on which the request was caught, as clients call it.
        gateways: Names under which `match.gateways` may mean this proxy (`mesh`, `namespace/name`).

    Returns:
        `Route` messages; empty if no rule is for this proxy. Nothing follows a route that matches everything.
    """
    routes: list[Any] = []
    for index, rule in enumerate(item.spec.http):
        alternatives: Sequence[tuple[int | None, HTTPMatchRequest | None]] = list(enumerate(rule.match)) or [
            (None, None)
        ]
        for place, match in alternatives:
            if match is not None and not matching.for_this_proxy(reading, item, match, port, gateways):
                continue
            route = _route(reading, item, port, rule=rule, match=match, place=(index, place))
            routes.append(route)
            if matching.catches_all(route.match):
                return routes
    return routes


def _route(
    reading: Reading,
    item: ConfigObject,
    port: int,
    *,
    rule: HTTPRoute,
    match: HTTPMatchRequest | None,
    place: tuple[int, int | None],
) -> Any:
    """Return the route for one alternative of a rule; *place* is the rule's index and the alternative's."""
    route = route_components_pb2.Route(name=rule.name)
    if match is not None and match.name:
        route.name = f"{rule.name}.{match.name}"
    if match is not None and match.stat_prefix:
        route.stat_prefix = match.stat_prefix
    matching.apply(match, route.match)
    authority = headers.apply(rule.headers, route)
    if rule.redirect is not None:
        _redirect(rule.redirect, route.redirect, port)
    elif rule.direct_response is not None:
        _direct_response(rule.direct_response, route.direct_response)
    else:
        _forward(reading, item, port, route, index=place[0], authority=authority)
    fault.apply(rule.fault, route)
    annotate(route.metadata, _described(item, place, rule))
    return route


_ALWAYS_IN_FORCE = frozenset(("timeout", "retries"))
"""What a request that is forwarded has, written or not."""

_OF_FORWARDING = _ALWAYS_IN_FORCE | {"mirror", "mirrors", "corsPolicy"}
"""What means nothing to a rule that answers by itself."""


def _described(item: ConfigObject, place: tuple[int, int | None], rule: HTTPRoute) -> dict[str, Any]:
    at = ("spec", "http", place[0])
    origins = {}
    forwards = rule.redirect is None and rule.direct_response is None
    for name, value in (
        ("timeout", rule.timeout),
        ("retries", rule.retries),
        ("fault", rule.fault),
        ("headers", rule.headers),
        ("rewrite", rule.rewrite),
        ("mirror", rule.mirror),
        ("mirrors", rule.mirrors or None),
        ("corsPolicy", rule.cors_policy),
        ("redirect", rule.redirect),
        ("directResponse", rule.direct_response),
    ):
        if name in _OF_FORWARDING and not forwards:
            continue
        if value is not None:
            origins[name] = str(item.locate(*at, name))
        elif name in _ALWAYS_IN_FORCE:
            origins[name] = DEFAULT
    if place[1] is not None:
        origins["match"] = str(item.locate(*at, "match", place[1]))
    if forwards and len(rule.route) == 1 and rule.route[0].headers is not None:
        origins["destinationHeaders"] = str(item.locate(*at, "route", 0, "headers"))
    if forwards and (origin := _authority_origin(rule, origins)):
        origins["authority"] = origin
    return describe(item, *at, origins=origins)


def _authority_origin(rule: HTTPRoute, origins: Mapping[str, str]) -> str:
    """Return where the host is written that all requests of *rule* get, in the order in which `_forward` looks; or ""."""
    if rule.rewrite is not None and rule.rewrite.authority:
        return origins["rewrite"]
    if headers.authority(rule.headers):
        return origins["headers"]
    if len(rule.route) == 1 and headers.authority(rule.route[0].headers):
        return origins["destinationHeaders"]
    return ""


def _forward(reading: Reading, item: ConfigObject, port: int, route: Any, *, index: int, authority: str) -> None:
    """Have *route* forward as rule *index* says; *authority* is what the rule's header edits ask for."""
    rule: HTTPRoute = item.spec.http[index]
    action = route.route
    timeout.apply(rule.timeout, action)
    if rule.rewrite is not None:
        if rule.rewrite.uri_regex_rewrite is not None:
            action.regex_rewrite.pattern.regex = rule.rewrite.uri_regex_rewrite.match
            action.regex_rewrite.substitution = rule.rewrite.uri_regex_rewrite.rewrite
        elif rule.rewrite.uri:
            action.prefix_rewrite = rule.rewrite.uri
        authority = rule.rewrite.authority or authority
    namespace = item.key.namespace
    copies = tuple(_cluster(reading, copy, namespace, port) for copy in mirror.destinations(rule))
    mirror.apply(rule, copies, action)
    hashes = [_hash(reading, target.destination, namespace, port) for target in rule.route]
    if len(rule.route) == 1:
        target = rule.route[0]
        action.cluster = _cluster(reading, target.destination, namespace, port)
        of_target = headers.apply(target.headers, route)
        authority = authority or of_target
        load_balancing.apply_to_route(hashes[0], action)
    else:
        for place, (target, hashed) in enumerate(zip(rule.route, hashes, strict=True)):
            if target.weight == 0:
                continue  # as in Istio: among others, no weight means no traffic
            weighted = action.weighted_clusters.clusters.add()
            weighted.name = _cluster(reading, target.destination, namespace, port)
            weighted.weight.value = target.weight
            if of_target := headers.apply(target.headers, weighted):
                weighted.host_rewrite_literal = of_target
            load_balancing.apply_to_route(hashed, action)
            # A weighted cluster has no other metadata; Envoy looks at nothing but `envoy.lb` in it.
            at = ("spec", "http", index, "route", place)
            edited = {"headers": str(item.locate(*at, "headers"))} if target.headers is not None else None
            annotate(weighted.metadata_match, describe(item, *at, origins=edited))
    if authority:
        action.host_rewrite_literal = authority
    retry.apply(rule.retries, action, sticky=len(hashes) == 1 and hashes[0] is not None)
    cors.apply(rule.cors_policy, route)


def _cluster(reading: Reading, target: Destination, namespace: str, port: int) -> str:
    """
    Return the cluster that *target* of a document of *namespace* means.

    Whether there is such a service or subset does not matter here: a route to a cluster that does not exist answers 503
    (NC), as in Istio.
    """
    hostname = reading.hostname(target.host, namespace)
    return names.outbound_cluster(hostname, port_number(reading, hostname, target.port, port), target.subset)


def _hash(reading: Reading, target: Destination, namespace: str, port: int) -> ConsistentHashLB | None:
    hostname = reading.hostname(target.host, namespace)
    number = port_number(reading, hostname, target.port, port)
    return consistent_hash(reading, hostname, number, namespace=namespace, subset=target.subset)


def _default_route(reading: Reading, hostname: str, port: int) -> Any:
    route = route_components_pb2.Route(name=DEFAULT_ROUTE)
    matching.apply(None, route.match)
    route.route.cluster = names.outbound_cluster(hostname, port)
    timeout.apply(None, route.route)
    retry.apply(None, route.route)
    load_balancing.apply_to_route(consistent_hash(reading, hostname, port, namespace=""), route.route)
    annotate(route.metadata, describe_default(("timeout", "retries")))
    return route


def _redirect(redirect: HTTPRedirect, action: Any, port: int) -> None:
    action.SetInParent()
    action.host_redirect = redirect.authority
    if redirect.uri:
        action.path_redirect = redirect.uri
    elif redirect.prefix_rewrite:
        action.prefix_rewrite = redirect.prefix_rewrite
    if redirect.scheme:
        action.scheme_redirect = redirect.scheme
    default = 443 if redirect.scheme == "https" else 80
    said = redirect.port or (default if redirect.derive_port == "FROM_PROTOCOL_DEFAULT" else 0)
    number = said or (port if redirect.derive_port == "FROM_REQUEST_PORT" else 0)
    # The port that the scheme implies is written out only where the one in the request's own authority would stay.
    if number != default or (said and not redirect.authority):
        action.port_redirect = number
    action.response_code = http_route.REDIRECT_CODES[redirect.redirect_code or 301]


def _direct_response(response: HTTPDirectResponse, action: Any) -> None:
    action.status = response.status
    if response.body is not None and response.body.string is not None:
        action.body.inline_string = response.body.string
    elif response.body is not None and response.body.bytes is not None:
        action.body.inline_bytes = b64decode(response.body.bytes)
