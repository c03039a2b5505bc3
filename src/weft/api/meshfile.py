"""
`weft.yaml`: which programs make up the mesh, and what is applied to it at the start.

`parse_mesh` turns the text into a frozen `Mesh` with all defaults filled in, or says everything that is wrong with it
at once, each mistake with its place. The words are those of docker-compose where the thing is the same. No I/O: whether
files and directories exist is `weft.api.files.load_mesh`'s to see. Reference: docs/reference/weft-yaml.md.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from weft.api.check import Finding, check
from weft.api.names import MAX_LABEL, is_address, label_fault, port_fault, reserved_port_fault, version_fault
from weft.api.nearest import did_you_mean
from weft.api.rules import shared
from weft.api.values import Duration
from weft.api.yaml import Document, Path, read
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.model import MESH_FILE, Origin, Problem, Published, Severity
from weft.model.capability import GRANTABLE, canonical, capability_fault
from weft.model.reserved import NAMES_PORT

READY_TIMEOUT = timedelta(seconds=30)
"""How long a program may take until its ports answer: a JVM on a busy laptop needs twenty seconds."""

MAX_REPLICAS = 100


class Entry(BaseModel):
    """What all parts have in common: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)


def _command(value: Any) -> Any:
    return ("/bin/sh", "-c", value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """Take a whole number for its digits, as docker-compose does; other types are mistakes: 1.10 would become 1.1."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _published(value: Any) -> Published:
    """Read `[address:]host_port:gateway_port`, or a gateway port alone."""
    if isinstance(value, Published):
        return value
    match = _PUBLISH.match(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None:
        raise PydanticCustomError(
            "wanted", "{what}", {"what": 'a place such as "127.0.0.1:8080:80" (address:host port:gateway port)'}
        )
    address = (match["v6"] or match["v4"] or "127.0.0.1").strip("[]")
    return Published(port=int(match["port"]), host_address=address, host_port=int(match["host_port"] or 0))


_PUBLISH = re.compile(
    r"(?:(?:(?P<v6>\[[0-9a-fA-F:.]+\])|(?P<v4>[0-9.]+)):(?=[0-9]+:))?(?:(?P<host_port>[0-9]{1,5}):)?(?P<port>[0-9]{1,5})\Z"
)

Command = Annotated[tuple[str, ...], BeforeValidator(_command)]
Text = Annotated[str, BeforeValidator(_text)]
PublishedPort = Annotated[Published, PlainValidator(_published)]


class ProxySettings(Entry):
    """
    The proxy beside a program. `concurrency` is its number of worker threads. A bare word is the `kind`.

    What a program leaves out is what the mesh says.
    """

    kind: Literal["weft-proxy", "envoy"] = "weft-proxy"
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1

    @model_validator(mode="before")
    @classmethod
    def _bare_kind(cls, value: Any) -> Any:
        if value in (WEFT_PROXY, ENVOY):
            return {"kind": value}
        if not isinstance(value, dict | ProxySettings):
            raise PydanticCustomError("wanted", "{what}", {"what": "`weft-proxy`, `envoy`, or a mapping with `kind`"})
        return value

    def over(self, others: ProxySettings) -> ProxySettings:
        """Return what *others* say where these say nothing."""
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return others.model_copy(update=said)


class Addresses(Entry):
    """Address ranges of the mesh, where the defaults meet a route of the host. Empty lets weft choose."""

    workloads: str = ""
    services: str = ""


class Port(Entry):
    """A port of a program's service. `target_port` is what the program binds, 0 stands for `number`."""

    number: int
    protocol: Literal["HTTP", "HTTP2", "GRPC", "HTTPS", "TLS", "TCP"] = "HTTP"
    name: str = ""
    target_port: int = 0

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"number": value}
        if not isinstance(value, dict):
            raise PydanticCustomError("wanted", "{what}", {"what": "a port such as 9080, or a mapping with `number`"})
        return value


