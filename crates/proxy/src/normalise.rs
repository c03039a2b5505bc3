//! Paths as they are matched: one spelling for one resource, so that a rule cannot be walked around by another spelling.

use weft_core::http_manager::{EscapedSlashes, HttpManager};

/// What became of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Normalised {
    /// It was normal already.
    Same,
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
            if path.contains(&0) {
                return Normalised::Refused;
            }
            path = match remove_dots(&decode_unreserved(&path)) {
                Some(path) => path,
                None => return Normalised::Refused,
            };
        }
        if self.slashes {
            path.dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        path.extend_from_slice(query);
        match self.escapes {
            EscapedSlashes::Redirect if unescaped => Normalised::Redirect(path),
            _ if path == target => Normalised::Same,
            _ => Normalised::Changed(path),
        }
    }

    /// A look that costs little: almost every path is normal.
    fn needs_work(&self, path: &[u8]) -> bool {
        (self.dots && (memchr::memchr2(b'%', b'\\', path).is_some() || memchr::memmem::find(path, b"/.").is_some()))
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

/// RFC 3986 6.2.2.2: an escaped unreserved character is that character. Backslashes are slashes to some servers, so they become slashes.
fn decode_unreserved(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        let decoded = match (byte, tail) {
            (b'%', [high, low, ..]) => char::from(*high)
                .to_digit(16)
                .zip(char::from(*low).to_digit(16))
                .map(|(high, low)| (high * 16 + low) as u8)
                .filter(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(byte)),
            _ => None,
        };
        match decoded {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None => {
                out.push(if byte == b'\\' { b'/' } else { byte });
                rest = tail;
            }
        }
    }
    out
}

/// RFC 3986 5.2.4. `None` if the path climbs above its root, which Envoy refuses too.
fn remove_dots(path: &[u8]) -> Option<Vec<u8>> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_with_slash = false;
    for segment in path[1..].split(|&byte| byte == b'/') {
        ends_with_slash = false;
        match segment {
            b"." => ends_with_slash = true,
            b".." => {
                segments.pop()?;
                ends_with_slash = true;
            }
            other => segments.push(other),
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
    Some(out)
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
            ("/..", Normalised::Refused),
            ("/%61dmin", Normalised::Changed(b"/admin".to_vec())),
            ("/%2e%2e/x", Normalised::Refused),
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
    fn escaped_slashes_are_treated_as_configured() {
        let apply = |escapes| Wanted { dots: true, slashes: false, escapes }.apply(b"/a%2Fb%5c?%2f");
        assert_eq!(apply(EscapedSlashes::Reject), Normalised::Refused);
        assert_eq!(apply(EscapedSlashes::Redirect), Normalised::Redirect(b"/a/b/?%2f".to_vec()));
        assert_eq!(apply(EscapedSlashes::Unescape), Normalised::Changed(b"/a/b/?%2f".to_vec()));
    }
}
