"""Which workloads a name on the command line means: one home, so that it means the same to every command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weft.cli.main import unknown
from weft.errors import NotFound

if TYPE_CHECKING:
    from weft.cli.client import Client


def told(client: Client) -> dict[str, str]:
    """Return the service of each workload of the mesh, as the control plane knows it."""
    return {item["workload"]: item["service"] for item in client.get("/v1/workloads")}


def meant(name: str, services: Mapping[str, str]) -> list[str]:
    """
    Return the workloads that *name* means: itself; else all of the service of that name; else the instances of the
    program that has that name in weft.yaml (`reviews-v1` for `reviews-v1-0` and `reviews-v1-1`).

    Args:
        services: The service of each workload.
    """
    if name in services:
        return [name]
    of_service = [workload for workload, service in services.items() if service == name]
    return of_service or [workload for workload in services if re.sub(r"-\d+\Z", "", workload) == name]


def all_meant(names: Sequence[str], services: Mapping[str, str]) -> list[str]:
    """Return the workloads of *services* that *names* mean, see `meant`; all if there are none. A name that means none adds none."""
    wanted = {workload for name in names for workload in meant(name, services)}
    return [workload for workload in services if not names or workload in wanted]


def resolve(name: str, services: Mapping[str, str], what: str) -> str:
    """
    Return the one workload that *name* means, see `meant`; *what* is what there is none of else.

    Raises:
        NotFound: None or several.
    """
    found = meant(name, services)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"{name!r} means several programs: {', '.join(found)}. Name one.")
    raise NotFound(unknown(what, name, list(services)))
