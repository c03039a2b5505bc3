"""
Fragments: the parts of which a view is made (one virtual host, one cluster, ...), made again only when they must be.

A fragment is remembered together with what it *read*: a `Reading` hands out answers about the snapshot and the proxy
and notes each of them. Asked again, the fragment holds as long as the same questions have the same answers; nobody
writes down by hand what a fragment depends on. Proxies that would give the same answers share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from weft.model import (
    ROOT_NAMESPACE,
    ConfigObject,
    Interception,
    LocalCaller,
    Protocol,
    Proxy,
    ProxyKind,
    Published,
    Service,
    Workload,
)
from weft.translate.capabilities import Capability, able, speaks_http
from weft.translate.index import Answered, Index, same
from weft.translate.peer_authentication import Accepted, accepted

T = TypeVar("T")
P = ParamSpec("P")

Question = tuple[str, Hashable]
"""About the proxy: ("is", attribute), ("carries", labels as sorted pairs) or ("label", its name)."""

Fact = tuple[str, Hashable, Any]
"""Table of the index, key, answer."""


class Reading:
    """What a fragment may know, and the record of what it asked. The tables are described at `Index`."""

    __slots__ = ("_index", "_proxy", "asked", "facts")

    def __init__(self, index: Index, proxy: Proxy) -> None:
        self._index = index
        self._proxy = proxy
        self.facts: dict[tuple[str, Hashable], Any] = {}
        self.asked: dict[Question, None] = {}

    # The snapshot

    def service(self, hostname: str) -> Service | None:
        return cast("Service | None", self._look("service", hostname))

    def hostname(self, host: str, namespace: str) -> str:
        return cast(str, self._look("hostname", (host, namespace)))

    def workload(self, namespace: str, name: str) -> Workload | None:
        return cast("Workload | None", self._look("workload", (namespace, name)))

    def serving(self, hostname: str) -> tuple[Workload, ...]:
        return self._look("serving", hostname) or ()

    def identities(self, hostname: str) -> tuple[str, ...]:
        return self._look("identities", hostname) or ()

    def hostnames(self) -> tuple[str, ...]:
        return self._look("hostnames", ()) or ()

    def http_ports(self) -> tuple[int, ...]:
        return self._look("http_ports", self._http2()) or ()

    def http_services(self, port: int) -> tuple[str, ...]:
        return self._look("http_services", (port, self._http2())) or ()

    def tcp_ports(self) -> tuple[tuple[str, int], ...]:
        return self._look("tcp_ports", self._http2()) or ()

    def virtual_services(self, hostname: str) -> tuple[ConfigObject, ...]:
        return self._look("virtual_services", hostname) or ()

    def wildcard_virtual_services(self) -> tuple[tuple[str, ConfigObject], ...]:
        return self._look("wildcard_virtual_services", ()) or ()

    def unserved_hosts(self, port: int) -> tuple[tuple[str, ConfigObject], ...]:
        return self._look("unserved_hosts", port) or ()

    def destination_rules(self, hostname: str) -> tuple[ConfigObject, ...]:
        return self._look("destination_rules", hostname) or ()

    def wildcard_destination_rules(self) -> tuple[tuple[str, ConfigObject], ...]:
        return self._look("wildcard_destination_rules", ()) or ()

    def gateways(self) -> tuple[ConfigObject, ...]:
        return self._look("gateways", ()) or ()

    def gateway_virtual_services(self, gateway: str) -> tuple[ConfigObject, ...]:
        return self._look("gateway_virtual_services", gateway) or ()

    def accepted(self, workload: Workload, port: int) -> Accepted:
        """Return what *workload* accepts on *port* by the policies that hold for it."""
        return accepted(self.peer_authentications(workload.namespace), workload.labels, port)

    def peer_authentications(self, namespace: str) -> tuple[ConfigObject, ...]:
        """Return those that can be about a workload of *namespace*: of the mesh, and its own."""
        namespaces = dict.fromkeys((ROOT_NAMESPACE, namespace))
        return tuple(item for name in namespaces for item in self._look("peer_authentications", name) or ())

    def accepting_both(self, namespace: str, name: str) -> frozenset[int]:
        return self._look("accepting_both", (namespace, name)) or frozenset()

    def kubernetes_gateways(self) -> tuple[ConfigObject, ...]:
        return self._look("kubernetes_gateways", ()) or ()

    def gateway_classes(self) -> tuple[ConfigObject, ...]:
        return self._look("gateway_classes", ()) or ()

    def gateway_routes(self, gateway: str) -> tuple[tuple[int, ConfigObject], ...]:
        return self._look("gateway_routes", gateway) or ()

    def service_routes(self, service: str) -> tuple[tuple[int, ConfigObject], ...]:
        return self._look("service_routes", service) or ()

    def reference_grants(self, namespace: str) -> tuple[ConfigObject, ...]:
        return self._look("reference_grants", namespace) or ()

    def gateway_workloads(self, gateway: str) -> tuple[str, ...]:
        return self._look("gateway_workloads", gateway) or ()

    def trust_domain(self) -> str:
        return cast(str, self._look("settings", "trust_domain"))

    def domain_suffix(self) -> str:
        return cast(str, self._look("settings", "domain_suffix"))

    def _look(self, table: str, key: Hashable) -> Any:
        answer = self._index.tables[table].get(key)
        self.facts[table, key] = answer
        return answer

    # The proxy

    @property
    def kind(self) -> ProxyKind:
        return cast(ProxyKind, self._ask("kind"))

    @property
    def namespace(self) -> str:
        return cast(str, self._ask("namespace"))

    @property
    def workload_name(self) -> str:
        return cast(str, self._ask("workload"))

    @property
    def address(self) -> str:
        return cast(str, self._ask("address"))

    @property
    def data_plane(self) -> str:
        return cast(str, self._ask("data_plane"))

    @property
    def interception(self) -> Interception:
        return cast(Interception, self._ask("interception"))

    @property
    def namespace_path(self) -> str:
        return cast(str, self._ask("namespace_path"))

    @property
    def host_namespace_path(self) -> str:
        return cast(str, self._ask("host_namespace_path"))

    @property
    def outside_socket(self) -> str:
        return cast(str, self._ask("outside_socket"))

    @property
    def published_sockets(self) -> Mapping[int, str]:
        return dict(self._ask("published_sockets"))

    @property
    def access_log_path(self) -> str:
        return cast(str, self._ask("access_log_path"))

    @property
    def access_log_cluster(self) -> str:
        return cast(str, self._ask("access_log_cluster"))

    @property
    def mesh_cidr(self) -> str:
        return cast(str, self._ask("mesh_cidr"))

    @property
    def service_cidr(self) -> str:
        return cast(str, self._ask("service_cidr"))

    @property
    def host_ports(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self._ask("host_ports"))

    @property
    def published(self) -> tuple[Published, ...]:
        return cast("tuple[Published, ...]", self._ask("published"))

    @property
    def local_caller(self) -> LocalCaller | None:
        return cast("LocalCaller | None", self._ask("local_caller"))

    @property
    def outbound_addresses(self) -> Mapping[int, tuple[str, int]]:
        return dict(self._ask("outbound_addresses"))

    def speaks_http(self, protocol: Protocol) -> bool:
        """Whether the proxy sees requests on a port that speaks *protocol*, or only connections."""
        return speaks_http(self.data_plane, protocol)

    def _http2(self) -> bool:
        return able(self.data_plane, Capability.HTTP2)

    def carries(self, labels: Mapping[str, str]) -> bool:
        """Whether the proxy's workload has all of *labels*; only this answer is noted, not the labels it has."""
        question = ("carries", tuple(sorted(labels.items())))
        self.asked[question] = None
        return cast(bool, answer_about(self._proxy, question))

    def label(self, name: str) -> str:
        """Return the value of one label of the proxy's workload, empty if it has none."""
        question = ("label", name)
        self.asked[question] = None
        return cast(str, answer_about(self._proxy, question))

    def _ask(self, attribute: str) -> Any:
        question = ("is", attribute)
        self.asked[question] = None
        return answer_about(self._proxy, question)


