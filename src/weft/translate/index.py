"""
A snapshot arranged for the questions that translation asks: tables from a key to an immutable answer.

Each object of a snapshot (service, workload, document) contributes entries to some tables; which ones follows from the
object itself. So the next snapshot costs as much as what differs from the last one, and what differs is known by
(table, key). Owned by one `Translator`; fragments ask it through a `Reading`, which notes each answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

from weft import model
from weft.api.attachment import GATEWAY_NAME_LABEL, of_service, parent_key
from weft.api.kinds import KUBERNETES_GATEWAY
from weft.api.names import MESH, qualified_gateway
from weft.model import ConfigObject, Service, Snapshot, Workload

Answered: TypeAlias = tuple[str, Hashable]
"""A question: the name of a table, and a key in it."""

Rank: TypeAlias = tuple[Any, ...]
Contribution: TypeAlias = tuple[str, Hashable, Rank, Any]
"""Table, key, rank, value: an answer is the values of one table and key in order of rank, each rank once."""


class Table(Protocol):
    """Answers by key; None where there is nothing."""

    def get(self, key: Any, /) -> Any: ...


class _Hostnames:
    """(host as written, namespace) -> fully qualified hostname."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def get(self, key: tuple[str, str]) -> str:
        return self._snapshot.hostname(*key)


