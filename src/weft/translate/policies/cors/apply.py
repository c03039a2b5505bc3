"""`http[].corsPolicy` -> the CORS filter's configuration on the route."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.cors.v3 import cors_pb2

from weft.api.networking import CorsPolicy, StringMatch
from weft.translate.matching import fill_string
from weft.translate.resource import serialise

FILTER = "envoy.filters.http.cors"


def apply(policy: CorsPolicy | None, route: Any) -> None:
    """Set *policy* on *route* (a `Route`)."""
    if policy is None:
        return
    message = cors_pb2.CorsPolicy()
    for origin in policy.allow_origins or tuple(StringMatch(exact=origin) for origin in policy.allow_origin):
        fill_string(origin, message.allow_origin_string_match.add())
    message.filter_enabled.default_value.numerator = 100
    message.forward_not_matching_preflights.value = policy.unmatched_preflights != "IGNORE"
    message.allow_methods = ",".join(policy.allow_methods)
    message.allow_headers = ",".join(policy.allow_headers)
    message.expose_headers = ",".join(policy.expose_headers)
    if policy.max_age is not None:
        message.max_age = str(int(policy.max_age.total_seconds()))
    if policy.allow_credentials is not None:
        message.allow_credentials.value = policy.allow_credentials
    packed = route.typed_per_filter_config[FILTER]
    packed.type_url = f"type.googleapis.com/{message.DESCRIPTOR.full_name}"
    packed.value = serialise(message)
