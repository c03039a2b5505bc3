"""Records as proxies send them, read back."""

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2

from weft.telemetry import read
from weft.telemetry.records import LOGS


def test_who_called_is_the_direct_peer_where_the_proxy_tells_and_else_the_remote_one() -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    remote = entry.common_properties.downstream_remote_address.socket_address
    remote.address, remote.port_value = "10.244.0.7", 40000
    assert downstream(entry) == "10.244.0.7:40000"
    direct = entry.common_properties.downstream_direct_remote_address.socket_address
    direct.address, direct.port_value = "10.244.0.8", 50000
    assert downstream(entry) == "10.244.0.8:50000"
    entry.common_properties.downstream_direct_remote_address.pipe.path = "/run/publish-80.sock"  # an agent's relay
    assert downstream(entry) == "10.244.0.7:40000"


@pytest.mark.parametrize(
    ("trailer", "header", "status", "answer"),
    [
        ("14", "", 14, "200, grpc-status 14 (UNAVAILABLE)"),
        ("", "12", 12, "200, grpc-status 12 (UNIMPLEMENTED)"),
        ("0", "", 0, "200"),
        ("99", "", 99, "200, grpc-status 99"),
        ("", "", None, "200"),
        ("x", "", None, "200"),
    ],
)
def test_the_status_of_grpc_is_that_of_the_trailers_or_of_an_answer_that_is_all_trailers(
    trailer: str, header: str, status: int | None, answer: str
) -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    entry.response.response_code.value = 200
    if trailer:
        entry.response.response_trailers["grpc-status"] = trailer
    if header:
        entry.response.response_headers["grpc-status"] = header
    record = read("node", next(iter(LOGS)), False, 0.0, entry.SerializeToString())
    assert record is not None
    assert (record.grpc_status, record.answer) == (status, answer)
    assert record.is_server_failure is (status == 14)


def downstream(entry: accesslog_pb2.HTTPAccessLogEntry) -> str:
    record = read("node", next(iter(LOGS)), False, 0.0, entry.SerializeToString())
    assert record is not None
    return record.downstream
