//! Active health checks: when an endpoint passes and fails, when it is asked again, and what balancing makes of it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::Fixed;
use weft_core::balance::Balancer;
use weft_core::cluster::{Cluster, TransportSocket};
use weft_core::compile::Strictness;
use weft_core::endpoint::LoadAssignment;
use weft_core::health_check::{ActiveHealth, HttpAnswer, Probe, Session, Transition, Verdict};
use weft_core::outlier::Observation;
use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::health_check as proto;
use weft_protos::envoy::config::core::v3::health_check::HealthChecker;
use weft_protos::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use weft_protos::envoy::r#type::matcher::v3 as matcher;
use weft_protos::envoy::r#type::v3::{CodecClientType, Int64Range, Percent};
use weft_protos::google::protobuf;

use Transition::{Changed, Pending, Unchanged};

fn seconds(seconds: i64) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds, nanos: 0 })
}

fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// Three failures, or two successes, make a change.
fn check(checker: HealthChecker) -> core::HealthCheck {
    core::HealthCheck {
        timeout: seconds(1),
        interval: seconds(10),
        unhealthy_threshold: number(3),
        healthy_threshold: number(2),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn http() -> proto::HttpHealthCheck {
    proto::HttpHealthCheck { path: "/health".into(), ..Default::default() }
}

fn resource(check: core::HealthCheck) -> cluster::Cluster {
    cluster::Cluster { name: "c".into(), health_checks: vec![check], ..Default::default() }
}

fn compiled(resource: &cluster::Cluster) -> Cluster {
    Cluster::compile(resource, Strictness::Refuse).expect("honoured").value
}

fn refusals(resource: &cluster::Cluster) -> Vec<String> {
    let problems = Cluster::compile(resource, Strictness::Refuse).map(|_| ()).err();
    problems.map(|it| it.0.into_iter().map(|problem| problem.path).collect()).unwrap_or_default()
}

fn endpoint(port: u32) -> eds::Endpoint {
    let socket = core::SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let address = Some(core::Address { address: Some(AddressKind::SocketAddress(socket)) });
    eds::Endpoint { address, ..Default::default() }
}

fn assignment_of(endpoints: Vec<eds::Endpoint>) -> LoadAssignment {
    let lb_endpoints = endpoints.into_iter().map(|endpoint| eds::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    });
    let group = eds::LocalityLbEndpoints { lb_endpoints: lb_endpoints.collect(), ..Default::default() };
    let assignment =
        eds::ClusterLoadAssignment { cluster_name: "c".into(), endpoints: vec![group], ..Default::default() };
    LoadAssignment::compile(&assignment, Strictness::Refuse).expect("honoured").value
}

fn assignment(ports: &[u32]) -> LoadAssignment {
    assignment_of(ports.iter().map(|port| endpoint(*port)).collect())
}

/// The last digits of the addresses that may be chosen.
fn chosen(balancer: &Balancer) -> Vec<String> {
    let mut chosen: Vec<_> = balancer.shares().iter().map(|(host, _)| host.endpoint.address.to_string()).collect();
    chosen.sort();
    chosen.iter().map(|address| address.rsplit(':').next().unwrap_or_default().to_owned()).collect()
}

const PASSED: Verdict = Verdict::Passed { degraded: false };
const DEGRADED: Verdict = Verdict::Passed { degraded: true };
const REFUSED: Verdict = Verdict::Failed { retriable: false, excludes: false };
const EXCLUDED: Verdict = Verdict::Failed { retriable: false, excludes: true };
const RETRIABLE: Verdict = Verdict::Failed { retriable: true, excludes: false };

/// A check of the endpoint at this index found this.
fn note(cluster: &Cluster, balancer: &Balancer, index: usize, verdict: Verdict) {
    let health = balancer.hosts()[index].active_health().expect("it is checked");
    Session::default().note(cluster.health_check.as_deref().expect("there is a check"), health, verdict);
    balancer.look_again();
}

#[test]
fn an_endpoint_passes_and_fails_as_envoy_says() {
    let check = compiled(&resource(check(HealthChecker::HttpHealthCheck(http())))).health_check.expect("a check");
    // What was found, what that did, and whether the endpoint fails now.
    type Step = (Verdict, Transition, bool);
    let cases: &[(&str, &[Step])] = &[
        ("one success is enough at first", &[(PASSED, Changed, false), (PASSED, Unchanged, false)]),
        ("and not after a failure", &[(REFUSED, Changed, true), (PASSED, Pending, true), (PASSED, Changed, false)]),
        (
            "successes have to be in a row",
            &[
                (Verdict::Unreachable, Changed, true),
                (PASSED, Pending, true),
                (REFUSED, Unchanged, true),
                (PASSED, Pending, true),
                (PASSED, Changed, false),
            ],
        ),
        ("an answer that says no is enough", &[(PASSED, Changed, false), (REFUSED, Changed, true)]),
        (
            "silence is not, nor a retriable status",
            &[
                (PASSED, Changed, false),
                (Verdict::Unreachable, Pending, false),
                (Verdict::TimedOut, Pending, false),
                (RETRIABLE, Changed, true),
                (Verdict::Unreachable, Unchanged, true),
            ],
        ),
        (
            "failures have to be in a row",
            &[
                (PASSED, Changed, false),
                (RETRIABLE, Pending, false),
                (RETRIABLE, Pending, false),
                (PASSED, Unchanged, false),
                (RETRIABLE, Pending, false),
                (RETRIABLE, Pending, false),
                (RETRIABLE, Changed, true),
            ],
        ),
    ];
    for (name, steps) in cases {
        let (mut session, health) = (Session::default(), ActiveHealth::default());
        assert!(health.is_failed() && health.is_unchecked(), "{name}");
        for (index, (verdict, transition, failed)) in steps.iter().enumerate() {
            let was_failed = health.is_failed();
            let noted = session.note(&check, &health, *verdict);
            let seen = (noted.transition, health.is_failed(), noted.first);
            assert_eq!(seen, (*transition, *failed, index == 0), "{name}: step {index}");
            assert!(!health.is_unchecked());
            if index > 0 {
                let turned = (was_failed != *failed).then_some(!failed);
                assert_eq!(noted.turned, turned, "{name}: step {index}");
            }
        }
    }
}

#[test]
fn the_ways_in_which_an_endpoint_fails_and_passes_are_told_apart() {
    let check = compiled(&resource(check(HealthChecker::HttpHealthCheck(http())))).health_check.expect("a check");
    let (mut session, health) = (Session::default(), ActiveHealth::default());
    let flags = |health: &ActiveHealth| (health.is_timed_out(), health.is_degraded(), health.is_excluded());
    session.note(&check, &health, Verdict::TimedOut);
    assert_eq!(flags(&health), (true, false, false));
    session.note(&check, &health, EXCLUDED);
    assert_eq!(flags(&health), (false, false, true));
    session.note(&check, &health, Verdict::TimedOut);
    assert_eq!(flags(&health), (true, false, true));
    session.note(&check, &health, PASSED);
    session.note(&check, &health, DEGRADED);
    assert_eq!((flags(&health), health.is_failed()), ((false, true, false), false));
    // What is said of a degraded endpoint is new although it passed before.
    assert_eq!(session.note(&check, &health, PASSED).transition, Changed);
    assert_eq!(session.note(&check, &health, DEGRADED).transition, Changed);
    assert_eq!(session.note(&check, &health, DEGRADED).transition, Unchanged);
    // Out of time once is not yet a failure.
    session.note(&check, &health, Verdict::TimedOut);
    assert!(!health.is_timed_out() && !health.is_failed());
}

#[test]
fn each_situation_has_its_interval() {
    let mut resource = resource(core::HealthCheck {
        interval: seconds(10),
        unhealthy_interval: seconds(20),
        unhealthy_edge_interval: seconds(3),
        healthy_edge_interval: seconds(4),
        no_traffic_interval: seconds(50),
        no_traffic_healthy_interval: seconds(60),
        ..check(HealthChecker::TcpHealthCheck(Default::default()))
    });
    let cases = [
        // Something was sent to the cluster, the check passed, it did this; all is said, or only what has to be.
        (true, true, Unchanged, 10, 10),
        (true, true, Changed, 10, 10),
        (true, true, Pending, 4, 10),
        (true, false, Unchanged, 20, 10),
        (true, false, Changed, 20, 10),
        (true, false, Pending, 3, 10),
        (false, true, Unchanged, 60, 60),
        (false, true, Changed, 60, 60),
        (false, true, Pending, 50, 60),
        (false, false, Unchanged, 50, 60),
    ];
    let full = compiled(&resource).health_check.expect("a check");
    resource.health_checks = vec![check(HealthChecker::TcpHealthCheck(Default::default()))];
    let bare = compiled(&resource).health_check.expect("a check");
    for (used, passed, transition, of_full, of_bare) in cases {
        let pause = |check: &weft_core::health_check::HealthCheck| {
            check.pause(passed, transition, used, &mut Fixed(0.9)).as_secs()
        };
        assert_eq!((pause(&full), pause(&bare)), (of_full, of_bare), "{used} {passed} {transition:?}");
    }
}

#[test]
fn jitter_is_added_to_every_interval() {
    let jittered = resource(core::HealthCheck {
        initial_jitter: seconds(4),
        interval_jitter: seconds(2),
        interval_jitter_percent: 50,
        ..check(HealthChecker::TcpHealthCheck(Default::default()))
    });
    let check = compiled(&jittered).health_check.expect("a check");
    for (dice, first, pause) in [(0.0, 0.0, 10.0), (0.5, 2.0, 13.5), (0.999_999, 4.0, 17.0)] {
        let near = |duration: Duration, seconds: f64| (duration.as_secs_f64() - seconds).abs() < 0.001;
        assert!(near(check.first_pause(&mut Fixed(dice)), first), "{dice}");
        assert!(near(check.pause(true, Unchanged, true, &mut Fixed(dice)), pause), "{dice}");
    }
}

#[test]
fn an_answer_of_http_is_judged_by_status_body_and_name() {
    let probe = |change: &dyn Fn(&mut proto::HttpHealthCheck)| {
        let mut http = http();
        change(&mut http);
        let compiled = compiled(&resource(check(HealthChecker::HttpHealthCheck(http))));
        move |answer: HttpAnswer<'_>| match &compiled.health_check.as_deref().expect("a check").probe {
            Probe::Http(probe) => probe.judge(&answer),
            _ => panic!("it is one of HTTP"),
        }
    };
    let status = |status| HttpAnswer { status, ..Default::default() };
    let plain = probe(&|_| ());
    for (code, verdict) in [(200, PASSED), (201, REFUSED), (302, REFUSED), (503, REFUSED)] {
        assert_eq!(plain(status(code)), verdict, "{code}");
    }
    assert_eq!(plain(HttpAnswer { degraded: true, ..status(200) }), DEGRADED);
    // The header means something in a failure only.
    assert_eq!(plain(HttpAnswer { fails_at_once: true, ..status(200) }), PASSED);
    assert_eq!(plain(HttpAnswer { fails_at_once: true, ..status(503) }), EXCLUDED);
    let ranges = probe(&|http| {
        http.expected_statuses = vec![Int64Range { start: 200, end: 300 }, Int64Range { start: 404, end: 405 }];
        http.retriable_statuses = vec![Int64Range { start: 404, end: 600 }];
    });
    for (code, verdict) in [(200, PASSED), (299, PASSED), (300, REFUSED), (404, PASSED), (405, RETRIABLE)] {
        assert_eq!(ranges(status(code)), verdict, "{code}");
    }
    let payload = |text: &str| proto::Payload { payload: Some(proto::payload::Payload::Text(text.into())) };
    let body = probe(&|http| http.receive = vec![payload("6f6B"), payload("21")]);
    for (text, verdict) in
        [("ok!", PASSED), ("all ok, then !", PASSED), ("!ok", REFUSED), ("ok", REFUSED), ("", REFUSED)]
    {
        assert_eq!(body(HttpAnswer { body: text.as_bytes(), ..status(200) }), verdict, "{text}");
    }
    let named = probe(&|http| {
        let pattern = matcher::string_matcher::MatchPattern::Prefix("locations".into());
        http.service_name_matcher = Some(matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() });
    });
    for (cluster, verdict) in [(&b"locations-eu"[..], PASSED), (b"", REFUSED), (b"other", REFUSED)] {
        assert_eq!(named(HttpAnswer { cluster, ..status(200) }), verdict);
    }
}

