//! Outlier detection: endpoints that fail are ejected for a while. The caller brings results and time.
//!
//! ```text
//! healthy --(threshold of consecutive failures, share of ejected endpoints allows it)--> ejected
//! ejected --(tick after base * ejections, at most max; or an active health check passes)--> healthy
//! ```
//!
//! Success resets the consecutive counts. Each whole interval without ejection forgives one earlier ejection. At its end, too, endpoints are
//! compared with each other, by the share of requests that succeeded in it: who is far below the others is ejected, or whose failures are
//! more than a percentage. Both need enough endpoints with enough requests, or they would be about chance.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::google::protobuf::UInt32Value;

use crate::compile::Context;

/// A compiled `OutlierDetection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive 5xx (and local failures, unless split) that eject; `None`: not by this. Default 5.
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503, 504 (and local failures, unless split) that eject. Default: not by this.
    pub consecutive_gateway_failure: Option<u32>,
    /// Consecutive connect failures, timeouts and resets that eject, if local errors are split off. Default 5.
    pub consecutive_local_origin_failure: Option<u32>,
    /// Local failures do not count as 5xx.
    pub split_local_origin: bool,
    /// By all results, or by all but local ones if those are split off. By success rate unless `enforcing_success_rate` is 0.
    pub rates: Rates,
    /// By local results alone, if they are split off. By success rate unless `enforcing_local_origin_success_rate` is 0.
    pub local_rates: Rates,
    /// How often [`crate::balance::Balancer::tick`] is to be called. Default 10 s.
    pub interval: Duration,
    /// Ejection lasts this times the number of ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// At most so long. Default 300 s, or the base if that is longer.
    pub max_ejection_time: Duration,
    /// Largest share of endpoints out at once, percent. Default 10.
    pub max_ejection_percent: u32,
    /// One may be ejected whatever the share says.
    pub always_eject_one: bool,
    /// A health check that passes ends an ejection. Default true.
    pub check_unejects: bool,
}

/// How endpoints are compared at the end of an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Ejects whose share of successes is far below the mean; `None`: not by this.
    pub success: Option<SuccessRate>,
    /// Ejects whose share of failures is high; `None`: not by this.
    pub failure: Option<FailurePercentage>,
}

/// `success_rate_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// So many endpoints must have had enough requests. Default 5.
    pub minimum_hosts: usize,
    /// Requests in an interval that are enough. Default 100.
    pub request_volume: u32,
    /// How many standard deviations below the mean, in thousandths. Default 1900.
    pub stdev_thousandths: u32,
}

/// `failure_percentage_*`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// So many endpoints must have had enough requests. Default 5.
    pub minimum_hosts: usize,
    /// Requests in an interval that are enough. Default 50.
    pub request_volume: u32,
    /// From this share of failures on, percent. Default 85.
    pub threshold: u32,
}

/// How a request to an endpoint ended, for outlier detection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// Response headers with this status arrived.
    Status(u16),
    /// A connection was made (TCP proxy).
    Connected,
    /// No connection, reset, or timeout: found on this side.
    LocalFailure,
}

/// What is remembered about one endpoint.
#[derive(Debug, Default)]
pub(crate) struct OutlierState {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Ejections not yet forgiven.
    ejections: AtomicU32,
    /// Milliseconds of the caller's clock plus one; 0: not ejected.
    ejected_at: AtomicU64,
    results: Results,
    local_results: Results,
}

/// What was seen of one endpoint in the interval that runs; counted only where endpoints are compared.
#[derive(Debug, Default)]
struct Results {
    all: AtomicU32,
    failed: AtomicU32,
}

impl Results {
    fn note(&self, failed: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All and percent of success, and begin anew. `None`: there was nothing.
    fn take(&self) -> Option<(u32, f64)> {
        let (all, failed) = (self.all.swap(0, Ordering::Relaxed), self.failed.swap(0, Ordering::Relaxed));
        // Another worker may have counted between the two.
        (all > 0).then(|| (all, 100.0 * f64::from(all - failed.min(all)) / f64::from(all)))
    }
}

impl Rates {
    fn compares(&self) -> bool {
        self.success.is_some() || self.failure.is_some()
    }

