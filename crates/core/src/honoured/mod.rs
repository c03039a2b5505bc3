//! Refused, not ignored: a walk over the wire format of a resource with a table of what weft honours.
//!
//! prost drops what it does not know and shows no difference between a field that weft reads and one that it does not.
//! So every resource is walked before it is compiled: each field that is set must be marked in `honoured.txt`.
//! The table is plain static data generated from that list and the descriptors; no descriptor is in memory at run time.
//!
//! The same table reads and writes the JSON form of a message ([`json`]), which is how a bootstrap and `weft-proxy validate` come by bytes,
//! and how `/config_dump` shows what it holds.

use weft_protos::google::protobuf::Any;

use crate::compile::Problem;

pub mod json;
#[rustfmt::skip]
mod table;

/// Where a message may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// By itself.
    Resource,
    /// In an `Any`.
    Extension,
    /// In a field of another.
    Part,
}

/// What a field holds. Numbers index [`table::MESSAGES`].
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Not honoured.
    No,
    Scalar(Scalar),
    Scalars(Scalar),
    /// A message that nothing is done about, whatever is in it.
    Opaque,
    Message(u16),
    Messages(u16),
    MessageMap(u16),
    /// The same with keys of `uint32`.
    NumberedMap(u16),
    Any,
}

/// A value that is no message. [`Scalar::Enum`] indexes [`table::ENUMS`].
#[derive(Debug, Clone, Copy)]
enum Scalar {
    Bool,
    /// Of 32 or 64 bits.
    Int,
    /// Of 32 or 64 bits.
    Uint,
    Double,
    String,
    Bytes,
    Enum(u16),
}

#[derive(Debug)]
struct Field {
    number: u32,
    name: &'static str,
    kind: Kind,
}

#[derive(Debug)]
struct Message {
    name: &'static str,
    role: Role,
    /// Sorted by number.
    fields: &'static [Field],
}

/// Why an extension is accepted although nothing is done about it; `None` for all but the listed ones.
///
/// The types that Istio alone knows travel in a `TypedStruct`, which names them once more.
pub fn not_applied(extension: &Any) -> Option<&'static str> {
    not_applied_type(&extension.type_url, &extension.value)
}

fn not_applied_type(type_url: &str, value: &[u8]) -> Option<&'static str> {
    let mut name = type_url.rsplit('/').next()?;
    let inner;
    if matches!(name, "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct") {
        inner = String::from_utf8_lossy(two_fields(value).ok()?.0);
        name = inner.rsplit('/').next()?;
    }
    let index = table::NOT_APPLIED.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(table::NOT_APPLIED[index].1)
}

/// Nested deeper than this, a message is an attack: prost's own limit.
const MAX_DEPTH: usize = 100;

/// Everything in a serialised resource that weft does not honour: set fields without a mark in the list, unknown fields, unknown types, broken bytes.
///
/// Paths begin with the short name of the message: `Cluster.outlier_detection.max_ejection_time_jitter`.
pub fn walk(type_url: &str, value: &[u8]) -> Vec<Problem> {
    let mut walker = Walker { path: String::new(), problems: Vec::new(), depth: 0 };
    match find(type_url) {
        Some(message) if message.role == Role::Resource => {
            walker.path.push_str(message.name.rsplit('.').next().unwrap_or(message.name));
            walker.message(message, value);
        }
        _ => {
            walker.path.push_str(type_url);
            walker.refuse("weft-proxy does not know this type of resource");
        }
    }
    walker.problems
}

/// The message of a type URL, or of its full name.
fn find(type_url: &str) -> Option<&'static Message> {
    let name = type_url.rsplit('/').next()?;
    let index = table::MESSAGES.binary_search_by(|message| message.name.cmp(name)).ok()?;
    Some(&table::MESSAGES[index])
}

struct Walker {
    path: String,
    problems: Vec<Problem>,
    depth: usize,
}

/// The bytes are not protobuf.
struct Broken;

impl Walker {
    fn refuse(&mut self, reason: impl Into<String>) {
        self.problems.push(Problem { path: self.path.clone(), reason: reason.into() });
    }

