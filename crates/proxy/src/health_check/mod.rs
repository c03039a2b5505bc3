//! Active health checks: the main thread asks each endpoint of clusters that have them, again and again, in a task of its own, and tells
//! the configurator what it found. No worker waits for a check, and no request meets one.
//!
//! What is asked and what an answer means is core's ([`weft_core::health_check`]); [`probe`] asks.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};
use weft_core::balance::Host;
use weft_core::health_check::{ActiveHealth, HealthCheck, Noted, Session, Transition, Verdict};
use weft_core::random::SplitMix;

use crate::configure::Configurator;
use crate::connect::Standing;
use crate::logging;
use crate::metrics::snapshot::{Family, Kind};
use crate::plan::{ByAddress, Upstream, address_of};

mod exchange;
mod grpc;
mod probe;

use probe::{Found, Way};

type Name = Arc<str>;

/// Between the first checks of endpoints that come together: not all may be connected to at one moment.
const STAGGER: Duration = Duration::from_micros(250);

/// An endpoint that is checked.
#[derive(Clone)]
pub struct Target {
    pub upstream: Arc<Upstream>,
    pub host: Arc<Host>,
}

impl Target {
    fn health(&self) -> Option<&Arc<ActiveHealth>> {
        self.host.active_health()
    }
}

/// What was counted about one cluster's checks.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    attempts: u64,
    successes: u64,
    failures: u64,
    passive_failures: u64,
    network_failures: u64,
}

/// Name, kind, what it counts, and where.
type Row = (&'static str, Kind, &'static str, fn(&Cluster) -> u64);

const ROWS: [Row; 7] = [
    ("attempt", Kind::Counter, "Health checks.", |it| it.counts.attempts),
    ("success", Kind::Counter, "Health checks that passed.", |it| it.counts.successes),
    ("failure", Kind::Counter, "Health checks that failed, and answers to requests that say so.", |it| {
        it.counts.failures
    }),
    ("passive_failure", Kind::Counter, "Answers to requests that fail their endpoint's health.", |it| {
        it.counts.passive_failures
    }),
    ("network_failure", Kind::Counter, "Health checks without an answer.", |it| it.counts.network_failures),
    ("healthy", Kind::Gauge, "Endpoints that pass their health checks.", |it| it.count(|health| !health.is_failed())),
    ("degraded", Kind::Gauge, "Endpoints that pass their health checks as degraded.", |it| {
        it.count(ActiveHealth::is_degraded)
    }),
];

/// One cluster's checks.
#[derive(Default)]
struct Cluster {
    counts: Counts,
    /// By the address of what is known of the endpoint's health, which stays as long as checks of it mean the same.
    running: ByAddress<Running>,
}

impl Cluster {
    fn count(&self, is: fn(&ActiveHealth) -> bool) -> u64 {
        let targets = self.running.values().map(|running| running.target.borrow());
        targets.filter(|target| target.health().is_some_and(|health| is(health))).count() as u64
    }
}

/// One endpoint's checks, as long as this lives.
struct Running {
    target: Rc<RefCell<Target>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All checks.
pub struct Checks {
    clusters: BTreeMap<Name, Cluster>,
    standing: Rc<Standing>,
    random: SplitMix,
}

impl Checks {
    pub fn new(standing: Standing, seed: u64) -> Checks {
        Checks { clusters: BTreeMap::new(), standing: Rc::new(standing), random: SplitMix::new(seed) }
    }

    /// Check the endpoints of *wanted*, by cluster, and nothing else. Of two versions of a cluster that share an endpoint the later counts.
    pub fn follow<'u>(
        &mut self,
        wanted: impl Iterator<Item = (&'u Name, &'u Arc<Upstream>)>,
        configurator: &Weak<RefCell<Configurator>>,
    ) {
        let mut targets: BTreeMap<&Name, HashMap<usize, Target>> = BTreeMap::new();
        for (name, upstream) in wanted {
            let of_cluster = targets.entry(name).or_default();
            for host in upstream.balancer.iter().flat_map(|balancer| balancer.hosts()) {
                if let Some(health) = host.active_health() {
                    let target = Target { upstream: Arc::clone(upstream), host: Arc::clone(host) };
                    of_cluster.insert(address_of(health), target);
                }
            }
        }
        self.clusters.retain(|name, _| targets.contains_key(name));
        let mut delay = Duration::ZERO;
        for (name, targets) in targets {
            let cluster = self.clusters.entry(Arc::clone(name)).or_default();
            cluster.running.retain(|health, _| targets.contains_key(health));
            for (health, target) in targets {
                if let Some(running) = cluster.running.get(&health) {
                    *running.target.borrow_mut() = target;
                    continue;
                }
                let Some(check) = target.upstream.cluster.health_check.as_deref() else { continue };
                let first_pause = delay + check.first_pause(&mut self.random);
                delay += STAGGER;
                let target = Rc::new(RefCell::new(target));
                let checker = Checker {
                    configurator: Weak::clone(configurator),
                    cluster: Arc::clone(name),
                    target: Rc::clone(&target),
                    standing: Rc::clone(&self.standing),
                    session: Session::default(),
                };
                let task = spawn_local(checker.run(first_pause)).abort_handle();
                cluster.running.insert(health, Running { target, task });
            }
        }
    }

