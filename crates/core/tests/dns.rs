//! Clusters whose endpoints are names: what is read of them, when they are asked again, and what answers make of them.
#![allow(deprecated)]

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use support::any;
use weft_core::balance::Balancer;
use weft_core::cluster::{Cluster, Discovery};
use weft_core::compile::Strictness;
use weft_core::dns::{Dns, DnsKind, Family, Heard, Resolution, ResolverOptions};
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, RefreshRate,
};
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use weft_protos::google::protobuf;

const CARES: &str = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";

fn at(address: &str, port: u32) -> core::Address {
    core::Address {
        address: Some(AddressKind::SocketAddress(core::SocketAddress {
            address: address.into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    }
}

fn endpoint(name: &str, hostname: &str) -> eds::LbEndpoint {
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(at(name, 80)),
            hostname: hostname.into(),
            ..Default::default()
        })),
        load_balancing_weight: Some(protobuf::UInt32Value { value: 3 }),
        health_status: core::HealthStatus::Degraded.into(),
        ..Default::default()
    }
}

/// Each name in a locality of its own, with its index as priority.
fn cluster(kind: DiscoveryType, names: &[&str]) -> proto::Cluster {
    let locality = |(priority, name): (usize, &&str)| eds::LocalityLbEndpoints {
        priority: priority as u32,
        lb_endpoints: vec![endpoint(name, "")],
        ..Default::default()
    };
    proto::Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        load_assignment: Some(eds::ClusterLoadAssignment {
            endpoints: names.iter().enumerate().map(locality).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn compile(cluster: &proto::Cluster) -> Cluster {
    Cluster::compile(cluster, Strictness::Refuse).expect("honoured").value
}

fn dns(cluster: &proto::Cluster) -> Arc<Dns> {
    match compile(cluster).discovery {
        Discovery::Dns(dns) => dns,
        other => panic!("{other:?}"),
    }
}

fn refusals(cluster: &proto::Cluster) -> Vec<String> {
    let problems = Cluster::compile(cluster, Strictness::Refuse).expect_err("refused").0;
    problems.into_iter().map(|problem| problem.path).collect()
}

fn ms(ms: i32) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds: 0, nanos: ms * 1_000_000 })
}

fn ips(addresses: &[&str]) -> Option<Vec<IpAddr>> {
    Some(addresses.iter().map(|address| address.parse().unwrap()).collect())
}

fn shown(resolution: &Resolution) -> Vec<String> {
    let localities = resolution.assignment().localities.iter();
    localities.flat_map(|locality| &locality.endpoints).map(|endpoint| endpoint.address.to_string()).collect()
}

const CHANGED: Heard = Heard { succeeded: true, changed: true };
const SAME: Heard = Heard { succeeded: true, changed: false };

#[test]
fn defaults_are_envoys() {
    let dns = dns(&cluster(DiscoveryType::StrictDns, &["a.test"]));
    assert_eq!((dns.kind, dns.family, dns.waits), (DnsKind::Strict, Family::V6Preferred, true));
    assert_eq!(dns.resolver, ResolverOptions::default());
    assert_eq!(dns.pause(Some(Duration::from_secs(1)), 7), Duration::from_secs(5));
    assert_eq!(dns.pause_after_failure(3, 7), Duration::from_secs(5));
}

#[test]
fn the_newest_place_that_names_resolvers_counts() {
    let mut cluster = cluster(DiscoveryType::LogicalDns, &["a.test"]);
    cluster.dns_resolvers = vec![at("10.0.0.1", 0)];
    cluster.use_tcp_for_dns_lookups = true;
    let old = dns(&cluster).resolver.clone();
    assert_eq!((&*old.servers, old.tcp), (&["10.0.0.1:53".parse().unwrap()][..], true));
    let options = core::DnsResolverOptions { no_default_search_domain: true, ..Default::default() };
    cluster.dns_resolution_config =
        Some(core::DnsResolutionConfig { resolvers: vec![at("::1", 54)], dns_resolver_options: Some(options) });
    let newer = dns(&cluster).resolver.clone();
    assert_eq!((&*newer.servers, newer.tcp, newer.search), (&["[::1]:54".parse().unwrap()][..], false, false));
    let cares = CaresDnsResolverConfig {
        resolvers: vec![at("10.0.0.3", 55)],
        query_timeout_seconds: Some(protobuf::UInt64Value { value: 2 }),
        query_tries: Some(protobuf::UInt32Value { value: 7 }),
        rotate_nameservers: true,
        use_resolvers_as_fallback: true,
        ..Default::default()
    };
    cluster.typed_dns_resolver_config =
        Some(core::TypedExtensionConfig { name: "cares".into(), typed_config: Some(any(CARES, &cares)) });
    let newest = dns(&cluster).resolver.clone();
    let expected = ResolverOptions {
        servers: ["10.0.0.3:55".parse().unwrap()].into(),
        as_fallback: true,
        rotate: true,
        timeout: Duration::from_secs(2),
        tries: 7,
        ..ResolverOptions::default()
    };
    assert_eq!(newest, expected);
}

