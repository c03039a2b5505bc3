//! Clusters whose endpoints are names: what is asked, how often, and what the answers make of the cluster.
//!
//! Pure: who asks is the proxy. It hands each answer to a [`Resolution`], which holds what is known of one cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_protos::Message as _;
use weft_protos::envoy::config::cluster::v3 as cluster_proto;
use weft_protos::envoy::config::cluster::v3::cluster::DnsLookupFamily;
use weft_protos::envoy::config::core::v3 as core_proto;
use weft_protos::envoy::config::core::v3::address::Address as ProtoAddress;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint};
use weft_protos::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;

use crate::address::{PeerAddress, compile_peer, port_of};
use crate::compile::Context;
use crate::endpoint::{self, Endpoint, LoadAssignment};

/// What the answers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsKind {
    /// `STRICT_DNS`: each address of each name is an endpoint.
    Strict,
    /// `LOGICAL_DNS`: one endpoint; new connections go to the first address of the last answer, others stay.
    Logical,
}

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv6, and IPv4 if there is none.
    V6Preferred,
    /// IPv4, and IPv6 if there is none.
    V4Preferred,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    All,
}

/// Who is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolverOptions {
    /// Empty: those of the system.
    pub servers: Box<[SocketAddr]>,
    /// `servers` are asked only where the system names none.
    pub as_fallback: bool,
    /// Over TCP at once, not only where an answer is too long for UDP.
    pub tcp: bool,
    /// The system's search list is used.
    pub search: bool,
    /// Each question begins at any of the servers.
    pub rotate: bool,
    /// For one answer of one server.
    pub timeout: Duration,
    /// How often each server is asked.
    pub tries: u32,
}

impl Default for ResolverOptions {
    /// Envoy's defaults, which are not those of its library.
    fn default() -> Self {
        Self {
            servers: Box::default(),
            as_fallback: false,
            tcp: false,
            search: true,
            rotate: false,
            timeout: Duration::from_secs(5),
            tries: 4,
        }
    }
}

/// An endpoint as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    locality: usize,
    /// Absent: its address stands as it is.
    name: Option<Arc<str>>,
    /// Of one with a name, the address holds the port only.
    endpoint: Arc<Endpoint>,
}

/// A compiled DNS cluster's discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// What the answers mean.
    pub kind: DnsKind,
    /// Which addresses are asked for.
    pub family: Family,
    /// Who is asked.
    pub resolver: ResolverOptions,
    /// The cluster is warm only when it has heard of its names.
    pub waits: bool,
    refresh: Duration,
    jitter: Duration,
    respects_ttl: bool,
    /// First and longest pause after failures; absent: as after an answer.
    failure: Option<(Duration, Duration)>,
    /// The assignment without endpoints.
    shape: LoadAssignment,
    targets: Box<[Target]>,
}

impl Dns {
    /// Envoy's default of `dns_refresh_rate`.
    pub const DEFAULT_REFRESH: Duration = Duration::from_secs(5);
    /// Shorter pauses than this are refused, as by Envoy.
    const SHORTEST_REFRESH: Duration = Duration::from_millis(1);

