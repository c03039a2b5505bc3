//! Active health checks: what endpoints are asked, and who gets requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use serde_json::Value;
use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, TlsOptions, payload,
};
use weft_protos::envoy::config::endpoint::v3 as endpoint;
use weft_protos::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use weft_protos::envoy::r#type::v3::{CodecClientType, Int64Range, Percent};
use weft_protos::google::protobuf::BoolValue;
use weft_protos::type_url;

use crate::kit::certificates::{Authority, OTHER, WEB, secrets, server_for, upstream_for};
use crate::kit::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Wire, block};
use crate::kit::peer::{Message, ok};
use crate::kit::resources::{CLUSTER, load_assignment, number, published, seconds};
use crate::kit::{Mesh, Peer, Setup, Upstream, free_address, until};

/// Every 10 ms, also while nothing is sent to the cluster; two answers in a row make a change. No panic: who fails gets nothing.
fn check(setup: &mut Setup, checker: HealthChecker) {
    setup.cluster.health_checks = vec![core::HealthCheck {
        timeout: Some(seconds(10.0)),
        interval: Some(seconds(0.01)),
        no_traffic_interval: Some(seconds(0.01)),
        unhealthy_threshold: number(2),
        healthy_threshold: number(2),
        health_checker: Some(checker),
        ..Default::default()
    }];
    panic_below(setup, 0.0);
}

fn panic_below(setup: &mut Setup, percent: f64) {
    let common = setup.cluster.common_lb_config.get_or_insert_default();
    common.healthy_panic_threshold = Some(Percent { value: percent });
}

fn http() -> HealthChecker {
    HealthChecker::HttpHealthCheck(HttpHealthCheck { path: "/health".into(), ..Default::default() })
}

fn tcp(send: &str, receive: &[&str]) -> HealthChecker {
    let hex = |text: &str| Payload { payload: Some(payload::Payload::Text(text.into())) };
    HealthChecker::TcpHealthCheck(TcpHealthCheck {
        send: (!send.is_empty()).then(|| hex(send)),
        receive: receive.iter().map(|text| hex(text)).collect(),
        ..Default::default()
    })
}

