//! Consistent hashing: what of a request makes its hash, and which endpoint a hash belongs to.
//!
//! That Envoy finds the same endpoints is in tests/conformance/test_hash.py.

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use quickcheck::quickcheck;
use support::endpoints::*;
use support::{Fixed, request};
use weft_core::balance::{Balancer, PickError};
use weft_core::cluster::{Cluster, HashFunction, LbPolicy};
use weft_core::compile::Strictness;
use weft_core::hash::{murmur_hash_2, xxhash64, xxhash64_of};
use weft_core::hash_policy::{Client, Hashed, hash};
use weft_core::outlier::Observation;
use weft_core::request::OwnedRequest;
use weft_core::route::{Action, RouteTable};
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::common_lb_config::{
    ConsistentHashingLbConfig, LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use weft_protos::envoy::config::cluster::v3::cluster::{CommonLbConfig, LbConfig, MaglevLbConfig, RingHashLbConfig};
use weft_protos::envoy::config::core::v3::HealthStatus::{Degraded, Healthy, Unhealthy};
use weft_protos::envoy::config::core::v3::Locality;
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::config::route::v3::route_action::hash_policy::{self, PolicySpecifier};
use weft_protos::envoy::config::route::v3::route_action::{ClusterSpecifier, HashPolicy};
use weft_protos::google::protobuf::{Duration, UInt64Value};

const RING_HASH: i32 = 2;
const MAGLEV: i32 = 5;

fn size(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn ring(least: u64, most: u64) -> Cluster {
    cluster(|cluster| {
        cluster.lb_policy = RING_HASH;
        cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: size(least),
            maximum_ring_size: size(most),
            ..Default::default()
        }));
    })
}

fn maglev(places: u64) -> Cluster {
    cluster(|cluster| {
        cluster.lb_policy = MAGLEV;
        cluster.lb_config = Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: size(places) }));
    })
}

fn ports(ports: &[u32]) -> Vec<eds::LbEndpoint> {
    ports.iter().map(|port| endpoint(*port, 1, Healthy)).collect()
}

fn balancer(cluster: &Cluster, localities: Vec<eds::LocalityLbEndpoints>) -> Arc<Balancer> {
    Balancer::new(cluster, &assignment(localities), None, 0)
}

/// The port of each of the first thousand keys.
fn owners(balancer: &Arc<Balancer>) -> Vec<u32> {
    let mut picker = balancer.picker();
    let mut owner = |key: u64| {
        let number = xxhash64(0, key.to_string().as_bytes());
        port(&picker.pick(Some(number), &mut Fixed(0.5), 1, |_| false).expect("somebody owns every number"))
    };
    (0..1000).map(&mut owner).collect()
}

#[test]
fn a_key_stays_with_its_endpoint_when_another_goes() {
    for cluster in [ring(1024, 8 << 20), maglev(65_537)] {
        let all = owners(&balancer(&cluster, vec![locality(0, 1, ports(&[1, 2, 3, 4, 5]))]));
        let without = owners(&balancer(&cluster, vec![locality(0, 1, ports(&[5, 4, 2, 1]))]));
        let counts = all.iter().fold(BTreeMap::new(), |mut counts: BTreeMap<u32, u32>, port| {
            *counts.entry(*port).or_default() += 1;
            counts
        });
        assert!(counts.len() == 5 && counts.values().all(|count| (100..320).contains(count)), "{counts:?}");
        let moved = all.iter().zip(&without).filter(|(before, after)| **before != 3 && before != after).count();
        // Fewer endpoints have more points each on a ring of the same size, and with them they take a few keys from each other. Of
        // Maglev's table hardly any move (section 3.4 of its paper).
        let most = if matches!(cluster.policy, LbPolicy::RingHash { .. }) { 150 } else { 50 };
        assert!(moved <= most, "{moved} of {:?}", cluster.policy);
        assert!(!without.contains(&3));
    }
}

#[test]
fn a_point_of_the_ring_is_the_hash_of_the_address_and_a_number() {
    let pick = |cluster: &Cluster, number: u64| {
        let balancer = balancer(cluster, vec![locality(0, 1, ports(&[1, 2, 3]))]);
        port(&balancer.picker().pick(Some(number), &mut Fixed(0.0), 1, |_| false).expect("endpoints"))
    };
    let murmur = cluster(|cluster| {
        cluster.lb_policy = RING_HASH;
        cluster.lb_config =
            Some(LbConfig::RingHashLbConfig(RingHashLbConfig { hash_function: 1, ..Default::default() }));
    });
    assert!(matches!(murmur.policy, LbPolicy::RingHash { least: 1024, function: HashFunction::MurmurHash2, .. }));
    for (host, point) in [(1, 0), (2, 0), (3, 7), (3, 340)] {
        let text = format!("127.0.0.1:{host}_{point}");
        assert_eq!(pick(&ring(1024, 1 << 20), xxhash64(0, text.as_bytes())), host, "{text}");
        assert_eq!(pick(&murmur, murmur_hash_2(text.as_bytes())), host, "{text}");
    }
}

