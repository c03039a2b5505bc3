"""
A host that is no service of the mesh: what may have been meant, and where names come from, for people. Pure.

Called for a call that somebody thinks of (`why.py`) and for one that came to nothing (`happened.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.api.nearest import nearest

Json = Mapping[str, Any]

MESH_DOMAIN = ".svc.cluster.local"
"""Names under it are the mesh's alone: its DNS server asks nobody else for them (`weft.agent.dns`)."""

LISTED = 12
"""Services that are named where none is near."""

SOURCE = (
    "The mesh's names are those of its services, which weft.yaml (`programs`) or `weft run --name` gives them; any other"
    " name is looked up as it is outside of the mesh."
)


def names_of(service: Json, namespace: str) -> set[str]:
    """Return the names by which programs of *namespace* may call *service* (an item of `GET /v1/services`)."""
    name, its = service["name"], service["namespace"]
    return {service["hostname"], f"{name}.{its}", f"{name}.{its}.svc"} | ({name} if its == namespace else set[str]())


def is_only_the_meshs(host: str) -> bool:
    """Whether *host* can be a name of the mesh only."""
    return host.lower().rstrip(".").endswith(MESH_DOMAIN)


def remedy(host: str, namespace: str, services: Sequence[Json]) -> str:
    """
    Return what to do for a program of *namespace* that called *host*; empty where nothing says that a service was meant.

    Args:
        host: Without a port.
        services: What `GET /v1/services` says.
    """
    meant = _meant(host.lower().rstrip("."), namespace, services)
    return f"{meant} {SOURCE}" if meant else ""


def _meant(host: str, namespace: str, services: Sequence[Json]) -> str:
    known = {form for service in services for form in names_of(service, namespace)}
    if host in known:
        return f"{host} is a service of the mesh by now, and was not when it was called: call it again."
    for service in services:
        name, elsewhere = service["name"], f"{service['name']}.{service['namespace']}"
        if host == name:
            return f"The service {name} is in another namespace than the program: call it `{elsewhere}`."
        if host in (item["workload"] for item in service["workloads"]):
            return f"{host} is a workload, and what is called is its service: `{name if name in known else elsewhere}`."
    if (found := _nearest(host, known)) is not None:
        return f"Did you mean `{found}`?"
    if "." in host and not is_only_the_meshs(host):
        return ""
    there = sorted(service["name"] for service in services if service["namespace"] == namespace)
    more = ", ..." if len(there) > LISTED else ""
    return f"The services are: {', '.join(there[:LISTED])}{more}." if there else "There is no service yet."


def _nearest(host: str, known: set[str]) -> str | None:
    """Return the name that *host* is a slip of: in its first label, or in `SERVICE.NAMESPACE` as a whole."""
    first, _, rest = host.partition(".")
    same = {form.partition(".")[0]: form for form in sorted(known) if form.partition(".")[2] == rest}
    if (found := nearest(first, same)) is not None:
        return same[found]
    return nearest(host, sorted(form for form in known if form.count(".") == 1)) if host.count(".") == 1 else None
