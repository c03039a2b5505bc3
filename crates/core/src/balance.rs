//! Load balancing: priorities, panic, localities, and the choice of one endpoint.
//!
//! What workers share: counters and ejection of each endpoint, cursors, and a table that is rebuilt when an endpoint is ejected or comes back.
//! A worker's [`Picker`] keeps the table it saw last, so that a pick takes no lock; it looks at a version number to see that there is a new one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::address::PeerAddress;
use crate::cluster::{Cluster, Discovery, LbPolicy};
use crate::dns::DnsKind;
use crate::endpoint::{Endpoint, Health, LoadAssignment};
use crate::outlier::{Observation, OutlierDetection, OutlierState};
use crate::random::{Draw, Random};

mod consistent;
mod drawn;

use consistent::Consistent;
use drawn::Drawn;

/// An endpoint with what is counted about it.
#[derive(Debug)]
pub struct Host {
    /// As discovered.
    pub endpoint: Arc<Endpoint>,
    /// Kept while the endpoint's address stays in the cluster, whatever else about it changes; of LOGICAL_DNS, whatever its address is.
    pub counters: Arc<HostCounters>,
    /// Kept likewise, as long as the cluster has outlier detection: an ejection ends with the rules that are to end it.
    outlier: Option<Arc<OutlierState>>,
    /// Index of the locality in the assignment.
    pub locality: usize,
    /// Of its locality.
    pub priority: u32,
}

/// What all workers count about one endpoint. On its own cache line: endpoints must not slow each other down.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct HostCounters {
    active: AtomicU32,
}

/// A request or connection in progress to an endpoint; ends when dropped.
#[derive(Debug)]
#[must_use]
pub struct Active(Arc<HostCounters>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    /// Note that a request begins.
    pub fn begin(&self) -> Active {
        self.counters.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(&self.counters))
    }

    /// Requests in progress.
    pub fn active(&self) -> u32 {
        self.counters.active.load(Ordering::Relaxed)
    }

    /// Taken out by outlier detection.
    pub fn is_ejected(&self) -> bool {
        self.outlier.as_ref().is_some_and(|state| state.is_ejected())
    }

    /// As discovered, and not ejected.
    pub fn is_healthy(&self) -> bool {
        self.endpoint.health == Health::Healthy && !self.is_ejected()
    }

    fn state(&self) -> Health {
        if self.is_ejected() { Health::Unhealthy } else { self.endpoint.health }
    }
}

/// Why no endpoint was chosen. Both are answered with 503 UH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// Discovery named none.
    #[error("the cluster has no endpoints")]
    Empty,
    /// None is healthy and panic is off.
    #[error("no endpoint of the cluster is healthy")]
    NoneHealthy,
}

/// The endpoints of one cluster, shared by all workers.
#[derive(Debug)]
pub struct Balancer {
    hosts: Box<[Arc<Host>]>,
    /// Weight of each locality by index, 0 where none is given, and its place in the order of names.
    locality_weights: Box<[(u32, usize)]>,
    policy: LbPolicy,
    rules: Rules,
    outlier: Option<OutlierDetection>,
    version: AtomicU64,
    table: Mutex<Arc<Table>>,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    panic_threshold_percent: f64,
    overprovisioning_factor: u32,
    locality_weighted: bool,
    hash_hostnames: bool,
}

/// One worker's handle on a [`Balancer`].
#[derive(Debug, Clone)]
pub struct Picker {
    balancer: Arc<Balancer>,
    table: Arc<Table>,
    version: u64,
}

