//! The HTTP/1 codec under foreign bytes: it must not panic, must give the same result for every split of the bytes, and what it accepts
//! must mean the same once it was encoded again. A difference is how a request is smuggled.
//!
//! The first bytes of the input say what is read and how it is split; the rest is what a peer sends.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

use codec::http1::encode::{self, After};
use codec::http1::{Body, BodyError, HeadError, HeadParser, Limits, Step};
use codec::{Framing, Head};

fuzz_target!(|input: &[u8]| {
    let [kind, split, bytes @ ..] = input else { return };
    let splits = usize::from(*split % 64) + 1;
    for limits in [LIMITS, NARROW] {
        match kind % 3 {
            0 => request(bytes, splits, limits),
            1 => response(bytes, splits, *split >= 128, limits),
            _ => body_of(Framing::Chunked, bytes, splits, limits),
        }
    }
});

/// As a listener has them by default.
const LIMITS: Limits = Limits { head_bytes: 60 * 1024, fields: 100 };
/// Within reach of inputs of 1024 bytes.
const NARROW: Limits = Limits { head_bytes: 200, fields: 4 };

/// Feed *bytes* in steps of *step* until the parser has an opinion.
fn grow<T>(
    bytes: &[u8],
    step: usize,
    mut parse: impl FnMut(&[u8]) -> Result<Option<T>, HeadError>,
) -> Result<Option<T>, HeadError> {
    let mut end = 0;
    loop {
        match parse(&bytes[..end])? {
            Some(found) => return Ok(Some(found)),
            None if end == bytes.len() => return Ok(None),
            None => end = (end + step).min(bytes.len()),
        }
    }
}

fn request(bytes: &[u8], step: usize, limits: Limits) {
    let mut head = Head::default();
    let whole = HeadParser::default().request(bytes, &mut head, limits);
    let mut parser = HeadParser::default();
    let mut other = Head::default();
    let grown = grow(bytes, step, |part| parser.request(part, &mut other, limits));
    assert_eq!(whole, grown, "a split changed the verdict");
    let Ok(Some(length)) = whole else { return };
    assert_eq!(format!("{head:?}"), format!("{other:?}"), "a split changed the head");
    // What follows is the body, or the next request.
    body_of(head.framing, &bytes[length..], step, limits);
    // The next hop must see the same request.
    head.remove_hop_by_hop();
    let mut out = Vec::new();
    encode::request(&mut out, &head, After::KeepAlive);
    let mut again = Head::default();
    let read = HeadParser::default().request(&out, &mut again, Limits { head_bytes: 1 << 20, fields: 200 });
    if head.authority().is_empty() {
        // HTTP/1.0 without Host: the proxy refuses it before it is forwarded.
        return;
    }
    assert_eq!(
        read,
        Ok(Some(out.len())),
        "what was accepted is not accepted again: {:?}",
        String::from_utf8_lossy(&out)
    );
    assert_eq!((head.method(), head.target(), head.authority()), (again.method(), again.target(), again.authority()));
    let sent = |framing: Framing| if framing == Framing::Length(0) { Framing::None } else { framing };
    assert_eq!(sent(head.framing), sent(again.framing));
}

fn response(bytes: &[u8], step: usize, to_head: bool, limits: Limits) {
    let mut head = Head::default();
    let whole = HeadParser::default().response(bytes, &mut head, limits, to_head);
    let mut parser = HeadParser::default();
    let mut other = Head::default();
    let grown = grow(bytes, step, |part| parser.response(part, &mut other, limits, to_head));
    assert_eq!(whole, grown, "a split changed the verdict");
    let Ok(Some(length)) = whole else { return };
    body_of(head.framing, &bytes[length..], step, limits);
    head.remove_hop_by_hop();
    let mut out = Vec::new();
    encode::response(&mut out, &head, head.framing, After::KeepAlive);
    let mut again = Head::default();
    let read = HeadParser::default().response(&out, &mut again, Limits { head_bytes: 1 << 20, fields: 200 }, to_head);
    assert_eq!(read, Ok(Some(out.len())), "what was accepted is not accepted again");
    assert_eq!((head.status, head.framing), (again.status, again.framing));
}

type Decoded = Option<Result<(Vec<u8>, usize), BodyError>>;

/// Data and length of a body that arrives in steps; `None` if it is not whole.
fn decode(framing: Framing, bytes: &[u8], step: usize, limits: Limits) -> Decoded {
    let mut body = Body::new(framing, limits);
    let (mut used, mut end, mut data) = (0, 0, Vec::new());
    loop {
        match body.next(&bytes[used..end]) {
            Err(error) => return Some(Err(error)),
            Ok(Step::Done { skip }) => {
                for (name, _) in body.trailers() {
                    assert!(!name.eq_ignore_ascii_case(b"content-length"), "a trailer changes the framing");
                }
                return Some(Ok((data, used + skip)));
            }
            Ok(Step::Data { skip, length }) => {
                data.extend_from_slice(&bytes[used + skip..used + skip + length]);
                used += skip + length;
                if length == 0 {
                    if end == bytes.len() {
                        return None;
                    }
                    end = (end + step).min(bytes.len());
                }
            }
        }
    }
}

fn body_of(framing: Framing, bytes: &[u8], step: usize, limits: Limits) {
    if framing == Framing::UntilClose {
        return;
    }
    let whole = decode(framing, bytes, bytes.len().max(1), limits);
    assert_eq!(whole, decode(framing, bytes, step, limits), "a split changed the body");
}
