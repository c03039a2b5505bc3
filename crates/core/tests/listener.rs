//! Listeners: which one takes a connection, and which of its filter chains.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use support::any;
use weft_core::compile::{Problems, Strictness};
use weft_core::listener::{Connection, Listener, NetworkFilter, Opening, ProxyProtocol, Seen, Transport};
use weft_core::plan::{Plan, Resource};
use weft_core::tls::{SanKind, SecretName};
use weft_core::trace::{Silent, Subject, Trace};
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use weft_protos::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use weft_protos::envoy::config::core::v3::socket_address::PortSpecifier;
use weft_protos::envoy::config::core::v3::{
    Address, ApiConfigSource, CidrRange, ConfigSource, DataSource, GrpcService, SocketAddress, TransportSocket,
    data_source, transport_socket,
};
use weft_protos::envoy::config::listener::v3 as proto;
use weft_protos::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol as ProtoProxyProtocol;
use weft_protos::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit as ProtoConnectionLimit;
use weft_protos::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use weft_protos::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use weft_protos::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use weft_protos::google::protobuf::{BoolValue, Duration, UInt32Value, UInt64Value};

fn socket(address: &str) -> SocketAddress {
    let address: SocketAddr = address.parse().expect("an address with port");
    SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..Default::default()
    }
}

fn address(text: &str) -> Option<Address> {
    Some(Address { address: Some(AddressKind::SocketAddress(socket(text))) })
}

/// A chain that terminates TLS by *context*.
fn secured(name: &str, context: &tls::DownstreamTlsContext) -> proto::FilterChain {
    proto::FilterChain {
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                context,
            ))),
        }),
        ..chain(name, proto::FilterChainMatch::default())
    }
}

fn chain(name: &str, conditions: proto::FilterChainMatch) -> proto::FilterChain {
    let filter = tcp::TcpProxy {
        stat_prefix: name.into(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name.into())),
        ..Default::default()
    };
    proto::FilterChain {
        name: name.into(),
        filter_chain_match: Some(conditions),
        filters: vec![proto::Filter {
            name: "tcp".into(),
            config_type: Some(proto::filter::ConfigType::TypedConfig(any(
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                &filter,
            ))),
        }],
        ..Default::default()
    }
}

fn listener(name: &str, at: &str, chains: Vec<proto::FilterChain>) -> proto::Listener {
    proto::Listener { name: name.into(), address: address(at), filter_chains: chains, ..Default::default() }
}

fn compile(listener: &proto::Listener) -> Listener {
    Listener::compile(listener, Strictness::Refuse).expect("honoured").value
}

fn range(prefix: &str, length: u32) -> CidrRange {
    CidrRange { address_prefix: prefix.into(), prefix_len: Some(UInt32Value { value: length }) }
}

fn connection(destination: &str) -> Connection<'static> {
    Connection {
        destination: destination.parse().expect("an address with port"),
        source: "10.0.0.1:40000".parse().expect("an address with port"),
        direct_source: "10.0.0.1".parse().expect("an address"),
        transport: Transport::Raw,
        server_name: None,
        application_protocols: &[],
    }
}

fn chain_of(listener: &Listener, connection: &Connection<'_>) -> String {
    listener.chain(connection, &mut Silent).map_or("none".into(), |chain| chain.name.to_string())
}

