"""The certificate authority: what it issues, what it refuses, and that its files survive anything."""

from __future__ import annotations

import errno
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from weft.identity import Authority, AuthorityUnavailable, Issued, SigningRefused

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
KEY = ec.generate_private_key(ec.SECP256R1())


class Clock:
    def __init__(self) -> None:
        self.time = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.time


def request(key: object = KEY, name: str = "", uri: str = "") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    )
    if uri:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri), x509.DNSName("evil.example")]), False
        )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def chain_of(issued: Issued) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(issued["chain"].encode())


def verify(issued: Issued, bundle: str, when: datetime) -> None:
    leaf, *rest = chain_of(issued)
    store = Store(x509.load_pem_x509_certificates(bundle.encode()))
    PolicyBuilder().store(store).time(when).build_client_verifier().verify(leaf, rest)


def test_a_leaf_is_an_x509_svid(tmp_path: Path) -> None:
    """X509-SVID sections 2 to 4, RFC 5280."""
    clock = Clock()
    authority = Authority(tmp_path / "ca", "cluster.local", now=clock)
    issued = authority.sign(request(), REVIEWS)
    leaf, intermediate = chain_of(issued)
    assert leaf.public_key() == KEY.public_key()
    assert leaf.not_valid_before_utc == clock.time - timedelta(minutes=1)
    assert leaf.not_valid_after_utc == clock.time + timedelta(hours=24)
    assert issued["not_after"] == f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert list(leaf.subject) == []
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [x509.UniformResourceIdentifier(REVIEWS)]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    signing = intermediate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert signing.critical
    assert (signing.value.ca, signing.value.path_length) == (True, 0)
    assert intermediate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    verify(issued, authority.bundle(), clock.time)
    with pytest.raises(VerificationError):
        verify(issued, Authority(tmp_path / "other", "cluster.local").bundle(), clock.time)


def test_two_workloads_speak_mutual_tls(tmp_path: Path) -> None:
    """OpenSSL accepts the chains, on both sides."""
    authority = Authority(tmp_path / "ca", "cluster.local", leaf_lifetime=timedelta(seconds=60))
    (tmp_path / "roots.pem").write_text(authority.bundle())

    def context(side: int, name: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        path = tmp_path / f"{name}.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        path.write_text(private + authority.sign(request(key), REVIEWS)["chain"])
        made = ssl.SSLContext(side)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(path)
        made.load_verify_locations(tmp_path / "roots.pem")
        return made

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(ssl.PROTOCOL_TLS_CLIENT, "client").wrap_bio(to_client, to_server)
    server = context(ssl.PROTOCOL_TLS_SERVER, "server").wrap_bio(to_server, to_client, server_side=True)
    done: set[str] = set()
    for _ in range(10):
        for name, side in (("client", client), ("server", server)):
            try:
                side.do_handshake()
                done.add(name)
            except ssl.SSLWantReadError:
                pass
    assert done == {"client", "server"}
    peer = server.getpeercert()
    assert peer is not None
    assert peer["subjectAltName"] == (("URI", REVIEWS),)


def test_only_the_key_of_a_request_counts(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "cluster.local")
    wish = request(name="admin", uri="spiffe://cluster.local/ns/default/sa/admin")
    leaf = chain_of(authority.sign(wish, REVIEWS))[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(REVIEWS)]
    assert list(leaf.subject) == []


def forged() -> str:
    """A request whose key was replaced by another one after it was signed."""
    mine, other = (x509.load_pem_x509_csr(request(ec.generate_private_key(ec.SECP256R1())).encode()) for _ in range(2))
    point = mine.public_key().public_numbers(), other.public_key().public_numbers()  # type: ignore[union-attr]
    first, second = ((it.x.to_bytes(32, "big") + it.y.to_bytes(32, "big")) for it in point)  # type: ignore[union-attr]
    content = mine.public_bytes(Encoding.DER).replace(first, second)
    return x509.load_der_x509_csr(content).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr", "identity", "reason"),
    [
        (lambda: "no PEM", REVIEWS, "cannot be read"),
        (
            lambda: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            REVIEWS,
            "cannot be",
        ),
        (forged, REVIEWS, "not signed by the key"),
        (lambda: request(rsa.generate_private_key(65537, 1024)), REVIEWS, "at least 2048 bits"),
        (lambda: request(ed25519.Ed25519PrivateKey.generate()), REVIEWS, "must be ECDSA"),
        (lambda: request(ec.generate_private_key(ec.SECP256K1())), REVIEWS, "must be ECDSA"),
        (request, "spiffe://elsewhere/ns/default/sa/reviews", "not of the trust domain"),
        (request, "spiffe://cluster.local", "not a workload"),
        (request, "reviews", "does not begin with"),
    ],
)
def test_what_is_not_signed(tmp_path: Path, csr: Callable[[], str], identity: str, reason: str) -> None:
    with pytest.raises(SigningRefused, match=reason):
        Authority(tmp_path, "cluster.local").sign(csr(), identity)


