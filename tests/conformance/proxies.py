"""Proxies for conformance tests: weft-proxy with a stream core of its own, either data plane with a bootstrap; and judges written in Go."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.access_loggers.file.v3 import file_pb2  # noqa: F401 - these register the types for Any
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from weft._native import StreamCore
from weft.agent.bootstrap import bootstrap
from weft.agent.data_planes import DATA_PLANES
from weft.cli.client import UnixConnection
from weft.cli.proxy_config import found_health
from weft.data_plane import ENVOY, WEFT_PROXY

LIMIT = 30.0
ROOT = Path(__file__).parents[2]
TYPES = "type.googleapis.com/envoy.extensions"

Resource = tuple[str, str, str, bytes]


def judge(name: str, needs: str = "Go") -> str:
    """The program *name* that `make interop` makes. Where nobody has built it the test is skipped; under CI it fails."""
    path = ROOT / "target" / "interop" / name
    if not path.exists():
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"{path.relative_to(ROOT)} is not built: run `make interop` (needs {needs})")
    return str(path)


def resource(name: str, message: Message) -> Resource:
    """Return *message* to publish. Its version is told by its content: what has changed is sent again, and nothing else is."""
    content = message.SerializeToString(deterministic=True)
    version = hashlib.sha256(content).hexdigest()[:8]
    return f"type.googleapis.com/{message.DESCRIPTOR.full_name}", name, version, content


def listener(
    name: str, port: int, cluster: str, *, tls: dict[str, Any] | None = None, log: Path, **manager: Any
) -> Resource:
    """A listener on *port* that sends every request to *cluster*; *manager* adds to its connection manager."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
    record = {
        "path": "%REQ(:PATH)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
    }
    content: dict[str, Any] = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}},
        ],
        "access_log": [
            {
                "name": "file",
                "typed_config": {
                    "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
                    "path": str(log),
                    "log_format": {"json_format": record},
                },
            }
        ],
        **manager,
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": content}]}
    if tls is not None:
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext", **tls},
        }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return resource(name, ParseDict({"name": name, "address": address, "filter_chains": [chain]}, Listener()))


def cluster(name: str, port: int, *, http2: bool, tls: dict[str, Any] | None = None) -> Resource:
    """A cluster of one endpoint on loopback."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    content: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        content["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    if tls is not None:
        content["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", **tls},
        }
    return resource(name, ParseDict(content, Cluster()))


def ask(socket: Path, path: str, method: str = "GET") -> str:
    """What the admin interface at *socket* answers."""
    with contextlib.closing(UnixConnection(socket, LIMIT)) as connection:
        connection.request(method, path)
        return str(connection.getresponse().read().decode())


class Proxy:
    """A running data plane, weft-proxy if nothing else is said, and its control plane."""

    def __init__(self, directory: Path, name: str, kind: str = WEFT_PROXY) -> None:
        directory.mkdir(parents=True)
        self.core = StreamCore(str(directory / "xds.sock"))
        self.revision = 0
        self.stream: int | None = None
        self.streams: set[int] = set()
        self.admin = directory / "admin.sock"
        config = bootstrap(
            {"id": f"sidecar~127.0.0.1~{name}.default~default.svc.cluster.local", "cluster": name},
            admin=self.admin,
            xds=directory / "xds.sock",
            sds=directory / "xds.sock",
            records=directory / "records.sock",
        )
        path = directory / "bootstrap.json"
        path.write_text(json.dumps(config))
        self.log = directory / "access.log"
        self.output = directory / "proxy.log"
        with self.output.open("wb") as output:
            command = [DATA_PLANES[kind].find().path, "-c", str(path), "--concurrency", "1"]
            command += ["--disable-hot-restart"] if kind == ENVOY else []
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output)

    def publish(self, *resources: Resource) -> None:
        """Publish *resources*, and wait until the proxy has acknowledged all."""
        refused = self.offer(*resources)
        assert not refused, refused

    def offer(self, *resources: Resource) -> dict[tuple[str, str], str]:
        """Publish *resources*, wait until the proxy has answered to all, and return what it refused: why by type URL and name."""
        self.revision += 1
        self.core.publish("view", self.revision, list(resources))
        refused = {}
        deadline = time.monotonic() + LIMIT
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.core.fileno()], [], [], left)
            for event in self.events():
                match event:
                    case ("refused", _, _, type_url, name, _, message):
                        refused[type_url, name] = message
                    case ("synced", stream, _, revision) if (stream, revision) == (self.stream, self.revision):
                        return refused
        raise TimeoutError(self.output.read_text())

    def events(self) -> list[tuple[Any, ...]]:
        """What has happened at its streams; those that are new are served from now on."""
        events = list(self.core.events())
        for event in events:
            match event:
                case ("connected", stream, *_):
                    # The first stream is ADS; one for secrets follows when something needs them.
                    self.stream = stream if self.stream is None else self.stream
                    self.streams.add(stream)
                    self.core.attach(stream, "view")
        return events

    def records(self) -> list[dict[str, Any]]:
        """The access records so far."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.core.close()


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """An extension of this name in JSON."""
    return {"@type": f"{TYPES}.{name}", **fields}


