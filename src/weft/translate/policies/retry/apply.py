"""`http[].retries` -> the route's retry policy."""

from __future__ import annotations

from typing import Any

from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2

from weft.api.networking import HTTPRetry

DEFAULT_RETRIES = 2
DEFAULT_CONDITIONS = "connect-failure,refused-stream,reset-before-request"
"""
Failures of which the destination's program has certainly seen nothing.

Istio's default has `unavailable` and `cancelled` beside these, which a program answers that may have acted already.
"""

OTHER_ENDPOINT_ATTEMPTS = 5
"""How often another endpoint is drawn when the one drawn was tried before; after that it is taken all the same."""

PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
STATUS_CODES = "retriable-status-codes"


def apply(retries: HTTPRetry | None, action: Any, *, sticky: bool = False) -> None:
    """
    Set the retry policy of *action* (a `RouteAction`).

    Args:
        retries: None stands for the default policy; zero attempts for no retries at all.
        action: The message.
        sticky: The destination is chosen by consistent hash, so a retry goes to the same endpoint again.
    """
    if retries is not None and retries.attempts <= 0:
        return
    policy = action.retry_policy
    policy.num_retries.value = DEFAULT_RETRIES
    policy.retry_on = DEFAULT_CONDITIONS
    policy.host_selection_retry_max_attempts = OTHER_ENDPOINT_ATTEMPTS
    avoid_previous = not sticky
    if retries is not None:
        policy.num_retries.value = retries.attempts
        if retries.retry_on:
            policy.retry_on, codes = _conditions(retries.retry_on)
            policy.retriable_status_codes.extend(codes)
        if retries.per_try_timeout is not None:
            policy.per_try_timeout.FromTimedelta(retries.per_try_timeout)
        if retries.backoff is not None:
            policy.retry_back_off.base_interval.FromTimedelta(retries.backoff)
        if retries.retry_ignore_previous_hosts is not None:
            avoid_previous = retries.retry_ignore_previous_hosts
    if avoid_previous:
        predicate = policy.retry_host_predicate.add(name=PREVIOUS_HOSTS)
        predicate.typed_config.Pack(previous_hosts_pb2.PreviousHostsPredicate())


def _conditions(text: str) -> tuple[str, list[int]]:
    """Take the status codes out of a list of conditions (`gateway-error,503`); with any, they are a condition."""
    conditions, codes = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.isascii() and part.isdigit():
            codes.append(int(part))
        else:
            conditions.append(part)
    if codes and STATUS_CODES not in conditions:
        conditions.append(STATUS_CODES)
    return ",".join(conditions), codes
