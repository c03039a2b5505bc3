"""
What Istio's own control plane recorded, loaded into a running weft-proxy.

Everything is acknowledged but what needs a feature that weft-proxy does not have, and that is refused by the name of its field.
Requests to the recorded hosts reach the recorded endpoints, which are sockets of this test.
"""

from __future__ import annotations

import http.client
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from envoy.extensions.filters.http.cors.v3 import cors_pb2  # noqa: F401 - these register the types for Any
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2  # noqa: F401
from envoy.extensions.filters.http.fault.v3 import fault_pb2  # noqa: F401
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2  # noqa: F401
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_authn_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2  # noqa: F401
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2  # noqa: F401
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2  # noqa: F401
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.network.dns_resolver.cares.v3 import cares_dns_resolver_pb2  # noqa: F401
from envoy.extensions.request_id.uuid.v3 import uuid_pb2  # noqa: F401
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2  # noqa: F401
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2  # noqa: F401
from google.protobuf import any_pb2, json_format

from tests.conformance.certificates import secret
from tests.conformance.proxies import LIMIT, Proxy, Resource, proxies
from tests.conformance.proxies import ask as ask_admin
from tests.conformance.test_grpc import tls
from tests.ports import free_port

pytestmark = pytest.mark.conformance

SCENARIOS = (
    "authorization-allow-get",
    "authorization-custom",
    "authorization-deny-jwt-claim",
    "authorization-tcp",
    "bookinfo-ingress-gateway",
    "bookinfo-mtls",
    "bookinfo-ratings-abort",
    "bookinfo-reviews-90-10",
    "bookinfo-reviews-jason-v2-v3",
    "bookinfo-reviews-test-v2-ratings-delay",
    "bookinfo-v1",
    "bookinfo-v1-auto-mtls-off",
    "consistent-hash-cookie",
    "consistent-hash-header",
    "consistent-hash-query-ringhash",
    "consistent-hash-source-ip-maglev",
    "egress-gateway",
    "gateway-api-bookinfo-gateway",
    "gateway-api-reviews-90-10",
    "gateway-api-reviews-v1",
    "grpc-echo",
    "httpbin-mirror",
    "httpbin-retries-timeout-circuit-breaker",
    "load-balancing-simple",
    "locality-distribute",
    "locality-failover",
    "peerauthentication-per-port",
    "peerauthentication-permissive-namespace",
    "peerauthentication-strict-mesh",
    "request-authentication-inline-jwks",
    "serviceentry-external",
    "serviceentry-registry-only",
    "sidecar-scoping",
    "tcp-echo-weighted",
    "tcp-echo-weighted-mesh",
)
WITHOUT_REQUESTS = ("bookinfo-mtls", "grpc-echo")
"""Every cluster there has TLS or HTTP/2."""

KINDS = ("clusters", "endpoints", "listeners", "routes")
PROXYLESS = "grpc"
"""`GENERATOR` of a gRPC client that is its own proxy: its resources are not for a proxy to serve."""

UNSUPPORTED = {
    "extensions.filters.http.jwt_authn.v3.JwtAuthentication": "http_filters",
    "extensions.filters.http.ext_authz.v3.ExtAuthz": "http_filters",
}
"""What weft-proxy has not, by how it shows in a resource, and the field that its refusal must name."""


Handler = Callable[[str], type[socketserver.BaseRequestHandler]]


class Endpoints:
    """A server for each recorded endpoint, which serves its connections by *handler* of the endpoint's recorded address."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._servers: dict[str, socketserver.ThreadingTCPServer] = {}

    def port(self, recorded: str) -> int:
        """Where the endpoint that was recorded at *recorded* listens."""
        if recorded not in self._servers:
            server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(recorded))
            self._servers[recorded] = server
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return int(self._servers[recorded].server_address[1])

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


def answering(text: str) -> type[socketserver.StreamRequestHandler]:
    """A handler that answers every request with *text*."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                if line == b"\r\n":
                    self.wfile.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())

    return Handler


@contextmanager
def endpoints(handler: Handler = answering) -> Iterator[Endpoints]:
    running = Endpoints(handler)
    try:
        yield running
    finally:
        running.close()


