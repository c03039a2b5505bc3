"""What loads a proxy, one module for each tool. Each checks every answer and raises if one was wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What the client saw: answers, wall seconds, latency percentiles in microseconds (0: not told)."""

    requests: int
    seconds: float
    p50_us: float = 0
    p99_us: float = 0


class WrongAnswersError(RuntimeError):
    """A run in which an answer had the wrong status or content; its figure means nothing."""
