//! Calls of RPC protocols: Dubbo over connections that calls share, Thrift over connections that each call has to itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_protos::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use weft_protos::envoy::config::cluster::v3::{CircuitBreakers, OutlierDetection};
use weft_protos::envoy::config::route::v3::HeaderMatcher;
use weft_protos::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use weft_protos::envoy::extensions::filters::network::dubbo_proxy::v3 as dubbo;
use weft_protos::envoy::extensions::filters::network::thrift_proxy::v3 as thrift;
use weft_protos::envoy::r#type::matcher::v3::StringMatcher;
use weft_protos::envoy::r#type::matcher::v3::string_matcher::MatchPattern;

use crate::kit::certificates::{
    Authority, OTHER, WEB, client as tls_client, downstream as tls_from, secrets, server, upstream as tls_to,
};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::End;
use crate::kit::pressure::{pressed, silent, until_done};
use crate::kit::resources::{CLUSTER, any, cluster_of, number, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream, content, free_address, until};

const DUBBO: &str = "envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy";
const THRIFT: &str = "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy";
const HEARTBEAT: u8 = 0xe2;
/// The event after which no more calls are begun: `Request.READONLY_EVENT`.
const READ_ONLY: &[u8] = b"\x01R";

/// One worker: which of them accepts a connection is the kernel's choice, and each has connections of its own.
#[track_caller]
fn start(endpoints: &[SocketAddr], change: impl FnOnce(&mut Setup)) -> Mesh {
    Mesh::start_with(endpoints, &["--concurrency", "1"], change)
}

// ------------------------------------------------------------------------------------------------------------------ Dubbo

fn to_cluster(cluster: &str) -> Option<dubbo::RouteAction> {
    let specifier = dubbo::route_action::ClusterSpecifier::Cluster(cluster.into());
    Some(dubbo::RouteAction { cluster_specifier: Some(specifier), ..Default::default() })
}

fn method(name: &str) -> Option<dubbo::MethodMatch> {
    Some(dubbo::MethodMatch { name: Some(exactly(name)), ..Default::default() })
}

fn exactly(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.into())), ..Default::default() }
}

