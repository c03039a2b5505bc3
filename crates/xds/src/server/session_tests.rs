//! A session against scripted clients, and against one that does anything in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use prost::Message;
use quickcheck::quickcheck;
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use weft_protos::google::rpc::Status;
use weft_protos::type_url::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, SECRET, VIRTUAL_HOST};

use super::session::{Report, Session, Variant};
use super::view::{Published, Views};
use crate::grpc::PREFIX_BYTES;
use crate::refusal::{self, Refusal};
use crate::rope::Rope;

const PATIENCE: Duration = Duration::from_secs(5);

/// A response as a client sees it.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    type_url: String,
    nonce: String,
    /// `name=version`.
    resources: Vec<String>,
    removed: Vec<String>,
}

struct Peer {
    session: Session,
    views: Views,
    now: Instant,
    variant: Variant,
}

impl Peer {
    fn new(variant: Variant) -> Self {
        Self { session: Session::new(variant, PATIENCE), views: Views::default(), now: Instant::now(), variant }
    }

    /// Publish; the resources are written `type/name=version`, with the type as in [`long`].
    fn show(&mut self, revision: u64, resources: &str) {
        let view = self.views.publish("v", revision, resources.split_whitespace().map(published).collect());
        self.session.show(Some(view));
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) {
        match self.variant {
            Variant::Delta => self.session.delta(request).unwrap(),
            Variant::StateOfTheWorld => {
                let DeltaDiscoveryRequest { type_url, response_nonce, error_detail, .. } = request;
                let resource_names = request.resource_names_subscribe;
                let request =
                    DiscoveryRequest { type_url, response_nonce, error_detail, resource_names, ..Default::default() };
                self.session.state_of_the_world(request).unwrap();
            }
        }
    }

    fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: names.iter().map(|it| (*it).into()).collect(),
            ..Default::default()
        });
    }

    fn send(&mut self) -> Vec<Got> {
        self.session.send(self.now).into_iter().map(|rope| self.read(rope)).collect()
    }

    /// Exactly one response, with what it brings.
    fn one(&mut self) -> Got {
        let sent = self.send();
        let [got] = &sent[..] else { panic!("not one response: {sent:#?}") };
        got.clone()
    }

    fn read(&self, mut rope: Rope) -> Got {
        let mut bytes = rope.copy_to_bytes(rope.remaining());
        let prefix = bytes.split_to(PREFIX_BYTES);
        assert_eq!(prefix[0], 0);
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, bytes.len());
        match self.variant {
            Variant::Delta => {
                let response = DeltaDiscoveryResponse::decode(bytes).unwrap();
                // Without a body it is `name=?`, and says its name as an alias, too: Envoy takes it for nothing else.
                let line = |it: &Resource| match &it.resource {
                    Some(_) => format!("{}={}", it.name, it.version),
                    None => format!("{}=?", it.aliases.join("=")),
                };
                let resources = response.resources.iter().map(line).collect();
                let removed = response.removed_resources;
                Got { type_url: response.type_url, nonce: response.nonce, resources, removed }
            }
            Variant::StateOfTheWorld => {
                let response = DiscoveryResponse::decode(bytes).unwrap();
                let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
                let resources = response.resources.iter().map(|it| text(&it.value)).collect();
                Got { type_url: response.type_url, nonce: response.nonce, resources, removed: Vec::new() }
            }
        }
    }

    fn answer(&mut self, got: &Got, names: &[&str], error: Option<Status>) {
        self.request(DeltaDiscoveryRequest {
            type_url: got.type_url.clone(),
            response_nonce: got.nonce.clone(),
            error_detail: error,
            // Delta's ACK carries no names; the state of the world repeats them.
            resource_names_subscribe: names.iter().map(|it| (*it).into()).collect(),
            ..Default::default()
        });
    }

    fn ack(&mut self, got: &Got) {
        self.answer(got, &[], None);
    }

    /// Acknowledge whatever comes until nothing comes; returns what came as `type: names -removed`.
    fn settle(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let sent = self.send();
            if sent.is_empty() {
                return seen;
            }
            for got in sent {
                seen.push(short(&got));
                self.ack(&got);
            }
        }
    }

    fn synced(&mut self) -> Vec<u64> {
        let reports = self.session.reports();
        reports
            .iter()
            .filter_map(|it| if let Report::Synced { revision, .. } = it { Some(*revision) } else { None })
            .collect()
    }

    fn refused(&mut self) -> Vec<String> {
        let text = |report| match report {
            Report::Refused { name, version, message, .. } => Some(format!("{name}={version}: {message}")),
            Report::Synced { .. } => None,
        };
        self.session.reports().into_iter().filter_map(text).collect()
    }
}

