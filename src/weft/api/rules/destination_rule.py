"""Rules for DestinationRule."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from weft.api.check import Finding
from weft.api.names import host_fault, port_fault, subset_fault
from weft.api.networking import (
    ConnectionPoolSettings,
    ConsistentHashLB,
    DestinationRule,
    LoadBalancerSettings,
    OutlierDetection,
    PortTrafficPolicy,
    TrafficPolicy,
)
from weft.api.rules import shared
from weft.api.yaml import Path


def findings(spec: DestinationRule, name: str, namespace: str) -> Iterator[Finding]:
    """Yield what is wrong between the fields of *spec*."""
    if (fault := host_fault(spec.host)) is not None:
        yield Finding(("host",), fault, code="bad-host", at_value=True)
    if spec.traffic_policy is not None:
        yield from _policy(("trafficPolicy",), spec.traffic_policy)
    seen: dict[str, int] = {}
    for index, subset in enumerate(spec.subsets):
        path = ("subsets", index)
        if (fault := subset_fault(subset.name)) is not None:
            yield Finding((*path, "name"), fault, code="bad-name", at_value=True)
        if subset.name in seen:
            message = f"the subset `{subset.name}` is already defined at {{first}}."
            remedy = "Give each subset its own name."
            first = ("subsets", seen[subset.name], "name")
            yield Finding((*path, "name"), message, remedy, "duplicate-subset", at_value=True, first=first)
        seen.setdefault(subset.name, index)
        yield from shared.labels((*path, "labels"), subset.labels)
        if subset.traffic_policy is not None:
            yield from _policy((*path, "trafficPolicy"), subset.traffic_policy)
    yield from shared.export_to(spec.export_to, namespace)


def _policy(path: Path, policy: TrafficPolicy) -> Iterator[Finding]:
    yield from _not_empty(path, policy)
    yield from _parts(path, policy)
    ports: dict[int, int] = {}
    for index, setting in enumerate(policy.port_level_settings):
        place = (*path, "portLevelSettings", index)
        yield from _not_empty(place, setting)
        yield from _parts(place, setting)
        if setting.port is None:
            yield Finding(
                place, "`port` is missing.", "Add `port: {number: 80}`, say.", "missing-field", concerns=("port",)
            )
            continue
        number = setting.port.number
        if (fault := port_fault(number)) is not None:
            yield Finding((*place, "port", "number"), fault, code="bad-port", at_value=True)
        elif number in ports:
            message = f"port {number} has its settings already at {{first}}."
            first = (*path, "portLevelSettings", ports[number])
            where = (*place, "port", "number")
            yield Finding(where, message, "Keep one of them.", "duplicate-port", at_value=True, first=first)
        ports.setdefault(number, index)


def _not_empty(path: Path, policy: TrafficPolicy | PortTrafficPolicy) -> Iterator[Finding]:
    names = [name for name in type(policy).model_fields if name != "port"]
    if not any(getattr(policy, name) for name in names):
        message = "this policy says nothing."
        remedy = "Add `loadBalancer`, `connectionPool`, `outlierDetection` or `tls`, or remove it."
        concerns = tuple(type(policy).model_fields[name].alias or name for name in names)
        yield Finding(path, message, remedy, "missing-field", concerns=concerns)


def _parts(path: Path, policy: TrafficPolicy | PortTrafficPolicy) -> Iterator[Finding]:
    if policy.load_balancer is not None:
        yield from _load_balancer((*path, "loadBalancer"), policy.load_balancer)
    if policy.connection_pool is not None:
        yield from _connection_pool((*path, "connectionPool"), policy.connection_pool)
    if policy.outlier_detection is not None:
        yield from _outlier_detection((*path, "outlierDetection"), policy.outlier_detection)


def _load_balancer(path: Path, balancer: LoadBalancerSettings) -> Iterator[Finding]:
    ways = {
        "simple": balancer.simple is not None,
        "consistentHash": balancer.consistent_hash is not None,
        "backendUtilization": balancer.backend_utilization is not None,
    }
    given = [name for name, there in ways.items() if there]
    for name in given[1:]:
        message = f"a load balancer has either `{given[0]}` or `{name}`, not both."
        yield Finding((*path, name), message, "Keep one of them.", "conflict", concerns=())
    if balancer.consistent_hash is not None:
        yield from _consistent_hash((*path, "consistentHash"), balancer.consistent_hash)


MOST_RING_POINTS = 8 << 20
MOST_MAGLEV_PLACES = 5_000_011
"""What data planes take (Envoy's `RingHashLbConfig` and `MaglevLbConfig`)."""


def _consistent_hash(path: Path, settings: ConsistentHashLB) -> Iterator[Finding]:
    keys = {
        "httpHeaderName": settings.http_header_name,
        "httpCookie": settings.http_cookie,
        "useSourceIp": settings.use_source_ip,
        "httpQueryParameterName": settings.http_query_parameter_name,
    }
    given = [name for name, value in keys.items() if value is not None]
    if not given:
        message = "consistent hashing needs a property of the request that decides."
        remedy = f"Add one of {', '.join(f'`{name}`' for name in keys)}."
        yield Finding(path, message, remedy, "missing-field", concerns=tuple(keys))
    for name in given[1:]:
        message = f"consistent hashing goes either by `{given[0]}` or by `{name}`, not by both."
        yield Finding((*path, name), message, "Keep one of them.", "conflict", concerns=())
    for name in ("httpHeaderName", "httpQueryParameterName"):
        if keys[name] == "":
            yield Finding((*path, name), f"`{name}` is empty.", code="missing-field", at_value=True)
    if settings.http_cookie is not None and not settings.http_cookie.name:
        message = "the name of the cookie is empty."
        remedy = "Write the name of the cookie that decides."
        yield Finding((*path, "httpCookie", "name"), message, remedy, "missing-field", at_value=True)
    if settings.ring_hash is not None and settings.maglev is not None:
        message = "the endpoints are either on a ring or in a Maglev table."
        yield Finding((*path, "maglev"), message, "Keep `ringHash` or `maglev`.", "conflict", concerns=())
    if settings.minimum_ring_size and (settings.ring_hash is not None or settings.maglev is not None):
        message = "`minimumRingSize` is the older form of `ringHash.minimumRingSize`, and has no effect here."
        yield Finding((*path, "minimumRingSize"), message, "Remove it.", "conflict", concerns=())
    sizes: dict[Path, int] = {("minimumRingSize",): settings.minimum_ring_size}
    if settings.ring_hash is not None:
        sizes["ringHash", "minimumRingSize"] = settings.ring_hash.minimum_ring_size
    for place, size in sizes.items():
        if size > MOST_RING_POINTS:
            message = f"a ring has at most {MOST_RING_POINTS} points, not {size}."
            yield Finding((*path, *place), message, code="out-of-range", at_value=True)
    size = settings.maglev.table_size if settings.maglev is not None else 0
    if size and not (size <= MOST_MAGLEV_PLACES and _is_prime(size)):
        message = f"a Maglev table has a prime number of places, at most {MOST_MAGLEV_PLACES}; {size} is none."
        yield Finding((*path, "maglev", "tableSize"), message, code="out-of-range", at_value=True)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _connection_pool(path: Path, pool: ConnectionPoolSettings) -> Iterator[Finding]:
    if pool.tcp is None and pool.http is None:
        message = "a connection pool has `tcp`, `http`, or both."
        yield Finding(path, message, code="missing-field", concerns=("tcp", "http"))
    limits = {"tcp": ("max_connections",)} | {
        "http": (
            "http1_max_pending_requests",
            "http2_max_requests",
            "max_requests_per_connection",
            "max_retries",
            "max_concurrent_streams",
        )
    }
    for part, names in limits.items():
        settings = getattr(pool, part)
        for name in names if settings is not None else ():
            value = getattr(settings, name)
            if value < 0:
                alias = type(settings).model_fields[name].alias
                message = f"`{alias}` is a number from 0, not {value}; 0 stands for no limit."
                yield Finding((*path, part, alias), message, code="out-of-range", at_value=True)
    if pool.http is not None and pool.http.h2_upgrade_policy == "UPGRADE" and pool.http.use_client_protocol:
        message = "`useClientProtocol` cannot hold where `h2UpgradePolicy` is UPGRADE."
        yield Finding((*path, "http", "useClientProtocol"), message, "Keep one of them.", "conflict", concerns=())


def _outlier_detection(path: Path, outlier: OutlierDetection) -> Iterator[Finding]:
    for name in ("max_ejection_percent", "min_health_percent"):
        value = getattr(outlier, name)
        if not 0 <= value <= 100:
            alias = type(outlier).model_fields[name].alias or name
            message = f"a percentage is 0 to 100, not {value}."
            yield Finding((*path, alias), message, code="out-of-range", at_value=True)
    if outlier.consecutive_local_origin_failures and not outlier.split_external_local_origin_errors:
        message = "`consecutiveLocalOriginFailures` counts only where `splitExternalLocalOriginErrors` is true."
        hinges = ((*path, "splitExternalLocalOriginErrors"),)
        yield Finding((*path, "consecutiveLocalOriginFailures"), message, code="conflict", hinges=hinges)
