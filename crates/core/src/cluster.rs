//! Clusters: where endpoints come from, how one is chosen, how a connection to it is made.

use std::sync::Arc;
use std::time::Duration;

use weft_protos::Message as _;
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::envoy::config::core::v3::transport_socket::ConfigType;
use weft_protos::envoy::config::core::v3::{Http2ProtocolOptions, RoutingPriority, TransportSocket as ProtoSocket};
use weft_protos::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_protos::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use weft_protos::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use weft_protos::google::protobuf::UInt32Value;

use crate::address::{BindAddress, compile_socket};
use crate::breaker::Limits;
use crate::compile::{Compiled, Context, Problems, Strictness};
use crate::dns::{Dns, DnsKind};
use crate::endpoint::{Endpoint, Labels, LoadAssignment, labels};
use crate::health_check::HealthCheck;
use crate::honoured;
use crate::http_manager::{HeadLimits, max_requests};
use crate::http1::Http1Options;
use crate::http2::Http2Options;
use crate::metadata::Metadata;
use crate::outlier::OutlierDetection;
use crate::tls::{SecretName, UpstreamTls};

mod lb_policy;

pub use lb_policy::{HashFunction, LbPolicy};

/// Where endpoints come from.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// The cluster itself.
    Static(Arc<LoadAssignment>),
    /// EDS.
    Eds {
        /// Under this name.
        name: Arc<str>,
        /// How long the first ones are waited for before there are none; `None`: as long as it takes. Default 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
    /// Names that are resolved again and again.
    Dns(Arc<Dns>),
    /// The original destination of the downstream connection.
    OriginalDst,
}

/// Which protocol is spoken to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1
    Http1,
    /// HTTP/2, without asking.
    Http2,
    /// What the downstream speaks.
    Downstream,
    /// What ALPN says; HTTP/1.1 without TLS.
    Auto,
}

/// How the version of HTTP for one request comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionChoice {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// The endpoint chooses, by ALPN.
    Endpoint,
    /// HTTP/1.1, of those that the endpoint may choose.
    OfferHttp1,
}

impl VersionChoice {
    /// What is offered by ALPN where no list says it: the versions that the choice may come to (Envoy's connection pools).
    pub fn unlisted(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 | Self::OfferHttp1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Endpoint => &[b"h2", b"http/1.1"],
        }
    }
}

/// HTTP settings of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamHttp {
    /// Protocol.
    pub protocol: UpstreamProtocol,
    /// Where HTTP/1.1 is spoken.
    pub http1: Http1Options,
    /// Where HTTP/2 is spoken.
    pub http2: Http2Options,
    /// An idle pooled connection is closed after it; `None`: never. Default 1 hour.
    pub idle_timeout: Option<Duration>,
    /// Requests on one connection; `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
    /// A connection's whole life; `None`: no limit.
    pub max_connection_duration: Option<Duration>,
    /// Of responses. Default 80 KiB, 100 headers.
    pub head_limits: HeadLimits,
}

impl UpstreamHttp {
    /// The version for a request over *transport*. *http2*: its client speaks HTTP/2; *tunnel*: it asks for another protocol.
    pub fn version_for(&self, transport: &TransportSocket, http2: bool, tunnel: bool) -> VersionChoice {
        let secure = transport.tls.is_some();
        // Without a list, what is offered follows from the choice.
        let offers_http1 = |tls: &UpstreamTls| {
            let mut alpn = tls.common.spoken_alpn().peekable();
            alpn.peek().is_none() || alpn.any(|name| *name == *b"http/1.1")
        };
        match self.protocol {
            UpstreamProtocol::Http2 => VersionChoice::Http2,
            UpstreamProtocol::Downstream if http2 => VersionChoice::Http2,
            // In HTTP/2 a 2xx that means no change of protocol cannot be told from one that does (RFC 8441 5), and names have no case.
            UpstreamProtocol::Auto
                if (tunnel || self.http1.keeps_case && !http2)
                    && transport.tls.as_deref().is_some_and(offers_http1) =>
            {
                VersionChoice::OfferHttp1
            }
            UpstreamProtocol::Auto if secure => VersionChoice::Endpoint,
            // Without TLS nobody can be asked, and where the configuration names the version nobody is, whatever ALPN offers.
            UpstreamProtocol::Auto | UpstreamProtocol::Downstream | UpstreamProtocol::Http1 => VersionChoice::Http1,
        }
    }
}

