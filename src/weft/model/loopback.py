"""
The addresses of a mesh in explicit mode: all of them on the loopback of the host, where 127.0.0.0/8 needs no set-up.

A mesh has a range of its own, 127.M.0.0/16. Workload W of it has 127.M.W.0/24, in which

    127.M.W.1      is its proxy: peers reach the workload's ports there, and its own program the HTTP proxy
    127.M.W.254    is for the program, which is told so as HOST
    127.M.W.S      is service S (240.240.0.S) as this workload's program calls it

Each program calls a service at an address of its own, because the address is what tells its proxy, and so its
identity, from those of others. Pure arithmetic: control plane, agent and `weft why` come to the same result.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

from weft.model.reserved import OUTBOUND_PORT

LOOPBACK = IPv4Network("127.0.0.0/8")

RANGE_PREFIX = 16
"""Of a mesh's range. 250 workloads with 250 services each: explicit mode is for one machine."""

WORKLOAD_ADDRESSES = 256
"""How many addresses each workload has."""

PROGRAM_OFFSET = 254

SERVICE_CIDR = "240.240.0.0/24"
"""Of service addresses in explicit mode: their last byte is the last byte of the address that is called."""

FORWARD_PROXY_PORT = OUTBOUND_PORT
"""Of the HTTP proxy at the workload's address; the port that catches connections where there is interception."""


def service_address(workload_address: str, service_address: str) -> str:
    """Return where the program of a workload calls the service with that virtual address."""
    return _beside(workload_address, int(IPv4Address(service_address)) % WORKLOAD_ADDRESSES)


def program_address(workload_address: str) -> str:
    """Return the address that the program of a workload is told to bind."""
    return _beside(workload_address, PROGRAM_OFFSET)


def service_variable(name: str) -> str:
    """Return the variable in which a program is told the address of the service *name* of its namespace, as Kubernetes names it."""
    return f"{re.sub(r'[^A-Z0-9]', '_', name.upper())}_SERVICE_HOST"


def _beside(workload_address: str, offset: int) -> str:
    address = int(IPv4Address(workload_address))
    return str(IPv4Address(address - address % WORKLOAD_ADDRESSES + offset))