    /// Which of these (requests and percent of success) are to be ejected.
    fn outliers(&self, seen: &[Option<(u32, f64)>]) -> Vec<usize> {
        // Index and percent of those with enough requests, if they are enough.
        let comparable = |request_volume: u32, minimum_hosts: usize| {
            let each = seen.iter().enumerate().filter_map(|(index, seen)| Some((index, (*seen)?)));
            let hosts: Vec<_> =
                each.filter(|(_, (all, _))| *all >= request_volume).map(|(index, (_, rate))| (index, rate)).collect();
            if hosts.len() < minimum_hosts { Vec::new() } else { hosts }
        };
        let mut found = Vec::new();
        if let Some(rule) = self.success {
            let hosts = comparable(rule.request_volume, rule.minimum_hosts);
            let count = hosts.len() as f64;
            let mean = hosts.iter().map(|(_, rate)| rate).sum::<f64>() / count;
            let variance = hosts.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
            let least = mean - variance.sqrt() * f64::from(rule.stdev_thousandths) / 1000.0;
            found.extend(hosts.iter().filter(|(_, rate)| *rate < least).map(|(index, _)| *index));
        }
        if let Some(rule) = self.failure {
            let hosts = comparable(rule.request_volume, rule.minimum_hosts);
            let threshold = f64::from(rule.threshold);
            found.extend(hosts.iter().filter(|(_, rate)| 100.0 - rate >= threshold).map(|(index, _)| *index));
        }
        found
    }
}

impl OutlierState {
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected_at.load(Ordering::Acquire) != 0
    }

