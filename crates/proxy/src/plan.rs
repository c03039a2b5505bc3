//! What the workers work by: core's compiled resources, and beside them what needs keys, sockets or shared counters.
//!
//! An [`Active`] is immutable. Arrival of configuration makes a new one that shares what did not change; [`WorkerPlan`] is one
//! worker's view of it, with its own connection pools.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use weft_core::balance::{Balancer, Picker};
use weft_core::breaker::{Breakers, Resource};
use weft_core::cluster::{Cluster, TransportSocket};
use weft_core::listener::{FilterChain, Listener, NetworkFilter};
use weft_core::plan::Plan;

use crate::codec::rpc::Codec;
use crate::connect::Pool;
use crate::metrics;
use crate::metrics::snapshot::{Family, Kind};
use crate::record::Log;
use crate::rpc;
use crate::tls::context::{ClientContext, ServerContext};

/// Hashes an address in memory: the allocator has spread them already.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, value: usize) {
        self.0 = (self.0 ^ (value as u64 >> 4)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map from a shared value, by its address, to what belongs to it.
pub type ByAddress<T> = HashMap<usize, T, BuildHasherDefault<AddressHasher>>;

/// The address of a shared value: its identity within one plan.
pub fn address_of<T: ?Sized>(shared: &Arc<T>) -> usize {
    Arc::as_ptr(shared).cast::<()>() as usize
}

/// A listening socket, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub address: SocketAddr,
    pub namespace: Option<Arc<Path>>,
    pub transparent: bool,
}

/// What a filter chain needs besides what core knows about it.
pub struct ChainContext {
    pub chain: Arc<FilterChain>,
    pub tls: Option<ServerContext>,
    /// Records of requests or connections.
    pub logs: Box<[Log]>,
    /// Records of single tries.
    pub try_logs: Box<[Log]>,
    /// The router adds no `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// Of an RPC proxy.
    pub codec: Option<Arc<dyn Codec>>,
}

impl ChainContext {
    pub fn new(chain: Arc<FilterChain>, tls: Option<ServerContext>) -> ChainContext {
        let (logs, try_logs) = match &chain.filter {
            NetworkFilter::Http(manager) => (&manager.access_logs, manager.upstream_logs()),
            NetworkFilter::Tcp(proxy) => (&proxy.access_logs, &[][..]),
            NetworkFilter::Rpc(proxy) => (&proxy.access_logs, &[][..]),
        };
        let (logs, try_logs) = (Log::compile_all(logs), Log::compile_all(try_logs));
        let suppress_envoy_headers = match &chain.filter {
            NetworkFilter::Http(manager) => manager.filters.iter().any(|filter| {
                matches!(filter, weft_core::http_manager::HttpFilter::Router { suppress_envoy_headers: true, .. })
            }),
            NetworkFilter::Tcp(_) | NetworkFilter::Rpc(_) => false,
        };
        let codec = match &chain.filter {
            NetworkFilter::Rpc(proxy) => Some(rpc::codec(proxy.protocol)),
            NetworkFilter::Http(_) | NetworkFilter::Tcp(_) => None,
        };
        ChainContext { chain, tls, logs, try_logs, suppress_envoy_headers, codec }
    }
}

/// A cluster at work: shared by all workers.
pub struct Upstream {
    pub cluster: Arc<Cluster>,
    /// Absent for original-destination clusters.
    pub balancer: Option<Arc<Balancer>>,
    pub breakers: Arc<Breakers>,
    /// By the address of core's `UpstreamTls`.
    pub tls: ByAddress<Arc<ClientContext>>,
}

impl Upstream {
    /// Whether each endpoint that is to be checked was.
    pub fn is_checked(&self) -> bool {
        self.balancer.as_ref().is_none_or(|balancer| balancer.is_checked())
    }

    /// The TLS context of a transport socket; `None` for plaintext.
    pub fn tls_for(&self, transport: &TransportSocket) -> Option<&Arc<ClientContext>> {
        self.tls.get(&address_of(transport.tls.as_ref()?))
    }
}

