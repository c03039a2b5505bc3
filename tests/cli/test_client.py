"""The client of a control plane that is away for a moment, or for longer, or with its mesh."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from weft.agent import paths
from weft.cli.client import Client
from weft.errors import MeshNotRunning, WeftError

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"revision": 7}'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A socket's path, of a mesh that runs."""
    monkeypatch.setattr(paths, "lock_holder", lambda _: 1)
    return tmp_path / "api.sock"


def refusing(place: Path) -> None:
    """Leave a socket at *place* to which nobody listens, as a process does that was killed."""
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(place))


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
    assert Client(place, "shop", patience=20.0).post("/v1/apply", {}) == {"revision": 7}
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
