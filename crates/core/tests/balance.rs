//! Load balancing, outlier detection and circuit breakers: who is chosen, how often, and who is left out.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quickcheck::{TestResult, quickcheck};
use support::Fixed;
use support::endpoints::*;
use weft_core::balance::{Balancer, PickError};
use weft_core::breaker::{Breakers, Limits, Resource};
use weft_core::cluster::Cluster;
use weft_core::compile::Strictness;
use weft_core::endpoint::LoadAssignment;
use weft_core::outlier::Observation;
use weft_core::random::SplitMix;
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::{CommonLbConfig, common_lb_config};
use weft_protos::envoy::config::core::v3::HealthStatus;
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::r#type::v3::Percent;

/// How often each port is chosen in `picks` picks.
fn spread(balancer: &Arc<Balancer>, picks: usize) -> BTreeMap<u32, usize> {
    let mut picker = balancer.picker();
    let mut random = SplitMix::new(7);
    let mut counts = BTreeMap::new();
    for _ in 0..picks {
        let host = picker.pick(None, &mut random, 1, |_| false).expect("there are endpoints");
        *counts.entry(port(&host)).or_insert(0) += 1;
    }
    counts
}

fn shares(cluster: &Cluster, localities: Vec<eds::LocalityLbEndpoints>) -> BTreeMap<u32, u32> {
    let balancer = Balancer::new(cluster, &assignment(localities), None, 0);
    balancer.shares().iter().map(|(host, share)| (port(host), (share * 100.0).round() as u32)).collect()
}

use HealthStatus::{Degraded, Healthy, Unhealthy};

#[test]
fn round_robin_takes_turns_and_workers_share_them() {
    let endpoints = (1..=3).map(|port| endpoint(port, 1, Healthy)).collect();
    let balancer = Balancer::new(&cluster(|_| ()), &assignment(vec![locality(0, 1, endpoints)]), None, 0);
    let mut workers = [balancer.picker(), balancer.picker()];
    let turns: Vec<u32> = (0..6)
        .map(|turn| port(&workers[turn % 2].pick(None, &mut Fixed(0.0), 1, |_| false).expect("there are endpoints")))
        .collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
}

quickcheck! {
    /// Weighted round robin gives each endpoint its share, give or take a few, over any stretch.
    fn weighted_round_robin_keeps_to_the_weights(weights: Vec<u8>, seed: u64) -> TestResult {
        let weights: Vec<u32> = weights.into_iter().take(12).map(|weight| u32::from(weight) + 1).collect();
        if weights.is_empty() { return TestResult::discard(); }
        let endpoints = weights.iter().zip(1..).map(|(weight, port)| endpoint(port, *weight, Healthy)).collect();
        let balancer = Balancer::new(&cluster(|_| ()), &assignment(vec![locality(0, 1, endpoints)]), None, seed);
        let picks = 2000;
        let counts = spread(&balancer, picks);
        let total: u32 = weights.iter().sum();
        TestResult::from_bool(weights.iter().zip(1..).all(|(weight, port)| {
            let wanted = picks as f64 * f64::from(*weight) / f64::from(total);
            (counts.get(&port).copied().unwrap_or(0) as f64 - wanted).abs() <= 8.0
        }))
    }
}

#[test]
fn least_request_prefers_the_idle_endpoint() {
    let least = cluster(|cluster| cluster.lb_policy = 1);
    let endpoints = (1..=2).map(|port| endpoint(port, 1, Healthy)).collect();
    let balancer = Balancer::new(&least, &assignment(vec![locality(0, 1, endpoints)]), None, 0);
    let busy: Vec<_> = (0..5).map(|_| balancer.hosts()[0].begin()).collect();
    let counts = spread(&balancer, 4000);
    // Both draws fall on the busy one a quarter of the time.
    assert!((800..1200).contains(&counts[&1]), "{counts:?}");
    drop(busy);
    assert_eq!(balancer.hosts()[0].active(), 0);
}

