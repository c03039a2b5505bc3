"""
`networking.istio.io`: VirtualService, DestinationRule and Gateway, whole, as frozen pydantic models.

One class for each message of Istio's API, with its name; one attribute for each field, in snake_case, whose alias is
the name in YAML (`per_try_timeout`, `perTryTimeout`; both are read, as proto JSON does). The models hold what a
document says and check single values; what must hold between values is `weft.api.rules`, what weft honours is
`weft.api.honoured`.

Absent and zero: a field that can be told apart when absent is `None` then (messages, members of a `oneof`, wrapped
scalars); a plain proto3 scalar is its zero (`weight: 0`), as in Istio.

Source: github.com/istio/api of 2026-07, `networking/v1alpha3/*.proto`, and the schema of its CRDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from weft.api.values import Duration, DurationOrZero, Int32, UInt32, UInt64


def json_name(name: str) -> str:
    """Return the JSON name of the proto field *name* (`consecutive_5xx_errors` -> `consecutive5xxErrors`)."""
    head, *rest = name.rstrip("_").split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


class Message(BaseModel):
    """What all messages have in common: frozen, strict, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=json_name,
        validate_by_name=True,
        validate_by_alias=True,
    )


# Shared by the kinds


class PortSelector(Message):
    """The port of a destination. `number` is the service's port, 1-65535."""

    number: UInt32 = 0


class Percent(Message):
    """A share in percent, 0.0 to 100.0; absent is 0."""

    value: float = 0.0


class StringMatch(Message):
    """Exactly one of the three, or none: then presence alone matches. `regex` is RE2 and must match the whole value."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


# VirtualService


class Destination(Message):
    """Where requests go: a host of the registry, one of its subsets, one of its ports (may be absent if it has one)."""

    host: str
    subset: str = ""
    port: PortSelector | None = None


class HeaderOperations(Message):
    """Edits in the order set, add, remove. `add` appends to the values that are there."""

    set: Mapping[str, str] = Field(default_factory=dict)
    add: Mapping[str, str] = Field(default_factory=dict)
    remove: tuple[str, ...] = ()


class Headers(Message):
    """Header edits on the way to the destination and on the way back."""

    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HTTPMatchRequest(Message):
    """One alternative of a rule: all conditions given must hold. The alternatives of a rule are ORed."""

    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[str, StringMatch] = Field(default_factory=dict)
    port: UInt32 = 0
    source_labels: Mapping[str, str] = Field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    query_params: Mapping[str, StringMatch] = Field(default_factory=dict)
    ignore_uri_case: bool = False
    without_headers: Mapping[str, StringMatch] = Field(default_factory=dict)
    source_namespace: str = ""
    stat_prefix: str = ""


class HTTPRouteDestination(Message):
    """One destination of a rule. `weight` is relative to the sum of the rule's weights; alone it may be absent."""

    destination: Destination
    weight: Int32 = 0
    headers: Headers | None = None


REDIRECT_CODES = (301, 302, 303, 307, 308)
"""The statuses of redirects that data planes have (Envoy's `RedirectAction.RedirectResponseCode`)."""


class HTTPRedirect(Message):
    """
    Answer with a redirect. `redirect_code` is one of `REDIRECT_CODES`, 0 stands for 301; `port` and `derive_port` exclude
    each other.
    """

    uri: str = ""
    authority: str = ""
    port: UInt32 | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: str = ""
    redirect_code: UInt32 = 0
    prefix_rewrite: str = ""


class HTTPBody(Message):
    """A body: text, or bytes in base64; at most one of them."""

    string: str | None = None
    bytes: str | None = None


class HTTPDirectResponse(Message):
    """Answer without any destination. `status` 200-599."""

    status: UInt32
    body: HTTPBody | None = None


class Delegate(Message):
    """Another VirtualService that holds the rules for this match."""

    name: str = ""
    namespace: str = ""


class RegexRewrite(Message):
    r"""Replace what *match* (RE2) finds in the path by *rewrite* (`\1` is the first group)."""

    match: str = ""
    rewrite: str = ""


class HTTPRewrite(Message):
    """`uri` replaces the matched prefix (or the whole path of an exact match); excludes `uri_regex_rewrite`."""

    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRetry(Message):
    """`attempts` is the number of retries, 0 for none; `retry_on` is Envoy's comma-separated list of conditions."""

    attempts: Int32 = 0
    per_try_timeout: Duration | None = None
    retry_on: str = ""
    retry_remote_localities: bool | None = None
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None


class Delay(Message):
    """Delay before forwarding. Without a percentage nothing is delayed; `percent` is the deprecated whole number."""

    percent: Int32 | None = None
    percentage: Percent | None = None
    fixed_delay: Duration | None = None
    exponential_delay: Duration | None = None


