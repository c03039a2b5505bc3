"""What happened, for whoever listens: `GET /v1/events`, and the last few for `weft status`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

KEPT_EVENTS = 500
"""For a listener that asks for what was before it came."""

QUEUED_EVENTS = 10_000
"""For one slow listener; then it is dropped, as it would see a gap anyway."""

Event = dict[str, Any]


class Events:
    """Broadcasts events `{"type", "time", ...}` to any number of listeners on this loop; never waits for one."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._listeners: set[asyncio.Queue[Event | None]] = set()

    def emit(self, kind: str, **facts: Any) -> None:
        """Tell every listener. *facts* must be JSON values; None is left out."""
        event: Event = {"type": kind, "time": self._now(), **{k: v for k, v in facts.items() if v is not None}}
        self._kept.append(event)
        for queue in [*self._listeners]:
            if queue.qsize() >= QUEUED_EVENTS:
                self._listeners.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    async def listen(self, *, replay: int = 0) -> AsyncIterator[Event]:
        """Yield the last *replay* events, then each new one until `close`."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        for event in [*self._kept][-replay:] if replay else ():
            queue.put_nowait(event)
        self._listeners.add(queue)
        try:
            while (item := await queue.get()) is not None:
                yield item
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """End every listener's stream."""
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()
