"""
PROXY protocol, version 2: what stands before the bytes of a relayed connection and says between whom it was made.

Pure. Source: haproxy.org, "The PROXY protocol", section 2.2. Only TCP connections are told of; what a sender adds
beyond the two addresses (TLVs) is read over.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED_BYTES = 16
"""Signature, version and command, family and protocol, and the length of what follows."""

_VERSION_2_PROXY = 0x21
_TCP = {0x11: 4, 0x21: 16}
"""Family and protocol -> bytes of an address: TCP over IPv4, TCP over IPv6."""


class Malformed(ValueError):
    """The bytes are no header of version 2, or one for something other than a proxied TCP connection."""


class Endpoint(NamedTuple):
    """One end of a TCP connection."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def rest_bytes(fixed: bytes) -> int:
    """
    Return how many bytes follow the first `FIXED_BYTES` of a header.

    Raises:
        Malformed: They do not begin one.
    """
    if len(fixed) != FIXED_BYTES or not fixed.startswith(SIGNATURE):
        raise Malformed("the connection does not begin with the PROXY protocol's signature")
    command, family, length = struct.unpack("!BBH", fixed[len(SIGNATURE) :])
    if command != _VERSION_2_PROXY or family not in _TCP:
        raise Malformed(f"a PROXY header for something else (0x{command:02x} 0x{family:02x})")
    if length < 2 * _TCP[family] + 4:
        raise Malformed(f"a PROXY header of {length} bytes holds no two addresses")
    return int(length)


def decode(header: bytes) -> tuple[Endpoint, Endpoint]:
    """
    Return source and destination of a whole header.

    Raises:
        Malformed: It is none, or not whole.
    """
    if len(header) - FIXED_BYTES != rest_bytes(header[:FIXED_BYTES]):
        raise Malformed("the PROXY header is not whole")
    size = _TCP[header[13]]
    first, second, source, destination = struct.unpack_from(f"!{size}s{size}sHH", header, FIXED_BYTES)
    return Endpoint(str(ip_address(first)), source), Endpoint(str(ip_address(second)), destination)


def encode(source: Endpoint, destination: Endpoint) -> bytes:
    """Return the header of a connection from *source* to *destination*; an IPv4 address beside an IPv6 one is mapped."""
    ends: list[IPv4Address | IPv6Address] = [ip_address(source.address), ip_address(destination.address)]
    if ends[0].version != ends[1].version:
        ends = [IPv6Address(f"::ffff:{end}") if isinstance(end, IPv4Address) else end for end in ends]
    family = 0x11 if ends[0].version == 4 else 0x21
    addresses = ends[0].packed + ends[1].packed + struct.pack("!HH", source.port, destination.port)
    return SIGNATURE + struct.pack("!BBH", _VERSION_2_PROXY, family, len(addresses)) + addresses
