//! Active health checks: what is asked of endpoints and how often, and what answers make of their state. No I/O, no clock.
//!
//! ```text
//! unchecked --(first check passes)--------------------------> passing
//! unchecked --(first check fails)---------------------------> failing
//! failing   --(healthy_threshold checks in a row pass)------> passing
//! passing   --(unhealthy_threshold in a row find nobody, or a retriable status)--> failing
//! passing   --(one answer says no; an answer to a request says so)---------------> failing
//! ```
//!
//! Unchecked endpoints are not chosen, as failing ones are not. The proxy's main thread checks, by a [`Session`] for each endpoint;
//! what comes of it is an [`ActiveHealth`], which workers see through their tables ([`crate::balance`]).
//!
//! Source: Envoy's documentation of health checking, and where that leaves a choice (which interval follows which answer), what Envoy does.

use std::time::Duration;

use weft_protos::envoy::config::core::v3 as proto;

use crate::endpoint::Labels;
use crate::header_edit::HeaderEdits;
use crate::matching::StringMatch;
use crate::random::{Draw, Random};

mod compile;
mod session;

pub use session::{ActiveHealth, Noted, Session, Transition, Verdict};

/// A compiled `HealthCheck`.
#[derive(Debug)]
pub struct HealthCheck {
    /// For one check, from connecting to the last byte that is waited for.
    pub timeout: Duration,
    /// What is asked.
    pub probe: Probe,
    /// The next check uses the connection of the last. Default true.
    pub reuses_connection: bool,
    /// Instead of what the cluster's transport socket offers by ALPN.
    pub alpn: Option<Box<[Box<[u8]>]>>,
    /// Choose among the cluster's transport socket matches, instead of the endpoint's own labels.
    pub transport_labels: Option<Labels>,
    /// Each failure is told, not only changes of state.
    pub logs_failures: bool,
    /// Each success is told.
    pub logs_successes: bool,
    intervals: Intervals,
    initial_jitter: Duration,
    interval_jitter: Duration,
    interval_jitter_percent: u32,
    unhealthy_threshold: u32,
    healthy_threshold: u32,
    /// As configured, to see whether another version asks the same.
    source: proto::HealthCheck,
}

/// From the end of one check to the beginning of the next.
#[derive(Debug, Clone, Copy)]
struct Intervals {
    usual: Duration,
    /// After a failure.
    unhealthy: Duration,
    /// After a failure that is not enough yet.
    unhealthy_edge: Duration,
    /// After a success that is not enough yet.
    healthy_edge: Duration,
    /// While nothing has been sent to the cluster yet; of endpoints that pass, and of others.
    no_traffic_healthy: Duration,
    no_traffic: Duration,
}

/// What one check asks.
#[derive(Debug)]
pub enum Probe {
    /// A request of HTTP.
    Http(HttpProbe),
    /// A connection, and bytes over it.
    Tcp(Exchange),
    /// `grpc.health.v1.Health/Check`
    Grpc(GrpcProbe),
}

impl Probe {
    /// `HTTP`, as Envoy's event log names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http(_) => "HTTP",
            Self::Tcp(_) => "TCP",
            Self::Grpc(_) => "GRPC",
        }
    }
}

/// A request, and which answers are good.
#[derive(Debug)]
pub struct HttpProbe {
    /// `GET`
    pub method: Box<str>,
    /// Path and query.
    pub path: Box<str>,
    /// Empty: the cluster's name.
    pub host: Box<str>,
    /// Over HTTP/2, without asking.
    pub http2: bool,
    /// Headers to add and remove; values are plain text.
    pub headers: HeaderEdits,
    /// The body, and what has to be in the answer's.
    pub exchange: Exchange,
    /// How much of the answer's body is looked at.
    pub buffer_bytes: usize,
    expected: Box<[Statuses]>,
    retriable: Box<[Statuses]>,
    service: Option<StringMatch>,
}

/// From, to: the end is not among them.
type Statuses = (u16, u16);

/// Bytes to send, and what has to come.
#[derive(Debug, Default)]
pub struct Exchange {
    /// May be empty.
    pub send: Box<[u8]>,
    /// Each has to be there, behind the one before; anything may lie between.
    pub receive: Box<[Box<[u8]>]>,
}

/// A call of `Check`.
#[derive(Debug)]
pub struct GrpcProbe {
    /// Empty: the server as a whole.
    pub service: Box<str>,
    /// Empty: the cluster's name.
    pub authority: Box<str>,
    /// Metadata to add; values are plain text.
    pub metadata: HeaderEdits,
}

impl Exchange {
    /// Whether *bytes* hold what has to come.
    pub fn is_answered(&self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        self.receive.iter().all(|wanted| match find(rest, wanted) {
            Some(place) => {
                rest = &rest[place + wanted.len()..];
                true
            }
            None => false,
        })
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() { Some(0) } else { bytes.windows(wanted.len()).position(|window| window == wanted) }
}

/// What an answer of HTTP says, as far as checks look at it.
#[derive(Debug, Default)]
pub struct HttpAnswer<'a> {
    /// Its status.
    pub status: u16,
    /// `x-envoy-immediate-health-check-fail` is there.
    pub fails_at_once: bool,
    /// `x-envoy-degraded` is there.
    pub degraded: bool,
    /// `x-envoy-upstream-healthchecked-cluster`, empty if absent.
    pub cluster: &'a [u8],
    /// The body's beginning, as much as [`HttpProbe::buffer_bytes`].
    pub body: &'a [u8],
}

impl HttpProbe {
    /// Judge an answer.
    pub fn judge(&self, answer: &HttpAnswer<'_>) -> Verdict {
        let within = |ranges: &[Statuses]| ranges.iter().any(|(from, to)| (*from..*to).contains(&answer.status));
        let failed = |retriable| Verdict::Failed { retriable, excludes: answer.fails_at_once };
        if !self.exchange.is_answered(answer.body) {
            return failed(false);
        }
        if !within(&self.expected) {
            return failed(within(&self.retriable));
        }
        match &self.service {
            Some(service) if !service.is_match(answer.cluster) => Verdict::Failed { retriable: false, excludes: false },
            _ => Verdict::Passed { degraded: answer.degraded },
        }
    }
}

impl HealthCheck {
    /// Whether another version asks the same, so that what is known of endpoints stays true.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.source == other.source
    }

    /// How long until the first check of an endpoint.
    pub fn first_pause(&self, random: &mut (impl Random + ?Sized)) -> Duration {
        random.below_duration(Draw::HealthCheck, self.initial_jitter)
    }

    /// How long until the next check, after one that *passed* or not and what it changed. *used*: something was sent to the cluster.
    pub fn pause(
        &self,
        passed: bool,
        transition: Transition,
        used: bool,
        random: &mut (impl Random + ?Sized),
    ) -> Duration {
        let Intervals { usual, unhealthy, unhealthy_edge, healthy_edge, no_traffic_healthy, no_traffic } =
            self.intervals;
        let base = match (used, passed, transition == Transition::Pending) {
            (false, true, false) => no_traffic_healthy,
            (false, ..) => no_traffic,
            (true, true, false) => usual,
            (true, true, true) => healthy_edge,
            (true, false, false) => unhealthy,
            (true, false, true) => unhealthy_edge,
        };
        let share = base.saturating_mul(self.interval_jitter_percent) / 100;
        let jitter = random.below_duration(Draw::HealthCheck, share);
        let pause = base + jitter + random.below_duration(Draw::HealthCheck, self.interval_jitter);
        pause.max(SHORTEST_PAUSE)
    }
}

/// As in Envoy: checks without a pause would be all that a process does.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
