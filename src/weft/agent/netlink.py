"""
Netlink in as many lines as weft needs: messages and attributes, links, addresses and routes, listening sockets.

Used by `namespaces`, `nftables` and `doctor`. A socket belongs to the network namespace in which it was made, for ever.
Source: netlink(7), rtnetlink(7), sock_diag(7) and the kernel's uapi headers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

REQUEST, ACK, DUMP, EXCL, CREATE, APPEND = 0x1, 0x4, 0x300, 0x200, 0x400, 0x800
NESTED = 0x8000

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_ACK_TLVS, _ACK_CAPPED = 0x200, 0x100
_RECEIVE_BYTES = 1 << 17
_TIMEOUT_SECONDS = 10.0  # the kernel answers at once; this only keeps a bug from hanging an agent

_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_GETROUTE = 16, 20, 24, 26
_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN = 10


class Message(NamedTuple):
    """One request: its type, flags beside REQUEST, and the payload after the netlink header."""

    kind: int
    flags: int
    payload: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in *data*, each with its type without flags; stops at the first that does not fit."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """A netlink socket; not for use by two callers at once."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                break  # before Linux 4.12: errors then come without the kernel's own words

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, message: Message) -> None:
        """
        Send one message and wait for the kernel's consent.

        Raises:
            OSError: The kernel's refusal, with its own words where it says more than the number.
        """
        self.batch([Message(message.kind, message.flags | ACK, message.payload)])

    def batch(self, messages: Sequence[Message]) -> None:
        """
        Send *messages* as one datagram and wait until each that asks for an ACK has it.

        Raises:
            OSError: The first refusal.
        """
        waiting = set()
        parts = []
        for message in messages:
            self._sequence += 1
            if message.flags & ACK:
                waiting.add(self._sequence)
            parts.append(self._encode(message))
        self._socket.send(b"".join(parts))
        while waiting:
            for kind, sequence, payload in self._receive():
                if kind == _NLMSG_ERROR:
                    _raise_for(payload)
                    waiting.discard(sequence)

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """
        Ask for a table; returns (type, payload) of each entry.

        Raises:
            OSError: The kernel's refusal.
        """
        self._sequence += 1
        self._socket.send(self._encode(Message(message.kind, message.flags | DUMP, message.payload)))
        found: list[tuple[int, bytes]] = []
        while True:
            for kind, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    _raise_for(payload)
                else:
                    found.append((kind, payload))

    def _encode(self, message: Message) -> bytes:
        length = 16 + len(message.payload)
        header = struct.pack("=IHHII", length, message.kind, message.flags | REQUEST, self._sequence, 0)
        return header + message.payload + bytes(-length % 4)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _flags, sequence, _port = struct.unpack_from("=IHHII", data, offset)
            if length < 16:
                return
            payload = data[offset + 16 : offset + length]
            yield kind, sequence, (struct.pack("=H", _flags) + payload if kind == _NLMSG_ERROR else payload)
            offset += (length + 3) & ~3


def _raise_for(payload: bytes) -> None:
    """Raise what an NLMSG_ERROR says (its flags come first, see `_receive`); an error of 0 is an ACK."""
    flags, code = struct.unpack_from("=Hi", payload.ljust(6, b"\0"))
    if code == 0:
        return
    words = os.strerror(-code)
    if flags & _ACK_TLVS:
        # The refused message's header follows, and its payload unless capped; then attributes, of which 1 is the text.
        (length,) = struct.unpack_from("=I", payload, 6)
        start = 6 + (16 if flags & _ACK_CAPPED else (length + 3) & ~3)
        text = dict(attributes(payload[start:])).get(1)
        if text:
            words += f" ({text.rstrip(bytes(1)).decode(errors='replace')})"
    raise OSError(-code, words)


# Links, addresses, routes.


def set_up(netlink: Netlink, index: int) -> None:
    """Bring interface *index* up."""
    up = 0x1
    netlink.request(Message(_RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, up, up)))


def add_dummy(netlink: Netlink, name: str) -> None:
    """
    Add an interface of type dummy.

    Raises:
        OSError: EOPNOTSUPP where the kernel has no such type.
    """
    information = nested(18, attribute(1, b"dummy\0"))  # IFLA_LINKINFO, IFLA_INFO_KIND
    payload = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0") + information  # IFLA_IFNAME
    netlink.request(Message(_RTM_NEWLINK, CREATE | EXCL, payload))


