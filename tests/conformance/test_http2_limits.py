"""Frames that cost their sender nothing are taken as often as the options of HTTP/2 say: by stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, http_filters, listener, over_http2
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
    PING,
    POST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    fields,
    frame,
    number,
    status,
)
from tests.conformance.proxies import Static, until
from tests.conformance.upstream import Upstream, Witness
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

PRIORITY = 2


@dataclass(frozen=True)
class Limit:
    """What an option limits, on a connection that has had one request and its answer."""

    most: int
    """What the option says."""
    frame: bytes
    allowed: int
    """So many are within it."""
    begin: bytes = b""
    """What goes before."""
    by_default: frozenset[str] = frozenset({ENVOY, WEFT_PROXY})
    """Who takes `allowed` and `MORE` of them where the option is not set."""


MORE = 15
"""As many again are too many, whatever is counted with them."""

LIMITS = {
    # Their answers, which wait to be written.
    "max_outbound_control_frames": Limit(10, frame(PING, 0, 0, bytes(8)), 5),
    # Envoy takes one; weft-proxy has an allowance that grows with time.
    "max_consecutive_inbound_frames_with_empty_payload": Limit(
        3,
        frame(DATA, 0, 3),
        3,
        frame(HEADERS, END_HEADERS, 3, fields(*POST)),
        by_default=frozenset({WEFT_PROXY}),
    ),
    # Per stream; the connection counts as one. Whether one that has ended counts, they may see as they like.
    "max_inbound_priority_frames_per_stream": Limit(4, frame(PRIORITY, 0, 5, number(0) + b"\1"), 4),
    # Twice this, for each stream and for each frame of DATA, and five.
    "max_inbound_window_update_frames_per_data_frame_sent": Limit(1, frame(WINDOW_UPDATE, 0, 0, number(1)), 6),
}

UNLIMITED, UNREAD, IMPATIENT = "unlimited", "unread", "impatient"

WAITING = 50
"""Frames that may wait for who does not read, at the latter two listeners."""

FEW, MANY = 40, 1000
"""Answers that may all wait, and more than fit between a proxy and its client besides."""

LONG = "/long"
"""Where an answer is one frame of fifteen thousand bytes: a field that no table keeps and that no code makes shorter."""


PATIENCE: dict[str, Json] = {UNREAD: {"delayed_close_timeout": "30s"}}
"""Who is told at all why a connection ends has to read it in this time; by default in a second."""


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Static, Static]]:
    def resources(ports: dict[str, int]) -> Json:
        routes: list[Json] = [
            {
                "match": {"path": LONG},
                "direct_response": {"status": 200},
                "response_headers_to_add": [{"header": {"key": "x-long", "value": "~" * 15_000}}],
            },
            {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}},
        ]
        options: dict[str, Json] = {name: {name: limit.most} for name, limit in LIMITS.items()}
        options |= {UNLIMITED: {}} | {name: {"max_outbound_frames": WAITING} for name in (UNREAD, IMPATIENT)}
        return {
            "clusters": [cluster("up", witness.port)],
            "listeners": [
                listener(
                    name,
                    ports[name],
                    http_filters(routes, manager=PATIENCE.get(name, {}) | {"http2_protocol_options": option}),
                )
                for name, option in options.items()
            ],
        }

    names = (*LIMITS, UNLIMITED, UNREAD, IMPATIENT)
    with Witness() as witness, both(tmp_path_factory.mktemp("limits"), names, resources) as running:
        yield running


def is_alive(client: Wire) -> bool:
    """Whether a PING is answered; what came before is passed over."""
    client.send(PING, 0, 0, b"are you?")
    return any((found.kind, found.flags, found.payload) == (PING, ACK, b"are you?") for found in client.rest())


def asking(count: int) -> bytes:
    """So many requests for what is long."""
    head = fields(*GET[:2], (b":path", LONG.encode()), GET[3])
    return b"".join(frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * index, head) for index in range(count))


def flood(client: Wire, limit: Limit) -> None:
    """Ask once, and send what is allowed."""
    client.next(SETTINGS)
    client.get(1)
    client.body(1)
    client.write(limit.begin + limit.frame * limit.allowed)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_a_connection_ends_where_its_limit_is(proxies: tuple[Static, Static], kind: str, name: str) -> None:
    """weft-proxy says why, ENHANCE_YOUR_CALM; Envoy says nothing."""
    limit = LIMITS[name]
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    with Wire.client(proxy.ports[name]) as client:
        flood(client, limit)
        assert is_alive(client)
        client.write(limit.frame * MORE)
        last = [found.code for found in client.rest() if found.kind == GOAWAY]
        assert last == ([] if kind == ENVOY else [ENHANCE_YOUR_CALM])
    with Wire.client(proxy.ports[UNLIMITED]) as client:
        flood(client, limit)
        client.write(limit.frame * MORE)
        assert is_alive(client) == (kind in limit.by_default)


@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_answers_that_nobody_reads_are_limited(proxies: tuple[Static, Static], kind: str) -> None:
    """By `max_outbound_frames`, beyond which weft-proxy says why, and Envoy nothing. Who reads may have as many as it likes."""
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    with Wire.client(proxy.ports[UNREAD]) as client:
        client.next(SETTINGS)
        streams = itertools.count(1, 2)
        for _ in range(3):
            for stream in itertools.islice(streams, FEW):
                client.get(stream, LONG)
            assert {status(client.next(HEADERS).payload) for _ in range(FEW)} == {200}
        for _ in range(MANY // FEW):
            for stream in itertools.islice(streams, FEW):
                client.get(stream, LONG)
            # They have been looked at once others, who came later, have been answered for the second time.
            assert {proxy.get(UNLIMITED)[0] for _ in range(2)} == {200}
        last = [found.code for found in client.rest() if found.kind == GOAWAY]
        assert last == ([] if kind == ENVOY else [ENHANCE_YOUR_CALM])
    with Wire.client(proxy.ports[UNLIMITED]) as client:
        client.next(SETTINGS)
        client.write(asking(MANY))
        assert {status(client.next(HEADERS).payload) for _ in range(MANY)} == {200}


@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_answers_that_nobody_reads_are_limited_though_nobody_asks_on(proxies: tuple[Static, Static], kind: str) -> None:
    """All requests have come at once: it is too many answers that wait, and not another request, that ends the connection."""
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    with Wire.client(proxy.ports[UNREAD]) as client:
        client.next(SETTINGS)
        client.write(asking(MANY))
        assert {proxy.get(UNLIMITED)[0] for _ in range(2)} == {200}
        last = [found.code for found in client.rest() if found.kind == GOAWAY]
        assert last == ([] if kind == ENVOY else [ENHANCE_YOUR_CALM])


@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_who_reads_nothing_is_not_waited_for(proxies: tuple[Static, Static], kind: str) -> None:
    """There is no room to tell it that its connection ends: it ends all the same."""
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    with Wire.client(proxy.ports[IMPATIENT]) as client:
        client.next(SETTINGS)
        client.write(asking(MANY))
        until("its connection is gone", proxy.is_alone)


@pytest.mark.parametrize("kind", [ENVOY, WEFT_PROXY])
def test_continuations_are_limited_as_empty_frames_and_as_such(proxies: tuple[Static, Static], kind: str) -> None:
    """Empty ones as `max_consecutive_inbound_frames_with_empty_payload` says; any by a limit of each that nothing sets."""
    proxy = next(proxy for proxy in proxies if proxy.kind == kind)
    limited = "max_consecutive_inbound_frames_with_empty_payload"
    most = LIMITS[limited].most

    def is_answered(name: str, between: list[bytes]) -> bool:
        block = fields(*GET, (b"x-long", b"v" * len(b"".join(between))))
        begin = block.removesuffix(b"".join(between))
        with Wire.client(proxy.ports[name]) as client:
            client.next(SETTINGS)
            client.send(HEADERS, END_STREAM, 1, begin)
            client.write(b"".join(frame(CONTINUATION, 0, 1, part) for part in between))
            client.send(CONTINUATION, END_HEADERS, 1)
            return any(found.kind == HEADERS for found in client.rest())

    # The last one is empty, too.
    assert is_answered(limited, [b""] * (most - 1))
    assert not is_answered(limited, [b""] * most)
    assert is_answered(UNLIMITED, [b"v"] * 200)
    assert not is_answered(UNLIMITED, [b"v"] * 3000)


GIVEN_UP = 600
"""Requests at once: more than may be given up as soon as they were made, in either."""

OLD_SECONDS = 2.0
"""Envoy counts whole seconds, and more than one of them."""


def grow_old() -> None:
    began = time.monotonic()
    until("they have waited", lambda: time.monotonic() - began > OLD_SECONDS)


def test_requests_that_have_waited_may_be_given_up_all_at_once(tmp_path: Path) -> None:
    """A deadline passes for all that wait for a server which hangs. Others share the connection, as between sidecars."""
    silent = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        own = {"match": {"prefix": "/own"}, "direct_response": {"status": 200}}
        hung = {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}
        filters = http_filters([own, hung])
        return {
            "clusters": [cluster("up", silent.port, **over_http2())],
            "listeners": [listener("l", ports["l"], filters)],
        }

    with silent.socket, both(tmp_path, ("l",), resources) as running:
        for proxy in running:
            with Wire.client(proxy.ports["l"]) as client:
                client.next(SETTINGS)
                streams = range(1, 2 * GIVEN_UP, 2)
                for stream in streams:
                    client.get(stream, "/hung")
                client.send(PING, 0, 0, b"all came")
                client.next(PING)
                grow_old()
                client.write(b"".join(frame(RST_STREAM, 0, stream, number(CANCEL)) for stream in streams))
                client.get(streams.stop + 1, "/own")
                assert client.next(HEADERS, GOAWAY).kind == HEADERS, proxy.kind


def test_how_many_may_be_given_up_is_read_from_the_runtime(tmp_path: Path) -> None:
    """By Envoy's key, and one of weft-proxy for what more each second brings; each ends a connection of which so many were given up."""
    few = 10
    values = {"overload.premature_reset_total_stream_count": few, "weft.http2.premature_resets_per_second": 0}
    runtime = {"layers": [{"name": "ours", "static_layer": values}]}
    silent = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}])
        return {
            "clusters": [cluster("up", silent.port, **over_http2())],
            "listeners": [listener("l", ports["l"], filters)],
        }

    with silent.socket, both(tmp_path, ("l",), resources, layered_runtime=runtime) as running:
        for proxy in running:
            with Wire.client(proxy.ports["l"]) as client:
                client.next(SETTINGS)
                for stream in range(1, 100 * few, 2):
                    client.get(stream, "/hung")
                    client.send(RST_STREAM, 0, stream, number(CANCEL))
                last = [found.code for found in client.rest() if found.kind == GOAWAY]
                assert last == ([] if proxy.kind == ENVOY else [ENHANCE_YOUR_CALM])


def test_frames_without_content_are_allowed_as_the_runtime_says(tmp_path: Path) -> None:
    """By keys of weft-proxy, which Envoy passes over: SETTINGS that change something are no option's."""
    few = 10
    runtime = {
        "layers": [{"name": "ours", "static_layer": {"weft.http2": {"idle_frames": few, "idle_frames_per_second": 0}}}]
    }

    def resources(ports: dict[str, int]) -> Json:
        own = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        return {"clusters": [], "listeners": [listener("l", ports["l"], http_filters([own]))]}

    with both(tmp_path, ("l",), resources, layered_runtime=runtime) as running:
        for proxy in running:
            for count, is_allowed in ((few // 2, True), (few * 2, proxy.kind == ENVOY)):
                with Wire.client(proxy.ports["l"]) as client:
                    client.next(SETTINGS)
                    for window in range(count):
                        client.send(SETTINGS, 0, 0, b"\0\4" + number(70_000 + window))
                    client.get(1)
                    assert any(found.kind == HEADERS for found in client.rest()) == is_allowed, (proxy.kind, count)
