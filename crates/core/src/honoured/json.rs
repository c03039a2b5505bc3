//! The JSON form of a message -> its bytes, by the same table: a bootstrap, a config dump, a resource that a person wrote. [`decode`] is the way back.
//!
//! Source of the form: protobuf's "ProtoJSON format". Names may be `snake_case` or `lowerCamelCase`; `null` is absent. What the table does not
//! honour cannot be written either, so it is refused here by name and path.

use serde_json::{Map, Value};

use super::{Kind, MAX_DEPTH, Message, Role, Scalar, find, not_applied_type, table};
use crate::base64;
use crate::compile::Problem;

mod decode;
pub use decode::{decode, is_redacted};

/// Serialise *value* as the message of *type_url*, which must be one that travels by itself. A member `@type` is passed over.
///
/// # Errors
/// Every member that is unknown, not honoured, or of a wrong kind, with its path; it begins with the short name of the message.
pub fn encode(type_url: &str, value: &Value) -> Result<Vec<u8>, Vec<Problem>> {
    let mut writer = Writer { path: String::new(), problems: Vec::new(), depth: 0 };
    let bytes = match find(type_url).filter(|message| message.role == Role::Resource) {
        Some(message) => {
            writer.path.push_str(message.name.rsplit('.').next().unwrap_or(message.name));
            writer.message(message, value)
        }
        None => {
            writer.path.push_str(type_url);
            writer.refuse("weft-proxy does not know this type of resource");
            Vec::new()
        }
    };
    if writer.problems.is_empty() { Ok(bytes) } else { Err(writer.problems) }
}

struct Writer {
    path: String,
    problems: Vec<Problem>,
    depth: usize,
}