/// Every call to the one cluster, but for what *routes* say before.
fn dubbo_with(setup: &mut Setup, routes: Vec<dubbo::Route>) {
    let any_method = dubbo::Route { r#match: Some(dubbo::RouteMatch::default()), route: to_cluster(CLUSTER) };
    let table = dubbo::RouteConfiguration {
        interface: "demo.Greeter".into(),
        routes: routes.into_iter().chain([any_method]).collect(),
        ..Default::default()
    };
    let tables = dubbo::MultipleRouteConfiguration { name: "all".into(), route_config: vec![table] };
    let proxy = dubbo::DubboProxy {
        stat_prefix: "in".into(),
        route_specifier: Some(dubbo::dubbo_proxy::RouteSpecifier::MultipleRouteConfig(tables)),
        ..Default::default()
    };
    setup.calls = Some(any(DUBBO, &proxy));
}

fn plain(setup: &mut Setup) {
    dubbo_with(setup, Vec::new());
}

fn message(flag: u8, status: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xda, 0xbb, flag, status];
    out.extend(id.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out
}

/// A hessian2 text of up to 31 characters.
fn text(value: &str) -> Vec<u8> {
    [&[value.len() as u8][..], value.as_bytes()].concat()
}

/// A call with an argument of bytes and attachments.
fn call_body(method: &str, argument: &[u8], attachments: &[(&str, &str)]) -> Vec<u8> {
    let mut body: Vec<u8> =
        ["2.0.2", "demo.Greeter", "0.0.0", method, "[B"].iter().flat_map(|name| text(name)).collect();
    let mut parts = argument.chunks(0x8000).peekable();
    while let Some(part) = parts.next() {
        body.push(if parts.peek().is_some() { b'A' } else { b'B' });
        body.extend((part.len() as u16).to_be_bytes());
        body.extend(part);
    }
    body.push(b'H');
    for (name, value) in attachments {
        body.extend(text(name));
        body.extend(text(value));
    }
    body.push(b'Z');
    body
}

fn call(id: u64, method: &str) -> Vec<u8> {
    message(0xc2, 0, id, &call_body(method, b"x", &[]))
}

/// A value as a successful answer: RESPONSE_VALUE, then a text.
fn value(id: u64, of: &str) -> Vec<u8> {
    message(0x02, 20, id, &[&[0x91][..], &text(of)].concat())
}

/// A message as it came.
struct Received {
    flag: u8,
    status: u8,
    id: u64,
    body: Vec<u8>,
}

#[track_caller]
fn receive(peer: &mut Peer) -> Received {
    let head = peer.take(16);
    assert_eq!(&head[..2], [0xda, 0xbb], "{head:x?}");
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    let body = peer.take(number(&head[12..]) as usize);
    Received { flag: head[2], status: head[3], id: number(&head[4..12]), body }
}

/// The next message is an answer to *id* with this status.
#[track_caller]
fn expect_status(peer: &mut Peer, id: u64, status: u8) -> String {
    let answer = receive(peer);
    assert_eq!((answer.flag, answer.id, answer.status), (2, id, status), "{:?}", String::from_utf8_lossy(&answer.body));
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[test]
fn callers_share_a_connection_and_each_gets_its_own_answer() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let (mut one, mut other) = (mesh.client(), mesh.client());
    // The same id twice: it means something to its caller alone.
    one.send(call(7, "first"));
    let mut peer = upstream.accept();
    let first = receive(&mut peer);
    other.send(call(7, "second"));
    let second = receive(&mut peer);
    assert_eq!((first.body, second.body), (call_body("first", b"x", &[]), call_body("second", b"x", &[])));
    assert_ne!(first.id, second.id);
    // Answers in another order than that of the calls.
    peer.send(value(second.id, "to the second"));
    assert_eq!(receive(&mut other).body, [&[0x91][..], &text("to the second")].concat());
    peer.send(value(first.id, "to the first"));
    let answer = receive(&mut one);
    assert_eq!((answer.id, answer.status, answer.body), (7, 20, [&[0x91][..], &text("to the first")].concat()));
    assert!(!upstream.has_visitor());
    let labels = ["request_protocol=\"dubbo\"", "response_code=\"200\"", "response_flags=\"-\"", "reporter=\"source\""];
    until("both are counted", || Some(()).filter(|()| mesh.metric("istio_requests_total", &labels) == 2.0));
    for (name, count) in [
        ("envoy_dubbo_request", 2.0),
        ("envoy_dubbo_response_success", 2.0),
        ("envoy_dubbo_request_active", 0.0),
        ("envoy_cluster_upstream_cx_total", 1.0),
    ] {
        assert_eq!(mesh.metric(name, &[]), count, "{name}");
    }
}

#[test]
fn methods_and_attachments_choose_the_cluster() {
    let (usual, special) = (Upstream::new(), Upstream::new());
    let mesh = start(&[usual.address()], |setup| {
        let blue = HeaderMatcher {
            name: "tenant".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exactly("blue"))),
            ..Default::default()
        };
        let route = |matcher, cluster: &str| dubbo::Route { r#match: Some(matcher), route: to_cluster(cluster) };
        let by_header = dubbo::RouteMatch { headers: vec![blue], ..Default::default() };
        let by_method = |name: &str| dubbo::RouteMatch { method: method(name), ..Default::default() };
        dubbo_with(
            setup,
            vec![
                route(by_header, "special"),
                route(by_method("special"), "special"),
                route(by_method("lost"), "nowhere"),
            ],
        );
        setup.more.extend(cluster_of("special", &[special.address()]));
    });
    let mut client = mesh.client();
    client.send(message(0xc2, 0, 1, &call_body("go", b"x", &[("Tenant", "blue")])));
    let mut peer = special.accept();
    let id = receive(&mut peer).id;
    peer.send(value(id, "a"));
    expect_status(&mut client, 1, 20);
    client.send(call(2, "special"));
    let id = receive(&mut peer).id;
    peer.send(value(id, "b"));
    expect_status(&mut client, 2, 20);
    client.send(message(0xc2, 0, 3, &call_body("go", b"x", &[("tenant", "red")])));
    let mut peer = usual.accept();
    let id = receive(&mut peer).id;
    peer.send(value(id, "c"));
    expect_status(&mut client, 3, 20);
    // SERVER_ERROR for a route to nowhere, SERVICE_NOT_FOUND for none.
    client.send(call(4, "lost"));
    expect_status(&mut client, 4, 80);
    let mut body: Vec<u8> = ["2.0.2", "other.Service", "0.0.0", "go", ""].iter().flat_map(|name| text(name)).collect();
    body.extend(b"HZ");
    client.send(message(0xc2, 0, 5, &body));
    assert!(expect_status(&mut client, 5, 60).contains("no route for other.Service.go"));
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"NR\"", "response_code=\"404\""]), 1.0);
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"NC\"", "response_code=\"503\""]), 1.0);
    assert_eq!(mesh.metric("envoy_dubbo_local_response_business_exception", &[]), 2.0);
    // Whose arguments cannot be read, of that nobody knows the attachments, by which the first route asks.
    let mut body: Vec<u8> = ["2.0.2", "demo.Greeter", "0.0.0", "go", "I"].iter().flat_map(|name| text(name)).collect();
    body.push(b'?');
    client.send(message(0xc2, 0, 6, &body));
    expect_status(&mut client, 6, 40);
}

