"""Options that change one small thing each: what stock Envoy and weft-proxy make of them, in one run."""

from __future__ import annotations

import contextlib
import http.client
import select
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import EllipsisType

import pytest
from cryptography import x509

from tests.conformance.both import Json, address, both, cluster, http_filters, listener, over_http2, typed
from tests.conformance.certificates import Authority, common_context, downstream
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.telling import Teller, Told, telling
from tests.conformance.upstream import Accepting, read_rest
from tests.ports import free_port, is_listening

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

Headers = dict[str, str | EllipsisType | None]
"""Values by name; `...`: there is one; None: there is none."""


def add(name: str, **more: object) -> Json:
    """An edit that adds *name*; *more* says with what, and how."""
    value = {"value": more.pop("value")} if "value" in more else {}
    return {"header": {"key": name, **value}, **more}


@dataclass(frozen=True)
class Case:
    """What both data planes are told beside a route for everything, what is sent, and what of it comes to the upstream and back."""

    up: Headers = field(default_factory=dict)
    down: Headers = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    manager: Json = field(default_factory=dict)
    router: Json = field(default_factory=dict)
    configuration: Json = field(default_factory=dict)
    action: Json = field(default_factory=dict)
    path: str = "/"
    """At the upstream."""


REWRITTEN = {"prefix_rewrite": "/new"}
OWN_HOST = {"name": "up", "weight": 1, "host_rewrite_literal": "own.example"}
EDGE = {
    "use_remote_address": True,
    "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
}
NEW_HOST, SAME_HOST = (
    {"host_rewrite_literal": name, "append_x_forwarded_host": True} for name in ("new.example", "up")
)

CASES = {
    "an id from outside that is kept": Case(
        {"x-request-id": "theirs"},
        manager=EDGE | {"preserve_external_request_id": True},
        sent={"x-request-id": "theirs"},
    ),
    "no id where an id from outside would be kept": Case(
        {"x-request-id": ...}, manager=EDGE | {"preserve_external_request_id": True}
    ),
    "no id where none is made": Case({"x-request-id": None}, manager=EDGE | {"generate_request_id": False}),
    "what a router tells of itself": Case(
        {"x-envoy-expected-rq-timeout-ms": "15000", "x-envoy-original-path": "/"},
        {"x-envoy-upstream-service-time": ...},
        action=REWRITTEN,
        path="/new",
    ),
    "a router that tells nothing of itself": Case(
        {"x-envoy-expected-rq-timeout-ms": None, "x-envoy-original-path": None},
        {"x-envoy-upstream-service-time": None},
        router={"suppress_envoy_headers": True},
        action=REWRITTEN,
        path="/new",
    ),
    "another host": Case(
        {"host": "new.example", "x-forwarded-host": None, "x-envoy-original-host": "up"},
        action={"host_rewrite_literal": "new.example"},
    ),
    "another host, by a router that tells nothing of itself": Case(
        {"host": "new.example", "x-envoy-original-host": None},
        router={"suppress_envoy_headers": True},
        action={"host_rewrite_literal": "new.example"},
    ),
    "another host, which is told": Case({"host": "new.example", "x-forwarded-host": "up"}, action=NEW_HOST),
    "another host, after others": Case(
        {"host": "new.example", "x-forwarded-host": "first,up"}, action=NEW_HOST, sent={"x-forwarded-host": "first"}
    ),
    "another host, which has been told": Case(
        {"host": "new.example", "x-forwarded-host": "first,up"}, action=NEW_HOST, sent={"x-forwarded-host": "first,up"}
    ),
    "the same host": Case({"host": "up", "x-forwarded-host": "up", "x-envoy-original-host": "up"}, action=SAME_HOST),
    "a host of one of the destinations": Case(
        {"host": "own.example"},
        action={"weighted_clusters": {"clusters": [OWN_HOST]}},
    ),
    "a host of the route and one of the destinations": Case(
        {"host": "all.example"},
        action={"weighted_clusters": {"clusters": [OWN_HOST]}, "host_rewrite_literal": "all.example"},
    ),
    "a header of nothing": Case({"x-added": None}, configuration={"request_headers_to_add": [add("x-added")]}),
    "a header of nothing that is kept": Case(
        {"x-added": ""}, configuration={"request_headers_to_add": [add("x-added", keep_empty_value=True)]}
    ),
}