#[test]
fn random_keeps_to_the_weights() {
    let random = cluster(|cluster| cluster.lb_policy = 3);
    let endpoints = vec![endpoint(1, 1, Healthy), endpoint(2, 3, Healthy)];
    let balancer = Balancer::new(&random, &assignment(vec![locality(0, 1, endpoints)]), None, 0);
    let counts = spread(&balancer, 8000);
    assert!((1800..2200).contains(&counts[&1]), "{counts:?}");
}

#[test]
fn load_spills_over_to_the_next_priority_as_envoy_documents() {
    // Source: the table in Envoy's page on priority levels, overprovisioning factor 1.4, 100 endpoints scaled to 20.
    let plain = cluster(|_| ());
    let level = |priority: u32, healthy: u32| {
        let endpoints = (0..20)
            .map(|index| endpoint(1000 * (priority + 1) + index, 1, if index < healthy { Healthy } else { Unhealthy }))
            .collect();
        locality(priority, 1, endpoints)
    };
    for (first, second, expected) in [(20, 20, 100), (15, 20, 100), (14, 20, 98), (10, 20, 70), (5, 20, 35), (0, 20, 0)]
    {
        let balancer = Balancer::new(&plain, &assignment(vec![level(0, first), level(1, second)]), None, 0);
        let load: f64 = balancer.shares().iter().filter(|(host, _)| host.priority == 0).map(|(_, share)| share).sum();
        assert_eq!((load * 100.0).round() as u32, expected, "{first} of 20 healthy");
    }
}

#[test]
fn degraded_endpoints_get_what_healthy_ones_cannot_carry() {
    let endpoints = (1..=4).map(|port| endpoint(port, 1, if port == 1 { Healthy } else { Degraded })).collect();
    // A quarter is healthy: 35 % of the load; three degraded ones carry the rest.
    let found = shares(&cluster(|_| ()), vec![locality(0, 1, endpoints)]);
    assert_eq!(found, [(1, 35), (2, 22), (3, 22), (4, 22)].into());
}

#[test]
fn in_panic_health_is_ignored_unless_panic_is_off() {
    let endpoints = || (1..=4).map(|port| endpoint(port, 1, if port == 1 { Healthy } else { Unhealthy })).collect();
    let panicking = shares(&cluster(|_| ()), vec![locality(0, 1, endpoints())]);
    assert_eq!(panicking, [(1, 25), (2, 25), (3, 25), (4, 25)].into());
    let calm = cluster(|cluster| {
        cluster.common_lb_config =
            Some(CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }), ..Default::default() });
    });
    assert_eq!(shares(&calm, vec![locality(0, 1, endpoints())]), [(1, 100)].into());
    let dead = assignment(vec![locality(0, 1, vec![endpoint(1, 1, Unhealthy)])]);
    let mut picker = Balancer::new(&calm, &dead, None, 0).picker();
    assert_eq!(picker.pick(None, &mut Fixed(0.0), 1, |_| false).unwrap_err(), PickError::NoneHealthy);
    let mut picker = Balancer::new(&calm, &assignment(vec![]), None, 0).picker();
    assert_eq!(picker.pick(None, &mut Fixed(0.0), 1, |_| false).unwrap_err(), PickError::Empty);
}

/// A cluster that divides by the weights of localities.
fn locality_weighted() -> Cluster {
    cluster(|cluster| {
        cluster.common_lb_config = Some(CommonLbConfig {
            locality_config_specifier: Some(common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
                common_lb_config::LocalityWeightedLbConfig {},
            )),
            ..Default::default()
        });
    })
}

#[test]
fn localities_share_by_weight_only_if_the_cluster_says_so() {
    let localities = || {
        vec![
            locality(0, 3, vec![endpoint(1, 1, Healthy)]),
            locality(0, 1, vec![endpoint(2, 1, Healthy), endpoint(3, 1, Healthy)]),
        ]
    };
    assert_eq!(shares(&locality_weighted(), localities()), [(1, 75), (2, 13), (3, 13)].into());
    assert_eq!(shares(&cluster(|_| ()), localities()), [(1, 33), (2, 33), (3, 33)].into());
}

