//! Consistent hashing: a request's number says which endpoint it goes to, and most numbers keep theirs when endpoints come and go.
//!
//! Two ways to divide the numbers: a ring on which each endpoint has many points, as in ketama, and Maglev's table (the paper by
//! Eisenbud and others, section 3.4). Both are made as Envoy makes them, to the last bit of the arithmetic, because a mesh has both
//! proxies and they must agree on the endpoint of a number.
//!
//! Where Envoy has all endpoints of a priority degraded, it finds none; here they are taken, as by the other policies.

use std::sync::Arc;

use super::table::distribute;
use super::{Host, Rules};
use crate::cluster::{HashFunction, LbPolicy};
use crate::endpoint::Health;
use crate::hash::{murmur_hash_2, xxhash64};

/// Who is chosen for which number; shared by all workers, and made anew when an endpoint comes, goes, fails or recovers.
#[derive(Debug)]
pub(super) struct Consistent {
    /// Of the numbers modulo 100 those below the first bound go to the circle at the first index, and so on; the last bound is 100.
    levels: Box<[(u64, usize)]>,
    /// One for each priority.
    circles: Box<[Circle]>,
}

/// The endpoints of one priority.
#[derive(Debug)]
struct Circle {
    hosts: Box<[Arc<Host>]>,
    slots: Slots,
}

/// Which number belongs to which of a circle's hosts.
#[derive(Debug)]
enum Slots {
    /// Points in order, and whose each is: it owns the numbers up to its point, from the one before.
    Ring { points: Box<[u64]>, owners: Indices },
    /// By the number modulo their count.
    Maglev(Indices),
}

/// Indices of hosts, each in as few bytes as the number of hosts allows: there are tens of thousands.
#[derive(Debug)]
enum Indices {
    U8(Box<[u8]>),
    U16(Box<[u16]>),
    U32(Box<[u32]>),
}

impl Indices {
    fn of(indices: &[u32], hosts: usize) -> Self {
        // The casts lose nothing: every index is below the number of hosts.
        match hosts {
            0..=0x100 => Self::U8(indices.iter().map(|&index| index as u8).collect()),
            0x101..=0x1_0000 => Self::U16(indices.iter().map(|&index| index as u16).collect()),
            _ => Self::U32(indices.into()),
        }
    }

    fn get(&self, at: usize) -> usize {
        match self {
            Self::U8(indices) => indices[at].into(),
            Self::U16(indices) => indices[at].into(),
            Self::U32(indices) => indices[at] as usize,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::U8(indices) => indices.len(),
            Self::U16(indices) => indices.len(),
            Self::U32(indices) => indices.len(),
        }
    }
}

impl Consistent {
    /// Make it for endpoints by priority. `locality_weights`: by index, with the place of the locality in the order of names.
    pub(super) fn build(
        members: &[Vec<&Arc<Host>>],
        locality_weights: &[(u32, usize)],
        rules: Rules,
        policy: LbPolicy,
    ) -> Self {
        let loads = distribute(members, rules);
        let mut panics = vec![false; members.len()];
        for (_, priority, wanted) in &loads {
            panics[*priority] |= wanted.is_none();
        }
        let circles = members.iter().zip(panics).map(|(all, panics)| {
            let weighed = weigh(&eligible(all, panics), all, locality_weights, rules.locality_weighted);
            Circle::build(&weighed, policy, rules.hash_hostnames)
        });
        let circles = circles.collect();
        // Where everything panics they are numbers of endpoints; else percent already.
        let total: u64 = loads.iter().map(|(load, ..)| load).sum();
        let mut levels: Vec<(u64, usize)> =
            loads.iter().map(|(load, priority, _)| (load * 100 / total.max(1), *priority)).collect();
        let left = 100u64.saturating_sub(levels.iter().map(|(load, _)| load).sum());
        if let Some(first) = levels.iter_mut().find(|(load, _)| *load > 0) {
            first.0 += left;
        }
        let mut sum = 0;
        for (load, _) in &mut levels {
            sum += *load;
            *load = sum;
        }
        Self { levels: levels.into(), circles }
    }

    /// The endpoint of a number; by further attempts others, perhaps. `None`: nobody can be chosen.
    pub(super) fn pick(&self, number: u64, attempt: u32) -> Option<&Arc<Host>> {
        let (_, priority) = self.levels.iter().find(|(bound, _)| number % 100 < *bound)?;
        self.circles[*priority].pick(number, attempt)
    }

