"""Programs that answer or pass on, and clients that keep their connections and count every answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

ANSWER_SECONDS = 30.0
"""For one answer on a busy machine; a request that takes longer has failed."""


class Program:
    """
    An HTTP/1.1 server on *address*, without a framework.

    `/echo` answers with the request's body; `/relay/<port>/<authority>` sends the request on to 127.0.0.1:<port>, as
    `/echo` of <authority>, by one connection for each of its own callers'.
    """

    protocol = "HTTP"
    """What its workload declares."""

    def __init__(self, address: str, port: int) -> None:
        self._address, self._port = address, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._address, self._port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        onward: Connection | None = None
        try:
            while True:
                line, _, body = await read_message(reader)
                _, path, _ = line.split(" ", 2)
                status = 200
                if path.startswith("/relay/"):
                    _, _, port, authority = path.split("/")
                    onward = onward or Connection(int(port), authority)
                    status, body, _ = await onward.ask("/echo", body)
                reason = "OK" if status == 200 else "Relayed"
                head = f"HTTP/1.1 {status} {reason}\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the caller has gone
        finally:
            self._open.discard(writer)
            writer.close()
            if onward is not None:
                onward.close()


async def read_message(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Return first line, headers (lower case) and body of one message with a Content-Length or in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
        return head[0], headers, body
    return head[0], headers, await reader.readexactly(int(headers.get("content-length", 0)))


class Connection:
    """One client's connection, kept as long as the server keeps it."""

    def __init__(self, port: int, authority: str, address: str = "127.0.0.1") -> None:
        self._address, self._port, self._authority = address, port, authority
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.opened = 0

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Send a request, GET without a body and POST with one; return status, body and headers of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address, self._port)
            self.opened += 1
        reader, writer = self._streams
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._authority}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            writer.write(head.encode() + body)
            line, headers, answer = await read_message(reader)
        except BaseException:
            self.close()
            raise
        if headers.get("connection", "").lower() == "close":
            self.close()
        return int(line.split(" ", 2)[1]), answer, headers

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Tally:
    """
    What clients saw.

    Attributes:
        opened: Connections, at least one for each client.
        failures: (seconds since the start, what), the first hundred.
    """

    clients: int
    answers: int = 0
    opened: int = 0
    failed: int = 0
    slowest: float = 0.0
    failures: list[tuple[float, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def fail(self, what: str) -> None:
        self.failed += 1
        if len(self.failures) < 100:
            self.failures.append((round(time.monotonic() - self.began, 3), what))

    def assert_none_failed(self, records: list[str]) -> None:
        """Fail the test at once if a request has failed; *records* are access records that may tell more."""
        assert not self.failed, (self.failures[:10], records)

    def check(self) -> None:
        """Fail the test unless every request was answered as it should be."""
        assert not self.failed, f"{self.failed} of {self.answers + self.failed} failed: {self.failures[:20]}"
        assert self.answers > 10 * self.clients, "there was no load"


async def client(tally: Tally, number: int, port: int, authority: str, path: str) -> None:
    """Send requests one after the other, until cancelled: GET and POST in turn, each with its own content."""
    connection = Connection(port, authority)
    try:
        for count in range(1 << 62):
            body = f"{number}-{count}".encode() if count % 2 else b""
            started = time.monotonic()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    status, answer, headers = await connection.ask(path, body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                tally.fail(f"{authority}{path}: {error!r}")
                continue
            finally:
                tally.opened += connection.opened
                connection.opened = 0
            tally.slowest = max(tally.slowest, time.monotonic() - started)
            if (status, answer) == (200, body):
                tally.answers += 1
            else:
                flags = headers.get("x-envoy-response-flags", "")
                tally.fail(f"{authority}{path}: {status} {flags} {answer[:200]!r}")
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def load(targets: Sequence[tuple[int, str, str]], *, clients: int) -> AsyncIterator[Tally]:
    """
    Keep *clients* clients busy on each of *targets* while the block lasts.

    Args:
        targets: (port on 127.0.0.1, authority, path).
    """
    tally = Tally(clients * len(targets))
    tasks = [asyncio.create_task(client(tally, number, *target)) for target in targets for number in range(clients)]
    try:
        yield tally
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [error for error in ended if isinstance(error, Exception)]
        assert not broken, broken
