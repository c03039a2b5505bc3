"""Limits of heads, of time and of buffers: the same clients and upstreams at stock Envoy and at weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, http_options, listener, records
from tests.conformance.frames import (
    ACK,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    Wire,
    fields,
    number,
    settings,
    status,
)
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, read_answer, read_exactly, read_head, read_rest
from weft.data_plane import ENVOY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

Seen = dict[str, object]

SHORT_SECONDS = 0.3
"""A limit that is to be met."""

FIELDS = {"status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "why": "%RESPONSE_CODE_DETAILS%"}

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: up\r\ncontent-length: %d\r\n\r\n"


def kibibytes(count: int) -> bytes:
    """A header field of so many."""
    return b"x: " + b"v" * ((count << 10) - len(b"x: \r\n")) + b"\r\n"


def some(count: int) -> bytes:
    """So many header fields."""
    return b"".join(b"x-%d: y\r\n" % index for index in range(count))


@dataclass
class Play:
    """A client of one proxy, its upstream, and another client beside it."""

    client: socket.socket
    upstream: Upstream
    connect: Callable[[], socket.socket]

    def answer(self) -> Seen:
        """What the client is told, and whether its connection is closed then; by which end of TCP is each data plane's own affair."""
        status, body, closes = read_answer(self.client)
        return {"status": status, "body": body, "closed": closes and read_rest(self.client) == b""}


# ------------------------------------------------------------------------------------------------------ what is played


def ask(head: bytes, answer: bytes = HELLO) -> Callable[[Play], Seen]:
    """A request with *head* beside its Host; what the upstream was sent of that."""

    def play(it: Play) -> Seen:
        with contextlib.suppress(ConnectionError):  # it may be answered before it is read
            it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n" + head + b"\r\n")
        came, _, _ = select.select([it.client, it.upstream.socket], [], [], LIMIT)
        whole = None
        if it.upstream.socket in came:
            with it.upstream.accept() as connection:
                whole = head in read_head(connection)
                connection.sendall(answer)
        status, body, _ = read_answer(it.client)
        return {"upstream": whole, "status": status, "whole": body == b"hello"}

    return play


def answered(head: bytes) -> Callable[[Play], Seen]:
    """A request whose answer has *head*; whether the client is given it."""

    def play(it: Play) -> Seen:
        it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
        with it.upstream.taken() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + head + b"content-length: 5\r\n\r\nhello")
            told = read_head(it.client)
        return {"status": int(told.split()[1]), "whole": head in told}

    return play