def add_veth(netlink: Netlink, name: str, peer: str) -> None:
    """
    Add a pair of virtual Ethernet interfaces, both ends in this namespace.

    Raises:
        OSError: EOPNOTSUPP where the kernel has no such type.
    """
    header = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    other = attribute(1, header + attribute(3, peer.encode() + b"\0"))  # VETH_INFO_PEER
    information = nested(18, attribute(1, b"veth\0"), nested(2, other))
    payload = header + attribute(3, name.encode() + b"\0") + information
    netlink.request(Message(_RTM_NEWLINK, CREATE | EXCL, payload))


def add_address(netlink: Netlink, index: int, address: str) -> None:
    """Give interface *index* the single address *address* (/32 or /128), usable at once (no duplicate detection)."""
    value = ip_address(address)
    no_duplicate_detection = 0x02
    header = struct.pack("=BBBBi", _family(value), value.max_prefixlen, no_duplicate_detection, 0, index)
    packed = attribute(1, value.packed) + attribute(2, value.packed)  # IFA_ADDRESS, IFA_LOCAL
    netlink.request(Message(_RTM_NEWADDR, CREATE | EXCL, header + packed))


def add_local_route(
    netlink: Netlink, destination: IPv4Network | IPv6Network, index: int, source: str | None = None
) -> None:
    """
    Have every address of *destination* delivered here (`ip route add local DESTINATION dev INDEX src SOURCE`).

    With a prefix of length 0 every packet that leaves comes back in, and so meets the prerouting hook: that is how all is caught.
    """
    main_table, protocol_static, type_local = 254, 4, 2
    scope = 254 if destination.version == 4 else 0  # host; IPv6 knows no scopes
    header = struct.pack(
        "=BBBBBBBBI",
        _family(destination.network_address),
        destination.prefixlen,
        *(0, 0, main_table, protocol_static, scope, type_local, 0),
    )
    payload = header + attribute(4, struct.pack("=i", index))  # RTA_OIF
    if destination.prefixlen:
        payload += attribute(1, destination.network_address.packed)  # RTA_DST
    if source is not None:
        payload += attribute(7, ip_address(source).packed)  # RTA_PREFSRC
    netlink.request(Message(_RTM_NEWROUTE, CREATE | EXCL, payload))


def ipv4_routes(netlink: Netlink) -> list[IPv4Network]:
    """Destinations of all IPv4 routes of all tables, without those that lead everywhere (0.0.0.0/0)."""
    found = []
    for _kind, payload in netlink.dump(Message(_RTM_GETROUTE, 0, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8))):
        family, length = payload[0], payload[1]
        destination = dict(attributes(payload[12:])).get(1)
        if family == socket.AF_INET and destination is not None and length:
            found.append(IPv4Network((destination, length), strict=False))
    return found


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


# Listening sockets.


class Listener(NamedTuple):
    """A listening TCP socket. `only6` is whether an IPv6 one refuses IPv4, `inode` what /proc/PID/fd calls it."""

    address: IPv4Address | IPv6Address
    port: int
    only6: bool
    inode: int = 0


def tcp_listeners(netlink: Netlink) -> list[Listener]:
    """
    The listening TCP sockets of the namespace of *netlink*, a NETLINK_SOCK_DIAG socket.

    Raises:
        OSError: ENOENT where the kernel has no tcp_diag and may not load it.
    """
    found = []
    only6_attribute = 11  # INET_DIAG_SKV6ONLY
    for family in (socket.AF_INET, socket.AF_INET6):
        query = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
        for _kind, payload in netlink.dump(Message(_SOCK_DIAG_BY_FAMILY, 0, query)):
            if len(payload) < 72:
                continue
            (port,) = struct.unpack_from("!H", payload, 4)
            raw = payload[8:12] if family == socket.AF_INET else payload[8:24]
            only6 = dict(attributes(payload[72:])).get(only6_attribute, b"\0")[:1] == b"\1"
            (inode,) = struct.unpack_from("=I", payload, 68)
            found.append(Listener(ip_address(raw), port, only6, inode))
    return found


def is_unsupported(error: OSError) -> bool:
    """Whether *error* says that the kernel lacks a feature, as against that it was refused."""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
