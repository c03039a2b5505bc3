"""Judges of HTTP/2 from outside: h2spec."""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener
from tests.conformance.proxies import Static, judge
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

CASES = 146
"""Of h2spec 2.6, generic and RFC 7540 and 7541 together."""


FAILURES: dict[str, set[str]] = {
    WEFT_PROXY: set(),
    ENVOY: {
        # What it does not answer as the judge expects: it passes over the frame, or says nothing before it closes.
        "generic/3.8: Sends a GOAWAY frame",
        "http2/5.1: closed: Sends a DATA frame",
        "http2/5.1: closed: Sends a DATA frame after sending RST_STREAM frame",
        "http2/5.1: closed: Sends a HEADERS frame",
        "http2/5.1: closed: Sends a HEADERS frame after sending RST_STREAM frame",
        "http2/5.1.1: Sends stream identifier that is numerically smaller than previous",
        "http2/5.3.1: Sends PRIORITY frame that depend on itself",
        "http2/5.4.1: Sends an invalid PING frame to receive GOAWAY frame",
        "http2/6.3: Sends a PRIORITY frame with 0x0 stream identifier",
        "http2/6.9.1: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1",
        "http2/6.9.1: Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
        "http2/7: Sends a GOAWAY frame with unknown error code",
    },
}
"""What fails of them, by data plane."""

PATIENCE_SECONDS = {WEFT_PROXY: "5", ENVOY: "2"}
"""For what does not come; of Envoy it does not for most of what fails."""


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every request, once it has ended, with a body long enough for the cases that shrink windows."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            # An answer before the end would race with what the judge does wrong after the head.
            while size := int(self.rfile.readline() or b"0", 16):
                self.rfile.read(size + len(b"\r\n"))
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("content-length") or 0))
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


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    server = Server(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, upstream: int) -> Iterator[tuple[Static, Static]]:
    """Both data planes, before the same upstream."""

    def resources(ports: dict[str, int]) -> Json:
        # Envoy would wait for a second before it closes, in every case that ends with that.
        manager = {"codec_type": "HTTP2", "delayed_close_timeout": "0.1s"}
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up"}}], manager=manager)
        return {"clusters": [cluster("up", upstream)], "listeners": [listener("in", ports["in"], filters)]}

    with both(tmp_path_factory.mktemp("h2spec"), ("in",), resources) as proxies:
        yield proxies


@pytest.mark.parametrize("kind", FAILURES)
def test_every_case_of_h2spec_passes(kind: str, running: tuple[Static, Static], tmp_path: Path) -> None:
    """Frames, streams, errors, flow control, HPACK and message rules, as h2spec sees them; on Envoy all but some."""
    program = judge("h2spec")
    proxy = next(proxy for proxy in running if proxy.kind == kind)
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            program,
            "-h",
            "127.0.0.1",
            "-p",
            str(proxy.ports["in"]),
            "-o",
            PATIENCE_SECONDS[kind],
            "--strict",
            "-j",
            str(report),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    # It writes bytes of frames as they came, which XML does not allow.
    text = re.sub(rb"[^\t\n\r\x20-\x7e]", b"?", report.read_bytes())
    cases = list(ElementTree.fromstring(text).iter("testcase"))
    failed = {
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert failed == FAILURES[kind], done.stdout[-6000:]
    assert len(cases) == CASES
    assert not [case for case in cases if case.find("skipped") is not None]