#[test]
fn calls_are_shed_under_pressure_and_callers_told_so() {
    let mesh = pressed(8, "stop_accepting_requests", 0.5, plain);
    let pressure = silent(&mesh, 4);
    until_done(&mesh, "stop_accepting_requests");
    let mut client = mesh.client();
    client.send(call(1, "go"));
    // SERVER_ERROR
    assert!(expect_status(&mut client, 1, 80).contains("envoy overloaded"));
    until("it is counted", || {
        let labels = ["response_flags=\"OM\"", "response_code=\"503\""];
        Some(()).filter(|()| mesh.metric("istio_requests_total", &labels) == 1.0)
    });
    drop(pressure);
    until_done(&mesh, "");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_total", &[]), 0.0);
    // The endpoint does not answer calls, but it is asked again.
    client.send(call(2, "go"));
    until("it is called", || Some(()).filter(|()| mesh.metric("envoy_cluster_upstream_cx_total", &[]) == 1.0));
}

#[test]
fn heartbeats_are_answered_where_they_come_from() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(message(HEARTBEAT, 0, 9, b"N"));
    let pong = receive(&mut client);
    assert_eq!((pong.flag, pong.status, pong.id, &*pong.body), (0x22, 20, 9, &b"N"[..]));
    assert!(!upstream.has_visitor());
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let asked = receive(&mut peer);
    peer.send(message(HEARTBEAT, 0, 55, b"N"));
    let pong = receive(&mut peer);
    assert_eq!((pong.flag, pong.id), (0x22, 55));
    // A server that calls back has nobody to call.
    peer.send(call(56, "back"));
    expect_status(&mut peer, 56, 60);
    peer.send(value(asked.id, "done"));
    expect_status(&mut client, 1, 20);
    assert_eq!(mesh.metric("envoy_dubbo_request_event", &[]), 1.0);
}

#[test]
fn a_call_that_wants_no_answer_is_delivered_though_its_caller_leaves() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(message(0x82, 0, 3, &call_body("log", b"x", &[])));
    client.finish();
    let mut peer = upstream.accept();
    let received = receive(&mut peer);
    assert_eq!((received.flag, received.body), (0x82, call_body("log", b"x", &[])));
    assert_eq!(client.rest(), (Vec::new(), End::Finished));
    until("it is counted", || Some(()).filter(|()| mesh.metric("envoy_dubbo_request_oneway", &[]) == 1.0));
}

