//! The bytes of a message -> its JSON form: what `/config_dump` shows of a resource that was accepted.
//!
//! Names are in `snake_case`, as in Envoy's dumps. What is absent stays absent. Left out is what the table has no form for: fields about
//! which nothing is done.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;

use serde_json::{Map, Number, Value, json};

use super::super::{
    Broken, Kind, MAX_DEPTH, Message, Payload, Role, Scalar, field, find, numeric_key, two_fields, varint,
};
use super::{is_of_protobuf, table};
use crate::base64;

/// Fields that Envoy's API marks as `udpa.annotations.sensitive`: strings and bytes in them are not shown.
const SENSITIVE: [(&str, &str); 2] = [
    ("envoy.extensions.transport_sockets.tls.v3.TlsCertificate", "private_key"),
    ("envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys", "keys"),
];

/// What stands for them, as in Envoy's dumps.
const REDACTED: &str = "[redacted]";

/// Read *bytes*, a message of *type_url*, which must be one that travels by itself; its type is the member `@type`, as within an `Any`.
/// `None` if they are not the bytes of one.
#[must_use]
pub fn decode(type_url: &str, bytes: &[u8]) -> Option<Value> {
    read(type_url, bytes, &Cell::default())
}

/// Whether *bytes*, a message of *type_url*, come from a dump that has left keys out. What needs those cannot be tried.
#[must_use]
pub fn is_redacted(type_url: &str, bytes: &[u8]) -> bool {
    let met_redacted = Cell::default();
    read(type_url, bytes, &met_redacted);
    met_redacted.get()
}

fn read(type_url: &str, bytes: &[u8], met_redacted: &Cell<bool>) -> Option<Value> {
    let message = find(type_url).filter(|message| message.role == Role::Resource)?;
    let mut members = Reader { depth: 0, is_redacting: false, met_redacted }.fields(message, bytes).ok()?;
    members.insert("@type".into(), type_url.into());
    Some(Value::Object(members))
}

type Read<T> = Result<T, Broken>;

#[derive(Clone, Copy)]
struct Reader<'r> {
    depth: usize,
    /// Within a field that is not shown.
    is_redacting: bool,
    /// Set where such a field has been left out before.
    met_redacted: &'r Cell<bool>,
}

