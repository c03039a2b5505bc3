"""What is just right and what is just wrong in a resource, to Envoy (`--mode validate`) and to weft-proxy (`validate`) alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both import Json, cluster, http_filters, listener, over_http2, typed
from weft.agent.data_planes import DATA_PLANES
from weft.data_plane import ENVOY, WEFT_PROXY

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(120)]


def keepalive(interval: str, timeout: str) -> Json:
    return {
        "clusters": [cluster("c", 80, **over_http2(connection_keepalive={"interval": interval, "timeout": timeout}))]
    }


def ejecting(**fields: str) -> Json:
    return {"clusters": [cluster("c", 80, outlier_detection=fields)]}


def chains(*matches: Json) -> Json:
    made = listener("l", 0, [])
    made["filter_chains"] = [{"filter_chain_match": it, "filters": http_filters([])} for it in matches]
    return {"listeners": [made]}


def named(*names: str) -> Json:
    return {"server_names": names}


def to(*ranges: str) -> Json:
    parts = [it.split("/") for it in ranges]
    return {"prefix_ranges": [{"address_prefix": address, "prefix_len": int(length)} for address, length in parts]}


def routed(more: Json | None = None, **action: Any) -> Json:
    """A listener whose only route goes to a cluster, with *action*; the route has *more*."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c", **action}, **(more or {})}
    return {"clusters": [cluster("c", 80)], "listeners": [listener("l", 0, http_filters([route]))]}


def adding(key: str, value: str) -> Json:
    return routed({"request_headers_to_add": [{"header": {"key": key, "value": value}}]})


def redirecting(**fields: str) -> Json:
    return {"listeners": [listener("l", 0, http_filters([{"match": {"prefix": "/"}, "redirect": fields}]))]}


def backing_off(**fields: str) -> Json:
    return routed(retry_policy={"retry_on": "5xx", "retry_back_off": fields})


def with_streams(most: int) -> Json:
    manager = {"http2_protocol_options": {"max_concurrent_streams": most}}
    return {"listeners": [listener("l", 0, http_filters([], manager=manager))]}


def weighed(weight: int) -> Json:
    made = cluster("c", 80)
    made["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["load_balancing_weight"] = weight
    return {"clusters": [made]}


def tunnelled(weight: int) -> Json:
    clusters = [{"name": "a", "weight": 1}, {"name": "b", "weight": weight}]
    proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="s", weighted_clusters={"clusters": clusters})
    return {"listeners": [listener("l", 0, [{"name": "tcp", "typed_config": proxy}])]}


def overprovisioned(factor: int) -> Json:
    made = cluster("c", 80)
    made["load_assignment"]["policy"] = {"overprovisioning_factor": factor}
    return {"clusters": [made]}


def chain_with(socket: Json) -> Json:
    made = listener("l", 0, [])
    made["filter_chains"] = [{"transport_socket": socket, "filters": http_filters([])}]
    return {"listeners": [made]}


def headed(**fields: Any) -> Json:
    """A listener whose connections begin with a PROXY protocol header, as *fields* say."""
    config = typed("filters.listener.proxy_protocol.v3.ProxyProtocol", **fields)
    return listener("l", 0, http_filters([]), listener_filters=[{"name": "proxy_protocol", "typed_config": config}])


NAMELESS_TLS = {"name": "envoy.transport_sockets.tls"}
"""A transport socket that says nothing of itself."""

GOOD: dict[str, Json] = {
    "a header with a tab in it": adding("x-a", "a\tb"),
    "a longest wait between tries as long as the first": backing_off(base_interval="1s", max_interval="1s"),
    "one stream": with_streams(1),
    "the smallest weight": weighed(1),
    "the smallest weight of connections": tunnelled(1),
    "the smallest factor": overprovisioned(1),
    "the shortest times of keep-alive": keepalive("0.001s", "0.001s"),
    "the shortest time to connect": {"clusters": [cluster("c", 80, connect_timeout="0.000000001s")]},
    "a longest ejection as long as the first": ejecting(base_ejection_time="3s", max_ejection_time="3s"),
    "chains for different ports": chains({"destination_port": 1}, {"destination_port": 2}),
    "a chain for a name, and one for the wildcard around it": chains(named("*.b"), named("a.b")),
    "a chain for all addresses, and one that says nothing": chains(to("0.0.0.0/0"), {}),
    "a range within another": chains(to("10.0.0.0/8"), to("10.0.0.0/9")),
    "no name": chains(named("")),
}