class Recorded:
    """The resources of one recorded proxy, moved to this machine: `items` by kind."""

    def __init__(self, folder: Path, proxy: str, servers: Endpoints) -> None:
        self.items: dict[str, list[dict[str, Any]]] = {
            kind: json.loads((folder / f"{proxy}.{kind}.json").read_text()) for kind in KINDS
        }
        self._proxy = proxy
        self.ports: dict[str, int] = {}
        """Where each listener is now."""
        self.addresses: dict[str, set[str]] = {}
        """The recorded addresses of each cluster's endpoints."""
        for listener in self.items["listeners"]:
            port = self.ports[listener["name"]] = free_port()
            listener["address"] = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
            listener.pop("additionalAddresses", None)
            # It is reached by itself: no connection to this machine has another original destination.
            listener.pop("bindToPort", None)
        for cluster in self.items["clusters"]:
            if cluster.get("type") == "STRICT_DNS":
                # Nobody answers there, at once: no test asks the internet.
                nobody = {"socketAddress": {"address": "127.0.0.1", "portValue": free_port()}}
                cluster["typedDnsResolverConfig"]["typedConfig"]["resolvers"] = [nobody]
        for assignment in self.items["endpoints"]:
            found = self.addresses[assignment["clusterName"]] = set()
            for endpoint in (one for place in assignment.get("endpoints", ()) for one in place.get("lbEndpoints", ())):
                # Without it the endpoint gets plain text, as one without a sidecar.
                endpoint.get("metadata", {}).get("filterMetadata", {}).pop("envoy.transport_socket_match", None)
                address = endpoint["endpoint"]["address"].get("socketAddress")
                if address is not None:
                    recorded = f"{address['address']}:{address['portValue']}"
                    found.add(recorded)
                    address.update(address="127.0.0.1", portValue=servers.port(recorded))

    def resources(self) -> list[Resource]:
        """All of them, serialised."""
        made = []
        for item in (item for items in self.items.values() for item in items):
            message = json_format.ParseDict(item, any_pb2.Any())
            name = item.get("name") or item["clusterName"]
            # What was refused is not sent again under the same version, and proxies share resources.
            made.append((message.type_url, name, self._proxy, message.value))
        return made

    def expected_refusals(self) -> dict[tuple[str, str], set[str]]:
        """The fields that the refusal of a resource may name, for each that must be refused."""
        found = {}
        for item in (item for items in self.items.values() for item in items):
            text = json.dumps(item)
            if fields := {field for mark, field in UNSUPPORTED.items() if mark in text}:
                found[item["@type"], item.get("name") or item["clusterName"]] = fields
        return found

    def plain_requests(self) -> Iterator[tuple[int, str, set[str]]]:
        """
        Requests whose answer follows from the recorded JSON at a glance: a port, a host, and which endpoints may answer.

        Only virtual hosts that end with a route for everything, and clusters of HTTP/1.1 without TLS.
        """
        clusters = {cluster["name"]: cluster for cluster in self.items["clusters"]}
        tables = {table["name"]: table for table in self.items["routes"]}
        refused = {name for _, name in self.expected_refusals()}
        for listener in self.items["listeners"]:
            for manager in managers(listener):
                table = tables.get(manager.get("rds", {}).get("routeConfigName", ""))
                if table is None or {listener["name"], table["name"]} & refused:
                    continue
                for host in table["virtualHosts"]:
                    last = host["routes"][-1]
                    conditions = [route for route in host["routes"][:-1] if "headers" not in route["match"]]
                    if (
                        conditions
                        or last["match"] != {"prefix": "/"}
                        or "route" not in last
                        or "*" in host["domains"][0]
                    ):
                        continue
                    weighted = last["route"].get("weightedClusters", {}).get("clusters", ())
                    names = [one["name"] for one in weighted] or [last["route"].get("cluster", "")]
                    chosen = [clusters.get(name, {}) for name in names]
                    if refused & set(names) or not all(is_plain(cluster) for cluster in chosen):
                        continue
                    expected = set[str]().union(*(self.addresses.get(name, ()) for name in names))
                    yield self.ports[listener["name"]], host["domains"][0], expected


