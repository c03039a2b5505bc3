//! Who is let in with a request (RBAC), and what pages of other sites may see (CORS). Core decides; here it is carried out.

use std::sync::Arc;

use weft_core::cors::{Cors, Treatment};
use weft_core::rbac::{HttpRbac, Rbac};
use weft_core::request::RequestHead as _;
use weft_core::respond::{Cause, LocalReply};

use crate::codec::{Head, Name};
use crate::rbac;
use crate::respond;
use crate::route::View;
use crate::serve::Scratch;

use super::{Exchange, Next};

/// A page of another site may see the answer.
pub(super) struct Granted {
    policy: Arc<Cors>,
    origin: Box<[u8]>,
}

impl Granted {
    /// Say so in the answer.
    pub(super) fn tell(&self, response: &mut Head) {
        for (name, value) in self.policy.answer_headers(&self.origin) {
            response.set(Name::new(name), value);
        }
    }
}

impl Exchange<'_> {
    /// Ask the rules of *filter*, or those that the route has in their place.
    ///
    /// # Errors
    /// The answer to a request that is not let in.
    pub(super) fn authorise(&mut self, filter: &HttpRbac, rules: &Arc<Rbac>) -> Result<(), LocalReply> {
        let down = self.down;
        let standing = down.standings.of(rules, &down.facts);
        let client = self.outcome.client.unwrap_or(down.facts.remote.ip());
        let verdicts = standing.verdicts(&View::of(&self.scratch.request, &down.facts), client);
        let shadow = rbac::take_note(&down.worker.metrics, &filter.counters, &filter.shadow_keys, &verdicts);
        self.outcome.shadows.extend(shadow);
        verdicts.refusal().map_or(Ok(()), |refusal| Err(refusal.reply()))
    }

    /// Consider a request that may come from a page of another site. True: it is to be answered here.
    pub(super) fn consider_origin(&mut self, policy: &Arc<Cors>) -> bool {
        let view = View::of(&self.scratch.request, &self.down.facts);
        let Some(found) = policy.consider(&view, &mut *self.down.worker.random.borrow_mut()) else { return false };
        let counters = self.down.worker.metrics.counters();
        if found.allowed { &counters.cors_origin_valid } else { &counters.cors_origin_invalid }.add(1);
        if found.allowed && found.treatment != Treatment::Counted {
            // The route may take the header away before the answer is there.
            let origin = view.header("origin").unwrap_or_default().into_owned().into();
            self.granted = Some(Granted { policy: Arc::clone(policy), origin });
        }
        found.treatment == Treatment::Answered
    }

    /// Answer a browser that asks what a page of another site may do.
    pub(super) async fn answer_preflight(&mut self, policy: &Cors) -> Next {
        let reply = LocalReply::from(Cause::CorsPreflight);
        self.fail_with(&reply);
        respond::begin(&mut self.scratch.response, &reply);
        let Scratch { request, response, .. } = &mut *self.scratch;
        let view = View::of(request, &self.down.facts);
        for (name, value) in policy.preflight_headers(&view) {
            response.set(Name::new(name), &value);
        }
        self.send_local(&[]).await
    }
}