fn long(letter: &str) -> &'static str {
    match letter {
        "c" => CLUSTER,
        "e" => CLUSTER_LOAD_ASSIGNMENT,
        "l" => LISTENER,
        "r" => ROUTE_CONFIGURATION,
        "s" => SECRET,
        "v" => VIRTUAL_HOST,
        _ => panic!("no type {letter}"),
    }
}

fn short(got: &Got) -> String {
    let letter = "celrsv".chars().find(|it| long(&it.to_string()) == got.type_url).unwrap();
    let removed = got.removed.iter().map(|name| format!(" -{name}")).collect::<String>();
    format!("{letter}: {}{removed}", got.resources.join(" ")).trim_end().to_owned()
}

/// `type/name=version`. Clusters are of type EDS; the body of others is `name=version`.
fn published(text: &str) -> Published {
    let (letter, rest) = text.split_once('/').unwrap();
    let (name, version) = rest.split_once('=').unwrap();
    let body = if letter == "c" {
        let kind = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        Cluster { cluster_discovery_type: kind, name: name.into(), ..Default::default() }.encode_to_vec()
    } else {
        rest.as_bytes().to_vec()
    };
    Published { type_url: long(letter).into(), name: name.into(), version: version.into(), body: body.into() }
}

/// A client of the whole of a small mesh at revision 1, with everything acknowledged.
fn settled() -> Peer {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/old=1 e/old=1 l/in=1 l/old=1 r/web=1");
    peer.subscribe(CLUSTER, &[]);
    assert_eq!(peer.settle(), ["c: old=1"]);
    peer.subscribe(CLUSTER_LOAD_ASSIGNMENT, &["old"]);
    assert_eq!(peer.settle(), ["e: old=1"]);
    assert_eq!(peer.synced(), [], "the listeners have not been asked for");
    peer.subscribe(LISTENER, &[]);
    assert_eq!(peer.settle(), ["l: in=1 old=1"]);
    peer.subscribe(ROUTE_CONFIGURATION, &["web"]);
    assert_eq!(peer.settle(), ["r: web=1"]);
    assert!(peer.synced().contains(&1));
    peer
}

#[test]
fn new_things_are_in_place_before_old_ones_go() {
    let mut peer = settled();
    peer.show(2, "c/new=1 e/new=1 l/in=2 r/web=2");
    let clusters = peer.one();
    assert_eq!(short(&clusters), "c: new=1");
    // The client learns of the endpoints from the cluster, and is answered before it acknowledges.
    peer.subscribe(CLUSTER_LOAD_ASSIGNMENT, &["new"]);
    let endpoints = peer.one();
    assert_eq!(short(&endpoints), "e: new=1");
    peer.ack(&endpoints);
    assert_eq!(peer.send(), []);
    peer.ack(&clusters);
    for expected in ["l: in=2", "r: web=2", "l:  -old", "c:  -old", "e:  -old"] {
        let got = peer.one();
        assert_eq!(short(&got), expected);
        assert_eq!(peer.synced(), []);
        assert_eq!(peer.send(), [], "the next step waits for the ACK");
        peer.ack(&got);
    }
    assert_eq!(peer.send(), []);
    assert_eq!(peer.synced(), [2]);
    assert_eq!(peer.send(), []);
    assert_eq!(peer.synced(), [], "a revision is reported once");
}