#[test]
fn without_any_weight_localities_share_by_their_endpoints() {
    let weighted = locality_weighted();
    let unweighted = |state| {
        vec![
            eds::LocalityLbEndpoints { load_balancing_weight: None, ..locality(0, 1, vec![endpoint(1, 1, Healthy)]) },
            locality(0, 0, vec![endpoint(2, 1, Healthy), endpoint(3, 2, Healthy)]),
            locality(1, 0, vec![endpoint(4, 1, state)]),
        ]
    };
    assert_eq!(shares(&weighted, unweighted(Healthy)), [(1, 25), (2, 25), (3, 50)].into());
    // The one with a weight has nobody who works; the others have none.
    let failing = vec![
        locality(0, 3, vec![endpoint(1, 1, Unhealthy)]),
        locality(0, 0, vec![endpoint(2, 1, Healthy), endpoint(3, 1, Healthy)]),
    ];
    assert_eq!(shares(&weighted, failing), [(2, 50), (3, 50)].into());
    // Degraded ones are split by themselves.
    let degraded = vec![
        locality(0, 3, vec![endpoint(1, 1, Healthy), endpoint(2, 1, Unhealthy)]),
        locality(0, 0, vec![endpoint(3, 1, Degraded), endpoint(4, 3, Degraded)]),
    ];
    assert_eq!(shares(&weighted, degraded), [(1, 35), (3, 16), (4, 49)].into());
}

#[test]
fn in_panic_localities_do_not_count() {
    let failing =
        |ports: std::ops::RangeInclusive<u32>| ports.map(|port| endpoint(port, 1, Unhealthy)).collect::<Vec<_>>();
    let one_of_seven = || {
        let most = [vec![endpoint(2, 1, Healthy)], failing(3..=7)].concat();
        vec![locality(0, 3, failing(1..=1)), locality(0, 1, most)]
    };
    let seventh = |port: u32| (port, 14);
    assert_eq!(shares(&locality_weighted(), one_of_seven()), (1..=7).map(seventh).collect());
    // One priority panics, and the other does not: what works carries 20 % and 70 %.
    let below = locality(1, 1, vec![endpoint(8, 1, Healthy), endpoint(9, 1, Unhealthy)]);
    let found = shares(&locality_weighted(), [one_of_seven(), vec![below]].concat());
    assert_eq!(found, (1..=7).map(|port| (port, 3)).chain([(8, 77)]).collect());
}

#[test]
fn endpoints_tried_before_are_avoided_while_draws_are_left() {
    let endpoints = (1..=3).map(|port| endpoint(port, 1, Healthy)).collect();
    let balancer = Balancer::new(&cluster(|_| ()), &assignment(vec![locality(0, 1, endpoints)]), None, 0);
    let mut picker = balancer.picker();
    let host = picker.pick(None, &mut Fixed(0.0), 3, |host| port(host) < 3).expect("there are endpoints");
    assert_eq!(port(&host), 3);
    let host = picker.pick(None, &mut Fixed(0.0), 2, |_| true).expect("the last draw stands");
    assert_eq!(port(&host), 2);
}

/// Ejects after three 5xx for 10 s times the number of ejections; half of the endpoints at most.
fn ejecting(change: impl FnOnce(&mut proto::OutlierDetection)) -> Cluster {
    let mut detection = proto::OutlierDetection {
        consecutive_5xx: number(3),
        enforcing_success_rate: number(0),
        base_ejection_time: Some(weft_protos::google::protobuf::Duration { seconds: 10, nanos: 0 }),
        max_ejection_percent: number(50),
        ..Default::default()
    };
    change(&mut detection);
    cluster(|cluster| cluster.outlier_detection = Some(detection))
}

fn four() -> LoadAssignment {
    healthy(4)
}

