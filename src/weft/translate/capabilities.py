"""
What each data plane can do of that which not all of them can, and who wrote what one of them cannot do.

Every document is applied to all proxies; a data plane that would ignore a field must not be given it in silence. The
control plane asks `refusals` before a change is stored, for each data plane that the mesh runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from weft.api.networking import TrafficPolicy
from weft.data_plane import ENVOY, WEFT_PROXY
from weft.model import ConfigObject, Problem, Protocol, Proxy
from weft.translate.origin import rule


class Capability(StrEnum):
    """What a document may ask for that some data plane cannot do; the value is how people name it."""

    CONSISTENT_HASH = "consistent hashing"
    HTTP2 = "HTTP/2"
    MIRROR = "mirroring"
    ORIGINAL_DESTINATION = "load balancing by the caller's address (PASSTHROUGH)"


DATA_PLANES: dict[str, frozenset[Capability]] = {
    WEFT_PROXY: frozenset(Capability),
    ENVOY: frozenset(Capability),
}
"""By the name in `Proxy.data_plane`. tests/translate/test_capabilities.py holds it to `weft._native.validate`."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Something that a data plane lacks beside another, told to people; `code` is for programs."""

    code: str
    text: str


_OF_ENVOY = (
    # Requests.
    Shortfall("http1-links", "calls other sidecars by HTTP/1.1, unless `h2UpgradePolicy` says otherwise"),
    Shortfall(
        "shared-window", "lets clients that do not read stop all others of a link that `h2UpgradePolicy` upgrades"
    ),
    Shortfall("lower-case-names", "writes the names of header fields in lower case"),
    Shortfall(
        "lenient-http1",
        "mends HTTP/1 that others may read in another way, and passes it on: folded fields, lone line feeds, two Hosts,"
        " chunks longer than they say, fields that `Connection` takes away",
    ),
    Shortfall("strict-204", "answers 502 for a program that answers 204 with a length or chunks"),
    Shortfall(
        "keyless-websockets",
        "asks programs of HTTP/1.1 for a WebSocket without a key where its client speaks HTTP/2 and sent none",
    ),
    Shortfall("whole-connections", "ends a whole connection of HTTP/2 for one request that is malformed"),
    Shortfall("slow-copies", "slows a request down while its copy (mirroring) is slow"),
    # Connections.
    Shortfall(
        "server-first",
        "waits for the client to speak first where nobody declared a port's protocol: for ever, or 3 s under PERMISSIVE",
    ),
    # What is told of them.
    Shortfall("no-istio-metrics", "has no `istio_*` metrics, only its own"),
    Shortfall("uncounted-copies", "counts copies of requests (mirroring) in no metric"),
    Shortfall("dropped-records", "drops what it would tell of requests while the control plane is away"),
    Shortfall("explained-by-weft", "is explained by weft-proxy's decision code in `weft why`, not by its own"),
    # Where it runs, and after a death.
    Shortfall("no-explicit-mode", "does not run in explicit mode"),
    Shortfall(
        "slow-start",
        "takes some tenths of a second to start again after it died; who calls meanwhile waits,"
        " and after a second is told 503",
    ),
    Shortfall(
        "configuration-in-memory",
        "has its configuration kept in its agent's memory, not on disk; a new agent or `weft hot-restart` asks the control plane",
    ),
)
"""The last column of docs/reference/data-planes.md has each code beside what it is about."""

_OF_RELAYED = (
    Shortfall(
        "relayed",
        "reaches the host's network by its agent, which copies every byte; of a place that cannot be reached its records"
        " say UR or UC, and not why",
    ),
)


def shortfalls(proxy: Proxy) -> tuple[Shortfall, ...]:
    """Return what *proxy* lacks beside the other data planes, whatever is applied; documents are `refusals`' matter."""
    missing = [capability for capability in Capability if not able(proxy.data_plane, capability)]
    return (
        *(Shortfall("capability", f"cannot do {capability}") for capability in missing),
        *(_OF_ENVOY if proxy.data_plane == ENVOY else ()),
        *(_OF_RELAYED if proxy.outside_socket else ()),
    )


def speaks_http(data_plane: str, protocol: Protocol) -> bool:
    """
    Whether *data_plane* sees requests on a port that speaks *protocol*, or only a connection.

    A port whose HTTP a data plane cannot read (HTTP/2 and gRPC, where one has no `Capability.HTTP2`) is carried as TCP:
    with mutual TLS, balanced by connection, and without HTTP rules. Both data planes of today read all of it.
    """
    return protocol is Protocol.HTTP or (protocol.is_http and able(data_plane, Capability.HTTP2))


def able(data_plane: str, capability: Capability) -> bool:
    """
    Whether *data_plane* can do it.

    Raises:
        KeyError: There is no such data plane.
    """
    return capability in DATA_PLANES[data_plane]


def refusals(item: ConfigObject, data_plane: str) -> tuple[Problem, ...]:
    """Return an error for each field of *item* that *data_plane* cannot honour."""
    return tuple(
        Problem(
            origin=item.locate(*path),
            path=rule(path),
            message=f"{data_plane} cannot do {capability}.",
            remedy=f"Take it out, or run the programs that need it with {_who_can(capability)}.",
            code="data-plane-cannot",
        )
        for path, capability in _asked(item)
        if not able(data_plane, capability)
    )


def _who_can(capability: Capability) -> str:
    return " or ".join(sorted(name for name in DATA_PLANES if able(name, capability)))


def _asked(item: ConfigObject) -> Iterator[tuple[tuple[str | int, ...], Capability]]:
    """Yield each place of *item* that asks for a capability."""
    if item.key.kind == "VirtualService":
        for index, route in enumerate(item.spec.http):
            at: tuple[str | int, ...] = ("spec", "http", index)
            if route.mirror is not None:
                yield (*at, "mirror"), Capability.MIRROR
            if route.mirrors:
                yield (*at, "mirrors"), Capability.MIRROR
    elif item.key.kind == "HTTPRoute":
        for index, rule_ in enumerate(item.spec.rules):
            for place, filter_ in enumerate(rule_.filters):
                if (capability := _FILTERS.get(filter_.type)) is not None:
                    yield ("spec", "rules", index, "filters", place), capability
    elif item.key.kind == "DestinationRule":
        for at, policy in _policies(item):
            yield from _asked_of_policy(at, policy)


_FILTERS = {"RequestMirror": Capability.MIRROR}
"""Filters of an HTTPRoute that not every data plane can do."""


def _policies(item: ConfigObject) -> Iterable[tuple[tuple[str | int, ...], TrafficPolicy]]:
    if item.spec.traffic_policy is not None:
        yield ("spec", "trafficPolicy"), item.spec.traffic_policy
    for index, subset in enumerate(item.spec.subsets):
        if subset.traffic_policy is not None:
            yield ("spec", "subsets", index, "trafficPolicy"), subset.traffic_policy


def _asked_of_policy(
    at: tuple[str | int, ...], policy: TrafficPolicy
) -> Iterator[tuple[tuple[str | int, ...], Capability]]:
    levels = [(at, policy.load_balancer)]
    levels += [
        ((*at, "portLevelSettings", index), settings.load_balancer)
        for index, settings in enumerate(policy.port_level_settings)
    ]
    for path, balancer in levels:
        if balancer is not None and balancer.consistent_hash is not None:
            yield (*path, "loadBalancer", "consistentHash"), Capability.CONSISTENT_HASH
        if balancer is not None and balancer.simple == "PASSTHROUGH":
            yield (*path, "loadBalancer", "simple"), Capability.ORIGINAL_DESTINATION
