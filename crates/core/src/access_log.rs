//! Access records: where they go and what they hold.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use weft_protos::envoy::config::accesslog::v3 as proto;
use weft_protos::envoy::config::accesslog::v3::access_log::ConfigType;
use weft_protos::envoy::config::core::v3::grpc_service::TargetSpecifier;
use weft_protos::envoy::config::core::v3::substitution_format_string::Format as FormatSource;
use weft_protos::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use weft_protos::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use weft_protos::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use weft_protos::envoy::r#type::metadata::v3::MetadataKind;
use weft_protos::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use weft_protos::envoy::r#type::metadata::v3::metadata_kind::Kind as Place;
use weft_protos::envoy::r#type::tracing::v3::CustomTag;
use weft_protos::envoy::r#type::tracing::v3::custom_tag::Type as TagType;
use weft_protos::google::protobuf::value::Kind;
use weft_protos::google::protobuf::{Struct, Value};

use crate::compile::Context;
use crate::format::{Command, Format, Piece};
use crate::metadata::{Metadata, to_json_value, value_at};
use crate::respond::{Flags, ResponseFlag, grpc_status};

/// One log. All logs of a manager are written for each request.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Which records are written; `None`: all.
    pub filter: Option<Filter>,
    /// Where they go.
    pub sink: Sink,
}

/// Where records go.
#[derive(Debug, Clone)]
pub enum Sink {
    /// A file, one line for each record.
    File {
        /// `/dev/stdout` and `/dev/stderr` are taken literally.
        path: Arc<Path>,
        /// What a line holds.
        record: Record,
    },
    /// An access log service.
    Service(Arc<LogService>),
}

/// An access log service, and what it is told besides what every record has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogService {
    /// Static cluster of the bootstrap.
    pub cluster: Box<str>,
    /// Tells logs of one proxy apart.
    pub log_name: Box<str>,
    /// Send when so many bytes have gathered...
    pub buffer_bytes: usize,
    /// ...or so much time has passed.
    pub flush_interval: Duration,
    /// Lower-case names.
    pub request_headers: Box<[Box<str>]>,
    /// Lower-case names.
    pub response_headers: Box<[Box<str>]>,
    /// Lower-case names.
    pub response_trailers: Box<[Box<str>]>,
    /// In the order of the configuration.
    pub tags: Box<[Tag]>,
}

/// A custom tag of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its key.
    pub name: Box<str>,
    /// Its value.
    pub value: TagValue,
}

impl Tag {
    /// The value for a request that took a route with this metadata; `None`: the record does not have the tag.
    pub fn value<'v>(&'v self, route: Option<&'v Metadata>) -> Option<Cow<'v, str>> {
        let value = match &self.value {
            TagValue::Literal(text) => Cow::Borrowed(&**text),
            TagValue::RouteMetadata { path, otherwise } => {
                let weft = route.and_then(|metadata| metadata.weft.as_deref());
                let found = weft.and_then(|weft| value_at(weft, path.iter().map(|key| &**key)));
                found.unwrap_or(Cow::Borrowed(&**otherwise))
            }
        };
        (!value.is_empty()).then_some(value)
    }
}

/// Where a tag's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagValue {
    /// The configuration.
    Literal(Box<str>),
    /// `filter_metadata["weft"]` of the route, below this path; `otherwise` if there is none, and no tag if that is empty.
    RouteMetadata {
        /// Keys, outermost first.
        path: Box<[Box<str>]>,
        /// The default.
        otherwise: Box<str>,
    },
}

/// The shape of a record.
#[derive(Debug, Clone)]
pub enum Record {
    /// One JSON object a line; keys in the order of the configuration's map (sorted).
    Json { fields: Box<[(Box<str>, JsonValue)]>, omit_empty: bool },
    /// Text; the format ends with its own newline. An absent value is `-`, or nothing if `omit_empty`.
    Text { format: Format, omit_empty: bool },
}

