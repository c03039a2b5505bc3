//! Who speaks first is not known: HTTP or bytes, client or server.

use std::time::{Duration, Instant};

use weft_protos::envoy::config::listener::v3::FilterChainMatch;
use weft_protos::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use weft_protos::google::protobuf;

use crate::kit::peer::ok;
use crate::kit::resources::{CLUSTER, http_chain, listener_filter};
use crate::kit::{Mesh, Setup, Upstream, free_address, until};

/// HTTP by its first bytes, and everything else as bytes; however long it takes.
fn by_first_bytes(setup: &mut Setup) {
    setup.tcp();
    let mut http = http_chain(&setup.manager);
    http.filter_chain_match =
        Some(FilterChainMatch { application_protocols: vec!["http/1.1".into(), "h2c".into()], ..Default::default() });
    setup.chains = vec![http];
    setup.more.push(crate::kit::resources::published(
        weft_protos::type_url::ROUTE_CONFIGURATION,
        &setup.routes.name,
        &setup.routes,
    ));
    setup.listener.listener_filters = vec![listener_filter(
        "envoy.filters.listener.http_inspector",
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        &HttpInspector::default(),
    )];
    setup.listener.listener_filters_timeout = Some(protobuf::Duration::default());
    setup.listener.continue_on_listener_filters_timeout = true;
}

#[test]
fn a_server_that_speaks_first_is_heard_by_a_client_that_waits_for_it() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], by_first_bytes);
    for count in 1..=2 {
        let mut client = mesh.client();
        let mut peer = upstream.accept();
        peer.send("220 hello\r\n");
        client.expect("220 hello\r\n");
        client.send("EHLO me\r\n");
        peer.expect("EHLO me\r\n");
        peer.send("250 you\r\n");
        client.expect("250 you\r\n");
        client.finish();
        peer.expect_end();
        drop(peer);
        client.expect_end();
        assert_eq!(mesh.metric("weft_proxy_server_first_connections_total", &[]), f64::from(count));
        let record = &mesh.wait_records(count as usize)[count as usize - 1];
        assert_eq!((&record["bytes_sent"], &record["upstream_cluster"]), (&20.into(), &CLUSTER.into()), "{record}");
    }
    assert!(!upstream.has_visitor());
}

#[test]
fn where_a_server_has_spoken_first_the_next_clients_are_not_kept_waiting() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], by_first_bytes);
    let greeted = || {
        let began = Instant::now();
        let mut client = mesh.client();
        upstream.accept().send("220 hello\r\n");
        client.expect("220 hello\r\n");
        began.elapsed()
    };
    // GRACE: less is possible for nobody of whom it is not known.
    let grace = Duration::from_millis(100);
    assert!(greeted() >= grace);
    // Some may take longer on a busy machine.
    until("a client is greeted at once", || (greeted() < grace).then_some(()));
}

#[test]
fn a_client_that_thinks_first_is_still_read_as_what_it_speaks() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], by_first_bytes);
    let mut client = mesh.client();
    // Dialled while the client was silent, and of no use for HTTP.
    let mut dialled = upstream.accept();
    client.send("GET /late HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().start_line(), "GET /late HTTP/1.1");
    peer.send(ok("http"));
    assert_eq!(client.message().text(), "http");
    dialled.expect_end();
    mesh.expect_record("/late", 200, "-", "via_upstream");
    assert_eq!(mesh.metric("weft_proxy_server_first_connections_total", &[]), 0.0);
}

#[test]
fn bytes_of_a_client_that_thinks_first_take_the_connection_that_is_there() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], by_first_bytes);
    let mut client = mesh.client();
    let mut peer = upstream.accept();
    client.send("\x00\x01 no HTTP");
    peer.expect("\x00\x01 no HTTP");
    peer.send("so be it");
    client.expect("so be it");
    assert!(!upstream.has_visitor());
}

#[test]
fn an_upstream_that_is_away_is_told_to_a_client_that_speaks() {
    let mesh = Mesh::start(&[free_address()], by_first_bytes);
    let mut client = mesh.client();
    until("it was dialled", || (mesh.metric("envoy_cluster_upstream_cx_connect_fail", &[]) == 1.0).then_some(()));
    assert_eq!(client.get("/").status(), 503);
}

#[test]
fn an_upstream_that_closes_without_a_word_takes_no_client_with_it() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], by_first_bytes);
    let mut client = mesh.client();
    drop(upstream.accept());
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("after all"));
    assert_eq!(client.message().text(), "after all");
}

#[test]
fn nobody_is_dialled_where_silent_clients_are_closed() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        by_first_bytes(setup);
        setup.listener.continue_on_listener_filters_timeout = false;
        setup.listener.listener_filters_timeout = Some(crate::kit::resources::seconds(0.4));
    });
    mesh.client().expect_end();
    assert!(!upstream.has_visitor());
}

#[test]
fn a_request_line_is_known_however_long_it_is() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        by_first_bytes(setup);
        // Nobody is dialled before it is known.
        setup.listener.continue_on_listener_filters_timeout = false;
        setup.listener.access_log = setup.manager.access_log.clone();
    });
    let mut client = mesh.client();
    let path = format!("/{}", "a".repeat(40 * 1024));
    client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("found"));
    assert_eq!(client.message().text(), "found");
    mesh.expect_record(&path, 200, "-", "via_upstream");
    // One without end is nobody's.
    let mut client = mesh.client();
    let _ = client.try_send(format!("GET /{}", "a".repeat(80 * 1024)));
    let (answer, _) = client.rest();
    assert!(answer.is_empty() && !upstream.has_visitor());
    let record = until("it is recorded", || {
        let mut records = mesh.wait_records(1).into_iter();
        records.find(|record| record["connection_termination_details"] == "request_line_too_long")
    });
    assert_eq!(record["response_flags"], "DPE", "{record}");
}
