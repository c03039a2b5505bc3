//! One stream's state (RFC 9113 5.1), kept while either side may still send on it.
//!
//! ```text
//!            receiving                      sending
//!  Head --> Body --> Ended        Head --> Body --> Ended       both Ended, or a reset: the stream is forgotten
//! ```
//! What the standard calls open is neither side `Ended`, half-closed is one of them.

use std::time::Duration;

use super::flow::{ReceiveWindow, SendWindow};
use super::message::Asked;

/// How far one direction of a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The head (of a response: the final one) is still to come.
    Head,
    Body,
    Ended,
}

#[derive(Debug)]
pub struct Stream {
    pub receiving: Progress,
    pub sending: Progress,
    /// When the peer opened it, since the begin of the connection; zero of streams that we opened.
    pub since: Duration,
    pub send_window: SendWindow,
    pub receive_window: ReceiveWindow,
    /// Body bytes that must still come, if the head said how many.
    pub expected: Option<u64>,
    /// What we asked for.
    pub asked: Asked,
    /// Whether what the peer sends is a tunnel's.
    pub is_tunnel: bool,
    /// Bytes of the peer's window for the whole connection that our body can take up at most, while nobody reads it.
    pub claim: u64,
}

impl Stream {
    pub fn new(send_window: u32, receive_window: u32) -> Stream {
        Stream {
            receiving: Progress::Head,
            sending: Progress::Head,
            since: Duration::ZERO,
            send_window: SendWindow::new(send_window),
            receive_window: ReceiveWindow::new(receive_window),
            expected: None,
            asked: Asked::Content,
            is_tunnel: false,
            claim: 0,
        }
    }

    pub fn is_over(&self) -> bool {
        self.receiving == Progress::Ended && self.sending == Progress::Ended
    }
}

/// Numbers of streams that were forgotten a moment ago: frames that were on their way then are told from those of a broken peer.
#[derive(Debug, Default)]
pub struct Recent {
    numbers: std::collections::VecDeque<u32>,
    /// The highest number that had to give way to later ones.
    dropped: u32,
}

impl Recent {
    /// Most peers have had an answer to their frames before so many streams have come and gone; for the others there is [`Recent::may_have_dropped`].
    const KEPT: usize = 256;

    pub fn note(&mut self, stream: u32) {
        if self.numbers.len() == Self::KEPT {
            self.dropped = self.dropped.max(self.numbers.pop_front().unwrap_or_default());
        }
        self.numbers.push_back(stream);
    }

    pub fn contains(&self, stream: u32) -> bool {
        self.numbers.contains(&stream)
    }

    /// Whether *stream* may have been noted and have had to give way: more streams can be given up in one moment than are kept.
    pub fn may_have_dropped(&self, stream: u32) -> bool {
        stream <= self.dropped
    }
}