/// Which version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyProtocolVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How bytes go over a connection.
#[derive(Debug, Clone, Default)]
pub struct TransportSocket {
    /// Say first for which two ends the connection is.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// In TLS; else as they are.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// A transport socket for endpoints whose labels match.
#[derive(Debug, Clone)]
pub struct TransportSocketMatch {
    /// `tlsMode-istio`
    pub name: Box<str>,
    /// All must be among the endpoint's; empty: any endpoint.
    pub labels: Labels,
    /// The socket.
    pub socket: TransportSocket,
}

/// TCP keepalive to the upstream, seconds and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle seconds before the first probe.
    pub time: Option<u32>,
    /// Seconds between probes.
    pub interval: Option<u32>,
}

/// A compiled cluster.
#[derive(Debug)]
pub struct Cluster {
    /// `outbound|9080|v1|reviews.default.svc.cluster.local`
    pub name: Arc<str>,
    /// Name for metrics; the name if absent in the resource.
    pub stat_name: Arc<str>,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub policy: LbPolicy,
    /// Share of healthy endpoints below which health is ignored, percent. Default 50; 0 turns panic off.
    pub panic_threshold_percent: f64,
    /// Localities are chosen by their weight.
    pub locality_weighted: bool,
    /// What the proxy itself asks of endpoints.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Endpoints that nobody has checked yet do not count, for priorities and panic.
    pub ignores_new_hosts: bool,
    /// An endpoint that discovery takes away goes at once; else it stays while its checks pass.
    pub ignores_health_on_removal: bool,
    /// An endpoint's place in consistent hashing follows from its name and not from its address.
    pub hash_hostnames: bool,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// Circuit breakers, priority DEFAULT.
    pub limits: Limits,
    /// Ejection of failing endpoints.
    pub outlier: Option<OutlierDetection>,
    /// Local address and namespace of upstream sockets.
    pub bind: Option<BindAddress>,
    /// Tried in order, before `transport`.
    pub transport_matches: Box<[TransportSocketMatch]>,
    /// For endpoints that match none.
    pub transport: TransportSocket,
    /// HTTP settings.
    pub http: UpstreamHttp,
    /// Bytes buffered for each connection and direction. Default 1 MiB.
    pub buffer_limit_bytes: u32,
    /// TCP keepalive.
    pub keepalive: Option<Keepalive>,
    /// Where it comes from.
    pub metadata: Metadata,
}

impl Cluster {
    /// Envoy's defaults.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Of `healthy_panic_threshold`, percent.
    pub const DEFAULT_PANIC_THRESHOLD_PERCENT: f64 = 50.0;

    /// Compile a cluster.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour.
    pub fn compile(cluster: &proto::Cluster, strictness: Strictness) -> Result<Compiled<Self>, Problems> {
        let mut context = Context::new("Cluster");
        let value = Self::read(&mut context, cluster);
        context.finish(value, strictness)
    }