#[test]
fn places_follow_from_metadata_before_the_name_and_from_the_name_before_the_address() {
    let named = |name: &str, key: Option<&str>| {
        let mut one = endpoint(9, 1, Healthy);
        let Some(eds::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &mut one.host_identifier else { panic!() };
        endpoint.hostname = name.into();
        one.metadata = key.map(|key| {
            use weft_protos::google::protobuf::{Struct, Value, value::Kind};
            let value = Value { kind: Some(Kind::StringValue(key.into())) };
            let fields = Struct { fields: [("hash_key".to_owned(), value)].into() };
            weft_protos::envoy::config::core::v3::Metadata {
                filter_metadata: [("envoy.lb".to_owned(), fields)].into(),
                ..Default::default()
            }
        });
        one
    };
    let by_name = cluster(|cluster| {
        cluster.lb_policy = MAGLEV;
        cluster.common_lb_config = Some(CommonLbConfig {
            consistent_hashing_lb_config: Some(ConsistentHashingLbConfig {
                use_hostname_for_hashing: true,
                ..Default::default()
            }),
            ..Default::default()
        });
    });
    let which = |first: eds::LbEndpoint, second: eds::LbEndpoint, cluster: &Cluster| {
        let balancer = balancer(cluster, vec![locality(0, 1, vec![first, second])]);
        let mut picker = balancer.picker();
        (0..200u64)
            .map(|key| {
                let host = picker.pick(Some(xxhash64(key, b"")), &mut Fixed(0.0), 1, |_| false).expect("endpoints");
                usize::from(Arc::ptr_eq(&host, &balancer.hosts()[1]))
            })
            .collect::<Vec<_>>()
    };
    let by_names = which(named("a", None), named("b", None), &by_name);
    assert_eq!(which(named("x", Some("a")), named("y", Some("b")), &by_name), by_names);
    assert_ne!(which(named("b", None), named("a", None), &by_name), by_names);
}

#[test]
fn weights_localities_and_priorities_share_the_numbers() {
    let shares = |cluster: &Cluster, localities| {
        let shares = balancer(cluster, localities).shares();
        shares.iter().map(|(host, share)| (port(host), (share * 100.0).round() as u32)).collect::<BTreeMap<_, _>>()
    };
    let heavy = || vec![locality(0, 1, vec![endpoint(1, 3, Healthy), endpoint(2, 1, Healthy)])];
    assert_eq!(shares(&maglev(65_537), heavy()), [(1, 75), (2, 25)].into());
    let of_ring = shares(&ring(1 << 16, 8 << 20), heavy());
    assert!((73..=77).contains(&of_ring[&1]), "{of_ring:?}");

    let weighted = cluster(|cluster| {
        cluster.lb_policy = MAGLEV;
        cluster.common_lb_config = Some(CommonLbConfig {
            locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
                LocalityWeightedLbConfig {},
            )),
            ..Default::default()
        });
    });
    let localities = || vec![locality(0, 3, ports(&[1])), locality(0, 1, ports(&[2, 3]))];
    let of_localities = shares(&weighted, localities());
    assert!(of_localities[&1] == 75 && of_localities[&2].abs_diff(of_localities[&3]) <= 1, "{of_localities:?}");

    let sick = |healthy: usize| {
        let state = |index| if index < healthy { Healthy } else { Unhealthy };
        let first = (0..4).zip(1..).map(|(index, port)| endpoint(port, 1, state(index))).collect();
        vec![locality(0, 1, first), locality(1, 1, ports(&[9]))]
    };
    assert_eq!(shares(&maglev(65_537), sick(4)).get(&9), None);
    assert_eq!(shares(&maglev(65_537), sick(2)), [(1, 35), (2, 35), (9, 30)].into());
}

