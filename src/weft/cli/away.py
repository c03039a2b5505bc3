"""What `weft status` can say while the control plane does not answer: how long each certificate lasts still."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weft.cli.output import columns, duration

CANNOT = (
    "The control plane does not answer. Proxies go on by what they know, and open connections stay;"
    " what cannot be done meanwhile: to change anything, to start programs, to renew certificates."
)


def certificates(runtime: Path) -> list[dict[str, Any]]:
    """
    Return what the agents of a mesh have written down of their certificates, the first to expire first.

    Args:
        runtime: The mesh's runtime directory.

    Returns:
        `{"workload", "certificate": {"not_after", "remaining_seconds"}}` for each.
    """
    now, found = datetime.now(UTC), []
    for path in (runtime / "workloads").glob("*/certificate.json"):
        try:
            not_after = datetime.fromisoformat(json.loads(path.read_text("ascii"))["not_after"])
        except (OSError, ValueError, KeyError):
            continue  # just being written, or just gone
        remaining = (not_after - now).total_seconds()
        certificate = {"not_after": not_after.isoformat(), "remaining_seconds": remaining}
        found.append({"workload": path.parent.name, "certificate": certificate})
    return sorted(found, key=lambda item: (item["certificate"]["not_after"], item["workload"]))


def text(found: Sequence[dict[str, Any]], log: Path, hanging: int = 0) -> str:
    """
    Return the countdown for people.

    Args:
        found: As `certificates` returns it.
        log: Where the control plane writes.
        hanging: Its process if that is there, else 0.
    """
    rows = []
    for item in found:
        left = item["certificate"]["remaining_seconds"]
        rows.append([item["workload"], "EXPIRED" if left <= 0 else duration(left)])
    parts = [CANNOT, columns(["proxy", "certificate"], rows, empty="No program runs.")]
    if found:
        first = found[0]
        left = first["certificate"]["remaining_seconds"]
        when = f"expires in {duration(left)}" if left > 0 else "has expired"
        parts.append(
            f"The first certificate, of {first['workload']}, {when}; new connections with an expired one are refused."
        )
    if hanging:
        parts.append(
            f"Its process is there: `kill -9 {hanging}`, and `weft up` starts another. Nothing that was applied is lost."
        )
    parts.append(f"`weft up` starts a control plane that has died again by itself. What keeps it: {log}")
    return "\n\n".join(parts)
