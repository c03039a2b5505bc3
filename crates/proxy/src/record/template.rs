//! The shape of a line in a file, compiled once: texts that stand as they are and values between them. Numbers stay
//! numbers in JSON, as in Envoy.

use weft_core::access_log::{JsonValue, Record};
use weft_core::format::{Command, Format, Piece, Variables};

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
    /// `"key":value,` left out if the value is absent.
    JsonMember(Box<[u8]>, Command),
    /// Several values within one JSON string.
    JsonString(Command),
    /// In a text record; absent is this.
    Plain(Command, &'static str),
    /// The comma before it is dropped: the end of an object from which members may be missing.
    EndObject,
}

impl Template {
    pub fn compile(record: &Record) -> Template {
        let mut pieces = Vec::new();
        match record {
            Record::Json { fields, omit_empty } => {
                compile_object(&mut pieces, fields, *omit_empty);
                push_text(&mut pieces, b"\n");
            }
            Record::Text { format, omit_empty } => {
                for piece in &format.0 {
                    match piece {
                        Piece::Text(text) => push_text(&mut pieces, text.as_bytes()),
                        Piece::Value(command) => {
                            pieces.push(Shape::Plain(command.clone(), if *omit_empty { "" } else { "-" }));
                        }
                    }
                }
            }
        }
        Template { pieces }
    }

    /// Append one line.
    pub fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
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
                Shape::JsonString(command) => {
                    let begin = out.len();
                    if entry.write(command, out) {
                        escape_from(out, begin);
                    } else {
                        out.push(b'-');
                    }
                }
                Shape::Plain(command, missing) => {
                    if !entry.write(command, out) {
                        out.extend_from_slice(missing.as_bytes());
                    }
                }
                Shape::EndObject => {
                    if out.last() == Some(&b',') {
                        out.pop();
                    }
                    out.push(b'}');
                }
            }
        }
    }
}

fn compile_object(pieces: &mut Vec<Shape>, fields: &[(Box<str>, JsonValue)], omit_empty: bool) {
    push_text(pieces, b"{");
    for (key, value) in fields {
        let mut name = Vec::new();
        let mut text = String::new();
        weft_core::metadata::write_string(&mut text, key);
        name.extend_from_slice(text.as_bytes());
        name.push(b':');
        match value {
            JsonValue::Constant(json) => {
                push_text(pieces, &name);
                push_text(pieces, json.as_bytes());
            }
            JsonValue::Object(fields) => {
                push_text(pieces, &name);
                compile_object(pieces, fields, omit_empty);
            }
            JsonValue::Format(Format(parts)) => match parts.as_slice() {
                [Piece::Value(command)] if omit_empty => {
                    pieces.push(Shape::JsonMember(name.into(), command.clone()));
                    continue;
                }
                [Piece::Value(command)] => {
                    push_text(pieces, &name);
                    pieces.push(Shape::JsonValue(command.clone()));
                }
                parts => {
                    push_text(pieces, &name);
                    push_text(pieces, b"\"");
                    for part in parts {
                        match part {
                            Piece::Text(text) => {
                                let mut quoted = String::new();
                                weft_core::metadata::write_string(&mut quoted, text);
                                push_text(pieces, &quoted.as_bytes()[1..quoted.len() - 1]);
                            }
                            Piece::Value(command) => pieces.push(Shape::JsonString(command.clone())),
                        }
                    }
                    push_text(pieces, b"\"");
                }
            },
        }
        push_text(pieces, b",");
    }
    pieces.push(Shape::EndObject);
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
