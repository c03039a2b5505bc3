//! What a client sends where a route takes its hash of it: cookies, headers and the query, in any shape, are read or passed over.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft_core::compile::Strictness;
use weft_core::hash_policy::{Client, hash};
use weft_core::request::OwnedRequest;
use weft_core::route::{Action, RouteTable};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::route_action::hash_policy::{
    Cookie, Header, PolicySpecifier, QueryParameter,
};
use weft_protos::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy};
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;

/// A route that looks at each of them, under the name `k`.
static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
    let policies = [
        PolicySpecifier::Cookie(Cookie { name: "k".into(), ..Default::default() }),
        PolicySpecifier::Header(Header { header_name: "k".into(), ..Default::default() }),
        PolicySpecifier::QueryParameter(QueryParameter { name: "k".into() }),
    ];
    let action = proto::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())),
        hash_policy: policies.map(|it| HashPolicy { terminal: false, policy_specifier: Some(it) }).into(),
        ..Default::default()
    };
    let matcher = proto::RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() };
    let route = proto::Route {
        r#match: Some(matcher),
        action: Some(proto::route::Action::Route(action)),
        ..Default::default()
    };
    let host = proto::VirtualHost { domains: vec!["*".into()], routes: vec![route], ..Default::default() };
    let configuration = proto::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
    RouteTable::compile(&configuration, Strictness::Refuse).expect("it is honoured").value
});

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let path = format!("/?{}", lines.next().unwrap_or_default());
    // Cookies and values of the header by turns.
    let names = ["cookie", "k"].into_iter().cycle();
    let headers: Vec<_> = lines.zip(names).map(|(line, name)| (name.to_owned(), line.to_owned())).collect();
    let Action::Forward(forward) = &TABLE.virtual_hosts[0].routes[0].action else { return };
    let end = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    let client = Client { address: end.ip(), remote: end, local: end };
    let request = OwnedRequest { path, headers, ..OwnedRequest::default() };
    let hashed = hash(&forward.hash, &request, &client);
    assert!(hashed.cookies.is_empty(), "none of them has a time to live");
    // The header's values are hashed in no order.
    let mut turned = request.clone();
    turned.headers.reverse();
    let cookies = |request: &OwnedRequest| request.headers.iter().filter(|(name, _)| name == "cookie").count();
    if cookies(&request) < 2 {
        assert_eq!(hash(&forward.hash, &turned, &client), hashed);
    }
});
