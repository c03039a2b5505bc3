"""Messages of HTTP/2 that would mean something else in HTTP/1.1: what weft-proxy and Envoy make of each, and what goes on."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, over_http2
from tests.conformance.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    POST,
    PROTOCOL_ERROR,
    RST_STREAM,
    Wire,
    fields,
    frame,
    status,
)
from tests.conformance.proxies import LIMIT, ROOT, Static, until
from tests.conformance.upstream import END, Accepting, Upstream, Witness, fields_of, read_exactly, read_head, read_rest
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

CASES = json.loads((ROOT / "crates" / "proxy" / "tests" / "live" / "downgrade.json").read_text())
"""The same that crates/proxy/tests/live/downgrade.rs puts to weft-proxy alone."""

RESET, ENDED = "the stream is reset", "the connection is ended"

OTHERWISE: dict[str, int] = {
    # RFC 9113 8.2.1: a value has neither at its ends; HTTP/1.1 would take them for what surrounds it.
    "a space before a value": 200,
    "a tab after a value": 200,
    # RFC 9113 8.3.1: treated as malformed if they differ. Envoy drops `host`, so both readings of the request are one.
    "host against :authority": 200,
    # RFC 3986 2: a path is ASCII. What the program makes of it depends on the program.
    "beyond ASCII in :path": 200,
    # RFC 9113 8.3.1 leaves no place for a fragment. Envoy takes it for a request that is well-formed and wrong.
    "a fragment in :path": 400,
}
"""
What Envoy answers to heads that weft-proxy takes for malformed.

All others Envoy takes for malformed, too. For RFC 9113 8.1.1 that is an error of the stream; Envoy ends the whole
connection, and with it what else is under way on it (`override_stream_error_on_invalid_http_message` is its default).
"""


class Sayer(Accepting):
    """An upstream of HTTP/2 whose every answer is the block of fields that is to be said."""

    said = b""

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(TimeoutError):
            wire = Wire.server(connection)
            for found in wire.rest():
                if found.kind == HEADERS:
                    wire.send(HEADERS, END_HEADERS, found.stream, self.said)


@pytest.fixture(scope="module")
def seen() -> Iterator[Witness]:
    with Witness() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def sayer() -> Iterator[Sayer]:
    with Sayer() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    with upstream.socket:
        yield upstream


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, seen: Witness, sayer: Sayer, upstream: Upstream
) -> Iterator[tuple[Static, ...]]:
    """Both data planes; `one` leads to *seen*, `two` to *sayer*, `frames` to *upstream*."""

    def resources(ports: dict[str, int]) -> Json:
        return {
            "clusters": [
                cluster("one", seen.port),
                cluster("two", sayer.port, **over_http2()),
                cluster("frames", upstream.port, **over_http2()),
            ],
            "listeners": [
                listener(name, port, http_filters([{"match": {"prefix": ""}, "route": {"cluster": name}}]))
                for name, port in ports.items()
            ],
        }

    with both(tmp_path_factory.mktemp("downgrade"), ("one", "two", "frames"), resources) as running:
        yield running


@pytest.fixture(params=(ENVOY, WEFT_PROXY))
def proxy(request: pytest.FixtureRequest, proxies: tuple[Static, ...], seen: Witness) -> Static:
    """Each of them, with an upstream that has seen nothing."""
    seen.forget()
    return next(proxy for proxy in proxies if proxy.kind == request.param)


def encoded(pairs: list[list[str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in pairs]


def ends(proxy: Static, messages: list[bytes]) -> list[str | int]:
    """How each of *messages*, the frames of stream 1 of a connection of its own, ends. They are under way at once."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire.client(proxy.ports["one"])) for _ in messages]
        for wire, message in zip(wires, messages, strict=True):
            wire.write(message)
        return [end(wire) for wire in wires]


def end(wire: Wire) -> str | int:
    """A status, or what else has become of stream 1."""
    for found in wire.rest():
        if found.kind == HEADERS:
            return status(found.payload)
        if found.kind == RST_STREAM:
            assert found.code == PROTOCOL_ERROR, found
            return RESET
        assert found.kind != GOAWAY, found
    return ENDED


def until_over(seen: Witness) -> None:
    """Wait until every connection has ended on which a request was begun; Envoy keeps others for the next."""
    until("what was begun has ended", lambda: all(it.ended or not it.data for it in seen.connections))


def names(kind: str) -> list[str]:
    return [case["name"] for case in CASES[kind]]


