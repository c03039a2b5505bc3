//! Consistent hashing as clients see it: the same property, the same endpoint. Which endpoint that is, is core's to test.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use weft_protos::envoy::config::cluster::v3::cluster::LbPolicy;
use weft_protos::envoy::config::route::v3::route_action::HashPolicy;
use weft_protos::envoy::config::route::v3::route_action::hash_policy::{Cookie, Header, PolicySpecifier};
use weft_protos::envoy::config::route::v3::{RetryPolicy, retry_policy};
use weft_protos::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use weft_protos::envoy::r#type::v3::hash_policy::{PolicySpecifier as OfConnection, SourceIp};

use crate::kit::peer::ok;
use crate::kit::resources::{any, retries, seconds};
use crate::kit::{Mesh, Setup, Upstream};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn upstreams() -> Vec<SocketAddr> {
    NAMES.into_iter().map(Upstream::saying).collect()
}

fn hashed(setup: &mut Setup, policy: LbPolicy, specifier: PolicySpecifier) {
    setup.cluster.lb_policy = policy as i32;
    setup.action().hash_policy = vec![HashPolicy { policy_specifier: Some(specifier), terminal: false }];
}

fn header() -> PolicySpecifier {
    PolicySpecifier::Header(Header { header_name: "x-user".into(), ..Default::default() })
}

#[test]
fn a_header_decides_for_every_client_and_worker() {
    for policy in [LbPolicy::RingHash, LbPolicy::Maglev] {
        let mesh = Mesh::start(&upstreams(), |setup| hashed(setup, policy, header()));
        let ask = |user: u32| {
            let mut client = mesh.client();
            client.send(format!("GET / HTTP/1.1\r\nhost: up\r\nx-user: {user}\r\n\r\n"));
            client.message().text()
        };
        let first: Vec<String> = (0..40).map(ask).collect();
        assert_eq!(first, (0..40).map(ask).collect::<Vec<_>>(), "{policy:?}");
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), NAMES.len(), "{policy:?}");
        // Without it, anybody.
        let mut client = mesh.client();
        let anybody: BTreeSet<String> = (0..60).map(|_| client.get("/").text()).collect();
        assert_eq!(anybody.len(), NAMES.len(), "{policy:?}");
    }
}

#[test]
fn a_client_is_given_a_cookie_that_leads_back() {
    let cookie = PolicySpecifier::Cookie(Cookie {
        name: "user".into(),
        ttl: Some(seconds(60.0)),
        path: "/".into(),
        attributes: Vec::new(),
    });
    let mesh = Mesh::start(&upstreams(), |setup| hashed(setup, LbPolicy::RingHash, cookie));
    for _ in 0..5 {
        let mut client = mesh.client();
        let first = client.get("/");
        let given = first.get("set-cookie").expect("a cookie").to_owned();
        assert!(given.starts_with("user=\"") && given.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{given}");
        assert_eq!(client.get("/").get("set-cookie"), Some(&*given), "it is the connection's");
        let pair = given.split(';').next().unwrap();
        let mut other = mesh.client();
        for _ in 0..5 {
            other.send(format!("GET / HTTP/1.1\r\nhost: up\r\ncookie: a=b; {pair}\r\n\r\n"));
            let again = other.message();
            assert_eq!((again.text(), again.get("set-cookie")), (first.text(), None));
        }
    }
}

#[test]
fn a_connection_of_tcp_goes_by_the_clients_address() {
    let mesh = Mesh::start(&upstreams(), |setup| {
        setup.tcp();
        setup.cluster.lb_policy = LbPolicy::Maglev as i32;
        let by_source =
            weft_protos::envoy::r#type::v3::HashPolicy { policy_specifier: Some(OfConnection::SourceIp(SourceIp {})) };
        setup.tcp.as_mut().unwrap().hash_policy = vec![by_source];
    });
    let met: BTreeSet<String> = (0..20).map(|_| mesh.client().get("/").text()).collect();
    assert_eq!(met.len(), 1, "{met:?}");
}

#[test]
fn a_retry_reaches_another_endpoint_if_it_is_to() {
    let one = Upstream::answering(|_| b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_vec());
    let endpoints = [one, Upstream::answering(|_| ok("well"))];
    let mesh = Mesh::start(&endpoints, |setup| {
        hashed(setup, LbPolicy::RingHash, header());
        let typed =
            any("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", &PreviousHostsPredicate {});
        setup.action().retry_policy = Some(RetryPolicy {
            retry_host_predicate: vec![retry_policy::RetryHostPredicate {
                name: "envoy.retry_host_predicates.previous_hosts".into(),
                config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(typed)),
            }],
            host_selection_retry_max_attempts: 20,
            ..retries("5xx", 1)
        });
    });
    let mut client = mesh.client();
    for user in 0..20 {
        client.send(format!("GET / HTTP/1.1\r\nhost: up\r\nx-user: {user}\r\n\r\n"));
        assert_eq!(client.message().status(), 200, "{user}");
    }
    assert!(mesh.metric("envoy_cluster_upstream_rq_retry", &[]) > 0.0);
}