#[test]
fn the_most_specific_chain_wins_step_by_step() {
    let conditions = proto::FilterChainMatch::default;
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut resource = listener(
        "l",
        "0.0.0.0:15001",
        vec![
            chain("any", conditions()),
            chain("mesh", proto::FilterChainMatch { prefix_ranges: vec![range("10.244.0.0", 16)], ..conditions() }),
            chain("pod", proto::FilterChainMatch { prefix_ranges: vec![range("10.244.1.1", 32)], ..conditions() }),
            chain("six", proto::FilterChainMatch { prefix_ranges: vec![range("fd77:ef7::", 64)], ..conditions() }),
            chain("tls", proto::FilterChainMatch { transport_protocol: "tls".into(), ..conditions() }),
            chain("exact", proto::FilterChainMatch { server_names: names(&["www.Example.com"]), ..conditions() }),
            chain("wild", proto::FilterChainMatch { server_names: names(&["*.example.com"]), ..conditions() }),
            chain("wilder", proto::FilterChainMatch { server_names: names(&["*.com"]), ..conditions() }),
            chain("http", proto::FilterChainMatch { application_protocols: names(&["http/1.1"]), ..conditions() }),
            chain("h2", proto::FilterChainMatch { application_protocols: names(&["h2", "h2c"]), ..conditions() }),
            chain(
                "from",
                proto::FilterChainMatch { source_prefix_ranges: vec![range("192.168.0.0", 16)], ..conditions() },
            ),
            chain(
                "port",
                proto::FilterChainMatch { destination_port: Some(UInt32Value { value: 22 }), ..conditions() },
            ),
            chain(
                "port and tls",
                proto::FilterChainMatch {
                    destination_port: Some(UInt32Value { value: 443 }),
                    transport_protocol: "tls".into(),
                    ..conditions()
                },
            ),
        ],
    );
    resource.default_filter_chain = Some(chain("default", conditions()));
    let listener = compile(&resource);
    let tls = |name| Connection { transport: Transport::Tls, server_name: name, ..connection("1.2.3.4:8443") };
    let alpn = |names| Connection { application_protocols: names, ..connection("1.2.3.4:80") };
    let cases = [
        ("nothing special", connection("1.2.3.4:80"), "any"),
        ("a range", connection("10.244.9.9:80"), "mesh"),
        ("the longer range", connection("10.244.1.1:80"), "pod"),
        ("mapped IPv4 is IPv4", connection("[::ffff:10.244.1.1]:80"), "pod"),
        ("IPv6", connection("[fd77:ef7::7]:80"), "six"),
        ("TLS", tls(None), "tls"),
        ("SNI in any case", tls(Some("WWW.example.COM")), "exact"),
        ("SNI by wildcard", tls(Some("a.example.com")), "wild"),
        ("SNI by wildcard over labels", tls(Some("a.b.example.com")), "wild"),
        ("SNI by shorter wildcard", tls(Some("example.com")), "wilder"),
        ("SNI without match", tls(Some("example.org")), "tls"),
        ("HTTP found", alpn(&["http/1.1"]), "http"),
        ("ALPN: the client's first choice", alpn(&["h2", "http/1.1"]), "h2"),
        ("source", Connection { source: "192.168.7.7:1".parse().unwrap(), ..connection("1.2.3.4:80") }, "from"),
        ("port comes first", Connection { transport: Transport::Tls, ..connection("10.244.1.1:22") }, "port"),
        ("port taken, rest not: no way back", connection("10.244.1.1:443"), "default"),
    ];
    for (name, connection, expected) in cases {
        assert_eq!(chain_of(&listener, &connection), expected, "{name}");
    }
}

/// What is wrong with chains of these conditions: where, and what.
fn faults(chains: &[proto::FilterChainMatch]) -> Vec<String> {
    let chains = chains.iter().map(|conditions| chain("x", conditions.clone())).collect();
    match Listener::compile(&listener("l", "0.0.0.0:15001", chains), Strictness::Refuse) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(|problem| format!("{}: {}", problem.path, problem.reason)).collect(),
    }
}

