"""`http[].fault` -> the fault filter's configuration on the route."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.type.v3 import percent_pb2

from weft.api.networking import HTTPFaultInjection, Percent
from weft.translate.resource import serialise

FILTER = "envoy.filters.http.fault"


def apply(fault: HTTPFaultInjection | None, route: Any) -> None:
    """
    Set *fault* on *route* (a `Route`); delay and abort are drawn independently of each other.

    An absent percentage means that nothing is injected. Source: Istio's TranslateFault, which leaves Envoy's zero.
    """
    message = fault_pb2.HTTPFault()
    if fault and fault.delay and fault.delay.fixed_delay is not None:
        delay = fault.delay
        message.delay.fixed_delay.FromTimedelta(delay.fixed_delay)
        if delay.percentage is None:
            message.delay.percentage.numerator = delay.percent or 0  # the deprecated whole number, in hundredths
        else:
            message.delay.percentage.CopyFrom(millionths(delay.percentage))
    if fault and fault.abort and fault.abort.http_status is not None:
        message.abort.http_status = fault.abort.http_status
        message.abort.percentage.CopyFrom(millionths(fault.abort.percentage or Percent()))
    if message.HasField("delay") or message.HasField("abort"):
        packed = route.typed_per_filter_config[FILTER]
        packed.type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
        packed.value = serialise(message)


def millionths(share: Percent) -> Any:
    """Return *share* as Envoy's fraction of a million: percent with four decimals, the rest cut off, as in Istio."""
    return percent_pb2.FractionalPercent(
        numerator=int(share.value * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )
