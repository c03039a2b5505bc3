"""Judges of HTTP/2 from outside: h2spec."""

from __future__ import annotations

import http.server
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.proxies import cluster, judge, listener, proxies
from tests.ports import free_port

pytestmark = pytest.mark.conformance

CASES = 146
"""Of h2spec 2.6, generic and RFC 7540 and 7541 together."""


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every request with a body long enough for the cases that shrink windows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        body = b"weft " * 40
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class Server(http.server.ThreadingHTTPServer):
    """Says nothing about requests that are given up: half of the cases do that."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """The judge judges."""


@pytest.fixture
def upstream() -> Iterator[int]:
    server = Server(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_case_of_h2spec_passes(tmp_path: Path, upstream: int) -> None:
    """Frames, streams, errors, flow control, HPACK and message rules, as h2spec sees them."""
    program = judge("h2spec")
    port, report = free_port(), tmp_path / "report.xml"
    with proxies(tmp_path / "proxies", "web") as (proxy,):
        proxy.publish(
            cluster("up", upstream, http2=False), listener("in", port, "up", log=proxy.log, codec_type="HTTP2")
        )
        done = subprocess.run(
            [program, "-h", "127.0.0.1", "-p", str(port), "-o", "5", "--strict", "-j", str(report)],
            capture_output=True,
            text=True,
            timeout=600,
        )
    suites = ElementTree.parse(report).getroot()
    cases = list(suites.iter("testcase"))
    failed = [f"{case.get('package')}: {case.get('classname')}" for case in cases if case.find("failure") is not None]
    failed += [f"{case.get('package')}: {case.get('classname')}" for case in cases if case.find("error") is not None]
    assert not failed, done.stdout[-6000:]
    assert len(cases) == CASES
    assert not [case for case in cases if case.find("skipped") is not None]