#[test]
fn what_cannot_be_checked_is_refused_by_name() {
    let good = check(HealthChecker::HttpHealthCheck(http()));
    assert_eq!(refusals(&resource(good.clone())), [""; 0]);
    let with_http = |change: &dyn Fn(&mut proto::HttpHealthCheck)| {
        let mut http = http();
        change(&mut http);
        core::HealthCheck { health_checker: Some(HealthChecker::HttpHealthCheck(http)), ..good.clone() }
    };
    let header = |value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: "x-a".into(), value: value.into(), ..Default::default() }),
        ..Default::default()
    };
    let odd = proto::Payload { payload: Some(proto::payload::Payload::Text("abc".into())) };
    let cases = [
        (core::HealthCheck { timeout: None, ..good.clone() }, "timeout"),
        (core::HealthCheck { interval: seconds(0), ..good.clone() }, "interval"),
        (core::HealthCheck { no_traffic_interval: seconds(0), ..good.clone() }, "no_traffic_interval"),
        (core::HealthCheck { healthy_threshold: None, ..good.clone() }, "healthy_threshold"),
        (core::HealthCheck { unhealthy_threshold: number(0), ..good.clone() }, "unhealthy_threshold"),
        (with_http(&|http| http.path = String::new()), "http_health_check.path"),
        (with_http(&|http| http.path = "/a b".into()), "http_health_check.path"),
        (with_http(&|http| http.host = "a\r\nb: c".into()), "http_health_check.host"),
        (with_http(&|http| http.method = core::RequestMethod::Connect as i32), "http_health_check.method"),
        (
            with_http(&|http| http.codec_client_type = CodecClientType::Http3 as i32),
            "http_health_check.codec_client_type",
        ),
        (with_http(&|http| http.send = Some(Default::default())), "http_health_check.send"),
        (
            with_http(&|http| http.expected_statuses = vec![Int64Range { start: 99, end: 200 }]),
            "http_health_check.expected_statuses[0]",
        ),
        (
            with_http(&|http| http.retriable_statuses = vec![Int64Range { start: 500, end: 500 }]),
            "http_health_check.retriable_statuses[0]",
        ),
        (
            with_http(&|http| http.request_headers_to_add = vec![header("%PROTOCOL%")]),
            "http_health_check.request_headers_to_add[0].header.value",
        ),
        (
            with_http(&|http| http.response_buffer_size = Some(protobuf::UInt64Value { value: 0 })),
            "http_health_check.response_buffer_size",
        ),
        (with_http(&|http| http.receive = vec![odd.clone()]), "http_health_check.receive[0].text"),
        (
            core::HealthCheck {
                health_checker: Some(HealthChecker::CustomHealthCheck(Default::default())),
                ..good.clone()
            },
            "custom_health_check",
        ),
    ];
    for (check, path) in cases {
        let refused = refusals(&resource(check));
        assert_eq!(refused.first(), Some(&format!("Cluster.health_checks[0].{path}")), "{refused:?}");
    }
    let mut two = resource(good.clone());
    two.health_checks.push(good.clone());
    assert_eq!(refusals(&two), ["Cluster.health_checks[1]"]);
    let mut original = resource(good);
    original.lb_policy = cluster::cluster::LbPolicy::ClusterProvided as i32;
    original.cluster_discovery_type =
        Some(cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::OriginalDst as i32));
    assert_eq!(refusals(&original), ["Cluster.health_checks[0]"]);
}

