"""Whom a certificate names, and which list has taken it back: stock Envoy and weft-proxy, in one run."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cryptography import x509

from tests.conformance.both import Json, both, http_filters, listener
from tests.conformance.certificates import Authority, Identity, client_context, common_context, downstream
from tests.conformance.proxies import Static
from tests.conformance.test_tls import ask

pytestmark = pytest.mark.conformance

URI, HOST, ADDRESS, MAIL = "spiffe://cluster.local/ns/shop/sa/web", "web.shop.example", "192.0.2.7", "web@shop.example"

NAMES: dict[str, x509.GeneralName] = {
    "uri": x509.UniformResourceIdentifier(URI),
    "host": x509.DNSName(HOST),
    "other host": x509.DNSName("other.shop.example"),
    # It stands for one label.
    "wildcard": x509.DNSName("*.shop.example"),
    "wider wildcard": x509.DNSName("*.example"),
    "address": x509.IPAddress(ipaddress.ip_address(ADDRESS)),
    "mail": x509.RFC822Name(MAIL),
}
"""By client, the name that its certificate has."""


def name(kind: str, **matcher: str) -> Json:
    return {"match_typed_subject_alt_names": [{"san_type": kind, "matcher": matcher}]}


WANTED: dict[str, tuple[Json, set[str]]] = {
    "any name": ({}, set(NAMES)),
    "a URI": (name("URI", exact=URI), {"uri"}),
    "a host": (name("DNS", exact=HOST), {"host", "wildcard"}),
    "a host in other letters": (name("DNS", exact=HOST.upper()), {"host", "wildcard"}),
    "hosts": (name("DNS", suffix=".shop.example"), {"host", "other host", "wildcard"}),
    "an address": (name("IP_ADDRESS", exact=ADDRESS), {"address"}),
    "mail": (name("EMAIL", suffix="@shop.example"), {"mail"}),
    "a host of any kind": ({"match_subject_alt_names": [{"exact": HOST}]}, {"host", "wildcard"}),
    "one of several of any kind": (
        {"match_subject_alt_names": [{"exact": ADDRESS}, {"prefix": "web@"}, {"contains": "/sa/"}]},
        {"address", "mail", "uri"},
    ),
}
"""By listener, what it says of its clients' names, and who is let in."""


@dataclass(frozen=True)
class Planes:
    proxies: tuple[Static, Static]
    authority: Authority
    clients: dict[str, Identity]


GOOD, REVOKED = "good", "revoked"

LISTS = {"of the leaf alone": {"only_verify_leaf_cert_crl": True}, "of all": {}}
"""By listener, how far up the list of the intermediate authority is enough: the root has none."""


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder = tmp_path_factory.mktemp("names")
    authority = Authority(folder / "certificates")
    between = Authority(folder / "intermediate", authority)
    clients = {who: authority.issue(who.replace(" ", "-"), known) for who, known in NAMES.items()}
    clients |= {who: between.issue(who, x509.UniformResourceIdentifier(URI)) for who in (GOOD, REVOKED)}
    server = authority.issue("server", x509.DNSName("localhost"))
    contexts = {}
    for listening, (validation, _) in WANTED.items():
        contexts[listening] = common_context(server, authority.roots.read_text())
        contexts[listening]["validation_context"].update(validation)
    for listening, depth in LISTS.items():
        revoked = between.revoking(clients[REVOKED])
        contexts[listening] = common_context(server, authority.roots.read_text(), revoked=revoked)
        contexts[listening]["validation_context"].update(depth)

    def resources(ports: dict[str, int]) -> Json:
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        made = []
        for listening, context in contexts.items():
            it = listener(listening, ports[listening], http_filters([answer]))
            it["filter_chains"][0]["transport_socket"] = downstream(context)
            made.append(it)
        return {"listeners": made}

    with both(folder, tuple(contexts), resources) as running:
        yield Planes(running, authority, clients)


@pytest.mark.parametrize("listening", WANTED)
def test_only_who_has_the_name_is_let_in(planes: Planes, listening: str) -> None:
    for proxy in planes.proxies:
        port = proxy.ports[listening]
        came = {who for who in NAMES if ask(port, client_context(planes.authority, planes.clients[who])) is not None}
        assert came == WANTED[listening][1], proxy.kind


def test_a_list_of_the_leafs_authority_is_enough_where_that_is_said(planes: Planes) -> None:
    """Otherwise each authority of the chain must have one, so that nobody is let in."""
    for proxy in planes.proxies:
        came = {
            (listening, who)
            for listening in LISTS
            for who in (GOOD, REVOKED)
            if ask(proxy.ports[listening], client_context(planes.authority, planes.clients[who])) is not None
        }
        assert came == {("of the leaf alone", GOOD)}, proxy.kind