#[test]
fn a_caller_that_leaves_is_waited_for_by_nobody() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let given_up = receive(&mut peer).id;
    drop(client);
    until("it is given up", || {
        Some(()).filter(|()| mesh.metric("istio_requests_total", &["response_flags=\"DC\""]) == 1.0)
    });
    assert_eq!(mesh.metric("envoy_dubbo_cx_destroy_remote_with_active_rq", &[]), 1.0);
    // Its answer comes after all, and is nobody's; the connection goes on.
    peer.send(value(given_up, "late"));
    let mut client = mesh.client();
    client.send(call(1, "again"));
    let id = receive(&mut peer).id;
    assert_ne!(id, given_up);
    peer.send(value(id, "yes"));
    assert!(expect_status(&mut client, 1, 20).contains("yes"));
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let upstream = Upstream::new();
    let mesh = start(&[free_address(), upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let id = receive(&mut peer).id;
    peer.send(value(id, "done"));
    expect_status(&mut client, 1, 20);
    client.send(call(2, "go"));
    let id = receive(&mut peer).id;
    peer.send(value(id, "done"));
    expect_status(&mut client, 2, 20);
    // Round robin meets the dead one in one of the two or in both, and never twice in one.
    let retries = mesh.metric("envoy_cluster_upstream_rq_retry", &[]);
    assert!((1.0..=2.0).contains(&retries), "{retries}");
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_connect_fail", &[]), retries);
}

#[test]
fn without_an_endpoint_the_caller_is_told() {
    let mut mesh = start(&[free_address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    assert!(expect_status(&mut client, 1, 80).contains("remote connection failure"));
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"UF\"", "response_code=\"503\""]), 1.0);
    assert_eq!(mesh.metric("envoy_cluster_upstream_cx_connect_fail", &[]), 3.0);
    mesh.change(|setup| setup.endpoints.clear());
    client.send(call(2, "go"));
    assert!(expect_status(&mut client, 2, 80).contains("no healthy upstream"));
}

#[test]
fn what_an_endpoint_may_have_carried_out_is_not_sent_again() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    receive(&mut peer);
    peer.finish();
    expect_status(&mut client, 1, 80);
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"UC\""]), 1.0);
    assert_eq!(mesh.metric("envoy_cluster_upstream_rq_retry", &[]), 0.0);
    drop(peer);
    // The next one finds another connection.
    client.send(call(2, "go"));
    let mut peer = upstream.accept();
    let id = receive(&mut peer).id;
    peer.send(value(id, "done"));
    expect_status(&mut client, 2, 20);
    // What is no Dubbo ends the connection, and with it the calls on it.
    client.send(call(3, "go"));
    receive(&mut peer);
    peer.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    expect_status(&mut client, 3, 80);
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"UPE\"", "response_code=\"502\""]), 1.0);
    assert_eq!(mesh.metric("envoy_dubbo_response_decoding_error", &[]), 1.0);
}

#[test]
fn a_caller_is_answered_when_its_time_is_over() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    let began = Instant::now();
    client.send(message(0xc2, 0, 1, &call_body("slow", b"x", &[("timeout", "150")])));
    let mut peer = upstream.accept();
    let late = receive(&mut peer).id;
    expect_status(&mut client, 1, 31);
    expect_passed(began, Duration::from_millis(150));
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"UT\"", "response_code=\"504\""]), 1.0);
    peer.send(value(late, "late"));
    client.send(call(2, "go"));
    let id = receive(&mut peer).id;
    peer.send(value(id, "in time"));
    assert!(expect_status(&mut client, 2, 20).contains("in time"));
}

#[test]
fn an_endpoint_that_says_farewell_gets_no_more_calls_and_answers_those_it_has() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut old = upstream.accept();
    let id = receive(&mut old).id;
    old.send(message(0xa2, 0, 0, READ_ONLY));
    // A heartbeat behind it is answered once the farewell was heard.
    old.send(message(HEARTBEAT, 0, 5, b"N"));
    assert_eq!(receive(&mut old).id, 5);
    client.send(call(2, "go"));
    let mut new = upstream.accept();
    let other = receive(&mut new).id;
    new.send(value(other, "from the new one"));
    assert!(expect_status(&mut client, 2, 20).contains("from the new one"));
    old.send(value(id, "from the old one"));
    assert!(expect_status(&mut client, 1, 20).contains("from the old one"));
    assert_eq!(old.expect_end(), End::Finished);
}

