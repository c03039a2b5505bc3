"""
What recorded resources of Istio's own control plane are there for: requests whose answers Istio's documentation promises.

test_istiod_xds.py loads every scenario and asks each host for `/`. Here some are asked for what they are about, and what is
expected is written down. Endpoints are sockets of this test, and so is what catches connections to a workload: it says in the
PROXY protocol where they were going.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2  # noqa: F401 - for Any
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.json_format import ParseDict

from tests.conformance.both import Json, typed
from tests.conformance.certificates import Authority, Identity, client_context
from tests.conformance.proxies import LIMIT, Proxy, Resource, proxies, until
from tests.conformance.test_istiod_xds import Endpoints, Handler, Recorded, answering, endpoints
from tests.conformance.upstream import fields_of, read_head, read_rest

pytestmark = pytest.mark.conformance

BOOKINFO = {
    "details": "10.244.0.10:9080",
    "ratings": "10.244.0.11:9080",
    "reviews v1": "10.244.0.12:9080",
    "reviews v2": "10.244.0.13:9080",
    "reviews v3": "10.244.0.14:9080",
}
"""Where its endpoints were recorded, and what they answer."""

OUTBOUND, INBOUND = "0.0.0.0_9080", "virtualInbound"
HTTPBIN, HELLO = "0.0.0.0_8000", "0.0.0.0_5000"
"""Listeners."""

CALLER = "10.244.0.99:40000"
"""Whoever calls a workload."""

BIND_ADDRESS = "127.0.0.6"
"""From which Istio's sidecars call their own workload."""


class Caught(Recorded):
    """
    The same, and others call its workload, too.

    What redirects a connection on a node is said by its first bytes, and what is behind the inbound clusters, in the place of
    the original destination, which no machine here has, is a server.
    """

    def __init__(self, folder: Path, proxy: str, servers: Endpoints) -> None:
        super().__init__(folder, proxy, servers)
        [inbound] = [listener for listener in self.items["listeners"] if listener["name"] == INBOUND]
        [original] = [it for it in inbound["listenerFilters"] if it["name"] == "envoy.filters.listener.original_dst"]
        original.update(
            name="envoy.filters.listener.proxy_protocol",
            typedConfig=typed("filters.listener.proxy_protocol.v3.ProxyProtocol"),
        )
        for cluster in (cluster for cluster in self.items["clusters"] if cluster["name"].startswith("inbound|")):
            name = cluster["name"]
            at = {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": servers.port(name)}}}
            places = [{"lbEndpoints": [{"endpoint": at}]}]
            cluster.update(type="STATIC", lbPolicy="ROUND_ROBIN")
            cluster["loadAssignment"] = {"clusterName": name, "endpoints": places}


def header(destination: str) -> bytes:
    """The first bytes of a connection that was caught on its way to *destination*."""
    (source, source_port), (address, port) = CALLER.split(":"), destination.split(":")
    return f"PROXY TCP4 {source} {address} {source_port} {port}\r\n".encode()


def telling(name: str) -> type[socketserver.BaseRequestHandler]:
    """A handler of HTTP that answers every request with what it is told of its caller, as JSON."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while head := read_head(self.request):
                caller = fields_of(head).get(b"x-forwarded-client-cert", b"").decode()
                body = json.dumps({"cluster": name, "from": self.client_address[0], "caller": caller}).encode()
                self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    return Handler


def echoing(name: str) -> type[socketserver.BaseRequestHandler]:
    """A handler that gives back what it is sent, behind its *name*."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                self.request.sendall(name.encode() + b" " + data)

    return Handler


def catching(port: int) -> Callable[[str], type[socketserver.BaseRequestHandler]]:
    """Handlers that lead connections for any destination to *port*, as a node's redirection does."""

    def of(destination: str) -> type[socketserver.BaseRequestHandler]:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection(("127.0.0.1", port), LIMIT) as onward:
                    onward.sendall(header(destination))
                    back = threading.Thread(target=carry, args=(onward, self.request), daemon=True)
                    back.start()
                    carry(self.request, onward)
                    back.join(LIMIT)

        return Handler

    return of


def carry(source: socket.socket, destination: socket.socket) -> None:
    """Pass bytes on in one direction, until it ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
        destination.shutdown(socket.SHUT_WR)


class Programs:
    """Handlers of HTTP that answer with their addresses, and keep the heads of what they are asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[bytes]] = defaultdict(list)
        """By address."""
        self.failing: set[str] = set()
        """Addresses of those that answer with 503."""
        self.statuses = deque[int]()
        """Of the next answers; then 200."""
        self.answering = threading.Event()
        """Whether they do."""
        self.answering.set()

    def __call__(self, address: str) -> type[socketserver.BaseRequestHandler]:
        programs, body = self, address.encode()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    while head := read_head(self.request):
                        programs.asked[address].append(head)
                        programs.answering.wait()
                        status = 503 if address in programs.failing else 200
                        if programs.statuses:
                            status = programs.statuses.popleft()
                        said = b"HTTP/1.1 %d It\r\ncontent-length: %d\r\n\r\n%b"
                        self.request.sendall(said % (status, len(body), body))

        return Handler


