//! One stream's state: what it subscribes, what it has, what it may be sent next. No I/O, no clock.
//!
//! A type moves between three states:
//!
//! ```text
//!                    request                    something differs, its turn has come
//!   (unsubscribed) ----------> settled <---------------------------------> in flight
//!                                 ^            ACK, NACK (culprit known)       |
//!                                 |                                            | NACK of several, names unknown
//!                                 +---------------- trials <-------------------+
//! ```
//!
//! Never more than one response of a type is in flight; what changes meanwhile is found by comparing with the newest
//! view when its answer has come, so a stream that is slow skips revisions and nobody queues for it.
//!
//! The turns (make before break; xDS protocol, "Eventual consistency considerations"):
//!
//! ```text
//!   clusters -> their endpoints -> listeners -> routes -> listeners that go -> clusters that go -> endpoints, routes that go
//! ```
//!
//! each waits until everything before it is acknowledged, with two exceptions. Endpoints follow right behind their
//! clusters, without waiting for the ACK: Envoy holds back the ACK of CDS while a cluster is warming, and it warms a
//! changed cluster again and waits for endpoints that it has already, so they are sent again. And a name that nobody
//! publishes is answered at once as removed. Secrets and other types stand outside of the order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use weft_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use weft_protos::google::rpc::Status;
use weft_protos::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};

use crate::WILDCARD;
use crate::grpc;
use crate::refusal;
use crate::rope::Rope;
use crate::server::view::{Resource, TypeSet, View, bytes_len, put_bytes};

/// How the stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Delta,
    StateOfTheWorld,
}

/// What a session has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// Nothing of this revision is left to send or to wait for.
    Synced { view: Arc<str>, revision: u64 },
    /// The client will not have this version. Comes before the `Synced` of the same revision.
    Refused { view: Arc<str>, type_url: String, name: Arc<str>, version: Arc<str>, message: String },
}

/// Why a request cannot be understood; the stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("a request without a type URL")]
    NoType,
}

/// `Node.user_agent_name` of Envoy.
const ENVOY: &str = "envoy";

/// The types that go in turns.
const ORDERED: [&str; 4] = [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION];

/// A step of the order: sends what is due of a type and tells whether nothing of it is left.
type Turn = fn(&mut Session, &View, &str, &mut Vec<Rope>) -> bool;

#[derive(Debug)]
pub(crate) struct Session {
    variant: Variant,
    /// How long to wait for a subscription that ought to follow from what was sent.
    patience: Duration,
    view: Option<Arc<View>>,
    /// Whether a cluster that it accepted is not at work before its endpoints have been sent after it: Envoy's warming. The
    /// stream before this one may have ended between the two, and what such a client says of the endpoints that it has does not tell.
    warms_clusters: bool,
    types: BTreeMap<String, Subscription>,
    nonces: u64,
    /// Endpoints which accepted clusters need and the client had not asked for.
    awaited: BTreeSet<Arc<str>>,
    /// For the subscription of `awaited`, before listeners go out.
    endpoints_wait: Wait,
    /// For the first subscription of clusters and listeners, before the revision counts as synced.
    first_wait: Wait,
    /// When `send` was called last.
    sent: Option<Instant>,
    /// The last revision reported as synced.
    synced: Option<u64>,
    reports: Vec<Report>,
}

/// The state of one type on one stream.
#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client has accepted, or may have.
    has: BTreeMap<Arc<str>, Held>,
    /// To be sent though the client may have them: newly subscribed, or endpoints of a cluster sent again.
    again: BTreeSet<Arc<str>>,
    /// An answer is due even if it is empty: the client of a wildcard, or of no names, waits for the first one.
    answer: bool,
    in_flight: Option<InFlight>,
    /// Groups of a refused response that are tried apart.
    trials: VecDeque<BTreeSet<Arc<str>>>,
    /// Name -> the version that the client will not have.
    culprits: BTreeMap<Arc<str>, Arc<str>>,
    /// What is left to send; `None` when it has to be found out.
    plan: Option<Plan>,
    /// The set of which nothing is left to send but what `again` and the changes since say.
    settled: Option<u64>,
}

