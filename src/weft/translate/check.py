"""
The last look before publishing: nothing in a view may wait for, or send to, something that the view does not hold, and
no name may mean two things.

Called by the control plane on the resources of each proxy. What is found is weft's own mistake and stops the change; a
route that a person wrote to a subset or host that is not there is `weft.api.references`' to report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2

from weft.model import Origin, Problem
from weft.translate.http_manager import HTTP_MANAGER
from weft.translate.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, Resources

NOWHERE = Origin("-", 1)
"""Of what no document has brought about."""


def check(resources: Resources) -> tuple[Problem, ...]:
    """Return an error for each name that is given twice, each listener without its routes, each cluster without its endpoints."""
    held = _names(resources)
    problems = []
    count = Counter((item.type_url, item.name) for item in resources)
    for (type_url, name), times in count.items():
        if times > 1:  # xDS tells resources apart by these; the publisher would refuse the views of all
            problems.append(_error(name, f"stands {times} times among the resources of type {type_url}"))
    for item in resources:
        if item.type_url == CLUSTER:
            cluster = cluster_pb2.Cluster.FromString(item.value)
            service = cluster.eds_cluster_config.service_name or cluster.name
            if cluster.type == cluster_pb2.Cluster.EDS and service not in held[CLUSTER_LOAD_ASSIGNMENT]:
                problems.append(_error(item.name, f"waits for endpoints {service!r}, which are not there"))
        elif item.type_url == LISTENER:
            for name, manager in _managers(listener_pb2.Listener.FromString(item.value)):
                wanted = manager.rds.route_config_name
                if manager.HasField("rds") and wanted not in held[ROUTE_CONFIGURATION]:
                    problems.append(_error(name, f"waits for routes {wanted!r}, which are not there"))
    return tuple(problems)


def _names(resources: Resources) -> Mapping[str, frozenset[str]]:
    types = (LISTENER, ROUTE_CONFIGURATION, CLUSTER, CLUSTER_LOAD_ASSIGNMENT)
    return {type_url: frozenset(item.name for item in resources if item.type_url == type_url) for type_url in types}


def _chains(listener: Any) -> Iterator[Any]:
    yield from listener.filter_chains
    if listener.HasField("default_filter_chain"):
        yield listener.default_filter_chain


def _managers(listener: Any) -> Iterator[tuple[str, Any]]:
    for chain in _chains(listener):
        for item in chain.filters:
            if item.name == HTTP_MANAGER:
                value = item.typed_config.value
                yield listener.name, http_connection_manager_pb2.HttpConnectionManager.FromString(value)


def _error(name: str, message: str) -> Problem:
    return Problem(
        NOWHERE, name, f"{name} {message}", "This is a mistake of weft; please report it.", code="incomplete"
    )