class Mesh:
    """Who has which identity, and what makes it believed."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)

    def identity(self, account: str) -> Identity:
        uri = f"spiffe://cluster.local/ns/default/sa/{account}"
        return self.authority.issue(account, x509.UniformResourceIdentifier(uri))

    def secrets(self, account: str) -> list[Resource]:
        """What the agent beside a proxy of *account* serves."""
        chain, key = self.identity(account)
        own = {
            "certificate_chain": {"inline_string": chain.read_text()},
            "private_key": {"inline_string": key.read_text()},
        }
        roots = {"trusted_ca": {"inline_string": self.authority.roots.read_text()}}
        made = []
        for secret in ({"name": "default", "tls_certificate": own}, {"name": "ROOTCA", "validation_context": roots}):
            message = ParseDict(secret, secret_pb2.Secret())
            type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
            made.append((type_url, message.name, account, message.SerializeToString()))
        return made

    def caller(self, account: str, alpn: str = "istio-http/1.1") -> ssl.SSLContext:
        """How the sidecar of *account* calls another one."""
        context = client_context(self.authority, self.identity(account))
        context.check_hostname = False  # identities are URIs
        context.set_alpn_protocols([alpn, "istio"])
        return context


class Place(NamedTuple):
    """A port of a workload behind its proxy."""

    proxy: Recorded
    destination: str

    @contextmanager
    def connect(self, tls: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
        """Connect as who was caught on its way there."""
        with socket.create_connection(("127.0.0.1", self.proxy.ports[INBOUND]), LIMIT) as connection:
            connection.sendall(header(self.destination))
            if tls is None:
                yield connection
                return
            with tls.wrap_socket(
                connection, server_hostname="outbound_.9080_._.it.default.svc.cluster.local"
            ) as secured:
                yield secured

    def ask(
        self, tls: ssl.SSLContext | None = None, method: str = "GET", path: str = "/", **headers: str
    ) -> tuple[int, str]:
        with self.connect(tls) as connection:
            return exchanged(connection, method, path, headers)


def exchanged(connection: socket.socket, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Status and body of a request."""
    client = http.client.HTTPConnection("it")
    client.sock = connection
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = client.getresponse()
    return answer.status, answer.read().decode()


def call(
    proxy: Recorded,
    host: str,
    listener: str = OUTBOUND,
    *,
    method: str = "GET",
    path: str = "/",
    source: str = "127.0.0.1",
    **headers: str,
) -> tuple[int, str]:
    """What the program beside *proxy* is told that calls *host*."""
    with socket.create_connection(("127.0.0.1", proxy.ports[listener]), LIMIT, (source, 0)) as connection:
        return exchanged(connection, method, path, headers | {"host": host})


@pytest.fixture
def scenarios(corpus: Path) -> Path:
    return corpus / "istiod-xds"


