use super::*;
use weft_protos::Message;
use weft_protos::envoy::config::cluster::v3 as cluster;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::endpoint::v3 as endpoint;
use weft_protos::envoy::config::listener::v3 as listener;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::extensions::filters::http::router::v3::Router;
use weft_protos::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as tls_proto;
use weft_protos::google::protobuf::Any;

fn any(type_name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec().into() }
}

fn resource(name: &str, version: &str, message: &impl Message) -> Resource {
    Resource { name: name.into(), aliases: Vec::new(), version: version.into(), body: message.encode_to_vec().into() }
}

fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

/// A socket address on loopback; *address* is a port.
fn at(port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// A cluster whose endpoints come from EDS under the name *endpoints*.
fn eds_cluster(name: &str, endpoints: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.into(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: endpoints.into(),
        }),
        ..Default::default()
    }
}

fn endpoints(name: &str, ports: &[u16]) -> endpoint::ClusterLoadAssignment {
    let lb_endpoints = ports.iter().map(|&port| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(at(port)),
            ..Default::default()
        })),
        ..Default::default()
    });
    endpoint::ClusterLoadAssignment {
        cluster_name: name.into(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: lb_endpoints.collect(), ..Default::default() }],
        ..Default::default()
    }
}

fn routes(name: &str) -> route::RouteConfiguration {
    route::RouteConfiguration { name: name.into(), ..Default::default() }
}

