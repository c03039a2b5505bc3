//! What goes wrong: status and body for the client, flags and details in the record.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3::HttpProtocolOptions;
use weft_protos::envoy::config::route::v3::route_action::MaxStreamDuration;
use weft_protos::envoy::extensions::filters::common::fault::v3 as common_fault;
use weft_protos::envoy::extensions::filters::http::fault::v3 as fault;
use weft_protos::envoy::r#type::v3::FractionalPercent;

use crate::kit::frames::{HEADERS, INTERNAL_ERROR, RST_STREAM, SETTINGS, Wire};
use crate::kit::mesh::expect_passed;
use crate::kit::peer::{End, ok};
use crate::kit::resources::{CLUSTER, any, number, retries, seconds, to};
use crate::kit::{Mesh, Peer, Setup, Upstream, free_address};

#[test]
fn a_request_without_route_is_404_nr() {
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| setup.route(vec![to(CLUSTER, "/known")]));
    let mut client = mesh.client();
    let answer = client.get("/other");
    assert_eq!((answer.status(), answer.text().as_str()), (404, ""));
    let record = mesh.expect_record("/other", 404, "NR", "route_not_found");
    assert!(record["upstream_host"].is_null() && record["route_name"].is_null(), "{record}");
    // It was the client's mistake and not the connection's.
    assert_eq!(client.get("/known").status(), 200);
}

#[test]
fn a_cluster_that_does_not_exist_is_503_nc() {
    let mesh = Mesh::start(&[], |setup| setup.route(vec![to("nowhere", "/")]));
    assert_eq!(mesh.client().get("/").status(), 503);
    let record = mesh.expect_record("/", 503, "NC", "cluster_not_found");
    assert_eq!(record["upstream_cluster"], "nowhere");
}

#[test]
fn a_cluster_without_endpoints_is_503_uh() {
    let mesh = Mesh::start(&[], |_| {});
    let answer = mesh.client().get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "no healthy upstream"));
    mesh.expect_record("/", 503, "UH", "no_healthy_upstream");
}

#[test]
fn a_refused_connection_is_503_uf() {
    let address = free_address();
    let mesh = Mesh::start(&[address], |_| {});
    let answer = mesh.client().get("/");
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.text(),
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
         transport failure reason: delayed connect error: Connection refused"
    );
    let details =
        "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
    let record = mesh.expect_record("/", 503, "UF", details);
    assert_eq!(record["upstream_host"], address.to_string());
    assert_eq!(record["upstream_transport_failure_reason"], "delayed connect error: Connection refused");
}

#[test]
fn a_reset_before_the_answer_is_503_uc() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    for (path, reset) in [("/reset", true), ("/close", false)] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: up\r\n\r\n"));
        let mut peer = upstream.accept();
        peer.message();
        if reset {
            peer.reset();
        } else {
            drop(peer);
        }
        assert_eq!(client.message().status(), 503);
        mesh.expect_record(path, 503, "UC", "upstream_reset_before_response_started{connection_termination}");
    }
}

#[test]
fn a_reset_within_the_answer_cuts_the_client_off() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    peer.reset();
    assert_eq!(client.expect_end(), End::Reset);
    mesh.expect_record("/", 200, "UC", "upstream_reset_after_response_started{connection_termination}");
}

#[test]
fn a_route_times_out_with_504_ut() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.1)));
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (504, "upstream request timeout"));
    expect_passed(began, Duration::from_millis(100));
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/", 504, "UT", "response_timeout");
}

#[test]
fn a_route_times_out_within_the_answer() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(1.0)));
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    assert_eq!(client.expect_end(), End::Reset);
    mesh.expect_record("/", 200, "UT", "upstream_response_timeout");
}

#[test]
fn a_route_times_out_behind_a_request_that_ends_after_the_head_of_its_answer() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.1)));
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    client.send("x");
    peer.expect("x");
    assert_eq!(client.expect_end(), End::Reset);
    assert_eq!(peer.expect_end(), End::Reset);
    let record = mesh.expect_record("/", 200, "UT", "upstream_response_timeout");
    assert!(record["duration_ms"].as_u64() >= Some(100), "{record}");
}

/// The route's `max_stream_duration`.
fn stream_duration(limit: f64) -> Option<MaxStreamDuration> {
    Some(MaxStreamDuration {
        max_stream_duration: Some(seconds(limit)),
        grpc_timeout_header_max: Some(seconds(60.0)),
        ..Default::default()
    })
}

