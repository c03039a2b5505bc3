"""One bootstrap in both data planes: what stock Envoy and weft-proxy make of the same resources, in one run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance.proxies import Static
from tests.ports import free_port, until_listening
from weft.data_plane import ENVOY, WEFT_PROXY

Json = dict[str, Any]


def typed(name: str, **fields: Any) -> Json:
    return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **fields}


def address(port: int, host: str = "127.0.0.1") -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def http_filters(routes: list[Json], **virtual_host: Any) -> list[Json]:
    """The filters of a chain that serves HTTP by *routes*."""
    host = {"name": "all", "domains": ["*"], "routes": routes, **virtual_host}
    router = {"name": "router", "typed_config": typed("filters.http.router.v3.Router")}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        route_config={"name": "routes", "virtual_hosts": [host]},
        http_filters=[router],
    )
    return [{"name": "http", "typed_config": manager}]


def listener(name: str, port: int, filters: list[Json]) -> Json:
    return {"name": name, "address": address(port), "filter_chains": [{"filters": filters}]}


@contextlib.contextmanager
def both(
    directory: Path, names: tuple[str, ...], resources: Callable[[dict[str, int]], Json]
) -> Iterator[tuple[Static, Static]]:
    """
    Run Envoy and weft-proxy until the block ends.

    *resources* makes the `static_resources` for these ports of listeners, by name; nothing else differs.
    """
    with contextlib.ExitStack() as stack:
        running = []
        for kind in (ENVOY, WEFT_PROXY):
            ports = {name: free_port() for name in names}
            proxy = Static(kind, directory / kind, ports, resources(ports))
            stack.callback(proxy.stop)
            for port in ports.values():
                until_listening(port, proxy.process)
            running.append(proxy)
        yield running[0], running[1]