impl Writer {
    fn refuse(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem { path: self.path.clone(), reason: reason.into() });
    }

    fn expected(&mut self, what: &str, found: &Value) {
        let text = found.to_string();
        let cut = text.char_indices().nth(60).map_or(text.len(), |(at, _)| at);
        self.refuse(format!("expected {what}, found {}{}", &text[..cut], if cut < text.len() { "..." } else { "" }));
    }

    fn at<T: Default>(&mut self, step: &str, work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(step);
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH {
            self.refuse("nested too deeply");
            T::default()
        } else {
            work(self)
        };
        self.depth -= 1;
        self.path.truncate(length);
        result
    }

    fn message(&mut self, message: &'static Message, value: &Value) -> Vec<u8> {
        match message.name {
            "google.protobuf.Duration" => self.duration(value),
            "google.protobuf.Any" => self.any(value),
            "google.protobuf.Struct" => self.structure(value),
            "google.protobuf.ListValue" => self.list(value),
            "google.protobuf.Value" => self.value(value),
            // A message around one value, which stands for it in JSON.
            _ if is_of_protobuf(message) => {
                let mut out = Vec::new();
                if let Some(Kind::Scalar(kind)) = message.fields.first().map(|field| field.kind) {
                    self.scalar(kind, 1, value, &mut out);
                }
                out
            }
            _ => match value {
                Value::Object(members) => self.fields(message, members),
                other => {
                    self.expected("an object", other);
                    Vec::new()
                }
            },
        }
    }

    fn fields(&mut self, message: &'static Message, members: &Map<String, Value>) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in members {
            if value.is_null() || key == "@type" {
                continue;
            }
            let Some(field) = message.fields.iter().find(|field| is_name(key, field.name)) else {
                self.at(&format!(".{key}"), |writer| writer.refuse(format!("{} has no such field", message.name)));
                continue;
            };
            self.at(&format!(".{}", field.name), |writer| writer.field(field.number, field.kind, value, &mut out));
        }
        out
    }

    fn field(&mut self, number: u32, kind: Kind, value: &Value, out: &mut Vec<u8>) {
        match kind {
            // Nothing of a kind that has no presence is nothing.
            Kind::No if matches!(value, Value::Array(items) if items.is_empty()) => {}
            Kind::No => self.refuse("weft-proxy does not honour this field"),
            // An empty message: that it is there is all that can be said of it.
            Kind::Opaque => put(number, &[], out),
            Kind::Scalar(kind) => self.scalar(kind, number, value, out),
            Kind::Scalars(kind) => self.each(value, |writer, item| writer.scalar(kind, number, item, out)),
            Kind::Message(inner) => {
                let bytes = self.message(&table::MESSAGES[usize::from(inner)], value);
                put(number, &bytes, out);
            }
            Kind::Any => {
                let bytes = self.any(value);
                put(number, &bytes, out);
            }
            Kind::Messages(inner) => self.each(value, |writer, item| {
                let bytes = writer.message(&table::MESSAGES[usize::from(inner)], item);
                put(number, &bytes, out);
            }),
            Kind::MessageMap(inner) => self.entries(number, value, out, |writer, item, entry| {
                let bytes = writer.message(&table::MESSAGES[usize::from(inner)], item);
                put(2, &bytes, entry);
            }),
            Kind::NumberedMap(inner) => {
                let Value::Object(members) = value else { return self.expected("an object", value) };
                for (key, item) in members {
                    self.at(&format!("[{key}]"), |writer| {
                        let mut entry = Vec::new();
                        // JSON's keys are strings, whatever the map's are.
                        match key.parse::<u32>() {
                            Ok(key) => put_varint(1, u64::from(key), &mut entry),
                            Err(_) => writer.refuse("expected a number of 0 to 4294967295 as the key"),
                        }
                        let bytes = writer.message(&table::MESSAGES[usize::from(inner)], item);
                        put(2, &bytes, &mut entry);
                        put(number, &entry, out);
                    });
                }
            }
        }
    }

    fn each(&mut self, value: &Value, mut work: impl FnMut(&mut Self, &Value)) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.at(&format!("[{index}]"), |writer| work(writer, item));
                }
            }
            other => self.expected("a list", other),
        }
    }

    fn entries(
        &mut self,
        number: u32,
        value: &Value,
        out: &mut Vec<u8>,
        mut work: impl FnMut(&mut Self, &Value, &mut Vec<u8>),
    ) {
        let Value::Object(members) = value else { return self.expected("an object", value) };
        for (key, item) in members {
            let mut entry = Vec::new();
            put(1, key.as_bytes(), &mut entry);
            self.at(&format!("[{key}]"), |writer| work(writer, item, &mut entry));
            put(number, &entry, out);
        }
    }

    fn scalar(&mut self, kind: Scalar, number: u32, value: &Value, out: &mut Vec<u8>) {
        // Numbers of 64 bits are strings in JSON, and others may be.
        let integer = || match value {
            Value::Number(number) => number.as_i128().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let real = || match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        match kind {
            Scalar::Bool => match value.as_bool() {
                Some(value) => put_varint(number, u64::from(value), out),
                None => self.expected("true or false", value),
            },
            Scalar::Int => match integer().and_then(|value| i64::try_from(value).ok()) {
                Some(value) => put_varint(number, value.cast_unsigned(), out),
                None => self.expected("a whole number", value),
            },
            Scalar::Uint => match integer().and_then(|value| u64::try_from(value).ok()) {
                Some(value) => put_varint(number, value, out),
                None => self.expected("a whole number of zero or more", value),
            },
            Scalar::Double => match real() {
                Some(value) => {
                    varint(u64::from(number) << 3 | 1, out);
                    out.extend(value.to_le_bytes());
                }
                None => self.expected("a number", value),
            },
            Scalar::String => match value {
                Value::String(text) => put(number, text.as_bytes(), out),
                other => self.expected("a string", other),
            },
            Scalar::Bytes => match value.as_str().and_then(bytes) {
                Some(bytes) => put(number, &bytes, out),
                None => self.expected("base64", value),
            },
            Scalar::Enum(index) => {
                let values = table::ENUMS[usize::from(index)];
                let found = match value {
                    Value::String(text) => values.iter().find(|(name, _)| name == text).map(|(_, value)| *value),
                    Value::Number(number) => number.as_i64().and_then(|number| i32::try_from(number).ok()),
                    _ => None,
                };
                match found {
                    Some(value) => put_varint(number, i64::from(value).cast_unsigned(), out),
                    None => {
                        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
                        self.expected(&format!("one of {}", names.join(", ")), value);
                    }
                }
            }
        }
    }

    fn duration(&mut self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        match value.as_str().and_then(duration) {
            Some((seconds, nanos)) => {
                put_varint(1, seconds.cast_unsigned(), &mut out);
                put_varint(2, i64::from(nanos).cast_unsigned(), &mut out);
            }
            None => self.expected("a duration like \"1.5s\"", value),
        }
        out
    }

    fn any(&mut self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let Some((members, type_url)) =
            value.as_object().and_then(|members| Some((members, members.get("@type")?.as_str()?)))
        else {
            self.expected("an object with `@type`", value);
            return out;
        };
        put(1, type_url.as_bytes(), &mut out);
        // Of a `TypedStruct` only the type that it names matters here.
        let named = members.iter().find(|(key, _)| is_name(key, "type_url")).and_then(|(_, name)| name.as_str());
        let mut outline = Vec::new();
        put(1, named.unwrap_or_default().as_bytes(), &mut outline);
        match find(type_url) {
            Some(message) if message.role == Role::Extension => {
                // A type with a JSON form of its own has it in `value`.
                let bytes = match members.get("value") {
                    Some(inner) if is_of_protobuf(message) => self.message(message, inner),
                    _ => self.fields(message, members),
                };
                put(2, &bytes, &mut out);
            }
            _ if not_applied_type(type_url, &outline).is_some() => put(2, &outline, &mut out),
            _ => self.refuse(format!("weft-proxy does not know the type `{type_url}`")),
        }
        out
    }

    /// `google.protobuf.Struct`
    fn structure(&mut self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        self.entries(1, value, &mut out, |writer, item, entry| {
            let bytes = writer.value(item);
            put(2, &bytes, entry);
        });
        out
    }

    /// `google.protobuf.ListValue`
    fn list(&mut self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        self.each(value, |writer, item| {
            let bytes = writer.value(item);
            put(1, &bytes, &mut out);
        });
        out
    }

    /// `google.protobuf.Value`
    fn value(&mut self, value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        match value {
            Value::Null => put_varint(1, 0, &mut out),
            Value::Number(_) => self.scalar(Scalar::Double, 2, value, &mut out),
            Value::String(text) => put(3, text.as_bytes(), &mut out),
            Value::Bool(value) => put_varint(4, u64::from(*value), &mut out),
            Value::Object(_) => {
                let bytes = self.structure(value);
                put(5, &bytes, &mut out);
            }
            Value::Array(_) => {
                let bytes = self.list(value);
                put(6, &bytes, &mut out);
            }
        }
        out
    }
}