/// A listener on *port* whose routes come from RDS under the name *routes*.
fn rds_listener(name: &str, port: u16, routes: &str) -> listener::Listener {
    let manager = http::HttpConnectionManager {
        stat_prefix: "test".into(),
        route_specifier: Some(http::http_connection_manager::RouteSpecifier::Rds(http::Rds {
            config_source: Some(ads()),
            route_config_name: routes.into(),
        })),
        http_filters: vec![http::HttpFilter {
            name: "envoy.filters.http.router".into(),
            config_type: Some(http::http_filter::ConfigType::TypedConfig(any(
                "envoy.extensions.filters.http.router.v3.Router",
                &Router::default(),
            ))),
            ..Default::default()
        }],
        ..Default::default()
    };
    listener::Listener {
        name: name.into(),
        address: Some(at(port)),
        filter_chains: vec![listener::FilterChain {
            filters: vec![listener::Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(any(
                    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    &manager,
                ))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Two servers of secrets.
const AGENT: &str = "sds-grpc";
const OTHER: &str = "other-sds";

/// Holdings with the generation that they led to.
struct Proxy {
    holdings: Holdings,
    active: Active,
}

impl Proxy {
    fn new() -> Proxy {
        Proxy { holdings: Holdings::new(7, [AGENT, OTHER].map(str::to_owned)), active: Active::default() }
    }

    /// Take a response of the control plane in and settle; the refused names.
    fn receive(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> Vec<String> {
        let is_first = self.holdings.note_arrival(type_url);
        self.receive_from(None, type_url, resources, removed, is_first)
    }

    /// Take in what a server of secrets sends.
    fn secrets(&mut self, server: &str, secrets: Vec<Resource>) -> Vec<String> {
        self.receive_from(Some(&server.into()), type_url::SECRET, secrets, &[], false)
    }

    fn receive_from(
        &mut self,
        source: Option<&Name>,
        type_url: &str,
        resources: Vec<Resource>,
        removed: &[&str],
        is_first: bool,
    ) -> Vec<String> {
        let removed = removed.iter().map(|&name| name.to_owned()).collect();
        let outcome = self.holdings.accept(source, type_url, resources, removed, |_| Ok(()));
        if outcome.changed || is_first {
            self.active = self.holdings.settle(&self.active);
        }
        outcome.refusals.into_iter().map(|refusal| refusal.name).collect()
    }

    fn clusters(&mut self, clusters: &[cluster::Cluster]) {
        let resources = clusters.iter().map(|cluster| resource(&cluster.name, "1", cluster)).collect();
        assert_eq!(self.receive(type_url::CLUSTER, resources, &[]), [""; 0]);
    }

    fn listeners(&mut self, listeners: &[listener::Listener]) {
        let resources = listeners.iter().map(|listener| resource(&listener.name, "1", listener)).collect();
        assert_eq!(self.receive(type_url::LISTENER, resources, &[]), [""; 0]);
    }

    fn endpoints(&mut self, name: &str, ports: &[u16]) {
        let resources = vec![resource(name, "1", &endpoints(name, ports))];
        assert_eq!(self.receive(type_url::CLUSTER_LOAD_ASSIGNMENT, resources, &[]), [""; 0]);
    }

    fn routes(&mut self, name: &str) {
        let resources = vec![resource(name, "1", &routes(name))];
        assert_eq!(self.receive(type_url::ROUTE_CONFIGURATION, resources, &[]), [""; 0]);
    }

    /// When the certificate ends that an active cluster shows.
    fn shown_until(&self, name: &str) -> Option<String> {
        let context = self.upstream(name)?.tls.values().next()?;
        crate::tls::san::not_after(&context.identity.as_ref()?.key.cert[0])
    }

    fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.active.upstreams.get(&address_of(self.active.core.clusters.get(name)?))
    }

    /// Ports of the endpoints of an active cluster.
    fn ports(&self, name: &str) -> Vec<String> {
        let hosts = self.upstream(name).unwrap().balancer.as_ref().unwrap().hosts().iter();
        hosts.map(|host| host.endpoint.address.to_string()).collect()
    }

    /// Ports that are listened on.
    fn listening(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.active.sockets.keys().map(|key| key.address.port()).collect();
        ports.sort_unstable();
        ports
    }
}

#[test]
fn a_cluster_is_active_when_its_endpoints_are_here() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a-endpoints")]);
    assert!(proxy.upstream("a").is_none());
    assert_eq!(proxy.holdings.wanted().assignments, BTreeSet::from(["a-endpoints".into()]));
    proxy.endpoints("a-endpoints", &[80]);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:80"]);
}

/// A cluster of EDS whose endpoints are asked every so many seconds.
fn checked_cluster(name: &str, interval: i64) -> cluster::Cluster {
    let seconds = |seconds| Some(weft_protos::google::protobuf::Duration { seconds, nanos: 0 });
    let once = Some(weft_protos::google::protobuf::UInt32Value { value: 1 });
    let check = core::HealthCheck {
        timeout: seconds(1),
        interval: seconds(interval),
        unhealthy_threshold: once,
        healthy_threshold: once,
        health_checker: Some(core::health_check::HealthChecker::TcpHealthCheck(Default::default())),
        ..Default::default()
    };
    cluster::Cluster { health_checks: vec![check], ..eds_cluster(name, name) }
}

#[test]
fn a_cluster_with_a_health_check_waits_for_its_first_round() {
    let mut proxy = Proxy::new();
    // A round of checks that all pass, of whatever version there is.
    let round = |proxy: &mut Proxy| {
        proxy.holdings.balancers("a").for_each(|balancer| balancer.assume_checked());
        proxy.active = proxy.holdings.settle(&proxy.active);
    };
    proxy.clusters(&[checked_cluster("a", 1)]);
    proxy.endpoints("a", &[80]);
    assert!(proxy.upstream("a").is_none());
    assert_eq!(proxy.holdings.checked().count(), 1);
    round(&mut proxy);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:80"]);
    // New endpoints wait for their own checks; the cluster does not wait for them.
    proxy.receive(type_url::CLUSTER_LOAD_ASSIGNMENT, vec![resource("a", "2", &endpoints("a", &[80, 81]))], &[]);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:80", "127.0.0.1:81"]);
    assert!(!proxy.upstream("a").unwrap().is_checked());
    round(&mut proxy);
    // What is known answers the same question of another version, and no other question.
    let mut renamed = checked_cluster("a", 1);
    renamed.alt_stat_name = "b".into();
    proxy.clusters(&[renamed]);
    assert_eq!(&*proxy.upstream("a").unwrap().cluster.stat_name, "b");
    proxy.clusters(&[checked_cluster("a", 2)]);
    assert_eq!(&*proxy.upstream("a").unwrap().cluster.stat_name, "b");
    assert_eq!(proxy.holdings.checked().count(), 2);
    round(&mut proxy);
    assert_eq!(&*proxy.upstream("a").unwrap().cluster.stat_name, "a");
    assert_eq!(proxy.holdings.checked().count(), 1);
    // Without endpoints there is nothing to wait for.
    proxy.clusters(&[checked_cluster("b", 1)]);
    proxy.endpoints("b", &[]);
    assert!(proxy.upstream("b").is_some());
}

#[test]
fn endpoints_that_do_not_exist_are_none() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a")]);
    proxy.receive(type_url::CLUSTER_LOAD_ASSIGNMENT, Vec::new(), &["a"]);
    assert!(proxy.ports("a").is_empty());
    // Those that were here stay as long as a cluster names them.
    proxy.endpoints("a", &[80]);
    proxy.receive(type_url::CLUSTER_LOAD_ASSIGNMENT, Vec::new(), &["a"]);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:80"]);
    assert_eq!(proxy.holdings.entries().len(), 2);
}

/// *source* waits so many seconds; 0: as long as it takes.
fn within(source: &mut core::ConfigSource, seconds: i64) {
    source.initial_fetch_timeout = Some(weft_protos::google::protobuf::Duration { seconds, nanos: 0 });
}

/// A cluster of EDS that waits for its endpoints so long.
fn patient_cluster(name: &str, endpoints: &str, seconds: i64) -> cluster::Cluster {
    let mut cluster = eds_cluster(name, endpoints);
    within(cluster.eds_cluster_config.as_mut().unwrap().eds_config.as_mut().unwrap(), seconds);
    cluster
}

#[test]
fn endpoints_that_do_not_come_in_time_are_none() {
    let mut proxy = Proxy::new();
    let seconds = Duration::from_secs;
    let key = |name: &str| (type_url::CLUSTER_LOAD_ASSIGNMENT, Name::from(name));
    let none_of = |proxy: &mut Proxy, name: &str| {
        let is_new = proxy.holdings.do_without(&key(name));
        proxy.active = proxy.holdings.settle(&proxy.active);
        is_new
    };
    proxy.clusters(&[
        eds_cluster("default", "default"),
        patient_cluster("short", "short", 3),
        patient_cluster("endless", "endless", 0),
        // Who waits longest for something decides.
        patient_cluster("one", "shared", 3),
        patient_cluster("other", "shared", 20),
        patient_cluster("another", "endless", 3),
    ]);
    let expected =
        BTreeMap::from([(key("default"), seconds(15)), (key("short"), seconds(3)), (key("shared"), seconds(20))]);
    assert_eq!(proxy.holdings.wanted().missing, expected);
    proxy.listeners(&[]);
    for name in ["default", "short", "shared", "endless"] {
        assert!(proxy.upstream(if name == "shared" { "other" } else { name }).is_none() && !proxy.holdings.is_live());
        assert!(none_of(&mut proxy, name) && !none_of(&mut proxy, name), "{name}");
    }
    assert!(proxy.holdings.is_live() && proxy.ports("default").is_empty() && proxy.ports("one").is_empty());
    assert_eq!(proxy.holdings.wanted().missing, BTreeMap::new());
    // What comes late comes all the same, and only that is for the disk.
    proxy.endpoints("shared", &[80]);
    assert_eq!([proxy.ports("one"), proxy.ports("other")], [["127.0.0.1:80"], ["127.0.0.1:80"]]);
    let is_assignment = |entry: &&Entry| entry.type_url == type_url::CLUSTER_LOAD_ASSIGNMENT;
    assert_eq!(proxy.holdings.entries().iter().filter(is_assignment).count(), 1);
    assert!(!none_of(&mut proxy, "shared") && !none_of(&mut proxy, "of nobody"));
    assert_eq!(proxy.ports("one"), ["127.0.0.1:80"]);
}

#[test]
fn routes_that_do_not_come_in_time_lead_nowhere() {
    let mut proxy = Proxy::new();
    let key = (type_url::ROUTE_CONFIGURATION, Name::from("r"));
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    assert_eq!(proxy.holdings.wanted().missing, BTreeMap::from([(key.clone(), Duration::from_secs(15))]));
    assert!(proxy.listening().is_empty() && proxy.holdings.do_without(&key));
    proxy.active = proxy.holdings.settle(&proxy.active);
    assert!(proxy.holdings.is_live());
    assert_eq!(proxy.listening(), [1000]);
    assert!(proxy.active.core.routes["r"].virtual_hosts.is_empty());
    assert!(proxy.holdings.entries().iter().all(|entry| entry.type_url == type_url::LISTENER));
    let host = route::VirtualHost { name: "a".into(), domains: vec!["a".into()], ..Default::default() };
    let late = route::RouteConfiguration { virtual_hosts: vec![host], ..routes("r") };
    assert_eq!(proxy.receive(type_url::ROUTE_CONFIGURATION, vec![resource("r", "1", &late)], &[]), [""; 0]);
    assert!(!proxy.holdings.do_without(&key));
    assert_eq!(proxy.active.core.routes["r"].virtual_hosts.len(), 1);
    assert_eq!(proxy.holdings.entries().len(), 2);
}

#[test]
fn the_old_version_of_a_cluster_works_on_until_the_new_one_is_warm() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "old")]);
    proxy.endpoints("old", &[80]);
    proxy.clusters(&[eds_cluster("a", "new")]);
    // New endpoints of the old version still count.
    proxy.endpoints("old", &[81]);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:81"]);
    proxy.endpoints("new", &[90]);
    assert_eq!(proxy.ports("a"), ["127.0.0.1:90"]);
    assert_eq!(proxy.holdings.wanted().assignments, BTreeSet::from(["new".into()]));
    assert!(!proxy.active.core.assignments.contains_key("old"));
}