#[derive(Debug, Clone)]
struct Held {
    /// `None`: the client refused a response with this in it and did not say whether it took this part.
    version: Option<Arc<str>>,
    /// Unknown for what the client had before this stream.
    resource: Option<Arc<Resource>>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    upserts: Vec<Arc<Resource>>,
    removals: Vec<Arc<str>>,
    /// The set of which nothing is left when this is accepted.
    completes: Option<u64>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Of which set this is the difference.
    generation: Option<u64>,
    upserts: Vec<Arc<Resource>>,
    /// In the client's hands and not in the view.
    removals: Vec<Arc<str>>,
    /// Asked for and not in the view.
    absent: Vec<Arc<str>>,
}

/// A refused resource: name, version, reason.
type Culprit = (Arc<str>, Arc<str>, String);

impl Session {
    pub(crate) fn new(variant: Variant, patience: Duration) -> Self {
        Self {
            variant,
            patience,
            view: None,
            warms_clusters: false,
            types: BTreeMap::new(),
            nonces: 0,
            awaited: BTreeSet::new(),
            endpoints_wait: Wait::default(),
            first_wait: Wait::default(),
            sent: None,
            synced: None,
            reports: Vec::new(),
        }
    }

    /// Show another view, or another revision of it. Without one, nothing is sent and the client keeps what it has.
    pub(crate) fn show(&mut self, view: Option<Arc<View>>) {
        self.view = view;
        self.synced = None;
        for subscription in self.types.values_mut() {
            subscription.plan = None;
        }
    }

    /// What has happened since the last call.
    pub(crate) fn reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Take note of what the client is (`Node.user_agent_name`), which the first request of its stream says and no other.
    pub(crate) fn introduce(&mut self, user_agent_name: &str) {
        self.warms_clusters = user_agent_name == ENVOY;
    }

