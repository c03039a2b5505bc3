"""
What the four Bookinfo programs share: a small HTTP/1.1 server and a keep-alive client, both from the standard library.

A program gives `serve` a function from Request to Response. Whatever belongs to the request that is being served
(trace context, who is logged in) travels on with every call made for it; see PROPAGATED.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment

# Headers that tie the calls of one user's request together: request id, W3C trace context, both spellings of B3,
# and the logged-in user, on which routing rules match.
PROPAGATED = (
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "end-user",
)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""

    def propagated(self) -> dict[str, str]:
        """Return the headers that calls made for this request must carry."""
        return {name: value for name in PROPAGATED if (value := self.headers.get(name)) is not None}


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200) -> Response:
        return cls(status, json.dumps(value, ensure_ascii=False).encode() + b"\n")


class CallError(Exception):
    """A call of another service brought no usable answer. `status` is what it said, or None if it said nothing."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """
    Calls one other service, keeps its connections, and starts over once if a kept one has been closed meanwhile.

    It goes by the proxy that HTTP_PROXY and NO_PROXY say, as every larger HTTP library does.
    """

    def __init__(self, base: str, *, timeout: float) -> None:
        """*base* is `http://reviews:9080`; *timeout* in seconds bounds each wait for the network."""
        parts = urlsplit(base)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._target, self._headers = "", {}
        proxy = urlsplit(getproxies_environment().get("http", ""))
        if proxy.hostname and not proxy_bypass_environment(parts.netloc):
            # To a proxy the whole URL is said (RFC 9112 3.2.2).
            self._target, self._headers = base, {"host": parts.netloc, **credential(proxy)}
            self._host, self._port = proxy.hostname, proxy.port or 80
        self._timeout = timeout
        self._idle: list[http.client.HTTPConnection] = []

    def json(self, path: str, headers: Mapping[str, str]) -> Any:
        """
        GET *path* and return the decoded body.

        Raises:
            CallError: No connection, no answer in time, a status other than 200, or no JSON.
        """
        try:
            status, body = self._get(path, headers)
        except (OSError, http.client.HTTPException) as exc:
            raise CallError(f"{self._host}: {exc or type(exc).__name__}") from exc
        if status != 200:
            raise CallError(f"{self._host}: status {status}", status)
        try:
            return json.loads(body)
        except ValueError as exc:
            raise CallError(f"{self._host}: not JSON", status) from exc

    def _get(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        while True:
            fresh = not self._idle
            connection = (
                http.client.HTTPConnection(self._host, self._port, timeout=self._timeout) if fresh else self._idle.pop()
            )
            try:
                connection.request("GET", self._target + path, headers={**headers, **self._headers})
                response = connection.getresponse()
                body = response.read()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()
                if fresh:
                    raise
                continue  # the server had closed the kept connection before it saw the request
            except BaseException:
                connection.close()
                raise
            if response.will_close:
                connection.close()
            else:
                self._idle.append(connection)
            return response.status, body


def credential(proxy: SplitResult) -> dict[str, str]:
    """Return the header that shows user and password of a proxy's URL, if it has any (RFC 7617)."""
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"proxy-authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def serve(handle: Callable[[Request], Response]) -> None:
    """
    Answer until SIGTERM or SIGINT; `GET /health` needs no help from *handle*.

    HOST and PORT say where, as with many frameworks: port 9080 on IPv4 and IPv6 if they say nothing.
    """
    host = environment("HOST", "::" if socket.has_dualstack_ipv6() else "")
    port = int(environment("PORT", "9080"))
    server = _Server((host, port), _handler(handle))
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever(), which runs in this very thread; so another one has to call it.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"listening on port {port}", flush=True)
    server.serve_forever(poll_interval=0.1)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is not worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(handle: Callable[[Request], Response]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body leave in one packet

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, parts.query, headers, self.rfile.read(length))
            if request.path == "/health":
                response = Response.of_json({"status": "healthy"})
            else:
                try:
                    response = handle(request)
                except Exception:  # noqa: BLE001 - a mistake in a program is a 500, not a dead connection
                    sys.excepthook(*sys.exc_info())
                    response = Response.of_json({"error": "internal error"}, 500)
            self.send_response(response.status)
            self.send_header("content-type", response.content_type)
            self.send_header("content-length", str(len(response.body)))
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)
            if request.path != "/health":
                print(f"{request.method} {self.path} {response.status}", flush=True)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - the names are http.server's

        def log_message(self, *arguments: Any) -> None:
            """Requests are logged above; the rest is noise."""

    return Handler


def environment(name: str, default: str) -> str:
    """Return a setting of this program."""
    return os.environ.get(name) or default
