//! `Cluster.health_checks`, compiled.

use std::time::Duration;

use weft_protos::envoy::config::core::v3 as proto;
use weft_protos::envoy::config::core::v3::RequestMethod;
use weft_protos::envoy::config::core::v3::health_check::payload::Payload as Bytes;
use weft_protos::envoy::config::core::v3::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload};
use weft_protos::envoy::r#type::v3::{CodecClientType, Int64Range};
use weft_protos::google::protobuf;

use crate::cluster::Discovery;
use crate::compile::Context;
use crate::endpoint::labels;
use crate::header_edit::HeaderEdits;
use crate::matching::StringMatch;

use super::{Exchange, GrpcProbe, HealthCheck, HttpProbe, Intervals, Probe, Statuses};

/// Envoy's defaults.
const DEFAULT_NO_TRAFFIC_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_BUFFER_BYTES: u64 = 1024;
/// Nobody puts more into an answer to a check; each endpoint may keep so much while it is checked.
const MOST_BUFFER_BYTES: u64 = 1 << 20;

impl HealthCheck {
    /// Compile a cluster's checks; it may have one.
    pub(crate) fn compile_only(
        context: &mut Context,
        checks: &[proto::HealthCheck],
        discovery: &Discovery,
    ) -> Option<Self> {
        if checks.len() > 1 {
            context.refuse_at("health_checks[1]", "a cluster has one health check, as in Envoy");
        }
        if !checks.is_empty() && matches!(discovery, Discovery::OriginalDst) {
            context
                .refuse_at("health_checks[0]", "nothing of an ORIGINAL_DST cluster is known before its clients come");
        }
        let check = checks.first()?;
        context.at("health_checks[0]", |context| Self::compile(context, check))
    }

    fn compile(context: &mut Context, check: &proto::HealthCheck) -> Option<Self> {
        let timeout = needed(context, "timeout", check.timeout.as_ref());
        let usual = needed(context, "interval", check.interval.as_ref());
        let unhealthy =
            context.positive_duration("unhealthy_interval", check.unhealthy_interval.as_ref()).unwrap_or(usual);
        let no_traffic = context
            .positive_duration("no_traffic_interval", check.no_traffic_interval.as_ref())
            .unwrap_or(DEFAULT_NO_TRAFFIC_INTERVAL);
        let no_traffic_healthy = check.no_traffic_healthy_interval.as_ref();
        let intervals = Intervals {
            usual,
            unhealthy,
            unhealthy_edge: context
                .positive_duration("unhealthy_edge_interval", check.unhealthy_edge_interval.as_ref())
                .unwrap_or(unhealthy),
            healthy_edge: context
                .positive_duration("healthy_edge_interval", check.healthy_edge_interval.as_ref())
                .unwrap_or(usual),
            no_traffic_healthy: context
                .positive_duration("no_traffic_healthy_interval", no_traffic_healthy)
                .unwrap_or(no_traffic),
            no_traffic,
        };
        let probe = match &check.health_checker {
            Some(HealthChecker::HttpHealthCheck(http)) => {
                context.at("http_health_check", |context| Some(Probe::Http(http_probe(context, http))))
            }
            Some(HealthChecker::TcpHealthCheck(tcp)) => context
                .at("tcp_health_check", |context| Some(Probe::Tcp(exchange(context, tcp.send.as_ref(), &tcp.receive)))),
            Some(HealthChecker::GrpcHealthCheck(grpc)) => {
                context.at("grpc_health_check", |context| Some(Probe::Grpc(grpc_probe(context, grpc))))
            }
            Some(HealthChecker::CustomHealthCheck(custom)) => {
                context.refuse_at("custom_health_check", format!("weft-proxy has no health checker `{}`", custom.name));
                None
            }
            None => {
                context.refuse("http_health_check, tcp_health_check or grpc_health_check is needed");
                None
            }
        };
        Some(Self {
            timeout,
            probe: probe?,
            reuses_connection: check.reuse_connection.as_ref().is_none_or(|reuse| reuse.value),
            alpn: check
                .tls_options
                .as_ref()
                .filter(|options| !options.alpn_protocols.is_empty())
                .map(|options| options.alpn_protocols.iter().map(|name| name.as_bytes().into()).collect()),
            transport_labels: check.transport_socket_match_criteria.as_ref().map(labels),
            logs_failures: check.always_log_health_check_failures,
            logs_successes: check.always_log_health_check_success,
            intervals,
            initial_jitter: context.duration("initial_jitter", check.initial_jitter.as_ref()).unwrap_or_default(),
            interval_jitter: context.duration("interval_jitter", check.interval_jitter.as_ref()).unwrap_or_default(),
            interval_jitter_percent: check.interval_jitter_percent,
            unhealthy_threshold: threshold(context, "unhealthy_threshold", check.unhealthy_threshold.as_ref()),
            healthy_threshold: threshold(context, "healthy_threshold", check.healthy_threshold.as_ref()),
            source: check.clone(),
        })
    }
}

fn needed(context: &mut Context, field: &str, value: Option<&protobuf::Duration>) -> Duration {
    if value.is_none() {
        context.refuse_at(field, "is needed");
    }
    context.positive_duration(field, value).unwrap_or_default()
}