impl Balancer {
    /// Make a balancer for a cluster's endpoints.
    ///
    /// `previous` hands over counters and ejections of endpoints that stay. `seed` says where round robin begins; it should differ
    /// between proxies, or they all begin at the same endpoint.
    pub fn new(cluster: &Cluster, assignment: &LoadAssignment, previous: Option<&Self>, seed: u64) -> Arc<Self> {
        let known: HashMap<&PeerAddress, &Arc<Host>> = previous
            .map(|balancer| balancer.hosts.iter().map(|host| (&host.endpoint.address, host)).collect())
            .unwrap_or_default();
        let is_logical = matches!(&cluster.discovery, Discovery::Dns(dns) if dns.kind == DnsKind::Logical);
        let hosts: Box<[_]> = assignment
            .localities
            .iter()
            .enumerate()
            .flat_map(|(index, locality)| locality.endpoints.iter().map(move |endpoint| (index, locality, endpoint)))
            .map(|(locality, group, endpoint)| {
                let before = if is_logical {
                    // One endpoint, whatever its address is at the moment: connections to earlier ones are its own too.
                    previous.and_then(|it| it.hosts.first()).filter(|it| it.endpoint.hostname == endpoint.hostname)
                } else {
                    known.get(&endpoint.address).copied()
                };
                let outlier = before.and_then(|host| host.outlier.as_ref());
                Arc::new(Host {
                    endpoint: Arc::clone(endpoint),
                    counters: before.map_or_else(Arc::default, |host| Arc::clone(&host.counters)),
                    outlier: cluster.outlier.map(|_| outlier.map_or_else(Arc::default, Arc::clone)),
                    locality,
                    priority: group.priority,
                })
            })
            .collect();
        let rules = Rules {
            panic_threshold_percent: cluster.panic_threshold_percent.clamp(0.0, 100.0),
            overprovisioning_factor: assignment.overprovisioning_factor,
            locality_weighted: cluster.locality_weighted,
            hash_hostnames: cluster.hash_hostnames,
        };
        let locality_weights = weights_of(assignment);
        let table = Arc::new(Table::build(&hosts, &locality_weights, rules, cluster.policy, seed));
        Arc::new(Self {
            hosts,
            locality_weights,
            policy: cluster.policy,
            rules,
            outlier: cluster.outlier,
            version: AtomicU64::new(0),
            table: Mutex::new(table),
            seed,
        })
    }

    /// A handle for one worker.
    pub fn picker(self: &Arc<Self>) -> Picker {
        let version = self.version.load(Ordering::Acquire);
        Picker { balancer: Arc::clone(self), table: self.table(), version }
    }

    /// All endpoints, for `/clusters` and `why`.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// The endpoints that may be chosen now, with their share of requests (0 to 1), as round robin or random would spread them; by
    /// consistent hashing, of all hashes.
    pub fn shares(&self) -> Vec<(Arc<Host>, f64)> {
        self.table().shares()
    }

    /// Note how a request to `host` ended. `now` is any monotonic clock. Returns true if the endpoint was ejected by this.
    pub fn observe(&self, host: &Host, observation: Observation, now: Duration) -> bool {
        let (Some(rules), Some(state)) = (&self.outlier, &host.outlier) else { return false };
        if !rules.observe(state, observation) || state.is_ejected() {
            return false;
        }
        let ejected = self.hosts.iter().filter(|host| host.is_ejected()).count();
        if !rules.may_eject(ejected, self.hosts.len()) || !state.eject(now) {
            return false;
        }
        self.rebuild();
        true
    }

    /// Bring back endpoints whose ejection is over; to be called at each [`OutlierDetection::interval`]. Returns how many came back.
    pub fn tick(&self, now: Duration) -> usize {
        let Some(rules) = &self.outlier else { return 0 };
        let states = self.hosts.iter().filter_map(|host| host.outlier.as_ref());
        let back = states.filter(|state| state.tick(rules, now)).count();
        if back > 0 {
            self.rebuild();
        }
        back
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn rebuild(&self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        *table = Arc::new(Table::build(&self.hosts, &self.locality_weights, self.rules, self.policy, self.seed));
        // After the table, so that a picker that sees the new number finds the new table.
        self.version.fetch_add(1, Ordering::Release);
    }
}

impl Picker {
    /// The balancer behind it.
    pub fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
    }

    /// Choose an endpoint. Up to `attempts` are drawn until `avoid` says false of one; the last one stands whatever it says.
    ///
    /// `key` is the hash that decides where the cluster balances by consistent hashing; without one a random number does.
    ///
    /// # Errors
    /// There is none to choose.
    pub fn pick<D: Random + ?Sized>(
        &mut self,
        key: Option<u64>,
        random: &mut D,
        attempts: u32,
        mut avoid: impl FnMut(&Host) -> bool,
    ) -> Result<Arc<Host>, PickError> {
        let version = self.balancer.version.load(Ordering::Acquire);
        if version != self.version {
            self.table = self.balancer.table();
            self.version = version;
        }
        let number = match &*self.table {
            Table::Drawn(_) => 0,
            // Once for all attempts: they go on from the same place.
            Table::Consistent(_) => key.unwrap_or_else(|| random.draw(Draw::Balance)),
        };
        let mut attempt = 0;
        loop {
            let host = match &*self.table {
                Table::Drawn(drawn) => drawn.pick(self.balancer.policy, random),
                Table::Consistent(consistent) => consistent.pick(number, attempt),
            };
            let host =
                host.ok_or(if self.balancer.hosts.is_empty() { PickError::Empty } else { PickError::NoneHealthy })?;
            attempt += 1;
            if attempt >= attempts || !avoid(host) {
                return Ok(Arc::clone(host));
            }
        }
    }
}

