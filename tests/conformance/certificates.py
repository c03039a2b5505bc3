"""An authority of a test's own, what it issues and takes back, and the TLS contexts that use it: a proxy's as JSON, a peer's as OpenSSL's."""

from __future__ import annotations

import base64
import datetime
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from google.protobuf.json_format import ParseDict

from tests.conformance.proxies import LIMIT, Resource, resource, typed

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Identity(NamedTuple):
    """The files of a certificate and of its key."""

    chain: Path
    key: Path

    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain.read_bytes())


class Authority:
    """Issues certificates whose names are of one kind or another."""

    def __init__(self, folder: Path, above: Authority | None = None) -> None:
        """Trust itself; or be vouched for by *above*, and show that with whatever it issues."""
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = self.named("root" if above is None else "intermediate")
        constraints = x509.BasicConstraints(ca=True, path_length=1 if above is None else 0)
        issuer = above or self
        builder = issuer.build(self.name, self.key).add_extension(constraints, critical=True)
        own = builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        self.shown = b"" if above is None else own
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(own if above is None else above.roots.read_bytes())

    @staticmethod
    def named(common: str) -> x509.Name:
        organisation = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Weft, Inc.")
        return x509.Name([organisation, x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])

    def build(self, subject: x509.Name, key: Key, until: datetime.datetime | None = None) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        return builder.not_valid_after(until or now + datetime.timedelta(days=1))

    def issue(
        self, who: str, *names: x509.GeneralName, until: datetime.datetime | None = None, key: Key | None = None
    ) -> Identity:
        """Return the files of the certificate and the key of *who*, by default valid for a day, and one for ECDSA."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = self.build(self.named(who), key, until)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        chain, private = self.folder / f"{who}.pem", self.folder / f"{who}.key"
        certificate = builder.sign(self.key, hashes.SHA256())
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + self.shown)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Identity(chain, private)

    def revoking(self, *identities: Identity) -> str:
        """Return a list by which these are valid no more, and all others are."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(now - datetime.timedelta(hours=1)).next_update(now + datetime.timedelta(days=1))
        for identity in identities:
            serial = identity.certificate().serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(revoked.build())
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def common_context(
    identity: Identity, roots: str, *, revoked: str | None = None, names: Collection[str] = (), **more: Any
) -> dict[str, Any]:
    """The `common_tls_context` of who is *identity* and believes *roots*, of peers with one of these URIs if any is named."""
    validation: dict[str, Any] = {"trusted_ca": {"inline_string": roots}}
    if names:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "URI", "matcher": {"exact": name}} for name in names
        ]
    if revoked is not None:
        validation["crl"] = {"inline_string": revoked}
    return {"tls_certificates": [certificate_of(identity)], "validation_context": validation, **more}


def certificate_of(identity: Identity, key: Path | None = None) -> dict[str, Any]:
    """The `TlsCertificate` of *identity*; with another *key* it is a wrong one."""
    return {
        "certificate_chain": {"inline_string": identity.chain.read_text()},
        "private_key": {"inline_string": (key or identity.key).read_text()},
    }


def downstream(common: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The transport socket of a filter chain for clients that must show a certificate; *more* adds to its context."""
    context = {"common_tls_context": common, "require_client_certificate": True, **more}
    return {"name": "tls", "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", **context)}


def upstream(common: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The transport socket of a cluster; *more* adds to its context."""
    context = {"common_tls_context": common, **more}
    return {"name": "tls", "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", **context)}


def ticket_keys(*of: int) -> dict[str, Any]:
    """The keys of sessions' tickets, each of one byte again and again. The first seals, and each opens."""
    return {"keys": [{"inline_bytes": base64.b64encode(bytes([key]) * 80).decode()} for key in of]}


def by_sds(name: str) -> dict[str, Any]:
    """Where a context has its secret *name* from, if that is not in it: the control plane of a `proxies.Proxy`."""
    source = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    }
    return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": source}}


def by_ads(name: str) -> dict[str, Any]:
    """The same by the stream that everything else comes by."""
    return {"name": name, "sds_config": {"resource_api_version": "V3", "ads": {}}}


def secret(name: str, **kind: Any) -> Resource:
    """What is published for whoever asks for *name*."""
    return resource(name, ParseDict({"name": name, **kind}, Secret()))


def client_context(authority: Authority, identity: Identity | None) -> ssl.SSLContext:
    """What OpenSSL needs to call who has a certificate of *authority*; each context keeps sessions of its own."""
    context = ssl.create_default_context(cafile=str(authority.roots))
    if identity is not None:
        context.load_cert_chain(*identity)
    return context


def server_context(authority: Authority, identity: Identity) -> ssl.SSLContext:
    """What OpenSSL needs to be called by who has a certificate of *authority*."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.roots))
    context.load_cert_chain(*identity)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def visit(
    port: int, client: ssl.SSLContext, session: ssl.SSLSession | None = None, seconds: float = LIMIT
) -> tuple[bool, ssl.SSLSession]:
    """Ask at *port*, which must answer. Return whether *session* is resumed, and what may be resumed next."""
    with (
        socket.create_connection(("127.0.0.1", port), seconds) as plain,
        client.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(9) == b"HTTP/1.1 "
        assert connection.session is not None
        return bool(connection.session_reused), connection.session
