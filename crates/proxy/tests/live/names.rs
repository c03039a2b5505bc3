//! Clusters whose endpoints are names: STRICT_DNS and LOGICAL_DNS.
#![allow(deprecated)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::endpoint::v3 as endpoint;
use weft_protos::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use weft_protos::google::protobuf::{BoolValue, UInt64Value};
use weft_protos::type_url;

use crate::kit::mesh::expect_passed;
use crate::kit::names::{Names, Record};
use crate::kit::peer::ok;
use crate::kit::resources::{CLUSTER, any, at, number, published, seconds, to};
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

const CARES: &str = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig";

/// An endpoint that is a name.
fn named(name: &str, port: u16) -> endpoint::LbEndpoint {
    let socket = core::SocketAddress {
        address: name.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(core::Address { address: Some(core::address::Address::SocketAddress(socket)) }),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A cluster of these endpoints, asked of *names* every 20 ms.
fn dns_cluster(kind: DiscoveryType, names: &Names, endpoints: Vec<endpoint::LbEndpoint>) -> cluster::Cluster {
    let resolver = CaresDnsResolverConfig {
        resolvers: vec![at(names.address)],
        query_timeout_seconds: Some(UInt64Value { value: 1 }),
        query_tries: number(1),
        ..Default::default()
    };
    cluster::Cluster {
        name: CLUSTER.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: CLUSTER.into(),
            endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: endpoints, ..Default::default() }],
            ..Default::default()
        }),
        dns_refresh_rate: Some(seconds(0.02)),
        dns_lookup_family: cluster::cluster::DnsLookupFamily::V4Only as i32,
        typed_dns_resolver_config: Some(core::TypedExtensionConfig {
            name: "envoy.network.dns_resolver.cares".into(),
            typed_config: Some(any(CARES, &resolver)),
        }),
        ..Default::default()
    }
}

/// Upstreams at one port of several loopback addresses.
fn upstreams<const N: usize>() -> [Upstream; N] {
    let first = Upstream::new();
    let port = first.address().port();
    let more = (2..).map(|last| Upstream::at(SocketAddr::from(([127, 0, 0, last], port))));
    let all: Vec<_> = std::iter::once(first).chain(more).take(N).collect();
    all.try_into().unwrap_or_else(|_| unreachable!("as many were taken"))
}

/// Makes it say its own address.
fn telling(upstream: Upstream) -> SocketAddr {
    let address = upstream.address();
    upstream.answer_all(move |_| ok(&address.to_string()))
}

/// Upstreams at one port, each saying its address.
fn same_port<const N: usize>() -> [SocketAddr; N] {
    upstreams().map(telling)
}

fn use_cluster(setup: &mut Setup, cluster: cluster::Cluster) {
    setup.cluster = cluster;
}

