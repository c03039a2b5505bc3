"""A program that misbehaves as it is told, byte by byte, and counts what reached it."""

from __future__ import annotations

import asyncio
import socket
import struct

from tests.live.load import Program

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG_ENOUGH_SECONDS = 30.0
"""Slower than any limit of a test; nobody waits for it."""


class Trouble:
    """
    An HTTP/1.1 server on *address*. `mode` is what the next requests meet:

    `ok`; `error` (500); `unavailable` (503); `silent` (no answer); `silent-once` (then `ok`); `stall` (no end of the
    answer); `reset` (RST instead of an answer); `cut` (RST within the answer); `reset-after` (RST right after the answer);
    `race` (the answer to the first request of a connection, RST at the second); `fail-once` (503, then `ok`);
    `in-turn` (503 as soon as the next request is there, `ok` once that is the mode);
    `tunnel-reset` (101, some bytes of the other protocol, then RST);
    `garbage` (no HTTP); `long-head` (200 KB of headers); `grpc-14` (the answer of a gRPC server whose status is 14, or any other).
    """

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.mode = "ok"
        self.seen: list[str] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._address, self._port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            number = 0
            while head := await reader.readuntil(b"\r\n\r\n"):
                number += 1
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
                )
                await reader.readexactly(length)
                self.seen.append(head.split(b" ", 1)[0].decode())
                if not await self._answer(writer, number):
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # the proxy has gone
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int) -> bool:
        """Do what `mode` says; False: the connection is over."""
        mode = self.mode
        if mode == "in-turn":
            seen = len(self.seen)
            while self.mode == mode and len(self.seen) == seen:
                await asyncio.sleep(0.02)
            mode = "unavailable" if self.mode == mode else self.mode
        if mode.endswith("-once"):
            self.mode = "ok"
        if mode == "stall":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
        if mode in ("silent", "silent-once", "stall"):
            await asyncio.sleep(LONG_ENOUGH_SECONDS)
        if mode == "reset" or (mode == "race" and number > 1):
            return reset(writer)
        if mode == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
            # The peer must have read it before the reset, which destroys what has not been read; that is to be seen nowhere here.
            await asyncio.sleep(0.2)
            return reset(writer)
        if mode == "tunnel-reset":
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
            await writer.drain()
            await asyncio.sleep(0.2)  # as above
            return reset(writer)
        if mode == "garbage":
            writer.write(b"this is no HTTP\r\n\r\n")
            await writer.drain()
            return False
        if mode == "long-head":
            writer.write(b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 200_000 + b"\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return False
        if mode in ("error", "unavailable", "fail-once"):
            status = "500 Oops" if mode == "error" else "503 Busy"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        elif mode.startswith("grpc-"):
            status = mode.removeprefix("grpc-")
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: {status}\r\ncontent-length: 0\r\n\r\n"
            writer.write(head.encode())
        else:
            writer.write(ANSWER)
        await writer.drain()
        if mode == "reset-after":
            await asyncio.sleep(0.05)  # as above
            return reset(writer)
        return True


class Grpc(Program):
    """
    A gRPC server on *address* that answers every call with the status `status`: in trailers, or, if `is_brief`, with nothing
    but trailers; if `resets`, with RST_STREAM.
    """

    protocol = "GRPC"
    status, is_brief, resets = 0, False, False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await reader.readexactly(24)  # the preface (RFC 9113 3.4)
            writer.write(_frame(_SETTINGS, 0, 0))
            while True:
                head = await reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
                await reader.readexactly(int.from_bytes(head[:3]))
                if kind == _SETTINGS and not flags:
                    writer.write(_frame(_SETTINGS, 1, 0))
                if kind in (_DATA, _HEADERS) and flags & _END_STREAM and self.resets:
                    writer.write(_frame(_RST_STREAM, 0, stream, (2).to_bytes(4)))  # INTERNAL_ERROR
                elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                    begin = _fields((":status", "200"), ("content-type", "application/grpc"))
                    end = _fields(("grpc-status", str(self.status)))
                    if not self.is_brief:
                        writer.write(_frame(_HEADERS, _END_HEADERS, stream, begin))
                        begin = b""
                    writer.write(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, begin + end))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the proxy has gone
        finally:
            self._open.discard(writer)
            writer.close()


_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _fields(*pairs: tuple[str, str]) -> bytes:
    """Fields as literals that no table keeps (RFC 7541 6.2.2)."""
    texts = (text.encode() for pair in pairs for text in pair)
    literals = [bytes([len(text)]) + text for text in texts]
    return b"".join(b"\0" + name + value for name, value in zip(literals[::2], literals[1::2], strict=True))


def reset(writer: asyncio.StreamWriter) -> bool:
    """Close with RST."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
