"""Where a request says that it comes from, and what of that is believed: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.conformance.both import Json, both, cluster, file_log, http_filters, listener, records, typed
from tests.conformance.certificates import Authority, Identity, client_context, common_context, downstream
from tests.conformance.frames import END_HEADERS, END_STREAM, GET, HEADERS, Wire, answered, fields
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.telling import Told, telling
from weft.data_plane import ENVOY

pytestmark = pytest.mark.conformance

PEER = "198.51.100.9"
"""Who connects, as the PROXY protocol says it: addresses of the loopback are a case of their own."""

GATEWAY = "10.1.2.9"
"""One's own, who connects."""

SERVER = "spiffe://cluster.local/ns/shop/sa/web"
CLIENT = "spiffe://cluster.local/ns/shop/sa/client"

HTTP1, HTTP2 = VERSIONS = ("HTTP/1.1", "HTTP/2")
"""In which clients ask."""


def manager(*, edge: bool, hops: int = 0, **more: object) -> Json:
    """What the connection manager is told: whether this is the edge, and how many proxies before it are trusted."""
    internal = {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}
    return {"use_remote_address": edge, "xff_num_trusted_hops": hops, "internal_address_config": internal, **more}


@dataclass(frozen=True)
class Case:
    """A request that *peer* sends with these headers, and what of it reaches the upstream: of *told*, and of nothing else of `TOLD`."""

    manager: Json
    sent: list[tuple[str, str]]
    told: dict[str, str]
    client: str = PEER
    """In the record."""
    peer: str | None = PEER
    """`None`: whoever connects speaks for itself."""
    envoy: dict[str, str] = field(default_factory=dict)
    """What Envoy tells in another way; why is said beside it."""


TOLD = ("x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address", "x-envoy-internal", "x-envoy-retry-on")

