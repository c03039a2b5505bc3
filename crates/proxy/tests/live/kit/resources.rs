//! What the control plane says, as values that a test changes before they are published.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weft_protos::envoy::config::accesslog::v3 as accesslog;
use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::endpoint::v3 as endpoint;
use weft_protos::envoy::config::listener::v3 as listener;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::config::route::v3::route_action::ClusterSpecifier;
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;
use weft_protos::envoy::extensions::access_loggers::file::v3 as file;
use weft_protos::envoy::extensions::filters::http::fault::v3::HttpFault;
use weft_protos::envoy::extensions::filters::http::router::v3::Router;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use weft_protos::google::protobuf;
use weft_protos::type_url;
use weft_xds::server::Published;

/// The cluster that every route leads to unless a test says otherwise.
pub const CLUSTER: &str = "outbound|9080||up.default.svc.cluster.local";

/// What an access record holds, `docs/reference/interfaces.md` 4.6.
const RECORD: [(&str, &str); 23] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("duration_ms", "%DURATION%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("downstream_transport_failure_reason", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("downstream_direct_remote_address", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
    ("downstream_peer_uri_san", "%DOWNSTREAM_PEER_URI_SAN%"),
];

/// One listener, its routes, one cluster, its endpoints.
#[derive(Clone)]
pub struct Setup {
    pub listener: listener::Listener,
    pub chain: listener::FilterChain,
    /// Filter chains besides that one.
    pub chains: Vec<listener::FilterChain>,
    /// Before the manager, or what is used instead.
    pub before: Vec<listener::Filter>,
    pub manager: http::HttpConnectionManager,
    /// Used instead of the manager if set.
    pub tcp: Option<tcp::TcpProxy>,
    /// The same, for calls.
    pub calls: Option<protobuf::Any>,
    pub routes: route::RouteConfiguration,
    pub cluster: cluster::Cluster,
    pub endpoints: Vec<SocketAddr>,
    pub more: Vec<Published>,
}

impl Setup {
    /// Everything to *endpoints*; records go to *log*.
    pub fn new(address: SocketAddr, endpoints: &[SocketAddr], log: &Path) -> Setup {
        let router =
            filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", &Router::default());
        let fault = filter(
            "envoy.filters.http.fault",
            "envoy.extensions.filters.http.fault.v3.HTTPFault",
            &HttpFault::default(),
        );
        Setup {
            listener: listener::Listener {
                name: "in".into(),
                address: Some(at(address)),
                traffic_direction: core::TrafficDirection::Outbound as i32,
                ..Default::default()
            },
            chain: listener::FilterChain::default(),
            chains: Vec::new(),
            before: Vec::new(),
            manager: http::HttpConnectionManager {
                stat_prefix: "in".into(),
                route_specifier: Some(http::http_connection_manager::RouteSpecifier::Rds(http::Rds {
                    config_source: Some(ads()),
                    route_config_name: "9080".into(),
                })),
                http_filters: vec![fault, router],
                access_log: vec![access_log(log)],
                ..Default::default()
            },
            tcp: None,
            calls: None,
            routes: route::RouteConfiguration {
                name: "9080".into(),
                virtual_hosts: vec![virtual_host(vec![to(CLUSTER, "/")])],
                ..Default::default()
            },
            cluster: eds_cluster(CLUSTER),
            endpoints: endpoints.to_vec(),
            more: Vec::new(),
        }
    }

    /// The action of the first route.
    pub fn action(&mut self) -> &mut route::RouteAction {
        match &mut self.routes.virtual_hosts[0].routes[0].action {
            Some(route::route::Action::Route(action)) => action,
            _ => panic!("the first route leads to a cluster"),
        }
    }

    /// Put *routes* in the place of all others.
    pub fn route(&mut self, routes: Vec<route::Route>) {
        self.routes.virtual_hosts = vec![virtual_host(routes)];
    }

    /// Bytes instead of HTTP.
    pub fn tcp(&mut self) {
        self.tcp = Some(tcp::TcpProxy {
            stat_prefix: "in".into(),
            access_log: self.manager.access_log.clone(),
            cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(CLUSTER.into())),
            ..Default::default()
        });
    }

    pub fn allow_websocket(&mut self) {
        self.manager.upgrade_configs = vec![http::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..Default::default()
        }];
    }

    pub fn resources(&self) -> Vec<Published> {
        let mut chain = self.chain.clone();
        chain.filters = match (&self.calls, &self.tcp) {
            (Some(proxy), _) => vec![network_filter(proxy.clone())],
            (None, Some(proxy)) => tcp_chain(proxy).filters,
            (None, None) => http_chain(&self.manager).filters,
        };
        chain.filters.splice(..0, self.before.iter().cloned());
        let mut listener = self.listener.clone();
        listener.filter_chains = vec![chain];
        listener.filter_chains.extend(self.chains.iter().cloned());
        let mut all = vec![
            published(type_url::CLUSTER, &self.cluster.name, &self.cluster),
            published(
                type_url::CLUSTER_LOAD_ASSIGNMENT,
                &self.cluster.name,
                &load_assignment(&self.cluster.name, &self.endpoints),
            ),
            published(type_url::LISTENER, &self.listener.name, &listener),
        ];
        if self.tcp.is_none() && self.calls.is_none() {
            all.push(published(type_url::ROUTE_CONFIGURATION, &self.routes.name, &self.routes));
        }
        all.extend(self.more.iter().cloned());
        all
    }
}