#[test]
fn listeners_wait_for_endpoints_that_are_not_subscribed_but_not_for_ever() {
    let mut peer = settled();
    peer.show(2, "c/old=1 c/new=1 e/old=1 e/new=1 l/in=2 l/old=1 r/web=2");
    let clusters = peer.one();
    peer.ack(&clusters);
    assert_eq!(peer.send(), []);
    assert_eq!(peer.session.deadline(), Some(peer.now + PATIENCE));
    peer.now += PATIENCE;
    assert_eq!(peer.settle(), ["l: in=2", "r: web=2"]);
    assert_eq!(peer.session.deadline(), None);
    assert_eq!(peer.synced(), [2]);
}

#[test]
fn endpoints_of_a_changed_cluster_follow_it_at_once_and_again() {
    let mut peer = settled();
    peer.show(2, "c/old=2 e/old=1 l/in=1 l/old=1 r/web=1");
    let sent = peer.send();
    // Envoy acknowledges the cluster only when the endpoints have come.
    assert_eq!(sent.iter().map(short).collect::<Vec<_>>(), ["c: old=2", "e: old=1"]);
    peer.ack(&sent[1]);
    assert_eq!(peer.send(), []);
    assert_eq!(peer.synced(), []);
    peer.ack(&sent[0]);
    assert_eq!(peer.send(), []);
    assert_eq!(peer.synced(), [2]);
}

#[test]
fn a_changed_cluster_behind_endpoints_in_flight_gets_them_again() {
    let mut peer = settled();
    peer.show(2, "c/old=1 e/old=2 l/in=1 l/old=1 r/web=1");
    let endpoints = peer.one();
    peer.show(3, "c/old=2 e/old=2 l/in=1 l/old=1 r/web=1");
    let clusters = peer.one();
    assert_eq!(short(&clusters), "c: old=2");
    peer.ack(&endpoints);
    assert_eq!(short(&peer.one()), "e: old=2");
}

#[test]
fn a_client_that_comes_back_is_sent_what_differs_and_no_more() {
    for (has, expected) in [
        ("a=1 b=1", vec![]),
        ("a=1 b=0", vec!["c: b=1"]),
        ("a=1", vec!["c: b=1"]),
        ("a=1 b=1 gone=7", vec!["c:  -gone"]),
        ("", vec!["c: a=1 b=1"]),
    ] {
        let mut peer = Peer::new(Variant::Delta);
        peer.show(9, "c/a=1 c/b=1");
        let versions = has.split_whitespace().map(|it| it.split_once('=').unwrap());
        peer.request(DeltaDiscoveryRequest {
            type_url: CLUSTER.into(),
            initial_resource_versions: versions.map(|(name, version)| (name.into(), version.into())).collect(),
            ..Default::default()
        });
        assert_eq!(peer.settle(), expected, "with {has}");
        assert_eq!(peer.synced(), [9]);
    }
}

#[test]
fn names_that_come_back_with_their_versions_are_not_sent_again() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "e/a=1 e/b=2");
    peer.request(DeltaDiscoveryRequest {
        type_url: CLUSTER_LOAD_ASSIGNMENT.into(),
        resource_names_subscribe: ["a", "b", "gone"].map(Into::into).into(),
        initial_resource_versions: [("a", "1"), ("b", "1"), ("gone", "1")].map(|(a, b)| (a.into(), b.into())).into(),
        ..Default::default()
    });
    assert_eq!(peer.settle(), ["e: b=2", "e:  -gone"]);
    peer.subscribe(CLUSTER_LOAD_ASSIGNMENT, &["a"]);
    assert_eq!(peer.settle(), ["e: a=1"], "asking again means wanting it again");
}

#[test]
fn envoy_that_comes_back_is_sent_the_endpoints_that_it_says_it_has_once() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/a=1 e/a=1");
    let has = |type_url: &str| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: vec!["a".into()],
        initial_resource_versions: [("a".into(), "1".into())].into(),
        ..Default::default()
    };
    peer.session.introduce("envoy");
    peer.request(has(CLUSTER));
    peer.request(has(CLUSTER_LOAD_ASSIGNMENT));
    assert_eq!(peer.settle(), ["e: a=1"], "its cluster may wait for them");
    assert_eq!(peer.synced(), [1]);
}