@contextmanager
def outbound(directory: Path, folder: Path, node: str, handler: Handler = answering) -> Iterator[Recorded]:
    """Run weft-proxy as that of *node*, for calls of endpoints that are served by *handler*."""
    mesh = Mesh(directory / "authority")
    with endpoints(handler) as servers, proxies(directory, "sidecar") as [proxy]:
        recorded = Recorded(folder, node, servers)
        proxy.publish(*recorded.resources(), *mesh.secrets("default"))
        yield recorded


def test_a_header_sends_jason_to_one_version_and_everybody_else_to_the_other(scenarios: Path, tmp_path: Path) -> None:
    with outbound(tmp_path, scenarios / "bookinfo-reviews-jason-v2-v3", "productpage-v1") as proxy:
        assert call(proxy, "reviews:9080", end_user="jason") == (200, BOOKINFO["reviews v2"])
        for user in ("Jason", "jason2", "jaso"):
            assert call(proxy, "reviews:9080", end_user=user) == (200, BOOKINFO["reviews v3"]), user
        assert call(proxy, "reviews:9080") == (200, BOOKINFO["reviews v3"])


def test_one_request_of_ten_goes_to_the_new_version(scenarios: Path, tmp_path: Path) -> None:
    """90 and 10 of 100, by chance: of 400 requests 40, give or take five standard deviations of 6."""
    with outbound(tmp_path, scenarios / "bookinfo-reviews-90-10", "productpage-v1") as proxy:
        answers = Counter(call(proxy, "reviews.default.svc.cluster.local:9080") for _ in range(400))
    assert answers.keys() == {(200, BOOKINFO["reviews v1"]), (200, BOOKINFO["reviews v2"])}
    assert 10 <= answers[200, BOOKINFO["reviews v2"]] <= 70, answers


def test_one_users_requests_are_answered_with_an_error(scenarios: Path, tmp_path: Path) -> None:
    with outbound(tmp_path, scenarios / "bookinfo-ratings-abort", "reviews-v2") as proxy:
        assert call(proxy, "ratings:9080", end_user="jason") == (500, "fault filter abort")
        assert call(proxy, "ratings:9080") == (200, BOOKINFO["ratings"])


def test_one_users_requests_are_delayed(scenarios: Path, tmp_path: Path) -> None:
    """For 7 s, and answered then."""

    def timed(**headers: str) -> tuple[tuple[int, str], float]:
        began = time.monotonic()
        return call(proxy, "ratings:9080", **headers), time.monotonic() - began

    with outbound(tmp_path, scenarios / "bookinfo-reviews-test-v2-ratings-delay", "reviews-v2") as proxy:
        (answer, seconds), (delayed, delayed_seconds) = timed(), timed(end_user="jason")
    assert answer == delayed == (200, BOOKINFO["ratings"])
    assert seconds < 7 <= delayed_seconds < 7 + LIMIT


DENIED = 403, "RBAC: access denied"