class Ready(Entry):
    """When a program counts as ready: its ports answer. It has failed if they do not within `timeout`."""

    timeout: Duration = READY_TIMEOUT


class Program(Entry):
    """
    One program and its instances, `<name>-0`, `<name>-1`, ...

    `service` is the program's name and `service_account` the service's where nothing is said. `command` given as one
    string is run by `/bin/sh -c`. `depends_on` names programs that must be ready before this one is started.
    """

    command: Command
    service: str = ""
    version: Text = "v1"
    ports: tuple[Port, ...] = ()
    directory: str = "."
    environment: Mapping[str, Text] = Field(default_factory=dict)
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    depends_on: tuple[str, ...] = ()
    restart: Literal["never", "on-failure", "always"] = "on-failure"
    host_ports: tuple[int, ...] = ()
    labels: Mapping[str, Text] = Field(default_factory=dict)
    service_account: str = ""
    capabilities: tuple[str, ...] = ()
    ready: Ready = Ready()
    proxy: ProxySettings = ProxySettings()


class GatewayProgram(Entry):
    """A proxy at the border of the mesh. `labels` are what a Gateway's `selector` looks for."""

    labels: Mapping[str, Text] = Field(default_factory=dict)
    publish: tuple[PublishedPort, ...] = ()
    service_account: str = ""
    proxy: ProxySettings = ProxySettings()


class Mesh(Entry):
    """
    The whole file; `mesh` is never empty once `parse_mesh` has returned it.

    `interception` says how programs' traffic reaches their proxies: caught in namespaces (`tproxy`), by addresses that
    programs are told (`explicit`), or the first where it is permitted (`auto`).

    `follow` names a directory whose files are in force as they are, and as they change; empty: none.

    `notes` is shown when all programs are ready; in it `{ingressgateway:8080}` stands for the host's port at which port
    8080 of that gateway is published.
    """

    mesh: str = ""
    namespace: str = "default"
    trust_domain: str = "cluster.local"
    interception: Literal["auto", "tproxy", "explicit"] = "auto"
    proxy: ProxySettings = ProxySettings()
    addresses: Addresses = Addresses()
    programs: Mapping[str, Program] = Field(default_factory=dict)
    gateways: Mapping[str, GatewayProgram] = Field(default_factory=dict)
    apply: tuple[str, ...] = ()
    follow: str = ""
    notes: str = ""

    def proxy_of(self, entry: Program | GatewayProgram) -> ProxySettings:
        """Return the settings of the proxy beside *entry*."""
        return entry.proxy.over(self.proxy)

    def services(self) -> list[dict[str, Any]]:
        """Return the services that the programs make up, as the control plane is told of them at its boot."""
        found: dict[str, dict[str, Any]] = {}
        for program in self.programs.values():
            if not program.ports:
                continue
            service = found.setdefault(
                program.service, {"name": program.service, "namespace": self.namespace, "ports": [], "versions": []}
            )
            known = {port["number"] for port in service["ports"]}
            for port in program.ports:
                if port.number not in known:
                    service["ports"].append(port.model_dump())
            if program.version not in service["versions"]:
                service["versions"].append(program.version)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class MeshResult:
    """
    What the text says.

    Attributes:
        mesh: None if there is any error.
        problems: All mistakes and warnings, in the order of the text.
        document: For the places of what is found wrong later (a file of `apply` that does not exist).
    """

    mesh: Mesh | None
    problems: tuple[Problem, ...]
    document: Document | None = field(default=None, repr=False)