#[test]
fn a_request_that_lives_too_long_is_504_before_the_answer() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().max_stream_duration = stream_duration(0.1));
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (504, "downstream duration timeout"));
    expect_passed(began, Duration::from_millis(100));
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/", 504, "-", "max_duration_timeout");
    // A caller of gRPC says itself how long, and is told so in gRPC.
    client.send("POST /grpc HTTP/1.1\r\nhost: up\r\ncontent-type: application/grpc\r\n");
    client.send("grpc-timeout: 50m\r\ncontent-length: 0\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let answer = client.message();
    assert_eq!((answer.status(), answer.get("grpc-status")), (200, Some("4")));
}

#[test]
fn a_request_that_does_not_end_in_time_is_408() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.manager.common_http_protocol_options =
            Some(HttpProtocolOptions { max_stream_duration: Some(seconds(0.1)), ..Default::default() });
    });
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 10\r\n\r\nabc");
    let mut peer = upstream.accept();
    peer.head();
    let answer = client.message();
    assert_eq!((answer.status(), answer.text().as_str()), (408, "downstream duration timeout"));
    mesh.expect_record("/", 408, "-", "max_duration_timeout");
}

#[test]
fn an_answer_that_moves_for_too_long_is_cut_off() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().max_stream_duration = stream_duration(1.0));
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    assert_eq!(client.expect_end(), End::Reset);
    mesh.expect_record("/", 200, "-", "max_duration_timeout");
}

#[test]
fn the_time_of_a_slow_request_is_not_the_upstreams() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(1.0)));
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    crate::kit::until("the route's timeout has passed", || {
        (began.elapsed() > Duration::from_millis(1100)).then_some(())
    });
    client.send("x");
    peer.expect("x");
    peer.send(ok("in time"));
    assert_eq!(client.message().text(), "in time");
}

#[test]
fn a_try_times_out_and_the_next_succeeds() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let mut policy = retries("5xx", 2);
        policy.per_try_timeout = Some(seconds(1.0));
        setup.action().retry_policy = Some(policy);
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut silent = upstream.accept();
    silent.message();
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("second"));
    assert_eq!(client.message().text(), "second");
    assert_eq!(silent.expect_end(), End::Reset);
    let record = mesh.expect_record("/", 200, "-", "via_upstream");
    assert_eq!(record["attempts"], 2);
}

#[test]
fn the_last_try_that_times_out_is_504_ut_urx() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let mut policy = retries("5xx", 1);
        policy.per_try_timeout = Some(seconds(0.05));
        setup.action().retry_policy = Some(policy);
    });
    let answer = mesh.client().get("/");
    assert_eq!(answer.status(), 504);
    let record = mesh.expect_record("/", 504, "UT,URX", "upstream_per_try_timeout");
    assert_eq!(record["attempts"], 2);
}

/// A request is tried twice, and each try may take this long.
fn try_for(setup: &mut Setup, limit: f64) {
    let mut policy = retries("5xx", 1);
    policy.per_try_timeout = Some(seconds(limit));
    setup.action().retry_policy = Some(policy);
}

/// Wait until more than *limit* has passed since *began*.
fn outlast(began: Instant, limit: Duration) {
    crate::kit::until("the limit has passed", || (began.elapsed() > limit + Duration::from_millis(50)).then_some(()));
}

#[test]
fn the_time_of_a_slow_request_is_not_its_trys() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| try_for(setup, 0.3));
    let mut client = mesh.client();
    let began = Instant::now();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n");
    let mut silent = upstream.accept();
    silent.head();
    outlast(began, Duration::from_millis(300));
    assert!(!upstream.has_visitor());
    let ended = Instant::now();
    client.send("x");
    // From here on it counts.
    let mut peer = upstream.accept();
    expect_passed(ended, Duration::from_millis(300));
    assert_eq!(peer.message().text(), "x");
    peer.send(ok("second"));
    assert_eq!(client.message().text(), "second");
    assert_eq!(mesh.expect_record("/", 200, "-", "via_upstream")["attempts"], 2);
}

