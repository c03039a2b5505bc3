//! From `Listener` to its plan.

use std::time::Duration;

use weft_protos::Message as _;
use weft_protos::envoy::config::core::v3::TrafficDirection;
use weft_protos::envoy::config::core::v3::proxy_protocol_config::Version;
use weft_protos::envoy::config::core::v3::transport_socket::ConfigType as SocketType;
use weft_protos::envoy::config::listener::v3 as proto;
use weft_protos::envoy::config::listener::v3::filter::ConfigType as FilterType;
use weft_protos::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use weft_protos::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterType;
use weft_protos::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use weft_protos::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as ProtoProxyProtocol;
use weft_protos::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as ProtoConnectionLimit;
use weft_protos::envoy::extensions::filters::network::dubbo_proxy::v3::DubboProxy as ProtoDubboProxy;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use weft_protos::envoy::extensions::filters::network::rbac::v3::Rbac as ProtoRbac;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as ProtoTcpProxy;
use weft_protos::envoy::extensions::filters::network::thrift_proxy::v3::ThriftProxy as ProtoThriftProxy;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use weft_protos::weft::extensions::filters::v1::CallerUid;

use super::{
    ChainMatch, ConnectionLimit, Direction, FilterChain, Inspector, Listener, NetworkFilter, ProxyProtocol, SourceType,
    Transport, overlap,
};
use crate::access_log::AccessLog;
use crate::address::{Cidr, compile_bind};
use crate::cluster::DEFAULT_BUFFER_LIMIT_BYTES;
use crate::compile::Context;
use crate::honoured;
use crate::http_manager::{HttpManager, is_true};
use crate::metadata::Metadata;
use crate::rbac::NetworkRbac;
use crate::rpc::RpcProxy;
use crate::tcp_proxy::TcpProxy;
use crate::tls::DownstreamTls;
use std::sync::Arc;

/// Envoy's default of `listener_filters_timeout`.
const DEFAULT_LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn listener(context: &mut Context, listener: &proto::Listener) -> Listener {
    let first = context.at("address", |context| compile_bind(context, listener.address.as_ref()));
    let additional = context.each("additional_addresses", &listener.additional_addresses, |context, additional| {
        context.at("address", |context| compile_bind(context, additional.address.as_ref()))
    });
    let mut inspect = ListenerFilters::default();
    context.each("listener_filters", &listener.listener_filters, |context, filter| inspect.add(context, filter));
    let chains = context.each("filter_chains", &listener.filter_chains, filter_chain);
    overlap::refuse(context, &chains);
    let default = listener
        .default_filter_chain
        .as_ref()
        .and_then(|chain| context.at("default_filter_chain", |context| filter_chain(context, chain)));
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
        context.refuse("a listener needs a filter chain");
    }
    let use_original_dst = is_true(listener.use_original_dst.as_ref(), false);
    let bind_to_port = is_true(listener.bind_to_port.as_ref(), true);
    if !is_true(listener.enable_reuse_port.as_ref(), true) {
        context.at("enable_reuse_port", |context| {
            context
                .pass_over("weft-proxy opens a socket for each worker, between which the kernel divides connections");
        });
    }
    if !bind_to_port && inspect.proxy_protocol.is_some() {
        context.refuse_at(
            "listener_filters",
            "a listener without a port of its own is handed connections whose PROXY protocol header was read already",
        );
    }
    Listener {
        name: listener.name.as_str().into(),
        addresses: [first].into_iter().chain(additional).flatten().collect(),
        bind_to_port,
        transparent: is_true(listener.transparent.as_ref(), false),
        freebind: is_true(listener.freebind.as_ref(), false),
        use_original_dst,
        direction: match listener.traffic_direction() {
            TrafficDirection::Unspecified => Direction::Unspecified,
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Outbound => Direction::Outbound,
        },
        // Envoy adds the filter by itself where use_original_dst is set.
        original_dst: inspect.original_dst || use_original_dst,
        proxy_protocol: inspect.proxy_protocol,
        tls_inspector: inspect.tls,
        http_inspector: inspect.http,
        caller_uids: inspect.caller_uids,
        listener_filters_timeout: context
            .duration("listener_filters_timeout", listener.listener_filters_timeout.as_ref())
            .map_or(Some(DEFAULT_LISTENER_FILTERS_TIMEOUT), |timeout| (!timeout.is_zero()).then_some(timeout)),
        continue_on_listener_filters_timeout: listener.continue_on_listener_filters_timeout,
        filter_chains: chains.into_iter().flatten().map(Arc::new).collect(),
        default_filter_chain: default.map(Arc::new),
        buffer_limit_bytes: listener
            .per_connection_buffer_limit_bytes
            .as_ref()
            .map_or(DEFAULT_BUFFER_LIMIT_BYTES, |limit| limit.value),
        ignore_global_limit: listener.ignore_global_conn_limit,
        backlog: listener.tcp_backlog_size.as_ref().map(|size| size.value),
        access_logs: AccessLog::compile_all(context, "access_log", &listener.access_log),
        metadata: Metadata::compile(listener.metadata.as_ref()),
    }
}

