"""`http[].timeout` -> the route's timeouts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

UNLIMITED = timedelta(0)
"""Zero switches the timeout off. Absent would be Envoy's 15 s, which nobody asked for."""


def apply(timeout: timedelta | None, action: Any) -> None:
    """
    Set *timeout* on *action* (a `RouteAction`): from the end of the request to the end of the answer, all tries.

    What a gRPC client asks for in `grpc-timeout` is between it and the server; the client keeps to it by itself.
    """
    action.timeout.FromTimedelta(timeout or UNLIMITED)