    pub(crate) fn delta(&mut self, request: DeltaDiscoveryRequest) -> Result<(), RequestError> {
        let type_url = request.type_url;
        if type_url.is_empty() {
            return Err(RequestError::NoType);
        }
        self.acknowledge(&type_url, &request.response_nonce, request.error_detail.as_ref());
        let first = !self.types.contains_key(&type_url);
        let is_waited_for = type_url == CLUSTER_LOAD_ASSIGNMENT && self.warms_clusters;
        // Of virtual hosts such a request says that there may be others (Envoy waits for an answer, too).
        let by_name_only = type_url == VIRTUAL_HOST;
        let subscription = self.types.entry(type_url).or_default();
        subscription.plan = None;
        for (name, version) in request.initial_resource_versions {
            subscription.has.insert(name.into(), Held { version: Some(version.into()), resource: None });
        }
        if first && request.resource_names_subscribe.is_empty() {
            if by_name_only {
                subscription.answer = true;
            } else {
                subscription.widen();
            }
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                subscription.widen();
                continue;
            }
            let name: Arc<str> = name.into();
            // What the client says it has on a new stream is not sent again. Later, asking for a name means wanting it.
            if !(first && subscription.has.contains_key(&name)) || is_waited_for {
                subscription.again.insert(name.clone());
            }
            subscription.names.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            subscription.forget(&name);
        }
        Ok(())
    }

    pub(crate) fn state_of_the_world(&mut self, request: DiscoveryRequest) -> Result<(), RequestError> {
        let type_url = request.type_url;
        if type_url.is_empty() {
            return Err(RequestError::NoType);
        }
        if !request.response_nonce.is_empty() && self.is_stale(&type_url, &request.response_nonce) {
            // The client has not seen the newest response yet and will answer that one, with its names of then.
            return Ok(());
        }
        self.acknowledge(&type_url, &request.response_nonce, request.error_detail.as_ref());
        let first = !self.types.contains_key(&type_url);
        let subscription = self.types.entry(type_url).or_default();
        subscription.plan = None;
        let mut names: BTreeSet<Arc<str>> = request.resource_names.into_iter().map(Into::into).collect();
        // Having subscribed by name once, no names means none (xDS protocol, "How the client specifies what resources
        // to return").
        let stays = subscription.wildcard && subscription.names.is_empty();
        if names.remove(WILDCARD) || (names.is_empty() && (first || stays)) {
            subscription.widen();
        } else if subscription.wildcard {
            subscription.forget(WILDCARD);
        }
        for gone in subscription.names.difference(&names).cloned().collect::<Vec<_>>() {
            subscription.forget(&gone);
        }
        for name in names {
            if subscription.names.insert(name.clone()) {
                subscription.again.insert(name);
            }
        }
        Ok(())
    }

    /// Whether `nonce` belongs to a response before the one in flight.
    fn is_stale(&self, type_url: &str, nonce: &str) -> bool {
        let in_flight = self.types.get(type_url).and_then(|it| it.in_flight.as_ref());
        in_flight.is_some_and(|in_flight| in_flight.nonce != nonce)
    }

    /// Take the answer to the response in flight, if this is one.
    fn acknowledge(&mut self, type_url: &str, nonce: &str, error: Option<&Status>) {
        let Some(subscription) = self.types.get_mut(type_url) else { return };
        let Some(in_flight) = subscription.in_flight.take_if(|it| it.nonce == nonce) else { return };
        subscription.plan = None;
        for name in &in_flight.removals {
            subscription.has.remove(name);
        }
        let (accepted, culprits) = match error {
            None => {
                subscription.settled = in_flight.completes;
                (in_flight.upserts, Vec::new())
            }
            Some(status) => {
                subscription.settled = None;
                subscription.judge(in_flight.upserts, status)
            }
        };
        for resource in accepted {
            if type_url == CLUSTER {
                self.awaited.extend(resource.endpoints.clone());
            }
            subscription.accept(resource);
        }
        let view = self.view.as_ref().map_or_else(|| "".into(), |it| it.name.clone());
        for (name, version, message) in culprits {
            let type_url = type_url.to_owned();
            self.reports.push(Report::Refused { view: view.clone(), type_url, name, version, message });
        }
    }

    /// When to call [`Session::send`] again though nothing has happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sent = self.sent?;
        let deadlines = [&self.endpoints_wait, &self.first_wait].into_iter().filter_map(|wait| wait.until);
        // One that had passed by then is looked at again with the next change; to wake up for it would be to spin.
        deadlines.filter(|until| *until > sent).min()
    }

    /// Everything that may be sent now. Call it after every change, and at the deadline.
    pub(crate) fn send(&mut self, now: Instant) -> Vec<Rope> {
        self.sent = Some(now);
        let Some(view) = self.view.clone() else { return Vec::new() };
        let mut sent = Vec::new();
        let clusters = self.upserts(&view, CLUSTER, &mut sent);
        let endpoints = self.upserts(&view, CLUSTER_LOAD_ASSIGNMENT, &mut sent);
        let subscribed = !self.awaits_endpoints(&view, now);
        let turns: [(&str, Turn); 6] = [
            (LISTENER, Session::upserts),
            (ROUTE_CONFIGURATION, Session::upserts),
            (LISTENER, Session::removals),
            (CLUSTER, Session::removals),
            (CLUSTER_LOAD_ASSIGNMENT, Session::removals),
            (ROUTE_CONFIGURATION, Session::removals),
        ];
        // The first turn that is not over ends the round.
        let ordered = clusters
            && endpoints
            && subscribed
            && turns.into_iter().all(|(type_url, turn)| turn(self, &view, type_url, &mut sent));
        let mut others = true;
        for type_url in self.types.keys().filter(|url| !ORDERED.contains(&url.as_str())).cloned().collect::<Vec<_>>() {
            others &= self.upserts(&view, &type_url, &mut sent) && self.removals(&view, &type_url, &mut sent);
        }
        for type_url in [LISTENER, ROUTE_CONFIGURATION] {
            self.answer_absent(&view, type_url, &mut sent);
        }
        if ordered && others && sent.is_empty() && !self.awaits_subscriptions(&view, now) {
            self.report_synced(&view);
        }
        sent
    }

    /// Send what is new or changed of a type. Tells whether nothing of it is left, in flight or to send.
    fn upserts(&mut self, view: &View, type_url: &str, sent: &mut Vec<Rope>) -> bool {
        let Some(subscription) = self.types.get_mut(type_url) else { return true };
        if subscription.in_flight.is_some() {
            return false;
        }
        subscription.plan(view.types.get(type_url), self.variant);
        let batch = subscription.next_batch();
        let absent = subscription.take_absent();
        if batch.is_empty() && absent.is_empty() && !subscription.answer {
            return true;
        }
        subscription.answer = false;
        for resource in &batch {
            subscription.again.remove(&resource.name);
        }
        if type_url == CLUSTER {
            self.send_endpoints_again(&batch);
        }
        sent.push(self.respond(view, type_url, batch, absent));
        false
    }

    /// The cluster will be warmed again, and its client waits for endpoints even if it has them.
    fn send_endpoints_again(&mut self, clusters: &[Arc<Resource>]) {
        let Some(endpoints) = self.types.get_mut(CLUSTER_LOAD_ASSIGNMENT) else { return };
        for name in clusters.iter().filter_map(|cluster| cluster.endpoints.as_ref()) {
            if endpoints.has.contains_key(name) {
                endpoints.again.insert(name.clone());
                endpoints.plan = None;
            }
        }
    }

    /// Take away what is no longer in the view. Tells whether nothing of it is left, in flight or to send.
    fn removals(&mut self, view: &View, type_url: &str, sent: &mut Vec<Rope>) -> bool {
        let Some(subscription) = self.types.get_mut(type_url) else { return true };
        if subscription.in_flight.is_some() {
            return false;
        }
        let plan = subscription.plan(view.types.get(type_url), self.variant);
        let removals = std::mem::take(&mut plan.removals);
        if removals.is_empty() {
            return true;
        }
        if self.variant == Variant::StateOfTheWorld && !is_whole(type_url) {
            // There is no way to say it, and none is needed: what referred to these has been removed before.
            for name in &removals {
                subscription.has.remove(name);
            }
            return true;
        }
        sent.push(self.respond(view, type_url, Vec::new(), removals));
        false
    }

    /// Tell of names that nobody publishes, whoever's turn it is: their client waits.
    fn answer_absent(&mut self, view: &View, type_url: &str, sent: &mut Vec<Rope>) {
        let Some(subscription) = self.types.get_mut(type_url) else { return };
        if subscription.in_flight.is_none() {
            subscription.plan(view.types.get(type_url), self.variant);
            let absent = subscription.take_absent();
            if !absent.is_empty() {
                sent.push(self.respond(view, type_url, Vec::new(), absent));
            }
        }
    }

    /// Put a response together and remember it as in flight.
    fn respond(&mut self, view: &View, type_url: &str, upserts: Vec<Arc<Resource>>, removals: Vec<Arc<str>>) -> Rope {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let subscription = self.types.get_mut(type_url).expect("a response is made for a subscription only");
        // Of a virtual host that never was the client waits for a resource without a body (Envoy, "VHDS"), and for no other word of it.
        let (unpopulated, gone): (Vec<&Arc<str>>, Vec<&Arc<str>>) =
            removals.iter().partition(|name| type_url == VIRTUAL_HOST && !subscription.has.contains_key(*name));
        let unpopulated = unpopulated.into_iter().map(|name| Resource::unpopulated(name));
        let pieces: Vec<Bytes> = match self.variant {
            Variant::Delta => upserts.iter().map(|it| it.as_delta()).chain(unpopulated).collect(),
            Variant::StateOfTheWorld if is_whole(type_url) => subscription.whole(&upserts, &removals),
            Variant::StateOfTheWorld => upserts.iter().map(|it| it.as_state_of_the_world()).collect(),
        };
        let told: &[&Arc<str>] = if self.variant == Variant::Delta { &gone } else { &[] };
        let response = response(view.revision, type_url, &nonce, told, pieces);
        let completes = subscription.plan.as_ref().filter(|plan| plan.upserts.is_empty() && plan.removals.is_empty());
        let completes = completes.and_then(|plan| plan.generation);
        subscription.in_flight = Some(InFlight { nonce, upserts, removals, completes });
        response
    }

    /// Whether accepted clusters have endpoints in the view that the client has not subscribed yet, and may still.
    fn awaits_endpoints(&mut self, view: &View, now: Instant) -> bool {
        let published = view.types.get(CLUSTER_LOAD_ASSIGNMENT);
        let subscription = self.types.get(CLUSTER_LOAD_ASSIGNMENT);
        self.awaited.retain(|name| !subscription.is_some_and(|it| it.wants(name)));
        let lacking = self.awaited.iter().any(|name| published.is_some_and(|set| set.items.contains_key(name)));
        let waits = self.endpoints_wait.holds(lacking, now, self.patience);
        if lacking && !waits {
            // This client takes its endpoints from somewhere else.
            self.awaited.clear();
            self.endpoints_wait = Wait::default();
        }
        waits
    }

    /// Whether the view has clusters or listeners and the client has not subscribed the type yet, and may still:
    /// Envoy asks for listeners only when its clusters are warm.
    fn awaits_subscriptions(&mut self, view: &View, now: Instant) -> bool {
        let lacking = [CLUSTER, LISTENER].into_iter().any(|type_url| {
            !self.types.contains_key(type_url) && view.types.get(type_url).is_some_and(|set| !set.items.is_empty())
        });
        self.first_wait.holds(lacking, now, self.patience)
    }

    fn report_synced(&mut self, view: &View) {
        if self.synced != Some(view.revision) {
            self.synced = Some(view.revision);
            self.reports.push(Report::Synced { view: view.name.clone(), revision: view.revision });
        }
    }
}