@dataclass(frozen=True)
class Running:
    proxies: tuple[Static, Static]
    tellers: dict[str, Teller]


LONG = 5000
"""Bytes of an answer of a route's own; without a word it may have 4096."""

PRIORITIES = {"some": 100, "enough": 200}
"""By listener, what half of the endpoints of a priority are good for, in percent of all."""

OTHERS = ("long", "share", *PRIORITIES)


def with_priorities(name: str, factor: int, ports: dict[str, int]) -> Json:
    """A cluster whose first priority has one endpoint that works and one that does not, and whose second has another."""

    def at(port: int, health: str = "HEALTHY") -> Json:
        return {"endpoint": {"address": address(port)}, "health_status": health}

    first = {"lb_endpoints": [at(ports["first"]), at(ports["broken"], "UNHEALTHY")]}
    second = {"priority": 1, "lb_endpoints": [at(ports["second"])]}
    policy = {"overprovisioning_factor": factor}
    assignment = {"cluster_name": name, "endpoints": [first, second], "policy": policy}
    return {"name": name, "type": "STATIC", "load_assignment": assignment}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        tellers = {name: stack.enter_context(telling()) for name in ("up", "first", "broken", "second")}
        at = {name: teller.port for name, teller in tellers.items()}

        def of_case(name: str, case: Case, port: int) -> Json:
            to = {} if "weighted_clusters" in case.action else {"cluster": "up"}
            route = {"match": {"prefix": "/"}, "route": to | case.action}
            filters = http_filters([route], manager=case.manager)
            manager = filters[0]["typed_config"]
            manager["http_filters"][0]["typed_config"].update(case.router)
            manager["route_config"].update(case.configuration)
            return listener(name, port, filters)

        def resources(ports: dict[str, int]) -> Json:
            listeners = [of_case(name, case, ports[name]) for name, case in CASES.items()]
            long = http_filters(
                [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "x" * LONG}}}]
            )
            long[0]["typed_config"]["route_config"]["max_direct_response_body_size_bytes"] = LONG
            listeners.append(listener("long", ports["long"], long))
            shares = [
                {
                    "match": {"prefix": "/", "runtime_fraction": {"default_value": {"numerator": percent}}},
                    "direct_response": {"status": status},
                }
                for percent, status in ((0, 418), (100, 200))
            ]
            listeners.append(listener("share", ports["share"], http_filters(shares)))
            clusters = [cluster("up", at["up"])]
            for name, factor in PRIORITIES.items():
                clusters.append(with_priorities(name, factor, at))
                to = [{"match": {"prefix": "/"}, "route": {"cluster": name}}]
                listeners.append(listener(name, ports[name], http_filters(to)))
            return {"clusters": clusters, "listeners": listeners}

        proxies = stack.enter_context(both(tmp_path_factory.mktemp("options"), (*CASES, *OTHERS), resources))
        yield Running(proxies, tellers)


def found_of(expected: Headers, values: dict[str, str | None]) -> Headers:
    """The same of *values* as far as *expected* says it."""
    return {
        name: ... if value is ... and values.get(name) is not None else values.get(name)
        for name, value in expected.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_request_and_its_answer_are_the_same_at_both(running: Running, name: str) -> None:
    case = CASES[name]
    for proxy in running.proxies:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.ports[name], timeout=LIMIT)) as client:
            client.request("GET", "/", headers={"host": "up", **case.sent})
            answer = client.getresponse()
            told = Told.of(answer.read().decode())
        assert told.path == case.path, proxy.kind
        up = {header: told.get(header) for header in case.up}
        assert found_of(case.up, up) == case.up, proxy.kind
        down = {header: answer.getheader(header) for header in case.down}
        assert found_of(case.down, down) == case.down, proxy.kind


