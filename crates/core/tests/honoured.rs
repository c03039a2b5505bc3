//! Refused, not ignored: what is set and not honoured is named with its path.
#![allow(deprecated)] // A cluster's own options of HTTP/1, which weft reads.

mod support;

use quickcheck::quickcheck;
use support::{any, prefix, to};
use weft_core::compile::{Compiled, Problems, Strictness};
use weft_core::honoured::walk;
use weft_core::plan::Resource;
use weft_protos::envoy::config::cluster::v3::{self as envoy_cluster, Cluster, OutlierDetection, cluster};
use weft_protos::envoy::config::core::v3::{Http1ProtocolOptions, TransportSocket, transport_socket};
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, TlsParameters, UpstreamTlsContext};
use weft_protos::google::protobuf::{Duration, Empty, UInt32Value};
use weft_protos::{Message, type_url};

fn paths(type_url: &str, message: &impl Message) -> Vec<String> {
    walk(type_url, &message.encode_to_vec()).into_iter().map(|problem| problem.path).collect()
}

fn tls_socket(context: &UpstreamTlsContext) -> Option<TransportSocket> {
    let config = any("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", context);
    Some(TransportSocket { name: "tls".into(), config_type: Some(transport_socket::ConfigType::TypedConfig(config)) })
}

#[test]
fn honoured_fields_pass() {
    let cluster = Cluster {
        name: "c".into(),
        connect_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        outlier_detection: Some(OutlierDetection {
            success_rate_stdev_factor: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }),
        transport_socket: tls_socket(&UpstreamTlsContext { sni: "s".into(), ..Default::default() }),
        http_protocol_options: Some(Http1ProtocolOptions { enable_trailers: true, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(paths(type_url::CLUSTER, &cluster), [""; 0]);
}

#[test]
fn every_unhonoured_field_is_named_with_its_path() {
    let weak = UpstreamTlsContext {
        allow_renegotiation: true,
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                signature_algorithms: vec!["a".into(), "b".into()],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let matched =
        |socket| cluster::TransportSocketMatch { name: "m".into(), transport_socket: socket, ..Default::default() };
    let cluster = Cluster {
        close_connections_on_host_health_failure: true,
        outlier_detection: Some(OutlierDetection {
            max_ejection_time_jitter: Some(Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        }),
        http_protocol_options: Some(Http1ProtocolOptions {
            enable_trailers: true,
            allow_chunked_length: true,
            ..Default::default()
        }),
        transport_socket_matches: vec![matched(None), matched(tls_socket(&weak))],
        typed_extension_protocol_options: [("x".to_owned(), any("google.protobuf.Empty", &Empty {}))].into(),
        ..Default::default()
    };
    let mut found = paths(type_url::CLUSTER, &cluster);
    found.sort();
    assert_eq!(
        found,
        [
            "Cluster.close_connections_on_host_health_failure",
            "Cluster.http_protocol_options.allow_chunked_length",
            "Cluster.outlier_detection.max_ejection_time_jitter",
            "Cluster.transport_socket_matches[1].transport_socket.typed_config.allow_renegotiation",
            "Cluster.transport_socket_matches[1].transport_socket.typed_config.common_tls_context.tls_params.signature_algorithms",
            "Cluster.typed_extension_protocol_options[x]",
        ]
    );
}

#[test]
fn unknown_types_and_fields_are_named() {
    let unknown = walk("type.googleapis.com/envoy.service.runtime.v3.Runtime", b"");
    assert_eq!(unknown.len(), 1);
    // An extension is no resource, and a resource no extension.
    assert_eq!(walk("type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", b"").len(), 1);
    // Field 1000, varint 1.
    let newer = walk(type_url::CLUSTER, &[0xc0, 0x3e, 0x01]);
    assert_eq!(newer[0].path, "Cluster.1000");
    let mut action = to("c", prefix("/"));
    action.typed_per_filter_config = [("f".to_owned(), any("weft.Nonsense", &Empty {}))].into();
    let configuration = support::configuration(vec![support::host("h", &["*"], vec![action])]);
    let found = walk(type_url::ROUTE_CONFIGURATION, &configuration.encode_to_vec());
    assert_eq!(found[0].path, "RouteConfiguration.virtual_hosts[0].routes[0].typed_per_filter_config[f]");
    assert!(found[0].reason.contains("weft.Nonsense"), "{}", found[0].reason);
}

#[test]
fn a_resource_is_refused_or_its_rest_is_applied() {
    let mut configuration = support::configuration(vec![support::host("h", &["*"], vec![to("c", prefix("/"))])]);
    configuration.virtual_hosts[0].hedge_policy = Some(route::HedgePolicy::default());
    let bytes = configuration.encode_to_vec();
    let refused = Resource::compile(type_url::ROUTE_CONFIGURATION, &bytes, Strictness::Refuse).unwrap_err();
    assert_eq!(refused.0[0].path, "RouteConfiguration.virtual_hosts[0].hedge_policy");
    let collected = Resource::compile(type_url::ROUTE_CONFIGURATION, &bytes, Strictness::Collect).expect("collected");
    assert_eq!(collected.not_applied, refused.0);
}

/// A filter's configuration as istiod packs it: the type that it means is inside.
fn typed_struct(type_url: &str) -> weft_protos::google::protobuf::Any {
    // udpa.type.v1.TypedStruct: type_url is field 1, a string.
    let mut value = vec![0x0a];
    length(type_url.len(), &mut value);
    value.extend_from_slice(type_url.as_bytes());
    weft_protos::google::protobuf::Any {
        type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(),
        value: value.into(),
    }
}

#[test]
fn what_is_not_applied_is_accepted_and_reported_where_it_may_stand() {
    const MX: &str = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange";
    let filter = |config| envoy_cluster::Filter {
        name: "istio.metadata_exchange".into(),
        typed_config: Some(config),
        ..Default::default()
    };
    let cluster = Cluster { name: "c".into(), filters: vec![filter(typed_struct(MX))], ..Default::default() };
    let compiled = Resource::compile(type_url::CLUSTER, &cluster.encode_to_vec(), Strictness::Refuse).expect("good");
    let [problem] = &*compiled.not_applied else { panic!("{:?}", compiled.not_applied) };
    assert_eq!(problem.path, "Cluster.filters[0]");
    assert!(problem.reason.starts_with("the filter istio.metadata_exchange is passed over: "), "{problem}");
    // Another type is refused, in a TypedStruct or by itself, and so is a good one at a place that needs what it cannot be.
    let other = typed_struct("type.googleapis.com/weft.Nonsense");
    let socket = TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(typed_struct(MX))),
    };
    for cluster in [
        Cluster { name: "c".into(), filters: vec![filter(other)], ..Default::default() },
        Cluster { name: "c".into(), filters: vec![filter(any("weft.Nonsense", &Empty {}))], ..Default::default() },
        Cluster { name: "c".into(), transport_socket: Some(socket), ..Default::default() },
    ] {
        Resource::compile(type_url::CLUSTER, &cluster.encode_to_vec(), Strictness::Refuse).unwrap_err();
    }
}

/// A cluster whose upstreams are reached by TLS with *parameters*.
fn compile_tls(parameters: TlsParameters) -> Result<Compiled<Resource>, Problems> {
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext { tls_params: Some(parameters), ..Default::default() }),
        ..Default::default()
    };
    let cluster = Cluster { name: "c".into(), transport_socket: tls_socket(&context), ..Default::default() };
    Resource::compile(type_url::CLUSTER, &cluster.encode_to_vec(), Strictness::Refuse)
}

#[test]
fn cipher_suites_are_narrowed_to_what_is_offered_and_unknown_ones_refused() {
    let compile = |suites: &[&str]| {
        let parameters =
            TlsParameters { cipher_suites: suites.iter().map(|it| (*it).into()).collect(), ..Default::default() };
        compile_tls(parameters)
            .map(|compiled| compiled.not_applied.into_iter().map(|it| it.reason).collect::<Vec<_>>())
            .map_err(|problems| problems.to_string())
    };
    assert_eq!(compile(&["ECDHE-RSA-AES256-GCM-SHA384"]), Ok(vec![]));
    assert_eq!(compile(&["[ECDHE-RSA-AES256-GCM-SHA384|ECDHE-ECDSA-CHACHA20-POLY1305]"]), Ok(vec![]));
    assert_eq!(
        compile(&["ECDHE-RSA-AES256-GCM-SHA384", "AES256-GCM-SHA384", "AES128-SHA"]),
        Ok(vec!["not offered by weft-proxy: AES256-GCM-SHA384, AES128-SHA".to_owned()])
    );
    let path = "Cluster.transport_socket.typed_config.common_tls_context.tls_params.cipher_suites";
    assert_eq!(
        compile(&["AES128-SHA"]),
        Err(format!("{path}: weft-proxy offers none of these, so nobody could connect by TLS 1.2"))
    );
    assert_eq!(
        compile(&["ECDHE-RSA-AES256-GCM-SHA384", "ROT13"]),
        Err(format!("{path}: weft-proxy knows no cipher suite `ROT13`"))
    );
}

#[test]
fn curves_that_are_not_offered_are_refused_by_name() {
    let compile = |curves: &[&str]| {
        let parameters =
            TlsParameters { ecdh_curves: curves.iter().map(|it| (*it).into()).collect(), ..Default::default() };
        compile_tls(parameters).map(|_| ()).map_err(|problems| problems.to_string())
    };
    assert_eq!(compile(&["X25519MLKEM768", "X25519", "P-256", "P-384"]), Ok(()));
    let path = "Cluster.transport_socket.typed_config.common_tls_context.tls_params.ecdh_curves[1]";
    assert_eq!(compile(&["P-256", "P-521"]), Err(format!("{path}: weft-proxy offers no curve `P-521`")));
}

/// Append a varint.
fn length(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn truncated_bytes_are_refused_and_deep_nesting_ends() {
    let cluster = Cluster { name: "a name of some length".into(), ..Default::default() }.encode_to_vec();
    for length in 1..cluster.len() {
        assert!(!walk(type_url::CLUSTER, &cluster[..length]).is_empty(), "{length} bytes");
    }
    // ListValue (field 6 of Value, field 1 of ListValue) within itself, in a metadata struct: thousands of levels.
    let mut value: Vec<u8> = Vec::new();
    let wrap = |tag: u8, inner: &[u8]| {
        let mut out = vec![tag];
        length(inner.len(), &mut out);
        out.extend_from_slice(inner);
        out
    };
    for _ in 0..2000 {
        value = wrap(0x32, &wrap(0x0a, &value));
    }
    let fields = wrap(0x0a, &[wrap(0x0a, b"k"), wrap(0x12, &value)].concat());
    let entry = wrap(0x0a, &[wrap(0x0a, b"weft"), wrap(0x12, &fields)].concat());
    // Cluster.metadata is field 25.
    let mut bytes = vec![0xca, 0x01];
    length(entry.len(), &mut bytes);
    bytes.extend_from_slice(&entry);
    let problems = walk(type_url::CLUSTER, &bytes);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].reason, "nested too deeply");
}

quickcheck! {
    /// Whatever the bytes, walking and compiling ends without a panic, and what the walk calls broken is not compiled.
    fn foreign_bytes_do_no_harm(bytes: Vec<u8>, which: u8) -> bool {
        let types = [type_url::CLUSTER, type_url::LISTENER, type_url::ROUTE_CONFIGURATION, type_url::CLUSTER_LOAD_ASSIGNMENT];
        let type_url = types[which as usize % types.len()];
        let problems = walk(type_url, &bytes);
        let compiled = Resource::compile(type_url, &bytes, Strictness::Refuse);
        problems.is_empty() || compiled.is_err()
    }
}