/// What one endpoint has too much of a small ring, the next has less of; proxies are told of localities in any order, and names make it one.
#[test]
fn localities_are_taken_in_the_order_of_their_names() {
    let cluster = cluster(|cluster| {
        cluster.lb_policy = RING_HASH;
        // Five points: for shares of 1, 1.5 and 2.5.
        cluster.lb_config =
            Some(LbConfig::RingHashLbConfig(RingHashLbConfig { minimum_ring_size: size(1), ..Default::default() }));
        cluster.common_lb_config = Some(CommonLbConfig {
            locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
                LocalityWeightedLbConfig {},
            )),
            ..Default::default()
        });
    });
    let owners_of = |[first, second]: [Locality; 2], turned: bool| {
        let place =
            |name, weight, own| eds::LocalityLbEndpoints { locality: Some(name), ..locality(0, weight, ports(&[own])) };
        let mut localities = vec![place(Locality::default(), 2, 1), place(first, 3, 2), place(second, 5, 3)];
        if turned {
            localities.swap(1, 2);
        }
        owners(&balancer(&cluster, localities))
    };
    let of = |region: &str, zone: &str, sub_zone: &str| Locality {
        region: region.into(),
        zone: zone.into(),
        sub_zone: sub_zone.into(),
    };
    let nameless = || [of("", "", ""), of("", "", "")];
    assert_ne!(owners_of(nameless(), false), owners_of(nameless(), true), "then the list decides");
    for (name, first, second) in [
        ("by region", of("a", "", ""), of("b", "", "")),
        ("by zone", of("a", "a", "z"), of("a", "b", "a")),
        ("by sub-zone", of("a", "a", "a"), of("a", "a", "b")),
    ] {
        let named = || [first.clone(), second.clone()];
        assert_eq!(owners_of(named(), false), owners_of(named(), true), "{name}");
    }
}

#[test]
fn the_sick_are_left_out_and_panic_takes_them_back() {
    let state = |first, second| vec![locality(0, 1, vec![endpoint(1, 1, first), endpoint(2, 1, second)])];
    let only = |localities| {
        let mut owners = owners(&balancer(&maglev(65_537), localities));
        owners.sort_unstable();
        owners.dedup();
        owners
    };
    assert_eq!(only(state(Healthy, Unhealthy)), [1]);
    assert_eq!(only(state(Unhealthy, Unhealthy)), [1, 2]);
    assert_eq!(only(state(Healthy, Degraded)), [1]);
    assert_eq!(only(state(Degraded, Degraded)), [1, 2]);
    let calm = cluster(|cluster| {
        cluster.lb_policy = RING_HASH;
        cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: Some(weft_protos::envoy::r#type::v3::Percent { value: 0.0 }),
            ..Default::default()
        });
    });
    let refused = |localities| balancer(&calm, localities).picker().pick(None, &mut Fixed(0.0), 1, |_| false).err();
    assert_eq!(refused(state(Unhealthy, Unhealthy)), Some(PickError::NoneHealthy));
    assert_eq!(refused(vec![]), Some(PickError::Empty));
}

#[test]
fn an_ejected_endpoint_gives_its_numbers_away_until_it_is_back() {
    let mut cluster = maglev(65_537);
    let detection = proto::OutlierDetection {
        consecutive_5xx: number(1),
        enforcing_success_rate: number(0),
        max_ejection_percent: number(50),
        ..Default::default()
    };
    cluster.outlier = support::endpoints::cluster(|it| it.outlier_detection = Some(detection)).outlier;
    let balancer = balancer(&cluster, vec![locality(0, 1, ports(&[1, 2, 3]))]);
    let before = owners(&balancer);
    let second = std::time::Duration::from_secs(1);
    assert!(balancer.observe(&balancer.hosts()[0], Observation::Status(500), second));
    let meanwhile = owners(&balancer);
    assert!(!meanwhile.contains(&1) && before.contains(&1));
    balancer.tick(second * 3600);
    assert_eq!(owners(&balancer), before);
}

#[test]
fn a_retry_can_reach_another_endpoint() {
    for cluster in [ring(1024, 8 << 20), maglev(65_537)] {
        let balancer = balancer(&cluster, vec![locality(0, 1, ports(&[1, 2, 3, 4]))]);
        let mut picker = balancer.picker();
        let mut stuck = 0;
        for key in 0..200u64 {
            let number = Some(xxhash64(key, b"key"));
            let first = picker.pick(number, &mut Fixed(0.0), 1, |_| false).expect("endpoints");
            let other = picker.pick(number, &mut Fixed(0.0), 6, |host| port(host) == port(&first)).expect("endpoints");
            stuck += usize::from(port(&other) == port(&first));
        }
        assert!(stuck <= 2, "{stuck} of 200 keys: {:?}", cluster.policy);
    }
}