/// One generation of everything.
#[derive(Default)]
pub struct Active {
    pub core: Plan,
    /// By the address of core's `Cluster`.
    pub upstreams: ByAddress<Arc<Upstream>>,
    /// By the address of core's `FilterChain`.
    pub chains: ByAddress<Arc<ChainContext>>,
    pub sockets: HashMap<SocketKey, Arc<Listener>>,
    /// By the address of core's `Listener`: records of connections that no filter took. Listeners without any are absent.
    pub connection_logs: ByAddress<Arc<[Log]>>,
}

/// What is left of a cluster's limits: the end of Envoy's name, and what it counts.
const REMAINING: [(&str, &str, Resource); 4] = [
    ("cx", "Connections to endpoints that the cluster's limit still allows.", Resource::Connection),
    ("pending", "Requests that may still wait for a connection.", Resource::Pending),
    ("rq", "Requests that may still be in progress.", Resource::Request),
    ("retries", "Retries that may still be in progress.", Resource::Retry),
];

impl Active {
    /// What is left of the limits of clusters that are to tell it.
    pub fn remaining(&self) -> Vec<Family> {
        let tracked: Vec<_> = self.upstreams.values().filter(|it| it.cluster.limits.tracks_remaining).collect();
        let family = |(name, help, resource): (&str, &'static str, Resource)| {
            let left = tracked.iter().map(|upstream| {
                let left = upstream.breakers.remaining(resource, &upstream.cluster.limits);
                (self.cluster_label(&upstream.cluster.name), u64::from(left))
            });
            let name = format!("envoy_cluster_circuit_breakers_default_remaining_{name}");
            Family::of_counts((name, help, Kind::Gauge), left)
        };
        REMAINING.into_iter().filter(|_| !tracked.is_empty()).map(family).collect()
    }

    /// How metrics name the cluster *name*.
    pub fn cluster_label(&self, name: &str) -> String {
        let told = self.core.clusters.get(name).map_or(name, |cluster| &*cluster.stat_name);
        let mut label = String::new();
        metrics::label(&mut label, "envoy_cluster_name", told);
        label.truncate(label.trim_end_matches(',').len());
        label
    }
}

/// One worker's view of a generation.
pub struct WorkerPlan {
    pub active: Arc<Active>,
    upstreams: ByAddress<Rc<WorkerUpstream>>,
}

/// A cluster as one worker uses it.
pub struct WorkerUpstream {
    pub shared: Arc<Upstream>,
    pub picker: Option<RefCell<Picker>>,
    pub pool: Rc<Pool>,
}

impl WorkerPlan {
    /// Make the view of *active*, keeping the pools of clusters that did not change.
    pub fn new(active: Arc<Active>, previous: Option<&WorkerPlan>) -> WorkerPlan {
        let upstreams: ByAddress<Rc<WorkerUpstream>> = active
            .upstreams
            .iter()
            .map(|(&address, shared)| {
                let before = previous.and_then(|plan| plan.upstreams.get(&address));
                let upstream = match before {
                    Some(same) if Arc::ptr_eq(&same.shared, shared) => Rc::clone(same),
                    // New endpoints or secrets, the same cluster: connections to endpoints that stay are kept.
                    _ => Rc::new(WorkerUpstream {
                        shared: Arc::clone(shared),
                        picker: shared.balancer.as_ref().map(|balancer| RefCell::new(balancer.picker())),
                        pool: before.map_or_else(|| Rc::new(Pool::default()), |before| Rc::clone(&before.pool)),
                    }),
                };
                upstream.pool.keep_only(&upstream.shared);
                (address, upstream)
            })
            .collect();
        for (address, before) in previous.iter().flat_map(|plan| &plan.upstreams) {
            if !upstreams.get(address).is_some_and(|upstream| Rc::ptr_eq(&upstream.pool, &before.pool)) {
                before.pool.retire();
            }
        }
        WorkerPlan { active, upstreams }
    }

    /// The upstream of a cluster of this generation.
    pub fn upstream(&self, cluster: &Arc<Cluster>) -> Option<&Rc<WorkerUpstream>> {
        self.upstreams.get(&address_of(cluster))
    }

    pub fn upstreams(&self) -> impl Iterator<Item = &Rc<WorkerUpstream>> {
        self.upstreams.values()
    }

    /// The context of a filter chain of this generation.
    pub fn chain(&self, chain: &Arc<FilterChain>) -> Option<&Arc<ChainContext>> {
        self.active.chains.get(&address_of(chain))
    }
}