def test_http_is_for_whom_the_policies_name(scenarios: Path, tmp_path: Path) -> None:
    """By method, path, header and the caller's identity; what no policy allows is denied."""
    folder, mesh = scenarios / "authorization-allow-get", Mesh(tmp_path / "authority")
    productpage, reviews = mesh.caller("bookinfo-productpage"), mesh.caller("bookinfo-reviews")

    def statuses(proxy: Proxy, node: str, address: str, *requests: tuple[ssl.SSLContext | None, Json]) -> list[int]:
        recorded = Caught(folder, node, servers)
        proxy.publish(*recorded.resources(), *mesh.secrets("default"))
        answers = [Place(recorded, address).ask(caller, **how) for caller, how in requests]
        assert all(body.startswith("{") if status == 200 else (status, body) == DENIED for status, body in answers)
        return [status for status, _ in answers]

    with endpoints(telling) as servers, proxies(tmp_path, "productpage", "details", "ratings", "reviews") as running:
        front, details, ratings, other = running
        # Anybody may GET the page.
        asked: Any = [(None, {}), (reviews, {}), (None, {"method": "POST"})]
        assert statuses(front, "productpage-v1", "10.244.0.15:9080", *asked) == [200, 200, 403]
        # The page may GET details.
        asked = [(productpage, {}), (productpage, {"method": "DELETE"}), (reviews, {}), (None, {})]
        assert statuses(details, "details-v1", BOOKINFO["details"], *asked) == [200, 403, 403, 403]
        # Reviews may GET ratings below a path, with a token.
        good: Json = {"path": "/ratings/0", "x_token": "guest"}
        asked = [(reviews, good), (productpage, good), (None, good)]
        asked += [(reviews, good | more) for more in ({"method": "POST"}, {"path": "/"}, {"x_token": "admin"})]
        assert statuses(ratings, "ratings-v1", BOOKINFO["ratings"], *asked) == [200, 403, 403, 403, 403, 403]
        # And nobody may ask reviews.
        asked = [(productpage, {}), (reviews, {}), (None, {})]
        assert statuses(other, "reviews-v1", BOOKINFO["reviews v1"], *asked) == [403, 403, 403]


def test_tcp_is_for_the_ports_that_the_policies_name(scenarios: Path, tmp_path: Path) -> None:
    """9000 and 9001 are allowed, and the latter is denied: what a policy says of HTTP holds for no byte of TCP, and denies them all."""
    mesh = Mesh(tmp_path / "authority")
    with endpoints(echoing) as servers, proxies(tmp_path, "sidecar") as [proxy]:
        recorded = Caught(scenarios / "authorization-tcp", "tcp-echo-v1", servers)
        proxy.publish(*recorded.resources(), *mesh.secrets("default"))
        for port, answer in ((9000, b"inbound|9000|| hello\n"), (9001, b""), (9002, b"")):
            for caller in (None, mesh.caller("curl", "istio")):
                with Place(recorded, f"10.244.0.10:{port}").connect(caller) as connection:
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(b"hello\n")
                    # Who is denied has its connection closed; who is not keeps it until it ends itself.
                    assert (connection.recv(100) if answer else read_rest(connection)) == answer, port


def test_two_sidecars_prove_to_each_other_who_they_are(scenarios: Path, tmp_path: Path) -> None:
    """The page's sidecar calls that of details by mutual TLS, and nobody who says so without proof."""
    folder, mesh = scenarios / "bookinfo-mtls", Mesh(tmp_path / "authority")
    with endpoints(telling) as programs, proxies(tmp_path, "productpage", "details") as [caller, called]:
        details = Caught(folder, "details-v1", programs)
        with endpoints(catching(details.ports[INBOUND])) as ways:
            productpage = Recorded(folder, "productpage-v1", ways)
            caller.publish(*productpage.resources(), *mesh.secrets("bookinfo-productpage"))
            # Another's certificate, though of the same authority.
            called.publish(*details.resources(), *mesh.secrets("bookinfo-ratings"))
            assert call(productpage, "details:9080")[0] == 503
            called.publish(*details.resources(), *mesh.secrets("bookinfo-details"))
            until("the certificate is there", lambda: call(productpage, "details:9080")[0] == 200)
            told = json.loads(call(productpage, "details:9080")[1])
            elements = dict(element.split("=", 1) for element in told.pop("caller").split(";"))
            assert told == {"cluster": "inbound|9080||", "from": BIND_ADDRESS}
            assert elements["By"] == "spiffe://cluster.local/ns/default/sa/bookinfo-details"
            assert elements["URI"] == "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"
            # Nobody asks for it yet: PERMISSIVE, and what has no sidecar is nobody.
            status, body = Place(details, BOOKINFO["details"]).ask()
            assert (status, json.loads(body)["caller"]) == (200, "")


