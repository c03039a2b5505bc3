//! Access logs in Envoy's JSON: which records they take, where those go, and what is in them.

use std::time::Duration;

use serde_json::{Value, json};
use weft_core::access_log::{AccessLog, End, JsonValue, Record, Sink, TagValue};
use weft_core::compile::Strictness;
use weft_core::honoured::json::encode;
use weft_core::plan::Resource;
use weft_core::respond::{Flags, ResponseFlag};
use weft_protos::type_url;

const LOGGERS: &str = "type.googleapis.com/envoy.extensions.access_loggers";

/// The log of a listener that has this one; or why it is refused.
fn compile(log: &Value) -> Result<AccessLog, String> {
    let proxy = json!({"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "c"});
    let resource = json!({"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}], "access_log": [log]});
    let refused = |problems: weft_core::compile::Problems| problems.to_string();
    let bytes = encode(type_url::LISTENER, &resource).map_err(|problems| format!("{problems:?}"))?;
    let compiled = Resource::compile(type_url::LISTENER, &bytes, Strictness::Refuse).map_err(refused)?;
    match compiled.value {
        Resource::Listener(listener) => Ok(listener.access_logs[0].clone()),
        other => unreachable!("a listener becomes no {other:?}"),
    }
}

fn file(fields: &Value) -> Value {
    let mut config = fields.clone();
    config["@type"] = json!(format!("{LOGGERS}.file.v3.FileAccessLog"));
    config["path"] = json!("/log");
    json!({"name": "file", "typed_config": config})
}

fn filtered(filter: &Value) -> Result<AccessLog, String> {
    let mut log = file(&json!({}));
    log["filter"] = filter.clone();
    compile(&log)
}

fn status(op: &str, value: u32) -> Value {
    // The key is of a runtime, which there is none of: the default value holds.
    json!({"status_code_filter": {"comparison": {"op": op, "value": {"default_value": value, "runtime_key": "of.nobody"}}}})
}

fn flags(names: &[&str]) -> Value {
    json!({"response_flag_filter": {"flags": names}})
}

#[test]
fn a_log_takes_the_records_that_its_filter_says() {
    let calls =
        |statuses: &[&str], exclude: bool| json!({"grpc_status_filter": {"statuses": statuses, "exclude": exclude}});
    let end = |status, flag: Option<ResponseFlag>, grpc_status| {
        let mut flags = Flags::NONE;
        flag.into_iter().for_each(|flag| flags.insert(flag));
        End { status, flags, grpc_status }
    };
    let plain = |status| end(status, None, None);
    let flagged = |status| end(status, Some(ResponseFlag::NoRouteFound), None);
    let call = |status| end(200, None, Some(status));
    for (filter, end, taken) in [
        (status("EQ", 404), plain(404), true),
        (status("EQ", 404), plain(405), false),
        (status("GE", 500), plain(500), true),
        (status("GE", 500), plain(499), false),
        (status("LE", 499), plain(499), true),
        (status("LE", 499), plain(500), false),
        (flags(&[]), plain(503), false),
        (flags(&[]), flagged(404), true),
        (flags(&["NR", "UF"]), flagged(404), true),
        (flags(&["UH"]), flagged(404), false),
        (json!({"and_filter": {"filters": [status("GE", 400), flags(&["NR"])]}}), flagged(404), true),
        (json!({"and_filter": {"filters": [status("GE", 400), flags(&["NR"])]}}), plain(404), false),
        (json!({"or_filter": {"filters": [status("GE", 400), flags(&["NR"])]}}), plain(404), true),
        (json!({"or_filter": {"filters": [status("GE", 400), flags(&["NR"])]}}), plain(200), false),
        (calls(&["UNAVAILABLE"], false), call(14), true),
        (calls(&["UNAVAILABLE"], false), call(13), false),
        (calls(&["UNAVAILABLE"], true), call(14), false),
        (calls(&["UNAVAILABLE"], true), call(13), true),
    ] {
        let log = filtered(&filter).expect("honoured");
        assert_eq!(log.filter.expect("it has one").takes(&end), taken, "{filter}: {end:?}");
    }
}

#[test]
fn a_filter_that_cannot_be_asked_is_refused_by_name() {
    let filter = "Listener.access_log[0].filter";
    for (asked, path) in [
        (status("NE", 200), "status_code_filter.comparison.op: NE is not supported"),
        (flags(&["XX"]), "response_flag_filter.flags: there is no flag `XX`"),
    ] {
        assert_eq!(filtered(&asked).unwrap_err(), format!("{filter}.{path}"));
    }
    assert!(filtered(&json!({})).unwrap_err().starts_with(&format!("{filter}: status_code_filter, ")));
}

#[test]
fn a_line_has_the_format_that_the_log_says() {
    let record = |fields: Value| match compile(&file(&fields)).expect("honoured").sink {
        Sink::File { record, .. } => record,
        other => panic!("it is a file: {other:?}"),
    };
    let text = "%PROTOCOL%\n";
    for (fields, expected_pieces, omits) in [
        (json!({"format": text}), 2, false),
        (json!({"log_format": {"text_format": text}}), 2, false),
        (json!({"log_format": {"text_format": text, "omit_empty_values": true}}), 2, true),
    ] {
        let Record::Text { format, omit_empty } = record(fields.clone()) else { panic!("{fields} is text") };
        assert_eq!((format.0.len(), omit_empty), (expected_pieces, omits), "{fields}");
    }
    let Record::Text { format, .. } = record(json!({})) else { panic!("a log that says nothing is text") };
    assert!(format.0.len() > 20, "Envoy's own format");
    let members = json!({"a": "%RESPONSE_CODE%", "b": {"c": [1, true]}});
    for (fields, omits) in [
        (json!({"json_format": members}), false),
        (json!({"typed_json_format": members}), false),
        (json!({"log_format": {"json_format": members}}), false),
        (json!({"log_format": {"json_format": members, "omit_empty_values": true}}), true),
    ] {
        let Record::Json { fields: found, omit_empty } = record(fields.clone()) else { panic!("{fields} is JSON") };
        assert_eq!(omit_empty, omits, "{fields}");
        let [(a, JsonValue::Format(_)), (b, JsonValue::Object(inner))] = &*found else { panic!("{fields}: {found:?}") };
        assert_eq!((&**a, &**b), ("a", "b"));
        assert!(matches!(&**inner, [(c, JsonValue::List(_))] if &**c == "c"), "{fields}: {inner:?}");
    }
}

/// A log by gRPC, with *more* besides what it must have.
fn service(kind: &str, more: &Value, common: &Value) -> Value {
    let mut config = more.clone();
    config["@type"] = json!(format!("{LOGGERS}.grpc.v3.{kind}GrpcAccessLogConfig"));
    config["common_config"] = common.clone();
    json!({"name": "grpc", "typed_config": config})
}

#[test]
fn a_log_service_is_told_what_the_log_says_as_often_as_it_says() {
    let target = json!({"envoy_grpc": {"cluster_name": "records"}});
    let common = json!({
        "log_name": "mine", "transport_api_version": "V3", "grpc_service": target,
        "buffer_flush_interval": "0.25s", "buffer_size_bytes": 1000,
        "custom_tags": [
            {"tag": "mesh", "literal": {"value": "weft"}},
            {"tag": "rule", "metadata": {"kind": {"route": {}}, "default_value": "none",
                "metadata_key": {"key": "weft", "path": [{"key": "origins"}, {"key": "match"}]}}},
        ],
    });
    let more = json!({
        "additional_request_headers_to_log": ["X-User"],
        "additional_response_headers_to_log": ["X-Cache"],
        "additional_response_trailers_to_log": ["Grpc-Message"],
    });
    let of = |log: &Value| match compile(log).expect("honoured").sink {
        Sink::Service(service) => service,
        other => panic!("it is a service: {other:?}"),
    };
    let names = |names: &[Box<str>]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let log = of(&service("Http", &more, &common));
    assert_eq!((&*log.cluster, &*log.log_name), ("records", "mine"));
    assert_eq!((log.buffer_bytes, log.flush_interval), (1000, Duration::from_millis(250)));
    assert_eq!(names(&log.request_headers), ["x-user"]);
    assert_eq!(names(&log.response_headers), ["x-cache"]);
    assert_eq!(names(&log.response_trailers), ["grpc-message"]);
    let asked = compile(&service("Http", &more, &common)).expect("honoured").response_trailers();
    assert_eq!(names(&asked), ["grpc-message"], "so they are kept until the record is made");
    let [mesh, rule] = &*log.tags else { panic!("{:?}", log.tags) };
    assert_eq!((&*mesh.name, &mesh.value), ("mesh", &TagValue::Literal("weft".into())));
    let path: Box<[Box<str>]> = Box::new(["origins".into(), "match".into()]);
    assert_eq!((&*rule.name, &rule.value), ("rule", &TagValue::RouteMetadata { path, otherwise: "none".into() }));

    let plain = json!({"log_name": "mine", "grpc_service": target});
    let log = of(&service("Tcp", &json!({}), &plain));
    assert_eq!((log.buffer_bytes, log.flush_interval), (16 << 10, Duration::from_secs(1)), "Envoy's defaults");
}

#[test]
fn a_log_service_that_cannot_be_told_is_refused_by_name() {
    let config = "Listener.access_log[0].typed_config.common_config";
    let tag = |metadata: Value| {
        json!({"log_name": "mine", "grpc_service": {"envoy_grpc": {"cluster_name": "records"}},
            "custom_tags": [{"tag": "t", "metadata": metadata}]})
    };
    let of_host = tag(json!({"kind": {"route": {}}, "metadata_key": {"key": "other"}}));
    for (common, refused) in [
        (json!({"log_name": "mine"}), "grpc_service: envoy_grpc with the name of a cluster is needed"),
        (json!({"grpc_service": {"envoy_grpc": {"cluster_name": "records"}}}), "log_name: required"),
        (of_host, "custom_tags[0].metadata: only the metadata `weft` of the route is kept"),
    ] {
        assert_eq!(compile(&service("Http", &json!({}), &common)).unwrap_err(), format!("{config}.{refused}"));
    }
}