#[test]
fn the_wait_for_a_connection_is_not_a_trys() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        limit(setup, |limits| limits.max_connections = number(1));
        try_for(setup, 1.0);
        setup.action().timeout = Some(seconds(0.0));
    });
    let mut first = mesh.client();
    first.send("POST /first HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\n");
    let mut peer = upstream.accept();
    peer.head();
    let mut waiting = mesh.client();
    let began = Instant::now();
    waiting.send("GET /waiting HTTP/1.1\r\nhost: up\r\n\r\n");
    outlast(began, Duration::from_secs(1));
    first.send("x");
    peer.expect("x");
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    assert_eq!(peer.message().start_line(), "GET /waiting HTTP/1.1");
    peer.send(ok("two"));
    assert_eq!(waiting.message().text(), "two");
    assert_eq!(mesh.expect_record("/waiting", 200, "-", "via_upstream")["attempts"], 1);
}

#[test]
fn a_request_is_retried_with_its_body_until_it_succeeds() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.action().retry_policy = Some(retries("5xx", 3));
    });
    let mut client = mesh.client();
    for (framing, path) in
        [("content-length: 4\r\n\r\nbody", "/a"), ("transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", "/b")]
    {
        client.send(format!("POST {path} HTTP/1.1\r\nhost: up\r\n{framing}"));
        for answer in [&b"HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nfail"[..], b"", &ok("third")] {
            let mut peer = upstream.accept();
            assert_eq!(peer.message().text(), "body");
            peer.send(answer);
            if answer.ends_with(b"third") {
                peer.send("");
            }
            // Ended before its answer, or refused with its answer: a new connection is made either way.
            peer.finish();
            drop(peer);
        }
        assert_eq!(client.message().text(), "third");
        assert_eq!(mesh.expect_record(path, 200, "-", "via_upstream")["attempts"], 3);
    }
    assert_eq!(mesh.metric("envoy_cluster_upstream_rq_retry", &[]), 4.0);
}

#[test]
fn exhausted_retries_are_flagged_urx() {
    let upstream = Upstream::answering(|_| b"HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nbusy".to_vec());
    let mesh = Mesh::start(&[upstream], |setup| setup.action().retry_policy = Some(retries("5xx", 2)));
    let answer = mesh.client().get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "busy"));
    assert_eq!(mesh.expect_record("/", 503, "URX", "via_upstream")["attempts"], 3);
}

#[test]
fn exhausted_connects_are_flagged_uf_urx() {
    let mesh = Mesh::start(&[free_address()], |setup| {
        setup.action().retry_policy = Some(retries("connect-failure", 1));
    });
    let answer = mesh.client().get("/");
    assert_eq!(answer.status(), 503);
    assert!(
        answer.text().contains("retried and the latest reset reason: remote connection failure"),
        "{}",
        answer.text()
    );
    let record = mesh.record("/");
    assert_eq!((&record["response_flags"], &record["attempts"]), (&"UF,URX".into(), &2.into()));
}

#[test]
fn what_the_policy_does_not_name_is_not_retried() {
    let upstream = Upstream::answering(|_| b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n".to_vec());
    let mesh = Mesh::start(&[upstream], |setup| setup.action().retry_policy = Some(retries("connect-failure", 2)));
    assert_eq!(mesh.client().get("/").status(), 503);
    assert_eq!(mesh.expect_record("/", 503, "-", "via_upstream")["attempts"], 1);
}

#[test]
fn a_pooled_connection_that_was_closed_is_replaced() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("one"));
    client.message();
    peer.finish();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\nx");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("two"));
    assert_eq!(client.message().text(), "two");
}

/// The keep-alive race: the upstream closes while the next request is on its way.
fn race(method: &str) -> (Mesh, Upstream, crate::kit::Peer) {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |_| {});
    let mut client = mesh.client();
    client.send("GET /first HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send(ok("one"));
    client.message();
    client.send(format!("{method} /second HTTP/1.1\r\nhost: up\r\ncontent-length: 1\r\n\r\nx"));
    peer.message();
    peer.reset();
    (mesh, upstream, client)
}

#[test]
fn a_safe_request_on_a_stale_connection_is_sent_once_more() {
    let (mesh, upstream, mut client) = race("PUT");
    let mut peer = upstream.accept();
    assert_eq!(peer.message().text(), "x");
    peer.send(ok("two"));
    assert_eq!(client.message().text(), "two");
    let record = mesh.expect_record("/second", 200, "-", "via_upstream");
    // It is the same try on another connection, as far as the client's policy goes.
    assert_eq!(record["attempts"], 1);
}

