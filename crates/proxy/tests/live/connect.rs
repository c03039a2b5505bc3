//! Tunnels and other changes of protocol: only where the configuration allows them, over both versions of HTTP.

use weft_protos::envoy::config::cluster::v3::{CircuitBreakers, circuit_breakers};
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::config::route::v3::route_action::UpgradeConfig;
use weft_protos::envoy::config::route::v3::route_action::upgrade_config::ConnectConfig;
use weft_protos::envoy::config::route::v3::route_match::{ConnectMatcher, PathSpecifier};
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::UpgradeConfig as ManagerUpgrade;
use weft_protos::google::protobuf::BoolValue;

use crate::kit::frames::*;
use crate::kit::resources::{CLUSTER, Setup, number, to};
use crate::kit::{Mesh, Upstream, until};

fn of_manager(name: &str) -> Vec<ManagerUpgrade> {
    vec![ManagerUpgrade { upgrade_type: name.into(), ..Default::default() }]
}

fn of_route(name: &str, enabled: bool, terminates: bool) -> UpgradeConfig {
    UpgradeConfig {
        upgrade_type: name.into(),
        enabled: Some(BoolValue { value: enabled }),
        connect_config: terminates.then(ConnectConfig::default),
    }
}

/// A route for CONNECT, with what it says of it.
fn connect_route(upgrade: Option<UpgradeConfig>) -> route::Route {
    let mut route = to(CLUSTER, "/");
    route.r#match.as_mut().unwrap().path_specifier = Some(PathSpecifier::ConnectMatcher(ConnectMatcher {}));
    let Some(route::route::Action::Route(action)) = &mut route.action else { unreachable!("`to` leads to a cluster") };
    action.upgrade_configs.extend(upgrade);
    route
}

/// Tunnels to `up:443` only, which end here.
pub fn tunnels_to_one_target(setup: &mut Setup) {
    setup.route(vec![connect_route(Some(of_route("CONNECT", true, true))), to(CLUSTER, "/")]);
    setup.routes.virtual_hosts[0].domains = vec!["up:443".into()];
}

fn connect(client: &mut Wire, stream: u32, authority: &str) {
    client.send(HEADERS, END_HEADERS, stream, &block(&[(":method", "CONNECT"), (":authority", authority)]));
}

fn status(frame: &Frame) -> String {
    // Statuses that the static table lacks are literals (RFC 7541 6.2): three digits at the end of the first field.
    String::from_utf8_lossy(&frame.payload).into_owned()
}

#[test]
fn what_no_route_allows_is_no_tunnel() {
    let upstream = Upstream::new();
    type Change = fn(&mut Setup);
    let cases: [(&str, u16, Change); 6] = [
        ("nothing is configured", 403, |_| {}),
        ("a route that does not say so", 403, |setup| setup.route(vec![connect_route(None)])),
        ("a route that forbids it", 403, |setup| {
            setup.manager.upgrade_configs = of_manager("connect");
            setup.route(vec![connect_route(Some(of_route("CONNECT", false, true)))]);
        }),
        ("another upgrade is allowed", 403, |setup| {
            setup.route(vec![connect_route(Some(of_route("websocket", true, false)))]);
        }),
        ("routes by path only", 404, |setup| {
            setup.manager.upgrade_configs = of_manager("CONNECT");
            setup.route(vec![to(CLUSTER, "/"), to(CLUSTER, "")]);
        }),
        ("another target", 403, tunnels_to_one_target),
    ];
    for (name, expected, change) in cases {
        let mesh = Mesh::start(&[upstream.address()], change);
        let mut client = mesh.client();
        // A client that does not wait for the answer has sent the tunnel's first bytes.
        client.send("CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: up\r\n\r\n");
        let answer = client.message();
        assert_eq!((answer.status(), answer.get("connection")), (expected, Some("close")), "{name}");
        assert_eq!(client.rest().0, b"", "{name}");
        let mut client = Wire::client(&mesh);
        connect(&mut client, 1, "other:443");
        let answer = client.expect(HEADERS, 1);
        // 404 has a place in the static table, 403 has none.
        let told = if expected == 404 { answer.payload[0] == 0x8d } else { status(&answer).contains("403") };
        assert!(told, "{name}: {answer:?}");
    }
    assert!(!upstream.has_visitor());
}