impl Reader<'_> {
    fn message(self, message: &'static Message, bytes: &[u8]) -> Read<Value> {
        if self.depth > MAX_DEPTH {
            return Err(Broken);
        }
        let inner = Reader { depth: self.depth + 1, ..self };
        match message.name {
            "google.protobuf.Duration" => duration(bytes),
            "google.protobuf.Any" => inner.any(bytes),
            "google.protobuf.Struct" => inner.structure(bytes),
            "google.protobuf.ListValue" => inner.list(bytes),
            "google.protobuf.Value" => inner.value(bytes),
            _ if is_of_protobuf(message) => inner.wrapped(message, bytes),
            _ => inner.fields(message, bytes).map(Value::Object),
        }
    }

    fn fields(self, message: &'static Message, bytes: &[u8]) -> Read<Map<String, Value>> {
        let mut members = Map::new();
        for (number, payloads) in by_number(bytes)? {
            let index = message.fields.binary_search_by_key(&number, |field| field.number).map_err(|_| Broken)?;
            let field = &message.fields[index];
            let is_sensitive = SENSITIVE.contains(&(message.name, field.name));
            let reader = Reader { is_redacting: self.is_redacting || is_sensitive, ..self };
            if let Some(value) = reader.field(field.kind, &payloads)? {
                members.insert(field.name.into(), value);
            }
        }
        Ok(members)
    }

    /// All that came of one field; it is at least one.
    fn field(self, kind: Kind, payloads: &[Payload]) -> Read<Option<Value>> {
        let message = |index: u16, bytes: &[u8]| self.message(&table::MESSAGES[usize::from(index)], bytes);
        let value = match kind {
            Kind::No => return Err(Broken),
            Kind::Opaque => return Ok(None),
            // Of several the last one counts.
            Kind::Scalar(kind) => self.scalar(kind, *payloads.last().ok_or(Broken)?)?,
            Kind::Scalars(kind) => self.scalars(kind, payloads)?.into(),
            Kind::Message(inner) => message(inner, &merged(payloads))?,
            Kind::Any => self.any(&merged(payloads))?,
            Kind::Messages(inner) => {
                payloads.iter().map(|payload| message(inner, payload.bytes())).collect::<Read<Vec<_>>>()?.into()
            }
            Kind::MessageMap(inner) => self.entries(payloads, |bytes| message(inner, bytes))?,
            Kind::NumberedMap(inner) => {
                let mut members = Map::new();
                for payload in payloads {
                    let (_, value) = two_fields(payload.bytes())?;
                    let key = numeric_key(payload.bytes())?;
                    members.insert(key.to_string(), message(inner, value)?);
                }
                members.into()
            }
        };
        Ok(Some(value))
    }

    fn entries(self, payloads: &[Payload], mut read: impl FnMut(&[u8]) -> Read<Value>) -> Read<Value> {
        let mut members = Map::new();
        for payload in payloads {
            let (key, value) = two_fields(payload.bytes())?;
            members.insert(text(key)?.to_owned(), read(value)?);
        }
        Ok(members.into())
    }

    /// Numbers come one by one, or several in one payload.
    fn scalars(self, kind: Scalar, payloads: &[Payload]) -> Read<Vec<Value>> {
        let mut values = Vec::new();
        for &payload in payloads {
            match (kind, payload) {
                (Scalar::String | Scalar::Bytes, _) | (_, Payload::Varint(_)) => {
                    values.push(self.scalar(kind, payload)?);
                }
                (Scalar::Double, Payload::Bytes(packed)) => {
                    for bytes in packed.chunks(8) {
                        values.push(self.scalar(kind, Payload::Bytes(bytes))?);
                    }
                }
                (_, Payload::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        values.push(self.scalar(kind, Payload::Varint(varint(&mut packed)?))?);
                    }
                }
            }
        }
        Ok(values)
    }

    fn scalar(self, kind: Scalar, payload: Payload) -> Read<Value> {
        Ok(match (kind, payload) {
            (Scalar::Bool, Payload::Varint(value)) => (value != 0).into(),
            (Scalar::Int, Payload::Varint(value)) => value.cast_signed().into(),
            (Scalar::Uint, Payload::Varint(value)) => value.into(),
            (Scalar::Enum(index), Payload::Varint(value)) => {
                // As protobuf reads it: of more bits the upper ones do not count.
                let value = value as i32;
                let named = table::ENUMS[usize::from(index)].iter().find(|(_, number)| *number == value);
                named.map_or_else(|| value.into(), |(name, _)| (*name).into())
            }
            (Scalar::Double, Payload::Bytes(bytes)) => {
                let value = f64::from_le_bytes(bytes.try_into().map_err(|_| Broken)?);
                match Number::from_f64(value) {
                    Some(number) => number.into(),
                    None if value.is_nan() => "NaN".into(),
                    None if value > 0.0 => "Infinity".into(),
                    None => "-Infinity".into(),
                }
            }
            (Scalar::String, Payload::Bytes(bytes)) => text(self.shown(bytes))?.into(),
            (Scalar::Bytes, Payload::Bytes(bytes)) => {
                let mut digits = Vec::new();
                base64::encode(self.shown(bytes), &mut digits);
                text(&digits)?.into()
            }
            _ => return Err(Broken),
        })
    }

    fn shown(self, bytes: &[u8]) -> &[u8] {
        if !self.is_redacting {
            return bytes;
        }
        self.met_redacted.set(self.met_redacted.get() || bytes == REDACTED.as_bytes());
        REDACTED.as_bytes()
    }

    fn any(self, bytes: &[u8]) -> Read<Value> {
        let (type_url, bytes) = two_fields(bytes)?;
        let type_url = text(type_url)?;
        let mut members = match find(type_url).filter(|message| message.role == Role::Extension) {
            Some(message) if is_of_protobuf(message) => {
                Map::from_iter([("value".to_owned(), self.message(message, bytes)?)])
            }
            Some(message) => self.fields(message, bytes)?,
            // Nothing is done about it; a `TypedStruct` at least names what it is.
            None => match two_fields(bytes) {
                Ok((name, _)) if type_url.ends_with(".TypedStruct") => {
                    Map::from_iter([("type_url".to_owned(), text(name)?.into())])
                }
                _ => Map::new(),
            },
        };
        members.insert("@type".into(), type_url.into());
        Ok(members.into())
    }

    /// A message around one value, which stands for it in JSON.
    fn wrapped(self, message: &'static Message, bytes: &[u8]) -> Read<Value> {
        let Some(Kind::Scalar(kind)) = message.fields.first().map(|field| field.kind) else { return Err(Broken) };
        let found = by_number(bytes)?;
        match found.get(&1).and_then(|payloads| payloads.last()) {
            Some(payload) => self.scalar(kind, *payload),
            // Its default, which does not travel.
            None => Ok(match kind {
                Scalar::Bool => false.into(),
                Scalar::String | Scalar::Bytes => "".into(),
                _ => 0.into(),
            }),
        }
    }

    /// `google.protobuf.Struct`
    fn structure(self, bytes: &[u8]) -> Read<Value> {
        let found = by_number(bytes)?;
        self.entries(found.get(&1).map_or(&[][..], Vec::as_slice), |bytes| self.deeper()?.value(bytes))
    }

    /// `google.protobuf.ListValue`
    fn list(self, bytes: &[u8]) -> Read<Value> {
        let found = by_number(bytes)?;
        let items = found.get(&1).map_or(&[][..], Vec::as_slice);
        items.iter().map(|item| self.deeper()?.value(item.bytes())).collect()
    }

    /// `google.protobuf.Value`
    fn value(self, mut bytes: &[u8]) -> Read<Value> {
        let mut value = Value::Null;
        while !bytes.is_empty() {
            let (number, payload) = field(&mut bytes)?;
            value = match number {
                1 => Value::Null,
                2 => self.scalar(Scalar::Double, payload)?,
                3 => self.scalar(Scalar::String, payload)?,
                4 => self.scalar(Scalar::Bool, payload)?,
                5 => self.structure(payload.bytes())?,
                6 => self.list(payload.bytes())?,
                _ => return Err(Broken),
            };
        }
        Ok(value)
    }

    fn deeper(self) -> Read<Self> {
        if self.depth > MAX_DEPTH { Err(Broken) } else { Ok(Reader { depth: self.depth + 1, ..self }) }
    }
}