#[test]
fn a_name_that_nobody_publishes_is_answered_as_removed_at_once() {
    let mut peer = settled();
    peer.show(2, "c/old=2 e/old=1 l/in=1 l/old=1 r/web=1");
    assert_eq!(peer.send().len(), 2, "clusters and endpoints are in flight");
    peer.subscribe(ROUTE_CONFIGURATION, &["nowhere"]);
    let got = peer.one();
    assert_eq!(short(&got), "r:  -nowhere");
    peer.ack(&got);
    peer.show(3, "c/old=2 e/old=1 l/in=1 l/old=1 r/web=1 r/nowhere=1");
    assert_eq!(peer.send(), []);
}

#[test]
fn an_empty_world_is_answered_once() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let mut peer = Peer::new(variant);
        peer.subscribe(LISTENER, &[]);
        assert_eq!(peer.send(), [], "without a view there is nothing to say");
        peer.show(1, "");
        assert_eq!(peer.settle(), ["l:"]);
        assert_eq!(peer.synced(), [1]);
        assert_eq!(peer.settle(), Vec::<String>::new());
    }
}

#[test]
fn a_slow_stream_skips_to_the_newest_view() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "s/a=1 s/b=1");
    peer.subscribe(SECRET, &["a", "b"]);
    let first = peer.one();
    for revision in 2..1000 {
        peer.show(revision, &format!("s/a={revision} s/b=1"));
        assert_eq!(peer.send(), [], "one response of a type is in flight");
    }
    peer.ack(&first);
    assert_eq!(peer.settle(), ["s: a=999"]);
    assert_eq!(peer.synced(), [999]);
}

/// Answer as a client that refuses any response which holds one of `bad`.
fn settle_refusing(peer: &mut Peer, bad: &BTreeSet<String>) -> usize {
    let mut responses = 0;
    loop {
        let sent = peer.send();
        if sent.is_empty() {
            return responses;
        }
        for got in sent {
            responses += 1;
            let refuses = got.resources.iter().any(|it| bad.contains(it));
            let status = Status { code: 3, message: "no".into(), details: vec![] };
            peer.answer(&got, &[], refuses.then_some(status));
        }
    }
}

#[test]
fn culprits_are_found_whichever_they_are() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let all: Vec<String> = names.iter().map(|it| format!("c/{it}=1")).collect();
    for subset in 0..1 << names.len() {
        let bad = |it: &&str| subset >> names.iter().position(|name| name == it).unwrap() & 1 == 1;
        let bad: BTreeSet<String> = names.into_iter().filter(bad).map(|it| format!("{it}=1")).collect();
        let mut peer = Peer::new(Variant::Delta);
        peer.show(1, &all.join(" "));
        peer.subscribe(CLUSTER, &[]);
        settle_refusing(&mut peer, &bad);
        let found: BTreeSet<String> = peer.refused().iter().map(|it| it.replace(": no", "")).collect();
        assert_eq!(found, bad);
        // Nothing is sent again, until a culprit changes.
        peer.show(2, &all.join(" "));
        assert_eq!(peer.send(), []);
        assert_eq!(peer.synced(), [2]);
        if let Some(name) = bad.first().and_then(|it| it.split('=').next()) {
            peer.show(3, &all.join(" ").replace(&format!("{name}=1"), &format!("{name}=2")));
            assert_eq!(peer.settle(), [format!("c: {name}=2")]);
        }
    }
}

#[test]
fn one_culprit_of_a_thousand_costs_few_responses() {
    let mut peer = Peer::new(Variant::Delta);
    let all: Vec<String> = (0..1000).map(|it| format!("c/n{it}=1")).collect();
    peer.show(1, &all.join(" "));
    peer.subscribe(CLUSTER, &[]);
    let responses = settle_refusing(&mut peer, &["n777=1".to_owned()].into());
    assert!(responses <= 22, "{responses}");
    assert_eq!(peer.refused(), ["n777=1: no"]);
}

