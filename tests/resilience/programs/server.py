"""
An ordinary HTTP server: `server.py NAME PORT [URL]`. Answers each path with its own bytes, and each POST with the digest of its body.

With a URL it passes every request on to there, each connection's by one of its own, and the answer back; 599 says that none came.

On SIGTERM it finishes what it has begun, as well-behaved servers do.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import os
import signal
import socket
import socketserver
import sys
import threading
import time
from urllib.parse import urlsplit

from content import body

URL = urlsplit(sys.argv[3]) if len(sys.argv) > 3 else None

GRACE_SECONDS, QUIET_SECONDS = 0.8, 0.3
"""At most so long after SIGTERM, and until no request has begun or been under way for so long."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    busy, last = 0, 0.0
    lock = threading.Lock()

    onward: http.client.HTTPConnection | None = None
    begun = False

    def parse_request(self) -> bool:
        """Its first line is here: it is under way."""
        with Handler.lock:
            Handler.busy += 1
        self.begun = True
        return super().parse_request()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        finally:
            if self.begun:
                self.begun = False
                with Handler.lock:
                    Handler.busy -= 1
                    Handler.last = time.monotonic()

    def do_GET(self) -> None:
        self._answer(*(self._pass_on(None) if URL else (200, sys.argv[1], body(self.path))))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        digest = hashlib.sha256(content).hexdigest().encode()
        self._answer(*(self._pass_on(content) if URL else (200, sys.argv[1], digest)))

    def _pass_on(self, content: bytes | None) -> tuple[int, str, bytes]:
        """Return status, server and body of the answer from there."""
        headers = {name: self.headers[name] for name in ("end-user", "x-request-id") if name in self.headers}
        try:
            if self.onward is None:
                self.onward = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=20)
                self.onward.connect()
                self.onward.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.onward.request(self.command, self.path, content, headers)
            response = self.onward.getresponse()
            data = response.read()
            if response.will_close:
                self._forget()
            return response.status, response.getheader("x-served-by", ""), data
        except (OSError, http.client.HTTPException) as error:
            self._forget()
            return 599, "", repr(error).encode()

    def _forget(self) -> None:
        if self.onward is not None:
            self.onward.close()
        self.onward = None

    def finish(self) -> None:
        self._forget()
        super().finish()

    def _answer(self, status: int, who: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.send_header("x-served-by", who)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None: ...


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def server_bind(self) -> None:  # without the look-up of http.server's own
        self.socket.setsockopt(1, 2, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "server", int(sys.argv[2])

    def handle_error(self, *_: object) -> None: ...


def end(*_: object) -> None:
    def finish() -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        Handler.last = time.monotonic()
        while time.monotonic() < deadline and (Handler.busy or time.monotonic() - Handler.last < QUIET_SECONDS):
            time.sleep(0.001)
        os._exit(0)

    threading.Thread(target=finish).start()


server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
signal.signal(signal.SIGTERM, end)
# More than a page, for which a full disk has no room in the last one of its log.
print(sys.argv[1], "serves", "." * 5000, flush=True)
server.serve_forever()
