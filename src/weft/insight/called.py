"""
Which service a program has called, by a name or an address of it, and whether that has the port. Pure.

Called for a request that has been (`happened.py`) and for one that somebody thinks of (`why.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from weft.insight.unknown_host import names_of
from weft.model import Protocol, loopback
from weft.telemetry import Configuration, Record
from weft.translate import names

Json = Mapping[str, Any]

HTTP_PORT = 80
"""Of a URL that names none: that is what comes to the program's HTTP proxy, where https is only tunnelled (CONNECT)."""


@dataclass(frozen=True, slots=True)
class Called:
    """
    A port of a service, as a program has called it.

    Attributes:
        service: As that program may call it.
        ports: What the service has now: number -> protocol.
        was_there: Whether the configuration of then had that port.
    """

    service: str
    number: int
    ports: Mapping[int, Protocol]
    was_there: bool

    @property
    def state(self) -> str:
        """`lacking`: there is no such port; `late`: there is by now, and was not then; `there`."""
        if self.number not in self.ports:
            return "lacking"
        return "there" if self.was_there else "late"

    @property
    def speaks_http(self) -> bool:
        """Whether that port does."""
        return self.number in self.ports and self.ports[self.number].is_http


def is_explicit(address: str) -> bool:
    """Whether the workload at *address* is one of explicit mode, whose addresses are all on the host's loopback."""
    try:
        return IPv4Address(address) in loopback.LOOPBACK
    except AddressValueError:
        return False


def address_for(workload_address: str, service: Json) -> str:
    """Return the address at which the program of the workload at that address calls *service*; empty if it has none."""
    address: str = service["address"]
    if address and is_explicit(workload_address):
        return loopback.service_address(workload_address, address)
    return address


def resolve(host: str, namespace: str, workload_address: str, services: Sequence[Json]) -> Json | None:
    """
    Return the service that *host* means to a program, by its names and addresses.

    Args:
        namespace, workload_address: Of the program's workload.
        services: What `GET /v1/services` says.
    """
    wanted = host.rstrip(".").lower()
    for service in services:
        if wanted in names_of(service, namespace):
            return service
        if wanted and wanted in (service["address"], address_for(workload_address, service)):
            return service
    return None


def called(record: Record, services: Sequence[Json], configurations: Iterable[Configuration]) -> Called | None:
    """
    Return what the program beside a proxy has called; None if that is no service, or no proxy was asked.

    Args:
        services: What `GET /v1/services` says.
        configurations: Those that the proxy may have had then; looked at only if it was a service.
    """
    if record.direction != "outbound" or record.log == "lookups":
        return None
    _, namespace = record.owner
    address, _, number = record.listener.rpartition(":")
    own = record.address
    if address == own and is_explicit(own) and number == str(loopback.FORWARD_PROXY_PORT):
        # The HTTP proxy is asked for a host; anything else is called at the address.
        host, colon, number = record.authority.rpartition(":")
        if not colon or not number.isdigit():
            host, number = record.authority, str(HTTP_PORT)
        address = host
    if not number.isdigit() or (service := resolve(address, namespace, own, services)) is None:
        return None
    cluster = names.outbound_cluster(service["hostname"], int(number))
    return Called(
        service=service["name"] if service["namespace"] == namespace else f"{service['name']}.{service['namespace']}",
        number=int(number),
        ports={port["number"]: Protocol(port["protocol"]) for port in service["ports"]},
        was_there=any(
            name == cluster and type_url.endswith(".Cluster")
            for configuration in configurations
            for type_url, name, _ in configuration.resources
        ),
    )
