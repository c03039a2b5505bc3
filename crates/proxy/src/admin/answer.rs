//! An answer, and how it is written.

use serde_json::Value;

use super::question::QuestionError;

pub const TEXT: &str = "text/plain; charset=UTF-8";
pub const JSON: &str = "application/json";
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub const BYTES: &str = "application/octet-stream";

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Vec<u8>,
    /// The process ends once this is written.
    pub quits: bool,
}

impl Answer {
    pub fn new(content_type: &'static str, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status: 200, content_type, body: body.into(), quits: false }
    }

    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, ..Answer::new(TEXT, body) }
    }

    /// What was asked cannot be answered as it was asked.
    pub fn refusal(reason: impl std::fmt::Display) -> Answer {
        Answer::text(400, format!("{reason}\n"))
    }

    pub fn json(value: &Value) -> Answer {
        Answer::new(JSON, format!("{value:#}\n"))
    }

    /// As it goes over the wire; *is_head*: without the body, whose length it tells all the same (RFC 9110 9.3.2).
    pub fn encode(&self, is_head: bool) -> Vec<u8> {
        let Answer { status, content_type, body, .. } = self;
        let (reason, length) = (reason(*status), body.len());
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
             cache-control: no-cache, max-age=0\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        );
        [head.as_bytes(), if is_head { b"" } else { body }].concat()
    }
}

impl From<QuestionError> for Answer {
    fn from(error: QuestionError) -> Answer {
        Answer::refusal(error)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        _ => "Service Unavailable",
    }
}