def parse_mesh(file: str, text: str, *, directory_name: str, interception: str | None = None) -> MeshResult:
    """
    Return the mesh that *text* describes.

    Args:
        directory_name: Of the file's directory: the default name.
        interception: The mode, if not what the text says.
    """
    documents, problems = read(file, text)
    if problems and not documents:
        return MeshResult(None, tuple(problems))
    if len(documents) > 1:
        origin = documents[1].locate(())
        message = f"{MESH_FILE} is one document, and a second begins here."
        second = Problem(origin, "(document)", message, "Apply YAML under `apply`.")
        return MeshResult(None, (*problems, second))
    if not documents:
        message = "the file is empty."
        return MeshResult(None, (Problem(Origin(file, 1), "(document)", message, "Describe `programs`."),))
    document = documents[0]
    checked = check(Mesh, document.value, document, kind=MESH_FILE)
    found = [*problems, *checked.problems]
    described = checked.value
    if described is not None:
        if interception is not None:
            described = described.model_copy(update={"interception": interception})
        found += checked.admit(_findings(described), document, ())
    found.sort(key=lambda problem: problem.origin)
    if described is None or any(problem.severity is Severity.ERROR for problem in found):
        return MeshResult(None, tuple(found), document)
    return MeshResult(_completed(described, directory_name), tuple(found), document)


def _completed(mesh: Mesh, directory_name: str) -> Mesh:
    programs = {}
    for name, program in mesh.programs.items():
        service = program.service or name
        account = program.service_account or service
        capabilities = tuple(map(canonical, program.capabilities))
        programs[name] = program.model_copy(
            update={"service": service, "service_account": account, "capabilities": capabilities}
        )
    gateways = {
        name: gateway.model_copy(
            update={"labels": gateway.labels or {"istio": name}, "service_account": gateway.service_account or name}
        )
        for name, gateway in mesh.gateways.items()
    }
    name = mesh.mesh or mesh_name(directory_name)
    return mesh.model_copy(update={"mesh": name, "programs": programs, "gateways": gateways})


def mesh_name(directory_name: str) -> str:
    """Return *directory_name* made into a name: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", directory_name.lower()).strip("-")
    return name[:63].strip("-") or "mesh"


# What must hold between the parts


_MODE: tuple[Path, ...] = (("interception",),)
"""On which it hangs what a program's own network is."""


def _findings(mesh: Mesh) -> Iterator[Finding]:
    for field_name, value, what in (
        ("mesh", mesh.mesh, "a mesh's name"),
        ("namespace", mesh.namespace, "a namespace"),
    ):
        if (value or field_name == "namespace") and (fault := label_fault(value, what)) is not None:
            yield Finding((field_name,), fault, code="bad-name", at_value=True)
    if not re.fullmatch(r"[a-z0-9._-]{1,255}", mesh.trust_domain):  # SPIFFE-ID 2.1
        message = f"a trust domain is lower-case letters, digits, `.`, `-`, `_`, not `{mesh.trust_domain}`."
        yield Finding(("trust_domain",), message, code="bad-name", at_value=True)
    yield from _addresses(mesh.addresses)
    for name, program in mesh.programs.items():
        yield from _program(("programs", name), name, program, mesh)
    yield from _cycles(mesh.programs)
    yield from _services(mesh.programs)
    for name, gateway in mesh.gateways.items():
        yield from _gateway(("gateways", name), name, gateway, mesh)
    yield from _publish_once(mesh.gateways)
    yield from _notes(mesh)
    seen: dict[str, int] = {}
    for index, entry in enumerate(mesh.apply):
        if entry in seen:
            message = f"`{entry}` stands already at {{first}}."
            first = ("apply", seen[entry])
            yield Finding(("apply", index), message, "Keep one of them.", "duplicate-file", at_value=True, first=first)
        seen.setdefault(entry, index)


def _addresses(addresses: Addresses) -> Iterator[Finding]:
    networks: dict[str, ipaddress.IPv4Network] = {}
    for name in ("workloads", "services"):
        text = getattr(addresses, name)
        if not text:
            continue
        try:
            networks[name] = ipaddress.IPv4Network(text)
        except ValueError:
            message = f"`{text}` is no range of IPv4 addresses."
            yield Finding(("addresses", name), message, "Write `10.244.0.0/16`, say.", "bad-range", at_value=True)
            continue
        if networks[name].prefixlen > 24:
            message = f"`{text}` holds too few addresses: a range is /24 or wider."
            yield Finding(("addresses", name), message, code="bad-range", at_value=True)
    if len(networks) == 2 and networks["workloads"].overlaps(networks["services"]):
        message = "the ranges of workloads and services overlap."
        yield Finding(("addresses", "services"), message, "Give them two ranges.", "bad-range", at_value=True)