#[test]
fn a_safe_request_is_not_sent_a_third_time() {
    let (mesh, upstream, mut client) = race("PUT");
    let mut peer = upstream.accept();
    peer.message();
    peer.reset();
    assert_eq!(client.message().status(), 503);
    assert!(!upstream.has_visitor());
    mesh.expect_record("/second", 503, "UC", "upstream_reset_before_response_started{connection_termination}");
}

#[test]
fn an_unsafe_request_that_was_taken_is_not_sent_again() {
    let (mesh, upstream, mut client) = race("POST");
    assert_eq!(client.message().status(), 503);
    assert!(!upstream.has_visitor());
    mesh.expect_record("/second", 503, "UC", "upstream_reset_before_response_started{connection_termination}");
}

fn limit(setup: &mut Setup, change: impl FnOnce(&mut cluster::circuit_breakers::Thresholds)) {
    let mut thresholds = cluster::circuit_breakers::Thresholds::default();
    change(&mut thresholds);
    setup.cluster.circuit_breakers =
        Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
}

#[test]
fn a_request_too_many_is_503_uo() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| limit(setup, |limits| limits.max_requests = number(1)));
    let mut first = mesh.client();
    first.send("GET /first HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let mut second = mesh.client();
    let answer = second.get("/second");
    assert_eq!(answer.status(), 503);
    mesh.expect_record("/second", 503, "UO", "upstream_reset_before_response_started{overflow}");
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    // The limit counts requests at once.
    second.send("GET /third HTTP/1.1\r\nhost: up\r\n\r\n");
    peer.message();
    peer.send(ok("three"));
    assert_eq!(second.message().text(), "three");
}

#[test]
fn a_request_waits_for_a_connection_and_only_so_many_wait() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        limit(setup, |limits| {
            limits.max_connections = number(1);
            limits.max_pending_requests = number(1);
        });
    });
    let mut first = mesh.client();
    first.send("GET /first HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let mut waiting = mesh.client();
    waiting.send("GET /waiting HTTP/1.1\r\nhost: up\r\n\r\n");
    crate::kit::until("both requests have begun", || {
        (mesh.metric("envoy_http_downstream_rq_total", &[]) == 2.0).then_some(())
    });
    assert_eq!(mesh.client().get("/refused").status(), 503);
    mesh.expect_record("/refused", 503, "UO", "upstream_reset_before_response_started{overflow}");
    peer.send(ok("one"));
    assert_eq!(first.message().text(), "one");
    assert_eq!(peer.message().start_line(), "GET /waiting HTTP/1.1");
    peer.send(ok("two"));
    assert_eq!(waiting.message().text(), "two");
}

fn at_the_first_failure() -> cluster::OutlierDetection {
    cluster::OutlierDetection {
        consecutive_5xx: number(1),
        base_ejection_time: Some(seconds(1000.0)),
        max_ejection_percent: number(100),
        enforcing_success_rate: number(0),
        ..Default::default()
    }
}

/// Answers calls of gRPC to `/NUMBER` with that status, in a head that is all.
fn failing_calls() -> SocketAddr {
    Upstream::answering(|request| {
        let status = request.start_line().split(['/', ' ']).nth(2).unwrap_or_default();
        let head = format!("content-type: application/grpc\r\ngrpc-status: {status}\r\ncontent-length: 0");
        format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into_bytes()
    })
}

#[test]
fn a_call_of_grpc_that_fails_in_its_head_is_a_failure_of_the_endpoint() {
    let mesh = Mesh::start(&[failing_calls()], |setup| {
        setup.cluster.outlier_detection = Some(at_the_first_failure());
    });
    let mut client = mesh.client();
    let mut is_ejected_after = |kind: &str, status: &str| {
        let fields = format!("host: up\r\ncontent-type: {kind}\r\ncontent-length: 0");
        client.send(format!("POST /{status} HTTP/1.1\r\n{fields}\r\n\r\n"));
        assert_eq!(client.message().status(), 200);
        mesh.endpoints()[0]["health"]["failed_outlier_check"] == true
    };
    for (kind, status, expected) in [
        // To who does not speak gRPC it is any header, and 404 is no failure.
        ("text/plain", "14", false),
        ("application/grpc-web", "14", false),
        ("application/grpc", "0", false),
        ("application/grpc", "5", false),
        ("application/grpc+proto", "14", true),
    ] {
        assert_eq!(is_ejected_after(kind, status), expected, "{kind} {status}");
    }
}

