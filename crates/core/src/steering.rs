//! What a client asks of the proxy for its own request, in headers of `x-envoy-*`: when it is tried again, and how long it may take.
//!
//! Whoever says how often a request is tried again says how much load it is. So whose word counts is decided before anybody comes here,
//! by the connection manager's rules of which requests are internal, and the headers are gone from the request when it is routed.
//!
//! Source: Envoy's documentation of the router, "HTTP headers (consumed from downstreams)". Of those, hedging, another status at a
//! timeout and a second name in statistics are not here: weft-proxy has none of them.

use std::time::Duration;

use crate::matching::{HeaderCondition, HeaderMatch};
use crate::request::RequestHead;
use crate::retry::{RetryOn, RetryPolicy};

/// What is longer is as good as no limit, and as bad: it keeps clear of what timers cannot count.
const MOST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// What one request asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steering {
    /// `x-envoy-retry-on` and `x-envoy-retry-grpc-on`: in addition to the route's.
    on: RetryOn,
    /// `x-envoy-max-retries`: instead of the route's.
    retries: Option<u32>,
    /// `x-envoy-upstream-rq-timeout-ms`: instead of the route's; `Some(None)`: no limit.
    timeout: Option<Option<Duration>>,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`, likewise.
    per_try_timeout: Option<Option<Duration>>,
    /// `x-envoy-retriable-status-codes`: in addition to the route's.
    status_codes: Vec<u16>,
    /// `x-envoy-retriable-header-names`, lower-case: in addition to the route's.
    headers: Vec<Box<str>>,
}

impl Steering {
    /// Read the headers of a request. What is malformed is not asked for; `None`: nothing is.
    pub fn read<R: RequestHead + ?Sized>(request: &R) -> Option<Self> {
        let on = conditions(request, "x-envoy-retry-on").without(RetryOn::OF_GRPC);
        let on_grpc = conditions(request, "x-envoy-retry-grpc-on").and(RetryOn::OF_GRPC);
        let retries = number(request, "x-envoy-max-retries");
        let steering = Self {
            on: on.or(on_grpc),
            retries: retries.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
            timeout: number(request, "x-envoy-upstream-rq-timeout-ms").map(limit),
            per_try_timeout: number(request, "x-envoy-upstream-rq-per-try-timeout-ms").map(limit),
            status_codes: list(request, "x-envoy-retriable-status-codes", |code| code.parse().ok()),
            headers: list(request, "x-envoy-retriable-header-names", |name| Some(name.to_ascii_lowercase().into())),
        };
        (steering != Self::default()).then_some(steering)
    }

    /// How long the whole request may take, for which its route says *own*.
    pub fn timeout(&self, own: Option<Duration>) -> Option<Duration> {
        self.timeout.unwrap_or(own)
    }

    /// How it is tried, by what its route says and what is asked; *timeout* is that of the whole request. `None`: once, without a limit
    /// of its own.
    pub fn policy(&self, own: Option<&RetryPolicy>, timeout: Option<Duration>) -> Option<RetryPolicy> {
        if own.is_none() && self.on == RetryOn::default() && self.per_try_timeout.is_none() {
            return None;
        }
        let mut policy = own.cloned().unwrap_or_default();
        policy.on = policy.on.or(self.on);
        policy.retries = self.retries.unwrap_or(policy.retries);
        policy.per_try_timeout = self.per_try_timeout.unwrap_or(policy.per_try_timeout);
        // A try that may take as long as the request has no limit of its own, as in Envoy.
        policy.per_try_timeout = policy.per_try_timeout.filter(|own| timeout.is_none_or(|timeout| *own < timeout));
        policy.status_codes = policy.status_codes.iter().chain(&self.status_codes).copied().collect();
        let named = self.headers.iter().map(|name| HeaderMatch {
            name: name.clone(),
            condition: HeaderCondition::Present(true),
            invert: false,
            missing_is_empty: false,
        });
        policy.headers = policy.headers.into_iter().chain(named).collect();
        Some(policy)
    }
}

fn conditions<R: RequestHead + ?Sized>(request: &R, name: &str) -> RetryOn {
    let value = request.header(name);
    value.and_then(|value| std::str::from_utf8(&value).map(|text| RetryOn::read(text).0).ok()).unwrap_or_default()
}

fn number<R: RequestHead + ?Sized>(request: &R, name: &str) -> Option<u64> {
    std::str::from_utf8(&request.header(name)?).ok()?.trim().parse().ok()
}

/// Of milliseconds; 0 is none.
fn limit(milliseconds: u64) -> Option<Duration> {
    (milliseconds != 0).then(|| Duration::from_millis(milliseconds).min(MOST_TIME))
}

/// What *read* makes of each member of a comma-separated list.
fn list<R: RequestHead + ?Sized, T>(request: &R, name: &str, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let value = request.header(name).unwrap_or_default();
    let text = std::str::from_utf8(&value).unwrap_or_default();
    text.split(',').map(str::trim).filter(|member| !member.is_empty()).filter_map(read).collect()
}
