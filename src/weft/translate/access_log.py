"""
Access records: what each request, try and connection leaves behind, and where it goes.

Every record goes to a file, if the proxy is given one, and to the access log service of the control plane, if it is
given the name of a cluster for it (docs/reference/interfaces.md, 4.6). Called by `http_manager.py` and by those who
make listeners.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2

from weft.model import grpc

if TYPE_CHECKING:
    from weft.translate.fragments import Reading  # brings all of translation along; who reads records needs names

FILE_LOGGER = "envoy.access_loggers.file"
HTTP_SERVICE_LOGGER = "envoy.access_loggers.http_grpc"
TCP_SERVICE_LOGGER = "envoy.access_loggers.tcp_grpc"

Direction = Literal["outbound", "inbound", "gateway"]

RECORD = {
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
    "response_flags": "%RESPONSE_FLAGS%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "route_name": "%ROUTE_NAME%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_host": "%UPSTREAM_HOST%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "downstream_peer_uri_san": "%DOWNSTREAM_PEER_URI_SAN%",
}
"""Of an access record, beside `direction` (docs/reference/interfaces.md, 4.6)."""

ORIGINAL_HOST = "x-envoy-original-host"
"""
Where Envoy notes what it rewrites the authority from. It goes on to the next proxy, which rewrites nothing: of an inbound record it
is the word of another.
"""

METHOD = ":method"
"""The field of it: records name those that Envoy's `RequestMethod` has by a number, and WebDAV's, say, by this alone."""

REWRITING = {"authority": f"%REQ({ORIGINAL_HOST.upper()}?:AUTHORITY)%"}
"""Of a record where requests are routed, in place of RECORD's: the authority that was asked for, as the path is."""

CONNECTION = {"downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%"}
"""Of a record of a connection besides: where it was going. A request says that itself, by its authority."""

REQUESTS, TRIES, CONNECTIONS = "requests", "tries", "connections"
"""`log_name` of what is sent to the service: requests and TCP connections that a filter took; tries that did not
succeed; connections as a listener sees them, of which the service keeps those that were refused."""

FLUSH_SECONDS = 0.1
"""How long a record may wait for others to be sent with it: who asks about a request just made should find it."""

BUFFER_BYTES = 16 * 1024

LOWEST_FAILED_STATUS = 400
"""A try with a lower status, no response flag and none of RETRIABLE_GRPC is told by the record of its request."""

RETRIABLE_GRPC = ("CANCELED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE")
"""
Statuses of gRPC, in the words of Envoy's API, for which `retryOn` may make another try though HTTP says 200.

Not UNKNOWN: Envoy takes a 200 that is no gRPC for that.
"""


def add_request_logs(reading: Reading, logs: Any, direction: Direction) -> None:
    """Append to *logs* (of an HTTP connection manager) where records of requests go."""
    _add_file(reading, logs, direction)
    if reading.access_log_cluster:
        config = als_pb2.HttpGrpcAccessLogConfig()
        _fill_http_service(reading, config, REQUESTS, direction)
        _pack(logs.add(name=HTTP_SERVICE_LOGGER), config)


def add_connection_logs(reading: Reading, logs: Any, direction: Direction, *, upstream_host: str = "") -> None:
    """
    Append to *logs* (of a TCP proxy) where records of connections go.

    *upstream_host* is the format of that field where it is not Envoy's own.
    """
    _add_file(reading, logs, direction, CONNECTION | ({"upstream_host": upstream_host} if upstream_host else {}))
    if reading.access_log_cluster:
        _add_tcp_service(reading, logs, REQUESTS, direction)


def add_try_logs(reading: Reading, logs: Any, direction: Direction) -> None:
    """Append to *logs* (`upstream_log` of a router) where records of tries go: those that failed."""
    if not reading.access_log_cluster:
        return
    config = als_pb2.HttpGrpcAccessLogConfig()
    _fill_http_service(reading, config, TRIES, direction)
    log = logs.add(name=HTTP_SERVICE_LOGGER)
    flagged, failed, retriable = (log.filter.or_filter.filters.add() for _ in range(3))
    flagged.response_flag_filter.SetInParent()
    retriable.grpc_status_filter.statuses.extend(map(accesslog_pb2.GrpcStatusFilter.Status.Value, RETRIABLE_GRPC))
    comparison = failed.status_code_filter.comparison
    comparison.op = accesslog_pb2.ComparisonFilter.GE
    comparison.value.default_value = LOWEST_FAILED_STATUS
    comparison.value.runtime_key = "weft.never"  # Envoy wants one; nobody sets it
    _pack(log, config)


def add_listener_logs(reading: Reading, logs: Any, direction: Direction) -> None:
    """Append to *logs* (of a listener that clients may fail to enter: TLS) where records of its connections go."""
    if reading.access_log_cluster:
        _add_tcp_service(reading, logs, CONNECTIONS, direction)


def _add_file(reading: Reading, logs: Any, direction: Direction, more: Mapping[str, str] | None = None) -> None:
    if not reading.access_log_path:
        return
    logger = file_pb2.FileAccessLog(path=reading.access_log_path)
    fields = logger.log_format.json_format.fields
    asked = {} if direction == "inbound" else REWRITING
    for name, value in {**RECORD, **asked, "direction": direction, **(more or {})}.items():
        fields[name].string_value = value
    _pack(logs.add(name=FILE_LOGGER), logger)


def _add_tcp_service(reading: Reading, logs: Any, name: str, direction: Direction) -> None:
    config = als_pb2.TcpGrpcAccessLogConfig()
    _fill_service(reading, config.common_config, name, direction)
    _pack(logs.add(name=TCP_SERVICE_LOGGER), config)


def _fill_http_service(reading: Reading, config: Any, name: str, direction: Direction) -> None:
    """Fill a `HttpGrpcAccessLogConfig`: what is sent where it is asked for only."""
    _fill_service(reading, config.common_config, name, direction)
    config.additional_request_headers_to_log.append(METHOD)
    if direction != "inbound":
        config.additional_request_headers_to_log.append(ORIGINAL_HOST)
    config.additional_response_headers_to_log.append(grpc.STATUS)
    config.additional_response_trailers_to_log.append(grpc.STATUS)


def _fill_service(reading: Reading, config: Any, name: str, direction: Direction) -> None:
    """
    Fill a `CommonGrpcAccessLogConfig`.

    The tags say on which side the record was made, and which rule sent the request on its way, with its place: the
    configuration may be another one when somebody asks.
    """
    config.log_name = name
    config.grpc_service.envoy_grpc.cluster_name = reading.access_log_cluster
    config.transport_api_version = config_source_pb2.ApiVersion.V3
    config.buffer_flush_interval.FromMilliseconds(int(FLUSH_SECONDS * 1000))
    config.buffer_size_bytes.value = BUFFER_BYTES
    config.custom_tags.add(tag="direction").literal.value = direction
    for tag, path in (("origin", ("origin",)), ("rule", ("rule",)), ("match", ("origins", "match"))):
        metadata = config.custom_tags.add(tag=tag).metadata
        metadata.kind.route.SetInParent()
        metadata.metadata_key.key = "weft"
        for step in path:
            metadata.metadata_key.path.add(key=step)


def _pack(log: Any, config: Any) -> None:
    log.typed_config.Pack(config, deterministic=True)
