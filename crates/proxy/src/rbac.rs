//! Carries out what core's RBAC rules say: about a connection when it begins, about each of its requests later.
//!
//! What rules ask about a connection is asked once: [`Standings`] keeps what they leave open for its requests.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use weft_core::listener::FilterChain;
use weft_core::rbac::{CounterNames, Rbac, ShadowKeys, Standing, Verdict, Verdicts};

use crate::identify::Facts;
use crate::metrics::{RbacCounts, WorkerMetrics};

/// So many rules are kept for a connection: a filter's, and those of the routes that its requests take.
const KEPT_RULES: usize = 16;

/// What is left of rules for the requests of one connection.
#[derive(Default)]
pub struct Standings(RefCell<Vec<(Arc<Rbac>, Rc<Standing>)>>);

impl Standings {
    /// What *rbac* leaves open on the connection with these *facts*.
    pub fn of(&self, rbac: &Arc<Rbac>, facts: &Facts) -> Rc<Standing> {
        let mut kept = self.0.borrow_mut();
        if let Some((_, standing)) = kept.iter().find(|(known, _)| Arc::ptr_eq(known, rbac)) {
            return Rc::clone(standing);
        }
        if kept.len() == KEPT_RULES {
            // The oldest: rules of a configuration that is gone are never asked again.
            kept.remove(0);
        }
        let standing = Rc::new(rbac.given(&facts.connection()));
        kept.push((Arc::clone(rbac), Rc::clone(&standing)));
        standing
    }
}

/// What shadow rules found, for records.
#[derive(Clone, Debug)]
pub struct Shadow {
    keys: Arc<ShadowKeys>,
    verdict: Verdict,
}

impl Shadow {
    /// The value of a key of Envoy's dynamic metadata.
    pub fn value(&self, namespace: &str, key: &str) -> Option<&str> {
        if namespace != self.keys.namespace {
            return None;
        }
        if key == &*self.keys.result {
            return Some(if self.verdict.allowed { "allowed" } else { "denied" });
        }
        self.verdict.policy.as_deref().filter(|_| key == &*self.keys.policy)
    }
}

/// Whether the network filters of *chain* let a connection in; what their shadow rules say goes into *facts*.
///
/// # Errors
/// The verdict that refuses it, with how long it is to be held.
pub fn admit(
    metrics: &WorkerMetrics,
    chain: &FilterChain,
    facts: &mut Facts,
) -> Result<(), (Verdict, Option<std::time::Duration>)> {
    for filter in &chain.rbac {
        let verdicts = filter.verdicts(&facts.connection());
        facts.shadows.extend(take_note(metrics, &filter.counters, &filter.shadow_keys, &verdicts));
        if let Some(refusal) = verdicts.refusal() {
            return Err((refusal.clone(), filter.delay_deny));
        }
    }
    Ok(())
}

/// Count *verdicts*; returns what is to be told of the shadow rules.
pub fn take_note(
    metrics: &WorkerMetrics,
    names: &Arc<CounterNames>,
    keys: &Arc<ShadowKeys>,
    verdicts: &Verdicts,
) -> Option<Shadow> {
    let counts = metrics.rbac(names);
    let RbacCounts { allowed, denied, shadow_allowed, shadow_denied, .. } = &*counts;
    let count = |verdict: &Option<Verdict>, yes: &crate::metrics::Counter, no: &crate::metrics::Counter| {
        if let Some(verdict) = verdict {
            if verdict.allowed { yes.add(1) } else { no.add(1) }
        }
    };
    count(&verdicts.rules, allowed, denied);
    count(&verdicts.shadow_rules, shadow_allowed, shadow_denied);
    verdicts.shadow_rules.as_ref().map(|verdict| Shadow { keys: Arc::clone(keys), verdict: verdict.clone() })
}