fn addresses(mesh: &Mesh) -> Vec<String> {
    mesh.endpoints().iter().map(|it| it["address"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_endpoints(mesh: &Mesh, expected: &[SocketAddr]) {
    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    until("the endpoints are those of the answer", || (addresses(mesh) == expected).then_some(()));
}

#[test]
fn every_address_of_a_name_is_an_endpoint_and_answers_are_followed() {
    let names = Names::serve();
    let [a, b, c] = same_port();
    names.point("api.test", &[b, a]);
    let mesh = Mesh::start(&[], |setup| {
        let mut by_name = named("api.test", a.port());
        by_name.load_balancing_weight = number(3);
        by_name.health_status = core::HealthStatus::Healthy as i32;
        use_cluster(setup, dns_cluster(DiscoveryType::StrictDns, &names, vec![by_name]));
    });
    wait_endpoints(&mesh, &[a, b]);
    for endpoint in mesh.endpoints() {
        assert_eq!((&endpoint["weight"], &endpoint["hostname"]), (&3.into(), &"api.test".into()), "{endpoint}");
    }
    let mut client = mesh.client();
    let said: std::collections::BTreeSet<_> = (0..4).map(|_| client.get("/").text()).collect();
    assert_eq!(said, [a, b].map(|it| it.to_string()).into());
    // One goes, one comes.
    names.point("api.test", &[c, b]);
    wait_endpoints(&mesh, &[b, c]);
    let said: std::collections::BTreeSet<_> = (0..4).map(|_| client.get("/").text()).collect();
    assert_eq!(said, [b, c].map(|it| it.to_string()).into());
    // "There is none" is an answer.
    names.point("api.test", &[]);
    wait_endpoints(&mesh, &[]);
    assert_eq!(client.get("/none").status(), 503);
    mesh.expect_record("/none", 503, "UH", "no_healthy_upstream");
}

#[test]
fn names_and_addresses_of_several_priorities_are_kept_apart() {
    let names = Names::serve();
    let [first, second] = same_port();
    names.point("first.test", &[first]);
    let mesh = Mesh::start(&[], |setup| {
        let mut cluster = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("first.test", first.port())]);
        let localities = &mut cluster.load_assignment.as_mut().unwrap().endpoints;
        // An address needs no lookup.
        localities.push(endpoint::LocalityLbEndpoints {
            priority: 1,
            lb_endpoints: vec![named(&second.ip().to_string(), second.port())],
            ..Default::default()
        });
        use_cluster(setup, cluster);
    });
    wait_endpoints(&mesh, &[first, second]);
    let mut client = mesh.client();
    assert_eq!(client.get("/").text(), first.to_string());
    names.point("first.test", &[]);
    wait_endpoints(&mesh, &[second]);
    assert_eq!(client.get("/").text(), second.to_string());
    assert_eq!(names.asked(&second.ip().to_string()), 0);
}

#[test]
fn what_was_known_stays_in_force_while_the_server_fails() {
    let names = Names::serve();
    let [a, b] = same_port();
    names.point("api.test", &[a]);
    let mesh = Mesh::start(&[], |setup| {
        let cluster = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("api.test", a.port())]);
        use_cluster(setup, cluster);
    });
    wait_endpoints(&mesh, &[a]);
    let count = |name: &str| {
        mesh.metric(&format!("envoy_cluster_update_{name}"), &[&format!("envoy_cluster_name=\"{CLUSTER}\"")])
    };
    until("answers that change nothing are counted", || (count("no_rebuild") >= 2.0).then_some(()));
    assert_eq!(count("failure"), 0.0);
    names.say("api.test", Record::Failure);
    until("failures are counted", || (count("failure") >= 2.0).then_some(()));
    assert_eq!(addresses(&mesh), [a.to_string()]);
    assert_eq!(mesh.client().get("/").text(), a.to_string());
    // Said once, however often it is tried.
    assert_eq!(mesh.log().matches("api.test of cluster").count(), 1, "{}", mesh.log());
    names.point("api.test", &[b]);
    wait_endpoints(&mesh, &[b]);
    assert!(count("attempt") >= count("success") + count("failure"));
    // Each question has a port of its own.
    assert!(names.ports() > 1);
}

#[test]
fn a_logical_cluster_has_one_endpoint_and_its_connections_stay() {
    let names = Names::serve();
    let [old, b, c] = upstreams();
    let (a, b, c) = (old.address(), b.address(), telling(c));
    names.point("api.test", &[a, b]);
    let mesh = Mesh::start(&[], |setup| {
        let cluster = dns_cluster(DiscoveryType::LogicalDns, &names, vec![named("api.test", a.port())]);
        use_cluster(setup, cluster);
    });
    wait_endpoints(&mesh, &[a]);
    let mut client = mesh.client();
    let ask = |client: &mut Peer, path: &str| client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
    ask(&mut client, "/first");
    let mut connection = old.accept();
    connection.message();
    connection.send(ok("old"));
    assert_eq!(client.message().text(), "old");
    names.point("api.test", &[c, b]);
    wait_endpoints(&mesh, &[c]);
    // The connection that is there is used on, and the record tells where it leads.
    ask(&mut client, "/kept");
    connection.message();
    // While it is in use a new one is made, to where the name points now.
    assert_eq!(mesh.client().get("/new").text(), c.to_string());
    connection.send(ok("old"));
    assert_eq!(client.message().text(), "old");
    assert_eq!(mesh.record("/kept")["upstream_host"], a.to_string());
    assert_eq!(mesh.record("/new")["upstream_host"], c.to_string());
    // An answer without addresses changes nothing here.
    names.point("api.test", &[]);
    let failures = || mesh.metric("envoy_cluster_update_failure", &[]);
    until("it counts as a failure", || (failures() >= 2.0).then_some(()));
    assert_eq!(addresses(&mesh), [c.to_string()]);
}

