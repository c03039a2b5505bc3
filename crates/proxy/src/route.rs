//! The proxy's side of core's decision: heads as core wants to see them, and the random values it draws.

use std::borrow::Cow;

use weft_core::decide::{Decision, decide};
use weft_core::header_edit::Headers;
use weft_core::http_manager::HttpManager;
use weft_core::plan::Plan;
use weft_core::random::Random;
use weft_core::request::{RequestFields, RequestHead, Scheme};
use weft_core::trace::Silent;

use crate::codec::{Head, Name};
use crate::identify::Facts;

/// A request's head with its scheme: until it is admitted that may stand nowhere in it, and is the connection's then.
pub struct View<'a> {
    head: &'a Head,
    scheme: Scheme,
}

impl View<'_> {
    pub fn of<'a>(head: &'a Head, facts: &Facts) -> View<'a> {
        View { head, scheme: head.scheme.unwrap_or(facts.scheme()) }
    }
}

/// Decide where a request goes.
pub fn route<'p>(plan: &'p Plan, manager: &'p HttpManager, view: &View<'_>, random: &mut impl Random) -> Decision<'p> {
    decide(plan, manager, view, random, &mut Silent)
}

impl RequestHead for View<'_> {
    fn method(&self) -> &[u8] {
        self.head.method()
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }

    fn authority(&self) -> &[u8] {
        self.head.authority()
    }

    fn path(&self) -> &[u8] {
        self.head.path()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        joined(self.head, name)
    }
}

impl RequestFields for View<'_> {
    fn each_header<'h>(&'h self, name: &str, look: &mut dyn FnMut(&'h [u8])) {
        let fields = self.head.fields().filter(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()));
        fields.for_each(|(_, value)| look(value));
    }
}

/// All values of a header, joined with commas (RFC 9110 5.2).
pub fn joined<'h>(head: &'h Head, name: &str) -> Option<Cow<'h, [u8]>> {
    let first = head.get(name.as_bytes())?;
    let mut count = 0;
    let mut all = Cow::Borrowed(first);
    for (field, value) in head.fields() {
        if !field.eq_ignore_ascii_case(name.as_bytes()) {
            continue;
        }
        count += 1;
        if count > 1 {
            let all = all.to_mut();
            all.push(b',');
            all.extend_from_slice(value);
        }
    }
    Some(all)
}

/// A head under header edits. In a request the pseudo-headers may be set too.
pub struct Editable<'a>(pub &'a mut Head);

impl Headers for Editable<'_> {
    fn contains(&self, name: &str) -> bool {
        match name {
            ":authority" | "host" => !self.0.authority().is_empty(),
            ":path" => !self.0.path().is_empty(),
            name => self.0.get(name.as_bytes()).is_some(),
        }
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        match name {
            ":authority" | "host" => self.0.set_authority(value),
            ":path" => self.0.set_path(value),
            name => self.0.set(Name::new(name), value),
        }
    }

    fn append(&mut self, name: &str, value: &[u8]) {
        match name {
            ":authority" | "host" | ":path" => self.set(name, value),
            name => self.0.append(Name::new(name), value),
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.remove(name.as_bytes());
    }
}