fn status(code: u16) -> Vec<u8> {
    format!("HTTP/1.1 {code} Said\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

/// An endpoint that answers checks with the status at hand, counts them, and says its name to everything else.
struct Endpoint {
    address: SocketAddr,
    health: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
}

impl Endpoint {
    fn new(name: &'static str, health: u16) -> Endpoint {
        Endpoint::answering(name, health, |_| ())
    }

    fn answering(name: &'static str, health: u16, look: impl Fn(&Message) + Clone + Send + 'static) -> Endpoint {
        let (health, checks) = (Arc::new(AtomicU16::new(health)), Arc::<AtomicUsize>::default());
        let seen = (Arc::clone(&health), Arc::clone(&checks));
        let address = Upstream::answering(move |request| {
            if !request.start_line().contains(" /health") {
                return ok(name);
            }
            look(request);
            seen.1.fetch_add(1, Ordering::Relaxed);
            status(seen.0.load(Ordering::Relaxed))
        });
        Endpoint { address, health, checks }
    }

    fn set(&self, status: u16) {
        self.health.store(status, Ordering::Relaxed);
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::Relaxed)
    }

    /// So many checks come from now on.
    #[track_caller]
    fn wait_checks(&self, count: usize) {
        let end = self.checks() + count;
        until("checks come", || (self.checks() >= end).then_some(()));
    }
}

/// What `/clusters` says of the endpoint's health.
fn shown(mesh: &Mesh, address: SocketAddr) -> Value {
    let found = mesh.endpoints().into_iter().find(|it| it["address"] == address.to_string());
    found.map(|it| it["health"].clone()).unwrap_or_default()
}

/// Whether the endpoint passes; `None` if `/clusters` has none such.
fn passes(mesh: &Mesh, address: SocketAddr) -> Option<bool> {
    let health = shown(mesh, address);
    health.is_object().then(|| health["failed_active_health_check"].is_null())
}

#[track_caller]
fn wait_failed(mesh: &Mesh, address: SocketAddr, failed: bool) {
    until("the endpoint's health is as expected", || (passes(mesh, address) == Some(!failed)).then_some(()));
}

/// Who answers, of a few requests.
fn answering(client: &mut Peer) -> Vec<String> {
    let mut names: Vec<String> = (0..6).map(|_| client.get("/").text()).collect();
    names.sort();
    names.dedup();
    names
}

/// Requests come to be answered by these.
#[track_caller]
fn wait_answering(client: &mut Peer, names: &[&str]) {
    until("requests go to those that pass", || (answering(client) == names).then_some(()));
}

fn count(mesh: &Mesh, what: &str) -> f64 {
    let label = format!("envoy_cluster_name=\"{CLUSTER}\"");
    mesh.metric(&format!("envoy_cluster_health_check_{what}"), &[&label])
}

#[test]
fn who_fails_gets_no_requests_until_it_passes_again() {
    let (a, b) = (Endpoint::new("a", 200), Endpoint::new("b", 200));
    let mesh = Mesh::start(&[a.address, b.address], |setup| check(setup, http()));
    let mut client = mesh.client();
    assert_eq!(answering(&mut client), ["a", "b"]);
    assert_eq!((count(&mesh, "healthy"), count(&mesh, "failure")), (2.0, 0.0));
    b.set(503);
    wait_failed(&mesh, b.address, true);
    wait_answering(&mut client, &["a"]);
    assert_eq!((count(&mesh, "healthy"), count(&mesh, "network_failure")), (1.0, 0.0));
    assert!(count(&mesh, "failure") >= 1.0);
    let state = shown(&mesh, b.address);
    assert_eq!(
        (&state["eds_health_status"], &state["pending_active_hc"]),
        (&"HEALTHY".into(), &Value::Null),
        "{state}"
    );
    b.set(200);
    wait_failed(&mesh, b.address, false);
    wait_answering(&mut client, &["a", "b"]);
    assert!(count(&mesh, "attempt") >= count(&mesh, "success") && count(&mesh, "success") >= 4.0);
    let said = |what: &str| mesh.log().contains(&format!("endpoint {} of cluster {CLUSTER} {what}", b.address));
    assert!(said("is unhealthy: it fails its HTTP health check (status 503)"), "{}", mesh.log());
    assert!(said("is healthy: it passes its HTTP health check"), "{}", mesh.log());
    // Both stand for one change, however many checks came.
    assert_eq!(mesh.log().matches("healthy").count(), 2, "{}", mesh.log());
}

#[test]
fn an_endpoint_that_is_away_fails_after_its_threshold_and_comes_back() {
    let (a, away) = (Endpoint::new("a", 200), free_address());
    let mesh = Mesh::start(&[a.address, away], |setup| check(setup, http()));
    assert_eq!(answering(&mut mesh.client()), ["a"]);
    assert!(count(&mesh, "network_failure") >= 1.0);
    Upstream::at(away).answer_all(|_| ok("back"));
    wait_failed(&mesh, away, false);
    wait_answering(&mut mesh.client(), &["a", "back"]);
}

#[test]
fn failures_that_are_not_in_a_row_change_nothing() {
    let turn = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&turn);
    let flapping = Upstream::answering(move |request| match request.start_line().contains(" /health") {
        true => status(if counted.fetch_add(1, Ordering::Relaxed) % 2 == 0 { 200 } else { 500 }),
        false => ok("flapping"),
    });
    let mesh = Mesh::start(&[flapping], |setup| {
        let retriable_statuses = vec![Int64Range { start: 500, end: 501 }];
        let http = HttpHealthCheck { path: "/health".into(), retriable_statuses, ..Default::default() };
        check(setup, HealthChecker::HttpHealthCheck(http));
    });
    let mut client = mesh.client();
    until("it has flapped for a while", || {
        assert_eq!(client.get("/").text(), "flapping");
        (turn.load(Ordering::Relaxed) > 20).then_some(())
    });
    assert!(count(&mesh, "failure") >= 9.0 && !mesh.log().contains("healthy"), "{}", mesh.log());
}

