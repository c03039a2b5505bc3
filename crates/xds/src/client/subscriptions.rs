//! What is wanted of each type, what the server was told, and what is here: pure, for both protocols.
//!
//! Streams come and go, [`Subscriptions`] stays. What differs between delta and the state of the world is how a request is written
//! and how a response is read; both are here side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use bytes::Bytes;
use prost::Message;
use weft_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wrapped,
};
use weft_protos::google::protobuf::Any;
use weft_protos::google::rpc::Status;
use weft_protos::type_url;

use super::{Command, Receiver, Resource};
use crate::grpc::FrameError;
use crate::refusal::{self, Refusal};
use crate::{Protocol, WILDCARD};

/// A request of either protocol, without a node.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    Delta(DeltaDiscoveryRequest),
    World(DiscoveryRequest),
}

impl Request {
    fn type_url(&self) -> &str {
        match self {
            Self::Delta(request) => &request.type_url,
            Self::World(request) => &request.type_url,
        }
    }
}

/// A response of either protocol.
#[derive(Debug)]
pub(super) enum Response {
    Delta(DeltaDiscoveryResponse),
    World(DiscoveryResponse),
}

impl Protocol {
    pub(super) fn decode(self, message: Bytes) -> Result<Response, FrameError> {
        Ok(match self {
            Self::Delta => Response::Delta(DeltaDiscoveryResponse::decode(message)?),
            Self::StateOfTheWorld => Response::World(DiscoveryResponse::decode(message)?),
        })
    }
}

/// One resource of a response, of whichever protocol.
struct Arrived {
    name: String,
    aliases: Vec<String>,
    version: String,
    any: Any,
}

/// What became of a response; [`Subscriptions::answer`] tells the server.
#[derive(Debug)]
pub(super) struct Verdict {
    type_url: String,
    nonce: String,
    refusals: Vec<Refusal>,
}

/// The state of one type: what is wanted, what the server was told on this stream, what is here.
#[derive(Debug, Default)]
struct TypeState {
    wanted: BTreeSet<String>,
    /// The server is to know of this type though nothing is wanted by name: what it sends by itself is welcome.
    is_open: bool,
    /// The first request for this type was sent on the present stream.
    is_told: bool,
    /// Names that were subscribed or unsubscribed since the last request, and whether the server was told that they are wanted. What it
    /// was told of was given up since, and so is not here: if it is wanted again, the server is to send it again.
    unsaid: BTreeMap<String, bool>,
    versions: BTreeMap<String, String>,
    /// State of the world: the version of the last response that was accepted whole.
    accepted: String,
    /// State of the world: the nonce of the last response on the present stream.
    nonce: String,
    /// State of the world: a response waits for its verdict, which carries whatever has changed meanwhile.
    is_unanswered: bool,
}

/// Every type that was ever subscribed.
#[derive(Debug)]
pub(super) struct Subscriptions {
    protocol: Protocol,
    types: BTreeMap<String, TypeState>,
}