#[test]
fn what_did_not_change_is_shared_between_generations() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a"), eds_cluster("b", "b")]);
    proxy.endpoints("a", &[80, 81]);
    proxy.endpoints("b", &[80]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    let (a, b) = (Arc::clone(proxy.upstream("a").unwrap()), Arc::clone(proxy.upstream("b").unwrap()));
    let chains: Vec<_> = proxy.active.chains.values().cloned().collect();
    let busy = a.balancer.as_ref().unwrap().hosts()[1].begin();
    proxy.endpoints("a", &[81]);
    let new = proxy.upstream("a").unwrap();
    assert!(Arc::ptr_eq(&b, proxy.upstream("b").unwrap()));
    assert!(!Arc::ptr_eq(&a, new) && Arc::ptr_eq(&a.breakers, &new.breakers));
    assert_eq!(new.balancer.as_ref().unwrap().hosts()[0].active(), 1);
    assert!(proxy.active.chains.values().all(|chain| chains.iter().any(|old| Arc::ptr_eq(old, chain))));
    drop(busy);
    // The same bytes under another version change nothing.
    let same = vec![resource("a", "2", &eds_cluster("a", "a"))];
    let outcome = proxy.holdings.accept(None, type_url::CLUSTER, same, Vec::new(), |_| Ok(()));
    assert!(!outcome.changed);
}

