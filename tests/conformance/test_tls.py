"""TLS on both sides, by version, cipher, curve, protocol and certificate: stock Envoy and weft-proxy, with OpenSSL's peers, in one run."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, cluster, http_filters, listener
from tests.conformance.certificates import (
    Authority,
    Identity,
    client_context,
    common_context,
    downstream,
    server_context,
    upstream,
)
from tests.conformance.proxies import LIMIT, Static
from tests.conformance.telling import Teller, telling
from tests.conformance.upstream import Upstream

pytestmark = pytest.mark.conformance

SERVER, CLIENT, OTHER = (f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("web", "client", "other"))
TLS_12, TLS_13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

LISTENERS: dict[str, Json] = {
    "default": {},
    "newest": {"tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}},
    "oldest": {"tls_params": {"tls_maximum_protocol_version": "TLSv1_2"}},
    # Neither is what either would choose by itself.
    "ciphers": {
        "tls_params": {
            "tls_maximum_protocol_version": "TLSv1_2",
            "cipher_suites": ["ECDHE-ECDSA-CHACHA20-POLY1305", "AES256-GCM-SHA384"],
        }
    },
    "curves": {"tls_params": {"ecdh_curves": ["P-384"]}},
    "alpn": {"alpn_protocols": ["h2", "http/1.1"]},
}
"""What is added to the `common_tls_context` of each listener."""

CLUSTERS: dict[str, Json] = {
    "upstream": {"tls_params": {"tls_maximum_protocol_version": "TLSv1_3"}, "alpn_protocols": ["istio", "http/1.1"]},
    "newest upstream": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    },
}


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    authority: Authority
    identities: dict[str, Identity]
    up: Upstream
    """For a test that speaks TLS itself."""
    told: Teller


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(folder / "certificates"), Authority(folder / "others")
    uri, dns = x509.UniformResourceIdentifier, x509.DNSName
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    identities = {
        "server": authority.issue("server", uri(SERVER), dns("localhost")),
        "client": authority.issue("client", uri(CLIENT)),
        "other": authority.issue("other", uri(OTHER)),
        "longer": authority.issue("longer", uri(f"{CLIENT}-too")),
        "stranger": stranger.issue("client", uri(CLIENT)),
        "expired": authority.issue("expired", uri(CLIENT), until=past),
    }
    roots = authority.roots.read_text()
    up = Upstream()

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name in (*LISTENERS, *CLUSTERS):
            to = name if name in CLUSTERS else "up"
            it = listener(name, ports[name], http_filters([{"match": {"prefix": "/"}, "route": {"cluster": to}}]))
            if name in LISTENERS:
                common = common_context(identities["server"], roots, names=[CLIENT], **LISTENERS[name])
                it["filter_chains"][0]["transport_socket"] = downstream(common)
            made.append(it)
        clusters = [cluster("up", told.port)]
        for name, more in CLUSTERS.items():
            common = common_context(identities["client"], roots, names=[SERVER], **more)
            clusters.append(cluster(name, up.port, transport_socket=upstream(common, sni="web.example")))
        return {"clusters": clusters, "listeners": made}

    with up.socket, telling() as told, both(folder, (*LISTENERS, *CLUSTERS), resources) as running:
        yield Planes(running, authority, identities, up, told)


@dataclass(frozen=True)
class Agreed:
    """What a client has agreed on with a listener that has answered it."""

    version: str | None
    cipher: str
    alpn: str | None


def ask(port: int, client: ssl.SSLContext) -> Agreed | None:
    """Ask for a page; `None`: there is no answer. With TLS 1.3 a client hears of its refusal only then."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), LIMIT) as plain,
            client.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            found = connection.cipher()
            assert found is not None
            agreed = Agreed(connection.version(), found[0], connection.selected_alpn_protocol())
            if agreed.alpn == "h2":
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                # SETTINGS of stream 0.
                return agreed if connection.recv(9)[3:] == b"\x04\0\0\0\0\0" else None
            connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return agreed if answer.status == 200 else None
    except (OSError, http.client.BadStatusLine):
        return None


