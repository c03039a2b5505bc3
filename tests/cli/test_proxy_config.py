"""What `weft proxy-config` makes of messages and of a proxy's own word."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from weft.cli.output import to_yaml
from weft.cli.proxy_config import endpoints_table, found_health
from weft.cli.resources import TYPES, decode


def test_what_is_packed_in_a_message_is_plain_data_for_every_format() -> None:
    manager = HttpConnectionManager(stat_prefix="inbound")
    listener = Listener(name="here", filter_chains=[FilterChain(filters=[Filter(name="http")])])
    listener.filter_chains[0].filters[0].typed_config.Pack(manager)
    decoded = decode(TYPES["listeners"], listener.SerializeToString())
    (found,) = decoded["filter_chains"][0]["filters"]
    assert found["typed_config"]["stat_prefix"] == "inbound"
    assert yaml.safe_load(to_yaml(decoded)) == decoded


def endpoint(address: str, **more: Any) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 80}}}, **more}


def test_what_a_proxy_has_found_is_shown_of_those_that_it_was_told_are_well() -> None:
    told = [endpoint("10.0.0.1"), endpoint("10.0.0.2", health_status="DRAINING"), endpoint("10.0.0.3")]
    found = {
        ("one", "10.0.0.1:80"): "EJECTED",
        ("one", "10.0.0.2:80"): "FAILED CHECK",
        ("other", "10.0.0.3:80"): "EJECTED",
    }
    table = endpoints_table([{"cluster_name": "one", "endpoints": [{"lb_endpoints": told}]}], found)
    shown = [line.split()[:3:2] for line in table.splitlines()[1:]]
    assert shown == [["10.0.0.1:80", "EJECTED"], ["10.0.0.2:80", "DRAINING"], ["10.0.0.3:80", "HEALTHY"]]


HOST = {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ({"eds_health_status": "HEALTHY"}, None),
        ({"failed_outlier_check": True}, "EJECTED"),
        ({"failed_active_health_check": True}, "FAILED CHECK"),
        ({"failed_active_health_check": True, "pending_active_hc": True}, "UNCHECKED"),
    ],
)
def test_what_a_data_plane_has_found_is_read(flags: dict[str, Any], state: str | None) -> None:
    expected = {} if state is None else {("one", "10.0.0.1:80"): state}
    assert (
        found_health({"cluster_statuses": [{"name": "one", "host_statuses": [HOST | {"health_status": flags}]}]})
        == expected
    )