def test_rsa_is_signed_too(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    issued = Authority(tmp_path, "cluster.local").sign(request(key), REVIEWS)
    assert chain_of(issued)[0].public_key() == key.public_key()


def test_the_files_are_closed_to_others_and_last(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "ca"
    authority = Authority(directory, "cluster.local")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(
        ["intermediate.pem", "lock", "root-1.key", "root-1.pem", "root-2.key", "root-2.pem"], 0o600
    )
    again = Authority(directory, "cluster.local")
    assert again.bundle() == authority.bundle()
    assert chain_of(again.sign(request(), REVIEWS))[1] == chain_of(authority.sign(request(), REVIEWS))[1]


def test_the_root_may_go_offline(tmp_path: Path) -> None:
    """Without the root's key leaves are signed until the intermediate expires; with it, it is renewed in time."""
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    first = chain_of(authority.sign(request(), REVIEWS))[1]
    key = (tmp_path / "root-1.key").read_bytes()
    (tmp_path / "root-1.key").unlink()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    clock.time += timedelta(days=364, hours=12)
    issued = authority.sign(request(), REVIEWS)
    assert chain_of(issued)[0].not_valid_after_utc == first.not_valid_after_utc, "no longer than who signs"
    verify(issued, authority.bundle(), clock.time)
    clock.time += timedelta(days=1)
    with pytest.raises(AuthorityUnavailable, match="put the root's key back"):
        authority.sign(request(), REVIEWS)
    (tmp_path / "root-1.key").write_bytes(key)
    issued = authority.sign(request(), REVIEWS)
    assert chain_of(issued)[1] != first
    verify(issued, authority.bundle(), clock.time)


def test_the_intermediate_is_renewed_in_time(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    first = chain_of(authority.sign(request(), REVIEWS))[1]
    clock.time += timedelta(days=200)
    assert chain_of(authority.sign(request(), REVIEWS))[1] == first
    clock.time += timedelta(days=50)
    issued = authority.sign(request(), REVIEWS)
    assert chain_of(issued)[1] != first
    verify(issued, authority.bundle(), clock.time)


def test_an_intermediate_of_a_clock_that_was_ahead_is_renewed(tmp_path: Path) -> None:
    """It would be valid in 270 days; what it signs until then is refused by everybody."""
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    clock.time += timedelta(days=300)
    authority.sign(request(), REVIEWS)
    clock.time -= timedelta(days=300)
    issued = authority.sign(request(), REVIEWS)
    verify(issued, authority.bundle(), clock.time)
    assert chain_of(authority.sign(request(), REVIEWS))[1] == chain_of(issued)[1], "once"


def test_an_intermediate_of_a_clock_that_was_ahead_needs_its_root(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    clock.time += timedelta(days=300)
    authority.sign(request(), REVIEWS)
    clock.time -= timedelta(days=300)
    key = (tmp_path / "root-1.key").read_bytes()
    (tmp_path / "root-1.key").unlink()
    with pytest.raises(AuthorityUnavailable, match=r"a clock was ahead .* put the root's key back"):
        authority.sign(request(), REVIEWS)
    (tmp_path / "root-1.key").write_bytes(key)
    verify(authority.sign(request(), REVIEWS), authority.bundle(), clock.time)


def test_where_an_intermediate_cannot_be_renewed_in_time_it_signs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)

    def full(file: str, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(authority, "_write", full)
    clock.time += timedelta(days=300)
    verify(authority.sign(request(), REVIEWS), authority.bundle(), clock.time)
    assert "cannot be renewed yet" in caplog.text
    assert "No space left" in caplog.text


def roots(authority: Authority) -> list[tuple[int, str]]:
    return [(root["number"], root["state"]) for root in authority.describe()["roots"]]


def test_a_rotation_lets_the_root_sign_that_everybody_trusts_already(tmp_path: Path) -> None:
    """Two roots at all times; the old one goes when the last leaf that it vouches for has expired."""
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    assert roots(authority) == [(1, "signing"), (2, "standby")]
    before = authority.bundle()
    standby = authority.standby
    old = authority.sign(request(), REVIEWS)
    authority.rotate_root()
    new = authority.sign(request(), REVIEWS)
    assert roots(authority) == [(1, "retiring"), (2, "signing"), (3, "standby")]
    assert authority.describe()["roots"][1]["fingerprint"] == standby
    verify(new, before, clock.time)
    again = Authority(tmp_path, "cluster.local", now=clock)
    assert roots(again) == roots(authority)
    for issued in (old, new):
        verify(issued, again.bundle(), clock.time)
    assert not again.retire()
    clock.time += timedelta(hours=24, minutes=1)
    assert again.retire()
    assert roots(again) == [(2, "signing"), (3, "standby")]
    assert (tmp_path / "retired-root-1.pem").exists()
    assert not list(tmp_path.glob("root-1*"))
    with pytest.raises(VerificationError):
        verify(old, again.bundle(), clock.time - timedelta(hours=1))


@pytest.mark.parametrize("name", ["root-3.key", "root-3.pem", "root-1.until", "intermediate.pem"])
def test_a_rotation_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full; whoever looks, and whoever starts, still finds a root that signs and one that stands by."""
    authority = Authority(tmp_path, "cluster.local")
    before, write = authority.describe(), authority._write

    def full(file: str, text: str) -> None:
        if file == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, text)

    monkeypatch.setattr(authority, "_write", full)
    with pytest.raises(AuthorityUnavailable, match="No space left"):
        authority.rotate_root()
    assert authority.describe() == before
    assert roots(authority) == [(1, "signing"), (2, "standby")]
    again = Authority(tmp_path, "cluster.local")
    assert roots(again)[:2] == [(1, "signing"), (2, "standby")]
    again.rotate_root()
    assert roots(again) == [(1, "retiring"), (2, "signing"), (3, "standby")]


def test_a_rotation_is_seen_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a thread of its own, and who asks meanwhile is told what was before."""
    authority = Authority(tmp_path, "cluster.local")
    before, write = authority.describe(), authority._write
    seen = []

    def looked_at(file: str, text: str) -> None:
        seen.append(authority.describe())
        write(file, text)
        seen.append(authority.describe())

    monkeypatch.setattr(authority, "_write", looked_at)
    authority.rotate_root()
    for found in seen:
        found["roots"][0]["until"] = None  # of a root that signs it says nothing
        assert found == before


def test_a_root_stays_for_leaves_that_an_earlier_process_gave_a_longer_life(tmp_path: Path) -> None:
    clock = Clock()
    long = Authority(tmp_path, "cluster.local", now=clock).sign(request(), REVIEWS)
    authority = Authority(tmp_path, "cluster.local", now=clock, leaf_lifetime=timedelta(seconds=4))
    authority.rotate_root(datetime.fromisoformat(long["not_after"]))
    clock.time += timedelta(hours=23)
    assert not authority.retire()
    verify(long, authority.bundle(), clock.time)
    clock.time += timedelta(hours=1, minutes=1)
    assert authority.retire()


def test_a_new_intermediate_is_the_same_roots(tmp_path: Path) -> None:
    """What the old one signed is as good as before, and no bundle changes."""
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    bundle, old = authority.bundle(), authority.sign(request(), REVIEWS)
    authority.renew_intermediate()
    new = authority.sign(request(), REVIEWS)
    assert chain_of(new)[1] != chain_of(old)[1]
    assert authority.bundle() == bundle
    for issued in (old, new):
        verify(issued, bundle, clock.time)


def test_the_standby_may_be_offline_until_it_must_sign(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "cluster.local")
    key = (tmp_path / "root-2.key").read_bytes()
    (tmp_path / "root-2.key").unlink()
    with pytest.raises(AuthorityUnavailable, match="the key of root 2 is not in"):
        authority.rotate_root()
    assert roots(authority) == [(1, "signing"), (2, "standby")]
    (tmp_path / "root-2.key").write_bytes(key)
    authority.rotate_root()


def test_expired_roots_are_no_longer_handed_out(tmp_path: Path) -> None:
    clock = Clock()
    authority = Authority(tmp_path, "cluster.local", now=clock)
    clock.time += timedelta(days=3651)
    assert authority.bundle() == ""


def test_a_leaf_of_seconds_is_hardly_backdated(tmp_path: Path) -> None:
    """Or its half-life would lie before its birth, and agents would do nothing but renew."""
    clock = Clock()
    leaf = chain_of(
        Authority(tmp_path, "cluster.local", now=clock, leaf_lifetime=timedelta(seconds=10)).sign(request(), REVIEWS)
    )[0]
    assert leaf.not_valid_before_utc == clock.time - timedelta(seconds=1)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Authority(tmp_path / "a", "cluster.local")
    Authority(tmp_path / "b", "cluster.local")
    with pytest.raises(AuthorityUnavailable, match="a mesh keeps its trust domain"):
        Authority(tmp_path / "a", "example.org")
    (tmp_path / "b" / "root-1.key").rename(tmp_path / "a" / "root-1.key")
    with pytest.raises(AuthorityUnavailable, match="is not the key of"):
        Authority(tmp_path / "a", "cluster.local")
    (tmp_path / "a" / "root-1.key").unlink()
    (tmp_path / "b" / "intermediate.pem").rename(tmp_path / "a" / "intermediate.pem")
    with pytest.raises(AuthorityUnavailable, match="signed by none of the roots"):
        Authority(tmp_path / "a", "cluster.local")
    (tmp_path / "a" / "intermediate.pem").write_text("torn")
    with pytest.raises(AuthorityUnavailable, match="holds no certificate"):
        Authority(tmp_path / "a", "cluster.local")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityUnavailable, match="cannot be used"):
        Authority(tmp_path / "file", "cluster.local")


KILLED = """
import os, pathlib, signal, sys
from weft.identity import Authority

left = int(sys.argv[2])
def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

# Every step that changes the directory or promises something about it.
for owner, name in ((os, "open"), (os, "fdopen"), (os, "fsync"), (pathlib.Path, "rename"), (pathlib.Path, "mkdir")):
    setattr(owner, name, counted(getattr(owner, name)))
authority = Authority(pathlib.Path(sys.argv[1]), "cluster.local")
authority.rotate_root()
"""


def test_kill_9_at_any_step_leaves_a_good_state(tmp_path: Path) -> None:
    """The next start goes on from there; what was handed out once stays valid."""
    for step in range(100):
        directory = tmp_path / str(step)
        process = subprocess.run([sys.executable, "-c", KILLED, str(directory), str(step)], check=False)
        authority = Authority(directory, "cluster.local")
        verify(authority.sign(request(), REVIEWS), authority.bundle(), datetime.now(UTC))
        states = [state for _, state in roots(authority) if state != "retiring"]
        assert states in (["signing", "standby"], ["signing", "standby", "standby"])
        if process.returncode == 0:
            assert step > 30
            return
        assert process.returncode == -signal.SIGKILL
    pytest.fail("it never came to its end")