def managers(listener: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The connection managers of the chains that take any connection in plain text."""
    for chain in [*listener.get("filterChains", ()), listener.get("defaultFilterChain") or {}]:
        conditions = set(chain.get("filterChainMatch", {})) - {"applicationProtocols", "transportProtocol"}
        if not conditions and "transportSocket" not in chain:
            for item in chain.get("filters", ()):
                if "httpFilters" in item["typedConfig"]:
                    yield item["typedConfig"]


def is_plain(cluster: dict[str, Any]) -> bool:
    return "transportSocket" not in cluster and "http2ProtocolOptions" not in json.dumps(cluster) and cluster != {}


def secrets() -> list[Resource]:
    """What the agent beside a proxy serves: a certificate and whom to trust."""
    own = tls(server=True)
    [pair] = own["context"]["tls_certificates"]
    roots = {"trusted_ca": {"inline_string": own["certificate"]}}
    return [secret("default", tls_certificate=pair), secret("ROOTCA", validation_context=roots)]


def ask(port: int, host: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        connection.request("GET", "/", headers={"host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def load(proxy: Proxy, recorded: Recorded) -> None:
    """Publish, and hold the proxy's answers against what it cannot honour."""
    expected = recorded.expected_refusals()
    refused = proxy.offer(*recorded.resources(), *secrets())
    assert set(refused) == set(expected), refused
    for key, message in refused.items():
        assert any(f".{field}" in message for field in expected[key]), (key, message, expected[key])


def dumped(proxy: Proxy) -> dict[tuple[str, str], Any]:
    """What `/config_dump` shows of each resource of the kinds that are recorded, at work or not."""
    found = {}
    for config in json.loads(ask_admin(proxy.admin, "/config_dump?include_eds"))["configs"]:
        for items in (items for name, items in config.items() if name.startswith("dynamic_")):
            for item in items:
                for holder in (item, item.get("active_state", {}), item.get("warming_state", {})):
                    for content in (value for value in holder.values() if isinstance(value, dict) and "@type" in value):
                        found[content["@type"], content.get("name") or content["cluster_name"]] = content
    return found


def told(resource: dict[str, Any]) -> Any:
    """A resource in one spelling, without what nothing is done about."""

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("@type", "").endswith(".TypedStruct"):
            return {name: value[name] for name in ("@type", "typeUrl")}
        return {name: whole(item) for name, item in value.items() if name != "customTags"}

    return whole(json_format.MessageToDict(json_format.ParseDict(resource, any_pb2.Any())))


def check_dump(proxy: Proxy, recorded: Recorded) -> None:
    """What a proxy shows is what it was sent."""
    shown, refused = dumped(proxy), recorded.expected_refusals()
    for kind, items in recorded.items.items():
        for item in items:
            key = item["@type"], item.get("name") or item["clusterName"]
            if key in refused:
                shown.pop(key, None)  # the one of the proxy before
            elif key in shown:
                assert told(shown.pop(key)) == told(item), key
            else:
                # Routes and endpoints are asked for by name, and nobody here may.
                assert kind in ("routes", "endpoints"), key
    assert not shown


@pytest.mark.parametrize("name", SCENARIOS)
def test_recorded_scenario_loads_and_routes(corpus: Path, tmp_path: Path, name: str) -> None:
    """One weft-proxy becomes each proxy of the scenario, one after the other."""
    folder = corpus / "istiod-xds" / name
    nodes = json.loads((folder / "nodes.json").read_text())
    asked = 0
    with endpoints() as servers, proxies(tmp_path, "sidecar") as [proxy]:
        for node in (node for node, content in nodes.items() if content["metadata"].get("GENERATOR") != PROXYLESS):
            recorded = Recorded(folder, node, servers)
            load(proxy, recorded)
            check_dump(proxy, recorded)
            for port, host, addresses in recorded.plain_requests():
                status, body = ask(port, host)
                assert (status, body in addresses) == ((200, True) if addresses else (503, False)), (
                    node,
                    host,
                    status,
                    body,
                )
                asked += bool(addresses)
    print(f"{name}: {asked} requests were answered by their endpoints")
    assert bool(asked) != (name in WITHOUT_REQUESTS), asked


def test_every_recorded_scenario_is_loaded(corpus: Path) -> None:
    """A scenario that is new in the corpus is new here."""
    assert {path.name for path in (corpus / "istiod-xds").iterdir() if path.is_dir()} == set(SCENARIOS)
