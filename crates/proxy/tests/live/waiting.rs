//! Requests that wait because their cluster may have no more connections, or for one that another request makes.

use weft_protos::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options as options;

use crate::connect::tunnels_to_one_target;
use crate::kit::frames::*;
use crate::kit::peer::ok;
use crate::kit::resources::number;
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

/// Requests that may wait in [`one_connection`].
const PENDING: u32 = 10;

/// The cluster may have one connection, whoever wants another waits.
fn one_connection(setup: &mut Setup) {
    let thresholds = circuit_breakers::Thresholds {
        max_connections: number(1),
        max_pending_requests: number(PENDING),
        track_remaining: true,
        ..Default::default()
    };
    setup.cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
}

/// Wait until so many requests wait.
#[track_caller]
fn until_waiting(mesh: &Mesh, count: u32) {
    let left = f64::from(PENDING - count);
    until("requests wait", || {
        (mesh.metric("envoy_cluster_circuit_breakers_default_remaining_pending", &[]) == left).then_some(())
    });
}

fn asking(mesh: &Mesh, path: &str) -> Peer {
    let mut client = mesh.client();
    client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
    client
}

#[test]
fn a_request_of_http2_that_waited_speaks_it_on_a_connection_of_its_own() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        speak(setup, options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(Default::default()));
        one_connection(setup);
    });
    let mut first = asking(&mesh, "/");
    let mut peer = upstream.accept();
    peer.message();
    let mut second = Wire::client(&mesh);
    second.request(1, "GET", "/", &[], true);
    until_waiting(&mesh, 1);
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    peer.expect_end();
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"two");
    second.expect(HEADERS, 1);
    assert_eq!(second.body(1).0, b"two");
}

#[test]
fn a_tunnel_that_waited_has_a_connection_that_carried_nothing_else() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        tunnels_to_one_target(setup);
        setup.routes.virtual_hosts[0].domains = vec!["*".into()];
        one_connection(setup);
    });
    let mut first = asking(&mesh, "/");
    let mut peer = upstream.accept();
    peer.message();
    let mut second = mesh.client();
    second.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n");
    until_waiting(&mesh, 1);
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    peer.expect_end();
    let mut peer = upstream.accept();
    assert_eq!(second.head().status(), 200);
    second.send("hello");
    peer.expect("hello");
}