def versions(low: ssl.TLSVersion, high: ssl.TLSVersion) -> Callable[[ssl.SSLContext], None]:
    def change(context: ssl.SSLContext) -> None:
        context.minimum_version, context.maximum_version = low, high

    return change


def ciphers(names: str) -> Callable[[ssl.SSLContext], None]:
    return lambda context: context.set_ciphers(names)


def curve(name: str) -> Callable[[ssl.SSLContext], None]:
    return lambda context: context.set_ecdh_curve(name)


def alpn(*names: str) -> Callable[[ssl.SSLContext], None]:
    return lambda context: context.set_alpn_protocols(list(names))


CHACHA = "ECDHE-ECDSA-CHACHA20-POLY1305"

HELLOS: dict[str, tuple[str, Callable[[ssl.SSLContext], None], Json | None]] = {
    "only 1.2": ("default", versions(TLS_12, TLS_12), {"version": "TLSv1.2"}),
    "only 1.3": ("default", versions(TLS_13, TLS_13), {"version": "TLSv1.3"}),
    "both": ("default", versions(TLS_12, TLS_13), {"version": "TLSv1.3"}),
    "only 1.2, where 1.3 is asked for": ("newest", versions(TLS_12, TLS_12), None),
    "both, where 1.3 is asked for": ("newest", versions(TLS_12, TLS_13), {"version": "TLSv1.3"}),
    "only 1.3, where 1.2 is the newest": ("oldest", versions(TLS_13, TLS_13), None),
    "both, where 1.2 is the newest": ("oldest", versions(TLS_12, TLS_13), {"version": "TLSv1.2"}),
    "any cipher": ("ciphers", versions(TLS_12, TLS_13), {"cipher": CHACHA}),
    "another cipher": ("ciphers", ciphers("ECDHE-ECDSA-AES128-GCM-SHA256"), None),
    "another cipher, where any will do": (
        "oldest",
        ciphers("ECDHE-ECDSA-AES128-GCM-SHA256"),
        {"cipher": "ECDHE-ECDSA-AES128-GCM-SHA256"},
    ),
    # Forward secrecy is no matter of taste: RSA's key exchange, CBC and SHA-1 are of no use here, whoever asks.
    "a cipher of yesterday": ("oldest", ciphers("ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"), None),
    "the curve": ("curves", curve("secp384r1"), {"version": "TLSv1.3"}),
    "another curve": ("curves", curve("prime256v1"), None),
    "another curve, where any will do": ("default", curve("prime256v1"), {"version": "TLSv1.3"}),
    "h2": ("alpn", alpn("h2"), {"alpn": "h2"}),
    "http/1.1": ("alpn", alpn("http/1.1"), {"alpn": "http/1.1"}),
    # The server's order counts (RFC 7301 3.2).
    "both protocols": ("alpn", alpn("http/1.1", "h2"), {"alpn": "h2"}),
    "no protocol": ("alpn", alpn(), {"alpn": None}),
    # Nothing in common is no reason to refuse: what HTTP/1.1 looks like is known.
    "a protocol of its own": ("alpn", alpn("istio"), {"alpn": None}),
    "a protocol, where none is configured": ("default", alpn("h2"), {"alpn": None}),
}
"""By what a client says: to which listener, and what of it is agreed on; `None`: it is refused."""


@pytest.mark.parametrize("name", HELLOS)
def test_both_agree_on_the_same_with_a_client(planes: Planes, name: str) -> None:
    to, change, expected = HELLOS[name]
    for proxy in planes.proxies:
        client = client_context(planes.authority, planes.identities["client"])
        change(client)
        agreed = ask(proxy.ports[to], client)
        found = agreed and {key: getattr(agreed, key) for key in expected or vars(agreed)}
        assert found == expected, proxy.kind
        if expected is not None:
            # The client's certificate is looked at, whatever else they agree on.
            nobody = client_context(planes.authority, None)
            change(nobody)
            assert ask(proxy.ports[to], nobody) is None, proxy.kind


