"""
HTTP/1.1 applications that say byte by byte what they want and note what they are told: a client and a program behind it.

Nothing here knows HTTP beyond where a head ends; what a message means is what the tests are about.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.live.load import Program

PATIENCE_SECONDS = 20.0
"""For anything that is waited for; never reached unless something is broken."""

CLOSED = "closed"
RESET = "reset"
OPEN = "open"


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write *data*; return when the other side has room for more."""
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.writer.drain()

    async def head(self) -> list[str]:
        """Read start line and fields of one message."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
        return head.decode("latin-1").split("\r\n")[:-2]

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readexactly(count)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.readuntil(end)

    async def chunk(self) -> bytes:
        """Read one chunk; empty is the last."""
        size = int(await self.until(b"\r\n"), 16)
        return (await self.exactly(size + 2))[:-2] if size else b""

    async def chunks(self) -> tuple[bytes, list[str]]:
        """Read a chunked body to its end; return it and the trailers."""
        body = b""
        while part := await self.chunk():
            body += part
        trailers = []
        while (line := await self.until(b"\r\n")) != b"\r\n":
            trailers.append(line.decode().rstrip("\r\n"))
        return body, trailers

    async def end(self, *, within: float = PATIENCE_SECONDS) -> str:
        """Return how the connection ends, `open` if it does not; what comes before is passed over."""
        try:
            async with asyncio.timeout(within):
                while await self.reader.read(1 << 16):
                    pass
        except TimeoutError:
            return OPEN
        except ConnectionError:
            return RESET
        return CLOSED

    def finish(self) -> None:
        """Send no more; go on reading."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Close with RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[list[str], Wire], Awaitable[bool]]
"""Answers one request, whose head it is given; false: the connection is over."""


class Scripted(Program):
    """A program whose paths below `/case/` follow `script`."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(address, port)
        self.script: Script | None = None
        self.errors: list[BaseException] = []
        self.requests = 0
        self.connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        wire = Wire(reader, writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
                if self.script is None or "/case/" not in head[0]:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.requests += 1
                try:
                    if not await self.script(head, wire):
                        return
                except BaseException as error:
                    self.errors.append(error)
                    raise
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the caller has gone, or the test sees in `errors` what went wrong
        finally:
            self._open.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def dial(port: int) -> AsyncIterator[Wire]:
    """Connect to 127.0.0.1:*port* while the block lasts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
