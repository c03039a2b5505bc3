//! What one connection may cost us: sizes, and how often a peer may do what is cheap for it and not for us.

use std::time::Duration;

use super::settings::{DEFAULT_HEADER_TABLE_BYTES, DEFAULT_WINDOW_BYTES};

/// Limits of a connection, from configuration; the defaults are safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Streams that the peer may have open.
    pub streams: u32,
    /// Bytes of one stream's body that may wait in memory.
    pub stream_window_bytes: u32,
    /// Bytes of all bodies of the connection that may wait in memory.
    pub connection_window_bytes: u32,
    /// Bytes of names and values in one header list. Above it a request is answered 431.
    pub header_bytes: usize,
    pub header_fields: usize,
    /// Bytes of the compression table of either direction.
    pub header_table_bytes: u32,
    /// The peer may open streams of other protocols by extended CONNECT (RFC 8441); of servers only.
    pub extended_connect: bool,
    /// Bytes that may wait to be written; while there are more, streams and the peer wait.
    pub output_bytes: usize,
    pub allowances: Allowances,
    pub floods: Floods,
}

/// What a peer may do that costs work and carries nothing, in a burst and over time. The connection ends beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowances {
    pub resets: Resets,
    /// Frames that carry nothing of their own: PING, also as an answer that nobody asked for, SETTINGS and what acknowledges it, PRIORITY,
    /// WINDOW_UPDATE, RST_STREAM of what is over, empty DATA, CONTINUATION (with content, too), unknown types. Of a kind that [`Floods`]
    /// bounds it says nothing, but for SETTINGS that change something and CONTINUATION.
    pub idle_frames: Rate,
}

impl Default for Allowances {
    fn default() -> Self {
        Allowances {
            resets: Resets::default(),
            // gRPC libraries ping and open windows once for every few frames of data; what they do is paid for by that data.
            idle_frames: Rate { burst: 2000, per_second: 200 },
        }
    }
}

/// Streams that the peer may give up prematurely: before we have begun to answer, and soon after it opened them. A client whose patience
/// ends gives up streams that are old, however many; rapid reset (CVE-2023-44487) leaves none time to grow old. As Envoy does, it is
/// looked at whether they are at least half of all streams, too: one that gets most of its answers is no attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resets {
    /// Streams in a burst; see [`Allowance`].
    pub rate: Rate,
    /// How long a stream must be open for its end not to be premature.
    pub lifetime: Duration,
}

impl Default for Resets {
    fn default() -> Self {
        // Envoy's default values. An attacker makes hundreds of thousands a second.
        Resets { rate: Rate { burst: 500, per_second: 100 }, lifetime: Duration::from_secs(1) }
    }
}

/// Bounds that a configuration may set. The connection ends beyond them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floods {
    /// Frames of ours that may wait to be written.
    pub outbound_frames: u32,
    /// Those of them that answer what cost the peer nothing: PING, SETTINGS, RST_STREAM.
    pub outbound_control_frames: u32,
    /// HEADERS, CONTINUATION and DATA without content, and without an end of their stream, that may follow each other.
    pub consecutive_empty_frames: u32,
    /// PRIORITY for each stream that was opened, and for the connection.
    pub priority_frames_per_stream: u32,
    /// WINDOW_UPDATE for each DATA frame that was sent.
    pub window_updates_per_data_frame: u32,
}

impl Default for Floods {
    fn default() -> Self {
        Floods {
            outbound_frames: u32::MAX,
            outbound_control_frames: u32::MAX,
            consecutive_empty_frames: u32::MAX,
            priority_frames_per_stream: u32::MAX,
            window_updates_per_data_frame: u32::MAX,
        }
    }
}

/// A burst, and how fast it may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // Envoy's present default. A sidecar's peer sends all of its requests over one connection.
            streams: 1024,
            stream_window_bytes: 256 * 1024,
            // Fifteen streams that nobody reads do not stop the others, and cannot take more memory than this.
            connection_window_bytes: 4 * 1024 * 1024,
            header_bytes: 60 * 1024,
            header_fields: 100,
            header_table_bytes: DEFAULT_HEADER_TABLE_BYTES,
            extended_connect: false,
            // Some frames of the largest size that we send.
            output_bytes: 256 * 1024,
            allowances: Allowances::default(),
            floods: Floods::default(),
        }
    }
}

impl Limits {
    /// Bytes of a header block, as sent, that are held until its last frame has come. A block is smaller than the list that it stands for unless it is
    /// full of table updates and empty literals.
    pub fn block_bytes(&self) -> usize {
        self.header_bytes.max(16 * 1024) * 2
    }

    /// Whether the connection's window must be opened beyond the standard's default.
    pub fn connection_increment(&self) -> u32 {
        self.connection_window_bytes.saturating_sub(DEFAULT_WINDOW_BYTES)
    }
}

/// How much of something a peer may still do. It fills up with time, and by useful work.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    rate: Rate,
    left: u32,
    filled: Duration,
}

impl Allowance {
    pub fn new(rate: Rate) -> Allowance {
        Allowance { rate, left: rate.burst, filled: Duration::ZERO }
    }

    /// Take one at *now* (since the begin of the connection). False: the peer has had enough.
    #[must_use]
    pub fn spend(&mut self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.filled).as_millis();
        let earned = elapsed * u128::from(self.rate.per_second) / 1000;
        if earned > 0 {
            self.filled = now;
            self.earn(u32::try_from(earned).unwrap_or(u32::MAX));
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// The peer did something useful.
    pub fn earn(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.rate.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_ends_and_fills_up_with_time_and_work() {
        let mut allowance = Allowance::new(Rate { burst: 2, per_second: 10 });
        let at = Duration::from_millis;
        assert!(allowance.spend(at(0)) && allowance.spend(at(0)) && !allowance.spend(at(99)));
        assert!(allowance.spend(at(100)) && !allowance.spend(at(100)));
        allowance.earn(100);
        assert!(allowance.spend(at(100)) && allowance.spend(at(100)) && !allowance.spend(at(100)));
        assert!(allowance.spend(at(100_000)));
    }
}
