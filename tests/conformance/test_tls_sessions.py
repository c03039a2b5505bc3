"""Where OpenSSL may resume a session, and what it must not outlive: weft-proxy and Envoy, of the same listeners and clusters."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, cluster, http_filters, listener, typed
from tests.conformance.certificates import (
    Authority,
    Identity,
    client_context,
    common_context,
    downstream,
    ticket_keys,
    upstream,
    visit,
)
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.upstream import Accepting, read_exactly
from tests.conftest import program_or_skip
from tests.ports import free_port

pytestmark = pytest.mark.conformance

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"


RESUMED = ("first", "same", "next-key")
MADE_ANEW = ("key-after-next", "other-name", "other-roots", "disabled", "other-revoked")
REFUSED = ("revoked", "root-gone")
"""Whoever is not resumed proves who it is, and this one's certificate is revoked there, or of nobody who is believed."""

LISTENERS = (*RESUMED, *MADE_ANEW, *REFUSED)
"""A session of the first is brought to each."""


class Relay(Accepting):
    """Stands before a server at a port that may change, and keeps the first record of each connection."""

    def __init__(self) -> None:
        self.to = 0
        self.hellos: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.to)) as server:
            head = read_exactly(connection, 5)
            hello = head + read_exactly(connection, int.from_bytes(head[3:]))
            self.hellos.append(hello)
            server.sendall(hello)
            while True:
                for ready in select.select([connection, server], [], [])[0]:
                    if not (data := ready.recv(65536)):
                        return
                    (server if ready is connection else connection).sendall(data)


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    authority: Authority
    client: Identity
    server: Identity
    relay: Relay
    """To which the listener `early` leads."""


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("sessions")
    authority = Authority(folder / "certificates")
    uri, dns = x509.UniformResourceIdentifier, x509.DNSName
    server = authority.issue("server", dns("localhost"))
    client, other = authority.issue("client", uri(CLIENT)), authority.issue("other", uri(CLIENT))
    roots = authority.roots.read_text()
    common = common_context(server, roots)
    stranger = Authority(folder / "others").roots.read_text()
    same = {"session_ticket_keys": ticket_keys(1)}
    contexts = {
        "first": downstream(common, **same),
        "same": downstream(common, **same),
        "next-key": downstream(common, session_ticket_keys=ticket_keys(2, 1)),
        "key-after-next": downstream(common, session_ticket_keys=ticket_keys(3, 2)),
        "other-name": downstream(common_context(server, roots, names=[CLIENT]), **same),
        "other-roots": downstream(common_context(server, roots + stranger), **same),
        "root-gone": downstream(common_context(server, stranger), **same),
        "disabled": downstream(common, disable_stateless_session_resumption=True),
        "revoked": downstream(common_context(server, roots, revoked=authority.revoking(client)), **same),
        "other-revoked": downstream(common_context(server, roots, revoked=authority.revoking(other)), **same),
    }
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, context in contexts.items():
            it = listener(name, ports[name], http_filters([answer]))
            it["filter_chains"][0]["transport_socket"] = context
            made.append(it)
        carrying = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="early", cluster="early")
        made.append(listener("early", ports["early"], [{"name": "tcp", "typed_config": carrying}]))
        newest = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
        socket = upstream(common_context(client, roots, tls_params=newest))
        return {
            "clusters": [cluster("early", relay.port, transport_socket=socket)],
            "listeners": made,
        }

    with Relay() as relay, both(folder, (*LISTENERS, "early"), resources) as running:
        yield Planes(running, authority, client, server, relay)


