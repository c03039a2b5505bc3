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
        ("9" * 5000, "", None, "200"),
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


@pytest.mark.parametrize(
    ("seconds", "nanos", "start"),
    [(12, 500_000_000, 12.5), (2**62, 0, 7.0), (253_402_300_799, 0, 7.0), (-1, 0, 7.0), (0, -5, 7.0)],
)
def test_a_start_that_is_no_time_is_when_the_record_came(seconds: int, nanos: int, start: float) -> None:
    """A record is what another process says, and one that is odd must not keep the others from being read."""
    entry = accesslog_pb2.HTTPAccessLogEntry()
    entry.common_properties.start_time.seconds, entry.common_properties.start_time.nanos = seconds, nanos
    record = read("node", next(iter(LOGS)), False, 7.0, entry.SerializeToString())
    assert record is not None
    assert record.start == start


def test_a_method_that_nobody_knows_is_not_told() -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    entry.request.ParseFromString(b"\x08\x63")  # request_method: 99
    record = read("node", next(iter(LOGS)), False, 7.0, entry.SerializeToString())
    assert record is not None
    assert record.method == ""


def test_a_method_without_a_number_is_told_by_its_field() -> None:
    entry = accesslog_pb2.HTTPAccessLogEntry()
    entry.request.request_headers[":method"] = "PROPFIND"
    record = read("node", next(iter(LOGS)), False, 7.0, entry.SerializeToString())
    assert record is not None
    assert record.method == "PROPFIND"


def downstream(entry: accesslog_pb2.HTTPAccessLogEntry) -> str:
    record = read("node", next(iter(LOGS)), False, 0.0, entry.SerializeToString())
    assert record is not None
    return record.downstream
