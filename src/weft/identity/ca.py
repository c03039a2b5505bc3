"""
The mesh's own certificate authority: a root that may be taken offline, an intermediate that signs, short leaves.

    <state>/ca/                      mode 0700, every file 0600
        root-1.pem  root-1.key       the signing root: it has signed the intermediate
        root-2.pem  root-2.key       the standby root: trusted everywhere, for the day of the next rotation
        root-0.pem  root-0.until     a root that signed before: trusted until its last leaf has expired
        retired-root-0.pem           then kept for the record
        intermediate.pem             key and certificate of the intermediate in one file
        lock                         held while files are made

Each file appears whole or not at all, and in an order in which every prefix is a good state: a root's key before its
certificate, the roots, and a standby after the one that will sign, before the intermediate. So a process may be killed
at any moment. Once the intermediate is there, a root's key may be moved to a safe place; it is asked for when it must
sign again.

Two roots are trusted at all times. A rotation of the root makes the next standby and lets the present one sign, which
every proxy trusts by then; `weft.controlplane.rotation` sees to the order between that and the proxies.

ECDSA on P-256 throughout. Source of the certificates' form: X509-SVID.md of github.com/spiffe/spiffe; RFC 5280.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from weft.errors import WeftError
from weft.identity.spiffe import InvalidSpiffeId, check_trust_domain, parse

log = logging.getLogger(__name__)

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
LEAF_LIFETIME = timedelta(hours=24)
"""Short, so that a stolen key is worth little and nothing has to be revoked."""
BACKDATED = timedelta(minutes=1)
"""For peers whose clock is behind ours; less for leaves that live for minutes, whose half-life it would move."""
BACKDATED_SHARE = 0.1
"""Of a leaf's life, at most."""
AUTHORITY_BACKDATED = timedelta(days=30)
"""For clocks that are set back: leaves are made anew within a second, what has signed them is not."""
STILL_SIGNED = timedelta(seconds=5)
"""A leaf may be signed by the old intermediate while the new one is being made."""
INTERMEDIATE_RENEWED_AT = 1 / 3
"""Share of the intermediate's life left when a new one is made; four months are enough to fetch an offline root."""

SMALLEST_RSA_BITS = 2048

_ROOT_FILE = re.compile(r"root-(\d+)\.pem")


class AuthorityUnavailable(WeftError):
    """The CA's files cannot be read, do not fit together, or need a root key that is offline."""


class SigningRefused(WeftError):
    """A signing request is not honoured. The message says why."""


class Issued(TypedDict):
    """A certificate as it travels to the agent: `chain` leaf first, `bundle` every live root; `not_after` RFC 3339."""

    chain: str
    bundle: str
    not_after: str


@dataclass(frozen=True, slots=True)
class _Root:
    number: int
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None
    """None while it is offline."""


@dataclass(frozen=True, slots=True)
class _Intermediate:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class _Keys:
    """
    What is in the directory, at one moment. It is replaced as a whole: a rotation runs in a thread of its own, and nobody
    is to see one half of it, least of all when the other half fails.

    Attributes:
        roots: In order of their numbers; one of them has signed the intermediate, and one that is above it stands by.
    """

    roots: tuple[_Root, ...]
    intermediate: _Intermediate

    @property
    def signing(self) -> _Root:
        """The root that has signed the intermediate."""
        return next(root for root in self.roots if _signed(self.intermediate.certificate, root.certificate))

    @property
    def standby(self) -> _Root:
        """The root that signs after the next rotation: the first above the signing one."""
        signing = self.signing.number
        return next(root for root in self.roots if root.number > signing)


def system_time() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


