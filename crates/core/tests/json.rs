//! The JSON form of resources: what is read is what was meant, and what cannot be read is named.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use weft_core::honoured::json::{decode, encode, is_redacted};
use weft_protos::envoy::config::cluster::v3::cluster::{DiscoveryType, LbPolicy};
use weft_protos::envoy::config::cluster::v3::{Cluster, cluster};
use weft_protos::envoy::config::core::v3::{Metadata, TransportSocket, transport_socket};
use weft_protos::envoy::extensions::transport_sockets::tls::v3::{CommonTlsContext, UpstreamTlsContext};
use weft_protos::google::protobuf::{Any, Duration, ListValue, Struct, UInt32Value, Value, value::Kind};
use weft_protos::{Message, type_url};

fn read(value: &Json) -> Cluster {
    Cluster::decode(encode(type_url::CLUSTER, value).expect("good").as_slice()).expect("protobuf")
}

fn problems(value: &Json) -> Vec<String> {
    encode(type_url::CLUSTER, value).expect_err("bad").iter().map(ToString::to_string).collect()
}

fn of(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

#[test]
fn every_kind_of_field_is_read_in_both_spellings() {
    let tls = UpstreamTlsContext {
        sni: "s".into(),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["a".into(), "b".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let structure = |fields: Vec<(&str, Value)>| Struct {
        fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    };
    let metadata = structure(vec![
        ("number", of(Kind::NumberValue(1.5))),
        ("text", of(Kind::StringValue("t".into()))),
        ("truth", of(Kind::BoolValue(true))),
        ("nothing", of(Kind::NullValue(0))),
        ("list", of(Kind::ListValue(ListValue { values: vec![of(Kind::NumberValue(-2.0))] }))),
        ("inner", of(Kind::StructValue(structure(vec![])))),
    ]);
    let expected = Cluster {
        name: "c".into(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        connect_timeout: Some(Duration { seconds: 1, nanos: 250_000_000 }),
        per_connection_buffer_limit_bytes: Some(UInt32Value { value: 7 }),
        lb_policy: LbPolicy::LeastRequest as i32,
        lb_config: Some(cluster::LbConfig::LeastRequestLbConfig(cluster::LeastRequestLbConfig {
            choice_count: Some(UInt32Value { value: 0 }),
            ..Default::default()
        })),
        transport_socket: Some(TransportSocket {
            name: "tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(Any {
                type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext".into(),
                value: tls.encode_to_vec().into(),
            })),
        }),
        metadata: Some(Metadata { filter_metadata: [("weft".to_owned(), metadata)].into(), ..Default::default() }),
        ..Default::default()
    };
    let context = json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "s", "common_tls_context": {"alpnProtocols": ["a", "b"]}});
    let metadata = json!({"number": 1.5, "text": "t", "truth": true, "nothing": null, "list": [-2], "inner": {}});
    let snake = json!({"name": "c", "type": "EDS", "connect_timeout": "1.25s", "per_connection_buffer_limit_bytes": 7,
        "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 0}, "alt_stat_name": null,
        "transport_socket": {"name": "tls", "typed_config": context}, "metadata": {"filter_metadata": {"weft": metadata}}});
    let camel = json!({"@type": type_url::CLUSTER, "name": "c", "type": 3, "connectTimeout": "1.250s",
        "perConnectionBufferLimitBytes": "7", "lbPolicy": 1, "leastRequestLbConfig": {"choiceCount": 0.0},
        "transportSocket": {"name": "tls", "typedConfig": context}, "metadata": {"filterMetadata": {"weft": metadata}}});
    assert_eq!(read(&snake), expected);
    assert_eq!(read(&camel), expected);
    // And written as Envoy writes it.
    let context = json!({"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "s", "common_tls_context": {"alpn_protocols": ["a", "b"]}});
    let metadata = json!({"number": 1.5, "text": "t", "truth": true, "nothing": null, "list": [-2.0], "inner": {}});
    let shown = json!({"@type": type_url::CLUSTER, "name": "c", "type": "EDS", "connect_timeout": "1.250s",
        "per_connection_buffer_limit_bytes": 7, "lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 0},
        "transport_socket": {"name": "tls", "typed_config": context}, "metadata": {"filter_metadata": {"weft": metadata}}});
    assert_eq!(decode(type_url::CLUSTER, &expected.encode_to_vec()), Some(shown));
}

#[test]
fn durations_are_written_with_the_digits_that_they_need() {
    for (seconds, nanos, text) in [
        (0, 0, "0s"),
        (15, 0, "15s"),
        (0, 250_000_000, "0.250s"),
        (3, 1_000, "3.000001s"),
        (0, 1, "0.000000001s"),
        (-1, -500_000_000, "-1.500s"),
        (0, -1_000_000, "-0.001s"),
    ] {
        let duration = Duration { seconds, nanos };
        let cluster = Cluster { connect_timeout: Some(duration), ..Default::default() };
        let shown = decode(type_url::CLUSTER, &cluster.encode_to_vec()).expect("a cluster");
        assert_eq!(shown["connect_timeout"], text);
        assert_eq!(read(&shown).connect_timeout, Some(duration));
    }
}

#[test]
fn keys_are_not_shown() {
    let pem = |text: &str| json!({"inline_string": text});
    let written = json!({"name": "s", "tls_certificate": {
        "certificate_chain": pem("all may know"), "private_key": {"inline_bytes": "c2VjcmV0"},
    }});
    let shown = decode(type_url::SECRET, &encode(type_url::SECRET, &written).expect("good")).expect("a secret");
    let certificate = &shown["tls_certificate"];
    assert_eq!(certificate["certificate_chain"], pem("all may know"));
    assert_eq!(certificate["private_key"], json!({"inline_bytes": "W3JlZGFjdGVkXQ=="}));
    let keys = json!({"name": "s", "session_ticket_keys": {"keys": [pem("secret"), {"inline_bytes": "c2VjcmV0"}]}});
    let shown = decode(type_url::SECRET, &encode(type_url::SECRET, &keys).expect("good")).expect("a secret");
    assert_eq!(
        shown["session_ticket_keys"]["keys"],
        json!([{"inline_string": "[redacted]"}, {"inline_bytes": "W3JlZGFjdGVkXQ=="}])
    );
}

#[test]
fn what_a_dump_has_left_out_is_told_from_what_merely_reads_so() {
    let bytes = |value: &Json| encode(type_url::SECRET, value).expect("good");
    for source in [json!({"inline_string": "secret"}), json!({"inline_bytes": "c2VjcmV0"})] {
        let key = json!({"name": "s", "tls_certificate": {"private_key": source}});
        let keys = json!({"name": "s", "session_ticket_keys": {"keys": [source]}});
        for written in [key, keys].map(|written| bytes(&written)) {
            assert!(!is_redacted(type_url::SECRET, &written));
            let shown = decode(type_url::SECRET, &written).expect("a secret");
            assert!(is_redacted(type_url::SECRET, &bytes(&shown)), "{shown}");
        }
    }
    let chain =
        json!({"name": "[redacted]", "tls_certificate": {"certificate_chain": {"inline_string": "[redacted]"}}});
    assert!(!is_redacted(type_url::SECRET, &bytes(&chain)));
}

#[test]
fn a_message_in_parts_is_one_and_broken_bytes_are_none() {
    let part = |cluster: Cluster| cluster.encode_to_vec();
    let seconds = Cluster { connect_timeout: Some(Duration { seconds: 2, nanos: 0 }), ..Default::default() };
    let nanos = Cluster { connect_timeout: Some(Duration { seconds: 0, nanos: 500_000_000 }), ..Default::default() };
    let both = [part(seconds), part(nanos)].concat();
    assert_eq!(
        decode(type_url::CLUSTER, &both),
        Some(json!({"@type": type_url::CLUSTER, "connect_timeout": "2.500s"}))
    );
    let whole = Cluster { name: "a cluster".into(), ..Default::default() }.encode_to_vec();
    assert_eq!(decode(type_url::CLUSTER, &whole[..whole.len() - 1]), None);
    assert_eq!(decode(type_url::CLUSTER, b"\x0a\x01\xff"), None);
    assert_eq!(decode("type.googleapis.com/weft.Nonsense", &[]), None);
}

#[test]
fn bytes_are_base64_in_either_alphabet() {
    let secret = |text: &str| {
        let value = json!({"name": "s", "tls_certificate": {"private_key": {"inline_bytes": text}}});
        encode(type_url::SECRET, &value)
    };
    for (text, bytes) in [("", &b""[..]), ("YQ==", b"a"), ("YWI", b"ab"), ("YWJj", b"abc"), ("-_8=", &[0xfb, 0xff])] {
        let encoded = secret(text).expect("base64");
        assert!(encoded.ends_with(bytes), "{text}: {encoded:?}");
    }
    for text in ["Y", "YWJjZ", "a b", "ä"] {
        let problems = secret(text).expect_err(text);
        assert_eq!(problems[0].path, "Secret.tls_certificate.private_key.inline_bytes");
    }
}

#[test]
fn every_problem_is_named_with_its_path() {
    let value = json!({
        "name": 1, "connect_timeout": "soon", "type": "SOMEHOW", "lb_subset_config": {}, "altStatNames": "x",
        "per_connection_buffer_limit_bytes": -1, "transport_socket": {"typed_config": {"@type": "type.googleapis.com/weft.Nonsense"}},
        "circuit_breakers": {"thresholds": [{}, {"max_requests": "many"}]}, "load_assignment": []
    });
    let mut found = problems(&value);
    found.sort();
    assert_eq!(
        found,
        [
            "Cluster.altStatNames: envoy.config.cluster.v3.Cluster has no such field",
            "Cluster.circuit_breakers.thresholds[1].max_requests: expected a whole number of zero or more, found \"many\"",
            "Cluster.connect_timeout: expected a duration like \"1.5s\", found \"soon\"",
            "Cluster.lb_subset_config: weft-proxy does not honour this field",
            "Cluster.load_assignment: expected an object, found []",
            "Cluster.name: expected a string, found 1",
            "Cluster.per_connection_buffer_limit_bytes: expected a whole number of zero or more, found -1",
            "Cluster.transport_socket.typed_config: weft-proxy does not know the type `type.googleapis.com/weft.Nonsense`",
            "Cluster.type: expected one of STATIC, STRICT_DNS, LOGICAL_DNS, EDS, ORIGINAL_DST, found \"SOMEHOW\"",
        ]
    );
    let unknown = encode("type.googleapis.com/weft.Nonsense", &json!({})).expect_err("unknown");
    assert_eq!(unknown[0].path, "type.googleapis.com/weft.Nonsense");
}