    fn attempt(&mut self, cluster: &Name) {
        if let Some(cluster) = self.clusters.get_mut(cluster) {
            cluster.counts.attempts += 1;
        }
    }

    /// Count what a check came to. Returns how long until the next of the same endpoint.
    fn count(
        &mut self,
        cluster: &Name,
        check: &HealthCheck,
        (verdict, noted): (Verdict, Noted),
        used: bool,
    ) -> Duration {
        if let Some(Cluster { counts, .. }) = self.clusters.get_mut(cluster) {
            let passive = u64::from(noted.passive_failures);
            counts.passive_failures += passive;
            counts.failures += passive + u64::from(!verdict.passed());
            counts.successes += u64::from(verdict.passed());
            counts.network_failures += u64::from(verdict.is_of_the_network());
        }
        check.pause(verdict.passed(), noted.transition, used, &mut self.random)
    }

    /// The counts, under Envoy's names; *label* is that of a cluster.
    pub fn counts(&self, label: impl Fn(&str) -> String) -> Vec<Family> {
        let family = |(name, kind, help, read): Row| {
            let counts = self.clusters.iter().map(|(cluster, checked)| (label(cluster), read(checked)));
            Family::of_counts((format!("envoy_cluster_health_check_{name}"), help, kind), counts)
        };
        ROWS.into_iter().filter(|_| !self.clusters.is_empty()).map(family).collect()
    }
}

impl Configurator {
    /// Take in what a check of *target* found. Returns how long until the next.
    fn hear_check(
        &mut self,
        cluster: &Name,
        target: &Target,
        session: &mut Session,
        found: &Found,
    ) -> Option<Duration> {
        let check = target.upstream.cluster.health_check.as_deref()?;
        let health = target.health()?;
        let noted = session.note(check, health, found.verdict);
        let passed = found.verdict.passed();
        // Versions of the cluster share what is known of the endpoint.
        let ejection_ends =
            passed && self.holdings.balancers(cluster).any(|balancer| balancer.check_passed(&target.host));
        if ejection_ends {
            log::info!(target: logging::HEALTH, "{} passes a health check, which ends its ejection", place(cluster, &target.host));
        }
        if ejection_ends || noted.transition == Transition::Changed {
            self.balance_soon(cluster);
        }
        tell(cluster, target, check, noted, found);
        if noted.first || target.host.leaving && health.is_failed() {
            // A cluster may be warm by this, or an endpoint may go.
            self.settle_soon();
        }
        let used = target.upstream.breakers.is_used();
        Some(self.checks.count(cluster, check, (found.verdict, noted), used))
    }
}

/// Changes of state are told, and first failures; the rest only where the check asks for it.
fn tell(cluster: &Name, target: &Target, check: &HealthCheck, noted: Noted, found: &Found) {
    let (place, kind) = (place(cluster, &target.host), check.probe.name());
    let why = &found.why;
    match noted.turned {
        Some(true) if noted.first => {}
        Some(true) => log::info!(target: logging::HEALTH, "{place} is healthy: it passes its {kind} health check"),
        Some(false) => {
            log::warn!(target: logging::HEALTH, "{place} is unhealthy: it fails its {kind} health check ({why})")
        }
        None if found.verdict.passed() && check.logs_successes => {
            log::info!(target: logging::HEALTH, "{place} passes its {kind} health check");
        }
        None if !found.verdict.passed() && (noted.first || check.logs_failures) => {
            log::warn!(target: logging::HEALTH, "{place} fails its {kind} health check ({why})");
        }
        None => {}
    }
}

fn place(cluster: &Name, host: &Host) -> String {
    format!("endpoint {} of cluster {cluster}", host.endpoint.address)
}

/// The task of one endpoint.
struct Checker {
    configurator: Weak<RefCell<Configurator>>,
    cluster: Name,
    target: Rc<RefCell<Target>>,
    standing: Rc<Standing>,
    session: Session,
}

impl Checker {
    async fn run(mut self, first_pause: Duration) {
        let mut way: Option<Box<Way>> = None;
        tokio::time::sleep(first_pause).await;
        loop {
            // In a box: it waits most of the time, and has kilobytes of state only while it asks.
            let Some(found) = Box::pin(self.ask(&mut way)).await else { return };
            let Some(pause) = self.report(&found) else { return };
            tokio::time::sleep(pause).await;
        }
    }

    /// Check once. `None`: nobody wants to know any more.
    async fn ask(&self, way: &mut Option<Box<Way>>) -> Option<Found> {
        let target = self.target.borrow().clone();
        let check = target.upstream.cluster.health_check.as_deref()?;
        self.configurator.upgrade()?.borrow_mut().checks.attempt(&self.cluster);
        let found = tokio::time::timeout(check.timeout, probe::ask(&target, check, way, &self.standing)).await;
        let found = found.unwrap_or_else(|_| Found::timed_out(check.timeout));
        if !check.reuses_connection || found.verdict.is_of_the_network() {
            *way = None;
        }
        Some(found)
    }

    fn report(&mut self, found: &Found) -> Option<Duration> {
        // Discovery may have said something new about it meanwhile.
        let target = self.target.borrow().clone();
        self.configurator.upgrade()?.borrow_mut().hear_check(&self.cluster, &target, &mut self.session, found)
    }
}
