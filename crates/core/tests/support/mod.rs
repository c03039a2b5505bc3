//! What the tests share: short ways to write requests, resources and dice.

#![allow(dead_code)] // Each test binary uses its own part.

pub mod endpoints;

use weft_core::compile::Strictness;
use weft_core::format::{Command, Variables};
use weft_core::header_edit::Headers;
use weft_core::random::{Draw, Random};
use weft_core::request::{OwnedRequest, Scheme};
use weft_core::route::RouteTable;
use weft_protos::envoy::config::core::v3::HeaderValue;
use weft_protos::envoy::config::core::v3::HeaderValueOption;
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::route_action::ClusterSpecifier;
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;
use weft_protos::google::protobuf::Any;

/// Every die falls on the same share, 0 to 1.
pub struct Fixed(pub f64);

impl Random for Fixed {
    fn draw(&mut self, _: Draw) -> u64 {
        (self.0 * 18_446_744_073_709_551_616.0) as u64
    }
}

/// `GET authority path` with headers.
pub fn request(authority: &str, path: &str, headers: &[(&str, &str)]) -> OwnedRequest {
    OwnedRequest {
        method: "GET".into(),
        scheme: Scheme::Http,
        authority: authority.into(),
        path: path.into(),
        headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    }
}

/// A matcher with a path prefix.
pub fn prefix(text: &str) -> proto::RouteMatch {
    proto::RouteMatch { path_specifier: Some(PathSpecifier::Prefix(text.into())), ..Default::default() }
}

/// A route to a cluster.
pub fn to(name: &str, matcher: proto::RouteMatch) -> proto::Route {
    proto::Route {
        name: name.into(),
        r#match: Some(matcher),
        action: Some(proto::route::Action::Route(proto::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(name.into())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A virtual host.
pub fn host(name: &str, domains: &[&str], routes: Vec<proto::Route>) -> proto::VirtualHost {
    proto::VirtualHost {
        name: name.into(),
        domains: domains.iter().map(|domain| (*domain).into()).collect(),
        routes,
        ..Default::default()
    }
}

/// A route configuration.
pub fn configuration(virtual_hosts: Vec<proto::VirtualHost>) -> proto::RouteConfiguration {
    proto::RouteConfiguration { name: "9080".into(), virtual_hosts, ..Default::default() }
}

/// The table of a configuration that has no mistakes.
pub fn table(configuration: &proto::RouteConfiguration) -> RouteTable {
    RouteTable::compile(configuration, Strictness::Refuse).expect("the configuration of a test is honoured").value
}

/// The table of one virtual host `*` with these routes.
pub fn routes(routes: Vec<proto::Route>) -> RouteTable {
    table(&configuration(vec![host("any", &["*"], routes)]))
}

/// A header to add.
pub fn add(name: &str, value: &str, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.into(), value: value.into(), ..Default::default() }),
        append_action: action,
        ..Default::default()
    }
}

/// A message in an `Any`.
pub fn any(name: &str, message: &impl weft_protos::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec().into() }
}

/// Headers as a list.
#[derive(Debug, Default, PartialEq)]
pub struct HeaderList(pub Vec<(String, String)>);

impl HeaderList {
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }
}

impl Headers for HeaderList {
    fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }
    fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.append(name, value);
    }
    fn append(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.into(), String::from_utf8_lossy(value).into()));
    }
    fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }
}

/// Knows the protocol, and nothing else.
pub struct OnlyProtocol;

impl Variables for OnlyProtocol {
    fn write(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        if *command == Command::Protocol {
            out.extend_from_slice(b"HTTP/1.1");
        }
        *command == Command::Protocol
    }
}