#[test]
fn an_answer_of_our_own_never_opens_a_tunnel() {
    use weft_protos::envoy::config::core::v3::DataSource;
    use weft_protos::envoy::config::core::v3::data_source::Specifier;
    let direct = |mut route: route::Route| {
        let body = DataSource { specifier: Some(Specifier::InlineString("direct".into())), ..Default::default() };
        let response = route::DirectResponseAction { status: 200, body: Some(body), ..Default::default() };
        route.action = Some(route::route::Action::DirectResponse(response));
        route
    };
    let mesh = Mesh::start(&[], |setup| {
        allow_extended_connect(setup);
        setup.manager.upgrade_configs = [of_manager("CONNECT"), of_manager("websocket")].concat();
        setup.route(vec![direct(connect_route(None)), direct(to(CLUSTER, "/"))]);
    });
    let mut client = mesh.client();
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n");
    assert_eq!(client.message().status(), 403);
    let mut client = Wire::client(&mesh);
    connect(&mut client, 1, "up:443");
    assert!(status(&client.expect(HEADERS, 1)).contains("403"));
    client.body(1);
    // RFC 8441 5: a success would agree to this, too.
    let websocket =
        [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/"), (":authority", "up")];
    let mut client = Wire::client(&mesh);
    client.send(HEADERS, END_HEADERS, 1, &block(&websocket));
    assert!(status(&client.expect(HEADERS, 1)).contains("403"));
    // Over HTTP/1.1 only 101 does.
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.message().text(), "direct");

    // A refusal in the words of gRPC would be a success of HTTP.
    let mesh = Mesh::start(&[], allow_extended_connect);
    let mut client = mesh.client();
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\ncontent-type: application/grpc\r\n\r\n");
    assert_eq!(client.message().status(), 403);
    let mut client = Wire::client(&mesh);
    let call = [&websocket[..], &[("content-type", "application/grpc")]].concat();
    client.send(HEADERS, END_HEADERS, 1, &block(&call));
    assert!(status(&client.expect(HEADERS, 1)).contains("403"));
}

#[test]
fn who_leaves_while_a_tunnel_waits_for_a_connection_is_gone() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        tunnels_to_one_target(setup);
        let thresholds = circuit_breakers::Thresholds {
            max_connections: number(1),
            max_pending_requests: number(1),
            ..Default::default()
        };
        setup.cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    });
    const ASK: &str = "CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n";
    let mut first = mesh.client();
    first.send(ASK);
    let peer = upstream.accept();
    assert_eq!(first.head().status(), 200);
    let mut waiting = mesh.client();
    waiting.send(ASK);
    until("both have begun", || (mesh.metric("envoy_http_downstream_rq_total", &[]) == 2.0).then_some(()));
    // One waits, and no more.
    let mut refused = mesh.client();
    refused.send(ASK);
    assert_eq!(refused.message().status(), 503);
    drop(waiting);
    let flags = |count| {
        let records = mesh.wait_records(count);
        records.iter().map(|record| record["response_flags"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(flags(2), ["UO", "DC"]);
    drop((first, peer));
    flags(3);
    assert!(!upstream.has_visitor());
}

#[test]
fn a_tunnel_that_ends_here_carries_bytes() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], tunnels_to_one_target);
    let mut client = mesh.client();
    // Bytes need not wait for the answer.
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: ignored\r\n\r\nearly");
    let mut peer = upstream.accept();
    peer.expect("early");
    let answer = client.head();
    assert_eq!(answer.status(), 200);
    for name in ["content-length", "transfer-encoding", "connection"] {
        assert_eq!(answer.get(name), None, "{name}");
    }
    peer.send("GET / HTTP/9.9\n\0");
    client.expect("GET / HTTP/9.9\n\0");
    client.finish();
    peer.expect_end();
    peer.send("last");
    drop(peer);
    client.expect("last");
    client.expect_end();
    let record = &mesh.wait_records(1)[0];
    assert_eq!((&record["method"], &record["authority"]), (&"CONNECT".into(), &"up:443".into()), "{record}");
    assert_eq!((&record["response_code"], &record["bytes_received"]), (&200.into(), &5.into()), "{record}");

    let mut client = Wire::client(&mesh);
    connect(&mut client, 1, "up:443");
    let mut peer = upstream.accept();
    let answer = client.expect(HEADERS, 1);
    assert_eq!((answer.payload[0], answer.flags & END_STREAM), (STATUS_200, 0));
    client.send(DATA, 0, 1, b"to the server");
    peer.expect("to the server");
    peer.send("to the client");
    assert_eq!(client.expect(DATA, 1).payload, b"to the client");
    // Other requests share the connection.
    client.send(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &block(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "up:443")]),
    );
    let mut other = upstream.accept();
    assert_eq!(other.head().start_line(), "GET / HTTP/1.1");
    client.send(DATA, END_STREAM, 1, b"");
    peer.expect_end();
    drop(peer);
    assert_eq!(client.body(1).0, b"");
}

