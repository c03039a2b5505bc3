//! Paths under foreign bytes: a normalised path is normal (normalising it again changes nothing), has no dots in any spelling that the next
//! server could decode, keeps its query, and a redirect never leads to another host.
//!
//! The first byte of the input says what is configured; the rest is path and query.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use weft_core::http_manager::{EscapedSlashes, HttpManager};
use weft_core::normalise::{Normalised, normalise};

/// Every way of normalising.
static MANAGERS: LazyLock<Vec<HttpManager>> = LazyLock::new(|| {
    let escapes = ["KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"];
    let all = (0..16).map(|bits| {
        let settings = json!({
            "normalize_path": bits & 1 != 0,
            "merge_slashes": bits & 2 != 0,
            "path_with_escaped_slashes_action": escapes[bits >> 2],
        });
        weft_fuzz::manager(settings)
    });
    all.collect()
});

fuzz_target!(|input: &[u8]| {
    let [kind, target @ ..] = input else { return };
    let manager = &MANAGERS[usize::from(*kind) % MANAGERS.len()];
    if target.first() != Some(&b'/') {
        assert_eq!(normalise(target, manager), Normalised::Same);
        return;
    }
    match normalise(target, manager) {
        Normalised::Same => assert_normal(target, manager),
        Normalised::Changed(path) => {
            assert_ne!(path, target);
            assert_eq!(query(&path), query(target));
            assert_eq!(normalise(&path, manager), Normalised::Same);
            assert_normal(&path, manager);
        }
        Normalised::Redirect(path) => {
            assert_eq!(manager.escaped_slashes, EscapedSlashes::Redirect);
            assert_eq!(query(&path), query(target));
            assert!(!matches!(path[..], [b'/', b'/' | b'\\', ..]), "it names a host (RFC 3986 4.2)");
            // Whoever comes back with it is not sent away again.
            match normalise(&path, manager) {
                Normalised::Same => assert_normal(&path, manager),
                Normalised::Changed(path) => assert_normal(&path, manager),
                other => panic!("a redirect leads to {other:?}"),
            }
        }
        Normalised::Refused => {
            assert!(manager.escaped_slashes == EscapedSlashes::Reject || manager.normalize_path);
        }
    }
});

fn query(target: &[u8]) -> Option<&[u8]> {
    target.iter().position(|&byte| byte == b'?').map(|at| &target[at..])
}

/// *target* has nothing that *manager* wants away, as it stands and as a server reads it that decodes it once.
fn assert_normal(target: &[u8], manager: &HttpManager) {
    let path = &target[..target.len() - query(target).unwrap_or_default().len()];
    assert!(path.starts_with(b"/"));
    assert!(!manager.merge_slashes || path.windows(2).all(|pair| pair != b"//"));
    let is_kept = manager.escaped_slashes == EscapedSlashes::Keep;
    let is_slash = |part: &[u8]| part.eq_ignore_ascii_case(b"%2f") || part.eq_ignore_ascii_case(b"%5c");
    assert!(is_kept || !path.windows(3).any(is_slash));
    if !manager.normalize_path {
        return;
    }
    assert!(!path.contains(&b'\\'));
    // Slashes that are kept escaped are none of this path's, so the segments are told apart before they are decoded.
    for segment in path.split(|&byte| byte == b'/') {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        let decoded = decode(name);
        assert!(!matches!(&decoded[..], b"." | b".."), "{:?}", String::from_utf8_lossy(target));
        assert!(!decoded.contains(&0));
    }
}

/// Each escape once, as RFC 3986 2.1 has it.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| text[at] == b'%');
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}
