//! Writes heads, chunks and trailers. Appends to a buffer that the caller owns; nothing is formatted by `core::fmt`.

use super::super::{Framing, Head, Known, Version, decimal};

/// How the connection goes on after a message; decides its `Connection` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    KeepAlive,
    /// Said only to a client of HTTP/1.0, for which closing is the default.
    KeepAliveSaid,
    Close,
    Upgrade,
}

/// Write the head of a request as it goes upstream.
pub fn request(out: &mut Vec<u8>, head: &Head, after: After) {
    out.reserve(512);
    out.extend_from_slice(head.method());
    out.push(b' ');
    if head.is_connect() {
        out.extend_from_slice(head.authority());
    } else {
        out.extend_from_slice(head.target());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, head.spelled(head.spelling.host, b"host"), head.authority());
    fields(out, head);
    if head.accepts_trailers {
        out.extend_from_slice(b"te: trailers\r\n");
    }
    framing(out, head, head.framing);
    connection(out, head, after);
    out.extend_from_slice(b"\r\n");
}

/// Write the head of a response as it goes downstream. *written* is the framing of the message written, which differs from the
/// received one where the client cannot read chunks.
pub fn response(out: &mut Vec<u8>, head: &Head, written: Framing, after: After) {
    out.reserve(512);
    match head.reason() {
        b"" => status_line(out, head.status),
        reason => status_line_of(out, head.status, reason),
    }
    fields(out, head);
    framing(out, head, written);
    connection(out, head, after);
    out.extend_from_slice(b"\r\n");
}

/// `HTTP/1.1 200 OK`
pub fn status_line(out: &mut Vec<u8>, status: u16) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    status_line_of(out, status, reason(status).as_bytes());
}

fn status_line_of(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

fn fields(out: &mut Vec<u8>, head: &Head) {
    for (known, name, value) in head.fields_known() {
        // The encoder writes these itself; a filter may have added one again.
        if matches!(known, Known::Connection | Known::Upgrade | Known::Te) {
            continue;
        }
        field(out, name, value);
    }
}

pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn framing(out: &mut Vec<u8>, head: &Head, framing: Framing) {
    let length = match framing {
        Framing::Chunked => {
            return field(out, head.spelled(head.spelling.transfer_encoding, b"transfer-encoding"), b"chunked");
        }
        Framing::Length(length) => Some(length),
        Framing::None | Framing::UntilClose => head.declared_length,
    };
    if let Some(length) = length {
        out.extend_from_slice(head.spelled(head.spelling.content_length, b"content-length"));
        out.extend_from_slice(b": ");
        decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
}

fn connection(out: &mut Vec<u8>, head: &Head, after: After) {
    match after {
        After::KeepAlive => {}
        After::KeepAliveSaid => out.extend_from_slice(b"connection: keep-alive\r\n"),
        After::Close => out.extend_from_slice(b"connection: close\r\n"),
        After::Upgrade => {
            out.extend_from_slice(b"connection: upgrade\r\n");
            field(out, b"upgrade", head.upgrade());
        }
    }
}

/// Write the line before *length* bytes of chunk data.
pub fn chunk_begin(out: &mut Vec<u8>, length: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut left = length;
    loop {
        at -= 1;
        digits[at] = DIGITS[left & 15];
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Write what follows chunk data.
pub fn chunk_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Write the last chunk and the trailers.
pub fn chunks_done<'a>(out: &mut Vec<u8>, trailers: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The connection field for the answer to a request of *version*.
pub fn after(version: Version, close: bool) -> After {
    match (close, version) {
        (true, _) => After::Close,
        (false, Version::Http10) => After::KeepAliveSaid,
        (false, Version::Http11 | Version::Http2) => After::KeepAlive,
    }
}

/// The reason phrase of a status (RFC 9110 15).
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => "Unknown",
    }
}