#[test]
fn a_listener_waits_for_its_routes_and_the_first_clusters() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a")]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    assert!(proxy.listening().is_empty() && !proxy.holdings.is_live());
    proxy.endpoints("a", &[80]);
    assert_eq!(proxy.listening(), [1000]);
    assert!(proxy.holdings.is_live());
    // Later clusters keep no listener waiting, and readiness stays.
    proxy.clusters(&[eds_cluster("b", "b")]);
    proxy.listeners(&[rds_listener("m", 2000, "r"), rds_listener("n", 3000, "s")]);
    assert_eq!(proxy.listening(), [1000, 2000]);
    assert!(proxy.holdings.is_live());
}

#[test]
fn listeners_do_not_wait_for_ever() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a")]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    assert!(proxy.holdings.wait_no_longer());
    proxy.active = proxy.holdings.settle(&proxy.active);
    assert_eq!(proxy.listening(), [1000]);
}

#[test]
fn the_old_version_of_a_listener_works_on_until_the_new_one_is_warm() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    proxy.listeners(&[rds_listener("l", 2000, "s")]);
    assert_eq!(proxy.listening(), [1000]);
    let states: Vec<_> = proxy.holdings.shown().iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Active, State::Warming, State::Active]);
    proxy.routes("s");
    assert_eq!(proxy.listening(), [2000]);
    assert!(!proxy.active.core.routes.contains_key("r"));
}

