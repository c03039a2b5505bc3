"""One bootstrap in both data planes: what stock Envoy and weft-proxy make of the same resources, in one run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance.proxies import Static, until
from tests.ports import free_port, until_listening
from weft.data_plane import ENVOY, WEFT_PROXY

Json = dict[str, Any]


def typed(name: str, **fields: Any) -> Json:
    return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **fields}


def address(port: int, host: str = "127.0.0.1") -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, *ports: int, **more: Any) -> Json:
    """A static cluster of endpoints at *ports* of the loopback; *more* adds to it."""
    endpoints = [{"endpoint": {"address": address(port)}} for port in ports]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}] if ports else []},
        **more,
    }


def http_options(**fields: Any) -> Json:
    """What a cluster says of HTTP to its endpoints, as a field of `cluster`."""
    options = typed("upstreams.http.v3.HttpProtocolOptions", **fields)
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def over_http2(**options: Any) -> Json:
    """A cluster's endpoints speak HTTP/2 with these *options*, as a field of `cluster`."""
    return http_options(explicit_http_config={"http2_protocol_options": options})


def file_log(path: Path, fields: dict[str, str]) -> list[Json]:
    """An `access_log` that writes *fields* of each record as a line of JSON to *path*."""
    config = typed("access_loggers.file.v3.FileAccessLog", path=str(path), log_format={"json_format": fields})
    return [{"name": "file", "typed_config": config}]


def records(log: Path) -> list[Json]:
    """What has been written to a `file_log` so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def http_filters(routes: list[Json], *, manager: Json | None = None, **virtual_host: Any) -> list[Json]:
    """The filters of a chain that serves HTTP by *routes*; *manager* adds to what the connection manager is told."""
    host = {"name": "all", "domains": ["*"], "routes": routes, **virtual_host}
    router = {"name": "router", "typed_config": typed("filters.http.router.v3.Router")}
    config = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        route_config={"name": "routes", "virtual_hosts": [host]},
        http_filters=[router],
        **manager or {},
    )
    return [{"name": "http", "typed_config": config}]


def listener(name: str, port: int, filters: list[Json], **more: Any) -> Json:
    return {"name": name, "address": address(port), "filter_chains": [{"filters": filters}], **more}


@contextlib.contextmanager
def one(
    kind: str, directory: Path, names: tuple[str, ...], resources: Callable[[dict[str, int]], Json], **more: Any
) -> Iterator[Static]:
    """Run one of `both`, whose bootstrap has something that the other's has not, until the block ends; it is ready."""
    ports = {name: free_port() for name in names}
    proxy = Static(kind, directory / kind, ports, resources(ports), **more)
    try:
        for port in ports.values():
            until_listening(port, proxy.process)
        until(f"{kind} is ready", proxy.is_ready)
        yield proxy
    finally:
        proxy.stop()


@contextlib.contextmanager
def both(
    directory: Path, names: tuple[str, ...], resources: Callable[[dict[str, int]], Json], **more: Any
) -> Iterator[tuple[Static, Static]]:
    """
    Run Envoy and weft-proxy, which are ready, until the block ends.

    *resources* makes the `static_resources` for these ports of listeners, by name; nothing else differs.
    *more* adds to the bootstraps.
    """
    with (
        one(ENVOY, directory, names, resources, **more) as envoy,
        one(WEFT_PROXY, directory, names, resources, **more) as weft,
    ):
        yield envoy, weft


@contextlib.contextmanager
def both_before(port: int, directory: Path) -> Iterator[tuple[Static, Static]]:
    """Run Envoy and weft-proxy, each with a listener `http` that sends every request to *port* and waits for it without end."""

    def resources(ports: dict[str, int]) -> Json:
        filters = http_filters([{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}])
        return {"clusters": [cluster("up", port)], "listeners": [listener("http", ports["http"], filters)]}

    with both(directory, ("http",), resources) as proxies:
        yield proxies