class Index:
    """
    The tables, by name:

        service                  hostname -> Service
        hostname                 (host, namespace) -> hostname
        workload                 (namespace, name) -> Workload
        settings                 `trust_domain` | `domain_suffix` -> str
        accepting_both           (namespace, workload name) -> its ports that take mutual TLS and plain text for now

    and those that hold tuples:

        hostnames                () -> all hostnames, in order
        serving                  hostname -> workloads that serve it, ready or not, in order of namespace and name
        identities               hostname -> SPIFFE IDs of those workloads, each once, in order
        http_ports               http2 -> ports that some service offers as HTTP
        http_services            (port, http2) -> hostnames of the services that offer it as HTTP, in order
        tcp_ports                http2 -> (hostname, port) of every other service port, in order
        virtual_services         hostname -> VirtualServices of the mesh for exactly this host, oldest first
        wildcard_virtual_services () -> (wildcard, VirtualService) of the mesh, most specific first, then oldest
        unserved_hosts           port -> (host, VirtualService) of the mesh where no service offers the host on the port
        destination_rules        hostname -> DestinationRules for exactly this host, oldest first
        wildcard_destination_rules () -> (wildcard, DestinationRule), most specific first, then oldest
        gateways                 () -> Gateways, oldest first
        gateway_virtual_services `namespace/name` of a Gateway -> VirtualServices bound to it, oldest first
        peer_authentications     namespace -> PeerAuthentications written there, oldest first

    of the Gateway API:

        kubernetes_gateways      () -> Gateways, oldest first
        gateway_classes          () -> GatewayClasses, oldest first
        gateway_routes           `namespace/name` of a Gateway -> (index in `parentRefs`, HTTPRoute), oldest first
        service_routes           `namespace/name` of a Service -> (index in `parentRefs`, HTTPRoute), oldest first
        reference_grants         namespace -> its ReferenceGrants, oldest first
        gateway_workloads        `namespace/name` of a Gateway -> workloads whose label says that they implement it

    `http2` says whether HTTP/2 and gRPC count as HTTP, which depends on who asks.
    A host is what a document means: short names are completed in the namespace of the document.
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = Snapshot()
        """What the tables say; None after an `update` that failed, which may have left half of it in them."""
        self.tables: dict[str, Table] = {}
        self._answers: dict[str, dict[Hashable, Any]] = {}
        # For each answer: (rank, contributor) -> value.
        self._parts: dict[Answered, dict[tuple[Rank, Hashable], Any]] = {}
        self._rebuild(self.snapshot)

    def update(self, snapshot: Snapshot) -> frozenset[Answered] | None:
        """
        Turn to *snapshot*.

        Returns:
            The questions whose answers are other than before; None if any may be.
        """
        before, self.snapshot = self.snapshot, None
        if before is None or _means_otherwise(before, snapshot):
            self._rebuild(snapshot)
            changed = None
        else:
            changed = self._follow(before, snapshot)
        self.snapshot = snapshot
        return changed

    def _follow(self, before: Snapshot, snapshot: Snapshot) -> frozenset[Answered]:
        touched: set[Answered] = set()
        workloads = _differences(before.workloads, snapshot.workloads)
        for key, old, new in workloads:
            self._replace(key, _of_workload(old), _of_workload(new), touched)
        for key, old, new in _differences(before.config, snapshot.config):
            self._replace(key, _of_document(before, old), _of_document(snapshot, new), touched)
        changed = {question for question in touched if self._answer(question)}
        changed.update(("workload", key) for key, _, _ in workloads)
        moving = _differences(before.accepting_both, snapshot.accepting_both)
        changed.update(("accepting_both", key) for key, _, _ in moving)
        self._lend(snapshot)
        return frozenset(changed)

    def _rebuild(self, snapshot: Snapshot) -> None:
        self._answers = {name: {} for name in _TUPLES}
        self._parts = {}
        touched: set[Answered] = set()
        for hostname, service in snapshot.services.items():
            self._replace(hostname, (), _of_service(service), touched)
        for key, workload in snapshot.workloads.items():
            self._replace(key, (), _of_workload(workload), touched)
        for item in snapshot.config.values():
            self._replace(item.key, (), _of_document(snapshot, item), touched)
        for question in touched:
            self._answer(question)
        self._lend(snapshot)

    def _lend(self, snapshot: Snapshot) -> None:
        """Take the tables that the snapshot has as they stand."""
        self.tables = {
            **self._answers,
            "service": snapshot.services,
            "workload": snapshot.workloads,
            "accepting_both": snapshot.accepting_both,
            "hostname": _Hostnames(snapshot),
            "settings": {"trust_domain": snapshot.trust_domain, "domain_suffix": snapshot.domain_suffix},
        }

    def _replace(
        self, contributor: Hashable, old: Iterable[Contribution], new: Iterable[Contribution], touched: set[Answered]
    ) -> None:
        # Once for each part, though it may be contributed twice: hosts, or gateways, in two spellings are one.
        for table, key, rank in dict.fromkeys(part[:3] for part in old):
            del self._parts[table, key][rank, contributor]
            touched.add((table, key))
        for table, key, rank, value in new:
            self._parts.setdefault((table, key), {})[rank, contributor] = value
            touched.add((table, key))

    def _answer(self, question: Answered) -> bool:
        """Make one answer from its parts; return whether it differs from the one before."""
        table, key = question
        parts = self._parts[question]
        if not parts:
            del self._parts[question]
            return self._answers[table].pop(key, None) is not None
        by_rank = {rank: value for (rank, _), value in sorted(parts.items(), key=lambda part: part[0])}
        answer = tuple(by_rank.values())
        if same(self._answers[table].get(key), answer):
            return False
        self._answers[table][key] = answer
        return True


def same(one: Any, other: Any) -> bool:
    """
    Whether two answers mean the same to a fragment.

    Equality of configuration objects leaves out their positions (moving a document changes no behaviour), but what is
    generated carries them, so here they count.
    """
    if one is other:
        return True
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, ConfigObject) and isinstance(other, ConfigObject):
        return one == other and one.positions == other.positions
    return bool(one == other)


def matches(hostname: str, pattern: str) -> bool:
    """Whether *hostname* (itself perhaps a wildcard) lies within *pattern*: equal, or under its `*`."""
    if pattern.startswith("*"):
        return hostname.endswith(pattern[1:])
    return hostname == pattern


_TUPLES = (
    "hostnames",
    "serving",
    "identities",
    "http_ports",
    "http_services",
    "tcp_ports",
    "virtual_services",
    "wildcard_virtual_services",
    "unserved_hosts",
    "destination_rules",
    "wildcard_destination_rules",
    "gateways",
    "gateway_virtual_services",
    "peer_authentications",
    "kubernetes_gateways",
    "gateway_classes",
    "gateway_routes",
    "service_routes",
    "reference_grants",
    "gateway_workloads",
)


def _means_otherwise(before: Snapshot, after: Snapshot) -> bool:
    """Whether all documents are to be read again: what they mean hangs on the names of the mesh, its services' too."""
    settings = (before.trust_domain, before.domain_suffix) != (after.trust_domain, after.domain_suffix)
    return settings or bool(_differences(before.services, after.services))


