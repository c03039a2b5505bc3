//! A question: the head of a request, taken apart. No question has a body.
//!
//! Whoever may connect may send any bytes: this is a parser of its own, without I/O, and has a fuzz target.

/// A question is a line and a few headers.
pub const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    /// As GET, and the answer has no body (RFC 9110 9.3.2).
    Head,
    Post,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub method: Method,
    /// Decoded.
    pub path: String,
    pub query: Query,
}

/// What is behind `?`, decoded: each name once, with its value, or without one where there is no `=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, Option<String>)>);

/// Why it is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuestionError {
    #[error("not an HTTP request")]
    NotHttp,
    #[error("a path, and names and values behind `?`, are UTF-8")]
    NotText,
    #[error("`{0}` is there twice")]
    Twice(String),
    #[error("`{name}` {wants}")]
    Value { name: String, wants: &'static str },
}

/// Read the head of a request; `None`: more has to come.
///
/// # Errors
/// [`QuestionError`], also for a head of more than [`HEAD_BYTES`].
pub fn parse(text: &[u8]) -> Result<Option<Question>, QuestionError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(text) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if text.len() < HEAD_BYTES => return Ok(None),
        _ => return Err(QuestionError::NotHttp),
    }
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let method = match request.method.unwrap_or_default() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        _ => Method::Other,
    };
    Ok(Some(Question { method, path: decode(path)?, query: Query::parse(query)? }))
}

impl Query {
    /// # Errors
    /// [`QuestionError::NotText`], [`QuestionError::Twice`].
    pub fn parse(text: &str) -> Result<Query, QuestionError> {
        let mut pairs: Vec<(String, Option<String>)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(decode(value)?)),
                None => (pair, None),
            };
            let name = decode(name)?;
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(QuestionError::Twice(name));
            }
            pairs.push((name, value));
        }
        Ok(Query(pairs))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// All that have a value.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or_default()))
    }

    /// Whether *name* is there, by itself or as `true`.
    ///
    /// # Errors
    /// It has another value.
    pub fn flag(&self, name: &str) -> Result<bool, QuestionError> {
        match self.0.iter().find(|(known, _)| known == name) {
            None => Ok(false),
            Some((_, None)) => Ok(true),
            Some((_, Some(value))) if matches!(value.as_str(), "" | "true") => Ok(true),
            Some(_) => Err(QuestionError::Value { name: name.into(), wants: "stands alone, or is left out" }),
        }
    }

    /// The value of *name*.
    ///
    /// # Errors
    /// It has none.
    pub fn value(&self, name: &str) -> Result<Option<&str>, QuestionError> {
        match self.0.iter().find(|(known, _)| known == name) {
            None => Ok(None),
            Some((_, Some(value))) if !value.is_empty() => Ok(Some(value)),
            Some(_) => Err(QuestionError::Value { name: name.into(), wants: "needs a value" }),
        }
    }
}

/// Percent-encoding undone (RFC 3986 2.1). What is no encoding stands for itself, and so does `+`: people type regular expressions.
fn decode(text: &str) -> Result<String, QuestionError> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        match (first, digit(after.first()), digit(after.get(1))) {
            // Two digits are at most 255.
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| QuestionError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> Result<Option<Question>, QuestionError> {
        parse(request.as_bytes())
    }

    #[test]
    fn a_question_is_its_method_path_and_query() {
        let question =
            ask("POST /log%67ing?xds=debug&filter=^a(%5C.|%2b)+$&usedonly&100%=%zz HTTP/1.1\r\nhost: a\r\n\r\n");
        let question = question.unwrap().unwrap();
        assert_eq!((question.method, question.path.as_str()), (Method::Post, "/logging"));
        let query = question.query;
        assert_eq!(query.value("xds"), Ok(Some("debug")));
        assert_eq!(query.value("filter"), Ok(Some("^a(\\.|+)+$")));
        assert_eq!(query.value("100%"), Ok(Some("%zz")));
        assert_eq!(query.value("none"), Ok(None));
        assert_eq!((query.flag("usedonly"), query.flag("none")), (Ok(true), Ok(false)));
        assert!(query.flag("xds").is_err() && query.value("usedonly").is_err());
        assert_eq!(query.names().count(), 4);
    }

    #[test]
    fn what_is_not_http_is_told_from_what_was_cut_off() {
        assert_eq!(parse(b"\x16\x03\x01\x02\x00\x01"), Err(QuestionError::NotHttp));
        assert_eq!(ask("GET / HTTP/1.1\r\nhost"), Ok(None));
        let long = format!("GET / HTTP/1.1\r\na: {}", "x".repeat(HEAD_BYTES));
        assert_eq!(ask(&long), Err(QuestionError::NotHttp));
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_refused() {
        assert_eq!(Query::parse("a=1&%61=2"), Err(QuestionError::Twice("a".into())));
        assert_eq!(Query::parse("a=%ff"), Err(QuestionError::NotText));
        assert_eq!(Query::parse("&&").unwrap(), Query::default());
    }
}
