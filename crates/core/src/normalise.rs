//! Paths as they are matched: one spelling for one resource, so that a rule cannot be walked around by another spelling.

use crate::http_manager::{EscapedSlashes, HttpManager};

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalised {
    /// It was normal already.
    Same,
    /// This is the normal one.
    Changed(Vec<u8>),
    /// It cannot be normalised, or has escaped slashes that are refused: 400.
    Refused,
    /// Tell the client to come back with this path: 307.
    Redirect(Vec<u8>),
}

/// Normalise *target* (path and query) as *manager* wants it.
pub fn normalise(target: &[u8], manager: &HttpManager) -> Normalised {
    let wanted =
        Wanted { dots: manager.normalize_path, slashes: manager.merge_slashes, escapes: manager.escaped_slashes };
    wanted.apply(target)
}

struct Wanted {
    dots: bool,
    slashes: bool,
    escapes: EscapedSlashes,
}

impl Wanted {
    fn apply(&self, target: &[u8]) -> Normalised {
        if target.first() != Some(&b'/') {
            return Normalised::Same;
        }
        let end = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        let unescaped = self.escapes != EscapedSlashes::Keep && find_escaped_slash(path).is_some();
        if unescaped && self.escapes == EscapedSlashes::Reject {
            return Normalised::Refused;
        }
        if !unescaped && !self.needs_work(path) {
            return Normalised::Same;
        }
        let mut path = if unescaped { unescape_slashes(path) } else { path.to_vec() };
        if self.dots {
            path = match decode_unreserved(&path) {
                Some(path) => remove_dots(&path),
                None => return Normalised::Refused,
            };
        }
        if self.slashes {
            path.dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        path.extend_from_slice(query);
        match self.escapes {
            EscapedSlashes::Redirect if unescaped => Normalised::Redirect(as_reference(path)),
            _ if path == target => Normalised::Same,
            _ => Normalised::Changed(path),
        }
    }

    /// A look that costs little: almost every path is normal.
    fn needs_work(&self, path: &[u8]) -> bool {
        (self.dots && (memchr::memchr3(b'%', b'\\', 0, path).is_some() || memchr::memmem::find(path, b"/.").is_some()))
            || (self.slashes && memchr::memmem::find(path, b"//").is_some())
    }
}

fn find_escaped_slash(path: &[u8]) -> Option<usize> {
    path.windows(3).position(|part| part.eq_ignore_ascii_case(b"%2f") || part.eq_ignore_ascii_case(b"%5c"))
}

fn unescape_slashes(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = find_escaped_slash(rest) {
        out.extend_from_slice(&rest[..at]);
        out.push(if rest[at + 1] == b'2' { b'/' } else { b'\\' });
        rest = &rest[at + 3..];
    }
    out.extend_from_slice(rest);
    out
}

/// Write *path* so that a client that is told to go there stays on this host. RFC 3986 4.2: what begins with two slashes names a host, and
/// to browsers a backslash is one, too; `/.` before it is nothing but the root (RFC 3986 5.2.4).
fn as_reference(path: Vec<u8>) -> Vec<u8> {
    if matches!(path[..], [b'/', b'/' | b'\\', ..]) { [&b"/."[..], &path].concat() } else { path }
}

/// RFC 3986 6.2.2.2: an escaped unreserved character is that character. Backslashes are slashes to some servers, so they become slashes.
/// `None`: there is a NUL, escaped or not, which ends a path for whoever keeps it as C does; Envoy refuses it too.
fn decode_unreserved(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    // Percent signs that begin no escape, but may begin one with what is decoded behind them.
    let mut alone = Vec::new();
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, behind) = match (escaped(rest), first) {
            (Some(0), _) | (None, 0) => return None,
            (Some(byte), _) if is_unreserved(byte) => (byte, &rest[3..]),
            (None, b'%') => {
                alone.push(out.len());
                (first, tail)
            }
            (None, b'\\') => (b'/', tail),
            _ => (first, tail),
        };
        out.push(byte);
        rest = behind;
    }
    Some(keep_alone(out, &alone))
}

/// Write the percent signs at *alone* so that they begin no escape: `%%32e` is not `%2e`, which the next server would take for a dot.
fn keep_alone(path: Vec<u8>, alone: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len() + 2 * alone.len());
    let mut begin = 0;
    for &at in alone.iter().filter(|&&at| escaped(&path[at..]).is_some()) {
        out.extend_from_slice(&path[begin..=at]);
        out.extend_from_slice(b"25");
        begin = at + 1;
    }
    out.extend_from_slice(&path[begin..]);
    out
}

/// The byte that an escape at the beginning of *text* stands for.
fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    Some((digit(*high)? * 16 + digit(*low)?) as u8)
}

