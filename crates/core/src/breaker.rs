//! Circuit breakers: counters shared by all workers, with limits. Envoy's meaning: a racing request may exceed a limit by the number of workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Limits of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections to all endpoints; default 1024.
    pub connections: u32,
    /// Requests waiting for a connection; default 1024.
    pub pending: u32,
    /// Requests in progress; default 1024.
    pub requests: u32,
    /// Retries in progress; default 3.
    pub retries: u32,
    /// Metrics tell how much of each is left.
    pub tracks_remaining: bool,
}

impl Limits {
    fn of(&self, resource: Resource) -> u32 {
        match resource {
            Resource::Connection => self.connections,
            Resource::Pending => self.pending,
            Resource::Request => self.requests,
            Resource::Retry => self.retries,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, pending: 1024, requests: 1024, retries: 3, tracks_remaining: false }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A connection.
    Connection,
    /// A request waiting for one.
    Pending,
    /// A request in progress.
    Request,
    /// A retry in progress.
    Retry,
}

/// The counters of one cluster. Each on its own cache line, since all workers write them.
#[derive(Debug, Default)]
pub struct Breakers {
    counters: [Padded; 4],
    /// Somebody has had a connection.
    used: AtomicBool,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Padded(AtomicU32);

/// A place taken under a limit; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    breakers: Arc<Breakers>,
    resource: Resource,
}

impl Breakers {
    /// How many are in use.
    pub fn in_use(&self, resource: Resource) -> u32 {
        self.counters[resource as usize].0.load(Ordering::Relaxed)
    }

    /// How many may still be taken; none if racing requests have exceeded the limit.
    pub fn remaining(&self, resource: Resource, limits: &Limits) -> u32 {
        limits.of(resource).saturating_sub(self.in_use(resource))
    }

    /// Whether a connection to the cluster was ever wanted, for requests or their like.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Take a place, or nothing if the limit is reached (response flag UO).
    pub fn acquire(self: &Arc<Self>, resource: Resource, limits: &Limits) -> Option<Permit> {
        let limit = limits.of(resource);
        // Reading first keeps the cache line shared among workers.
        if resource == Resource::Connection && !self.is_used() {
            self.used.store(true, Ordering::Relaxed);
        }
        let counter = &self.counters[resource as usize].0;
        // Relaxed: the counter protects nothing but itself.
        if counter.fetch_add(1, Ordering::Relaxed) >= limit {
            counter.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Permit { breakers: Arc::clone(self), resource })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.breakers.counters[self.resource as usize].0.fetch_sub(1, Ordering::Relaxed);
    }
}