/// A value of a JSON record.
#[derive(Debug, Clone)]
pub enum JsonValue {
    /// A format. One that is a single command keeps the type of its value (numbers are numbers, absent is null); others are strings.
    Format(Format),
    /// A nested object.
    Object(Box<[(Box<str>, JsonValue)]>),
    /// A list.
    List(Box<[JsonValue]>),
    /// A number or a boolean, as JSON text.
    Constant(Box<str>),
    /// Absent: `null`, or nothing where empty values are omitted.
    Null,
}

impl JsonValue {
    fn add_trailers(&self, names: &mut Vec<Box<str>>) {
        match self {
            JsonValue::Format(format) => add_trailers(format, names),
            JsonValue::Object(fields) => fields.iter().for_each(|(_, value)| value.add_trailers(names)),
            JsonValue::List(values) => values.iter().for_each(|value| value.add_trailers(names)),
            JsonValue::Constant(_) | JsonValue::Null => {}
        }
    }
}

/// Add the trailers that *format* asks for to *names*.
fn add_trailers(format: &Format, names: &mut Vec<Box<str>>) {
    for piece in &format.0 {
        match piece {
            Piece::Value(Command::ResponseTrailer { name, otherwise, .. }) => {
                names.push(name.clone());
                names.extend(otherwise.clone());
            }
            Piece::Value(Command::GrpcStatus(_)) => names.push(GRPC_STATUS.into()),
            Piece::Value(_) | Piece::Text(_) => {}
        }
    }
}

/// Where gRPC tells its status: a trailer, or a header of an answer that is all trailers.
pub const GRPC_STATUS: &str = "grpc-status";

/// Envoy's format for a log that names none.
const DEFAULT_TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
\"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Envoy's defaults of a log service.
const DEFAULT_BUFFER_BYTES: usize = 16 * 1024;
const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(1);

impl AccessLog {
    pub(crate) fn compile(context: &mut Context, log: &proto::AccessLog) -> Option<Self> {
        let filter = log.filter.as_ref().and_then(|filter| Filter::compile(context, filter));
        let Some(ConfigType::TypedConfig(any)) = &log.config_type else {
            context.refuse_at("typed_config", "required");
            return None;
        };
        let sink = context.at("typed_config", |context| {
            let value = any.value.as_ref();
            match any.type_url.rsplit('/').next().unwrap_or_default() {
                "envoy.extensions.access_loggers.file.v3.FileAccessLog" => {
                    let file = decoded::<FileAccessLog>(context, value)?;
                    compile_file(context, &file)
                }
                "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig" => {
                    let mut config = decoded::<HttpGrpcAccessLogConfig>(context, value)?;
                    let common = config.common_config.take().unwrap_or_default();
                    compile_service(context, &common, &config)
                }
                "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig" => {
                    let config = decoded::<TcpGrpcAccessLogConfig>(context, value)?;
                    let common = config.common_config.unwrap_or_default();
                    compile_service(context, &common, &HttpGrpcAccessLogConfig::default())
                }
                other => {
                    context.refuse(format!("weft-proxy does not write `{other}`"));
                    None
                }
            }
        });
        Some(Self { filter, sink: sink? })
    }

    /// Lower-case names of the trailers that its records ask for: nobody else looks at an answer's trailers once they have passed.
    pub fn response_trailers(&self) -> Vec<Box<str>> {
        let mut names = Vec::new();
        if self.filter.as_ref().is_some_and(Filter::asks_grpc_status) {
            names.push(GRPC_STATUS.into());
        }
        match &self.sink {
            Sink::Service(service) => names.extend(service.response_trailers.iter().cloned()),
            Sink::File { record: Record::Text { format, .. }, .. } => add_trailers(format, &mut names),
            Sink::File { record: Record::Json { fields, .. }, .. } => {
                fields.iter().for_each(|(_, value)| value.add_trailers(&mut names));
            }
        }
        names
    }

    /// Compile a field of logs.
    pub(crate) fn compile_all(context: &mut Context, field: &str, logs: &[proto::AccessLog]) -> Box<[Self]> {
        context.each(field, logs, Self::compile).into_iter().flatten().collect()
    }
}