#[test]
fn so_is_what_is_no_status_of_grpc() {
    let mesh = Mesh::start(&[failing_calls()], |setup| {
        setup.cluster.outlier_detection = Some(at_the_first_failure());
    });
    let mut client = mesh.client();
    client.send("POST /well HTTP/1.1\r\nhost: up\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.message().status(), 200);
    assert_eq!(mesh.endpoints()[0]["health"]["failed_outlier_check"], true);
}

#[test]
fn a_limit_of_the_cluster_is_no_failure_of_an_endpoint() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        limit(setup, |limits| {
            limits.max_connections = number(1);
            limits.max_pending_requests = number(1);
        });
        setup.cluster.outlier_detection = Some(at_the_first_failure());
    });
    let mut first = mesh.client();
    first.send("GET /first HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    let mut waiting = mesh.client();
    waiting.send("GET /waiting HTTP/1.1\r\nhost: up\r\n\r\n");
    crate::kit::until("both requests have begun", || {
        (mesh.metric("envoy_http_downstream_rq_total", &[]) == 2.0).then_some(())
    });
    assert_eq!(mesh.client().get("/refused").status(), 503);
    mesh.expect_record("/refused", 503, "UO", "upstream_reset_before_response_started{overflow}");
    peer.send(ok("one"));
    assert_eq!(mesh.endpoints()[0]["health"]["failed_outlier_check"], serde_json::Value::Null);
}

/// An upstream that always refuses, where so many retries may be under way at once.
fn refusing(most: u32) -> Mesh {
    let upstream = Upstream::answering(|_| b"HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nbusy".to_vec());
    Mesh::start(&[upstream], |setup| {
        limit(setup, |limits| limits.max_retries = number(most));
        setup.action().retry_policy = Some(retries("5xx", 2));
    })
}

#[test]
fn a_retry_too_many_is_not_made_and_flagged_uo() {
    let mesh = refusing(0);
    let answer = mesh.client().get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "busy"));
    let record = mesh.expect_record("/", 503, "UO", "via_upstream");
    assert_eq!(record["attempts"], 1);
    // The same of one that got no answer.
    let mesh = Mesh::start(&[free_address()], |setup| {
        limit(setup, |limits| limits.max_retries = number(0));
        setup.action().retry_policy = Some(retries("connect-failure", 1));
    });
    assert_eq!(mesh.client().get("/").status(), 503);
    let record = mesh.record("/");
    assert_eq!((&record["response_flags"], &record["attempts"]), (&"UF,UO".into(), &1.into()));
}

#[test]
fn a_retry_is_over_when_the_next_begins() {
    let mesh = refusing(1);
    assert_eq!(mesh.client().get("/").status(), 503);
    assert_eq!(mesh.expect_record("/", 503, "URX", "via_upstream")["attempts"], 3);
}

#[test]
fn a_retry_is_over_when_its_answer_begins() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        limit(setup, |limits| limits.max_retries = number(1));
        setup.action().retry_policy = Some(retries("5xx", 1));
    });
    let try_twice = |client: &mut Peer| {
        client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
        let mut peer = upstream.accept();
        peer.message();
        peer.send("HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n");
        let mut peer = upstream.accept();
        peer.message();
        peer
    };
    let (mut first, mut second) = (mesh.client(), mesh.client());
    let mut peer = try_twice(&mut first);
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    first.head();
    // The body of that one is still on its way.
    try_twice(&mut second).send(ok("two"));
    assert_eq!(second.message().text(), "two");
}

