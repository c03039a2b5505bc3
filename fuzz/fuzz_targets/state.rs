//! The kept configuration under foreign bytes: what a disk gives back is read or refused without a panic, what was read is written and read again as the
//! same, and its resources are compiled as at a start.
//!
//! The input is what the checksum is about; it is put under a good one, and once it is taken as the whole file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::compile::Strictness;
use weft_core::plan::Resource;

// The proxy is an executable without a library, so its reader is compiled in from its source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/state.rs"]
mod state;

/// In the place of the proxy's: any function of the bytes does, and this one needs no library in C.
mod tls {
    pub fn sha256_hex(content: &[u8]) -> String {
        let hash = content.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:064x}")
    }
}

fuzz_target!(|input: &[u8]| {
    let _ = state::decode(input);
    let text = [b"weft-proxy state 1\n", tls::sha256_hex(input).as_bytes(), b"\n", input].concat();
    let Ok(entries) = state::decode(&text) else { return };
    let again = state::decode(&state::encode(entries.clone())).expect("what was written is read");
    assert!(again == entries);
    for entry in entries {
        let _ = Resource::compile(&entry.type_url, &entry.body, Strictness::Refuse);
    }
});
