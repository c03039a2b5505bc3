"""What the agent asks its proxy on the admin socket; weft-proxy and Envoy answer alike (interfaces.md, 4.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

TIMEOUT_SECONDS = 2.0
LOOKS = 2
"""How often nothing must be open, one after the other, to be believed."""

Answer = TypeVar("Answer")


async def ask(admin: Path, path: str, *, method: str = "GET") -> tuple[int, bytes]:
    """
    Return status and body of one request.

    Raises:
        OSError: Nobody is there, or the answer is no HTTP.
        TimeoutError: It did not answer.
    """
    async with asyncio.timeout(TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_unix_connection(str(admin))
        try:
            lines = (f"{method} {path} HTTP/1.1", "host: admin", "content-length: 0", "connection: close", "", "")
            writer.write("\r\n".join(lines).encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionResetError(f"{admin} answered no HTTP")
    return int(words[1]), _joined(body) if b"transfer-encoding: chunked" in head.lower() else body


async def is_ready(admin: Path) -> bool:
    """Whether the proxy answers `GET /ready` with 200; an absent one is not ready."""
    try:
        status, _ = await ask(admin, "/ready")
    except (OSError, TimeoutError):
        return False
    return status == 200


async def stats(admin: Path, pattern: str) -> dict[str, int]:
    """
    Return the counters and gauges whose names *pattern*, a regular expression, finds, by name.

    Raises:
        OSError, TimeoutError: As `ask`.
    """
    _, text = await ask(admin, f"/stats?filter={quote(pattern)}")
    lines = (line.rpartition(": ") for line in text.decode().splitlines())
    return {name: int(value) for name, _, value in lines if value.isdigit()}


async def finish(
    admin: Path, calls: Sequence[str], count_open: Callable[[Path], Awaitable[int]], *, patience: float, poll: float
) -> bool:
    """
    POST *calls*, with which the proxy begins to drain, and wait until it has nothing open.

    On a busy machine an answer may be late: then it is asked again, for what is open is not to be cut off for that. And what seems to
    be nothing is looked at twice: a connection may come between the reading of two gauges, or a worker hear a moment later than we
    that it is to accept no more.

    Args:
        calls: Paths.
        count_open: What is open; asked every *poll* seconds.
        patience: Seconds that all of it may take.

    Returns:
        Whether it came to that: else it hangs, has ended, has not begun, or something in it never ends.
    """
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(patience):
            for call in calls:
                await _insisting(partial(ask, admin, call, method="POST"))
            looks = 0
            while True:
                looks = 0 if await _insisting(partial(count_open, admin)) else looks + 1
                if looks == LOOKS:
                    return True
                await asyncio.sleep(poll)
    return False


async def _insisting(question: Callable[[], Awaitable[Answer]]) -> Answer:
    """Put *question* until it is answered."""
    while True:
        with contextlib.suppress(TimeoutError):
            return await question()


def _joined(body: bytes) -> bytes:
    """Return the content of a chunked body (RFC 9112 7.1)."""
    content = bytearray()
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        content += body[:length]
        body = body[length + 2 :]
    return bytes(content)
