"""Milliseconds from before exec to the first connection accepted, and to the first request answered; then features are probed."""

from __future__ import annotations

import contextlib
import socket
import time

from bench import backends, peers, probes, role
from bench.measure import Run, Series, Table
from bench.role import Role

BODY_BYTES = 1024
PEERS = ("weft-proxy", "envoy", "haproxy", "nginx", "relay")


def run(run: Run) -> list[Table]:
    """Configuration received over xDS is included."""
    work = run.folder("start")
    names = [each for each in PEERS if each in run.peers]
    listening = {name: Series("ms") for name in names}
    answering = {name: Series("ms") for name in names}
    with backends.http(work, length=BODY_BYTES, cores=run.cores.rest) as ports:
        for _ in range(run.rounds):
            for name in names:
                bare = Role(ports, role.BARE)
                with peers.start(name, bare, work, run.cores.proxy) as peer:
                    answered = _first_answer(peer.port)
                    listening[name].samples.append((peer.listened - peer.began) * 1e3)
                    answering[name].samples.append((answered - peer.began) * 1e3)
                    probes.check(peer, bare)
                    counts = probes.Counts(peer, bare)
                    _first_answer(peer.port)
                    counts.check(1)
    return [
        Table("start.listening", "Start, from exec until a connection is accepted", listening),
        Table("start.answering", "Start, from exec until a request is answered", answering),
    ]


def _first_answer(port: int, *, timeout: float = 15.0) -> float:
    """Return the moment (time.monotonic) at which the first GET had its whole answer, with status and content."""
    deadline = time.monotonic() + timeout
    wanted = backends.BODY_LETTER.encode() * BODY_BYTES
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            head, _, body = _ask(port, len(wanted)).partition(b"\r\n\r\n")
            if b" 200 " in head.split(b"\r\n")[0] and body == wanted:
                return time.monotonic()
        time.sleep(0.0005)
    raise TimeoutError(f"no right answer on {port} within {timeout} s")


def _ask(port: int, length: int) -> bytes:
    """Return an answer with a body of that length, or what comes of it; a library for HTTP would take longer than some proxies."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while len(answer.partition(b"\r\n\r\n")[2]) < length and (part := client.recv(65536)):
            answer += part
        return answer
