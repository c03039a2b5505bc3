//! Keep-alive PINGs of a connection of HTTP/2, the same on either side.

use tokio::time::Instant;
use weft_core::http2::Http2Keepalive;

use super::{Driver, Session};

/// By which our keep-alive PINGs are told apart from others of ours.
const PAYLOAD: [u8; 8] = *b"alive?\0\0";

/// When to ask whether the peer is there, and when to give it up.
pub struct KeepAlive {
    settings: Option<Http2Keepalive>,
    next: Option<Instant>,
    /// Since when an answer is awaited.
    asked: Option<Instant>,
}

impl KeepAlive {
    /// For a connection that was *opened* then; without *settings* nothing is ever due.
    pub fn new(settings: Option<Http2Keepalive>, opened: Instant) -> KeepAlive {
        KeepAlive { settings, next: settings.map(|settings| opened + settings.interval), asked: None }
    }

    /// When something is due next.
    pub fn deadline(&self, session: &Session) -> Option<Instant> {
        self.patience(session).into_iter().chain(self.next).min()
    }

    /// Whether the peer has been silent for too long.
    pub fn is_over(&self, session: &Session, now: Instant) -> bool {
        self.patience(session).is_some_and(|end| end <= now)
    }

    /// How long a peer that was asked may be silent. Any frame shows that it is there, though its answer waits behind what else it has to
    /// say (Envoy).
    fn patience(&self, session: &Session) -> Option<Instant> {
        Some(self.asked?.max(session.heard()) + self.settings?.timeout)
    }

    /// Ask, if it is time to; false if it is not.
    pub fn ask(&mut self, driver: &mut Driver, now: Instant) -> bool {
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        self.next = self.settings.map(|settings| now + settings.interval);
        if self.asked.is_none() {
            self.asked = Some(now);
            driver.ping(PAYLOAD);
        }
        true
    }

    /// A PING of ours was answered.
    pub fn note_answer(&mut self) {
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::h2::{Limits, Role};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_that_was_asked_may_be_silent_so_long_and_what_else_it_says_counts() {
        let mut driver = Driver::new(Role::Server, Limits::default(), false);
        let session = std::rc::Rc::clone(&driver.session);
        let opened = session.heard();
        let settings = Http2Keepalive { interval: 10 * SECOND, timeout: 3 * SECOND };
        let mut keepalive = KeepAlive::new(Some(settings), opened);
        assert_eq!(keepalive.deadline(&session), Some(opened + 10 * SECOND));
        assert!(!keepalive.ask(&mut driver, opened + 9 * SECOND));
        // Nobody was asked.
        assert!(!keepalive.is_over(&session, opened + 9 * SECOND));
        let asked = opened + 10 * SECOND;
        assert!(keepalive.ask(&mut driver, asked));
        assert_eq!(keepalive.deadline(&session), Some(asked + 3 * SECOND));
        assert!(!keepalive.is_over(&session, asked + 2 * SECOND));
        session.heard.set(asked + 2 * SECOND);
        assert_eq!(keepalive.deadline(&session), Some(asked + 5 * SECOND));
        assert!(!keepalive.is_over(&session, asked + 4 * SECOND));
        assert!(keepalive.is_over(&session, asked + 5 * SECOND));
        keepalive.note_answer();
        assert!(!keepalive.is_over(&session, asked + 5 * SECOND));
        assert_eq!(keepalive.deadline(&session), Some(asked + 10 * SECOND));
    }

    #[test]
    fn without_settings_nothing_is_due() {
        let mut driver = Driver::new(Role::Client, Limits::default(), false);
        let opened = driver.session.heard();
        let mut keepalive = KeepAlive::new(None, opened);
        assert_eq!(keepalive.deadline(&driver.session), None);
        assert!(!keepalive.ask(&mut driver, opened + 1000 * SECOND));
    }
}
