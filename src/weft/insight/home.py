"""
What becomes of a call before any rule looks at it: what the mesh does not catch, and what the caller's own proxy
refuses or cannot carry. Each with the reason and what to do, for people. Pure.

Called by `why.explain`; tests/e2e/test_why.py makes the calls and compares.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from weft.insight.decision import Decision
from weft.insight.mutual_tls import Refusal
from weft.model import loopback
from weft.model.reserved import NAMES_PORT
from weft.translate import names

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
"""What NO_PROXY holds in explicit mode (`weft.agent.explicit`)."""

Json = Mapping[str, Any]


def dialled(address: str) -> str:
    """Return where the kernel connects to that is told *address*: the unspecified address means the loopback."""
    found = ipaddress.ip_address(address)
    found = getattr(found, "ipv4_mapped", None) or found
    if found.is_unspecified:
        return "127.0.0.1" if found.version == 4 else "::1"
    return str(found)


def is_loopback(address: str) -> bool:
    """Whether *address* is on the loopback, of the program or of the host."""
    return ipaddress.ip_address(address).is_loopback


def granted(resources: Sequence[tuple[str, str, bytes]], port: int) -> bool:
    """Whether the program may call *port* of the host's loopback on its own (`host_ports`)."""
    return any(name == names.host_listener(port) for type_url, name, _ in resources if type_url.endswith(".Listener"))


def not_caught(source: Json, host: str, address: str, port: int, *, granted: bool) -> Refusal | None:
    """
    Return why no proxy sees a call of the program *source* in namespaces of its own, None if its proxy does.

    Args:
        host: As the URL has it.
        address: Where that leads, see `dialled`.
        granted: The port is one of the program's `host_ports`.
    """
    name = source["workload"]
    if port == NAMES_PORT:  # caught before anything else, whatever the address (docs/concepts/interception.md)
        return Refusal(
            f"The mesh's DNS server takes every TCP connection to port {NAMES_PORT}, whatever its address, and does not"
            " speak HTTP.",
            "Let the server listen on another port.",
        )
    if is_loopback(address):
        if granted:
            return None
        return Refusal(
            f"The mesh does not see this: {_called(host, address)} is the loopback of {name}'s own network, so the call"
            f" reaches {_listener(source, port)}.",
            f"If port {port} of this machine is meant, say `host_ports: [{port}]` in weft.yaml, or"
            f" `weft run --host-port {port}`.",
        )
    if address in (source["address"], source.get("address6")):
        return Refusal(
            f"The mesh does not see this: {_called(host, address)} is {name}'s own address, so the call reaches"
            f" {_listener(source, port)}.",
            f"To go through the mesh, call the service by its name: http://{source['service']}:{port}/."
            if port in (item["number"] for item in source["ports"])
            else "To go through the mesh, call a service by its name.",
        )
    return None


def no_such_name(host: str, remedy: str) -> Refusal:
    """Return why a program in namespaces of its own makes no call of *host*, a name that only the mesh could have."""
    return Refusal(
        f"No call is made: no service of the mesh is called {host}, and nobody else is asked for names under"
        " svc.cluster.local, so the program is told that there is no such host.",
        remedy,
    )


def not_by_proxy(source: Json, scheme: str, host: str, address: str) -> Refusal | None:
    """
    Return why a program of explicit mode does not ask its HTTP proxy for *host*, which is no service's address.

    Args:
        address: The address that *host* is; empty if it is a name.
    """
    if host in OWN_NAMES:
        return Refusal(
            f"The mesh does not see this: NO_PROXY names {host}, so the program calls this machine's own loopback.",
            "To go through the mesh, call a service by its name.",
        )
    if scheme == "https":
        return Refusal(
            "The mesh does not see this: in explicit mode programs make https connections by themselves"
            + ("." if address else ", and ask this machine's resolver for the name."),
            "To call a service of the mesh use http://; the proxy adds mutual TLS itself.",
        )
    return None


def _called(host: str, address: str) -> str:
    return host if host == address else f"{host} ({address})"


def _listener(source: Json, port: int) -> str:
    if any(item["number"] == port and item["listening"] for item in source["ports"]):
        return f"{source['workload']} itself"
    return "what that program has started itself, if anything listens there"


def refused_by_own_proxy(
    decision: Decision,
    *,
    scheme: str,
    authority: str,
    address: str,
    port: int,
    service: Json | None,
    is_gateway: bool,
    only_services: bool,
) -> Refusal | None:
    """
    Return why the caller's own proxy, or the gateway that is called, lets a call go nowhere; None if it goes on.

    Args:
        address, port: Where the call goes.
        service: Whose address that is.
        only_services: The address is of the range that services have, so nobody is there but services.
    """
    whose = f"{service['name']} port {port}" if service is not None else f"{address}:{port}"
    tls = scheme == "https"
    nowhere = bool(decision.shares) and all(share.cluster == names.BLACK_HOLE for share in decision.shares)
    if decision.outcome == "refused" and not tls:
        return Refusal(
            f"Port {port} takes TLS only, and http:// is plain text: the connection is closed.", "Call https://."
        )
    if (decision.outcome == "refused" and decision.status is not None) or (nowhere and tls and service is not None):
        how = "The connection is refused" if nowhere else "The proxy takes it for a broken request and answers 400"
        remedy = f"Call it by http://{authority}/"
        return Refusal(
            f"{how}: {whose} speaks HTTP, and https:// begins with TLS.",
            f"{remedy}." if is_gateway else f"{remedy}; the proxy adds mutual TLS itself.",
        )
    if not only_services:
        return None
    if service is None:
        return Refusal(
            f"The proxy refuses it: {address} is of the range of the mesh's services, and no service has it.",
            "Call a service by its name; names get their addresses from the mesh.",
        )
    return Refusal(
        f"No rule takes the host {authority!r}, so the proxy passes the request on to where it was going, and nobody is at"
        f" a service's address: it answers 503.",
        f"Send the host {service['name']!r}, or apply a VirtualService for that host.",
    )


def http_to_bytes(source: Json, service: Json, address: str, port: int) -> Refusal:
    """Return why a request of HTTP does not come to a *port* of TCP from a program of explicit mode, which bytes get to."""
    variable = loopback.service_variable(service["name"])
    at = f"${variable} ({address})" if service["namespace"] == source["namespace"] else address
    return Refusal(
        f"http:// does not get there: port {port} of {service['name']} speaks TCP. By HTTP_PROXY {source['workload']}'s proxy"
        f" answers 503, for it has no rule for that port; at {at} it resets what begins with a request of HTTP, as a web page"
        " could send it.",
        "If that port speaks HTTP, declare it so: `protocol: HTTP` in the `ports` of its program, or `--port NUMBER`."
        f" If not, call it at {at} port {port} by what it speaks; what follows is about that.",
    )


def nobody_there(workloads: Sequence[Json], address: str, port: int) -> Refusal | None:
    """Return why a call of the workload's address *address* meets nobody, None if a proxy stands there."""
    found = next((item for item in workloads if item["address"] == address), None)
    if found is None:
        return Refusal(
            f"Nobody is there: no workload of the mesh has the address {address}.",
            "Call a service by its name; `weft ps` shows the addresses that there are.",
        )
    ports = [item["number"] for item in found["ports"]]
    if port in ports:
        return None
    return Refusal(
        f"Nobody is there: {found['workload']} has no port {port}; its ports are {', '.join(map(str, sorted(ports))) or 'none'}.",
        "Declare the port in weft.yaml if the program listens there.",
    )