#[test]
fn an_answer_of_its_own_that_nobody_reads_keeps_nobody_from_the_cluster() {
    let mesh = Mesh::start(&[free_address()], |setup| {
        limit(setup, |limits| {
            limits.max_requests = number(1);
            limits.max_retries = number(1);
        });
        setup.action().retry_policy = Some(retries("connect-failure", 1));
        setup.manager.stream_idle_timeout = Some(seconds(1.0));
    });
    // Its streams have no window (SETTINGS_INITIAL_WINDOW_SIZE): the head of an answer comes, and the body waits.
    let mut client = Wire(mesh.client());
    client.0.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    client.request(1, "GET", "/unread", &[], true);
    client.expect(HEADERS, 1);
    assert_eq!(mesh.client().get("/read").status(), 503);
    let record = mesh.record("/read");
    assert_eq!((&record["response_flags"], &record["attempts"]), (&"UF,URX".into(), &2.into()));
    // Nor does it wait for ever.
    assert_eq!(client.expect(RST_STREAM, 1).code(), INTERNAL_ERROR);
    let record = mesh.record("/unread");
    assert_eq!((&record["response_code"], &record["response_flags"]), (&503.into(), &"UF,URX".into()));
}

#[test]
fn a_client_that_goes_away_is_recorded_dc() {
    let upstream = Upstream::new();
    // No other limit would end these.
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.action().timeout = Some(seconds(0.0)));
    let mut client = mesh.client();
    client.send("GET /waiting HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    client.reset();
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/waiting", 0, "DC", "downstream_remote_disconnect");

    let mut client = mesh.client();
    client.send("GET /silent HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n");
    client.head();
    client.reset();
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/silent", 200, "DC", "downstream_remote_disconnect");

    let mut client = mesh.client();
    client.send("POST /sending HTTP/1.1\r\nhost: up\r\ncontent-length: 10\r\n\r\nabc");
    let mut peer = upstream.accept();
    peer.head();
    peer.expect("abc");
    drop(client);
    assert_eq!(peer.expect_end(), End::Reset);
    mesh.expect_record("/sending", 0, "DC", "downstream_remote_disconnect");

    let mut client = mesh.client();
    client.send("GET /reading HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
    client.head();
    client.reset();
    let piece = [0; 65536];
    while peer.try_send(piece).is_ok() {}
    mesh.expect_record("/reading", 200, "DC", "downstream_remote_disconnect");
}

fn strike(setup: &mut Setup, fault: fault::HttpFault) {
    setup.routes.virtual_hosts[0].routes[0]
        .typed_per_filter_config
        .insert("envoy.filters.http.fault".into(), any("envoy.extensions.filters.http.fault.v3.HTTPFault", &fault));
}

fn always() -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: 100, denominator: 0 })
}

#[test]
fn an_injected_abort_is_recorded_fi() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        let abort = fault::FaultAbort {
            percentage: always(),
            error_type: Some(fault::fault_abort::ErrorType::HttpStatus(418)),
        };
        strike(setup, fault::HttpFault { abort: Some(abort), ..Default::default() });
    });
    let answer = mesh.client().get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (418, "fault filter abort"));
    mesh.expect_record("/", 418, "FI", "fault_filter_abort");
    assert!(!upstream.has_visitor());
}

#[test]
fn an_injected_delay_is_recorded_di() {
    let mesh = Mesh::start(&[Upstream::saying("late")], |setup| {
        let delay = common_fault::FaultDelay {
            percentage: always(),
            fault_delay_secifier: Some(common_fault::fault_delay::FaultDelaySecifier::FixedDelay(seconds(0.15))),
        };
        strike(setup, fault::HttpFault { delay: Some(delay), ..Default::default() });
    });
    let began = Instant::now();
    assert_eq!(mesh.client().get("/").text(), "late");
    expect_passed(began, Duration::from_millis(150));
    let record = mesh.expect_record("/", 200, "DI", "via_upstream");
    assert!(record["duration_ms"].as_u64() >= Some(150), "{record}");
}

#[test]
fn a_connection_without_requests_is_closed() {
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| {
        setup.manager.common_http_protocol_options =
            Some(HttpProtocolOptions { idle_timeout: Some(seconds(0.1)), ..Default::default() });
    });
    let mut client = mesh.client();
    client.get("/");
    let began = Instant::now();
    assert_eq!(client.expect_end(), End::Finished);
    expect_passed(began, Duration::from_millis(50));
    assert_eq!(mesh.wait_records(1).len(), 1, "a connection without request leaves no record");
}