#[test]
fn chains_for_the_same_connections_are_refused() {
    let any = proto::FilterChainMatch::default;
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let named = |names: &[&str]| proto::FilterChainMatch { server_names: texts(names), ..any() };
    let speaking = |names: &[&str]| proto::FilterChainMatch { application_protocols: texts(names), ..any() };
    let to = |ranges: &[(&str, u32)]| proto::FilterChainMatch {
        prefix_ranges: ranges.iter().map(|(address, length)| range(address, *length)).collect(),
        ..any()
    };
    let port = |value| proto::FilterChainMatch { destination_port: Some(UInt32Value { value }), ..any() };
    let from_ports = |ports: &[u32]| proto::FilterChainMatch { source_ports: ports.to_vec(), ..any() };
    let over = |protocol: &str| proto::FilterChainMatch { transport_protocol: protocol.into(), ..any() };
    for (name, one, other, is_same) in [
        ("nothing", any(), any(), true),
        ("a port", port(1), port(1), true),
        ("ports", port(1), port(2), false),
        ("a port and none", port(1), any(), false),
        ("a name of several", named(&["a", "b"]), named(&["b", "c"]), true),
        ("a name in two cases", named(&["a.B"]), named(&["A.b"]), true),
        ("a wildcard in two spellings", named(&["*.a"]), named(&[".a"]), true),
        ("a wildcard and what it covers", named(&["*.a"]), named(&["b.a"]), false),
        ("no name in two spellings", named(&[""]), any(), true),
        ("a range in two spellings", to(&[("10.0.0.0", 8)]), to(&[("10.1.0.0", 8)]), true),
        ("a range of several", to(&[("10.0.0.0", 8), ("fd00::", 8)]), to(&[("fd00::1", 8)]), true),
        ("a range within", to(&[("10.0.0.0", 8)]), to(&[("10.0.0.0", 9)]), false),
        ("all addresses, and nothing said", to(&[("0.0.0.0", 0)]), any(), false),
        ("protocols", speaking(&["h2", "http/1.1"]), speaking(&["h2"]), true),
        ("source ports", from_ports(&[1, 2]), from_ports(&[2]), true),
        ("plain text, and nothing said", over("raw_buffer"), any(), false),
    ] {
        let expected = "Listener.filter_chains[1].filter_chain_match: \
                        filter_chains[0] is for the same connections, so this one never is";
        let expected = if is_same { vec![expected] } else { Vec::new() };
        assert_eq!(faults(&[one, other]), expected, "{name}");
    }
    // Chains are for the same connections only where all conditions are.
    let both = |number, names: &[&str]| proto::FilterChainMatch { server_names: texts(names), ..port(number) };
    assert_eq!(faults(&[both(1, &["a", "b"]), both(1, &["c"]), both(2, &["a"])]), [""; 0]);
    assert_eq!(faults(&[both(1, &["a"]), both(2, &["a"]), both(2, &["b", "a"])]).len(), 1);
    for (conditions, field) in [
        (named(&["a.b", "A.b"]), "server_names"),
        (from_ports(&[1, 2, 1]), "source_ports"),
        (to(&[("10.0.0.0", 8), ("10.1.0.0", 8)]), "prefix_ranges"),
    ] {
        let expected = format!("Listener.filter_chains[0].filter_chain_match.{field}: says the same twice");
        assert_eq!(faults(&[conditions]), [expected]);
    }
}

#[test]
fn names_have_wildcards_for_whole_labels_in_front() {
    let named = |name: &str| proto::FilterChainMatch { server_names: vec![name.into()], ..Default::default() };
    for name in ["a", "*.a", "*.", "", ".a"] {
        assert_eq!(faults(&[named(name)]), [""; 0], "{name}");
    }
    for (name, right) in [
        ("*", "any name is meant without `server_names`"),
        ("*a", "`*.example.com` is right"),
        ("a*", "`*.example.com` is right"),
        ("a.*.b", "`*.example.com` is right"),
        ("**.a", "`*.example.com` is right"),
        ("*.a.*", "`*.example.com` is right"),
    ] {
        let path = "Listener.filter_chains[0].filter_chain_match.server_names[0]";
        assert_eq!(faults(&[named(name)]), [format!("{path}: no wildcard can stand in `{name}`: {right}")]);
    }
    let conditions = |names: &[&str]| proto::FilterChainMatch {
        server_names: names.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    };
    let chains = vec![chain("any or one", conditions(&["", "one.example"])), chain("wild", conditions(&[".example"]))];
    let listener = compile(&listener("l", "0.0.0.0:15001", chains));
    for (name, expected) in [
        (None, "any or one"),
        (Some("one.example"), "any or one"),
        (Some("two.example"), "wild"),
        (Some("x"), "any or one"),
    ] {
        let asked = Connection { transport: Transport::Tls, server_name: name, ..connection("1.2.3.4:443") };
        assert_eq!(chain_of(&listener, &asked), expected, "{name:?}");
    }
}