/// Whether a state-of-the-world response of this type holds everything, so that what is not in it is gone (xDS
/// protocol, "Grouping Resources into Responses").
fn is_whole(type_url: &str) -> bool {
    type_url == CLUSTER || type_url == LISTENER
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Subscribe everything.
    fn widen(&mut self) {
        if !self.wildcard {
            self.wildcard = true;
            self.answer = self.has.is_empty();
            self.settled = None;
            if let Some(in_flight) = &mut self.in_flight {
                in_flight.completes = None;
            }
        }
    }

    /// Unsubscribe a name, or the wildcard.
    fn forget(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.answer = false;
            self.has.retain(|name, _| self.names.contains(name));
            self.culprits.retain(|name, _| self.names.contains(name));
            return;
        }
        self.names.remove(name);
        if self.wildcard {
            // Still covered: the client has dropped it and must be told of it again.
            self.again.insert(name.into());
        } else {
            self.has.remove(name);
            self.again.remove(name);
            self.culprits.remove(name);
        }
    }

    fn accept(&mut self, resource: Arc<Resource>) {
        if self.wants(&resource.name) {
            self.culprits.remove(&resource.name);
            let version = Some(resource.version.clone());
            self.has.insert(resource.name.clone(), Held { version, resource: Some(resource) });
        }
    }

    /// Divide a refused response into what was accepted and what is known to be at fault; what may be either is
    /// tried again in halves.
    fn judge(&mut self, upserts: Vec<Arc<Resource>>, status: &Status) -> (Vec<Arc<Resource>>, Vec<Culprit>) {
        let named: BTreeMap<_, _> = refusal::from_status(status).into_iter().map(|it| (it.name, it.reason)).collect();
        let (mut at_fault, others): (Vec<_>, Vec<_>) =
            upserts.into_iter().partition(|resource| named.contains_key(&*resource.name));
        let mut accepted = Vec::new();
        if !at_fault.is_empty() {
            accepted = others;
        } else if others.len() <= 1 {
            at_fault = others;
            if at_fault.is_empty() {
                // Nothing but removals, or an empty answer: there is nothing to hold back.
                return (accepted, vec![("".into(), "".into(), status.message.clone())]);
            }
        } else {
            for resource in &others {
                // The client may have taken it all the same (Envoy does), so it counts when the resource goes, and
                // what it had before is news when the view goes back to that.
                self.has.entry(resource.name.clone()).or_insert(Held { version: None, resource: None }).version = None;
            }
            let (first, second) = others.split_at(others.len() / 2);
            for half in [second, first] {
                self.trials.push_front(half.iter().map(|it| it.name.clone()).collect());
            }
        }
        let culprits = at_fault.into_iter().map(|resource| {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            self.culprits.insert(name.clone(), version.clone());
            let message = named.get(&*name).unwrap_or(&status.message).clone();
            (name, version, message)
        });
        (accepted, culprits.collect())
    }

    /// Find out what is left to send, unless it is known.
    fn plan(&mut self, set: Option<&Arc<TypeSet>>, variant: Variant) -> &mut Plan {
        if self.plan.is_none() {
            self.plan = Some(self.difference(set, variant));
        }
        self.plan.as_mut().expect("made above")
    }

    fn difference(&mut self, set: Option<&Arc<TypeSet>>, variant: Variant) -> Plan {
        let mut plan = Plan { generation: set.map(|it| it.generation), ..Plan::default() };
        let item = |name: &str| set.and_then(|set| set.items.get(name));
        let again = std::mem::take(&mut self.again);
        let mut names: BTreeSet<Arc<str>> = again.clone();
        match set {
            Some(set) if self.settled == Some(set.generation) => {}
            Some(set) if self.settled.is_some() && self.settled == set.parent => {
                names.extend(set.changed.iter().cloned())
            }
            _ => {
                names.extend(self.has.keys().cloned());
                if self.wildcard {
                    names.extend(set.iter().flat_map(|set| set.items.keys().cloned()));
                } else {
                    names.extend(self.names.iter().cloned());
                }
            }
        }
        for name in names {
            if !self.wants(&name) {
                continue;
            }
            let asked = again.contains(&name);
            match item(&name) {
                Some(resource) if self.culprits.get(&name) == Some(&resource.version) => {}
                Some(resource) => {
                    self.culprits.remove(&name);
                    let held = self.has.get(&name).and_then(|held| held.version.as_ref());
                    if asked || held != Some(&resource.version) {
                        plan.upserts.push(resource.clone());
                    }
                }
                None if asked && variant == Variant::Delta => plan.absent.push(name),
                None if self.has.contains_key(&name) => plan.removals.push(name),
                None => {}
            }
        }
        // Kept until sent; a plan that is thrown away must find them again.
        let planned = plan.upserts.iter().map(|it| &it.name).chain(&plan.absent);
        self.again = planned.filter(|name| again.contains(*name)).cloned().collect();
        if plan.upserts.is_empty() && plan.removals.is_empty() && self.in_flight.is_none() && self.trials.is_empty() {
            self.settled = plan.generation;
        }
        plan
    }

    /// Take out of the plan what goes into the next response.
    fn next_batch(&mut self) -> Vec<Arc<Resource>> {
        let Some(plan) = &mut self.plan else { return Vec::new() };
        while let Some(group) = self.trials.pop_front() {
            let upserts = std::mem::take(&mut plan.upserts);
            let (batch, rest) = upserts.into_iter().partition(|resource| group.contains(&resource.name));
            plan.upserts = rest;
            if !Vec::is_empty(&batch) {
                return batch;
            }
        }
        std::mem::take(&mut plan.upserts)
    }

    fn take_absent(&mut self) -> Vec<Arc<str>> {
        let absent = self.plan.as_mut().map(|plan| std::mem::take(&mut plan.absent)).unwrap_or_default();
        for name in &absent {
            self.again.remove(name);
            self.has.remove(name);
        }
        absent
    }

    /// Everything that the client is to have after this response, as the state of the world needs it.
    fn whole(&self, upserts: &[Arc<Resource>], removals: &[Arc<str>]) -> Vec<Bytes> {
        let mut all: BTreeMap<&str, &Arc<Resource>> = BTreeMap::new();
        let kept = self.has.iter().filter_map(|(name, held)| Some((&**name, held.resource.as_ref()?)));
        all.extend(kept.filter(|(name, _)| !removals.iter().any(|removed| &**removed == *name)));
        all.extend(upserts.iter().map(|it| (&*it.name, it)));
        all.into_values().map(|it| it.as_state_of_the_world()).collect()
    }
}

