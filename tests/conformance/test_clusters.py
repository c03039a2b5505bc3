"""`/clusters` of the admin interface, as text and as JSON: what weft-proxy and Envoy know of the same endpoints, in one run."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.both import Json, address, both, cluster, http_filters, listener
from tests.conformance.proxies import LIMIT, Static, until
from tests.conformance.upstream import Upstream
from tests.ports import free_port
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = pytest.mark.conformance

Proxies = dict[str, Static]

HEALTHS = {"HEALTHY": "HEALTHY", "DEGRADED": "DEGRADED", "UNHEALTHY": "UNHEALTHY", "TIMEOUT": "UNHEALTHY"}
"""What discovery says of endpoints, one of each priority, and what is told of it."""

LIMITS = {"max_connections": 5, "max_pending_requests": 6, "max_requests": 7, "max_retries": 8}

ABSENT = "cx_", "rq_error", "rq_pending_active", "rq_success", "rq_timeout", "rq_total"
"""What weft-proxy does not count of an endpoint (docs/reference/admin.md)."""

UNKNOWN = "canary", "success_rate", "local_origin_success_rate"
"""What weft-proxy does not know of an endpoint (docs/reference/admin.md)."""


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    """Both, where a request of each waits for `busy`, one to `ejected` has failed, and `checked` has failed its check."""
    folder = tmp_path_factory.mktemp("clusters")
    busy, nobody = Upstream(), free_port()
    local = cluster("named", nobody, type="STRICT_DNS", dns_lookup_family="V4_ONLY")
    local["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = address(nobody, "localhost")
    check = {"timeout": "5s", "interval": "60s", "unhealthy_threshold": 1, "healthy_threshold": 1}
    pipe = {"endpoint": {"address": {"pipe": {"path": str(folder / "nobody.sock")}}}}
    ejecting = {"consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "600s", "interval": "600s"}

    def groups() -> Iterator[Json]:
        for priority, health in enumerate(HEALTHS):
            endpoint = {"hostname": f"{health.lower()}.example", "address": address(1 + priority)}
            yield {
                "priority": priority,
                "locality": {"region": "here", "zone": f"zone {priority}", "sub_zone": "rack"},
                "lb_endpoints": [{"endpoint": endpoint, "load_balancing_weight": 3, "health_status": health}],
            }

    def resources(ports: dict[str, int]) -> Json:
        routes = [
            {"match": {"prefix": f"/{name}"}, "route": {"cluster": name, "timeout": "0s"}}
            for name in ("busy", "ejected")
        ]
        return {
            "clusters": [
                cluster("busy", busy.port, circuit_breakers={"thresholds": [LIMITS]}),
                cluster("checked", nobody, health_checks=[check | {"tcp_health_check": {}}]),
                cluster("ejected", nobody, outlier_detection=ejecting),
                local,
                cluster("none"),
                {"name": "original", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"},
                {"name": "pipe", "load_assignment": {"cluster_name": "pipe", "endpoints": [{"lb_endpoints": [pipe]}]}},
                {"name": "told", "load_assignment": {"cluster_name": "told", "endpoints": list(groups())}},
            ],
            "listeners": [listener("http", ports["http"], http_filters(routes))],
        }

    with busy.socket, both(folder, ("http",), resources) as running, contextlib.ExitStack() as stack:
        for proxy in running:
            assert proxy.get("http", "/ejected")[0] == 503
            client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.ports["http"]), LIMIT))
            client.sendall(b"GET /busy HTTP/1.1\r\nhost: up\r\n\r\n")
            stack.enter_context(busy.taken())
            until("the check has failed", lambda proxy=proxy: "/failed_active_hc" in proxy.ask("/clusters"))
            until("it is ejected", lambda proxy=proxy: "/failed_outlier_check" in proxy.ask("/clusters"))
        yield {proxy.kind: proxy for proxy in running}


def statuses(proxy: Static) -> dict[str, Json]:
    """What is told in JSON, by name; without what weft-proxy leaves out."""
    told: dict[str, Any] = json.loads(proxy.ask("/clusters?format=json"))
    found = {status["name"]: status for status in told.pop("cluster_statuses")}
    assert not told
    for status in found.values():
        thresholds = status["circuit_breakers"]["thresholds"]
        status["circuit_breakers"]["thresholds"] = [one for one in thresholds if one.get("priority") != "HIGH"]
        for host in status.get("host_statuses", ()):
            host["stats"] = [one for one in host["stats"] if not one["name"].startswith(ABSENT)]
    return found


def test_endpoints_are_told_alike_in_json(proxies: Proxies) -> None:
    weft, envoy = (statuses(proxies[kind]) for kind in (WEFT_PROXY, ENVOY))
    assert weft == envoy
    assert weft["busy"]["circuit_breakers"] == {"thresholds": [LIMITS]}
    assert weft["busy"]["host_statuses"][0]["stats"] == [{"type": "GAUGE", "name": "rq_active", "value": "1"}]
    assert [host["health_status"]["eds_health_status"] for host in weft["told"]["host_statuses"]] == [*HEALTHS.values()]


def lines(proxy: Static) -> list[str]:
    """What is told as text, of clusters by their names, without what weft-proxy leaves out."""

    def is_common(line: str) -> bool:
        _, *middle, last, _ = line.rsplit("::", 3 if "::outlier::" in line or "_priority::" in line else 2)
        return not (last.startswith(ABSENT) or last in UNKNOWN or {"outlier", "high_priority"} & {*middle})

    told = [line for line in proxy.ask("/clusters").splitlines() if is_common(line)]
    return sorted(told, key=lambda line: line.partition("::")[0])


def test_endpoints_are_told_alike_in_text(proxies: Proxies) -> None:
    """Line by line, in one order within each cluster."""
    weft, envoy = (lines(proxies[kind]) for kind in (WEFT_PROXY, ENVOY))
    assert weft == envoy
    assert proxies[WEFT_PROXY].ask("/clusters?format=text") == proxies[WEFT_PROXY].ask("/clusters")
    flags = {line.rpartition("::")[2] for line in weft if "::health_flags::" in line}
    assert flags == {
        "healthy",
        "/failed_active_hc",
        "/failed_outlier_check",
        "/degraded_eds_health",
        "/failed_eds_health",
    }
