//! Which failures are tried again, and when.

mod support;

use std::time::Duration;

use support::*;
use weft_core::compile::Strictness;
use weft_core::retry::{RetryPolicy, TryResult};
use weft_core::route::{Action, RouteTable};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::google::protobuf::{Duration as ProtoDuration, UInt32Value};

fn policy(change: impl FnOnce(&mut proto::RetryPolicy)) -> RetryPolicy {
    let mut policy = proto::RetryPolicy::default();
    change(&mut policy);
    let mut route = to("c", prefix("/"));
    if let Some(proto::route::Action::Route(action)) = &mut route.action {
        action.retry_policy = Some(policy);
    }
    let configuration = configuration(vec![host("h", &["*"], vec![route])]);
    let table = RouteTable::compile(&configuration, Strictness::Refuse).expect("honoured").value;
    match &table.virtual_hosts[0].routes[0].action {
        Action::Forward(forward) => (**forward.retry.as_ref().expect("it has a policy")).clone(),
        other => panic!("{other:?}"),
    }
}

fn status(status: u16) -> TryResult {
    TryResult::Response { status, grpc_status: None, rate_limited: false, retriable_header: false }
}

fn grpc(code: u32) -> TryResult {
    TryResult::Response { status: 200, grpc_status: Some(code), rate_limited: false, retriable_header: false }
}

const RATE_LIMITED: TryResult =
    TryResult::Response { status: 503, grpc_status: None, rate_limited: true, retriable_header: false };
const RETRIABLE_HEADER: TryResult =
    TryResult::Response { status: 200, grpc_status: None, rate_limited: false, retriable_header: true };
const RESET: TryResult = TryResult::Reset { request_started: true };
const EARLY_RESET: TryResult = TryResult::Reset { request_started: false };

#[test]
fn each_condition_allows_what_envoy_documents() {
    use TryResult::{ConnectFailure, Overflow, PerTryTimeout, RefusedStream};
    let all = [
        ConnectFailure,
        Overflow,
        RefusedStream,
        RESET,
        EARLY_RESET,
        PerTryTimeout,
        RATE_LIMITED,
        RETRIABLE_HEADER,
        status(200),
        status(400),
        status(409),
        status(418),
        status(500),
        status(501),
        status(502),
        status(503),
        status(504),
        grpc(0),
        grpc(1),
        grpc(4),
        grpc(8),
        grpc(13),
        grpc(14),
    ];
    let resets = [ConnectFailure, RefusedStream, RESET, EARLY_RESET, PerTryTimeout];
    let with = |more: &[TryResult]| [&resets[..], more].concat();
    let cases: &[(&str, Vec<TryResult>)] = &[
        ("", vec![]),
        ("5xx", with(&[status(500), status(501), status(502), status(503), status(504)])),
        ("gateway-error", with(&[status(502), status(503), status(504)])),
        ("reset", with(&[])),
        ("reset-before-request", vec![ConnectFailure, EARLY_RESET]),
        ("connect-failure", vec![ConnectFailure]),
        ("refused-stream", vec![RefusedStream]),
        ("retriable-4xx", vec![status(409)]),
        ("retriable-status-codes", vec![status(418)]),
        ("retriable-headers", vec![RETRIABLE_HEADER]),
        ("envoy-ratelimited", vec![RATE_LIMITED]),
        ("cancelled", vec![grpc(1)]),
        ("deadline-exceeded", vec![grpc(4)]),
        ("resource-exhausted", vec![grpc(8)]),
        ("internal", vec![grpc(13)]),
        ("unavailable", vec![grpc(14)]),
        ("connect-failure, refused-stream,unavailable", vec![ConnectFailure, RefusedStream, grpc(14)]),
    ];
    for (on, expected) in cases {
        let policy = policy(|policy| {
            policy.retry_on = (*on).into();
            policy.retriable_status_codes = vec![418];
        });
        for result in all {
            assert_eq!(policy.allows(result), expected.contains(&result), "{on}: {result:?}");
        }
    }
}

#[test]
fn a_full_cluster_is_never_tried_again() {
    let everything =
        policy(|policy| policy.retry_on = "5xx,reset,connect-failure,refused-stream,envoy-ratelimited".into());
    assert!(!everything.allows(TryResult::Overflow));
}

#[test]
fn the_back_off_doubles_up_to_its_bound() {
    let milliseconds = |count| Some(ProtoDuration { seconds: 0, nanos: count * 1_000_000 });
    let plain = policy(|_| ());
    let custom = policy(|policy| {
        policy.retry_back_off = Some(proto::retry_policy::RetryBackOff {
            base_interval: milliseconds(100),
            max_interval: milliseconds(250),
        });
    });
    let almost_one = || Fixed(1.0 - f64::EPSILON);
    for (policy, retry, bound_ms) in [
        (&plain, 1, 25),
        (&plain, 2, 75),
        (&plain, 3, 175),
        (&plain, 4, 250),
        (&plain, 63, 250),
        (&custom, 1, 100),
        (&custom, 2, 250),
    ] {
        let bound = Duration::from_millis(bound_ms);
        let longest = policy.back_off(retry, &mut almost_one());
        assert!(longest < bound && bound - longest < Duration::from_micros(1), "retry {retry}: {longest:?}");
        assert_eq!(policy.back_off(retry, &mut Fixed(0.0)), Duration::ZERO);
    }
}

#[test]
fn absent_values_are_envoys_defaults() {
    let policy = policy(|_| ());
    let told = |policy: &RetryPolicy| (policy.retries, policy.per_try_timeout, policy.host_selection_attempts);
    assert_eq!(told(&policy), (1, None, 1));
    let unsaid = RetryPolicy::default();
    let intervals = |policy: &RetryPolicy| (policy.base_interval, policy.max_interval);
    assert_eq!((told(&policy), intervals(&policy)), (told(&unsaid), intervals(&unsaid)));
    assert_eq!((policy.on, &*policy.status_codes), (unsaid.on, &*unsaid.status_codes));
    let zero = self::policy(|policy| policy.num_retries = Some(UInt32Value { value: 0 }));
    assert_eq!(zero.retries, 0);
}
