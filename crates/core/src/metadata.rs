//! What a resource says about itself: the origin that weft's control plane writes, kept as JSON text so that it costs one string.

use std::borrow::Cow;
use std::fmt::Write as _;

use weft_protos::envoy::config::core::v3 as proto;
use weft_protos::google::protobuf::value::Kind;
use weft_protos::google::protobuf::{Struct, Value};

/// The filter metadata that weft reads. Others are for other readers and are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `filter_metadata["weft"]` as JSON: kind, namespace, name, origin, rule, origins.
    pub weft: Option<Box<str>>,
    /// `filter_metadata["istio"]` as JSON: the workload of an endpoint, the services of a cluster.
    pub istio: Option<Box<str>>,
}

impl Metadata {
    pub(crate) fn compile(metadata: Option<&proto::Metadata>) -> Self {
        let read = |key: &str| {
            metadata.and_then(|metadata| metadata.filter_metadata.get(key)).map(|value| to_json(value).into_boxed_str())
        };
        Self { weft: read("weft"), istio: read("istio") }
    }
}

/// The JSON form of a protobuf struct, keys sorted.
pub fn to_json(value: &Struct) -> String {
    let mut out = String::new();
    write_struct(&mut out, value);
    out
}

pub(crate) fn to_json_value(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

fn write_struct(out: &mut String, value: &Struct) {
    out.push('{');
    for (index, (key, value)) in value.fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, key);
        out.push(':');
        write_value(out, value);
    }
    out.push('}');
}

fn write_value(out: &mut String, value: &Value) {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => out.push_str("null"),
        Some(Kind::BoolValue(value)) => out.push_str(if *value { "true" } else { "false" }),
        // JSON knows no NaN and no infinity.
        Some(Kind::NumberValue(value)) if !value.is_finite() => out.push_str("null"),
        Some(Kind::NumberValue(value)) => {
            let _ = write!(out, "{value}");
        }
        Some(Kind::StringValue(value)) => write_string(out, value),
        Some(Kind::StructValue(value)) => write_struct(out, value),
        Some(Kind::ListValue(list)) => {
            out.push('[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(out, value);
            }
            out.push(']');
        }
    }
}

/// Append `text` as a JSON string with its quotes.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// The value below *path* in a text that [`to_json`] wrote: a string without its quotes, anything else as it stands.
pub fn value_at<'j, 'p>(json: &'j str, path: impl IntoIterator<Item = &'p str>) -> Option<Cow<'j, str>> {
    let mut value = json;
    for key in path {
        value = member(value, key)?;
    }
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) if text.contains('\\') => Some(Cow::Owned(unescape(text))),
        Some(text) => Some(Cow::Borrowed(text)),
        None => Some(Cow::Borrowed(value)),
    }
}

/// The value of a member of an object, as JSON.
fn member<'j>(object: &'j str, wanted: &str) -> Option<&'j str> {
    let mut rest = object.strip_prefix('{')?;
    loop {
        let key = &rest[..value_length(rest)];
        rest = rest[key.len()..].strip_prefix(':')?;
        let value = &rest[..value_length(rest)];
        // A key that needs escapes is none that anybody looks for.
        if key.get(1..key.len().saturating_sub(1)) == Some(wanted) {
            return Some(value);
        }
        rest = rest[value.len()..].strip_prefix(',')?;
    }
}

/// How long the value is that *json* begins with; there is no white space in it outside of strings.
fn value_length(json: &str) -> usize {
    let (mut depth, mut within, mut escaped) = (0usize, false, false);
    for (index, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if within => escaped = true,
            b'"' => within = !within,
            _ if within => {}
            b'{' | b'[' => depth += 1,
            b',' | b':' | b'}' | b']' if depth == 0 => return index,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    json.len()
}

/// Undo [`write_string`].
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => {
                let digits: String = characters.by_ref().take(4).collect();
                out.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_path_whatever_stands_around_it() {
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
        let object = |fields: &[(&str, Value)]| Struct {
            fields: fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        };
        let inner = object(&[("match", text("a,\"b}\\:\u{1}\n")), ("timeout", text("x.yaml:3:4"))]);
        let json = to_json(&object(&[
            ("a", Value { kind: Some(Kind::NumberValue(1.5)) }),
            ("name", text("{\"origin\":\"no\"}")),
            ("origin", text("reviews.yaml:8:5")),
            ("origins", Value { kind: Some(Kind::StructValue(inner)) }),
        ]));
        let find = |path: &[&str]| value_at(&json, path.iter().copied()).map(Cow::into_owned);
        assert_eq!(find(&["origin"]).as_deref(), Some("reviews.yaml:8:5"));
        assert_eq!(find(&["origins", "match"]).as_deref(), Some("a,\"b}\\:\u{1}\n"));
        assert_eq!(find(&["origins", "timeout"]).as_deref(), Some("x.yaml:3:4"));
        assert_eq!(find(&["a"]).as_deref(), Some("1.5"));
        assert_eq!(find(&["origin", "match"]), None);
        assert_eq!(find(&["kind"]), None);
        assert_eq!(value_at("{}", ["a"]), None);
    }
}
