//! Load balancing: priorities, panic, localities, and the choice of one endpoint.
//!
//! What workers share: counters of each endpoint, its ejection and what health checks say of it, cursors, and a table that is rebuilt when any of that changes.
//! A worker's [`Picker`] keeps the table it saw last, so that a pick takes no lock; it looks at a version number to see that there is a new one.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::address::PeerAddress;
use crate::cluster::{Cluster, Discovery, LbPolicy};
use crate::dns::DnsKind;
use crate::endpoint::{Endpoint, Health, LoadAssignment, Locality};
use crate::health_check::{ActiveHealth, HealthCheck};
use crate::outlier::{Observation, OutlierDetection, OutlierState};
use crate::random::{Draw, Random};

mod consistent;
mod drawn;
mod table;

use table::{Table, weights_of};

/// An endpoint with what is counted about it.
#[derive(Debug)]
pub struct Host {
    /// As discovered.
    pub endpoint: Arc<Endpoint>,
    /// Kept while the endpoint's address stays in the cluster, whatever else about it changes; of LOGICAL_DNS, whatever its address is.
    pub counters: Arc<HostCounters>,
    /// Kept likewise, as long as the cluster has outlier detection: an ejection ends with the rules that are to end it.
    outlier: Option<Arc<OutlierState>>,
    /// What the proxy's own checks say, if they ask it; kept as long as they ask the same, at the same address.
    active_health: Option<Arc<ActiveHealth>>,
    /// Discovery does not name it any more, but its checks pass: it stays until they do not.
    pub leaving: bool,
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

    /// What the proxy's own checks say; `None` where there are none.
    pub fn active_health(&self) -> Option<&Arc<ActiveHealth>> {
        self.active_health.as_ref()
    }

    /// As discovered, not ejected, and passing its health checks.
    pub fn is_healthy(&self) -> bool {
        self.state() == Health::Healthy
    }

    fn is_failed(&self) -> bool {
        self.active_health.as_ref().is_some_and(|health| health.is_failed())
    }

