//! `/cpuprofiler`, `/heapprofiler` and `/heap_dump`: profiles that `go tool pprof`, speedscope and others read.

use std::time::Duration;

use super::answer::{Answer, BYTES};
use super::question::Query;
use super::{Admin, Parameter, Response};
use crate::profile::cpu::{self, CpuError};
use crate::profile::heap::{self, HeapError};

pub const CPU_PARAMETERS: [Parameter; 2] =
    [("frequency", "samples for each second of CPU time, 1 to 1000 (99)"), ("seconds", "how long, 1 to 600 (10)")];
pub const HEAP_PARAMETERS: [Parameter; 2] =
    [("enable", "y or n"), ("interval", "bytes between two samples, on average (524288)")];

/// Not a divisor of what happens at round times.
const DEFAULT_FREQUENCY: u32 = 99;
const DEFAULT_SECONDS: u32 = 10;

pub async fn cpu(query: Query) -> Response {
    let seconds = number(&query, "seconds", DEFAULT_SECONDS, 1..=600)?;
    let frequency = number(&query, "frequency", DEFAULT_FREQUENCY, 1..=1000)?;
    match cpu::take(Duration::from_secs(seconds.into()), frequency).await {
        Ok(profile) => compressed(&profile.encode_compressed()),
        Err(error @ CpuError::Busy) => Err(Answer::text(409, format!("{error}\n"))),
        Err(error @ CpuError::Timer(_)) => Err(Answer::text(503, format!("{error}\n"))),
    }
}

pub fn heap(_: &Admin, query: &Query) -> Response {
    let interval = number(query, "interval", heap::DEFAULT_INTERVAL as u32, 1..=1 << 30)?;
    let result = match query.value("enable")? {
        Some("y") => {
            heap::begin(interval.into()).map(|()| "the heap profiler is on; GET /heap_dump shows what it sees\n")
        }
        Some("n") => heap::end().map(|()| "the heap profiler is off\n"),
        _ => return Err(Answer::text(400, "?enable=<y|n>\n")),
    };
    result.map(|text| Answer::text(200, text)).map_err(|error| Answer::text(409, format!("{error}\n")))
}

pub fn heap_dump(_: &Admin, _: &Query) -> Response {
    match heap::dump() {
        Ok(profile) => compressed(&profile.encode_compressed()),
        Err(error @ (HeapError::Off | HeapError::On)) => {
            Err(Answer::text(409, format!("{error}: POST /heapprofiler?enable=y\n")))
        }
    }
}

fn compressed(content: &std::io::Result<Vec<u8>>) -> Response {
    match content {
        Ok(content) => Ok(Answer::new(BYTES, content.as_slice())),
        Err(error) => Err(Answer::text(503, format!("the profile cannot be written: {error}\n"))),
    }
}

fn number(query: &Query, name: &str, otherwise: u32, range: std::ops::RangeInclusive<u32>) -> Result<u32, Answer> {
    let Some(text) = query.value(name)? else { return Ok(otherwise) };
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        Answer::refusal(format!("{name}={text}: a number from {} to {} is needed", range.start(), range.end()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_limits_and_defaults() {
        let ask = |query: &str| number(&Query::parse(query).unwrap(), "seconds", 10, 1..=600).map_err(|it| it.status);
        assert_eq!([ask(""), ask("seconds=3")], [Ok(10), Ok(3)]);
        for query in ["seconds=0", "seconds=601", "seconds=1s", "seconds="] {
            assert_eq!(ask(query), Err(400), "{query}");
        }
    }
}
