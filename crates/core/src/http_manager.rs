//! The HTTP connection manager: codec, limits, filters and where its routes come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use weft_protos::Message as _;
use weft_protos::envoy::config::core::v3::HttpProtocolOptions;
use weft_protos::envoy::extensions::filters::http::fault::v3::HttpFault;
use weft_protos::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use weft_protos::envoy::extensions::filters::http::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use weft_protos::envoy::extensions::filters::http::rbac::v3::Rbac;
use weft_protos::envoy::extensions::filters::http::router::v3::Router;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
};
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use weft_protos::google::protobuf::{BoolValue, UInt32Value};
use weft_protos::weft::extensions::filters::v1 as proto_filters;

use crate::access_log::AccessLog;
use crate::address::Cidr;
use crate::compile::Context;
use crate::cors::CORS_FILTER;
use crate::fault::Fault;
use crate::honoured;
use crate::http1::Http1Options;
use crate::http2::Http2Options;
use crate::local_caller::LocalCaller;
use crate::rbac::HttpRbac;
use crate::route::RouteTable;
use crate::upgrade::{Upgrade, refuse_repeated};

/// Which protocol the downstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN or the first bytes.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// Where the routes are.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// A route configuration, by RDS.
    Named {
        /// Of this name.
        name: Arc<str>,
        /// How long the first one is waited for before there are no routes; `None`: as long as it takes. Default 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
    /// In the listener.
    Inline(Arc<RouteTable>),
}

/// One HTTP filter, in order; the last is always `Router`.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    /// Delay and abort. Its own fault applies where no route says otherwise. `name` is the key of `typed_per_filter_config`.
    Fault { name: Arc<str>, fault: Option<Arc<Fault>> },
    /// Lets in whom its rules, or the route's, let in.
    Rbac(HttpRbac),
    /// Acts where a route has a CORS policy.
    Cors,
    /// Accepted; counts gRPC messages, nothing on the request path.
    GrpcStats,
    /// Makes calls of gRPC-Web calls of gRPC, and their answers gRPC-Web.
    GrpcWeb,
    /// Waits for the virtual host of a request that has none yet, where the route configuration has them come by themselves.
    OnDemand,
    /// Lets in requests of the program beside this proxy only.
    LocalCaller(Arc<LocalCaller>),
    /// Sends the request upstream.
    Router {
        /// Do not add `x-envoy-*` headers to requests and responses.
        suppress_envoy_headers: bool,
        /// Records of single tries.
        upstream_logs: Box<[AccessLog]>,
    },
}

/// What to do with the `Server` header of responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerHeader {
    /// Always this proxy's name.
    Overwrite,
    /// This proxy's name if the upstream sent none.
    AppendIfAbsent,
    /// As the upstream sent it.
    PassThrough,
}

/// What to do with `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardClientCert {
    /// Remove it.
    Sanitize,
    /// Keep it if the connection has mutual TLS.
    ForwardOnly,
    /// Append to it if the connection has mutual TLS.
    AppendForward,
    /// Replace it if the connection has mutual TLS, else remove it.
    SanitizeSet,
    /// Keep it always.
    AlwaysForwardOnly,
}

/// What `x-forwarded-client-cert` tells about the client's certificate, besides `By` and `Hash`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCertDetails {
    /// `Subject`
    pub subject: bool,
    /// `Cert`: the PEM, URL-encoded.
    pub cert: bool,
    /// `Chain`
    pub chain: bool,
    /// `DNS`
    pub dns: bool,
    /// `URI`
    pub uri: bool,
}

/// What to do with `%2F`, `%2f`, `%5C` and `%5c` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Leave them.
    Keep,
    /// Answer 400.
    Reject,
    /// Unescape and answer 307 to the new path.
    Redirect,
    /// Unescape and go on.
    Unescape,
}

