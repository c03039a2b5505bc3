"""What loads a proxy looks at its answers: a run with a wrong one has no figure, and one with right ones has."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bench.certificates import Authority
from bench.load import Load, WrongAnswersError, h2load, handshakes, wrk
from bench.process import free_port, program, running, wait_for_port

CORES = os.sched_getaffinity(0)

LENGTH = 8
RIGHT = b"x" * LENGTH
"""What each client is told to expect."""

Answer = tuple[int, bytes]

WRONG: dict[str, Answer] = {
    "status": (503, RIGHT),
    "length": (200, RIGHT[1:]),
}


@contextmanager
def server(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Give *answer* to every request of HTTP/1.1, over TLS by *context*; yield the port."""
    status, body = answer
    said = f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    def serve(plain: socket.socket) -> None:
        # A client of TLS that has seen enough leaves as it likes.
        with suppress(OSError), plain, context.wrap_socket(plain, server_side=True) if context else plain as connection:
            asked = b""
            while part := connection.recv(65536):
                *heads, asked = (asked + part).split(b"\r\n\r\n")
                connection.sendall(said * len(heads))
                if any(b"\r\nconnection: close" in head for head in heads):
                    return

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()


Loader = Callable[[Answer, Path], Load]


def by_wrk(answer: Answer, work: Path) -> Load:
    with server(answer) as port:
        url = f"http://127.0.0.1:{port}/"
        return wrk.apply(url, seconds=1, connections=1, cores=CORES, length=LENGTH, letter="x", work=work)


def by_h2load(answer: Answer, work: Path) -> Load:
    with server(answer) as port:
        url = f"http://127.0.0.1:{port}/"
        return h2load.apply(url, cores=CORES, length=LENGTH, requests=20, http1=True)


def by_h2load_with_log(answer: Answer, work: Path) -> Load:
    with server(answer) as port:
        url = f"http://127.0.0.1:{port}/"
        return h2load.apply(url, cores=CORES, length=LENGTH, requests=20, http1=True, log=work / "times")


def by_handshakes(answer: Answer, work: Path) -> Load:
    authority = Authority(work / "authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.called.chain, authority.called.key)
    with server(answer, context) as port:
        return handshakes.apply(port, authority.caller, seconds=0.3, cores=CORES, length=LENGTH, letter="x", work=work)


LOADERS: list[Loader] = [by_wrk, by_h2load, by_h2load_with_log, by_handshakes]


@pytest.mark.parametrize("load", LOADERS)
def test_right_answers_are_counted(load: Loader, tmp_path: Path) -> None:
    seen = load((200, RIGHT), tmp_path)
    assert seen.requests > 0
    assert seen.seconds > 0


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("load", LOADERS)
def test_a_wrong_answer_is_an_error(load: Loader, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(WrongAnswersError):
        load(WRONG[wrong], tmp_path)


@pytest.mark.parametrize("load", [by_wrk, by_handshakes])
def test_a_body_of_something_else_is_an_error(load: Loader, tmp_path: Path) -> None:
    """As long as the right one: h2load tells no more than its length."""
    with pytest.raises(WrongAnswersError):
        load((200, b"y" * LENGTH), tmp_path)


@contextmanager
def rpc_server(work: Path, status: int) -> Iterator[str]:
    """Answer `/right` with one message and *status* as `grpc-status`, and other paths with 404; yield the URL."""
    port = free_port()
    (work / "right").write_bytes(RIGHT)
    command: list[str | Path] = [program("nghttpd"), "--no-tls", f"--trailer=grpc-status: {status}", "-d", work]
    with running([*command, "-a", "127.0.0.1", str(port)], log=work / "log") as process:
        wait_for_port(port, process=process)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [("right", LENGTH, 2), ("right", LENGTH + 1, 0), ("wrong", LENGTH, 0)],
    ids=["grpc-status", "length", "status"],
)
def test_a_call_of_grpc_is_right_in_all_of_its_answer(path: str, length: int, status: int, tmp_path: Path) -> None:
    request = tmp_path / "request"
    request.write_bytes(b"r")
    with rpc_server(tmp_path, 0) as url:
        h2load.check_grpc(f"{url}/right", data=request, length=LENGTH)
    with rpc_server(tmp_path, status) as url, pytest.raises(WrongAnswersError):
        h2load.check_grpc(f"{url}/{path}", data=request, length=length)