#[test]
fn without_a_key_a_random_number_decides() {
    let balancer = balancer(&ring(1024, 8 << 20), vec![locality(0, 1, ports(&[1, 2, 3]))]);
    let mut random = weft_core::random::SplitMix::new(1);
    let mut picker = balancer.picker();
    let mut seen: Vec<u32> =
        (0..100).map(|_| port(&picker.pick(None, &mut random, 1, |_| false).expect("endpoints"))).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn sizes_that_make_no_ring_or_table_are_refused() {
    let paths = |policy: i32, config: LbConfig| {
        let resource = proto::Cluster { lb_policy: policy, lb_config: Some(config), ..Default::default() };
        let problems = Cluster::compile(&resource, Strictness::Refuse).map(|_| ()).unwrap_err().0;
        problems.into_iter().map(|problem| problem.path).collect::<Vec<_>>()
    };
    let ring = |least, most| {
        LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: size(least),
            maximum_ring_size: size(most),
            ..Default::default()
        })
    };
    assert_eq!(paths(RING_HASH, ring(10, 9)), ["Cluster.ring_hash_lb_config.minimum_ring_size"]);
    assert_eq!(paths(RING_HASH, ring(10, 9 << 20)), ["Cluster.ring_hash_lb_config.maximum_ring_size"]);
    for places in [0, 1, 65_536, 5_000_013] {
        let config = LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: size(places) });
        assert_eq!(paths(MAGLEV, config), ["Cluster.maglev_lb_config.table_size"], "{places}");
    }
}

/// What these policies make of a request from 10.0.0.7.
fn hashed(policies: Vec<HashPolicy>, request: &OwnedRequest) -> Hashed {
    let table = table_of(policies).expect("honoured");
    let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    let client = Client {
        address: "10.0.0.7".parse().unwrap(),
        remote: SocketAddr::from(([10, 0, 0, 7], 40_000)),
        local: SocketAddr::from(([10, 0, 0, 1], 80)),
    };
    hash(&forward.hash, request, &client)
}

fn table_of(policies: Vec<HashPolicy>) -> Result<RouteTable, Vec<String>> {
    let action = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())),
        hash_policy: policies,
        ..Default::default()
    };
    let route = route::Route {
        r#match: Some(support::prefix("/")),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    let configuration = support::configuration(vec![support::host("any", &["*"], vec![route])]);
    let compiled = RouteTable::compile(&configuration, Strictness::Refuse);
    compiled.map(|it| it.value).map_err(|problems| problems.0.into_iter().map(|problem| problem.path).collect())
}

fn policy(specifier: PolicySpecifier) -> HashPolicy {
    HashPolicy { terminal: false, policy_specifier: Some(specifier) }
}

fn header(name: &str) -> HashPolicy {
    policy(PolicySpecifier::Header(hash_policy::Header { header_name: name.into(), ..Default::default() }))
}

fn cookie(ttl: Option<i64>) -> HashPolicy {
    policy(PolicySpecifier::Cookie(hash_policy::Cookie {
        name: "user".into(),
        ttl: ttl.map(|seconds| Duration { seconds, nanos: 900_000_000 }),
        path: "/shop".into(),
        attributes: vec![
            hash_policy::CookieAttribute { name: "SameSite".into(), value: "Strict".into() },
            hash_policy::CookieAttribute { name: "Secure".into(), value: String::new() },
        ],
    }))
}

fn parameter(name: &str) -> HashPolicy {
    policy(PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: name.into() }))
}

fn source_ip(source_ip: bool) -> HashPolicy {
    policy(PolicySpecifier::ConnectionProperties(hash_policy::ConnectionProperties { source_ip }))
}

