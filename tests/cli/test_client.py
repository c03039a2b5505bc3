"""The client of a control plane that is away for a moment, or for longer, or with its mesh."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from weft.agent import paths
from weft.cli import delete
from weft.cli.apply import send
from weft.cli.client import Client
from weft.cli.documents import Sources
from weft.errors import MeshNotRunning, WeftError

OUTCOME = {"revision": 7, "results": [], "affected": []}
ANSWER = f"HTTP/1.1 200 OK\r\ncontent-length: {len(json.dumps(OUTCOME))}\r\n\r\n{json.dumps(OUTCOME)}".encode()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket's path, of a mesh that runs."""
    monkeypatch.setattr(paths, "lock_holder", lambda _: 1)
    return tmp_path / "api.sock"


@contextmanager
def serving(place: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve one call at *place*: its request is read, then *answer* has its connection."""

    def serve() -> None:
        with server.accept()[0] as call:
            request = b""
            while not request.endswith(b"}"):
                request += call.recv(65536)
            answer(call)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def refusing(place: Path) -> None:
    """Leave a socket at *place* to which nobody listens, as a process does that was killed."""
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(place))


@pytest.mark.parametrize("call", ["apply", "delete"])
def test_an_edit_is_waited_for_as_long_as_it_takes(place: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Behind other edits, and with proxies that are silent, that is longer than for any other answer."""
    monkeypatch.setitem(Client.post.__kwdefaults__, "timeout", 0.05)
    patient: list[bool] = []

    def answer(connection: socket.socket) -> None:
        connection.settimeout(0.3)
        try:
            patient.append(bool(connection.recv(1)))
        except TimeoutError:
            patient.append(True)
            connection.sendall(ANSWER)

    with serving(place, answer):
        if call == "apply":
            assert send(Client(place), "/v1/apply", Sources({"a.yaml": "..."})) == OUTCOME
        else:
            monkeypatch.setattr(delete, "connect", lambda _: Client(place))
            monkeypatch.setattr(delete, "mesh_namespace", lambda _: "default")
            monkeypatch.setattr(Client, "get", lambda *_, **__: [])
            assert CliRunner().invoke(delete.command, ["vs", "a"]).exception is None
    assert patient == [True]


def test_an_edit_that_is_not_answered_may_have_been_made(place: Path) -> None:
    with serving(place, lambda _: None), pytest.raises(WeftError, match="`weft get` shows what is in force"):
        send(Client(place), "/v1/apply", Sources({"a.yaml": "..."}))


def test_a_control_plane_that_comes_back_is_waited_for(place: Path) -> None:
    refusing(place)
    asked: list[bytes] = []

    def come_back() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            place.unlink()
            server.bind(str(place))
            server.listen()
            with server.accept()[0] as call:
                request = b""
                while not request.endswith(b"{}"):
                    request += call.recv(65536)
                asked.append(request)
                call.sendall(ANSWER)

    back = threading.Timer(0.2, come_back)
    back.start()
    assert Client(place, "shop", patience=20.0).post("/v1/apply", {}) == OUTCOME
    back.join()
    assert len(asked) == 1


def test_one_that_stays_away_is_told_from_a_mesh_that_does_not_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(place)
    with pytest.raises(WeftError, match=r"The mesh 'shop' runs.*control-plane\.log") as away:
        Client(place, "shop", patience=0.1).get("/v1/version")
    assert away.value.exit_code == 1
    monkeypatch.setattr(paths, "lock_holder", lambda _: None)
    with pytest.raises(MeshNotRunning, match="`weft up` starts one"):
        Client(place, "shop", patience=60.0).get("/v1/version")


def test_without_patience_nothing_is_waited_for(place: Path) -> None:
    with pytest.raises(MeshNotRunning, match="No mesh 'shop' answers"):
        Client(place, "shop").get("/v1/version")
