"""A refused resource leads back to the line that somebody wrote."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import struct_pb2

from weft.controlplane.blame import field_of, origins_of
from weft.translate.resource import CLUSTER, ROUTE_CONFIGURATION


def described(origin: str) -> struct_pb2.Struct:
    value = struct_pb2.Struct()
    value["origin"] = origin
    return value


def table() -> bytes:
    routes = route_pb2.RouteConfiguration(name="9080")
    host = routes.virtual_hosts.add(name="reviews", domains=["reviews"])
    host.metadata.filter_metadata["weft"].CopyFrom(described("reviews.yaml:1:1"))
    for line in (8, 12):
        host.routes.add().metadata.filter_metadata["weft"].CopyFrom(described(f"reviews.yaml:{line}:5"))
    return routes.SerializeToString()


def test_the_field_is_found_in_a_proxys_reason() -> None:
    assert (
        field_of("Cluster.outlier_detection.x: weft-proxy does not honour this field") == "Cluster.outlier_detection.x"
    )
    path = "RouteConfiguration.virtual_hosts[0].routes[1].route.retry_policy"
    assert field_of(f"{path}: no; and more: of it") == path
    assert field_of("9080: Proto constraint validation failed (field: at least 1)") == ""


def test_the_line_nearest_to_the_field_is_named() -> None:
    field = "RouteConfiguration.virtual_hosts[0].routes[1].route.timeout"
    assert origins_of(ROUTE_CONFIGURATION, table(), field) == ["reviews.yaml:12:5"]
    assert origins_of(ROUTE_CONFIGURATION, table(), "RouteConfiguration.virtual_hosts[0].cors") == ["reviews.yaml:1:1"]
    assert origins_of(ROUTE_CONFIGURATION, table(), "RouteConfiguration.virtual_hosts[7].routes[1]") == [
        "reviews.yaml:1:1",
        "reviews.yaml:8:5",
        "reviews.yaml:12:5",
    ]


def test_without_a_field_all_lines_are_named_and_wefts_own_are_none() -> None:
    assert origins_of(ROUTE_CONFIGURATION, table(), "") == ["reviews.yaml:1:1", "reviews.yaml:8:5", "reviews.yaml:12:5"]
    own = cluster_pb2.Cluster(name="own")
    own.metadata.filter_metadata["weft"].CopyFrom(described("default"))
    assert origins_of(CLUSTER, own.SerializeToString(), "") == []
    assert origins_of(CLUSTER, b"\xff", "") == []
