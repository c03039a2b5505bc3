//! Points in time as text: the calendar of UTC, and formats in strftime's manner (`%START_TIME(%Y-%m-%d)%`).

use std::fmt::{self, Write as _};
use std::time::Duration;

/// Of `%a`, by the number of the day; `%A` adds what is missing.
pub const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
/// Of `%b`, from January.
pub const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const WHOLE_DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const WHOLE_MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub const DAY_SECONDS: u64 = 86_400;

/// A point in time of UTC's calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: u64,
    /// 1 to 12
    pub month: u64,
    /// 1 to 31
    pub day: u64,
    /// 0 to 365
    pub day_of_year: u64,
    pub hour: u64,
    pub minute: u64,
    pub second: u64,
    /// From Sunday.
    pub weekday: usize,
}

impl Civil {
    /// From seconds since 1970, by Howard Hinnant's `civil_from_days`.
    pub fn of(seconds: u64) -> Self {
        let days = seconds / DAY_SECONDS;
        let rest = seconds % DAY_SECONDS;
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        Self {
            year,
            month,
            day: from_march - (153 * month_from_march + 2) / 5 + 1,
            // January and February end the year that begins in March.
            day_of_year: if month <= 2 { from_march - 306 } else { from_march + 59 + u64::from(is_leap) },
            hour: rest / 3_600,
            minute: rest / 60 % 60,
            second: rest % 60,
            weekday: ((days + 4) % 7) as usize,
        }
    }
}

/// `2026-12-31T23:59:59`
impl fmt::Display for Civil {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second, .. } = self;
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

/// Read a moment that is written `20261231235959Z`, as in certificates (RFC 5280 4.1.2.5.2); nothing if it is none, or before 1970.
pub fn read_compact(text: &str) -> Option<Duration> {
    let digits =
        text.strip_suffix('Z').filter(|digits| digits.len() == 14 && digits.bytes().all(|it| it.is_ascii_digit()))?;
    let part = |range: std::ops::Range<usize>| digits[range].parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(4..6).filter(|month| (1..=12).contains(month))?, part(6..8)?);
    let (hour, minute, second) = (part(8..10)?, part(10..12)?, part(12..14)?);
    // By Howard Hinnant's `days_from_civil`: years begin in March, so that the day that comes and goes is their last.
    let from_march = (month + 9) % 12;
    let year = year.checked_sub(u64::from(month <= 2))?;
    let day_of_year = (153 * from_march + 2) / 5 + day.checked_sub(1)?;
    let days = (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)?;
    Some(Duration::from_secs(days * DAY_SECONDS + hour * 3_600 + minute * 60 + second))
}

/// A format that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeFormat(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// So many digits of the fraction of a second, which are cut and not rounded.
    Fraction(u8),
    Field(Field),
}

/// What is written of a point in time; what is made of others is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Year,
    Century,
    YearOfCentury,
    Month,
    ShortMonth,
    WholeMonth,
    Day,
    PaddedDay,
    DayOfYear,
    ShortDay,
    WholeDay,
    /// From Sunday, 0.
    DayOfWeek,
    /// From Monday, 1.
    IsoDayOfWeek,
    Hour,
    PaddedHour,
    HourOfHalf,
    PaddedHourOfHalf,
    /// `AM`
    Half,
    /// `am`
    SmallHalf,
    Minute,
    Second,
    SecondsSince1970,
}

impl TimeFormat {
    /// Read a format: strftime's conversions as they are in the C locale and in UTC, `%f` and `%1f` to `%9f` for fractions of a second, and
    /// `%s` for seconds since 1970. Not those of weeks and those of Abseil (`%E3S`).
    ///
    /// # Errors
    /// A conversion that is none of these.
    pub fn parse(format: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        read(format, format, &mut pieces)?;
        Ok(Self(pieces.into()))
    }

