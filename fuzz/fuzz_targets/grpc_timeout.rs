//! `grpc-timeout` under foreign bytes: a value is read as the grammar of gRPC says, what a server is told is never longer than what was left and never
//! nothing, and no caller gets more time of a route than the route gives.
//!
//! The whole input is a header's value; its first twelve bytes are also a duration, seconds and nanoseconds.

#![no_main]
// Of the two fields that limit calls control planes still send the older one.
#![allow(deprecated)]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use weft_core::compile::Strictness;
use weft_core::grpc_timeout::{parse, write};
use weft_core::request::OwnedRequest;
use weft_core::route::{Action, Forward, RouteTable};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::route_action::{ClusterSpecifier, MaxStreamDuration};
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;
use weft_protos::google::protobuf::Duration as ProtoDuration;

/// Nanoseconds of each unit (gRPC over HTTP/2, "Requests").
const UNITS: [(char, u128); 6] =
    [('H', 3_600_000_000_000), ('M', 60_000_000_000), ('S', 1_000_000_000), ('m', 1_000_000), ('u', 1_000), ('n', 1)];
const MILLISECOND: Duration = Duration::from_millis(1);
/// What eight digits can say, in milliseconds and in seconds.
const MOST: [Duration; 2] = [Duration::from_millis(99_999_999), Duration::from_secs(99_999_999)];
/// What the routes give.
const LIMIT: Duration = Duration::from_secs(10);

/// Routes that limit calls by the older field and by the newer one.
static TABLE: LazyLock<RouteTable> = LazyLock::new(|| {
    let limit = || Some(ProtoDuration { seconds: LIMIT.as_secs() as i64, nanos: 0 });
    let cluster_specifier = || Some(ClusterSpecifier::Cluster("c".into()));
    let older =
        proto::RouteAction { cluster_specifier: cluster_specifier(), max_grpc_timeout: limit(), ..Default::default() };
    let newer = proto::RouteAction {
        cluster_specifier: cluster_specifier(),
        max_stream_duration: Some(MaxStreamDuration { grpc_timeout_header_max: limit(), ..Default::default() }),
        ..Default::default()
    };
    let route = |action| proto::Route {
        r#match: Some(proto::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(proto::route::Action::Route(action)),
        ..Default::default()
    };
    let routes = vec![route(older), route(newer)];
    let host = proto::VirtualHost { domains: vec!["*".into()], routes, ..Default::default() };
    let configuration = proto::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
    RouteTable::compile(&configuration, Strictness::Refuse).expect("it is honoured").value
});

fuzz_target!(|input: &[u8]| {
    let asked = read(input);
    assert_eq!(parse(input).map(|timeout| timeout.as_nanos()), asked);
    if let Some(timeout) = parse(input) {
        told(timeout);
    }
    if let Some((seconds, rest)) = input.split_first_chunk::<8>()
        && let Some((nanoseconds, _)) = rest.split_first_chunk::<4>()
    {
        let nanoseconds = u32::from_le_bytes(*nanoseconds) % 1_000_000_000;
        told(Duration::new(u64::from_le_bytes(*seconds), nanoseconds));
    }
    if let Ok(value) = std::str::from_utf8(input) {
        limited(value, asked);
    }
});

/// A value of the header as the grammar has it: one to eight digits and a unit. Nanoseconds.
fn read(value: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(value).ok()?;
    let (digits, nanoseconds) = UNITS.iter().find_map(|(unit, each)| Some((text.strip_suffix(*unit)?, each)))?;
    if !(1..=8).contains(&digits.chars().count()) {
        return None;
    }
    let number = digits.chars().try_fold(0, |number, digit| Some(number * 10 + u128::from(digit.to_digit(10)?)))?;
    Some(number * nanoseconds)
}

/// What a server is told of whom somebody waits for so long.
fn told(left: Duration) {
    let text = write(left);
    let told = read(text.as_bytes()).unwrap_or_else(|| panic!("{text} has another form"));
    let told = Duration::from_nanos(u64::try_from(told).expect("eight digits of seconds are no more"));
    assert!(!told.is_zero());
    assert!(told <= left.max(MILLISECOND), "{text} for {left:?}");
    let [in_milliseconds, in_seconds] = MOST;
    if left <= in_milliseconds {
        assert!(left.saturating_sub(told) < MILLISECOND, "{text} for {left:?}");
    } else {
        assert!(left.min(in_seconds) - told < Duration::from_secs(1), "{text} for {left:?}");
    }
    // The next proxy tells the same.
    assert_eq!(write(told), text);
}

/// What the routes make of a call that says *value*, which asks for so many nanoseconds.
fn limited(value: &str, asked: Option<u128>) {
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", value)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let call = OwnedRequest { path: "/".to_owned(), headers, ..OwnedRequest::default() };
    let least = asked.map_or(LIMIT.as_nanos(), |asked| asked.min(LIMIT.as_nanos()));
    let nanoseconds = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_nanos());
    // Envoy: to the older field a timeout of zero is none, to the newer one it is over at once.
    let older = forward(0).timeout_for(&call);
    assert_eq!(nanoseconds(older), Some(if least == 0 { LIMIT.as_nanos() } else { least }));
    let newer = forward(1).stream_duration_for(&call, None);
    assert_eq!(nanoseconds(newer), asked.map(|_| least));
}

fn forward(number: usize) -> &'static Forward {
    match &TABLE.virtual_hosts[0].routes[number].action {
        Action::Forward(forward) => forward,
        _ => unreachable!("it was written above"),
    }
}