    /// The endpoints that may be chosen, with their share of all numbers.
    pub(super) fn shares(&self) -> Vec<(Arc<Host>, f64)> {
        let mut loads = vec![0; self.circles.len()];
        let mut before = 0;
        for (bound, priority) in &self.levels {
            loads[*priority] += bound - before;
            before = *bound;
        }
        let of_circle = self.circles.iter().zip(loads).filter(|(_, load)| *load > 0).flat_map(|(circle, load)| {
            let owned = circle.owned();
            let hosts = circle.hosts.iter().zip(owned);
            hosts.map(move |(host, owned)| (Arc::clone(host), owned * load as f64 / 100.0)).collect::<Vec<_>>()
        });
        of_circle.collect()
    }
}

/// Who of a priority may be chosen.
fn eligible<'h>(all: &[&'h Arc<Host>], panics: bool) -> Vec<&'h Arc<Host>> {
    if panics {
        return all.to_vec();
    }
    let in_state = |state| all.iter().filter(|host| host.state() == state).copied().collect::<Vec<_>>();
    match in_state(Health::Healthy) {
        healthy if healthy.is_empty() => in_state(Health::Degraded),
        healthy => healthy,
    }
}

/// The hosts with their weights, which make 1 together.
///
/// The sums are floating point and rings of odd sizes show their rounding, so the order of operations is Envoy's.
fn weigh(
    chosen: &[&Arc<Host>],
    all: &[&Arc<Host>],
    locality_weights: &[(u32, usize)],
    locality_weighted: bool,
) -> Vec<(Arc<Host>, f64)> {
    let mut weighed = Vec::with_capacity(chosen.len());
    let mut add = |hosts: &[&Arc<Host>], share: f64| {
        let sum: u64 = hosts.iter().map(|host| u64::from(host.endpoint.weight)).sum();
        let weight = |host: &Host| f64::from(host.endpoint.weight) * share / sum as f64;
        weighed.extend(hosts.iter().map(|host| (Arc::clone(host), weight(host))));
    };
    if !locality_weighted {
        add(chosen, 1.0);
        return weighed;
    }
    let mut localities: Vec<usize> = all.iter().map(|host| host.locality).collect();
    localities.sort_unstable_by_key(|&locality| (locality_weights[locality].1, locality));
    localities.dedup();
    let weight = |locality: usize| locality_weights[locality].0;
    let sum: u64 = localities.iter().map(|&locality| u64::from(weight(locality))).sum();
    for locality in localities.into_iter().filter(|&locality| weight(locality) > 0) {
        let hosts: Vec<_> = chosen.iter().filter(|host| host.locality == locality).copied().collect();
        add(&hosts, f64::from(weight(locality)) / sum as f64);
    }
    weighed
}

impl Circle {
    fn build(weighed: &[(Arc<Host>, f64)], policy: LbPolicy, by_hostname: bool) -> Self {
        let hosts: Box<[_]> = weighed.iter().map(|(host, _)| Arc::clone(host)).collect();
        let keys: Vec<String> = hosts.iter().map(|host| key(host, by_hostname)).collect();
        let weights: Vec<f64> = weighed.iter().map(|(_, weight)| *weight).collect();
        let slots = match policy {
            LbPolicy::Maglev { table_size } => maglev(&keys, &weights, table_size),
            LbPolicy::RingHash { least, most, function } => ring(&keys, &weights, (least, most), function),
            // Nobody asks for a circle by another policy.
            _ => Slots::Maglev(Indices::of(&[], 0)),
        };
        Self { hosts, slots }
    }

    fn pick(&self, number: u64, attempt: u32) -> Option<&Arc<Host>> {
        let index = match &self.slots {
            Slots::Ring { points, owners } if !points.is_empty() => {
                let at = points.partition_point(|&point| point < number);
                let at = if at == points.len() { 0 } else { at };
                owners.get((at + attempt as usize) % points.len())
            }
            // Nearly all bits change, so that the next attempt is unlikely to meet the same host.
            Slots::Maglev(owners) if owners.len() > 0 => {
                owners.get(((number ^ u64::from(attempt).wrapping_neg()) % owners.len() as u64) as usize)
            }
            _ => return None,
        };
        Some(&self.hosts[index])
    }

