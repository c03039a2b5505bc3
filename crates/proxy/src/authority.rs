//! Where a request says that it goes, for a proxy that looks the name up itself (a forward proxy, CONNECT).

use std::net::Ipv6Addr;

/// Of `http://host/` (RFC 9110 4.2.1).
const HTTP_PORT: u16 = 80;

/// Host and port of `host` or `host:port` (RFC 3986 3.2); nothing if it is neither. An address of IPv6 stands in brackets, which are
/// not the host's.
pub fn split(authority: &[u8]) -> Option<(&str, u16)> {
    let authority = std::str::from_utf8(authority).ok()?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        // `parse` takes a sign, too.
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None => HTTP_PORT,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for (text, expected) in [
            ("www.example.com", Some(("www.example.com", 80))),
            ("www.example.com:8080", Some(("www.example.com", 8080))),
            ("[::1]:8080", Some(("::1", 8080))),
            ("[::1]", Some(("::1", 80))),
            ("127.0.0.1:1", Some(("127.0.0.1", 1))),
            ("host:99999", None),
            ("host:", None),
            ("host:+80", None),
            (":80", None),
            ("", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]8080", None),
            ("[host]:80", None),
            ("[]:80", None),
            ("host:80:80", None),
        ] {
            assert_eq!(split(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(split(b"\xff"), None);
    }
}
