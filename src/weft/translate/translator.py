"""
Translation: (Snapshot, Proxy) -> the resources of that proxy's view. Pure; `_view` below is its table of contents.

Called by the control plane for each proxy after each change, and by everything that asks "what if": dry runs, diffs,
explanations, tests. Nothing here does I/O, knows the time or keeps state but the memo of a `Translator`, which changes
how fast an answer comes and never what it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from weft.model import Interception, Proxy, ProxyKind, Snapshot
from weft.translate import clusters, explicit, gateways, inbound, listeners, names, routes
from weft.translate.fragments import Fragments, Memo, Reading
from weft.translate.index import Index
from weft.translate.resource import Resource, Resources, in_order


def translate(snapshot: Snapshot, proxy: Proxy) -> Resources:
    """
    Return everything that *proxy* is to know, in order of type URL and name.

    The same arguments give the same bytes, whatever the order of the snapshot's objects.
    """
    return Translator().translate(snapshot, proxy)


class Translator:
    """
    `translate` with a memory: what did not change since the last call is not made again.

    One for each thread. Snapshots should share the objects that did not change, as `weft.controlplane` makes them.
    """

    def __init__(self) -> None:
        self.memo = Memo()
        self._index = Index()

    def translate(self, snapshot: Snapshot, proxy: Proxy) -> Resources:
        """Return what `weft.translate.translate` returns for the same arguments."""
        if self._index.snapshot is not snapshot:
            self.memo.turn(self._index.update(snapshot))
        fragments = Fragments(self.memo, self._index, proxy)
        if proxy.kind is ProxyKind.GATEWAY:
            return in_order([*fragments.group(_destinations), *_of_gateway(fragments)])
        return in_order([*fragments.group(_outbound), *_of_sidecar(fragments, proxy)])


def _of_sidecar(fragments: Fragments, proxy: Proxy) -> Iterator[Resource]:
    """Return what only this sidecar has: its workload's ports, and the listeners (they name its files and network)."""
    yield from fragments.fragment("inbound", inbound.inbound)
    yield fragments.fragment("cluster", clusters.passthrough)
    if proxy.local_caller is not None:
        yield from _of_explicit_sidecar(fragments)
        return
    if proxy.interception is Interception.TPROXY:
        yield fragments.fragment("listener", listeners.virtual_outbound)
        for port in proxy.host_ports:
            yield fragments.fragment("listener", listeners.host_listener, port)
            yield fragments.fragment("cluster", clusters.host_port, port)
    taken = set()
    for port in fragments.fragment("ports", Reading.http_ports):
        if (listener := fragments.fragment("listener", listeners.http_listener, port)) is not None:
            taken.add(port)
            yield listener
    for hostname, port in fragments.fragment("ports", Reading.tcp_ports):
        if proxy.interception is Interception.EXPLICIT and port in taken:
            continue  # there is one address for each port number; who comes first has it
        if (tcp := fragments.fragment("listener", listeners.tcp_listener, hostname, port)) is not None:
            taken.add(port)
            yield tcp


def _of_explicit_sidecar(fragments: Fragments) -> Iterator[Resource]:
    """Return the listeners that the program is told to call: one for each service's port, and the HTTP proxy."""
    yield fragments.fragment("listener", explicit.anywhere)
    yield fragments.fragment("listener", explicit.forward_proxy)
    yield fragments.group(_forward_routes)
    for port in fragments.fragment("ports", Reading.http_ports):
        for hostname in fragments.fragment("ports", Reading.http_services, port):
            if (listener := fragments.fragment("listener", explicit.service_listener, hostname, port)) is not None:
                yield listener
    for hostname, port in fragments.fragment("ports", Reading.tcp_ports):
        if (listener := fragments.fragment("listener", listeners.tcp_listener, hostname, port)) is not None:
            yield listener


def _forward_routes(fragments: Fragments) -> Resource:
    """Return the route configuration of the HTTP proxy: the virtual hosts of every port, told apart by the port in Host."""
    hosts = [
        routes.with_port(host, port)
        for port in dict.fromkeys((*fragments.fragment("ports", Reading.http_ports), routes.HTTP_PORT))
        for host in _virtual_hosts(fragments, port)
    ]
    hosts.append(fragments.fragment("virtual host", routes.allow_any))
    name = names.FORWARD_PROXY
    return routes.route_configuration(name, fragments.fragment("table", explicit.forward_table), hosts)


def _of_gateway(fragments: Fragments) -> Iterator[Resource]:
    """Return what only this gateway has: its listeners and their routes."""
    yield from fragments.fragment("gateway", gateways.gateway)


def _outbound(fragments: Fragments) -> Resources:
    """Return what sidecars that stand alike have in common: routes, and every destination."""
    made = list(fragments.group(_destinations))
    made.append(fragments.fragment("cluster", clusters.mesh_passthrough))
    made += [fragments.group(_routes, port) for port in fragments.fragment("ports", Reading.http_ports)]
    return in_order(made)


def _routes(fragments: Fragments, port: int) -> Resource:
    """Return the route configuration of sidecars for one port, joined from its virtual hosts."""
    hosts = _virtual_hosts(fragments, port)
    hosts.append(fragments.fragment("virtual host", routes.allow_any))
    name = names.sidecar_routes(port)
    return routes.route_configuration(name, fragments.fragment("table", routes.empty_table, name), hosts)


def _virtual_hosts(fragments: Fragments, port: int) -> list[routes.VirtualHost]:
    """Return the virtual hosts of the services on one port, then those that only rules name."""
    hosts = [
        fragments.fragment("virtual host", routes.service_virtual_host, hostname, port)
        for hostname in fragments.fragment("ports", Reading.http_services, port)
    ]
    hosts += fragments.fragment("unserved virtual hosts", routes.unserved_virtual_hosts, port)
    return hosts


def _destinations(fragments: Fragments) -> Resources:
    """Return clusters and endpoints of every service of the mesh."""
    return in_order([*fragments.group(_clusters), *fragments.group(_endpoints)])


def _clusters(fragments: Fragments) -> list[Resource]:
    made = [fragments.fragment("cluster", clusters.black_hole)]
    for hostname in fragments.fragment("ports", Reading.hostnames):
        made += fragments.fragment("clusters", clusters.service_clusters, hostname)
    return made


def _endpoints(fragments: Fragments) -> list[Resource]:
    made: list[Resource] = []
    for hostname in fragments.fragment("ports", Reading.hostnames):
        made += fragments.fragment("endpoints", clusters.service_endpoints, hostname)
    return made
