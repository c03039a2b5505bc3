//! The PROXY protocol under foreign bytes: it must not panic, must read the same however the bytes are split, must ask for no more memory than
//! it promises, and what it read must be read again when it is written.
//!
//! The first byte of the input says what is expected and how it is split; the rest is what a peer sends.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

use codec::proxy_protocol::{Expected, HeaderError, Reader, Said, Step, Version, encode};

/// What a reader promises to be content with.
const MOST_BYTES: usize = 216;

fuzz_target!(|input: &[u8]| {
    let [first, bytes @ ..] = input else { return };
    let expected = Expected { v1: first & 1 == 0, v2: first & 2 == 0, absence: first & 4 != 0 };
    let whole = read(expected, bytes, bytes.len().max(1));
    assert_eq!(whole, read(expected, bytes, usize::from(first >> 3) + 1), "a split changed the verdict");
    let Ok(Some((length, Said::Between { source, destination }))) = whole else { return };
    assert!(length <= bytes.len());
    for version in [Version::V1, Version::V2] {
        let mut out = Vec::new();
        encode(&mut out, version, source, destination);
        let any = Expected { v1: true, v2: true, absence: false };
        assert_eq!(read(any, &out, 1), Ok(Some((out.len(), Said::Between { source, destination }))));
    }
});

/// Length of the header, and what it says; `None` if it is not whole.
fn read(expected: Expected, bytes: &[u8], step: usize) -> Result<Option<(usize, Said)>, HeaderError> {
    let mut reader = Reader::new(expected);
    let (mut dropped, mut end) = (0, 0);
    loop {
        match reader.step(&bytes[dropped..end])? {
            Step::Done { consumed, said } => return Ok(Some((dropped + consumed, said))),
            Step::More { consumed } => dropped += consumed,
        }
        assert!(end - dropped <= MOST_BYTES, "bytes are held that nobody needs");
        if end == bytes.len() {
            return Ok(None);
        }
        end = (end + step).min(bytes.len());
    }
}
