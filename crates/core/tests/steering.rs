//! What one's own may ask of the proxy for their requests.

use std::time::Duration;

use weft_core::request::OwnedRequest;
use weft_core::retry::{RetryOn, RetryPolicy, TryResult};
use weft_core::steering::Steering;

fn asking(headers: &[(&str, &str)]) -> Option<Steering> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Steering::read(&OwnedRequest { headers, ..OwnedRequest::default() })
}

fn millis(count: u64) -> Option<Duration> {
    Some(Duration::from_millis(count))
}

#[test]
fn what_asks_for_nothing_changes_nothing() {
    for headers in [
        [].as_slice(),
        &[("x-envoy-retry-on", "")],
        // Each has conditions of its own.
        &[("x-envoy-retry-on", "unavailable, teapot"), ("x-envoy-retry-grpc-on", "5xx")],
        &[("x-envoy-max-retries", "-1"), ("x-envoy-upstream-rq-timeout-ms", "soon")],
        &[("x-envoy-upstream-rq-timeout-ms", "10"), ("x-envoy-upstream-rq-timeout-ms", "20")],
        &[("x-envoy-retriable-status-codes", "many,99999"), ("x-envoy-retriable-header-names", " ,")],
    ] {
        assert_eq!(asking(headers), None, "{headers:?}");
    }
}

#[test]
fn timeouts_take_the_place_of_the_routes() {
    for (asked, expected) in [
        ("250", millis(250)),
        (" 20000 ", millis(20_000)),
        ("0", None),
        ("18446744073709551615", Some(Duration::from_secs(365 * 24 * 3600))),
    ] {
        let steering = asking(&[("x-envoy-upstream-rq-timeout-ms", asked)]).expect("it asks");
        assert_eq!(steering.timeout(millis(15_000)), expected, "{asked}");
        assert_eq!(steering.timeout(None), expected, "{asked}");
    }
    let other = asking(&[("x-envoy-max-retries", "1")]).expect("it asks");
    assert_eq!(other.timeout(millis(15_000)), millis(15_000));
}

#[test]
fn a_try_may_take_what_is_asked_unless_the_request_may_take_no_longer() {
    let route = RetryPolicy { per_try_timeout: millis(300), ..RetryPolicy::default() };
    for (asked, own, timeout, expected) in [
        ("100", None, millis(1000), millis(100)),
        ("100", None, None, millis(100)),
        ("100", Some(&route), millis(1000), millis(100)),
        ("1000", Some(&route), millis(1000), None),
        ("0", Some(&route), millis(1000), None),
        ("soon", Some(&route), millis(1000), millis(300)),
    ] {
        let headers = [("x-envoy-upstream-rq-per-try-timeout-ms", asked), ("x-envoy-max-retries", "2")];
        let policy = asking(&headers).expect("it asks").policy(own, timeout).expect("a try is limited");
        assert_eq!(policy.per_try_timeout, expected, "{asked} {timeout:?}");
        assert!(!policy.allows(TryResult::PerTryTimeout), "nothing is tried again for that");
    }
}

#[test]
fn conditions_add_to_the_routes_and_the_number_takes_the_place_of_its_own() {
    let status =
        |status| TryResult::Response { status, grpc_status: None, rate_limited: false, retriable_header: false };
    let unavailable =
        TryResult::Response { status: 200, grpc_status: Some(14), rate_limited: false, retriable_header: false };
    let route = RetryPolicy { on: RetryOn::CONNECT_FAILURE, retries: 5, ..RetryPolicy::default() };
    let both = asking(&[("x-envoy-retry-on", "retriable-4xx, teapot"), ("x-envoy-retry-grpc-on", "unavailable")]);
    let both = both.expect("it asks");
    for (own, retries, refused) in [(Some(&route), 5, true), (None, 1, false)] {
        let policy = both.policy(own, None).expect("it is asked for");
        assert_eq!(policy.retries, retries);
        assert_eq!(policy.allows(TryResult::ConnectFailure), refused);
        assert!(policy.allows(status(409)) && policy.allows(unavailable) && !policy.allows(status(503)));
    }
    let number = asking(&[("x-envoy-max-retries", "0")]).expect("it asks");
    assert_eq!(number.policy(Some(&route), None).map(|policy| policy.retries), Some(0));
    assert!(number.policy(None, None).is_none(), "a number alone is no reason");
    let many = asking(&[("x-envoy-max-retries", "4294967296"), ("x-envoy-retry-on", "5xx")]).expect("it asks");
    assert_eq!(many.policy(None, None).map(|policy| policy.retries), Some(u32::MAX));
}

#[test]
fn statuses_and_names_of_headers_add_to_the_routes() {
    let steering = asking(&[
        ("x-envoy-retry-on", "retriable-status-codes,retriable-headers"),
        ("x-envoy-retriable-status-codes", "404, 410,many"),
        ("x-envoy-retriable-header-names", "X-Again, x-later"),
    ]);
    let route = RetryPolicy { status_codes: [425].into(), ..RetryPolicy::default() };
    let policy = steering.expect("it asks").policy(Some(&route), None).expect("it is asked for");
    assert_eq!(&*policy.status_codes, [425, 404, 410]);
    for (name, expected) in [("x-again", true), ("X-Later", true), ("x-never", false)] {
        let headers = vec![(name.to_owned(), String::new())];
        let answer = OwnedRequest { headers, ..OwnedRequest::default() };
        assert_eq!(policy.headers.iter().any(|matcher| matcher.is_match(&answer)), expected, "{name}");
    }
}