#[test]
fn a_cluster_waits_for_the_first_check_of_each_endpoint() {
    let (a, slow) = (Endpoint::new("a", 503), Upstream::new());
    let mut mesh = Mesh::prepare(&[a.address, slow.address()]);
    check(&mut mesh.setup, http());
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let mut held = slow.accept();
    let request = held.message();
    assert_eq!(request.start_line(), "GET /health HTTP/1.1");
    a.wait_checks(2);
    let warming = &mesh.dump("dynamic_warming_clusters")[0];
    assert_eq!(
        (&warming["cluster"]["name"], &warming["reason"]),
        (&CLUSTER.into(), &"its endpoints have not all been checked yet".into())
    );
    assert_eq!(mesh.try_admin("GET", "/ready").unwrap().0, 503);
    // One success is enough at the start.
    held.send(status(200));
    mesh.wait_ready();
    assert_eq!(passes(&mesh, slow.address()), Some(true));
    assert_eq!(shown(&mesh, a.address)["failed_active_health_check"], true);
}

#[test]
fn a_new_endpoint_gets_nothing_before_its_first_check() {
    let (a, new) = (Endpoint::new("a", 200), Upstream::new());
    let mut mesh = Mesh::start(&[a.address], |setup| check(setup, http()));
    mesh.change(|setup| setup.endpoints.push(new.address()));
    let mut held = new.accept();
    held.message();
    let mut client = mesh.client();
    assert_eq!(answering(&mut client), ["a"]);
    assert_eq!(shown(&mesh, new.address())["pending_active_hc"], true);
    held.send(status(200));
    wait_failed(&mesh, new.address(), false);
    new.answer_all(|_| ok("new"));
    wait_answering(&mut client, &["a", "new"]);
}

#[test]
fn an_endpoint_that_goes_ends_its_checks() {
    let (a, going) = (Endpoint::new("a", 200), Upstream::new());
    let mut mesh = Mesh::prepare(&[a.address, going.address()]);
    check(&mut mesh.setup, http());
    mesh.setup.cluster.ignore_health_on_host_removal = true;
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let mut held = going.accept();
    held.message();
    held.send(status(200));
    mesh.wait_ready();
    // In the middle of a check.
    held.message();
    mesh.change(|setup| setup.endpoints.truncate(1));
    held.expect_end();
    assert_eq!(mesh.endpoints().len(), 1);
    a.wait_checks(5);
    assert!(!going.has_visitor());
}

#[test]
fn an_endpoint_that_discovery_forgets_stays_while_it_passes() {
    let (a, b) = (Endpoint::new("a", 200), Endpoint::new("b", 200));
    let mut mesh = Mesh::start(&[a.address, b.address], |setup| check(setup, http()));
    mesh.change(|setup| setup.endpoints.truncate(1));
    assert_eq!(answering(&mut mesh.client()), ["a", "b"]);
    assert_eq!(shown(&mesh, b.address)["pending_dynamic_removal"], true);
    b.set(503);
    until("it is gone", || (mesh.endpoints().len() == 1).then_some(()));
    assert_eq!(answering(&mut mesh.client()), ["a"]);
    let seen = b.checks();
    a.wait_checks(5);
    assert!(b.checks() <= seen + 1, "checks go on");
}

#[test]
fn too_few_that_pass_are_panic() {
    let (a, b) = (Endpoint::new("a", 503), Endpoint::new("b", 503));
    for (threshold, answers) in [(50.0, &["a", "b"][..]), (0.0, &["no healthy upstream"])] {
        let mesh = Mesh::start(&[a.address, b.address], |setup| {
            check(setup, http());
            panic_below(setup, threshold);
        });
        assert_eq!(answering(&mut mesh.client()), answers, "{threshold}");
    }
}

