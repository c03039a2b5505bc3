"""The behaviour suite's mesh: the topology as weft's own values, translated for one client's proxy in EXPLICIT mode."""

from __future__ import annotations

from collections.abc import Mapping

from tests.behaviour.cases import PORT, services
from weft.api.parse import parse
from weft.model import (
    ConfigKey,
    ConfigObject,
    Identity,
    Interception,
    Protocol,
    Proxy,
    ProxyKind,
    Service,
    ServicePort,
    Severity,
    Snapshot,
    Workload,
    WorkloadPort,
)
from weft.registry.kubernetes import Selecting
from weft.translate.translator import translate


def addresses() -> Mapping[str, str]:
    """Workload name -> its address: one of the loopback range for each, so that all can use one port."""
    names = [name for service in services() for name in service.workloads]
    return {name: f"127.7.0.{index}" for index, name in enumerate(names, start=1)}


def snapshot(config: str, target_port: int) -> Snapshot:
    """The topology with *config* applied; every workload listens on *target_port*, none has a sidecar."""
    parsed = parse([("case.yaml", config)] if config else [])
    mistakes = [problem for problem in parsed.problems if problem.severity is Severity.ERROR]
    assert not mistakes, "\n".join(map(str, mistakes))
    objects: dict[ConfigKey, ConfigObject] = {item.key: item for item in parsed.objects}
    address_of = addresses()
    mesh_services, workloads = {}, {}
    documents = [Selecting.from_document(item) for item in parsed.objects if item.key.kind == "Service"]
    selecting = {f"{item.name}.{item.namespace}.svc.cluster.local": item for item in documents}
    for index, (hostname, item) in enumerate(selecting.items(), start=1):
        ports = tuple(ServicePort(port.name, port.port, Protocol.HTTP, target_port) for port in item.ports)
        mesh_services[hostname] = Service(
            item.name, item.namespace, hostname, f"240.240.1.{index}", ports, selector=item.selector
        )
    for index, service in enumerate(services(), start=1):
        mesh_services[service.hostname] = Service(
            name=service.name,
            namespace=service.namespace,
            hostname=service.hostname,
            address=f"240.240.0.{index}",
            ports=(ServicePort("http", PORT, Protocol.HTTP, target_port),),
            selector={"app": service.name},
        )
        for name, labels in service.workloads.items():
            selected = [hostname for hostname, item in selecting.items() if item.selects(service.namespace, labels)]
            workloads[(service.namespace, name)] = Workload(
                name=name,
                namespace=service.namespace,
                address=address_of[name],
                identity=Identity("cluster.local", service.namespace, service.name),
                labels=labels,
                services=(service.hostname, *selected),
                ports=(WorkloadPort(target_port, Protocol.HTTP, listening=address_of[name]),),
                ready=True,
                meshed=False,
            )
    return Snapshot(revision=1, config=objects, services=mesh_services, workloads=workloads)


def client(data_plane: str, port: int) -> Proxy:
    """The proxy of productpage, whose listener for service port 9080 is 127.0.0.1:*port*."""
    return Proxy(
        node_id="sidecar~127.0.0.1~productpage-v1.default~default.svc.cluster.local",
        kind=ProxyKind.SIDECAR,
        workload="productpage-v1",
        namespace="default",
        address="127.0.0.1",
        labels={"app": "productpage", "version": "v1"},
        data_plane=data_plane,
        interception=Interception.EXPLICIT,
        outbound_addresses={PORT: ("127.0.0.1", port)},
    )


def resources(config: str, *, data_plane: str, port: int, target_port: int) -> list[tuple[str, str, str, bytes]]:
    """What the control plane would publish to that proxy, without the inbound side, which nobody calls here."""
    made = translate(snapshot(config, target_port), client(data_plane, port))
    return [
        (item.type_url, item.name, item.version, item.value) for item in made if not item.name.startswith("inbound|")
    ]