#[test]
fn whoever_has_connected_comes_before_where_the_client_is_and_that_before_its_address() {
    use proto::filter_chain_match::ConnectionSourceType::{Any, External, SameIpOrLoopback};
    let from = |direct: Option<(&str, u32)>, kind: proto::filter_chain_match::ConnectionSourceType, source| {
        let ranges = |range: Option<(&str, u32)>| range.map(|(prefix, length)| self::range(prefix, length));
        proto::FilterChainMatch {
            direct_source_prefix_ranges: ranges(direct).into_iter().collect(),
            source_type: kind.into(),
            source_prefix_ranges: ranges(source).into_iter().collect(),
            ..Default::default()
        }
    };
    let mut resource = listener(
        "l",
        "0.0.0.0:15006",
        vec![
            chain("any", from(None, Any, None)),
            chain("same", from(None, SameIpOrLoopback, None)),
            chain("near", from(None, Any, Some(("127.0.0.1", 32)))),
            chain("proxies", from(Some(("10.1.0.0", 16)), Any, None)),
            chain("one proxy", from(Some(("10.1.0.1", 32)), External, Some(("192.0.2.0", 24)))),
        ],
    );
    resource.default_filter_chain = Some(chain("default", proto::FilterChainMatch::default()));
    let listener = compile(&resource);
    let between = |direct: &str, source: &str, destination: &str| Connection {
        source: SocketAddr::new(source.parse().unwrap(), 40000),
        direct_source: direct.parse().unwrap(),
        ..connection(destination)
    };
    for (direct, source, destination, expected) in [
        ("10.2.0.1", "10.2.0.1", "10.0.0.9:80", "any"),
        ("10.2.0.1", "10.0.0.9", "10.0.0.9:80", "same"),
        ("10.2.0.1", "::ffff:10.0.0.9", "10.0.0.9:80", "same"),
        ("10.2.0.1", "fd00::9", "[fd00::9]:80", "same"),
        ("10.2.0.1", "127.0.0.1", "10.0.0.9:80", "same"),
        ("10.2.0.1", "::1", "[fd00::9]:80", "same"),
        // As in Envoy.
        ("10.2.0.1", "127.0.0.2", "10.0.0.9:80", "any"),
        ("127.0.0.1", "10.2.0.1", "10.0.0.9:80", "any"),
        ("10.1.0.2", "127.0.0.1", "10.0.0.9:80", "proxies"),
        ("::ffff:10.1.0.2", "127.0.0.1", "10.0.0.9:80", "proxies"),
        ("10.1.0.1", "192.0.2.7", "10.0.0.9:80", "one proxy"),
        ("10.1.0.1", "192.0.2.7", "192.0.2.7:80", "default"),
        ("10.1.0.1", "10.2.0.1", "10.0.0.9:80", "default"),
    ] {
        let found = chain_of(&listener, &between(direct, source, destination));
        assert_eq!(found, expected, "{direct} {source} {destination}");
    }
}

#[test]
fn without_a_default_chain_there_may_be_none_and_the_trace_says_why() {
    struct Notes(Vec<String>);
    impl Trace for Notes {
        fn considered(&mut self, subject: Subject<'_>, _: bool, reason: impl FnOnce() -> String) {
            if let Subject::FilterChain(chain) = subject {
                self.0.push(format!("{}: {}", chain.name, reason()));
            }
        }
    }
    let conditions = proto::FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() };
    let listener = compile(&listener("l", "0.0.0.0:1", vec![chain("tls", conditions)]));
    let mut notes = Notes(Vec::new());
    assert!(listener.chain(&connection("1.2.3.4:1"), &mut notes).is_none());
    assert_eq!(notes.0, ["tls: no match by transport protocol"]);
}

fn inspecting(names: &[&str]) -> Listener {
    let mut message = listener("l", "0.0.0.0:9080", vec![chain("any", proto::FilterChainMatch::default())]);
    for name in names {
        let kind = format!("envoy.extensions.filters.listener.{name}");
        message.listener_filters.push(proto::ListenerFilter {
            name: (*name).into(),
            config_type: Some(proto::listener_filter::ConfigType::TypedConfig(any(&kind, &()))),
            ..Default::default()
        });
    }
    compile(&message)
}

