"""The programs behind the proxies under test: echo servers that say what reached them, and misbehave when told to."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Misbehaviour:
    """What the next requests meet: a pause before the answer, or a failing status for the first `fail_times` tries."""

    delay_seconds: float = 0.0
    fail_times: int = 0
    status: int = 500
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_status(self) -> int:
        with self.lock:
            self.seen += 1
            return self.status if self.seen <= self.fail_times else 200


class Upstreams:
    """One echo server for each workload, each on a loopback address of its own, all on one port from the kernel."""

    def __init__(self, workloads: Mapping[str, str]) -> None:
        """*workloads*: name -> IPv4 address of the loopback range."""
        self.misbehaviour = Misbehaviour()
        self.received: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        """Request id -> workload and path of each request that came with it."""
        self.servers: list[ThreadingHTTPServer] = []
        self.port = 0
        for name, address in workloads.items():
            server = ThreadingHTTPServer((address, self.port), self._handler(name))
            server.daemon_threads = True
            self.port = self.port or server.server_address[1]
            self.servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def behave(self, **what: float) -> None:
        """Set the misbehaviour for the requests that follow; nothing means none."""
        self.misbehaviour = Misbehaviour(**what)  # type: ignore[arg-type]

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def _handler(self, name: str) -> type[BaseHTTPRequestHandler]:
        upstreams = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                behaviour = upstreams.misbehaviour
                if behaviour.delay_seconds and "quick" not in self.path:
                    time.sleep(behaviour.delay_seconds)  # the upstream is slow; the test waits for nothing by it
                status = behaviour.next_status()
                headers = {key.lower(): value for key, value in self.headers.items()}
                upstreams.received[headers.get("x-request-id", "")].append((name, self.path))
                body = json.dumps(
                    {"workload": name, "method": self.command, "path": self.path, "headers": headers}
                ).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.send_header("x-echo", name)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                """Say nothing: the proxies' access records tell more."""

            def handle(self) -> None:
                # A proxy that gives up on a slow answer closes the connection: that is the point of some cases.
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        return Handler