/// A cluster of endpoints that are checked; what is *changed* is also in it.
fn checked(change: impl FnOnce(&mut cluster::Cluster)) -> Cluster {
    let mut resource = resource(check(HealthChecker::TcpHealthCheck(Default::default())));
    change(&mut resource);
    compiled(&resource)
}

fn no_panic(resource: &mut cluster::Cluster) {
    let common = resource.common_lb_config.get_or_insert_default();
    common.healthy_panic_threshold = Some(Percent { value: 0.0 });
}

#[test]
fn only_endpoints_that_pass_are_chosen() {
    let cluster = checked(no_panic);
    let balancer = Balancer::new(&cluster, &assignment(&[1, 2, 3]), None, 0);
    assert!(!balancer.is_checked());
    assert_eq!(chosen(&balancer), [""; 0]);
    note(&cluster, &balancer, 0, PASSED);
    note(&cluster, &balancer, 1, Verdict::TimedOut);
    assert_eq!(chosen(&balancer), ["1"]);
    assert!(!balancer.is_checked());
    note(&cluster, &balancer, 2, DEGRADED);
    assert!(balancer.is_checked());
    // A third of the endpoints, times 1.4, does not carry all of the load.
    assert_eq!(chosen(&balancer), ["1", "3"]);
    balancer.assume_checked();
    assert_eq!(chosen(&balancer), ["1", "2", "3"]);
}