fn decoded<M: weft_protos::Message + Default>(context: &mut Context, value: &[u8]) -> Option<M> {
    M::decode(value).map_err(|error| context.refuse(error.to_string())).ok()
}

fn compile_file(context: &mut Context, file: &FileAccessLog) -> Option<Sink> {
    let text = |context: &mut Context, format: &str, omit_empty| Record::Text {
        format: Format::compile(context, format),
        omit_empty,
    };
    let json = |context: &mut Context, fields: &Struct, omit_empty| Record::Json {
        fields: context.at("json_format", |context| json_fields(context, fields)),
        omit_empty,
    };
    let record = match &file.access_log_format {
        None => text(context, DEFAULT_TEXT, false),
        Some(AccessLogFormat::Format(format)) => text(context, format, false),
        Some(AccessLogFormat::JsonFormat(fields) | AccessLogFormat::TypedJsonFormat(fields)) => {
            json(context, fields, false)
        }
        Some(AccessLogFormat::LogFormat(source)) => match &source.format {
            Some(FormatSource::TextFormat(format)) => text(context, format, source.omit_empty_values),
            Some(FormatSource::JsonFormat(fields)) => json(context, fields, source.omit_empty_values),
            Some(FormatSource::TextFormatSource(_)) | None => {
                context.refuse_at("log_format", "text_format or json_format is needed");
                return None;
            }
        },
    };
    Some(Sink::File { path: Path::new(&file.path).into(), record })
}

fn compile_service(
    context: &mut Context,
    config: &CommonGrpcAccessLogConfig,
    additional: &HttpGrpcAccessLogConfig,
) -> Option<Sink> {
    let names = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase().into()).collect();
    let service = context.at("common_config", |context| {
        let cluster = match config.grpc_service.as_ref().and_then(|service| service.target_specifier.as_ref()) {
            Some(TargetSpecifier::EnvoyGrpc(target)) if !target.cluster_name.is_empty() => &target.cluster_name,
            _ => {
                context.refuse_at("grpc_service", "envoy_grpc with the name of a cluster is needed");
                return None;
            }
        };
        if config.log_name.is_empty() {
            context.refuse_at("log_name", "required");
        }
        let tags = context.each("custom_tags", &config.custom_tags, compile_tag);
        Some(LogService {
            cluster: cluster.as_str().into(),
            log_name: config.log_name.as_str().into(),
            buffer_bytes: config.buffer_size_bytes.map_or(DEFAULT_BUFFER_BYTES, |size| size.value as usize),
            flush_interval: context
                .duration("buffer_flush_interval", config.buffer_flush_interval.as_ref())
                .unwrap_or(DEFAULT_FLUSH_INTERVAL),
            request_headers: names(&additional.additional_request_headers_to_log),
            response_headers: names(&additional.additional_response_headers_to_log),
            response_trailers: names(&additional.additional_response_trailers_to_log),
            tags: tags.into_iter().flatten().collect(),
        })
    });
    Some(Sink::Service(Arc::new(service?)))
}

fn compile_tag(context: &mut Context, tag: &CustomTag) -> Option<Tag> {
    let value = match &tag.r#type {
        Some(TagType::Literal(literal)) => TagValue::Literal(literal.value.as_str().into()),
        Some(TagType::Metadata(metadata)) => context.at("metadata", |context| {
            let key = metadata.metadata_key.clone().unwrap_or_default();
            let of_route = matches!(metadata.kind, Some(MetadataKind { kind: Some(Place::Route(_)) }));
            if !of_route || key.key != "weft" {
                context.refuse("only the metadata `weft` of the route is kept");
                return None;
            }
            let path = key.path.iter().map(|step| match &step.segment {
                Some(Segment::Key(key)) => key.as_str().into(),
                None => "".into(),
            });
            Some(TagValue::RouteMetadata { path: path.collect(), otherwise: metadata.default_value.as_str().into() })
        })?,
        _ => {
            context.refuse("literal or metadata is needed");
            return None;
        }
    };
    Some(Tag { name: tag.tag.as_str().into(), value })
}