#[test]
fn an_answer_to_a_request_may_fail_its_endpoint() {
    let (a, checks) = (Endpoint::new("a", 200), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&checks);
    let ill = Upstream::answering(move |request| match request.start_line().contains(" /health") {
        true => status(if counted.fetch_add(1, Ordering::Relaxed) == 0 { 200 } else { 503 }),
        false => {
            b"HTTP/1.1 200 OK\r\nx-envoy-immediate-health-check-fail: true\r\ncontent-length: 3\r\n\r\nill".to_vec()
        }
    });
    let mesh = Mesh::start(&[a.address, ill], |setup| {
        check(setup, http());
        // Only the answer can tell.
        setup.cluster.health_checks[0].interval = Some(seconds(1000.0));
        setup.cluster.health_checks[0].no_traffic_interval = Some(seconds(1000.0));
    });
    let mut client = mesh.client();
    assert_eq!(answering(&mut client), ["a", "ill"]);
    assert_eq!(answering(&mut client), ["a"]);
    let state = shown(&mesh, ill);
    assert_eq!(state["failed_active_health_check"], true, "{state}");
    assert_eq!(state["excluded_via_immediate_hc_fail"], true, "{state}");
    assert!(mesh.log().contains(&format!("endpoint {ill} of cluster {CLUSTER} is unhealthy: it says so in an answer")));
    assert_eq!(checks.load(Ordering::Relaxed), 1);
}

#[test]
fn a_check_that_passes_ends_an_ejection_unless_it_must_not() {
    for unejects in [true, false] {
        let a = Endpoint::new("a", 200);
        let bad =
            Upstream::answering(|request| status(if request.start_line().contains(" /health") { 200 } else { 500 }));
        let mesh = Mesh::start(&[a.address, bad], |setup| {
            check(setup, http());
            setup.cluster.outlier_detection = Some(cluster::OutlierDetection {
                consecutive_5xx: number(1),
                base_ejection_time: Some(seconds(1000.0)),
                max_ejection_time: Some(seconds(1000.0)),
                max_ejection_percent: number(100),
                enforcing_success_rate: number(0),
                successful_active_health_check_uneject_host: (!unejects).then_some(BoolValue { value: false }),
                ..Default::default()
            });
        });
        let mut client = mesh.client();
        let mut failures = 0;
        if unejects {
            until("it is back and fails again", || {
                failures += usize::from(client.get("/").status() == 500);
                (failures == 3).then_some(())
            });
            let said = format!("endpoint {bad} of cluster {CLUSTER} passes a health check, which ends its ejection");
            assert!(mesh.log().contains(&said), "{}", mesh.log());
        } else {
            until("it is ejected", || (client.get("/").status() == 500).then_some(()));
            a.wait_checks(5);
            assert_eq!(answering(&mut client), ["a"]);
            assert_eq!(passes(&mesh, bad), Some(true));
        }
    }
}

#[test]
fn a_check_says_what_it_is_told_to() {
    let heads = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let seen = Arc::clone(&heads);
    let elsewhere = Endpoint::answering("checks", 200, move |request| {
        seen.lock().unwrap().push(format!("{} {}", request.head, request.text()));
    });
    let serving = Upstream::saying("serving");
    let mut mesh = Mesh::prepare(&[]);
    check(
        &mut mesh.setup,
        HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: "checked.test".into(),
            path: "/health?deep=1".into(),
            method: core::RequestMethod::Post as i32,
            send: Some(Payload { payload: Some(payload::Payload::Text("70696e67".into())) }),
            request_headers_to_add: vec![core::HeaderValueOption {
                header: Some(core::HeaderValue { key: "x-probe".into(), value: "yes".into(), ..Default::default() }),
                ..Default::default()
            }],
            request_headers_to_remove: vec!["user-agent".into()],
            ..Default::default()
        }),
    );
    // Where requests go is not where checks go.
    let mut assignment = load_assignment(CLUSTER, &[serving]);
    let lb_endpoint = &mut assignment.endpoints[0].lb_endpoints[0];
    let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)) = &mut lb_endpoint.host_identifier else {
        panic!("it is an endpoint")
    };
    host.health_check_config =
        Some(HealthCheckConfig { port_value: elsewhere.address.port().into(), ..Default::default() });
    mesh.setup.cluster.eds_cluster_config.as_mut().unwrap().service_name = "with-checks".into();
    assignment.cluster_name = "with-checks".into();
    mesh.setup.more = vec![published(type_url::CLUSTER_LOAD_ASSIGNMENT, "with-checks", &assignment)];
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").text(), "serving");
    let first = heads.lock().unwrap()[0].clone();
    assert!(first.starts_with("POST /health?deep=1 HTTP/1.1\r\n") && first.ends_with(" ping"), "{first}");
    assert!(first.contains("host: checked.test\r\n") && first.contains("x-probe: yes\r\n"), "{first}");
    assert!(!first.contains("user-agent"), "{first}");
}

