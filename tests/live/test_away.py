"""A control plane that is away: announced long before anything expires; what has expired is refused with words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from tests.live.load import Connection, load
from tests.live.mesh import PATIENCE_SECONDS, LiveMesh, Member, live_mesh, until
from tests.live.test_modes import FEW_REQUESTS, chained

LEAF_SECONDS = 60
"""So that the time from the first warning to the end, two fifths of it, is enough to look around on a busy machine, too."""

AT_ONCE = 8

ONE_REQUEST = FEW_REQUESTS + "---\n" + FEW_REQUESTS.replace("left", "right")
"""Connections between sidecars do not last, so that each of the two shakes hands all the time."""


def remaining(member: Member) -> float:
    """Return how long the member's certificate lasts still, seconds."""
    assert member.secrets.not_after is not None
    return (member.secrets.not_after - datetime.now(UTC)).total_seconds()


def weft_status(mesh: LiveMesh, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **mesh.mesh.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "weft.cli.main", "status", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.conformance
@pytest.mark.once
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_control_plane_that_is_away_is_announced_and_nothing_fails_before_the_end(how: str) -> None:
    """Dead or hanging: agents warn while there is life left, traffic goes on; then it is refused, and heals at once."""

    async def run() -> None:
        async with live_mesh([("left", "weft-proxy"), ("right", "envoy")], certificate_seconds=LEAF_SECONDS) as mesh:
            await mesh.apply(ONE_REQUEST)
            members = list(mesh.members.values())
            process = mesh.mesh.process
            assert process is not None
            async with load(chained(mesh), clients=2) as tally:
                if how == "killed":
                    await asyncio.to_thread(mesh.mesh.kill)
                else:
                    process.send_signal(signal.SIGSTOP)
                await until(lambda: all(member.notices for member in members), what="a warning of each agent")
                for member in members:
                    assert "could not be renewed yet" in member.notices[0]
                    assert "control-plane.log" in member.notices[0]
                    assert remaining(member) > LEAF_SECONDS / 5, "that is not long before"
                if how == "hangs":  # the lock of the mesh is its process's here, so a dead one is no mesh
                    shown = await asyncio.to_thread(weft_status, mesh)
                    assert "The control plane does not answer." in shown.stdout
                    assert "The first certificate, of " in shown.stdout
                    assert shown.returncode == 1
                assert min(map(remaining, members)) > 1, "the machine is too slow for this test"
                tally.check()
            # In its last second OpenSSL refuses a certificate that rustls still takes.
            await until(lambda: max(map(remaining, members)) < -1.5, what="the end of the certificates")
            for caller, callee in (("left", "right"), ("right", "left")):
                await refused_for_its_age(mesh, caller, callee)
            await until(lambda: all("has expired" in member.notices[-1] for member in members), what="the last warning")
            if how == "hangs":
                listed = json.loads((await asyncio.to_thread(weft_status, mesh, "-o", "json")).stdout)
                assert {item["workload"] for item in listed} == {"left-v1-0", "right-v1-0"}
                assert all(item["certificate"]["remaining_seconds"] < 0 for item in listed)

            if how == "killed":
                await asyncio.to_thread(mesh.mesh.start)
            else:
                process.send_signal(signal.SIGCONT)
            for member in members:
                for service, port in mesh.ports.items():
                    await member.reaches(service, port)
            assert min(map(remaining, members)) > 0

    asyncio.run(run())


async def refused_for_its_age(mesh: LiveMesh, caller: str, callee: str) -> None:
    """Wait until requests are answered 503 and the caller's proxy records that a certificate has expired."""
    port = mesh.ports[callee]

    def recorded() -> bool:
        reasons = [json.loads(line)["upstream_transport_failure_reason"] or "" for line in mesh[caller].troubles()]
        return any("expired" in reason.lower() for reason in reasons)

    async def asked() -> int:
        connection = Connection(mesh[caller].outbound[port], f"{callee}:{port}")
        status, _, _ = await connection.ask("/echo", b"")
        connection.close()
        return status

    # Connections that were made in time and not used, of which Envoy may have many, are used up first, one by each request.
    async with asyncio.timeout(PATIENCE_SECONDS):
        while 503 not in await asyncio.gather(*(asked() for _ in range(AT_ONCE))):
            await asyncio.sleep(0.05)
    await until(recorded, what=f"an expired certificate in {caller}'s records")
