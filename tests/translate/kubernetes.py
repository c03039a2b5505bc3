"""Kubernetes and Istio documents -> a Snapshot and proxies: the input of a recorded scenario, as weft's own values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weft.api.kinds import Kind, find
from weft.model import (
    ROOT_NAMESPACE,
    ConfigKey,
    ConfigObject,
    Identity,
    Protocol,
    Proxy,
    ProxyKind,
    Service,
    ServicePort,
    Snapshot,
    Workload,
    WorkloadPort,
)

SUFFIX = "cluster.local"


@dataclass(frozen=True)
class Scenario:
    """A recorded scenario; `proxies` by the name of its files."""

    folder: Path
    snapshot: Snapshot
    proxies: Mapping[str, Proxy]

    def recorded(self, proxy: str, kind: str) -> list[dict[str, Any]]:
        """Return what istiod pushed to *proxy*: `routes`, `clusters`, `endpoints` or `listeners`."""
        found: list[dict[str, Any]] = json.loads((self.folder / f"{proxy}.{kind}.json").read_text())
        return found


def load(folder: Path) -> Scenario:
    documents = [item for item in yaml.load_all((folder / "input.yaml").read_text(), yaml.CSafeLoader) if item]
    services = {service.hostname: service for service in map(_service, _of(documents, "Service"))}
    workloads = [_workload(pod, services.values()) for pod in _of(documents, "Pod")]
    config = {}
    for created, document in enumerate(documents):
        kind = _kind(document)
        if kind is not None and kind.model is not None and kind.name != "Service":
            item = config_object(document, created)
            config[item.key] = item
    # Istio's default, which weft does not share, said aloud.
    permissive = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "istio-default", "namespace": ROOT_NAMESPACE},
        "spec": {"mtls": {"mode": "PERMISSIVE"}},
    }
    if not any(key.kind == "PeerAuthentication" and key.namespace == ROOT_NAMESPACE for key in config):
        item = config_object(permissive)
        config[item.key] = item
    snapshot = Snapshot(
        revision=1,
        config=config,
        services=services,
        workloads={(workload.namespace, workload.name): workload for workload in workloads},
    )
    nodes = json.loads((folder / "nodes.json").read_text())
    return Scenario(folder, snapshot, {name: _proxy(node) for name, node in nodes.items()})


def config_object(document: Mapping[str, Any], created: int = 0) -> ConfigObject:
    """Return the object with its typed spec, fields that weft refuses at the door included."""
    metadata = document["metadata"]
    kind = _kind(document)
    assert kind is not None
    assert kind.model is not None
    return ConfigObject(
        key=ConfigKey(kind.name, metadata.get("namespace", "default"), metadata["name"]),
        api_version=document["apiVersion"],
        spec=kind.model.model_validate_json(json.dumps(document["spec"])),
        manifest=document,
        labels=metadata.get("labels") or {},
        created=created,
    )


def _kind(document: Mapping[str, Any]) -> Kind | None:
    return find(document["kind"], document["apiVersion"].rpartition("/")[0])


def _of(documents: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def _service(document: Mapping[str, Any]) -> Service:
    metadata, spec = document["metadata"], document["spec"]
    namespace = metadata.get("namespace", "default")
    return Service(
        name=metadata["name"],
        namespace=namespace,
        hostname=f"{metadata['name']}.{namespace}.svc.{SUFFIX}",
        address=spec.get("clusterIP", ""),
        ports=tuple(
            ServicePort(port.get("name", ""), port["port"], _protocol(port), port.get("targetPort", port["port"]))
            for port in spec["ports"]
        ),
        selector=spec.get("selector") or {},
    )


def _protocol(port: Mapping[str, Any]) -> Protocol:
    """Return the protocol by Istio's naming rule; what is not named is TCP, as weft has no undeclared protocol."""
    word = (port.get("appProtocol") or port.get("name", "").split("-")[0]).upper()
    return Protocol(word) if word in Protocol.__members__ else Protocol.TCP


def _workload(pod: Mapping[str, Any], services: Iterable[Service]) -> Workload:
    metadata, labels = pod["metadata"], pod["metadata"].get("labels") or {}
    namespace = metadata.get("namespace", "default")
    mine = [
        service
        for service in services
        if service.namespace == namespace
        and service.selector
        and all(labels.get(name) == value for name, value in service.selector.items())
    ]
    ports = {port.target: port.protocol for service in mine for port in service.ports}
    return Workload(
        name=metadata["name"],
        namespace=namespace,
        address=pod["status"]["podIP"],
        identity=Identity(SUFFIX, namespace, pod["spec"].get("serviceAccountName", "default")),
        labels=labels,
        services=tuple(service.hostname for service in mine),
        ports=tuple(WorkloadPort(number, protocol, "127.0.0.1") for number, protocol in sorted(ports.items())),
        ready=True,
        meshed=labels.get("security.istio.io/tlsMode") == "istio",
    )


def _proxy(node: Mapping[str, Any]) -> Proxy:
    kind, address, *_ = node["id"].split("~")
    metadata = node["metadata"]
    return Proxy(
        node_id=node["id"],
        kind=ProxyKind.SIDECAR if kind == "sidecar" else ProxyKind.GATEWAY,
        workload=metadata["NAME"],
        namespace=metadata["NAMESPACE"],
        address=address,
        labels=metadata.get("LABELS") or {},
        data_plane="envoy",
        mesh_cidr="10.244.0.0/16",
    )
