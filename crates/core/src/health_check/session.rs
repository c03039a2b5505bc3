//! What checks of one endpoint make of its state.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::HealthCheck;

/// What one check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is well, or nearly.
    Passed {
        /// It would rather have others asked.
        degraded: bool,
    },
    /// It answered, and not well: enough by itself, unless *retriable*.
    Failed {
        /// Counts towards the threshold only.
        retriable: bool,
        /// It wants to be left out of account, until it passes again.
        excludes: bool,
    },
    /// No connection, or one that ended too early.
    Unreachable,
    /// No answer in time.
    TimedOut,
}

impl Verdict {
    /// Whether it is a good one.
    pub fn passed(self) -> bool {
        matches!(self, Self::Passed { .. })
    }

    /// Whether nothing was heard of the endpoint itself.
    pub fn is_of_the_network(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut)
    }
}

/// What a check did to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    Unchanged,
    /// Nothing yet: more of the same will.
    Pending,
    /// Balancing has to look again.
    Changed,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// What it did.
    pub transition: Transition,
    /// The first of its endpoint.
    pub first: bool,
    /// The endpoint has begun to pass (`true`) or to fail.
    pub turned: Option<bool>,
    /// Answers to requests since the check before that failed the endpoint.
    pub passive_failures: u32,
}

const FAILED: u8 = 1;
const UNCHECKED: u8 = 1 << 1;
const TIMED_OUT: u8 = 1 << 2;
const DEGRADED: u8 = 1 << 3;
const EXCLUDED: u8 = 1 << 4;

/// What checks say of one endpoint; all workers see it. The main thread writes it, and a worker only where an answer fails the endpoint.
#[derive(Debug)]
pub struct ActiveHealth {
    flags: AtomicU8,
    passive_failures: AtomicU32,
}

impl Default for ActiveHealth {
    /// Nobody has looked yet.
    fn default() -> Self {
        Self { flags: AtomicU8::new(FAILED | UNCHECKED), passive_failures: AtomicU32::new(0) }
    }
}

impl ActiveHealth {
    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    fn set(&self, flag: u8) -> bool {
        self.flags.fetch_or(flag, Ordering::AcqRel) & flag == 0
    }

    fn clear(&self, flags: u8) {
        self.flags.fetch_and(!flags, Ordering::AcqRel);
    }

    /// It fails, or nobody has looked.
    pub fn is_failed(&self) -> bool {
        self.has(FAILED)
    }

    /// Nobody has looked.
    pub fn is_unchecked(&self) -> bool {
        self.has(UNCHECKED)
    }

    /// It fails, and the last check ran out of time.
    pub fn is_timed_out(&self) -> bool {
        self.has(TIMED_OUT)
    }

    /// It passes, and said that others should be preferred.
    pub fn is_degraded(&self) -> bool {
        self.has(DEGRADED)
    }

    /// It asked to be left out of account.
    pub fn is_excluded(&self) -> bool {
        self.has(EXCLUDED)
    }

    /// An answer to a request says that the endpoint fails (`x-envoy-immediate-health-check-fail`). Returns whether it did not before.
    pub(crate) fn fail_at_once(&self) -> bool {
        self.set(EXCLUDED);
        self.passive_failures.fetch_add(1, Ordering::Relaxed);
        self.set(FAILED)
    }

    /// Take for granted that a check passed.
    pub(crate) fn assume(&self) {
        self.flags.store(0, Ordering::Release);
    }
}

/// The memory of one endpoint's checks.
#[derive(Debug, Default)]
pub struct Session {
    /// Successes in a row, of an endpoint that fails.
    successes: u32,
    /// Failures in a row, of one that passes.
    failures: u32,
}

impl Session {
    /// Take in what a check found.
    pub fn note(&mut self, check: &HealthCheck, state: &ActiveHealth, verdict: Verdict) -> Noted {
        let passive_failures = state.passive_failures.swap(0, Ordering::Relaxed);
        if passive_failures > 0 {
            self.successes = 0;
        }
        let first = state.is_unchecked();
        let was_degraded = state.is_degraded();
        let mut transition = match verdict {
            Verdict::Passed { .. } => self.pass(check, state, first),
            failed => self.fail(check, state, failed),
        };
        let turned = (transition == Transition::Changed).then_some(verdict.passed());
        if let Verdict::Passed { degraded } = verdict
            && degraded != was_degraded
        {
            if degraded {
                state.set(DEGRADED);
            } else {
                state.clear(DEGRADED);
            }
            if transition == Transition::Unchanged {
                transition = Transition::Changed;
            }
        }
        if first {
            state.clear(UNCHECKED);
            // It counts among the cluster's endpoints from now on, whatever came of the check.
            transition = Transition::Changed;
        }
        Noted { transition, first, turned, passive_failures }
    }

    fn pass(&mut self, check: &HealthCheck, state: &ActiveHealth, first: bool) -> Transition {
        self.failures = 0;
        if !state.is_failed() {
            return Transition::Unchanged;
        }
        self.successes += 1;
        // The first is enough at the start, or every start would take so many intervals.
        if !first && self.successes < check.healthy_threshold {
            return Transition::Pending;
        }
        self.successes = 0;
        state.clear(FAILED | TIMED_OUT | EXCLUDED);
        Transition::Changed
    }

    fn fail(&mut self, check: &HealthCheck, state: &ActiveHealth, verdict: Verdict) -> Transition {
        self.successes = 0;
        let mut transition = Transition::Unchanged;
        if !state.is_failed() {
            self.failures += 1;
            let is_enough = matches!(verdict, Verdict::Failed { retriable: false, .. });
            if is_enough || self.failures >= check.unhealthy_threshold {
                self.failures = 0;
                state.set(FAILED);
                transition = Transition::Changed;
            } else {
                transition = Transition::Pending;
            }
        }
        if let Verdict::Failed { excludes: true, .. } = verdict {
            state.set(EXCLUDED);
        }
        // An endpoint that goes on failing may do so in another way.
        if verdict == Verdict::TimedOut && state.is_failed() {
            state.set(TIMED_OUT);
        } else {
            state.clear(TIMED_OUT);
        }
        transition
    }
}