#[test]
fn what_is_removed_goes_at_once() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[eds_cluster("a", "a")]);
    proxy.endpoints("a", &[80]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    proxy.receive(type_url::CLUSTER, Vec::new(), &["a"]);
    proxy.receive(type_url::LISTENER, Vec::new(), &["l"]);
    assert!(proxy.upstream("a").is_none() && proxy.listening().is_empty());
    assert!(proxy.active.core.listeners.is_empty() && proxy.active.chains.is_empty());
    assert_eq!(*proxy.holdings.wanted(), Wanted::default());
    assert!(proxy.holdings.entries().is_empty());
}

#[test]
fn one_bad_resource_keeps_no_other_back() {
    let mut proxy = Proxy::new();
    let bad = Resource {
        name: "bad".into(),
        aliases: Vec::new(),
        version: "1".into(),
        body: Bytes::from_static(b"\xff\xff"),
    };
    let misnamed = resource("other", "1", &eds_cluster("c", "c"));
    let good = resource("a", "1", &eds_cluster("a", "a"));
    assert_eq!(proxy.receive(type_url::CLUSTER, vec![bad, misnamed, good], &[]), ["bad", "other"]);
    proxy.endpoints("a", &[80]);
    assert!(proxy.upstream("a").is_some());
    let refused = proxy.holdings.shown().iter().filter(|row| row.state == State::Refused).count();
    assert_eq!(refused, 2);
    proxy.clusters(&[eds_cluster("bad", "a"), eds_cluster("other", "a")]);
    assert!(proxy.holdings.shown().iter().all(|row| row.state == State::Active));
}

#[test]
fn two_listeners_cannot_have_one_address_but_may_exchange_theirs() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("a", 1000, "r"), rds_listener("b", 2000, "r")]);
    proxy.routes("r");
    let third = vec![resource("c", "1", &rds_listener("c", 1000, "r"))];
    assert_eq!(proxy.receive(type_url::LISTENER, third, &[]), ["c"]);
    proxy.listeners(&[rds_listener("a", 2000, "r"), rds_listener("b", 1000, "r")]);
    let owners: BTreeMap<_, _> =
        proxy.active.sockets.iter().map(|(key, listener)| (key.address.port(), listener.name.to_string())).collect();
    assert_eq!(owners, BTreeMap::from([(1000, "b".to_owned()), (2000, "a".to_owned())]));
}

#[test]
fn a_listener_whose_socket_cannot_be_opened_is_refused_and_the_old_one_stays() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("l", 1000, "r")]);
    proxy.routes("r");
    let new = vec![resource("l", "2", &rds_listener("l", 2000, "r"))];
    let outcome = proxy.holdings.accept(None, type_url::LISTENER, new, Vec::new(), |_| Err("in use".into()));
    assert_eq!(outcome.refusals, [Refusal { name: "l".into(), reason: "in use".into() }]);
    assert!(!outcome.changed);
    assert_eq!(proxy.listening(), [1000]);
}

fn inline(text: &str) -> Option<core::DataSource> {
    let specifier = Some(core::data_source::Specifier::InlineString(text.to_owned()));
    Some(core::DataSource { specifier, ..Default::default() })
}