/// Of each locality, its weight and its place among the names.
fn weights_of(assignment: &LoadAssignment) -> Box<[(u32, usize)]> {
    let localities = &assignment.localities;
    let name = |index: usize| {
        let locality = &localities[index];
        (&locality.region, &locality.zone, &locality.sub_zone)
    };
    let mut order: Vec<usize> = (0..localities.len()).collect();
    order.sort_by(|&one, &other| name(one).cmp(&name(other)));
    let mut weights: Box<[(u32, usize)]> =
        localities.iter().map(|locality| (locality.weight.unwrap_or(0), 0)).collect();
    for (place, index) in order.into_iter().enumerate() {
        weights[index].1 = place;
    }
    weights
}

/// Who may be chosen.
#[derive(Debug)]
enum Table {
    /// By turns or by lot.
    Drawn(Drawn),
    /// By a hash.
    Consistent(Consistent),
}

impl Table {
    fn build(
        hosts: &[Arc<Host>],
        locality_weights: &[(u32, usize)],
        rules: Rules,
        policy: LbPolicy,
        seed: u64,
    ) -> Self {
        let mut priorities: Vec<u32> = hosts.iter().map(|host| host.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let members: Vec<Vec<&Arc<Host>>> = priorities
            .iter()
            .map(|priority| hosts.iter().filter(|host| host.priority == *priority).collect())
            .collect();
        if policy.is_consistent_hash() {
            Self::Consistent(Consistent::build(&members, locality_weights, rules, policy))
        } else {
            Self::Drawn(Drawn::build(&members, locality_weights, rules, seed))
        }
    }

    fn shares(&self) -> Vec<(Arc<Host>, f64)> {
        match self {
            Self::Drawn(drawn) => drawn.shares(),
            Self::Consistent(consistent) => consistent.shares(),
        }
    }
}

/// How much load (percent) goes to which priority (index) and to its endpoints in which state (`None`: panic, all of them).
///
/// Source: Envoy's documentation of priority levels, degraded endpoints and panic threshold.
fn distribute(members: &[Vec<&Arc<Host>>], rules: Rules) -> Vec<(u64, usize, Option<Health>)> {
    let percent = |count: usize, total: usize, factor: u32| -> u64 {
        if total == 0 { 0 } else { (count as u64 * u64::from(factor) / total as u64).min(100) }
    };
    let counts: Vec<(usize, usize, usize)> = members
        .iter()
        .map(|hosts| {
            let count = |state| hosts.iter().filter(|host| host.state() == state).count();
            (count(Health::Healthy), count(Health::Degraded), hosts.len())
        })
        .collect();
    let healthy: Vec<u64> =
        counts.iter().map(|(healthy, _, total)| percent(*healthy, *total, rules.overprovisioning_factor)).collect();
    let degraded: Vec<u64> =
        counts.iter().map(|(_, degraded, total)| percent(*degraded, *total, rules.overprovisioning_factor)).collect();
    let available = healthy.iter().chain(&degraded).sum::<u64>().min(100);

    // Panic: a priority of which too few endpoints work gets its load spread over all of them. Never while the others can carry everything.
    let panics = |index: usize| {
        let (healthy, degraded, total) = counts[index];
        let working = (healthy + degraded) as f64 * 100.0 / total as f64;
        available < 100 && rules.panic_threshold_percent > 0.0 && working < rules.panic_threshold_percent
    };
    if (0..members.len()).all(panics) {
        // All of them: by number of endpoints.
        return members.iter().enumerate().map(|(index, hosts)| (hosts.len() as u64, index, None)).collect();
    }
    if available == 0 {
        return Vec::new();
    }
    let mut left = 100;
    let mut loads = Vec::new();
    for (state, availability) in [(Health::Healthy, &healthy), (Health::Degraded, &degraded)] {
        for (index, share) in availability.iter().enumerate() {
            let load = (share * 100 / available).min(left);
            left -= load;
            loads.push((load, index, if panics(index) { None } else { Some(state) }));
        }
    }
    // What rounding left over goes to the first that has anything, as in Envoy.
    if let Some(first) = loads.iter_mut().find(|(load, ..)| *load > 0) {
        first.0 += left;
    }
    loads
}