#[test]
fn too_few_that_pass_are_panic_and_new_ones_need_not_count() {
    for (ignores, expected) in [(false, &["1", "2", "3"][..]), (true, &["1"])] {
        let cluster = checked(|resource| {
            resource.common_lb_config.get_or_insert_default().ignore_new_hosts_until_first_hc = ignores;
        });
        let balancer = Balancer::new(&cluster, &assignment(&[1, 2, 3]), None, 0);
        // None that passes is panic in either case.
        assert_eq!(chosen(&balancer), ["1", "2", "3"], "{ignores}");
        note(&cluster, &balancer, 0, PASSED);
        assert_eq!(chosen(&balancer), expected, "{ignores}");
    }
}

#[test]
fn an_endpoint_that_says_so_fails_and_does_not_count() {
    let cluster = checked(|_| ());
    let balancer = Balancer::new(&cluster, &assignment(&[1, 2, 3]), None, 0);
    (0..3).for_each(|index| note(&cluster, &balancer, index, PASSED));
    for index in [1, 2] {
        assert!(balancer.fail_at_once(&balancer.hosts()[index]));
        assert!(!balancer.fail_at_once(&balancer.hosts()[index]));
    }
    // A third that pass would be panic, if the others counted.
    assert_eq!(chosen(&balancer), ["1"]);
    // As many successes as ever bring it back, whatever the check saw before.
    let (mut session, health) = (Session::default(), balancer.hosts()[1].active_health().expect("it is checked"));
    let check = cluster.health_check.as_deref().expect("a check");
    let noted = session.note(check, health, PASSED);
    assert_eq!((noted.transition, noted.passive_failures), (Pending, 2));
    let noted = session.note(check, health, PASSED);
    assert_eq!((noted.transition, noted.passive_failures, noted.turned), (Changed, 0, Some(true)));
    assert!(!health.is_excluded());
    // Where nobody checks, nobody could ever bring it back.
    let unchecked = Balancer::new(&compiled(&Default::default()), &assignment(&[1]), None, 0);
    assert!(!unchecked.fail_at_once(&unchecked.hosts()[0]));
}

