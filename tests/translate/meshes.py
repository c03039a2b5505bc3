"""Meshes of any size, made of plain values, for tests of translation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.translate.kubernetes import config_object
from weft.model import (
    ConfigKey,
    ConfigObject,
    Identity,
    Proxy,
    ProxyKind,
    Service,
    ServicePort,
    Snapshot,
    Workload,
    WorkloadPort,
)


def service(name: str, number: int, *, ports: tuple[ServicePort, ...] = (ServicePort("http", 9080),)) -> Service:
    return Service(
        name=name,
        namespace="default",
        hostname=f"{name}.default.svc.cluster.local",
        address=f"240.240.{number // 250}.{number % 250 + 1}",
        ports=ports,
        selector={"app": name},
    )


def workload(of: Service, replica: int, address: str, version: str = "v1") -> Workload:
    return Workload(
        name=f"{of.name}-{version}-{replica}",
        namespace=of.namespace,
        address=address,
        identity=Identity("cluster.local", of.namespace, of.name),
        labels={"app": of.name, "version": version},
        services=(of.hostname,),
        ports=tuple(WorkloadPort(port.target, port.protocol, "127.0.0.1") for port in of.ports),
        ready=True,
    )


def virtual_service(name: str, *, created: int = 0, **spec: Any) -> ConfigObject:
    return _object("VirtualService", name, created, {"hosts": [name], **spec})


def destination_rule(name: str, *, created: int = 0, **spec: Any) -> ConfigObject:
    return _object("DestinationRule", name, created, {"host": name, **spec})


def gateway(name: str, *, created: int = 0, **spec: Any) -> ConfigObject:
    return _object("Gateway", name, created, spec)


def _object(kind: str, name: str, created: int, spec: dict[str, Any]) -> ConfigObject:
    document = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }
    return config_object(document, created)


def mesh(services: int, *, replicas: int = 1, rules: bool = True) -> Snapshot:
    """Return a mesh of *services* services with *replicas* endpoints each, and a route for each of them."""
    offered, running, config = {}, {}, {}
    for number in range(services):
        mine = service(f"service-{number}", number)
        offered[mine.hostname] = mine
        for replica in range(replicas):
            address = number * replicas + replica
            one = workload(mine, replica, f"10.244.{address // 250}.{address % 250 + 1}")
            running[one.namespace, one.name] = one
        if rules:
            item = virtual_service(
                mine.name, created=number, http=[{"route": [{"destination": {"host": mine.name}}], "timeout": "3s"}]
            )
            config[item.key] = item
    return Snapshot(revision=1, config=config, services=offered, workloads=running)


def applied(snapshot: Snapshot, *items: ConfigObject) -> Snapshot:
    """Return the snapshot after *items* were applied; everything else stays the same object."""
    config: dict[ConfigKey, ConfigObject] = {**snapshot.config, **{item.key: item for item in items}}
    return replace(snapshot, revision=snapshot.revision + 1, config=config)


def sidecar(name: str = "service-0-v1-0", **changes: Any) -> Proxy:
    """Return a sidecar as weft runs them: intercepted, in a network of its own."""
    proxy = Proxy(
        node_id=f"sidecar~10.244.0.1~{name}.default~default.svc.cluster.local",
        kind=ProxyKind.SIDECAR,
        workload=name,
        namespace="default",
        address="10.244.0.1",
        labels={"app": name.rsplit("-", 2)[0], "version": "v1"},
        namespace_path=f"/run/weft/ns/{name}",
        host_namespace_path="/run/weft/ns/host",
    )
    return replace(proxy, **changes)


def ingress(**changes: Any) -> Proxy:
    """Return a gateway proxy that Gateways select by `istio: ingressgateway`."""
    proxy = Proxy(
        node_id="router~10.244.9.9~ingress-0.default~default.svc.cluster.local",
        kind=ProxyKind.GATEWAY,
        workload="ingress-0",
        namespace="default",
        address="10.244.9.9",
        labels={"app": "ingress", "istio": "ingressgateway"},
        host_namespace_path="/run/weft/ns/host",
    )
    return replace(proxy, **changes)