def test_an_answer_of_a_route_is_as_long_as_it_may_be(running: Running) -> None:
    """Longer ones refuse the configuration at both, which `crates/core/tests/fields.rs` shows of ours."""
    for proxy in running.proxies:
        assert proxy.get("long") == (200, "x" * LONG), proxy.kind


def test_a_route_for_no_share_of_the_requests_takes_none(running: Running) -> None:
    for proxy in running.proxies:
        assert {proxy.get("share")[0] for _ in range(10)} == {200}, proxy.kind


@pytest.mark.parametrize("name", PRIORITIES)
def test_what_a_priority_cannot_carry_goes_to_the_next(running: Running, name: str) -> None:
    """Half of it works: with a factor of 200 that is enough for everything, with 100 for one half."""
    for proxy in running.proxies:
        for teller in running.tellers.values():
            teller.heard.clear()
        for _ in range(60):
            assert proxy.get(name)[0] == 200, proxy.kind
        heard = {at: len(teller.heard) for at, teller in running.tellers.items()}
        assert heard["broken"] == 0, proxy.kind
        if name == "enough":
            assert heard["first"] == 60, proxy.kind
        else:
            assert min(heard["first"], heard["second"]) >= 10, (proxy.kind, heard)


# ------------------------------------------------------------------------------------------------------ answers

MINE, THEIRS = "mine", "BaseHTTP"
"""How the server is called by the connection manager, and how the upstream begins to call itself."""

SERVERS: dict[str, tuple[str | None, str | None]] = {
    "OVERWRITE": (MINE, MINE),
    "APPEND_IF_ABSENT": (THEIRS, MINE),
    "PASS_THROUGH": (THEIRS, None),
}
"""By `server_header_transformation`: who serves, where the upstream says it and where nobody has."""

REDIRECTS: dict[str, tuple[Json, str, str]] = {
    "another scheme": ({"scheme_redirect": "https"}, "up", "https://up/old?x"),
    "another scheme, from its port": ({"scheme_redirect": "https"}, "up:80", "https://up/old?x"),
    "another scheme, from another port": ({"scheme_redirect": "https"}, "up:81", "https://up:81/old?x"),
    "https, from its port": ({"https_redirect": True}, "up:80", "https://up/old?x"),
    "another port": ({"port_redirect": 8443}, "up:80", "http://up:8443/old?x"),
    "without a query": ({"strip_query": True}, "up", "http://up/old"),
    "another host": ({"host_redirect": "new.example"}, "up:81", "http://new.example/old?x"),
}
"""What a redirect says, which host is asked, and where it is said to be."""


def test_servers_and_other_places_are_told_alike(tmp_path: Path) -> None:
    def resources(ports: dict[str, int]) -> Json:
        listeners = []
        for transformation in SERVERS:
            routes: list[Json] = [
                {"match": {"prefix": "/own"}, "direct_response": {"status": 200}},
                {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
            ]
            manager = {"server_name": MINE, "server_header_transformation": transformation}
            listeners.append(listener(transformation, ports[transformation], http_filters(routes, manager=manager)))
        for name, (redirect, _, _) in REDIRECTS.items():
            listeners.append(
                listener(name, ports[name], http_filters([{"match": {"prefix": "/"}, "redirect": redirect}]))
            )
        return {"clusters": [cluster("up", up.port)], "listeners": listeners}

    def header(name: str, port: int, path: str, host: str = "up") -> str | None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)) as client:
            client.request("GET", path, headers={"host": host})
            answer = client.getresponse()
            answer.read()
            return answer.getheader(name)

    with telling() as up, both(tmp_path, (*SERVERS, *REDIRECTS), resources) as proxies:
        for proxy in proxies:
            for transformation, expected in SERVERS.items():
                found = [header("server", proxy.ports[transformation], path) for path in ("/", "/own")]
                assert tuple(it and it.partition("/")[0] for it in found) == expected, (proxy.kind, transformation)
            found = [header("location", proxy.ports[it], "/old?x", host) for it, (_, host, _) in REDIRECTS.items()]
            assert found == [location for _, _, location in REDIRECTS.values()], proxy.kind