/// The secrets `default` and `ROOTCA` of a certificate that ends with *year*.
fn secrets(year: i32) -> Vec<Resource> {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://cluster.local/ns/default/sa/test".try_into().unwrap();
    parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    parameters.not_after = rcgen::date_time_ymd(year, 2, 3);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = parameters.self_signed(&key).unwrap().pem();
    let identity = tls_proto::secret::Type::TlsCertificate(tls_proto::TlsCertificate {
        certificate_chain: inline(&pem),
        private_key: inline(&key.serialize_pem()),
        ..Default::default()
    });
    let roots = tls_proto::secret::Type::ValidationContext(tls_proto::CertificateValidationContext {
        trusted_ca: inline(&pem),
        ..Default::default()
    });
    [("default", identity), ("ROOTCA", roots)]
        .map(|(name, of)| resource(name, "1", &tls_proto::Secret { name: name.into(), r#type: Some(of) }))
        .into()
}

/// Mutual TLS with secrets from *server*.
fn mutual_tls(server: &str) -> tls_proto::UpstreamTlsContext {
    let source = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(
            core::ApiConfigSource {
                grpc_services: vec![core::GrpcService {
                    target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                        core::grpc_service::EnvoyGrpc { cluster_name: server.into(), ..Default::default() },
                    )),
                    ..Default::default()
                }],
                api_type: core::api_config_source::ApiType::DeltaGrpc as i32,
                transport_api_version: core::ApiVersion::V3 as i32,
                ..Default::default()
            },
        )),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    };
    let named = |name: &str| tls_proto::SdsSecretConfig { name: name.into(), sds_config: Some(source.clone()) };
    tls_proto::UpstreamTlsContext {
        common_tls_context: Some(tls_proto::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![named("default")],
            validation_context_type: Some(
                tls_proto::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(named("ROOTCA")),
            ),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A cluster whose secrets come from *server*.
fn tls_cluster(name: &str, server: &str) -> cluster::Cluster {
    cluster_with(name, &mutual_tls(server))
}

fn cluster_with(name: &str, context: &tls_proto::UpstreamTlsContext) -> cluster::Cluster {
    cluster::Cluster {
        transport_socket: Some(core::TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(
                "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                context,
            ))),
        }),
        ..eds_cluster(name, name)
    }
}

#[test]
fn a_cluster_waits_for_its_secrets_and_a_rotation_keeps_its_endpoints() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[tls_cluster("a", AGENT)]);
    proxy.endpoints("a", &[80]);
    assert!(proxy.upstream("a").is_none());
    let from_agent = &proxy.holdings.wanted().secrets[&Some(AGENT.into())];
    assert_eq!(*from_agent, BTreeSet::from(["ROOTCA".into(), "default".into()]));
    assert_eq!(proxy.secrets(AGENT, secrets(2071)), [""; 0]);
    let before = Arc::clone(proxy.upstream("a").unwrap());
    proxy.secrets(AGENT, secrets(2072));
    let after = Arc::clone(proxy.upstream("a").unwrap());
    assert!(Arc::ptr_eq(before.balancer.as_ref().unwrap(), after.balancer.as_ref().unwrap()));
    let contexts = |upstream: &Upstream| upstream.tls.values().map(address_of).collect::<Vec<_>>();
    assert_ne!(contexts(&before), contexts(&after));
    assert_eq!(proxy.shown_until("a").as_deref(), Some("20720203000000Z"));
    // Secrets never go to the disk, and are forgotten with the last cluster that names them.
    assert!(proxy.holdings.entries().iter().all(|entry| entry.type_url != type_url::SECRET));
    proxy.receive(type_url::CLUSTER, Vec::new(), &["a"]);
    assert!(proxy.holdings.secrets().is_empty());
}