BAD: dict[str, Json] = {
    "a header that is two": adding("x-a", "a\r\nx-b: c"),
    "a header with NUL": adding("x-a", "a\0b"),
    "the path as a header": adding(":path", "/x"),
    "the host as a pseudo-header": adding(":authority", "x"),
    "the host as a header": adding("Host", "x"),
    "a path of two lines": routed(prefix_rewrite="/a\nb"),
    "a host of two lines": routed(host_rewrite_literal="a\nb"),
    "a substitution of two lines": routed(
        regex_rewrite={"pattern": {"google_re2": {}, "regex": "a"}, "substitution": "a\nb"}
    ),
    "a redirect to a path of two lines": redirecting(path_redirect="/a\nb"),
    "a redirect to a host of two lines": redirecting(host_redirect="a\nb"),
    "a redirect to a prefix of two lines": redirecting(prefix_rewrite="/a\nb"),
    "no first wait between tries": backing_off(max_interval="1s"),
    "a first wait of no length": backing_off(base_interval="0s"),
    "a longest wait between tries shorter than the first": backing_off(base_interval="1s", max_interval="0.9s"),
    "no streams": with_streams(0),
    "a weight of nothing": weighed(0),
    "a weight of no connection": tunnelled(0),
    "a factor of nothing": overprovisioned(0),
    "a transport socket of a cluster that says nothing": {
        "clusters": [cluster("c", 80, transport_socket=NAMELESS_TLS)]
    },
    "a transport socket of a chain that says nothing": chain_with(NAMELESS_TLS),
    "keep-alive without an interval between": keepalive("0s", "1s"),
    "keep-alive every microsecond": keepalive("0.000999s", "1s"),
    "keep-alive without time for the answer": keepalive("1s", "0s"),
    "no time to connect": {"clusters": [cluster("c", 80, connect_timeout="0s")]},
    "ejections of no length": ejecting(base_ejection_time="0s"),
    "intervals of no length": ejecting(interval="0s"),
    "a longest ejection of no length": ejecting(max_ejection_time="0s"),
    "a longest ejection shorter than the first": ejecting(max_ejection_time="29s"),
    "two chains for everything": chains({}, {}),
    "two chains for a port": chains({"destination_port": 1}, {"destination_port": 1}),
    "two chains with a name in common": chains(named("a", "b"), named("B", "c")),
    "two chains for a wildcard, in two spellings": chains(named("*.a"), named(".a")),
    "two chains for a range, in two spellings": chains(to("10.0.0.0/8"), to("10.1.0.0/8")),
    "a chain for everything, in two spellings": chains(named(""), {}),
    "a name twice": chains(named("a", "a")),
    "a source port twice": chains({"source_ports": [1, 1]}),
    "any name": chains(named("*")),
    "no version of the PROXY protocol": {"listeners": [headed(disallowed_versions=["V1", "V2"])]},
    "no version of the PROXY protocol, nor a need for one": {
        "listeners": [headed(disallowed_versions=["V1", "V2"], allow_requests_without_proxy_protocol=True)]
    },
    "a wildcard for a part of a label": chains(named("*a")),
    "a wildcard within a name": chains(named("a.*.b")),
}


def refuses(kind: str, config: Path) -> bool:
    path = str(DATA_PLANES[kind].find().path)
    command = [path, "--mode", "validate", "-l", "off", "-c"] if kind == ENVOY else [path, "validate"]
    report = subprocess.run([*command, str(config)], capture_output=True, text=True, timeout=60, check=False)
    assert report.returncode in {0, 1}, report
    return report.returncode == 1


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_both_refuse_the_same(tmp_path: Path, name: str) -> None:
    config = tmp_path / "bootstrap.json"
    node = {"id": "sidecar~127.0.0.1~edges.default~default.svc.cluster.local", "cluster": "edges"}
    config.write_text(json.dumps({"node": node, "static_resources": GOOD.get(name) or BAD[name]}))
    found = {kind: refuses(kind, config) for kind in (ENVOY, WEFT_PROXY)}
    assert found == dict.fromkeys(found, name in BAD)
