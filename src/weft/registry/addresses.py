"""Addresses for names: the same name gets the same address again, a new name the lowest free one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from copy import copy

from weft.errors import WeftError
from weft.model import MESH_IPV6_CIDR


class Addresses:
    """
    A pool over *cidr*.

    Args:
        known: Name -> address from earlier; kept for their names as long as there are others to give.
        reserved: Addresses that are never given.
        spacing: How many addresses each name has; what is returned is the second of them.
    """

    def __init__(self, cidr: str, known: Mapping[str, str], *, reserved: Iterable[str] = (), spacing: int = 1) -> None:
        self._network = ipaddress.IPv4Network(cidr)
        self._spacing = spacing
        self._reserved = {ipaddress.IPv4Address(address) for address in reserved}
        # An address of another range (the range changes when the host gains a route into it) is forgotten.
        self._by_name = {
            name: address
            for name, text in known.items()
            if (address := ipaddress.IPv4Address(text)) in self._network
            and address not in self._reserved
            and (int(address) - int(self._network.network_address) - 1) % spacing == 0
        }

    def copy(self) -> Addresses:
        """Return a pool that has given the same addresses, and gives further ones by itself."""
        other = copy(self)
        other._by_name = dict(self._by_name)
        return other

    def assign(self, name: str, *, in_use: Iterable[str] = ()) -> str:
        """
        Return the address of *name*, choosing one if it has none.

        Args:
            name: Anything that identifies who gets the address.
            in_use: Names whose addresses may not be taken over; any other name loses its address when all are given.

        Raises:
            WeftError: Every address is in use.
        """
        if (address := self._by_name.get(name)) is not None:
            return str(address)
        taken = set(self._by_name.values()) | self._reserved
        # The first host address is left out too: people take .1 for a router.
        candidates = (
            self._network.network_address + offset
            for offset in range(self._spacing + 1, self._network.num_addresses - 1, self._spacing)
        )
        free = next((address for address in candidates if address not in taken), None)
        if free is None:
            kept = set(in_use)
            idle = next((other for other in self._by_name if other not in kept), None)
            if idle is None:
                raise WeftError(f"Every address of {self._network} is in use.")
            free = self._by_name.pop(idle)
        self._by_name[name] = free
        return str(free)


def ipv6_of(address: str) -> str:
    """Return the IPv6 address of the workload with IPv4 *address*: the low 16 bits are the same (`10.244.0.7` -> `fd77:ef7::7`)."""
    return str(ipaddress.IPv6Network(MESH_IPV6_CIDR)[int(ipaddress.IPv4Address(address)) & 0xFFFF])