@pytest.mark.parametrize(
    ("scenario", "node", "name"),
    [
        ("tcp-echo-weighted", "istio-ingressgateway", "0.0.0.0_31400"),
        ("tcp-echo-weighted-mesh", "curl", "10.96.0.10_9000"),
    ],
)
def test_one_connection_of_five_goes_to_the_new_version(
    scenarios: Path, tmp_path: Path, scenario: str, node: str, name: str
) -> None:
    """80 and 20 of 100, by chance: of 400 connections 80, give or take five standard deviations of 8."""
    answers = Counter[bytes]()
    with outbound(tmp_path, scenarios / scenario, node, echoing) as proxy:
        for _ in range(400):
            with (
                socket.create_connection(("127.0.0.1", proxy.ports[name]), LIMIT) as connection,
                connection.makefile("rb") as incoming,
            ):
                connection.sendall(b"hello\n")
                answers[incoming.readline()] += 1
    old, new = (b"10.244.0.%d:9000 hello\n" % last for last in (10, 11))
    assert answers.keys() == {old, new}
    assert 40 <= answers[new] <= 120, answers


V1, V2 = "10.244.0.10:8080", "10.244.0.12:8080"
"""Of httpbin."""

HASHED: dict[str, Callable[[int], dict[str, str]]] = {
    "consistent-hash-cookie": lambda user: {"cookie": f"user={user}"},
    "consistent-hash-header": lambda user: {"x_user": str(user)},
    "consistent-hash-query-ringhash": lambda user: {"path": f"/?u={user}"},
    "consistent-hash-source-ip-maglev": lambda user: {"source": f"127.0.0.{user}"},
}
"""How a user calls, by scenario."""


@pytest.mark.parametrize("scenario", HASHED)
def test_one_users_requests_go_to_one_endpoint(scenarios: Path, tmp_path: Path, scenario: str) -> None:
    with outbound(tmp_path, scenarios / scenario, "curl") as proxy:
        found = set[tuple[int, str]]()
        for user in range(1, 41):
            answers = {call(proxy, "httpbin:8000", HTTPBIN, **HASHED[scenario](user)) for _ in range(3)}
            assert len(answers) == 1, (user, answers)
            found |= answers
    assert found == {(200, V1), (200, V2)}


@pytest.fixture
def programs() -> Programs:
    return Programs()


def test_every_second_request_is_copied_to_the_new_version(scenarios: Path, tmp_path: Path, programs: Programs) -> None:
    """By chance: of 200 requests 100, give or take five standard deviations of 7. Nobody hears what a copy is answered."""
    programs.failing.add(V2)
    with outbound(tmp_path, scenarios / "httpbin-mirror", "curl", programs) as proxy:
        assert {call(proxy, "httpbin:8000", HTTPBIN) for _ in range(200)} == {(200, V1)}
        until("the copies are there", lambda: len(programs.asked[V2]) >= 65)
    assert len(programs.asked[V1]) == 200
    assert len(programs.asked[V2]) <= 135
    # The same host as that of the request.
    assert {fields_of(head)[b"host"] for head in programs.asked[V2]} == {b"httpbin:8000"}


@pytest.fixture
def httpbin(scenarios: Path, tmp_path: Path, programs: Programs) -> Iterator[Callable[..., tuple[int, str]]]:
    """Calls httpbin, by a proxy of which most is asked; *programs* serve it."""
    folder = scenarios / "httpbin-retries-timeout-circuit-breaker"
    with outbound(tmp_path, folder, "curl", programs) as proxy:
        yield functools.partial(call, proxy, "httpbin:8000", HTTPBIN)


def test_what_fails_is_tried_again_where_the_route_says_so(
    programs: Programs, httpbin: Callable[..., tuple[int, str]]
) -> None:
    """Up to three times. Its only endpoint is ejected meanwhile, and asked all the same, for there is no other."""
    for path, statuses, expected in (
        ("/delay/0", [503, 502, 504], (200, V1)),
        ("/delay/0", [503, 503, 503, 503], (503, V1)),
        ("/status/503", [503], (503, V1)),
        ("/", [503], (503, V1)),
    ):
        programs.statuses.extend(statuses)
        assert httpbin(path=path) == expected, (path, statuses)
        assert not programs.statuses, (path, statuses)