fn threshold(context: &mut Context, field: &str, value: Option<&protobuf::UInt32Value>) -> u32 {
    match value.map(|value| value.value) {
        None => context.refuse_at(field, "is needed"),
        Some(0) => context.refuse_at(field, "must be one or more"),
        Some(count) => return count,
    }
    1
}

fn http_probe(context: &mut Context, http: &HttpHealthCheck) -> HttpProbe {
    if http.path.is_empty() {
        context.refuse_at("path", "is needed");
    }
    for (field, text) in [("path", &http.path), ("host", &http.host)] {
        plain(context, field, text);
    }
    let method = match RequestMethod::try_from(http.method) {
        Ok(RequestMethod::MethodUnspecified) => RequestMethod::Get,
        Ok(RequestMethod::Connect) | Err(_) => {
            context.refuse_at("method", "CONNECT and unknown methods check nothing");
            RequestMethod::Get
        }
        Ok(method) => method,
    };
    let has_body =
        matches!(method, RequestMethod::Post | RequestMethod::Put | RequestMethod::Patch | RequestMethod::Options);
    if http.send.is_some() && !has_body {
        context.refuse_at("send", format!("{} has no body", method.as_str_name()));
    }
    let exchange = exchange(context, http.send.as_ref(), &http.receive);
    let buffer_bytes = http.response_buffer_size.as_ref().map_or(DEFAULT_BUFFER_BYTES, |size| size.value);
    if buffer_bytes == 0 || buffer_bytes > MOST_BUFFER_BYTES {
        context.refuse_at("response_buffer_size", format!("not within 1 to {MOST_BUFFER_BYTES}"));
    }
    if exchange.receive.iter().map(|piece| piece.len() as u64).sum::<u64>() > buffer_bytes {
        context.refuse_at("receive", "is longer than response_buffer_size");
    }
    let expected = statuses(context, "expected_statuses", &http.expected_statuses);
    let service = http.service_name_matcher.as_ref();
    HttpProbe {
        method: method.as_str_name().into(),
        path: http.path.as_str().into(),
        host: http.host.as_str().into(),
        http2: match CodecClientType::try_from(http.codec_client_type) {
            Ok(CodecClientType::Http1) => false,
            Ok(CodecClientType::Http2) => true,
            Ok(CodecClientType::Http3) | Err(_) => {
                context.refuse_at("codec_client_type", "HTTP1 and HTTP2 are supported");
                false
            }
        },
        headers: plain_edits(
            context,
            ("request_headers_to_add", &http.request_headers_to_add),
            ("request_headers_to_remove", &http.request_headers_to_remove),
        ),
        exchange,
        buffer_bytes: buffer_bytes as usize,
        expected: if expected.is_empty() { Box::new([(200, 201)]) } else { expected },
        retriable: statuses(context, "retriable_statuses", &http.retriable_statuses),
        service: service
            .and_then(|matcher| context.at("service_name_matcher", |context| StringMatch::compile(context, matcher))),
    }
}

fn grpc_probe(context: &mut Context, grpc: &GrpcHealthCheck) -> GrpcProbe {
    plain(context, "authority", &grpc.authority);
    GrpcProbe {
        service: grpc.service_name.as_str().into(),
        authority: grpc.authority.as_str().into(),
        metadata: plain_edits(context, ("initial_metadata", &grpc.initial_metadata), ("", &[])),
    }
}

/// What stands in the head of a request must not end a line of it.
fn plain(context: &mut Context, field: &str, text: &str) {
    if text.bytes().any(|byte| matches!(byte, b'\0' | b'\r' | b'\n' | b' ')) {
        context.refuse_at(field, "has a space or an end of line in it");
    }
}

/// There is no request whose parts could be put in.
fn plain_edits(
    context: &mut Context,
    add: (&str, &[proto::HeaderValueOption]),
    remove: (&str, &[String]),
) -> HeaderEdits {
    let edits = HeaderEdits::compile(context, add, remove);
    for (index, addition) in edits.add.iter().enumerate() {
        if addition.value.literal().is_none() {
            context.refuse_at(&format!("{}[{index}].header.value", add.0), "a check adds plain text only");
        }
    }
    edits
}

fn statuses(context: &mut Context, field: &str, ranges: &[Int64Range]) -> Box<[Statuses]> {
    let read = |context: &mut Context, range: &Int64Range| {
        if range.start < 100 || range.end > 600 || range.start >= range.end {
            context.refuse(format!("{} to {} is no range within 100 to 600", range.start, range.end));
            return (0, 0);
        }
        (range.start as u16, range.end as u16)
    };
    context.each(field, ranges, read).into()
}

fn exchange(context: &mut Context, send: Option<&Payload>, receive: &[Payload]) -> Exchange {
    Exchange {
        send: send.map_or_else(Box::default, |send| context.at("send", |context| payload(context, send))),
        receive: context.each("receive", receive, payload).into(),
    }
}

fn payload(context: &mut Context, payload: &Payload) -> Box<[u8]> {
    match &payload.payload {
        Some(Bytes::Binary(bytes)) => bytes.as_slice().into(),
        Some(Bytes::Text(text)) => from_hex(text).unwrap_or_else(|| {
            context.refuse_at("text", format!("`{text}` is not hexadecimal"));
            Box::default()
        }),
        None => {
            context.refuse("text or binary is needed");
            Box::default()
        }
    }
}

fn from_hex(text: &str) -> Option<Box<[u8]>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
}
