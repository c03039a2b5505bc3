//! Listeners and their filter chains: which chain takes a connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_protos::envoy::config::listener::v3 as proto;

use crate::access_log::AccessLog;
use crate::address::{BindAddress, Cidr};
use crate::compile::{Compiled, Context, Problems, Strictness};
use crate::http_manager::{HttpFilter, HttpManager};
use crate::metadata::Metadata;
use crate::rbac::NetworkRbac;
use crate::rpc::RpcProxy;
use crate::tcp_proxy::TcpProxy;
use crate::tls::{DownstreamTls, SecretName};
use crate::trace::{Subject, Trace};

mod compile;
mod inspect;
mod overlap;

pub use inspect::{Inspectors, Opening, Seen};

/// `traffic_direction`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Not said (gateways).
    Unspecified,
    /// To the workload beside this proxy.
    Inbound,
    /// From it.
    Outbound,
}

/// The network filter that ends a filter chain.
#[derive(Debug, Clone)]
pub enum NetworkFilter {
    /// HTTP.
    Http(Arc<HttpManager>),
    /// Bytes.
    Tcp(Arc<TcpProxy>),
    /// Calls of an RPC protocol.
    Rpc(Arc<RpcProxy>),
}

/// Conditions of a filter chain; an empty one means "any".
#[derive(Debug, Clone, Default)]
pub struct ChainMatch {
    /// The (original) destination port.
    pub destination_port: Option<u16>,
    /// The (original) destination address.
    pub prefix_ranges: Box<[Cidr]>,
    /// SNI: exact, `*.example.com`, or empty for any and none. Lower-case.
    pub server_names: Box<[Box<str>]>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: Option<Transport>,
    /// ALPN, or `http/1.1`, `h2c` found by the HTTP inspector.
    pub application_protocols: Box<[Box<str>]>,
    /// The address of whoever has connected: not the client's, where a proxy speaks for one.
    pub direct_source_prefix_ranges: Box<[Cidr]>,
    /// Whether the client is on this host.
    pub source_type: Option<SourceType>,
    /// The client's address.
    pub source_prefix_ranges: Box<[Cidr]>,
    /// The client's port.
    pub source_ports: Box<[u16]>,
}

/// What a connection turned out to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TLS ClientHello came.
    Tls,
    /// Anything else, or the server speaks first.
    #[default]
    Raw,
}

/// `source_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceType {
    /// From this host.
    SameIpOrLoopback,
    /// From elsewhere.
    External,
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Where the client wanted to go: the original destination if the listener recovers it, else the local address.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// The other end of the socket itself.
    pub direct_source: IpAddr,
    /// Found by the TLS inspector; `Raw` if there is none.
    pub transport: Transport,
    /// SNI, in any case.
    pub server_name: Option<&'a str>,
    /// ALPN of the ClientHello, or what the HTTP inspector found.
    pub application_protocols: &'a [&'a str],
}

impl Connection<'_> {
    /// Whence it comes. Of loopback addresses Envoy knows `127.0.0.1` and `::1`: the others are another's unless the client went to the
    /// very same.
    fn source_type(&self) -> SourceType {
        const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let source = self.source.ip().to_canonical();
        if LOOPBACK.contains(&source) || source == self.destination.ip().to_canonical() {
            SourceType::SameIpOrLoopback
        } else {
            SourceType::External
        }
    }
}

/// How many connections a filter chain takes at once, on all workers together.
#[derive(Debug, Clone)]
pub struct ConnectionLimit {
    /// At least 1.
    pub max_connections: u64,
    /// A connection that is one too many is held so long before it is closed, so that whoever opened it does not come again at once.
    pub delay: Option<Duration>,
    /// Connections that have a place.
    pub(crate) taken: Arc<AtomicU64>,
}

impl ConnectionLimit {
    /// A place for one more connection, for as long as the value lives; `None` if all are taken.
    pub fn take(&self) -> Option<Place> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.taken));
        (before < self.max_connections).then_some(place)
    }
}