#[test]
fn pauses_follow_the_answer_or_double_with_each_failure() {
    let mut cluster = cluster(DiscoveryType::StrictDns, &["a.test"]);
    cluster.respect_dns_ttl = true;
    cluster.dns_jitter = ms(10);
    cluster.dns_failure_refresh_rate = Some(RefreshRate { base_interval: ms(100), max_interval: ms(250) });
    let dns = dns(&cluster);
    assert_eq!(dns.pause(Some(Duration::from_secs(60)), 13), Duration::from_millis(60_003));
    assert_eq!(dns.pause(Some(Duration::ZERO), 10), Duration::from_secs(5));
    assert_eq!(dns.pause(None, 10), Duration::from_secs(5));
    let longest = |failures| (0..50).map(|it| dns.pause_after_failure(failures, it * 7_919_317)).max().unwrap();
    for (failures, most) in [(1, 100), (2, 200), (3, 250), (u32::MAX, 250)] {
        let most = Duration::from_millis(most);
        assert!(longest(failures) < most && longest(failures) > most / 2, "{failures}: {:?}", longest(failures));
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let strict = || cluster(DiscoveryType::StrictDns, &["a.test"]);
    let logical = |names: &[&str]| cluster(DiscoveryType::LogicalDns, names);
    let failing = |base, max| proto::Cluster {
        dns_failure_refresh_rate: Some(RefreshRate { base_interval: base, max_interval: max }),
        ..strict()
    };
    let all = DnsLookupFamily::All.into();
    const ADDRESS: &str =
        "Cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address";
    let long = format!("{0}.{0}.{0}.{0}.{0}", "a".repeat(60));
    for (cluster, path) in [
        (logical(&["a.test", "b.test"]), "Cluster.load_assignment"),
        (logical(&[]), "Cluster.load_assignment"),
        (proto::Cluster { dns_lookup_family: all, ..logical(&["a.test"]) }, "Cluster.dns_lookup_family"),
        (proto::Cluster { dns_lookup_family: 9, ..strict() }, "Cluster.dns_lookup_family"),
        (proto::Cluster { dns_refresh_rate: ms(1), ..strict() }, "Cluster.dns_refresh_rate"),
        (failing(None, ms(1)), "Cluster.dns_failure_refresh_rate.base_interval"),
        (failing(ms(2), ms(1)), "Cluster.dns_failure_refresh_rate.max_interval"),
        (
            proto::Cluster { dns_resolvers: vec![at("dns.test", 53)], ..strict() },
            "Cluster.dns_resolvers[0].socket_address.address",
        ),
        (cluster(DiscoveryType::StrictDns, &["a..test"]), ADDRESS),
        (cluster(DiscoveryType::StrictDns, &[""]), ADDRESS),
        (cluster(DiscoveryType::StrictDns, &[&long]), ADDRESS),
        (cluster(DiscoveryType::StrictDns, &["a b"]), ADDRESS),
    ] {
        assert_eq!(refusals(&cluster), [path]);
    }
}

#[test]
fn every_address_is_an_endpoint_like_the_one_it_was_found_by() {
    let dns = dns(&cluster(DiscoveryType::StrictDns, &["a.test", "10.0.0.9"]));
    let mut resolution = Resolution::new(Arc::clone(&dns), None);
    assert_eq!(dns.names().into_iter().map(|name| &**name).collect::<Vec<_>>(), ["a.test"]);
    assert!(!resolution.is_warm());
    assert_eq!(shown(&resolution), ["10.0.0.9:80"]);
    let name = "a.test".into();
    assert_eq!(resolution.hear(&name, ips(&["10.0.0.2", "10.0.0.1", "10.0.0.2"])), CHANGED);
    assert_eq!(shown(&resolution), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]);
    let localities = &resolution.assignment().localities;
    assert_eq!(localities.iter().map(|locality| locality.priority).collect::<Vec<_>>(), [0, 1]);
    for endpoint in &localities[0].endpoints {
        assert_eq!((&*endpoint.hostname, endpoint.weight), ("a.test", 3));
        assert_eq!(endpoint.health, weft_core::endpoint::Health::Degraded);
    }
    // Turned around, and then fewer.
    assert_eq!(resolution.hear(&name, ips(&["10.0.0.1", "10.0.0.2"])), SAME);
    assert_eq!(resolution.hear(&name, ips(&["10.0.0.2"])), CHANGED);
    assert_eq!(resolution.hear(&name, None), Heard { succeeded: false, changed: false });
    assert_eq!(shown(&resolution), ["10.0.0.2:80", "10.0.0.9:80"]);
    assert_eq!(resolution.hear(&name, ips(&[])), CHANGED);
    assert_eq!(shown(&resolution), ["10.0.0.9:80"]);
}