impl Subscriptions {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, types: BTreeMap::new() }
    }

    fn entry(&mut self, type_url: &str) -> &mut TypeState {
        if !self.types.contains_key(type_url) {
            self.types.insert(type_url.to_owned(), TypeState::default());
        }
        self.types.get_mut(type_url).expect("inserted above")
    }

    /// What is here before the first stream.
    pub(super) fn resume(&mut self, type_url: &str, versions: impl IntoIterator<Item = (String, String)>) {
        self.entry(type_url).versions.extend(versions);
    }

    pub(super) fn apply(&mut self, command: Command) {
        match command {
            Command::Subscribe(type_url, names) => {
                let state = self.entry(&type_url);
                state.is_open |= names.is_empty();
                for name in names {
                    if state.wanted.insert(name.clone()) && state.is_told {
                        state.unsaid.entry(name).or_insert(false);
                    }
                }
            }
            Command::Unsubscribe(type_url, names) => {
                let state = self.entry(&type_url);
                for name in names {
                    let was_wanted = state.wanted.remove(&name);
                    if !state.takes_all() {
                        state.versions.remove(&name);
                    }
                    if was_wanted && state.is_told && !*state.unsaid.entry(name.clone()).or_insert(true) {
                        // The server has never heard of it.
                        state.unsaid.remove(&name);
                    }
                }
            }
        }
    }

    /// The first requests of a new stream, in the order in which the types depend on each other.
    pub(super) fn first_requests(&mut self) -> Vec<Request> {
        for state in self.types.values_mut() {
            state.is_told = false;
            state.unsaid.clear();
            state.nonce.clear();
            state.is_unanswered = false;
        }
        self.changes()
    }

    /// The requests for each type whose wanted names differ from what the server knows: one, or two where a name is to go and
    /// to come again and a request can only say what there is.
    pub(super) fn changes(&mut self) -> Vec<Request> {
        let protocol = self.protocol;
        let types = self.types.iter_mut();
        let mut requests: Vec<_> =
            types.flat_map(|(url, state)| iter::from_fn(move || state.change(protocol, url))).collect();
        requests.sort_by_key(|request| rank(request.type_url()));
        requests
    }

    /// Hand a response over. `None` if it is of a type that nobody asked for, which is left unanswered.
    pub(super) fn receive(&mut self, response: Response, receiver: &mut impl Receiver) -> Option<Verdict> {
        match response {
            Response::Delta(response) => Some(self.receive_delta(response, receiver)),
            Response::World(response) => self.receive_world(response, receiver),
        }
    }

    fn receive_delta(&mut self, response: DeltaDiscoveryResponse, receiver: &mut impl Receiver) -> Verdict {
        let DeltaDiscoveryResponse {
            type_url, nonce, resources, mut removed_resources, removed_resource_names, ..
        } = response;
        removed_resources.extend(removed_resource_names.into_iter().map(|it| it.name));
        let mut arrived = Vec::with_capacity(resources.len());
        for Wrapped { name, aliases, version, resource, ttl, .. } in resources {
            match resource {
                Some(any) => arrived.push(Arrived { name, aliases, version, any }),
                // What was asked for by these names does not exist (VHDS).
                None if ttl.is_none() => removed_resources.extend([name].into_iter().chain(aliases)),
                // It only prolongs its time to live, which we never ask for.
                None => {}
            }
        }
        self.hand_over(type_url, nonce, arrived, removed_resources, receiver)
    }

    fn receive_world(&mut self, response: DiscoveryResponse, receiver: &mut impl Receiver) -> Option<Verdict> {
        let DiscoveryResponse { version_info, resources, type_url, nonce, .. } = response;
        // An answer would have to say which names are wanted, and none would mean all.
        let state = self.types.get_mut(&type_url).filter(|state| state.is_told)?;
        state.nonce.clone_from(&nonce);
        state.is_unanswered = true;
        let arrived: Vec<_> = resources.into_iter().map(|any| named(any, &version_info)).collect();
        // Of these a response holds all that there is; of others only what is news.
        let removed = if matches!(&*type_url, type_url::LISTENER | type_url::CLUSTER) {
            let here: BTreeSet<_> = arrived.iter().map(|it| &it.name).collect();
            state.versions.keys().filter(|name| !here.contains(name)).cloned().collect()
        } else {
            Vec::new()
        };
        let verdict = self.hand_over(type_url, nonce, arrived, removed, receiver);
        if verdict.refusals.is_empty() {
            self.entry(&verdict.type_url).accepted = version_info;
        }
        Some(verdict)
    }

    fn hand_over(
        &mut self,
        type_url: String,
        nonce: String,
        arrived: Vec<Arrived>,
        removed: Vec<String>,
        receiver: &mut impl Receiver,
    ) -> Verdict {
        let mut refusals = Vec::new();
        let mut accepted = Vec::with_capacity(arrived.len());
        let ambiguous = ambiguous(&arrived);
        for Arrived { name, aliases, version, any } in arrived {
            if ambiguous.contains(&name) {
                let reason = "the response has more than one resource of this name".into();
                refusals.push(Refusal { name, reason });
            } else if any.type_url == type_url {
                accepted.push(Resource { name, aliases, version, body: any.value });
            } else {
                let reason = format!("the resource is a {}, the response is of {type_url}", any.type_url);
                refusals.push(Refusal { name, reason });
            }
        }
        let names: Vec<_> = accepted.iter().map(|it| (it.name.clone(), it.version.clone())).collect();
        if let Err(more) = receiver.update(&type_url, accepted, removed.clone()) {
            refusals.extend(more);
        }
        let state = self.entry(&type_url);
        for name in &removed {
            state.versions.remove(name);
        }
        let all = state.takes_all();
        for (name, version) in names {
            // A name that was given up while its resource was on the way is not here: its receiver has dropped it.
            let kept = all || state.wanted.contains(&name);
            if kept && !refusals.iter().any(|refusal| refusal.name == name) {
                state.versions.insert(name, version);
            }
        }
        Verdict { type_url, nonce, refusals }
    }

    /// The ACK or NACK.
    pub(super) fn answer(&mut self, verdict: Verdict) -> Request {
        let Verdict { type_url, nonce, refusals } = verdict;
        let error_detail: Option<Status> = (!refusals.is_empty()).then(|| refusal::to_status(&refusals));
        match self.protocol {
            Protocol::Delta => Request::Delta(DeltaDiscoveryRequest {
                type_url,
                response_nonce: nonce,
                error_detail,
                ..Default::default()
            }),
            Protocol::StateOfTheWorld => {
                let request = self.entry(&type_url).world_request(&type_url);
                Request::World(DiscoveryRequest { error_detail, ..request })
            }
        }
    }
}