#[test]
fn a_client_that_names_the_culprits_is_believed() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/a=1 c/b=1 c/c=1");
    peer.subscribe(CLUSTER, &[]);
    let got = peer.one();
    let refusals = [Refusal { name: "b".into(), reason: "bad field".into() }];
    peer.answer(&got, &[], Some(refusal::to_status(&refusals)));
    assert_eq!(peer.send(), []);
    let reports = peer.session.reports();
    assert!(matches!(&reports[..], [Report::Refused { .. }, Report::Synced { revision: 1, .. }]), "{reports:?}");
    // A culprit that changes back to what the client has kept is no longer one.
    peer.show(2, "c/a=1 c/b=2 c/c=1");
    assert_eq!(peer.settle(), ["c: b=2"]);
    peer.show(3, "c/a=1 c/b=1 c/c=1");
    assert_eq!(peer.settle(), ["c: b=1"], "another chance after it was something else");
}

#[test]
fn what_a_refused_response_may_have_left_behind_is_removed() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/a=1 c/b=1");
    peer.subscribe(CLUSTER, &[]);
    let got = peer.one();
    peer.answer(&got, &[], Some(Status { code: 3, ..Default::default() }));
    peer.show(2, "c/b=1");
    assert_eq!(peer.settle(), ["c: b=1", "c:  -a"]);
}

#[test]
fn what_was_left_behind_before_a_worse_version_is_removed() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/a=1 c/b=bad");
    peer.subscribe(CLUSTER, &[]);
    let got = peer.one();
    // The client takes a=1 and refuses the response for b; before it is asked for a alone, a gets worse.
    peer.answer(&got, &[], Some(Status { code: 3, ..Default::default() }));
    peer.show(2, "c/a=bad c/b=bad");
    settle_refusing(&mut peer, &["a=bad".to_owned(), "b=bad".to_owned()].into());
    peer.show(3, "");
    assert_eq!(peer.settle(), ["c:  -a -b"]);
}

#[test]
fn what_a_refused_response_may_have_brought_is_taken_back() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "c/a=1 c/b=1");
    peer.subscribe(CLUSTER, &[]);
    peer.settle();
    peer.show(2, "c/a=2 c/b=2");
    let got = peer.one();
    peer.show(3, "c/a=1 c/b=1");
    // The client may have taken either; both are as they were before.
    peer.answer(&got, &[], Some(Status { code: 3, ..Default::default() }));
    assert_eq!(peer.settle(), ["c: a=1", "c: b=1"]);
    assert_eq!(peer.synced().last(), Some(&3));
}

#[test]
fn unsubscribed_names_are_not_followed() {
    let mut peer = settled();
    peer.request(DeltaDiscoveryRequest {
        type_url: ROUTE_CONFIGURATION.into(),
        resource_names_unsubscribe: vec!["web".into()],
        ..Default::default()
    });
    peer.show(2, "c/old=1 e/old=1 l/in=1 l/old=1 r/web=2");
    assert_eq!(peer.settle(), Vec::<String>::new());
    assert_eq!(peer.synced(), [2]);
    peer.subscribe(ROUTE_CONFIGURATION, &["web"]);
    assert_eq!(peer.settle(), ["r: web=2"]);
}

#[test]
fn late_and_foreign_nonces_acknowledge_nothing() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "s/a=1");
    peer.subscribe(SECRET, &["a"]);
    let got = peer.one();
    peer.answer(&Got { nonce: "77".into(), ..got.clone() }, &[], None);
    assert_eq!((peer.send(), peer.synced()), (vec![], vec![]));
    peer.ack(&got);
    assert_eq!((peer.send(), peer.synced()), (vec![], vec![1]));
    peer.answer(&got, &[], Some(Status::default()));
    assert_eq!((peer.send(), peer.refused()), (vec![], vec![]));
}