/// Whether it is one of protobuf's own types, each of which has a JSON form of its own.
fn is_of_protobuf(message: &Message) -> bool {
    message.name.starts_with("google.protobuf.")
}

/// Whether *key* is *name* in either spelling.
fn is_name(key: &str, name: &str) -> bool {
    let mut key_bytes = key.bytes();
    key == name
        || name.split('_').enumerate().all(|(index, word)| {
            word.bytes().enumerate().all(|(at, byte)| {
                let wanted = if index > 0 && at == 0 { byte.to_ascii_uppercase() } else { byte };
                key_bytes.next() == Some(wanted)
            })
        }) && key_bytes.next().is_none()
}

fn whole(value: f64) -> Option<i128> {
    // Beyond 2^53 a double is no exact number.
    (value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0).then_some(value as i128)
}

/// `1.5s` -> seconds and nanoseconds, of one sign.
fn duration(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || fraction.len() > 9 || !is_number(seconds) || !is_number(fraction) {
        return None;
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some((sign * seconds.parse::<i64>().ok()?, i32::try_from(sign).ok()? * nanos))
}

/// RFC 4648 4 or 5, with or without padding.
fn bytes(text: &str) -> Option<Vec<u8>> {
    // One digit alone is no byte.
    if text.trim_end_matches('=').len() % 4 == 1 {
        return None;
    }
    base64::decode(text.replace('-', "+").replace('_', "/").as_bytes())
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_varint(number: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3, out);
    varint(value, out);
}

fn put(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
