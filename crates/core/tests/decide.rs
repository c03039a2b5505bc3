//! A whole decision: manager, routes, clusters and fault together.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::*;
use weft_core::compile::Strictness;
use weft_core::decide::{Decision, Outcome, decide};
use weft_core::fault::FaultOutcome;
use weft_core::http_manager::HttpManager;
use weft_core::listener::{Listener, NetworkFilter};
use weft_core::plan::{Plan, Resource};
use weft_core::respond::{Cause, ResponseFlag};
use weft_core::route::RouteTable;
use weft_core::trace::Silent;
use weft_protos::envoy::config::cluster::v3::Cluster;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::{Address, SocketAddress};
use weft_protos::envoy::config::listener::v3 as listener;
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::route_action::ClusterSpecifier;
use weft_protos::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use weft_protos::envoy::extensions::filters::common::fault::v3::FaultDelay;
use weft_protos::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use weft_protos::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};
use weft_protos::envoy::extensions::filters::http::router::v3::Router;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use weft_protos::envoy::r#type::v3::FractionalPercent;
use weft_protos::google::protobuf::{Any, Duration as ProtoDuration, UInt32Value};
use weft_protos::{Message as _, type_url};

const FAULT: &str = "envoy.filters.http.fault";

fn filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn manager(fault: &HttpFault) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
            route_config_name: "9080".into(),
            ..Default::default()
        })),
        http_filters: vec![
            filter(FAULT, any("envoy.extensions.filters.http.fault.v3.HTTPFault", fault)),
            filter(
                "envoy.filters.http.router",
                any("envoy.extensions.filters.http.router.v3.Router", &Router::default()),
            ),
        ],
        ..Default::default()
    }
}