def answer_about(proxy: Proxy, question: Question) -> Any:
    """Return the hashable answer to *question*."""
    verb, what = question
    if verb == "carries":
        return all(proxy.labels.get(name) == value for name, value in cast("tuple[tuple[str, str], ...]", what))
    if verb == "label":
        return proxy.labels.get(cast(str, what), "")
    value = getattr(proxy, cast(str, what))
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


@dataclass(slots=True, eq=False)
class _Cell:
    """
    One remembered fragment or group.

    Attributes:
        facts: What it read. Of a group nothing: it is made again when one of its fragments may have changed.
        epoch: The memo's when it was last found true; `_DOUBTFUL` once something that it read has changed.
        turn: The memo's when it was last used.
        groups: The groups that hold it.
    """

    value: Any
    facts: tuple[Fact, ...]
    epoch: int
    turn: int
    groups: set[_Cell] = field(default_factory=set)


_DOUBTFUL = -1


class _Slot:
    """
    All remembered versions of one fragment, one for each kind of proxy.

    `asked` is every question about the proxy that making this fragment has ever raised; cells are told apart by the
    answers. A question that is new makes the former cells ambiguous, so they are dropped; that happens a few times at
    most.
    """

    __slots__ = ("asked", "cells")

    def __init__(self) -> None:
        self.asked: tuple[Question, ...] = ()
        self.cells: dict[tuple[Any, ...], _Cell] = {}


