"""Rules for Gateway."""

from __future__ import annotations

from collections.abc import Iterator

from weft.api.check import Finding
from weft.api.names import host_fault, is_address, label_fault, port_fault
from weft.api.nearest import did_you_mean
from weft.api.networking import Gateway, Server
from weft.api.rules import shared
from weft.api.yaml import Path
from weft.model import Severity

PROTOCOLS = ("HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO", "REDIS", "MYSQL")
"""What a server's port may speak, in any case, by Istio's names."""


def findings(spec: Gateway, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    if not spec.servers:
        message = "a Gateway needs at least one entry in `servers`."
        yield Finding((), message, code="missing-field", concerns=("servers",))
    yield from shared.labels(("selector",), spec.selector)
    if not spec.selector:
        message = "without `selector` this holds for every gateway of the mesh."
        remedy = "Add `selector: {istio: ingressgateway}`, say."
        yield Finding((), message, remedy, "no-selector", Severity.WARNING, concerns=("selector",))
    seen: dict[str, int] = {}
    for index, server in enumerate(spec.servers):
        path = ("servers", index)
        yield from _server(path, server)
        if server.port.name in seen:
            message = f"the port name `{server.port.name}` is already used at {{first}}."
            remedy = "Give each server's port its own name."
            first = ("servers", seen[server.port.name], "port", "name")
            yield Finding((*path, "port", "name"), message, remedy, "duplicate-port", at_value=True, first=first)
        seen.setdefault(server.port.name, index)


def _server(path: Path, server: Server) -> Iterator[Finding]:
    if not server.hosts:
        yield Finding((*path, "hosts"), "a server needs at least one host.", 'Write `hosts: ["*"]` for all.')
    for index, host in enumerate(server.hosts):
        yield from _host((*path, "hosts", index), host)
    port = server.port
    if (fault := port_fault(port.number)) is not None:
        yield Finding((*path, "port", "number"), fault, code="bad-port", at_value=True)
    if not port.name:
        yield Finding((*path, "port", "name"), "a port's name is empty.", 'Write "http", say.', "missing-field")
    if port.protocol.upper() not in PROTOCOLS:
        remedy = did_you_mean(port.protocol, PROTOCOLS)
        message = f"`{port.protocol}` is no protocol of a gateway."
        yield Finding((*path, "port", "protocol"), message, remedy, "unknown-value", at_value=True)
    if port.target_port:
        yield Finding((*path, "port", "targetPort"), "`targetPort` has no effect in a Gateway.", "Remove it.")
    secure = port.protocol.upper() in ("HTTPS", "TLS")
    if secure and server.tls is None:
        message = f"a server with protocol {port.protocol} needs `tls`."
        yield Finding(path, message, code="missing-field", concerns=("tls",))


def _host(path: Path, entry: str) -> Iterator[Finding]:
    namespace, slash, host = entry.rpartition("/")
    if slash and namespace not in ("*", ".") and (fault := label_fault(namespace, "a namespace")) is not None:
        yield Finding(path, fault, "Write `namespace/host`, `*/host` or `./host`.", "bad-host", at_value=True)
        return
    if is_address(host) or host == "*":
        return
    if (fault := host_fault(host)) is not None:
        yield Finding(path, fault, code="bad-host", at_value=True)
    elif "." not in host:
        message = f"a gateway's host is a full name, not `{host}`."
        yield Finding(path, message, "Write `*` or a name with a dot.", "bad-host", at_value=True)
    elif "*" in host and not host.startswith("*."):
        message = f"a gateway's wildcard is a whole label, not as in `{host}`."
        yield Finding(path, message, f"Write `*.{host.partition('.')[2]}`.", "bad-host", at_value=True)