#[derive(Default)]
struct ListenerFilters {
    original_dst: bool,
    proxy_protocol: Option<ProxyProtocol>,
    tls: Option<Inspector>,
    http: Option<Inspector>,
    caller_uids: Option<Box<[u32]>>,
}

impl ListenerFilters {
    fn add(&mut self, context: &mut Context, filter: &proto::ListenerFilter) {
        let Some(ListenerFilterType::TypedConfig(any)) = &filter.config_type else {
            context.refuse_at("typed_config", "required");
            return;
        };
        let inspector = |context: &mut Context| {
            let mut disabled_on = Vec::new();
            if let Some(predicate) = &filter.filter_disabled {
                context.at("filter_disabled", |context| port_ranges(context, predicate, &mut disabled_on));
            }
            Some(Inspector { disabled_on: disabled_on.into() })
        };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if filter.filter_disabled.is_some() && !name.ends_with("Inspector") {
            context.refuse_at("filter_disabled", "only inspectors can be disabled for some connections");
        }
        match name {
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => self.original_dst = true,
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
                match ProtoProxyProtocol::decode(any.value.as_ref()) {
                    Ok(filter) => self.proxy_protocol = Some(proxy_protocol(context, &filter)),
                    Err(error) => context.refuse_at("typed_config", error.to_string()),
                }
            }
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => self.tls = inspector(context),
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => self.http = inspector(context),
            "weft.extensions.filters.v1.CallerUid" => match CallerUid::decode(any.value.as_ref()) {
                Ok(caller) => self.caller_uids = Some(caller.uids.into()),
                Err(error) => context.refuse_at("typed_config", error.to_string()),
            },
            other => context.refuse_at("typed_config", format!("weft-proxy has no listener filter `{other}`")),
        }
    }
}

fn proxy_protocol(context: &mut Context, filter: &ProtoProxyProtocol) -> ProxyProtocol {
    let is_allowed = |version: Version| !filter.disallowed_versions.contains(&(version as i32));
    let (v1, v2) = (is_allowed(Version::V1), is_allowed(Version::V2));
    if !v1 && !v2 {
        context.refuse_at("typed_config.disallowed_versions", "no version is left to look for");
    }
    ProxyProtocol { v1, v2, optional: filter.allow_requests_without_proxy_protocol }
}

/// A predicate made of destination ports and "or": what Istio writes.
fn port_ranges(
    context: &mut Context,
    predicate: &proto::ListenerFilterChainMatchPredicate,
    ranges: &mut Vec<(u16, u32)>,
) {
    match &predicate.rule {
        Some(Rule::DestinationPortRange(range)) => match (u16::try_from(range.start), u32::try_from(range.end)) {
            (Ok(start), Ok(end)) => ranges.push((start, end)),
            _ => context.refuse_at("destination_port_range", "not a range of ports"),
        },
        Some(Rule::OrMatch(set)) => {
            context.each("or_match.rules", &set.rules, |context, rule| port_ranges(context, rule, ranges));
        }
        Some(Rule::AnyMatch(true)) => ranges.push((0, 1 << 16)),
        _ => context.refuse("only any_match, or_match and destination_port_range are supported"),
    }
}

