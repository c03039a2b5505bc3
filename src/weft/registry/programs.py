"""
The registry of programs on this machine: what weft.yaml declares, and what agents report of running programs.

A service exists while it is declared, while a workload of it is registered, or while a document describes it. An endpoint is published only when the
workload's proxy is ready and every declared port has been found listening. No I/O: the server of the agents' streams
(`weft.controlplane.agents`) calls this, the control plane reads `view`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import WeftError
from weft.model import (
    MESH_CIDR,
    SERVICE_CIDR,
    ConfigObject,
    Identity,
    Interception,
    LocalCaller,
    Protocol,
    Proxy,
    ProxyKind,
    Published,
    Service,
    ServicePort,
    Workload,
    WorkloadPort,
    loopback,
)
from weft.registry.addresses import Addresses, ipv6_of
from weft.registry.base import View
from weft.registry.kubernetes import Selecting, protocol, target_port

DNS_ADDRESS_OFFSET = 53
"""The mesh's DNS server is the 53rd address of the services' range (240.240.0.53)."""

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123 2.1): services and workloads become parts of host names."""

GATEWAY_LABEL = ("istio", "ingressgateway")
"""What Istio's samples select as their gateway."""


K = TypeVar("K")
V = TypeVar("V")


class RegistrationRefused(WeftError):
    """An agent asked for something that the mesh cannot give; the message says what, and goes to the agent."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A service that weft.yaml declares: it has a name and an address before any program of it runs."""

    name: str
    namespace: str = "default"
    ports: tuple[ServicePort, ...] = ()

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Declared:
        """Read one item of the declaration's `services` (docs/reference/interfaces.md, 4.3a)."""
        return cls(
            item["name"],
            item.get("namespace") or "default",
            tuple(
                _service_port(port["number"], Protocol(port.get("protocol") or "HTTP"), port)
                for port in item.get("ports", ())
            ),
        )