/// So many endpoints, at the ports from 1 on.
fn healthy(count: u32) -> LoadAssignment {
    assignment(vec![locality(0, 1, (1..=count).map(|port| endpoint(port, 1, Healthy)).collect())])
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn consecutive_failures_eject_and_time_brings_back() {
    let cluster = ejecting(|_| ());
    let balancer = Balancer::new(&cluster, &four(), None, 0);
    let mut picker = balancer.picker();
    let fail = |index: usize, now: Duration| balancer.observe(&balancer.hosts()[index], Observation::Status(500), now);
    assert!(!fail(0, SECOND) && !fail(0, SECOND));
    balancer.observe(&balancer.hosts()[0], Observation::Status(404), SECOND);
    assert!(!fail(0, SECOND) && !fail(0, SECOND), "a success between them began the count again");
    assert!(fail(0, SECOND), "the third in a row");
    assert!(!balancer.hosts()[0].is_healthy());
    assert!(
        (0..30).all(|_| port(&picker.pick(None, &mut Fixed(0.0), 1, |_| false).expect("others")) != 1),
        "a picker made before sees it"
    );

    assert_eq!(balancer.tick(SECOND * 10), 0, "9 s are not over");
    assert_eq!(balancer.tick(SECOND * 11), 1);
    assert!(balancer.hosts()[0].is_healthy());

    for _ in 0..3 {
        fail(0, SECOND * 12);
    }
    assert_eq!(balancer.tick(SECOND * 31), 0, "the second ejection lasts 20 s");
    assert_eq!(balancer.tick(SECOND * 32), 1);
}

#[test]
fn no_more_than_the_allowed_share_is_ejected() {
    let balancer = Balancer::new(&ejecting(|_| ()), &four(), None, 0);
    for host in balancer.hosts() {
        for _ in 0..3 {
            balancer.observe(host, Observation::LocalFailure, SECOND);
        }
    }
    assert_eq!(balancer.hosts().iter().filter(|host| host.is_ejected()).count(), 2);

    let strict = ejecting(|detection| detection.max_ejection_percent = number(10));
    let balancer = Balancer::new(&strict, &four(), None, 0);
    assert!(
        !(0..3).any(|_| balancer.observe(&balancer.hosts()[0], Observation::Status(503), SECOND)),
        "one of four is 25 %"
    );
}

#[test]
fn local_failures_count_by_themselves_if_split_off() {
    let split = ejecting(|detection| {
        detection.split_external_local_origin_errors = true;
        detection.consecutive_local_origin_failure = number(2);
    });
    let balancer = Balancer::new(&split, &four(), None, 0);
    let host = &balancer.hosts()[0];
    assert!(!balancer.observe(host, Observation::Status(500), SECOND));
    assert!(!balancer.observe(host, Observation::LocalFailure, SECOND));
    assert!(!balancer.observe(host, Observation::Connected, SECOND));
    assert!(!balancer.observe(host, Observation::LocalFailure, SECOND));
    assert!(balancer.observe(host, Observation::LocalFailure, SECOND));
}

#[test]
fn what_is_known_of_an_endpoint_outlives_a_new_assignment() {
    let cluster = ejecting(|_| ());
    let old = Balancer::new(&cluster, &four(), None, 0);
    let active = old.hosts()[1].begin();
    for _ in 0..3 {
        old.observe(&old.hosts()[0], Observation::Status(500), SECOND);
    }
    let new = Balancer::new(
        &cluster,
        &assignment(vec![locality(
            0,
            1,
            vec![endpoint(2, 9, Healthy), endpoint(1, 1, Healthy), endpoint(5, 1, Healthy)],
        )]),
        Some(&old),
        0,
    );
    assert_eq!(new.hosts().iter().map(|host| host.active()).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(new.hosts().iter().map(|host| host.is_ejected()).collect::<Vec<_>>(), [false, true, false]);
    drop(active);
    assert_eq!(new.hosts()[0].active(), 0);
}

#[test]
fn an_ejection_ends_with_the_rules_that_are_to_end_it() {
    let with = Balancer::new(&ejecting(|_| ()), &four(), None, 0);
    for _ in 0..3 {
        with.observe(&with.hosts()[0], Observation::Status(500), SECOND);
    }
    assert!(with.hosts()[0].is_ejected());

    let without = Balancer::new(&cluster(|_| ()), &four(), Some(&with), 0);
    assert!(without.hosts().iter().all(|host| host.is_healthy()));
    // A worker that has not seen the new configuration yet may still eject by the old one.
    for _ in 0..3 {
        with.observe(&with.hosts()[1], Observation::Status(500), SECOND);
    }
    assert!(with.hosts()[1].is_ejected() && without.hosts().iter().all(|host| host.is_healthy()));

    let again = Balancer::new(&ejecting(|_| ()), &four(), Some(&without), 0);
    assert!(again.hosts().iter().all(|host| host.is_healthy()), "it begins anew");
}

/// Endpoints that are compared after an interval in which each had these (requests, failures); which of them are out then, by position.
fn compared(detection: proto::OutlierDetection, seen: &[(u32, u32)], failure: Observation) -> Vec<usize> {
    let rules = ejecting(|rules| {
        *rules = proto::OutlierDetection {
            enforcing_consecutive_5xx: number(0),
            enforcing_consecutive_local_origin_failure: number(0),
            max_ejection_percent: number(50),
            ..detection
        }
    });
    let balancer = Balancer::new(&rules, &healthy(seen.len() as u32), None, 0);
    let observe = |host, observation| assert!(!balancer.observe(host, observation, SECOND), "not before the end");
    for (host, (all, failed)) in balancer.hosts().iter().zip(seen) {
        (0..*failed).for_each(|_| observe(host, failure));
        (*failed..*all).for_each(|_| observe(host, Observation::Status(404)));
    }
    balancer.tick(SECOND * 2);
    out_of(&balancer)
}

fn out_of(balancer: &Balancer) -> Vec<usize> {
    balancer.hosts().iter().enumerate().filter(|(_, host)| host.is_ejected()).map(|(at, _)| at).collect()
}

/// Five endpoints, of which the last fails all of its requests, that are compared by success rate.
fn five_compared() -> std::sync::Arc<Balancer> {
    let rules = ejecting(|rules| {
        rules.enforcing_consecutive_5xx = number(0);
        rules.enforcing_success_rate = number(100);
    });
    Balancer::new(&rules, &healthy(5), None, 0)
}

/// Who is out is asked nothing.
fn ask_all(balancer: &Balancer, requests: usize) {
    for (index, host) in balancer.hosts().iter().enumerate().filter(|(_, host)| !host.is_ejected()) {
        let status = if index == 4 { 500 } else { 200 };
        (0..requests).for_each(|_| assert!(!balancer.observe(host, Observation::Status(status), SECOND)));
    }
}

#[test]
fn an_interval_is_compared_by_itself() {
    let balancer = five_compared();
    for interval in 1..10 {
        ask_all(&balancer, 60);
        balancer.tick(SECOND * interval);
        assert_eq!(out_of(&balancer), Vec::<usize>::new(), "60 requests are too few, however many came before");
    }
    ask_all(&balancer, 100);
    balancer.tick(SECOND * 10);
    assert_eq!(out_of(&balancer), [4]);
}

#[test]
fn who_is_ejected_again_and_again_is_so_for_longer_each_time() {
    let balancer = five_compared();
    let (mut lengths, mut began) = (Vec::new(), None);
    for second in 1..200 {
        ask_all(&balancer, 100);
        balancer.tick(SECOND * second);
        match (began, balancer.hosts()[4].is_ejected()) {
            (None, true) => began = Some(second),
            (Some(since), false) => {
                lengths.push(second - since);
                began = None;
            }
            _ => {}
        }
    }
    assert_eq!(lengths[..4], [10, 20, 30, 40], "ten seconds times the number of ejections");
}

#[test]
fn what_came_while_an_endpoint_was_out_is_forgotten_when_it_is_back() {
    let balancer = Balancer::new(&ejecting(|_| ()), &four(), None, 0);
    let fail = |now: Duration| balancer.observe(&balancer.hosts()[0], Observation::Status(500), now);
    (0..10).for_each(|_| {
        fail(SECOND);
    });
    assert_eq!(balancer.tick(SECOND * 11), 1);
    assert!(!fail(SECOND * 12) && !fail(SECOND * 12), "it begins anew");
    assert!(fail(SECOND * 12));
}

#[test]
fn a_connection_that_was_made_ends_a_row_of_failures() {
    let balancer = Balancer::new(&ejecting(|_| ()), &four(), None, 0);
    let host = &balancer.hosts()[0];
    for _ in 0..5 {
        assert!(!balancer.observe(host, Observation::LocalFailure, SECOND));
        assert!(!balancer.observe(host, Observation::LocalFailure, SECOND));
        assert!(!balancer.observe(host, Observation::Connected, SECOND));
    }
}

#[test]
fn endpoints_that_fail_far_more_often_than_the_others_are_ejected() {
    use proto::OutlierDetection as Rules;
    let (bad, local) = (Observation::Status(503), Observation::LocalFailure);
    let split = Rules { split_external_local_origin_errors: true, ..Rules::default() };
    let failures =
        |rules: Rules| Rules { enforcing_success_rate: number(0), enforcing_failure_percentage: number(100), ..rules };
    let alike: &[(u32, u32)] = &[(100, 0); 4];
    let with = |own: (u32, u32)| [alike, &[own]].concat();
    /// Name, rules, what was seen, of what kind the failures are, who is out.
    type Case = (&'static str, Rules, Vec<(u32, u32)>, Observation, &'static [usize]);
    let cases: &[Case] = &[
        ("one far below the others, by Envoy's default", Rules::default(), with((100, 10)), bad, &[4]),
        ("failures found on this side count too", Rules::default(), with((100, 10)), local, &[4]),
        ("all alike", Rules::default(), vec![(100, 30); 5], bad, &[]),
        ("too few requests", Rules::default(), with((99, 99)), bad, &[]),
        ("too few endpoints", Rules::default(), vec![(100, 0), (100, 0), (100, 0), (100, 50)], bad, &[]),
        (
            "so few are enough if the rules say so",
            Rules {
                success_rate_minimum_hosts: number(4),
                success_rate_request_volume: number(10),
                success_rate_stdev_factor: number(1500),
                ..Rules::default()
            },
            vec![(10, 0), (10, 0), (10, 0), (10, 5)],
            bad,
            &[3],
        ),
        (
            "within 1.9 standard deviations",
            Rules::default(),
            vec![(100, 0), (100, 10), (100, 20), (100, 30), (100, 40)],
            bad,
            &[],
        ),
        ("turned off", Rules { enforcing_success_rate: number(0), ..Rules::default() }, with((100, 100)), bad, &[]),
        ("local failures are another matter if split off", split.clone(), with((100, 10)), local, &[4]),
        (
            "which may be turned off",
            Rules { enforcing_local_origin_success_rate: number(0), ..split.clone() },
            with((100, 10)),
            local,
            &[],
        ),
        ("a percentage, of all alike", failures(Rules::default()), vec![(50, 43); 6], bad, &[0, 1, 2]),
        ("less than the percentage", failures(Rules::default()), vec![(50, 42); 6], bad, &[]),
        (
            "another percentage, of fewer",
            Rules {
                failure_percentage_threshold: number(20),
                failure_percentage_minimum_hosts: number(2),
                failure_percentage_request_volume: number(5),
                ..failures(Rules::default())
            },
            vec![(5, 1), (5, 0)],
            bad,
            &[0],
        ),
        (
            "not by percentage, by default",
            Rules { enforcing_success_rate: number(0), ..Rules::default() },
            vec![(50, 50); 6],
            bad,
            &[],
        ),
        (
            "a percentage of local failures",
            Rules {
                enforcing_failure_percentage_local_origin: number(100),
                enforcing_local_origin_success_rate: number(0),
                ..split
            },
            vec![(50, 50); 6],
            local,
            &[0, 1, 2],
        ),
    ];
    for (name, rules, seen, failure, out) in cases {
        assert_eq!(compared(rules.clone(), seen, *failure), *out, "{name}");
    }
}

#[test]
fn a_row_of_what_gateways_say_ejects_where_that_is_enforced() {
    let rules = |change: fn(&mut proto::OutlierDetection)| {
        ejecting(|detection| {
            detection.enforcing_consecutive_5xx = number(0);
            detection.consecutive_gateway_failure = number(2);
            detection.enforcing_consecutive_gateway_failure = number(100);
            change(detection);
        })
    };
    let fails = |rules: &Cluster, seen: &[Observation]| {
        let balancer = Balancer::new(rules, &four(), None, 0);
        seen.iter().any(|observation| balancer.observe(&balancer.hosts()[0], *observation, SECOND))
    };
    let [internal, bad_gateway, unavailable, late] = [500, 502, 503, 504].map(Observation::Status);
    let enforced = rules(|_| ());
    for pair in [[bad_gateway, unavailable], [late, Observation::LocalFailure]] {
        assert!(fails(&enforced, &pair), "{pair:?}");
    }
    assert!(!fails(&enforced, &[internal; 5]), "a program's own failure is none of a gateway");
    assert!(!fails(&enforced, &[bad_gateway, internal, bad_gateway]), "it ends the row");
    assert!(!fails(&rules(|it| it.enforcing_consecutive_gateway_failure = None), &[bad_gateway; 5]), "not by default");
}

#[test]
fn one_may_always_be_ejected_where_that_is_said() {
    let failing = |always: bool| {
        let rules = ejecting(|detection| {
            detection.max_ejection_percent = number(0);
            detection.always_eject_one_host = Some(weft_protos::google::protobuf::BoolValue { value: always });
        });
        let balancer = Balancer::new(&rules, &four(), None, 0);
        for host in &balancer.hosts()[1..3] {
            for _ in 0..3 {
                balancer.observe(host, Observation::Status(500), SECOND);
            }
        }
        out_of(&balancer)
    };
    assert_eq!(failing(false), Vec::<usize>::new());
    assert_eq!(failing(true), [1], "and no second one");
}

#[test]
fn an_ejection_lasts_no_longer_than_the_longest_one() {
    let rules = ejecting(|detection| {
        detection.max_ejection_time = Some(weft_protos::google::protobuf::Duration { seconds: 15, nanos: 0 });
    });
    let balancer = Balancer::new(&rules, &four(), None, 0);
    let fail = |now: Duration| (0..3).any(|_| balancer.observe(&balancer.hosts()[0], Observation::Status(500), now));
    assert!(fail(SECOND));
    assert_eq!(balancer.tick(SECOND * 11), 1);
    assert!(fail(SECOND * 12));
    assert_eq!((balancer.tick(SECOND * 26), balancer.tick(SECOND * 27)), (0, 1), "15 s, and not 20");
}

#[test]
fn what_makes_an_ejection_no_longer_has_not_to_be_forgiven() {
    let rules = ejecting(|detection| {
        detection.max_ejection_time = Some(weft_protos::google::protobuf::Duration { seconds: 25, nanos: 0 });
    });
    let balancer = Balancer::new(&rules, &four(), None, 0);
    let fail = |now: Duration| (0..3).any(|_| balancer.observe(&balancer.hosts()[0], Observation::Status(500), now));
    // How long an ejection at this second lasts.
    let length = |began: u32| {
        assert!(fail(SECOND * began));
        (1_u32..).find(|seconds| balancer.tick(SECOND * (began + seconds)) == 1)
    };
    let lengths: Vec<_> = (0..10).map(|turn| length(100 * turn)).collect();
    assert_eq!(lengths[..3], [Some(10), Some(20), Some(25)]);
    assert_eq!(lengths[3..], [Some(25); 7]);
    // Four ejections count: 40 s are more than the longest by one base. Each whole interval forgives one.
    (1..=3).for_each(|interval| {
        balancer.tick(SECOND * (2000 + interval));
    });
    assert_eq!(length(3000), Some(20));
}

#[test]
fn a_priority_carries_as_much_as_its_factor_of_what_works_there() {
    let shares = |factor: Option<u32>| {
        let assignment = eds::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![
                locality(0, 1, vec![endpoint(1, 1, Healthy), endpoint(2, 1, Unhealthy)]),
                locality(1, 1, vec![endpoint(3, 1, Healthy)]),
            ],
            policy: factor.map(|factor| eds::cluster_load_assignment::Policy {
                overprovisioning_factor: number(factor),
                ..Default::default()
            }),
            ..Default::default()
        };
        let assignment = LoadAssignment::compile(&assignment, Strictness::Refuse).expect("honoured").value;
        let balancer = Balancer::new(&cluster(|_| ()), &assignment, None, 0);
        let shares = balancer.shares();
        shares.iter().map(|(host, share)| (port(host), (share * 100.0).round() as u32)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(shares(None), [(1, 70), (3, 30)].into(), "140 % of one half");
    assert_eq!(shares(Some(100)), [(1, 50), (3, 50)].into());
    assert_eq!(shares(Some(200)), [(1, 100)].into());
}

#[test]
fn the_least_loaded_of_all_is_found_if_that_many_are_looked_at() {
    let with = |choices: Option<u32>| {
        cluster(|cluster| {
            cluster.lb_policy = proto::cluster::LbPolicy::LeastRequest.into();
            cluster.lb_config =
                Some(proto::cluster::LbConfig::LeastRequestLbConfig(proto::cluster::LeastRequestLbConfig {
                    choice_count: choices.and_then(number),
                    ..Default::default()
                }));
        })
    };
    let idle_picked = |choices: Option<u32>| {
        let balancer = Balancer::new(&with(choices), &healthy(10), None, 0);
        // All but the last have a request in flight.
        let _active: Vec<_> = balancer.hosts()[..9].iter().map(|host| host.begin()).collect();
        let (mut picker, mut random) = (balancer.picker(), SplitMix::new(1));
        let picks = (0..100).map(|_| picker.pick(None, &mut random, 1, |_| false).expect("there are endpoints"));
        picks.filter(|host| port(host) == 10).count()
    };
    assert!(idle_picked(None) < 40, "two of ten are drawn: about one time in five it is among them");
    assert!(idle_picked(Some(50)) > 90, "of fifty draws one is nearly always the one");
}

#[test]
fn a_share_of_enforcement_is_refused() {
    let detection = proto::OutlierDetection { enforcing_success_rate: number(50), ..Default::default() };
    let resource = proto::Cluster { outlier_detection: Some(detection), ..Default::default() };
    let problems = Cluster::compile(&resource, Strictness::Refuse).unwrap_err().0;
    assert_eq!(problems[0].path, "Cluster.outlier_detection.enforcing_success_rate");
}

#[test]
fn circuit_breakers_count_what_is_in_progress() {
    let breakers = Arc::new(Breakers::default());
    let limits = Limits { requests: 2, ..Limits::default() };
    let first = breakers.acquire(Resource::Request, &limits);
    let second = breakers.acquire(Resource::Request, &limits);
    assert!(first.is_some() && second.is_some());
    assert!(breakers.acquire(Resource::Request, &limits).is_none());
    assert!(breakers.acquire(Resource::Retry, &limits).is_some(), "another counter");
    drop(first);
    assert_eq!(breakers.in_use(Resource::Request), 1);
    assert!(breakers.acquire(Resource::Request, &limits).is_some());
}