/// A compiled `HttpConnectionManager`. Durations: `None` means no limit.
#[derive(Debug, Clone)]
pub struct HttpManager {
    /// For metrics.
    pub stat_prefix: Arc<str>,
    /// Protocol.
    pub codec: Codec,
    /// Where HTTP/1.1 is spoken.
    pub http1: Http1Options,
    /// Where HTTP/2 is spoken.
    pub http2: Http2Options,
    /// Routes.
    pub routes: RouteSource,
    /// Filters in order, ending with the router.
    pub filters: Box<[HttpFilter]>,
    /// Records of requests.
    pub access_logs: Box<[AccessLog]>,
    /// Make an `x-request-id` for requests that have none.
    pub generate_request_id: bool,
    /// Keep the `x-request-id` of requests from outside.
    pub preserve_external_request_id: bool,
    /// The peer's address is the client's: this proxy is the edge. Appends to and trusts `x-forwarded-for` accordingly.
    pub use_remote_address: bool,
    /// So many addresses at the end of `x-forwarded-for` were added by trusted proxies.
    pub xff_num_trusted_hops: u32,
    /// Do not append the peer to `x-forwarded-for`, where this proxy is the edge.
    pub skip_xff_append: bool,
    /// Clients that are one's own: `x-envoy-internal`. None unless configured, as in Envoy since CVE-2024-45806; private addresses and this
    /// host's if what is configured is an empty list.
    pub internal_addresses: Box<[Cidr]>,
    /// Name in the `Server` header; `envoy` if the resource has none.
    pub server_name: Arc<str>,
    /// What to do with the header.
    pub server_header: ServerHeader,
    /// Resolve `.` and `..` in paths (RFC 3986 6).
    pub normalize_path: bool,
    /// `//` becomes `/` in paths.
    pub merge_slashes: bool,
    /// Escaped slashes in paths.
    pub escaped_slashes: EscapedSlashes,
    /// A stream on which nothing moves. Default 5 min.
    pub stream_idle_timeout: Option<Duration>,
    /// From the first byte of a request to its complete head. Default: none.
    pub request_headers_timeout: Option<Duration>,
    /// From the first byte of a request to its end. Default: none.
    pub request_timeout: Option<Duration>,
    /// A connection without a request. Default 1 hour.
    pub idle_timeout: Option<Duration>,
    /// A connection's whole life. Default: none.
    pub max_connection_duration: Option<Duration>,
    /// A request's whole life, answer included, where its route has no limit of its own. Default: none.
    pub max_stream_duration: Option<Duration>,
    /// Requests on one connection before it is closed. Default: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Of requests. Default 60 KiB, 100 headers.
    pub head_limits: HeadLimits,
    /// Wait so long for the client to close after a last answer; zero: not at all. Default 1 s.
    pub delayed_close_timeout: Duration,
    /// Changes of protocol that are allowed where a route says nothing about them.
    pub upgrades: Box<[Upgrade]>,
    /// Pass `Expect: 100-continue` on to the upstream instead of answering it here.
    pub proxy_100_continue: bool,
    /// `x-forwarded-client-cert`.
    pub forward_client_cert: ForwardClientCert,
    /// What it tells.
    pub client_cert_details: ClientCertDetails,
}

/// The name under which routes configure the fault filter.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";

/// Envoy's defaults of the manager.
mod default {
    use std::time::Duration;

    pub(super) const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
    pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
    pub(super) const DELAYED_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
    pub(super) const MAX_HEADERS: u32 = 100;
    pub(super) const MAX_HEADERS_KB: u32 = 60;
    /// Of HTTP/1.1; for HTTP/2 Envoy's is 60. One upstream may be reached by either.
    pub(super) const MAX_RESPONSE_HEADERS_KB: u32 = 80;
}

/// How large the head of a message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of all headers.
    pub bytes: usize,
    /// Number of headers.
    pub count: u32,
}

impl HeadLimits {
    /// Envoy's bound of what can be configured.
    const MOST_KB: u32 = 8192;

    /// Of responses, where a cluster says nothing.
    pub const RESPONSES: Self =
        Self { bytes: default::MAX_RESPONSE_HEADERS_KB as usize * 1024, count: default::MAX_HEADERS };

    /// Of the responses of a cluster's endpoints.
    pub(crate) fn responses(context: &mut Context, common: &HttpProtocolOptions) -> Self {
        Self {
            bytes: kilobytes(
                context,
                "common_http_protocol_options.max_response_headers_kb",
                common.max_response_headers_kb.as_ref(),
                default::MAX_RESPONSE_HEADERS_KB,
            ),
            count: header_count(context, common),
        }
    }
}

