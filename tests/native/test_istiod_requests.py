"""
The same random requests through weft's resources and through those that istiod recorded for the same input.

Both go through the engine, so what is compared is what a request meets: the virtual host and the match that took it,
destinations and their shares, endpoints and how they are spoken to, fault, timeout, retries, rewrites, headers, direct
answers and redirects, on its way out and on its way in. A difference is explained in istiod_differences.yaml or it is
a failure. Field by field is compared in tests/translate/test_istiod_oracle.py.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from google.protobuf import any_pb2, json_format

from tests.translate.differences import Known, known_differences
from tests.translate.kubernetes import Scenario, load
from weft._native import Engine
from weft.model import Protocol, Proxy, ProxyKind
from weft.translate.translator import translate

SCENARIOS = (
    "bookinfo-ingress-gateway",
    "bookinfo-mtls",
    "bookinfo-ratings-abort",
    "bookinfo-reviews-90-10",
    "bookinfo-reviews-jason-v2-v3",
    "bookinfo-reviews-test-v2-ratings-delay",
    "bookinfo-v1",
    "bookinfo-v1-auto-mtls-off",
    "httpbin-retries-timeout-circuit-breaker",
)
KINDS = ("listeners", "routes", "clusters", "endpoints")
REQUESTS = 150
"""For each proxy, and half as many inbound."""
SEED = 20260822
WANTED = {
    "httpbin-retries-timeout-circuit-breaker": {"direct_response", "redirect"},
}
"""Outcomes that the requests of a scenario must have had, besides those of all."""
ISTIOD_TYPES = (config_pb2, http_inspector_pb2, original_dst_pb2, tls_inspector_pb2, uuid_pb2)
"""Imported so that json_format knows the types inside istiod's resources."""


@cache
def scenario(folder: Path) -> Scenario:
    return load(folder)


def istiod(of: Scenario, proxy: str) -> Engine:
    found = []
    for kind in KINDS:
        for item in of.recorded(proxy, kind):
            packed = json_format.ParseDict(item, any_pb2.Any())
            found.append((packed.type_url, item.get("name") or item["clusterName"], packed.value))
    return Engine(found, strict=False)


def weft(of: Scenario, proxy: str) -> Engine:
    resources = [(item.type_url, item.name, item.value) for item in translate(of.snapshot, of.proxies[proxy])]
    engine = Engine(resources, strict=False)
    assert not engine.not_applied
    return engine


@dataclass
class Words:
    """What the documents' rules ask for, and things near it: requests are made of these."""

    paths: list[str]
    headers: list[tuple[str, str]]
    queries: list[tuple[str, str]]
    methods: list[str]

    @classmethod
    def of(cls, scenario: Scenario) -> Words:
        words = cls(["/", "/reviews/0", "/api/v1/products/0"], [("end-user", "Jason")], [("x", "1")], ["GET", "POST"])
        for item in scenario.snapshot.config.values():
            for route in (item.manifest["spec"].get("http") or ()) if item.key.kind == "VirtualService" else ():
                for match in route.get("match", ()):
                    words._learn(match)
        return words

    def _learn(self, match: dict[str, Any]) -> None:
        for uri in map(example, [match["uri"]] if "uri" in match else []):
            self.paths += [uri, uri, f"{uri}/x", f"{uri}x", uri.upper()]
        for name, value in ((name, example(text)) for name, text in match.get("headers", {}).items()):
            self.headers += [(name, value), (name, value), (name, f"{value}x"), (name.title(), value)]
        for name, value in ((name, example(text)) for name, text in match.get("queryParams", {}).items()):
            self.queries += [(name, value), (name, value), (name, f"{value}x"), (name.upper(), value)]
        if "method" in match:
            self.methods.append(example(match["method"]))


def example(text: dict[str, str]) -> str:
    """Return a text that a StringMatch takes."""
    ((_, value),) = text.items()
    return value.replace(".*", "03")


def outbound(of: Scenario, kind: ProxyKind) -> list[dict[str, Any]]:
    """Requests that hit and miss every rule of the documents."""
    dice = random.Random(SEED)
    words = Words.of(of)
    services = [service for service in of.snapshot.services.values() if service.name != "kubernetes"]
    made = []
    for _ in range(REQUESTS):
        service = dice.choice(services)
        # What has no port of HTTP is called on one that it does not have.
        port = next((port.number for port in service.ports if port.protocol is Protocol.HTTP), 9080)
        forms = ["{0}", "{0}:{1}", "{0}.default", "{0}.default.svc.cluster.local", "{0}.default.svc.cluster.local:{1}"]
        authority = dice.choice([*forms, "elsewhere.example"]).format(service.name, port)
        queries = dice.sample(words.queries, dice.randint(0, min(2, len(words.queries))))
        made.append(
            {
                "direction": "outbound" if kind is ProxyKind.SIDECAR else "gateway",
                "destination": f"{service.address}:{port}" if kind is ProxyKind.SIDECAR else "10.244.0.1:8080",
                "method": dice.choice(words.methods),
                "authority": authority.upper() if dice.random() < 0.1 else authority,
                "path": dice.choice(words.paths) + ("?" + "&".join(map("=".join, queries)) if queries else ""),
                "headers": [list(dice.choice(words.headers))] if dice.random() < 0.7 else [],
            }
        )
    return made


