"""
What recorded resources of Istio's own control plane are there for: requests whose answers Istio's documentation promises.

test_istiod_xds.py loads every scenario and asks each host for `/`. Here six are asked for what they are about, and what is
expected is written down. Endpoints are sockets of this test, and so is what catches connections to a workload: it says in the
PROXY protocol where they were going.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
from tests.conformance.test_istiod_xds import Endpoints, Recorded, endpoints
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
    """A handler that gives back what it is sent, behind the cluster's *name*."""

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


def call(proxy: Recorded, host: str, **headers: str) -> tuple[int, str]:
    """What the program beside *proxy* is told that calls *host*."""
    with socket.create_connection(("127.0.0.1", proxy.ports[OUTBOUND]), LIMIT) as connection:
        return exchanged(connection, "GET", "/", headers | {"host": host})


@pytest.fixture
def scenarios(corpus: Path) -> Path:
    return corpus / "istiod-xds"


@contextmanager
def outbound(directory: Path, folder: Path, node: str) -> Iterator[Recorded]:
    """Run weft-proxy as the sidecar of *node*, for its own program's calls."""
    mesh = Mesh(directory / "authority")
    with endpoints() as servers, proxies(directory, "sidecar") as [proxy]:
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
