"""Secrets that change: weft-proxy and Envoy, each told by SDS or by ADS, with sessions of TLS that are there to be resumed."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from google.protobuf.json_format import ParseDict

from tests.conformance.both import cluster, http_filters, listener
from tests.conformance.certificates import (
    Authority,
    Identity,
    by_ads,
    by_sds,
    certificate_of,
    client_context,
    common_context,
    downstream,
    secret,
    server_context,
    ticket_keys,
    upstream,
    visit,
)
from tests.conformance.proxies import LIMIT, Proxy, Resource, proxies, resource, until
from tests.conformance.upstream import END, Accepting
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]

KINDS = ENVOY, WEFT_PROXY

TLS_12, TLS_13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def roots_of(*authorities: Authority, revoked: str | None = None) -> Resource:
    """What is published as the roots to believe, with a list of what is *revoked* if there is one."""
    roots = "".join(authority.roots.read_text() for authority in authorities)
    listed = {} if revoked is None else {"crl": {"inline_string": revoked}}
    return secret("ROOTCA", validation_context={"trusted_ca": {"inline_string": roots}, **listed})


SHORT_SECONDS = 0.5
"""For a question that may come before there is somebody to answer it."""


def until_served(proxy: Proxy, ask: Callable[[], bool]) -> None:
    """Wait until *ask* is answered, which takes secrets; a proxy asks for them by another stream, once it has what needs them."""

    def is_there() -> bool:
        proxy.events()
        with contextlib.suppress(OSError):
            return ask()
        return False

    until("its secrets are there", is_there)


@dataclass(frozen=True)
class Kept:
    """A session that a client has of a proxy. One of TLS 1.3 is good for one visit: OpenSSL uses no ticket twice."""

    context: ssl.SSLContext
    session: ssl.SSLSession | None = None

    def visit(self, port: int, seconds: float = LIMIT) -> tuple[bool, Kept]:
        """Ask with this session. Return whether it is resumed, and what may be resumed next."""
        is_resumed, session = visit(port, self.context, self.session, seconds)
        return is_resumed, Kept(self.context, session)


@dataclass(frozen=True)
class Clients:
    authority: Authority
    identity: Identity

    def session(self, port: int, version: ssl.TLSVersion, seconds: float = LIMIT) -> Kept:
        """Return a session made anew at *port*."""
        context = client_context(self.authority, self.identity)
        context.minimum_version = context.maximum_version = version
        is_resumed, kept = Kept(context).visit(port, seconds)
        assert not is_resumed
        return kept

    def is_sealed_for(self, maker: int, other: int) -> bool:
        """Whether a session that *maker* seals now is resumed at *other*."""
        return self.session(maker, TLS_12).visit(other)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_tickets_are_opened_by_whoever_has_their_key_and_for_as_long(tmp_path: Path, kind: str) -> None:
    """Two proxies share keys and change them one after the other, as replicas of a gateway do. No client is cut off meanwhile."""
    authority = Authority(tmp_path / "authority")
    server = authority.issue("server", x509.DNSName("localhost"))
    clients = Clients(authority, authority.issue("client"))
    context = downstream(
        common_context(server, authority.roots.read_text()), session_ticket_keys_sds_secret_config=by_sds("tickets")
    )
    filters = http_filters([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}])

    def resources(port: int, *keys: int) -> list[Resource]:
        it = listener("in", port, filters)
        it["filter_chains"][0]["transport_socket"] = context
        return [resource("in", ParseDict(it, Listener())), secret("tickets", session_ticket_keys=ticket_keys(*keys))]

    with proxies(tmp_path, "first", "second", kind=kind) as [first, second]:
        here, there = free_port(), free_port()
        for proxy, port in ((first, here), (second, there)):
            proxy.publish(*resources(port, 1))
            until_served(proxy, lambda port=port: bool(clients.session(port, TLS_12, SHORT_SECONDS)))
        old = {version: [clients.session(here, version) for _ in range(3)] for version in (TLS_12, TLS_13)}
        for version in old:
            assert old[version].pop().visit(there)[0], (version, "keys are shared")

        first.publish(*resources(here, 2, 1))
        # Who has the old key alone cannot open what the new one has sealed.
        until("the new key seals", lambda: not clients.is_sealed_for(here, there))
        for version in old:
            assert old[version].pop().visit(here)[0], (version, "the old key still opens")

        second.publish(*resources(there, 2, 1))
        until("the other has it, too", lambda: clients.is_sealed_for(here, there))
        new = {version: clients.session(there, version) for version in old}

        first.publish(*resources(here, 2))
        until("the old key is gone", lambda: not old[TLS_12][0].visit(here)[0])
        assert not old[TLS_13].pop().visit(here)[0]
        for version in new:
            assert new[version].visit(here)[0], (version, "what is left opens")


class Server(Accepting):
    """A server of OpenSSL that ends each connection with its answer, so that the next request shakes hands again."""

    ONE_BY_ONE = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.seen: list[str] = []
        """Of each connection: "resumed", "made anew", or "refused" by the client."""
        super().__init__()

    def serve(self, plain: socket.socket) -> None:
        plain.settimeout(LIMIT)
        try:
            with self.context.wrap_socket(plain, server_side=True) as connection:
                # Who refuses us in TLS 1.3 says so after our part of the handshake is done.
                request = b""
                while not request.endswith(END):
                    request += (part := connection.recv(4096))
                    if not part:
                        raise ConnectionAbortedError
                self.seen.append("resumed" if connection.session_reused else "made anew")
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        except (ssl.SSLError, ConnectionError):
            self.seen.append("refused")


@pytest.mark.parametrize("change", ["a root is removed", "its certificate is revoked"])
@pytest.mark.parametrize("version", [TLS_12, TLS_13])
@pytest.mark.parametrize("kind", KINDS)
def test_a_session_with_an_upstream_does_not_outlive_trust_in_it(
    tmp_path: Path, kind: str, change: str, version: ssl.TLSVersion
) -> None:
    """Whoever resumes shows no certificate; so the next connection shakes hands in full, by the trust that is left, and fails."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    identity = old.issue("server", x509.DNSName("localhost"))
    before, after = {
        "a root is removed": (roots_of(old, new), roots_of(new)),
        "its certificate is revoked": (
            roots_of(old, revoked=old.revoking()),
            roots_of(old, revoked=old.revoking(identity)),
        ),
    }[change]
    context = server_context(old, identity)
    context.minimum_version = context.maximum_version = version
    common = common_context(old.issue("client"), "", tls_params={"tls_maximum_protocol_version": "TLSv1_3"})
    del common["validation_context"]
    common["validation_context_sds_secret_config"] = by_sds("ROOTCA")
    filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up"}}])
    port = free_port()

    def status(seconds: float = LIMIT) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)) as client:
            client.request("GET", "/")
            return client.getresponse().status

    with Server(context) as server, proxies(tmp_path, "it", kind=kind) as [proxy]:
        up = cluster("up", server.port, transport_socket=upstream(common, sni="localhost"))
        own = (
            resource("up", ParseDict(up, Cluster())),
            resource("in", ParseDict(listener("in", port, filters), Listener())),
        )
        proxy.publish(*own, before)
        until_served(proxy, lambda: status(SHORT_SECONDS) == 200)
        server.seen.clear()
        assert [status(), status()] == [200, 200]
        assert server.seen == ["resumed"] * 2

        proxy.publish(*own, after)
        until("it is trusted no more", lambda: status() == 503)
        server.seen.clear()
        assert [status(), status()] == [503, 503]
        until("the server knows", lambda: len(server.seen) >= 2)
        assert set(server.seen) == {"refused"}

        proxy.publish(*own, before)
        server.seen.clear()
        until("it is trusted again", lambda: status() == 200)
        assert status() == 200
        # What was kept before is not taken up again.
        assert [one for one in server.seen if one != "refused"] == ["made anew", "resumed"]


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_that_come_by_ads_are_those_of_the_next_connection(tmp_path: Path, kind: str) -> None:
    """A listener's certificate and its roots, by the stream that the listener came by. A wrong one is refused, and the last good one serves."""
    authorities = [Authority(tmp_path / name) for name in ("old", "new")]
    servers = [authority.issue("server", x509.DNSName("localhost")) for authority in authorities]
    clients = [client_context(authority, authority.issue("client")) for authority in authorities]
    for context in clients:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    common = {
        "tls_certificate_sds_secret_configs": [by_ads("own")],
        "validation_context_sds_secret_config": by_ads("ROOTCA"),
    }
    port = free_port()
    it = listener("in", port, http_filters([{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]))
    it["filter_chains"][0]["transport_socket"] = downstream(common)
    made = resource("in", ParseDict(it, Listener()))

    def shown(client: ssl.SSLContext) -> Identity | None:
        """Who answers *client*; `None` if it refuses it."""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            with socket.create_connection(("127.0.0.1", port), LIMIT) as plain, client.wrap_socket(plain) as connection:
                certificate = connection.getpeercert(binary_form=True)
                connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                if not connection.recv(1):
                    return None
            return next(it for it in servers if it.certificate().public_bytes(Encoding.DER) == certificate)
        return None

    old, new = clients
    with proxies(tmp_path, "it", kind=kind) as [proxy]:
        proxy.publish(made, secret("own", tls_certificate=certificate_of(servers[0])), roots_of(authorities[0]))
        until("the listener has its secrets", lambda: shown(old) == servers[0])
        assert shown(new) is None
        with socket.create_connection(("127.0.0.1", port), LIMIT) as plain, old.wrap_socket(plain) as kept:
            changed = secret("own", tls_certificate=certificate_of(servers[1])), roots_of(authorities[1])
            proxy.publish(made, *changed)
            until("they have changed", lambda: shown(new) == servers[1])
            assert shown(old) is None
            kept.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert kept.recv(9) == b"HTTP/1.1 ", "who was let in before stays"

        wrong = secret("own", tls_certificate=certificate_of(servers[0], servers[1].key))
        refused = proxy.offer(made, wrong, roots_of(authorities[1]))
        assert proxy.streams == {proxy.stream}, "nothing came by another stream"
        assert list(refused) == [(f"type.googleapis.com/{Secret.DESCRIPTOR.full_name}", "own")]
        assert shown(new) == servers[1]
