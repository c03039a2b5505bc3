//! The shape of a line in a file, compiled once: texts that stand as they are and values between them. Numbers stay
//! numbers in JSON, as in Envoy.

use weft_core::access_log::{JsonValue, Record};
use weft_core::format::{Command, Format, GrpcFormat, Piece, Variables};

use super::Entry;

/// A record, compiled.
#[derive(Debug)]
pub struct Template {
    pieces: Vec<Shape>,
}

#[derive(Debug)]
enum Shape {
    Text(Box<[u8]>),
    /// A value with its JSON type; absent is `null`.
    JsonValue(Command),
    /// `"key":value,` left out if the value is absent. In a list there is no key.
    JsonMember(Box<[u8]>, Command),
    /// One of several values within a JSON string; absent is this.
    JsonString(Command, &'static str),
    /// In a text record; absent is this.
    Plain(Command, &'static str),
    /// `"key":{...},` left out if nothing is in it: an object from which members may be missing.
    Object(Box<[u8]>, Box<[Shape]>),
    /// The comma before it is dropped: the end, with this, of what members may be missing from.
    End(u8),
}

impl Template {
    pub fn compile(record: &Record) -> Template {
        let mut pieces = Vec::new();
        match record {
            Record::Json { fields, omit_empty } => {
                push_text(&mut pieces, b"{");
                compile_members(&mut pieces, fields, *omit_empty);
                push_text(&mut pieces, b"\n");
            }
            Record::Text { format, omit_empty } => {
                for piece in &format.0 {
                    match piece {
                        Piece::Text(text) => push_text(&mut pieces, text.as_bytes()),
                        Piece::Value(command) => pieces.push(Shape::Plain(command.clone(), missing(*omit_empty))),
                    }
                }
            }
        }
        Template { pieces }
    }

    /// Append one line.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        write(&self.pieces, entry, out);
    }
}

fn write(pieces: &[Shape], entry: &Entry<'_>, out: &mut Vec<u8>) {
    for piece in pieces {
        match piece {
            Shape::Text(text) => out.extend_from_slice(text),
            Shape::JsonValue(command) => {
                if !write_json(entry, command, out) {
                    out.extend_from_slice(b"null");
                }
            }
            Shape::JsonMember(key, command) => {
                let begin = out.len();
                out.extend_from_slice(key);
                if write_json(entry, command, out) {
                    out.push(b',');
                } else {
                    out.truncate(begin);
                }
            }
            Shape::JsonString(command, missing) => {
                let begin = out.len();
                if entry.write(command, out) {
                    escape_from(out, begin);
                } else {
                    out.extend_from_slice(missing.as_bytes());
                }
            }
            Shape::Plain(command, missing) => {
                if !entry.write(command, out) {
                    out.extend_from_slice(missing.as_bytes());
                }
            }
            Shape::Object(key, members) => {
                let begin = out.len();
                out.extend_from_slice(key);
                out.push(b'{');
                let inside = out.len();
                write(members, entry, out);
                // The brace at its end is there in any case.
                if out.len() == inside + 1 {
                    out.truncate(begin);
                } else {
                    out.push(b',');
                }
            }
            Shape::End(bracket) => {
                if out.last() == Some(&b',') {
                    out.pop();
                }
                out.push(*bracket);
            }
        }
    }
}

/// What Envoy writes within a text for a value that is absent.
fn missing(omit_empty: bool) -> &'static str {
    if omit_empty { "" } else { "-" }
}

/// The members of an object whose brace is open, and its end.
fn compile_members(pieces: &mut Vec<Shape>, fields: &[(Box<str>, JsonValue)], omit_empty: bool) {
    for (key, value) in fields {
        let mut name = String::new();
        weft_core::metadata::write_string(&mut name, key);
        name.push(':');
        compile_value(pieces, name.as_bytes(), value, omit_empty);
    }
    pieces.push(Shape::End(b'}'));
}

/// `"key":value,`, or `value,` in a list, where *key* is empty.
fn compile_value(pieces: &mut Vec<Shape>, key: &[u8], value: &JsonValue, omit_empty: bool) {
    match value {
        JsonValue::Null if omit_empty => return,
        JsonValue::Object(fields) if omit_empty => {
            let mut members = Vec::new();
            compile_members(&mut members, fields, true);
            pieces.push(Shape::Object(key.into(), members.into()));
            return;
        }
        JsonValue::Format(Format(parts)) if omit_empty && matches!(parts.as_slice(), [Piece::Value(_)]) => {
            if let [Piece::Value(command)] = parts.as_slice() {
                pieces.push(Shape::JsonMember(key.into(), command.clone()));
            }
            return;
        }
        _ => push_text(pieces, key),
    }
    match value {
        JsonValue::Null => push_text(pieces, b"null"),
        JsonValue::Constant(json) => push_text(pieces, json.as_bytes()),
        JsonValue::Object(fields) => {
            push_text(pieces, b"{");
            compile_members(pieces, fields, omit_empty);
        }
        JsonValue::List(values) => {
            push_text(pieces, b"[");
            for value in values {
                compile_value(pieces, b"", value, omit_empty);
            }
            pieces.push(Shape::End(b']'));
        }
        JsonValue::Format(Format(parts)) => match parts.as_slice() {
            [Piece::Value(command)] => pieces.push(Shape::JsonValue(command.clone())),
            parts => {
                push_text(pieces, b"\"");
                for part in parts {
                    match part {
                        Piece::Text(text) => {
                            let mut quoted = String::new();
                            weft_core::metadata::write_string(&mut quoted, text);
                            push_text(pieces, &quoted.as_bytes()[1..quoted.len() - 1]);
                        }
                        Piece::Value(command) => pieces.push(Shape::JsonString(command.clone(), missing(omit_empty))),
                    }
                }
                push_text(pieces, b"\"");
            }
        },
    }
    push_text(pieces, b",");
}

fn push_text(pieces: &mut Vec<Shape>, text: &[u8]) {
    if let Some(Shape::Text(last)) = pieces.last_mut() {
        let mut joined = std::mem::take(last).into_vec();
        joined.extend_from_slice(text);
        *last = joined.into();
    } else {
        pieces.push(Shape::Text(text.into()));
    }
}

/// Append the value with its JSON type; false if there is none.
fn write_json(entry: &Entry<'_>, command: &Command, out: &mut Vec<u8>) -> bool {
    let is_number = matches!(
        command,
        Command::ResponseCode
            | Command::GrpcStatus(GrpcFormat::Number)
            | Command::Duration
            | Command::RequestDuration
            | Command::ResponseDuration
            | Command::BytesReceived
            | Command::BytesSent
            | Command::UpstreamRequestAttemptCount
    );
    if is_number {
        return entry.write(command, out);
    }
    let begin = out.len();
    out.push(b'"');
    if !entry.write(command, out) {
        out.truncate(begin);
        return false;
    }
    escape_from(out, begin + 1);
    out.push(b'"');
    true
}

/// Make what stands in *out* from *begin* on the inside of a JSON string. Bytes that are not UTF-8 become U+FFFD.
fn escape_from(out: &mut Vec<u8>, begin: usize) {
    let plain = out[begin..].iter().all(|&byte| (0x20..0x80).contains(&byte) && byte != b'"' && byte != b'\\');
    if plain {
        return;
    }
    let text = String::from_utf8_lossy(&out[begin..]).into_owned();
    let mut quoted = String::with_capacity(text.len() + 16);
    weft_core::metadata::write_string(&mut quoted, &text);
    out.truncate(begin);
    out.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
}
