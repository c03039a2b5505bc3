"""
Telling about ports of the host's loopback that were probably meant: a program tried them on its own, where nobody
listens (nftables remembers which, and how often), and on the host somebody does.

The agent says so of its program; `weft exec` and `weft shell` of the command that somebody typed (`Tries`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from weft.agent import edge, nftables
from weft.agent.netlink import NETLINK_NETFILTER, Netlink
from weft.errors import WeftError


def hint(port: int, remedy: str) -> str:
    """Return what to do about a call of *port*: say so with *remedy*."""
    return (
        f"A call of localhost:{port} was refused: nothing listens there inside the program's own network, but something"
        f" does on the host. If that was meant, say so with {remedy}."
    )


class Tries:
    """
    Ports that are tried while a command runs in a program's namespaces.

    Made outside of them, from where the edge can be reached; `begin` is called inside, before the command is started,
    and `hints` when it has ended.
    """

    def __init__(self, edge_socket: Path) -> None:
        # The mesh's directory is hidden in there; a descriptor still leads to it.
        self._home, self._edge = os.open(edge_socket.parent, os.O_PATH | os.O_DIRECTORY), edge_socket.name
        self._rules: Netlink | None = None
        self._before: Mapping[int, int] = {}

    def begin(self) -> None:
        """Note what was tried before, in the calling process's network namespace."""
        self._rules = Netlink(NETLINK_NETFILTER)
        self._before = nftables.refused_loopback(self._rules)

    def hints(self) -> list[str]:
        """Return a sentence for each port that was tried since `begin` and is the host's. The working directory changes."""
        if self._rules is None:
            return []
        now = nftables.refused_loopback(self._rules)
        tried = [port for port, count in sorted(now.items()) if count > self._before.get(port, 0)]
        if not tried:
            return []
        os.fchdir(self._home)  # a path would be looked up among what the program sees
        return asyncio.run(self._of_host(tried))

    async def _of_host(self, ports: list[int]) -> list[str]:
        found = []
        for port in ports:
            try:
                listening = await edge.host_listening(Path(self._edge), port)
            except (WeftError, OSError, TimeoutError):
                break  # the mesh is ending
            if listening:
                found.append(hint(port, f"`host_ports: [{port}]` in weft.yaml or `weft run --host-port {port}`"))
        return found