    /// Append *wall*, the time since 1970.
    pub fn write(&self, wall: Duration, out: &mut Vec<u8>) {
        let civil = Civil::of(wall.as_secs());
        let mut text = String::new();
        for piece in &self.0 {
            // Nothing goes wrong in writing to a string.
            let _ = match piece {
                Piece::Text(literal) => text.write_str(literal),
                Piece::Fraction(digits) => {
                    let all = format!("{:09}", wall.subsec_nanos());
                    text.write_str(&all[..usize::from(*digits)])
                }
                Piece::Field(field) => field.write(&civil, wall, &mut text),
            };
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// Read *format*, which is or stands for a part of *whole*.
fn read(format: &str, whole: &str, pieces: &mut Vec<Piece>) -> Result<(), String> {
    let mut literal = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            literal.push(character);
            continue;
        }
        let field = match rest.next() {
            Some('%') => {
                literal.push('%');
                continue;
            }
            Some('t') => {
                literal.push('\t');
                continue;
            }
            Some('Z') => {
                literal.push_str("UTC");
                continue;
            }
            Some('z') => {
                literal.push_str("+0000");
                continue;
            }
            Some(conversion) => conversion,
            None => return Err(format!("`%` without a conversion at the end of the time format `{whole}`")),
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
        }
        let made_of = match field {
            'f' => {
                pieces.push(Piece::Fraction(9));
                continue;
            }
            '1'..='9' if rest.as_str().starts_with('f') => {
                rest.next();
                pieces.push(Piece::Fraction(field as u8 - b'0'));
                continue;
            }
            'c' => "%a %b %e %H:%M:%S %Y",
            'D' | 'x' => "%m/%d/%y",
            'F' => "%Y-%m-%d",
            'r' => "%I:%M:%S %p",
            'R' => "%H:%M",
            'T' | 'X' => "%H:%M:%S",
            _ => {
                let field = Field::of(field).ok_or_else(|| {
                    format!("weft-proxy knows no conversion `%{field}` of times, which is in the format `{whole}`")
                })?;
                pieces.push(Piece::Field(field));
                continue;
            }
        };
        read(made_of, whole, pieces)?;
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal.into()));
    }
    Ok(())
}

impl Field {
    fn of(conversion: char) -> Option<Self> {
        Some(match conversion {
            'Y' => Self::Year,
            'C' => Self::Century,
            'y' => Self::YearOfCentury,
            'm' => Self::Month,
            'b' | 'h' => Self::ShortMonth,
            'B' => Self::WholeMonth,
            'd' => Self::Day,
            'e' => Self::PaddedDay,
            'j' => Self::DayOfYear,
            'a' => Self::ShortDay,
            'A' => Self::WholeDay,
            'w' => Self::DayOfWeek,
            'u' => Self::IsoDayOfWeek,
            'H' => Self::Hour,
            'k' => Self::PaddedHour,
            'I' => Self::HourOfHalf,
            'l' => Self::PaddedHourOfHalf,
            'p' => Self::Half,
            'P' => Self::SmallHalf,
            'M' => Self::Minute,
            'S' => Self::Second,
            's' => Self::SecondsSince1970,
            _ => return None,
        })
    }

