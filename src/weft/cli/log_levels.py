"""
`weft proxy-config log`: from which level on each component of a proxy writes into its log.

It is asked for and changed on the proxy's admin socket (`/logging`), which weft-proxy and Envoy answer alike.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from weft.cli.client import Client, ask_proxy
from weft.cli.main import unknown
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.errors import UsageError, WeftError

LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
"""Envoy's; weft-proxy has no `critical`, and says so itself."""

AT_START = {WEFT_PROXY: "info", ENVOY: "warning"}
"""As the agent starts them (weft.agent.data_planes)."""


def show(client: Client, workload: str, *, change: str | None = None, reset: bool = False) -> dict[str, str]:
    """
    Return the level of each component of the proxy of *workload*, after what was asked for is done.

    Args:
        change: `[COMPONENT:]LEVEL,...`; a level alone is for all, before those of single components.
        reset: All as at the start, before *change*.

    Raises:
        UsageError: A component or level that there is not; then nothing is changed.
        WeftError: The proxy does not answer.
    """
    admin = client.admin_socket(workload)
    shown = ask(admin, workload)
    for_all, some = parse(change or "", shown)
    if reset:
        planes = {proxy["workload"]: proxy["data_plane"] for proxy in client.get("/v1/proxies")}
        for_all = for_all or AT_START[planes[workload]]
    # Envoy takes one parameter at a time.
    if for_all is not None:
        shown = ask(admin, workload, level=for_all)
    if some:
        shown = ask(admin, workload, paths=",".join(f"{name}:{level}" for name, level in some.items()))
    return shown


def parse(text: str, known: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """
    Return the level for all, if there is one, and those of components.

    Raises:
        UsageError: See `show`; *known* are the components that there are.
    """
    for_all = None
    some: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, colon, level = item.rpartition(":")
        if level not in LEVELS:
            raise UsageError(f"--level {item}: {unknown('level', level, LEVELS)}")
        if not colon:
            for_all = level
        elif name in known:
            some[name] = level
        else:
            raise UsageError(f"--level {item}: {unknown('component', name, sorted(known))}")
    return for_all, some


def ask(admin: Path, workload: str, **query: str) -> dict[str, str]:
    """POST /logging, and read the list that it answers with: two spaces, a name, a colon, a level."""
    try:
        target = f"/logging?{urlencode(query, safe=':,')}" if query else "/logging"
        status, body = ask_proxy(admin, target, method="POST")
        text = body.decode()
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise WeftError(f"The proxy of {workload} does not answer: {exc}. `weft status` shows what it does.") from exc
    if status != 200:
        raise UsageError(text.partition("\n")[0].removeprefix("error: "))
    lines = (line.strip().partition(": ") for line in text.splitlines() if line.startswith("  "))
    return {name: level for name, _, level in lines}