#[test]
fn a_hash_is_taken_of_what_the_policy_names() {
    let of = |text: &str| Some(xxhash64(0, text.as_bytes()));
    let all = |text: &str| Some(xxhash64_of(text.as_bytes().chunks(1)));
    let many: Vec<(&str, &str)> = ["9", "1", "8", "2", "7", "3", "6", "4", "5", "0"].map(|it| ("x", it)).into();
    for (name, policies, asked, expected) in [
        ("a header", vec![header("X-User")], request("a", "/", &[("x-user", "jason")]), of("jason")),
        ("an empty one", vec![header("x-user")], request("a", "/", &[("x-user", "")]), of("")),
        ("one that is missing", vec![header("x-user")], request("a", "/", &[]), None),
        ("two, in no order", vec![header("x")], request("a", "/", &[("x", "b"), ("x", "a")]), all("ab")),
        ("many", vec![header("x")], request("a", "/", &many), all("0123456789")),
        ("the path", vec![header(":path")], request("a", "/p?q", &[]), of("/p?q")),
        ("the host", vec![header("host")], request("shop:80", "/", &[]), of("shop:80")),
        ("a query parameter", vec![parameter("q")], request("a", "/?p=1&q=a%20b&q=c", &[]), of("a%20b")),
        ("one without value", vec![parameter("q")], request("a", "/?q", &[]), of("")),
        ("no such parameter", vec![parameter("q")], request("a", "/?p=1", &[]), None),
        ("the client", vec![source_ip(true)], request("a", "/", &[]), of("10.0.0.7")),
        ("not the client", vec![source_ip(false)], request("a", "/", &[]), None),
        ("a cookie", vec![cookie(None)], request("a", "/", &[("cookie", "a=b; user=\"x\"; user=y")]), of("x")),
        ("in another line", vec![cookie(None)], request("a", "/", &[("cookie", "a"), ("cookie", "user=z")]), of("z")),
        ("an empty cookie", vec![cookie(None)], request("a", "/", &[("cookie", "user=")]), None),
    ] {
        assert_eq!(hashed(policies, &asked), Hashed { key: expected, cookies: vec![] }, "{name}");
    }
}

quickcheck! {
    /// Whatever a client sends as a cookie is read or passed over, as a plain reading of RFC 6265 5.2 would.
    fn any_text_may_stand_in_a_cookie(parts: Vec<String>, ends: u8) -> bool {
        let mark = ["user=", "; ", "=", "\"", ";user=\""][usize::from(ends) % 5];
        let line = parts.join(mark);
        let found = line.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim_start_matches(' ') == "user").then_some(value)
        });
        let bare = found.map(|value| match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
            Some(inner) => inner,
            None => value,
        });
        let expected = bare.filter(|value| !value.is_empty()).map(|value| xxhash64(0, value.as_bytes()));
        hashed(vec![cookie(None)], &request("a", "/", &[("cookie", &line)])).key == expected
    }
}

#[test]
fn hashes_are_joined_until_one_is_the_last() {
    let asked = request("a", "/?q=1", &[("x", "1"), ("y", "2")]);
    let key = |policies| hashed(policies, &asked).key.unwrap();
    let (one, two) = (xxhash64(0, b"1"), xxhash64(0, b"2"));
    assert_eq!(key(vec![header("x"), header("y")]), one.rotate_left(1) ^ two);
    assert_eq!(key(vec![header("none"), header("y")]), two);
    assert_eq!(key(vec![header("x"), parameter("q")]), one.rotate_left(1) ^ one);
    let last = |policy| HashPolicy { terminal: true, ..policy };
    assert_eq!(key(vec![last(header("none")), last(header("x")), header("y")]), one);
    assert_eq!(key(vec![header("x"), last(header("none")), header("y")]), one);
}

#[test]
fn a_client_without_the_cookie_is_given_one_by_its_connection() {
    let value = format!("{:016x}", xxhash64(0, b"10.0.0.7:4000010.0.0.1:80"));
    for (ttl, age) in [(0, ""), (60, "; Max-Age=60")] {
        let made = hashed(vec![cookie(Some(ttl))], &request("a", "/", &[]));
        assert_eq!(made.key, Some(xxhash64(0, value.as_bytes())));
        assert_eq!(
            made.cookies,
            [format!("user=\"{value}\"{age}; Path=/shop; SameSite=Strict; Secure; HttpOnly")],
            "{ttl}"
        );
    }
    let has = hashed(vec![cookie(Some(60))], &request("a", "/", &[("cookie", "user=me")]));
    assert_eq!(has, Hashed { key: Some(xxhash64(0, b"me")), cookies: vec![] });
}

#[test]
fn policies_that_mean_nothing_here_are_refused() {
    let at = |text: &str| vec![format!("RouteConfiguration.virtual_hosts[0].routes[0].route.hash_policy[0]{text}")];
    let state = PolicySpecifier::FilterState(hash_policy::FilterState { key: "k".into() });
    assert_eq!(table_of(vec![policy(state)]).unwrap_err(), at(".filter_state"));
    assert_eq!(table_of(vec![HashPolicy::default()]).unwrap_err(), at(""));
    assert_eq!(table_of(vec![header("")]).unwrap_err(), at(".header.header_name"));
    let split = hash_policy::Cookie { name: "a\r\nb".into(), ..Default::default() };
    assert_eq!(table_of(vec![policy(PolicySpecifier::Cookie(split))]).unwrap_err(), at(".cookie"));
}
