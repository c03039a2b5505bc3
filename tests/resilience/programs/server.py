"""
An ordinary HTTP server: `server.py NAME PORT`. Answers each path with its own bytes, and each POST with the digest of its body.

On SIGTERM it finishes what it has begun, as well-behaved servers do.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import socketserver
import sys
import threading
import time

from content import body

GRACE_SECONDS, QUIET_SECONDS = 0.8, 0.15
"""At most so long after SIGTERM, and until no request has begun or been under way for so long."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    busy, last = 0, 0.0
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer(body(self.path))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self._answer(hashlib.sha256(content).hexdigest().encode())

    def _answer(self, content: bytes) -> None:
        with Handler.lock:
            Handler.busy += 1
        try:
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.send_header("x-served-by", sys.argv[1])
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
        finally:
            with Handler.lock:
                Handler.busy -= 1
                Handler.last = time.monotonic()

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
server.serve_forever()