def test_what_takes_too_long_is_tried_again_and_then_given_up(
    programs: Programs, httpbin: Callable[..., tuple[int, str]]
) -> None:
    """Each try has a second, and all of them together have three."""
    programs.answering.clear()
    began = time.monotonic()
    assert httpbin(path="/delay/9") == (504, "upstream request timeout")
    assert 3 <= time.monotonic() - began < LIMIT
    assert len(programs.asked[V1]) == 3
    programs.answering.set()


def test_who_is_one_too_many_is_told_at_once(programs: Programs, httpbin: Callable[..., tuple[int, str]]) -> None:
    """One has the only connection, and one may wait for it."""
    programs.answering.clear()
    with futures.ThreadPoolExecutor(3) as callers:
        first = callers.submit(httpbin)
        try:
            # Before, it is the one that waits.
            until("it has the connection", lambda: bool(programs.asked[V1]))
            [refused], [waiting] = futures.wait(
                [callers.submit(httpbin) for _ in range(2)], LIMIT, futures.FIRST_COMPLETED
            )
        finally:
            programs.answering.set()
        status, text = refused.result()
        assert (status, text.rpartition(": ")[2]) == (503, "overflow")
        assert first.result() == waiting.result() == (200, V1)
    assert len(programs.asked[V1]) == 2


def test_requests_are_rewritten_and_answered_as_the_routes_say(
    programs: Programs, httpbin: Callable[..., tuple[int, str]]
) -> None:
    assert httpbin(method="POST", path="/?v=2", end_user="jason", x_r="1") == (200, V1)
    [head] = programs.asked[V1]
    found = fields_of(head)
    assert head.startswith(b"POST /post?v=2 HTTP/1.1\r\n")
    assert (found[b"host"], found[b"x-a"]) == (b"httpbin.internal", b"b")
    assert b"x-r" not in found
    assert httpbin(path="/teapot") == (418, "short")
    assert httpbin(path="/old") == (302, "")


N1, N2, *N3, N4 = (f"10.244.0.{last}:8080" for last in range(11, 16))
"""Of hello, by their zones, from the client's own to the farthest."""


def test_requests_are_distributed_among_zones(scenarios: Path, tmp_path: Path) -> None:
    """70, 20 and 10 of 100, by chance: of 400 requests so many, give or take five standard deviations of 9, 8 and 6."""
    with outbound(tmp_path, scenarios / "locality-distribute", "client") as proxy:
        answers = Counter(call(proxy, "hello:5000", HELLO) for _ in range(400))
    assert answers.keys() == {(200, address) for address in (N1, N2, *N3)}
    assert 234 <= answers[200, N1] <= 326, answers
    assert 40 <= answers[200, N2] <= 120, answers


def test_the_nearest_zone_that_is_healthy_is_asked(scenarios: Path, tmp_path: Path) -> None:
    """One zone after the other becomes unhealthy, and where none is left nobody is asked."""
    secrets = Mesh(tmp_path / "authority").secrets("default")
    with endpoints() as servers, proxies(tmp_path, "sidecar") as [proxy]:
        recorded = Recorded(scenarios / "locality-failover", "client", servers)
        [hello] = [it for it in recorded.items["endpoints"] if "|hello." in it["clusterName"]]

        def publish(version: int) -> None:
            made = ((type_url, name, str(version), content) for type_url, name, _, content in recorded.resources())
            proxy.publish(*made, *secrets)

        for priority, expected in enumerate(([N1], [N2], N3, [N4])):
            publish(priority)
            answers = {call(recorded, "hello:5000", HELLO) for _ in range(20)}
            assert answers == {(200, address) for address in expected}
            [zone] = [it for it in hello["endpoints"] if it.get("priority", 0) == priority]
            for endpoint in zone["lbEndpoints"]:
                endpoint["healthStatus"] = "UNHEALTHY"
        publish(priority + 1)
        assert call(recorded, "hello:5000", HELLO)[0] == 503
