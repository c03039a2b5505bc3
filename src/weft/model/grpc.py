"""
The status of a gRPC answer: what carries it, its names, and which of them are a server's failure.

A proxy is told by it what to record (`weft.translate`), and records are read by it (`weft.telemetry`, `weft logs`).
"""

from __future__ import annotations

STATUS = "grpc-status"
"""Trailer of a gRPC answer, or header of one that is all trailers."""

STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""Their names, by number."""

FAILURES = frozenset({2, 4, 8, 13, 14, 15})
"""Those that are a server's doing, as 500 and more in HTTP; `RecordStore` finds the same."""


def status_text(status: int) -> str:
    """Return a status with its name: `grpc-status 14 (UNAVAILABLE)`."""
    name = f" ({STATUSES[status]})" if 0 <= status < len(STATUSES) else ""
    return f"{STATUS} {status}{name}"