class Abort(Message):
    """Answer with an error in place of forwarding. Without a percentage nothing is aborted."""

    http_status: Int32 | None = None
    grpc_status: str | None = None
    http2_error: str | None = None
    percentage: Percent | None = None


class HTTPFaultInjection(Message):
    """Faults on purpose; delay and abort are drawn independently."""

    delay: Delay | None = None
    abort: Abort | None = None


class HTTPMirrorPolicy(Message):
    """A copy of a share of the requests; an absent percentage stands for 100 %."""

    destination: Destination
    percentage: Percent | None = None


class CorsPolicy(Message):
    """Cross-origin resource sharing. `allow_origin` is the deprecated list of exact origins."""

    allow_origin: tuple[str, ...] = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: Duration | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"


class HTTPRoute(Message):
    """One rule. The first rule with a match that holds decides; no `match` matches everything."""

    name: str = ""
    match: tuple[HTTPMatchRequest, ...] = ()
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percent: UInt32 | None = None
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None


class RouteDestination(Message):
    """One destination of a TCP or TLS rule."""

    destination: Destination
    weight: Int32 = 0


class L4MatchAttributes(Message):
    """One alternative of a TCP rule: all conditions given must hold."""

    destination_subnets: tuple[str, ...] = ()
    port: UInt32 = 0
    source_subnet: str = ""
    source_labels: Mapping[str, str] = Field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    source_namespace: str = ""