/// What Envoy calls internal by itself (`Network::Utility::isInternalAddress`): RFC 1918, RFC 4193, and this host.
fn private_addresses() -> Box<[Cidr]> {
    let ranges = [
        (IpAddr::from([10, 0, 0, 0]), 8),
        (IpAddr::from([172, 16, 0, 0]), 12),
        (IpAddr::from([192, 168, 0, 0]), 16),
        (Ipv4Addr::LOCALHOST.into(), 32),
        (IpAddr::from([0xfc00, 0, 0, 0, 0, 0, 0, 0]), 7),
        (Ipv6Addr::LOCALHOST.into(), 128),
    ];
    ranges.map(|(address, length)| Cidr::new(address, length).expect("no longer than the address")).into()
}

fn kilobytes(context: &mut Context, field: &str, value: Option<&UInt32Value>, default: u32) -> usize {
    let value = value.map_or(default, |limit| limit.value);
    if !(1..=HeadLimits::MOST_KB).contains(&value) {
        context.refuse_at(field, format!("{value} is not between 1 and {}", HeadLimits::MOST_KB));
    }
    1024 * value as usize
}

fn header_count(context: &mut Context, common: &HttpProtocolOptions) -> u32 {
    let count = common.max_headers_count.as_ref().map_or(default::MAX_HEADERS, |count| count.value);
    if count == 0 {
        context.refuse_at("common_http_protocol_options.max_headers_count", "a message has at least one header");
    }
    count
}

impl HttpManager {
    /// Whether `x-forwarded-proto` stays as a peer says it. The first proxy inside believes nobody; the others, and one behind proxies that
    /// are trusted, believe what they are told (Envoy).
    pub fn believes_forwarded_proto(&self) -> bool {
        !self.use_remote_address || self.xff_num_trusted_hops > 0
    }

