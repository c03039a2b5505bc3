//! What a client of xDS makes of a control plane's responses, in either protocol: nothing panics, the server knows at any time what is
//! wanted and is asked to give up only what it knows, what it refuses is named by the NACK, and of what comes whole nothing outlives the
//! response that it is missing from.
//!
//! The first byte of the input says which protocol; then come steps, each of which is a response, names to subscribe or to unsubscribe
//! with lines between them, or another stream.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use weft_protos::google::rpc::Status;
use weft_protos::type_url;

#[allow(dead_code)]
#[path = "../../crates/xds/src/grpc.rs"]
mod grpc;
#[path = "../../crates/xds/src/refusal.rs"]
mod refusal;
#[allow(dead_code)]
#[path = "../../crates/xds/src/client/subscriptions.rs"]
mod subscriptions;

use refusal::Refusal;
use subscriptions::{Request, Subscriptions};

// As in the crate of xDS, without its streams.
const WILDCARD: &str = "*";

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Delta,
    StateOfTheWorld,
}

enum Command {
    Subscribe(String, Vec<String>),
    Unsubscribe(String, Vec<String>),
}

struct Resource {
    name: String,
    #[allow(dead_code)]
    aliases: Vec<String>,
    #[allow(dead_code)]
    version: String,
    #[allow(dead_code)]
    body: Bytes,
}

trait Receiver {
    fn update(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>>;
}

/// The first two are followed whole, as a proxy does.
const TYPES: [&str; 4] = [type_url::LISTENER, type_url::CLUSTER, type_url::SECRET, type_url::VIRTUAL_HOST];

fuzz_target!(|input: &[u8]| {
    let [protocol, rest @ ..] = input else { return };
    let protocol = if protocol & 1 == 0 { Protocol::Delta } else { Protocol::StateOfTheWorld };
    let mut subscriptions = Subscriptions::new(protocol);
    let mut proxy = Proxy::default();
    let mut server = Server::default();
    let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for type_url in &TYPES[..2] {
        subscriptions.apply(Command::Subscribe((*type_url).into(), vec![WILDCARD.into()]));
    }
    server.hear(subscriptions.first_requests());
    for (kind, bytes) in weft_fuzz::steps(rest) {
        let type_url = TYPES[usize::from(kind >> 2) % TYPES.len()];
        let names = || {
            let names = bytes.split(|byte| *byte == b'\n').map(|name| String::from_utf8_lossy(name).into_owned());
            names.filter(|name| name != WILDCARD).collect::<Vec<_>>()
        };
        match kind & 3 {
            0 => {
                let Ok(response) = protocol.decode(Bytes::copy_from_slice(bytes)) else { return };
                proxy.said = Said::default();
                let Some(verdict) = subscriptions.receive(response, &mut proxy) else { continue };
                server.hear(subscriptions.changes());
                let answer = subscriptions.answer(verdict);
                proxy.check(protocol, error_of(&answer));
                server.hear([answer]);
            }
            1 => {
                subscriptions.apply(Command::Subscribe(type_url.into(), names()));
                wanted.entry(type_url).or_default().extend(names());
            }
            2 => {
                subscriptions.apply(Command::Unsubscribe(type_url.into(), names()));
                wanted.entry(type_url).or_default().retain(|name| !names().contains(name));
            }
            _ => {
                server = Server::default();
                server.hear(subscriptions.first_requests());
            }
        }
        server.hear(subscriptions.changes());
        for type_url in TYPES {
            let told = server.told.get(type_url).cloned().unwrap_or_default();
            assert_eq!(told, wanted.get(type_url).cloned().unwrap_or_default(), "{type_url}");
        }
        assert_eq!(subscriptions.changes(), [], "all was said");
    }
});

/// What a server knows of what is wanted by name.
#[derive(Default)]
struct Server {
    told: BTreeMap<String, BTreeSet<String>>,
}

impl Server {
    fn hear(&mut self, requests: impl IntoIterator<Item = Request>) {
        for request in requests {
            match request {
                Request::Delta(request) => {
                    let told = self.told.entry(request.type_url).or_default();
                    told.extend(request.resource_names_subscribe.into_iter().filter(|name| name != WILDCARD));
                    for name in request.resource_names_unsubscribe {
                        assert!(told.remove(&name), "{name:?} was never asked for");
                    }
                }
                Request::World(request) => {
                    let names = request.resource_names.into_iter().filter(|name| name != WILDCARD);
                    self.told.insert(request.type_url, names.collect());
                }
            }
        }
    }
}

/// What came in the last response.
#[derive(Default)]
struct Said {
    type_url: String,
    names: BTreeSet<String>,
    refused: BTreeSet<String>,
}

/// It refuses what has an exclamation mark in its name, and what has none.
#[derive(Default)]
struct Proxy {
    held: BTreeMap<String, BTreeSet<String>>,
    said: Said,
}

impl Receiver for Proxy {
    fn update(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>> {
        let held = self.held.entry(type_url.into()).or_default();
        for name in &removed {
            held.remove(name);
        }
        let names: BTreeSet<String> = resources.into_iter().map(|resource| resource.name).collect();
        let (refused, taken): (BTreeSet<_>, BTreeSet<_>) = names.iter().cloned().partition(|name| name.is_empty() || name.contains('!'));
        held.extend(taken);
        self.said = Said { type_url: type_url.into(), names, refused: refused.clone() };
        let refusals: Vec<_> = refused.into_iter().map(|name| Refusal { name, reason: "so it is".into() }).collect();
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }
}

impl Proxy {
    /// Whether the answer says what was refused, and what is here is in the response.
    fn check(&self, protocol: Protocol, error: Option<&Status>) {
        let refused: BTreeSet<String> =
            error.map(refusal::from_status).into_iter().flatten().map(|refusal| refusal.name).collect();
        assert!(self.said.refused.is_subset(&refused));
        assert_eq!(error.is_some(), !refused.is_empty());
        let is_whole = matches!(protocol, Protocol::StateOfTheWorld) && TYPES[..2].contains(&&*self.said.type_url);
        if let (true, Some(held)) = (is_whole, self.held.get(&self.said.type_url)) {
            assert!(held.iter().all(|name| self.said.names.contains(name) || refused.contains(name)), "{held:?}");
        }
    }
}

fn error_of(answer: &Request) -> Option<&Status> {
    match answer {
        Request::Delta(request) => request.error_detail.as_ref(),
        Request::World(request) => request.error_detail.as_ref(),
    }
}
