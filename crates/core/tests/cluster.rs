//! Clusters and records: transport per endpoint, protocol options, what is refused, formats.

mod support;

use support::any;
use weft_core::cluster::{Cluster, Discovery, LbPolicy, ProxyProtocolVersion, UpstreamProtocol};
use weft_core::compile::Strictness;
use weft_core::endpoint::LoadAssignment;
use weft_core::format::{Command, Format, GrpcFormat, Piece, Variables};
use weft_core::time_format::TimeFormat;
use weft_protos::envoy::config::cluster::v3 as proto;
use weft_protos::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::core::v3::address::Address as AddressKind;
use weft_protos::envoy::config::core::v3::{
    Address, BindConfig, Metadata, Pipe, ProxyProtocolConfig, SocketAddress, TransportSocket as Socket,
    transport_socket,
};
use weft_protos::envoy::config::endpoint::v3 as eds;
use weft_protos::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use weft_protos::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use weft_protos::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use weft_protos::google::protobuf::{ListValue, Struct, UInt32Value, Value, value::Kind};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn labels(mode: &str) -> Struct {
    label("tlsMode", Kind::StringValue(mode.into()))
}

fn label(key: &str, value: Kind) -> Struct {
    Struct { fields: [(key.to_owned(), Value { kind: Some(value) })].into() }
}

fn socket(name: &str, message: &impl weft_protos::Message) -> Option<Socket> {
    Some(Socket { name: "s".into(), config_type: Some(transport_socket::ConfigType::TypedConfig(any(name, message))) })
}

