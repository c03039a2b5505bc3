//! Outlier detection: endpoints that fail are ejected for a while. The caller brings results and time.
//!
//! ```text
//! healthy --(threshold of consecutive failures, share of ejected endpoints allows it)--> ejected
//! ejected --(tick after base * ejections, at most max; or an active health check passes)--> healthy
//! ```
//!
//! Success resets the consecutive counts. Each interval without ejection forgives one earlier ejection.

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
}

impl OutlierState {
    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected_at.load(Ordering::Acquire) != 0
    }

    /// Mark as ejected. Returns false if another worker did so already.
    pub(crate) fn eject(&self, now: Duration) -> bool {
        let stamp = millis(now) + 1;
        let ejected = self.ejected_at.compare_exchange(0, stamp, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if ejected {
            self.ejections.fetch_add(1, Ordering::Relaxed);
            self.reset();
        }
        ejected
    }

    /// End an ejection whose time has come, or forgive an old one. Returns whether the endpoint is back.
    pub(crate) fn tick(&self, rules: &OutlierDetection, now: Duration) -> bool {
        let stamp = self.ejected_at.load(Ordering::Acquire);
        let ejections = self.ejections.load(Ordering::Relaxed);
        if stamp == 0 {
            if ejections > 0 {
                self.ejections.store(ejections - 1, Ordering::Relaxed);
            }
            return false;
        }
        let duration = rules.base_ejection_time.saturating_mul(ejections.max(1)).min(rules.max_ejection_time);
        if millis(now).saturating_sub(stamp - 1) < millis(duration) {
            return false;
        }
        self.ejected_at.store(0, Ordering::Release);
        true
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
    /// Count an observation; whether it asks for ejection.
    pub(crate) fn observe(&self, state: &OutlierState, observation: Observation) -> bool {
        let (server_error, gateway_error) = match observation {
            Observation::Connected => {
                clear(&state.consecutive_local);
                return false;
            }
            Observation::LocalFailure if self.split_local_origin => {
                return count(&state.consecutive_local, self.consecutive_local_origin_failure);
            }
            Observation::LocalFailure => (true, true),
            Observation::Status(status) => {
                clear(&state.consecutive_local);
                ((500..600).contains(&status), matches!(status, 502..=504))
            }
        };
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
        let mut enforced =
            |field: &str, enforcing: &Option<UInt32Value>, default: u32, threshold: u32| match read(enforcing, default)
            {
                0 => None,
                100 => Some(threshold).filter(|threshold| *threshold > 0),
                share => {
                    context.refuse_at(field, format!("{share} is not supported: 0 or 100"));
                    None
                }
            };
        let consecutive_5xx = enforced(
            "enforcing_consecutive_5xx",
            &detection.enforcing_consecutive_5xx,
            100,
            read(&detection.consecutive_5xx, 5),
        );
        let consecutive_gateway_failure = enforced(
            "enforcing_consecutive_gateway_failure",
            &detection.enforcing_consecutive_gateway_failure,
            0,
            read(&detection.consecutive_gateway_failure, 5),
        );
        let consecutive_local_origin_failure = enforced(
            "enforcing_consecutive_local_origin_failure",
            &detection.enforcing_consecutive_local_origin_failure,
            100,
            read(&detection.consecutive_local_origin_failure, 5),
        );
        if read(&detection.enforcing_success_rate, 100) != 0 {
            context.refuse_at(
                "enforcing_success_rate",
                "ejection by success rate is not supported; it is on unless this is 0",
            );
        }
        let base = context.duration("base_ejection_time", detection.base_ejection_time.as_ref());
        let base_ejection_time = base.unwrap_or(Duration::from_secs(30));
        Self {
            consecutive_5xx,
            consecutive_gateway_failure,
            consecutive_local_origin_failure,
            split_local_origin: detection.split_external_local_origin_errors,
            interval: context.duration("interval", detection.interval.as_ref()).unwrap_or(Duration::from_secs(10)),
            base_ejection_time,
            max_ejection_time: context
                .duration("max_ejection_time", detection.max_ejection_time.as_ref())
                .unwrap_or(Duration::from_secs(300))
                .max(base_ejection_time),
            max_ejection_percent: read(&detection.max_ejection_percent, 10).min(100),
            always_eject_one: detection.always_eject_one_host.as_ref().is_some_and(|always| always.value),
            check_unejects: detection
                .successful_active_health_check_uneject_host
                .as_ref()
                .is_none_or(|unejects| unejects.value),
        }
    }
}
