"""
Another control plane drives weft-proxy: the test server of go-control-plane, with the bootstrap of its samples.

The server is the judge: it publishes snapshot after snapshot, sends requests through every listener, and ends with an error if they are not answered.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conformance.proxies import LIMIT, judge
from tests.conformance.test_istiod_xds import Endpoints, endpoints
from tests.held import DUMP, Held, of_dump
from tests.ports import consecutive_ports, free_port
from weft.agent.data_planes.weft_proxy import WeftProxy
from weft.data_plane import WEFT_PROXY

pytestmark = pytest.mark.conformance

MESSAGE = "the upstream of go-control-plane's test"
LISTENERS = 5
"""HTTP and TCP together, on consecutive ports."""
UPDATES = 4


def cluster(name: str, port: int) -> dict[str, Any]:
    """A static cluster as the samples write it, with the older way to say HTTP/2."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    return {
        "name": name,
        "connect_timeout": "1s",
        "http2_protocol_options": {},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def bootstrap(api_type: str, *, xds: int, log: int, admin: int) -> str:
    """go-control-plane's sample/bootstrap-ads.yaml or bootstrap-delta-ads.yaml, on other ports."""
    ads = {"resource_api_version": "V3", "ads": {}}
    content = {
        "admin": {
            "access_log_path": "/dev/null",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}},
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds_cluster"}}],
                "set_node_on_first_message_only": True,
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "node": {"cluster": "test-cluster", "id": "test-id"},
        "static_resources": {"clusters": [cluster("xds_cluster", xds), cluster("als_cluster", log)]},
    }
    return yaml.safe_dump(content)


def state_of(admin: int) -> Held:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}{DUMP}", timeout=LIMIT) as answer:
        return of_dump(WEFT_PROXY, json.load(answer))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(("mode", "api_type"), [("ads", "GRPC"), ("delta-ads", "DELTA_GRPC")])
def test_go_control_plane_drives_weft_proxy(tmp_path: Path, mode: str, api_type: str, *, tls: bool) -> None:
    """By the state of the world and by delta: every snapshot arrives, and every listener answers; with TLS by secrets that come with it."""
    xds, log, gateway, admin = (free_port() for _ in range(4))
    base = consecutive_ports(LISTENERS)
    path = tmp_path / "bootstrap.yaml"
    path.write_text(bootstrap(api_type, xds=xds, log=log, admin=admin))
    server = judge("go-control-plane")
    with contextlib.ExitStack() as running:
        upstreams: Endpoints = running.enter_context(endpoints())
        output = running.enter_context((tmp_path / "proxy.log").open("wb"))
        proxy = subprocess.Popen([WeftProxy().find().path, "-c", str(path)], stdin=subprocess.DEVNULL, stderr=output)
        running.callback(proxy.wait)
        running.callback(proxy.kill)
        arguments = {
            "xds": mode,
            "port": xds,
            "gateway": gateway,
            "als": log,
            "base": base,
            "upstream": upstreams.port(MESSAGE),
            "message": MESSAGE,
            "http": LISTENERS - 2,
            "tcp": 2,
            "tls": str(tls).lower(),
            # What weft-proxy does not have: scoped routes, and extensions that are discovered.
            "scopedhttp": 0,
            "extension": 0,
            "clusters": 4,
            "u": UPDATES,
            "r": 20,
            "delay": "100ms",
        }
        command = [server, *(f"-{name}={value}" for name, value in arguments.items())]
        verdict = subprocess.run(command, capture_output=True, text=True, timeout=4 * LIMIT, check=False)
        said = verdict.stderr[-3000:] + (tmp_path / "proxy.log").read_text()
        assert verdict.returncode == 0, said
        held = state_of(admin)
    assert f"Test for {mode} passed!" in verdict.stderr, said
    assert {state for _, _, state in held} == {"active"}, held
    followed = [(type_url.rsplit(".", 1)[1], name) for type_url, name, _ in held]
    kinds = Counter(kind for kind, _ in followed)
    assert set(kinds) == {"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"}
    assert kinds["Listener"] == LISTENERS
    # Nothing of an earlier snapshot is left.
    clusters = [name for kind, name in followed if kind == "Cluster"]
    assert clusters
    assert all(f"v{UPDATES - 1}" in name for name in clusters), held
