"""Services by document and HTTPRoutes in the control plane's process: names, status, and what a restart keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.controlplane.peers import Mesh, until
from weft.errors import InvalidConfiguration
from weft.translate.resource import ROUTE_CONFIGURATION

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: reviews-v1}
spec:
  selector: {app: reviews, version: v1}
  ports: [{port: 9080, name: http}]
"""
HOSTNAME = "reviews-v1.default.svc.cluster.local"
CLUSTER = f"outbound|9080||{HOSTNAME}"

ROUTE = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews}]
  rules:
  - backendRefs: [{name: reviews-v1, port: 9080}]
"""


def status_of(mesh: Mesh, name: str) -> dict[str, Any]:
    (item,) = mesh.client.get("/v1/config", name=name)
    found: dict[str, Any] = item["manifest"]["status"]
    return found


def conditions(mesh: Mesh) -> dict[str, tuple[str, str]]:
    (parent,) = status_of(mesh, "reviews")["parents"]
    return {item["type"]: (item["status"], item["reason"]) for item in parent["conditions"]}


def newest(status: dict[str, Any]) -> str:
    """Return the time of the last condition that has changed."""
    return max(str(item["lastTransitionTime"]) for item in status["parents"][0]["conditions"])


def test_a_service_by_document_has_a_name_and_endpoints_while_it_is_applied(mesh: Mesh) -> None:
    server = mesh.running("reviews")
    client = mesh.running("productpage", port=None)
    proxy = mesh.proxy(client)
    mesh.apply(SERVICE)
    assert client.names(lambda names: HOSTNAME in names)[HOSTNAME][0].startswith("240.240.")
    proxy.wait(lambda it: it.endpoints(CLUSTER) == [server.registered["address"]])
    (service,) = [item for item in mesh.client.get("/v1/services") if item["name"] == "reviews-v1"]
    assert [item["workload"] for item in service["workloads"]] == [server.name]
    mesh.client.post("/v1/delete", {"keys": [{"kind": "Service", "namespace": "default", "name": "reviews-v1"}]})
    client.names(lambda names: HOSTNAME not in names)


def test_a_dry_run_of_a_service_gives_nobody_its_name(mesh: Mesh) -> None:
    mesh.running("reviews")
    assert mesh.apply(SERVICE, dry_run=True)["results"][0]["action"] == "created"
    assert "reviews-v1" not in [item["name"] for item in mesh.client.get("/v1/services")]


def test_status_follows_what_it_speaks_of(mesh: Mesh) -> None:
    mesh.running("reviews")
    with pytest.raises(InvalidConfiguration):
        mesh.apply(ROUTE, strict=True)
    warnings = mesh.apply(ROUTE)["warnings"]
    assert [(item["line"], item["column"], item["code"]) for item in warnings] == [(7, 20, "dangling-backend")]
    assert conditions(mesh) == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("False", "BackendNotFound")}
    mesh.apply(SERVICE)
    assert conditions(mesh) == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    assert status_of(mesh, "reviews")["parents"][0]["conditions"][0]["observedGeneration"] == 1


def test_after_a_restart_services_and_routes_are_as_they_were(mesh: Mesh) -> None:
    """No proxy is told anything: names, addresses, routes and conditions come back equal, with the times of these."""
    server, client = mesh.running("reviews"), mesh.running("productpage", port=None)
    proxy = mesh.proxy(client)
    mesh.apply(SERVICE + "---\n" + ROUTE)
    proxy.wait(lambda it: it.endpoints(CLUSTER) == [server.registered["address"]])
    proxy.wait(lambda it: b"default.reviews.0" in it.resources.get(ROUTE_CONFIGURATION, {}).get("9080", b""))
    until(lambda: mesh.status(client.name)["synced"])
    address = client.names(lambda names: HOSTNAME in names)[HOSTNAME]
    status = status_of(mesh, "reviews")

    mesh.kill()
    until(
        lambda: newest(status) < datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        what="a second that is no condition's",
    )
    mesh.start(ready=False)
    again = mesh.proxy(client, known=proxy.versions)
    for agent in (client, server):
        agent.reconnect()
        agent.send(type="proxy_ready", ready=True)
    server.send(type="listening", port=9080, address="127.0.0.1")
    until(mesh._answers)
    until(lambda: mesh.status(client.name)["synced"])

    assert [names for _, names in again.received if names] == []
    assert client.names(lambda names: HOSTNAME in names)[HOSTNAME] == address
    assert status_of(mesh, "reviews") == status
    assert conditions(mesh)["ResolvedRefs"] == ("True", "ResolvedRefs")
