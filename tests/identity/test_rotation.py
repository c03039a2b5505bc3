"""The schedule of renewals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.identity import Countdown, renew_at, retry_after

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(("chance", "hours"), [(0.0, 10.8), (0.5, 12.0), (1.0, 13.2)])
def test_renewal_is_due_half_way(chance: float, hours: float) -> None:
    assert renew_at(BEGIN, BEGIN + DAY, chance=chance) == BEGIN + timedelta(hours=hours)


@given(st.integers(1, 10_000), st.timedeltas(-DAY, DAY), st.floats(0, 1))
def test_retries_are_neither_hasty_nor_late(failures: int, remaining: timedelta, chance: float) -> None:
    pause = retry_after(failures, remaining, chance=chance)
    assert timedelta(milliseconds=100) <= pause <= timedelta(minutes=1)
    if remaining > timedelta(seconds=1):
        assert pause <= remaining / 10


def test_retries_slow_down() -> None:
    pauses = [retry_after(failures, DAY, chance=1.0).total_seconds() for failures in range(1, 9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert retry_after(1, DAY, chance=0.0) == timedelta(seconds=0.5)


def test_a_countdown_speaks_once_at_each_threshold() -> None:
    countdown = Countdown(BEGIN, BEGIN + 30 * DAY)
    told = [text for hour in range(24 * 32) if (text := countdown.warning(BEGIN + timedelta(hours=hour)))]
    assert told == [
        "the certificate expires in 12 days and could not be renewed yet",
        "the certificate expires in 6 days and could not be renewed yet",
        "the certificate expires in 3 days and could not be renewed yet",
        "the certificate expires in 24 hours and could not be renewed yet",
        "the certificate has expired and could not be renewed: peers refuse this workload until it is",
    ]


def test_a_countdown_that_wakes_late_speaks_once() -> None:
    countdown = Countdown(BEGIN, BEGIN + DAY)
    assert "expires in 89 minutes" in countdown.warning(BEGIN + timedelta(hours=22, minutes=31))
    assert countdown.warning(BEGIN + timedelta(hours=22, minutes=32)) == ""
