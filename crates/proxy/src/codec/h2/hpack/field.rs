//! One field line of HTTP/2, and what its name means to the codec.

use crate::codec::Known;

use super::table::ENTRY_OVERHEAD;

/// What a name means to HTTP/2 itself; worked out once, when a field enters a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    /// RFC 8441.
    Protocol,
    /// A name that begins with a colon and is none of these.
    UnknownPseudo,
    Host,
    ContentLength,
    Cookie,
    Te,
    Expect,
    /// Concerns one connection of HTTP/1.1; forbidden here (RFC 9113 8.2.2).
    ConnectionSpecific,
    Regular(Known),
}

impl Kind {
    /// What *name* means. It is in lower case, or illegal.
    pub fn of(name: &[u8]) -> Kind {
        match name {
            b":method" => Kind::Method,
            b":scheme" => Kind::Scheme,
            b":authority" => Kind::Authority,
            b":path" => Kind::Path,
            b":status" => Kind::Status,
            b":protocol" => Kind::Protocol,
            [b':', ..] => Kind::UnknownPseudo,
            b"host" => Kind::Host,
            b"content-length" => Kind::ContentLength,
            b"cookie" => Kind::Cookie,
            b"te" => Kind::Te,
            b"expect" => Kind::Expect,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                Kind::ConnectionSpecific
            }
            _ => Kind::Regular(Known::of(name)),
        }
    }
}

/// A field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub kind: Kind,
    /// Name and value hold only bytes that RFC 9113 8.2.1 allows.
    pub legal: bool,
    /// The sender wants no intermediary to put it into a table (RFC 7541 7.1.3).
    pub never_indexed: bool,
}

impl Field<'_> {
    /// Size as RFC 7541 4.1 counts it.
    pub fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// RFC 9113 8.2.1, in the stricter form of RFC 9110 5.1: a token without upper case; one colon may stand before it.
pub fn is_legal_name(name: &[u8]) -> bool {
    let token = name.strip_prefix(b":").unwrap_or(name);
    !token.is_empty()
        && token
            .iter()
            .all(|&byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// RFC 9113 8.2.1 and RFC 9110 5.5: no control character but the tab, no space at the ends.
///
/// CR, LF and NUL are how a second header, or a second request, is smuggled into HTTP/1.1.
pub fn is_legal_value(value: &[u8]) -> bool {
    let at_end = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !at_end(value.first())
        && !at_end(value.last())
        && value.iter().all(|&byte| byte >= 0x20 && byte != 0x7f || byte == b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_that_http1_would_read_otherwise_are_illegal() {
        for name in [&b""[..], b":", b"Accept", b"a b", b"a:b", b"a\r\n", b"a\0", b"\xc3\xa4", b"a\x7f"] {
            assert!(!is_legal_name(name), "{name:?}");
        }
        assert!(is_legal_name(b":path") && is_legal_name(b"x-a_b.c"));
        for value in [&b" a"[..], b"a ", b"\ta", b"a\rb", b"a\nb", b"a\0b", b"a\x7f", b"\x1b"] {
            assert!(!is_legal_value(value), "{value:?}");
        }
        for value in [&b""[..], b"a b", b"a\tb", b"\xc3\xa4", b"\xff"] {
            assert!(is_legal_value(value), "{value:?}");
        }
    }
}
