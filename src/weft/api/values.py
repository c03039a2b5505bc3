"""
The scalar types of Istio's API as JSON carries them: what is accepted, and what is said when a value is wrong.

Kubernetes checks a document against the CRD's schema: types are strict (`"3"` is no number, `1` no boolean), with one
leniency, that a number without fraction is an integer however it is written (`100.0`). Durations are Go's.
Called by pydantic for each field of the models; never reads anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
NANOSECONDS |= {"µs": 10**3, "μs": 10**3}  # the micro sign and the Greek letter, as in Go
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(r"[-+]?(?:0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)\Z")


def parse_duration(text: str) -> timedelta | None:
    """
    Return the duration that Go's `time.ParseDuration` reads in *text* (`7s`, `1.5h`, `1h30m`), None if it is none.

    What lies below a microsecond is cut off: that is what `timedelta` holds.
    """
    if not _WHOLE.match(text):
        return None
    nanoseconds = 0
    for number, unit in _PART.findall(text):
        whole, _, fraction = number.partition(".")
        nanoseconds += int(whole or 0) * NANOSECONDS[unit]
        if fraction:
            nanoseconds += int(fraction) * NANOSECONDS[unit] // 10 ** len(fraction)
    if nanoseconds >= 2**63:  # Go's Duration is an int64 of nanoseconds
        return None
    return timedelta(microseconds=nanoseconds // 1000) * (-1 if text.startswith("-") else 1)


def duration_text(duration: timedelta) -> str:
    """Return *duration* as proto JSON writes it, in seconds: `7s`, `0.25s`; `parse_duration` reads it back."""
    seconds, rest = divmod(abs(duration), timedelta(seconds=1))
    fraction = f".{rest.microseconds:06}".rstrip("0").rstrip(".")
    return f"{'-' if duration < timedelta(0) else ''}{seconds}{fraction}s"


def _duration(*, least: timedelta) -> Callable[[Any], timedelta]:
    def check(value: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        parsed = parse_duration(value) if isinstance(value, str) else None
        if parsed is None:
            raise PydanticCustomError("duration", "is no duration")
        if parsed < least:
            raise PydanticCustomError("short_duration", "is too short")
        return parsed

    return check


def integral(value: Any) -> Any:
    """Return a float without fraction as the integer that it is: the CRD's schema takes it for one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WRITTEN = PlainSerializer(duration_text, return_type=str, when_used="json")

Duration = Annotated[timedelta, PlainValidator(_duration(least=timedelta(milliseconds=1))), _WRITTEN]
"""At least 1 ms, as the CRDs demand of nearly every duration."""

DurationOrZero = Annotated[timedelta, PlainValidator(_duration(least=timedelta(0))), _WRITTEN]
"""The few durations where zero has a meaning of its own (`0s` switches an idle timeout off)."""

Int32 = Annotated[int, BeforeValidator(integral), Field(ge=-(2**31), le=2**31 - 1)]
UInt32 = Annotated[int, BeforeValidator(integral), Field(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, BeforeValidator(integral), Field(ge=0, le=2**64 - 1)]
