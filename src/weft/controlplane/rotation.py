"""
Rotation of the authority's keys: the order between the CA's files and what proxies trust and hold.

    trust      every proxy trusts the root that will sign; it was made at the rotation before, so this is nearly always so
    sign       the next standby is made, and that root signs a new intermediate
    publish    the new bundle goes to every agent, and each is asked to renew
    retire     once the last leaf of the old root has expired, nobody trusts that root any more

No leaf of a root is issued before every proxy trusts it. Two roots are trusted at all times. Called by the HTTP API and
by a task of the process; the certificates are `weft.identity.ca`, the conversation `agents.py`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from enum import StrEnum
from typing import Any

from weft.controlplane.agents import AgentServer
from weft.controlplane.events import Events
from weft.errors import WeftError
from weft.identity import Authority, AuthorityUnavailable

TRUST_SECONDS = 10.0
"""How long a rotation waits for proxies that do not trust the next root yet; then it is refused, and they are named."""

LOOK_SECONDS = 1.0
"""Between two looks for a root that can go."""


class NotTrusted(WeftError):
    """A rotation was refused, because a proxy does not trust the root that would sign."""


class What(StrEnum):
    """What is rotated: ROOT makes a new intermediate, too."""

    ROOT = "root"
    INTERMEDIATE = "intermediate"


class Rotation:
    """Rotates the keys of *authority*, one rotation at a time."""

    def __init__(self, authority: Authority, agents: AgentServer, events: Events) -> None:
        self._authority = authority
        self._agents = agents
        self._events = events
        self._turn = asyncio.Lock()

    def describe(self) -> dict[str, Any]:
        """Return the state of the authority; JSON values (docs/reference/interfaces.md, 4.3)."""
        standby = self._authority.standby
        waiting = sorted(name for _, name in self._agents.distrusting(standby))
        return {**self._authority.describe(), "standby_trusted": not waiting, "not_trusting": waiting}

    async def rotate(self, what: What) -> dict[str, Any]:
        """
        Sign by a new key from now on.

        Raises:
            NotTrusted: A proxy does not trust the next root. Nothing has changed.
            AuthorityUnavailable: The root's key is offline. Nothing has changed.
        """
        async with self._turn:
            if what is What.ROOT:
                await self._trusted(self._authority.standby)
                await asyncio.to_thread(self._authority.rotate_root, self._last_leaf())
                self._agents.publish_bundle()
            else:
                await asyncio.to_thread(self._authority.renew_intermediate)
            self._agents.renew()
            intermediate = self._authority.describe()["intermediate"]
            text = f"root {intermediate['root']} has signed a new intermediate {intermediate['fingerprint'][:16]}"
            self._events.emit("rotated", what=what, text=text)
            return self.describe()

    async def run(self) -> None:
        """Let roots go whose time is over, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self._turn:
                try:
                    retired = await asyncio.to_thread(self._authority.retire)
                except (AuthorityUnavailable, OSError) as error:
                    if told != str(error):
                        told = str(error)
                        self._events.emit("failed", text=f"An old root cannot be retired: {error}")
                    continue
                if retired:
                    self._agents.publish_bundle()
                    self._events.emit("retired", text="a root that signs no longer is not trusted any more")

    async def _trusted(self, root: str) -> None:
        """Wait until every proxy trusts *root*; one that had not heard of it is told."""
        if not self._agents.distrusting(root):
            return
        self._agents.publish_bundle()
        try:
            async with asyncio.timeout(TRUST_SECONDS):
                while self._agents.distrusting(root):
                    await self._agents.progress()
        except TimeoutError:
            names = ", ".join(sorted(name for _, name in self._agents.distrusting(root)))
            raise NotTrusted(
                f"Not rotated: {names} did not confirm within {TRUST_SECONDS:.0f} s that the next root is trusted there,"
                " and would refuse whoever has a certificate of it. `weft status` shows what is wrong; try again then."
            ) from None

    def _last_leaf(self) -> datetime | None:
        """Return when the last certificate expires that an agent is known to have."""
        return max((datetime.fromisoformat(end) for end in self._agents.certificates.values()), default=None)
