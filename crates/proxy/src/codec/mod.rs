//! What every HTTP codec hands to the rest of the proxy, and takes back from it.
//!
//! A codec turns bytes into a [`Head`] and a stream of body spans, and a [`Head`] and body spans into bytes.
//! Nothing outside this module knows how a message looks on the wire: routing, filters, retries and records see
//! [`Head`] only. [`http1`] and [`h2`] fill the same values. [`proxy_protocol`] is what may stand before either, and [`opening`] tells which of
//! them begins, as [`client_hello`] does of TLS, whose fields [`tls_fields`] reads.
//! [`dns`] stands apart: it is what names are resolved with. So does [`rpc`]: its messages are calls, not heads and bodies.

pub mod client_hello;
pub mod dns;
pub mod grpc_web;
pub mod h2;
pub mod head;
pub mod http1;
pub mod opening;
pub mod proxy_protocol;
pub mod rpc;
pub mod tls_fields;

pub use head::{Head, Known, Name};

/// How the body of a message is delimited, as its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body follows the head.
    None,
    /// Exactly this many bytes follow.
    Length(u64),
    /// Chunks follow, then trailers.
    Chunked,
    /// Everything until the peer closes; responses only.
    UntilClose,
}

/// The protocol version of a message, as access records spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        }
    }
}

/// Bytes that may stand in an authority (RFC 3986 3.2), without user information: it has no place in HTTP (RFC 9110 4.2.4).
fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(&byte)
}

/// RFC 9110 6.5.1: fields that frame, route, authenticate or modify a message, or say how to process it, are for its head, where they were
/// looked at. Many a receiver adds the trailers to the head's fields, so in trailers they are dropped, not passed on.
fn is_forbidden_trailer(name: &[u8]) -> bool {
    #[rustfmt::skip]
    const FORBIDDEN: [&[u8]; 41] = [
        // framing, and the connection
        b"content-length", b"transfer-encoding", b"trailer", b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade",
        // routing, and who asks
        b"host", b"forwarded", b"via", b"x-real-ip", b"x-request-id",
        // authentication
        b"authorization", b"proxy-authorization", b"www-authenticate", b"proxy-authenticate", b"cookie", b"set-cookie",
        // modifiers of requests
        b"cache-control", b"expect", b"max-forwards", b"pragma", b"range",
        b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range",
        // control of responses
        b"age", b"expires", b"location", b"retry-after", b"vary", b"warning", b"strict-transport-security", b"alt-svc",
        // what the content is
        b"content-encoding", b"content-type", b"content-range", b"content-location",
    ];
    // What proxies tell each other.
    const FAMILIES: [&[u8]; 2] = [b"x-forwarded-", b"x-envoy-"];
    FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden)) || is_of_family(name, &FAMILIES)
}

/// Whether *name*, in any case, begins with one of *prefixes*.
fn is_of_family(name: &[u8], prefixes: &[&[u8]]) -> bool {
    prefixes.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix)))
}

/// RFC 9110 9.3.6: what CONNECT names has a host and a port, and no default.
fn has_port(authority: &[u8]) -> bool {
    let Some(colon) = authority.iter().rposition(|&byte| byte == b':') else { return false };
    let port = std::str::from_utf8(&authority[colon + 1..]).ok().and_then(|port| port.parse::<u16>().ok());
    colon > 0 && port.is_some_and(|port| port > 0)
}

/// RFC 9110 8.6: digits only; no sign, no list, no space.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |total, &byte| byte.is_ascii_digit().then(|| total * 10 + u64::from(byte - b'0')))
}

/// Write *value* in decimal digits.
pub fn decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut left = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
