"""An upstream of HTTP/1.1 whose answer is what has reached it."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, Protocol


class Told(NamedTuple):
    """A request as it reached the upstream."""

    path: str
    headers: list[tuple[str, str]]
    """Names in lower case, in the order and the lines that came."""
    client: tuple[str, int]
    """Whence its connection came."""

    @classmethod
    def of(cls, body: str) -> Told:
        """Read what a `Telling` has answered."""
        told = json.loads(body)
        headers = [(name, value) for name, value in told["headers"]]
        return cls(told["path"], headers, (told["client"][0], told["client"][1]))

    def get(self, name: str) -> str | None:
        """All values of *name*, which may as well be in one line (RFC 9110 5.3)."""
        values = [value for key, value in self.headers if key == name]
        return ",".join(values) if values else None


class Heard(Protocol):
    """A server of `Telling`."""

    heard: list[str]
    """The paths that it was asked for."""


class Teller(ThreadingHTTPServer):
    """The server at *port*, of TLS if it has a *context*."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Telling)
        if context is not None:
            # Whoever handles a connection shakes hands, when it reads.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self.server_address[1])
        self.heard: list[str] = []


class Telling(BaseHTTPRequestHandler):
    """Answers each GET with what it is, to be read by `Told.of`."""

    protocol_version = "HTTP/1.1"
    server: Heard  # type: ignore[assignment]

    def handle(self) -> None:
        # A proxy may reset what it needs no more.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self.server.heard.append(self.path)
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        body = json.dumps({"path": self.path, "headers": headers, "client": list(self.client_address)[:2]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def telling(context: ssl.SSLContext | None = None) -> Iterator[Teller]:
    """Let one tell until the block ends."""
    server = Teller(context)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