#[test]
fn a_draining_proxy_says_farewell_and_waits_for_answers() {
    let upstream = Upstream::new();
    let mut mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let first = receive(&mut peer).id;
    mesh.signal(libc::SIGTERM);
    let farewell = receive(&mut client);
    assert_eq!((farewell.flag, &*farewell.body), (0xa2, READ_ONLY));
    // One that crossed it is served too.
    client.send(call(2, "go"));
    let second = receive(&mut peer).id;
    for (id, asked) in [(first, 1), (second, 2)] {
        peer.send(value(id, "done"));
        expect_status(&mut client, asked, 20);
    }
    assert_eq!(client.expect_end(), End::Finished);
    assert!(mesh.wait_exit().success());
}

#[test]
fn what_is_no_dubbo_is_closed_without_a_word() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let json = message(0xc6, 0, 1, b"{}");
    let huge = [&message(0xc2, 0, 1, b"")[..12], &[0x01, 0x00, 0x00, 0x01]].concat();
    let nameless = message(0xc2, 0, 1, b"\x05short");
    for (count, sent) in [b"GET / HTTP/1.1\r\n".to_vec(), json, huge].iter().enumerate() {
        let mut client = mesh.client();
        client.send(sent);
        client.expect_end();
        assert_eq!(mesh.metric("envoy_dubbo_request_decoding_error", &[]), (count + 1) as f64, "{sent:x?}");
    }
    // A call without even a name can be answered: where it ends is known.
    let mut client = mesh.client();
    client.send(nameless);
    expect_status(&mut client, 1, 40);
    assert!(!upstream.has_visitor());
}

#[test]
fn a_circuit_breaker_answers_for_the_cluster() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], |setup| {
        plain(setup);
        let most = Thresholds { max_requests: number(1), ..Default::default() };
        setup.cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![most], ..Default::default() });
    });
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let id = receive(&mut peer).id;
    client.send(call(2, "go"));
    expect_status(&mut client, 2, 80);
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"UO\""]), 1.0);
    peer.send(value(id, "done"));
    expect_status(&mut client, 1, 20);
}

#[test]
fn large_messages_pass_whole_in_whatever_pieces_they_come() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    let argument = content(3_000_000);
    let body = call_body("put", &argument, &[]);
    let sent = message(0xc2, 0, 1, &body);
    let mut peer = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The head byte by byte, then pieces of an odd size.
            for byte in sent[..40].iter() {
                client.send([*byte]);
            }
            for piece in sent[40..].chunks(70_001) {
                client.send(piece);
            }
        });
        let mut peer = upstream.accept();
        let received = receive(&mut peer);
        assert!(received.body == body);
        let mut answer = vec![0x91];
        for part in argument.chunks(0x8000) {
            answer.extend([b'A', (part.len() >> 8) as u8, part.len() as u8]);
            answer.extend(part);
        }
        answer.push(0x20);
        peer.send(message(0x02, 20, received.id, &answer));
        peer
    });
    let answer = receive(&mut client);
    assert_eq!((answer.id, answer.status), (1, 20));
    assert!(answer.body.len() > argument.len());
    // Small ones go on behind it.
    client.send(call(2, "go"));
    let id = receive(&mut peer).id;
    peer.send(value(id, "done"));
    expect_status(&mut client, 2, 20);
}

#[test]
fn exceptions_are_the_methods_own_and_errors_the_servers() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], plain);
    let mut client = mesh.client();
    client.send(call(1, "go"));
    let mut peer = upstream.accept();
    let id = receive(&mut peer).id;
    peer.send(message(0x02, 20, id, b"\x90N"));
    expect_status(&mut client, 1, 20);
    client.send(call(2, "go"));
    let id = receive(&mut peer).id;
    peer.send(message(0x02, 100, id, &text("too much to do")));
    assert!(expect_status(&mut client, 2, 100).contains("too much to do"));
    let count = |code: &str| mesh.metric("istio_requests_total", &["response_flags=\"-\"", code]);
    until("both are counted", || Some(()).filter(|()| count("response_code=\"503\"") == 1.0));
    assert_eq!(count("response_code=\"200\""), 1.0);
    assert_eq!(mesh.metric("envoy_dubbo_response_business_exception", &[]), 1.0);
    assert_eq!(mesh.metric("envoy_dubbo_response_error", &[]), 1.0);
}