    fn write(self, civil: &Civil, wall: Duration, out: &mut String) -> fmt::Result {
        let hour_of_half = (civil.hour + 11) % 12 + 1;
        let month = civil.month as usize - 1;
        let is_morning = civil.hour < 12;
        match self {
            Self::Year => write!(out, "{:04}", civil.year),
            Self::Century => write!(out, "{:02}", civil.year / 100),
            Self::YearOfCentury => write!(out, "{:02}", civil.year % 100),
            Self::Month => write!(out, "{:02}", civil.month),
            Self::ShortMonth => out.write_str(MONTHS[month]),
            Self::WholeMonth => out.write_str(WHOLE_MONTHS[month]),
            Self::Day => write!(out, "{:02}", civil.day),
            Self::PaddedDay => write!(out, "{:2}", civil.day),
            Self::DayOfYear => write!(out, "{:03}", civil.day_of_year + 1),
            Self::ShortDay => out.write_str(DAYS[civil.weekday]),
            Self::WholeDay => out.write_str(WHOLE_DAYS[civil.weekday]),
            Self::DayOfWeek => write!(out, "{}", civil.weekday),
            Self::IsoDayOfWeek => write!(out, "{}", (civil.weekday + 6) % 7 + 1),
            Self::Hour => write!(out, "{:02}", civil.hour),
            Self::PaddedHour => write!(out, "{:2}", civil.hour),
            Self::HourOfHalf => write!(out, "{hour_of_half:02}"),
            Self::PaddedHourOfHalf => write!(out, "{hour_of_half:2}"),
            Self::Half => out.write_str(if is_morning { "AM" } else { "PM" }),
            Self::SmallHalf => out.write_str(if is_morning { "am" } else { "pm" }),
            Self::Minute => write!(out, "{:02}", civil.minute),
            Self::Second => write!(out, "{:02}", civil.second),
            Self::SecondsSince1970 => write!(out, "{}", wall.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_moments_are_read() {
        for (seconds, text) in [
            (0, "19700101000000Z"),
            (784_111_777, "19941106084937Z"),
            (951_782_400, "20000229000000Z"),
            (4_107_542_399, "21000228235959Z"),
        ] {
            assert_eq!(read_compact(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "20261231235959", "20261331235959Z", "19691231235959Z", "2026123123595xZ", "00000000000000Z"] {
            assert_eq!(read_compact(text), None, "{text}");
        }
    }

    fn written(seconds: u64, nanos: u32, format: &str) -> String {
        let mut out = Vec::new();
        TimeFormat::parse(format).expect("a format").write(Duration::new(seconds, nanos), &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn known_points_in_time_have_their_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00 001"),
            (784_111_777, "1994-11-06T08:49:37 310"),
            (951_782_400, "2000-02-29T00:00:00 060"),
            (978_220_800, "2000-12-31T00:00:00 366"),
            (4_107_542_399, "2100-02-28T23:59:59 059"),
            (4_107_542_400, "2100-03-01T00:00:00 060"),
        ] {
            assert_eq!(written(seconds, 0, "%FT%T %j"), text);
        }
    }

    /// As GNU's strftime writes them, which Envoy calls.
    #[test]
    fn conversions_are_strftimes() {
        for (format, text) in [
            ("%Y %C %y %m %b %h %B", "1994 19 94 11 Nov Nov November"),
            ("%d|%e %j %a %A %w %u", "06| 6 310 Sun Sunday 0 7"),
            ("%H|%k %I|%l %p %P", "08| 8 08| 8 AM am"),
            ("%M:%S %s", "49:37 784111777"),
            ("%c", "Sun Nov  6 08:49:37 1994"),
            ("%D %x %F", "11/06/94 11/06/94 1994-11-06"),
            ("%R %T %X %r", "08:49 08:49:37 08:49:37 08:49:37 AM"),
            ("%Z %z%t%%", "UTC +0000\t%"),
            ("%f %1f %3f %6f %9f", "023456789 0 023 023456 023456789"),
            ("no conversion: f 3f", "no conversion: f 3f"),
        ] {
            assert_eq!(written(784_111_777, 23_456_789, format), text, "{format}");
        }
        // Midnight, noon and the last hour, by the half of a day.
        for (hour, text) in [(0, "12 AM"), (12, "12 PM"), (23, "11 PM")] {
            assert_eq!(written(hour * 3600, 0, "%I %p"), text);
        }
    }

    #[test]
    fn what_is_no_conversion_is_refused() {
        for (format, conversion) in
            [("%Q", "%Q"), ("%0f", "%0"), ("%10f", "%1"), ("%E3S", "%E"), ("%V", "%V"), ("%n", "%n"), ("%Y%é", "%é")]
        {
            let expected =
                format!("weft-proxy knows no conversion `{conversion}` of times, which is in the format `{format}`");
            assert_eq!(TimeFormat::parse(format), Err(expected));
        }
        let expected = "`%` without a conversion at the end of the time format `%Y%`";
        assert_eq!(TimeFormat::parse("%Y%"), Err(expected.to_owned()));
    }
}
