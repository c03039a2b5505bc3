//! How long to wait before the next attempt to connect.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Exponential back-off with jitter.
///
/// The first attempt after a loss follows almost at once, because a control plane that restarts is back within
/// milliseconds; later ones spread out, so that a thousand proxies do not return in the same instant.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    attempts: u32,
}

impl Backoff {
    /// Wait about `first`, then twice as long each time, never more than `limit`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, attempts: 0 }
    }

    /// Forget the failures so far; call it when the peer has shown that it works.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The pause before the next attempt: between half and the whole of the step, at random.
    pub fn pause(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempts.min(20)).min(self.limit);
        self.attempts = self.attempts.saturating_add(1);
        // The hasher's keys come from the system's generator; jitter needs no more than that.
        let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        step.mul_f64(0.5 + random / 2.0)
    }
}

impl Default for Backoff {
    /// 25 ms at first, 2 s at most: the control plane is on this machine, and a connection attempt costs next to nothing.
    fn default() -> Self {
        Self::new(Duration::from_millis(25), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_limit_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
        for expected in [10, 20, 40, 80, 100, 100, 100] {
            let pause = backoff.pause();
            assert!(pause >= Duration::from_millis(expected) / 2 && pause <= Duration::from_millis(expected));
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(10));
        backoff.attempts = u32::MAX;
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
