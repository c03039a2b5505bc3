//! Upstreams that may choose the version of HTTP by ALPN: who is asked, when, and what goes by which.

use std::net::SocketAddr;

use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::http1_protocol_options::HeaderKeyFormat;
use weft_protos::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig;
use weft_protos::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use weft_protos::envoy::extensions::upstreams::http::v3::http_protocol_options as options;

use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
use crate::kit::frames::*;
use crate::kit::peer::ok;
use crate::kit::resources::any;
use crate::kit::{Mesh, Peer, Upstream, until};

const CLIENTS: usize = 8;

/// A mesh whose upstream is offered both versions.
fn offering(upstream: SocketAddr, authority: &Authority) -> Mesh {
    Mesh::start(&[upstream], |setup| {
        setup.cluster.transport_socket = upstream_for(&[OTHER], &["istio", "h2", "http/1.1"]);
        setup.more = secrets(&authority.identity(WEB), authority);
        setup.manager.upgrade_configs = vec![UpgradeConfig { upgrade_type: "websocket".into(), ..Default::default() }];
        speak(setup, options::UpstreamProtocolOptions::AutoConfig(Default::default()));
    })
}

/// The next connection, to an upstream that takes *alpn*.
fn accept(upstream: &Upstream, authority: &Authority, alpn: &[&str]) -> Peer {
    Peer::over(server_for(upstream.accept_socket(), authority, &authority.identity(OTHER), alpn))
}

fn asking(mesh: &Mesh) -> Vec<Peer> {
    let ask = |number| {
        let mut client = mesh.client();
        client.send(format!("GET /{number} HTTP/1.1\r\nhost: up\r\n\r\n"));
        client
    };
    (0..CLIENTS).map(ask).collect()
}

#[test]
fn requests_that_come_together_wait_for_one_connection() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = offering(upstream.address(), &authority);
    let clients = asking(&mesh);
    until("all are there", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == CLIENTS as f64).then_some(()));
    let mut server = Wire::server(accept(&upstream, &authority, &["h2", "http/1.1"]), &[]);
    for number in 0..CLIENTS as u32 {
        server.expect(HEADERS, 2 * number + 1);
    }
    for number in 0..CLIENTS as u32 {
        server.answer(2 * number + 1, b"hello");
    }
    for mut client in clients {
        assert_eq!(client.message().text(), "hello");
    }
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 1.0);
    assert!(!upstream.has_visitor());
}

#[test]
fn an_upstream_that_chooses_http1_has_a_connection_for_each_request() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = offering(upstream.address(), &authority);
    let clients = asking(&mesh);
    let mut peers = Vec::new();
    for _ in 0..CLIENTS {
        let mut peer = accept(&upstream, &authority, &["http/1.1"]);
        peer.message();
        peers.push(peer);
    }
    peers.iter_mut().for_each(|peer| peer.send(ok("hello")));
    for mut client in clients {
        assert_eq!(client.message().text(), "hello");
    }
    // What is known of it holds: the connections are used again.
    let mut client = mesh.client();
    client.send("GET /again HTTP/1.1\r\nhost: up\r\n\r\n");
    let used = until("one of them is used", || peers.iter_mut().position(|peer| !peer.arrived().is_empty()));
    let again = &mut peers[used];
    again.message();
    again.send(ok("again"));
    assert_eq!(client.message().text(), "again");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), CLIENTS as f64);
}

/// HTTP/2 has no case to keep (RFC 9113 8.2), so a request of HTTP/1.1 is not offered it.
#[test]
fn where_case_is_kept_a_client_of_http1_reaches_the_upstream_by_http1() {
    let type_name = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
    let keeping_case = core::Http1ProtocolOptions {
        header_key_format: Some(HeaderKeyFormat {
            header_format: Some(HeaderFormat::StatefulFormatter(core::TypedExtensionConfig {
                name: "preserve_case".into(),
                typed_config: Some(any(type_name, &PreserveCaseFormatterConfig::default())),
            })),
        }),
        ..Default::default()
    };
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.cluster.transport_socket = upstream_for(&[OTHER], &["h2", "http/1.1"]);
        setup.more = secrets(&authority.identity(WEB), &authority);
        setup.manager.http_protocol_options = Some(keeping_case.clone());
        let either = options::AutoHttpConfig { http_protocol_options: Some(keeping_case), ..Default::default() };
        speak(setup, options::UpstreamProtocolOptions::AutoConfig(either));
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nX-Client-ID: 1\r\n\r\n");
    let mut peer = accept(&upstream, &authority, &["h2", "http/1.1"]);
    let request = peer.message();
    assert!(request.head.contains("\r\nX-Client-ID: 1\r\n"), "{}", request.head);
    peer.send("HTTP/1.1 200 OK\r\nX-Upstream-ID: 2\r\ncontent-length: 0\r\n\r\n");
    let answer = client.message();
    assert!(answer.head.contains("\r\nX-Upstream-ID: 2\r\n"), "{}", answer.head);
    // Who speaks HTTP/2 has what the upstream chooses.
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[("x-client-id", "1")], true);
    let mut server = Wire::server(accept(&upstream, &authority, &["h2", "http/1.1"]), &[]);
    server.expect(HEADERS, 1);
    server.answer(1, b"two");
    client.expect(HEADERS, 1);
    assert_eq!(client.body(1).0, b"two");
}