class Authority:
    """
    Args:
        directory: Where the files are, or will be made at once.
        trust_domain: Of every identity that it signs for.
        leaf_lifetime: Of the certificates it issues; down to seconds.
        now: The clock.

    Raises:
        AuthorityUnavailable: There are files, and they cannot be used; or none can be made.
    """

    def __init__(
        self,
        directory: Path,
        trust_domain: str,
        *,
        leaf_lifetime: timedelta = LEAF_LIFETIME,
        now: Callable[[], datetime] = system_time,
    ) -> None:
        check_trust_domain(trust_domain)
        self._directory = directory
        self._trust_domain = trust_domain
        self._leaf_lifetime = leaf_lifetime
        self._now = now
        with self._locked():
            roots = self._load_roots() or (self._make_root(1),)
            intermediate = self._load_intermediate() or self._make_intermediate(roots[0])
            signing = self._checked(roots, intermediate)
            self._keys = _Keys(self._with_root_above(signing, roots), intermediate)

    def bundle(self) -> str:
        """Return the trust bundle: every root that has not expired, oldest first, PEM."""
        now = self._now()
        live = (root.certificate for root in self._keys.roots if root.certificate.not_valid_after_utc > now)
        return "".join(_pem(certificate) for certificate in live)

    def sign(self, csr: str, identity: str) -> Issued:
        """
        Issue a certificate.

        Args:
            csr: Signing request, PEM. Only its public key is used: whatever else it asks for, names above all, is the
                requester's wish, not what was authenticated.
            identity: SPIFFE ID of the authenticated requester.

        Raises:
            SigningRefused: The request is malformed, does not prove possession of its key, its key is too weak, or
                the identity is not of this trust domain.
            AuthorityUnavailable: The intermediate has expired, or is not valid yet, and cannot be renewed: the root that
                could is offline, or the files cannot be written.
        """
        spiffe_id = _identity(identity, self._trust_domain)
        public_key = _public_key(csr)
        intermediate = self._fresh_intermediate()
        now = self._now()
        not_after = min(now + self._leaf_lifetime, intermediate.certificate.not_valid_after_utc)
        not_before = now - min(BACKDATED, self._leaf_lifetime * BACKDATED_SHARE)
        leaf = (
            # No subject; RFC 5280 4.2.1.6 wants the alternative name critical then.
            _builder(x509.Name([]), intermediate.certificate.subject, public_key, not_before, not_after)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            # X509-SVID 4.3: digitalSignature, and neither keyCertSign nor cRLSign; 4.4: both ends of TLS.
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(_issued_by(intermediate.certificate), critical=False)
            .sign(intermediate.key, hashes.SHA256())
        )
        return Issued(
            chain=_pem(leaf) + _pem(intermediate.certificate),
            bundle=self.bundle(),
            not_after=_rfc3339(leaf.not_valid_after_utc),
        )

    @property
    def standby(self) -> str:
        """The fingerprint of the root that signs after the next rotation."""
        return fingerprint(self._keys.standby.certificate)

    def renew_intermediate(self) -> None:
        """
        Let the signing root sign a new intermediate, with a new key. What the old one signed stays good.

        Raises:
            AuthorityUnavailable: That root's key is offline, or the files cannot be written. Nothing has changed.
        """
        with self._locked():
            keys = self._loaded()
            self._keys = _Keys(keys.roots, self._make_intermediate(keys.signing))

    def rotate_root(self, last_leaf: datetime | None = None) -> None:
        """
        Make the next standby, and let the present one sign from now on. Every proxy must trust the standby by now.

        Args:
            last_leaf: When the last certificate expires that may be in use; at least the lifetime of leaves from now.

        Raises:
            AuthorityUnavailable: The standby's key is offline, or the files cannot be written. Nothing has changed.
        """
        with self._locked():
            keys = self._loaded()
            before, after = keys.signing, keys.standby
            if after.key is None:
                raise self._offline(after)
            # Before it signs: where there is no space for the next one, the mesh is to go on with the two that it has.
            roots = self._with_root_above(after, keys.roots)
            until = self._now() + self._leaf_lifetime
            until = max(until, last_leaf or until) + STILL_SIGNED
            self._write(f"root-{before.number}.until", until.isoformat())
            self._keys = _Keys(roots, self._make_intermediate(after))

    def retire(self) -> bool:
        """Trust no longer the roots that signed before and whose last leaf has expired; return whether there was one."""
        with self._locked():
            keys = self._loaded()
            signing = keys.signing
            over = [root for root in keys.roots if root.number < signing.number and self._until(root) <= self._now()]
            for root in over:
                path = self._directory / f"root-{root.number}.pem"
                path.rename(self._directory / f"retired-root-{root.number}.pem")
                path.with_suffix(".key").unlink(missing_ok=True)
                path.with_suffix(".until").unlink(missing_ok=True)
            self._keys = self._loaded() if over else keys
            return bool(over)

    def describe(self) -> dict[str, Any]:
        """Return what people may know: roots, intermediate, lifetimes; JSON values, times in RFC 3339."""
        keys = self._keys
        signing, intermediate = keys.signing, keys.intermediate.certificate
        return {
            "trust_domain": self._trust_domain,
            "directory": str(self._directory),
            "leaf_seconds": self._leaf_lifetime.total_seconds(),
            "roots": [
                {
                    "number": root.number,
                    "fingerprint": fingerprint(root.certificate),
                    "not_after": _rfc3339(root.certificate.not_valid_after_utc),
                    "state": _state(root, signing),
                    "until": _rfc3339(self._until(root)) if root.number < signing.number else None,
                    "key": "online" if root.key is not None else "offline",
                }
                for root in keys.roots
            ],
            "intermediate": {
                "fingerprint": fingerprint(intermediate),
                "root": signing.number,
                "not_before": _rfc3339(intermediate.not_valid_before_utc),
                "not_after": _rfc3339(intermediate.not_valid_after_utc),
            },
        }

    def _with_root_above(self, root: _Root, roots: tuple[_Root, ...]) -> tuple[_Root, ...]:
        """Return *roots*, the last of which is above *root*: another one is made if there is none."""
        return roots if roots[-1].number > root.number else (*roots, self._make_root(root.number + 1))

    def _until(self, root: _Root) -> datetime:
        """Return until when a root that signed before is trusted."""
        path = self._directory / f"root-{root.number}.until"
        try:
            return datetime.fromisoformat(path.read_text("ascii"))
        except OSError:
            return root.certificate.not_valid_after_utc
        except ValueError as exc:
            raise AuthorityUnavailable(f"{path} holds no time: {exc}") from exc

    def _fresh_intermediate(self) -> _Intermediate:
        """Return the intermediate, renewed if its end is near, or its beginning lies ahead: a clock was, and is not now."""
        intermediate, now = self._keys.intermediate, self._now()
        begin, end = intermediate.certificate.not_valid_before_utc, intermediate.certificate.not_valid_after_utc
        if begin <= now and (end - now) / (end - begin) >= INTERMEDIATE_RENEWED_AT:
            return intermediate
        try:
            self.renew_intermediate()
        except AuthorityUnavailable as exc:
            if begin <= now < end:
                log.warning(
                    "the intermediate certificate expires at %s and cannot be renewed yet: %s", _rfc3339(end), exc
                )
                return intermediate
            what = (
                f"expired at {_rfc3339(end)}"
                if begin <= now
                else f"is valid from {_rfc3339(begin)} on only (a clock was ahead when it was made)"
            )
            raise AuthorityUnavailable(f"the intermediate certificate {what} and cannot be renewed: {exc}") from exc
        return self._keys.intermediate

    def _checked(self, roots: Sequence[_Root], intermediate: _Intermediate) -> _Root:
        """Check that the parts belong together; return the root that has signed the intermediate."""
        expected = f"spiffe://{self._trust_domain}"
        for root in roots:
            if (found := _uri(root.certificate)) != expected:
                raise AuthorityUnavailable(
                    f"the CA in {self._directory} is for {found}, the mesh for {expected}: "
                    "a mesh keeps its trust domain"
                )
        for root in roots:
            if _signed(intermediate.certificate, root.certificate):
                return root
        raise AuthorityUnavailable(f"the intermediate in {self._directory} was signed by none of the roots there")

    def _offline(self, root: _Root) -> AuthorityUnavailable:
        return AuthorityUnavailable(
            f"the key of root {root.number} is not in {self._directory}; put the root's key back to have it sign"
        )

    # --- certificates ---

    def _make_root(self, number: int) -> _Root:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"weft root {number} {secrets.token_hex(4)}")
        now = self._now()
        certificate = (
            _builder(name, name, key.public_key(), now - AUTHORITY_BACKDATED, now + ROOT_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(self._own_uri(), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._write(f"root-{number}.key", _private_pem(key))
        self._write(f"root-{number}.pem", _pem(certificate))
        return _Root(number, certificate, key)

    def _make_intermediate(self, root: _Root) -> _Intermediate:
        if root.key is None:
            raise self._offline(root)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"weft intermediate {secrets.token_hex(4)}")
        now = self._now()
        end = min(now + INTERMEDIATE_LIFETIME, root.certificate.not_valid_after_utc)
        certificate = (
            _builder(name, root.certificate.subject, key.public_key(), now - AUTHORITY_BACKDATED, end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(self._own_uri(), critical=False)
            .add_extension(_issued_by(root.certificate), critical=False)
            .sign(root.key, hashes.SHA256())
        )
        self._write("intermediate.pem", _private_pem(key) + _pem(certificate))
        return _Intermediate(certificate, key)

    def _own_uri(self) -> x509.SubjectAlternativeName:
        # X509-SVID 3.2: a signing certificate may carry the trust domain's own ID, without a path.
        return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self._trust_domain}")])

    # --- files ---

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory against another control plane that starts at this moment."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise AuthorityUnavailable(f"the CA's files in {self._directory} cannot be used: {exc}") from exc

    def _write(self, name: str, text: str) -> None:
        """Make a file that appears under its name with its whole content on the disk, or not at all."""
        # Left-overs of a process that was killed; the lock is ours.
        temporary = self._directory / f"{name}.new"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._directory / name)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _loaded(self) -> _Keys:
        """Return the intermediate that signs with the roots as their files are now: keys come and go."""
        intermediate = self._keys.intermediate
        roots = self._load_roots()
        signing = self._checked(roots, intermediate)
        return _Keys(self._with_root_above(signing, roots), intermediate)

    def _load_roots(self) -> tuple[_Root, ...]:
        found = (match for path in self._directory.iterdir() if (match := _ROOT_FILE.fullmatch(path.name)))
        return tuple(self._load_root(number) for number in sorted(int(match[1]) for match in found))

    def _load_root(self, number: int) -> _Root:
        path = self._directory / f"root-{number}.pem"
        certificate = _read_certificate(path, path.read_bytes())
        key_path = self._directory / f"root-{number}.key"
        key = _read_key(key_path, key_path.read_bytes()) if key_path.exists() else None
        if key is not None and key.public_key() != certificate.public_key():
            raise AuthorityUnavailable(f"{key_path} is not the key of {path}")
        return _Root(number, certificate, key)

    def _load_intermediate(self) -> _Intermediate | None:
        path = self._directory / "intermediate.pem"
        if not path.exists():
            return None
        content = path.read_bytes()
        certificate, key = _read_certificate(path, content), _read_key(path, content)
        if key.public_key() != certificate.public_key():
            raise AuthorityUnavailable(f"key and certificate in {path} do not belong together")
        return _Intermediate(certificate, key)


def _state(root: _Root, signing: _Root) -> str:
    if root.number == signing.number:
        return "signing"
    return "retiring" if root.number < signing.number else "standby"


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _identity(text: str, trust_domain: str) -> str:
    try:
        spiffe_id = parse(text)
    except InvalidSpiffeId as exc:
        raise SigningRefused(str(exc)) from exc
    if spiffe_id.trust_domain != trust_domain:
        raise SigningRefused(f"{text} is not of the trust domain {trust_domain}")
    if not spiffe_id.path:
        # X509-SVID 2: a leaf's ID has a path; the bare trust domain is the authority's.
        raise SigningRefused(f"{text} names a trust domain, not a workload")
    return str(spiffe_id)


def _public_key(csr: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """Return the key of a request whose sender has shown that the private half is theirs."""
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise SigningRefused(f"the signing request cannot be read: {exc}") from exc
    if not valid:
        raise SigningRefused("the signing request is not signed by the key that is in it")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= SMALLEST_RSA_BITS:
        return key
    raise SigningRefused(f"the key must be ECDSA on P-256 or P-384, or RSA of at least {SMALLEST_RSA_BITS} bits")


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _name(common_name: str) -> x509.Name:
    # X509-SVID 3.1 and RFC 5280 4.1.2.4: who signs has a name, and no two have the same one.
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "weft"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _uri(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris: Sequence[str] = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if uris else ""


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def _read_certificate(path: Path, content: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError as exc:
        raise AuthorityUnavailable(f"{path} holds no certificate: {exc}") from exc


def _read_key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as exc:
        raise AuthorityUnavailable(f"{path} holds no private key: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityUnavailable(f"{path} holds a key that is not ECDSA")
    return key