/// TLS that no inspector looks for is bytes like any other: neither its server name nor its protocols choose a chain.
#[test]
fn inspectors_see_only_what_they_look_for() {
    const TLS: &str = "tls_inspector.v3.TlsInspector";
    const HTTP: &str = "http_inspector.v3.HttpInspector";
    let hello = Opening::Tls { server_name: Some("Reviews".into()), application_protocols: vec!["h2".into()] };
    let request = Opening::Http("http/1.1".into());
    let tls = Seen {
        transport: Transport::Tls,
        server_name: Some("reviews".into()),
        application_protocols: vec!["h2".into()],
    };
    let http = Seen { application_protocols: vec!["http/1.1".into()], ..Seen::default() };
    let cases: [(&[&str], &Opening, Seen); 8] = [
        (&[], &hello, Seen::default()),
        (&[], &request, Seen::default()),
        (&[HTTP], &hello, Seen::default()),
        (&[HTTP], &request, http.clone()),
        (&[TLS], &hello, tls.clone()),
        (&[TLS], &request, Seen::default()),
        (&[TLS, HTTP], &hello, tls),
        (&[TLS, HTTP], &request, http),
    ];
    for (filters, opening, expected) in cases {
        assert_eq!(inspecting(filters).inspectors(9080).see(opening), expected, "{filters:?} {opening:?}");
    }
    assert!(inspecting(&[]).inspectors(9080).are_absent());
}

#[test]
fn a_captured_connection_goes_to_the_listener_of_its_original_destination() {
    let unbound = |name: &str, at: &str| proto::Listener {
        bind_to_port: Some(BoolValue { value: false }),
        ..listener(name, at, vec![chain(name, proto::FilterChainMatch::default())])
    };
    let mut capturing =
        listener("virtualOutbound", "0.0.0.0:15001", vec![chain("c", proto::FilterChainMatch::default())]);
    capturing.additional_addresses =
        vec![proto::AdditionalAddress { address: address("[::]:15001"), ..Default::default() }];
    capturing.use_original_dst = Some(BoolValue { value: true });
    let mut plan = Plan::default();
    for resource in [
        capturing.clone(),
        unbound("0.0.0.0_9080", "0.0.0.0:9080"),
        unbound("240.240.0.7_9080", "240.240.0.7:9080"),
        unbound("::_9080", "[::]:9080"),
        listener("host|5432", "127.0.0.1:5432", vec![chain("h", proto::FilterChainMatch::default())]),
    ] {
        plan.insert(Resource::Listener(Arc::new(compile(&resource))));
    }
    let taken = |plan: &Plan, destination: &str| {
        let capturing = plan.listeners["virtualOutbound"].clone();
        plan.listener_for(&capturing, destination.parse().expect("an address with port")).name.to_string()
    };
    assert_eq!(taken(&plan, "240.240.0.7:9080"), "240.240.0.7_9080");
    assert_eq!(taken(&plan, "240.240.0.8:9080"), "0.0.0.0_9080");
    assert_eq!(taken(&plan, "[fd00::1]:9080"), "::_9080");
    assert_eq!(taken(&plan, "240.240.0.8:9081"), "virtualOutbound");
    assert_eq!(taken(&plan, "127.0.0.1:5432"), "host|5432", "with a socket of its own, as in Envoy");
    assert_eq!(taken(&plan, "240.240.0.8:15001"), "virtualOutbound", "itself");

    plan.remove(weft_protos::type_url::LISTENER, "240.240.0.7_9080");
    assert_eq!(taken(&plan, "240.240.0.7:9080"), "0.0.0.0_9080", "after it is gone");
    plan.insert(Resource::Listener(Arc::new(compile(&unbound("0.0.0.0_9080", "0.0.0.0:9090")))));
    assert_eq!(taken(&plan, "240.240.0.7:9080"), "virtualOutbound", "after it moved");
}

