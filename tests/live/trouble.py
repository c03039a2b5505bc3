"""A program that misbehaves as it is told, byte by byte, and counts what reached it."""

from __future__ import annotations

import asyncio
import socket
import struct

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG_ENOUGH_SECONDS = 30.0
"""Slower than any limit of a test; nobody waits for it."""


class Trouble:
    """
    An HTTP/1.1 server on *address*. `mode` is what the next requests meet:

    `ok`; `error` (500); `unavailable` (503); `silent` (no answer); `reset` (RST instead of an answer); `cut` (RST within
    the answer); `reset-after` (RST right after the answer); `race` (the answer to the first request of a connection,
    RST at the second); `fail-once` (503, then `ok`); `garbage` (no HTTP).
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
        if mode == "fail-once":
            self.mode = "ok"
        if mode == "silent":
            await asyncio.sleep(LONG_ENOUGH_SECONDS)
        if mode == "reset" or (mode == "race" and number > 1):
            return reset(writer)
        if mode == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            await writer.drain()
            # The head must have left before the reset, which destroys what has not been read.
            await asyncio.sleep(0.2)
            return reset(writer)
        if mode == "garbage":
            writer.write(b"this is no HTTP\r\n\r\n")
            await writer.drain()
            return False
        if mode in ("error", "unavailable", "fail-once"):
            status = "500 Oops" if mode == "error" else "503 Busy"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        else:
            writer.write(ANSWER)
        await writer.drain()
        if mode == "reset-after":
            await asyncio.sleep(0.05)
            return reset(writer)
        return True


def reset(writer: asyncio.StreamWriter) -> bool:
    """Close with RST."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
