"""`weft proxy-config log`, with an admin socket that answers as both data planes do (tests/conformance/test_admin.py compares them)."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl

import pytest

from tests.cli.conftest import Weft
from tests.controlplane.peers import Mesh

NAMES = ("admin", "http", "xds")


class Admin(socketserver.ThreadingUnixStreamServer):
    """Keeps levels, and takes one parameter at a time, as Envoy."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.levels = dict.fromkeys(NAMES, "info")
        self.asked: list[dict[str, str]] = []
        super().__init__(path, Answer)


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the name is http.server's
        assert isinstance(self.server, Admin)
        path, _, query = self.path.partition("?")
        assert path == "/logging"
        asked = dict(parse_qsl(query))
        self.server.asked.append(asked)
        status, levels = 200, self.server.levels
        match asked:
            case {"level": "critical"}:
                status = 400
            case {"level": level}:
                levels.update(dict.fromkeys(NAMES, level))
            case {"paths": paths}:
                levels.update(pair.split(":") for pair in paths.split(","))
        text = "active loggers:\n" + "".join(f"  {name}: {level}\n" for name, level in levels.items())
        body = (text if status == 200 else f"error: unknown logger level\n\nusage:\n{text}").encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name for it
        """Say nothing."""


@pytest.fixture
def admin(mesh: Mesh) -> Iterator[Admin]:
    mesh.running("reviews")
    path = mesh.paths.workload("reviews-v1-0").admin_socket
    path.parent.mkdir(parents=True, exist_ok=True)
    with Admin(str(path)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def test_levels_are_shown_and_nothing_is_changed(admin: Admin, weft: Weft) -> None:
    result = weft("proxy-config", "log", "reviews")
    assert result.stdout.splitlines() == ["COMPONENT   LEVEL", *(f"{name:<9}   info" for name in NAMES)]
    assert json.loads(weft("proxy-config", "log", "reviews", "--name", "x", "-o", "json").stdout) == {"xds": "info"}
    assert admin.asked == [{}, {}]


def test_a_level_alone_is_for_all_and_comes_first(admin: Admin, weft: Weft) -> None:
    arguments = ("proxy-config", "log", "reviews-v1-0", "-o", "json")
    shown = json.loads(weft(*arguments, "--level", "xds:debug,warning,http:off").stdout)
    assert shown == {"admin": "warning", "http": "off", "xds": "debug"}
    assert admin.asked == [{}, {"level": "warning"}, {"paths": "xds:debug,http:off"}]
    assert json.loads(weft(*arguments, "--reset").stdout) == dict.fromkeys(NAMES, "info")
    shown = json.loads(weft(*arguments, "--reset", "--level", "http:trace").stdout)
    assert shown == {"admin": "info", "http": "trace", "xds": "info"}


@pytest.mark.parametrize(
    ("level", "says"),
    [
        ("xds:loud", "There is no level 'loud'. There are: trace, debug, info, warning, error, critical, off."),
        ("debgu", "Did you mean 'debug'?"),
        ("info,xsd:debug", "--level xsd:debug: There is no component 'xsd'. Did you mean 'xds'?"),
    ],
)
def test_what_there_is_not_changes_nothing(admin: Admin, weft: Weft, level: str, says: str) -> None:
    result = weft("proxy-config", "log", "reviews", "--level", level)
    assert result.exit_code == 2
    assert says in result.stderr
    assert admin.asked == [{}]


def test_what_the_proxy_refuses_is_told(admin: Admin, weft: Weft) -> None:
    result = weft("proxy-config", "log", "reviews", "--level", "critical")
    assert (result.exit_code, result.stderr) == (2, "error: unknown logger level\n")
    assert admin.asked


def test_levels_are_of_the_log_and_of_proxies_that_answer(mesh: Mesh, weft: Weft) -> None:
    mesh.running("reviews")
    result = weft("proxy-config", "routes", "reviews", "--level", "debug")
    assert (result.exit_code, result.stderr) == (2, "error: --level and --reset go with `weft proxy-config log`.\n")
    result = weft("proxy-config", "log", "reviews")
    assert result.exit_code == 1
    assert "The proxy of reviews-v1-0 does not answer" in result.stderr
    assert weft("proxy-config", "log", "nobody").exit_code == 4