fn secret(name: &str) -> tls::SdsSecretConfig {
    let service = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: "sds-grpc".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
                grpc_services: vec![service],
                ..Default::default()
            })),
            ..Default::default()
        }),
    }
}

/// A listener with a certificate by SDS and what else is said of its TLS; what is not applied, or refused.
fn terminated(change: impl FnOnce(&mut tls::DownstreamTlsContext)) -> Result<Vec<String>, String> {
    let mut context = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![secret("default")],
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut context);
    let inbound = secured("inbound", &context);
    let compiled = Listener::compile(&listener("a", "10.0.0.1:80", vec![inbound]), Strictness::Refuse);
    compiled
        .map(|compiled| compiled.not_applied.iter().map(ToString::to_string).collect())
        .map_err(|problems| problems.to_string())
}

#[test]
fn what_is_said_of_sessions_is_honoured_or_named() {
    let path = "Listener.filter_chains[0].transport_socket.typed_config";
    let hours = |hours: i64| Some(Duration { seconds: hours * 3600, nanos: 0 });
    let keys = |lengths: &[usize]| {
        let key = |&length: &usize| DataSource {
            specifier: Some(data_source::Specifier::InlineBytes(vec![1; length])),
            ..Default::default()
        };
        let keys = tls::TlsSessionTicketKeys { keys: lengths.iter().map(key).collect() };
        Some(SessionTicketKeysType::SessionTicketKeys(keys))
    };
    let with_timeout = |hours| terminated(|context| context.session_timeout = hours);
    assert_eq!(with_timeout(hours(12)), Ok(vec![]));
    let cut = format!("{path}.session_timeout: cut to 43200s, for which keys of tickets are kept");
    assert_eq!(with_timeout(hours(13)), Ok(vec![cut]));
    let with_keys = |lengths: &[usize]| terminated(|context| context.session_ticket_keys_type = keys(lengths));
    assert_eq!(with_keys(&[80, 80]), Ok(vec![]));
    let short = format!("{path}.session_ticket_keys.keys[1]: a key has 80 bytes, and not 48");
    assert_eq!(with_keys(&[80, 48]), Err(short));
    assert_eq!(with_keys(&[]), Err(format!("{path}.session_ticket_keys.keys: at least one is needed")));
}

