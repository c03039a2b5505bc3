//! What the first bytes of a connection say of HTTP: which version begins here, if any. This is what Envoy's `http_inspector` looks for.

/// A first line longer than this is not HTTP's.
const FIRST_LINE_BYTES: usize = 8 * 1024;

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With a request line of this protocol (`http/1.1`), or HTTP/2's preface (`h2c`).
    Http(&'static str),
    /// With something else.
    Other,
    /// More bytes decide it.
    Undecided,
}

/// Tell from what has come so far. What was decided is not decided otherwise by what comes later.
pub fn of(data: &[u8]) -> Opening {
    if data.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Opening::Http("h2c");
    }
    // A method is a token (RFC 9110 9.1); anything else cannot become HTTP, also if a whole line is here.
    let method = data.split(|&byte| byte == b' ').next().unwrap_or_default();
    if !method.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'-') {
        return Opening::Other;
    }
    let begin = &data[..data.len().min(FIRST_LINE_BYTES)];
    match memchr::memchr(b'\n', begin) {
        Some(end) => match begin[..end].trim_ascii_end() {
            line if line.ends_with(b" HTTP/1.1") => Opening::Http("http/1.1"),
            line if line.ends_with(b" HTTP/1.0") => Opening::Http("http/1.0"),
            _ => Opening::Other,
        },
        None if data.len() < FIRST_LINE_BYTES => Opening::Undecided,
        None => Opening::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_or_a_preface_is_http() {
        for (data, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Opening::Http("http/1.1")),
            (b"M-SEARCH * HTTP/1.0\n", Opening::Http("http/1.0")),
            (b"PRI * HTTP/2.0\r\n", Opening::Http("h2c")),
            (b"", Opening::Undecided),
            (b"PRI * HTTP/2.0\r", Opening::Undecided),
            (b"GET key", Opening::Undecided),
            (b"GET key\r\n", Opening::Other),
            (b"\x16\x03\x01", Opening::Other),
            (b"PING\r\n", Opening::Other),
        ] {
            assert_eq!(of(data), expected, "{data:?}");
        }
    }

    #[test]
    fn how_bytes_come_decides_nothing() {
        let long = [&b"GET /"[..], &[b'a'; FIRST_LINE_BYTES], b" HTTP/1.1\r\n"].concat();
        for data in [&b"G@T / HTTP/1.1\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16 HTTP/1.1\n", &long] {
            let whole = of(data);
            assert_ne!(whole, Opening::Undecided);
            let first = (0..=data.len()).map(|cut| of(&data[..cut])).find(|opening| *opening != Opening::Undecided);
            assert_eq!(first, Some(whole), "{:?}", String::from_utf8_lossy(data));
        }
    }
}