#[test]
fn checks_use_one_connection_unless_they_must_not() {
    for reuses in [true, false] {
        let upstream = Upstream::new();
        let mut mesh = Mesh::prepare(&[upstream.address()]);
        check(&mut mesh.setup, http());
        mesh.setup.cluster.health_checks[0].reuse_connection = (!reuses).then_some(BoolValue { value: false });
        mesh.serve();
        mesh.run(&[]);
        mesh.publish();
        let mut peer = upstream.accept();
        let first = peer.message();
        assert_eq!(first.get("user-agent"), Some("Envoy/HC"));
        assert_eq!(first.get("host"), Some(CLUSTER));
        peer.send(status(200));
        if !reuses {
            peer.expect_end();
            peer = upstream.accept();
        }
        assert_eq!(peer.message().start_line(), "GET /health HTTP/1.1");
        assert!(!upstream.has_visitor());
        peer.send(status(200));
        mesh.wait_ready();
    }
}

#[test]
fn a_connection_is_enough_for_tcp() {
    let (a, away) = (Upstream::new(), free_address());
    let mesh = Mesh::start(&[a.address(), away], |setup| check(setup, tcp("", &[])));
    wait_failed(&mesh, away, true);
    assert_eq!(passes(&mesh, a.address()), Some(true));
    // It is closed at once, with nothing said.
    a.accept().expect_end();
}

#[test]
fn bytes_of_tcp_have_to_come_in_order() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::prepare(&[upstream.address()]);
    check(&mut mesh.setup, tcp("50494e47", &["2b", "504f4e47"]));
    mesh.setup.cluster.health_checks[0].timeout = Some(seconds(1.0));
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let mut peer = upstream.accept();
    peer.expect("PING");
    peer.send("PONG and then +, ");
    peer.send("PO");
    peer.send("NG\r\n");
    mesh.wait_ready();
    assert_eq!(passes(&mesh, upstream.address()), Some(true));
    // The next on the same connection, which does not answer in time.
    peer.expect("PING");
    peer.send("+PIN");
    peer.expect_end();
    let mut peer = upstream.accept();
    peer.expect("PING");
    // Here it ends without an answer; two make a failure.
    drop(peer);
    wait_failed(&mesh, upstream.address(), true);
    assert!(mesh.log().contains("TCP health check (the connection ended before the answer)"), "{}", mesh.log());
}

/// Answer a call of gRPC with one message and `grpc-status`.
fn answer_call(server: &mut Wire, message: &[u8], code: &str) -> (String, Vec<u8>) {
    let request = server.next();
    assert_eq!(request.kind, HEADERS);
    let head = String::from_utf8_lossy(&request.payload).into_owned();
    let (body, _) = server.body(request.stream);
    let fields = [(":status", "200"), ("content-type", "application/grpc")];
    server.send(HEADERS, END_HEADERS, request.stream, &block(&fields));
    server.send(DATA, 0, request.stream, message);
    server.send(HEADERS, END_HEADERS | END_STREAM, request.stream, &block(&[("grpc-status", code)]));
    (head, body)
}

const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
const NOT_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x02";

