"""
What the Gateway API's objects have become: the conditions of `status`, and a warning for each that is not as it should
be, at the place that brings it about.

`statuses` is asked after each change by the control plane, which keeps the answer (`weft get -o yaml`) and warns the
author. Who is attached to what is `weft.api.attachment`'s to say. Source: the Gateway API's reference, and GEP-1364
for what conditions and reasons mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from weft.api.attachment import (
    CONTROLLER,
    CONTROLLERS,
    GATEWAY_NAME_LABEL,
    Admission,
    Backend,
    Reason,
    admission,
    backend,
    gateway_address,
    implemented,
    of_service,
    parent_key,
    references,
    service_ports,
)
from weft.api.gateway_api import Gateway, HTTPRoute, ParentReference
from weft.api.kinds import GATEWAY_API, KUBERNETES_GATEWAY
from weft.api.names import MESH, qualified_gateway
from weft.api.references import View
from weft.api.yaml import Path, dotted
from weft.model import ConfigKey, ConfigObject, Problem, Proxy, ProxyKind, Severity


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. `status` is what it says, whether that is good or not (`Conflicted` is good when it is not)."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """
    The status of one object.

    Attributes:
        conditions: By where they stand: `()` is the object, `("parents", 0)` and `("listeners", 0)` are parts of it.
        more: What else each of these places says.
        problems: A warning for each condition that is not as it should be.
    """

    conditions: Mapping[tuple[str, int] | tuple[()], tuple[Condition, ...]]
    more: Mapping[tuple[str, int] | tuple[()], Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def manifest(self, generation: int, now: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        Return what stands under `status`.

        Args:
            generation: Of the object that was looked at.
            now: The time of the change, for conditions that are new or other than before (RFC 3339).
            before: What was returned for the object the last time.
        """
        whole: dict[str, Any] = {}
        for place, conditions in self.conditions.items():
            part: dict[str, Any] = dict(self.more.get(place, {}))
            earlier = before or {}
            if place:
                listed = earlier.get(place[0]) or []
                earlier = listed[place[1]] if place[1] < len(listed) else {}
            times = {
                (item["type"], item["status"]): item["lastTransitionTime"] for item in earlier.get("conditions", ())
            }
            part["conditions"] = [
                {
                    "type": condition.type,
                    "status": str(condition.status),
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastTransitionTime": times.get((condition.type, str(condition.status)), now),
                    "observedGeneration": generation,
                }
                for condition in conditions
            ]
            if place:
                whole.setdefault(place[0], []).append(part)
            else:
                whole.update(part)
        return whole


def statuses(view: View, proxies: Iterable[Proxy]) -> dict[ConfigKey, Status]:
    """Return the status of each object of the Gateway API; *proxies* are those of the mesh, gateways among them."""
    finder = _Finder(view, proxies)
    found = {item.key: finder.gateway_class(item) for item in finder.classes}
    found |= {item.key: finder.gateway(item) for item in finder.gateways.values() if finder.is_mine(item)}
    found |= {item.key: finder.http_route(item) for item in finder.routes}
    return found