SCHEMES: dict[str, tuple[Json, str, dict[str, str], str]] = {
    "as the balancer before says": (
        {"use_remote_address": True, "xff_num_trusted_hops": 1},
        "",
        {"x-forwarded-proto": "https"},
        "https",
    ),
    "it says nothing": ({"use_remote_address": True, "xff_num_trusted_hops": 1}, "", {}, "http"),
    "it says nonsense": (
        {"use_remote_address": True, "xff_num_trusted_hops": 1},
        "",
        {"x-forwarded-proto": "gopher"},
        "http",
    ),
    "nobody before is believed": ({"use_remote_address": True}, "", {"x-forwarded-proto": "https"}, "http"),
    "as a proxy within says": ({}, "", {"x-forwarded-proto": "https"}, "https"),
    "it says two things": (
        {"use_remote_address": True, "xff_num_trusted_hops": 1},
        "",
        {"x-forwarded-proto": "https", "X-Forwarded-Proto": "http"},
        "http",
    ),
    "as its own absolute form": ({}, "http://up", {"x-forwarded-proto": "https"}, "http"),
    "as its own absolute form, for TLS that ended before": ({}, "https://up", {}, "https"),
}
"""What a connection manager is told, what stands before a path, what headers there are, and which scheme the request has then."""


def test_a_request_has_the_scheme_that_its_client_used(tmp_path: Path) -> None:
    """Routes match it, redirects keep it, and it goes on over HTTP/2 whatever the next connection is made of."""

    def resources(ports: dict[str, int]) -> Json:
        is_secure = {"name": ":scheme", "string_match": {"exact": "https"}}
        routes: list[Json] = [
            {"match": {"prefix": "/matched", "headers": [is_secure]}, "direct_response": {"status": 201}},
            {"match": {"prefix": "/matched"}, "direct_response": {"status": 202}},
            {"match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/new"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "inner"}},
        ]
        listeners = [
            listener(name, ports[name], http_filters(routes, manager=manager))
            for name, (manager, _, _, _) in SCHEMES.items()
        ]
        seen = add("x-scheme", value="%REQ(:SCHEME)%")
        inner = {"match": {"prefix": "/"}, "direct_response": {"status": 200}, "response_headers_to_add": [seen]}
        listeners.append(listener("inner", ports["inner"], http_filters([inner], manager={"codec_type": "HTTP2"})))
        return {"clusters": [cluster("inner", ports["inner"], **over_http2())], "listeners": listeners}

    def ask(port: int, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)) as client:
            client.request("GET", target, headers={"host": "up", **headers})
            answer = client.getresponse()
            answer.read()
            return answer

    with both(tmp_path, (*SCHEMES, "inner"), resources) as proxies:
        for proxy in proxies:
            for name, (_, before, headers, scheme) in SCHEMES.items():
                answers = [ask(proxy.ports[name], before + path, headers) for path in ("/matched", "/moved", "/inner")]
                matched, moved, inner = answers
                found = (matched.status == 201, moved.getheader("location"), inner.getheader("x-scheme"))
                assert found == (scheme == "https", f"{scheme}://up/new", scheme), (proxy.kind, name)
            # Nobody before could have ended TLS, so this request was not made by who could ask for it.
            assert ask(proxy.ports["nobody before is believed"], "https://up/matched", {}).status == 403, proxy.kind


