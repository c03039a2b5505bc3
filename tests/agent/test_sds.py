"""The agent's secrets: served to a real SDS client, renewed by a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from tests.xds.clients import SDS, stream
from weft.agent.sds import SECRET, SecretService
from weft.errors import WeftError
from weft.identity import Authority

REVIEWS = "spiffe://cluster.local/ns/default/sa/reviews"
LIMIT = 10.0


class Clock:
    """Time that passes only when the test says so. One task sleeps by it."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC).replace(microsecond=0)
        self._sleeper: tuple[datetime, asyncio.Future[None]] | None = None
        self._asleep = asyncio.Event()

    def now(self) -> datetime:
        return self.time

    async def sleep(self, duration: timedelta) -> None:
        woken = asyncio.get_running_loop().create_future()
        self._sleeper = self.time + duration, woken
        self._asleep.set()
        await woken

    async def turn(self, duration: timedelta) -> None:
        """Let time pass, minute by minute; whoever wakes does what they do until they sleep again."""
        end = self.time + duration
        async with asyncio.timeout(LIMIT):
            while self.time < end:
                await self._asleep.wait()
                assert self._sleeper is not None
                due, woken = self._sleeper
                self.time = min(self.time + timedelta(minutes=1), end)
                if due <= self.time:
                    self._asleep.clear()
                    woken.set_result(None)
            await self._asleep.wait()

    async def set_by(self, difference: timedelta) -> None:
        """Set the clock, which wakes nobody: whoever sleeps looks at it when their own time is over."""
        async with asyncio.timeout(LIMIT):
            await self._asleep.wait()
            assert self._sleeper is not None
            self.time += difference
            self._asleep.clear()
            self._sleeper[1].set_result(None)
            await self._asleep.wait()


@dataclass
class Signed:
    chain: str
    bundle: str
    not_after: str


