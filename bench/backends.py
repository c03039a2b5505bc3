"""
What stands behind the proxies: nginx or nghttpd with one answer under load, and small servers of our own for probes.

Those of our own are threads of the bench, which does nothing else while a proxy is probed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.process import free_port, program, running, wait_for_port
from bench.role import Ports

BODY_LETTER = "w"
CANARY_LETTER = "c"
HOLD_SECONDS = 0.5
GRPC_PATH = "/shop.Catalogue/Find.grpc"
"""With an ending, because nghttpd tells the content type by it."""


@contextlib.contextmanager
def http(work: Path, *, length: int, cores: set[int], probes: bool = True) -> Iterator[Ports]:
    """Run nginx with one answer of *length* bytes on two ports, and another letter on the canary's."""
    home = work / "backend"
    home.mkdir(exist_ok=True)
    ports = [free_port() for _ in range(3)]
    (home / "body").write_text(BODY_LETTER * length)
    (home / "canary").write_text(CANARY_LETTER * length)

    def server(file: str, *listens: int) -> str:
        lines = " ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in listens)
        return f"server {{ {lines} location / {{ root {home}; try_files /{file} =404; }} }}"

    (home / "nginx.conf").write_text(
        f"""{"user root;" if os.geteuid() == 0 else ""}
daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 9000; }}
http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; client_body_temp_path {home}/b;
  proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  open_file_cache max=10; sendfile on; tcp_nopush off; output_buffers 2 256k;
  {server("body", *ports[:2])}
  {server("canary", ports[2])} }}
"""
    )
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            running([program("nginx"), "-c", home / "nginx.conf"], cores=cores, log=home / "log")
        )
        wait_for_port(ports[0], process=process)
        yield _with_probes(stack, Ports((ports[0], ports[1]), canary=ports[2])) if probes else Ports((ports[0],))


@contextlib.contextmanager
def grpc(work: Path, *, length: int, cores: set[int]) -> Iterator[Ports]:
    """Run nghttpd (h2c) with one gRPC message of *length* bytes and `grpc-status: 0` as its trailer, and a canary."""
    with contextlib.ExitStack() as stack:
        port, canary = (
            stack.enter_context(_nghttpd(work / f"nghttpd-{letter}", grpc_message(letter, length), cores=cores))
            for letter in (BODY_LETTER, CANARY_LETTER)
        )
        yield _with_probes(stack, Ports((port,), canary=canary))


@contextlib.contextmanager
def _nghttpd(home: Path, message: bytes, *, cores: set[int]) -> Iterator[int]:
    port = free_port()
    file = home / GRPC_PATH.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(message)
    (home / "mime.types").write_text("application/grpc grpc\n")
    command: list[str | Path] = [program("nghttpd"), "--no-tls", "--trailer=grpc-status: 0", "-d", home, "-n", "1"]
    command += ["-m", "1000", f"--mime-types-file={home / 'mime.types'}", "-a", "127.0.0.1", str(port)]
    with running(command, cores=cores, log=home / "log") as process:
        wait_for_port(port, process=process)
        yield port


def grpc_message(letter: str, length: int) -> bytes:
    """Return one uncompressed message in gRPC's framing."""
    return b"\0" + length.to_bytes(4, "big") + letter.encode() * length


class _Probed(BaseHTTPRequestHandler):
    """Answers with what it saw, as JSON; `/hold` after a while. HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if self.path.startswith("/hold"):
            threading.Event().wait(HOLD_SECONDS)
        seen = {
            "port": self.server.server_address[1],
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        content = json.dumps(seen).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Probed)
        self.status = status

    def handle_error(self, *_: Any) -> None:
        """Proxies close connections as they like."""


def _with_probes(stack: contextlib.ExitStack, ports: Ports) -> Ports:
    def serve(status: int) -> int:
        server = _Server(status)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        port: int = server.server_address[1]
        return port

    return Ports(ports.answer, ports.canary, echo=(serve(200), serve(200)), failing=serve(500), busy=serve(503))
