"""
What configuration points at and is not there: hosts, subsets, ports, gateways, workloads.

Called with the snapshot that a change would make, before it takes effect. All that is found is a warning, because order
is free: the other half may come with the next apply; `--strict` makes errors of them. Pure.

Source for what is looked at: Istio's analyzers (istio.io/docs/reference/config/analysis); the sentences are weft's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Protocol

from weft.api.kubernetes import Service as ServiceSpec
from weft.api.names import MESH, qualified_gateway
from weft.api.nearest import nearest
from weft.api.networking import Destination, DestinationRule, Gateway, Subset, TrafficPolicy, VirtualService
from weft.api.precedence import Rule, exported, in_force
from weft.api.rules.virtual_service import host_covers
from weft.api.security import PeerAuthentication
from weft.api.yaml import Path, dotted
from weft.model import ROOT_NAMESPACE, ConfigKey, ConfigObject, Problem, Service, ServicePort, Severity, Workload

SENT = "requests sent there are answered with 503"
COPIED = "no copy is sent"
"""What comes of a destination that is not there."""

HTTP_PORT = 80
"""Where names outside the mesh are called."""


class View(Protocol):
    """What is read of a `weft.model.Snapshot`."""

    @property
    def services(self) -> Mapping[str, Service]: ...
    @property
    def workloads(self) -> Mapping[tuple[str, str], Workload]: ...
    @property
    def domain_suffix(self) -> str: ...
    def of_kind(self, kind: str) -> Iterator[ConfigObject]: ...
    def hostname(self, host: str, namespace: str) -> str: ...


def dangling(view: View) -> dict[ConfigKey, tuple[Problem, ...]]:
    """Return a warning for each reference that leads nowhere, by the object in which it is written."""
    finder = _Finder(view)
    found = {item.key: tuple(finder.problems(item)) for item in chain.from_iterable(map(view.of_kind, _KINDS))}
    return {key: problems for key, problems in found.items() if problems}


_KINDS = ("VirtualService", "DestinationRule", "Gateway", "PeerAuthentication", "Service")


class _Finder:
    """Holds what is asked for each object: rules and gateways by name."""

    def __init__(self, view: View) -> None:
        self.view = view
        rules = [(view.hostname(item.spec.host, item.key.namespace), item) for item in view.of_kind("DestinationRule")]
        self.rules: list[Rule] = sorted(rules, key=lambda rule: ("*" in rule[0], -len(rule[0])))
        self.namespaces = {workload.namespace for workload in view.workloads.values()}
        self.gateways = {_name(item): item for item in view.of_kind("Gateway")}
        self.by_document = {view.hostname(item.key.name, item.key.namespace) for item in view.of_kind("Service")}
        self.virtual_services = list(view.of_kind("VirtualService"))

    def problems(self, item: ConfigObject) -> Iterator[Problem]:
        spec = item.spec
        if isinstance(spec, VirtualService):
            yield from self._virtual_service(item, spec)
        elif isinstance(spec, DestinationRule):
            yield from self._destination_rule(item, spec)
        elif isinstance(spec, Gateway):
            yield from self._gateway(item, spec)
        elif isinstance(spec, PeerAuthentication):
            yield from self._peer_authentication(item, spec)
        elif isinstance(spec, ServiceSpec):
            yield from self._service(item, spec)

    # VirtualService

    def _virtual_service(self, item: ConfigObject, spec: VirtualService) -> Iterator[Problem]:
        yield from self._hosts(item, spec)
        yield from self._outside(item, spec)
        yield from self._protocols(item, spec)
        for index, name in enumerate(spec.gateways):
            yield from self._gateway_reference(item, ("spec", "gateways", index), name, spec)
        for index, http in enumerate(spec.http):
            rule: Path = ("spec", "http", index)
            for position, match in enumerate(http.match):
                for number, name in enumerate(match.gateways):
                    yield from self._gateway_reference(item, (*rule, "match", position, "gateways", number), name, None)
            for position, target in enumerate(http.route):
                yield from self._destination(item, (*rule, "route", position, "destination"), target.destination)
            if http.mirror is not None:
                yield from self._destination(item, (*rule, "mirror"), http.mirror, gone=COPIED)
            for position, copy in enumerate(http.mirrors):
                at: Path = (*rule, "mirrors", position, "destination")
                yield from self._destination(item, at, copy.destination, gone=COPIED)
        for index, tcp in enumerate(spec.tcp):
            for position, leg in enumerate(tcp.route):
                path = ("spec", "tcp", index, "route", position, "destination")
                yield from self._destination(item, path, leg.destination)

    def _hosts(self, item: ConfigObject, spec: VirtualService) -> Iterator[Problem]:
        named: dict[str, int] = {}
        for index, host in enumerate(spec.hosts):
            path = ("spec", "hosts", index)
            full = self.view.hostname(host, item.key.namespace)
            if full in named:
                first = item.locate("spec", "hosts", named[full])
                message = f"`{host}` is the host that `{spec.hosts[named[full]]}` ({first}) names already."
                yield _warning(item, path, message, "Keep one of them.", "duplicate-host")
                continue
            named[full] = index
            if MESH in _gateways_of(item, spec) and self._is_mesh_name(full) and full not in self.view.services:
                message = f"no service is called `{host}`, so no sidecar applies these rules for it."
                yield _warning(item, path, message, self._known_services(host, item.key.namespace), "dangling-host")
            yield from self._same_host(item, spec, path, host)

    def _outside(self, item: ConfigObject, spec: VirtualService) -> Iterator[Problem]:
        """
        Rules of the mesh for names outside of it, which are called on port 80.

        A sidecar that catches requests looks at those on the ports where services of the mesh speak HTTP, as in Istio.
        """
        if not spec.http or MESH not in _gateways_of(item, spec):
            return
        hosts = [self.view.hostname(host, item.key.namespace) for host in spec.hosts]
        services = self.view.services
        if any(host_covers(host, name) for host in hosts for name in services):
            return  # they hold on the ports of that service, too
        if any(port.number == HTTP_PORT and port.protocol.is_http for each in services.values() for port in each.ports):
            return
        for index, host in enumerate(hosts):
            if not host.endswith(f".svc.{self.view.domain_suffix}"):
                name = spec.hosts[index]
                message = (
                    f"no service speaks HTTP on port 80, so requests to `{name}` that are caught pass these rules by."
                )
                remedy = "In explicit mode they hold; else once the mesh has such a service."
                yield _warning(item, ("spec", "hosts", index), message, remedy, "no-effect")

    def _protocols(self, item: ConfigObject, spec: VirtualService) -> Iterator[Problem]:
        """Rules of one kind for hosts whose ports all speak another; what is not known to speak anything is let be."""
        if set(_gateways_of(item, spec)) != {MESH}:
            return
        ports: list[ServicePort] = []
        for host in spec.hosts:
            full = self.view.hostname(host, item.key.namespace)
            named = [service for name, service in self.view.services.items() if host_covers(full, name)]
            if not named or not all(map(self._declares, named)):
                return
            ports += (port for service in named for port in service.ports)
        if not ports:
            return
        protocols = {port.protocol for port in ports}
        hosts = ", ".join(f"`{host}`" for host in spec.hosts)
        spoken = f"They speak {', '.join(sorted(protocols))}."
        if spec.http and not any(protocol.is_http for protocol in protocols):
            message = f"no port of {hosts} speaks HTTP, so these rules have no effect."
            yield _warning(item, ("spec", "http"), message, f"{spoken} Write `tcp`.", "no-effect")
        if spec.tcp and all(protocol.is_http for protocol in protocols):
            message = f"every port of {hosts} speaks HTTP, so rules for TCP have no effect."
            yield _warning(item, ("spec", "tcp"), message, f"{spoken} Write `http`.", "no-effect")

    def _declares(self, service: Service) -> bool:
        """
        Whether it is known what the ports of *service* speak.

        A port of a Service document may say nothing; it speaks what its workloads say, once there are any.
        """
        if service.hostname not in self.by_document:
            return True
        bound = {
            port.number
            for workload in self.view.workloads.values()
            if service.hostname in workload.services
            for port in workload.ports
        }
        return all(port.target in bound for port in service.ports)

    def _same_host(self, item: ConfigObject, spec: VirtualService, path: Path, host: str) -> Iterator[Problem]:
        full = self.view.hostname(host, item.key.namespace)
        mine = _gateways_of(item, spec)
        for other in self.virtual_services:
            if other.key == item.key or not isinstance(other.spec, VirtualService):
                continue
            shared = [name for name in _gateways_of(other, other.spec) if name in mine]
            if not shared or full not in [self.view.hostname(name, other.key.namespace) for name in other.spec.hosts]:
                continue
            place = other.locate("spec", "hosts")
            if MESH in shared:
                first = _older(item, other).key
                message = f"the VirtualService {_name(other)} ({place}) has rules for `{host}` in the mesh too."
                remedy = f"Sidecars use one of them, the older: {first.namespace}/{first.name}. Join their rules in it."
            else:
                message = f"the VirtualService {_name(other)} ({place}) has rules for `{host}` at {shared[0]} too."
                remedy = "A gateway joins them, the older one's rules first; only its last rule may match everything."
            yield _warning(item, path, message, remedy, "same-host")

    def _gateway_reference(
        self, item: ConfigObject, path: Path, name: str, spec: VirtualService | None
    ) -> Iterator[Problem]:
        if name == MESH:
            return
        meant = qualified_gateway(name, item.key.namespace)
        gateway = self.gateways.get(meant)
        if gateway is None:
            known = [key.removeprefix(f"{item.key.namespace}/") for key in self.gateways]
            message = f"no Gateway `{meant}` exists, so these rules are not in force there."
            yield _warning(item, path, message, _listed(name, known, "Gateways"), "dangling-gateway")
            return
        offered = [host.rpartition("/")[2] for server in gateway.spec.servers for host in server.hosts]
        hosts = spec.hosts if spec is not None else ()
        if hosts and not any(
            host_covers(offer, host) or host_covers(host, offer) for offer in offered for host in hosts
        ):
            message = f"the Gateway `{name}` answers for none of these hosts ({', '.join(hosts)})."
            remedy = f"It answers for {', '.join(offered)} ({gateway.locate('spec', 'servers')})."
            yield _warning(item, path, message, remedy, "host-not-in-gateway")

    def _destination(
        self, item: ConfigObject, path: Path, destination: Destination, *, gone: str = SENT
    ) -> Iterator[Problem]:
        full = self.view.hostname(destination.host, item.key.namespace)
        service = self.view.services.get(full)
        if service is None:
            message = f"nobody serves `{destination.host}`: {gone}."
            remedy = self._known_services(destination.host, item.key.namespace)
            yield _warning(item, (*path, "host"), message, remedy, "dangling-host")
            return  # whether a DestinationRule has the subset is no second mistake beside it
        yield from self._port(item, path, destination, service)
        if destination.subset:
            yield from self._subset(item, path, destination, full, gone)

    def _port(self, item: ConfigObject, path: Path, destination: Destination, service: Service) -> Iterator[Problem]:
        numbers = [str(port.number) for port in service.ports]
        if destination.port is None:
            if len(numbers) > 1:
                message = f"`{destination.host}` has the ports {', '.join(numbers)}; none is chosen."
                remedy = f"Add `port: {{number: {numbers[0]}}}`, say."
                yield _warning(item, (*path, "host"), message, remedy, "port-required")
        elif service.port(destination.port.number) is None:
            message = f"`{destination.host}` has no port {destination.port.number}."
            remedy = f"It has {', '.join(numbers) or 'none'}."
            yield _warning(item, (*path, "port", "number"), message, remedy, "dangling-port")

    def _subset(
        self, item: ConfigObject, path: Path, destination: Destination, full: str, gone: str
    ) -> Iterator[Problem]:
        name, host = destination.subset, destination.host
        rules = [(pattern, rule) for pattern, rule in self.rules if host_covers(pattern, full)]
        without: list[str] = []
        holding: list[ConfigObject] = []
        for caller in self._callers(item, path):
            found = self._in_force(rules, caller, full, item.key.namespace)
            if not any(subset.name == name for rule in found for subset in rule.spec.subsets):
                without.append(caller)
                holding = holding or found
        if not without:
            return
        message = f"no DestinationRule defines the subset `{name}` of `{host}`"
        others = [rule for _, rule in rules if any(subset.name == name for subset in rule.spec.subsets)]
        defined = {subset.name: rule for rule in holding for subset in rule.spec.subsets}
        if others:
            whom = f"calls from {', '.join(without)}"
            message = f"the DestinationRule that defines the subset `{name}` of `{host}` is not in force for {whom}"
            remedy = f"It is {_name(others[0])} ({others[0].locate('spec', 'subsets')}). "
            if holding:
                remedy += f"{_name(holding[0])} ({holding[0].locate('spec')}) is in force: define the subset there."
            else:
                remedy += f"Rules are looked up where the caller is, where the service is, and in {ROOT_NAMESPACE}."
        elif defined:
            remedy = _listed(name, defined, "Subsets")
            remedy += f" They are in {next(iter(defined.values())).locate('spec', 'subsets')}."
        else:
            remedy = f"Apply a DestinationRule for `{host}` that defines it."
        yield _warning(item, (*path, "subset"), f"{message}: {gone}.", remedy, "dangling-subset")

    def _callers(self, item: ConfigObject, path: Path) -> list[str]:
        """Return the namespaces whose proxies follow the rule at *path* of *item*; the item's own while nobody does."""
        rule = item.spec.http[path[2]] if path[1] == "http" else item.spec.tcp[path[2]]
        followed = _gateways_of(item, item.spec)
        if rule.match and all(match.gateways for match in rule.match):
            named = {name for match in rule.match for name in match.gateways}
            followed = [qualified_gateway(name, item.key.namespace) for name in named]
        found: set[str] = set()
        for name in followed:
            if name == MESH:
                found |= {each.namespace for each in self._sidecars() if exported(item, each.namespace)}
                continue
            if (gateway := self.gateways.get(name)) is not None:
                workloads = self.view.workloads.values()
                found |= {each.namespace for each in workloads if _carries(each.labels, gateway.spec.selector)}
        return sorted(found) or [item.key.namespace]

    def _sidecars(self) -> Iterator[Workload]:
        """Yield the workloads that no Gateway selects: what is for `mesh` is not for gateways."""
        selectors = [gateway.spec.selector for gateway in self.gateways.values() if gateway.spec.selector]
        for workload in self.view.workloads.values():
            if not any(_carries(workload.labels, selector) for selector in selectors):
                yield workload

    def _in_force(self, rules: Sequence[Rule], caller: str, full: str, namespace: str) -> list[ConfigObject]:
        """
        Return which of *rules* hold for calls from the namespace *caller* to *full*.

        *namespace* is where no service has that name.
        """
        service = self.view.services.get(full)
        seen = [(host, rule) for host, rule in rules if exported(rule, caller)]
        return in_force(seen, caller, service.namespace if service is not None else namespace)

    # DestinationRule

    def _destination_rule(self, item: ConfigObject, spec: DestinationRule) -> Iterator[Problem]:
        full = self.view.hostname(spec.host, item.key.namespace)
        services = [service for name, service in self.view.services.items() if host_covers(full, name)]
        if not services:
            message = f"no service is called `{spec.host}`, so this rule has no effect."
            remedy = self._known_services(spec.host, item.key.namespace)
            yield _warning(item, ("spec", "host"), message, remedy, "dangling-host")
            return
        looked_up = {ROOT_NAMESPACE, *self.namespaces, *(service.namespace for service in services)}
        if item.key.namespace not in looked_up:
            owners = ", ".join(sorted({service.namespace for service in services}))
            message = f"nobody looks for rules about `{spec.host}` in the namespace {item.key.namespace}."
            remedy = f"They hold where the caller is, where the service is ({owners}), or in {ROOT_NAMESPACE}."
            yield _warning(item, ("metadata", "namespace"), message, remedy, "no-effect")
        serving = [
            workload
            for workload in self.view.workloads.values()
            if any(service.hostname in workload.services for service in services)
        ]
        for index, subset in enumerate(spec.subsets):
            yield from self._subset_labels(item, ("spec", "subsets", index), subset, serving, spec.host)
        policies: list[tuple[Path, TrafficPolicy | None]] = [(("spec", "trafficPolicy"), spec.traffic_policy)]
        for index, subset in enumerate(spec.subsets):
            policies.append((("spec", "subsets", index, "trafficPolicy"), subset.traffic_policy))
        numbers = {port.number for service in services for port in service.ports}
        for path, policy in policies:
            for index, setting in enumerate(policy.port_level_settings if policy is not None else ()):
                if setting.port is not None and setting.port.number not in numbers:
                    message = f"`{spec.host}` has no port {setting.port.number}."
                    remedy = f"It has {', '.join(str(number) for number in sorted(numbers)) or 'none'}."
                    place = (*path, "portLevelSettings", index, "port", "number")
                    yield _warning(item, place, message, remedy, "dangling-port")

    def _subset_labels(
        self, item: ConfigObject, path: Path, subset: Subset, serving: Sequence[Workload], host: str
    ) -> Iterator[Problem]:
        if any(_carries(workload.labels, subset.labels) for workload in serving):
            return
        wanted = ", ".join(f"{key}: {value}" for key, value in subset.labels.items())
        message = f"no workload of `{host}` carries the labels of subset `{subset.name}` ({wanted})."
        found = sorted(
            {
                f"{key}: {workload.labels[key]}"
                for workload in serving
                for key in subset.labels
                if key in workload.labels
            }
        )
        remedy = f"They carry {', '.join(found)}." if found else f"No workload of `{host}` runs with such a label."
        yield _warning(item, path, message, remedy, "empty-subset")

    # Gateway

    def _gateway(self, item: ConfigObject, spec: Gateway) -> Iterator[Problem]:
        if any(_carries(workload.labels, spec.selector) for workload in self.view.workloads.values()):
            return
        wanted = ", ".join(f"{key}: {value}" for key, value in spec.selector.items())
        message = f"no gateway carries the labels of `selector` ({wanted}), so nobody listens for this Gateway."
        found = sorted(
            {
                f"{key}: {workload.labels[key]}"
                for workload in self.view.workloads.values()
                for key in spec.selector
                if key in workload.labels
            }
        )
        remedy = f"There is {', '.join(found)}." if found else "Describe one under `gateways` in weft.yaml."
        yield _warning(item, ("spec", "selector"), message, remedy, "dangling-selector")

    # PeerAuthentication

    def _peer_authentication(self, item: ConfigObject, spec: PeerAuthentication) -> Iterator[Problem]:
        labels = _selected(spec)
        for other in self.view.of_kind("PeerAuthentication"):
            if other.key == item.key or other.key.namespace != item.key.namespace or _selected(other.spec) != labels:
                continue
            if _older(item, other) is other:
                whom = "the same workloads" if labels else _whom(item.key.namespace)
                message = f"the PeerAuthentication {_name(other)} ({other.locate('spec')}) is for {whom} too."
                remedy = "The older one holds, and this one has no effect. Join them."
                yield _warning(item, ("spec",), message, remedy, "same-scope")
                break
        if not labels:
            return
        selected = self._carrying(item.key.namespace, labels)
        if not selected:
            yield self._selects_nobody(item, labels)
            return
        bound = {port.number for workload in selected for port in workload.ports}
        for key in spec.port_level_mtls or {}:
            if int(key) not in bound:
                message = f"no workload that is selected binds port {key}."
                remedy = f"They bind {', '.join(map(str, sorted(bound))) or 'none'}; a service's port may be another."
                yield _warning(item, ("spec", "portLevelMtls", key), message, remedy, "dangling-port")

    # Service

    def _service(self, item: ConfigObject, spec: ServiceSpec) -> Iterator[Problem]:
        selected = self._carrying(item.key.namespace, spec.selector)
        if not selected:
            yield self._selects_nobody(item, spec.selector)
            return
        bound = {port.number for workload in selected for port in workload.ports}
        for index, port in enumerate(spec.ports):
            target = port.target_port or port.port
            if bound and target not in bound:  # a gateway binds what Gateways ask for
                message = f"no workload that is selected binds port {target}: calls are answered with 503."
                remedy = f"They bind {', '.join(map(str, sorted(bound)))}."
                field = "targetPort" if port.target_port else "port"
                yield _warning(item, ("spec", "ports", index, field), message, remedy, "dangling-port")

    def _carrying(self, namespace: str, labels: Mapping[str, str]) -> list[Workload]:
        here = (workload for workload in self.view.workloads.values() if workload.namespace == namespace)
        return [workload for workload in here if _carries(workload.labels, labels)]

    def _selects_nobody(self, item: ConfigObject, labels: Mapping[str, str]) -> Problem:
        here = self._carrying(item.key.namespace, {})
        wanted = ", ".join(f"{key}: {value}" for key, value in labels.items())
        message = f"no workload of {item.key.namespace} carries the labels of `selector` ({wanted})."
        found = sorted({f"{key}: {each.labels[key]}" for each in here for key in labels if key in each.labels})
        remedy = f"There is {', '.join(found)}." if found else "It will hold for those that come."
        return _warning(item, ("spec", "selector"), message, remedy, "dangling-selector")

    # Names

    def _is_mesh_name(self, full: str) -> bool:
        """Return whether *full* is a name that only the mesh can have, not one of the outside world."""
        return full.endswith(f".svc.{self.view.domain_suffix}") and "*" not in full

    def _known_services(self, host: str, namespace: str) -> str:
        names = {
            service.name if service.namespace == namespace else f"{service.name}.{service.namespace}"
            for service in self.view.services.values()
        }
        short = host.partition(".")[0] if nearest(host, names) is None else host
        return _listed(short, names, "Services")


