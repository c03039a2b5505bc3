"""Records as proxies send them, read back."""

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


def downstream(entry: accesslog_pb2.HTTPAccessLogEntry) -> str:
    record = read("node", next(iter(LOGS)), False, 0.0, entry.SerializeToString())
    assert record is not None
    return record.downstream
