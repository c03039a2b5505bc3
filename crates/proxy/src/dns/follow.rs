//! Follows the names of clusters: one task for each name of each cluster asks, tells the configurator, and waits as long as
//! the cluster says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Weak;
use std::sync::Arc;

use tokio::task::{AbortHandle, spawn_local};
use weft_core::dns::{Dns, Heard};

use super::{lookup, random};
use crate::configure::Configurator;
use crate::logging;
use crate::metrics::snapshot::{Family, Kind};

type Name = Arc<str>;

/// What was asked for one cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    attempts: u64,
    successes: u64,
    failures: u64,
    no_rebuilds: u64,
}

/// Name, what it counts, and where.
type Row = (&'static str, &'static str, fn(&Counts) -> u64);

/// A cluster that is followed, as long as this lives.
struct Following {
    dns: Arc<Dns>,
    counts: Counts,
    tasks: Vec<AbortHandle>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// All clusters that are followed.
#[derive(Default)]
pub struct Followers(BTreeMap<Name, Following>);

impl Followers {
    /// Follow *wanted*, by cluster, and nothing else.
    pub fn follow(&mut self, wanted: &BTreeMap<Name, Arc<Dns>>, configurator: &Weak<RefCell<Configurator>>) {
        self.0.retain(|cluster, _| wanted.contains_key(cluster));
        for (cluster, dns) in wanted {
            let before = self.0.get(cluster);
            if before.is_some_and(|before| Arc::ptr_eq(&before.dns, dns)) {
                continue;
            }
            let counts = before.map(|before| before.counts).unwrap_or_default();
            let task = |name: &Name| {
                let follower = Follower {
                    configurator: Weak::clone(configurator),
                    cluster: Arc::clone(cluster),
                    dns: Arc::clone(dns),
                    name: Arc::clone(name),
                };
                spawn_local(follower.run()).abort_handle()
            };
            let tasks = dns.names().into_iter().map(task).collect();
            self.0.insert(Arc::clone(cluster), Following { dns: Arc::clone(dns), counts, tasks });
        }
    }

    /// Count an attempt.
    fn attempt(&mut self, cluster: &Name) {
        if let Some(following) = self.0.get_mut(cluster) {
            following.counts.attempts += 1;
        }
    }

    /// Count what became of an attempt.
    pub fn count(&mut self, cluster: &Name, heard: Heard) {
        let Some(Following { counts, .. }) = self.0.get_mut(cluster) else { return };
        match heard.succeeded {
            true => counts.successes += 1,
            false => counts.failures += 1,
        }
        if heard.succeeded && !heard.changed {
            counts.no_rebuilds += 1;
        }
    }

    /// The counts, under Envoy's names; *label* is that of a cluster.
    pub fn counts(&self, label: impl Fn(&str) -> String) -> Vec<Family> {
        let rows: [Row; 4] = [
            ("envoy_cluster_update_attempt", "Lookups of the names of a cluster.", |it| it.attempts),
            ("envoy_cluster_update_success", "Lookups that were answered.", |it| it.successes),
            ("envoy_cluster_update_failure", "Lookups that failed.", |it| it.failures),
            ("envoy_cluster_update_no_rebuild", "Lookups that changed nothing.", |it| it.no_rebuilds),
        ];
        let family = |(name, help, read): Row| {
            let counts = self.0.iter().map(|(cluster, following)| (label(cluster), read(&following.counts)));
            Family::of_counts((name.to_owned(), help, Kind::Counter), counts)
        };
        rows.into_iter().filter(|_| !self.0.is_empty()).map(family).collect()
    }
}

/// One name of one cluster.
struct Follower {
    configurator: Weak<RefCell<Configurator>>,
    cluster: Name,
    dns: Arc<Dns>,
    name: Name,
}

impl Follower {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let Some(configurator) = self.configurator.upgrade() else { return };
            configurator.borrow_mut().followers.attempt(&self.cluster);
            drop(configurator);
            log::debug!(target: logging::DNS, "asking for {} of cluster {}", self.name, self.cluster);
            // In a box: it waits most of the time, and has kilobytes of state only while it asks.
            let answer = Box::pin(lookup(&self.dns.resolver, self.dns.family, &self.name)).await;
            let Some(configurator) = self.configurator.upgrade() else { return };
            let ttl = answer.as_ref().ok().and_then(|answer| answer.ttl);
            let failed = match &answer {
                Ok(_) => "no addresses".to_owned(),
                Err(error) => error.to_string(),
            };
            let addresses = answer.ok().map(|answer| answer.addresses);
            log::debug!(target: logging::DNS, "{} of cluster {} is {addresses:?}", self.name, self.cluster);
            let heard = configurator.borrow_mut().hear(&self.cluster, &self.dns, &self.name, addresses);
            drop(configurator);
            let random = u64::from_be_bytes(random());
            let pause = if heard.succeeded {
                failures = 0;
                self.dns.pause(ttl, random)
            } else {
                // Once, so that a server that is away fills no disk.
                if failures == 0 {
                    let Follower { cluster, name, .. } = &self;
                    log::warn!(
                        target: logging::DNS,
                        "{name} of cluster {cluster} is not resolved ({failed}); trying again, and working by what is known"
                    );
                }
                failures += 1;
                self.dns.pause_after_failure(failures, random)
            };
            tokio::time::sleep(pause).await;
        }
    }
}