@dataclass(frozen=True, slots=True)
class Registration:
    """What an agent says of the workload that it stands for (docs/reference/interfaces.md, 4.2)."""

    service: str
    version: str = "v1"
    namespace: str = "default"
    name: str = ""
    service_account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[WorkloadPort, ...] = ()
    host_ports: tuple[int, ...] = ()
    kind: ProxyKind = ProxyKind.SIDECAR
    published: tuple[Published, ...] = ()
    data_plane: str = WEFT_PROXY
    data_plane_version: str = ""
    namespace_path: str = ""
    local_caller: LocalCaller | None = None
    outbound_addresses: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    client_only: bool = False
    pid: int = 0

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Registration:
        """
        Read the `workload` of a `register` message.

        Raises:
            RegistrationRefused: A value is missing or of the wrong kind.
        """
        try:
            return cls(
                service=str(item["service"]),
                version=str(item.get("version") or "v1"),
                namespace=str(item.get("namespace") or "default"),
                name=str(item.get("name") or ""),
                service_account=str(item.get("service_account") or ""),
                labels={str(key): str(value) for key, value in (item.get("labels") or {}).items()},
                ports=tuple(
                    WorkloadPort(int(port["number"]), Protocol(port.get("protocol") or "HTTP"))
                    for port in item.get("ports") or ()
                ),
                host_ports=tuple(int(port) for port in item.get("host_ports") or ()),
                kind=ProxyKind(item.get("kind") or "sidecar"),
                published=tuple(
                    Published(int(port["port"]), str(port["host_address"]), int(port["host_port"]))
                    for port in item.get("published") or ()
                ),
                data_plane=str(item.get("data_plane") or WEFT_PROXY),
                data_plane_version=str(item.get("data_plane_version") or ""),
                namespace_path=str(item.get("namespace_path") or ""),
                local_caller=(
                    LocalCaller(int(item["local_caller"]["uid"]), str(item["local_caller"]["credential_sha256"]))
                    if item.get("local_caller")
                    else None
                ),
                outbound_addresses={
                    int(port): (str(address), int(number))
                    for port, (address, number) in (item.get("outbound_addresses") or {}).items()
                },
                client_only=bool(item.get("client_only")),
                pid=int(item.get("pid") or 0),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise RegistrationRefused(f"The registration cannot be read: {exc!r}") from exc


@dataclass(frozen=True, slots=True)
class Program:
    """
    A registered workload and what its agent last said of it.

    Attributes:
        listening: Port -> (address, port) on which the program was found listening for it.
        state: `starting`, `running` or `exited`; `code` is the exit status of the last run.
    """

    registration: Registration
    address: str
    identity: Identity
    proxy_ready: bool = False
    listening: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    leaving: bool = False
    state: str = "starting"
    pid: int = 0
    code: int | None = None
    restarts: int = 0

    @property
    def ready(self) -> bool:
        """Whether an endpoint of it may be published."""
        ports = self.registration.ports
        answers = self.registration.kind is ProxyKind.GATEWAY or all(port.number in self.listening for port in ports)
        return self.proxy_ready and answers and not self.leaving

    @property
    def address6(self) -> str:
        """Empty in explicit mode: the loopback has one IPv6 address."""
        return "" if self.registration.local_caller else ipv6_of(self.address)


class Programs:
    """
    The `weft.registry.Registry` of programs.

    Args:
        services: What weft.yaml declares.
        service_addresses: Hostname -> address from earlier runs.
        workload_addresses: `<namespace>/<name>` -> address from earlier runs.
        mesh: The mesh's name, which is also its cluster's in metrics.
        interception: How traffic reaches the proxies of this mesh. In EXPLICIT mode *mesh_cidr* is a range of the
            host's loopback (`weft.model.loopback`).
        host_namespace_path: What means the host's network to a proxy, where an edge opens its sockets.
        namespace_path: Where the agent of a workload mounts its program's network namespace, by the workload's name.
        outside_socket: Where the agent of a workload relays connections to the host for a proxy that the edge cannot
            serve (Envoy), by the workload's name.
        published_socket: Where such a gateway takes what its agent relays from the host, by its name and port.
        access_log_path: Where the proxy of a workload writes its access records, by the workload's name.
        access_log_cluster: To which static cluster proxies send their access records; empty: to none.
    """

    def __init__(
        self,
        *,
        services: Sequence[Declared] = (),
        service_addresses: Mapping[str, str] | None = None,
        workload_addresses: Mapping[str, str] | None = None,
        mesh_cidr: str = MESH_CIDR,
        service_cidr: str = SERVICE_CIDR,
        mesh: str = "default",
        trust_domain: str = "cluster.local",
        domain_suffix: str = "cluster.local",
        interception: Interception = Interception.TPROXY,
        host_namespace_path: str = "",
        namespace_path: Callable[[str], str] = lambda _: "",
        outside_socket: Callable[[str], str] = lambda _: "",
        published_socket: Callable[[str, int], str] = lambda _name, _port: "",
        access_log_path: Callable[[str], str] = lambda _: "",
        access_log_cluster: str = "",
    ) -> None:
        self.mesh_cidr = mesh_cidr
        self.service_cidr = service_cidr
        self.mesh = mesh
        self.trust_domain = trust_domain
        self.domain_suffix = domain_suffix
        self.interception = interception
        self._host_namespace_path = host_namespace_path
        self._namespace_path, self._access_log_path = namespace_path, access_log_path
        self._outside_socket, self._published_socket = outside_socket, published_socket
        self._access_log_cluster = access_log_cluster
        first = service_cidr.partition("/")[0].split(".")
        # The last bytes that mean something else beside them: the mesh's DNS server, in explicit mode the program.
        offsets = (DNS_ADDRESS_OFFSET, loopback.PROGRAM_OFFSET)
        reserved = [".".join([*first[:3], str(int(first[3]) + offset)]) for offset in offsets]
        explicit = interception is Interception.EXPLICIT
        self._service_addresses = Addresses(service_cidr, service_addresses or {}, reserved=reserved)
        self._workload_addresses = Addresses(
            mesh_cidr, workload_addresses or {}, spacing=loopback.WORKLOAD_ADDRESSES if explicit else 1
        )
        self._declared = {self._hostname(item.name, item.namespace): item for item in services}
        self.programs: dict[tuple[str, str], Program] = {}
        self._selecting: Mapping[str, Selecting] = {}
        self._last = View()
        self._last_of: tuple[Mapping[tuple[str, str], Program], Mapping[str, Selecting]] | None = None

    def register(self, registration: Registration) -> tuple[str, str]:
        """
        Take in a workload; return its (namespace, name).

        A name that is registered already is taken over, so that an agent that lost its connection gets its place back;
        what it reported before stays until it reports again.

        Raises:
            RegistrationRefused: A bad name, a port that the service has with another protocol, or no address is left.
            WeftError: Its files cannot have the name that it gets.
        """
        self._check(registration)
        key = (registration.namespace, registration.name or self._next_name(registration))
        self._access_log_path(key[1])  # a name that is too long for a path is refused here and not in `view`
        registration = replace(registration, name=key[1])
        before = self.programs.get(key)
        in_use = [f"{namespace}/{name}" for namespace, name in self.programs]
        address = self._workload_addresses.assign(f"{key[0]}/{key[1]}", in_use=in_use)
        identity = Identity(self.trust_domain, key[0], registration.service_account or registration.service)
        if before is not None and before.registration == registration:
            self.programs[key] = replace(before, leaving=False)
        else:
            self.programs[key] = Program(registration, address, identity)
        return key

    def release(self, key: tuple[str, str]) -> None:
        """Forget a workload whose agent is gone. Its address stays with its name."""
        self.programs.pop(key, None)

    def report(self, key: tuple[str, str], **facts: Any) -> None:
        """Note what an agent said of its program: any field of `Program` but those that registration set."""
        self.programs[key] = replace(self.programs[key], **facts)

    def listening(self, key: tuple[str, str], port: int, address: str | None, bound: int = 0) -> None:
        """Note on which address, and on which port if it is another one, *port* was found listening, or that it is not."""
        rest = {number: where for number, where in self.programs[key].listening.items() if number != port}
        self.report(key, listening=rest if address is None else {**rest, port: (address, bound)})

    def reached_at(self, key: tuple[str, str], service: Service) -> str:
        """Return the address at which the program of a workload calls *service*."""
        if self.interception is Interception.EXPLICIT:
            return loopback.service_address(self.programs[key].address, service.address)
        return service.address

    def lacking(self, key: tuple[str, str]) -> list[int]:
        """Return the ports of its service that the program of a workload does not serve: calls of them go to others only."""
        registration = self.programs[key].registration
        if not _serves(registration):
            return []
        service = self.view().services[self._hostname(registration.service, registration.namespace)]
        own = {port.number for port in registration.ports}
        return [port.number for port in service.ports if port.target not in own]

    def adopt(self, documents: Iterable[ConfigObject]) -> None:
        """Take *documents* of kind Service for what people describe from now on."""
        self._selecting = self._by_hostname(documents)

    def view(self, documents: Iterable[ConfigObject] | None = None, *, is_trial: bool = False) -> View:
        """
        Return what there is now. What did not change is the same object as in the last view.

        Args:
            documents: Those of kind Service that people describe, if not those that were adopted.
            is_trial: Nothing comes of it: what new services would get is given to nobody.
        """
        selecting = self._selecting if documents is None else self._by_hostname(documents)
        # Asked with each thing that happens in the mesh, and mostly nothing of this has changed.
        if self._last_of == (self.programs, selecting):
            return self._last
        addresses = self._service_addresses.copy() if is_trial else self._service_addresses
        services = self._services(selecting, addresses)
        workloads = {key: self._workload(key[1], program, selecting) for key, program in self.programs.items()}
        proxies = {key: self._proxy(key, program) for key, program in self.programs.items()}
        last = self._last
        found = View(
            _shared(services, last.services), _shared(workloads, last.workloads), _shared(proxies, last.proxies)
        )
        if not is_trial:
            self._last, self._last_of = found, (dict(self.programs), selecting)
        return found

    def _by_hostname(self, documents: Iterable[ConfigObject]) -> dict[str, Selecting]:
        found = map(Selecting.from_document, documents)
        return {self._hostname(item.name, item.namespace): item for item in found}

    def _check(self, registration: Registration) -> None:
        for what, name in (
            ("service", registration.service),
            ("namespace", registration.namespace),
            ("workload", registration.name or "x"),
        ):
            if not NAME.fullmatch(name):
                raise RegistrationRefused(
                    f"{name!r} cannot be the name of a {what}: letters a-z, digits and hyphens, at most 63."
                )
        # A workload's files, its network namespace and what people type have the name alone.
        others = (namespace for namespace, name in self.programs if name == registration.name)
        if (other := next((item for item in others if item != registration.namespace), None)) is not None:
            raise RegistrationRefused(
                f"A workload named {registration.name!r} is running already, in namespace {other!r}: names are unique"
                " in a mesh. Choose another one, or none: then it is given one that is free."
            )
        explicit = self.interception is Interception.EXPLICIT
        # Whoever brings its own addresses has listeners that are open to everybody: tests of data planes do.
        checked = explicit and not registration.outbound_addresses
        wanted = checked and registration.kind is ProxyKind.SIDECAR
        if wanted is not (registration.local_caller is not None):
            mode = f"This mesh runs in {self.interception} mode"
            raise RegistrationRefused(f"{mode}, and the agent of {registration.service!r} in another.")
        if checked and registration.data_plane != WEFT_PROXY:
            raise RegistrationRefused(
                f"In explicit mode only {WEFT_PROXY} can tell a program's calls from everybody else's, not"
                f" {registration.data_plane}."
            )
        for what, numbers in (
            ("ports", [port.number for port in registration.ports]),
            ("host_ports", [*registration.host_ports]),
        ):
            if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
                # A view holds one listener of a name; with two it could not be published.
                listed = ", ".join(map(str, twice))
                raise RegistrationRefused(
                    f"The workload of {registration.service!r} names {listed} twice among its `{what}`: a port is named"
                    " once."
                )
        hostname = self._hostname(registration.service, registration.namespace)
        service = self._services(self._selecting, self._service_addresses).get(hostname)
        for port in registration.ports:
            known = next((item for item in service.ports if item.target == port.number), None) if service else None
            if known is not None and known.protocol is not port.protocol:
                raise RegistrationRefused(
                    f"Port {port.number} of service {registration.service!r} speaks {known.protocol} elsewhere in the"
                    f" mesh; this workload says {port.protocol}."
                )

    def _next_name(self, registration: Registration) -> str:
        stem = f"{registration.service}-{registration.version}".lower()
        stem = re.sub(r"[^a-z0-9-]+", "-", stem)[:58].strip("-")
        number = 0
        taken = {name for _, name in self.programs}
        while f"{stem}-{number}" in taken:
            number += 1
        return f"{stem}-{number}"

    def _hostname(self, name: str, namespace: str) -> str:
        return f"{name}.{namespace}.svc.{self.domain_suffix}"

    def _services(self, selecting: Mapping[str, Selecting], addresses: Addresses) -> dict[str, Service]:
        ports: dict[str, dict[int, ServicePort]] = {}
        names: dict[str, tuple[str, str]] = {}
        for hostname, declared in self._declared.items():
            names[hostname] = (declared.name, declared.namespace)
            ports[hostname] = {port.number: port for port in declared.ports}
        for program in self.programs.values():
            registration = program.registration
            if not _serves(registration):
                continue
            hostname = self._hostname(registration.service, registration.namespace)
            names[hostname] = (registration.service, registration.namespace)
            known = ports.setdefault(hostname, {})
            targets = {port.target for port in known.values()}
            for port in registration.ports:
                if port.number not in targets and port.number not in known:
                    known[port.number] = _service_port(port.number, port.protocol, {})
        for hostname, item in selecting.items():
            names[hostname] = (item.name, item.namespace)
            ports[hostname] = self._ports(item)
        return {
            hostname: Service(
                name=names[hostname][0],
                namespace=names[hostname][1],
                hostname=hostname,
                address=addresses.assign(hostname, in_use=names),
                ports=tuple(sorted(ports[hostname].values(), key=lambda port: port.number)),
                selector=selecting[hostname].selector if hostname in selecting else {"app": names[hostname][0]},
            )
            for hostname in sorted(names)
        }

    def _ports(self, item: Selecting) -> dict[int, ServicePort]:
        """Return the ports of a service by document, by number."""
        spoken = {
            port.number: port.protocol
            for program in self.programs.values()
            if item.selects(program.registration.namespace, _labels(program.registration))
            for port in program.registration.ports
        }
        found = {}
        for port in item.ports:
            target = target_port(port)
            speaks = protocol(port, spoken.get(target))
            name = port.name or f"{speaks.lower()}-{port.port}"
            found[port.port] = ServicePort(name, port.port, speaks, 0 if target == port.port else target)
        return found

    def _workload(self, name: str, program: Program, selecting: Mapping[str, Selecting]) -> Workload:
        registration = program.registration
        hostname = self._hostname(registration.service, registration.namespace)
        # A service by document is served by whom it selects, whatever programs of its name there are.
        serves = [hostname] if _serves(registration) and hostname not in selecting else []
        if not registration.client_only:
            labels = _labels(registration)
            serves += [name for name, item in selecting.items() if item.selects(registration.namespace, labels)]
        return Workload(
            name=name,
            namespace=registration.namespace,
            address=program.address,
            identity=program.identity,
            labels=_labels(registration),
            services=tuple(sorted(serves)),
            ports=tuple(_found(port, program.listening.get(port.number)) for port in registration.ports),
            ready=program.ready,
        )

    def _proxy(self, key: tuple[str, str], program: Program) -> Proxy:
        """Return the proxy of a workload, made once for each registration: what agents report later is no part of it."""
        before = self._last_of[0].get(key) if self._last_of is not None else None
        if before is None or (before.registration, before.address) != (program.registration, program.address):
            return self._made(key[1], program)
        return self._last.proxies[key]

    def _made(self, name: str, program: Program) -> Proxy:
        registration = program.registration
        namespace = registration.namespace
        tproxy = self.interception is Interception.TPROXY
        relayed = tproxy and registration.data_plane == ENVOY
        own_network = tproxy and registration.kind is ProxyKind.SIDECAR
        return Proxy(
            node_id=(
                f"{'router' if registration.kind is ProxyKind.GATEWAY else 'sidecar'}~{program.address}"
                f"~{name}.{namespace}~{namespace}.svc.{self.domain_suffix}"
            ),
            kind=registration.kind,
            workload=name,
            namespace=namespace,
            address=program.address,
            labels=_labels(registration),
            data_plane=registration.data_plane,
            interception=self.interception,
            namespace_path=registration.namespace_path or (self._namespace_path(name) if own_network else ""),
            host_namespace_path="" if registration.outbound_addresses else self._host_namespace_path,
            outside_socket=self._outside_socket(name) if relayed else "",
            published_sockets={item.port: self._published_socket(name, item.port) for item in registration.published}
            if relayed
            else {},
            access_log_path=self._access_log_path(name),
            access_log_cluster=self._access_log_cluster,
            mesh_cidr=self.mesh_cidr,
            service_cidr=self.service_cidr,
            host_ports=registration.host_ports,
            published=registration.published,
            local_caller=registration.local_caller,
            outbound_addresses=registration.outbound_addresses,
        )


def _found(port: WorkloadPort, where: tuple[str, int] | None) -> WorkloadPort:
    return port if where is None else replace(port, listening=where[0], bound=where[1])


def _shared(now: Mapping[K, V], last: Mapping[K, V]) -> dict[K, V]:
    """Return *now* with the objects of *last* in place of equal ones: translation recognises them without a look."""
    return {key: last[key] if key in last and last[key] == value else value for key, value in now.items()}


def _serves(registration: Registration) -> bool:
    """Whether it is an instance of a service: a client is none, and a gateway is called from outside of the mesh."""
    return registration.kind is ProxyKind.SIDECAR and not registration.client_only and bool(registration.ports)


def _labels(registration: Registration) -> dict[str, str]:
    labels = {"app": registration.service, "version": registration.version}
    if registration.kind is ProxyKind.GATEWAY:
        labels.update([GATEWAY_LABEL])
    return labels | dict(registration.labels)


def _service_port(number: int, protocol: Protocol, item: Mapping[str, Any]) -> ServicePort:
    # Istio reads the protocol off the name's prefix; a port without a name gets one that says the same.
    return ServicePort(
        item.get("name") or f"{protocol.lower()}-{number}", number, protocol, int(item.get("target_port") or 0)
    )