def _program(path: Path, name: str, program: Program, mesh: Mesh) -> Iterator[Finding]:
    if (fault := label_fault(name, "a program's name")) is not None:
        yield Finding(path, fault, code="bad-name", concerns=())
    else:
        yield from _instances(path, name, max(program.replicas, 1))
    if program.service and (fault := label_fault(program.service, "a service's name")) is not None:
        yield Finding((*path, "service"), fault, code="bad-name", at_value=True)
    if (fault := version_fault(program.version)) is not None:
        yield Finding((*path, "version"), fault, code="bad-name", at_value=True)
    if program.service_account and (fault := label_fault(program.service_account, "a service account")) is not None:
        yield Finding((*path, "service_account"), fault, code="bad-name", at_value=True)
    if not program.command or not program.command[-1].strip():
        message = "`command` is empty."
        yield Finding((*path, "command"), message, "Write `[python3, app.py]`, say.", "missing-field", at_value=True)
    explicit = mesh.interception == "explicit"
    yield from _ports((*path, "ports"), program.ports, explicit=explicit)
    yield from _host_ports(path, program, explicit=explicit)
    for index, capability in enumerate(program.capabilities):
        place = (*path, "capabilities", index)
        if (fault := capability_fault(capability)) is not None:
            remedy = did_you_mean(canonical(capability), GRANTABLE)
            yield Finding(place, fault, remedy, "bad-capability", at_value=True)
        elif canonical(capability) in map(canonical, program.capabilities[:index]):
            yield Finding(
                place, f"`{capability}` is in this list already.", "Keep one.", "duplicate-entry", at_value=True
            )
    for key in program.environment:
        if not key or "=" in key or "\0" in key:
            message = f"a variable's name holds no `=`, and `{key}` does." if key else "a variable's name is empty."
            yield Finding((*path, "environment", key), message, code="bad-name")
    yield from shared.labels((*path, "labels"), program.labels)
    for label, meaning in (("app", "service"), ("version", "version")):
        if label in program.labels:
            message = f"the label `{label}` is what `{meaning}` says."
            yield Finding((*path, "labels", label), message, f"Write `{meaning}` and leave the label out.", "conflict")
    for index, other in enumerate(program.depends_on):
        place = (*path, "depends_on", index)
        if other == name:
            yield Finding(place, f"`{name}` cannot wait for itself.", "Remove it.", "dependency-cycle", at_value=True)
        elif other not in mesh.programs:
            remedy = did_you_mean(other, mesh.programs)
            message, hinges = f"no program is called `{other}`.", (("programs", other),)
            yield Finding(place, message, remedy, "unknown-program", at_value=True, hinges=hinges)
        elif mesh.programs[other].replicas == 0:
            message = f"`{other}` has no replicas, so it never becomes ready."
            yield Finding(place, message, "Remove it, or give it one.", "dependency-cycle", at_value=True)
        elif other in program.depends_on[:index]:
            yield Finding(place, f"`{other}` is in this list already.", "Keep one.", "duplicate-entry", at_value=True)


def _instances(path: Path, name: str, count: int) -> Iterator[Finding]:
    """Each instance has a name of its own, which is a label too."""
    last = f"{name}-{count - 1}"
    if len(last) > MAX_LABEL:
        message = f"its instance `{last}` would have a name of {len(last)} letters, of at most {MAX_LABEL}."
        remedy = f"Choose a name of at most {MAX_LABEL - len(last) + len(name)} letters."
        yield Finding(path, message, remedy, "bad-name", concerns=())