# ------------------------------------------------------------------------------------------------------ retries

asked: Counter[str] = Counter()
"""Requests that came, by who asked for what."""


class Again(BaseHTTPRequestHandler):
    """Says with 200 that it should be asked again, the first time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        key = f"{self.headers['host']} {self.path}"
        asked[key] += 1
        self.send_response(200)
        if asked[key] == 1:
            self.send_header(self.path.removeprefix("/"), "yes")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        """Says nothing."""


def test_an_answer_with_a_header_that_is_named_is_tried_again(tmp_path: Path) -> None:
    """Whatever its status is; one with another header is the client's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Again)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    policy = {
        "retry_on": "retriable-headers",
        "retriable_headers": [{"name": "x-again", "string_match": {"exact": "yes"}}],
    }

    def resources(ports: dict[str, int]) -> Json:
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up", "retry_policy": policy}}])
        listeners = [listener("http", ports["http"], filters)]
        return {"clusters": [cluster("up", int(server.server_address[1]))], "listeners": listeners}

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            for proxy in proxies:
                for path, tries in (("/x-again", 2), ("/x-other", 1)):
                    assert proxy.get("http", path, host=proxy.kind)[0] == 200
                    assert asked[f"{proxy.kind} {path}"] == tries, proxy.kind
    finally:
        server.shutdown()
        server.server_close()


# ------------------------------------------------------------------------------------------------------ connections


class Greeter(Accepting):
    """Says `x` to whoever connects."""

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"x")


def test_another_endpoint_is_tried_as_often_as_a_tcp_proxy_may(tmp_path: Path) -> None:
    """Of two endpoints in turn one refuses: with one attempt half of the connections come to nothing, with two none."""
    attempts = {"once": 1, "twice": 2}

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, most in attempts.items():
            config = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=name, cluster=name)
            config["max_connect_attempts"] = most
            made.append(listener(name, ports[name], [{"name": "tcp", "typed_config": config}]))
        return {"clusters": [cluster(name, free_port(), greeter.port) for name in attempts], "listeners": made}

    def greeted(port: int) -> bool:
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), LIMIT) as client:
            return client.recv(1) == b"x"
        return False

    with Greeter() as greeter, both(tmp_path, tuple(attempts), resources) as proxies:
        for proxy in proxies:
            came = {name: sum(greeted(proxy.ports[name]) for _ in range(6)) for name in attempts}
            assert came == {"once": 3, "twice": 6}, proxy.kind


BACKLOG = 2
ELSEWHERE = "192.0.2.7"
"""An address that no host has (RFC 5737)."""

HANDSHAKE_SECONDS = 0.3


