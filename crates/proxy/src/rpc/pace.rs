//! Whether a caller goes on with the message that it has begun.

use std::time::Duration;

use tokio::time::Instant;

/// No protocol says how long a message may take; Dubbo's callers give up their calls after a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// What moves a message on that is not whole yet: a large one may take long, and a byte now and then is no message.
const STEP_BYTES: usize = 64 * 1024;

/// When who has begun a message is given up, for others need the memory: it has to be whole in a minute, or 64 KiB longer. The time begins
/// when it could go on and did not.
#[derive(Default)]
pub struct Pace {
    since: Option<Instant>,
    bytes: usize,
}

impl Pace {
    /// A message is whole, or nobody would have taken more of it.
    pub fn restart(&mut self) {
        *self = Pace::default();
    }

    /// *count* bytes have come.
    pub fn advance(&mut self, count: usize) {
        self.bytes += count;
        if self.bytes >= STEP_BYTES {
            self.restart();
        }
    }

    /// A part of a message is here, and nothing more of it now. Until when more has to come.
    pub fn deadline(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now) + PATIENCE
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
        let mut pace = Pace::default();
        let begun = after(1000).await;
        for _ in 0..5 {
            pace.advance(1);
            assert_eq!(pace.deadline(), begun + PATIENCE);
            after(10).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_grows_or_becomes_whole_goes_on() {
        let mut pace = Pace::default();
        pace.advance(STEP_BYTES - 1);
        pace.deadline();
        let grown = after(50).await;
        pace.advance(1);
        assert_eq!(pace.deadline(), grown + PATIENCE);
        pace.restart();
        // It was not read for a while: that is not the caller's time.
        let read = after(70).await;
        pace.advance(1);
        assert_eq!(pace.deadline(), read + PATIENCE);
    }
}
