"""
The rules that catch a program's traffic, put into its network namespace by netlink.

`install` is called once by `namespaces.ProgramNamespaces.create`; the rest reads and changes the table's sets.
The rules in nft's own language are in docs/concepts/interception.md.
Everything that a program sends re-enters prerouting, because the default route of its namespace is local.

Source: the kernel's nf_tables.h; libnftnl's wire format. Values in registers and payloads are big-endian.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network

from weft.agent.netlink import ACK, APPEND, CREATE, NETLINK_NETFILTER, Message, Netlink, attribute, attributes, nested

TABLE = "weft"
HOST_PORTS = "host_ports"
REFUSED_LOOPBACK = "refused_loopback"
_OWN_LISTENERS = ("own_listeners", "own_listeners6")
_REFUSED_UDP = ("refused_udp", "refused_udp6")

_INET = 1  # NFPROTO_INET
_BOTH = 0  # NFPROTO_UNSPEC: what a tproxy expression calls IPv4 and IPv6
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM, _GETSETELEM = 0, 3, 6, 9, 12, 13
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_ACCEPT, _DROP = 1, 0
_PREROUTING, _INPUT = 0, 1
_MANGLE, _FILTER = -150, 0
_REGISTER = 8  # NFT_REG32_00; a value of n bytes fills ceil(n / 4) of them
_CAUGHT = 1  # the mark of a packet that a transparent listener takes
_SET_EVALUATED = 0x20
_TYPE_IPV4, _TYPE_IPV6, _TYPE_PORT = 7, 8, 13  # what nft(8) calls the key when it lists the set
_SET_SIZE = 4096  # destinations remembered; a program that tries more is still refused, only not told about the rest

_FIN, _SYN, _RST, _ACK_FLAG = 0x01, 0x02, 0x04, 0x10


def install(
    address: str, address6: str | None, *, outbound_port: int, dns_port: int, host_ports: Iterable[int]
) -> None:
    """
    Put table `inet weft` into the calling thread's network namespace, whole or not at all.

    Args:
        address, address6: The program's own; None where the kernel has no IPv6.
        outbound_port, dns_port: Where transparent listeners stand.
        host_ports: Loopback ports that are caught all the same.

    Raises:
        OSError: The kernel's refusal; ENOENT or EOPNOTSUPP if it lacks an expression (nft_tproxy, nft_reject, nft_socket).
    """
    messages = [
        _message(_NEWTABLE, attribute(1, _text(TABLE))),
        _chain("prerouting", _PREROUTING, _MANGLE),
        _chain("input", _INPUT, _FILTER),
        _set(HOST_PORTS, [(_TYPE_PORT, 2)]),
        _set(REFUSED_LOOPBACK, [(_TYPE_PORT, 2)], evaluated=True),
    ]
    for kind, names in ((_TYPE_IPV4, 0), (_TYPE_IPV6, 1)):
        key = [(kind, 16 if names else 4), (_TYPE_PORT, 2)]
        messages += [_set(_OWN_LISTENERS[names], key), _set(_REFUSED_UDP[names], key, evaluated=True)]
    ports = [struct.pack("!H", port) for port in host_ports]
    if ports:
        messages.append(_elements(HOST_PORTS, ports))
    messages += [_rule("prerouting", rule) for rule in _prerouting(address, address6, outbound_port, dns_port)]
    messages += [_rule("input", rule) for rule in _input(address, address6)]
    _commit(messages)


def admit(address: str, port: int) -> None:
    """Let SYNs to *address*:*port* through to the program's own listener, in the calling thread's namespace."""
    value = ip_address(address)
    _commit([_elements(_OWN_LISTENERS[value.version == 6], [_key(value.packed, struct.pack("!H", port))])])


def refused_loopback(netlink: Netlink) -> dict[int, int]:
    """Ports that were tried on the loopback while nobody listened, as the namespace of *netlink* remembers them, and how often."""
    return {struct.unpack("!H", key[:2])[0]: count for key, count in _members(netlink, REFUSED_LOOPBACK)}


def refused_udp(netlink: Netlink) -> dict[tuple[str, int], int]:
    """Number of refused datagrams by destination (address, port)."""
    found = {}
    for name, length in zip(_REFUSED_UDP, (4, 16), strict=True):
        for key, count in _members(netlink, name):
            (port,) = struct.unpack_from("!H", key, length)
            found[str(ip_address(key[:length])), port] = count
    return found


# The rules. Each is a list of expressions; the first that does not match ends the rule.


def _prerouting(address: str, address6: str | None, outbound_port: int, dns_port: int) -> list[list[bytes]]:
    outbound = [_tproxy(outbound_port), _set_mark(_CAUGHT), _verdict(_ACCEPT)]
    dns = [_tproxy(dns_port), _set_mark(_CAUGHT), _verdict(_ACCEPT)]
    tcp, udp = _is_protocol(socket.IPPROTO_TCP), _is_protocol(socket.IPPROTO_UDP)
    rules = [
        # Only a SYN needs steering: whatever follows finds its socket by address and port.
        [*tcp, *_is_syn(equal=False), _verdict(_ACCEPT)],
        # Names are asked wherever a resolver is believed to be, its own loopback included.
        [*tcp, *_is_port(53), *dns],
        [*udp, *_is_port(53), *dns],
    ]
    for loopback in (_to("127.0.0.0/8"), _to("::1/128")):
        rules += [
            [*tcp, *loopback, *_port_in(HOST_PORTS), *outbound],
            # A socket that would take it: the expression ends the rule if there is none. Then it is remembered, for the hint.
            [*tcp, *loopback, _socket_exists(), _verdict(_ACCEPT)],
            [*tcp, *loopback, _load_port(_REGISTER), _remember(REFUSED_LOOPBACK, counted=True)],
        ]
    rules += [[*own, _verdict(_ACCEPT)] for own in _own(address, address6)]
    for family, (name, words) in enumerate(zip(_OWN_LISTENERS, (1, 4), strict=True)):
        destination = [*_is_family(family), _load_destination(family), _load_port(_REGISTER + words)]
        rules.append([*tcp, *destination, _lookup(name), _verdict(_ACCEPT)])
    rules.append([*tcp, *outbound])
    return rules


def _input(address: str, address6: str | None) -> list[list[bytes]]:
    tcp, udp = _is_protocol(socket.IPPROTO_TCP), _is_protocol(socket.IPPROTO_UDP)
    rules = [[*own, _verdict(_ACCEPT)] for own in _own(address, address6)]
    rules += [
        [*_has_mark(_CAUGHT), _verdict(_ACCEPT)],
        [*tcp, *_is_syn(equal=False), _verdict(_ACCEPT)],
    ]
    for family, (name, words) in enumerate(zip(_OWN_LISTENERS, (1, 4), strict=True)):
        destination = [*_is_family(family), _load_destination(family), _load_port(_REGISTER + words)]
        rules.append([*tcp, *destination, _lookup(name), _verdict(_ACCEPT)])
    # A SYN that no transparent listener took (the proxy is away) must not reach a program that listens on a wildcard.
    rules.append([*tcp, _counter(), _reject_reset()])
    for family, (name, words) in enumerate(zip(_REFUSED_UDP, (1, 4), strict=True)):
        destination = [*_is_family(family), _load_destination(family), _load_port(_REGISTER + words)]
        rules.append([*udp, *destination, _remember(name, counted=True)])
    # "Port unreachable" is what a connected socket reports as ECONNREFUSED.
    rules.append([*udp, _counter(), _reject_icmp(1)])
    # The rest (ping, SCTP) would otherwise be answered by this namespace itself, as if the other end existed.
    rules.append([_counter(), _reject_icmp(3)])
    return rules


def _own(address: str, address6: str | None) -> list[list[bytes]]:
    networks = ["127.0.0.0/8", f"{address}/32", "::1/128"] + ([f"{address6}/128"] if address6 else [])
    return [_to(network) for network in networks]


# Matches.


def _is_protocol(number: int) -> list[bytes]:
    return [_meta(16), _compare(bytes([number]))]


def _is_family(family: int) -> list[bytes]:
    return [_meta(15), _compare(bytes([(2, 10)[family]]))]  # NFPROTO_IPV4, NFPROTO_IPV6


def _is_syn(*, equal: bool) -> list[bytes]:
    mask = _FIN | _SYN | _RST | _ACK_FLAG
    return [_payload(2, 13, 1, _REGISTER), _bitwise(bytes([mask])), _compare(bytes([_SYN]), equal=equal)]


def _is_port(port: int) -> list[bytes]:
    return [_load_port(_REGISTER), _compare(struct.pack("!H", port))]


def _port_in(name: str) -> list[bytes]:
    return [_load_port(_REGISTER), _lookup(name)]


def _to(network: str) -> list[bytes]:
    """Destination in *network*."""
    destination = ip_network(network)
    family = destination.version == 6
    match = [*_is_family(family), _load_destination(family)]
    if destination.prefixlen < destination.max_prefixlen:
        match.append(_bitwise(destination.netmask.packed))
    return [*match, _compare(destination.network_address.packed)]


def _has_mark(mark: int) -> list[bytes]:
    return [_meta(3), _compare(struct.pack("=I", mark))]


# Expressions.


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, attribute(1, _text(name)), nested(2, *data))


def _meta(key: int) -> bytes:
    return _expression("meta", attribute(1, _word(_REGISTER)), attribute(2, _word(key)))


def _set_mark(mark: int) -> bytes:
    load = _expression("immediate", attribute(1, _word(_REGISTER)), nested(2, attribute(1, struct.pack("=I", mark))))
    return load + _expression("meta", attribute(2, _word(3)), attribute(3, _word(_REGISTER)))


def _payload(base: int, offset: int, length: int, register: int) -> bytes:
    """Load from the network (1) or transport (2) header."""
    values = (register, base, offset, length)
    return _expression("payload", *(attribute(kind, _word(value)) for kind, value in enumerate(values, 1)))


def _load_destination(family: int) -> bytes:
    return _payload(1, 24, 16, _REGISTER) if family else _payload(1, 16, 4, _REGISTER)


def _load_port(register: int) -> bytes:
    return _payload(2, 2, 2, register)


def _compare(value: bytes, *, equal: bool = True) -> bytes:
    operator = attribute(2, _word(0 if equal else 1))
    return _expression("cmp", attribute(1, _word(_REGISTER)), operator, nested(3, attribute(1, value)))


def _bitwise(mask: bytes) -> bytes:
    registers = attribute(1, _word(_REGISTER)) + attribute(2, _word(_REGISTER)) + attribute(3, _word(len(mask)))
    return _expression("bitwise", registers, nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(len(mask)))))


def _lookup(name: str) -> bytes:
    return _expression("lookup", attribute(1, _text(name)), attribute(2, _word(_REGISTER)))


def _remember(name: str, *, counted: bool = False) -> bytes:
    data = attribute(1, _text(name)) + attribute(3, _word(1)) + attribute(4, _word(_REGISTER))  # update
    return _expression("dynset", data, nested(7, attribute(1, b"counter\0"), nested(2)) if counted else b"")


def _tproxy(port: int) -> bytes:
    load = _expression("immediate", attribute(1, _word(_REGISTER)), nested(2, attribute(1, struct.pack("!H", port))))
    return load + _expression("tproxy", attribute(1, _word(_BOTH)), attribute(3, _word(_REGISTER)))


def _socket_exists() -> bytes:
    return _expression("socket", attribute(1, _word(0)), attribute(2, _word(_REGISTER)))


def _counter() -> bytes:
    return _expression("counter", attribute(1, bytes(8)), attribute(2, bytes(8)))


def _reject_reset() -> bytes:
    return _expression("reject", attribute(1, _word(1)))


def _reject_icmp(code: int) -> bytes:
    """Code 1 is "port unreachable", 3 "administratively prohibited", in either family."""
    return _expression("reject", attribute(1, _word(2)), attribute(2, bytes([code])))


def _verdict(code: int) -> bytes:
    return _expression("immediate", attribute(1, _word(0)), nested(2, nested(2, attribute(1, _word(code)))))


# Messages.


def _message(kind: int, payload: bytes, flags: int = CREATE) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, flags, struct.pack("!BBH", _INET, 0, 0) + payload)


def _chain(name: str, hook: int, priority: int) -> Message:
    point = nested(4, attribute(1, _word(hook)), attribute(2, struct.pack("!i", priority)))
    names = attribute(1, _text(TABLE)) + attribute(3, _text(name))
    return _message(_NEWCHAIN, names + point + attribute(5, _word(_ACCEPT)) + attribute(7, b"filter\0"))


def _rule(chain: str, expressions: Sequence[bytes]) -> Message:
    names = attribute(1, _text(TABLE)) + attribute(2, _text(chain))
    return _message(_NEWRULE, names + nested(4, *expressions), CREATE | APPEND)


def _set(name: str, key: Sequence[tuple[int, int]], *, evaluated: bool = False) -> Message:
    """A set whose key is made of *key*: (type, bytes) each, padded to words when there are several."""
    kind, length = 0, 0
    for part, size in key:
        kind, length = kind << 6 | part, length + (size if len(key) == 1 else (size + 3) & ~3)
    data = attribute(1, _text(TABLE)) + attribute(2, _text(name)) + attribute(3, _word(_SET_EVALUATED * evaluated))
    data += attribute(4, _word(kind)) + attribute(5, _word(length)) + attribute(10, _word(1))
    data += nested(9, attribute(1, _word(_SET_SIZE)))
    return _message(_NEWSET, data)


def _elements(name: str, keys: Iterable[bytes]) -> Message:
    items = (nested(1, nested(1, attribute(1, key))) for key in keys)
    return _message(_NEWSETELEM, attribute(1, _text(TABLE)) + attribute(2, _text(name)) + nested(3, *items))


def _commit(messages: Sequence[Message]) -> None:
    """Send a transaction: all of it or nothing."""
    last = messages[-1]
    border = struct.pack("!BBH", 0, 0, _SUBSYSTEM)
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.batch(
            [
                Message(_BATCH_BEGIN, 0, border),
                *messages[:-1],
                Message(last.kind, last.flags | ACK, last.payload),
                Message(_BATCH_END, 0, border),
            ]
        )


def _members(netlink: Netlink, name: str) -> Iterable[tuple[bytes, int]]:
    """Key and packet count of each element of a set."""
    query = _message(_GETSETELEM, attribute(1, _text(TABLE)) + attribute(2, _text(name)), 0)
    for _kind, payload in netlink.dump(query):
        for kind, elements in attributes(payload[4:]):
            if kind != 3:
                continue
            for _one, element in attributes(elements):
                yield _element(element)


def _element(data: bytes) -> tuple[bytes, int]:
    fields = dict(attributes(data))
    key = dict(attributes(fields.get(1, b""))).get(1, b"")
    count = 0
    expression = dict(attributes(fields.get(7, b"")))
    packets = dict(attributes(expression.get(2, b""))).get(2)
    if packets is not None:
        (count,) = struct.unpack("!Q", packets)
    return key, count


def _key(*parts: bytes) -> bytes:
    """A concatenated key: each part padded to whole registers."""
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def _word(value: int) -> bytes:
    return struct.pack("!I", value)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"
