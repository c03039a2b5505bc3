"""weft-proxy as a process: crates/proxy; its arguments are in docs/reference/interfaces.md, 4.5."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from weft.agent import admin as questions
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes.base import DRAIN_SECONDS, RETIRE_POLL_SECONDS, Executable, Place, ProxyMissing

EXECUTABLE = "weft-proxy"

OPEN_CONNECTIONS = "envoy_listener_downstream_cx_active"
"""The metric that counts them: those of TCP, too, and those of which nobody knows yet what they will be."""


class WeftProxy:
    """See `base.DataPlane`. The edge hands it sockets of the host, so nothing is relayed."""

    relayed = False

    def find(self) -> Executable:
        """Find it by $WEFT_PROXY, else the one installed with this Python, else in PATH."""
        if named := os.environ.get("WEFT_PROXY"):
            return Executable(named)
        beside = Path(sys.executable).parent / EXECUTABLE
        if beside.is_file():
            return Executable(str(beside))
        if found := shutil.which(EXECUTABLE):
            return Executable(found)
        raise ProxyMissing(
            f"There is no {EXECUTABLE} beside {sys.executable}, nor on PATH. Install the weft wheel, or set WEFT_PROXY."
        )

    def bootstrap(self, place: Place) -> dict[str, Any]:
        return bootstrap(
            place.node,
            admin=place.admin,
            xds=place.xds,
            sds=place.sds,
            records=place.records,
            source=place.address,
        )

    def command(self, executable: str, place: Place) -> list[str]:
        command = [executable, "-c", str(place.bootstrap), "--concurrency", str(place.concurrency)]
        command += ["--drain-time", str(DRAIN_SECONDS)]
        command += ["--state-dir", str(place.state), "--edge-socket", str(place.edge)]
        return [*command, "--workload", place.workload]

    async def drain(self, pid: int, admin: Path) -> None:
        """SIGTERM says all: it drains by itself."""
        del admin
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    async def retire(self, pid: int, admin: Path, patience: float) -> None:
        calls = ["/drain_listeners?graceful"]
        await questions.finish(admin, calls, _open_connections, patience=patience, poll=RETIRE_POLL_SECONDS)
        await self.drain(pid, admin)


async def _open_connections(admin: Path) -> int:
    return sum((await questions.stats(admin, f"^{OPEN_CONNECTIONS}$")).values())
