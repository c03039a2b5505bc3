"""
gRPC messages in the bytes of an HTTP/2 connection that somebody else leads: for one who carries the bytes and reads along.

Headers are not looked at, so there is no state to keep but the frames' own. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first: RFC 9113 3.4."""

_HEADER_BYTES = 9  # RFC 9113 4.1: length (24), type (8), flags (8), stream (32, the first bit reserved)
_DATA, _RST_STREAM = 0x0, 0x3
_END_STREAM, _PADDED = 0x1, 0x8
_PREFIX_BYTES = 5  # gRPC over HTTP/2, Length-Prefixed-Message: whether compressed (8), length (32)


class Messages:
    """
    The messages that one side of a connection sends.

    Args:
        preface: What comes before the first frame.
    """

    def __init__(self, preface: bytes = b"") -> None:
        self._bytes = bytearray()
        self._skip = len(preface)
        self._streams: dict[int, bytearray] = {}

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
        """Take in what was sent next, and yield (stream, message) for each message that is complete with it."""
        self._bytes += data
        if self._skip:
            skipped = min(self._skip, len(self._bytes))
            del self._bytes[:skipped]
            self._skip -= skipped
        while len(self._bytes) >= _HEADER_BYTES:
            end = _HEADER_BYTES + int.from_bytes(self._bytes[:3])
            if len(self._bytes) < end:
                return
            kind, flags = self._bytes[3], self._bytes[4]
            stream = int.from_bytes(self._bytes[5:9]) & 0x7FFFFFFF
            payload = bytes(self._bytes[_HEADER_BYTES:end])
            del self._bytes[:end]
            if kind == _DATA:
                yield from self._take(stream, _unpadded(payload) if flags & _PADDED else payload)
            if kind == _RST_STREAM or (kind == _DATA and flags & _END_STREAM):
                self._streams.pop(stream, None)

    def _take(self, stream: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        buffered = self._streams.setdefault(stream, bytearray())
        buffered += payload
        while len(buffered) >= _PREFIX_BYTES:
            end = _PREFIX_BYTES + int.from_bytes(buffered[1:_PREFIX_BYTES])
            if len(buffered) < end:
                return
            message = bytes(buffered[_PREFIX_BYTES:end])
            del buffered[:end]
            yield stream, message


def _unpadded(payload: bytes) -> bytes:
    """RFC 9113 6.1: the first byte says how many at the end mean nothing."""
    return payload[1 : len(payload) - payload[0]]