#[test]
fn what_is_known_lasts_as_long_as_the_question() {
    let cluster = checked(no_panic);
    let first = Balancer::new(&cluster, &assignment(&[1, 2]), None, 0);
    note(&cluster, &first, 0, PASSED);
    note(&cluster, &first, 1, REFUSED);
    // New endpoints are unchecked, the others are as they were.
    let second = Balancer::new(&cluster, &assignment(&[1, 2, 3]), Some(&first), 0);
    let states: Vec<_> = second.hosts().iter().map(|host| host.active_health().map(|it| it.is_unchecked())).collect();
    assert_eq!((chosen(&second), states), (vec!["1".to_owned()], vec![Some(false), Some(false), Some(true)]));
    // Another question, or another place to ask it: all begins anew.
    let other = checked(|resource| {
        no_panic(resource);
        resource.health_checks[0].interval = seconds(11);
    });
    assert_eq!(chosen(&Balancer::new(&other, &assignment(&[1]), Some(&first), 0)), [""; 0]);
    let elsewhere = eds::Endpoint {
        health_check_config: Some(eds::endpoint::HealthCheckConfig { port_value: 9, ..Default::default() }),
        ..endpoint(1)
    };
    let moved = assignment_of(vec![elsewhere.clone()]);
    assert_eq!(chosen(&Balancer::new(&cluster, &moved, Some(&first), 0)), [""; 0]);
    assert_eq!(moved.localities[0].endpoints[0].check_address().to_string(), "127.0.0.1:9");
    // An endpoint that is not to be checked passes.
    let mut exempt = elsewhere;
    exempt.health_check_config.get_or_insert_default().disable_active_health_check = true;
    let exempt = Balancer::new(&cluster, &assignment_of(vec![exempt]), None, 0);
    assert_eq!((chosen(&exempt), exempt.is_checked()), (vec!["1".to_owned()], true));
}