/// The manager as it comes out of a listener: there is no other way to one.
fn compiled(manager: &hcm::HttpConnectionManager) -> Arc<HttpManager> {
    let address = SocketAddress {
        address: "0.0.0.0".into(),
        port_specifier: Some(weft_protos::envoy::config::core::v3::socket_address::PortSpecifier::PortValue(9080)),
        ..Default::default()
    };
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let resource = listener::Listener {
        name: "l".into(),
        address: Some(Address { address: Some(AddressKind::SocketAddress(address)) }),
        filter_chains: vec![listener::FilterChain {
            filters: vec![listener::Filter {
                name: "http".into(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(any(name, manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let listener = Listener::compile(&resource, Strictness::Refuse).expect("honoured").value;
    match &listener.filter_chains[0].filter {
        NetworkFilter::Http(manager) => Arc::clone(manager),
        NetworkFilter::Tcp(_) | NetworkFilter::Rpc(_) => unreachable!("the filter is HTTP"),
    }
}

fn plan(configuration: &proto::RouteConfiguration, clusters: &[&str]) -> Plan {
    let mut plan = Plan::default();
    plan.insert(Resource::Routes(Arc::new(
        RouteTable::compile(configuration, Strictness::Refuse).expect("honoured").value,
    )));
    for name in clusters {
        let cluster = Cluster { name: (*name).into(), ..Default::default() };
        let compiled = Resource::compile(type_url::CLUSTER, &cluster.encode_to_vec(), Strictness::Refuse);
        plan.insert(compiled.expect("honoured").value);
    }
    plan
}

fn abort(status: u32, percent: u32) -> HttpFault {
    HttpFault {
        abort: Some(FaultAbort {
            percentage: Some(FractionalPercent { numerator: percent, denominator: 0 }),
            error_type: Some(ErrorType::HttpStatus(status)),
        }),
        ..Default::default()
    }
}

fn fault_any(fault: &HttpFault) -> Any {
    any("envoy.extensions.filters.http.fault.v3.HTTPFault", fault)
}

fn ask<'p>(plan: &'p Plan, manager: &'p HttpManager, die: f64, headers: &[(&str, &str)]) -> Decision<'p> {
    decide(plan, manager, &request("reviews", "/x", headers), &mut Fixed(die), &mut Silent)
}

#[test]
fn what_cannot_be_routed_is_answered_as_envoy_answers_it() {
    let manager = compiled(&manager(&HttpFault::default()));
    let mut missing = to("gone", prefix("/x"));
    if let Some(proto::route::Action::Route(action)) = &mut missing.action {
        action.cluster_not_found_response_code = 1;
    }
    let cases = [
        ("no table", Plan::default(), Cause::RouteNotFound, 404, ResponseFlag::NoRouteFound),
        (
            "no virtual host",
            plan(&configuration(vec![host("h", &["other"], vec![])]), &[]),
            Cause::RouteNotFound,
            404,
            ResponseFlag::NoRouteFound,
        ),
        (
            "no route",
            plan(&configuration(vec![host("h", &["*"], vec![to("c", prefix("/y"))])]), &["c"]),
            Cause::RouteNotFound,
            404,
            ResponseFlag::NoRouteFound,
        ),
        (
            "no cluster",
            plan(&configuration(vec![host("h", &["*"], vec![to("c", prefix("/"))])]), &[]),
            Cause::ClusterNotFound,
            503,
            ResponseFlag::NoClusterFound,
        ),
        (
            "no cluster, another status",
            plan(&configuration(vec![host("h", &["*"], vec![missing])]), &[]),
            Cause::ClusterNotFound,
            404,
            ResponseFlag::NoClusterFound,
        ),
    ];
    for (name, plan, cause, status, flag) in cases {
        match ask(&plan, &manager, 0.0, &[]).outcome {
            Outcome::Refuse { reply, .. } => {
                assert_eq!((reply.cause, reply.status, reply.flag), (cause, status, Some(flag)), "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Two destinations of equal weight; the first has a fault and edits of its own.
fn two_destinations() -> proto::RouteConfiguration {
    let destination = |name: &str, fault: Option<HttpFault>| ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value: 1 }),
        request_headers_to_add: vec![add("x-level", name, 0)],
        typed_per_filter_config: fault.iter().map(|fault| (FAULT.to_owned(), fault_any(fault))).collect(),
        ..Default::default()
    };
    let route = proto::Route {
        r#match: Some(prefix("/")),
        action: Some(proto::route::Action::Route(proto::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(proto::WeightedCluster {
                clusters: vec![destination("a", Some(abort(418, 100))), destination("b", None)],
                ..Default::default()
            })),
            ..Default::default()
        })),
        request_headers_to_add: vec![add("x-level", "route", 0)],
        typed_per_filter_config: [(FAULT.to_owned(), fault_any(&abort(500, 100)))].into(),
        ..Default::default()
    };
    let mut virtual_host = host("h", &["*"], vec![route]);
    virtual_host.request_headers_to_add = vec![add("x-level", "host", 0)];
    let mut configuration = configuration(vec![virtual_host]);
    configuration.request_headers_to_add = vec![add("x-level", "table", 0)];
    configuration
}

#[test]
fn the_most_specific_fault_applies() {
    let plan = plan(&two_destinations(), &["a", "b"]);
    let manager = compiled(&manager(&abort(503, 100)));
    let status = |die| ask(&plan, &manager, die, &[]).strike(&mut Fixed(0.0)).abort;
    assert_eq!(status(0.1), Some(418), "of the weighted cluster");
    assert_eq!(status(0.9), Some(500), "of the route");

    let mut plain = configuration(vec![host("h", &["*"], vec![to("a", prefix("/"))])]);
    let bare = self::plan(&plain, &["a"]);
    assert_eq!(ask(&bare, &manager, 0.0, &[]).strike(&mut Fixed(0.0)).abort, Some(503), "of the filter");

    let off = proto::FilterConfig { disabled: true, ..Default::default() };
    plain.virtual_hosts[0].typed_per_filter_config =
        [(FAULT.to_owned(), any("envoy.config.route.v3.FilterConfig", &off))].into();
    let off = self::plan(&plain, &["a"]);
    assert_eq!(ask(&off, &manager, 0.0, &[]).strike(&mut Fixed(0.0)), FaultOutcome::default(), "turned off");
}

#[test]
fn without_the_fault_filter_no_route_can_inject_faults() {
    let plan = plan(&two_destinations(), &["a", "b"]);
    let mut without = manager(&HttpFault::default());
    without.http_filters.remove(0);
    assert!(ask(&plan, &compiled(&without), 0.1, &[]).fault.is_none());
}

#[test]
fn faults_strike_their_share_and_only_under_their_conditions() {
    let mut fault = abort(503, 30);
    fault.delay = Some(FaultDelay {
        percentage: Some(FractionalPercent { numerator: 100_000, denominator: 2 }),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(ProtoDuration { seconds: 7, nanos: 0 })),
    });
    fault.upstream_cluster = "a".into();
    fault.headers = vec![proto::HeaderMatcher { name: "x-break".into(), ..Default::default() }];
    let manager = compiled(&manager(&fault));
    let plan = plan(
        &configuration(vec![
            host("h", &["reviews"], vec![to("a", prefix("/"))]),
            host("i", &["other"], vec![to("b", prefix("/"))]),
        ]),
        &["a", "b"],
    );
    let decision = ask(&plan, &manager, 0.0, &[("x-break", "")]);
    let delay = Some(Duration::from_secs(7));
    for (die, expected) in [
        (0.0, FaultOutcome { delay, abort: Some(503) }),
        (0.099, FaultOutcome { delay, abort: Some(503) }),
        (0.1, FaultOutcome { delay: None, abort: Some(503) }),
        (0.299, FaultOutcome { delay: None, abort: Some(503) }),
        (0.301, FaultOutcome::default()),
    ] {
        assert_eq!(decision.strike(&mut Fixed(die)), expected, "{die}");
    }
    assert!(ask(&plan, &manager, 0.0, &[]).fault.is_none(), "the header is missing");
    let other = request("other", "/", &[("x-break", "")]);
    assert!(decide(&plan, &manager, &other, &mut Fixed(0.0), &mut Silent).fault.is_none(), "another cluster");
}

#[test]
fn edits_are_applied_from_the_most_specific_level_outwards() {
    let manager = compiled(&manager(&HttpFault::default()));
    let levels = |configuration: &proto::RouteConfiguration, die| {
        let plan = plan(configuration, &["a", "b"]);
        let mut headers = HeaderList::default();
        for edits in ask(&plan, &manager, die, &[]).request_edits() {
            edits.apply(&mut headers, &OnlyProtocol);
        }
        headers.0.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
    };
    let mut configuration = two_destinations();
    assert_eq!(levels(&configuration, 0.1), ["a", "route", "host", "table"]);
    assert_eq!(levels(&configuration, 0.9), ["b", "route", "host", "table"]);
    configuration.most_specific_header_mutations_wins = true;
    assert_eq!(levels(&configuration, 0.1), ["table", "host", "route", "a"]);
}
