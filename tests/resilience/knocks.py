"""
`python -m tests.resilience.knocks RECORD HOST PORT PID [--keep]`: a caller that connects anew for each request, every few milliseconds.

PID is a process in whose network it stands, 0 for the host's. RECORD has a line for each request, as of `programs/client.py`; no
request waits for the one before it, so a refusal shows whatever else is kept waiting. With `--keep` all go by one connection,
one after the other.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from weft.agent import namespaces

PAUSE_SECONDS = 0.01
LIMIT_SECONDS = 20.0
REQUEST = "GET /plain/x HTTP/1.1\r\nhost: {}:{}\r\n{}\r\n"


class Caller:
    """Asks one place and writes down what came."""

    def __init__(self, output: TextIO, host: str, port: int) -> None:
        self._output = output
        self._request = REQUEST.format(host, port, "").encode()
        self._last_request = REQUEST.format(host, port, "connection: close\r\n").encode()
        self._address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][:2]

    async def knock(self) -> None:
        """One request on a connection of its own."""
        line = {"kind": "knock", "start": time.monotonic(), "phase": "connect"}
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address)
                line["phase"] = "request"
                try:
                    writer.write(self._last_request)
                    line |= {"status": status_of(await reader.readuntil(b"\r\n\r\n")), "whole": True}
                finally:
                    writer.close()
        except (OSError, EOFError) as error:
            line["error"] = type(error).__name__
        self._write(line)

    async def keep(self) -> None:
        """One request after the other on one connection; the first that fails is the last."""
        reader, writer = await asyncio.open_connection(*self._address)
        while True:
            line = {"kind": "kept", "start": time.monotonic(), "phase": "request"}
            try:
                async with asyncio.timeout(LIMIT_SECONDS):
                    writer.write(self._request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0]))
                line |= {"status": status_of(head), "whole": True}
            except (OSError, EOFError) as error:
                line["error"] = type(error).__name__
            self._write(line)
            if "error" in line:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    def _write(self, line: dict[str, object]) -> None:
        self._output.write(json.dumps(line | {"end": time.monotonic()}) + "\n")


def status_of(head: bytes) -> int:
    return int(head.split(maxsplit=2)[1])


async def main(record: str, host: str, port: int, pid: int, *, keep: bool) -> None:
    with Path(record).open("a", buffering=1, encoding="utf-8") as output:
        if pid:
            namespaces.join_process(pid, ("user", "mnt", "net"))
        caller = Caller(output, host, port)
        if keep:
            await caller.keep()
            return
        async with asyncio.TaskGroup() as knocks:
            while True:
                knocks.create_task(caller.knock())
                await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), keep="--keep" in sys.argv[5:]))
