"""What a client may ask of the proxy for its own request (`x-envoy-retry-on` and its like): stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conformance.both import Json, both, cluster, file_log, http_filters, listener, records
from tests.conformance.proxies import LIMIT, Static, until

pytestmark = pytest.mark.conformance

FIELDS = {
    "case": "%REQ(X-CASE)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "why": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}

INTERNAL = {"internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}}

PLACES: dict[str, Json] = {
    "inside": {"use_remote_address": False, **INTERNAL},
    "edge": {"use_remote_address": True, **INTERNAL},
    "inside, where nobody is one's own": {"use_remote_address": False},
    "inside, with an empty list": {"use_remote_address": False, "internal_address_config": {}},
}

OWN = {"x-forwarded-for": "10.1.2.3"}
"""By which a request inside is known to come from one's own."""

ROUTES: dict[str, Json] = {
    "plain": {"timeout": "5s"},
    "tried": {"timeout": "5s", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "3s"}},
}

STEERING = (
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
)


@dataclass(frozen=True)
class Case:
    """A request, how its tries are answered, and what becomes of it."""

    answers: str
    """
    Of one try after the other, the last of all that follow: a status, which `a` behind it says to try again (`x-again`), or `g` before it
    says to be gRPC's; or `wait` for none.
    """
    status: int
    attempts: int
    asks: dict[str, str] = field(default_factory=dict)
    """Headers of the request, without `x-envoy-`."""
    route: str = "plain"
    place: str = "inside"
    origin: dict[str, str] = field(default_factory=lambda: OWN)
    flags: tuple[str, ...] = ("-",)
    why: str = "via_upstream"
    told: str | None = "5000"
    """What the upstream is told of how long it may take, in ms."""


ALL = {"retry-on": "5xx", "max-retries": "2", "upstream-rq-timeout-ms": "2000"}

CASES = {
    "nothing": Case("503-200", 503, 1),
    "a condition": Case("503-200", 200, 2, {"retry-on": "5xx"}),
    "a condition, once by default": Case("503-503-200", 503, 2, {"retry-on": "5xx"}, flags=("URX",)),
    "a condition and a number": Case("503-503-200", 200, 3, {"retry-on": "gateway-error", "max-retries": "2"}),
    "conditions of which one is none": Case("409-200", 200, 2, {"retry-on": "teapot, retriable-4xx"}),
    "a condition that is none": Case("503-200", 503, 1, {"retry-on": "teapot"}),
    "a number alone": Case("503-200", 503, 1, {"max-retries": "2"}),
    "a condition of gRPC": Case("g14-g0", 200, 2, {"retry-grpc-on": "unavailable"}),
    "another condition of gRPC": Case("g13-g0", 200, 1, {"retry-grpc-on": "unavailable"}),
    "a condition of gRPC in the header for others": Case("g14-g0", 200, 1, {"retry-on": "unavailable"}),
    "a condition of others in the header for gRPC": Case("503-200", 503, 1, {"retry-grpc-on": "5xx"}),
    "statuses": Case(
        "404-410-200",
        200,
        3,
        {"retry-on": "retriable-status-codes", "retriable-status-codes": "404, 410", "max-retries": "2"},
    ),
    "statuses without the condition": Case("404-200", 404, 1, {"retry-on": "5xx", "retriable-status-codes": "404"}),
    "a name of a header": Case(
        "200a-200", 200, 2, {"retry-on": "retriable-headers", "retriable-header-names": "x-never, X-Again"}
    ),
    "a number in the place of the route's": Case(
        "503-503-503-200", 200, 4, {"max-retries": "3"}, route="tried", told="3000"
    ),
    "no retry in the place of the route's": Case(
        "503-200", 503, 1, {"max-retries": "0"}, route="tried", flags=("URX",), told="3000"
    ),
    "a number that is none": Case("503-200", 200, 2, {"max-retries": "many"}, route="tried", told="3000"),
    "a condition beside the route's": Case(
        "409-200", 200, 2, {"retry-on": "retriable-4xx"}, route="tried", told="3000"
    ),
    "a timeout": Case(
        "wait", 504, 1, {"upstream-rq-timeout-ms": "200"}, flags=("UT",), why="response_timeout", told="200"
    ),
    "a longer timeout": Case("200", 200, 1, {"upstream-rq-timeout-ms": "20000"}, told="20000"),
    "no timeout": Case("200", 200, 1, {"upstream-rq-timeout-ms": "0"}, told=None),
    "a timeout that is none": Case("200", 200, 1, {"upstream-rq-timeout-ms": "soon"}),
    "a timeout of a try": Case(
        "wait-200", 200, 2, {"retry-on": "5xx", "upstream-rq-per-try-timeout-ms": "200"}, told="200"
    ),
    "a timeout of each try": Case(
        "wait",
        504,
        2,
        {"retry-on": "5xx", "upstream-rq-per-try-timeout-ms": "200"},
        flags=("URX", "UT"),
        why="upstream_per_try_timeout",
        told="200",
    ),
    "a timeout of the only try": Case(
        "wait",
        504,
        1,
        {"upstream-rq-per-try-timeout-ms": "200"},
        flags=("UT",),
        why="upstream_per_try_timeout",
        told="200",
    ),
    "a timeout of a try in the place of the route's": Case(
        "wait-200", 200, 2, {"upstream-rq-per-try-timeout-ms": "200"}, route="tried", told="200"
    ),
    "no timeout of a try in the place of the route's": Case(
        "200", 200, 1, {"upstream-rq-per-try-timeout-ms": "0"}, route="tried"
    ),
    # Then it is none of a try.
    "a timeout of a try as long as the request's": Case(
        "wait-200",
        504,
        1,
        {"retry-on": "5xx", "upstream-rq-timeout-ms": "200", "upstream-rq-per-try-timeout-ms": "200"},
        flags=("UT",),
        why="response_timeout",
        told="200",
    ),
    "a timeout shorter than the route's of a try": Case(
        "wait-200",
        504,
        1,
        {"upstream-rq-timeout-ms": "200"},
        route="tried",
        flags=("UT",),
        why="response_timeout",
        told="200",
    ),
    "nobody knows whose": Case("503-200", 503, 1, ALL, origin={}),
    "a stranger": Case("503-200", 503, 1, ALL, origin={"x-forwarded-for": "192.0.2.1"}),
    "one's own through somebody else": Case("503-200", 503, 1, ALL, origin={"x-forwarded-for": "10.1.2.3, 10.1.2.4"}),
    "one that says it is one's own": Case("503-200", 503, 1, ALL, origin={"x-envoy-internal": "true"}),
    "at the edge": Case("503-200", 503, 1, ALL, place="edge", origin={}),
    "at the edge, as if for one's own": Case("503-200", 503, 1, ALL, place="edge"),
    "one at a private address": Case("503-200", 200, 2, ALL, place="inside, with an empty list", told="2000"),
    "one that is not": Case(
        "503-200", 503, 1, ALL, place="inside, with an empty list", origin={"x-forwarded-for": "192.0.2.1"}
    ),
    "where nobody is one's own": Case("503-200", 503, 1, ALL, place="inside, where nobody is one's own"),
}


