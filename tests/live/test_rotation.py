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

ROTATIONS = 4
"""At least: after two of the root, the signing one and the standby of the beginning can both go."""

LEAF_SECONDS = 20
"""A certificate lives this long, and is renewed at half of it: shorter, and what is tested is how long a machine stalls under load."""


def closed(member: Member) -> int:
    """Return how many of the connections that the workload's proxy has accepted are not open any more."""
    if member.data_plane == "envoy":
        stats = member.admin("/stats")
        place = rf"^listener\.{re.escape(member.registered.address)}_\d+\.downstream_cx_%s: (\d+)$"
    else:
        stats = member.admin("/stats/prometheus")
        place = r"^envoy_http_downstream_cx_%s (\d+)$"
    total, active = (re.findall(place % which, stats, re.MULTILINE) for which in ("total", "active"))
    assert len(total) == len(active) > 0, stats
    return sum(map(int, total)) - sum(map(int, active))


@pytest.mark.conformance
@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize(("left", "right"), [("weft-proxy", "envoy"), ("envoy", "weft-proxy")])
def test_rotation_under_load_loses_no_request_and_no_connection(left: str, right: str) -> None:
    """
    Leaves of a few seconds, a new intermediate or a new root every two.

    Connections to `left` are made anew all the time (`FEW_REQUESTS`), those to `right` are kept throughout.
    """

    async def run() -> None:
        async with live_mesh([("left", left), ("right", right)], certificate_seconds=LEAF_SECONDS) as mesh:
            await mesh.apply(FEW_REQUESTS)
            first = await mesh.get("/v1/ca")
            async with load(chained(mesh), clients=4) as tally:
                while tally.answers < 200:
                    await asyncio.sleep(0.05)
                before_rotations = await asyncio.to_thread(closed, mesh["right"])
                rotations = 0
                end = time.monotonic() + SECONDS
                while time.monotonic() < end or rotations < ROTATIONS:
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
                assert await asyncio.to_thread(closed, mesh["right"]) == before_rotations, "a connection was not kept"
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
