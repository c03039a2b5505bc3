//! Answers of a DNS server under foreign bytes: reading must end without a panic, and no answer has more addresses than it has room for.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its codec is compiled in from its source.
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;

use codec::dns::{Kind, Question, Reply};

/// The smallest record of an address: a pointer, type, class, TTL, length, and four bytes.
const RECORD_BYTES: usize = 16;

fuzz_target!(|input: &[u8]| {
    for kind in [Kind::A, Kind::Aaaa] {
        let Some(question) = Question::new(0x1234, "api.test", kind) else { return };
        // As it came, and behind a head that this question is answered with.
        let asked = question.encode();
        let head = input.get(..10).unwrap_or(&[0; 10]);
        let answered = [&asked[..2], head, &asked[12..], input].concat();
        for message in [input, answered.as_slice()] {
            if let Ok(Some(Reply::Addresses { addresses, .. })) = question.decode(message) {
                assert!(!addresses.is_empty() && addresses.len() * RECORD_BYTES <= message.len());
                assert!(addresses.iter().all(|address| address.is_ipv4() == (kind == Kind::A)));
            }
        }
    }
});
