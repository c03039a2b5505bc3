//! Requests that wait because their cluster may have no more connections, or for one that another request makes.

use weft_protos::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options as options;

use crate::connect::tunnels_to_one_target;
use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
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
fn a_call_goes_beside_another_where_there_is_one_connection_for_both() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        one_connection(setup);
    });
    // Each may fill the whole window of the connection.
    let mut first = Wire::client(&mesh);
    first.request(1, "POST", "/first", &[], false);
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    let mut second = Wire::client(&mesh);
    second.request(1, "POST", "/second", &[], false);
    server.expect(HEADERS, 3);
    for (stream, client) in [(3, &mut second), (1, &mut first)] {
        server.answer(stream, b"hello");
        client.expect(HEADERS, 1);
        assert_eq!(client.body(1).0, b"hello");
    }
}

#[test]
fn requests_go_on_as_streams_of_the_only_connection_end() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        one_connection(setup);
    });
    // One stream at a time, which the proxy knows by the first answer.
    let mut first = asking(&mesh, "/");
    let mut server = Wire::server(upstream.accept(), &[0, 3, 0, 0, 0, 1]);
    server.expect(HEADERS, 1);
    server.answer(1, b"hello");
    assert_eq!(first.message().text(), "hello");
    let leaving = asking(&mesh, "/");
    server.expect(HEADERS, 3);
    let clients: Vec<Peer> = (0..4).map(|_| asking(&mesh, "/")).collect();
    until_waiting(&mesh, 4);
    // A stream ends because its client has left, the others by their answers.
    drop(leaving);
    assert_eq!(server.expect(RST_STREAM, 3).code(), CANCEL);
    for stream in [5, 7, 9, 11] {
        server.expect(HEADERS, stream);
        server.answer(stream, b"hello");
    }
    for mut client in clients {
        assert_eq!(client.message().text(), "hello");
    }
    until_waiting(&mesh, 0);
    assert!(!upstream.has_visitor());
}

#[test]
fn a_connection_that_nobody_uses_makes_room_for_one_to_another_endpoint() {
    let upstreams = [Upstream::new(), Upstream::new()];
    let mesh = Mesh::start(&upstreams.each_ref().map(Upstream::address), |setup| {
        http2_upstream(setup);
        one_connection(setup);
    });
    let visited = || until("somebody connects", || upstreams.iter().position(Upstream::has_visitor));
    // One waits while the connection is used, one finds it idle.
    let mut first = asking(&mesh, "/");
    let at = visited();
    let mut server = Wire::server(upstreams[at].accept(), &[]);
    server.expect(HEADERS, 1);
    let mut second = asking(&mesh, "/");
    until_waiting(&mesh, 1);
    server.answer(1, b"first");
    assert_eq!(first.message().text(), "first");
    assert_eq!(visited(), 1 - at);
    let mut other = Wire::server(upstreams[1 - at].accept(), &[]);
    server.expect(GOAWAY, 0);
    server.0.expect_end();
    other.expect(HEADERS, 1);
    other.answer(1, b"second");
    assert_eq!(second.message().text(), "second");
    let mut third = asking(&mesh, "/");
    assert_eq!(visited(), at);
    let mut server = Wire::server(upstreams[at].accept(), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"third");
    assert_eq!(third.message().text(), "third");
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
    // And the other way round.
    let mut third = asking(&mesh, "/");
    until_waiting(&mesh, 1);
    server.answer(1, b"two");
    second.expect(HEADERS, 1);
    assert_eq!(second.body(1).0, b"two");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("three"));
    assert_eq!(third.message().text(), "three");
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

#[test]
fn requests_that_wait_for_a_connection_another_makes_are_counted() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.cluster.transport_socket = upstream_for(&[OTHER], &["h2"]);
        setup.more = secrets(&authority.identity(WEB), &authority);
        http2_upstream(setup);
        let thresholds = circuit_breakers::Thresholds { max_pending_requests: number(2), ..Default::default() };
        setup.cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    });
    // It has connected, and the handshake does not go on.
    let mut first = asking(&mesh, "/first");
    let socket = upstream.accept_socket();
    let mut second = asking(&mesh, "/second");
    until("both are there", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == 2.0).then_some(()));
    assert_eq!(mesh.client().get("/third").status(), 503);
    mesh.expect_record("/third", 503, "UO", "upstream_reset_before_response_started{overflow}");
    let mut server = Wire::server(Peer::over(server_for(socket, &authority, &authority.identity(OTHER), &["h2"])), &[]);
    for stream in [1, 3] {
        server.expect(HEADERS, stream);
        server.answer(stream, b"hello");
    }
    for client in [&mut first, &mut second] {
        assert_eq!(client.message().text(), "hello");
    }
}