#[test]
fn calls_pass_through_mutual_tls_on_both_sides() {
    let authority = Authority::new();
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], |setup| {
        plain(setup);
        setup.chain.transport_socket = tls_from(&[OTHER]);
        setup.cluster.transport_socket = tls_to(&[OTHER]);
        setup.more = secrets(&authority.identity(WEB), &authority);
    });
    let mut client = Peer::over(tls_client(mesh.address, &authority, Some(&authority.identity(OTHER))));
    client.send(call(1, "go"));
    let mut peer = Peer::over(server(upstream.accept_socket(), &authority, &authority.identity(OTHER)));
    for id in 1..=3 {
        let received = receive(&mut peer);
        peer.send(value(received.id, "done"));
        expect_status(&mut client, id, 20);
        client.send(call(id + 1, "go"));
    }
    let labels = ["request_protocol=\"dubbo\"", "destination_principal=\"spiffe://cluster.local/ns/default/sa/other\""];
    until("they are counted", || Some(()).filter(|()| mesh.metric("istio_requests_total", &labels) == 3.0));
}

#[test]
fn an_endpoint_that_fails_again_and_again_is_taken_out() {
    let (bad, good) = (Upstream::new(), Upstream::new());
    let mesh = start(&[bad.address(), good.address()], |setup| {
        plain(setup);
        setup.cluster.outlier_detection = Some(OutlierDetection {
            consecutive_5xx: number(2),
            base_ejection_time: Some(seconds(60.0)),
            max_ejection_percent: number(50),
            enforcing_success_rate: number(0),
            ..Default::default()
        });
    });
    let answering = |upstream: Upstream, answer: fn(u64) -> Vec<u8>| {
        std::thread::spawn(move || {
            let mut peer = upstream.accept();
            while !peer.first_bytes().is_empty() {
                let asked = receive(&mut peer);
                peer.send(answer(asked.id));
            }
        })
    };
    let threads =
        [answering(bad, |id| message(0x02, 70, id, &text("broken"))), answering(good, |id| value(id, "done"))];
    let mut client = mesh.client();
    let statuses = (1..=10).map(|id| {
        client.send(call(id, "go"));
        receive(&mut client).status
    });
    let statuses: Vec<u8> = statuses.collect();
    // By turns, until the second failure in a row.
    let failures = statuses.iter().filter(|&&status| status == 70).count();
    assert_eq!((failures, &statuses[4..]), (2, &[20; 6][..]), "{statuses:?}");
    drop((mesh, client));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

// ----------------------------------------------------------------------------------------------------------------- Thrift

/// Every method but `lost` to the one cluster.
fn any_thrift(setup: &mut Setup) {
    setup.calls = Some(any(THRIFT, &thrift_proxy(setup)));
}

fn thrift_proxy(setup: &Setup) -> thrift::ThriftProxy {
    let specifier = thrift::route_action::ClusterSpecifier::Cluster(CLUSTER.into());
    let route = thrift::Route {
        r#match: Some(thrift::RouteMatch {
            match_specifier: Some(thrift::route_match::MatchSpecifier::MethodName("lost".into())),
            invert: true,
            ..Default::default()
        }),
        route: Some(thrift::RouteAction { cluster_specifier: Some(specifier), ..Default::default() }),
    };
    thrift::ThriftProxy {
        stat_prefix: "in".into(),
        route_config: Some(thrift::RouteConfiguration {
            name: "routes".into(),
            routes: vec![route],
            ..Default::default()
        }),
        access_log: setup.manager.access_log.clone(),
        ..Default::default()
    }
}

/// A framed message of the binary protocol.
fn thrift_message(kind: u8, name: &str, id: u32, content: &[u8]) -> Vec<u8> {
    let mut message = vec![0x80, 0x01, 0, kind];
    message.extend((name.len() as u32).to_be_bytes());
    message.extend(name.as_bytes());
    message.extend(id.to_be_bytes());
    message.extend(content);
    [&(message.len() as u32).to_be_bytes()[..], &message].concat()
}