/// Whose URI matches *pattern*.
fn named(pattern: MatchPattern) -> tls::CertificateValidationContext {
    tls::CertificateValidationContext {
        match_typed_subject_alt_names: vec![tls::SubjectAltNameMatcher {
            san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
            matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn names_prove_nothing_without_roots() {
    let named = named(MatchPattern::Exact("spiffe://cluster.local/ns/default/sa/reviews".into()));
    let combined =
        CombinedCertificateValidationContext { default_validation_context: Some(named.clone()), ..Default::default() };
    for validation in
        [ValidationContextType::ValidationContext(named), ValidationContextType::CombinedValidationContext(combined)]
    {
        let refusal = terminated(|context| {
            context.common_tls_context.as_mut().expect("as it is made").validation_context_type = Some(validation);
        })
        .expect_err("anybody could bear the name");
        let reason = "without trusted roots anybody's certificate could bear the names that are asked for";
        assert!(refusal.contains(reason), "{refusal}");
    }
}

#[test]
fn mutual_tls_is_read_with_its_secrets_and_names() {
    let context = tls::DownstreamTlsContext {
        require_client_certificate: Some(BoolValue { value: true }),
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![secret("default")],
            alpn_protocols: vec!["istio".into(), "h2".into()],
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(named(MatchPattern::Prefix("spiffe://cluster.local/".into()))),
                    validation_context_sds_secret_config: Some(secret("ROOTCA")),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    let inbound = secured("inbound", &context);
    let listener = compile(&listener("inbound|9080", "10.244.0.7:9080", vec![inbound]));
    let sds = Some(Arc::from("sds-grpc"));
    assert_eq!(
        listener.secrets(),
        [
            SecretName { name: "default".into(), cluster: sds.clone() },
            SecretName { name: "ROOTCA".into(), cluster: sds }
        ]
    );
    let tls = listener.filter_chains[0].tls.as_ref().expect("the chain has TLS");
    assert!(tls.require_client_certificate);
    let accepts = |kind, name| tls.common.accepts([(kind, name)].into_iter());
    assert!(accepts(SanKind::Uri, "spiffe://cluster.local/ns/default/sa/reviews"));
    assert!(!accepts(SanKind::Uri, "spiffe://other/ns/default/sa/reviews"));
    assert!(!accepts(SanKind::Dns, "spiffe://cluster.local/"), "another kind of name");
    assert!(matches!(listener.filter_chains[0].filter, NetworkFilter::Tcp(_)));
}

#[test]
fn which_versions_of_the_proxy_protocol_are_expected() {
    let compile = |optional, disallowed_versions: &[i32], change: fn(&mut proto::Listener)| {
        let expected = ProtoProxyProtocol {
            allow_requests_without_proxy_protocol: optional,
            disallowed_versions: disallowed_versions.to_vec(),
            ..Default::default()
        };
        let name = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
        let mut message = listener("l", "127.0.0.1:80", vec![chain("c", Default::default())]);
        message.listener_filters = vec![proto::ListenerFilter {
            name: "proxy_protocol".into(),
            config_type: Some(proto::listener_filter::ConfigType::TypedConfig(any(name, &expected))),
            ..Default::default()
        }];
        change(&mut message);
        Listener::compile(&message, Strictness::Refuse).map(|it| it.value.proxy_protocol)
    };
    let nothing: fn(&mut proto::Listener) = |_| {};
    assert_eq!(compile(false, &[], nothing), Ok(Some(ProxyProtocol { v1: true, v2: true, optional: false })));
    assert_eq!(compile(true, &[0], nothing), Ok(Some(ProxyProtocol { v1: false, v2: true, optional: true })));
    assert_eq!(compile(false, &[1], nothing), Ok(Some(ProxyProtocol { v1: true, v2: false, optional: false })));
    for (refused, path) in [
        (compile(false, &[0, 1], nothing), "Listener.listener_filters[0].typed_config.disallowed_versions"),
        (compile(true, &[0, 1], nothing), "Listener.listener_filters[0].typed_config.disallowed_versions"),
        (
            compile(false, &[], |listener| listener.bind_to_port = Some(BoolValue { value: false })),
            "Listener.listener_filters",
        ),
        (
            compile(false, &[], |listener| {
                listener.listener_filters[0].filter_disabled = Some(proto::ListenerFilterChainMatchPredicate {
                    rule: Some(proto::listener_filter_chain_match_predicate::Rule::AnyMatch(true)),
                });
            }),
            "Listener.listener_filters[0].filter_disabled",
        ),
    ] {
        assert_eq!(refused.unwrap_err().0[0].path, path);
    }
}

#[test]
fn a_filter_chain_takes_as_many_connections_as_it_is_told() {
    let limited = |max_connections: u64, position: usize| {
        let limit = ProtoConnectionLimit {
            stat_prefix: "l".into(),
            max_connections: Some(UInt64Value { value: max_connections }),
            ..Default::default()
        };
        let filter = proto::Filter {
            name: "limit".into(),
            config_type: Some(proto::filter::ConfigType::TypedConfig(any(
                "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
                &limit,
            ))),
        };
        let mut chain = chain("c", Default::default());
        chain.filters.insert(position, filter);
        Listener::compile(&listener("l", "127.0.0.1:80", vec![chain]), Strictness::Refuse)
    };
    let listener = limited(2, 0).unwrap().value;
    let limit = listener.filter_chains[0].connection_limit.as_ref().unwrap();
    let (first, second) = (limit.take(), limit.take());
    assert!(first.is_some() && second.is_some() && limit.take().is_none());
    drop(first);
    assert!(limit.take().is_some());
    let path = |refused: Result<_, Problems>| refused.err().map(|problems| problems.0[0].path.clone());
    let fields = "Listener.filter_chains[0].filters";
    assert_eq!(path(limited(0, 0).map(|_| ())), Some(format!("{fields}[0].typed_config.max_connections")));
    assert_eq!(path(limited(1, 1).map(|_| ())), Some(fields.into()));
}