/// Waiting for something that may never come.
#[derive(Debug, Default)]
struct Wait {
    since: Option<Instant>,
    until: Option<Instant>,
}

impl Wait {
    /// Whether to go on waiting while `lacking`: at most `patience` from the first time on.
    fn holds(&mut self, lacking: bool, now: Instant, patience: Duration) -> bool {
        if !lacking {
            *self = Wait::default();
            return false;
        }
        let end = *self.since.get_or_insert(now) + patience;
        self.until = (now < end).then_some(end);
        self.until.is_some()
    }
}

/// Field numbers that DiscoveryResponse and DeltaDiscoveryResponse share (discovery.proto), and the one of delta only.
mod field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED: u32 = 6;
}

/// A framed response around encoded resources.
fn response(revision: u64, type_url: &str, nonce: &str, removed: &[&Arc<str>], resources: Vec<Bytes>) -> Rope {
    let revision = revision.to_string();
    let fields = [(field::VERSION, &*revision), (field::TYPE_URL, type_url), (field::NONCE, nonce)];
    let fields = fields.into_iter().chain(removed.iter().map(|name| (field::REMOVED, &***name)));
    let head_bytes: usize = fields.clone().map(|(tag, value)| bytes_len(tag, value.len())).sum();
    let mut head = BytesMut::with_capacity(grpc::PREFIX_BYTES + head_bytes);
    head.put_slice(&grpc::prefix(head_bytes + resources.iter().map(Bytes::len).sum::<usize>()));
    for (tag, value) in fields {
        put_bytes(&mut head, tag, value.as_bytes());
    }
    let mut rope = Rope::default();
    rope.push(head.freeze());
    resources.into_iter().for_each(|piece| rope.push(piece));
    rope
}
