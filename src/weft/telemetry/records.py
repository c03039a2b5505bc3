"""
What is known of one request, connection or lookup: an access record, read from the message in which a proxy sent it.

Both data planes send Envoy's (`envoy.data.accesslog.v3`); here is the one place that knows the message.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from envoy.config.core.v3 import base_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from google.protobuf.message import DecodeError

from weft.model import grpc
from weft.model.denial import is_denial
from weft.translate.access_log import METHOD, ORIGINAL_HOST

Log = Literal["requests", "tries", "connections", "lookups"]

LOGS: tuple[Log, ...] = ("requests", "tries", "connections")
"""`log_name` of what proxies send (weft.translate.access_log)."""

FLAGS = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "unauthorized_details": "UAEX",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}
"""Field of `ResponseFlags` -> the code that access logs show (Envoy's documentation, "Response flags")."""


@dataclass(frozen=True, slots=True)
class Record:
    """
    Attributes:
        node: The proxy's node id.
        log: What it is about: a request or connection that a filter took, a single try, a connection that was
            refused before, or a name that the program asked for in vain (see `Lookups`).
        protocol: `HTTP/1.1`, ...; `TCP` for a connection; `DNS` for a lookup.
        direction: `outbound`, `inbound` or `gateway`.
        start: Seconds since 1970, by the proxy's clock; the same machine's.
        path: As the client sent it.
        status: None if there was no answer, or no HTTP.
        grpc_status: None if the answer told none, as where it is no gRPC.
        flags: Codes, in the order of Envoy's message.
        origin, rule, match: Of the route that was taken: where it is written (`reviews.yaml:8:5`), `spec.http[0]`, and
            the alternative of `match`. Empty if no route was; `default` for weft's own.
        upstream, upstream_local, downstream, listener: `ADDRESS:PORT`; empty if there is none.
        relay: Path of the socket at which an agent brought it, where it came to a published port that it relays;
            `downstream` and `listener` are those of the connection to that port.
        attempts: Tries until then; 0 if none was made.
        sent_ms: Until the request's last byte was there.
        answered_ms: Until the first byte of the upstream's answer.
        peer: The client's identity, if it proved one.
        revision: In force in that proxy then, as far as it is known.
        client: Name of the workload that a refused connection came from, by its address; empty if it is none of the mesh.
            A proxy does not know it.
    """

    node: str
    log: Log
    protocol: str
    direction: str
    start: float
    duration_ms: float
    request_id: str = ""
    method: str = ""
    scheme: str = ""
    authority: str = ""
    path: str = ""
    user_agent: str = ""
    status: int | None = None
    flags: tuple[str, ...] = ()
    details: str = ""
    route_name: str = ""
    origin: str = ""
    rule: str = ""
    match: str = ""
    cluster: str = ""
    upstream: str = ""
    upstream_local: str = ""
    downstream: str = ""
    listener: str = ""
    attempts: int = 0
    sent_ms: float | None = None
    answered_ms: float | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    transport_failure: str = ""
    downstream_failure: str = ""
    termination: str = ""
    sni: str = ""
    peer: str = ""
    revision: int | None = None
    client: str = ""
    grpc_status: int | None = None
    relay: str = ""

    @property
    def workload(self) -> str:
        """Name of the workload that the proxy stands beside."""
        return self.owner[0]

    @property
    def owner(self) -> tuple[str, str]:
        """(name, namespace) of that workload."""
        return owner_of(self.node)

    @property
    def address(self) -> str:
        """Of that workload; empty if its node id names none."""
        parts = self.node.split("~")
        return parts[1] if len(parts) > 1 else ""

    @property
    def answer(self) -> str:
        """How it was answered, for people: `503`; `200, grpc-status 14 (UNAVAILABLE)`; empty if it was not."""
        if self.status is None:
            return ""
        return str(self.status) + (f", {grpc.status_text(self.grpc_status)}" if self.grpc_status else "")

    @property
    def is_denial(self) -> bool:
        """Whether the proxy itself refused it because of who asked."""
        return is_denial(self.details) or is_denial(self.termination)

    @property
    def is_server_failure(self) -> bool:
        """Whether the answer says that the server, or what is between, failed."""
        return (self.status or 0) >= 500 or self.grpc_status in grpc.FAILURES

    @property
    def end(self) -> float:
        """Seconds since 1970."""
        return self.start + self.duration_ms / 1000

    def to_json(self) -> dict[str, Any]:
        """Return it as `GET /v1/records` shows it."""
        return dataclasses.asdict(self) | {"workload": self.workload, "flags": list(self.flags)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        """Undo `to_json`."""
        known = {field.name: value[field.name] for field in dataclasses.fields(cls) if field.name in value}
        return cls(**{**known, "flags": tuple(known.get("flags", ()))})


def owner_of(node: str) -> tuple[str, str]:
    """Return (name, namespace) of the workload that a node id names: `sidecar~ADDRESS~NAME.NAMESPACE~DOMAIN`."""
    parts = node.split("~")
    name, _, namespace = (parts[2] if len(parts) > 2 else node).partition(".")
    return name, namespace


def read(node: str, log: str, is_tcp: bool, received: float, entry: bytes) -> Record | None:
    """
    Read a record as `weft._native.RecordStore` gives it.

    Args:
        received: Seconds since 1970; stands in for a start that the record does not have, or that is no time.

    Returns:
        None for bytes that are no such message, or a log of which nobody has heard.
    """
    message = accesslog_pb2.TCPAccessLogEntry() if is_tcp else accesslog_pb2.HTTPAccessLogEntry()
    try:
        message.ParseFromString(entry)
    except DecodeError:
        return None
    if log not in LOGS:
        return None
    common = message.common_properties
    tags = common.custom_tags
    values: dict[str, Any] = {
        "node": node,
        "log": log,
        "protocol": "TCP",
        "direction": tags.get("direction", ""),
        "start": _start(common, received),
        "duration_ms": _ms(common, "duration") or _ms(common, "time_to_last_downstream_tx_byte") or 0.0,
        "flags": tuple(FLAGS[field.name] for field, _ in common.response_flags.ListFields() if field.name in FLAGS),
        "route_name": common.route_name,
        "origin": tags.get("origin", ""),
        "rule": tags.get("rule", ""),
        "match": tags.get("match", ""),
        "cluster": common.upstream_cluster,
        "upstream": _address(common.upstream_remote_address),
        "upstream_local": _address(common.upstream_local_address),
        "downstream": _downstream(common),
        "relay": common.downstream_direct_remote_address.pipe.path,
        "listener": _address(common.downstream_local_address),
        "attempts": common.upstream_request_attempt_count,
        "sent_ms": _ms(common, "time_to_last_rx_byte"),
        "answered_ms": _ms(common, "time_to_first_upstream_rx_byte"),
        "transport_failure": common.upstream_transport_failure_reason,
        "downstream_failure": common.downstream_transport_failure_reason,
        "termination": common.connection_termination_details,
        "sni": common.tls_properties.tls_sni_hostname,
        "peer": next((name.uri for name in _names(common)), ""),
    }
    if isinstance(message, accesslog_pb2.TCPAccessLogEntry):
        moved = message.connection_properties
        return Record(**values, bytes_received=moved.received_bytes, bytes_sent=moved.sent_bytes)
    request, response = message.request, message.response
    return Record(
        **{**values, "protocol": _PROTOCOLS.get(message.protocol_version, "HTTP")},
        request_id=request.request_id,
        method=request.request_headers.get(METHOD) or _method(request.request_method),
        scheme=request.scheme,
        authority=request.request_headers.get(ORIGINAL_HOST) or request.authority,
        path=request.original_path or request.path,
        user_agent=request.user_agent,
        status=response.response_code.value or None,
        details=response.response_code_details,
        grpc_status=_number(response.response_trailers.get(grpc.STATUS) or response.response_headers.get(grpc.STATUS)),
        bytes_received=request.request_body_bytes,
        bytes_sent=response.response_body_bytes,
    )


_PROTOCOLS = {
    accesslog_pb2.HTTPAccessLogEntry.HTTP10: "HTTP/1.0",
    accesslog_pb2.HTTPAccessLogEntry.HTTP11: "HTTP/1.1",
    accesslog_pb2.HTTPAccessLogEntry.HTTP2: "HTTP/2",
    accesslog_pb2.HTTPAccessLogEntry.HTTP3: "HTTP/3",
}


_LAST_START = 253_370_764_800.0
"""Seconds; the beginning of the year 9999. `datetime` knows none after it, and a time zone may add hours."""


def _start(common: Any, received: float) -> float:
    if not common.HasField("start_time"):
        return received
    start: float = (common.start_time.seconds * 1_000_000_000 + common.start_time.nanos) / 1e9
    return start if 0 <= start < _LAST_START else received


def _method(number: int) -> str:
    """Return a request's method; "" where none is told, or by a number that means none."""
    known = number and number in base_pb2.RequestMethod.values()
    return str(base_pb2.RequestMethod.Name(number)) if known else ""


_MOST_DIGITS = 10
"""Of a number that a server wrote; those of gRPC have two, and Python reads no more than some thousand."""


def _number(text: str | None) -> int | None:
    """Return what a server wrote as a number; None for what is none."""
    return int(text) if text and len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit() else None


def _ms(common: Any, field: str) -> float | None:
    return getattr(common, field).ToNanoseconds() / 1e6 if common.HasField(field) else None


def _address(address: Any) -> str:
    if address.HasField("pipe"):
        return str(address.pipe.path)
    socket = address.socket_address
    if not socket.address:
        return ""
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"


def _downstream(common: Any) -> str:
    """
    Return who called: the direct peer, for what else is told may be the client's own word (`x-forwarded-for`).

    Where that is a socket of the agent, which relays what comes to a published port, the PROXY protocol has told who called.
    """
    direct = common.downstream_direct_remote_address
    return _address(direct if direct.HasField("socket_address") else common.downstream_remote_address)


def _names(common: Any) -> list[Any]:
    names = common.tls_properties.peer_certificate_properties.subject_alt_name
    return [name for name in names if name.uri]
