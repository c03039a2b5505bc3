//! Choosing by turns or by lot: round robin, least request, random, each by weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::table::distribute;
use super::{Host, Rules};
use crate::cluster::LbPolicy;
use crate::random::{Draw, Random};

/// Who may be chosen, and how often.
#[derive(Debug)]
pub(super) struct Drawn {
    groups: Box<[Group]>,
    /// Running sums of the groups' loads.
    loads: Box<[u64]>,
}

/// Endpoints of one priority (and locality, where localities are weighted) that are equally good.
#[derive(Debug)]
struct Group {
    hosts: Box<[Arc<Host>]>,
    /// Running sums of weights; empty if all are equal.
    weights: Box<[u64]>,
    cursor: AtomicU64,
}

/// 2^64 divided by the golden ratio: its multiples modulo 2^64 fall as evenly as can be (three-distance theorem).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn running_sums(values: impl Iterator<Item = u64>) -> Box<[u64]> {
    values
        .scan(0, |sum, value| {
            *sum += value;
            Some(*sum)
        })
        .collect()
}

/// Index of the share in which a point of 0 to 2^64 falls.
fn share_of(sums: &[u64], point: u64) -> usize {
    let total = sums.last().copied().unwrap_or(0);
    let point = ((u128::from(point) * u128::from(total)) >> 64) as u64;
    sums.partition_point(|&sum| sum <= point)
}

impl Group {
    fn new(hosts: Vec<Arc<Host>>, seed: u64) -> Self {
        let even = hosts.windows(2).all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight);
        let weights =
            if even { Box::default() } else { running_sums(hosts.iter().map(|host| u64::from(host.endpoint.weight))) };
        Self { hosts: hosts.into(), weights, cursor: AtomicU64::new(seed) }
    }

    fn draw<D: Random + ?Sized>(&self, random: &mut D) -> &Arc<Host> {
        let index = if self.weights.is_empty() {
            random.below(Draw::Balance, self.hosts.len() as u64) as usize
        } else {
            share_of(&self.weights, random.draw(Draw::Balance))
        };
        &self.hosts[index]
    }

    fn pick<D: Random + ?Sized>(&self, policy: LbPolicy, random: &mut D) -> &Arc<Host> {
        match policy {
            _ if self.hosts.len() == 1 => &self.hosts[0],
            LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
                let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
                let index = if self.weights.is_empty() {
                    (turn % self.hosts.len() as u64) as usize
                } else {
                    share_of(&self.weights, turn.wrapping_mul(GOLDEN))
                };
                &self.hosts[index]
            }
            // Those that hash do not come here.
            LbPolicy::Random | LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => self.draw(random),
            LbPolicy::LeastRequest { choices } => {
                let first = self.draw(random);
                (1..choices).fold(first, |best, _| {
                    let other = self.draw(random);
                    if other.active() < best.active() { other } else { best }
                })
            }
        }
    }
}

impl Drawn {
    pub(super) fn pick<D: Random + ?Sized>(&self, policy: LbPolicy, random: &mut D) -> Option<&Arc<Host>> {
        let group = match &*self.groups {
            [] => return None,
            [only] => only,
            groups => &groups[share_of(&self.loads, random.draw(Draw::Balance))],
        };
        Some(group.pick(policy, random))
    }

    pub(super) fn shares(&self) -> Vec<(Arc<Host>, f64)> {
        let total = self.loads.last().copied().unwrap_or(0) as f64;
        let mut before = 0;
        let mut shares = Vec::new();
        for (group, &sum) in self.groups.iter().zip(&self.loads) {
            let load = (sum - before) as f64 / total;
            before = sum;
            let weight: f64 = group.hosts.iter().map(|host| f64::from(host.endpoint.weight)).sum();
            shares.extend(
                group.hosts.iter().map(|host| (Arc::clone(host), load * f64::from(host.endpoint.weight) / weight)),
            );
        }
        shares
    }

    pub(super) fn build(
        members: &[Vec<&Arc<Host>>],
        locality_weights: &[(u32, usize)],
        rules: Rules,
        seed: u64,
    ) -> Self {
        let mut groups = Vec::new();
        for (load, priority, wanted) in distribute(members, rules) {
            let all = &members[priority];
            let chosen: Vec<_> = all
                .iter()
                .filter(|host| wanted.is_none_or(|state| host.state() == state))
                .map(|host| Arc::clone(host))
                .collect();
            if chosen.is_empty() {
                continue;
            }
            // In panic the endpoints of a priority are all as good as each other, wherever they are (Envoy).
            let split = if rules.locality_weighted && wanted.is_some() {
                by_locality(&chosen, all, locality_weights, rules, load, seed)
            } else {
                Vec::new()
            };
            if split.is_empty() {
                groups.push((load * LOCALITY_SCALE, Group::new(chosen, seed)));
            } else {
                groups.extend(split);
            }
        }
        groups.retain(|(load, _)| *load > 0);
        Self {
            loads: running_sums(groups.iter().map(|(load, _)| *load)),
            groups: groups.into_iter().map(|(_, group)| group).collect(),
        }
    }
}

/// Loads are spoken of in percent; finer within localities.
const LOCALITY_SCALE: u64 = 1 << 20;

/// Split one priority's load by locality weight; empty: no locality with an endpoint that is *chosen* has a weight, so that weights say nothing
/// (Envoy).
fn by_locality(
    chosen: &[Arc<Host>],
    all: &[&Arc<Host>],
    locality_weights: &[(u32, usize)],
    rules: Rules,
    load: u64,
    seed: u64,
) -> Vec<(u64, Group)> {
    let mut localities: Vec<usize> = chosen.iter().map(|host| host.locality).collect();
    localities.sort_unstable();
    localities.dedup();
    // The weight of a locality falls when less than 1/overprovisioning of its endpoints work.
    let effective = |locality: usize| {
        let working = chosen.iter().filter(|host| host.locality == locality).count() as f64;
        let total = all.iter().filter(|host| host.locality == locality && rules.counts(host)).count() as f64;
        // Nobody may count, though one works.
        let availability = (working / total * f64::from(rules.overprovisioning_factor) / 100.0).min(1.0);
        f64::from(locality_weights[locality].0) * availability
    };
    let total: f64 = localities.iter().map(|locality| effective(*locality)).sum();
    if total == 0.0 {
        return Vec::new();
    }
    localities
        .iter()
        .map(|locality| {
            let share = (load * LOCALITY_SCALE) as f64 * effective(*locality) / total;
            let hosts = chosen.iter().filter(|host| host.locality == *locality).cloned().collect();
            (share as u64, Group::new(hosts, seed))
        })
        .collect()
}
