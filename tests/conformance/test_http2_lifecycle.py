"""How streams and connections of HTTP/2 end, on both sides of weft-proxy and of Envoy; and what ends for a peer that floods."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, http_options, listener, over_http2
from tests.conformance.frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    INTERNAL_ERROR,
    LAST_STREAM,
    NO_ERROR,
    OK,
    PING,
    POST,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Wire,
    answered,
    fields,
    frame,
    number,
    status,
)
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream, Witness, several
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

INTERVAL_SECONDS, PATIENCE_SECONDS, AGE_SECONDS = 0.2, 0.4, 0.3

KEEPALIVE = {"connection_keepalive": {"interval": f"{INTERVAL_SECONDS}s", "timeout": f"{PATIENCE_SECONDS}s"}}
AGE = {"max_connection_duration": f"{AGE_SECONDS}s"}
AGAIN = {"retry_on": "refused-stream", "num_retries": 1}

LISTENERS: dict[str, tuple[Json, Json, Json]] = {
    "plain": ({}, {}, over_http2()),
    "again": ({}, {"retry_policy": AGAIN}, over_http2()),
    "keepalive": ({"http2_protocol_options": KEEPALIVE}, {}, over_http2(**KEEPALIVE)),
    "age": ({"common_http_protocol_options": AGE}, {}, over_http2()),
    "worn": (
        {},
        {},
        http_options(common_http_protocol_options=AGE, explicit_http_config={"http2_protocol_options": {}}),
    ),
    "drained": ({}, {}, over_http2()),
}
"""By name of a listener and its cluster: what its connection manager is told, its route, and its cluster."""

FLOODED = "flooded"
"""The listener whose program speaks HTTP/1.1."""


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Upstream]]:
    with several(LISTENERS) as found:
        yield found


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    with Witness() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, upstreams: dict[str, Upstream], witness: Witness
) -> Iterator[tuple[Static, Static]]:
    def filters(name: str, manager: Json, **action: object) -> list[Json]:
        route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s", **action}}
        return http_filters([route], manager=manager)

    def resources(ports: dict[str, int]) -> Json:
        clusters = [cluster(name, upstreams[name].port, **options) for name, (_, _, options) in LISTENERS.items()]
        listeners = [
            listener(name, ports[name], filters(name, manager, **action))
            for name, (manager, action, _) in LISTENERS.items()
        ]
        clusters.append(cluster(FLOODED, witness.port))
        listeners.append(listener(FLOODED, ports[FLOODED], filters(FLOODED, {})))
        return {"clusters": clusters, "listeners": listeners}

    with both(tmp_path_factory.mktemp("lifecycle"), (*LISTENERS, FLOODED), resources) as running:
        yield running


@pytest.fixture(params=(ENVOY, WEFT_PROXY))
def proxy(
    request: pytest.FixtureRequest, proxies: tuple[Static, Static], upstreams: dict[str, Upstream], witness: Witness
) -> Iterator[Static]:
    """Each of them, whose upstreams nobody has called."""
    witness.forget()
    yield next(proxy for proxy in proxies if proxy.kind == request.param)
    for upstream in upstreams.values():
        upstream.forget()


class Way:
    """A client of one listener, and the connections that its proxy opens to the upstream behind it."""

    def __init__(self, client: Wire, upstream: Upstream, stack: contextlib.ExitStack) -> None:
        self.client, self.upstream, self._stack = client, upstream, stack

    def accept(self) -> Wire:
        return self._stack.enter_context(Wire.serving(self.upstream.accept()))


@contextlib.contextmanager
def way(proxy: Static, name: str, upstreams: dict[str, Upstream]) -> Iterator[Way]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Wire.client(proxy.ports[name]))
        yield Way(client, upstreams[name], stack)


def post(stream: int) -> bytes:
    """A request that is not to be repeated. Its length is said: else weft-proxy gives its body a connection of its own."""
    head = fields(*POST, (b"content-length", b"2"))
    return frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, b"hi")


def test_a_client_that_resets_is_told_to_the_upstream(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The stream alone ends. weft-proxy hands on that it is no longer wanted; Envoy always says INTERNAL_ERROR."""
    with way(proxy, "plain", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        stream = server.next(HEADERS).stream
        it.client.send(RST_STREAM, 0, 1, number(CANCEL))
        reset = server.next()
        expected = INTERNAL_ERROR if proxy.kind == ENVOY else CANCEL
        assert (reset.kind, reset.stream, reset.code) == (RST_STREAM, stream, expected)
        it.client.get(3)
        server.answer(server.next(HEADERS).stream, b"next")
        assert answered(it.client, 3) == (200, b"next")


@pytest.mark.parametrize("code", [CANCEL, INTERNAL_ERROR])
def test_an_upstream_that_resets_is_told_to_the_client(
    code: int, proxy: Static, upstreams: dict[str, Upstream]
) -> None:
    """Before the answer with 503, within it by a reset; the stream alone ends."""
    with way(proxy, "plain", upstreams) as it:
        it.client.write(post(1))
        server = it.accept()
        server.send(RST_STREAM, 0, server.next(HEADERS).stream, number(code))
        assert answered(it.client, 1)[0] == 503
        it.client.write(post(3))
        stream = server.next(HEADERS).stream
        server.write(frame(HEADERS, END_HEADERS, stream, OK) + frame(DATA, 0, stream, b"abc"))
        assert status(it.client.next(HEADERS).payload) == 200
        assert it.client.next(DATA).payload == b"abc"
        server.send(RST_STREAM, 0, stream, number(code))
        reset = it.client.next()
        assert (reset.kind, reset.stream) == (RST_STREAM, 3)
        assert reset.code != NO_ERROR
        it.client.get(5)
        server.answer(server.next(HEADERS).stream, b"next")
        assert answered(it.client, 5) == (200, b"next")


def test_a_refused_stream_is_tried_again_where_the_route_says_so(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """Its upstream has not looked at it (RFC 9113 8.7), so a POST may be repeated, too; its body goes with it."""
    with way(proxy, "again", upstreams) as it:
        it.client.write(post(1))
        server = it.accept()
        stream = server.next(HEADERS).stream
        assert server.body(stream) == b"hi"
        server.send(RST_STREAM, 0, stream, number(REFUSED_STREAM))
        again = server.next(HEADERS).stream
        assert again > stream
        assert server.body(again) == b"hi"
        server.answer(again, b"again")
        assert answered(it.client, 1) == (200, b"again")


def test_a_refused_stream_of_a_kept_connection(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """weft-proxy tries it once more on a new connection, whatever the route says; Envoy answers 503."""
    with way(proxy, "plain", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        server.answer(server.next(HEADERS).stream)
        assert answered(it.client, 1) == (200, b"")
        it.client.write(post(3))
        server.send(RST_STREAM, 0, server.next(HEADERS).stream, number(REFUSED_STREAM))
        if proxy.kind == ENVOY:
            assert answered(it.client, 3)[0] == 503
        else:
            other = it.accept()
            stream = other.next(HEADERS).stream
            assert other.body(stream) == b"hi"
            other.answer(stream, b"again")
            assert answered(it.client, 3) == (200, b"again")


def test_an_upstream_that_goes_away(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """
    Its GOAWAY leaves what it has taken to be answered, and whatever comes next goes by another connection.

    What it says that it has not taken weft-proxy sends there as well (RFC 9113 6.8); Envoy answers 503.
    """
    with way(proxy, "plain", upstreams) as it:
        it.client.write(post(1))
        server = it.accept()
        taken = server.next(HEADERS).stream
        assert server.body(taken) == b"hi"
        it.client.write(post(3))
        server.body(server.next(HEADERS).stream)
        server.send(GOAWAY, 0, 0, number(taken) + number(NO_ERROR))
        if proxy.kind == ENVOY:
            assert answered(it.client, 3)[0] == 503
            it.client.write(post(5))
            other = it.accept()
        else:
            other = it.accept()
            again = other.next(HEADERS).stream
            assert other.body(again) == b"hi"
            other.answer(again, b"again")
            assert answered(it.client, 3) == (200, b"again")
            it.client.write(post(5))
        other.answer(other.next(HEADERS).stream, b"next")
        assert answered(it.client, 5) == (200, b"next")
        server.answer(taken, b"late")
        assert answered(it.client, 1) == (200, b"late")
        assert not [found for found in server.rest() if found.kind == HEADERS]


def test_a_client_that_goes_away_gets_its_answers(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """Its GOAWAY is about streams that the server would begin (RFC 9113 6.8): there are none."""
    with way(proxy, "plain", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        stream = server.next(HEADERS).stream
        it.client.send(GOAWAY, 0, 0, number(0) + number(NO_ERROR))
        it.client.send(PING, 0, 0, b"heard it")
        assert it.client.next(PING).payload == b"heard it"
        server.answer(stream, b"late")
        assert answered(it.client, 1) == (200, b"late")


def pings(wire: Wire, answer: int) -> tuple[int, list[Frame]]:
    """Answer so many PINGs and no more; return how many came, and what else, until the connection ends."""
    count, more = 0, []
    for found in itertools.chain(wire.passed_over, wire.rest()):
        if found.kind == PING and not found.flags & ACK:
            count += 1
            if count <= answer:
                wire.send(PING, ACK, 0, found.payload)
        elif found.kind not in {SETTINGS, WINDOW_UPDATE}:
            more.append(found)
    return count, more


def talk(*wires: Wire) -> None:
    """Say something again and again, for longer than anybody waits for the answer to a PING, and answer none."""
    began = time.monotonic()

    def is_enough() -> bool:
        for wire in wires:
            wire.send(PING, 0, 0, bytes(8))
        return time.monotonic() - began > 3 * (INTERVAL_SECONDS + PATIENCE_SECONDS)

    until("it was asked in vain", is_enough)


def test_who_says_something_else_than_the_answer_to_a_ping_stays(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The answer may wait behind what else there is to say. Who falls silent is given up all the same."""
    with way(proxy, "keepalive", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        first = server.next(HEADERS).stream
        talk(it.client, server)
        server.answer(first, b"x")
        assert answered(it.client, 1) == (200, b"x")
        it.client.get(3)
        server.answer(server.next(HEADERS).stream, b"y")
        assert answered(it.client, 3) == (200, b"y")
        for wire in (it.client, server):
            for _ in wire.rest():
                pass


def test_a_client_that_answers_no_ping_is_given_up(proxy: Static) -> None:
    """Not before it has had its time; one that answers stays."""
    with Wire.client(proxy.ports["keepalive"]) as client:
        began = time.monotonic()
        assert pings(client, answer=2) == (3, [])
        assert time.monotonic() - began >= 2 * INTERVAL_SECONDS + PATIENCE_SECONDS


def test_an_upstream_that_answers_no_ping_is_given_up(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The next request goes by another connection."""
    with Wire.client(proxy.ports["plain"]), way(proxy, "keepalive", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        server.answer(server.next(HEADERS).stream, b"x")
        assert answered(it.client, 1) == (200, b"x")
        began = time.monotonic()
        assert pings(server, answer=2) == (3, [])
        assert time.monotonic() - began >= INTERVAL_SECONDS + PATIENCE_SECONDS
        with Wire.client(proxy.ports["keepalive"]) as client:
            client.get(1)
            other = it.accept()
            other.answer(other.next(HEADERS).stream, b"y")
            assert answered(client, 1) == (200, b"y")


def test_a_connection_that_lasts_too_long_ends_in_good_order(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The client is told first, and what it has sent meanwhile is answered (RFC 9113 6.8)."""
    began = time.monotonic()
    with way(proxy, "age", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        first = server.next(HEADERS).stream
        told = it.client.next()
        # Envoy rounds its clock, and reads it seldom.
        assert time.monotonic() - began >= 0.9 * AGE_SECONDS
        assert (told.kind, told.code, told.payload[:4]) == (GOAWAY, NO_ERROR, number(LAST_STREAM))
        it.client.get(3)
        server.answer(server.next(HEADERS).stream, b"late")
        assert answered(it.client, 3) == (200, b"late")
        server.answer(first, b"first")
        assert answered(it.client, 1) == (200, b"first")
        for found in it.client.rest():
            if found.kind == PING:
                it.client.send(PING, ACK, 0, found.payload)
            else:
                assert (found.kind, found.code, found.payload[:4]) == (GOAWAY, NO_ERROR, number(3))


def test_an_upstreams_connection_that_lasts_too_long_is_replaced(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The request that is under way gets its answer by the old one, the next goes by a new one."""
    with way(proxy, "worn", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        began = time.monotonic()
        first = server.next(HEADERS).stream
        until("it is too old", lambda: time.monotonic() - began > 2 * AGE_SECONDS)
        it.client.get(3)
        other = it.accept()
        other.answer(other.next(HEADERS).stream, b"new")
        assert answered(it.client, 3) == (200, b"new")
        server.answer(first, b"old")
        assert answered(it.client, 1) == (200, b"old")
        assert not [found for found in server.rest() if found.kind == HEADERS]


HEAD = fields(*GET)

LARGE_ENTRY = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000
"""A field that fills the table (RFC 7541 6.2.1): it is entry 62."""


def cancelled() -> Iterator[bytes]:
    """Requests that are given up at once (CVE-2023-44487)."""
    for stream in range(1, 10_001, 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, HEAD) + frame(RST_STREAM, 0, stream, number(CANCEL))


def provoked() -> Iterator[bytes]:
    """Requests that the proxy itself has to give up at once, for what comes with them is an error (CVE-2025-8671, RFC 9113 6.9)."""
    for stream in range(1, 10_001, 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, HEAD) + frame(WINDOW_UPDATE, 0, stream, number(0))


def after(begin: bytes, more: bytes) -> Iterator[bytes]:
    """*begin*, and then 20,000 times *more*."""
    return itertools.chain([begin], itertools.repeat(more, 20_000))


BEGUN = frame(HEADERS, END_STREAM, 1, HEAD)
"""A head whose last frame does not come."""

FLOODS = {
    "rapid reset": cancelled,
    "provoked reset": provoked,
    "PING": lambda: after(b"", frame(PING, 0, 0, bytes(8))),
    "SETTINGS": lambda: after(b"", frame(SETTINGS, 0, 0)),
    "empty DATA": lambda: after(frame(HEADERS, END_HEADERS, 1, fields(*POST)), frame(DATA, 0, 1)),
    "CONTINUATION": lambda: after(BEGUN, frame(CONTINUATION, 0, 1, fields((b"x", b"y" * 1000)))),
    "empty CONTINUATION": lambda: after(BEGUN, frame(CONTINUATION, 0, 1)),
    "WINDOW_UPDATE": lambda: after(b"", frame(WINDOW_UPDATE, 0, 0, number(1))),
    "PRIORITY": lambda: after(b"", frame(2, 0, 1, number(0) + b"\1")),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection_and_no_other(name: str, proxy: Static, witness: Witness) -> None:
    """weft-proxy says why, ENHANCE_YOUR_CALM; Envoy says nothing. Who is beside it is served, before and after."""
    with Wire.client(proxy.ports[FLOODED]) as neighbour, Wire.client(proxy.ports[FLOODED]) as client:
        neighbour.get(1, "/before")
        assert answered(neighbour, 1) == (200, b"ok")
        client.next(SETTINGS)
        client.write(b"".join(FLOODS[name]()))
        last = [found.code for found in client.rest() if found.kind == GOAWAY]
        assert last == ([] if proxy.kind == ENVOY else [ENHANCE_YOUR_CALM])
        neighbour.get(3, "/after")
        assert answered(neighbour, 3) == (200, b"ok")
    if "reset" not in name:
        heads = [line for line in witness.data.split(b"\r\n") if line.endswith(b" HTTP/1.1")]
        posts = [line for line in heads if line.startswith(b"POST ")]
        assert [line for line in heads if line not in posts] == [b"GET /before HTTP/1.1", b"GET /after HTTP/1.1"]


UPSTREAM_FLOODS: dict[str, Callable[[int], Iterator[bytes]]] = {
    "PING": lambda _: after(b"", frame(PING, 0, 0, bytes(8))),
    "SETTINGS": lambda _: after(b"", frame(SETTINGS, 0, 0)),
    "CONTINUATION": lambda stream: after(
        frame(HEADERS, END_STREAM, stream, OK), frame(CONTINUATION, 0, stream, fields((b"x", b"y" * 1000)))
    ),
    "empty CONTINUATION": lambda stream: after(frame(HEADERS, END_STREAM, stream, OK), frame(CONTINUATION, 0, stream)),
    "small block": lambda stream: iter(
        [frame(HEADERS, END_HEADERS | END_STREAM, stream, OK + LARGE_ENTRY + b"\xbe" * 12_000)]
    ),
}
"""In place of an answer."""


@pytest.mark.parametrize("name", UPSTREAM_FLOODS)
def test_an_upstream_that_floods_is_no_answer(name: str, proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """
    What it floods ends: the connection, of a block the stream. The next request is answered.

    To weft-proxy an error of the connection says no more of a stream than any other end of it, 503, and an error of the stream is one of
    its answer, 502. Envoy sees it the other way around, unless the connection's end comes before it has seen anything.
    """
    with way(proxy, "plain", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        server.write(b"".join(UPSTREAM_FLOODS[name](server.next(HEADERS).stream)))
        is_of_stream = name == "small block"
        found = answered(it.client, 1)[0]
        assert found in {502, 503} if proxy.kind == ENVOY else found == (502 if is_of_stream else 503)
        if not is_of_stream:
            assert not [found for found in server.rest() if found.kind == HEADERS]
        it.client.get(3)
        other = server if is_of_stream else it.accept()
        other.answer(other.next(HEADERS).stream, b"next")
        assert answered(it.client, 3) == (200, b"next")


def test_a_small_block_that_stands_for_megabytes_is_refused(proxy: Static, witness: Witness) -> None:
    """An HPACK bomb: 16 kB that name an entry of 4 kB 12,000 times. Its stream ends, and the connection is good for the next."""
    with Wire.client(proxy.ports[FLOODED]) as client:
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, HEAD + LARGE_ENTRY + b"\xbe" * 12_000)
        refused = client.next()
        if proxy.kind == ENVOY:
            assert (refused.kind, refused.stream) == (RST_STREAM, 1)
        else:
            assert (refused.kind, refused.stream, status(refused.payload)) == (HEADERS, 1, 431)
            client.body(1)
        client.get(3, "/next")
        assert answered(client, 3) == (200, b"ok")
    assert witness.data.count(b" HTTP/1.1\r\n") == 1
    assert witness.data.startswith(b"GET /next ")


def test_draining_finishes_what_was_begun(proxy: Static, upstreams: dict[str, Upstream]) -> None:
    """The last of all here: each is drained as its agent does it. The client is told, its answer comes whole, and no stream is lost."""
    with way(proxy, "drained", upstreams) as it:
        it.client.get(1)
        server = it.accept()
        first = server.next(HEADERS).stream
        if proxy.kind == ENVOY:
            proxy.ask("/healthcheck/fail", "POST")
            proxy.ask("/drain_listeners?graceful", "POST")
        else:
            proxy.process.send_signal(signal.SIGTERM)
            told = it.client.next()
            assert (told.kind, told.code, told.payload[:4]) == (GOAWAY, NO_ERROR, number(LAST_STREAM))
        server.answer(first, b"whole")
        ends = [it.client.next()]
        while ends[-1].kind != DATA or not ends[-1].flags & END_STREAM:
            ends.append(it.client.next())
        kinds = [found.kind for found in ends]
        if proxy.kind == ENVOY:
            # With its next answer, and not before.
            assert kinds.count(GOAWAY) == 1 or it.client.next(GOAWAY).code == NO_ERROR
        assert status(next(found for found in ends if found.kind == HEADERS).payload) == 200
        assert b"".join(found.payload for found in ends if found.kind == DATA) == b"whole"
        assert RST_STREAM not in kinds
    if proxy.kind == WEFT_PROXY:
        assert proxy.process.wait(LIMIT) == 0