@pytest.mark.parametrize("version", [TLS_12, TLS_13])
@pytest.mark.parametrize("who", ["client", "other", "longer", "stranger", "expired", None])
def test_only_who_a_client_should_be_is_let_in(planes: Planes, who: str | None, version: ssl.TLSVersion) -> None:
    for proxy in planes.proxies:
        planes.told.heard.clear()
        client = client_context(planes.authority, planes.identities[who] if who else None)
        client.minimum_version = client.maximum_version = version
        assert (ask(proxy.ports["default"], client) is not None) == (who == "client"), proxy.kind
        assert planes.told.heard == (["/"] if who == "client" else []), proxy.kind


def test_plain_text_is_refused_where_tls_is_required(planes: Planes) -> None:
    for proxy in planes.proxies:
        with socket.create_connection(("127.0.0.1", proxy.ports["default"]), LIMIT) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert not connection.recv(9).startswith(b"HTTP/"), proxy.kind


PEERS: dict[str, tuple[str, str, tuple[ssl.TLSVersion, ssl.TLSVersion], str | None]] = {
    "both versions": ("upstream", "server", (TLS_12, TLS_13), "TLSv1.3"),
    "only 1.2": ("upstream", "server", (TLS_12, TLS_12), "TLSv1.2"),
    "only 1.3": ("upstream", "server", (TLS_13, TLS_13), "TLSv1.3"),
    "only 1.2, where 1.3 is asked for": ("newest upstream", "server", (TLS_12, TLS_12), None),
    "of another identity": ("upstream", "other", (TLS_12, TLS_13), None),
    "of another authority": ("upstream", "stranger", (TLS_12, TLS_13), None),
    "expired": ("upstream", "expired", (TLS_12, TLS_13), None),
}
"""By what an upstream is: through which cluster, its certificate, its versions, and the one that is agreed on; `None`: it gets no request."""

LIKED = {"TLSv1.2": "ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.3": "TLS_AES_128_GCM_SHA256"}
"""What either proxy likes best, by version: an upstream that goes by its client's order has it."""


@pytest.mark.parametrize("name", PEERS)
def test_only_who_an_upstream_should_be_gets_a_request(planes: Planes, name: str) -> None:
    to, who, (low, high), version = PEERS[name]
    for proxy in planes.proxies:
        context = server_context(planes.authority, planes.identities[who])
        context.minimum_version, context.maximum_version = low, high
        context.set_alpn_protocols(["http/1.1"])
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        named: list[str | None] = []
        context.sni_callback = lambda _socket, server, _context, named=named: named.append(server)
        found: list[Json | None] = []

        def serve(context: ssl.SSLContext = context, found: list[Json | None] = found) -> None:
            with planes.up.accept() as plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as peer:
                        if peer.recv(65536).endswith(b"\r\n\r\n"):
                            certificate = peer.getpeercert() or {}
                            names = certificate.get("subjectAltName")
                            alpn = peer.selected_alpn_protocol()
                            cipher = peer.cipher()
                            agreed = {"version": peer.version(), "cipher": cipher[0] if cipher else ""}
                            found.append(agreed | {"client": names, "alpn": alpn})
                            peer.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        status, _ = proxy.get(to)
        thread.join()
        planes.up.forget()
        # OpenSSL looks at the version first.
        assert named == ["web.example"] or (high == TLS_12 and version is None), proxy.kind
        if version is None:
            assert (status, found) == (503, []), proxy.kind
        else:
            protocol = "http/1.1" if to == "upstream" else None
            names = (("URI", CLIENT),)
            agreed = {"version": version, "cipher": LIKED[version]}
            assert (status, found) == (204, [agreed | {"client": names, "alpn": protocol}]), proxy.kind
