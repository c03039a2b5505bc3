"""
`match[]` of a rule: what is decided here, for the proxy that asks, and what goes to it, to be decided for each request.

`http[].match[]` becomes a route's match: Istio's forms, condition by condition. Called by `routes.py`, and for rules of TCP
and TLS by `listeners.py` and `gateways.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.api.names import qualified_gateway
from weft.api.networking import HTTPMatchRequest, L4MatchAttributes, StringMatch, TLSMatchAttributes
from weft.model import ConfigObject
from weft.translate.fragments import Reading

EVERYTHING = "/"


def for_this_proxy(
    reading: Reading,
    item: ConfigObject,
    match: HTTPMatchRequest | L4MatchAttributes | TLSMatchAttributes,
    port: int,
    gateways: Sequence[str],
) -> bool:
    """Whether the conditions of *match* that do not depend on the request hold: port, gateway, caller."""
    if match.port and match.port != port:
        return False
    if match.gateways and not any(qualified_gateway(name, item.key.namespace) in gateways for name in match.gateways):
        return False
    if match.source_labels and not reading.carries(match.source_labels):
        return False
    return not match.source_namespace or match.source_namespace == reading.namespace


def apply(match: HTTPMatchRequest | None, message: Any) -> None:
    """
    Write *match* into *message* (a `RouteMatch`); None matches everything.

    Headers come in order of name with method, authority and scheme behind them; conditions are ANDed, so order has no
    meaning, but bytes should not change with the order in a document.
    """
    message.prefix = EVERYTHING
    if match is None:
        return
    _apply_path(match.uri, message)
    message.case_sensitive.value = not match.ignore_uri_case
    conditions = [(name, wanted, False) for name, wanted in match.headers.items()]
    conditions += [(name, unwanted, True) for name, unwanted in match.without_headers.items()]
    for name, value, inverted in sorted(conditions, key=lambda condition: (condition[0], condition[2])):
        _add_header(message, name, value, inverted=inverted)
    for name, wanted in ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme)):
        if wanted is not None:
            _add_header(message, name, wanted)
    for name in sorted(match.query_params):
        parameter = message.query_parameters.add(name=name)
        if _presence(match.query_params[name]):
            parameter.present_match = True
        else:
            fill_string(match.query_params[name], parameter.string_match)


def catches_all(message: Any) -> bool:
    """Whether *message* (a `RouteMatch`) matches every request, so that no route behind it is ever reached."""
    kind = message.WhichOneof("path_specifier")
    path = (kind == "prefix" and message.prefix == EVERYTHING) or (
        kind == "safe_regex" and message.safe_regex.regex == ".*"
    )
    return path and not message.headers and not message.query_parameters


def fill_string(match: StringMatch, message: Any) -> None:
    """Write *match* into *message* (a `StringMatcher`)."""
    if match.exact is not None:
        message.exact = match.exact
    elif match.prefix is not None:
        message.prefix = match.prefix
    elif match.regex is not None:
        message.safe_regex.regex = match.regex


def _apply_path(uri: StringMatch | None, message: Any) -> None:
    if uri is None:
        return
    if uri.exact is not None:
        message.path = uri.exact
    elif uri.prefix is not None:
        message.prefix = uri.prefix
    elif uri.regex is not None:
        message.safe_regex.regex = uri.regex


def _add_header(message: Any, name: str, match: StringMatch, *, inverted: bool = False) -> None:
    matcher = message.headers.add(name=name)
    if _presence(match):
        matcher.present_match = True
    else:
        fill_string(match, matcher.string_match)
        # A header that is not there is not the unwanted value: without this Envoy would fail the match.
        matcher.treat_missing_header_as_empty = inverted
    matcher.invert_match = inverted


def _presence(match: StringMatch) -> bool:
    """Whether only presence is asked for: nothing is said, or the regex is a lone `*`, which Istio reads so."""
    return match.regex == "*" or (match.exact is None and match.prefix is None and match.regex is None)
