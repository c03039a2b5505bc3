"""
What a proxy has found of its endpoints by itself, by outlier detection and active health checks, and where that leads. Pure.

No control plane knows it: the proxy says it on its admin socket, which the caller of `why.explain` asks. It is put into
the resources that the proxy was told, of which the decision code then makes what the proxy makes of both: other
endpoints, other priorities, panic, or an answer of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.health_check_pb2 import UNHEALTHY
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment

from weft.translate.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT

Found: TypeAlias = Mapping[tuple[str, str], str]
"""(cluster, `ADDRESS:PORT`) -> a state of `SAID`: of the endpoints that the proxy does not use, though it was told of them."""

SAID = {
    "EJECTED": "ejected by outlier detection",
    "UNCHECKED": "not checked yet",
    "FAILED CHECK": "failing its active health check",
}
"""By the word of `weft proxy-config endpoints`."""


def marked(resources: Iterable[tuple[str, str, bytes]], found: Found) -> list[tuple[str, str, bytes]]:
    """Return *resources* with each endpoint of *found* as if the control plane had told that it is unhealthy."""
    clusters = {cluster for cluster, _ in found}
    result = []
    for type_url, name, told in resources:
        value = told
        if name in clusters and type_url == CLUSTER_LOAD_ASSIGNMENT:
            assignment = ClusterLoadAssignment.FromString(told)
            _mark(name, assignment, found)
            value = assignment.SerializeToString(deterministic=True)
        elif name in clusters and type_url == CLUSTER:
            cluster = Cluster.FromString(told)
            if cluster.HasField("load_assignment"):
                _mark(name, cluster.load_assignment, found)
                value = cluster.SerializeToString(deterministic=True)
        result.append((type_url, name, value))
    return result


def _mark(cluster: str, assignment: Any, found: Found) -> None:
    for locality in assignment.endpoints:
        for endpoint in locality.lb_endpoints:
            at = endpoint.endpoint.address.socket_address
            host = f"[{at.address}]" if ":" in at.address else at.address
            if (cluster, f"{host}:{at.port_value}") in found:
                endpoint.health_status = UNHEALTHY
