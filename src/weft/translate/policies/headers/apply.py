"""`headers` of a rule or of a destination -> header edits of the route or of the weighted cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.core.v3 import base_pb2

from weft.api.networking import HeaderOperations, Headers

_ADD = base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
_SET = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def apply(headers: Headers | None, target: Any) -> str:
    """
    Append the edits of *headers* to *target* (a `Route` or a `ClusterWeight`).

    Returns:
        The authority that a `set` or `add` of `host` or `:authority` asks for, or "". Pseudo headers are edited in
        no other way, as in Istio.
    """
    if headers is None:
        return ""
    request = headers.request or HeaderOperations()
    response = headers.response or HeaderOperations()
    _edit(request, target.request_headers_to_add, target.request_headers_to_remove)
    _edit(response, target.response_headers_to_add, target.response_headers_to_remove)
    return authority(headers)


def authority(headers: Headers | None) -> str:
    """Return the authority that *headers* ask for, as `apply` does."""
    request = (headers and headers.request) or HeaderOperations()
    return _authority(request.set) or _authority(request.add)


def _edit(operations: HeaderOperations, to_add: Any, to_remove: Any) -> None:
    for values, action in ((operations.set, _SET), (operations.add, _ADD)):
        for name in sorted(values):
            if not _internal(name):
                option = to_add.add(append_action=action)
                option.header.key, option.header.value = name, values[name]
    to_remove.extend(name for name in operations.remove if not _internal(name))


def _internal(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"


def _authority(values: Mapping[str, str]) -> str:
    return next((values[name] for name in sorted(values) if name.lower() in ("host", ":authority")), "")
