//! Who may be chosen of a cluster's endpoints, as their health is now: priorities and panic; what is drawn and what is hashed of them.

use std::sync::Arc;

use super::consistent::Consistent;
use super::drawn::Drawn;
use super::{Host, Rules};
use crate::cluster::LbPolicy;
use crate::endpoint::{Health, LoadAssignment};

/// Of each locality, its weight and its place among the names.
pub(super) fn weights_of(assignment: &LoadAssignment) -> Vec<(u32, usize)> {
    let localities = &assignment.localities;
    let name = |index: usize| {
        let locality = &localities[index];
        (&locality.region, &locality.zone, &locality.sub_zone)
    };
    let mut order: Vec<usize> = (0..localities.len()).collect();
    order.sort_by(|&one, &other| name(one).cmp(&name(other)));
    let mut weights: Vec<(u32, usize)> = localities.iter().map(|locality| (locality.weight.unwrap_or(0), 0)).collect();
    for (place, index) in order.into_iter().enumerate() {
        weights[index].1 = place;
    }
    weights
}

/// Who may be chosen.
#[derive(Debug)]
pub(super) enum Table {
    /// By turns or by lot.
    Drawn(Drawn),
    /// By a hash.
    Consistent(Consistent),
}

impl Table {
    pub(super) fn build(
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

    pub(super) fn shares(&self) -> Vec<(Arc<Host>, f64)> {
        match self {
            Self::Drawn(drawn) => drawn.shares(),
            Self::Consistent(consistent) => consistent.shares(),
        }
    }
}

/// How much load (percent) goes to which priority (index) and to its endpoints in which state (`None`: panic, all of them).
///
/// Source: Envoy's documentation of priority levels, degraded endpoints and panic threshold.
pub(super) fn distribute(members: &[Vec<&Arc<Host>>], rules: Rules) -> Vec<(u64, usize, Option<Health>)> {
    let percent = |count: usize, total: usize, factor: u32| -> u64 {
        if total == 0 { 0 } else { (count as u64 * u64::from(factor) / total as u64).min(100) }
    };
    let counts: Vec<(usize, usize, usize)> = members
        .iter()
        .map(|hosts| {
            let count = |state| hosts.iter().filter(|host| host.state() == state).count();
            let total = hosts.iter().filter(|host| rules.counts(host)).count();
            (count(Health::Healthy), count(Health::Degraded), total)
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
        let working = if total == 0 { 0.0 } else { (healthy + degraded) as f64 * 100.0 / total as f64 };
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
