//! Whether a try that failed is tried again, and when.

use std::fmt;
use std::time::Duration;

use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::retry_policy::retry_host_predicate::ConfigType;

use crate::compile::Context;
use crate::matching::HeaderMatch;
use crate::random::{Draw, Random};

macro_rules! conditions {
    ($($name:ident = $bit:literal, $text:literal;)*) => {
        /// The conditions of `retry_on`, as a set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct RetryOn(u32);

        impl RetryOn {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self(1 << $bit);)*

            const NAMES: &'static [(Self, &'static str)] = &[$((Self::$name, $text),)*];
        }
    };
}

conditions! {
    FIVE_XX = 0, "5xx";
    GATEWAY_ERROR = 1, "gateway-error";
    RESET = 2, "reset";
    RESET_BEFORE_REQUEST = 3, "reset-before-request";
    CONNECT_FAILURE = 4, "connect-failure";
    REFUSED_STREAM = 5, "refused-stream";
    RETRIABLE_STATUS_CODES = 6, "retriable-status-codes";
    RETRIABLE_4XX = 7, "retriable-4xx";
    RETRIABLE_HEADERS = 8, "retriable-headers";
    ENVOY_RATELIMITED = 9, "envoy-ratelimited";
    CANCELLED = 10, "cancelled";
    DEADLINE_EXCEEDED = 11, "deadline-exceeded";
    INTERNAL = 12, "internal";
    RESOURCE_EXHAUSTED = 13, "resource-exhausted";
    UNAVAILABLE = 14, "unavailable";
}

impl RetryOn {
    /// Conditions about the status of gRPC, which have a header of their own.
    pub(crate) const OF_GRPC: Self = Self(
        Self::CANCELLED.0
            | Self::DEADLINE_EXCEEDED.0
            | Self::INTERNAL.0
            | Self::RESOURCE_EXHAUSTED.0
            | Self::UNAVAILABLE.0,
    );

    /// Whether the set has any of `conditions`.
    pub fn has(self, conditions: Self) -> bool {
        self.0 & conditions.0 != 0
    }

    /// Those of either set.
    pub(crate) fn or(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Those that are in both.
    pub(crate) fn and(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// Those that are not in the other.
    pub(crate) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Read Envoy's comma-separated list.
    ///
    /// # Errors
    /// The names that are no condition.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let (set, unknown) = Self::read(text);
        if unknown.is_empty() { Ok(set) } else { Err(unknown) }
    }

    /// The conditions of a list, and the names in it that are none.
    pub(crate) fn read(text: &str) -> (Self, Vec<String>) {
        let mut set = Self::default();
        let mut unknown = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match Self::NAMES.iter().find(|(_, known)| *known == name) {
                Some((condition, _)) => set = set.or(*condition),
                None => unknown.push(name.to_owned()),
            }
        }
        (set, unknown)
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, name) in Self::NAMES.iter().filter(|(condition, _)| self.has(*condition)) {
            write!(out, "{separator}{name}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// A compiled retry policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Under which conditions.
    pub on: RetryOn,
    /// The conditions as they were written, for people.
    pub on_text: Box<str>,
    /// How many tries after the first. Default 1.
    pub retries: u32,
    /// How long one try may take until its response is complete; absent: only the route's timeout counts.
    pub per_try_timeout: Option<Duration>,
    /// Statuses that `retriable-status-codes` means.
    pub status_codes: Box<[u16]>,
    /// Response headers that `retriable-headers` means; any of them.
    pub headers: Box<[HeaderMatch]>,
    /// Base of the jittered exponential back-off. Default 25 ms.
    pub base_interval: Duration,
    /// Its upper bound. Default 10 times the base.
    pub max_interval: Duration,
    /// How often another endpoint is drawn to avoid those tried before. Default 1.
    pub host_selection_attempts: u32,
    /// Avoid endpoints tried before (`envoy.retry_host_predicates.previous_hosts`).
    pub avoid_previous_hosts: bool,
}

/// How one try ended, as far as a retry depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryResult {
    /// No connection (refused, timed out, TLS failed): no byte of the request was taken.
    ConnectFailure,
    /// The pool or the cluster was full. Never retried: that would add to the load.
    Overflow,
    /// The peer refused the stream before it did anything (HTTP/2 REFUSED_STREAM, or GOAWAY below its id).
    RefusedStream,
    /// Connection or stream ended before response headers.
    Reset {
        /// Bytes of this request were handed to the connection.
        request_started: bool,
    },
    /// `per_try_timeout` passed before response headers.
    PerTryTimeout,
    /// Response headers arrived.
    Response {
        /// HTTP status.
        status: u16,
        /// `grpc-status` among the headers: a response of trailers only.
        grpc_status: Option<u32>,
        /// `x-envoy-ratelimited` is present.
        rate_limited: bool,
        /// One of [`RetryPolicy::headers`] matches.
        retriable_header: bool,
    },
}

impl Default for RetryPolicy {
    /// What holds where nothing is said: nothing is tried again.
    fn default() -> Self {
        Self {
            on: RetryOn::default(),
            on_text: Box::default(),
            retries: Self::DEFAULT_RETRIES,
            per_try_timeout: None,
            status_codes: Box::default(),
            headers: Box::default(),
            base_interval: Self::DEFAULT_BASE_INTERVAL,
            max_interval: Self::DEFAULT_BASE_INTERVAL * Self::DEFAULT_MAX_INTERVALS,
            host_selection_attempts: 1,
            avoid_previous_hosts: false,
        }
    }
}

/// How long one try may take, of a request that may take *timeout* and is tried by *policy*.
pub fn timeout_of_a_try(policy: Option<&RetryPolicy>, timeout: Option<Duration>) -> Option<Duration> {
    let own = policy.and_then(|policy| policy.per_try_timeout);
    [own, timeout].into_iter().flatten().min()
}

impl RetryPolicy {
    /// Envoy's base interval.
    pub const DEFAULT_BASE_INTERVAL: Duration = Duration::from_millis(25);
    /// Envoy's upper bound of intervals, in base intervals.
    const DEFAULT_MAX_INTERVALS: u32 = 10;
    /// Envoy's number.
    const DEFAULT_RETRIES: u32 = 1;