    // The fields that Envoy calls deprecated are those that control planes send.
    #[allow(deprecated)]
    pub(crate) fn read(context: &mut Context, cluster: &cluster_proto::Cluster, kind: DnsKind) -> Self {
        let empty = ClusterLoadAssignment::default();
        let assignment = cluster.load_assignment.as_ref().unwrap_or(&empty);
        let (shape, targets) = context.at("load_assignment", |context| template(context, assignment));
        if kind == DnsKind::Logical && (shape.localities.len() != 1 || targets.len() != 1) {
            context.refuse_at("load_assignment", "a LOGICAL_DNS cluster has one locality with one endpoint");
        }
        let family = match DnsLookupFamily::try_from(cluster.dns_lookup_family) {
            Ok(DnsLookupFamily::Auto) => Family::V6Preferred,
            Ok(DnsLookupFamily::V4Only) => Family::V4,
            Ok(DnsLookupFamily::V6Only) => Family::V6,
            Ok(DnsLookupFamily::V4Preferred) => Family::V4Preferred,
            Ok(DnsLookupFamily::All) => {
                if kind == DnsKind::Logical {
                    context.refuse_at(
                        "dns_lookup_family",
                        "ALL would try the addresses of one endpoint in turn (Happy Eyeballs), which weft-proxy does not",
                    );
                }
                Family::All
            }
            Err(_) => {
                context.refuse_at("dns_lookup_family", format!("{} is no family", cluster.dns_lookup_family));
                Family::V6Preferred
            }
        };
        let refresh = context.duration("dns_refresh_rate", cluster.dns_refresh_rate.as_ref());
        if refresh.is_some_and(|refresh| refresh <= Self::SHORTEST_REFRESH) {
            context.refuse_at("dns_refresh_rate", "must be more than a millisecond");
        }
        Self {
            kind,
            family,
            resolver: resolver(context, cluster),
            waits: cluster.wait_for_warm_on_init.as_ref().is_none_or(|waits| waits.value),
            refresh: refresh.unwrap_or(Self::DEFAULT_REFRESH),
            jitter: context.duration("dns_jitter", cluster.dns_jitter.as_ref()).unwrap_or_default(),
            respects_ttl: cluster.respect_dns_ttl,
            failure: cluster
                .dns_failure_refresh_rate
                .as_ref()
                .map(|rate| context.at("dns_failure_refresh_rate", |context| failure_rate(context, rate))),
            shape,
            targets,
        }
    }

    /// The names to resolve, each once.
    pub fn names(&self) -> BTreeSet<&Arc<str>> {
        self.targets.iter().filter_map(|target| target.name.as_ref()).collect()
    }

    /// How long until a name is asked for again, after an answer that may be kept for *ttl*. *random* is any number.
    pub fn pause(&self, ttl: Option<Duration>, random: u64) -> Duration {
        // A TTL of 0 says nothing about when to ask again, as in Envoy.
        let ttl = ttl.filter(|ttl| self.respects_ttl && !ttl.is_zero());
        let jitter = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        ttl.unwrap_or(self.refresh) + Duration::from_millis(random.checked_rem(jitter).unwrap_or(0))
    }

    /// The same after *failures* in a row, at least one: from nothing up to the base interval, doubled with each.
    pub fn pause_after_failure(&self, failures: u32, random: u64) -> Duration {
        let Some((base, longest)) = self.failure else { return self.pause(None, random) };
        let most = base.saturating_mul(1 << failures.saturating_sub(1).min(31)).min(longest);
        Duration::from_nanos(random.checked_rem(u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)).unwrap_or(0))
    }

    /// The endpoints, by what is known of each name.
    fn assignment(&self, known: &BTreeMap<Arc<str>, Vec<IpAddr>>) -> LoadAssignment {
        let mut shape = self.shape.clone();
        for (index, locality) in shape.localities.iter_mut().enumerate() {
            let targets = self.targets.iter().filter(|target| target.locality == index);
            locality.endpoints = targets.flat_map(|target| self.endpoints(target, known)).collect();
        }
        shape
    }

    fn endpoints(&self, target: &Target, known: &BTreeMap<Arc<str>, Vec<IpAddr>>) -> Vec<Arc<Endpoint>> {
        let (Some(name), PeerAddress::Socket(at)) = (&target.name, &target.endpoint.address) else {
            return vec![Arc::clone(&target.endpoint)];
        };
        let addresses = known.get(name).map_or(&[][..], Vec::as_slice);
        let taken = match self.kind {
            DnsKind::Strict => addresses,
            DnsKind::Logical => &addresses[..addresses.len().min(1)],
        };
        let endpoint = |ip: &IpAddr| {
            let address = PeerAddress::Socket(SocketAddr::new(*ip, at.port()));
            Arc::new(Endpoint { address, ..Endpoint::clone(&target.endpoint) })
        };
        taken.iter().map(endpoint).collect()
    }
}

fn template(context: &mut Context, assignment: &ClusterLoadAssignment) -> (LoadAssignment, Box<[Target]>) {
    let groups = context.each("endpoints", &assignment.endpoints, |context, group| {
        (endpoint::place(group), context.each("lb_endpoints", &group.lb_endpoints, target))
    });
    let (localities, found): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
    let targets = found
        .into_iter()
        .enumerate()
        .flat_map(|(locality, found)| found.into_iter().flatten().map(move |target| Target { locality, ..target }));
    (LoadAssignment::shape(context, assignment, localities.into()), targets.collect())
}