    fn read(context: &mut Context, cluster: &proto::Cluster) -> Self {
        let name: Arc<str> = cluster.name.as_str().into();
        let discovery = discovery(context, cluster);
        let health_check = HealthCheck::compile_only(context, &cluster.health_checks, &discovery);
        let policy = LbPolicy::compile(context, cluster, &discovery);
        let common_lb = cluster.common_lb_config.clone().unwrap_or_default();
        context.each("filters", &cluster.filters, |context, filter| {
            match filter.typed_config.as_ref().and_then(honoured::not_applied) {
                Some(reason) => context.pass_over(format!("the filter {} is passed over: {reason}", filter.name)),
                None => context.refuse("weft-proxy has no network filters of clusters"),
            }
        });
        let transport_matches =
            context.each("transport_socket_matches", &cluster.transport_socket_matches, |context, item| {
                TransportSocketMatch {
                    name: item.name.as_str().into(),
                    labels: item.r#match.as_ref().map_or_else(Box::default, labels),
                    socket: context.at("transport_socket", |context| socket(context, item.transport_socket.as_ref())),
                }
            });
        Self {
            stat_name: if cluster.alt_stat_name.is_empty() {
                Arc::clone(&name)
            } else {
                cluster.alt_stat_name.as_str().into()
            },
            name,
            discovery,
            policy,
            panic_threshold_percent: common_lb
                .healthy_panic_threshold
                .as_ref()
                .map_or(Self::DEFAULT_PANIC_THRESHOLD_PERCENT, |percent| percent.value),
            locality_weighted: matches!(
                common_lb.locality_config_specifier,
                Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
            ),
            health_check: health_check.map(Arc::new),
            ignores_new_hosts: common_lb.ignore_new_hosts_until_first_hc,
            ignores_health_on_removal: cluster.ignore_health_on_host_removal,
            hash_hostnames: common_lb
                .consistent_hashing_lb_config
                .as_ref()
                .is_some_and(|config| config.use_hostname_for_hashing),
            connect_timeout: context
                .positive_duration("connect_timeout", cluster.connect_timeout.as_ref())
                .unwrap_or(Self::DEFAULT_CONNECT_TIMEOUT),
            limits: limits(context, cluster),
            outlier: cluster.outlier_detection.as_ref().map(|detection| {
                context.at("outlier_detection", |context| OutlierDetection::compile(context, detection))
            }),
            bind: cluster.upstream_bind_config.as_ref().and_then(|bind| {
                let source = bind.source_address.as_ref()?;
                context.at("upstream_bind_config.source_address", |context| compile_socket(context, source))
            }),
            transport_matches: transport_matches.into(),
            transport: context.at("transport_socket", |context| socket(context, cluster.transport_socket.as_ref())),
            http: upstream_http(context, cluster),
            buffer_limit_bytes: cluster
                .per_connection_buffer_limit_bytes
                .as_ref()
                .map_or(DEFAULT_BUFFER_LIMIT_BYTES, |limit| limit.value),
            keepalive: cluster
                .upstream_connection_options
                .as_ref()
                .and_then(|options| options.tcp_keepalive.as_ref())
                .map(|keepalive| Keepalive {
                    probes: keepalive.keepalive_probes.as_ref().map(|value| value.value),
                    time: keepalive.keepalive_time.as_ref().map(|value| value.value),
                    interval: keepalive.keepalive_interval.as_ref().map(|value| value.value),
                }),
            metadata: Metadata::compile(cluster.metadata.as_ref()),
        }
    }

    /// How to talk to an address that no discovery knows, which has no labels: only a match that asks for none is for it.
    pub fn transport_for_original(&self) -> &TransportSocket {
        self.transport_by(&[])
    }

    /// How to talk to an endpoint: the first match whose labels it has, else the cluster's own socket.
    pub fn transport_for(&self, endpoint: &Endpoint) -> &TransportSocket {
        self.transport_by(&endpoint.transport_labels)
    }

    /// The same for its health checks, which may say otherwise.
    pub fn check_transport_for(&self, endpoint: &Endpoint) -> &TransportSocket {
        let labels = self.health_check.as_ref().and_then(|check| check.transport_labels.as_deref());
        self.transport_by(labels.unwrap_or(&endpoint.transport_labels))
    }

    fn transport_by(&self, labels: &[(Box<str>, Box<str>)]) -> &TransportSocket {
        let has = |wanted: &(Box<str>, Box<str>)| labels.contains(wanted);
        self.transport_matches
            .iter()
            .find(|candidate| candidate.labels.iter().all(has))
            .map_or(&self.transport, |candidate| &candidate.socket)
    }

    /// Every secret that its transport sockets need.
    pub fn secrets(&self) -> Vec<SecretName> {
        self.transport_matches
            .iter()
            .map(|candidate| &candidate.socket)
            .chain([&self.transport])
            .filter_map(|socket| socket.tls.as_ref())
            .flat_map(|tls| tls.common.secrets().cloned())
            .collect()
    }
}

/// Envoy's default for clusters and listeners.
pub(crate) const DEFAULT_BUFFER_LIMIT_BYTES: u32 = 1 << 20;