def _ports(path: Path, ports: Sequence[Port], *, explicit: bool) -> Iterator[Finding]:
    numbers: dict[int, int] = {}
    bound: dict[int, int] = {}
    names: dict[str, int] = {}
    for index, port in enumerate(ports):
        for name in ("number", "target_port"):
            value = getattr(port, name)
            if (name == "number" or value) and (fault := port_fault(value)) is not None:
                yield Finding((*path, index, name), fault, code="bad-port", at_value=True)
            elif (fault := reserved_port_fault(value, explicit=explicit)) is not None:
                place = (*path, index, name)
                yield Finding(place, fault, "Choose another.", "bad-port", at_value=True, hinges=_MODE)
        if port.number in numbers:
            message = f"port {port.number} stands already at {{first}}."
            first = (*path, numbers[port.number])
            yield Finding((*path, index), message, "Keep one of them.", "duplicate-port", at_value=True, first=first)
        elif (own := port.target_port or port.number) in bound:
            # The proxy has one listener for each port that the program binds, and it speaks one protocol.
            other = ports[bound[own]].number
            message = f"the program's port {own} is port {other} of the service already, at {{first}}."
            remedy = "Keep one of them, or have the program listen on another for this one (`target_port`)."
            place = (*path, index, "target_port") if port.target_port else (*path, index)
            first = (*path, bound[own])
            yield Finding(place, message, remedy, "duplicate-port", at_value=True, first=first)
        numbers.setdefault(port.number, index)
        bound.setdefault(port.target_port or port.number, index)
        if not port.name:
            continue
        if (fault := label_fault(port.name, "a port's name")) is not None:
            yield Finding((*path, index, "name"), fault, code="bad-name", at_value=True)
        if port.name in names:
            message = f"the port name `{port.name}` is already used at {{first}}."
            first = (*path, names[port.name], "name")
            remedy = "Give each port its own."
            yield Finding((*path, index, "name"), message, remedy, "duplicate-port", at_value=True, first=first)
        names.setdefault(port.name, index)


def _host_ports(path: Path, program: Program, *, explicit: bool) -> Iterator[Finding]:
    """In explicit mode the program's localhost is the host's, and nothing is in anything's way."""
    own = {port.target_port or port.number: index for index, port in reversed([*enumerate(program.ports)])}
    for index, number in enumerate(program.host_ports):
        place = (*path, "host_ports", index)
        if (fault := port_fault(number)) is not None:
            yield Finding(place, fault, code="bad-port", at_value=True)
        elif not explicit and (fault := reserved_port_fault(number)) is not None:
            remedy = "Leave it out: the host's resolvers are asked." if number == NAMES_PORT else "Choose another."
            yield Finding(place, fault, remedy, "bad-port", at_value=True, hinges=_MODE)
        elif not explicit and number in own:
            message = f"port {number} is the one on which the program itself listens, at {{first}}."
            remedy = "Leave one of them out, or have the program listen on another (`target_port`)."
            first = (*path, "ports", own[number])
            yield Finding(place, message, remedy, "conflict", at_value=True, first=first, hinges=_MODE)
        elif number in program.host_ports[:index]:
            message = f"port {number} is in this list already."
            yield Finding(place, message, "Keep one of them.", "duplicate-port", at_value=True)


def _cycles(programs: Mapping[str, Program]) -> Iterator[Finding]:
    """Name each circle of programs that wait for one another once, where it is closed."""
    done: set[str] = set()
    for start in programs:
        if start in done:
            continue
        trail: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, index = stack.pop()
            if index == 0:
                trail.append(name)
            waits = programs[name].depends_on
            if index >= len(waits):
                done.add(trail.pop())
                continue
            stack.append((name, index + 1))
            other = waits[index]
            if other in trail and other != name:
                circle = " -> ".join([*trail[trail.index(other) :], other])
                message = f"these programs wait for one another: {circle}."
                place = ("programs", name, "depends_on", index)
                yield Finding(place, message, "Break the circle.", "dependency-cycle", at_value=True)
            elif other in programs and other not in done and other not in trail:
                stack.append((other, 0))


