//! The value of `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Requests").

use std::time::Duration;

/// The largest number that eight digits can say.
const MOST: u128 = 99_999_999;

/// Read one; `None` if it is none.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Write one, in milliseconds while they suffice: never as 0, which would be no time at all.
pub fn write(timeout: Duration) -> String {
    match timeout.as_millis().max(1) {
        millis @ ..=MOST => format!("{millis}m"),
        _ => format!("{}S", u128::from(timeout.as_secs()).min(MOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for (timeout, written) in [
            (Duration::ZERO, "1m"),
            (Duration::from_micros(100), "1m"),
            (Duration::from_millis(300), "300m"),
            (Duration::from_secs(60), "60000m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(u64::MAX), "99999999S"),
        ] {
            assert_eq!(write(timeout), written);
            assert!(parse(written.as_bytes()).is_some());
        }
    }

    #[test]
    fn what_is_none_is_not_read() {
        for value in ["", "S", "5", "123456789S", "-1S", "1.5S", "1s", "soon", "1 S"] {
            assert_eq!(parse(value.as_bytes()), None, "{value}");
        }
    }
}