fn filter_chain(context: &mut Context, chain: &proto::FilterChain) -> Option<FilterChain> {
    let conditions = chain.filter_chain_match.clone().unwrap_or_default();
    let conditions = context.at("filter_chain_match", |context| chain_match(context, &conditions));
    let tls = chain.transport_socket.as_ref().and_then(|socket| {
        let Some(SocketType::TypedConfig(any)) = &socket.config_type else {
            context
                .refuse_at("transport_socket.typed_config", "required: a transport socket without one would be no TLS");
            return None;
        };
        context.at("transport_socket.typed_config", |context| {
            match any.type_url.rsplit('/').next().unwrap_or_default() {
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
                    match DownstreamTlsContext::decode(any.value.as_ref()) {
                        Ok(tls) => Some(Arc::new(DownstreamTls::compile(context, &tls))),
                        Err(error) => {
                            context.refuse(error.to_string());
                            None
                        }
                    }
                }
                "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => None,
                other => {
                    context.refuse(format!("weft-proxy has no transport socket `{other}`"));
                    None
                }
            }
        })
    });
    let mut filters = context.each("filters", &chain.filters, network_filter);
    let filter = match filters.pop() {
        Some(Some(Filter::Last(last))) => Some(last),
        // It was told already why it is none.
        Some(None) => None,
        Some(Some(Filter::Limit(_) | Filter::Rbac(_) | Filter::PassedOver)) | None => {
            context.refuse_at(
                "filters",
                "a filter chain ends in an HTTP connection manager, or a proxy for TCP, Dubbo or Thrift",
            );
            None
        }
    };
    let mut connection_limit = None;
    let mut rbac = Vec::new();
    for filter in filters.into_iter().flatten() {
        match filter {
            Filter::Last(_) => {
                context.refuse_at(
                    "filters",
                    "an HTTP connection manager or a proxy for TCP, Dubbo or Thrift must be the last filter",
                );
            }
            Filter::PassedOver => {}
            Filter::Rbac(filter) => rbac.push(filter),
            Filter::Limit(limit) if connection_limit.is_none() => connection_limit = Some(limit),
            Filter::Limit(_) => context.refuse_at("filters", "a filter chain has one connection_limit at most"),
        }
    }
    Some(FilterChain {
        name: chain.name.as_str().into(),
        conditions: conditions?,
        tls,
        tls_handshake_timeout: context
            .duration("transport_socket_connect_timeout", chain.transport_socket_connect_timeout.as_ref())
            .filter(|timeout| !timeout.is_zero()),
        connection_limit,
        rbac: rbac.into(),
        filter: filter?,
        metadata: Metadata::compile(chain.metadata.as_ref()),
    })
}

/// A filter of a chain.
enum Filter {
    /// How many may connect.
    Limit(ConnectionLimit),
    /// Who may connect.
    Rbac(NetworkRbac),
    /// One that is not applied, which was told.
    PassedOver,
    /// The one that does something with the bytes.
    Last(NetworkFilter),
}

