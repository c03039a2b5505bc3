"""Who takes access records that are sent and not written: HAProxy's. A thread of the bench, away from the proxies' core."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

PART_BYTES = 1024 * 1024


@contextlib.contextmanager
def taken(file: Path, cores: set[int]) -> Iterator[int]:
    """Write what comes to the yielded port of the loopback to *file*, on *cores*."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_take, args=(listener, file, cores), daemon=True)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port
        finally:
            # Its accept, or the peer's connection, which ends with the peer.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _take(listener: socket.socket, file: Path, cores: set[int]) -> None:
    os.sched_setaffinity(threading.get_native_id(), cores)
    with file.open("wb", buffering=0) as written, contextlib.suppress(OSError):
        while True:
            with listener.accept()[0] as connection:
                while part := connection.recv(PART_BYTES):
                    written.write(part)