fn endpoint(labels: Option<Struct>) -> eds::LbEndpoint {
    let pipe = Address { address: Some(AddressKind::Pipe(Pipe { path: "/run/app.sock".into(), mode: 0 })) };
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(pipe),
            ..Default::default()
        })),
        metadata: labels.map(|labels| Metadata {
            filter_metadata: [("envoy.transport_socket_match".to_owned(), labels)].into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Which of the endpoints with these labels are spoken to in TLS by a cluster that does so where *wanted* matches.
fn in_tls(wanted: Struct, endpoints: Vec<Option<Struct>>) -> Vec<bool> {
    let tls = UpstreamTlsContext { sni: "mesh".into(), ..Default::default() };
    let matched = |name: &str, labels, socket| proto::cluster::TransportSocketMatch {
        name: name.into(),
        r#match: labels,
        transport_socket: socket,
    };
    let resource = proto::Cluster {
        name: "c".into(),
        transport_socket_matches: vec![
            matched("tls", Some(wanted), socket("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &tls)),
            matched(
                "plain",
                Some(Struct::default()),
                socket("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", &RawBuffer {}),
            ),
        ],
        ..Default::default()
    };
    let cluster = Cluster::compile(&resource, Strictness::Refuse).expect("honoured").value;
    let assignment = eds::ClusterLoadAssignment {
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: endpoints.into_iter().map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let assignment = LoadAssignment::compile(&assignment, Strictness::Refuse).expect("honoured").value;
    let endpoints = assignment.localities[0].endpoints.iter();
    endpoints.map(|endpoint| cluster.transport_for(endpoint).tls.is_some()).collect()
}

#[test]
fn mutual_tls_is_chosen_by_the_labels_of_the_endpoint() {
    let found = in_tls(labels("istio"), vec![Some(labels("istio")), Some(labels("other")), None]);
    assert_eq!(found, [true, false, false]);
}

#[test]
fn labels_of_all_kinds_choose_and_kinds_are_told_apart() {
    let accepts = |value| label("acceptMTLS", value);
    let text = |text: &str| Kind::StringValue(text.into());
    let list = |items: &[Kind]| {
        let values = items.iter().map(|kind| Value { kind: Some(kind.clone()) }).collect();
        Kind::ListValue(ListValue { values })
    };
    let kinds = [
        Kind::BoolValue(true),
        Kind::BoolValue(false),
        Kind::NullValue(0),
        Kind::NumberValue(1.0),
        Kind::NumberValue(1.5),
        Kind::StructValue(labels("istio")),
        list(&[text("a"), Kind::NumberValue(1.0)]),
        list(&[text("a")]),
        text("true"),
        text("null"),
        text("1"),
        text("[\"a\"]"),
        text(""),
    ];
    let endpoints = || kinds.iter().map(|kind| Some(accepts(kind.clone()))).chain([None]).collect::<Vec<_>>();
    for (index, kind) in kinds.iter().enumerate() {
        let expected: Vec<bool> = (0..=kinds.len()).map(|other| other == index).collect();
        assert_eq!(in_tls(accepts(kind.clone()), endpoints()), expected, "{kind:?}");
    }
}

#[test]
fn a_proxy_protocol_header_stands_before_what_another_socket_does() {
    let wrapped = |version, inner: Option<Socket>| {
        let transport = ProxyProtocolUpstreamTransport {
            config: Some(ProxyProtocolConfig { version, ..Default::default() }),
            transport_socket: inner,
            ..Default::default()
        };
        socket("envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", &transport)
    };
    let compile = |transport_socket| {
        let resource = proto::Cluster { name: "c".into(), transport_socket, ..Default::default() };
        Cluster::compile(&resource, Strictness::Refuse).map(|compiled| {
            let transport = &compiled.value.transport;
            (transport.proxy_protocol, transport.tls.is_some())
        })
    };
    let plain = || socket("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", &RawBuffer {});
    let tls = || socket("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &UpstreamTlsContext::default());
    assert_eq!(compile(plain()), Ok((None, false)));
    assert_eq!(compile(wrapped(0, None)), Ok((Some(ProxyProtocolVersion::V1), false)));
    assert_eq!(compile(wrapped(1, plain())), Ok((Some(ProxyProtocolVersion::V2), false)));
    assert_eq!(compile(wrapped(1, tls())), Ok((Some(ProxyProtocolVersion::V2), true)));
    for (socket, path) in [
        (wrapped(7, plain()), "Cluster.transport_socket.typed_config.config.version"),
        (wrapped(0, wrapped(1, tls())), "Cluster.transport_socket.typed_config.transport_socket"),
    ] {
        assert_eq!(compile(socket).unwrap_err().0[0].path, path);
    }
}

#[test]
fn defaults_are_envoys() {
    let cluster = Cluster::compile(&proto::Cluster { name: "c".into(), ..Default::default() }, Strictness::Refuse)
        .expect("honoured")
        .value;
    assert!(matches!(cluster.discovery, Discovery::Static(_)));
    assert_eq!(cluster.policy, LbPolicy::RoundRobin);
    assert_eq!(cluster.connect_timeout.as_secs(), 5);
    assert_eq!(cluster.http.protocol, UpstreamProtocol::Http1);
    assert_eq!(cluster.http.idle_timeout.map(|timeout| timeout.as_secs()), Some(3600));
    assert_eq!((cluster.limits.requests, cluster.limits.retries), (1024, 3));
    assert_eq!(cluster.buffer_limit_bytes, 1 << 20);
    assert_eq!(&*cluster.stat_name, "c");
}

#[test]
fn the_source_address_may_lie_in_another_network_namespace() {
    let source = SocketAddress {
        address: "0.0.0.0".into(),
        network_namespace_filepath: "/run/ns/a".into(),
        ..Default::default()
    };
    let resource = proto::Cluster {
        upstream_bind_config: Some(BindConfig { source_address: Some(source), ..Default::default() }),
        ..Default::default()
    };
    let cluster = Cluster::compile(&resource, Strictness::Refuse).expect("honoured").value;
    let bind = cluster.bind.expect("it binds");
    assert_eq!(bind.namespace.as_deref().and_then(|path| path.to_str()), Some("/run/ns/a"));
    assert_eq!(bind.address.port(), 0);
}

#[test]
fn what_weft_does_not_do_is_refused_by_name() {
    let of_type = |kind: DiscoveryType, policy| proto::Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        lb_policy: policy,
        ..Default::default()
    };
    let with = |options: HttpProtocolOptions| proto::Cluster {
        typed_extension_protocol_options: [(OPTIONS.to_owned(), any(OPTIONS, &options))].into(),
        ..Default::default()
    };
    let common =
        |common| with(HttpProtocolOptions { common_http_protocol_options: Some(common), ..Default::default() });
    let path = |field: &str| format!("Cluster.typed_extension_protocol_options[{OPTIONS}].{field}");
    let number = |value| Some(UInt32Value { value });
    for (name, cluster, path) in [
        (
            "no header at all",
            common(core::HttpProtocolOptions { max_headers_count: number(0), ..Default::default() }),
            &*path("common_http_protocol_options.max_headers_count"),
        ),
        (
            "headers of nine megabytes",
            common(core::HttpProtocolOptions { max_response_headers_kb: number(9000), ..Default::default() }),
            &path("common_http_protocol_options.max_response_headers_kb"),
        ),
        ("another's policy", of_type(DiscoveryType::Eds, 7), "Cluster.lb_policy"),
        ("turns among original destinations", of_type(DiscoveryType::OriginalDst, 0), "Cluster.lb_policy"),
        (
            "an endpoint that is a name",
            proto::Cluster {
                load_assignment: Some(eds::ClusterLoadAssignment {
                    endpoints: vec![eds::LocalityLbEndpoints {
                        lb_endpoints: vec![eds::LbEndpoint {
                            host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
                                address: Some(Address {
                                    address: Some(AddressKind::SocketAddress(SocketAddress {
                                        address: "example.com".into(),
                                        ..Default::default()
                                    })),
                                }),
                                ..Default::default()
                            })),
                            ..Default::default()
                        }],
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
                ..Default::default()
            },
            "Cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
    ] {
        let problems = Cluster::compile(&cluster, Strictness::Refuse).unwrap_err().0;
        assert_eq!(problems.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), [path], "{name}");
    }
}

#[test]
fn formats_are_parsed_or_refused() {
    let header = |name: &str, otherwise: Option<&str>, length| {
        Piece::Value(Command::RequestHeader { name: name.into(), otherwise: otherwise.map(Into::into), length })
    };
    for (text, expected) in [
        ("plain 100%%", vec![Piece::Text("plain 100%".into())]),
        ("%REQ(X-A?:PATH):8%", vec![header("x-a", Some(":path"), Some(8))]),
        ("[%PROTOCOL%]", vec![Piece::Text("[".into()), Piece::Value(Command::Protocol), Piece::Text("]".into())]),
        ("%GRPC_STATUS%", vec![Piece::Value(Command::GrpcStatus(GrpcFormat::Camel))]),
        ("%GRPC_STATUS(SNAKE_STRING)%", vec![Piece::Value(Command::GrpcStatus(GrpcFormat::Snake))]),
        ("%GRPC_STATUS_NUMBER%", vec![Piece::Value(Command::GrpcStatus(GrpcFormat::Number))]),
        ("%START_TIME(%Y-%m-%d)%", vec![Piece::Value(Command::StartTime(TimeFormat::parse("%F").ok()))]),
        ("%START_TIME()%", vec![Piece::Value(Command::StartTime(None))]),
    ] {
        assert_eq!(Format::parse(text).map(|format| format.0), Ok(expected), "{text}");
    }
    for text in ["%", "%PROTOCOL", "%NO_SUCH_COMMAND%", "%REQ(a", "%REQ(a)x%", "%REQ(a):long%", "%GRPC_STATUS(X)%"] {
        assert!(Format::parse(text).is_err(), "{text}");
    }
    let expected = "weft-proxy knows no conversion `%Q` of times, which is in the format `%H:%Q`";
    assert_eq!(Format::parse("[%START_TIME(%H:%Q)%]"), Err(expected.to_owned()));
}

#[test]
fn absent_values_are_written_as_the_record_wants_them() {
    struct Status;
    impl Variables for Status {
        fn write(&self, command: &Command, out: &mut Vec<u8>) -> bool {
            if *command == Command::ResponseCode {
                out.extend_from_slice(b"200");
                return true;
            }
            false
        }
    }
    let mut out = Vec::new();
    Format::parse("%RESPONSE_CODE% %UPSTREAM_HOST%").expect("a format").write(&Status, "-", &mut out);
    assert_eq!(out, b"200 -");
}
