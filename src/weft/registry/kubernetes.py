"""
Services that people describe by Kubernetes' documents, as the registry of programs takes them in.

A service of this kind has the ports that its document says, and is served by the workloads of its namespace that carry
its selector's labels. Source: Kubernetes' API reference, core/v1 Service; Istio's protocol selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weft.api.kubernetes import Service, ServicePort
from weft.model import ConfigObject, Protocol


@dataclass(frozen=True, slots=True)
class Selecting:
    """A service by document. `ports` are as written: what they speak may be the workloads' to say."""

    name: str
    namespace: str
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]

    @classmethod
    def from_document(cls, item: ConfigObject) -> Selecting:
        """Read an object of kind Service."""
        spec: Service = item.spec
        return cls(item.key.name, item.key.namespace, spec.selector, spec.ports)

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a workload of *namespace* with *labels* serves it."""
        return namespace == self.namespace and self.selector.items() <= labels.items()


def target_port(port: ServicePort) -> int:
    """Return the port of the workload."""
    return port.target_port if isinstance(port.target_port, int) else port.port


def protocol(port: ServicePort, spoken: Protocol | None) -> Protocol:
    """
    Return what *port* speaks: `appProtocol`, else the beginning of its name, as Istio reads it.

    If neither says anything, it is what the workloads say of their port (*spoken*), else HTTP, which proxies look for
    before they take it for granted.
    """
    word = port.app_protocol.rpartition("/")[2] or port.name
    word = word.partition("-")[0].upper()
    word = _OTHER_WORDS.get(word, word)
    return Protocol(word) if word in Protocol.__members__ else spoken or Protocol.HTTP


_OTHER_WORDS = {"H2C": "HTTP2", "GRPC-WEB": "GRPC", "MONGO": "TCP", "MYSQL": "TCP", "REDIS": "TCP", "WS": "HTTP"}
"""What Istio and Kubernetes (`kubernetes.io/h2c`, `kubernetes.io/ws`) call what weft carries as one of its own."""
