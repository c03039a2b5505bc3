"""Everything that translation may read, frozen at one revision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from weft.model.config import ConfigKey, ConfigObject
from weft.model.service import Service
from weft.model.workload import Workload


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    Attributes:
        revision: Counts changes of the mesh; what receipts and `status` speak of.
        config: Applied objects by key.
        services: By hostname.
        workloads: By (namespace, name).
        trust_domain: Of every identity in the mesh.
        accepting_both: (namespace, workload) -> ports that take mutual TLS and plain text alike, whatever is configured:
            their callers are just moving from one to the other (`weft.controlplane.steps`).
        domain_suffix: `cluster.local`; hostnames are `<name>.<namespace>.svc.<suffix>`.
    """

    revision: int = 0
    config: Mapping[ConfigKey, ConfigObject] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    workloads: Mapping[tuple[str, str], Workload] = field(default_factory=dict)
    accepting_both: Mapping[tuple[str, str], frozenset[int]] = field(default_factory=dict)
    trust_domain: str = "cluster.local"
    domain_suffix: str = "cluster.local"

    def of_kind(self, kind: str) -> Iterator[ConfigObject]:
        """Yield the objects of *kind*, oldest first, then by namespace and name, as Istio orders them."""
        found = (item for item in self.config.values() if item.key.kind == kind)
        return iter(sorted(found, key=lambda item: (item.created, item.key.namespace, item.key.name)))

    def hostname(self, host: str, namespace: str) -> str:
        """
        Return the fully qualified form of *host* as a document of *namespace* means it.

        A name with a dot or a wildcard is taken as it stands (Istio: "short names are resolved relative to the
        namespace of the rule"); mesh names with fewer parts (`reviews.default`, `reviews.default.svc`) are completed
        only if such a service exists.
        """
        if "*" in host:
            return host
        if "." not in host:
            return f"{host}.{namespace}.svc.{self.domain_suffix}"
        if host not in self.services:
            for suffix in (f".svc.{self.domain_suffix}", f".{self.domain_suffix}"):
                if host + suffix in self.services:
                    return host + suffix
        return host