    fn state(&self) -> Health {
        match self.endpoint.health {
            _ if self.is_ejected() || self.is_failed() => Health::Unhealthy,
            Health::Healthy if self.active_health.as_ref().is_some_and(|health| health.is_degraded()) => {
                Health::Degraded
            }
            discovered => discovered,
        }
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
    /// Localities by the same index, without their endpoints, where endpoints may outlive what discovery says.
    places: Box<[Locality]>,
    health_check: Option<Arc<HealthCheck>>,
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
    ignores_new_hosts: bool,
    hash_hostnames: bool,
}

impl Rules {
    /// Whether an endpoint is one of those that shares of endpoints are shares of.
    fn counts(self, host: &Host) -> bool {
        host.active_health
            .as_ref()
            .is_none_or(|health| !(health.is_excluded() || self.ignores_new_hosts && health.is_unchecked()))
    }
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
    /// `previous` hands over counters, ejections and what checks found of endpoints that stay, and endpoints that discovery has taken away
    /// while their checks pass. `seed` says where round robin begins; it should differ
    /// between proxies, or they all begin at the same endpoint.
    pub fn new(cluster: &Cluster, assignment: &LoadAssignment, previous: Option<&Self>, seed: u64) -> Arc<Self> {
        let known: HashMap<&PeerAddress, &Arc<Host>> = previous
            .map(|balancer| balancer.hosts.iter().map(|host| (&host.endpoint.address, host)).collect())
            .unwrap_or_default();
        let is_logical = matches!(&cluster.discovery, Discovery::Dns(dns) if dns.kind == DnsKind::Logical);
        let checked_before = previous.filter(|previous| previous.asks_the_same(cluster));
        let mut hosts: Vec<_> = assignment
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
                let health = before.filter(|host| {
                    let is_same_place = is_logical || host.endpoint.check_address() == endpoint.check_address();
                    checked_before.is_some() && is_same_place
                });
                let is_checked = cluster.health_check.is_some() && endpoint.is_checked();
                Arc::new(Host {
                    endpoint: Arc::clone(endpoint),
                    counters: before.map_or_else(Arc::default, |host| Arc::clone(&host.counters)),
                    outlier: cluster.outlier.map(|_| outlier.map_or_else(Arc::default, Arc::clone)),
                    active_health: is_checked
                        .then(|| health.and_then(|host| host.active_health.clone()).unwrap_or_default()),
                    leaving: false,
                    locality,
                    priority: group.priority,
                })
            })
            .collect();
        let mut locality_weights = weights_of(assignment);
        if let Some(before) = checked_before.filter(|_| !is_logical && !cluster.ignores_health_on_removal) {
            let leaving = before.leaving(assignment, &hosts);
            if !leaving.is_empty() {
                // A locality that is named no more has no weight.
                locality_weights.push((0, assignment.localities.len()));
            }
            hosts.extend(leaving);
        }
        let rules = Rules {
            panic_threshold_percent: cluster.panic_threshold_percent.clamp(0.0, 100.0),
            overprovisioning_factor: assignment.overprovisioning_factor,
            locality_weighted: cluster.locality_weighted,
            ignores_new_hosts: cluster.ignores_new_hosts,
            hash_hostnames: cluster.hash_hostnames,
        };
        let places = assignment.localities.iter().map(|it| Locality { endpoints: Box::default(), ..it.clone() });
        let table = Arc::new(Table::build(&hosts, &locality_weights, rules, cluster.policy, seed));
        Arc::new(Self {
            hosts: hosts.into(),
            locality_weights: locality_weights.into(),
            places: if cluster.health_check.is_some() { places.collect() } else { Box::default() },
            health_check: cluster.health_check.clone(),
            policy: cluster.policy,
            rules,
            outlier: cluster.outlier,
            version: AtomicU64::new(0),
            table: Mutex::new(table),
            seed,
        })
    }

    fn asks_the_same(&self, cluster: &Cluster) -> bool {
        match (&self.health_check, &cluster.health_check) {
            (Some(old), Some(new)) => old.asks_the_same(new),
            _ => false,
        }
    }

    /// Endpoints of its own that are not among *named*, and pass.
    fn leaving(&self, assignment: &LoadAssignment, named: &[Arc<Host>]) -> Vec<Arc<Host>> {
        let named: HashSet<&PeerAddress> = named.iter().map(|host| &host.endpoint.address).collect();
        let stays = |host: &&Arc<Host>| {
            host.active_health.is_some()
                && !host.is_failed()
                && host.endpoint.health != Health::Unhealthy
                && !named.contains(&host.endpoint.address)
        };
        let locality_of = |host: &Host| {
            let place = self.places.get(host.locality);
            let is_same = |other: &Locality| place.is_some_and(|place| other.is_place_of(place));
            assignment.localities.iter().position(is_same).unwrap_or(assignment.localities.len())
        };
        self.hosts
            .iter()
            .filter(stays)
            .map(|host| {
                Arc::new(Host {
                    endpoint: Arc::clone(&host.endpoint),
                    counters: Arc::clone(&host.counters),
                    outlier: host.outlier.clone(),
                    active_health: host.active_health.clone(),
                    leaving: true,
                    locality: locality_of(host),
                    priority: host.priority,
                })
            })
            .collect()
    }

    /// Whether an endpoint that discovery has taken away may go now.
    pub fn has_left(&self) -> bool {
        self.hosts.iter().any(|host| host.leaving && host.is_failed())
    }

    /// Whether each endpoint that is to be checked was.
    pub fn is_checked(&self) -> bool {
        self.hosts.iter().all(|host| host.active_health.as_ref().is_none_or(|health| !health.is_unchecked()))
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
        if !rules.may_eject(ejected, self.hosts.len()) || !state.eject(rules, now) {
            return false;
        }
        self.rebuild();
        true
    }

    /// End an interval: bring back endpoints whose ejection is over, and eject those that do far worse than the others; to be called at each
    /// [`OutlierDetection::interval`]. Returns how many came back.
    pub fn tick(&self, now: Duration) -> usize {
        let Some(rules) = &self.outlier else { return 0 };
        let states: Vec<&OutlierState> = self.hosts.iter().filter_map(|host| host.outlier.as_deref()).collect();
        let were_in: Vec<bool> = states.iter().map(|state| !state.is_ejected()).collect();
        let back = states.iter().filter(|state| state.bring_back(rules, now)).count();
        let outliers = rules.compare(&states);
        let mut ejected = states.iter().filter(|state| state.is_ejected()).count();
        let mut out = 0;
        for index in outliers {
            if rules.may_eject(ejected, self.hosts.len()) && states[index].eject(rules, now) {
                ejected += 1;
                out += 1;
            }
        }
        // After the comparison, so that who is ejected at each of its first chances is so for longer each time.
        states
            .iter()
            .zip(were_in)
            .filter(|(state, was_in)| *was_in && !state.is_ejected())
            .for_each(|(state, _)| state.forgive());
        if back + out > 0 {
            self.rebuild();
        }
        back
    }

    /// Note that an answer to a request asks for no more of them (`x-envoy-immediate-health-check-fail`), which counts where the endpoint is
    /// checked. Returns whether it passed until now.
    pub fn fail_at_once(&self, host: &Host) -> bool {
        let failed = host.active_health.as_ref().is_some_and(|health| health.fail_at_once());
        if failed {
            self.rebuild();
        }
        failed
    }

    /// A check of *host* passed: an ejection by outlier detection is over, unless its rules say otherwise. Returns whether there was one; then
    /// it is time to [`Balancer::look_again`].
    pub fn check_passed(&self, host: &Host) -> bool {
        let (Some(rules), Some(state)) = (&self.outlier, &host.outlier) else { return false };
        rules.check_unejects && state.uneject()
    }

    /// Look at the endpoints anew, after checks have changed what is said of them.
    pub fn look_again(&self) {
        self.rebuild();
    }

    /// Take for granted that all health checks pass: nobody makes any.
    pub fn assume_checked(&self) {
        self.hosts.iter().filter_map(|host| host.active_health.as_ref()).for_each(|health| health.assume());
        self.rebuild();
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