fn network_filter(context: &mut Context, filter: &proto::Filter) -> Option<Filter> {
    let Some(FilterType::TypedConfig(any)) = &filter.config_type else {
        context.refuse_at("typed_config", "required");
        return None;
    };
    context.at("typed_config", |context| {
        let decoded = match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                HttpConnectionManager::decode(any.value.as_ref()).map(|manager| {
                    let compiled = HttpManager::compile(context, &manager);
                    compiled.map(|manager| Filter::Last(NetworkFilter::Http(Arc::new(manager))))
                })
            }
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                ProtoTcpProxy::decode(any.value.as_ref()).map(|filter| {
                    let compiled = TcpProxy::compile(context, &filter);
                    compiled.map(|filter| Filter::Last(NetworkFilter::Tcp(Arc::new(filter))))
                })
            }
            "envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy" => ProtoDubboProxy::decode(any.value.as_ref())
                .map(|filter| {
                    let compiled = RpcProxy::compile_dubbo(context, &filter);
                    Some(Filter::Last(NetworkFilter::Rpc(Arc::new(compiled))))
                }),
            "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy" => {
                ProtoThriftProxy::decode(any.value.as_ref()).map(|filter| {
                    let compiled = RpcProxy::compile_thrift(context, &filter);
                    Some(Filter::Last(NetworkFilter::Rpc(Arc::new(compiled))))
                })
            }
            "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
                ProtoConnectionLimit::decode(any.value.as_ref())
                    .map(|limit| connection_limit(context, &limit).map(Filter::Limit))
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => ProtoRbac::decode(any.value.as_ref())
                .map(|filter| Some(Filter::Rbac(NetworkRbac::compile(context, &filter)))),
            other => match honoured::not_applied(any) {
                Some(reason) => {
                    context.pass_over(format!("the filter {} is passed over: {reason}", filter.name));
                    Ok(Some(Filter::PassedOver))
                }
                None => {
                    context.refuse(format!("weft-proxy has no network filter `{other}`"));
                    Ok(None)
                }
            },
        };
        decoded.unwrap_or_else(|error| {
            context.refuse(error.to_string());
            None
        })
    })
}

fn connection_limit(context: &mut Context, limit: &ProtoConnectionLimit) -> Option<ConnectionLimit> {
    let max_connections = limit.max_connections.as_ref().map_or(0, |most| most.value);
    if max_connections == 0 {
        context.refuse_at("max_connections", "a number of at least 1 is required");
        return None;
    }
    let delay = context.duration("delay", limit.delay.as_ref()).filter(|delay| !delay.is_zero());
    Some(ConnectionLimit { max_connections, delay, taken: Arc::default() })
}

/// Of wildcards Envoy knows those that stand for whole labels in front; it reads `.example.com` as such a one, too.
fn server_name(context: &mut Context, name: &str) -> Box<str> {
    if name.strip_prefix("*.").unwrap_or(name).contains('*') {
        let right = if name == "*" { "any name is meant without `server_names`" } else { "`*.example.com` is right" };
        context.refuse(format!("no wildcard can stand in `{name}`: {right}"));
    }
    let name = name.to_ascii_lowercase();
    if name.starts_with('.') { format!("*{name}").into() } else { name.into() }
}

fn chain_match(context: &mut Context, conditions: &proto::FilterChainMatch) -> Option<ChainMatch> {
    let ranges = |context: &mut Context, field: &str, ranges| -> Option<Box<[Cidr]>> {
        context.each(field, ranges, Cidr::compile).into_iter().collect()
    };
    let port = |context: &mut Context, field: &str, port: u32| match u16::try_from(port) {
        Ok(port) => Some(port),
        Err(_) => {
            context.refuse_at(field, format!("{port} is not a port"));
            None
        }
    };
    Some(ChainMatch {
        destination_port: match &conditions.destination_port {
            None => None,
            Some(number) => Some(port(context, "destination_port", number.value)?),
        },
        prefix_ranges: ranges(context, "prefix_ranges", &conditions.prefix_ranges)?,
        server_names: context
            .each("server_names", &conditions.server_names, |context, name| server_name(context, name))
            .into(),
        transport_protocol: match conditions.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(Transport::Tls),
            "raw_buffer" => Some(Transport::Raw),
            other => {
                context.refuse_at("transport_protocol", format!("`{other}` is neither tls nor raw_buffer"));
                return None;
            }
        },
        application_protocols: conditions.application_protocols.iter().map(|name| name.as_str().into()).collect(),
        direct_source_prefix_ranges: ranges(
            context,
            "direct_source_prefix_ranges",
            &conditions.direct_source_prefix_ranges,
        )?,
        source_type: match conditions.source_type() {
            ConnectionSourceType::Any => None,
            ConnectionSourceType::SameIpOrLoopback => Some(SourceType::SameIpOrLoopback),
            ConnectionSourceType::External => Some(SourceType::External),
        },
        source_prefix_ranges: ranges(context, "source_prefix_ranges", &conditions.source_prefix_ranges)?,
        source_ports: conditions
            .source_ports
            .iter()
            .map(|number| port(context, "source_ports", *number))
            .collect::<Option<_>>()?,
    })
}
