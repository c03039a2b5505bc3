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
from weft.cli import apply, delete
from weft.cli.apply import await_receipt, send
from weft.cli.client import Client, Unanswered
from weft.cli.documents import Sources
from weft.errors import MeshNotRunning, WeftError

OUTCOME = {"revision": 7, "results": [], "warnings": [], "affected": []}
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


@contextmanager
def answering(place: Path, *answers: bytes) -> Iterator[None]:
    """Serve one call after another at *place*: each is read, answered with the next of *answers*, and cut off."""

    def serve() -> None:
        for answer in answers:
            with server.accept()[0] as call, call.makefile("rb") as lines:
                length = 0
                while (line := lines.readline()).strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                lines.read(length)
                call.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def ok(value: object) -> bytes:
    content = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(content), content)


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


RECEIPT = {"silent": [], "late": [], "refused": [], "acknowledged": ["a"], "affected": ["a"]}


def test_a_receipt_is_asked_for_again_where_the_control_plane_dies(place: Path) -> None:
    with answering(place, b"", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", ok(RECEIPT)):
        assert await_receipt(Client(place), 7, 20.0) == RECEIPT


@pytest.mark.parametrize("edit", ["apply", "delete"])
def test_an_edit_that_is_not_told_who_has_it_says_what_was_done(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    (tmp_path / "a.yaml").write_text("...")
    key = {"kind": "Gateway", "namespace": "default", "name": "a"}
    result = {"key": key, "api_version": "networking.istio.io/v1", "action": f"{edit}d"}
    outcome = {"revision": 7, "results": [result], "affected": ["a"], "warnings": []}
    module = {"apply": apply, "delete": delete}[edit]
    monkeypatch.setattr(module, "connect", lambda _: Client(place))
    with answering(place, ok(outcome), b""):
        done = CliRunner().invoke(module.command, ["-f", str(tmp_path / "a.yaml"), "--timeout", "0s"])
    assert done.stdout == f"gateway.networking.istio.io/a {edit}d\n"
    assert isinstance(done.exception, WeftError)
    assert str(done.exception).startswith("Who has revision 7 is not known. The control plane did not answer")
    assert str(done.exception).endswith("`weft wait --revision 7` asks again.")


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        (b"4\r\n{}\n\n\r\n0\r\n\r\n", False),
        (b"4\r\n{}\n\n\r\n", False),  # killed between two events, which cannot be told from an end
        (b'9\r\n{}\n{"typ', True),
    ],
)
def test_a_stream_of_events_that_breaks_off_is_told(place: Path, body: bytes, broken: bool) -> None:
    opened: list[bool] = []
    found = []
    with answering(place, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body):
        try:
            for event in Client(place).events(opened=lambda: opened.append(not found)):
                found.append(event)
        except Unanswered:
            assert broken
        else:
            assert not broken
    assert (found, opened) == ([{}], [True])
