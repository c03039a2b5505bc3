//! Whether a caller goes on with the message that it has begun.

use std::time::Duration;

use tokio::time::Instant;

/// No protocol says how long a message may take; Dubbo's callers give up their calls after a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// What moves a message on that is not whole yet: a large one may take long, and a byte now and then is no message.
const STEP_BYTES: usize = 64 * 1024;

/// When who has begun a message is given up, for others need the memory: it has to be whole in a minute, or 64 KiB longer.
pub struct Pace {
    since: Instant,
    bytes: usize,
}

impl Pace {
    pub fn begin() -> Pace {
        Pace { since: Instant::now(), bytes: 0 }
    }

    /// A message is whole, or nobody would have taken more of it.
    pub fn restart(&mut self) {
        *self = Pace::begin();
    }

    /// *count* bytes of a message have come. *first*: there was nothing of it before.
    pub fn advance(&mut self, count: usize, first: bool) {
        self.bytes += count;
        if first || self.bytes >= STEP_BYTES {
            self.restart();
        }
    }

    pub fn deadline(&self) -> Instant {
        self.since + PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(seconds: u64) -> Instant {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_no_message() {
        let mut pace = Pace::begin();
        let begun = after(1000).await;
        pace.advance(1, true);
        for _ in 0..5 {
            after(10).await;
            pace.advance(1, false);
        }
        assert_eq!(pace.deadline(), begun + PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_grows_or_becomes_whole_goes_on() {
        let mut pace = Pace::begin();
        pace.advance(STEP_BYTES - 1, true);
        pace.advance(STEP_BYTES - 1, false);
        let grown = after(50).await;
        pace.advance(1, false);
        assert_eq!(pace.deadline(), grown + PATIENCE);
        let whole = after(50).await;
        pace.restart();
        assert_eq!(pace.deadline(), whole + PATIENCE);
    }
}