#[test]
fn the_state_of_the_world_is_whole_for_clusters_and_partial_for_names() {
    let mut peer = Peer::new(Variant::StateOfTheWorld);
    peer.show(1, "l/a=1 l/b=1 r/x=1 r/y=1");
    peer.subscribe(LISTENER, &[]);
    let got = peer.one();
    assert_eq!(short(&got), "l: a=1 b=1");
    peer.ack(&got);
    peer.subscribe(ROUTE_CONFIGURATION, &["x"]);
    let routes = peer.one();
    assert_eq!(short(&routes), "r: x=1");
    peer.answer(&routes, &["x", "y", "nowhere"], None);
    let more = peer.one();
    assert_eq!(short(&more), "r: y=1");
    // An answer to an older response is none to this one.
    peer.answer(&routes, &["x"], None);
    assert_eq!(peer.send(), []);
    peer.answer(&more, &["x", "y", "nowhere"], None);
    assert_eq!(peer.send(), []);

    assert_eq!(peer.synced(), [1]);
    peer.show(2, "l/a=2 l/c=1 r/x=2 r/y=1");
    let made = peer.one();
    assert_eq!(short(&made), "l: a=2 b=1 c=1", "what goes is kept until the rest is in place");
    peer.ack(&made);
    let routes = peer.one();
    assert_eq!(short(&routes), "r: x=2");
    peer.answer(&routes, &["x", "y", "nowhere"], None);
    let broken = peer.one();
    assert_eq!(short(&broken), "l: a=2 c=1");
    assert_eq!(peer.synced(), []);
    peer.ack(&broken);
    assert_eq!(peer.send(), []);
    assert_eq!(peer.synced(), [2]);
}

#[test]
fn a_subscription_that_widens_while_a_response_is_in_flight_gets_the_rest() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "s/a=1 s/b=1");
    peer.subscribe(SECRET, &["a"]);
    let got = peer.one();
    peer.subscribe(SECRET, &["*"]);
    peer.ack(&got);
    assert_eq!(peer.settle(), ["s: b=1"]);
    peer.request(DeltaDiscoveryRequest {
        type_url: SECRET.into(),
        resource_names_unsubscribe: vec!["*".into()],
        ..Default::default()
    });
    peer.show(2, "s/a=2 s/b=2");
    assert_eq!(peer.settle(), ["s: a=2"]);
}

/// What a client does in the property below.
#[derive(Debug, Clone)]
enum Act {
    Publish(u8),
    Subscribe(u8),
    Unsubscribe(u8),
    Answer,
    Reconnect,
}

