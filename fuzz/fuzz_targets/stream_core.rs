//! The stream core under requests of anybody, in either protocol: nothing panics, no two responses of a type are in flight, each is of a
//! type that was asked for and can be read, and what is said to be refused was published.
//!
//! The first byte of the input says which protocol; then come steps, each of which is a request, another revision of the view, an answer to
//! what is in flight (with a status: a NACK), or time that passes.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_protos::google::rpc::Status;
use weft_protos::type_url;

#[allow(dead_code)]
#[path = "../../crates/xds/src/grpc.rs"]
mod grpc;
#[allow(dead_code)]
#[path = "../../crates/xds/src/refusal.rs"]
mod refusal;
#[allow(dead_code)]
#[path = "../../crates/xds/src/rope.rs"]
mod rope;

/// As in the crate of xDS, without what listens.
#[allow(dead_code)]
#[path = "../../crates/xds/src/server"]
mod server {
    pub mod session;
    pub mod view;
}

use server::session::{Report, Session, Variant};
use server::view::{Published, Views};

const WILDCARD: &str = "*";

/// Types and names that may be published.
const RESOURCES: [(&str, &str); 8] = [
    (type_url::CLUSTER, "a"),
    (type_url::CLUSTER, "b"),
    (type_url::CLUSTER_LOAD_ASSIGNMENT, "a"),
    (type_url::LISTENER, "l"),
    (type_url::ROUTE_CONFIGURATION, "r"),
    (type_url::VIRTUAL_HOST, "r/h"),
    (type_url::SECRET, "s"),
    (type_url::SECRET, "t"),
];

fuzz_target!(|input: &[u8]| {
    let [variant, rest @ ..] = input else { return };
    let variant = if variant & 1 == 0 { Variant::Delta } else { Variant::StateOfTheWorld };
    let mut stream = Stream {
        variant,
        session: Session::new(variant, Duration::from_secs(5)),
        views: Views::default(),
        revision: 0,
        now: Instant::now(),
        asked: BTreeMap::new(),
        in_flight: BTreeMap::new(),
        nonces: BTreeSet::new(),
    };
    stream.session.introduce(if input[0] & 2 == 0 { "weft-proxy" } else { "envoy" });
    for (kind, bytes) in weft_fuzz::steps(rest) {
        match kind & 3 {
            0 => {
                let Some(()) = stream.request(bytes) else { return };
            }
            1 => stream.show(bytes),
            2 => stream.answer(usize::from(kind >> 2), bytes),
            _ => stream.now += Duration::from_secs(bytes.len() as u64),
        }
        stream.take();
    }
});

struct Stream {
    variant: Variant,
    session: Session,
    views: Views,
    revision: u64,
    now: Instant,
    /// The last names of each type, for answers that have to repeat them.
    asked: BTreeMap<String, Vec<String>>,
    /// Nonces of responses that were not answered yet, by type.
    in_flight: BTreeMap<String, String>,
    nonces: BTreeSet<String>,
}

impl Stream {
    /// `None`: the stream ends.
    fn request(&mut self, bytes: &[u8]) -> Option<()> {
        match self.variant {
            Variant::Delta => self.delta(DeltaDiscoveryRequest::decode(bytes).ok()?),
            Variant::StateOfTheWorld => self.state_of_the_world(DiscoveryRequest::decode(bytes).ok()?),
        }
    }

    fn delta(&mut self, request: DeltaDiscoveryRequest) -> Option<()> {
        self.note(&request.type_url, &request.response_nonce);
        self.asked.entry(request.type_url.clone()).or_default();
        let is_typed = !request.type_url.is_empty();
        assert_eq!(self.session.delta(request).is_ok(), is_typed);
        is_typed.then_some(())
    }

    fn state_of_the_world(&mut self, request: DiscoveryRequest) -> Option<()> {
        self.note(&request.type_url, &request.response_nonce);
        self.asked.insert(request.type_url.clone(), request.resource_names.clone());
        let is_typed = !request.type_url.is_empty();
        assert_eq!(self.session.state_of_the_world(request).is_ok(), is_typed);
        is_typed.then_some(())
    }

    fn note(&mut self, type_url: &str, nonce: &str) {
        if self.in_flight.get(type_url).is_some_and(|awaited| awaited == nonce) {
            self.in_flight.remove(type_url);
        }
    }

    /// The first byte says what of [`RESOURCES`] is there, the second in which version. No bytes: the view is withdrawn.
    fn show(&mut self, bytes: &[u8]) {
        let [held, rest @ ..] = bytes else { return self.session.show(None) };
        let version = rest.first().copied().unwrap_or_default().to_string();
        let published = RESOURCES.iter().enumerate().filter(|(index, _)| (held >> index) & 1 == 1);
        let published = published.map(|(_, (type_url, name))| Published {
            type_url: (*type_url).into(),
            name: (*name).into(),
            version: version.clone(),
            body: body(type_url, name, &version),
        });
        self.revision += 1;
        let view = self.views.publish("view", self.revision, published.collect());
        self.session.show(Some(view));
    }

    /// ACK what is in flight, or NACK it with *status*.
    fn answer(&mut self, which: usize, status: &[u8]) {
        let Some((type_url, response_nonce)) = self.in_flight.clone().into_iter().nth(which) else { return };
        let error_detail = (!status.is_empty()).then(|| Status::decode(status).unwrap_or_default());
        let answered = match self.variant {
            Variant::Delta => {
                self.delta(DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() })
            }
            Variant::StateOfTheWorld => {
                let resource_names = self.asked[&type_url].clone();
                let request =
                    DiscoveryRequest { type_url, response_nonce, error_detail, resource_names, ..Default::default() };
                self.state_of_the_world(request)
            }
        };
        answered.expect("it has a type");
    }

    /// Everything that is sent and told now.
    fn take(&mut self) {
        for mut response in self.session.send(self.now) {
            let mut message = response.copy_to_bytes(response.remaining());
            let prefix = message.split_to(grpc::PREFIX_BYTES);
            assert_eq!(prefix, grpc::prefix(message.len())[..]);
            let (type_url, nonce) = match self.variant {
                Variant::Delta => {
                    let response = DeltaDiscoveryResponse::decode(message).expect("it was written");
                    (response.type_url, response.nonce)
                }
                Variant::StateOfTheWorld => {
                    let response = DiscoveryResponse::decode(message).expect("it was written");
                    assert!(response.resources.iter().all(|any| any.type_url == response.type_url));
                    (response.type_url, response.nonce)
                }
            };
            assert!(self.asked.contains_key(&type_url), "nobody asked for {type_url}");
            assert!(self.nonces.insert(nonce.clone()));
            assert_eq!(self.in_flight.insert(type_url, nonce), None);
        }
        for report in self.session.reports() {
            match report {
                Report::Synced { revision, .. } => assert_eq!(revision, self.revision),
                Report::Refused { type_url, name, .. } => {
                    assert!(name.is_empty() || RESOURCES.contains(&(&*type_url, &*name)));
                }
            }
        }
        assert!(self.session.deadline().is_none_or(|deadline| deadline > self.now));
    }
}

fn body(type_url: &str, name: &str, version: &str) -> Bytes {
    if type_url != type_url::CLUSTER {
        return Bytes::copy_from_slice(version.as_bytes());
    }
    let cluster = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        alt_stat_name: version.into(),
        ..Default::default()
    };
    cluster.encode_to_vec().into()
}