/// A connection that counts against the limit of its filter chain.
#[derive(Debug)]
pub struct Place(Arc<AtomicU64>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A compiled filter chain.
#[derive(Debug, Clone)]
pub struct FilterChain {
    /// May be empty.
    pub name: Arc<str>,
    /// When it applies.
    pub conditions: ChainMatch,
    /// Ends TLS here; absent: plaintext, or TLS passed through.
    pub tls: Option<Arc<DownstreamTls>>,
    /// How long the TLS handshake may take.
    pub tls_handshake_timeout: Option<Duration>,
    /// How many at once.
    pub connection_limit: Option<ConnectionLimit>,
    /// Who may connect: each must let a connection in, in this order.
    pub rbac: Box<[NetworkRbac]>,
    /// What is done with the bytes.
    pub filter: NetworkFilter,
    /// Where it comes from.
    pub metadata: Metadata,
}

impl FilterChain {
    /// Whether rules may ask who the client is.
    pub fn asks_for_identity(&self) -> bool {
        let by_request = match &self.filter {
            NetworkFilter::Http(manager) => manager.filters.iter().any(|filter| matches!(filter, HttpFilter::Rbac(_))),
            NetworkFilter::Tcp(_) | NetworkFilter::Rpc(_) => false,
        };
        by_request || !self.rbac.is_empty()
    }
}

/// Destination ports for which an inspector does not run; empty: it always runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspector {
    /// Port ranges, end exclusive.
    pub disabled_on: Box<[(u16, u32)]>,
}

impl Inspector {
    /// Whether it looks at connections to this (original) destination port.
    pub fn runs_on(&self, port: u16) -> bool {
        !self.disabled_on.iter().any(|(start, end)| *start <= port && u32::from(port) < *end)
    }
}

/// The PROXY protocol, expected from whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Version 1 is accepted.
    pub v1: bool,
    /// Version 2 is accepted.
    pub v2: bool,
    /// Connections without a header are served too, and those of a version that is not accepted as if they had none.
    pub optional: bool,
}

/// A compiled listener.
#[derive(Debug, Clone)]
pub struct Listener {
    /// `virtualOutbound`
    pub name: Arc<str>,
    /// `address`, then `additional_addresses`; at least one.
    pub addresses: Box<[BindAddress]>,
    /// False: it takes only connections that another listener hands over by original destination.
    pub bind_to_port: bool,
    /// IP_TRANSPARENT.
    pub transparent: bool,
    /// IP_FREEBIND.
    pub freebind: bool,
    /// Hand a connection to the listener of its original destination, if there is one.
    pub use_original_dst: bool,
    /// Direction.
    pub direction: Direction,
    /// Recover the original destination (`envoy.filters.listener.original_dst`).
    pub original_dst: bool,
    /// Read between whom a connection is from its first bytes, before anything else is looked at.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Look for a ClientHello.
    pub tls_inspector: Option<Inspector>,
    /// Look for HTTP.
    pub http_inspector: Option<Inspector>,
    /// Only processes of these users may connect; `None`: whoever can.
    pub caller_uids: Option<Box<[u32]>>,
    /// How long inspecting may wait for the first bytes; `None`: no limit. Default 15 s.
    pub listener_filters_timeout: Option<Duration>,
    /// After that timeout go on with what is known; else close.
    pub continue_on_listener_filters_timeout: bool,
    /// Chains.
    pub filter_chains: Box<[Arc<FilterChain>]>,
    /// If no chain matches.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// Bytes buffered for each connection and direction. Default 1 MiB.
    pub buffer_limit_bytes: u32,
    /// Its connections are neither counted nor refused by the limit of the whole process.
    pub ignore_global_limit: bool,
    /// Backlog of `listen`; the system's default if absent.
    pub backlog: Option<u32>,
    /// Records of connections for which no chain matched.
    pub access_logs: Box<[AccessLog]>,
    /// Where it comes from.
    pub metadata: Metadata,
}

impl Listener {
    /// Compile a listener.
    ///
    /// # Errors
    /// Everything in it that weft cannot honour.
    pub fn compile(listener: &proto::Listener, strictness: Strictness) -> Result<Compiled<Self>, Problems> {
        let mut context = Context::new("Listener");
        let value = compile::listener(&mut context, listener);
        context.finish(value, strictness)
    }

    /// The filter chain for a connection. Envoy's order of conditions: destination port, destination address, server name, transport protocol,
    /// application protocol, directly connected source address, source type, source address, source port. At each step only the chains
    /// with the most specific match stay; there is no way back.
    pub fn chain<T: Trace>(&self, connection: &Connection<'_>, trace: &mut T) -> Option<&Arc<FilterChain>> {
        let mut left: Vec<&Arc<FilterChain>> = self.filter_chains.iter().collect();
        for step in &STEPS {
            let fit = |chain: &Arc<FilterChain>| (step.fit)(&chain.conditions, connection);
            let best = left.iter().filter_map(|chain| fit(chain)).max();
            left.retain(|chain| {
                let stays = best.is_some() && fit(chain) == best;
                if !stays {
                    trace.considered(Subject::FilterChain(chain), false, || {
                        let than =
                            if fit(chain).is_some() { "another chain matches more exactly by" } else { "no match by" };
                        format!("{than} {}", step.name)
                    });
                }
                stays
            });
        }
        let chain = left.first().copied().or(self.default_filter_chain.as_ref());
        if let Some(chain) = chain {
            let default = left.is_empty();
            trace.considered(Subject::FilterChain(chain), true, || {
                if default { "no other filter chain matches" } else { "all conditions hold" }.to_owned()
            });
        }
        chain
    }

