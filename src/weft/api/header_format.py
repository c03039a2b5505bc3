"""
Values of headers to set, in Envoy's format: `%VARIABLE%` and `%VARIABLE(argument)%` are replaced, `%%` is a percent sign.

Called by the rules of `headers`. Only variables that both data planes know are taken, or one of them would refuse the
whole route table for one value. Sources: Envoy's "HTTP header manipulation" and "Access logging, command operators", and
its parser, to which a single `%` is a mistake; weft-proxy's is `crates/core/src/format.rs`, and
tests/translate/test_weft_proxy_accepts.py holds this to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weft.api.names import PSEUDO_HEADERS, header_name_fault
from weft.api.nearest import nearest

PLAIN_VARIABLES = frozenset(
    (
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "CONNECTION_TERMINATION_DETAILS",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
        "DOWNSTREAM_LOCAL_ADDRESS",
        "DOWNSTREAM_LOCAL_URI_SAN",
        "DOWNSTREAM_PEER_URI_SAN",
        "DOWNSTREAM_REMOTE_ADDRESS",
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
        "DURATION",
        "FILTER_CHAIN_NAME",
        "GRPC_STATUS",
        "GRPC_STATUS_NUMBER",
        "HOSTNAME",
        "PROTOCOL",
        "REQUESTED_SERVER_NAME",
        "REQUEST_DURATION",
        "RESPONSE_CODE",
        "RESPONSE_CODE_DETAILS",
        "RESPONSE_DURATION",
        "RESPONSE_FLAGS",
        "ROUTE_NAME",
        "START_TIME",
        "UPSTREAM_CLUSTER",
        "UPSTREAM_HOST",
        "UPSTREAM_LOCAL_ADDRESS",
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
    )
)
"""Those that can stand without an argument."""

HEADER_VARIABLES = frozenset(("REQ", "RESP", "TRAILER"))
"""Their argument is a header's name, perhaps with another for where it is missing: `%REQ(X-A?X-B)%`, `%REQ(X-A):10%`."""

GRPC_STATUS_FORMATS = frozenset(("CAMEL_STRING", "SNAKE_STRING", "NUMBER"))

METADATA_NAMESPACES = frozenset(("envoy.filters.http.rbac", "envoy.filters.network.rbac"))
"""Nobody else makes metadata that weft-proxy could tell of."""

VARIABLES = PLAIN_VARIABLES | HEADER_VARIABLES | {"DYNAMIC_METADATA"}

PERCENT_SIGN = "`%%` is a percent sign."


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and what would be right."""

    message: str
    remedy: str = ""


def fault(value: str) -> Fault | None:
    """Return the first thing in *value* that is not taken, None if all is."""
    if not _HEADER_VALUE.match(value):
        return Fault("a header's value holds no control characters.")
    at = 0
    while (at := value.find("%", at)) >= 0:
        if value.startswith("%%", at):
            at += 2
            continue
        match = _VARIABLE.match(value, at)
        if match is None:
            return Fault(f"a single `%` begins a variable, `%REQ(x-name)%`, say, not as in `{value}`.", PERCENT_SIGN)
        if (found := _variable_fault(match)) is not None:
            return found
        at = match.end()
    return None


def _variable_fault(match: re.Match[str]) -> Fault | None:
    name, argument, length = match["name"], match["argument"], match["length"]
    if name not in VARIABLES:
        meant = nearest(name, VARIABLES)
        remedy = (
            f"Did you mean `%{meant}%`?" if meant else f"`%REQ(x-name)%` is a header of the request. {PERCENT_SIGN}"
        )
        return Fault(f"the proxies know no variable `{match[0]}`.", remedy)
    if name in HEADER_VARIABLES:
        return _headers_fault(match)
    if name == "DYNAMIC_METADATA":
        namespace, _, key = (argument or "").partition(":")
        if namespace in METADATA_NAMESPACES and key and ":" not in key:
            return None
        message = f"`{match[0]}` is no metadata that the proxies make."
        return Fault(message, f"Write `%DYNAMIC_METADATA({min(METADATA_NAMESPACES)}:shadow_engine_result)%`, say.")
    if length is not None:
        return Fault(f"`%{name}%` takes no length.", f"Leave `:{length}` out.")
    if argument is None:
        return None
    if name == "START_TIME":
        return _time_fault(match[0], argument)
    if name != "GRPC_STATUS":
        return Fault(f"`%{name}%` takes no argument.", f"Write `%{name}%`.")
    if argument in GRPC_STATUS_FORMATS:
        return None
    return Fault(f"`{match[0]}` is no form of a gRPC status.", f"Known here: {', '.join(sorted(GRPC_STATUS_FORMATS))}.")


def _time_fault(text: str, argument: str) -> Fault | None:
    for conversion in _TIME_CONVERSION.findall(argument):
        if not _KNOWN_CONVERSION.match(conversion):
            message = f"`{text}` has a conversion of times that weft-proxy does not know: `{conversion}`."
            return Fault(message, "Write `%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%`, say.")
    return None


def _headers_fault(match: re.Match[str]) -> Fault | None:
    name, argument = match["name"], match["argument"]
    if not argument:
        return Fault(f"`%{name}%` needs the name of a header.", f"Write `%{name}(x-name)%`.")
    headers = argument.split("?")
    if len(headers) > 2:
        return Fault(f"`{match[0]}` names more than two headers.", f"Write `%{name}(x-name?x-other)%`, say.")
    for header in headers:
        if header.lower() not in PSEUDO_HEADERS and (message := header_name_fault(header)) is not None:
            return Fault(message, f"Write `%{name}(x-name)%`.")
    return None


_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
"""RFC 9110 5.5 allows no control character but the tab."""

_TIME_CONVERSION = re.compile(r"%(?:[0-9]*f|.?)")
_KNOWN_CONVERSION = re.compile(r"%(?:[1-9]?f|[%aAbBcCdDeFhHIjklmMpPrRsStTuwxXyYzZ])\Z")
"""Those of strftime but for weeks, and Envoy's fractions of a second."""

_VARIABLE = re.compile(r"%(?P<name>[A-Z0-9_]+)(?:\((?P<argument>[^)]*)\))?(?::(?P<length>[0-9]{1,9}))?%")
"""As Envoy's `SubstitutionFormatParser` reads it."""