impl TypeState {
    /// Whether what was not asked for by name is kept, too.
    fn takes_all(&self) -> bool {
        self.is_open || self.wanted.contains(WILDCARD)
    }

    /// The next request that makes the server's knowledge equal to `wanted`, or nothing if it is.
    fn change(&mut self, protocol: Protocol, type_url: &str) -> Option<Request> {
        match protocol {
            Protocol::Delta => self.delta_change(type_url).map(Request::Delta),
            Protocol::StateOfTheWorld => self.world_change(type_url).map(Request::World),
        }
    }

    /// The change where a request says what is new and what goes.
    fn delta_change(&mut self, type_url: &str) -> Option<DeltaDiscoveryRequest> {
        let mut request = DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() };
        if !self.is_told {
            if self.wanted.is_empty() && !self.is_open {
                return None;
            }
            self.is_told = true;
            request.resource_names_subscribe = names(&self.wanted);
            let all = self.takes_all();
            let here = self.versions.iter().filter(|(name, _)| all || self.wanted.contains(*name));
            request.initial_resource_versions = here.map(|(name, version)| (name.clone(), version.clone())).collect();
        } else if self.unsaid.is_empty() {
            return None;
        } else {
            // What is subscribed again is sent again: its client may have dropped it and want it again before it had
            // said so (discovery.proto, `resource_names_subscribe`).
            (request.resource_names_subscribe, request.resource_names_unsubscribe) =
                std::mem::take(&mut self.unsaid).into_keys().partition(|name| self.wanted.contains(name));
        }
        Some(request)
    }

    /// The same where each request holds all names. One whose nonce was not answered yet would be taken for its ACK.
    fn world_change(&mut self, type_url: &str) -> Option<DiscoveryRequest> {
        let is_same = if self.is_told { self.unsaid.is_empty() } else { self.wanted.is_empty() };
        (!is_same && !self.is_unanswered).then(|| self.world_request(type_url))
    }

    fn world_request(&mut self, type_url: &str) -> DiscoveryRequest {
        // What was given up is left out once, and is news to the server with the next request.
        self.unsaid.retain(|name, was_told| std::mem::take(was_told) && self.wanted.contains(name));
        let resource_names = names(self.wanted.iter().filter(|name| !self.unsaid.contains_key(*name)));
        self.is_told = true;
        self.is_unanswered = false;
        DiscoveryRequest {
            version_info: self.accepted.clone(),
            resource_names,
            type_url: type_url.to_owned(),
            response_nonce: self.nonce.clone(),
            ..Default::default()
        }
    }
}

/// *wanted* as a request says it. The wildcard alone is no name at all: older servers know no other form.
fn names<'a>(wanted: impl IntoIterator<Item = &'a String, IntoIter: Clone>) -> Vec<String> {
    let wanted = wanted.into_iter();
    if wanted.clone().eq([WILDCARD]) { Vec::new() } else { wanted.cloned().collect() }
}

/// A resource of the state of the world with its name and version. It may come in a wrapper that says both; by itself it says its name
/// in its first field, whatever its type is, and its version is that of the response.
fn named(any: Any, version: &str) -> Arrived {
    /// `name` of `Listener`, `RouteConfiguration`, `Cluster` and `Secret`, `cluster_name` of `ClusterLoadAssignment`.
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    if any.type_url.ends_with("/envoy.service.discovery.v3.Resource")
        && let Ok(Wrapped { name, resource: Some(inner), .. }) = Wrapped::decode(any.value.clone())
    {
        return Arrived { name, aliases: Vec::new(), version: version.to_owned(), any: inner };
    }
    // Bytes that do not decode are refused by who knows the type; until then it has no name.
    let name = Named::decode(any.value.clone()).unwrap_or_default().name;
    Arrived { name, aliases: Vec::new(), version: version.to_owned(), any }
}

/// Names that stand more than once, as in no response may be (Envoy refuses it, too): which of them is here afterwards would be anybody's
/// guess. Without a name are those that do not decode, and each is refused for that.
fn ambiguous(arrived: &[Arrived]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let again = arrived.iter().filter(|it| !it.name.is_empty() && !names.insert(&it.name));
    again.map(|it| it.name.clone()).collect()
}

/// Clusters before the endpoints in them, listeners before the routes they name (xDS protocol, "Eventual consistency
/// considerations").
fn rank(url: &str) -> usize {
    let order = [
        type_url::CLUSTER,
        type_url::CLUSTER_LOAD_ASSIGNMENT,
        type_url::LISTENER,
        type_url::ROUTE_CONFIGURATION,
        type_url::VIRTUAL_HOST,
        type_url::SECRET,
    ];
    order.iter().position(|known| *known == url).unwrap_or(order.len())
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