def inbound(of: Scenario, node: Proxy) -> list[dict[str, Any]]:
    """Requests to the ports of a sidecar's own workload: from peers of the mesh, in plain text, and with TLS that is not the mesh's."""
    dice = random.Random(SEED)
    words = Words.of(of)
    if node.kind is not ProxyKind.SIDECAR:
        return []  # what comes in at a gateway is routed as `outbound` has it
    workload = of.snapshot.workloads[node.namespace, node.workload]
    peers = [str(peer.identity) for peer in of.snapshot.workloads.values()]
    connections: list[dict[str, Any]] = [
        {},
        {"alpn": ["istio", "http/1.1"], "sni": "outbound_.9080_._.reviews.default.svc.cluster.local"},
        {"alpn": ["h2"], "sni": "elsewhere.example"},
    ]
    made = []
    for _ in range(REQUESTS // 2):
        connection = dict(dice.choice(connections))
        if "istio" in connection.get("alpn", ()):
            connection["source_principal"] = dice.choice(peers)
        request = {
            "direction": "inbound",
            "destination": f"{node.address}:{dice.choice(workload.ports).number}",
            "source": "10.244.0.250:40000",
            "method": dice.choice(words.methods),
            "authority": dice.choice([*workload.services, "elsewhere.example", "127.0.0.1:1"]),
            "path": dice.choice(words.paths),
            "headers": [list(dice.choice(words.headers))] if dice.random() < 0.5 else [],
        }
        made.append(request | connection)
    return made


def met(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """What the request meets, part by part, without names that only logs show and texts for people."""
    answer = json.loads(engine.explain(json.dumps(request)))
    route, retry, endpoints = answer.get("route") or {}, answer.get("retry"), answer.get("endpoints", ())
    parts = (
        "outcome",
        "status",
        "response_flags",
        "location",
        "body",
        "delayed_ms",
        "fault",
        "timeout_ms",
        "idle_timeout_ms",
        "rewrite",
        "mirror",
        "request_headers",
        "response_headers",
        "route_configuration",
        "virtual_host",
    )
    return {
        **{part: answer.get(part) for part in parts},
        "route": {key: route.get(key) for key in ("name", "match")},
        "clusters": sorted((item["name"], item["share"], item.get("exists")) for item in answer.get("clusters", ())),
        "endpoints": sorted((item["cluster"], item["address"], round(item["share"], 6)) for item in endpoints),
        "tls": sorted((item["cluster"], *spoken(item["tls"])) for item in endpoints),
        "retry": retry and {key: value for key, value in retry.items() if key != "on"},
        "retry_on": retry and sorted(retry["on"].split(",")),
    }


def spoken(tls: dict[str, Any] | None) -> tuple[str, ...]:
    """How an endpoint is spoken to: SNI, secrets, and the names that it must prove; nothing in plain text."""
    return (tls["sni"], tls["certificate"], tls["trust"], ",".join(sorted(tls["names"]))) if tls else ()


def test_random_requests_meet_the_same_in_both(corpus: Path) -> None:
    """What istiod's resources decide for a request, weft's do; what differs is explained, and each entry is needed."""
    used: set[Known] = set()
    for name in SCENARIOS:
        of = scenario(corpus / "istiod-xds" / name)
        seen: dict[str, set[str]] = {"outcome": set(), "match": set()}
        for proxy, node in of.proxies.items():
            theirs, ours = istiod(of, proxy), weft(of, proxy)
            for request in [*outbound(of, node.kind), *inbound(of, node)]:
                mine, recorded = met(ours, request), met(theirs, request)
                differ = {f"{request['direction']} {part}" for part in mine if mine[part] != recorded[part]}
                for part in differ:
                    reasons = [known for known in known_differences() if known.explains_request(name, part)]
                    used.update(reasons)
                    key = part.partition(" ")[2]
                    assert reasons, f"{name} {proxy} {request}: {part}: istiod {recorded[key]}, weft {mine[key]}"
                seen["outcome"].add(mine["outcome"])
                seen["match"].add(str(mine["route"]["match"]))
        assert seen["outcome"] >= {"forward", "refused"} | WANTED.get(name, set()), f"{name}: {seen}"
        assert len(seen["match"]) >= rules(of), f"{name}: not every rule was met: {seen['match']}"
    stale = [known for known in known_differences() if known.request and known not in used]
    assert not stale, f"differences that are none any more: {stale}"


def rules(of: Scenario) -> int:
    """Return how many conditions the routes of the scenario's VirtualServices have, each of which some request meets."""
    found = set()
    for item in of.snapshot.config.values():
        for route in (item.manifest["spec"].get("http") or ()) if item.key.kind == "VirtualService" else ():
            found.update(json.dumps(match, sort_keys=True) for match in route.get("match", [{}]))
    return len(found)
