"""
What stands behind the proxies: nginx or nghttpd with one answer under load, and small servers of our own for probes.

Those of our own are threads of the bench, which does nothing else while a proxy is probed.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.process import free_port, program, running, wait_for_port
from bench.role import Ports, Tls

BODY_LETTER = "w"
CANARY_LETTER = "c"
HOLD_SECONDS = 0.5
LONGEST_SECONDS = 60.0
"""How long a request is held that nobody releases."""
HELD_PATH, RELEASE_PATH = "/held", "/release"
"""Of the server that holds requests, asked directly: how many there are; let them go."""
GRPC_PATH = "/shop.Catalogue/Find.grpc"
"""With an ending, because nghttpd tells the content type by it."""


@contextlib.contextmanager
def http(work: Path, *, length: int, cores: set[int], impostor: Tls | None = None) -> Iterator[Ports]:
    """
    Run nginx with one answer of *length* bytes on two ports, and another letter on the canary's.

    *impostor* is the certificate of a further server, for probes.
    """
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
        yield _with_probes(stack, Ports((ports[0], ports[1]), canary=ports[2]), impostor)


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
    """Answers with what it saw, as JSON; `/hold` after a while, and what is held when it is released. HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        gate = self.server.gate
        if self.path.startswith("/hold"):
            threading.Event().wait(HOLD_SECONDS)
        elif gate and self.path == RELEASE_PATH:
            gate.open()
        elif gate and self.path != HELD_PATH:
            gate.pass_through()
        seen = {
            "held": gate.held if gate else 0,
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


class _Gate:
    """Where requests wait until they are let go."""

    def __init__(self) -> None:
        self.held = 0
        self._changing = threading.Lock()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        with self._changing:
            self.held += 1
            opened = self._opened
        opened.wait(LONGEST_SECONDS)

    def open(self) -> None:
        """Let go who waits; the next ones wait again."""
        with self._changing:
            self.held = 0
            self._opened.set()
            self._opened = threading.Event()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, status: int, gate: _Gate | None = None, tls: Tls | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Probed)
        self.status = status
        self.gate = gate
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.chain, tls.key)
            context.set_alpn_protocols(["http/1.1"])
            # Shaking hands is left to the threads of the connections.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: Any) -> None:
        """Proxies close connections as they like."""


def _with_probes(stack: contextlib.ExitStack, ports: Ports, impostor: Tls | None = None) -> Ports:
    def serve(status: int, gate: _Gate | None = None, tls: Tls | None = None) -> int:
        server = _Server(status, gate, tls)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        port: int = server.server_address[1]
        return port

    return replace(
        ports,
        echo=(serve(200), serve(200)),
        failing=serve(500),
        busy=serve(503),
        slow=serve(200, _Gate()),
        impostor=serve(200, tls=impostor) if impostor else 0,
    )
