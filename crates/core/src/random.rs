//! Random values come from the caller: the proxy draws them, `weft why` sets them.

use std::time::Duration;

use weft_protos::envoy::r#type::v3::FractionalPercent;
use weft_protos::envoy::r#type::v3::fractional_percent::DenominatorType;

/// What a random value is for. A live generator ignores it; a question ("what if the fault strikes?") fixes one purpose at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Draw {
    /// Whether a route's `runtime_fraction` lets the request match.
    RouteFraction,
    /// Which of several weighted clusters.
    Weight,
    /// Whether the CORS filter is on.
    Cors,
    /// Whether the fault filter delays.
    FaultDelay,
    /// Whether the fault filter aborts.
    FaultAbort,
    /// Whether a mirror policy copies the request.
    Mirror,
    /// Which endpoint, priority or locality.
    Balance,
    /// How long before the next try.
    BackOff,
    /// Whether an outlier detection enforces.
    Ejection,
    /// How long until the next health check.
    HealthCheck,
}

/// A source of uniformly distributed values.
pub trait Random {
    /// Return a value uniform over all of `u64`.
    fn draw(&mut self, purpose: Draw) -> u64;

    /// Return a value uniform over `0..bound`; 0 if `bound` is 0.
    fn below(&mut self, purpose: Draw, bound: u64) -> u64 {
        // The high half of the product keeps the order of the drawn value: a draw of 0.3 * 2^64 lands at 0.3 * bound.
        ((u128::from(self.draw(purpose)) * u128::from(bound)) >> 64) as u64
    }

    /// Return a duration uniform over `0..bound`.
    fn below_duration(&mut self, purpose: Draw, bound: Duration) -> Duration {
        Duration::from_nanos(self.below(purpose, u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl<R: Random + ?Sized> Random for &mut R {
    fn draw(&mut self, purpose: Draw) -> u64 {
        (**self).draw(purpose)
    }
}

/// A small, fast generator (splitmix64) for one worker. Not for secrets.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// Start from a seed; each worker needs its own.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random for SplitMix {
    fn draw(&mut self, _: Draw) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A share of requests: `numerator` of every `denominator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// How many strike.
    pub numerator: u32,
    /// Of how many; 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALWAYS: Self = Self { numerator: 100, denominator: 100 };

    /// No request.
    pub const NEVER: Self = Self { numerator: 0, denominator: 100 };

    /// Whether this request is one of the share.
    pub fn strikes<R: Random + ?Sized>(self, purpose: Draw, random: &mut R) -> bool {
        // A share of all or nothing needs no draw.
        if self.numerator == 0 {
            return false;
        }
        self.numerator >= self.denominator
            || random.below(purpose, u64::from(self.denominator)) < u64::from(self.numerator)
    }

    pub(crate) fn compile(share: &FractionalPercent) -> Self {
        let denominator = match share.denominator() {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Self { numerator: share.numerator, denominator }
    }

    /// The share as percent, at most 100.
    pub fn percent(self) -> f64 {
        (f64::from(self.numerator) * 100.0 / f64::from(self.denominator)).min(100.0)
    }
}