def _services(programs: Mapping[str, Program]) -> Iterator[Finding]:
    """Programs of one service are interchangeable, so they say the same of a port."""
    known: dict[tuple[str, int], tuple[str, Port]] = {}
    names: dict[tuple[str, str], tuple[str, int]] = {}
    for name, program in programs.items():
        service = program.service or name
        for index, port in enumerate(program.ports):
            place = ("programs", name, "ports", index)
            first, other = known.setdefault((service, port.number), (name, port))
            if first != name and other.protocol != port.protocol:
                message = (
                    f"port {port.number} of service `{service}` speaks {port.protocol} here and {other.protocol} in"
                    f" `{first}`."
                )
                yield Finding(place, message, "Say the same in both.", "conflict", at_value=True)
            elif first != name and other.target_port != port.target_port:
                message = (
                    f"port {port.number} of service `{service}` leads to {port.target_port or port.number} here and to"
                    f" {other.target_port or other.number} in `{first}`."
                )
                yield Finding(place, message, "Say the same in both.", "conflict", at_value=True)
            if port.name:
                first, number = names.setdefault((service, port.name), (name, port.number))
                if number != port.number and first != name:
                    message = f"the port name `{port.name}` of service `{service}` is port {number} in `{first}`."
                    yield Finding((*place, "name"), message, "Say the same in both.", "conflict", at_value=True)


def _gateway(path: Path, name: str, gateway: GatewayProgram, mesh: Mesh) -> Iterator[Finding]:
    if (fault := label_fault(name, "a gateway's name")) is not None:
        yield Finding(path, fault, code="bad-name", concerns=())
    else:
        yield from _instances(path, name, 1)
    services = {program.service or other: other for other, program in mesh.programs.items()}
    if name in mesh.programs or name in services:
        message = f"the program `{name if name in mesh.programs else services[name]}` goes by this name already."
        yield Finding(path, message, "Give the gateway another name.", "conflict", concerns=())
    yield from shared.labels((*path, "labels"), gateway.labels)
    if gateway.service_account and (fault := label_fault(gateway.service_account, "a service account")) is not None:
        yield Finding((*path, "service_account"), fault, code="bad-name", at_value=True)
    for index, published in enumerate(gateway.publish):
        place = (*path, "publish", index)
        if not is_address(published.host_address):
            message = f"`{published.host_address}` is no address of this machine."
            yield Finding(place, message, "Write `127.0.0.1`, say.", "bad-address", at_value=True)
        if (fault := port_fault(published.port)) is not None:
            yield Finding(place, fault, code="bad-port", at_value=True)
        if published.host_port and (fault := port_fault(published.host_port)) is not None:
            yield Finding(place, fault, "0 lets the kernel choose.", "bad-port", at_value=True)


NOTE_PORT = re.compile(r"\{(?P<gateway>[a-z0-9-]+):(?P<port>[0-9]+)\}")
"""What stands for a published port in `notes`."""


def _notes(mesh: Mesh) -> Iterator[Finding]:
    published = {(name, item.port) for name, gateway in mesh.gateways.items() for item in gateway.publish}
    for match in NOTE_PORT.finditer(mesh.notes):
        if (match["gateway"], int(match["port"])) not in published:
            message = f"no gateway `{match['gateway']}` publishes port {match['port']}."
            remedy, hinges = "Publish it, or write something else.", (("gateways", match["gateway"]),)
            yield Finding(("notes",), message, remedy, "unknown-port", at_value=True, hinges=hinges)


def _publish_once(gateways: Mapping[str, GatewayProgram]) -> Iterator[Finding]:
    taken: dict[tuple[str, int], str] = {}
    for name, gateway in gateways.items():
        for index, published in enumerate(gateway.publish):
            where = (published.host_address, published.host_port)
            if published.host_port and where in taken:
                message = (
                    f"port {published.host_port} of {published.host_address} is already published by `{taken[where]}`."
                )
                path = ("gateways", name, "publish", index)
                yield Finding(path, message, "Choose another, or 0.", "duplicate-port", at_value=True)
            taken.setdefault(where, name)