#[track_caller]
fn expect_thrift(peer: &mut Peer, expected: &[u8]) {
    assert_eq!(peer.take(expected.len()), expected);
}

const RESULT: &[u8] = b"\x08\0\0\0\0\0\x2a\0";

#[test]
fn a_connection_is_lent_to_one_call_at_a_time() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], any_thrift);
    let (mut one, mut other) = (mesh.client(), mesh.client());
    let (asked, answer) = (thrift_message(1, "Adder:add", 5, b"\0"), thrift_message(2, "Adder:add", 5, RESULT));
    one.send(&asked);
    let mut first = upstream.accept();
    expect_thrift(&mut first, &asked);
    // While it is lent, another call has a connection of its own.
    other.send(&asked);
    let mut second = upstream.accept();
    expect_thrift(&mut second, &asked);
    first.send(&answer);
    expect_thrift(&mut one, &answer);
    second.send(&answer);
    expect_thrift(&mut other, &answer);
    // Then it is used again.
    one.send(&asked);
    expect_thrift(&mut second, &asked);
    second.send(&answer);
    expect_thrift(&mut one, &answer);
    assert!(!upstream.has_visitor());
    let record = &mesh.wait_records(3)[0];
    assert_eq!((&record["path"], &record["authority"]), (&"/Adder/add".into(), &"Adder".into()), "{record}");
    assert_eq!((&record["response_code"], &record["bytes_received"]), (&200.into(), &asked.len().into()), "{record}");
    let labels = ["request_protocol=\"thrift\"", "response_code=\"200\""];
    assert_eq!(mesh.metric("istio_requests_total", &labels), 3.0);
    assert_eq!(mesh.metric("envoy_thrift_response_success", &[]), 3.0);
}

#[test]
fn calls_that_are_cut_off_leave_their_records() {
    let upstream = Upstream::new();
    let mut mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    let asked = thrift_message(1, "Adder:add", 5, b"\0");
    client.send(&asked);
    let mut peer = upstream.accept();
    expect_thrift(&mut peer, &asked);
    mesh.signal(libc::SIGTERM);
    until("it drains", || mesh.try_admin("GET", "/ready").filter(|(_, body)| body.starts_with("DRAINING")));
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success());
    let records = mesh.records();
    let [record] = &records[..] else { panic!("one call leaves one record: {records:?}") };
    assert_eq!((&record["path"], &record["response_flags"]), (&"/Adder/add".into(), &"DC".into()), "{record}");
    assert_eq!(record["response_code_details"], "downstream_local_disconnect(cut_off)", "{record}");
    assert_eq!(record["bytes_received"], asked.len(), "{record}");
}

#[test]
fn a_caller_that_leaves_is_waited_for_by_nobody_though_its_next_call_waits() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    let asked = |id| thrift_message(1, "add", id, b"\0");
    client.send(asked(1));
    let mut peer = upstream.accept();
    expect_thrift(&mut peer, &asked(1));
    client.send(asked(2));
    drop(client);
    peer.expect_end();
    until("it is given up", || {
        Some(()).filter(|()| mesh.metric("istio_requests_total", &["response_flags=\"DC\""]) == 1.0)
    });
    assert!(!upstream.has_visitor());
}

#[test]
fn calls_of_one_caller_are_carried_out_one_after_another() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    let asked = |id| thrift_message(1, "add", id, b"\0");
    client.send([asked(1), thrift_message(4, "note", 2, b"\0"), asked(3)].concat());
    let mut peer = upstream.accept();
    expect_thrift(&mut peer, &asked(1));
    assert!(!upstream.has_visitor());
    let answer = |id| thrift_message(2, "add", id, RESULT);
    peer.send(answer(1));
    expect_thrift(&mut client, &answer(1));
    // The one that wants no answer, and the one behind it.
    expect_thrift(&mut peer, &thrift_message(4, "note", 2, b"\0"));
    expect_thrift(&mut peer, &asked(3));
    peer.send(answer(3));
    expect_thrift(&mut client, &answer(3));
    assert_eq!(mesh.metric("envoy_thrift_request_oneway", &[]), 1.0);
}

