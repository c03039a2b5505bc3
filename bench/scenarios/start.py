"""Milliseconds from before fork and exec to the first connection accepted, and to the first request answered."""

from __future__ import annotations

import contextlib
import time
import urllib.request

from bench import backends, peers, role
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
                with peers.start(name, Role(ports, role.BARE), work, run.cores.proxy) as peer:
                    answered = _first_answer(peer.port)
                    listening[name].samples.append((peer.listened - peer.began) * 1e3)
                    answering[name].samples.append((answered - peer.began) * 1e3)
    return [
        Table("start.listening", "Start, from exec until a connection is accepted", listening),
        Table("start.answering", "Start, from exec until a request is answered", answering),
    ]


def _first_answer(port: int, *, timeout: float = 15.0) -> float:
    """Return the moment (time.monotonic) at which the first GET had its whole answer, with status and content."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
            if answer.read() == backends.BODY_LETTER.encode() * BODY_BYTES:
                return time.monotonic()
        time.sleep(0.0005)
    raise TimeoutError(f"no right answer on {port} within {timeout} s")