#[test]
fn secrets_of_one_name_from_two_servers_are_two() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[tls_cluster("a", AGENT), tls_cluster("b", OTHER)]);
    proxy.endpoints("a", &[80]);
    proxy.endpoints("b", &[80]);
    proxy.secrets(AGENT, secrets(2071));
    assert!(proxy.upstream("a").is_some() && proxy.upstream("b").is_none());
    // Nobody has asked the control plane for any.
    proxy.receive(type_url::SECRET, secrets(2075), &[]);
    proxy.secrets(OTHER, secrets(2072));
    proxy.secrets(OTHER, secrets(2073));
    let ends = ["a", "b"].map(|name| proxy.shown_until(name).unwrap_or_default());
    assert_eq!(ends, ["20710203000000Z", "20730203000000Z"]);
    let shown = |proxy: &Proxy| {
        let rows = proxy.holdings.shown();
        let secrets = rows.iter().filter(|row| row.type_url == type_url::SECRET && row.name == "default");
        secrets.map(|row| (row.source.unwrap_or_default().to_owned(), row.state)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&proxy), [(OTHER.to_owned(), State::Active), (AGENT.to_owned(), State::Active)]);
    // What one refuses or gives up is not the other's.
    let bad = Resource { body: Bytes::from_static(b"\xff\xff"), ..secrets(2074).remove(0) };
    assert_eq!(proxy.secrets(OTHER, vec![bad]), ["default"]);
    proxy.secrets(AGENT, secrets(2074));
    assert!(shown(&proxy).contains(&(OTHER.to_owned(), State::Refused)));
    proxy.receive(type_url::CLUSTER, Vec::new(), &["b"]);
    assert_eq!(proxy.shown_until("a").as_deref(), Some("20740203000000Z"));
    assert_eq!(proxy.holdings.secrets().len(), 2);
}

#[test]
fn a_server_of_secrets_serves_nothing_else() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[]);
    let sent = vec![resource("a", "1", &eds_cluster("a", "a"))];
    assert_eq!(proxy.receive_from(Some(&AGENT.into()), type_url::CLUSTER, sent, &[], false), ["a"]);
    proxy.clusters(&[eds_cluster("b", "b")]);
    proxy.endpoints("b", &[80]);
    assert_eq!(proxy.receive_from(Some(&AGENT.into()), type_url::CLUSTER, Vec::new(), &["b"], false), [""; 0]);
    assert!(proxy.upstream("a").is_none() && proxy.upstream("b").is_some());
}

#[test]
fn secrets_of_the_wrong_kind_or_from_nowhere_refuse_the_cluster() {
    let mut proxy = Proxy::new();
    let unknown = vec![resource("a", "1", &tls_cluster("a", "nobody"))];
    assert_eq!(proxy.receive(type_url::CLUSTER, unknown, &[]), ["a"]);
    proxy.clusters(&[tls_cluster("b", AGENT)]);
    proxy.endpoints("b", &[80]);
    let mut swapped = secrets(2071);
    let (first, second) = swapped.split_at_mut(1);
    std::mem::swap(&mut first[0].body, &mut second[0].body);
    assert_eq!(proxy.secrets(AGENT, swapped), ["default", "ROOTCA"]);
    proxy.secrets(AGENT, secrets(2071));
    assert!(proxy.upstream("b").is_some());
}

#[test]
fn what_can_never_work_is_refused_while_a_secret_has_yet_to_come() {
    let mut proxy = Proxy::new();
    let mut context = mutual_tls(AGENT);
    context.sni = "no name".into();
    let common = context.common_tls_context.as_mut().unwrap();
    common.tls_certificates.push(tls_proto::TlsCertificate {
        certificate_chain: inline("none"),
        private_key: inline("none"),
        ..Default::default()
    });
    let sent = vec![resource("a", "1", &cluster_with("a", &context))];
    let outcome = proxy.holdings.accept(None, type_url::CLUSTER, sent, Vec::new(), |_| Ok(()));
    let reason = "certificate_chain: there is no certificate in it; no name cannot be a server name";
    assert_eq!(outcome.refusals, [Refusal { name: "a".into(), reason: reason.into() }]);
}