#[test]
fn a_hostname_that_was_given_stays() {
    let mut cluster = cluster(DiscoveryType::LogicalDns, &["a.test"]);
    cluster.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints = vec![endpoint("a.test", "other.test")];
    let mut resolution = Resolution::new(dns(&cluster), None);
    resolution.hear(&"a.test".into(), ips(&["10.0.0.1"]));
    assert_eq!(&*resolution.assignment().localities[0].endpoints[0].hostname, "other.test");
}

#[test]
fn a_cluster_is_warm_when_it_has_an_answer_or_nothing_is_left_to_hear() {
    let names = || dns(&cluster(DiscoveryType::StrictDns, &["a.test", "b.test"]));
    let failure = Heard { succeeded: false, changed: false };
    let mut resolution = Resolution::new(names(), None);
    assert_eq!(resolution.hear(&"a.test".into(), None), failure);
    assert!(!resolution.is_warm());
    assert_eq!(resolution.hear(&"b.test".into(), None), Heard { changed: true, ..failure });
    assert!(resolution.is_warm());
    let mut resolution = Resolution::new(names(), None);
    assert_eq!(resolution.hear(&"a.test".into(), ips(&["10.0.0.1"])), CHANGED);
    assert!(resolution.is_warm());
    // What is known outlives a change, and makes nothing warm.
    let mut next = Resolution::new(dns(&cluster(DiscoveryType::StrictDns, &["a.test", "c.test"])), Some(&resolution));
    assert_eq!((shown(&next), next.is_warm()), (vec!["10.0.0.1:80".to_owned()], false));
    next.hear(&"a.test".into(), None);
    assert!(next.is_warm());
    let addresses_only = Resolution::new(dns(&cluster(DiscoveryType::StrictDns, &["10.0.0.1"])), None);
    assert!(addresses_only.is_warm());
}

#[test]
fn a_logical_endpoint_is_the_same_at_every_address() {
    let cluster = compile(&cluster(DiscoveryType::LogicalDns, &["a.test"]));
    let Discovery::Dns(dns) = &cluster.discovery else { panic!("found by DNS") };
    let mut resolution = Resolution::new(Arc::clone(dns), None);
    let name = "a.test".into();
    assert_eq!(resolution.hear(&name, ips(&["10.0.0.2", "10.0.0.1"])), CHANGED);
    assert_eq!(shown(&resolution), ["10.0.0.2:80"]);
    let first = Balancer::new(&cluster, resolution.assignment(), None, 0);
    // An answer without addresses is a failure.
    assert_eq!(resolution.hear(&name, ips(&[])), Heard { succeeded: false, changed: false });
    assert_eq!(resolution.hear(&name, ips(&["10.0.0.1", "10.0.0.2"])), CHANGED);
    let second = Balancer::new(&cluster, resolution.assignment(), Some(&first), 0);
    assert_eq!(second.hosts()[0].endpoint.address.to_string(), "10.0.0.1:80");
    assert!(Arc::ptr_eq(&first.hosts()[0].counters, &second.hosts()[0].counters));
}
