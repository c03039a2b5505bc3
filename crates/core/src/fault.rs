//! The fault filter: a delay, an abort, each for a share of the requests that its conditions let through.

use std::sync::Arc;
use std::time::Duration;

use weft_protos::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use weft_protos::envoy::extensions::filters::http::fault::v3 as proto;
use weft_protos::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use weft_protos::envoy::r#type::v3::FractionalPercent;

use crate::compile::Context;
use crate::matching::HeaderMatch;
use crate::random::{Draw, Fraction, Random};
use crate::request::RequestHead;

/// A delay before the request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// How long.
    pub duration: Duration,
    /// For which share of requests.
    pub share: Fraction,
}

/// An answer instead of the upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// 200 to 599.
    pub status: u16,
    /// For which share of requests.
    pub share: Fraction,
}

/// A compiled fault.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// Before the abort, if both strike.
    pub delay: Option<Delay>,
    /// After the delay.
    pub abort: Option<Abort>,
    /// Only requests routed to this cluster.
    pub upstream_cluster: Option<Arc<str>>,
    /// Only requests whose headers all match.
    pub headers: Box<[HeaderMatch]>,
}

/// What the fault filter does to one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultOutcome {
    /// Wait so long, response flag DI.
    pub delay: Option<Duration>,
    /// Then answer with this status, response flag FI.
    pub abort: Option<u16>,
}

impl Fault {
    /// Whether the fault could strike this request at all: its conditions, not its dice.
    pub fn applies<R: RequestHead + ?Sized>(&self, request: &R, cluster: Option<&str>) -> bool {
        self.upstream_cluster.as_deref().is_none_or(|wanted| cluster == Some(wanted))
            && self.headers.iter().all(|header| header.is_match(request))
    }

    /// Throw the dice for a request to which the fault applies.
    pub fn strike<D: Random + ?Sized>(&self, random: &mut D) -> FaultOutcome {
        FaultOutcome {
            delay: self.delay.filter(|delay| delay.share.strikes(Draw::FaultDelay, random)).map(|delay| delay.duration),
            abort: self.abort.filter(|abort| abort.share.strikes(Draw::FaultAbort, random)).map(|abort| abort.status),
        }
    }

    pub(crate) fn compile(context: &mut Context, fault: &proto::HttpFault) -> Self {
        // An absent percentage means never, as in Envoy.
        let share = |percentage: Option<&FractionalPercent>| percentage.map_or(Fraction::NEVER, Fraction::compile);
        let delay = fault.delay.as_ref().and_then(|delay| {
            context.at("delay", |context| match &delay.fault_delay_secifier {
                Some(FaultDelaySecifier::FixedDelay(duration)) => {
                    let duration = context.duration("fixed_delay", Some(duration))?;
                    Some(Delay { duration, share: share(delay.percentage.as_ref()) })
                }
                _ => {
                    context.refuse("only fixed_delay is supported");
                    None
                }
            })
        });
        let abort = fault.abort.as_ref().and_then(|abort| {
            context.at("abort", |context| match abort.error_type {
                Some(ErrorType::HttpStatus(status @ 200..=599)) => {
                    Some(Abort { status: status as u16, share: share(abort.percentage.as_ref()) })
                }
                Some(ErrorType::HttpStatus(status)) => {
                    context.refuse_at("http_status", format!("{status} is not a status of 200 to 599"));
                    None
                }
                _ => {
                    context.refuse("only http_status is supported");
                    None
                }
            })
        });
        Self {
            delay,
            abort,
            upstream_cluster: (!fault.upstream_cluster.is_empty()).then(|| fault.upstream_cluster.as_str().into()),
            headers: context.each("headers", &fault.headers, HeaderMatch::compile).into_iter().flatten().collect(),
        }
    }
}
