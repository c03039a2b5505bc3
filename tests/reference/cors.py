"""
`corsPolicy`, from Istio's reference ("CorsPolicy") and the Fetch standard ("CORS protocol"), whose terms it uses.

Written from the documentation alone, as the rest of the reference is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.reference.evaluate import Outcome, Request, seconds, value_matches

ALLOW = "access-control-allow-"


def apply(request: Request, policy: Mapping[str, Any] | None, outcome: Outcome) -> Outcome:
    """What *outcome* becomes where a rule that forwards has *policy*."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    origin = headers.get("origin")
    if policy is None or not origin:
        return outcome
    # "An origin is allowed if any of the string matchers match." Of the deprecated list each entry is exact.
    wanted = policy.get("allowOrigins") or [{"exact": exact} for exact in policy.get("allowOrigin", [])]
    allowed = any(matcher.get("exact") == "*" or value_matches(origin, matcher) for matcher in wanted)
    is_preflight = request.method == "OPTIONS" and bool(headers.get("access-control-request-method"))
    answered = {}
    if allowed:
        # "... then the outgoing Access-Control-Allow-Origin would be set to the origin as provided by the client."
        answered[f"{ALLOW}origin"] = origin
        if policy.get("exposeHeaders"):
            answered["access-control-expose-headers"] = ",".join(policy["exposeHeaders"])
        if policy.get("allowCredentials"):
            answered[f"{ALLOW}credentials"] = "true"
    if not is_preflight:
        return replace(outcome, response_headers={**outcome.response_headers, **answered})
    # "Preflight requests not matching the configured allowed origin will be forwarded to the upstream", unless IGNORE.
    if not allowed and policy.get("unmatchedPreflights") != "IGNORE":
        return outcome
    if policy.get("allowMethods"):
        answered[f"{ALLOW}methods"] = ",".join(policy["allowMethods"])
    if policy.get("allowHeaders"):
        answered[f"{ALLOW}headers"] = ",".join(policy["allowHeaders"])
    if policy.get("maxAge"):
        answered["access-control-max-age"] = str(int(seconds(policy["maxAge"])))
    if policy.get("allowCredentials"):
        answered[f"{ALLOW}credentials"] = "true"
    removed = frozenset() if allowed else frozenset({f"{ALLOW}origin"})
    return Outcome(
        "respond", status=200, response_headers=answered, removed_response_headers=removed, rule=f"{outcome.rule} CORS"
    )
