//! Which endpoint a request goes to.

use std::net::SocketAddr;

use weft_core::balance::Host;
use weft_core::cluster::Discovery;
use weft_core::random::Random;
use weft_core::retry::RetryPolicy;

use crate::connect::Destination;
use crate::logging;
use crate::plan::{WorkerUpstream, address_of};

/// Endpoints that were tried for this request, by the address of their counters.
#[derive(Default)]
pub struct Tried(Vec<usize>);

impl Tried {
    pub fn note(&mut self, destination: &Destination) {
        if let Some(host) = destination.host() {
            self.0.push(address_of(&host.counters));
        }
    }
}

/// Choose an endpoint; `None` if there is none (503 UH). `original` is where the client wanted to go (see [`Facts::original`]), `key` the
/// hash that decides in clusters that balance by consistent hashing.
///
/// [`Facts::original`]: crate::identify::Facts::original
pub fn pick(
    upstream: &WorkerUpstream,
    original: Option<SocketAddr>,
    policy: Option<&RetryPolicy>,
    tried: &Tried,
    key: Option<u64>,
    random: &mut impl Random,
) -> Option<Destination> {
    let attempts = match policy {
        // So often it is attempted again, after the first time.
        Some(policy) if policy.avoid_previous_hosts && !tried.0.is_empty() => {
            policy.host_selection_attempts.saturating_add(1)
        }
        _ => 1,
    };
    pick_in(upstream, original, attempts, tried, key, random)
}

/// The same with so many draws in search of an endpoint that was not tried yet.
pub fn pick_in(
    upstream: &WorkerUpstream,
    original: Option<SocketAddr>,
    attempts: u32,
    tried: &Tried,
    key: Option<u64>,
    random: &mut impl Random,
) -> Option<Destination> {
    if matches!(upstream.shared.cluster.discovery, Discovery::OriginalDst) {
        return original.map(Destination::Original);
    }
    let picker = upstream.picker.as_ref()?;
    let was_tried = |host: &Host| tried.0.contains(&address_of(&host.counters));
    let picked = picker.borrow_mut().pick(key, random, attempts, was_tried);
    let cluster = &upstream.shared.cluster.name;
    match picked {
        Ok(host) => {
            log::debug!(target: logging::ROUTER, "{cluster} goes to {}", host.endpoint.address);
            Some(Destination::Host(host))
        }
        Err(error) => {
            log::debug!(target: logging::ROUTER, "{cluster} goes nowhere: {error}");
            None
        }
    }
}
