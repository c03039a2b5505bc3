"""
What holds for traffic to a destination: the DestinationRules of a host, merged as Istio merges them.

Used by clusters (policies, subsets) and routes (consistent hash). Source: Istio's documentation of DestinationRule,
and its MergeTrafficPolicy.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.api.networking import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    ConsistentHashLB,
    LoadBalancerSettings,
    OutlierDetection,
    PortSelector,
    PortTrafficPolicy,
    Subset,
    TrafficPolicy,
)
from weft.api.precedence import Rule, exported, in_force
from weft.model import ConfigObject
from weft.translate import names
from weft.translate.fragments import Reading
from weft.translate.index import matches
from weft.translate.origin import DEFAULT

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The policy in force for one subset and port.

    Attributes:
        sources: For each part that is set, the rule and the path in it.
    """

    load_balancer: LoadBalancerSettings | None
    connection_pool: ConnectionPoolSettings | None
    outlier_detection: OutlierDetection | None
    tls: ClientTLSSettings | None
    sources: dict[str, tuple[ConfigObject, Path]]

    @property
    def origins(self) -> dict[str, str]:
        """For each part by its field's YAML name, the place that set it, or `"default"`."""
        return {name: self.locate(part) for part, name in _PARTS.items()}

    def locate(self, part: str, *path: str) -> str:
        """Return the place of *path* within *part*, which the policy's attribute names; `"default"` if it is not set."""
        if part not in self.sources:
            return DEFAULT
        item, at = self.sources[part]
        return str(item.locate(*at, *path))


@dataclass(frozen=True, slots=True)
class Destination:
    """
    The rules for one host as one.

    Attributes:
        item: The DestinationRule whose top-level policy holds, None where no rule is for the host.
        subsets: (rule, index in its `subsets`, subset) by name, in order; of two with one name the older rule's.
    """

    item: ConfigObject | None = None
    subsets: tuple[tuple[ConfigObject, int, Subset], ...] = ()

    def subset(self, name: str) -> tuple[ConfigObject, int, Subset] | None:
        return next((entry for entry in self.subsets if entry[2].name == name), None)

    def policy(self, port: int, subset: str = "") -> Policy:
        """
        Return the policy for *port* and *subset*.

        A subset's parts replace those of the rule one by one; the settings of a port replace all parts at once,
        those that they leave out included ("port level policies do not inherit").
        """
        levels: list[tuple[ConfigObject, Path, TrafficPolicy]] = []
        if self.item is not None and self.item.spec.traffic_policy is not None:
            levels.append((self.item, ("spec", "trafficPolicy"), self.item.spec.traffic_policy))
        found = self.subset(subset) if subset else None
        if found is not None and found[2].traffic_policy is not None:
            levels.append((found[0], ("spec", "subsets", found[1], "trafficPolicy"), found[2].traffic_policy))
        parts: dict[str, tuple[object, tuple[ConfigObject, Path]]] = {}
        for item, path, level in levels:
            for field, name in _PARTS.items():
                value = getattr(level, field)
                if value is not None:
                    parts[field] = (value, (item, (*path, name)))
            at = _port_level(level, port)
            if at is not None:
                index, settings = at
                parts = {
                    field: (getattr(settings, field), (item, (*path, "portLevelSettings", index, name)))
                    for field, name in _PARTS.items()
                    if getattr(settings, field) is not None
                }
        return Policy(
            **{field: parts[field][0] if field in parts else None for field in _PARTS},  # type: ignore[arg-type]
            sources={field: source for field, (_, source) in parts.items()},
        )


_PARTS = {
    "load_balancer": "loadBalancer",
    "connection_pool": "connectionPool",
    "outlier_detection": "outlierDetection",
    "tls": "tls",
}


def _port_level(level: TrafficPolicy, port: int) -> tuple[int, PortTrafficPolicy] | None:
    for index, settings in enumerate(level.port_level_settings):
        if settings.port is not None and settings.port.number == port:
            return index, settings
    return None


def destination(reading: Reading, hostname: str, namespace: str) -> Destination:
    """
    Return what holds for *hostname*, a service of *namespace*, at this proxy.

    Which rules hold says `weft.api.precedence`. They are merged: subsets of all, the policy of the oldest that has one.
    """
    reached = _reached(reading, hostname)
    # Without rules nothing hangs on the proxy's namespace: it is not asked for, and all proxies share the fragment.
    rules = in_force(reached, reading.namespace, namespace) if reached else []
    return _merge(rules) if rules else Destination()


def port_number(reading: Reading, hostname: str, chosen: PortSelector | None, called: int) -> int:
    """Return the port of *hostname* that a rule means: the *chosen* one, the service's only one, or the one *called*."""
    if chosen is not None and chosen.number:
        return chosen.number
    service = reading.service(hostname)
    return service.ports[0].number if service is not None and len(service.ports) == 1 else called


def consistent_hash(
    reading: Reading, hostname: str, port: int, *, namespace: str, subset: str = ""
) -> ConsistentHashLB | None:
    """Return by what requests to *hostname* stick to one endpoint; *namespace* is where no service has that name."""
    service = reading.service(hostname)
    rules = destination(reading, hostname, service.namespace if service else namespace)
    balancer = rules.policy(port, subset).load_balancer
    return balancer.consistent_hash if balancer else None


def consistent_hash_of(reading: Reading, cluster: str) -> ConsistentHashLB | None:
    """Return the same for the service behind *cluster*, if there is one."""
    parts = names.outbound_parts(cluster)
    return consistent_hash(reading, parts[0], parts[1], namespace="", subset=parts[2]) if parts else None


def _reached(reading: Reading, hostname: str) -> list[Rule]:
    """Return the rules that speak of *hostname* and that this proxy may see, the most specific host first."""
    found = [(hostname, item) for item in reading.destination_rules(hostname)]
    found += [(host, item) for host, item in reading.wildcard_destination_rules() if matches(hostname, host)]
    return [(host, item) for host, item in found if visible(reading, item) and _for_this_client(reading, item)]


def visible(reading: Reading, item: ConfigObject) -> bool:
    """Whether `exportTo` lets the proxy's namespace see *item*."""
    return not item.spec.export_to or exported(item, reading.namespace)


def _for_this_client(reading: Reading, item: ConfigObject) -> bool:
    selector = item.spec.workload_selector
    return selector is None or (item.key.namespace == reading.namespace and reading.carries(selector.match_labels))


def _merge(rules: list[ConfigObject]) -> Destination:
    subsets: dict[str, tuple[ConfigObject, int, Subset]] = {}
    for item in rules:
        for index, subset in enumerate(item.spec.subsets):
            subsets.setdefault(subset.name, (item, index, subset))
    with_policy = next((item for item in rules if item.spec.traffic_policy is not None), rules[0])
    return Destination(with_policy, tuple(subsets.values()))
