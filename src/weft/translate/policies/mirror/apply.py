"""`http[].mirror` and `http[].mirrors` -> the route's mirror policies."""

from __future__ import annotations

from typing import Any

from weft.api.networking import HTTPRoute, Percent
from weft.translate.policies.fault.apply import millionths

ALL = Percent(value=100.0)


def apply(rule: HTTPRoute, clusters: tuple[str, ...], action: Any) -> None:
    """
    Add a mirror policy to *action* (a `RouteAction`) for each destination of `destinations`.

    Args:
        rule: The rule.
        clusters: The cluster of each of `destinations(rule)`.
        action: The message.
    """
    for share, cluster in zip(_shares(rule), clusters, strict=True):
        if share.value > 0:  # an explicit zero means no mirroring
            policy = action.request_mirror_policies.add(cluster=cluster, disable_shadow_host_suffix_append=True)
            policy.runtime_fraction.default_value.CopyFrom(millionths(share))
            policy.trace_sampled.value = False


def destinations(rule: HTTPRoute) -> tuple[Any, ...]:
    """Return the destinations that get copies, `mirror` first."""
    return (*((rule.mirror,) if rule.mirror else ()), *(item.destination for item in rule.mirrors))


def _shares(rule: HTTPRoute) -> list[Percent]:
    shares = []
    if rule.mirror:
        whole = ALL if rule.mirror_percent is None else Percent(value=float(rule.mirror_percent))
        shares.append(rule.mirror_percentage or whole)
    return [*shares, *(item.percentage or ALL for item in rule.mirrors)]
