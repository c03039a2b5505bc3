//! A file that a person or a program wrote, JSON or YAML, as a JSON value. What is in it is for others to judge.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// A file of a few KiB can name itself into billions of values; no bootstrap or dump has that many.
const MAX_VALUES: usize = 1 << 22;
/// As deep as the JSON parser goes.
const MAX_DEPTH: usize = 128;

/// Why a text is neither.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not YAML: {0}")]
    Yaml(#[from] saphyr_parser::ScanError),
    #[error("not UTF-8: {0}")]
    Text(#[from] std::str::Utf8Error),
    #[error("expected one document, found {0}")]
    Documents(usize),
    #[error("line {line}: {reason}")]
    Content { line: usize, reason: String },
}

/// Read JSON if it begins like JSON, else YAML.
///
/// # Errors
/// It is neither, holds more than one document, or what JSON has no word for (keys that are no strings).
pub fn parse(text: &[u8]) -> Result<Value, DocumentError> {
    match text.trim_ascii_start().first() {
        Some(b'{' | b'[') => Ok(serde_json::from_slice(text)?),
        _ => Yaml::default().read(std::str::from_utf8(text)?),
    }
}

/// A collection that is not complete.
enum Open {
    List {
        items: Vec<Value>,
        anchor: usize,
    },
    /// With the key whose value comes next.
    Object {
        members: Map<String, Value>,
        key: Option<String>,
        anchor: usize,
    },
}

#[derive(Default)]
struct Yaml {
    open: Vec<Open>,
    documents: Vec<Value>,
    anchors: HashMap<usize, (Value, usize)>,
    values: usize,
}

impl Yaml {
    fn read(mut self, text: &str) -> Result<Value, DocumentError> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event?;
            self.take(event).map_err(|reason| DocumentError::Content { line: span.start.line(), reason })?;
        }
        match <[Value; 1]>::try_from(self.documents) {
            Ok([value]) => Ok(value),
            Err(other) => Err(DocumentError::Documents(other.len())),
        }
    }

    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = if style == ScalarStyle::Plain { plain(&text) } else { Value::String(text.into_owned()) };
                self.put(value, anchor, 1)
            }
            Event::Alias(anchor) => {
                let (value, size) = self.anchors.get(&anchor).cloned().ok_or("an alias of itself")?;
                self.put(value, 0, size)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::List { items: Vec::new(), anchor }),
            Event::MappingStart(anchor, _) => self.begin(Open::Object { members: Map::new(), key: None, anchor }),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { items, anchor }) => self.put(Value::Array(items), anchor, 1),
                Some(Open::Object { members, anchor, .. }) => self.put(Value::Object(members), anchor, 1),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), String> {
        self.open.push(open);
        if self.open.len() > MAX_DEPTH { Err("nested too deeply".into()) } else { Ok(()) }
    }

    fn put(&mut self, value: Value, anchor: usize, size: usize) -> Result<(), String> {
        self.values += size;
        if self.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), count(&value)));
        }
        match self.open.last_mut() {
            None => self.documents.push(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Object { members, key, .. }) => match key.take() {
                None => *key = Some(as_key(value)?),
                Some(name) if members.contains_key(&name) => return Err(format!("`{name}` stands here twice")),
                Some(name) => drop(members.insert(name, value)),
            },
        }
        Ok(())
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        _ => 0,
    }
}

fn as_key(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        other => Err(format!("expected a string as key, found {other}")),
    }
}

/// What a scalar without quotes means: YAML 1.2, 10.3.2 (core schema).
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let looks_like_a_number = text.trim_start_matches(['+', '-']).starts_with(|first: char| first.is_ascii_digit());
    let integer = || match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => i64::from_str_radix(digits, 16).ok(),
        (_, Some(digits)) => i64::from_str_radix(digits, 8).ok(),
        _ => text.parse().ok(),
    };
    let number = looks_like_a_number
        .then(|| integer().map(Number::from).or_else(|| text.parse().ok().and_then(Number::from_f64)))
        .flatten();
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = b"# a comment\nnode: {id: 'a', cluster: \"0\"}\nlist:\n- 1\n- -1.5\n- 0x10\n- 1s\n- yes\n- 10.0.0.1\n- ~\n- |\n  two\n  lines\n\
            base: &base {a: [true]}\nother: *base\n";
        let json = json!({
            "node": {"id": "a", "cluster": "0"},
            "list": [1, -1.5, 16, "1s", "yes", "10.0.0.1", null, "two\nlines\n"],
            "base": {"a": [true]},
            "other": {"a": [true]},
        });
        assert_eq!(parse(yaml).unwrap(), json);
        assert_eq!(parse(json.to_string().as_bytes()).unwrap(), json);
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_line() {
        let error = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("a: 1\nb: 2\na: 3\n"), "line 3: `a` stands here twice");
        assert_eq!(error("a: 1\n---\nb: 2\n"), "expected one document, found 2");
        assert_eq!(error(""), "expected one document, found 0");
        assert!(error("a: [1\n").starts_with("not YAML: "));
        assert!(error("{\"a\": 1").starts_with("not JSON: "));
        assert_eq!(error("? [a]\n: b\n"), "line 1: expected a string as key, found [\"a\"]");
        let deep = "- ".repeat(200) + "a";
        assert!(error(&deep).ends_with("nested too deeply"));
    }

    #[test]
    fn a_document_that_multiplies_itself_ends() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with("more than 4194304 values"), "{error}");
    }
}