#[test]
fn an_upgrade_goes_by_http1_and_its_answer_means_what_it_says() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = offering(upstream.address(), &authority);
    let mut first = mesh.client();
    first.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(accept(&upstream, &authority, &["h2", "http/1.1"]), &[0, 8, 0, 0, 0, 1]);
    server.expect(HEADERS, 1);
    server.answer(1, b"two");
    assert_eq!(first.message().text(), "two");
    let upgrade = "GET /chat HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: \
                   dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = mesh.client();
    client.send(upgrade);
    let mut peer = accept(&upstream, &authority, &["h2", "http/1.1"]);
    assert_eq!(peer.head().get("upgrade"), Some("websocket"));
    // It passes over the wish.
    peer.send(ok("a page"));
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "a page"));
    // The same connection serves the next upgrade, and no request that could go by HTTP/2.
    client.send("GET /between HTTP/1.1\r\nhost: up\r\n\r\n");
    server.expect(HEADERS, 3);
    server.answer(3, b"two");
    assert_eq!(client.message().text(), "two");
    client.send(upgrade);
    assert_eq!(peer.head().get("upgrade"), Some("websocket"));
    peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n");
    peer.send("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello");
    assert_eq!(client.head().status(), 101);
    client.expect("hello");
}

#[test]
fn requests_that_waited_for_a_connection_fail_with_it() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = offering(upstream.address(), &authority);
    let clients = asking(&mesh);
    until("all are there", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == CLIENTS as f64).then_some(()));
    // It closes in the handshake.
    drop(upstream.accept_socket());
    for mut client in clients {
        assert_eq!(client.message().status(), 503);
    }
    assert!(!upstream.has_visitor(), "nobody tried again, one after the other");
}

#[test]
fn an_upgrade_that_is_passed_over_behind_http2_is_no_agreement() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        allow_extended_connect(setup);
        setup.manager.upgrade_configs = vec![UpgradeConfig { upgrade_type: "websocket".into(), ..Default::default() }];
    });
    let mut client = Wire::client(&mesh);
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/chat")];
    client.send(HEADERS, END_HEADERS, 1, &block(&[&fields[..], &[(":authority", "up")]].concat()));
    let mut peer = upstream.accept();
    peer.head();
    peer.send(ok("a page"));
    assert_ne!(client.expect(HEADERS, 1).payload[0], STATUS_200);
    mesh.expect_record("/chat", 502, "UPE", "upstream_reset_before_response_started{protocol_error}");
}

#[test]
fn a_status_beyond_599_passes_in_both_versions() {
    let (authority, upstream) = (Authority::new(), Upstream::new());
    let mesh = offering(upstream.address(), &authority);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut server = Wire::server(accept(&upstream, &authority, &["h2"]), &[]);
    server.expect(HEADERS, 1);
    server.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":status", "799")]));
    assert_eq!(client.message().status(), 799);
}

#[test]
fn trailers_follow_an_answer_of_no_bytes() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], http2_upstream);
    let mut client = Wire::client(&mesh);
    client.request(1, "GET", "/", &[], true);
    let mut server = Wire::server(upstream.accept(), &[]);
    server.expect(HEADERS, 1);
    let answer = |server: &mut Wire, stream| {
        server.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "200"), ("content-length", "0")]));
        server.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[("grpc-status", "5")]));
    };
    answer(&mut server, 1);
    let head = client.expect(HEADERS, 1);
    assert_eq!((head.payload[0], head.flags & END_STREAM), (STATUS_200, 0));
    // `content-length: 0`, named by the static table.
    assert!(head.payload.windows(4).any(|field| field == [0x0f, 0x0d, 1, b'0']), "{head:?}");
    assert_eq!(client.expect(HEADERS, 1).flags & END_STREAM, END_STREAM);
    // HTTP/1.1 has no place for them behind a length, which stays what it is.
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    server.expect(HEADERS, 3);
    answer(&mut server, 3);
    let message = client.message();
    assert_eq!((message.get("content-length"), message.get("transfer-encoding")), (Some("0"), None));
    assert!(message.body.is_empty());
}