    /// Mark as ejected. Returns false if another worker did so already.
    pub(crate) fn eject(&self, rules: &OutlierDetection, now: Duration) -> bool {
        let stamp = millis(now) + 1;
        let ejected = self.ejected_at.compare_exchange(0, stamp, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if ejected {
            let ejections = self.ejections.load(Ordering::Relaxed);
            // What makes the time no longer is not counted (Envoy): an endpoint that has failed for days is to be forgiven in minutes.
            if rules.base_ejection_time.saturating_mul(ejections) < rules.max_ejection_time + rules.base_ejection_time {
                self.ejections.store(ejections + 1, Ordering::Relaxed);
            }
            self.reset();
        }
        ejected
    }

    /// End an ejection whose time has come. Returns whether the endpoint is back.
    pub(crate) fn bring_back(&self, rules: &OutlierDetection, now: Duration) -> bool {
        let stamp = self.ejected_at.load(Ordering::Acquire);
        if stamp == 0 {
            return false;
        }
        let ejections = self.ejections.load(Ordering::Relaxed);
        let duration = rules.base_ejection_time.saturating_mul(ejections.max(1)).min(rules.max_ejection_time);
        millis(now).saturating_sub(stamp - 1) >= millis(duration) && self.uneject()
    }

    /// Forgive one earlier ejection.
    pub(crate) fn forgive(&self) {
        let ejections = self.ejections.load(Ordering::Relaxed);
        if ejections > 0 {
            self.ejections.store(ejections - 1, Ordering::Relaxed);
        }
    }

    /// End an ejection at once. Returns whether there was one.
    pub(crate) fn uneject(&self) -> bool {
        let was_ejected = self.ejected_at.swap(0, Ordering::AcqRel) != 0;
        if was_ejected {
            self.reset();
        }
        was_ejected
    }

    fn reset(&self) {
        for counter in [&self.consecutive_5xx, &self.consecutive_gateway, &self.consecutive_local] {
            clear(counter);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

/// Most requests succeed: reading first keeps the cache line shared among workers.
fn clear(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

/// Count one more; whether the threshold is reached.
fn count(counter: &AtomicU32, threshold: Option<u32>) -> bool {
    let seen = counter.fetch_add(1, Ordering::Relaxed) + 1;
    threshold.is_some_and(|threshold| seen >= threshold)
}

impl OutlierDetection {
    /// End an interval: which endpoints the comparison with the others asks to eject. *states*: of all endpoints.
    pub(crate) fn compare(&self, states: &[&OutlierState]) -> Vec<usize> {
        let mut found = Vec::new();
        let mut compare = |rates: &Rates, results: &dyn Fn(&OutlierState) -> Option<(u32, f64)>| {
            if rates.compares() {
                // What is out is not compared, and begins anew too.
                let taken = |state: &&OutlierState| results(state).filter(|_| !state.is_ejected());
                found.extend(rates.outliers(&states.iter().map(taken).collect::<Vec<_>>()));
            }
        };
        compare(&self.rates, &|state| state.results.take());
        compare(&self.local_rates, &|state| state.local_results.take());
        found
    }

    /// Count an observation; whether it asks for ejection.
    pub(crate) fn observe(&self, state: &OutlierState, observation: Observation) -> bool {
        let is_local_failure = observation == Observation::LocalFailure;
        if self.local_rates.compares() {
            state.local_results.note(is_local_failure);
        }
        if !is_local_failure {
            clear(&state.consecutive_local);
        } else if self.split_local_origin {
            return count(&state.consecutive_local, self.consecutive_local_origin_failure);
        }
        let (server_error, gateway_error) = match observation {
            Observation::Connected if self.split_local_origin => return false,
            // To a carried connection it is what an answer is to a request.
            Observation::Connected => (false, false),
            Observation::LocalFailure => (true, true),
            Observation::Status(status) => ((500..600).contains(&status), matches!(status, 502..=504)),
        };
        if self.rates.compares() {
            state.results.note(server_error);
        }
        let by_gateway = if gateway_error {
            count(&state.consecutive_gateway, self.consecutive_gateway_failure)
        } else {
            clear(&state.consecutive_gateway);
            false
        };
        let by_5xx = if server_error {
            count(&state.consecutive_5xx, self.consecutive_5xx)
        } else {
            clear(&state.consecutive_5xx);
            false
        };
        by_gateway || by_5xx
    }

    /// Whether one more of `total` endpoints may be ejected when `ejected` are out.
    pub(crate) fn may_eject(&self, ejected: usize, total: usize) -> bool {
        (self.always_eject_one && ejected == 0) || (ejected + 1) * 100 <= total * self.max_ejection_percent as usize
    }

    pub(crate) fn compile(context: &mut Context, detection: &proto::OutlierDetection) -> Self {
        let read = |value: &Option<UInt32Value>, default| value.as_ref().map_or(default, |value| value.value);
        // A share of enforcement between never and always would need dice for each ejection; nobody asks for it.
        let mut enforced = |field: &str, enforcing: &Option<UInt32Value>, default: u32| match read(enforcing, default) {
            0 => false,
            100 => true,
            share => {
                context.refuse_at(field, format!("{share} is not supported: 0 or 100"));
                false
            }
        };
        let row = |enforced: bool, length: &Option<UInt32Value>| {
            enforced.then(|| read(length, 5)).filter(|threshold| *threshold > 0)
        };
        let consecutive_5xx = row(
            enforced("enforcing_consecutive_5xx", &detection.enforcing_consecutive_5xx, 100),
            &detection.consecutive_5xx,
        );
        let consecutive_gateway_failure = row(
            enforced("enforcing_consecutive_gateway_failure", &detection.enforcing_consecutive_gateway_failure, 0),
            &detection.consecutive_gateway_failure,
        );
        let consecutive_local_origin_failure = row(
            enforced(
                "enforcing_consecutive_local_origin_failure",
                &detection.enforcing_consecutive_local_origin_failure,
                100,
            ),
            &detection.consecutive_local_origin_failure,
        );
        let success = SuccessRate {
            minimum_hosts: read(&detection.success_rate_minimum_hosts, 5) as usize,
            request_volume: read(&detection.success_rate_request_volume, 100),
            stdev_thousandths: read(&detection.success_rate_stdev_factor, 1900),
        };
        let failure = FailurePercentage {
            minimum_hosts: read(&detection.failure_percentage_minimum_hosts, 5) as usize,
            request_volume: read(&detection.failure_percentage_request_volume, 50),
            threshold: read(&detection.failure_percentage_threshold, 85),
        };
        let rates = Rates {
            success: enforced("enforcing_success_rate", &detection.enforcing_success_rate, 100).then_some(success),
            failure: enforced("enforcing_failure_percentage", &detection.enforcing_failure_percentage, 0)
                .then_some(failure),
        };
        let local_rates = Rates {
            success: enforced(
                "enforcing_local_origin_success_rate",
                &detection.enforcing_local_origin_success_rate,
                100,
            )
            .then_some(success),
            failure: enforced(
                "enforcing_failure_percentage_local_origin",
                &detection.enforcing_failure_percentage_local_origin,
                0,
            )
            .then_some(failure),
        };
        let base = context.positive_duration("base_ejection_time", detection.base_ejection_time.as_ref());
        let base_ejection_time = base.unwrap_or(Duration::from_secs(30));
        let most = context.positive_duration("max_ejection_time", detection.max_ejection_time.as_ref());
        if most.is_some_and(|most| !most.is_zero() && most < base_ejection_time) {
            context.refuse_at("max_ejection_time", "is less than base_ejection_time (30 s where that is not set)");
        }
        let interval = context.positive_duration("interval", detection.interval.as_ref());
        Self {
            consecutive_5xx,
            consecutive_gateway_failure,
            consecutive_local_origin_failure,
            split_local_origin: detection.split_external_local_origin_errors,
            rates,
            local_rates: if detection.split_external_local_origin_errors { local_rates } else { Rates::default() },
            interval: interval.unwrap_or(Duration::from_secs(10)),
            base_ejection_time,
            max_ejection_time: most.unwrap_or(Duration::from_secs(300)).max(base_ejection_time),
            max_ejection_percent: read(&detection.max_ejection_percent, 10).min(100),
            always_eject_one: detection.always_eject_one_host.as_ref().is_some_and(|always| always.value),
            check_unejects: detection
                .successful_active_health_check_uneject_host
                .as_ref()
                .is_none_or(|unejects| unejects.value),
        }
    }
}