    /// Whether the conditions allow another try after `result` (not whether tries are left).
    pub fn allows(&self, result: TryResult) -> bool {
        // Resets count as what they would become: a 5xx, a gateway error.
        const ANY_RESET: RetryOn = RetryOn(RetryOn::FIVE_XX.0 | RetryOn::GATEWAY_ERROR.0 | RetryOn::RESET.0);
        match result {
            TryResult::Overflow => false,
            TryResult::ConnectFailure => {
                self.on.has(ANY_RESET)
                    || self.on.has(RetryOn::CONNECT_FAILURE)
                    || self.on.has(RetryOn::RESET_BEFORE_REQUEST)
            }
            TryResult::RefusedStream => self.on.has(ANY_RESET) || self.on.has(RetryOn::REFUSED_STREAM),
            TryResult::Reset { request_started } => {
                self.on.has(ANY_RESET) || (!request_started && self.on.has(RetryOn::RESET_BEFORE_REQUEST))
            }
            TryResult::PerTryTimeout => self.on.has(ANY_RESET),
            // An upstream that says "rate limited" has answered; trying again needs to be asked for.
            TryResult::Response { rate_limited: true, .. } => self.on.has(RetryOn::ENVOY_RATELIMITED),
            TryResult::Response { status, grpc_status, retriable_header, .. } => {
                (self.on.has(RetryOn::FIVE_XX) && (500..600).contains(&status))
                    || (self.on.has(RetryOn::GATEWAY_ERROR) && matches!(status, 502..=504))
                    || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
                    || (self.on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.status_codes.contains(&status))
                    || (self.on.has(RetryOn::RETRIABLE_HEADERS) && retriable_header)
                    || grpc_status.is_some_and(|status| self.allows_grpc(status))
            }
        }
    }

    /// gRPC status codes: <https://grpc.io/docs/guides/status-codes/>.
    fn allows_grpc(&self, status: u32) -> bool {
        let condition = match status {
            1 => RetryOn::CANCELLED,
            4 => RetryOn::DEADLINE_EXCEEDED,
            8 => RetryOn::RESOURCE_EXHAUSTED,
            13 => RetryOn::INTERNAL,
            14 => RetryOn::UNAVAILABLE,
            _ => return false,
        };
        self.on.has(condition)
    }

    /// How long to wait before retry number `retry` (1 is the first): uniform from 0 to below min(base * (2^retry - 1), max).
    ///
    /// Source: Envoy's documentation of `x-envoy-max-retries`: 0-24 ms, 0-74 ms, 0-174 ms and so on for a base of 25 ms.
    pub fn back_off<D: Random + ?Sized>(&self, retry: u32, random: &mut D) -> Duration {
        let factor = u32::try_from(2u64.saturating_pow(retry) - 1).unwrap_or(u32::MAX);
        random.below_duration(Draw::BackOff, self.base_interval.saturating_mul(factor).min(self.max_interval))
    }

    pub(crate) fn compile(context: &mut Context, policy: &proto::RetryPolicy) -> Self {
        let on = RetryOn::parse(&policy.retry_on).unwrap_or_else(|unknown| {
            context.refuse_at("retry_on", format!("weft-proxy does not know {}", unknown.join(", ")));
            RetryOn::default()
        });
        let mut avoid_previous_hosts = false;
        context.each("retry_host_predicate", &policy.retry_host_predicate, |context, predicate| {
            match &predicate.config_type {
                Some(ConfigType::TypedConfig(any)) if any.type_url.ends_with(".PreviousHostsPredicate") => {
                    avoid_previous_hosts = true;
                }
                _ => context.refuse("only envoy.retry_host_predicates.previous_hosts is supported"),
            }
        });
        let back_off = policy.retry_back_off.as_ref();
        let (base, max) = context.at("retry_back_off", |context| {
            let Some(back_off) = back_off else { return (None, None) };
            let base = context.positive_duration("base_interval", back_off.base_interval.as_ref());
            let max = context.positive_duration("max_interval", back_off.max_interval.as_ref());
            if back_off.base_interval.is_none() {
                context.refuse_at("base_interval", "required");
            }
            if max < base && max.is_some() {
                context.refuse_at("max_interval", "must be at least base_interval");
            }
            (base, max)
        });
        let base_interval = base.unwrap_or(Self::DEFAULT_BASE_INTERVAL);
        Self {
            on,
            on_text: policy.retry_on.as_str().into(),
            retries: policy.num_retries.as_ref().map_or(Self::DEFAULT_RETRIES, |retries| retries.value),
            per_try_timeout: context
                .duration("per_try_timeout", policy.per_try_timeout.as_ref())
                .filter(|timeout| !timeout.is_zero()),
            status_codes: policy.retriable_status_codes.iter().filter_map(|&code| u16::try_from(code).ok()).collect(),
            headers: context
                .each("retriable_headers", &policy.retriable_headers, HeaderMatch::compile)
                .into_iter()
                .flatten()
                .collect(),
            base_interval,
            max_interval: max.unwrap_or(base_interval * Self::DEFAULT_MAX_INTERVALS),
            host_selection_attempts: u32::try_from(policy.host_selection_retry_max_attempts).unwrap_or(0).max(1),
            avoid_previous_hosts,
        }
    }
}
