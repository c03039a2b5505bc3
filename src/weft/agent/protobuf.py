"""
Protocol Buffers' wire format, for the few messages that an agent reads and writes itself.

Written by hand: a handful of fields does not justify the 5 MB that the generated classes of Envoy's API take in every
agent. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


class Malformed(Exception):
    """Bytes that are no message."""


def field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field: a string, bytes, or a message."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def number(number: int, value: int) -> bytes:
    """Return a field of a whole number or a boolean; a negative int32 has ten bytes, as its sign is extended to 64 bits."""
    return _varint(number << 3 | _VARINT) + _varint(value & (1 << 64) - 1)


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """
    Yield (number, value) of each field in order: bytes if it is length-delimited, else a number without sign.

    Raises:
        Malformed: It ends within a field, or has a wire type that is not in use.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _LENGTH_DELIMITED:
            size, at = _read_varint(message, at)
        elif (size := _FIXED_BYTES.get(kind, -1)) < 0:
            raise Malformed(f"field {tag >> 3} has wire type {kind}; 0, 1, 2 and 5 are in use")
        content = message[at : at + size]
        if len(content) < size:
            raise Malformed(f"field {tag >> 3} has {len(content)} bytes left of {size}")
        at += size
        yield tag >> 3, content if kind == _LENGTH_DELIMITED else int.from_bytes(content, "little")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at *at*, and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise Malformed(f"the number at byte {at} does not end")
