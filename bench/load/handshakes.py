"""
A connection with a full mTLS handshake for each request, and connections that idle: a client of our own.

wrk and h2load show no client certificate. `python -m bench.load.handshakes` is the loading process; it checks of each
answer the status and all of the body, and of each connection that it is TLS 1.3 and resumes no session.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.load import Load, WrongAnswersError
from bench.role import Tls

THREADS = 4
OPENSSL = """openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
Groups = X25519
"""
"""Python cannot choose the groups of key exchange; its OpenSSL can."""


def apply(
    port: int,
    tls: Tls,
    *,
    seconds: float,
    cores: set[int],
    length: int,
    letter: str,
    work: Path,
    address: str = "127.0.0.1",
    enter: Callable[[], None] | None = None,
) -> Load:
    """
    Load *port* of *address* for *seconds*.

    Args:
        enter: Called in the loading process before it starts.

    Raises:
        WrongAnswersError: One answer was not as expected.
    """
    configuration = work / "openssl.cnf"
    configuration.write_text(OPENSSL)
    command = [sys.executable, "-m", "bench.load.handshakes", str(port), str(seconds), str(length), letter]
    command += [str(tls.chain), str(tls.key), str(tls.roots), address]
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, sorted(cores))), *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENSSL_CONF": str(configuration)},
        preexec_fn=enter,
    )
    if done.returncode:
        raise WrongAnswersError(f"handshakes with {address}:{port}: {done.stderr}")
    return Load(**json.loads(done.stdout))


def client_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of a client in the mesh that speaks HTTP/1.1."""
    context = ssl.create_default_context(cafile=str(tls.roots))
    context.load_cert_chain(tls.chain, tls.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def ask(connection: socket.socket, body: bytes, *, close: bool) -> None:
    """GET / on *connection* and read the answer to its end; raise if it is not 200 with *body*."""
    ending = b"connection: close\r\n" if close else b""
    connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + ending + b"\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + len(body):
        part = connection.recv(65536)
        if not part:
            break
        answer += part
    head, _, found = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or found != body:
        raise WrongAnswersError(f"expected 200 and {len(body)} bytes, came {head!r} and {len(found)}")


def _load(place: tuple[str, int], context: ssl.SSLContext, body: bytes, until: float, taken: list[float]) -> None:
    while (began := time.monotonic()) < until:
        with (
            socket.create_connection(place, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            if connection.session_reused or connection.version() != "TLSv1.3":
                raise WrongAnswersError(f"expected a full handshake of TLS 1.3, came {connection.version()}")
            ask(connection, body, close=True)
        taken.append(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("seconds", float), ("length", int), ("letter", str)):
        parser.add_argument(name, type=kind)
    for name in ("chain", "key", "roots"):
        parser.add_argument(name, type=Path)
    parser.add_argument("address")
    options = parser.parse_args()
    context = client_context(Tls(options.chain, options.key, options.roots, ""))
    body = options.letter.encode() * options.length
    began = time.monotonic()
    taken: list[float] = []
    failed: list[BaseException] = []

    def load() -> None:
        try:
            _load((options.address, options.port), context, body, began + options.seconds, taken)
        except (OSError, WrongAnswersError) as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed or not taken:
        sys.exit(f"{len(failed)} of {THREADS} clients failed: {failed[:1]}")
    taken.sort()
    seen = Load(len(taken), time.monotonic() - began, taken[len(taken) // 2] * 1e6, taken[int(len(taken) * 0.99)] * 1e6)
    print(json.dumps(seen.__dict__))


if __name__ == "__main__":
    main()
