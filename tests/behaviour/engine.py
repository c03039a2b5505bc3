"""The engine in process: the proxy's own decision code, asked for every outcome at once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from envoy.config.endpoint.v3 import endpoint_pb2

from tests.behaviour.mesh import addresses
from tests.reference.evaluate import Outcome, Possible, Request
from weft._native import Engine

ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def explain(resources: list[tuple[str, str, str, bytes]], request: Request, destination: str) -> dict[str, Any]:
    """The engine's answer about *request* on *resources*."""
    engine = Engine([(type_url, name, value) for type_url, name, _, value in resources])
    question = {
        "direction": "outbound" if request.gateway == "mesh" else "gateway",
        "destination": destination,
        "source": "127.0.0.1:0",  # of the live client; which port it will have nobody knows
        "method": request.method,
        "scheme": request.scheme,
        "authority": request.authority,
        "path": f"{request.path}?{request.query}" if request.query else request.path,
        "headers": [list(pair) for pair in request.headers.items()],
    }
    answer: dict[str, Any] = json.loads(engine.explain(json.dumps(question)))
    return answer


def possible(resources: list[tuple[str, str, str, bytes]], request: Request, destination: str) -> Possible:
    """What the engine says may happen to *request*, in the terms of the reference evaluator."""
    answer = explain(resources, request, destination)
    workloads = _workloads(resources)
    fault = answer.get("fault") or {}
    delay_share = fault.get("delay_percent", 0) / 100 if fault.get("delay_ms") else 0.0
    abort_share = fault.get("abort_percent", 0) / 100 if fault.get("abort_status") else 0.0
    found: Possible = []
    for delayed, by_delay in ((True, delay_share), (False, 1 - delay_share)):
        delay = fault.get("delay_ms", 0) / 1000 if delayed else 0.0
        if by_delay * abort_share:
            status = fault["abort_status"]
            found.append((by_delay * abort_share, Outcome("respond", status=status, delay_seconds=delay)))
        if by_delay * (1 - abort_share):
            for share, outcome in _actions(answer, workloads):
                if share:
                    found.append((by_delay * (1 - abort_share) * share, replace(outcome, delay_seconds=delay)))
    return found


def _actions(answer: dict[str, Any], workloads: dict[str, frozenset[str]]) -> Possible:
    match answer["outcome"]:
        case "redirect":
            return [(1.0, Outcome("redirect", status=answer["status"], location=answer.get("location", "")))]
        case "direct_response" | "no_route" | "refused":
            return [(1.0, Outcome("respond", status=answer["status"]))]
        case "preflight" | "denied":
            headers = dict(answer.get("cors", {}).get("response_headers", []))
            return [(1.0, Outcome("respond", status=answer["status"], response_headers=headers))]
        case "no_cluster":
            return [(1.0, Outcome("respond", status=answer.get("status", 503)))]
    retry = answer.get("retry") or {}
    timeout = answer.get("timeout_ms")
    copies = tuple(
        (workloads[mirror["cluster"]], mirror["percent"] / 100)
        for mirror in answer.get("mirror") or ()
        if workloads.get(mirror["cluster"])
    )
    made = []
    for cluster in answer["clusters"]:
        have = workloads.get(cluster["name"])
        if cluster["name"] == "PassthroughCluster":
            made.append((cluster["share"], Outcome("passthrough")))
        elif not have:
            made.append((cluster["share"], Outcome("respond", status=cluster.get("status", 503))))
        else:
            outcome = Outcome(
                "forward",
                workloads=have,
                timeout_seconds=timeout / 1000 if timeout else None,
                attempts=retry.get("attempts", 0),
                retry_on=retry.get("on", ""),
                per_try_timeout_seconds=(retry.get("per_try_timeout_ms") or 0) / 1000 or None,
                copies=copies,
                sticks_by=chosen_by_hash(cluster),
            )
            made.append((cluster["share"], outcome))
    return made


def chosen_by_hash(cluster: dict[str, Any]) -> str:
    """The workload that a destination of the answer leads to, if a hash decides."""
    endpoint = (cluster.get("hash") or {}).get("endpoint") or ""
    return {address: name for name, address in addresses().items()}.get(endpoint.rpartition(":")[0], "")


def _workloads(resources: list[tuple[str, str, str, bytes]]) -> dict[str, frozenset[str]]:
    """Cluster name -> the workloads behind its endpoints."""
    names = {address: name for name, address in addresses().items()}
    found = {}
    for type_url, name, _, value in resources:
        if type_url == ENDPOINTS:
            assignment = endpoint_pb2.ClusterLoadAssignment.FromString(value)
            found[name] = frozenset(
                names[endpoint.endpoint.address.socket_address.address]
                for locality in assignment.endpoints
                for endpoint in locality.lb_endpoints
            )
    return found