class Memo:
    """
    All fragments that a `Translator` remembers.

    Attributes:
        made: How many fragments of each kind were made, ever. Tests hold translation to its promise with it.
    """

    FORGET_EVERY = 64
    """Turns (new snapshots) between two looks for fragments that nobody uses: their service is gone, say."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self._slots: dict[Hashable, _Slot] = {}
        self._readers: dict[Answered, set[_Cell]] = {}
        self._turn = 0
        self._epoch = 0

    def __len__(self) -> int:
        """Return how many fragments and groups are remembered."""
        return sum(len(slot.cells) for slot in self._slots.values())

    def turn(self, changed: frozenset[Answered] | None) -> None:
        """
        Turn to the next snapshot.

        Args:
            changed: The questions whose answers changed; None if any may have.
        """
        self._turn += 1
        if changed is None:
            self._epoch += 1
        for question in changed or ():
            for cell in self._readers.get(question, ()):
                _doubt(cell)
        # Groups keep their fragments from being asked for. So at first all groups are doubted, and half a round later
        # what was not asked for since then is forgotten.
        if self._turn % self.FORGET_EVERY == 0:
            self._epoch += 1
        elif self._turn % self.FORGET_EVERY == self.FORGET_EVERY // 2:
            self._forget(self._turn - self.FORGET_EVERY // 2)

    def _forget(self, turn: int) -> None:
        self._readers = {}
        for key, slot in list(self._slots.items()):
            slot.cells = {signature: cell for signature, cell in slot.cells.items() if cell.turn >= turn}
            for cell in slot.cells.values():
                self._note(cell)
            if not slot.cells:
                del self._slots[key]

    def _note(self, cell: _Cell) -> None:
        for table, key, _ in cell.facts:
            self._readers.setdefault((table, key), set()).add(cell)


def _doubt(cell: _Cell) -> None:
    if cell.epoch != _DOUBTFUL:
        cell.epoch = _DOUBTFUL
        for group in cell.groups:
            _doubt(group)


class Fragments:
    """The fragments of one call of `translate`: one index, one proxy, and the memo that outlives them."""

    def __init__(self, memo: Memo, index: Index, proxy: Proxy) -> None:
        self._memo = memo
        self._index = index
        self._proxy = proxy
        self._signatures: dict[tuple[Question, ...], tuple[Any, ...]] = {}
        self._open: list[_Open] = []

    def fragment(
        self, kind: str, make: Callable[Concatenate[Reading, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """
        Return `make(reading, *args)`, from memory if everything that it read still holds.

        Args:
            kind: What it is (`virtual host`), for the counts.
            make: Makes it. Beside the reading and *args* it must not know anything.
            args: Hashable; which one it is.
            kwargs: None; they are here for the type checker.
        """
        slot, cell = self._find((make, args))
        if cell is None or not self._holds(cell):
            reading = Reading(self._index, self._proxy)
            value = make(reading, *args, **kwargs)
            self._memo.made[kind] += 1
            facts = tuple((*fact, answer) for fact, answer in reading.facts.items())
            cell = self._store(slot, value, facts, reading.asked)
            self._memo._note(cell)
        return cast(T, self._use(slot, cell))

    def group(self, make: Callable[Concatenate[Fragments, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Return `make(fragments, *args)`, from memory if none of the fragments that it asked for may have changed.

        A group saves the walk over thousands of fragments, for a change elsewhere and for other proxies alike. *make*
        must read nothing but fragments and groups.
        """
        slot, cell = self._find((make, args))
        if cell is None or cell.epoch != self._memo._epoch:
            self._open.append(_Open())
            value = make(self, *args, **kwargs)
            opened = self._open.pop()
            cell = self._store(slot, value, (), opened.asked)
            for member in opened.members:
                member.groups.add(cell)
        return cast(T, self._use(slot, cell))

    def _find(self, key: Hashable) -> tuple[_Slot, _Cell | None]:
        slot = self._memo._slots.get(key)
        if slot is None:
            slot = self._memo._slots[key] = _Slot()
        return slot, slot.cells.get(self._signature(slot.asked))

    def _use(self, slot: _Slot, cell: _Cell) -> Any:
        cell.turn = self._memo._turn
        if self._open:
            self._open[-1].members.append(cell)
            self._open[-1].asked.update(dict.fromkeys(slot.asked))
        return cell.value

    def _store(self, slot: _Slot, value: Any, facts: tuple[Fact, ...], asked: dict[Question, None]) -> _Cell:
        if not asked.keys() <= set(slot.asked):
            slot.asked = tuple(dict.fromkeys((*slot.asked, *asked)))
            for former in slot.cells.values():
                _doubt(former)
            slot.cells.clear()
        signature = self._signature(slot.asked)
        cell = slot.cells.get(signature)
        if cell is None:
            cell = slot.cells[signature] = _Cell(value, facts, self._memo._epoch, self._memo._turn)
        else:
            cell.value, cell.facts, cell.epoch = value, facts, self._memo._epoch
        return cell

    def _signature(self, asked: tuple[Question, ...]) -> tuple[Any, ...]:
        signature = self._signatures.get(asked)
        if signature is None:
            signature = tuple(answer_about(self._proxy, question) for question in asked)
            self._signatures[asked] = signature
        return signature

    def _holds(self, cell: _Cell) -> bool:
        if cell.epoch == self._memo._epoch:
            return True
        tables = self._index.tables
        for table, key, answer in cell.facts:
            now = tables[table].get(key)
            if now is not answer and not same(now, answer):
                return False
        cell.epoch = self._memo._epoch
        return True


@dataclass(slots=True)
class _Open:
    """A group while it is made: what it has asked for so far."""

    members: list[_Cell] = field(default_factory=list)
    asked: dict[Question, None] = field(default_factory=dict)
