"""One endpoint assignment: the ready workloads of a service, of one subset, on one port. Called by the translator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from weft.model import Service, ServicePort, Workload
from weft.translate.fragments import Reading
from weft.translate.names import outbound_cluster
from weft.translate.peer_authentication import Mode
from weft.translate.policies.tls.apply import MODE_KEY, MODE_MUTUAL
from weft.translate.resource import CLUSTER_LOAD_ASSIGNMENT, Resource, resource, serialise

MATCH_METADATA = "envoy.transport_socket_match"
WORKLOAD_METADATA = "istio"


def assignment(
    reading: Reading, service: Service, port: ServicePort, subset: str = "", labels: Mapping[str, str] | None = None
) -> Resource:
    """
    Return the endpoints of one outbound cluster.

    Args:
        reading: Where the workloads come from.
        service: The service.
        port: One of its ports.
        subset: Name of the subset, "" for the whole service.
        labels: What the workloads of the subset carry.

    Returns:
        A `ClusterLoadAssignment`; with no ready workload it has no endpoints, and callers get 503 UH.
    """
    name = outbound_cluster(service.hostname, port.number, subset)
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    chosen = [
        workload
        for workload in reading.serving(service.hostname)
        if _answers(workload, port.target)
        and all(workload.labels.get(key) == value for key, value in (labels or {}).items())
    ]
    if chosen:
        locality = message.endpoints.add()
        locality.locality.SetInParent()
        locality.load_balancing_weight.value = sum(workload.weight for workload in chosen)
        for workload in chosen:
            mutual = workload.meshed and not takes_plain_text_only(reading, workload, port.target)
            _fill(locality.lb_endpoints.add(), workload, port.target, mutual=mutual)
    return resource(CLUSTER_LOAD_ASSIGNMENT, name, serialise(message))


def takes_plain_text_only(reading: Reading, workload: Workload, port: int) -> bool:
    """Whether a policy says that *workload* does not take mutual TLS on *port*."""
    return reading.accepted(workload, port).mode is Mode.DISABLE


def _answers(workload: Workload, port: int) -> bool:
    """Whether *workload* is to get requests on *port*: its proxy is ready and its program was found listening."""
    found = workload.port(port)
    return workload.ready and found is not None and found.listening is not None


def _fill(endpoint: Any, workload: Workload, port: int, *, mutual: bool) -> None:
    address = endpoint.endpoint.address.socket_address
    address.address, address.port_value = workload.address, port
    endpoint.health_status = health_check_pb2.HEALTHY
    endpoint.load_balancing_weight.value = workload.weight
    metadata = endpoint.metadata.filter_metadata
    if mutual:
        metadata[MATCH_METADATA].fields[MODE_KEY].string_value = MODE_MUTUAL
    app, version = workload.labels.get("app", ""), workload.labels.get("version", "")
    metadata[WORKLOAD_METADATA].fields[
        "workload"
    ].string_value = f"{workload.name};{workload.namespace};{app};{version}"
