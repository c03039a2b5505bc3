//! Clients of HTTP/1 that go away in order, with FIN: what was asked for them ends, and is recorded at once.

use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::extensions::filters::common::fault::v3 as common_fault;
use weft_protos::envoy::extensions::filters::http::fault::v3 as fault;
use weft_protos::envoy::r#type::v3::FractionalPercent;

use crate::kit::peer::{End, ok, unacknowledged_bytes};
use crate::kit::resources::{any, number, retries, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

const DETAILS: &str = "downstream_remote_disconnect";

/// No other limit ends a request.
fn unlimited(setup: &mut Setup) {
    setup.action().timeout = Some(seconds(0.0));
}

/// Send `GET path`, and wait until the upstream has it.
fn ask(client: &mut Peer, upstream: &Upstream, path: &str) -> Peer {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
    let mut peer = upstream.accept();
    peer.message();
    peer
}

/// The proxy's kernel has all that the client sent.
fn arrived(client: &Peer) {
    until("the bytes have arrived", || (unacknowledged_bytes(client.socket()) == 0).then_some(()));
}

#[test]
fn a_client_that_closes_is_gone() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], unlimited);
    let mut client = mesh.client();
    let mut peer = ask(&mut client, &upstream, "/before");
    drop(client);
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/before", 0, "DC", DETAILS);

    let mut client = mesh.client();
    let mut peer = ask(&mut client, &upstream, "/within");
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    drop(client);
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/within", 200, "DC", DETAILS);
}

#[test]
fn a_client_that_only_says_its_last_word_cannot_be_told_from_one_that_is_gone() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], unlimited);
    let mut client = mesh.client();
    let mut peer = ask(&mut client, &upstream, "/before");
    client.finish();
    assert_eq!(peer.expect_end(), End::Reset);
    assert_eq!(client.expect_end(), End::Finished);
    mesh.expect_record("/before", 0, "DC", DETAILS);

    // Within an answer that ends with its connection, an orderly end would make it look whole.
    let mut client = mesh.client();
    client.send("GET /within HTTP/1.0\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\n\r\nabc");
    client.head();
    client.expect("abc");
    client.finish();
    assert_eq!(peer.expect_end(), End::Reset);
    assert_eq!(client.expect_end(), End::Reset);
    mesh.expect_record("/within", 200, "DC", DETAILS);
}

#[test]
fn bytes_behind_a_request_do_not_hide_that_its_client_goes() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], unlimited);
    for reset in [false, true] {
        let path = format!("/reset-{reset}");
        let mut client = mesh.client();
        let mut peer = ask(&mut client, &upstream, &path);
        client.send("GET /never HTTP/1.1\r\nhost: up\r\n\r\n");
        arrived(&client);
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        assert_eq!(peer.expect_end(), End::Reset);
        mesh.expect_record(&path, 0, "DC", DETAILS);
    }
    assert!(!upstream.has_visitor());
}

#[test]
fn bytes_behind_a_request_are_the_next_one() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], unlimited);
    let mut client = mesh.client();
    let mut peer = ask(&mut client, &upstream, "/0");
    for number in 1..4 {
        client.send(format!("POST /{number} HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n{number}"));
        arrived(&client);
        peer.send(ok("one"));
        assert_eq!(client.message().text(), "one");
        let next = peer.message();
        assert_eq!((next.start_line(), next.text()), (&*format!("POST /{number} HTTP/1.1"), number.to_string()));
    }
}

#[test]
fn who_leaves_while_waiting_for_a_connection_is_not_asked_for() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        unlimited(setup);
        let thresholds = cluster::circuit_breakers::Thresholds { max_connections: number(1), ..Default::default() };
        setup.cluster.circuit_breakers =
            Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    });
    let mut first = mesh.client();
    let mut peer = ask(&mut first, &upstream, "/first");
    let mut waiting = mesh.client();
    waiting.send("GET /waiting HTTP/1.1\r\nhost: up\r\n\r\n");
    until("both requests have begun", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == 2.0).then_some(()));
    drop(waiting);
    mesh.expect_record("/waiting", 0, "DC", DETAILS);
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    first.send("GET /next HTTP/1.1\r\nhost: up\r\n\r\n");
    assert_eq!(peer.message().start_line(), "GET /next HTTP/1.1");
}

#[test]
fn who_leaves_within_a_pause_is_gone() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        unlimited(setup);
        let delay = common_fault::FaultDelay {
            percentage: Some(FractionalPercent { numerator: 100, denominator: 0 }),
            fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(seconds(3600.0))),
        };
        setup.routes.virtual_hosts[0].routes[0].typed_per_filter_config.insert(
            "envoy.filters.http.fault".into(),
            any(
                "envoy.extensions.filters.http.fault.v3.HTTPFault",
                &fault::HttpFault { delay: Some(delay), ..Default::default() },
            ),
        );
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    until("the request has begun", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == 1.0).then_some(()));
    drop(client);
    mesh.expect_record("/", 0, "DI,DC", DETAILS);
    assert!(!upstream.has_visitor());
}

#[test]
fn nothing_is_tried_again_for_a_client_that_is_gone() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let mut policy = retries("5xx", 1);
        policy.per_try_timeout = Some(seconds(3600.0));
        setup.action().retry_policy = Some(policy);
        unlimited(setup);
    });
    let mut client = mesh.client();
    let mut peer = ask(&mut client, &upstream, "/");
    peer.send("HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n");
    let mut second = upstream.accept();
    second.message();
    drop(client);
    assert_eq!(second.expect_end(), End::Reset);
    let record = mesh.expect_record("/", 0, "DC", DETAILS);
    assert_eq!(record["attempts"], 2);
}