CASES = {
    "the edge believes nobody": Case(
        manager(edge=True),
        [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-envoy-external-address", "1.1.1.1"),
            ("x-envoy-internal", "true"),
            ("x-envoy-retry-on", "5xx"),
        ],
        {"x-forwarded-for": f"1.1.1.1,{PEER}", "x-forwarded-proto": "http", "x-envoy-external-address": PEER},
    ),
    "the edge behind one proxy": Case(
        manager(edge=True, hops=1),
        [("x-forwarded-for", "9.9.9.9, 1.1.1.1"), ("x-forwarded-proto", "https")],
        {
            "x-forwarded-for": f"9.9.9.9, 1.1.1.1,{PEER}",
            "x-forwarded-proto": "https",
            "x-envoy-external-address": "1.1.1.1",
        },
        client="1.1.1.1",
    ),
    "the edge behind two proxies, in two lines": Case(
        manager(edge=True, hops=2),
        [("x-forwarded-for", "9.9.9.9, 2001:db8::1"), ("X-Forwarded-For", "2.2.2.2")],
        {
            "x-forwarded-for": f"9.9.9.9, 2001:db8::1,2.2.2.2,{PEER}",
            "x-forwarded-proto": "http",
            "x-envoy-external-address": "2001:db8::1",
        },
        client="2001:db8::1",
    ),
    "the edge behind more proxies than have spoken": Case(
        manager(edge=True, hops=2),
        [("x-forwarded-for", "1.1.1.1")],
        {"x-forwarded-for": f"1.1.1.1,{PEER}", "x-forwarded-proto": "http", "x-envoy-external-address": PEER},
    ),
    "the edge, and a client of one's own": Case(
        manager(edge=True),
        [
            ("x-envoy-internal", "false"),
            ("x-envoy-external-address", "6.6.6.6"),
            ("x-envoy-retry-on", "5xx"),
        ],
        {
            "x-forwarded-for": GATEWAY,
            "x-forwarded-proto": "http",
            "x-envoy-external-address": "6.6.6.6",
            "x-envoy-internal": "true",
        },
        client=GATEWAY,
        peer=GATEWAY,
    ),
    "the edge, and a client of one's own that speaks for another": Case(
        manager(edge=True),
        [("x-forwarded-for", "1.1.1.1")],
        {"x-forwarded-for": f"1.1.1.1,{GATEWAY}", "x-forwarded-proto": "http", "x-envoy-external-address": GATEWAY},
        client=GATEWAY,
        peer=GATEWAY,
    ),
    "the edge that does not append": Case(
        manager(edge=True, skip_xff_append=True),
        [("x-forwarded-for", "1.1.1.1")],
        {"x-forwarded-for": "1.1.1.1", "x-forwarded-proto": "http", "x-envoy-external-address": PEER},
    ),
    "the edge, over IPv6": Case(
        manager(edge=True),
        [],
        {"x-forwarded-for": "2001:db8::9", "x-forwarded-proto": "http", "x-envoy-external-address": "2001:db8::9"},
        client="2001:db8::9",
        peer="2001:db8::9",
    ),
    # Envoy names this host by another of its addresses, so that whoever reads that elsewhere can tell hosts apart. weft-proxy tells
    # what the record says.
    "the edge, and a client on this host": Case(
        manager(edge=True),
        [("x-forwarded-for", "1.1.1.1")],
        {
            "x-forwarded-for": "1.1.1.1,127.0.0.1",
            "x-forwarded-proto": "http",
            "x-envoy-external-address": "127.0.0.1",
        },
        client="127.0.0.1",
        peer=None,
        envoy={"x-forwarded-for": "1.1.1.1,(this host)"},
    ),
    "inside, after an edge": Case(
        manager(edge=False),
        [
            ("x-forwarded-for", "9.9.9.9,1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-envoy-external-address", "1.1.1.1"),
            ("x-envoy-internal", "true"),
        ],
        {"x-forwarded-for": "9.9.9.9,1.1.1.1", "x-forwarded-proto": "https", "x-envoy-external-address": "1.1.1.1"},
        client="1.1.1.1",
    ),
    "inside, from one's own": Case(
        manager(edge=False),
        [("x-forwarded-for", "10.1.2.3")],
        {"x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "http", "x-envoy-internal": "true"},
        client="10.1.2.3",
    ),
    "inside, from one's own through somebody else": Case(
        manager(edge=False),
        [("x-forwarded-for", "10.1.2.3"), ("x-forwarded-for", "10.1.2.4")],
        {"x-forwarded-for": "10.1.2.3,10.1.2.4", "x-forwarded-proto": "http"},
        client="10.1.2.4",
    ),
    "inside, behind one proxy": Case(
        manager(edge=False, hops=1),
        [("x-forwarded-for", "9.9.9.9, 10.1.2.3, 2.2.2.2")],
        {"x-forwarded-for": "9.9.9.9, 10.1.2.3, 2.2.2.2", "x-forwarded-proto": "http"},
        client="10.1.2.3",
    ),
    "inside, from nobody": Case(manager(edge=False), [], {"x-forwarded-proto": "http"}),
    "inside, from what is no address": Case(
        manager(edge=False),
        [("x-forwarded-for", "unknown")],
        {"x-forwarded-for": "unknown", "x-forwarded-proto": "http"},
    ),
}

STEERING = (
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
    "x-envoy-force-trace",
    "x-envoy-ip-tags",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-decorator-operation",
    "x-envoy-original-path",
    "x-envoy-original-host",
)
"""What a client of one's own may ask of Envoy for its request."""

INSIDE = (
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-peer-metadata",
    "x-envoy-original-dst-host",
)
"""What one's own proxies tell each other."""

ENVOY_PASSES = {
    # Only the filter of Istio's build that uses them drops them, and only clusters that obey the header care for it;
    # weft-proxy lets nobody from outside speak as one of the mesh's own.
    "edge": {"x-envoy-peer-metadata", "x-envoy-original-dst-host"},
    # They end up in what operators read (the name of a span, the URL of a record), so weft-proxy believes them of nobody.
    "inside": {"x-envoy-decorator-operation", "x-envoy-original-path", "x-envoy-original-host"},
}

MODES = {
    "SANITIZE": (None, None),
    "FORWARD_ONLY": ("By=a,By=b", None),
    "APPEND_FORWARD": ("By=a,By=b,{own}", None),
    "SANITIZE_SET": ("{own}", None),
    "ALWAYS_FORWARD_ONLY": ("By=a,By=b", "By=a,By=b"),
}
"""By `forward_client_cert_details`: what reaches the upstream of a client's two lines, over mutual TLS and over plain text."""

DETAILS: dict[str, tuple[Json, str]] = {
    "subject": ({"subject": True}, ';Subject="CN=client,O=Weft\\, Inc."'),
    "cert": ({"cert": True}, ';Cert="{cert}"'),
    "chain": ({"chain": True}, ';Chain="{cert}{roots}"'),
    "dns": ({"dns": True}, ";DNS=one.example;DNS=two.example"),
    "uri": ({"uri": True}, f";URI={CLIENT}"),
    "all": (
        {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True},
        ';Cert="{cert}";Chain="{cert}{roots}";Subject="CN=client,O=Weft\\, Inc.";'
        f"URI={CLIENT};DNS=one.example;DNS=two.example",
    ),
}
"""By `set_current_client_cert_details`: what is told after who this is and the hash of the client's certificate."""


@dataclass(frozen=True)
class Setup:
    """Both data planes with a listener for each case, and a client's certificate."""

    proxies: tuple[Static, Static]
    folder: Path
    authority: Authority
    client: Identity


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("origin")
    authority = Authority(folder / "certificates")
    uri, dns = x509.UniformResourceIdentifier, x509.DNSName
    server = authority.issue("server", uri(SERVER), dns("localhost"))
    client = authority.issue("client", uri(CLIENT), dns("one.example"), dns("two.example"))
    header = {"name": "proxy_protocol", "typed_config": typed("filters.listener.proxy_protocol.v3.ProxyProtocol")}
    managers = {name: case.manager for name, case in CASES.items()}
    managers |= {"all/edge": manager(edge=True), "all/inside": manager(edge=False)}
    for mode in MODES:
        managers |= {f"{kind}/{mode}": {"forward_client_cert_details": mode} for kind in ("plain", "tls")}
    for name, (asked, _) in DETAILS.items():
        managers[f"tls/{name}"] = {
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": asked,
        }
    managers["tls/edge"] = manager(edge=True)

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, content in managers.items():
            log = file_log(folder / f"{ports[name]}.log", {"client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"})
            routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]
            it = listener(name, ports[name], http_filters(routes, manager={"access_log": log, **content}))
            if "/" not in name:
                it["listener_filters"] = [header]
            if name.startswith("tls/"):
                common = common_context(server, authority.roots.read_text(), alpn_protocols=["h2", "http/1.1"])
                it["filter_chains"][0]["transport_socket"] = downstream(common)
            made.append(it)
        return {"clusters": [cluster("up", up.port)], "listeners": made}

    with telling() as up, both(folder, tuple(managers), resources) as proxies:
        yield Setup(proxies, folder, authority, client)