/// One endpoint; its locality is put in by the caller.
fn target(context: &mut Context, lb_endpoint: &LbEndpoint) -> Option<Target> {
    let Some(HostIdentifier::Endpoint(host)) = &lb_endpoint.host_identifier else {
        context.refuse("endpoint is needed");
        return None;
    };
    let (name, address) = context.at("endpoint.address", |context| {
        let socket = match host.address.as_ref().and_then(|address| address.address.as_ref()) {
            Some(ProtoAddress::SocketAddress(socket)) if socket.address.parse::<IpAddr>().is_err() => socket,
            _ => return Some((None, compile_peer(context, host.address.as_ref())?)),
        };
        context.at("socket_address", |context| {
            let port = port_of(context, socket)?;
            if let Err(reason) = check_name(&socket.address) {
                context.refuse_at("address", reason);
                return None;
            }
            if !socket.network_namespace_filepath.is_empty() {
                context.refuse("an endpoint has no network namespace; the cluster's upstream_bind_config has");
            }
            let name = Arc::from(socket.address.as_str());
            Some((Some(name), PeerAddress::Socket(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))))
        })
    })?;
    let mut endpoint = endpoint::described(context, lb_endpoint, host, address);
    if let (Some(name), true) = (&name, endpoint.hostname.is_empty()) {
        endpoint.hostname = Arc::clone(name);
    }
    Some(Target { locality: 0, name, endpoint: Arc::new(endpoint) })
}

/// RFC 1035 2.3.4. Which characters are in a name is for the server to judge; those that end or split it otherwise are not let through.
fn check_name(name: &str) -> Result<(), String> {
    let labels = name.strip_suffix('.').unwrap_or(name);
    let is_good = labels.len() <= 253
        && labels
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(|it| it.is_ascii_graphic()));
    if is_good { Ok(()) } else { Err(format!("`{name}` is neither an IP address nor a name in DNS")) }
}

fn failure_rate(context: &mut Context, rate: &cluster_proto::cluster::RefreshRate) -> (Duration, Duration) {
    let base = context.duration("base_interval", rate.base_interval.as_ref()).unwrap_or_default();
    if base < Duration::from_millis(1) {
        context.refuse_at("base_interval", "must be a millisecond or more");
    }
    let longest = context.duration("max_interval", rate.max_interval.as_ref()).unwrap_or(base * 10);
    if longest < base {
        context.refuse_at("max_interval", "must not be less than base_interval");
    }
    (base, longest)
}

/// The newest of the three places where this may stand, as in Envoy.
#[allow(deprecated)]
fn resolver(context: &mut Context, cluster: &cluster_proto::Cluster) -> ResolverOptions {
    if let Some(extension) = &cluster.typed_dns_resolver_config {
        return context.at("typed_dns_resolver_config.typed_config", |context| {
            let any = extension.typed_config.clone().unwrap_or_default();
            if !any.type_url.ends_with("/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig") {
                context.refuse(format!("weft-proxy has no DNS resolver `{}`", any.type_url));
                return ResolverOptions::default();
            }
            match CaresDnsResolverConfig::decode(any.value.as_ref()) {
                Ok(config) => cares(context, &config),
                Err(error) => {
                    context.refuse(error.to_string());
                    ResolverOptions::default()
                }
            }
        });
    }
    if let Some(config) = &cluster.dns_resolution_config {
        return context.at("dns_resolution_config", |context| {
            let options = config.dns_resolver_options.unwrap_or_default();
            ResolverOptions {
                servers: servers(context, "resolvers", &config.resolvers),
                tcp: options.use_tcp_for_dns_lookups,
                search: !options.no_default_search_domain,
                ..ResolverOptions::default()
            }
        });
    }
    ResolverOptions {
        servers: servers(context, "dns_resolvers", &cluster.dns_resolvers),
        tcp: cluster.use_tcp_for_dns_lookups,
        ..ResolverOptions::default()
    }
}