def became(port: int, client: ssl.SSLContext, session: ssl.SSLSession) -> str:
    """What *session* is good for at *port*."""
    try:
        is_resumed, _ = visit(port, client, session)
    except (ConnectionError, ssl.SSLError):
        return "refused"
    return "resumed" if is_resumed else "made anew"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_where_nothing_has_changed(planes: Planes, version: ssl.TLSVersion) -> None:
    """A change of trust ends all sessions, those of a client whose certificate was revoked and those of all others."""
    for proxy in planes.proxies:
        found = {}
        for name in LISTENERS:
            # OpenSSL ties a session to its context; one for each, so that no ticket is used twice.
            client = client_context(planes.authority, planes.client)
            client.minimum_version = client.maximum_version = version
            is_resumed, session = visit(proxy.ports["first"], client)
            assert not is_resumed
            found[name] = became(proxy.ports[name], client, session)
        expected = (
            dict.fromkeys(RESUMED, "resumed")
            | dict.fromkeys(MADE_ANEW, "made anew")
            | dict.fromkeys(REFUSED, "refused")
        )
        assert found == expected, proxy.kind


PRE_SHARED_KEY, EARLY_DATA = 41, 42
"""Extensions of a ClientHello (RFC 8446 4.2)."""


def extensions(record: bytes) -> set[int]:
    """Those of the ClientHello in a record."""
    rest = record[5 + 4 + 2 + 32 :]
    rest = rest[1 + rest[0] :]  # session
    rest = rest[2 + int.from_bytes(rest[:2]) :]  # ciphers
    rest = rest[1 + rest[0] :]  # compression
    rest, found = rest[2:], set()
    while rest:
        found.add(int.from_bytes(rest[:2]))
        rest = rest[4 + int.from_bytes(rest[2:4]) :]
    return found


class EarlyServer:
    """A server of OpenSSL that invites who comes back to send data with its hello."""

    def __init__(self, planes: Planes, openssl: str) -> None:
        self.port = free_port()
        files = ["-cert", str(planes.server.chain), "-key", str(planes.server.key)]
        command = [openssl, "s_server", "-accept", f"127.0.0.1:{self.port}", "-tls1_3", "-early_data", *files]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.wait_for(b"ACCEPT")

    def wait_for(self, word: bytes) -> None:
        """Wait until it has said so, of itself or of what it was sent."""
        assert self.process.stdout is not None
        said = b""
        while word not in said:
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, said
            said += part

    def say(self, data: bytes) -> None:
        """Send a line to its client."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_no_upstream_is_sent_early_data(planes: Planes) -> None:
    """What may be replayed (RFC 8446 8) is not for a proxy to send: who resumes a session waits for the handshake all the same."""
    openssl = program_or_skip("openssl", "openssl")
    for proxy in planes.proxies:
        with contextlib.ExitStack() as stack:
            server = EarlyServer(planes, openssl)
            stack.callback(server.stop)
            planes.relay.to = server.port
            planes.relay.hellos.clear()
            for word in (b"hello", b"again"):
                with socket.create_connection(("127.0.0.1", proxy.ports["early"]), LIMIT) as client:
                    client.sendall(word)
                    server.wait_for(word)
                    # The ticket has come before this.
                    server.say(b"pong\n")
                    assert read_exactly(client, 5) == b"pong\n", proxy.kind
        first, second = (extensions(hello) for hello in planes.relay.hellos)
        assert PRE_SHARED_KEY not in first, proxy.kind
        assert PRE_SHARED_KEY in second, (proxy.kind, "there was no session")
        assert EARLY_DATA not in second, proxy.kind


def test_no_client_is_invited_to_send_early_data(planes: Planes) -> None:
    openssl = program_or_skip("openssl", "openssl")
    files = ["-CAfile", str(planes.authority.roots), "-cert", str(planes.client.chain), "-key", str(planes.client.key)]
    for proxy in planes.proxies:
        connected = subprocess.run(
            [openssl, "s_client", "-connect", f"127.0.0.1:{proxy.ports['first']}", "-tls1_3", "-ign_eof", *files],
            input=b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n",
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        assert b"HTTP/1.1 200 OK" in connected.stdout, proxy.kind
        tickets = [line.strip() for line in connected.stdout.splitlines() if b"Max Early Data:" in line]
        assert set(tickets) == {b"Max Early Data: 0"}, proxy.kind
