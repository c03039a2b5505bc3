"""What a proxy refuses by itself because of who asks, as access records tell of it."""

from __future__ import annotations


def is_denial(details: str) -> bool:
    """
    Whether these details, of an answer or of a connection's end, name rules of access (RBAC) or explicit mode's checks of callers.

    No response flag says so, in Envoy either. The record store counts these among the failures (`crates/xds`, `is_denial`).
    """
    return details.startswith(("rbac_access_denied", "caller_"))
