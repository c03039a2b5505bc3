"""Which filter chain a connection is for: stock Envoy and weft-proxy choose the same one, in one run."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, http_filters, listener, typed
from tests.conformance.certificates import Authority, common_context, downstream
from tests.conformance.proxies import LIMIT, Static

pytestmark = pytest.mark.conformance


def range_of(prefix: str) -> Json:
    address, _, length = prefix.partition("/")
    return {"address_prefix": address, "prefix_len": int(length)}


CHAINS: dict[str, dict[str, Json]] = {
    "destinations": {
        "port": {"destination_port": 9000},
        "port and range": {"destination_port": 9000, "prefix_ranges": [range_of("198.51.100.8/32")]},
        "port and source": {"destination_port": 9001, "source_prefix_ranges": [range_of("192.0.2.0/24")]},
        "wide": {"prefix_ranges": [range_of("198.51.100.0/24")]},
        "narrow": {"prefix_ranges": [range_of("198.51.100.0/28"), range_of("203.0.113.0/24")]},
        "one": {"prefix_ranges": [range_of("198.51.100.7/32")]},
        "v6": {"prefix_ranges": [range_of("2001:db8::/32")]},
    },
    "sources": {
        "wide": {"source_prefix_ranges": [range_of("192.0.2.0/24")]},
        "narrow": {"source_prefix_ranges": [range_of("192.0.2.0/28")]},
        "narrow and port": {"source_prefix_ranges": [range_of("192.0.2.0/28")], "source_ports": [4001, 4002]},
        "port": {"source_ports": [4003]},
        "default": {},
    },
    "places": {
        "here": {"source_type": "SAME_IP_OR_LOOPBACK"},
        "here, and port": {"source_type": "SAME_IP_OR_LOOPBACK", "source_ports": [4001]},
        "elsewhere": {"source_type": "EXTERNAL"},
        "elsewhere, and range": {"source_type": "EXTERNAL", "source_prefix_ranges": [range_of("192.0.2.0/24")]},
        "range": {"source_prefix_ranges": [range_of("192.0.2.0/28"), range_of("127.0.0.1/32")]},
    },
    "here alone": {
        "here": {"source_type": "SAME_IP_OR_LOOPBACK", "source_prefix_ranges": [range_of("127.0.0.0/8")]},
        "any": {},
    },
    "peers": {
        "loopback": {"direct_source_prefix_ranges": [range_of("127.0.0.0/8")]},
        "peer": {"direct_source_prefix_ranges": [range_of("127.0.0.1/32")], "source_type": "EXTERNAL"},
        "other peers": {"direct_source_prefix_ranges": [range_of("192.0.2.0/24")]},
        "here": {"source_type": "SAME_IP_OR_LOOPBACK"},
        "range": {"source_prefix_ranges": [range_of("192.0.2.0/24")]},
    },
    "other peers": {
        "other peers": {"direct_source_prefix_ranges": [range_of("192.0.2.0/24")]},
        "any": {},
        "tls": {"transport_protocol": "tls", "direct_source_prefix_ranges": [range_of("127.0.0.0/8")]},
    },
    "names": {
        "exact": {"server_names": ["one.example"]},
        "wildcard": {"server_names": ["*.example"]},
        "narrow wildcard": {"server_names": ["*.b.example"]},
        "name and h2": {"server_names": ["alpn.example"], "application_protocols": ["h2", "istio"]},
        "tls": {"transport_protocol": "tls"},
        "tls and h2": {"transport_protocol": "tls", "application_protocols": ["h2"]},
        "tls and range": {"transport_protocol": "tls", "prefix_ranges": [range_of("198.51.100.9/32")]},
        "plain": {"transport_protocol": "raw_buffer"},
    },
}
"""By listener: what each of its chains is for."""

DEFAULT = "names"
"""The listener that has a chain for what is for none of them."""


class Hello(NamedTuple):
    server: str | None = None
    alpn: tuple[str, ...] = ()


class Case(NamedTuple):
    listener: str
    expected: str | None
    """The chain; `None`: there is none, and the connection is closed."""
    source: str = "203.0.113.200"
    source_port: int = 4000
    to: str = "198.51.100.200"
    port: int = 80
    tls: Hello | None = None


def to(expected: str | None, address: str, port: int = 80, *, source: str = "203.0.113.200") -> Case:
    return Case("destinations", expected, source=source, to=address, port=port)


def by(expected: str | None, address: str, port: int = 4000) -> Case:
    return Case("sources", expected, source=address, source_port=port)


def at(
    expected: str | None, address: str, port: int = 4000, *, to: str = "198.51.100.200", listener: str = "places"
) -> Case:
    return Case(listener, expected, source=address, source_port=port, to=to)


def saying(expected: str | None, server: str | None, *alpn: str, to: str = "198.51.100.200") -> Case:
    return Case("names", expected, to=to, tls=Hello(server, alpn))


CASES = {
    "a range": to("wide", "198.51.100.100"),
    "a narrower range": to("narrow", "198.51.100.1"),
    "the second range of a chain": to("narrow", "203.0.113.1"),
    "a range of one address": to("one", "198.51.100.7"),
    "a range of IPv6": to("v6", "2001:db8::7", source="2001:db8::1"),
    "no range": to(None, "192.0.2.99"),
    "no range of IPv6": to(None, "2001:db9::7", source="2001:db8::1"),
    "a port, before every range": to("port", "198.51.100.7", 9000),
    "a port, to where no range is": to("port", "192.0.2.99", 9000),
    "a port and a range": to("port and range", "198.51.100.8", 9000),
    "a port and a source": to("port and source", "198.51.100.7", 9001, source="192.0.2.1"),
    # What is chosen by the port is not reconsidered, though chains without a port would be for it.
    "a port, but from elsewhere": to(None, "198.51.100.7", 9001),
    "from a range": by("wide", "192.0.2.100"),
    "from a narrower range": by("narrow", "192.0.2.1"),
    "from a narrower range and a port": by("narrow and port", "192.0.2.1", 4002),
    "from a range, by a port of another": by("wide", "192.0.2.100", 4001),
    "from a port alone": by("port", "203.0.113.1", 4003),
    # The range is looked at first.
    "from a range, by a port of no range": by("wide", "192.0.2.100", 4003),
    "from elsewhere": by("default", "203.0.113.1"),
    # Not by its address: where it is, is looked at first.
    "on this host": at("here", "127.0.0.1"),
    "on this host, from a port": at("here, and port", "127.0.0.1", 4001),
    "on this host, by IPv6": at("here", "::1", to="2001:db8::7"),
    "where it goes to": at("here", "198.51.100.200"),
    "where it goes to, by IPv6": at("here", "2001:db8::7", to="2001:db8::7"),
    "another address of the loopback": at("elsewhere", "127.0.0.2"),
    "another host": at("elsewhere", "203.0.113.1"),
    "another host, by IPv6": at("elsewhere", "2001:db8::1", to="2001:db8::7"),
    "another host, in a range": at("elsewhere, and range", "192.0.2.1"),
    "on this host, in the range of the chain for it": at("here", "127.0.0.1", listener="here alone"),
    # What is for this host is chosen, and has no chain for its address.
    "on this host, out of that range": at(None, "198.51.100.200", listener="here alone"),
    "another host, where only this one has a chain of its own": at("any", "127.0.0.2", listener="here alone"),
    "a peer, whoever it speaks for": at("peer", "192.0.2.1", listener="peers"),
    # A peer of that address was chosen, so what is for more peers is not considered.
    "a peer that speaks for this host": at(None, "127.0.0.1", listener="peers"),
    "no peer of that address": at("any", "192.0.2.1", listener="other peers"),
    "a peer over TLS": Case("other peers", "tls", tls=Hello()),
    "a name": saying("exact", "one.example"),
    "a name in capitals": saying("exact", "ONE.Example"),
    "a name below a wildcard": saying("wildcard", "two.example"),
    "a name two levels below a wildcard": saying("wildcard", "two.c.example"),
    "a name below a narrower wildcard": saying("narrow wildcard", "a.b.example"),
    "a name above a wildcard": saying("tls", "example"),
    "a name that no chain has": saying("tls", "elsewhere.test"),
    "no name": saying("tls", None),
    "no name, and a protocol": saying("tls and h2", None, "h2"),
    "no name, and a protocol beside another": saying("tls and h2", None, "http/1.1", "h2"),
    "no name, and a protocol that no chain has": saying("tls", None, "http/1.1"),
    "a name and a protocol": saying("name and h2", "alpn.example", "istio"),
    # The name is chosen, so what is for any name is not considered; the default chain speaks no TLS.
    "a name and another protocol": saying(None, "alpn.example", "http/1.1"),
    "a name, to a range that is looked at first": saying("tls and range", "one.example", to="198.51.100.9"),
    "plain text": Case("names", "plain"),
    # The range is chosen, in which only TLS is spoken.
    "plain text, to a range for TLS": Case("names", "default", to="198.51.100.9"),
}


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Static, Static]]:
    folder = tmp_path_factory.mktemp("chains")
    authority = Authority(folder / "certificates")
    server = authority.issue("server", x509.DNSName("localhost"))
    tls = downstream(common_context(server, authority.roots.read_text()), require_client_certificate=False)

    def chain(name: str, match: Json) -> Json:
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": name}}}
        made = {"name": name, "filter_chain_match": match, "filters": http_filters([answer])}
        is_tls = {"server_names", "application_protocols"} & set(match) or match.get("transport_protocol") == "tls"
        return made | ({"transport_socket": tls} if is_tls else {})

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, chains in CHAINS.items():
            it = listener(name, ports[name], [])
            it["filter_chains"] = [chain(*pair) for pair in chains.items()]
            it["listener_filters"] = [
                {"name": kind, "typed_config": typed(f"filters.listener.{kind}.v3.{of}")}
                for kind, of in (("proxy_protocol", "ProxyProtocol"), ("tls_inspector", "TlsInspector"))
            ]
            if name == DEFAULT:
                it["default_filter_chain"] = chain("default", {})
            made.append(it)
        return {"listeners": made}

    with both(folder, tuple(CHAINS), resources) as running:
        yield running


def chosen(port: int, case: Case) -> str | None:
    """The chain that answers."""
    kind = "TCP6" if ":" in case.to else "TCP4"
    with socket.create_connection(("127.0.0.1", port), LIMIT) as plain:
        plain.sendall(f"PROXY {kind} {case.source} {case.to} {case.source_port} {case.port}\r\n".encode())
        connection = plain
        try:
            if case.tls is not None:
                client = ssl.create_default_context()
                client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
                if case.tls.alpn:
                    client.set_alpn_protocols(list(case.tls.alpn))
                connection = client.wrap_socket(plain, server_hostname=case.tls.server)
            with connection:
                connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\nconnection: close\r\n\r\n")
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                return answer.read().decode()
        except (ConnectionError, http.client.BadStatusLine, ssl.SSLError):
            return None


@pytest.mark.parametrize("name", CASES)
def test_both_choose_the_same_chain(proxies: tuple[Static, Static], name: str) -> None:
    case = CASES[name]
    found = {proxy.kind: chosen(proxy.ports[case.listener], case) for proxy in proxies}
    assert found == dict.fromkeys(found, case.expected)