fn discovery(context: &mut Context, cluster: &proto::Cluster) -> Discovery {
    let assignment = |context: &mut Context| {
        let empty = ClusterLoadAssignment::default();
        let assignment = cluster.load_assignment.as_ref().unwrap_or(&empty);
        Discovery::Static(Arc::new(context.at("load_assignment", |context| LoadAssignment::read(context, assignment))))
    };
    match cluster.cluster_discovery_type {
        None => assignment(context),
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            context.refuse_at("cluster_type", "custom cluster types are not supported");
            assignment(context)
        }
        Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(kind) {
            Ok(DiscoveryType::Static) => assignment(context),
            Ok(DiscoveryType::Eds) => {
                let service = cluster.eds_cluster_config.as_ref().map_or("", |config| &config.service_name);
                let source = cluster.eds_cluster_config.as_ref().and_then(|config| config.eds_config.as_ref());
                let initial_fetch_timeout = context.at("eds_cluster_config.eds_config", |context| {
                    context.ads_source(source);
                    context.initial_fetch_timeout(source)
                });
                let name = if service.is_empty() { cluster.name.as_str() } else { service }.into();
                Discovery::Eds { name, initial_fetch_timeout }
            }
            Ok(DiscoveryType::OriginalDst) => Discovery::OriginalDst,
            Ok(DiscoveryType::StrictDns) => Discovery::Dns(Arc::new(Dns::read(context, cluster, DnsKind::Strict))),
            Ok(DiscoveryType::LogicalDns) => Discovery::Dns(Arc::new(Dns::read(context, cluster, DnsKind::Logical))),
            Err(_) => {
                context.refuse_at("type", format!("{kind} is no discovery type"));
                assignment(context)
            }
        },
    }
}

fn limits(context: &mut Context, cluster: &proto::Cluster) -> Limits {
    let mut limits = Limits::default();
    let Some(breakers) = &cluster.circuit_breakers else { return limits };
    context.each("circuit_breakers.thresholds", &breakers.thresholds, |context, thresholds| {
        if thresholds.priority() != RoutingPriority::Default {
            context.refuse_at("priority", "routes have the priority DEFAULT only");
            return;
        }
        let read = |value: &Option<UInt32Value>, default| value.as_ref().map_or(default, |value| value.value);
        limits = Limits {
            connections: read(&thresholds.max_connections, limits.connections),
            pending: read(&thresholds.max_pending_requests, limits.pending),
            requests: read(&thresholds.max_requests, limits.requests),
            retries: read(&thresholds.max_retries, limits.retries),
            tracks_remaining: thresholds.track_remaining,
        };
    });
    limits
}

/// A transport socket; absent is plain.
fn socket(context: &mut Context, socket: Option<&ProtoSocket>) -> TransportSocket {
    let Some(socket) = socket else { return TransportSocket::default() };
    let Some(ConfigType::TypedConfig(any)) = &socket.config_type else {
        context.refuse_at("typed_config", "required: a transport socket without one would be no TLS");
        return TransportSocket::default();
    };
    context.at("typed_config", |context| {
        let decoded = match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => Ok(TransportSocket::default()),
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
                UpstreamTlsContext::decode(any.value.as_ref()).map(|tls| TransportSocket {
                    tls: Some(Arc::new(UpstreamTls::compile(context, &tls))),
                    ..TransportSocket::default()
                })
            }
            "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
                ProxyProtocolUpstreamTransport::decode(any.value.as_ref())
                    .map(|transport| proxy_protocol(context, &transport))
            }
            other => {
                context.refuse(format!("weft-proxy has no transport socket `{other}`"));
                Ok(TransportSocket::default())
            }
        };
        decoded.unwrap_or_else(|error| {
            context.refuse(error.to_string());
            TransportSocket::default()
        })
    })
}

/// A header before what another transport socket does.
fn proxy_protocol(context: &mut Context, transport: &ProxyProtocolUpstreamTransport) -> TransportSocket {
    let inner = context.at("transport_socket", |context| socket(context, transport.transport_socket.as_ref()));
    if inner.proxy_protocol.is_some() {
        context.refuse_at("transport_socket", "a connection begins with one PROXY protocol header, not with two");
    }
    let version = match transport.config.as_ref().map_or(0, |config| config.version) {
        0 => ProxyProtocolVersion::V1,
        1 => ProxyProtocolVersion::V2,
        other => {
            context.refuse_at("config.version", format!("{other} is no version of the PROXY protocol"));
            ProxyProtocolVersion::V1
        }
    };
    TransportSocket { proxy_protocol: Some(version), ..inner }
}

