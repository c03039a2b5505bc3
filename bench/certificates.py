"""A root and leaves with SPIFFE identities, all P-256, on the spot."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.role import Callers, Tls

IDENTITY = "spiffe://cluster.local/ns/shop/sa/{}"
CALLER, CALLED, STRANGER = "caller", "called", "stranger"
"""Service accounts: who calls in a scenario, who is called, and who has no part in it."""


class Authority:
    """Issues into a folder: to the three of every scenario at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench root")])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.caller = self._issue(CALLER, peer=CALLED)
        self.called = self._issue(CALLED, peer=CALLER)
        self.stranger = self._issue(STRANGER, peer=CALLED)
        self.callers = Callers(self.caller, self.stranger)

    def _issue(self, who: str, *, peer: str) -> Tls:
        """Return what *who* needs to speak with *peer*, both names of service accounts."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(IDENTITY.format(who)), x509.DNSName(who), x509.DNSName("localhost")]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, who)]), key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        chain, private = self._folder / f"{who}.pem", self._folder / f"{who}.key"
        chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        # HAProxy wants both in one file, and looks for the key beside a chain under this name otherwise.
        (self._folder / f"{who}.both.pem").write_bytes(chain.read_bytes() + private.read_bytes())
        return Tls(chain, private, self.roots, IDENTITY.format(peer))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
