//! What the first bytes of a connection say of HTTP: which version begins here, if any. This is what Envoy's `http_inspector` looks for.

use weft_core::request::is_of_token;

/// Envoy's inspector gives up on a request line of this length; no parser of heads takes one.
const LINE_BYTES: usize = 64 * 1024;
/// What is longer and has no space in it begins with no method.
const METHOD_BYTES: usize = 8 * 1024;

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// With a request line of this protocol (`http/1.1`), or HTTP/2's preface (`h2c`).
    Http(&'static str),
    /// With something else.
    Other,
    /// With what has the form of a request line and no end: nobody can tell what it is, and nobody could answer it.
    TooLong,
    /// More bytes decide it.
    Undecided,
}

/// Tell from what has come so far. What was decided is not decided otherwise by what comes later.
pub fn of(data: &[u8]) -> Opening {
    if data.starts_with(b"PRI * HTTP/2.0\r\n") {
        return Opening::Http("h2c");
    }
    // A method is a token (RFC 9110 9.1); anything else cannot become HTTP, also if a whole line is here.
    let begin = &data[..data.len().min(METHOD_BYTES)];
    let method = begin.split(|&byte| byte == b' ').next().unwrap_or_default();
    if !method.iter().copied().all(is_of_token) || method.len() == METHOD_BYTES {
        return Opening::Other;
    }
    let begin = &data[..data.len().min(LINE_BYTES)];
    match memchr::memchr(b'\n', begin) {
        Some(end) => match begin[..end].trim_ascii_end() {
            line if line.ends_with(b" HTTP/1.1") => Opening::Http("http/1.1"),
            line if line.ends_with(b" HTTP/1.0") => Opening::Http("http/1.0"),
            _ => Opening::Other,
        },
        None if data.len() < LINE_BYTES => Opening::Undecided,
        None => Opening::TooLong,
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
            (b"UPDATE_V2 / HTTP/1.1\r\n", Opening::Http("http/1.1")),
            (b"PRI * HTTP/2.0\r\n", Opening::Http("h2c")),
            (b"", Opening::Undecided),
            (b"PRI * HTTP/2.0\r", Opening::Undecided),
            (b"GET key", Opening::Undecided),
            (b"GET key\r\n", Opening::Other),
            (b"\x16\x03\x01", Opening::Other),
            (b"PING\r\n", Opening::Other),
            // Redis, LDAP, MongoDB, SSH: each begins with what could be of a method, and goes on otherwise at once.
            (b"*1\r\n$4\r\nPING\r\n", Opening::Other),
            (b"0\x0c\x02\x01\x01", Opening::Other),
            (b"A\0\0\0", Opening::Other),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Opening::Other),
        ] {
            assert_eq!(of(data), expected, "{data:?}");
        }
    }

    #[test]
    fn how_bytes_come_decides_nothing() {
        let endless = [&b"GET /"[..], &[b'a'; LINE_BYTES], b" HTTP/1.1\r\n"].concat();
        let word = [&[b'a'; METHOD_BYTES][..], b" / HTTP/1.1\r\n"].concat();
        for data in [&b"G@T / HTTP/1.1\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16 HTTP/1.1\n", &endless, &word] {
            let whole = of(data);
            assert_ne!(whole, Opening::Undecided);
            let first = (0..=data.len()).map(|cut| of(&data[..cut])).find(|opening| *opening != Opening::Undecided);
            assert_eq!(first, Some(whole), "{:?}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn a_request_line_may_be_as_long_as_envoy_reads_one() {
        let line = |length: usize| {
            let mut line = b"GET /".to_vec();
            line.resize(length - b" HTTP/1.1\r\n".len(), b'a');
            [&line[..], b" HTTP/1.1\r\n"].concat()
        };
        for (length, expected) in [
            (9 * 1024, Opening::Http("http/1.1")),
            (LINE_BYTES, Opening::Http("http/1.1")),
            (LINE_BYTES + 1, Opening::TooLong),
        ] {
            assert_eq!(of(&line(length)), expected, "{length}");
        }
        assert_eq!(of(&[b'a'; METHOD_BYTES]), Opening::Other);
        assert_eq!(of(&[b'a'; METHOD_BYTES - 1]), Opening::Undecided);
    }
}