#[test]
fn an_endpoint_that_passes_outlives_discovery_unless_its_cluster_says_otherwise() {
    let cluster = checked(no_panic);
    let first = Balancer::new(&cluster, &assignment(&[1, 2, 3]), None, 0);
    [PASSED, PASSED, REFUSED].into_iter().enumerate().for_each(|(index, it)| note(&cluster, &first, index, it));
    let second = Balancer::new(&cluster, &assignment(&[1]), Some(&first), 0);
    assert_eq!(chosen(&second), ["1", "2"]);
    assert!(second.hosts()[1].leaving && !second.hosts()[0].leaving && !second.has_left());
    // It stays over any number of changes, and is as any other once discovery names it again.
    let third = Balancer::new(&cluster, &assignment(&[1]), Some(&second), 0);
    assert_eq!(chosen(&third), ["1", "2"]);
    let again = Balancer::new(&cluster, &assignment(&[1, 2]), Some(&third), 0);
    assert!(chosen(&again) == ["1", "2"] && again.hosts().iter().all(|host| !host.leaving));
    note(&cluster, &third, 1, REFUSED);
    assert!(third.has_left());
    let last = Balancer::new(&cluster, &assignment(&[1]), Some(&third), 0);
    assert_eq!((last.hosts().len(), last.has_left()), (1, false));
    let at_once = checked(|resource| resource.ignore_health_on_host_removal = true);
    assert_eq!(Balancer::new(&at_once, &assignment(&[1]), Some(&first), 0).hosts().len(), 1);
}

#[test]
fn a_check_may_choose_its_transport() {
    let label = |text: &str| protobuf::Struct {
        fields: [("use".to_owned(), protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(text.into())) })]
            .into(),
    };
    let cluster = checked(|resource| {
        resource.transport_socket_matches = ["requests", "checks"]
            .map(|name| cluster::cluster::TransportSocketMatch {
                name: name.into(),
                r#match: Some(label(name)),
                transport_socket: None,
            })
            .into();
        resource.health_checks[0].transport_socket_match_criteria = Some(label("checks"));
    });
    let endpoint = &assignment(&[1]).localities[0].endpoints[0];
    let is = |socket: &TransportSocket, index: usize| std::ptr::eq(socket, &cluster.transport_matches[index].socket);
    assert!(is(cluster.check_transport_for(endpoint), 1));
    assert!(std::ptr::eq(cluster.transport_for(endpoint), &cluster.transport));
}

#[test]
fn a_check_that_passes_ends_an_ejection_unless_it_must_not() {
    for (rule, is_back) in [(None, true), (Some(true), true), (Some(false), false)] {
        let cluster = checked(|resource| {
            resource.outlier_detection = Some(cluster::OutlierDetection {
                consecutive_5xx: number(1),
                max_ejection_percent: number(100),
                enforcing_success_rate: number(0),
                successful_active_health_check_uneject_host: rule.map(|value| protobuf::BoolValue { value }),
                ..Default::default()
            });
            no_panic(resource);
        });
        let balancer: Arc<Balancer> = Balancer::new(&cluster, &assignment(&[1, 2]), None, 0);
        (0..2).for_each(|index| note(&cluster, &balancer, index, PASSED));
        let host = &balancer.hosts()[0];
        assert!(balancer.observe(host, Observation::Status(500), Duration::ZERO));
        assert_eq!(chosen(&balancer), ["2"]);
        assert_eq!(balancer.check_passed(host), is_back, "{rule:?}");
        assert_eq!(host.is_ejected(), !is_back);
        balancer.look_again();
        assert_eq!(chosen(&balancer).len(), if is_back { 2 } else { 1 });
    }
}