#[test]
fn a_connection_on_which_nothing_was_ever_said_has_the_same_time() {
    const LIMIT: f64 = 2.0;
    let mesh = Mesh::start(&[Upstream::saying("")], |setup| {
        setup.manager.common_http_protocol_options =
            Some(HttpProtocolOptions { idle_timeout: Some(seconds(LIMIT)), ..Default::default() });
    });
    let began = Instant::now();
    assert_eq!(mesh.client().expect_end(), End::Finished);
    let passed = began.elapsed().as_secs_f64();
    // To wait for what it speaks and then for a request would be twice as long.
    assert!((0.9 * LIMIT..1.9 * LIMIT).contains(&passed), "{passed}");
}

fn idle(setup: &mut Setup) {
    setup.manager.stream_idle_timeout = Some(seconds(0.1));
    setup.action().timeout = Some(seconds(0.0));
}

#[test]
fn an_upstream_that_says_nothing_is_504_si() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], idle);
    let answer = mesh.client().get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (504, "stream timeout"));
    mesh.expect_record("/", 504, "SI", "stream_idle_timeout");
}

#[test]
fn a_client_that_does_not_finish_is_408_si() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], idle);
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 10\r\n\r\nabc");
    assert_eq!(client.message().status(), 408);
    client.expect_end();
    mesh.expect_record("/", 408, "SI", "stream_idle_timeout");
    let mut peer = upstream.accept();
    assert_eq!(peer.rest().1, End::Reset);
}

#[test]
fn an_answer_that_stands_still_is_cut_off_with_si() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        idle(setup);
        setup.manager.stream_idle_timeout = Some(seconds(1.0));
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\n\r\n");
    let mut peer = upstream.accept();
    peer.message();
    peer.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
    client.head();
    client.expect("abc");
    assert_eq!(client.expect_end(), End::Reset);
    mesh.expect_record("/", 200, "SI", "stream_idle_timeout");
}

#[test]
fn a_route_may_have_an_idle_timeout_of_its_own() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.manager.stream_idle_timeout = Some(seconds(60.0));
        setup.action().idle_timeout = Some(seconds(0.1));
        setup.action().timeout = Some(seconds(0.0));
    });
    assert_eq!(mesh.client().get("/").status(), 504);
    mesh.expect_record("/", 504, "SI", "stream_idle_timeout");
}

#[test]
fn a_slow_head_is_408() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| {
        setup.manager.request_headers_timeout = Some(seconds(0.1));
    });
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: up\r\nx: ");
    let began = Instant::now();
    // A byte now and then does not make it longer.
    let mut sent = Instant::now();
    crate::kit::until("the proxy has answered", || {
        if sent.elapsed() > Duration::from_millis(20) {
            sent = Instant::now();
            let _ = client.try_send("y");
        }
        (!client.arrived().is_empty()).then_some(())
    });
    expect_passed(began, Duration::from_millis(90));
    assert_eq!(client.message().status(), 408);
    let record = &mesh.wait_records(1)[0];
    assert_eq!(record["response_code_details"], "request_header_timeout");
}

#[test]
fn a_head_that_stands_still_is_408_by_the_idle_timeout_too() {
    let mesh = Mesh::start(&[Upstream::saying("")], idle);
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: u");
    assert_eq!(client.message().status(), 408);
    assert_eq!(mesh.wait_records(1)[0]["response_flags"], "SI");
}

#[test]
fn a_slow_body_is_408_by_the_request_timeout() {
    let upstream = Upstream::new();
    let mesh = Mesh::start(&[upstream.address()], |setup| setup.manager.request_timeout = Some(seconds(0.1)));
    let mut client = mesh.client();
    client.send("POST / HTTP/1.1\r\nhost: up\r\ncontent-length: 10\r\n\r\nabc");
    assert_eq!(client.message().status(), 408);
    mesh.expect_record("/", 408, "-", "request_overall_timeout");
}

#[test]
fn a_request_goes_to_another_endpoint_than_the_one_that_failed() {
    let mesh = Mesh::start(&[free_address(), Upstream::saying("alive")], |setup| {
        setup.action().retry_policy = Some(retries("connect-failure", 5));
    });
    let mut client = mesh.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "alive");
    }
}

#[test]
fn every_endpoint_gets_its_share() {
    let upstreams: Vec<_> = ["a", "b", "c"].map(Upstream::saying).into();
    let mesh = Mesh::start(&upstreams, |_| {});
    let mut client = mesh.client();
    let mut seen: Vec<String> = (0..9).map(|_| client.get("/").text()).collect();
    seen.sort();
    assert_eq!(seen.concat(), "aaabbbccc");
}