def socket_address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def static_listener(name: str, port: int) -> dict[str, Any]:
    """A listener of a bootstrap that sends every request to the cluster of its name."""
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"name": name, "virtual_hosts": [host]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
    )
    return {
        "name": name,
        "address": socket_address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


class Static:
    """A running data plane of either kind that serves what is in its bootstrap; *ports* are its listeners' by name."""

    def __init__(
        self, kind: str, directory: Path, ports: dict[str, int], resources: dict[str, Any], **more: Any
    ) -> None:
        directory.mkdir()
        self.kind = kind
        self.ports = ports
        self.admin = directory / "admin.sock"
        path = directory / "bootstrap.json"
        own = {
            "node": {"id": "static", "cluster": "static"},
            "admin": {"address": {"pipe": {"path": str(self.admin)}}},
            "static_resources": resources,
        }
        path.write_text(json.dumps(own | more))
        command = [DATA_PLANES[kind].find().path, "-c", str(path), "--concurrency", "1"]
        if kind == ENVOY:
            command += ["--disable-hot-restart", "--log-level", "error", "--file-flush-interval-msec", "50"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def ask(self, path: str, method: str = "GET") -> str:
        """What the admin socket answers."""
        return ask(self.admin, path, method)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "it has ended; what it said is above"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("/ready").startswith("LIVE")
        return False

    def found(self, cluster: str, state: str) -> set[int]:
        """Ports of the endpoints of which `weft proxy-config endpoints` says *state*."""
        health = found_health(json.loads(self.ask("/clusters?format=json")))
        return {int(at.rpartition(":")[2]) for (name, at), seen in health.items() if (name, seen) == (cluster, state)}

    def count(self, metric: str, cluster: str) -> int:
        """What `envoy_cluster_METRIC` counts for *cluster*."""
        start = f'envoy_cluster_{metric}{{envoy_cluster_name="{cluster}"}}'
        lines = (line for line in self.ask("/stats/prometheus").splitlines() if line.startswith(start))
        return sum(int(line.rpartition(" ")[2]) for line in lines)

    def stat(self, name: str) -> float:
        """The sum of all that `/stats/prometheus` has by this *name*, whatever the labels."""
        lines = (line.rpartition(" ") for line in self.ask("/stats/prometheus").splitlines())
        return sum(float(value) for key, _, value in lines if key.partition("{")[0] == name)

    def is_alone(self) -> bool:
        """Whether no client is connected that speaks HTTP."""
        # Envoy's own admin interface counts the question.
        return self.stat("envoy_http_downstream_cx_active") <= (self.kind == ENVOY)

    def get(self, listener: str, path: str = "/", **headers: str) -> tuple[int, str]:
        """Status and body of a request over a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.ports[listener], timeout=LIMIT)) as client:
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.read().decode()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds. What happens in another process has no better signal here."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


@contextlib.contextmanager
def proxies(directory: Path, *names: str, kind: str = WEFT_PROXY) -> Iterator[list[Proxy]]:
    """Proxies of one *kind*, each with a control plane of its own, that end with the block; what they said is shown if the test fails."""
    running: list[Proxy] = []
    try:
        for name in names:
            running.append(Proxy(directory / name, name, kind))
        yield running
    finally:
        for proxy in running:
            proxy.stop()
            print(proxy.output.read_text()[-2000:])