class _Finder:
    """Holds what is asked for each object."""

    def __init__(self, view: View, proxies: Iterable[Proxy]) -> None:
        self.view = view
        self.gateway_proxies = [proxy for proxy in proxies if proxy.kind is ProxyKind.GATEWAY]
        self.classes = list(view.of_kind("GatewayClass"))
        self.gateways = {f"{item.key.namespace}/{item.key.name}": item for item in view.of_kind(KUBERNETES_GATEWAY)}
        self.routes = list(view.of_kind("HTTPRoute"))
        self.grants = list(view.of_kind("ReferenceGrant"))
        # By (where: `mesh` or `namespace/name` of an Istio Gateway, host).
        self.virtual_services: dict[tuple[str, str], list[ConfigObject]] = defaultdict(list)
        for item in view.of_kind("VirtualService") if self.routes else ():
            namespace, hosts = item.key.namespace, item.spec.hosts if item.spec.http else ()
            places = [qualified_gateway(name, namespace) for name in item.spec.gateways or (MESH,)]
            names = [view.hostname(host, namespace) for host in hosts]
            for where in dict.fromkeys(product(places, names)):
                self.virtual_services[where].append(item)
        # By `namespace/name` of a Gateway.
        self.attached: dict[str, list[tuple[ConfigObject, ParentReference]]] = defaultdict(list)
        for route in self.routes:
            for ref in route.spec.parent_refs:
                if not of_service(ref):
                    self.attached[parent_key(ref, route.key.namespace)].append((route, ref))
        self.istio_gateways = {f"{item.key.namespace}/{item.key.name}": item for item in view.of_kind("Gateway")}

    def is_mine(self, gateway: ConfigObject) -> bool:
        return implemented(gateway.spec.gateway_class_name, self.classes)

    # GatewayClass

    def gateway_class(self, item: ConfigObject) -> Status:
        mine = item.spec.controller_name in CONTROLLERS
        if mine:
            accepted = Condition("Accepted", True, "Accepted", "weft implements Gateways of this class.")
        else:
            message = f"weft is not the controller {item.spec.controller_name}."
            accepted = Condition("Accepted", False, "Unsupported", message)
        return Status({(): (accepted,)})  # that it is not weft's has been said when it was read

    # Gateway

    def gateway(self, item: ConfigObject) -> Status:
        spec: Gateway = item.spec
        proxies = self._implementing(item)
        problems = []
        if proxies:
            names = ", ".join(sorted({proxy.workload for proxy in proxies}))
            programmed = Condition("Programmed", True, "Programmed", f"Implemented by {names}.")
        else:
            message = "no gateway of the mesh implements this, so nobody listens for it."
            programmed = Condition("Programmed", False, "NoResources", message[0].upper() + message[1:])
            remedy = f"Describe one under `gateways` in weft.yaml; there are {self._known_gateways()}."
            problems.append(_warning(item, _place_of_address(spec), message, remedy, "dangling-gateway"))
        accepted = Condition("Accepted", True, "Accepted", "Every field is honoured.")
        conditions: dict[Any, tuple[Condition, ...]] = {(): (accepted, programmed)}
        more: dict[Any, Mapping[str, Any]] = {(): {"addresses": self._addresses(proxies)}}
        for index, listener in enumerate(spec.listeners):
            conditions["listeners", index] = (
                accepted,
                Condition("Conflicted", False, "NoConflicts", "No other listener stands in its way."),
                Condition("ResolvedRefs", True, "ResolvedRefs", "All references hold."),
                programmed,
            )
            kinds = listener.allowed_routes.kinds
            supported = not kinds or any(kind.group == GATEWAY_API and kind.kind == "HTTPRoute" for kind in kinds)
            more["listeners", index] = {
                "name": listener.name,
                "attachedRoutes": self._attached(item, index),
                "supportedKinds": [{"group": GATEWAY_API, "kind": "HTTPRoute"}] if supported else [],
            }
            if proxies and (problem := self._unpublished(item, index, proxies)) is not None:
                problems.append(problem)
        return Status(conditions, more, tuple(problems))

    def _implementing(self, item: ConfigObject) -> list[Proxy]:
        """Return the gateways of the mesh that implement *item*; translation decides alike for a single one."""
        if item.spec.addresses:
            wanted = [gateway_address(address.value, item.key.namespace) for address in item.spec.addresses]
            return [proxy for proxy in self.gateway_proxies if (proxy.namespace, proxy.labels.get("app")) in wanted]
        own = [
            proxy
            for proxy in self.gateway_proxies
            if (proxy.namespace, proxy.labels.get(GATEWAY_NAME_LABEL)) == (item.key.namespace, item.key.name)
        ]
        return own or [proxy for proxy in self.gateway_proxies if not proxy.labels.get(GATEWAY_NAME_LABEL)]

    def _known_gateways(self) -> str:
        names = sorted({f"{proxy.labels.get('app', '')}.{proxy.namespace}" for proxy in self.gateway_proxies})
        return ", ".join(names) or "none"

    @staticmethod
    def _addresses(proxies: list[Proxy]) -> list[dict[str, str]]:
        """Return where the Gateway is called: published addresses of this machine, else those in the mesh."""
        published = {item.host_address for proxy in proxies for item in proxy.published}
        found = published or {proxy.address for proxy in proxies}
        return [{"type": "IPAddress", "value": address} for address in sorted(found)]

    def _attached(self, gateway: ConfigObject, index: int) -> int:
        """Return how many routes a listener has admitted."""
        named = self.attached[f"{gateway.key.namespace}/{gateway.key.name}"]
        return len({route.key for route, ref in named if index in dict(admission(route, ref, gateway).listeners)})

    def _unpublished(self, item: ConfigObject, index: int, proxies: list[Proxy]) -> Problem | None:
        number = item.spec.listeners[index].port
        targets = {number}
        for service in self.view.services.values():
            if any(service.selector and service.selector.items() <= proxy.labels.items() for proxy in proxies):
                targets |= {port.target for port in service.ports if port.number == number}
        ports = {published.port for proxy in proxies for published in proxy.published}
        if not ports or ports & targets:
            return None  # a gateway that publishes nothing at all is meant for the mesh alone
        listed = ", ".join(map(str, sorted(ports)))
        message = f"{proxies[0].workload} publishes {listed} on this machine, not {number}: only the mesh can call it."
        remedy = f'Add "127.0.0.1:0:{number}" to `publish` of the gateway in weft.yaml.'
        return _warning(item, ("spec", "listeners", index, "port"), message, remedy, "not-published")

    # HTTPRoute

    def http_route(self, item: ConfigObject) -> Status:
        spec: HTTPRoute = item.spec
        unresolved = [
            (path, found)
            for path, ref in references(spec)
            if (found := self._backend(ref, item.key.namespace)).reason is not None
        ]
        resolved = Condition("ResolvedRefs", True, "ResolvedRefs", "All references hold.")
        if unresolved:
            path, first = unresolved[0]
            resolved = Condition("ResolvedRefs", False, str(first.reason), f"{dotted(path)}: {first.message}")
        problems = [self._dangling(item, path, found) for path, found in unresolved]
        conditions: dict[Any, tuple[Condition, ...]] = {}
        more: dict[Any, Mapping[str, Any]] = {}
        for index, ref in enumerate(spec.parent_refs):
            path = ("spec", "parentRefs", index)
            answer = self._parent(item, ref)
            accepted = Condition("Accepted", True, "Accepted", "The parent has accepted this route.")
            if answer.reason is not None:
                message = answer.message[0].upper() + answer.message[1:]
                accepted = Condition("Accepted", False, str(answer.reason), message)
                message = f"`{ref.name}` does not accept this route: {answer.message}"
                problems.append(_warning(item, path, message, self._remedy(ref, item), "not-accepted"))
            conditions["parents", index] = (accepted, resolved)
            more["parents", index] = {
                "parentRef": dict(item.manifest["spec"]["parentRefs"][index]),
                "controllerName": CONTROLLER,
            }
            problems.extend(self._conflicts(item, path, ref))
        return Status(conditions, more, tuple(problems))

    def _backend(self, ref: Any, namespace: str) -> Backend:
        owner, _, name = parent_key(ref, namespace).partition("/")
        hostname = f"{name}.{owner}.svc.{self.view.domain_suffix}"
        grants = [grant for grant in self.grants if grant.key.namespace == owner]
        return backend(ref, namespace, hostname=hostname, service=self.view.services.get(hostname), grants=grants)

    def _dangling(self, item: ConfigObject, path: Path, found: Backend) -> Problem:
        remedy = ""
        if found.reason is Reason.BACKEND_NOT_FOUND and found.field == "name":
            names = sorted(service.name for service in self.view.services.values())
            remedy = f"Services: {', '.join(names) or 'none'}."
        elif found.reason is Reason.NOT_PERMITTED:
            remedy = "Apply one there, or name a service of the route's own namespace."
        consequence = "no copy is sent." if path[-1] == "backendRef" else "requests sent there are answered with 500."
        message = f"{found.message[:-1]}: {consequence}"
        return _warning(item, (*path, found.field), message, remedy, "dangling-backend")

    def _parent(self, item: ConfigObject, ref: ParentReference) -> Admission:
        key = parent_key(ref, item.key.namespace)
        if not of_service(ref):
            gateway = self.gateways.get(key)
            if gateway is None:
                return Admission((), Reason.NO_MATCHING_PARENT, f"there is no Gateway `{key}`.")
            if not self.is_mine(gateway):
                message = f"the Gateway is of the class `{gateway.spec.gateway_class_name}`, which weft has not."
                return Admission((), Reason.NO_MATCHING_PARENT, message)
            return admission(item, ref, gateway)
        namespace, _, name = key.partition("/")
        service = self.view.services.get(f"{name}.{namespace}.svc.{self.view.domain_suffix}")
        if service is None:
            return Admission((), Reason.NO_MATCHING_PARENT, f"there is no service `{key}`.")
        ports = service_ports(ref, service)
        if not ports:
            has = ", ".join(f"{port.number} ({port.name})" for port in service.ports) or "none"
            return Admission((), Reason.NO_MATCHING_PARENT, f"the service has no such port; it has {has}.")
        if not any(port.protocol.is_http for port in ports):
            speaks = ", ".join(sorted({port.protocol.value for port in ports}))
            return Admission((), Reason.NO_MATCHING_PARENT, f"the service speaks {speaks} there, not HTTP.")
        return Admission()

    def _remedy(self, ref: ParentReference, item: ConfigObject) -> str:
        if of_service(ref):
            names = sorted(service.name for service in self.view.services.values())
            return f"Services: {', '.join(names) or 'none'}."
        gateway = self.gateways.get(parent_key(ref, item.key.namespace))
        if gateway is not None:
            return f"Its listeners are at {gateway.locate('spec', 'listeners')}."
        return f"Gateways: {', '.join(sorted(self.gateways)) or 'none'}."

    def _conflicts(self, item: ConfigObject, path: Path, ref: ParentReference) -> Iterator[Problem]:
        """Yield a warning for each VirtualService that rules the same service in the mesh, or the same host outside."""
        if not of_service(ref):
            yield from self._conflicts_at_gateway(item, path, ref)
            return
        namespace, _, name = parent_key(ref, item.key.namespace).partition("/")
        hostname = f"{name}.{namespace}.svc.{self.view.domain_suffix}"
        for other in self.virtual_services.get((MESH, hostname), ()):
            first = min(item, other, key=lambda one: (one.created, one.key.namespace, one.key.name))
            remedy = f"Sidecars use one of them, the older: the {first.key}. Delete the other."
            yield _same_host(item, path, other, "it", remedy)

    def _conflicts_at_gateway(self, item: ConfigObject, path: Path, ref: ParentReference) -> Iterator[Problem]:
        gateway = self.gateways.get(parent_key(ref, item.key.namespace))
        if gateway is None or not self.is_mine(gateway):
            return
        admitted = admission(item, ref, gateway).listeners
        taken = sorted({(gateway.spec.listeners[index].port, host) for index, hosts in admitted for host in hosts})
        for name, theirs in self.istio_gateways.items():
            ports = {server.port.number for server in theirs.spec.servers}
            for port, host in taken:
                for other in self.virtual_services.get((name, host), ()) if port in ports else ():
                    remedy = "A gateway uses the VirtualService for it. Delete one of them."
                    yield _same_host(item, path, other, f"`{host}` on the same port", remedy)


def _same_host(item: ConfigObject, path: Path, other: ConfigObject, what: str, remedy: str) -> Problem:
    place = other.locate("spec", "hosts")
    message = f"the VirtualService {other.key.namespace}/{other.key.name} ({place}) has rules for {what} too."
    return _warning(item, path, message, remedy, "same-host")


def _place_of_address(spec: Gateway) -> Path:
    return ("spec", "addresses") if spec.addresses else ("spec", "gatewayClassName")


def _warning(item: ConfigObject, path: Path, message: str, remedy: str, code: str) -> Problem:
    return Problem(item.locate(*path), dotted(path), message, remedy, Severity.WARNING, code)
