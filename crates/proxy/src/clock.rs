//! The time of day for records and the `date` header, from the monotonic clock and one look at the wall clock a second.

use std::cell::{Cell, RefCell};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

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
        let stamp = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year, civil.month, civil.day, civil.hour, civil.minute, civil.second
        );
        self.stamp.copy_from_slice(&stamp.as_bytes()[..19]);
    }
}

const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A point in time of UTC's calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    weekday: usize,
}

impl Civil {
    /// From seconds since 1970, by Howard Hinnant's `civil_from_days`.
    fn of(seconds: u64) -> Civil {
        let days = seconds / 86_400;
        let rest = seconds % 86_400;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Civil {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: rest / 3_600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: ((days + 4) % 7) as usize,
        }
    }
}

/// Append *wall* by a `strftime` format, with Envoy's `%3f`, `%6f`, `%9f` and `%f` for fractions and `%s` for seconds since 1970.
/// Conversions that are not known stand as they are.
pub fn write_formatted(wall: Duration, format: &str, out: &mut Vec<u8>) {
    let civil = Civil::of(wall.as_secs());
    let mut rest = format.chars().peekable();
    while let Some(character) = rest.next() {
        if character != '%' {
            let mut bytes = [0; 4];
            out.extend_from_slice(character.encode_utf8(&mut bytes).as_bytes());
            continue;
        }
        let text = match rest.next() {
            Some('Y') => format!("{:04}", civil.year),
            Some('m') => format!("{:02}", civil.month),
            Some('d') => format!("{:02}", civil.day),
            Some('H') => format!("{:02}", civil.hour),
            Some('M') => format!("{:02}", civil.minute),
            Some('S') => format!("{:02}", civil.second),
            Some('T') => format!("{:02}:{:02}:{:02}", civil.hour, civil.minute, civil.second),
            Some('F') => format!("{:04}-{:02}-{:02}", civil.year, civil.month, civil.day),
            Some('a') => DAYS[civil.weekday].into(),
            Some('b') => MONTHS[civil.month as usize - 1].into(),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('s') => wall.as_secs().to_string(),
            Some('f') => format!("{:09}", wall.subsec_nanos()),
            Some(width @ ('3' | '6' | '9')) if rest.peek() == Some(&'f') => {
                rest.next();
                let all = format!("{:09}", wall.subsec_nanos());
                all[..width as usize - '0' as usize].to_owned()
            }
            Some('%') => "%".into(),
            Some(other) => format!("%{other}"),
            None => "%".into(),
        };
        out.extend_from_slice(text.as_bytes());
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
    fn known_points_in_time_have_their_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (784_111_777, "1994-11-06T08:49:37"),
            (951_782_400, "2000-02-29T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
        ] {
            let mut out = Vec::new();
            write_formatted(Duration::from_secs(seconds), "%FT%T", &mut out);
            assert_eq!(String::from_utf8_lossy(&out), text);
        }
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

    #[test]
    fn fractions_and_unknown_conversions() {
        let mut out = Vec::new();
        write_formatted(Duration::new(1, 23_456_789), "%s.%3f %6f %Q%%", &mut out);
        assert_eq!(String::from_utf8_lossy(&out), "1.023 023456 %Q%");
    }
}