    pub(crate) fn compile(context: &mut Context, manager: &proto::HttpConnectionManager) -> Option<Self> {
        let routes = match &manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => {
                let initial_fetch_timeout = context.at("rds.config_source", |context| {
                    context.ads_source(rds.config_source.as_ref());
                    context.initial_fetch_timeout(rds.config_source.as_ref())
                });
                Some(RouteSource::Named { name: rds.route_config_name.as_str().into(), initial_fetch_timeout })
            }
            Some(RouteSpecifier::RouteConfig(configuration)) => {
                if configuration.vhds.is_some() {
                    context.refuse_at(
                        "route_config.vhds",
                        "only a configuration that came by RDS has virtual hosts by VHDS",
                    );
                }
                Some(RouteSource::Inline(Arc::new(
                    context.at("route_config", |context| RouteTable::read(context, configuration)),
                )))
            }
            Some(RouteSpecifier::ScopedRoutes(_)) | None => {
                context.refuse("rds or route_config is needed");
                None
            }
        };
        let filters: Box<[_]> =
            context.each("http_filters", &manager.http_filters, http_filter).into_iter().flatten().collect();
        let routers = filters.iter().filter(|filter| matches!(filter, HttpFilter::Router { .. })).count();
        if routers != 1 || !matches!(filters.last(), Some(HttpFilter::Router { .. })) {
            context.refuse_at("http_filters", "the last filter, and no other, must be the router");
        }
        if let Some(tracing) = &manager.tracing
            && [&tracing.random_sampling, &tracing.overall_sampling]
                .iter()
                .all(|share| share.as_ref().is_none_or(|share| share.value > 0.0))
        {
            context.at("tracing", |context| context.pass_over("it names no provider, so no spans are made"));
        }
        let common = manager.common_http_protocol_options.unwrap_or_default();
        let upgrades = context.each("upgrade_configs", &manager.upgrade_configs, |context, upgrade| {
            Upgrade::compile(context, &upgrade.upgrade_type, is_true(upgrade.enabled.as_ref(), true), None)
        });
        refuse_repeated(context, &upgrades);
        if common.max_response_headers_kb.is_some() {
            context.refuse_at(
                "common_http_protocol_options.max_response_headers_kb",
                "responses come from clusters, whose own options limit them",
            );
        }
        let internal_addresses = manager.internal_address_config.as_ref().map_or_else(Box::default, |internal| {
            if internal.cidr_ranges.is_empty() {
                // Envoy takes a list that is there and empty for this one.
                return private_addresses();
            }
            context.at("internal_address_config", |context| {
                let ranges = context.each("cidr_ranges", &internal.cidr_ranges, Cidr::compile);
                ranges.into_iter().flatten().collect()
            })
        });
        let head_limits = HeadLimits {
            bytes: kilobytes(
                context,
                "max_request_headers_kb",
                manager.max_request_headers_kb.as_ref(),
                default::MAX_HEADERS_KB,
            ),
            count: header_count(context, &common),
        };
        let delayed_close_timeout = context
            .duration("delayed_close_timeout", manager.delayed_close_timeout.as_ref())
            .unwrap_or(default::DELAYED_CLOSE_TIMEOUT);
        let mut timeout = |field: &str, value, default: Option<Duration>| {
            context.duration(field, value).map_or(default, |timeout| (!timeout.is_zero()).then_some(timeout))
        };
        Some(Self {
            stream_idle_timeout: timeout(
                "stream_idle_timeout",
                manager.stream_idle_timeout.as_ref(),
                Some(default::STREAM_IDLE_TIMEOUT),
            ),
            request_headers_timeout: timeout("request_headers_timeout", manager.request_headers_timeout.as_ref(), None),
            request_timeout: timeout("request_timeout", manager.request_timeout.as_ref(), None),
            idle_timeout: timeout(
                "common_http_protocol_options.idle_timeout",
                common.idle_timeout.as_ref(),
                Some(default::IDLE_TIMEOUT),
            ),
            max_connection_duration: timeout(
                "common_http_protocol_options.max_connection_duration",
                common.max_connection_duration.as_ref(),
                None,
            ),
            max_stream_duration: timeout(
                "common_http_protocol_options.max_stream_duration",
                common.max_stream_duration.as_ref(),
                None,
            ),
            delayed_close_timeout,
            stat_prefix: manager.stat_prefix.as_str().into(),
            codec: match manager.codec_type() {
                CodecType::Auto => Codec::Auto,
                CodecType::Http1 => Codec::Http1,
                CodecType::Http2 => Codec::Http2,
                CodecType::Http3 => {
                    context.refuse_at("codec_type", "HTTP/3 is not supported");
                    Codec::Auto
                }
            },
            http1: Http1Options::at(context, "http_protocol_options", manager.http_protocol_options.as_ref()),
            http2: manager.http2_protocol_options.as_ref().map_or_else(Http2Options::default, |options| {
                context.at("http2_protocol_options", |context| Http2Options::compile(context, options))
            }),
            filters,
            access_logs: AccessLog::compile_all(context, "access_log", &manager.access_log),
            generate_request_id: is_true(manager.generate_request_id.as_ref(), true),
            preserve_external_request_id: manager.preserve_external_request_id,
            use_remote_address: is_true(manager.use_remote_address.as_ref(), false),
            xff_num_trusted_hops: manager.xff_num_trusted_hops,
            skip_xff_append: manager.skip_xff_append,
            internal_addresses,
            server_name: if manager.server_name.is_empty() { "envoy" } else { &manager.server_name }.into(),
            server_header: match manager.server_header_transformation() {
                ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite,
                ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent,
                ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
            },
            normalize_path: is_true(manager.normalize_path.as_ref(), false),
            merge_slashes: manager.merge_slashes,
            escaped_slashes: match manager.path_with_escaped_slashes_action() {
                // Envoy's implementation default is to leave them.
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
                | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
                PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
                PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::Redirect,
                PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::Unescape,
            },
            max_requests_per_connection: max_requests(&common),
            head_limits,
            upgrades: upgrades.into(),
            proxy_100_continue: manager.proxy_100_continue,
            forward_client_cert: match manager.forward_client_cert_details() {
                ForwardClientCertDetails::Sanitize => ForwardClientCert::Sanitize,
                ForwardClientCertDetails::ForwardOnly => ForwardClientCert::ForwardOnly,
                ForwardClientCertDetails::AppendForward => ForwardClientCert::AppendForward,
                ForwardClientCertDetails::SanitizeSet => ForwardClientCert::SanitizeSet,
                ForwardClientCertDetails::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
            },
            client_cert_details: manager.set_current_client_cert_details.as_ref().map_or_else(
                ClientCertDetails::default,
                |details| ClientCertDetails {
                    subject: is_true(details.subject.as_ref(), false),
                    cert: details.cert,
                    chain: details.chain,
                    dns: details.dns,
                    uri: details.uri,
                },
            ),
            routes: routes?,
        })
    }

    /// What a request must show to be let in, if this manager serves the program beside the proxy on an address that others reach.
    pub fn local_caller(&self) -> Option<&LocalCaller> {
        self.filters.iter().find_map(|filter| match filter {
            HttpFilter::LocalCaller(caller) => Some(&**caller),
            _ => None,
        })
    }

    /// The same, if requests come as to an HTTP proxy: for any host.
    pub fn forward_proxy(&self) -> Option<&LocalCaller> {
        self.local_caller().filter(|caller| caller.forward_proxy)
    }
}