    /// How much of the circle each host has.
    fn owned(&self) -> Vec<f64> {
        let mut owned = vec![0.0; self.hosts.len()];
        match &self.slots {
            Slots::Ring { points, owners } => {
                let mut before = points.last().copied().unwrap_or(0);
                for (at, &point) in points.iter().enumerate() {
                    let length = if points.len() == 1 { u64::MAX } else { point.wrapping_sub(before) };
                    // 2^64
                    owned[owners.get(at)] += length as f64 / 18_446_744_073_709_551_616.0;
                    before = point;
                }
            }
            Slots::Maglev(owners) => {
                (0..owners.len()).for_each(|at| owned[owners.get(at)] += 1.0 / owners.len() as f64);
            }
        }
        owned
    }
}

/// What a host's places follow from: what its metadata say, else its name if that is asked for, else its address.
fn key(host: &Host, by_hostname: bool) -> String {
    match &host.endpoint.hash_key {
        Some(key) => key.to_string(),
        None if by_hostname => host.endpoint.hostname.to_string(),
        None => host.endpoint.address.to_string(),
    }
}

/// A ring of *least* to *most* points, on which the lightest host has a whole number of them.
fn ring(keys: &[String], weights: &[f64], (least, most): (u64, u64), function: HashFunction) -> Slots {
    let lightest = weights.iter().copied().fold(1.0, f64::min);
    let scale = ((lightest * least as f64).ceil() / lightest).min(most as f64);
    let mut points: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize);
    let (mut made, mut wanted) = (0.0, 0.0);
    let mut text = String::new();
    for ((key, weight), host) in keys.iter().zip(weights).zip(0..) {
        // Not whole numbers: what one host has too much of, the next has less of.
        wanted += scale * weight;
        let mut number = 0u64;
        while made < wanted {
            use std::fmt::Write as _;
            text.clear();
            let _ = write!(text, "{key}_{number}");
            let point = match function {
                HashFunction::XxHash => xxhash64(0, text.as_bytes()),
                HashFunction::MurmurHash2 => murmur_hash_2(text.as_bytes()),
            };
            points.push((point, host));
            number += 1;
            made += 1.0;
        }
    }
    points.sort_by_key(|(point, _)| *point);
    let owners: Vec<u32> = points.iter().map(|(_, host)| *host).collect();
    Slots::Ring { points: points.iter().map(|(point, _)| *point).collect(), owners: Indices::of(&owners, keys.len()) }
}

/// A host that takes places in a Maglev table.
struct Taker {
    host: u32,
    /// Where it looks next, and how far from one look to the next: a permutation of all places, since their number is prime.
    at: u64,
    skip: u64,
    weight: f64,
    /// It takes a place in a round when its weights so far make up for this.
    owed: f64,
}

/// Maglev's table: hosts take turns, each taking the first place of its own permutation that is free.
fn maglev(keys: &[String], weights: &[f64], size: u64) -> Slots {
    const NOBODY: u32 = u32::MAX;
    if keys.is_empty() {
        return Slots::Maglev(Indices::of(&[], 0));
    }
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    // The turns must not depend on the order in which discovery names the endpoints.
    order.sort_by(|&one, &other| keys[one as usize].cmp(&keys[other as usize]));
    let mut takers: Vec<Taker> = order
        .into_iter()
        .map(|host| {
            let key = keys[host as usize].as_bytes();
            Taker {
                host,
                at: xxhash64(0, key) % size,
                skip: xxhash64(1, key) % (size - 1) + 1,
                weight: weights[host as usize],
                owed: 0.0,
            }
        })
        .collect();
    let mut table = vec![NOBODY; size as usize];
    let mut left = size;
    let mut round = 0.0;
    while left > 0 {
        round += 1.0;
        for taker in &mut takers {
            if left == 0 {
                break;
            }
            if round * taker.weight < taker.owed {
                continue;
            }
            taker.owed += heaviest;
            while table[taker.at as usize] != NOBODY {
                taker.at = (taker.at + taker.skip) % size;
            }
            table[taker.at as usize] = taker.host;
            taker.at = (taker.at + taker.skip) % size;
            left -= 1;
        }
    }
    Slots::Maglev(Indices::of(&table, keys.len()))
}
