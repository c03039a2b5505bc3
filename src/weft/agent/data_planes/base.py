"""What `weft.agent` asks of every data plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weft.errors import WeftError

DRAIN_SECONDS = 0.5
"""How long open requests may take once the program has stopped; the whole mesh must be gone within two seconds."""

RETIRE_POLL_SECONDS = 0.1
"""Between looks at what a process that is replaced has open: it has seconds or minutes."""


class ProxyMissing(WeftError):
    """The executable of a data plane is not on this machine."""

    exit_code = 7


class ProxyTooOld(WeftError):
    """The executable of a data plane is there, and lacks something without which it cannot stand beside a program."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Executable:
    """`version` is empty where it is weft's own."""

    path: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """
    Where a proxy is to stand.

    Attributes:
        workload: Beside whom; `address` is its own in the mesh's network.
        node: `id`, `cluster`, `metadata`, as the control plane gave them at registration.
        bootstrap: File for what `DataPlane.bootstrap` returns.
        admin, xds, sds, records, edge: Unix sockets: its own to answer questions on, the control plane's, its agent's,
            the control plane's for access records, the edge's.
        state: Directory for its last good configuration.
        concurrency: Worker threads.
    """

    workload: str
    address: str
    node: Mapping[str, Any]
    bootstrap: Path
    admin: Path
    xds: Path
    sds: Path
    records: Path
    edge: Path
    state: Path
    concurrency: int = 1


class DataPlane(Protocol):
    """
    One kind of proxy as a process.

    Attributes:
        relayed: Whether it needs the agent to carry its bytes to and from the host (`weft.agent.relay`), and to keep its
            configuration (`weft.agent.discovery`) and its listening sockets in the way of `weft.agent.hot_restart`.
    """

    relayed: bool

    def find(self) -> Executable:
        """
        Return what to execute.

        Raises:
            ProxyMissing: There is none; the message names the remedy.
            ProxyTooOld: It is too old.
        """

    def bootstrap(self, place: Place) -> dict[str, Any]:
        """Return the content of the bootstrap file."""

    def command(self, executable: str, place: Place) -> list[str]:
        """Return program and arguments."""

    async def drain(self, pid: int, admin: Path) -> None:
        """
        Have process *pid* finish its requests, `DRAIN_SECONDS` at most, and then exit.

        Returns when the process has been told to; it may still run.
        """

    async def retire(self, pid: int, admin: Path, patience: float) -> None:
        """
        Have process *pid*, whose successor serves, accept nothing more, finish what is open, and then exit.

        Its connections end as their clients have been told with an answer, or by themselves; what is open after
        *patience* seconds is cut off. Returns when the process has been told to exit; it may still run.
        """