/// Envoy's default for pooled connections.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

fn upstream_http(context: &mut Context, cluster: &proto::Cluster) -> UpstreamHttp {
    let mut http = UpstreamHttp {
        protocol: UpstreamProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        idle_timeout: Some(DEFAULT_IDLE_TIMEOUT),
        max_requests_per_connection: None,
        max_connection_duration: None,
        head_limits: HeadLimits::RESPONSES,
    };
    if cluster.typed_extension_protocol_options.is_empty() {
        // The older fields for the same.
        let protocol = match &cluster.http2_protocol_options {
            Some(http2) => ProtocolConfig::Http2ProtocolOptions(http2.clone()),
            None => ProtocolConfig::HttpProtocolOptions(cluster.http_protocol_options.clone().unwrap_or_default()),
        };
        let options = HttpProtocolOptions {
            common_http_protocol_options: cluster.common_http_protocol_options,
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(protocol),
            })),
            ..Default::default()
        };
        return http_options(context, &options, &http);
    }
    for (name, any) in &cluster.typed_extension_protocol_options {
        context.at(&format!("typed_extension_protocol_options[{name}]"), |context| {
            if !any.type_url.ends_with("/envoy.extensions.upstreams.http.v3.HttpProtocolOptions") {
                context.refuse(format!("weft-proxy does not know `{}`", any.type_url));
                return;
            }
            match HttpProtocolOptions::decode(any.value.as_ref()) {
                Ok(options) => http = http_options(context, &options, &http),
                Err(error) => context.refuse(error.to_string()),
            }
        });
    }
    http
}

fn http2_options(context: &mut Context, field: &str, options: Option<&Http2ProtocolOptions>) -> Http2Options {
    options.map_or_else(Http2Options::default, |options| {
        context.at(&format!("{field}.http2_protocol_options"), |context| Http2Options::compile(context, options))
    })
}

fn http_options(context: &mut Context, options: &HttpProtocolOptions, default: &UpstreamHttp) -> UpstreamHttp {
    let common = options.common_http_protocol_options.unwrap_or_default();
    let (protocol, field, http1, http2) = match &options.upstream_protocol_options {
        None => (UpstreamProtocol::Http1, "", None, None),
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(config)) => (
            UpstreamProtocol::Downstream,
            "use_downstream_protocol_config",
            config.http_protocol_options.as_ref(),
            config.http2_protocol_options.as_ref(),
        ),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            let (protocol, http1, http2) = match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => (UpstreamProtocol::Http1, Some(http1), None),
                Some(ProtocolConfig::Http2ProtocolOptions(http2)) => (UpstreamProtocol::Http2, None, Some(http2)),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    context.refuse_at("explicit_http_config.http3_protocol_options", "HTTP/3 is not supported");
                    (UpstreamProtocol::Http1, None, None)
                }
                None => (UpstreamProtocol::Http1, None, None),
            };
            (protocol, "explicit_http_config", http1, http2)
        }
        Some(UpstreamProtocolOptions::AutoConfig(config)) => (
            UpstreamProtocol::Auto,
            "auto_config",
            config.http_protocol_options.as_ref(),
            config.http2_protocol_options.as_ref(),
        ),
    };
    let http1 = Http1Options::at(context, &format!("{field}.http_protocol_options"), http1);
    let http2 = http2_options(context, field, http2);
    if common.max_stream_duration.is_some_and(|limit| limit.seconds != 0 || limit.nanos != 0) {
        context.refuse_at(
            "common_http_protocol_options.max_stream_duration",
            "only a route's and a connection manager's are honoured",
        );
    }
    let idle = context.duration("common_http_protocol_options.idle_timeout", common.idle_timeout.as_ref());
    UpstreamHttp {
        protocol,
        http1,
        http2,
        idle_timeout: idle.map_or(default.idle_timeout, |timeout| (!timeout.is_zero()).then_some(timeout)),
        max_requests_per_connection: max_requests(&common),
        max_connection_duration: context
            .duration("common_http_protocol_options.max_connection_duration", common.max_connection_duration.as_ref())
            .filter(|duration| !duration.is_zero()),
        head_limits: HeadLimits::responses(context, &common),
    }
}