#[test]
fn a_cluster_warms_until_something_is_heard_and_no_longer() {
    let names = Names::serve();
    let [a] = same_port();
    names.say("api.test", Record::Silence);
    let mut mesh = Mesh::start(&[Upstream::saying("old")], |_| {});
    let mut cluster = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("api.test", a.port())]);
    cluster.name = "new".into();
    mesh.change(|setup| {
        setup.more.push(published(type_url::CLUSTER, "new", &cluster));
        setup.route(vec![to("new", "/new"), to(CLUSTER, "/")]);
    });
    until("the server was asked", || (names.asked("api.test") > 0).then_some(()));
    let warming = &mesh.dump("dynamic_warming_clusters")[0];
    assert_eq!(
        (&warming["cluster"]["name"], &warming["reason"]),
        (&"new".into(), &"api.test is not resolved yet".into())
    );
    names.say("api.test", Record::Failure);
    // The question that nobody answers ends by its timeout; a failure is enough then.
    until("the cluster works without endpoints", || mesh.dump("dynamic_warming_clusters").is_empty().then_some(()));
    let mut client = mesh.client();
    assert_eq!(client.get("/new/a").status(), 503);
    mesh.expect_record("/new/a", 503, "UH", "no_healthy_upstream");
    names.point("api.test", &[a]);
    until("the endpoint is used", || (client.get("/new/b").text() == a.to_string()).then_some(()));
}

#[test]
fn a_cluster_that_need_not_wait_works_at_once_and_a_change_keeps_what_is_known() {
    let names = Names::serve();
    let [a] = same_port();
    names.say("api.test", Record::Silence);
    let mut mesh = Mesh::start(&[], |setup| {
        let mut cluster = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("api.test", a.port())]);
        cluster.wait_for_warm_on_init = Some(BoolValue { value: false });
        use_cluster(setup, cluster);
    });
    assert!(addresses(&mesh).is_empty());
    names.point("api.test", &[a]);
    wait_endpoints(&mesh, &[a]);
    // Other ways to ask: nothing is heard that way, and what was known stays.
    names.say("api.test", Record::Silence);
    let asked = names.asked("api.test");
    mesh.change(|setup| setup.cluster.dns_refresh_rate = Some(seconds(0.03)));
    until("it is asked anew", || (names.asked("api.test") > asked).then_some(()));
    assert_eq!(addresses(&mesh), [a.to_string()]);
    assert_eq!(mesh.client().get("/").text(), a.to_string());
}

#[test]
fn an_answer_is_kept_as_long_as_it_says() {
    let names = Names::serve();
    let [a, b] = same_port();
    names.say("api.test", Record::Addresses { ttl: 1, addresses: vec![Ipv4Addr::LOCALHOST] });
    let began = Instant::now();
    let mesh = Mesh::start(&[], |setup| {
        let mut cluster = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("api.test", a.port())]);
        cluster.respect_dns_ttl = true;
        use_cluster(setup, cluster);
    });
    wait_endpoints(&mesh, &[a]);
    names.say("api.test", Record::Addresses { ttl: 1000, addresses: vec![Ipv4Addr::new(127, 0, 0, 2)] });
    wait_endpoints(&mesh, &[b]);
    expect_passed(began, Duration::from_secs(1));
    // Once a second, and not each 20 ms.
    assert!(names.asked("api.test") as f64 <= began.elapsed().as_secs_f64() + 2.0);
}

#[test]
fn what_a_dns_cluster_cannot_have_is_refused_by_name() {
    let names = Names::serve();
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |_| {});
    let two = vec![named("a.test", 80), named("b.test", 80)];
    let mut all = dns_cluster(DiscoveryType::LogicalDns, &names, vec![named("a.test", 80)]);
    all.dns_lookup_family = cluster::cluster::DnsLookupFamily::All as i32;
    let mut often = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("a.test", 80)]);
    often.dns_refresh_rate = Some(seconds(0.001));
    let mut other = dns_cluster(DiscoveryType::StrictDns, &names, vec![named("a.test", 80)]);
    other.typed_dns_resolver_config.as_mut().unwrap().typed_config =
        Some(any("envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig", &()));
    let cases = [
        ("two", dns_cluster(DiscoveryType::LogicalDns, &names, two), "Cluster.load_assignment: "),
        ("all", all, "Cluster.dns_lookup_family: "),
        ("often", often, "Cluster.dns_refresh_rate: "),
        ("other", other, "Cluster.typed_dns_resolver_config.typed_config"),
        (
            "no name",
            dns_cluster(DiscoveryType::StrictDns, &names, vec![named("a..test", 80)]),
            "Cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: ",
        ),
    ];
    mesh.change(|setup| {
        for (name, message, _) in &cases {
            let message = cluster::Cluster { name: (*name).into(), ..message.clone() };
            setup.more.push(published(type_url::CLUSTER, name, &message));
        }
    });
    for (name, _, field) in cases {
        let is_about = |event: &weft_xds::server::Event| {
            matches!(event, weft_xds::server::Event::Refused { name: refused, message, .. }
                if refused == name && message.contains(field))
        };
        mesh.wait_event(name, is_about);
    }
    assert_eq!(mesh.client().get("/").text(), "hello");
}
