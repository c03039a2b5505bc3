"""Keys of every level are rotated while requests run through chained sidecars of both kinds, and none is lost."""

from __future__ import annotations

import asyncio
import os
import re
import time

import pytest

from tests.live.load import load
from tests.live.mesh import PATIENCE_SECONDS, LiveMesh, Member, live_mesh
from tests.live.test_modes import FEW_REQUESTS, chained

SECONDS = float(os.environ.get("WEFT_ROTATION_SECONDS", "20"))
"""How long it goes on; the long form, of ten minutes, sets it."""

LEAF_SECONDS = 10
"""A certificate lives this long: shorter, and a machine that stalls for seconds under load is what is tested."""


def connections(member: Member) -> int:
    """Return how many connections the workload's proxy has accepted from other proxies, ever."""
    if member.data_plane == "envoy":
        found = re.findall(
            rf"^listener\.{re.escape(member.registered.address)}_\d+\.downstream_cx_total: (\d+)$",
            member.admin("/stats"),
            re.MULTILINE,
        )
    else:
        found = re.findall(
            r"^istio_tcp_connections_opened_total\S*inbound\S* (\d+)", member.admin("/stats/prometheus"), re.MULTILINE
        )
    assert found
    return sum(map(int, found))


@pytest.mark.conformance
@pytest.mark.timeout(SECONDS + 180)
def test_rotation_under_load_loses_no_request_and_no_connection() -> None:
    """Leaves of a few seconds, a new intermediate or a new root every two; one service's connections are kept."""

    async def run() -> None:
        async with live_mesh([("left", "weft-proxy"), ("right", "envoy")], certificate_seconds=LEAF_SECONDS) as mesh:
            await mesh.apply(FEW_REQUESTS)
            first = await mesh.get("/v1/ca")
            async with load(chained(mesh), clients=4) as tally:
                while tally.answers < 200:
                    await asyncio.sleep(0.05)
                kept = await asyncio.to_thread(connections, mesh["right"])
                rotations = 0
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    what = "root" if rotations % 2 else "intermediate"
                    before = await mesh.get("/v1/ca")
                    after = await mesh.post("/v1/ca/rotate", {"what": what})
                    rotations += 1
                    assert after["intermediate"]["fingerprint"] != before["intermediate"]["fingerprint"]
                    assert (after["intermediate"]["root"] > before["intermediate"]["root"]) == (what == "root")
                    assert len(after["roots"]) >= 2
                    for member in mesh.members.values():
                        await renewed(member)
                    tally.assert_none_failed(mesh["left"].troubles() + mesh["right"].troubles())
                await first_roots_are_gone(mesh, first)
                answers = tally.answers
                while tally.answers < answers + 200 and not tally.failed:
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(connections, mesh["right"]) == kept, "a connection was not kept"
            tally.check()
            assert tally.opened == tally.clients, "a client's connection was not kept"
            assert not mesh["left"].notices
            assert not mesh["right"].notices
            print(f"{tally.answers} answers, {rotations} rotations, slowest {tally.slowest:.3f} s, not one failed")

    asyncio.run(run())


async def renewed(member: Member) -> None:
    """Wait until the member has another certificate than now."""
    before = member.secrets.certificate
    async with asyncio.timeout(PATIENCE_SECONDS):
        while member.secrets.certificate == before:
            await asyncio.sleep(0.02)


async def first_roots_are_gone(mesh: LiveMesh, first: dict[str, list[dict[str, str]]]) -> None:
    """Wait until nobody trusts the roots of the beginning, and the certificates of the present are of other ones."""
    old = {root["fingerprint"] for root in first["roots"]}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while old & {root["fingerprint"] for root in (await mesh.get("/v1/ca"))["roots"]}:
            await asyncio.sleep(0.2)