    /// All filter chains with the default one last.
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.filter_chains.iter().chain(self.default_filter_chain.as_ref())
    }

    /// Every access log: the listener's own, those of its filters, and those of tries.
    pub fn all_logs(&self) -> impl Iterator<Item = &AccessLog> {
        let of_chains = self.all_chains().flat_map(|chain| match &chain.filter {
            NetworkFilter::Http(manager) => manager.access_logs.iter().chain(manager.upstream_logs()),
            NetworkFilter::Tcp(proxy) => proxy.access_logs.iter().chain(&[]),
            NetworkFilter::Rpc(proxy) => proxy.access_logs.iter().chain(&[]),
        });
        self.access_logs.iter().chain(of_chains)
    }

    /// Every secret that its filter chains need.
    pub fn secrets(&self) -> Vec<SecretName> {
        self.all_chains().filter_map(|chain| chain.tls.as_ref()).flat_map(|tls| tls.secrets().cloned()).collect()
    }
}

/// One step of choosing a filter chain.
struct Step {
    /// In words.
    name: &'static str,
    /// How exactly the conditions fit: `None` not at all, 0 because they ask for nothing, more for more.
    fit: fn(&ChainMatch, &Connection<'_>) -> Option<usize>,
}

const STEPS: [Step; 9] = [
    Step {
        name: "destination port",
        fit: |conditions, connection| match conditions.destination_port {
            None => Some(0),
            Some(port) => (port == connection.destination.port()).then_some(1),
        },
    },
    Step {
        name: "destination address",
        fit: |conditions, connection| longest_prefix(&conditions.prefix_ranges, connection.destination.ip()),
    },
    Step { name: "server name", fit: |conditions, connection| server_name(&conditions.server_names, connection) },
    Step {
        name: "transport protocol",
        fit: |conditions, connection| match conditions.transport_protocol {
            None => Some(0),
            Some(wanted) => (wanted == connection.transport).then_some(1),
        },
    },
    Step {
        name: "application protocol",
        fit: |conditions, connection| {
            let wanted = &conditions.application_protocols;
            if wanted.is_empty() {
                return Some(0);
            }
            // The client's first choice counts most.
            let offered = connection.application_protocols;
            let place = offered.iter().position(|name| wanted.iter().any(|wanted| **wanted == **name))?;
            Some(offered.len() - place)
        },
    },
    Step {
        name: "directly connected source address",
        fit: |conditions, connection| longest_prefix(&conditions.direct_source_prefix_ranges, connection.direct_source),
    },
    Step {
        name: "source type",
        fit: |conditions, connection| match conditions.source_type {
            None => Some(0),
            Some(wanted) => (wanted == connection.source_type()).then_some(1),
        },
    },
    Step {
        name: "source address",
        fit: |conditions, connection| longest_prefix(&conditions.source_prefix_ranges, connection.source.ip()),
    },
    Step {
        name: "source port",
        fit: |conditions, connection| {
            if conditions.source_ports.is_empty() {
                return Some(0);
            }
            conditions.source_ports.contains(&connection.source.port()).then_some(1)
        },
    },
];

/// Length of the longest range around `address`, plus one; 0 if no range is asked for.
fn longest_prefix(ranges: &[Cidr], address: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges.iter().filter(|range| range.contains(address)).map(|range| usize::from(range.length()) + 1).max()
}

/// Exact names before wildcards, longer wildcards before shorter ones.
fn server_name(names: &[Box<str>], connection: &Connection<'_>) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let asked = connection.server_name.unwrap_or_default().to_ascii_lowercase();
    names
        .iter()
        .filter_map(|name| match name.strip_prefix('*') {
            None if name.is_empty() => Some(0),
            None => (**name == *asked).then_some(usize::MAX),
            Some(suffix) => (asked.len() > suffix.len() && asked.ends_with(suffix)).then_some(name.len()),
        })
        .max()
}