fn cares(context: &mut Context, config: &CaresDnsResolverConfig) -> ResolverOptions {
    let default = ResolverOptions::default();
    let options = config.dns_resolver_options.unwrap_or_default();
    let timeout = config.query_timeout_seconds.as_ref().map(|seconds| Duration::from_secs(seconds.value));
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        context.refuse_at("query_timeout_seconds", "must be a second or more");
    }
    let tries = config.query_tries.as_ref().map(|tries| tries.value);
    if tries == Some(0) {
        context.refuse_at("query_tries", "must be one or more");
    }
    ResolverOptions {
        servers: servers(context, "resolvers", &config.resolvers),
        as_fallback: config.use_resolvers_as_fallback,
        tcp: options.use_tcp_for_dns_lookups,
        search: !options.no_default_search_domain,
        rotate: config.rotate_nameservers,
        timeout: timeout.unwrap_or(default.timeout),
        tries: tries.unwrap_or(default.tries),
    }
}

/// Port 53 where none is said, as in Envoy.
fn servers(context: &mut Context, field: &str, addresses: &[core_proto::Address]) -> Box<[SocketAddr]> {
    context
        .each(field, addresses, |context, address| match address.address.as_ref() {
            Some(ProtoAddress::SocketAddress(socket)) => context.at("socket_address", |context| {
                let port = port_of(context, socket)?;
                match socket.address.parse() {
                    Ok(ip) => Some(SocketAddr::new(ip, if port == 0 { 53 } else { port })),
                    Err(_) => {
                        context.refuse_at("address", format!("`{}` is not an IP address", socket.address));
                        None
                    }
                }
            }),
            _ => {
                context.refuse("a DNS server has a socket address");
                None
            }
        })
        .into_iter()
        .flatten()
        .collect()
}

/// What is known of one cluster's names.
#[derive(Debug)]
pub struct Resolution {
    dns: Arc<Dns>,
    known: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// Names of which there was an answer or a failure.
    heard: BTreeSet<Arc<str>>,
    assignment: Arc<LoadAssignment>,
}

/// What an answer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The answer is one that counts: for LOGICAL_DNS, one without addresses is a failure.
    pub succeeded: bool,
    /// The cluster has become warm, or its endpoints are others.
    pub changed: bool,
}

impl Resolution {
    /// Begin; what *previous* knows of the same names is used until there are answers, but makes nothing warm.
    pub fn new(dns: Arc<Dns>, previous: Option<&Self>) -> Self {
        let same = |name: &&Arc<str>| previous.and_then(|it| Some(((*name).clone(), it.known.get(*name)?.clone())));
        let known = dns.names().iter().filter_map(same).collect();
        let assignment = Arc::new(dns.assignment(&known));
        Self { dns, known, heard: BTreeSet::new(), assignment }
    }

    /// What is resolved.
    pub fn dns(&self) -> &Arc<Dns> {
        &self.dns
    }

    /// The endpoints as known now.
    pub fn assignment(&self) -> &Arc<LoadAssignment> {
        &self.assignment
    }

    /// There is an endpoint by an answer, or nothing is left to hear: a name that cannot be resolved does not keep a cluster from working.
    pub fn is_warm(&self) -> bool {
        self.heard.iter().any(|name| self.known.get(name).is_some_and(|addresses| !addresses.is_empty()))
            || self.dns.names().into_iter().all(|name| self.heard.contains(name))
    }

    /// Take in an answer about *name*, be it without addresses, or `None` for a failure: then what was known stays in force.
    pub fn hear(&mut self, name: &Arc<str>, answer: Option<Vec<IpAddr>>) -> Heard {
        let was_warm = self.is_warm();
        self.heard.insert(Arc::clone(name));
        let answer = answer.filter(|addresses| self.dns.kind == DnsKind::Strict || !addresses.is_empty());
        let succeeded = answer.is_some();
        let mut is_new = false;
        if let Some(mut addresses) = answer {
            if self.dns.kind == DnsKind::Strict {
                // Servers turn their answers around; the same endpoints in another order are no change.
                addresses.sort_unstable();
                addresses.dedup();
            }
            self.known.insert(Arc::clone(name), addresses);
            let assignment = self.dns.assignment(&self.known);
            is_new = assignment != *self.assignment;
            if is_new {
                self.assignment = Arc::new(assignment);
            }
        }
        Heard { succeeded, changed: is_new || was_warm != self.is_warm() }
    }
}