#[test]
fn grpc_is_asked_by_its_own_protocol() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::prepare(&[upstream.address()]);
    let service = GrpcHealthCheck { service_name: "shop.Cart".into(), ..Default::default() };
    check(&mut mesh.setup, HealthChecker::GrpcHealthCheck(service));
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let mut server = Wire::server(upstream.accept(), &[]);
    let (_, body) = answer_call(&mut server, SERVING, "0");
    assert_eq!(body, b"\0\0\0\0\x0b\x0a\x09shop.Cart");
    mesh.wait_ready();
    assert_eq!(passes(&mesh, upstream.address()), Some(true));
    // On the same connection; one such answer is enough.
    answer_call(&mut server, NOT_SERVING, "0");
    wait_failed(&mesh, upstream.address(), true);
    assert!(mesh.log().contains("GRPC health check (not serving)"), "{}", mesh.log());
    for _ in 0..2 {
        answer_call(&mut server, SERVING, "0");
    }
    wait_failed(&mesh, upstream.address(), false);
    // A server that has no such service says so at once.
    let request = server.next();
    server.body(request.stream);
    let fields = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")];
    server.send(HEADERS, END_HEADERS | END_STREAM, request.stream, &block(&fields));
    wait_failed(&mesh, upstream.address(), true);
    assert!(!upstream.has_visitor());
}

#[test]
fn a_check_of_http_may_be_of_http2() {
    let upstream = Upstream::new();
    let mut mesh = Mesh::prepare(&[upstream.address()]);
    let codec_client_type = CodecClientType::Http2 as i32;
    let http = HttpHealthCheck { path: "/health".into(), codec_client_type, ..Default::default() };
    check(&mut mesh.setup, HealthChecker::HttpHealthCheck(http));
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let mut server = Wire::server(upstream.accept(), &[]);
    for _ in 0..2 {
        let request = server.next();
        assert_eq!((request.kind, request.flags & END_STREAM), (HEADERS, END_STREAM));
        server.answer(request.stream, b"fine");
    }
    mesh.wait_ready();
    assert_eq!(passes(&mesh, upstream.address()), Some(true));
}

#[test]
fn checks_go_over_the_clusters_transport() {
    let authority = Authority::new();
    let upstream = Upstream::new();
    let mut mesh = Mesh::prepare(&[upstream.address()]);
    check(&mut mesh.setup, http());
    mesh.setup.cluster.transport_socket = upstream_for(&[OTHER], &["h2", "http/1.1"]);
    mesh.setup.more = secrets(&authority.identity(WEB), &authority);
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    let identity = authority.identity(OTHER);
    // The server would choose HTTP/2; the check speaks HTTP/1.1 and offers nothing else.
    let mut peer = Peer::over(server_for(upstream.accept_socket(), &authority, &identity, &["h2", "http/1.1"]));
    assert_eq!(peer.message().start_line(), "GET /health HTTP/1.1");
    peer.send(status(200));
    mesh.wait_ready();
    // Another name for checks alone, and another connection for it.
    mesh.change(|setup| {
        let alpn_protocols = vec!["check".into()];
        setup.cluster.health_checks[0].tls_options = Some(TlsOptions { alpn_protocols });
    });
    let mut socket = server_for(upstream.accept_socket(), &authority, &identity, &["check"]);
    while socket.conn.is_handshaking() {
        socket.conn.complete_io(&mut socket.sock).unwrap();
    }
    assert_eq!(socket.conn.alpn_protocol(), Some(&b"check"[..]));
    let mut peer = Peer::over(socket);
    assert_eq!(peer.message().start_line(), "GET /health HTTP/1.1");
    peer.send(status(200));
    until("the new version is at work", || (passes(&mesh, upstream.address()) == Some(true)).then_some(()));
}

#[test]
fn each_check_is_told_where_that_is_asked_for() {
    for (failures, successes) in [(false, false), (true, false), (false, true)] {
        let endpoint = Endpoint::new("a", 200);
        let mesh = Mesh::start(&[endpoint.address], |setup| {
            check(setup, http());
            let check = &mut setup.cluster.health_checks[0];
            check.always_log_health_check_failures = failures;
            check.always_log_health_check_success = successes;
        });
        let expect = |what: &str, told: bool| {
            let line = format!("endpoint {} of cluster {CLUSTER} {what} its ", endpoint.address);
            endpoint.wait_checks(5);
            if told {
                until("each is told", || (mesh.log().matches(&line).count() >= 3).then_some(()));
            } else {
                assert!(!mesh.log().contains(&line), "{}", mesh.log());
            }
        };
        expect("passes", successes);
        endpoint.set(503);
        // A change of state is told whatever is asked for, in other words.
        wait_failed(&mesh, endpoint.address, true);
        expect("fails", failures);
    }
}