class TCPRoute(Message):
    """One rule for connections of which only address and port are known."""

    match: tuple[L4MatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class TLSMatchAttributes(Message):
    """One alternative of a TLS rule: all conditions given must hold."""

    sni_hosts: tuple[str, ...]
    destination_subnets: tuple[str, ...] = ()
    port: UInt32 = 0
    source_labels: Mapping[str, str] = Field(default_factory=dict)
    gateways: tuple[str, ...] = ()
    source_namespace: str = ""


class TLSRoute(Message):
    """One rule for TLS connections that are passed on without being opened."""

    match: tuple[TLSMatchAttributes, ...]
    route: tuple[RouteDestination, ...] = ()


class VirtualService(Message):
    """Rules for requests to `hosts`. No `gateways` stands for `mesh`: all sidecars."""

    hosts: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: tuple[str, ...] = ()


# DestinationRule


class LocalityDistribute(Message):
    """Shares in percent for traffic that starts in locality `from_`."""

    from_: str = ""
    to: Mapping[str, UInt32] = Field(default_factory=dict)


class LocalityFailover(Message):
    """Where traffic of locality `from_` goes when its endpoints are unhealthy."""

    from_: str = ""
    to: str = ""


class LocalityLoadBalancerSetting(Message):
    """Prefer endpoints nearby: by shares, by failover, or by labels in order of priority."""

    distribute: tuple[LocalityDistribute, ...] = ()
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None


class ZoneAwareLoadBalancerSetting(Message):
    """Prefer endpoints of the same zone as far as capacity allows."""

    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None
    min_cluster_size: Annotated[UInt32, Field(ge=1)] | None = None


class WarmupConfiguration(Message):
    """A new endpoint's share grows from `minimum_percent` during `duration`; `aggression` bends the curve."""

    duration: Duration
    minimum_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    aggression: Annotated[float, Field(ge=0)] | None = None


class HTTPCookieAttribute(Message):
    """An attribute of the cookie that the proxy makes (`SameSite`)."""

    name: str
    value: str = ""


class HTTPCookie(Message):
    """Hash on this cookie; with a `ttl` the proxy makes it where it is missing (`0s`: a session cookie)."""

    name: str
    path: str = ""
    ttl: DurationOrZero | None = None
    attributes: tuple[HTTPCookieAttribute, ...] = ()


class RingHash(Message):
    """Ketama ring; `minimum_ring_size` 0 stands for 1024."""

    minimum_ring_size: UInt64 = 0


class MagLev(Message):
    """Maglev table; `table_size` is prime, 0 stands for 65537."""

    table_size: UInt64 = 0


class ConsistentHashLB(Message):
    """Stickiness by one property of the request, on one kind of table. `minimum_ring_size` is deprecated."""

    http_header_name: str | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    minimum_ring_size: UInt64 = 0


class BackendUtilizationLB(Message):
    """Weights from the load that endpoints report (ORCA)."""

    error_utilization_penalty_percent: UInt32 = 0
    metric_names_for_computing_utilization: tuple[str, ...] = ()
    weight_expiration_period: DurationOrZero | None = None
    weight_stabilization_period: DurationOrZero | None = None
    weight_update_period: DurationOrZero | None = None


SimpleLB = Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"]


class LoadBalancerSettings(Message):
    """At most one of the first three. An absent `simple` and UNSPECIFIED stand for LEAST_REQUEST."""

    simple: SimpleLB | None = None
    consistent_hash: ConsistentHashLB | None = None
    backend_utilization: BackendUtilizationLB | None = None
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    warmup_duration_secs: Duration | None = None
    warmup: WarmupConfiguration | None = None


class TcpKeepalive(Message):
    """SO_KEEPALIVE. Zero and absent leave the kernel's values."""

    probes: UInt32 = 0
    time: Duration | None = None
    interval: Duration | None = None


class TCPSettings(Message):
    """Limits for all connections. `max_connections` 0 stands for none; `connect_timeout` absent for 10 s."""

    max_connections: Int32 = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: DurationOrZero | None = None


class HTTP2KeepAlive(Message):
    """PING on HTTP/2 connections to the destination."""

    interval: Duration | None = None
    timeout: Duration | None = None


class HTTPSettings(Message):
    """Limits for HTTP. Zero stands for Envoy's largest value, as in Istio (2^32-1)."""

    http1_max_pending_requests: Int32 = 0
    http2_max_requests: Int32 = 0
    max_requests_per_connection: Int32 = 0
    max_retries: Int32 = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Int32 = 0
    http2_keep_alive: HTTP2KeepAlive | None = None


class ConnectionPoolSettings(Message):
    """Circuit breakers and life of connections."""

    tcp: TCPSettings | None = None
    http: HTTPSettings | None = None


class OutlierDetection(Message):
    """Eject endpoints after errors in a row. A wrapped zero (`consecutive_5xx_errors: 0`) switches that cause off."""

    consecutive_errors: Int32 = 0
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = None
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Int32 = 0
    min_health_percent: Int32 = 0
    outlier_detection_http_error_codes: tuple[Annotated[UInt32, Field(ge=100, le=599)], ...] = ()


class ClientTLSSettings(Message):
    """TLS from the client's proxy to the destination. An absent `mode` is DISABLE."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""


class PortTrafficPolicy(Message):
    """The policy of one port: replaces the whole of the policy above it, nothing is merged."""

    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


class TunnelSettings(Message):
    """Reach the destination through an HTTP CONNECT or POST proxy."""

    protocol: str = ""
    target_host: str
    target_port: UInt32


class ProxyProtocol(Message):
    """Send the PROXY protocol header to the destination."""

    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Message):
    """At most `percent` of the active requests are retries, but `min_retry_concurrency` always may be."""

    percent: Annotated[float, Field(ge=0, le=100)] | None = None
    min_retry_concurrency: UInt32 = 0
    budget_interval: DurationOrZero | None = None


class TrafficPolicy(Message):
    """How clients treat the endpoints of a destination."""

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class Subset(Message):
    """A name for the endpoints with these labels; its policy's parts replace those of the rule."""

    name: str
    labels: Mapping[str, str] = Field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


class WorkloadSelector(Message):
    """Which clients the rule is for: those with all of these labels."""

    match_labels: Mapping[str, str] = Field(default_factory=dict)


class DestinationRule(Message):
    """What holds for traffic to `host` once it is routed there."""

    host: str
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: WorkloadSelector | None = None


# Gateway


class Port(Message):
    """A port of the gateway. `protocol` is one of HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP, TLS."""

    number: UInt32
    protocol: str
    name: str
    target_port: UInt32 = 0


class TLSCertificate(Message):
    """One of several certificates of a server, by file."""

    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""


TLSProtocol = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class ServerTLSSettings(Message):
    """TLS at the gateway. An absent `mode` is PASSTHROUGH."""

    https_redirect: bool = False
    mode: Literal["PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] = (
        "PASSTHROUGH"
    )
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    ca_crl: str = ""
    credential_name: str = ""
    credential_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] | None = None
    ca_cert_credential_name: str = ""
    tls_certificates: Annotated[tuple[TLSCertificate, ...], Field(min_length=1, max_length=2)] | None = None
    subject_alt_names: tuple[str, ...] = ()
    verify_certificate_spki: tuple[str, ...] = ()
    verify_certificate_hash: tuple[str, ...] = ()
    min_protocol_version: TLSProtocol = "TLS_AUTO"
    max_protocol_version: TLSProtocol = "TLS_AUTO"
    cipher_suites: tuple[str, ...] = ()
    ecdh_curves: tuple[str, ...] = ()
    insecure_skip_verify: bool | None = None


class Server(Message):
    """One port of the gateway and the hosts that it answers for (`*`, `*.example.com`, `namespace/host`)."""

    port: Port
    hosts: tuple[str, ...]
    bind: str = ""
    default_endpoint: str = ""
    tls: ServerTLSSettings | None = None
    name: str = ""


class Gateway(Message):
    """What the gateways whose workload has all labels of `selector` listen to. No selector selects every gateway."""

    servers: tuple[Server, ...] = ()
    selector: Mapping[str, str] = Field(default_factory=dict)