/// Which records are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// The status compared with a number; 0 if no answer was given.
    Status(Comparison, u32),
    /// Any of these flags, or any at all if there is none here.
    Flags(Flags),
    /// One of these statuses of gRPC, a bit for each; or, if it *excludes* them, none of them.
    GrpcStatus { statuses: u32, excludes: bool },
    /// Any of these.
    Or(Box<[Filter]>),
    /// All of these.
    And(Box<[Filter]>),
}

/// How two numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal,
    /// Not less.
    AtLeast,
    /// Not more.
    AtMost,
}

/// What filters ask of a record.
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    /// HTTP status; 0 if no answer was given.
    pub status: u16,
    /// Why not.
    pub flags: Flags,
    /// What the answer says of it, in a trailer or a header.
    pub grpc_status: Option<u32>,
}

impl Filter {
    /// Whether a record of what came to this *end* is written.
    pub fn takes(&self, end: &End) -> bool {
        match self {
            Filter::Status(Comparison::Equal, value) => u32::from(end.status) == *value,
            Filter::Status(Comparison::AtLeast, value) => u32::from(end.status) >= *value,
            Filter::Status(Comparison::AtMost, value) => u32::from(end.status) <= *value,
            Filter::Flags(wanted) if wanted.is_empty() => !end.flags.is_empty(),
            Filter::Flags(wanted) => wanted.iter().any(|flag| end.flags.contains(flag)),
            Filter::GrpcStatus { statuses, excludes } => {
                // Envoy asks it of every answer: one that tells none has what its HTTP status says in gRPC's words.
                let status = end.grpc_status.unwrap_or_else(|| grpc_status(end.status).into());
                statuses.checked_shr(status).is_some_and(|rest| rest & 1 == 1) != *excludes
            }
            Filter::Or(filters) => filters.iter().any(|filter| filter.takes(end)),
            Filter::And(filters) => filters.iter().all(|filter| filter.takes(end)),
        }
    }

    fn asks_grpc_status(&self) -> bool {
        match self {
            Filter::GrpcStatus { .. } => true,
            Filter::Or(filters) | Filter::And(filters) => filters.iter().any(Filter::asks_grpc_status),
            Filter::Status(..) | Filter::Flags(_) => false,
        }
    }

    fn compile(context: &mut Context, filter: &proto::AccessLogFilter) -> Option<Self> {
        use proto::access_log_filter::FilterSpecifier;
        context.at("filter", |context| match &filter.filter_specifier {
            Some(FilterSpecifier::StatusCodeFilter(status)) => {
                let comparison = status.comparison.clone().unwrap_or_default();
                let operator = match comparison.op() {
                    proto::comparison_filter::Op::Eq => Comparison::Equal,
                    proto::comparison_filter::Op::Ge => Comparison::AtLeast,
                    proto::comparison_filter::Op::Le => Comparison::AtMost,
                    other => {
                        context.refuse_at(
                            "status_code_filter.comparison.op",
                            format!("{} is not supported", other.as_str_name()),
                        );
                        return None;
                    }
                };
                Some(Filter::Status(operator, comparison.value.unwrap_or_default().default_value))
            }
            Some(FilterSpecifier::ResponseFlagFilter(wanted)) => {
                let mut flags = Flags::NONE;
                for name in &wanted.flags {
                    match ResponseFlag::ALL.iter().find(|flag| flag.code() == name) {
                        Some(flag) => flags.insert(*flag),
                        None => context.refuse_at("response_flag_filter.flags", format!("there is no flag `{name}`")),
                    }
                }
                Some(Filter::Flags(flags))
            }
            Some(FilterSpecifier::GrpcStatusFilter(wanted)) => {
                let mut statuses = 0;
                for status in &wanted.statuses {
                    match proto::grpc_status_filter::Status::try_from(*status) {
                        Ok(status) => statuses |= 1 << status as u32,
                        Err(_) => {
                            context.refuse_at("grpc_status_filter.statuses", format!("there is no status {status}"));
                        }
                    }
                }
                Some(Filter::GrpcStatus { statuses, excludes: wanted.exclude })
            }
            Some(FilterSpecifier::OrFilter(filters)) => Some(Filter::Or(Self::compile_all(context, &filters.filters))),
            Some(FilterSpecifier::AndFilter(filters)) => {
                Some(Filter::And(Self::compile_all(context, &filters.filters)))
            }
            _ => {
                context.refuse(
                    "status_code_filter, response_flag_filter, grpc_status_filter, or_filter or and_filter is needed",
                );
                None
            }
        })
    }