def with_trailers(trailers: bytes) -> Callable[[Play], Seen]:
    """A request with *trailers*, of which its upstream is sent all, none, or not even the end of the body."""

    def play(it: Play) -> Seen:
        it.client.sendall(b"POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        rest = b""
        with it.upstream.taken() as connection, contextlib.suppress(ConnectionError):
            read_exactly(connection, len(b"1\r\nx\r\n"))
            it.client.sendall(b"0\r\n" + trailers + b"\r\n")
            rest = read_head(connection)
            connection.sendall(HELLO)
        told = {b"0\r\n" + trailers + b"\r\n": "all", b"0\r\n\r\n": "none", b"": "cut off"}
        return {"upstream": told[rest], "status": read_answer(it.client).status}

    return play


def slowly(start: bytes, piece: bytes) -> Callable[[Play], Seen]:
    """A request of which a piece comes now and then, and never the last."""

    def play(it: Play) -> Seen:
        began = time.monotonic()
        it.client.sendall(start)
        while not select.select([it.client], [], [], 0.02)[0] and time.monotonic() < began + LIMIT:
            with contextlib.suppress(ConnectionError):
                it.client.sendall(piece)
        seen = it.answer() | {"in time": time.monotonic() - began >= SHORT_SECONDS * 0.9}
        return seen | {"upstream": upstream_of_half(it)}

    return play


def upstream_of_half(it: Play) -> str:
    """What the upstream has of a request that was not whole."""
    if not select.select([it.upstream.socket], [], [], 0)[0]:
        return "nothing"
    with it.upstream.accept() as connection:
        read_head(connection)
        read_rest(connection)
        return "cut off"


def stand_still(start: bytes) -> Callable[[Play], Seen]:
    """A request that ends in the middle."""
    return slowly(start, b"")


def silent_upstream(it: Play) -> Seen:
    """A request that is whole, and an upstream that says nothing to it."""
    it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
    with it.upstream.taken() as connection:
        seen = it.answer()
        return seen | {"upstream": read_rest(connection)}


def answer_stands_still(it: Play) -> Seen:
    it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
    with it.upstream.taken() as connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        head = read_head(it.client)
        return {"status": int(head.split()[1]), "rest": read_rest(it.client), "upstream": read_rest(connection)}


def rest_between_requests(it: Play) -> Seen:
    """A connection that has had its answer is closed; one whose answer is still to come, and is older, is not."""
    with it.connect() as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
        with it.upstream.taken() as late:
            it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            with it.upstream.taken() as connection:
                connection.sendall(HELLO)
            first, _, _ = read_answer(it.client)
            began = time.monotonic()
            rest = read_rest(it.client)
            took = time.monotonic() - began
            late.sendall(HELLO)
        status, body, _ = read_answer(waiting)
    return {"first": first, "rest": rest, "in time": took >= SHORT_SECONDS * 0.9, "status": status, "body": body}


def outlast(it: Play) -> Seen:
    """A request whose answer comes when its connection is too old for another: whole, and the last one."""
    it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
    with it.upstream.taken() as connection:
        began = time.monotonic()
        until("the connection is too old", lambda: time.monotonic() - began > 2 * SHORT_SECONDS)
        connection.sendall(HELLO)
    return it.answer()


def rest_until_too_old(it: Play) -> Seen:
    """A connection that is too old and has nothing to do; how long it is left for what may be on its way is each data plane's own affair."""
    began = time.monotonic()
    it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
    with it.upstream.taken() as connection:
        connection.sendall(HELLO)
    status, _, closes = read_answer(it.client)
    rest = read_rest(it.client)
    # Envoy rounds its clock, and reads it seldom.
    in_time = time.monotonic() - began >= SHORT_SECONDS * 0.9
    return {"status": status, "closes": closes, "rest": rest, "in time": in_time}


def three_at_once(it: Play) -> Seen:
    """Three requests of one connection, one behind the other; what is answered, and whether the connection says so and ends."""
    it.client.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n" * 3)
    answers = []
    while not answers or not answers[-1].closes:
        with it.upstream.taken() as connection:
            connection.sendall(HELLO)
        answers.append(read_answer(it.client))
    return {"answers": answers, "rest": read_rest(it.client)}


LAST_STREAM = (1 << 31) - 1


@contextlib.contextmanager
def in_http2(it: Play) -> Iterator[Wire]:
    """The client, which speaks HTTP/2."""
    with contextlib.closing(Wire(it.client)) as client:
        client.write(PREFACE + settings({}))
        yield client


def heard(client: Wire, stream: int) -> tuple[int, bytes]:
    """Status and body of the answer to *stream*, which comes next."""
    head = client.next()
    assert (head.kind, head.stream) == (HEADERS, stream), head
    return status(head.payload), client.body(stream)


def is_sent_away(client: Wire) -> bool:
    """Whether the client is told next that its connection will end, and that what it sends meanwhile is taken (RFC 9113 6.8)."""
    told = client.next()
    return (told.kind, told.code, told.payload[:4]) == (GOAWAY, NO_ERROR, number(LAST_STREAM))


def last_taken(client: Wire) -> list[int]:
    """The last stream that each GOAWAY names, when all is answered and the connection ends."""
    named = []
    for found in client.rest():
        if found.kind == PING:
            client.send(PING, ACK, 0, found.payload)
        else:
            assert (found.kind, found.code) == (GOAWAY, NO_ERROR), found
            named.append(int.from_bytes(found.payload[:4]))
    return named


def rest_in_http2(it: Play) -> Seen:
    """A connection of HTTP/2 rests when its answer has come, however late that was; then it ends in order."""
    with in_http2(it) as client:
        client.get(1)
        with it.upstream.taken() as connection:
            began = time.monotonic()
            until("it would have rested for too long", lambda: time.monotonic() - began > 2 * SHORT_SECONDS)
            began = time.monotonic()
            connection.sendall(HELLO)
        answer = heard(client, 1)
        told = is_sent_away(client)
        in_time = time.monotonic() - began >= SHORT_SECONDS * 0.9
        return {"answer": answer, "told": told, "in time": in_time, "last": last_taken(client)}


def three_in_http2(it: Play) -> Seen:
    """Three requests of two. With the second the client is told; it and what comes before the client can know are answered."""
    with in_http2(it) as client:
        client.get(1)
        with it.upstream.taken() as connection:
            connection.sendall(HELLO)
        answers = [heard(client, 1)]
        client.get(3)
        with it.upstream.taken() as second:
            told = is_sent_away(client)
            client.get(5)
            with it.upstream.taken() as third:
                third.sendall(HELLO)
                answers.append(heard(client, 5))
            second.sendall(HELLO)
            answers.append(heard(client, 3))
        return {"told": told, "answers": answers, "last": last_taken(client)}


def two_tries(it: Play) -> Seen:
    """A request whose body is 40,000 bytes, a first try that fails, and whether there is another with all of it."""
    body = bytes(range(256)) * 157
    sending = threading.Thread(target=it.client.sendall, args=(POST % len(body) + body,))
    sending.start()
    whole = []
    for answer in (BUSY, HELLO):
        came, _, _ = select.select([it.upstream.socket, it.client], [], [], LIMIT)
        if it.upstream.socket not in came:
            break
        with it.upstream.taken() as connection:
            whole.append(read_exactly(connection, len(body)) == body)
            connection.sendall(answer)
    sending.join()
    status, _, _ = read_answer(it.client)
    return {"tries": whole, "status": status}


# ------------------------------------------------------------------------------------------------------ the cases


@dataclass(frozen=True)
class Case:
    """What both data planes are told, what is played, and what is seen of it."""

    play: Callable[[Play], Seen]
    seen: Seen
    manager: Json = field(default_factory=dict)
    route: Json = field(default_factory=dict)
    cluster: Json = field(default_factory=dict)
    listener: Json = field(default_factory=dict)
    record: Json | None = None
    """What is recorded; None: nothing is."""
    envoy: Json = field(default_factory=dict)
    """What is otherwise at Envoy, of what is seen and recorded; `why` says in words."""
    why: str = ""


def record(status: int, why: str, flags: str = "-") -> Json:
    return {"status": status, "why": why, "flags": flags}


SERVED: Seen = {"upstream": True, "status": 200, "whole": True}
VIA = record(200, "via_upstream")
TOO_LARGE_RECORD = record(431, "http1.headers_too_large", "DPE")
TOO_MANY_RECORD = record(431, "http1.too_many_headers", "DPE")
REFUSED_RECORD = record(502, "upstream_reset_before_response_started{protocol_error}", "UPE")
TOO_LARGE: Seen = {"upstream": None, "status": 431, "whole": False}
LARGE: Json = {"max_request_headers_kb": 600, "common_http_protocol_options": {"max_headers_count": 1000}}
SHORT = f"{SHORT_SECONDS}s"
NO_TIMEOUT: Json = {"timeout": "0s"}
RETRY: Json = {"retry_policy": {"retry_on": "5xx", "num_retries": 1}}
NO_TRAILERS = "Envoy drops the trailers of HTTP/1 unless it is told to enable them, and so need not count them"
TIMED_OUT: Seen = {"status": 408, "closed": True, "in time": True}


def of_responses(kibibytes: int | None = None, count: int | None = None) -> Json:
    limits = {"max_response_headers_kb": kibibytes, "max_headers_count": count}
    return http_options(
        common_http_protocol_options={name: value for name, value in limits.items() if value is not None},
        explicit_http_config={"http_protocol_options": {}},
    )


CASES = {
    "a value of 59 KiB, by default": Case(ask(kibibytes(59)), SERVED, record=VIA),
    "a value of 61 KiB, by default": Case(ask(kibibytes(61)), TOO_LARGE, record=TOO_LARGE_RECORD),
    "90 fields, by default": Case(ask(some(90)), SERVED, record=VIA),
    "101 fields, by default": Case(ask(some(101)), TOO_LARGE, record=TOO_MANY_RECORD),
    "a value of 500 KiB of 600": Case(ask(kibibytes(500)), SERVED, LARGE, record=VIA),
    "a value of 601 KiB of 600": Case(ask(kibibytes(601)), TOO_LARGE, LARGE, record=TOO_LARGE_RECORD),
    "990 fields of 1000": Case(ask(some(990)), SERVED, LARGE, record=VIA),
    "1001 fields of 1000": Case(ask(some(1001)), TOO_LARGE, LARGE, record=TOO_MANY_RECORD),
    "trailers as many as heads may have fields": Case(
        with_trailers(some(5)),
        {"upstream": "all", "status": 200},
        {"common_http_protocol_options": {"max_headers_count": 8}},
        record=VIA,
        envoy={"upstream": "none"},
        why=NO_TRAILERS,
    ),
    "more trailers than heads may have fields": Case(
        with_trailers(some(9)),
        {"upstream": "cut off", "status": 400},
        {"common_http_protocol_options": {"max_headers_count": 8}},
        record=record(400, "http1.codec_error", "DPE"),
        envoy={"upstream": "none", "status": 200, "record": VIA},
        why=NO_TRAILERS,
    ),
    "an answer's head of 59 KiB, by default": Case(answered(kibibytes(59)), {"status": 200, "whole": True}, record=VIA),
    "an answer's head of 79 KiB, by default": Case(answered(kibibytes(79)), {"status": 200, "whole": True}, record=VIA),
    "an answer's head of 81 KiB, by default": Case(
        answered(kibibytes(81)), {"status": 502, "whole": False}, record=REFUSED_RECORD
    ),
    "an answer's head of 200 KiB of 201": Case(
        answered(kibibytes(200)), {"status": 200, "whole": True}, cluster=of_responses(201), record=VIA
    ),
    "an answer's head of 9 KiB of 8": Case(
        answered(kibibytes(9)), {"status": 502, "whole": False}, cluster=of_responses(8), record=REFUSED_RECORD
    ),
    "an answer's head of 101 fields, by default": Case(
        answered(some(101)), {"status": 502, "whole": False}, record=REFUSED_RECORD
    ),
    "an answer's head of 290 fields of 300": Case(
        answered(some(290)), {"status": 200, "whole": True}, cluster=of_responses(None, 300), record=VIA
    ),
    "a head that trickles": Case(
        slowly(b"GET / HTTP/1.1\r\nhost: up\r\nx: ", b"y"),
        TIMED_OUT | {"body": b"request header timeout", "upstream": "nothing"},
        {"request_headers_timeout": SHORT},
        record=record(408, "request_header_timeout"),
    ),
    "a head that trickles, line by line": Case(
        slowly(b"GET / HTTP/1.1\r\nhost: up\r\n", b"x: y\r\n"),
        TIMED_OUT | {"body": b"request header timeout", "upstream": "nothing"},
        {"request_headers_timeout": SHORT, "common_http_protocol_options": {"max_headers_count": 10_000}},
        record=record(408, "request_header_timeout"),
    ),
    "a head that stands still": Case(
        stand_still(b"GET / HTTP/1.1\r\nhost: u"),
        TIMED_OUT | {"body": b"stream timeout", "upstream": "nothing"},
        {"stream_idle_timeout": SHORT},
        record=record(408, "stream_idle_timeout", "SI"),
    ),
    "a body that trickles": Case(
        slowly(POST % 1_000_000 + b"abc", b"y"),
        TIMED_OUT | {"body": b"request timeout", "upstream": "cut off"},
        {"request_timeout": SHORT},
        NO_TIMEOUT,
        record=record(408, "request_overall_timeout"),
    ),
    "a body that trickles in chunks": Case(
        slowly(b"POST / HTTP/1.1\r\nhost: up\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
        TIMED_OUT | {"body": b"request timeout", "upstream": "cut off"},
        {"request_timeout": SHORT},
        NO_TIMEOUT,
        record=record(408, "request_overall_timeout"),
    ),
    "a head that trickles, for longer than the whole request may": Case(
        slowly(b"GET / HTTP/1.1\r\nhost: up\r\nx: ", b"y"),
        TIMED_OUT | {"body": b"request timeout", "upstream": "nothing"},
        {"request_timeout": SHORT},
        record=record(408, "request_overall_timeout"),
    ),
    "a body that stands still": Case(
        stand_still(POST % 10 + b"abc"),
        TIMED_OUT | {"body": b"stream timeout", "upstream": "cut off"},
        {"stream_idle_timeout": SHORT},
        NO_TIMEOUT,
        record=record(408, "stream_idle_timeout", "SI"),
    ),
    "a body that trickles for longer than a stream may last": Case(
        slowly(POST % 1_000_000 + b"abc", b"y"),
        TIMED_OUT | {"body": b"downstream duration timeout", "upstream": "cut off"},
        {"common_http_protocol_options": {"max_stream_duration": SHORT}},
        NO_TIMEOUT,
        record=record(408, "max_duration_timeout"),
    ),
    "an upstream that says nothing": Case(
        silent_upstream,
        {"status": 504, "body": b"stream timeout", "closed": False, "upstream": b""},
        {"stream_idle_timeout": SHORT},
        NO_TIMEOUT,
        record=record(504, "stream_idle_timeout", "SI"),
    ),
    "an upstream that says nothing, for longer than the route allows": Case(
        silent_upstream,
        {"status": 504, "body": b"stream timeout", "closed": False, "upstream": b""},
        {"stream_idle_timeout": "60s"},
        NO_TIMEOUT | {"idle_timeout": SHORT},
        record=record(504, "stream_idle_timeout", "SI"),
    ),
    "an upstream that says nothing within the route's timeout": Case(
        silent_upstream,
        {"status": 504, "body": b"upstream request timeout", "closed": False, "upstream": b""},
        route={"timeout": SHORT},
        record=record(504, "response_timeout", "UT"),
    ),
    "an answer that stands still": Case(
        answer_stands_still,
        {"status": 200, "rest": b"abc", "upstream": b""},
        {"stream_idle_timeout": SHORT},
        NO_TIMEOUT,
        record=record(200, "stream_idle_timeout", "SI"),
    ),
    "a connection at rest": Case(
        rest_between_requests,
        {"first": 200, "rest": b"", "in time": True, "status": 200, "body": b"hello"},
        {"common_http_protocol_options": {"idle_timeout": SHORT}},
        NO_TIMEOUT,
        record=VIA,
    ),
    "a connection at rest that has lasted too long": Case(
        rest_until_too_old,
        {"status": 200, "closes": False, "rest": b"", "in time": True},
        {"common_http_protocol_options": {"max_connection_duration": SHORT}},
        record=VIA,
    ),
    "a connection that has lasted too long for another request": Case(
        outlast,
        {"status": 200, "body": b"hello", "closed": True},
        {"common_http_protocol_options": {"max_connection_duration": SHORT}},
        record=VIA,
    ),
    "a third request of two": Case(
        three_at_once,
        {"answers": [(200, b"hello", False), (200, b"hello", True)], "rest": b""},
        {"common_http_protocol_options": {"max_requests_per_connection": 2}},
        record=VIA,
    ),
    "a connection of HTTP/2 at rest": Case(
        rest_in_http2,
        {"answer": (200, b"hello"), "told": True, "in time": True, "last": [1]},
        {"common_http_protocol_options": {"idle_timeout": SHORT}},
        NO_TIMEOUT,
        record=VIA,
    ),
    "a third request of two, over HTTP/2": Case(
        three_in_http2,
        {"told": True, "answers": [(200, b"hello")] * 3, "last": [5]},
        {"common_http_protocol_options": {"max_requests_per_connection": 2}},
        record=VIA,
    ),
    "a body that is kept for another try": Case(
        two_tries, {"tries": [True, True], "status": 200}, route=RETRY, record=VIA
    ),
    "a body larger than the listener's buffer": Case(
        two_tries,
        {"tries": [True], "status": 503},
        route=RETRY,
        listener={"per_connection_buffer_limit_bytes": 16 << 10},
        record=record(503, "via_upstream"),
    ),
    "a body larger than the cluster's buffer": Case(
        two_tries,
        {"tries": [True], "status": 503},
        route=RETRY,
        cluster={"per_connection_buffer_limit_bytes": 16 << 10},
        record=record(503, "via_upstream"),
        envoy={"tries": [True, True], "status": 200, "record": VIA},
        why="Envoy's limit of a cluster is of a connection to its endpoints alone; ours keeps no more than either side allows",
    ),
    "buffers without a limit": Case(
        two_tries,
        {"tries": [True, True], "status": 200},
        route=RETRY,
        listener={"per_connection_buffer_limit_bytes": 0},
        cluster={"per_connection_buffer_limit_bytes": 0},
        record=VIA,
    ),
}


@dataclass
class Running:
    """Both data planes with a listener for each case, and the upstream of all."""

    proxies: tuple[Static, Static]
    upstream: Upstream
    directory: Path

    def log(self, proxy: Static, name: str) -> Path:
        return self.directory / f"{proxy.ports[name]}.log"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("limits")
    upstream = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        listeners, clusters = [], []
        for name, case in CASES.items():
            route = {"match": {"prefix": "/"}, "route": {"cluster": name, **case.route}}
            log = file_log(directory / f"{ports[name]}.log", FIELDS)
            filters = http_filters([route], manager={"access_log": log, **case.manager})
            listeners.append(listener(name, ports[name], filters, **case.listener))
            clusters.append(cluster(name, upstream.port, **case.cluster))
        return {"clusters": clusters, "listeners": listeners}

    with upstream.socket, both(directory, tuple(CASES), resources) as proxies:
        yield Running(proxies, upstream, directory)


@pytest.mark.parametrize("name", CASES)
def test_a_limit_is_the_same_at_both(running: Running, name: str) -> None:
    """What the client is told, what the upstream is sent, and what is recorded."""
    case = CASES[name]
    found, expected = {}, {}
    for proxy in running.proxies:
        other = case.envoy if proxy.kind == ENVOY else {}
        assert not other or case.why
        expected[proxy.kind] = {**case.seen, **{key: other[key] for key in case.seen.keys() & other.keys()}}
        expected[proxy.kind]["record"] = other.get("record", case.record)

        def connect(proxy: Static = proxy) -> socket.socket:
            return socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT)

        with connect() as client:
            seen = case.play(Play(client, running.upstream, connect))
        log = running.log(proxy, name)
        if case.record is not None:
            until("it is recorded", lambda log=log: bool(records(log)))
        found[proxy.kind] = seen | {"record": records(log)[-1] if records(log) else None}
        assert running.upstream.forget() == 0, "more came than was looked at"
    assert found == expected


def test_a_head_of_http2_that_stands_still(tmp_path: Path) -> None:
    """
    Envoy answers the request and resets its stream; what else is under way goes on.

    weft-proxy ends the connection: nothing can be sent by it but the rest of that head (RFC 9113 6.10). Who is told so may ask again.
    """
    upstream = Upstream()

    def log(ports: dict[str, int]) -> Path:
        return tmp_path / f"{ports['http']}.log"

    def resources(ports: dict[str, int]) -> Json:
        manager = {"request_headers_timeout": SHORT, "access_log": file_log(log(ports), FIELDS)}
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up", **NO_TIMEOUT}}], manager=manager)
        return {"clusters": [cluster("up", upstream.port)], "listeners": [listener("http", ports["http"], filters)]}

    with upstream.socket, both(tmp_path, ("http",), resources) as (envoy, weft):
        for proxy in (envoy, weft):
            with Wire.client(proxy.ports["http"]) as client:
                client.next(SETTINGS)  # whose acknowledgement must not come in the middle of a head
                client.get(1)
                with upstream.taken() as connection:
                    began = time.monotonic()
                    client.send(HEADERS, END_STREAM, 3, fields(*GET))
                    if proxy is envoy:
                        assert heard(client, 3) == (408, b"request header timeout")
                        assert time.monotonic() - began >= SHORT_SECONDS * 0.9
                        assert client.next() == Frame(RST_STREAM, 0, 3, number(NO_ERROR))
                        connection.sendall(HELLO)
                        assert heard(client, 1) == (200, b"hello")
                    else:
                        told = client.next()
                        assert time.monotonic() - began >= SHORT_SECONDS * 0.9
                        assert (told.kind, told.code, told.payload[:4]) == (GOAWAY, ENHANCE_YOUR_CALM, number(1))
                        assert list(client.rest()) == []
                        assert read_rest(connection) == b""
            assert upstream.forget() == 0, "a head that is not whole is not passed on"
        expected = [record(408, "request_header_timeout"), VIA]
        until("both are recorded", lambda: len(records(log(envoy.ports))) == len(expected))
        assert records(log(envoy.ports)) == expected
        until("what was cut off is recorded", lambda: bool(records(log(weft.ports))))
        assert [(found["status"], found["flags"]) for found in records(log(weft.ports))] == [(0, "DPE")]
