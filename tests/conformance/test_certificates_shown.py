"""Which of several certificates a client is shown, and who a proxy is then: stock Envoy and weft-proxy choose the same one, in one run."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.conformance.both import Json, both, http_filters, listener
from tests.conformance.certificates import Authority, Identity, common_context, downstream
from tests.conformance.proxies import LIMIT, Static

pytestmark = pytest.mark.conformance

IDENTITIES = {
    "wide": "*.example.com",
    "exact": "foo.example.com",
    "exact RSA": "foo.example.com",
    "wide RSA": "*.example.com",
}
"""The DNS names of certificates; those that say nothing else are for ECDSA."""

LISTENERS = {
    "wide first": ["wide", "exact", "exact RSA"],
    "RSA first": ["exact RSA", "exact", "wide"],
    "wide RSA": ["exact", "wide RSA"],
}
"""Their certificates, in this order."""

FOO, BAR, OTHER = "foo.example.com", "bar.example.com", "elsewhere.test"


class Case(NamedTuple):
    listener: str
    server: str | None
    expected: str | None
    only_rsa: bool = False


CASES = [
    Case("wide first", FOO, "exact"),
    Case("wide first", FOO, "exact RSA", only_rsa=True),
    Case("wide first", BAR, "wide"),
    # The first, whoever cannot check it.
    Case("wide first", BAR, None, only_rsa=True),
    Case("wide first", OTHER, "wide"),
    Case("wide first", OTHER, None, only_rsa=True),
    Case("wide first", None, "wide"),
    Case("wide first", None, "exact RSA", only_rsa=True),
    Case("RSA first", FOO, "exact"),
    Case("RSA first", FOO, "exact RSA", only_rsa=True),
    Case("RSA first", None, "exact"),
    Case("RSA first", OTHER, "exact RSA"),
    Case("wide RSA", FOO, "exact"),
    Case("wide RSA", FOO, "wide RSA", only_rsa=True),
]


TELLING = {"x-local-uri": "%DOWNSTREAM_LOCAL_URI_SAN%", "x-client-cert": "%REQ(X-FORWARDED-CLIENT-CERT)%"}
"""The headers of every answer."""


class Planes(NamedTuple):
    proxies: tuple[Static, Static]
    identities: dict[str, Identity]
    client: Identity


def uri(name: str) -> str:
    """Who shows the certificate *name*."""
    return f"spiffe://cluster.local/ns/shop/sa/{name.lower().replace(' ', '-')}"


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    folder: Path = tmp_path_factory.mktemp("shown")
    authority = Authority(folder / "certificates")
    identities = {
        name: authority.issue(
            name,
            x509.UniformResourceIdentifier(uri(name)),
            x509.DNSName(dns),
            key=rsa.generate_private_key(65537, 2048) if name.endswith("RSA") else None,
        )
        for name, dns in IDENTITIES.items()
    }
    added = [{"header": {"key": key, "value": value}} for key, value in TELLING.items()]
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}, "response_headers_to_add": added}
    filters = http_filters([answer], manager={"forward_client_cert_details": "SANITIZE_SET"})

    def resources(ports: dict[str, int]) -> Json:
        made = []
        for name, shown in LISTENERS.items():
            contexts = [common_context(identities[one], authority.roots.read_text()) for one in shown]
            common = contexts[0] | {"tls_certificates": [one for it in contexts for one in it["tls_certificates"]]}
            it = listener(name, ports[name], filters)
            it["filter_chains"][0]["transport_socket"] = downstream(common, require_client_certificate=False)
            made.append(it)
        return {"listeners": made}

    with both(folder, tuple(LISTENERS), resources) as proxies:
        yield Planes(proxies, identities, authority.issue("client"))


def client_of(case: Case) -> ssl.SSLContext:
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    if case.only_rsa:
        # In TLS 1.2 the suite says it.
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    return client


def shown(port: int, case: Case) -> bytes | None:
    """The certificate, in DER."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as plain:
        try:
            with client_of(case).wrap_socket(plain, server_hostname=case.server) as session:
                return session.getpeercert(binary_form=True)
        except (ConnectionError, ssl.SSLError):
            return None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_show_the_same_certificate(planes: Planes, case: Case) -> None:
    by_bytes = {identity.certificate().public_bytes(Encoding.DER): name for name, identity in planes.identities.items()}
    seen = {proxy.kind: shown(proxy.ports[case.listener], case) for proxy in planes.proxies}
    found = {kind: certificate and by_bytes[certificate] for kind, certificate in seen.items()}
    assert found == dict.fromkeys(found, case.expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.expected], ids=str)
def test_both_are_who_that_certificate_says(planes: Planes, case: Case) -> None:
    """Also to a client that resumes a session, and is shown none."""
    expected = uri(case.expected or "")
    for proxy in planes.proxies:
        client = client_of(case)
        client.load_cert_chain(*planes.client)
        session = None
        for is_resumed in (False, True):
            with (
                socket.create_connection(("127.0.0.1", proxy.ports[case.listener]), LIMIT) as plain,
                client.wrap_socket(plain, server_hostname=case.server, session=session) as connection,
            ):
                connection.sendall(b"GET / HTTP/1.1\r\nhost: up\r\n\r\n")
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                session = connection.session
                assert connection.session_reused == is_resumed, proxy.kind
            by = (answer.headers["x-client-cert"] or "").partition(";")[0]
            assert (answer.headers["x-local-uri"], by) == (expected, f"By={expected}"), (proxy.kind, is_resumed)
