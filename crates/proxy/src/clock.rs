//! The time of day for records and the `date` header, from the monotonic clock and one look at the wall clock a second.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use weft_core::time_format::{Civil, DAYS, MONTHS};

/// One worker's clock.
pub struct Clock {
    base: Cell<(Instant, Duration)>,
    second: RefCell<Second>,
}

/// Texts of one second.
struct Second {
    /// Seconds since 1970.
    number: u64,
    /// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 5.6.7)
    date: [u8; 29],
    /// `1994-11-06T08:49:37`
    stamp: [u8; 19],
}

impl Clock {
    pub fn new() -> Clock {
        let second = Second { number: u64::MAX, date: [0; 29], stamp: [0; 19] };
        Clock { base: Cell::new((Instant::now(), since_epoch())), second: RefCell::new(second) }
    }

    /// The time since 1970 at *now*.
    pub fn wall(&self, now: Instant) -> Duration {
        let (mut base, mut wall) = self.base.get();
        if now.saturating_duration_since(base) >= Duration::from_secs(1) {
            // The wall clock may be set at any time; records follow within a second.
            (base, wall) = (Instant::now(), since_epoch());
            self.base.set((base, wall));
        }
        // A long request began before the last look.
        if now >= base { wall + (now - base) } else { wall.saturating_sub(base - now) }
    }

    /// The `date` of *now*.
    pub fn date(&self, now: Instant) -> [u8; 29] {
        let mut second = self.second.borrow_mut();
        second.become_number(self.wall(now).as_secs());
        second.date
    }

    /// Append *wall* as RFC 3339 with milliseconds.
    pub fn write_stamp(&self, wall: Duration, out: &mut Vec<u8>) {
        let mut second = self.second.borrow_mut();
        second.become_number(wall.as_secs());
        out.extend_from_slice(&second.stamp);
        let millis = wall.subsec_millis();
        out.push(b'.');
        out.extend_from_slice(&digits3(millis));
        out.push(b'Z');
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

/// Time since the process first asked; the same clock for all threads (outlier detection).
pub fn monotonic() -> Duration {
    static BASE: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BASE.get_or_init(std::time::Instant::now).elapsed()
}

pub fn since_epoch() -> Duration {
    // Before 1970 there were no proxies.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Second {
    fn become_number(&mut self, number: u64) {
        if self.number == number {
            return;
        }
        self.number = number;
        let civil = Civil::of(number);
        let date = format!(
            "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
            DAYS[civil.weekday],
            civil.day,
            MONTHS[civil.month as usize - 1],
            civil.year,
            civil.hour,
            civil.minute,
            civil.second
        );
        self.date.copy_from_slice(&date.as_bytes()[..29]);
        let stamp = civil.to_string();
        self.stamp.copy_from_slice(&stamp.as_bytes()[..19]);
    }
}

fn digits3(value: u32) -> [u8; 3] {
    let digit = |part: u32| b'0' + (part % 10) as u8;
    [digit(value / 100), digit(value / 10), digit(value)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_stamped_by_the_wall_clock() {
        // What began before the last look at the clock is told apart from now.
        let clock = Clock::new();
        let began = Instant::now() - Duration::from_secs(5);
        let ago = clock.wall(Instant::now()) - clock.wall(began);
        assert!(ago >= Duration::from_secs(5) && ago < Duration::from_secs(60), "{ago:?}");
        let mut out = Vec::new();
        clock.write_stamp(Duration::from_millis(784_111_777_042), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "1994-11-06T08:49:37.042Z");
        let second = &mut *clock.second.borrow_mut();
        assert_eq!(&second.date, b"Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