def _differences(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[tuple[Any, Any, Any]]:
    """Return (key, old or None, new or None) where the two hold other objects."""
    if before is after:
        return []
    found = [(key, before.get(key), new) for key, new in after.items() if before.get(key) is not new]
    found += [(key, old, None) for key, old in before.items() if key not in after]
    return found


def _of_service(service: Service) -> Iterator[Contribution]:
    hostname = service.hostname
    yield "hostnames", (), (hostname,), hostname
    for port in service.ports:
        for http2 in (False, True):
            if port.protocol is model.Protocol.HTTP or (http2 and port.protocol.is_http):
                yield "http_ports", http2, (port.number,), port.number
                yield "http_services", (port.number, http2), (hostname,), hostname
            else:
                yield "tcp_ports", http2, (hostname, port.number), (hostname, port.number)


def _of_workload(workload: Workload | None) -> Iterator[Contribution]:
    if workload is None:
        return
    identity = str(workload.identity)
    for hostname in workload.services:
        yield "serving", hostname, (workload.namespace, workload.name), workload
        yield "identities", hostname, (identity,), identity
    if gateway := workload.labels.get(GATEWAY_NAME_LABEL):
        yield "gateway_workloads", f"{workload.namespace}/{gateway}", (workload.name,), workload.name


def _of_document(snapshot: Snapshot, item: ConfigObject | None) -> Iterator[Contribution]:
    if item is None:
        return
    rank = age(item)
    if item.key.kind == "VirtualService":
        yield from _of_virtual_service(snapshot, item, rank)
    elif item.key.kind == "DestinationRule":
        host = snapshot.hostname(item.spec.host, item.key.namespace)
        if "*" in host:
            yield "wildcard_destination_rules", (), (-len(host), *rank), (host, item)
        else:
            yield "destination_rules", host, rank, item
    elif item.key.kind == "Gateway":
        yield "gateways", (), rank, item
    elif item.key.kind == "PeerAuthentication":
        yield "peer_authentications", item.key.namespace, rank, item
    elif item.key.kind == "HTTPRoute":
        for index, ref in enumerate(item.spec.parent_refs):
            table = "service_routes" if of_service(ref) else "gateway_routes"
            yield table, parent_key(ref, item.key.namespace), (*rank, index), (index, item)
    elif item.key.kind == KUBERNETES_GATEWAY:
        yield "kubernetes_gateways", (), rank, item
    elif item.key.kind == "GatewayClass":
        yield "gateway_classes", (), rank, item
    elif item.key.kind == "ReferenceGrant":
        yield "reference_grants", item.key.namespace, rank, item


def age(item: ConfigObject) -> Rank:
    """Return what orders documents of one kind where the older one is preferred."""
    return (item.created, item.key.namespace, item.key.name)


def _of_virtual_service(snapshot: Snapshot, item: ConfigObject, rank: Rank) -> Iterator[Contribution]:
    namespace = item.key.namespace
    for name in item.spec.gateways or (MESH,):
        if (gateway := qualified_gateway(name, namespace)) != MESH:
            yield "gateway_virtual_services", gateway, rank, item
            continue
        hosts = [snapshot.hostname(host, namespace) for host in item.spec.hosts]
        for host in hosts:
            if "*" in host:
                yield "wildcard_virtual_services", (), (-len(host), *rank, host), (host, item)
            else:
                yield "virtual_services", host, rank, item
        for port, host in _unserved(snapshot.services, hosts):
            yield "unserved_hosts", port, (*rank, host), (host, item)


def _unserved(services: Mapping[str, Service], hosts: list[str]) -> Iterator[tuple[int, str]]:
    """
    Yield (port, host) for the hosts that get a virtual host on a port without a service behind the name.

    Istio's rule: a VirtualService takes part in a port if one of its hosts is offered there; on port 80, where names
    outside the mesh are called, every VirtualService does.
    """
    offered = {host: _offered(services, host) for host in hosts}
    for port in {80}.union(*offered.values()):
        for host in hosts:
            if port not in offered[host]:
                yield port, host


def _offered(services: Mapping[str, Service], host: str) -> frozenset[int]:
    """Return the ports that services named by *host* offer as HTTP."""
    if "*" in host:
        named = [service for hostname, service in services.items() if matches(hostname, host)]
    else:
        named = [services[host]] if host in services else []
    return frozenset(port.number for service in named for port in service.ports if port.protocol.is_http)
