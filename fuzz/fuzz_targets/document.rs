//! Bootstraps under foreign bytes: reading YAML must end without a panic, what was read can be written as JSON and read again, and
//! what becomes a message is one that the walk over honoured fields can read, and that can be shown and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::honoured;

// The proxy is an executable without a library, so its reader is compiled in from its source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/document.rs"]
mod document;

const BOOTSTRAP: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

fuzz_target!(|input: &[u8]| {
    let Ok(value) = document::parse(input) else { return };
    let written = serde_json::to_vec(&value).expect("a value is JSON");
    document::parse(&written).expect("what was written is read");
    if let Ok(message) = honoured::json::encode(BOOTSTRAP, &value) {
        honoured::walk(BOOTSTRAP, &message);
        let shown = honoured::json::decode(BOOTSTRAP, &message).expect("what was written can be shown");
        let again = honoured::json::encode(BOOTSTRAP, &shown).expect("what is shown can be written");
        assert_eq!(honoured::json::decode(BOOTSTRAP, &again), Some(shown));
    }
});