impl HttpManager {
    /// Records of single tries.
    pub fn upstream_logs(&self) -> &[AccessLog] {
        let found = self.filters.iter().find_map(|filter| match filter {
            HttpFilter::Router { upstream_logs, .. } => Some(upstream_logs),
            _ => None,
        });
        found.map_or(&[], |logs| logs)
    }
}

pub(crate) fn max_requests(common: &HttpProtocolOptions) -> Option<u32> {
    common.max_requests_per_connection.as_ref().map(|limit| limit.value).filter(|limit| *limit != 0)
}

pub(crate) fn is_true(value: Option<&BoolValue>, default: bool) -> bool {
    value.map_or(default, |value| value.value)
}

fn http_filter(context: &mut Context, filter: &proto::HttpFilter) -> Option<HttpFilter> {
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        context.refuse_at("typed_config", "required");
        return None;
    };
    context.at("typed_config", |context| match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.filters.http.router.v3.Router" => match Router::decode(any.value.as_ref()) {
            Ok(router) => Some(HttpFilter::Router {
                suppress_envoy_headers: router.suppress_envoy_headers,
                upstream_logs: AccessLog::compile_all(context, "upstream_log", &router.upstream_log),
            }),
            Err(error) => {
                context.refuse(error.to_string());
                None
            }
        },
        "envoy.extensions.filters.http.fault.v3.HTTPFault" => match HttpFault::decode(any.value.as_ref()) {
            Ok(fault) => {
                if filter.name != FAULT_FILTER {
                    context.refuse(format!("the fault filter must have the name {FAULT_FILTER}"));
                }
                let fault = Fault::compile(context, &fault);
                let strikes = fault.delay.is_some() || fault.abort.is_some();
                Some(HttpFilter::Fault { name: filter.name.as_str().into(), fault: strikes.then(|| Arc::new(fault)) })
            }
            Err(error) => {
                context.refuse(error.to_string());
                None
            }
        },
        "weft.extensions.filters.v1.LocalCaller" => match proto_filters::LocalCaller::decode(any.value.as_ref()) {
            Ok(caller) => Some(HttpFilter::LocalCaller(Arc::new(LocalCaller::compile(context, &caller)))),
            Err(error) => {
                context.refuse(error.to_string());
                None
            }
        },
        "envoy.extensions.filters.http.rbac.v3.RBAC" => match Rbac::decode(any.value.as_ref()) {
            Ok(rbac) => Some(HttpFilter::Rbac(HttpRbac::compile(context, &filter.name, &rbac))),
            Err(error) => {
                context.refuse(error.to_string());
                None
            }
        },
        "envoy.extensions.filters.http.cors.v3.Cors" => {
            if filter.name != CORS_FILTER {
                context.refuse(format!("the CORS filter must have the name {CORS_FILTER}"));
            }
            Some(HttpFilter::Cors)
        }
        "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" => Some(HttpFilter::GrpcWeb),
        "envoy.extensions.filters.http.on_demand.v3.OnDemand" => Some(HttpFilter::OnDemand),
        "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => match GrpcStats::decode(any.value.as_ref()) {
            Ok(stats) => {
                if let Some(PerMethodStatSpecifier::StatsForAllMethods(BoolValue { value: true })) =
                    stats.per_method_stat_specifier
                {
                    context.at("stats_for_all_methods", |context| {
                        context.pass_over("weft-proxy's metrics name no methods");
                    });
                }
                Some(HttpFilter::GrpcStats)
            }
            Err(error) => {
                context.refuse(error.to_string());
                None
            }
        },
        other => {
            match honoured::not_applied(any) {
                Some(reason) => context.pass_over(format!("the filter {} is passed over: {reason}", filter.name)),
                None => context.refuse(format!("weft-proxy has no HTTP filter `{other}`")),
            }
            None
        }
    })
}
