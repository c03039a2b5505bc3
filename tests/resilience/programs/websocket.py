"""As much of RFC 6455 as an echo needs: the handshake, and binary messages of one frame."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from typing import BinaryIO

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BINARY, CLOSE = 0x82, 0x88


def _head(source: BinaryIO) -> tuple[bytes, dict[bytes, bytes]]:
    first = source.readline().strip()
    headers = {}
    while line := source.readline().strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return first, headers


def _answer_to(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + MAGIC).digest())


def accept(source: BinaryIO, target: BinaryIO) -> None:
    """The server's part of the handshake."""
    _, headers = _head(source)
    key = _answer_to(headers[b"sec-websocket-key"])
    target.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n")
    target.write(b"sec-websocket-accept: " + key + b"\r\n\r\n")
    target.flush()


def ask(source: BinaryIO, target: BinaryIO, host: str) -> int:
    """The client's part; return the status, 101 if the answer is to this very key."""
    key = base64.b64encode(os.urandom(16))
    target.write(f"GET /echo HTTP/1.1\r\nhost: {host}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n".encode())
    target.write(b"sec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\n")
    target.flush()
    first, headers = _head(source)
    if not first:
        raise ConnectionResetError("the connection ended before an answer")
    status = int(first.split()[1])
    return status if status != 101 or headers.get(b"sec-websocket-accept") == _answer_to(key) else 0


def send(target: BinaryIO, message: bytes, *, masked: bool = False) -> None:
    size, mark = len(message), 0x80 if masked else 0
    head = bytes([BINARY, mark | size]) if size < 126 else struct.pack("!BBH", BINARY, mark | 126, size)
    mask = os.urandom(4) if masked else b""
    if masked:
        repeated = (mask * (size // 4 + 1))[:size]
        message = (int.from_bytes(message, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
    target.write(head + mask + message)
    target.flush()


def receive(source: BinaryIO) -> bytes | None:
    """
    Return the next message, at most 65535 bytes; None if there is no whole one any more.

    Raises:
        ValueError: What comes is no frame of ours.
    """
    head = source.read(2)
    if len(head) < 2 or head[0] == CLOSE:
        return None
    if head[0] != BINARY:
        raise ValueError(f"no binary message, but {head!r}")
    size = head[1] & 0x7F
    if size == 126:
        if len(long := source.read(2)) < 2:
            return None
        (size,) = struct.unpack("!H", long)
    mask = source.read(4) if head[1] & 0x80 else b""
    message = source.read(size)
    if len(message) < size:
        return None
    if mask:
        repeated = (mask * (size // 4 + 1))[:size]
        message = (int.from_bytes(message, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
    return message