def ask(
    port: int,
    sent: list[tuple[str, str]],
    version: str = HTTP1,
    *,
    first: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Told:
    """What reaches the upstream of a request with these headers, on a connection that begins with *first*."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), LIMIT))
        connection.sendall(first)
        if tls is not None:
            tls.set_alpn_protocols(["h2" if version == HTTP2 else "http/1.1"])
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="localhost"))
        if version == HTTP2:
            wire = stack.enter_context(Wire.calling(connection))
            head = dict(GET) | {b":scheme": b"http" if tls is None else b"https"}
            more = ((name.lower().encode(), value.encode()) for name, value in sent)
            wire.send(HEADERS, END_HEADERS | END_STREAM, 1, fields(*head.items(), *more))
            status, body = answered(wire, 1)
            assert status == 200
            return Told.of(body.decode())
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent)
        connection.sendall(f"GET / HTTP/1.1\r\nhost: up\r\n{lines}connection: close\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        return Told.of(answer.read().decode())


def speaking_for(peer: str | None) -> bytes:
    """A header of the PROXY protocol that names *peer*."""
    if peer is None:
        return b"PROXY UNKNOWN\r\n"
    kind, to = ("TCP6", "2001:db8::7") if ":" in peer else ("TCP4", "198.51.100.7")
    return f"PROXY {kind} {peer} {to} 4000 80\r\n".encode()


def recorded(log: Path, count: int) -> list[Json]:
    """What is in *log*, once there is so much."""
    until("all is recorded", lambda: len(records(log)) >= count)
    return records(log)


@pytest.mark.parametrize("name", CASES)
def test_the_client_is_whom_trusted_proxies_say(setup: Setup, name: str) -> None:
    case = CASES[name]
    for proxy in setup.proxies:
        for version in VERSIONS:
            told = ask(proxy.ports[name], case.sent, version, first=speaking_for(case.peer))
            found = {header: told.get(header) for header in TOLD if told.get(header) is not None}
            expected = dict(case.told)
            if proxy.kind == ENVOY and case.envoy:
                head, _, last = (found.pop("x-forwarded-for") or "").rpartition(",")
                assert head == "1.1.1.1"
                assert last != "127.0.0.1", "Envoy does as weft-proxy by now: change what is said of it"
                del expected["x-forwarded-for"]
            assert found == expected, (proxy.kind, version)
        assert recorded(setup.folder / f"{proxy.ports[name]}.log", 2) == [{"client": case.client}] * 2, proxy.kind


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", ["edge", "inside"])
def test_what_only_the_inside_may_say_ends_at_the_edge(setup: Setup, place: str, version: str) -> None:
    """What steers a proxy goes no further than the first one, from anybody; what proxies tell each other, no further than the edge."""
    names = (*STEERING, *INSIDE, "x-request-id", "x-envoy-expected-rq-timeout-ms")
    for proxy in setup.proxies:
        told = ask(proxy.ports[f"all/{place}"], [(name, "mine") for name in names], version)
        passed = {name for name in (*STEERING, *INSIDE) if told.get(name) is not None}
        assert all(told.get(name) == "mine" for name in passed)
        expected = set(INSIDE) if place == "inside" else set()
        if proxy.kind == ENVOY:
            expected |= ENVOY_PASSES[place]
        assert passed == expected, proxy.kind
        # The edge gives each request its own id; how long the route lets it take is told by the proxy alone.
        own = told.get("x-request-id")
        assert own == "mine" if place == "inside" else len(own or "") == 36, proxy.kind
        assert told.get("x-envoy-expected-rq-timeout-ms") == "15000", proxy.kind


def own_of(client: Identity) -> str:
    """What a listener tells of *client*'s certificate without being asked for more."""
    content = client.certificate().public_bytes(serialization.Encoding.DER)
    return f"By={SERVER};Hash={hashlib.sha256(content).hexdigest()}"


LINES = [("x-forwarded-client-cert", "By=a"), ("X-Forwarded-Client-Cert", "By=b")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_the_clients_certificate_is_told_in_each_mode(setup: Setup, mode: str, version: str) -> None:
    mutual, plain = MODES[mode]
    tls = client_context(setup.authority, setup.client)
    for proxy in setup.proxies:
        expected = mutual and mutual.format(own=own_of(setup.client))
        told = ask(proxy.ports[f"tls/{mode}"], LINES, version, tls=tls)
        assert told.get("x-forwarded-client-cert") == expected, proxy.kind
        told = ask(proxy.ports[f"plain/{mode}"], LINES, version)
        assert told.get("x-forwarded-client-cert") == plain, proxy.kind


@pytest.mark.parametrize("name", DETAILS)
def test_what_is_told_of_a_certificate_is_what_was_asked_for(setup: Setup, name: str) -> None:
    _, more = DETAILS[name]
    # OpenSSL shows the root that it knows behind a certificate of its own.
    files = {"cert": setup.client.chain, "roots": setup.authority.roots}
    encoded = {key: urllib.parse.quote(path.read_text(), safe="-") for key, path in files.items()}
    tls = client_context(setup.authority, setup.client)
    for proxy in setup.proxies:
        told = ask(proxy.ports[f"tls/{name}"], LINES, tls=tls)
        assert told.get("x-forwarded-client-cert") == own_of(setup.client) + more.format(**encoded), proxy.kind


def test_the_edge_says_itself_whether_the_client_came_by_tls(setup: Setup) -> None:
    tls = client_context(setup.authority, setup.client)
    for proxy in setup.proxies:
        told = ask(proxy.ports["tls/edge"], [("x-forwarded-proto", "http")], tls=tls)
        assert told.get("x-forwarded-proto") == "https", proxy.kind