def test_a_head_that_means_another_in_http1_is_refused(proxy: Static, seen: Witness) -> None:
    """By weft-proxy every one of the table, alone; by Envoy all but four. Nothing of the refused goes on."""
    messages = []
    for index, case in enumerate(CASES["requests"]):
        more = encoded(case["fields"])
        head = dict(GET)
        head |= {name: value for name, value in more if name in head}
        rest = [pair for pair in more if pair[0] not in head]
        block = fields(*head.items(), *rest, (b"x-case", str(index).encode()))
        messages.append(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
    found = dict(zip(names("requests"), ends(proxy, messages), strict=True))
    usual, otherwise = (ENDED, OTHERWISE) if proxy.kind == ENVOY else (RESET, {})
    assert found == {name: otherwise.get(name, usual) for name in found}
    passed = sorted(name for name, how in otherwise.items() if how == 200)
    came = [int(index) for index in re.findall(rb"\r\nx-case: (\d+)\r\n", seen.data)]
    assert sorted(names("requests")[index] for index in came) == passed
    assert seen.data.count(b" HTTP/1.1\r\n") == seen.data.count(END) == len(passed)
    assert b"evil" not in seen.data


def test_a_body_that_is_not_what_its_head_says_is_never_a_whole_message(proxy: Static, seen: Witness) -> None:
    """Both reset the stream. What had been passed on before is left unfinished, and nothing follows it."""
    messages = []
    for case in CASES["bodies"]:
        message = frame(HEADERS, END_HEADERS, 1, fields(*POST, (b"content-length", case["length"].encode())))
        for part in case["data"][:-1]:
            message += frame(DATA, 0, 1, part.encode())
        messages.append(message + frame(DATA, END_STREAM, 1, case["data"][-1].encode()))
    found = dict(zip(names("bodies"), ends(proxy, messages), strict=True))
    assert found == dict.fromkeys(found, RESET)
    until_over(seen)
    for connection in seen.connections:
        head, end, body = connection.data.partition(END)
        length = re.search(rb"\r\ncontent-length: (\d)", head)
        assert not end or (length and len(body) <= int(length[1])), connection
        assert b"smuggled" not in connection.data


def test_trailers_that_mean_another_in_http1_never_end_a_message(proxy: Static, seen: Witness) -> None:
    """The message is malformed, as with such a head: its stream is reset, by Envoy its connection ended."""
    messages = [
        frame(HEADERS, END_HEADERS, 1, fields(*POST))
        + frame(DATA, 0, 1, b"abc")
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, fields(*encoded(case["fields"])))
        for case in CASES["trailers"]
    ]
    found = dict(zip(names("trailers"), ends(proxy, messages), strict=True))
    assert found == dict.fromkeys(found, ENDED if proxy.kind == ENVOY else RESET)
    until_over(seen)
    for connection in seen.connections:
        assert connection.data.partition(END)[2] in {b"", b"3\r\nabc\r\n"}, connection


def test_an_answer_that_means_another_in_http1_is_never_passed_on(proxy: Static, sayer: Sayer) -> None:
    """The client is told 502 by both."""
    for case in CASES["responses"]:
        sayer.said = fields(*encoded(case["fields"]))
        with socket.create_connection(("127.0.0.1", proxy.ports["two"]), LIMIT) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
            answer = read_rest(client)
        assert answer.startswith(b"HTTP/1.1 502 "), (case["name"], answer)
        assert b"\r\nx: " not in answer, (case["name"], answer)
        assert b"evil" not in answer, (case["name"], answer)
        assert answer.count(b"HTTP/1.1") == 1, (case["name"], answer)


PACES = ("at once", "one by one")
"""How the frames of an answer come. One by one: each when the client has got what was in the one before."""

REACHED = {(ENVOY, "at once"), (ENVOY, "one by one"), (WEFT_PROXY, "one by one")}
"""
Where a client gets as much as the head says before more is seen.

Envoy passes on each frame before it looks at the next, weft-proxy what it has read at once.
"""


def is_whole(proxy: Static, upstream: Upstream, pace: str, head: bytes, parts: dict[bytes, bytes], last: bytes) -> bool:
    """
    Whether a client of HTTP/1.1 takes a success for a whole message. Its *head*, *parts* and *last* are frames of stream 1.

    What the client gets of a part is its value.
    """
    with socket.create_connection(("127.0.0.1", proxy.ports["frames"]), LIMIT) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
        with Wire.serving(upstream.accept()) as server:
            assert server.next(HEADERS).stream == 1
            answer = b""
            if pace == "one by one":
                server.write(head)
                answer = read_head(client)
                for part, passed in parts.items():
                    server.write(part)
                    assert read_exactly(client, len(passed)) == passed
                    answer += passed
                server.write(last)
            else:
                server.write(head + b"".join(parts) + last)
            answer += read_rest(client)
    assert not answer or answer.startswith(b"HTTP/1.1 200 "), answer
    assert answer.count(b"HTTP/1.1") <= 1, answer
    head, end, body = answer.partition(END)
    told = fields_of(head)
    if b"content-length" in told:
        assert len(body) <= int(told[b"content-length"]), answer
        return len(body) == int(told[b"content-length"])
    return bool(end) and (told.get(b"transfer-encoding") != b"chunked" or body.endswith(b"0\r\n\r\n"))


@pytest.mark.parametrize("pace", PACES)
def test_an_answer_whose_body_is_not_what_its_head_says_is_cut_short(
    proxy: Static, upstream: Upstream, pace: str
) -> None:
    """Or ends where its head says, if that much had been passed on before: that cannot be taken back. Nothing follows it."""
    whole = set()
    for case in CASES["bodies"]:
        head = frame(HEADERS, END_HEADERS, 1, OK + fields((b"content-length", case["length"].encode())))
        *parts, last = (part.encode() for part in case["data"])
        passed = {frame(DATA, 0, 1, part): part for part in parts}
        if is_whole(proxy, upstream, pace, head, passed, frame(DATA, END_STREAM, 1, last)):
            whole.add(case["name"])
    reached = {"a request beyond the length", "DATA after a length of 0"}
    assert whole == (reached if (proxy.kind, pace) in REACHED else set())


@pytest.mark.parametrize("pace", PACES)
def test_trailers_that_mean_another_in_http1_never_end_an_answer(proxy: Static, upstream: Upstream, pace: str) -> None:
    head, data = frame(HEADERS, END_HEADERS, 1, OK), frame(DATA, 0, 1, b"abc")
    for case in CASES["trailers"]:
        trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, fields(*encoded(case["fields"])))
        passed = {data: b"3\r\nabc\r\n"}
        assert not is_whole(proxy, upstream, pace, head, passed, trailers), case["name"]