/// Everything in a message by the number of its field, in the order in which it came.
fn by_number(mut bytes: &[u8]) -> Read<BTreeMap<u32, Vec<Payload<'_>>>> {
    let mut found: BTreeMap<u32, Vec<Payload>> = BTreeMap::new();
    while !bytes.is_empty() {
        let (number, payload) = field(&mut bytes)?;
        found.entry(number).or_default().push(payload);
    }
    Ok(found)
}

/// A message that came in parts is what their bytes are one after the other (protobuf's "Last One Wins").
fn merged<'b>(payloads: &[Payload<'b>]) -> Cow<'b, [u8]> {
    match payloads {
        [one] => Cow::Borrowed(one.bytes()),
        several => Cow::Owned(several.iter().flat_map(|payload| payload.bytes()).copied().collect()),
    }
}

fn text(bytes: &[u8]) -> Read<&str> {
    std::str::from_utf8(bytes).map_err(|_| Broken)
}

/// Seconds with as many digits behind the point as are needed, in threes.
fn duration(bytes: &[u8]) -> Read<Value> {
    let found = by_number(bytes)?;
    let of = |number: u32| match found.get(&number).and_then(|payloads| payloads.last()) {
        Some(Payload::Varint(value)) => Ok(value.cast_signed()),
        Some(Payload::Bytes(_)) => Err(Broken),
        None => Ok(0),
    };
    let (seconds, nanos) = (of(1)?, of(2)?);
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let mut digits = format!("{:09}", nanos.unsigned_abs());
    while digits.ends_with("000") {
        digits.truncate(digits.len() - 3);
    }
    let point = if digits.is_empty() { "" } else { "." };
    Ok(json!(format!("{sign}{}{point}{digits}s", seconds.unsigned_abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_shown_is_there() {
        for (message, field) in SENSITIVE {
            let message = find(message).expect("it is in the table");
            assert!(message.fields.iter().any(|known| known.name == field && !matches!(known.kind, Kind::No)));
        }
    }
}
