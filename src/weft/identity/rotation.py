"""
When a certificate is renewed, how soon a failure is tried again, and when people are warned.

Pure: the time and the random numbers are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

HALF_LIFE = 0.5
"""Renewal is due here, so that half of the lifetime is left for a control plane that is away."""
JITTER = 0.1
"""Share of the lifetime over which renewals spread, half before and half after: agents that started together do not
return together."""

FIRST_RETRY = timedelta(seconds=1)
LONGEST_RETRY = timedelta(minutes=1)
SHORTEST_RETRY = timedelta(milliseconds=100)
"""Also for certificates that live for seconds."""

WARNINGS = (2 / 5, 1 / 5, 1 / 10, 1 / 30, 0.0)
"""Shares of the lifetime left at which people are told that renewal does not happen. The first lies after the half life and
its jitter, so that a short absence of the control plane alarms nobody, and long before the end."""


def renew_at(not_before: datetime, not_after: datetime, *, chance: float) -> datetime:
    """
    Return when to renew a certificate.

    Args:
        not_before: When the certificate's life begins.
        not_after: When it ends.
        chance: A random number, 0.0 to 1.0.

    Returns:
        Half-way through its life, `JITTER` about.
    """
    return not_before + (not_after - not_before) * (HALF_LIFE + JITTER * (chance - 0.5))


def retry_after(failures: int, remaining: timedelta, *, chance: float) -> timedelta:
    """
    Return how long to wait after a renewal has failed.

    Args:
        failures: In a row, from 1.
        remaining: Life left in the present certificate; may be negative.
        chance: A random number, 0.0 to 1.0.

    Returns:
        Twice as long each time, between half and the whole of the step; never more than `LONGEST_RETRY` nor, while
        there is life left, than a tenth of it.
    """
    step = min(FIRST_RETRY * (1 << min(failures - 1, 16)), LONGEST_RETRY)
    if remaining > timedelta():
        step = min(step, remaining / 10)
    return max(step * (0.5 + chance / 2), SHORTEST_RETRY)


@dataclass(slots=True)
class Countdown:
    """Warns about one certificate, once at each of `WARNINGS`."""

    not_before: datetime
    not_after: datetime
    told: int = 0

    def warning(self, now: datetime) -> str:
        """Return what to tell people now, or an empty text if there is nothing new."""
        share = (self.not_after - now) / (self.not_after - self.not_before)
        passed = sum(share <= threshold for threshold in WARNINGS)
        if passed <= self.told:
            return ""
        self.told = passed
        if passed == len(WARNINGS):
            return "the certificate has expired and could not be renewed: peers refuse this workload until it is"
        return f"the certificate expires in {_readable(self.not_after - now)} and could not be renewed yet"


def _readable(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"
