"""
The proxy's secrets: makes its key, has it certified, serves both by SDS, and renews them in time.

One of these stands in each agent. The key is made here, lives in this process's memory and in the proxy's, and is
written nowhere. Secrets are named as Istio names them: `default` is certificate and key, `ROOTCA` the trust bundle.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from os import PathLike
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from weft._native import StreamCore
from weft.agent.protobuf import field
from weft.errors import WeftError
from weft.identity.attestation import AttestationRefused, check_outside
from weft.identity.ca import fingerprint
from weft.identity.rotation import JITTER, Countdown, renew_at, retry_after

SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
DEFAULT = "default"
ROOT_CA = "ROOTCA"

SIGNING_SECONDS = 10.0
"""For one answer of the control plane; it takes a millisecond, so after this long something is wrong with it."""
SHORTEST_SIGNING_SECONDS = 1.0
LONGEST_SLEEP = timedelta(seconds=1)
"""Between looks at the clock: a laptop that was asleep finds its certificate older than it waited, and one whose clock was
set finds it expired, or not valid yet; until it is renewed its peers refuse it."""

SPREAD = timedelta(seconds=5)
"""Over which agents spread when all are asked to renew, or less where certificates live for seconds."""

REMEDY = (
    "Connections that are open stay, and so do the proxies' rules; new connections are refused from then on. `weft up`"
    " starts a control plane that has died again by itself: its log, control-plane.log in the mesh's runtime directory,"
    " says what keeps it from its work."
)
"""When certificates cannot be renewed."""

_VIEW = "secrets"


class Signed(Protocol):
    """What a control plane answers: `chain` and `bundle` are PEM, the leaf first; `not_after` is RFC 3339."""

    @property
    def chain(self) -> str: ...
    @property
    def bundle(self) -> str: ...
    @property
    def not_after(self) -> str: ...


def system_time() -> datetime:
    """Return the time of day."""
    return datetime.now(UTC)


async def sleep(duration: timedelta) -> None:
    """Sleep, by the event loop's clock."""
    await asyncio.sleep(duration.total_seconds())