class Answering(BaseHTTPRequestHandler):
    """Answers one try after the other as their path says."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        tries = self.server.tries[self.path]
        tries.append({name.lower(): value for name, value in self.headers.items()})
        answers = self.path.rpartition("/")[2].split("-")
        answer = answers[min(len(tries), len(answers)) - 1]
        if answer == "wait":
            with contextlib.suppress(ConnectionError):
                self.connection.recv(1)  # until it is given up
            self.close_connection = True
            return
        is_grpc = answer.startswith("g")
        self.send_response(200 if is_grpc else int(answer.removesuffix("a")))
        if is_grpc:
            self.send_header("content-type", "application/grpc")
            self.send_header("grpc-status", answer.removeprefix("g"))
        if answer.endswith("a"):
            self.send_header("x-again", "1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The upstream at *port*, and the headers of each try, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.port = int(self.server_address[1])
        self.tries: defaultdict[str, list[dict[str, str]]] = defaultdict(list)


@dataclass(frozen=True)
class Setup:
    """Both data planes with a listener for each place, and the upstream of all."""

    proxies: tuple[Static, Static]
    server: Server
    folder: Path


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("steering")
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def resources(ports: dict[str, int]) -> Json:
        routes = [
            {"match": {"prefix": f"/{name}/"}, "route": {"cluster": "up", **route}} for name, route in ROUTES.items()
        ]
        listeners = []
        for name, manager in PLACES.items():
            log = file_log(folder / f"{ports[name]}.log", FIELDS)
            listeners.append(listener(name, ports[name], http_filters(routes, manager={"access_log": log, **manager})))
        return {"clusters": [cluster("up", server.port)], "listeners": listeners}

    try:
        with both(folder, tuple(PLACES), resources) as proxies:
            yield Setup(proxies, server, folder)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", CASES)
def test_one_s_own_are_obeyed_and_nobody_else(setup: Setup, name: str) -> None:
    """And what is asked goes no further, whoever asks."""
    case = CASES[name]
    headers = {f"x-envoy-{header}": value for header, value in case.asks.items()}
    for proxy in setup.proxies:
        port = proxy.ports[case.place]
        case_id = name.replace(" ", "-")
        path = f"/{case.route}/{proxy.kind}/{case_id}/{case.answers}"
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        with contextlib.closing(client):
            client.request("GET", path, headers={**headers, **case.origin, "x-case": case_id})
            assert client.getresponse().status == case.status, proxy.kind
        log = setup.folder / f"{port}.log"
        until("it is recorded", lambda: any(it["case"] == case_id for it in records(log)))  # noqa: B023
        (record,) = (it for it in records(log) if it["case"] == case_id)
        found = {**record, "flags": tuple(sorted(record["flags"].split(",")))}  # their order is each data plane's own
        expected = {"status": case.status, "flags": case.flags, "why": case.why, "attempts": case.attempts}
        assert found == {"case": case_id, **expected}, proxy.kind
        tries = setup.server.tries[path]
        assert len(tries) == case.attempts, proxy.kind
        for told in tries:
            assert not told.keys() & set(STEERING), proxy.kind
        assert tries[0].get("x-envoy-expected-rq-timeout-ms") == case.told, proxy.kind