def waiting(port: int, stack: contextlib.ExitStack) -> int:
    """Of eight clients that come while nobody accepts, how many are connected."""
    clients = []
    for _ in range(8):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(("127.0.0.1", port))
        clients.append(client)
    # Over the loopback whoever is let in is so at once; that the others are not is seen only by giving them time.
    time.sleep(0.2)
    return len(select.select([], clients, [], 0)[1])


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process is."""
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_sockets_are_as_their_listener_says(tmp_path: Path) -> None:
    """`freebind` listens at an address that is not there yet; `tcp_backlog_size` bounds who waits to be accepted."""
    with socket.socket() as probe, pytest.raises(OSError, match="assign"):
        probe.bind((ELSEWHERE, 0))
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}

    def resources(ports: dict[str, int]) -> Json:
        elsewhere = [{"address": address(ports["free"], ELSEWHERE)}]
        return {
            "listeners": [
                listener("free", ports["free"], http_filters([answer]), freebind=True, additional_addresses=elsewhere),
                listener("short", ports["short"], http_filters([answer]), tcp_backlog_size=BACKLOG),
                listener("long", ports["long"], http_filters([answer])),
            ]
        }

    with both(tmp_path, ("free", "short", "long"), resources) as proxies:
        for proxy in proxies:
            until("it listens elsewhere", partial(is_listening, proxy.ports["free"], ELSEWHERE))
            assert proxy.get("free")[0] == 200, proxy.kind
            proxy.process.send_signal(signal.SIGSTOP)
            try:
                until("it is stopped", partial(is_stopped, proxy.process.pid))
                with contextlib.ExitStack() as stack:
                    came = {name: waiting(proxy.ports[name], stack) for name in ("short", "long")}
            finally:
                proxy.process.send_signal(signal.SIGCONT)
            # The kernel lets in one more than the backlog says.
            assert came == {"short": BACKLOG + 1, "long": 8}, proxy.kind
            assert proxy.get("short")[0] == 200, proxy.kind


def test_a_handshake_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """As long as the filter chain says, and no shorter."""
    authority = Authority(tmp_path / "certificates")
    server = authority.issue("server", x509.DNSName("localhost"))

    def resources(ports: dict[str, int]) -> Json:
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        made = listener("tls", ports["tls"], http_filters([answer]))
        (chain,) = made["filter_chains"]
        chain["transport_socket"] = downstream(common_context(server, authority.roots.read_text()))
        chain["transport_socket_connect_timeout"] = f"{HANDSHAKE_SECONDS}s"
        return {"listeners": [made]}

    with both(tmp_path, ("tls",), resources) as proxies:
        for proxy in proxies:
            with socket.create_connection(("127.0.0.1", proxy.ports["tls"]), LIMIT) as client:
                began = time.monotonic()
                assert read_rest(client) == b"", proxy.kind
                assert 0.9 * HANDSHAKE_SECONDS <= time.monotonic() - began < LIMIT, proxy.kind


# ------------------------------------------------------------------------------------------------------ health checks

checked: dict[tuple[str, int], tuple[str, str]] = {}
"""How an endpoint was checked, by data plane and port: the method, and for which host."""


class Checked(BaseHTTPRequestHandler):
    """Notes how it is checked, and is well."""

    protocol_version = "HTTP/1.1"
    server: ThreadingHTTPServer

    def do_GET(self) -> None:
        checked[self.headers["x-plane"], self.server.server_port] = (self.command, self.headers["host"])
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_request(self, *_: object) -> None:
        """Says nothing."""


def test_a_check_of_health_asks_for_the_host_that_it_is_to_ask_for(tmp_path: Path) -> None:
    """The endpoint's own, else the check's, else one of the cluster's name; by the method that is said, which is GET if none is."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Checked) for _ in range(3)]
    own, other, plain = (int(server.server_address[1]) for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def resources(ports: dict[str, int]) -> Json:
        plane = {"header": {"key": "x-plane", "value": str(ports["http"])}}

        def check(**more: object) -> Json:
            http_check = {"path": "/health", "request_headers_to_add": [plane], **more}
            times = {"timeout": "5s", "interval": "0.05s", "no_traffic_interval": "0.05s"}
            return times | {"unhealthy_threshold": 1, "healthy_threshold": 1, "http_health_check": http_check}

        named = cluster("named", own, other, health_checks=[check(host="check.example", method="HEAD")])
        first = named["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        first["health_check_config"] = {"hostname": "own.example"}
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        return {
            "clusters": [named, cluster("plain", plain, health_checks=[check()])],
            "listeners": [listener("http", ports["http"], http_filters([answer]))],
        }

    try:
        with both(tmp_path, ("http",), resources) as proxies:
            for proxy in proxies:
                plane = str(proxy.ports["http"])
                until("all are checked", lambda: len([it for it, _ in checked if it == plane]) == 3)  # noqa: B023
                found = [checked[plane, port] for port in (own, other, plain)]
                assert found == [("HEAD", "own.example"), ("HEAD", "check.example"), ("GET", "plain")], proxy.kind
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