    fn compile_all(context: &mut Context, filters: &[proto::AccessLogFilter]) -> Box<[Self]> {
        filters.iter().filter_map(|filter| Self::compile(context, filter)).collect()
    }
}

fn json_fields(context: &mut Context, fields: &Struct) -> Box<[(Box<str>, JsonValue)]> {
    let member =
        |context: &mut Context, name: &str, value: &Value| context.at(name, |context| json_value(context, value));
    fields.fields.iter().map(|(name, value)| (name.as_str().into(), member(context, name, value))).collect()
}

fn json_value(context: &mut Context, value: &Value) -> JsonValue {
    match &value.kind {
        Some(Kind::StringValue(format)) => JsonValue::Format(Format::compile(context, format)),
        Some(Kind::StructValue(fields)) => JsonValue::Object(json_fields(context, fields)),
        Some(Kind::ListValue(list)) => JsonValue::List(context.each("values", &list.values, json_value).into()),
        Some(Kind::BoolValue(_) | Kind::NumberValue(_)) => JsonValue::Constant(to_json_value(value).into()),
        Some(Kind::NullValue(_)) | None => JsonValue::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_what_its_conditions_say() {
        let flags = |flags: &[ResponseFlag]| {
            let mut set = Flags::NONE;
            flags.iter().for_each(|flag| set.insert(*flag));
            set
        };
        let takes = |filter: &Filter, status, flags| filter.takes(&End { status, flags, grpc_status: None });
        let failed = Filter::Or(Box::new([Filter::Flags(Flags::NONE), Filter::Status(Comparison::AtLeast, 400)]));
        assert!(!takes(&failed, 200, Flags::NONE));
        assert!(takes(&failed, 404, Flags::NONE));
        assert!(takes(&failed, 200, flags(&[ResponseFlag::UpstreamConnectionTermination])));
        let only = Filter::And(Box::new([
            Filter::Flags(flags(&[ResponseFlag::NoRouteFound, ResponseFlag::NoClusterFound])),
            Filter::Status(Comparison::AtMost, 499),
        ]));
        assert!(takes(&only, 404, flags(&[ResponseFlag::NoRouteFound])));
        assert!(!takes(&only, 503, flags(&[ResponseFlag::NoClusterFound])));
        assert!(!takes(&only, 404, flags(&[ResponseFlag::FaultInjected])));
        assert!(takes(&Filter::Status(Comparison::Equal, 0), 0, Flags::NONE));
    }

    #[test]
    fn a_filter_of_grpc_asks_what_the_answer_says_and_else_what_its_http_status_means() {
        let wanted = 1 << 14 | 1 << 2;
        for (status, grpc_status, expected) in [
            (200, Some(14), true),
            (200, Some(0), false),
            (200, Some(77), false),
            (503, None, true),
            (404, None, false),
            // Of an answer that is no gRPC, and of none at all, nothing is known: UNKNOWN.
            (200, None, true),
            (0, None, true),
        ] {
            let end = End { status, flags: Flags::NONE, grpc_status };
            let one = Filter::GrpcStatus { statuses: wanted, excludes: false };
            let other = Filter::GrpcStatus { statuses: wanted, excludes: true };
            assert_eq!((one.takes(&end), other.takes(&end)), (expected, !expected), "{end:?}");
        }
    }
}