/// A filter of a listener.
pub fn listener_filter(name: &str, type_name: &str, message: &impl prost::Message) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.into(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(any(type_name, message))),
        ..Default::default()
    }
}

/// A filter chain that ends in *manager*.
pub fn http_chain(manager: &http::HttpConnectionManager) -> listener::FilterChain {
    chain_of(any("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", manager))
}

/// A filter chain that ends in *proxy*.
pub fn tcp_chain(proxy: &tcp::TcpProxy) -> listener::FilterChain {
    chain_of(any("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy))
}

fn chain_of(filter: protobuf::Any) -> listener::FilterChain {
    listener::FilterChain { filters: vec![network_filter(filter)], ..Default::default() }
}

/// A filter of a chain.
pub fn network_filter(filter: protobuf::Any) -> listener::Filter {
    listener::Filter { name: "filter".into(), config_type: Some(listener::filter::ConfigType::TypedConfig(filter)) }
}

/// A cluster whose only endpoint is where the client wanted to go.
pub fn original_destination_cluster(name: &str) -> Published {
    let message = cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst as i32,
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided as i32,
        ..Default::default()
    };
    published(type_url::CLUSTER, name, &message)
}

/// A resource whose version follows from its content.
pub fn published(type_url: &str, name: &str, message: &impl prost::Message) -> Published {
    let body = message.encode_to_vec();
    Published { type_url: type_url.into(), name: name.into(), version: version_of(&body), body: body.into() }
}

fn version_of(body: &[u8]) -> String {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(body);
    format!("{:x}", hasher.finish())
}

pub fn any(type_name: &str, message: &impl prost::Message) -> protobuf::Any {
    protobuf::Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec().into() }
}

pub fn filter(name: &str, type_name: &str, message: &impl prost::Message) -> http::HttpFilter {
    http::HttpFilter {
        name: name.into(),
        config_type: Some(http::http_filter::ConfigType::TypedConfig(any(type_name, message))),
        ..Default::default()
    }
}

pub fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

pub fn at(address: SocketAddr) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

pub fn eds_cluster(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name.into(),
        }),
        ..Default::default()
    }
}

pub fn load_assignment(name: &str, addresses: &[SocketAddr]) -> endpoint::ClusterLoadAssignment {
    let lb_endpoints = addresses.iter().map(|&address| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(at(address)),
            ..Default::default()
        })),
        ..Default::default()
    });
    endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: lb_endpoints.collect(), ..Default::default() }],
        ..Default::default()
    }
}

/// A cluster with its endpoints, as two resources.
pub fn cluster_of(name: &str, addresses: &[SocketAddr]) -> [Published; 2] {
    [
        published(type_url::CLUSTER, name, &eds_cluster(name)),
        published(type_url::CLUSTER_LOAD_ASSIGNMENT, name, &load_assignment(name, addresses)),
    ]
}

pub fn virtual_host(routes: Vec<route::Route>) -> route::VirtualHost {
    route::VirtualHost { name: "any".into(), domains: vec!["*".into()], routes, ..Default::default() }
}

/// A route for all paths with this prefix.
pub fn to(cluster: &str, prefix: &str) -> route::Route {
    route::Route {
        name: format!("to {prefix}"),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(prefix.into())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
            // Envoy's default of 15 s is longer than a test should take to fail.
            timeout: Some(seconds(10.0)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub fn seconds(seconds: f64) -> protobuf::Duration {
    let duration = Duration::from_secs_f64(seconds);
    protobuf::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 }
}

pub fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// A retry policy of *count* retries, with next to no pause between them.
pub fn retries(on: &str, count: u32) -> route::RetryPolicy {
    route::RetryPolicy {
        retry_on: on.into(),
        num_retries: number(count),
        retry_back_off: Some(route::retry_policy::RetryBackOff {
            base_interval: Some(seconds(0.001)),
            max_interval: Some(seconds(0.002)),
        }),
        ..Default::default()
    }
}

fn access_log(path: &Path) -> accesslog::AccessLog {
    let text = |value: &str| protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(value.into())) };
    let fields = RECORD.iter().map(|(name, format)| ((*name).into(), text(format))).collect();
    json_log(path, protobuf::Struct { fields }, false)
}

/// A log that writes an object of *fields* for each record.
pub fn json_log(path: &Path, fields: protobuf::Struct, omit_empty_values: bool) -> accesslog::AccessLog {
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(fields)),
        omit_empty_values,
        ..Default::default()
    };
    let file = file::FileAccessLog {
        path: path.to_str().unwrap().into(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    accesslog::AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(any(
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            &file,
        ))),
        ..Default::default()
    }
}