class SecretService:
    """
    Args:
        path: Where to listen (`sds.sock`).
        sign: Has a signing request (PEM) signed; raises WeftError when that fails.
        trusted: Is told the fingerprints of the roots that the proxy trusts, once it does. Without a proxy: at once, as
            one that comes is given nothing else.
        renewed: Is given each new leaf, the first too, once it is served; an OSError of it is told.
        warn: Is told what people should know: that renewal fails, that the proxy refuses a secret.
        recovered: Is called when a renewal has succeeded after people were warned.
        now: The clock.
        sleep: Waits, by the same clock.
        chance: Random numbers, 0.0 to 1.0.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        sign: Callable[[str], Awaitable[Signed]],
        *,
        trusted: Callable[[Sequence[str]], None] = lambda _: None,
        renewed: Callable[[x509.Certificate], object] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
        recovered: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = system_time,
        sleep: Callable[[timedelta], Awaitable[None]] = sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._path = path
        self._sign = sign
        self._trusted = trusted
        self._renewed = renewed
        self._warn = warn
        self._recovered = recovered
        self._now = now
        self._sleep = sleep
        self._chance = chance
        self._core: StreamCore | None = None
        self._fileno = -1
        self._revision = 0
        self._secrets: dict[str, tuple[str, bytes]] = {}
        """Name -> version, serialised Secret."""
        self._bundle = ""
        self._bundle_revision = 0
        """Since when the present bundle is served."""
        self._told = ""
        """The bundle of which `trusted` was told last."""
        self._streams: dict[int, int] = {}
        """The proxy's streams, and the last revision of which each has everything."""
        self._certificate: x509.Certificate | None = None
        self._asked = asyncio.Event()
        self._failures = 0
        """Of renewals, in a row."""
        self._renewing: asyncio.Task[None] | None = None

    @property
    def certificate(self) -> x509.Certificate | None:
        """The present leaf; None before the first."""
        return self._certificate

    @property
    def not_after(self) -> datetime | None:
        """When the present certificate expires; None before the first."""
        return self._certificate.not_valid_after_utc if self._certificate else None

    async def start(self) -> None:
        """
        Get the first certificate, then serve and renew until `close`.

        Raises:
            WeftError: The control plane did not sign; nothing was started.
            OSError: The socket cannot be made.
        """
        await self._obtain()
        self._core = StreamCore(self._path)
        self._fileno = self._core.fileno()
        asyncio.get_running_loop().add_reader(self._fileno, self._drain)
        self._publish()
        self._tell_renewed()
        self._renewing = asyncio.create_task(self._renew())

    async def close(self) -> None:
        """Stop serving. The proxy keeps what it has."""
        if self._renewing is not None:
            self._renewing.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewing
            self._renewing = None
        if self._core is not None:
            asyncio.get_running_loop().remove_reader(self._fileno)
            self._core.close()
            self._core = None

    def replace_bundle(self, bundle: str) -> None:
        """Trust these roots (PEM) from now on."""
        self._take_bundle(bundle)
        self._publish()

    def retry(self) -> None:
        """The control plane is there again: if a renewal has failed meanwhile, try it now."""
        if self._failures:
            self._asked.set()

    def renew_soon(self) -> None:
        """Renew the certificate within `SPREAD`, whatever its age: the authority signs by another key now."""
        self._asked.set()

    async def _renew(self) -> None:
        """Renew the certificate each time that its half-life is over."""
        certificate = self._present()
        countdown = Countdown(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        due = self._due()
        while True:
            looked = self._now()
            while (left := due - (now := self._now())) > timedelta():
                if now < looked:
                    break  # the clock was set back: the certificate may not be valid yet, and `due` be far away
                looked = now
                await self._pause(min(left, LONGEST_SLEEP))
                if self._asked.is_set():
                    self._asked.clear()
                    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
                    due = min(due, self._now() + min(SPREAD, life * JITTER) * self._chance())
            try:
                await self._obtain()
            except (WeftError, OSError) as exc:
                self._failures += 1
                now = self._now()
                if text := countdown.warning(now):
                    self._warn(f"{text} ({exc}). {REMEDY}")
                due = now + retry_after(self._failures, countdown.not_after - now, chance=self._chance())
            else:
                self._failures = 0
                if countdown.told:
                    self._recovered()
                certificate = self._present()
                countdown = Countdown(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
                due = self._due()
                self._publish()
                self._tell_renewed()

    async def _pause(self, duration: timedelta) -> None:
        """Sleep, or until somebody asks for a new certificate."""
        waiting = asyncio.ensure_future(self._asked.wait())
        sleeping = asyncio.ensure_future(self._sleep(duration))
        try:
            await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleeping.cancel()

    def _present(self) -> x509.Certificate:
        assert self._certificate is not None, "there is one since `start`"
        return self._certificate

    def _due(self) -> datetime:
        certificate = self._present()
        return renew_at(certificate.not_valid_before_utc, certificate.not_valid_after_utc, chance=self._chance())

    def _patience(self) -> float:
        """Return how long to wait for an answer, seconds: one that hangs must not hide that the end comes near."""
        if self._certificate is None:
            return SIGNING_SECONDS
        left = (self._certificate.not_valid_after_utc - self._now()).total_seconds()
        return min(SIGNING_SECONDS, max(left / 10, SHORTEST_SIGNING_SECONDS))

    async def _obtain(self) -> None:
        """Make a new key and have it certified."""
        key = ec.generate_private_key(ec.SECP256R1())
        # The control plane knows who asks from the stream; a name in the request would only be ignored.
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
        try:
            async with asyncio.timeout(self._patience()):
                signed = await self._sign(request.public_bytes(Encoding.PEM).decode("ascii"))
        except TimeoutError as exc:
            raise WeftError("the control plane did not answer a signing request") from exc
        try:
            certificate = x509.load_pem_x509_certificate(signed.chain.encode())
        except ValueError as exc:
            raise WeftError(f"the control plane answered a signing request with no certificate: {exc}") from exc
        if certificate.public_key() != key.public_key():
            raise WeftError("the control plane certified another key than the one in the signing request")
        self._certificate = certificate
        self._take_bundle(signed.bundle)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._secrets[DEFAULT] = (_version(signed.chain), _certificate_secret(signed.chain.encode(), private))

    def _tell_renewed(self) -> None:
        try:
            self._renewed(self._present())
        except OSError as exc:  # a full disk, say; the proxy has its certificate all the same
            self._warn(f"how long the certificate lasts cannot be written down for `weft status`: {exc}")

    def _take_bundle(self, bundle: str) -> None:
        if bundle != self._bundle:
            self._bundle = bundle
            self._bundle_revision = self._revision + 1
            self._secrets[ROOT_CA] = _bundle_secret(bundle)

    def _publish(self) -> None:
        if self._core is not None:
            self._revision += 1
            secrets = [(SECRET, name, version, value) for name, (version, value) in self._secrets.items()]
            self._core.publish(_VIEW, self._revision, secrets)
            self._tell_trust()

    def _tell_trust(self) -> None:
        if self._told != self._bundle and all(had >= self._bundle_revision for had in self._streams.values()):
            self._told = self._bundle
            roots = x509.load_pem_x509_certificates(self._bundle.encode())
            self._trusted([fingerprint(root) for root in roots])

    def _drain(self) -> None:
        """Show the secrets to whoever of our own connects, and pass on what the proxy does not take."""
        assert self._core is not None, "the reader is removed before the core goes"
        for event in self._core.events():
            if event[0] == "connected":
                _, stream, _, pid = event
                try:
                    check_outside(pid or 0)
                except AttestationRefused as exc:
                    self._warn(f"secrets were asked for and not given: {exc}")
                else:
                    self._core.attach(stream, _VIEW)
                    self._streams[stream] = 0
            elif event[0] == "synced":
                _, stream, _, revision = event
                self._streams[stream] = revision
            elif event[0] == "closed":
                self._streams.pop(event[1], None)
            elif event[0] == "refused":
                self._warn(f"the proxy refuses the secret {event[4]}: {event[6]}")
        self._tell_trust()


def _version(text: str) -> str:
    """Return the version of a secret, which is seen by others: a hash of its public part."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


# Field numbers: envoy/extensions/transport_sockets/tls/v3/{secret,common}.proto, base.proto.


def _certificate_secret(chain: bytes, key: bytes) -> bytes:
    tls_certificate = field(1, _inline(chain)) + field(2, _inline(key))
    return field(1, DEFAULT.encode()) + field(2, tls_certificate)


def _bundle_secret(bundle: str) -> tuple[str, bytes]:
    validation_context = field(1, _inline(bundle.encode()))
    return _version(bundle), field(1, ROOT_CA.encode()) + field(4, validation_context)


def _inline(data: bytes) -> bytes:
    """A `DataSource` with `inline_bytes`."""
    return field(2, data)