#[test]
fn a_tunnel_whose_upstream_is_gone_is_refused() {
    let mesh = Mesh::start(&[crate::kit::free_address()], tunnels_to_one_target);
    let mut client = mesh.client();
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n");
    assert_eq!(client.message().status(), 503);
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["response_flags"], "UF", "{record}");
}

#[test]
fn a_tunnel_may_be_the_upstreams() {
    let forwarding = |setup: &mut Setup| setup.route(vec![connect_route(Some(of_route("CONNECT", true, false)))]);
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], forwarding);
    let mut client = Wire::client(&mesh);
    connect(&mut client, 1, "up:443");
    let mut peer = upstream.accept();
    let request = peer.head();
    assert_eq!((request.start_line(), request.get("host")), ("CONNECT up:443 HTTP/1.1", Some("up:443")));
    assert_eq!((request.get("transfer-encoding"), request.get("content-length")), (None, None));
    // RFC 9110 9.3.6: a length means nothing here.
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n");
    let answer = client.expect(HEADERS, 1);
    assert_eq!((answer.payload[0], answer.flags & END_STREAM), (STATUS_200, 0));
    client.send(DATA, 0, 1, b"to the server");
    peer.expect("to the server");
    peer.send("more than three");
    assert_eq!(client.expect(DATA, 1).payload, b"more than three");
    drop(client);

    // An upstream that refuses has answered.
    let mut client = mesh.client();
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno");
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (407, "no"));
    assert_eq!(client.rest().0, b"", "what follows was the tunnel's");

    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        forwarding(setup);
    });
    let mut client = mesh.client();
    client.send("CONNECT up:443 HTTP/1.1\r\nhost: up:443\r\n\r\n");
    let mut server = Wire::server(upstream.accept(), &[]);
    let request = server.expect(HEADERS, 1);
    assert_eq!(request.flags & END_STREAM, 0);
    server.send(HEADERS, END_HEADERS, 1, &[STATUS_200]);
    assert_eq!(client.head().start_line(), "HTTP/1.1 200 OK");
    client.send("to the server");
    assert_eq!(server.expect(DATA, 1).payload, b"to the server");
    server.send(DATA, END_STREAM, 1, b"to the client");
    client.expect("to the client");
}

#[test]
fn any_protocol_that_is_allowed_may_be_upgraded_to() {
    let request = "GET /x HTTP/1.1\r\nhost: up\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\n";
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.manager.upgrade_configs = of_manager("echo"));
    let mut client = mesh.client();
    client.send(request);
    let mut peer = upstream.accept();
    let seen = peer.head();
    assert_eq!((seen.get("upgrade"), seen.get("sec-websocket-key")), (Some("Echo"), None));
    peer.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\nhello");
    assert_eq!(client.head().get("upgrade"), Some("Echo"));
    client.expect("hello");
    let mut client = mesh.client();
    client.send(request.replace("Echo", "websocket"));
    assert_eq!(client.message().status(), 403, "that was not named");
    // RFC 9110 7.8: in HTTP/1.0 it is no wish.
    let mut client = mesh.client();
    client.send(request.replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(upstream.accept().head().get("upgrade"), None);

    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        http2_upstream(setup);
        setup.action().upgrade_configs = vec![of_route("ECHO", true, false)];
    });
    let mut client = mesh.client();
    client.send(request);
    let mut server = Wire::server(upstream.accept(), &[0, 8, 0, 0, 0, 1]);
    server.expect(HEADERS, 1);
    server.send(HEADERS, END_HEADERS, 1, &[STATUS_200]);
    let answer = client.head();
    assert_eq!((answer.status(), answer.get("upgrade")), (101, Some("Echo")));
    assert_eq!(answer.get("sec-websocket-accept"), None);
    client.send("hello");
    assert_eq!(server.expect(DATA, 1).payload, b"hello");
}