#[test]
fn errors_are_told_in_thrifts_terms() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    // UNKNOWN_METHOD, in an exception that the caller's library raises.
    client.send(thrift_message(1, "lost", 9, b"\0"));
    let content = [&b"\x0b\0\x01\0\0\0\x11no route for lost"[..], b"\x08\0\x02\0\0\0\x01\0"].concat();
    expect_thrift(&mut client, &thrift_message(3, "lost", 9, &content));
    // Then the connection closes, where the configuration says nothing else.
    client.expect_end();
    mesh.expect_record("/lost", 404, "NR", "route_not_found");
    // An answer to another call than the one that was sent.
    let mut client = mesh.client();
    client.send(thrift_message(1, "add", 10, b"\0"));
    let mut peer = upstream.accept();
    expect_thrift(&mut peer, &thrift_message(1, "add", 10, b"\0"));
    peer.send(thrift_message(2, "add", 11, RESULT));
    let head = thrift_message(3, "add", 10, b"");
    client.take(4);
    expect_thrift(&mut client, &head[4..]);
    peer.expect_end();
    mesh.expect_record("/add", 502, "UPE", "upstream_reset_before_response_started{protocol_error}");
}

#[test]
fn a_connection_that_the_endpoint_closed_meanwhile_is_no_failure_of_a_call() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    let asked = thrift_message(1, "add", 1, b"\0");
    let answer = thrift_message(2, "add", 1, RESULT);
    for _ in 0..3 {
        client.send(&asked);
        let mut peer = upstream.accept();
        expect_thrift(&mut peer, &asked);
        peer.send(&answer);
        expect_thrift(&mut client, &answer);
    }
    assert_eq!(mesh.metric("istio_requests_total", &["response_flags=\"-\""]), 3.0);
}

#[test]
fn a_connection_closes_after_as_many_calls_as_are_allowed() {
    let upstream = Upstream::new();
    let mesh = start(&[upstream.address()], |setup| {
        let proxy = thrift_proxy(setup);
        setup.calls = Some(any(THRIFT, &thrift::ThriftProxy { max_requests_per_connection: number(2), ..proxy }));
    });
    let mut client = mesh.client();
    let asked = |id| thrift_message(1, "add", id, b"\0");
    client.send([asked(1), asked(2), asked(3)].concat());
    let mut peer = upstream.accept();
    for id in [1, 2] {
        expect_thrift(&mut peer, &asked(id));
        let answer = thrift_message(2, "add", id, RESULT);
        peer.send(&answer);
        expect_thrift(&mut client, &answer);
    }
    // What it sends after its last call does not reset the connection, and with it the answer.
    client.send(content(10_000));
    assert_eq!(client.expect_end(), End::Finished);
    assert_eq!(mesh.metric("envoy_thrift_request", &[]), 2.0);
}

#[test]
fn a_caller_that_cannot_be_told_hears_of_a_change_behind_an_answer() {
    let upstream = Upstream::new();
    let mut mesh = start(&[upstream.address()], any_thrift);
    let mut client = mesh.client();
    let asked = |id| thrift_message(1, "add", id, b"\0");
    let answer = |id| thrift_message(2, "add", id, RESULT);
    client.send(asked(1));
    let mut peer = upstream.accept();
    expect_thrift(&mut peer, &asked(1));
    peer.send(answer(1));
    expect_thrift(&mut client, &answer(1));
    mesh.change(|setup| {
        let proxy = thrift_proxy(setup);
        setup.calls = Some(any(THRIFT, &thrift::ThriftProxy { stat_prefix: "changed".into(), ..proxy }));
    });
    client.send(asked(2));
    expect_thrift(&mut peer, &asked(2));
    peer.send(answer(2));
    expect_thrift(&mut client, &answer(2));
    assert_eq!(client.expect_end(), End::Finished);
    // When the process ends, nobody's next call is waited for.
    let mut idle = mesh.client();
    idle.send(asked(3));
    expect_thrift(&mut peer, &asked(3));
    peer.send(answer(3));
    expect_thrift(&mut idle, &answer(3));
    mesh.signal(libc::SIGTERM);
    assert_eq!(idle.expect_end(), End::Finished);
    assert!(mesh.wait_exit().success());
}