    fn at(&mut self, step: &str, work: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(step);
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.refuse("nested too deeply");
        } else {
            work(self);
        }
        self.depth -= 1;
        self.path.truncate(length);
    }

    fn message(&mut self, message: &'static Message, bytes: &[u8]) {
        if self.fields(message, bytes).is_err() {
            self.refuse("not valid protobuf");
        }
    }

    fn fields(&mut self, message: &'static Message, mut bytes: &[u8]) -> Result<(), Broken> {
        // Elements of repeated fields come one by one; their indices are counted by field.
        let mut seen = vec![0u32; message.fields.len()];
        while !bytes.is_empty() {
            let (number, payload) = field(&mut bytes)?;
            let payload = payload.bytes();
            let Ok(index) = message.fields.binary_search_by_key(&number, |field| field.number) else {
                self.at(&format!(".{number}"), |walker| {
                    walker.refuse("a field that this version of weft-proxy does not know")
                });
                continue;
            };
            let field = &message.fields[index];
            let element = seen[index];
            seen[index] += 1;
            match field.kind {
                Kind::Scalar(_) | Kind::Scalars(_) | Kind::Opaque => {}
                // An unhonoured repeated field is one problem, not one for each element.
                Kind::No if element > 0 => {}
                Kind::No => self
                    .at(&format!(".{}", field.name), |walker| walker.refuse("weft-proxy does not honour this field")),
                Kind::Message(inner) => {
                    self.at(&format!(".{}", field.name), |walker| {
                        walker.message(&table::MESSAGES[usize::from(inner)], payload)
                    });
                }
                Kind::Messages(inner) => self.at(&format!(".{}[{element}]", field.name), |walker| {
                    walker.message(&table::MESSAGES[usize::from(inner)], payload);
                }),
                Kind::Any => self.at(&format!(".{}", field.name), |walker| walker.any(payload)),
                Kind::NumberedMap(inner) => {
                    let (_, value) = two_fields(payload)?;
                    let key = numeric_key(payload)?;
                    self.at(&format!(".{}[{key}]", field.name), |walker| {
                        walker.message(&table::MESSAGES[usize::from(inner)], value);
                    });
                }
                Kind::MessageMap(inner) => {
                    let (key, value) = two_fields(payload)?;
                    let key = String::from_utf8_lossy(key);
                    self.at(&format!(".{}[{key}]", field.name), |walker| {
                        let inner = &table::MESSAGES[usize::from(inner)];
                        if inner.name == "google.protobuf.Any" {
                            walker.any(value)
                        } else {
                            walker.message(inner, value)
                        }
                    });
                }
            }
        }
        Ok(())
    }

    fn any(&mut self, bytes: &[u8]) {
        let Ok((type_url, value)) = two_fields(bytes) else { return self.refuse("not valid protobuf") };
        let type_url = String::from_utf8_lossy(type_url);
        match find(&type_url) {
            Some(message) if message.role == Role::Extension => self.message(message, value),
            // Who compiles the resource reports it, or refuses it where it does not belong.
            _ if not_applied_type(&type_url, value).is_some() => {}
            _ => self.refuse(format!("weft-proxy does not know the type `{type_url}`")),
        }
    }
}

/// What one field holds, as it travels.
#[derive(Debug, Clone, Copy)]
enum Payload<'b> {
    Varint(u64),
    /// Of a known length: numbers of four and eight bytes, too, in little-endian order.
    Bytes(&'b [u8]),
}

impl<'b> Payload<'b> {
    /// Empty for a varint.
    fn bytes(self) -> &'b [u8] {
        match self {
            Payload::Varint(_) => &[],
            Payload::Bytes(bytes) => bytes,
        }
    }
}

/// The fields 1 and 2 of an `Any` or of an entry of a map.
fn two_fields(mut bytes: &[u8]) -> Result<(&[u8], &[u8]), Broken> {
    let (mut first, mut second): (&[u8], &[u8]) = (&[], &[]);
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, payload) => first = payload.bytes(),
            (2, payload) => second = payload.bytes(),
            _ => {}
        }
    }
    Ok((first, second))
}

/// The key of a map's entry, 0 if it is absent (proto3's default).
fn numeric_key(mut bytes: &[u8]) -> Result<u64, Broken> {
    while !bytes.is_empty() {
        if let (1, Payload::Varint(key)) = field(&mut bytes)? {
            return Ok(key);
        }
    }
    Ok(0)
}

/// Take one field: its number and what it holds.
fn field<'b>(bytes: &mut &'b [u8]) -> Result<(u32, Payload<'b>), Broken> {
    let tag = varint(bytes)?;
    let number = u32::try_from(tag >> 3).map_err(|_| Broken)?;
    let length = match tag & 7 {
        0 => return Ok((number, Payload::Varint(varint(bytes)?))),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).map_err(|_| Broken)?,
        5 => 4,
        // Groups (3, 4) do not occur in proto3.
        _ => return Err(Broken),
    };
    let (payload, rest) = bytes.split_at_checked(length).ok_or(Broken)?;
    *bytes = rest;
    Ok((number, Payload::Bytes(payload)))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Broken> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Broken)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Broken)
}