#[test]
fn virtual_hosts_come_by_the_delta_protocol_only_and_to_a_table_that_is_here() {
    let mut proxy = Proxy::new();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("in", 9080, "web")]);
    let table = route::RouteConfiguration { vhds: Some(route::Vhds { config_source: Some(ads()) }), ..routes("web") };
    let host = route::VirtualHost { name: "a".into(), domains: vec!["a".into()], ..Default::default() };
    let receive_table =
        |proxy: &mut Proxy| proxy.receive(type_url::ROUTE_CONFIGURATION, vec![resource("web", "1", &table)], &[]);
    let receive_host =
        |proxy: &mut Proxy, name: &str| proxy.receive(type_url::VIRTUAL_HOST, vec![resource(name, "1", &host)], &[]);
    assert_eq!(receive_table(&mut proxy), ["web"]);
    proxy.holdings.speak_delta();
    assert_eq!(receive_table(&mut proxy), [""; 0]);
    assert_eq!(receive_host(&mut proxy, "other/a"), ["other/a"]);
    assert_eq!(receive_host(&mut proxy, "web/a"), [""; 0]);
    assert!(proxy.holdings.has_virtual_host("web", "A"));
    assert_eq!(proxy.active.core.routes["web"].virtual_hosts.len(), 1);
    // A table that takes none any more has none.
    proxy.routes("web");
    assert!(!proxy.holdings.has_virtual_host("web", "a"));
    assert!(proxy.holdings.virtual_hosts().is_empty());
}

#[test]
fn a_virtual_host_with_a_domain_twice_is_refused_and_the_others_of_its_table_stay() {
    let mut proxy = Proxy::new();
    proxy.holdings.speak_delta();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("in", 9080, "web")]);
    let open = route::RouteConfiguration { vhds: Some(route::Vhds { config_source: Some(ads()) }), ..routes("web") };
    assert_eq!(proxy.receive(type_url::ROUTE_CONFIGURATION, vec![resource("web", "1", &open)], &[]), [""; 0]);
    let host = |domains: &[&str]| route::VirtualHost {
        name: domains[0].into(),
        domains: domains.iter().map(|domain| (*domain).into()).collect(),
        ..Default::default()
    };
    let sent = vec![resource("web/a", "1", &host(&["a"])), resource("web/b", "1", &host(&["b", "c", "B"]))];
    assert_eq!(proxy.receive(type_url::VIRTUAL_HOST, sent, &[]), ["web/b"]);
    assert!(proxy.holdings.has_virtual_host("web", "a") && !proxy.holdings.has_virtual_host("web", "c"));
}

#[test]
fn a_table_that_takes_the_domain_of_a_virtual_host_is_refused_and_the_one_before_stays() {
    let mut proxy = Proxy::new();
    proxy.holdings.speak_delta();
    proxy.clusters(&[]);
    proxy.listeners(&[rds_listener("in", 9080, "web")]);
    let host = route::VirtualHost { name: "a".into(), domains: vec!["a".into()], ..Default::default() };
    let open = route::RouteConfiguration { vhds: Some(route::Vhds { config_source: Some(ads()) }), ..routes("web") };
    let taken = route::RouteConfiguration { virtual_hosts: vec![host.clone()], ..open.clone() };
    let receive =
        |proxy: &mut Proxy, table| proxy.receive(type_url::ROUTE_CONFIGURATION, vec![resource("web", "1", table)], &[]);
    assert_eq!(receive(&mut proxy, &open), [""; 0]);
    assert_eq!(proxy.receive(type_url::VIRTUAL_HOST, vec![resource("web/b", "1", &host)], &[]), [""; 0]);
    assert_eq!(receive(&mut proxy, &taken), ["web"]);
    assert!(proxy.holdings.has_virtual_host("web", "a"));
    assert_eq!(proxy.receive(type_url::VIRTUAL_HOST, vec![], &["web/b"]), [""; 0]);
    assert_eq!(receive(&mut proxy, &taken), [""; 0]);
}
