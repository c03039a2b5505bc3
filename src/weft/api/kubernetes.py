"""
The one kind of Kubernetes' own that weft reads: Service, whole, as a frozen pydantic model.

It gives a name, an address and ports to the workloads of its namespace that carry its selector's labels, beside the
services that programs make by running. Source: Kubernetes' API reference of 2026-08, core/v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError, PydanticKnownError

from weft.api.gateway_api import PortNumber, Type
from weft.api.values import Int32, integral


def _number_or_name(value: Any) -> int | str:
    """Check what would have an error for each of both if it were a union."""
    value = integral(value)
    if isinstance(value, str):
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise PydanticCustomError("wanted", "{what}", {"what": "a port's number, or its name"})
    if value < 1:
        raise PydanticKnownError("greater_than_equal", {"ge": 1})
    if value > 65535:
        raise PydanticKnownError("less_than_equal", {"le": 65535})
    return value


PortNumberOrName = Annotated[int | str, PlainValidator(_number_or_name)]


class ServicePort(Type):
    """One port. No `target_port`: the same number at the workload."""

    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str = ""
    port: PortNumber
    target_port: PortNumberOrName | None = None
    node_port: Int32 | None = None


class ClientIPConfig(Type):
    """How long a client stays with an endpoint."""

    timeout_seconds: Annotated[Int32, Field(ge=1, le=86400)] = 10800


class SessionAffinityConfig(Type):
    """Settings of `sessionAffinity`."""

    client_ip: ClientIPConfig | None = Field(default=None, alias="clientIP")


class Service(Type):
    """A name for the workloads that carry all labels of `selector`."""

    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = Field(default_factory=dict)
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = Field(default="", alias="clusterIP")
    cluster_ips: tuple[str, ...] = Field(default=(), alias="clusterIPs")
    external_ips: tuple[str, ...] = Field(default=(), alias="externalIPs")
    external_name: str = ""
    external_traffic_policy: str = ""
    internal_traffic_policy: str = ""
    traffic_distribution: str = ""
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    load_balancer_ip: str = Field(default="", alias="loadBalancerIP")
    load_balancer_source_ranges: tuple[str, ...] = ()
    load_balancer_class: str = ""
    allocate_load_balancer_node_ports: bool | None = None
    health_check_node_port: Int32 | None = None
    publish_not_ready_addresses: bool = False
    ip_families: tuple[Literal["IPv4", "IPv6"], ...] = ()
    ip_family_policy: str = ""
