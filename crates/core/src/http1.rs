//! Options of HTTP/1.1, for a listener's or a cluster's connections.

use weft_protos::Message as _;
use weft_protos::envoy::config::core::v3 as proto;
use weft_protos::envoy::config::core::v3::http1_protocol_options::header_key_format::HeaderFormat;
use weft_protos::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;

use crate::compile::Context;

/// Options of HTTP/1.1 connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Http1Options {
    /// Names of fields go on in the case in which they came, those too that a proxy reads and writes again. In HTTP/2 they have none.
    pub keeps_case: bool,
    /// The reason phrases of answers go on as they came, and not as the status has them. Over HTTP/2 there are none.
    pub forwards_reason: bool,
}

impl Http1Options {
    /// Read what stands in *field*, if it is there.
    pub(crate) fn at(context: &mut Context, field: &str, options: Option<&proto::Http1ProtocolOptions>) -> Self {
        options.map_or_else(Self::default, |options| context.at(field, |context| Self::compile(context, options)))
    }

    fn compile(context: &mut Context, options: &proto::Http1ProtocolOptions) -> Self {
        let format = options.header_key_format.as_ref().and_then(|format| format.header_format.as_ref());
        match format {
            Some(HeaderFormat::StatefulFormatter(formatter)) => {
                context.at("header_key_format.stateful_formatter", |context| preserve_case(context, formatter))
            }
            // Refused by name already, as every field that nothing is done about.
            Some(HeaderFormat::ProperCaseWords(_)) | None => Self::default(),
        }
    }
}

/// Read the one formatter that there is.
fn preserve_case(context: &mut Context, formatter: &proto::TypedExtensionConfig) -> Http1Options {
    let Some(any) = &formatter.typed_config else {
        context.refuse_at("typed_config", "required");
        return Http1Options::default();
    };
    let name = "/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
    if !any.type_url.ends_with(name) {
        context.refuse_at("typed_config", format!("weft-proxy does not know `{}`", any.type_url));
        return Http1Options::default();
    }
    let config = match PreserveCaseFormatterConfig::decode(any.value.as_ref()) {
        Ok(config) => config,
        Err(error) => {
            context.refuse_at("typed_config", error.to_string());
            return Http1Options::default();
        }
    };
    if config.formatter_type_on_envoy_headers != 0 {
        context.refuse_at(
            "typed_config.formatter_type_on_envoy_headers",
            "what the proxy adds is in lower case: only DEFAULT can be honoured",
        );
    }
    Http1Options { keeps_case: true, forwards_reason: config.forward_reason_phrase }
}
