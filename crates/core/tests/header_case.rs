//! Which version of HTTP a cluster speaks that asks to preserve the case of names, and what of such a wish cannot be honoured.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_core::cluster::{Cluster, VersionChoice};
use weft_core::compile::{Problem, Strictness};
use weft_core::honoured::json::encode;
use weft_core::http1::Http1Options;
use weft_core::plan::Resource;
use weft_protos::type_url;

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster over TLS that offers both versions, with these options of HTTP.
fn cluster(mut options: Value) -> Value {
    options["@type"] = format!("type.googleapis.com/{OPTIONS}").into();
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"]},
    });
    json!({
        "name": "up",
        "type": "STATIC",
        "transport_socket": {"name": "tls", "typed_config": tls},
        "typed_extension_protocol_options": {OPTIONS: options},
    })
}

/// Options of HTTP/1.1 with the formatter, of which *more* is said.
fn preserve_case(more: Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({"header_key_format": {"stateful_formatter": {"name": "preserve_case", "typed_config": config}}})
}

fn compile(cluster: &Value) -> Result<Arc<Cluster>, String> {
    let said = |problems: &[Problem]| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let bytes = encode(type_url::CLUSTER, cluster).map_err(|problems| said(&problems))?;
    match Resource::compile(type_url::CLUSTER, &bytes, Strictness::Refuse).map(|compiled| compiled.value) {
        Ok(Resource::Cluster(cluster)) => Ok(cluster),
        Ok(_) => unreachable!("it was a cluster"),
        Err(problems) => Err(said(&problems.0)),
    }
}

#[test]
fn who_asks_for_the_case_of_names_gets_http1_unless_http2_is_all_that_is_asked_for() {
    use VersionChoice::{Endpoint, Http1, Http2, OfferHttp1};
    let both = json!({"http_protocol_options": preserve_case(json!({})), "http2_protocol_options": {}});
    for (name, options, keeps, of_http1, of_http2) in [
        ("chosen by ALPN", json!({"auto_config": both}), true, OfferHttp1, Endpoint),
        (
            "chosen by ALPN, not asked for",
            json!({"auto_config": {"http2_protocol_options": {}}}),
            false,
            Endpoint,
            Endpoint,
        ),
        ("the client's", json!({"use_downstream_protocol_config": both}), true, Http1, Http2),
        (
            "HTTP/1.1",
            json!({"explicit_http_config": {"http_protocol_options": preserve_case(json!({}))}}),
            true,
            Http1,
            Http1,
        ),
        ("HTTP/2", json!({"explicit_http_config": {"http2_protocol_options": {}}}), false, Http2, Http2),
    ] {
        let http = compile(&cluster(options)).expect(name);
        assert_eq!(http.http.http1.keeps_case, keeps, "{name}");
        let version = |http2| http.http.version_for(&http.transport, http2, false);
        assert_eq!((version(false), version(true)), (of_http1, of_http2), "{name}");
    }
    // Phrases go on with it where that is asked for.
    for forwards in [true, false] {
        let options = preserve_case(json!({"forward_reason_phrase": forwards}));
        let http = compile(&cluster(json!({"explicit_http_config": {"http_protocol_options": options}})));
        assert_eq!(
            http.expect("it is honoured").http.http1,
            Http1Options { keeps_case: true, forwards_reason: forwards }
        );
    }
    // The older field for the same.
    let mut older = json!({"name": "up", "type": "STATIC", "http_protocol_options": preserve_case(json!({}))});
    assert!(compile(&older).expect("it is honoured").http.http1.keeps_case);
    older["http_protocol_options"] = json!({});
    assert!(!compile(&older).expect("it is honoured").http.http1.keeps_case);
}

#[test]
fn other_spellings_are_refused_by_name() {
    let explicit = |http1: Value| cluster(json!({"explicit_http_config": {"http_protocol_options": http1}}));
    let another = json!({"name": "it", "typed_config": {"@type": format!("type.googleapis.com/{OPTIONS}")}});
    for (options, named) in [
        (json!({"header_key_format": {"proper_case_words": {}}}), "header_key_format.proper_case_words"),
        (
            preserve_case(json!({"formatter_type_on_envoy_headers": "PROPER_CASE"})),
            "stateful_formatter.typed_config.formatter_type_on_envoy_headers: what the proxy adds is in lower case",
        ),
        (
            json!({"header_key_format": {"stateful_formatter": {"name": "it"}}}),
            "stateful_formatter.typed_config: required",
        ),
        (
            json!({"header_key_format": {"stateful_formatter": another}}),
            "stateful_formatter.typed_config: weft-proxy does not know",
        ),
    ] {
        let refused = compile(&explicit(options)).expect_err(named);
        assert!(refused.contains(named), "{refused}");
        assert!(refused.contains("explicit_http_config.http_protocol_options"), "{refused}");
    }
}