impl quickcheck::Arbitrary for Act {
    fn arbitrary(g: &mut quickcheck::Gen) -> Self {
        let byte = u8::arbitrary(g);
        match u8::arbitrary(g) % 9 {
            0..3 => Act::Publish(byte),
            3 => Act::Subscribe(byte),
            4 => Act::Unsubscribe(byte),
            5..8 => Act::Answer,
            _ => Act::Reconnect,
        }
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A client in the manner of Envoy: clusters by wildcard, endpoints by name; it takes the good part of what it refuses.
#[derive(Default)]
struct Model {
    clusters: BTreeMap<String, String>,
    endpoints: BTreeMap<String, String>,
    subscribed: BTreeSet<String>,
    open: Vec<Got>,
}

impl Model {
    fn table(&mut self, type_url: &str) -> &mut BTreeMap<String, String> {
        if type_url == CLUSTER { &mut self.clusters } else { &mut self.endpoints }
    }

    fn connect(&mut self, peer: &mut Peer) {
        self.open.clear();
        for type_url in [CLUSTER, CLUSTER_LOAD_ASSIGNMENT] {
            let names = if type_url == CLUSTER { BTreeSet::new() } else { self.subscribed.clone() };
            if type_url == CLUSTER_LOAD_ASSIGNMENT && names.is_empty() {
                continue;
            }
            peer.request(DeltaDiscoveryRequest {
                type_url: type_url.into(),
                resource_names_subscribe: names.into_iter().collect(),
                initial_resource_versions: self.table(type_url).clone(),
                ..Default::default()
            });
        }
    }

    fn take(&mut self, peer: &mut Peer) {
        for got in peer.send() {
            assert!(self.open.iter().all(|it| it.type_url != got.type_url), "two responses of a type in flight");
            self.open.push(got);
        }
    }

    /// Answer the oldest response; versions that end in 7 are bad.
    fn answer(&mut self, peer: &mut Peer) {
        if self.open.is_empty() {
            return;
        }
        let got = self.open.remove(0);
        let mut error = None;
        for resource in &got.resources {
            let (name, version) = resource.split_once('=').unwrap();
            if got.type_url == CLUSTER_LOAD_ASSIGNMENT && !self.subscribed.contains(name) {
                continue;
            }
            if version.ends_with('7') {
                error = Some(Status { code: 3, message: "bad".into(), details: vec![] });
            } else {
                self.table(&got.type_url).insert(name.into(), version.into());
            }
        }
        for name in &got.removed {
            self.table(&got.type_url).remove(name);
        }
        peer.answer(&got, &[], error);
        self.take(peer);
    }
}

quickcheck! {
    /// Whatever happens in between: once all is answered, the client has what the view says, except that a refused
    /// version leaves an older good one, or nothing, in its place.
    fn clients_end_up_with_the_view(acts: Vec<Act>) -> bool {
        let mut peer = Peer::new(Variant::Delta);
        let mut client = Model::default();
        let mut view: BTreeMap<(String, String), String> = BTreeMap::new();
        let mut revision = 0;
        client.connect(&mut peer);
        for act in acts.into_iter().chain([Act::Publish(0)]) {
            let name = |byte: u8| NAMES[byte as usize % NAMES.len()].to_owned();
            match act {
                Act::Publish(byte) => {
                    revision += 1;
                    let key = (if byte & 4 == 0 { "c" } else { "e" }.to_owned(), name(byte));
                    if byte & 8 == 0 {
                        // Few, so that contents come back; one of them is bad.
                        view.insert(key, ["1", "2", "7"][byte as usize / 16 % 3].to_owned());
                    } else {
                        view.remove(&key);
                    }
                    let text: Vec<_> = view.iter().map(|((t, n), v)| format!("{t}/{n}={v}")).collect();
                    peer.show(revision, &text.join(" "));
                }
                Act::Subscribe(byte) => {
                    if client.subscribed.insert(name(byte)) {
                        peer.subscribe(CLUSTER_LOAD_ASSIGNMENT, &[&name(byte)]);
                    }
                }
                Act::Unsubscribe(byte) => {
                    if client.subscribed.remove(&name(byte)) {
                        client.endpoints.remove(&name(byte));
                        peer.request(DeltaDiscoveryRequest {
                            type_url: CLUSTER_LOAD_ASSIGNMENT.into(),
                            resource_names_unsubscribe: vec![name(byte)],
                            ..Default::default()
                        });
                    }
                }
                Act::Answer => client.answer(&mut peer),
                Act::Reconnect => {
                    peer.session = Session::new(Variant::Delta, PATIENCE);
                    let text: Vec<_> = view.iter().map(|((t, n), v)| format!("{t}/{n}={v}")).collect();
                    if revision > 0 {
                        peer.show(revision, &text.join(" "));
                    }
                    client.connect(&mut peer);
                }
            }
            client.take(&mut peer);
        }
        for _ in 0..3 {
            while !client.open.is_empty() {
                client.answer(&mut peer);
            }
            peer.now += PATIENCE;
            client.take(&mut peer);
        }
        let expect = |letter: &str, has: &BTreeMap<String, String>, wanted: &dyn Fn(&str) -> bool| {
            NAMES.iter().all(|name| {
                let published = view.get(&(letter.to_owned(), (*name).to_owned())).filter(|_| wanted(name));
                match published {
                    Some(version) if version.ends_with('7') => has.get(*name).is_none_or(|old| !old.ends_with('7')),
                    published => has.get(*name) == published,
                }
            })
        };
        assert_eq!(peer.synced().last(), Some(&revision));
        expect("c", &client.clusters, &|_| true) && expect("e", &client.endpoints, &|name| client.subscribed.contains(name))
    }
}

#[test]
fn virtual_hosts_are_sent_by_name_only_and_one_that_never_was_without_a_body() {
    let mut peer = Peer::new(Variant::Delta);
    peer.show(1, "v/web/a=1 v/web/b=1");
    peer.subscribe(VIRTUAL_HOST, &[]);
    assert_eq!(peer.settle(), ["v:"], "an answer, for who waits for a first one");
    peer.subscribe(VIRTUAL_HOST, &["web/a", "web/none"]);
    assert_eq!(peer.settle(), ["v: web/a=1 web/none=?"]);
    peer.show(2, "v/web/b=1 v/web/none=1");
    assert_eq!(peer.settle(), ["v: web/none=1", "v:  -web/a"]);
}