def _gateways_of(item: ConfigObject, spec: VirtualService) -> list[str]:
    """Return the gateways of *spec* as `namespace/name`, and `mesh`; each once."""
    return list(dict.fromkeys(qualified_gateway(name, item.key.namespace) for name in spec.gateways or (MESH,)))


def _selected(spec: PeerAuthentication) -> Mapping[str, str]:
    return spec.selector.match_labels if spec.selector is not None else {}


def _whom(namespace: str) -> str:
    return "the whole mesh" if namespace == ROOT_NAMESPACE else f"the whole namespace {namespace}"


def _older(one: ConfigObject, other: ConfigObject) -> ConfigObject:
    return min(one, other, key=lambda item: (item.created, item.key.namespace, item.key.name))


def _carries(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


def _name(item: ConfigObject) -> str:
    return f"{item.key.namespace}/{item.key.name}"


def _listed(word: str, known: Iterable[str], what: str) -> str:
    names = sorted(known)
    if not names:
        return f"{what}: none."
    meant = nearest(word, names)
    hint = f"Did you mean `{meant}`? " if meant is not None and meant != word else ""
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{hint}{what}: {shown}."


def _warning(item: ConfigObject, path: Path, message: str, remedy: str, code: str) -> Problem:
    return Problem(item.locate(*path), dotted(path), message, remedy, Severity.WARNING, code)