/// RFC 3986 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986 5.2.4: whoever climbs above the root stays there. Parameters of a dot segment (`..;x`, RFC 3986 3.3) go with it: servers that know
/// parameters drop them before they look at dots, and so does Envoy.
fn remove_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_with_slash = false;
    for segment in path[1..].split(|&byte| byte == b'/') {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        ends_with_slash = matches!(name, b"." | b"..");
        match name {
            b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_with_slash || out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_one_spelling() {
        let wanted = Wanted { dots: true, slashes: true, escapes: EscapedSlashes::Keep };
        for (given, expected) in [
            ("/a/b?x=/../y", Normalised::Same),
            ("/a/../b", Normalised::Changed(b"/b".to_vec())),
            ("/a/./b/", Normalised::Changed(b"/a/b/".to_vec())),
            ("/a/b/..", Normalised::Changed(b"/a/".to_vec())),
            ("/..", Normalised::Changed(b"/".to_vec())),
            ("/a/../../b", Normalised::Changed(b"/b".to_vec())),
            ("/%61dmin", Normalised::Changed(b"/admin".to_vec())),
            ("/%2e%2e/x", Normalised::Changed(b"/x".to_vec())),
            ("/a%2fb", Normalised::Same),
            ("/a//b///c?q=//", Normalised::Changed(b"/a/b/c?q=//".to_vec())),
            ("/a\\b", Normalised::Changed(b"/a/b".to_vec())),
            ("*", Normalised::Same),
            ("/%zz%", Normalised::Same),
        ] {
            assert_eq!(wanted.apply(given.as_bytes()), expected, "{given}");
        }
    }

    #[test]
    fn what_is_decoded_is_no_other_escape() {
        let wanted = Wanted { dots: true, slashes: true, escapes: EscapedSlashes::Keep };
        for (given, expected) in [
            ("/a/%%32e%%32e/b", "/a/%252e%252e/b"),
            ("/a/%2%65%2%65/b", "/a/%252e%252e/b"),
            ("/a/%%32%65", "/a/%252e"),
            ("/a%%32fb", "/a%252fb"),
            ("/%%%32e", "/%%252e"),
            ("/%2%%36%35", "/%2%2565"),
            ("/%2%35%32e", "/%25252e"),
        ] {
            assert_eq!(wanted.apply(given.as_bytes()), Normalised::Changed(expected.into()), "{given}");
            assert_eq!(wanted.apply(expected.as_bytes()), Normalised::Same, "{given}");
        }
        for given in ["/%252e%252e/x", "/%2%", "/%%", "/%zz%4"] {
            assert_eq!(wanted.apply(given.as_bytes()), Normalised::Same, "{given}");
        }
    }

    #[test]
    fn parameters_hide_no_dots() {
        let wanted = Wanted { dots: true, slashes: false, escapes: EscapedSlashes::Keep };
        for (given, expected) in [
            ("/a/..;/b", "/b"),
            ("/a/.;x/b", "/a/b"),
            ("/a/..;x=1;y", "/"),
            ("/a/b/%2e%2e;x/c", "/a/c"),
            ("/a/b/..;..;/c", "/a/c"),
        ] {
            assert_eq!(wanted.apply(given.as_bytes()), Normalised::Changed(expected.into()), "{given}");
        }
        for given in ["/a/b;x=..;/c", "/a/...;/b", "/a/..%3b/b", "/;/a"] {
            assert_eq!(wanted.apply(given.as_bytes()), Normalised::Same, "{given}");
        }
    }

    #[test]
    fn a_nul_is_refused_in_any_spelling() {
        let wanted = Wanted { dots: true, slashes: false, escapes: EscapedSlashes::Keep };
        assert_eq!(wanted.apply(b"/a\0b"), Normalised::Refused);
        assert_eq!(wanted.apply(b"/a%00b"), Normalised::Refused);
        assert_eq!(wanted.apply(b"/a?b%00"), Normalised::Same);
        assert_eq!(wanted.apply(b"/%%30%30"), Normalised::Changed(b"/%2500".to_vec()));
    }

    #[test]
    fn escaped_slashes_are_treated_as_configured() {
        let apply = |escapes| Wanted { dots: true, slashes: false, escapes }.apply(b"/a%2Fb%5c?%2f");
        assert_eq!(apply(EscapedSlashes::Reject), Normalised::Refused);
        assert_eq!(apply(EscapedSlashes::Redirect), Normalised::Redirect(b"/a/b/?%2f".to_vec()));
        assert_eq!(apply(EscapedSlashes::Unescape), Normalised::Changed(b"/a/b/?%2f".to_vec()));
    }

    #[test]
    fn a_redirect_never_leads_to_another_host() {
        for (dots, given, expected) in [
            (true, "/%2fevil.com/x", "/.//evil.com/x"),
            (false, "/%2fevil.com/x", "/.//evil.com/x"),
            (true, "/%5cevil.com", "/.//evil.com"),
            (false, "/%5Cevil.com", "/./\\evil.com"),
            (true, "/a/..%2f/evil.com?b", "/.//evil.com?b"),
            (true, "/a%2f/b", "/a//b"),
            (false, "/a%2fb", "/a/b"),
        ] {
            let wanted = Wanted { dots, slashes: false, escapes: EscapedSlashes::Redirect };
            let expected = Normalised::Redirect(expected.as_bytes().to_vec());
            assert_eq!(wanted.apply(given.as_bytes()), expected, "{given}, dots: {dots}");
        }
        // Where slashes are merged there is only one at the beginning.
        let wanted = Wanted { dots: true, slashes: true, escapes: EscapedSlashes::Redirect };
        assert_eq!(wanted.apply(b"/%2fevil.com"), Normalised::Redirect(b"/evil.com".to_vec()));
    }
}