class ControlPlane:
    """Signs with a real CA, or is away."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.authority = Authority(directory, "cluster.local", now=clock.now)
        self.away = False
        self.requests: list[str] = []

    async def sign(self, csr: str) -> Signed:
        self.requests.append(csr)
        if self.away:
            raise WeftError("the control plane is away")
        return Signed(**self.authority.sign(csr, REVIEWS))


class Bench:
    def __init__(self, directory: Path, renewed: Callable[[x509.Certificate], object] = lambda _: None) -> None:
        self.clock = Clock()
        self.plane = ControlPlane(directory / "ca", self.clock)
        self.warnings: list[str] = []
        self.recoveries: list[datetime] = []
        self.path = directory / "sds.sock"
        self.service = SecretService(
            self.path,
            self.plane.sign,
            renewed=renewed,
            warn=self.warnings.append,
            recovered=lambda: self.recoveries.append(self.clock.now()),
            now=self.clock.now,
            sleep=self.clock.sleep,
            chance=lambda: 0.5,
        )


def run(directory: Path, test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        bench = Bench(directory)
        await bench.service.start()
        try:
            await test(bench)
        finally:
            await bench.service.close()

    asyncio.run(main())


def secrets(response: Any) -> dict[str, Secret]:
    return {item.name: Secret.FromString(item.resource.value) for item in response.resources}


def certificate(secret: Secret) -> x509.Certificate:
    """The leaf, after a look at whether its key is the one beside it."""
    tls = secret.tls_certificate
    leaf = x509.load_pem_x509_certificates(tls.certificate_chain.inline_bytes)[0]
    assert load_pem_private_key(tls.private_key.inline_bytes, None).public_key() == leaf.public_key()
    return leaf


def test_the_proxy_gets_key_chain_and_roots(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default", "ROOTCA")
            found = secrets(await proxy.take())
            assert found["default"].name == "default"
            names = certificate(found["default"]).extensions.get_extension_for_class(x509.SubjectAlternativeName)
            assert list(names.value) == [x509.UniformResourceIdentifier(REVIEWS)]
            assert found["ROOTCA"].name == "ROOTCA"
            roots = found["ROOTCA"].validation_context.trusted_ca.inline_bytes.decode()
            assert roots == bench.plane.authority.bundle()
            assert bench.service.not_after == certificate(found["default"]).not_valid_after_utc

    run(tmp_path, test)


def test_the_key_is_written_nowhere(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default")
            key = secrets(await proxy.take())["default"].tls_certificate.private_key.inline_bytes
            middle = key.splitlines()[1]
            assert not any(middle in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            assert not any(middle.decode() in csr for csr in bench.plane.requests)

    run(tmp_path, test)


def test_it_is_renewed_at_half_life_with_a_new_key(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default", "ROOTCA")
            first = certificate(secrets(await proxy.take())["default"])
            await bench.clock.turn(timedelta(hours=11, minutes=55))
            assert len(bench.plane.requests) == 1
            await bench.clock.turn(timedelta(minutes=10))
            assert len(bench.plane.requests) == 2
            found = secrets(await proxy.take())
            assert list(found) == ["default"], "the roots are the same and are not sent again"
            second = certificate(found["default"])
            assert second.public_key() != first.public_key()
            assert second.not_valid_after_utc - first.not_valid_after_utc == timedelta(hours=12)
            assert bench.warnings == []

    run(tmp_path, test)


@pytest.mark.parametrize("days", [2, -2])
def test_a_clock_that_is_set_has_it_renewed_within_a_second(tmp_path: Path, days: int) -> None:
    """Set forward the certificate has expired, set back it is not valid yet; peers refuse both."""

    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default")
            await proxy.take()
            await bench.clock.set_by(timedelta(days=days))
            leaf = certificate(secrets(await proxy.take())["default"])
            assert leaf.not_valid_before_utc < bench.clock.time < leaf.not_valid_after_utc
            signers = x509.load_pem_x509_certificates(bench.plane.authority.bundle().encode())
            assert all(root.not_valid_before_utc < bench.clock.time for root in signers)
            assert bench.warnings == []

    run(tmp_path, test)


def test_a_certificate_that_cannot_be_noted_is_served_and_renewed(tmp_path: Path) -> None:
    """A full disk is told; it neither keeps the certificate from the proxy nor ends renewal."""

    async def main() -> None:
        bench = Bench(tmp_path, renewed=lambda _: Path("/dev/full").write_text("no space"))
        await bench.service.start()
        try:
            async with stream(bench.path, service=SDS) as proxy:
                await proxy.subscribe(SECRET, "default")
                first = certificate(secrets(await proxy.take())["default"])
                await bench.clock.turn(timedelta(hours=14))
                second = certificate(secrets(await proxy.take())["default"])
                await bench.clock.turn(timedelta(hours=14))
                third = certificate(secrets(await proxy.take())["default"])
                assert len({leaf.serial_number for leaf in (first, second, third)}) == 3
                assert "No space left" in bench.warnings[0]
        finally:
            await bench.service.close()

    asyncio.run(main())


def test_while_the_control_plane_is_away_it_tries_again_and_counts_down(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.plane.away = True
        await bench.clock.turn(timedelta(hours=13))
        assert 30 < len(bench.plane.requests) < 200
        assert bench.warnings == []
        await bench.clock.turn(timedelta(hours=12))
        assert len(bench.warnings) == 5
        assert bench.warnings[0].startswith(
            "the certificate expires in 9 hours and could not be renewed yet (the control"
        )
        assert "has expired" in bench.warnings[-1]
        bench.plane.away = False
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default")
            old = certificate(secrets(await proxy.take())["default"])
            await bench.clock.turn(timedelta(minutes=2))
            new = certificate(secrets(await proxy.take())["default"])
        assert new.not_valid_after_utc > old.not_valid_after_utc + timedelta(hours=23)
        assert len(bench.recoveries) == 1
        assert bench.service.not_after == new.not_valid_after_utc
        await bench.clock.turn(timedelta(hours=14))
        assert len(bench.recoveries) == 1, "nobody was warned this time"

    run(tmp_path, test)


def test_a_new_bundle_reaches_the_proxy_without_a_new_certificate(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS, delta=False) as proxy:
            await proxy.subscribe(SECRET, "ROOTCA")
            await proxy.take()
            bench.plane.authority.rotate_root()
            bench.service.replace_bundle(bench.plane.authority.bundle())
            (any_,) = (await proxy.take()).resources
            bundle = Secret.FromString(any_.value).validation_context.trusted_ca.inline_bytes
            assert len(x509.load_pem_x509_certificates(bundle)) == 3
            assert len(bench.plane.requests) == 1

    run(tmp_path, test)


def test_what_the_proxy_refuses_is_told(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        async with stream(bench.path, service=SDS) as proxy:
            await proxy.subscribe(SECRET, "default")
            await proxy.answer(await proxy.receive(), error="no such curve")
            async with asyncio.timeout(LIMIT):
                while not bench.warnings:
                    await asyncio.sleep(0.001)
            assert bench.warnings == ["the proxy refuses the secret default: no such curve"]

    run(tmp_path, test)


def test_without_a_first_certificate_nothing_starts(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.plane.away = True
        with pytest.raises(WeftError, match="away"):
            await bench.service.start()
        assert not bench.path.exists()
        await bench.service.close()

    asyncio.run(main())


def test_a_certificate_for_another_key_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        other = Bench(tmp_path)
        await other.service.start()
        await other.service.close()
        foreign = other.plane.authority.sign(other.plane.requests[0], REVIEWS)

        async def sign(csr: str) -> Signed:
            return Signed(**foreign)

        service = SecretService(tmp_path / "other.sock", sign)
        with pytest.raises(WeftError, match="certified another key"):
            await service.start()
        await bench.service.close()

    asyncio.run(main())
