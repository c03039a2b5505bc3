//! Flow control (RFC 9113 5.2, 6.9): how much may be sent, and how much the peer may send.

/// Largest window.
pub const MOST_WINDOW: i64 = (1 << 31) - 1;

/// What may still be sent. Negative after the peer has made its windows smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow(i64);

impl SendWindow {
    pub fn new(bytes: u32) -> SendWindow {
        SendWindow(bytes.into())
    }

    /// Bytes that may be sent now.
    pub fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    pub fn take(&mut self, bytes: usize) {
        self.0 -= bytes as i64;
    }

    /// Open by *bytes*, which is negative where a setting shrank. False: the window would be larger than is allowed.
    #[must_use]
    pub fn widen(&mut self, bytes: i64) -> bool {
        self.0 += bytes;
        self.0 <= MOST_WINDOW
    }
}

/// What the peer may send. It opens as data is used up, so that what waits in memory never exceeds the window.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveWindow {
    /// What the peer may still send.
    left: i64,
    /// Used up and not yet told to the peer.
    used: u32,
}

impl ReceiveWindow {
    pub fn new(size: u32) -> ReceiveWindow {
        ReceiveWindow { left: size.into(), used: 0 }
    }

    /// Note that *bytes* have come. False: more than was allowed.
    #[must_use]
    pub fn receive(&mut self, bytes: usize) -> bool {
        self.left -= bytes as i64;
        self.left >= 0
    }

    /// Note that *bytes* were used up. Returns the increment to tell the peer, once it is worth a frame: when the peer has no more left
    /// than that. Measured by what is left and not by the window's size, because what others hold of it unread may leave less than any
    /// part of its size: then the peer would wait for us, and we for it.
    pub fn release(&mut self, bytes: usize) -> Option<u32> {
        self.used += bytes as u32;
        if i64::from(self.used) < self.left || self.used == 0 {
            return None;
        }
        self.left += i64::from(self.used);
        Some(std::mem::take(&mut self.used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shrunk_window_is_negative_until_it_is_opened() {
        let mut window = SendWindow::new(100);
        window.take(80);
        assert!(window.widen(-50));
        assert_eq!(window.available(), 0);
        assert!(window.widen(40));
        assert_eq!(window.available(), 10);
        assert!(!window.widen(MOST_WINDOW));
    }

    #[test]
    fn a_peer_gets_back_what_was_used_in_few_frames() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.receive(50));
        assert_eq!(window.release(49), None);
        assert_eq!(window.release(1), Some(50));
        assert!(window.receive(100));
        assert!(!window.receive(1));
    }

    #[test]
    fn what_is_held_unread_does_not_keep_back_what_was_used() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.receive(90));
        // 80 of these stay unread.
        assert_eq!(window.release(9), None);
        assert_eq!(window.release(1), Some(10));
        for _ in 0..3 {
            assert!(window.receive(20));
            assert_eq!(window.release(20), Some(20), "nothing is left to the peer");
        }
    }
}
