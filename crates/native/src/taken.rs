//! A question about a request that has been: the route that it took is known, and not everything that it said.
//!
//! A record keeps method, host and path, but not every header, so asking again may find another route. The one that the
//! record names is followed instead, if this configuration has it.

use serde_json::{Value, json};
use weft_core::access_log::{Tag, TagValue};
use weft_core::decide::{Decision, decide_by};
use weft_core::http_manager::HttpManager;
use weft_core::plan::Plan;
use weft_core::random::Random;
use weft_core::request::OwnedRequest;
use weft_core::route::Route;

/// The route, by where it is written: its rule, and the alternative of `match` if there are several.
pub struct Taken {
    origin: String,
    alternative: String,
}

/// What is said of routes that were passed over for reasons that no record keeps.
const UNKNOWN: &str = "it asks for something that the record does not keep";

impl Taken {
    /// `{"origin": "reviews.yaml:8:5", "match": "reviews.yaml:9:7"}`
    ///
    /// # Errors
    /// It has no origin. Routes that nobody wrote have none either, and which of them was meant would be a guess.
    pub fn read(question: &Value) -> Result<Option<Taken>, String> {
        let Some(taken) = question.get("taken").filter(|taken| !taken.is_null()) else { return Ok(None) };
        let text = |key: &str| taken.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let taken = Taken { origin: text("origin"), alternative: text("match") };
        if taken.origin.is_empty() {
            return Err("taken.origin: required".to_owned());
        }
        Ok(Some(taken))
    }

    /// The decision of the route that was taken, with the notes on the routes before it; `None`: there is no such route.
    pub fn follow<'p>(
        &self,
        plan: &'p Plan,
        manager: &'p HttpManager,
        request: &OwnedRequest,
        dice: &mut impl Random,
        found: &Decision<'p>,
        notes: &mut Vec<Value>,
    ) -> Option<Decision<'p>> {
        let (table, host) = (found.table?, found.virtual_host?);
        let index = host.routes.iter().position(|route| self.is(route))?;
        let (mut others, mut routes): (Vec<_>, Vec<_>) = notes.drain(..).partition(|note| note.get("route").is_none());
        let describe = |route: &Route, matched: bool, reason: &str| {
            let metadata: Value =
                route.metadata.weft.as_deref().and_then(|weft| serde_json::from_str(weft).ok()).unwrap_or(json!({}));
            json!({"route": &*route.name, "matched": matched, "reason": reason, "metadata": metadata})
        };
        routes.truncate(index);
        for note in routes.iter_mut().filter(|note| note["matched"] == true) {
            note["matched"] = json!(false);
            note["reason"] = json!(UNKNOWN);
        }
        for route in &host.routes[routes.len()..index] {
            routes.push(describe(route, false, UNKNOWN));
        }
        let route = &host.routes[index];
        routes.push(describe(route, true, &route.conditions.to_string()));
        others.append(&mut routes);
        *notes = others;
        Some(decide_by(plan, manager, request, dice, (table, Some(host)), route))
    }

    fn is(&self, route: &Route) -> bool {
        let at = |path: &[&str]| {
            let value =
                TagValue::RouteMetadata { path: path.iter().map(|key| (*key).into()).collect(), otherwise: "".into() };
            let tag = Tag { name: "".into(), value };
            tag.value(Some(&route.metadata)).unwrap_or_default().into_owned()
        };
        at(&["origin"]) == self.origin && at(&["origins", "match"]) == self.alternative
    }
}
