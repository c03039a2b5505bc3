//! The first bytes of a connection: what they are taken for must not depend on how they come, and once it is decided nothing that
//! comes later changes it. Else a client chooses its filter chain, or passes for no browser, by how it cuts its writes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::local_caller;

// The proxy is an executable without a library, so its code is compiled in from its source.
#[path = "../../crates/proxy/src/codec/opening.rs"]
mod opening;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/codec/client_hello.rs"]
mod client_hello;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/codec/tls_fields.rs"]
mod tls_fields;

use client_hello::{Reader, Step};
use opening::Opening;

fuzz_target!(|input: &[u8]| {
    let http = opening::of(input);
    let local = local_caller::opening(input);
    for cut in 0..input.len() {
        let before = opening::of(&input[..cut]);
        assert!(before == Opening::Undecided || before == http, "{before:?} at {cut}, then {http:?}");
        let before = local_caller::opening(&input[..cut]);
        assert!(before == local_caller::Opening::Undecided || before == local, "{before:?} at {cut}, then {local:?}");
    }
    let hello = Reader::default().step(input);
    let mut reader = Reader::default();
    let first = (0..=input.len()).map(|cut| reader.step(&input[..cut])).find(|step| *step != Step::Undecided);
    assert_eq!(first.unwrap_or(Step::Undecided), hello);
    // Nothing is both.
    assert!(!matches!((&hello, http), (Step::Hello(_), Opening::Http(_))));
    // Whatever is HTTP to the inspector has the form of a request to who keeps pages out, too.
    if matches!(http, Opening::Http(_)) {
        assert_ne!(local, local_caller::Opening::Undecided);
    }
});
