//! Formats of records and headers under foreign bytes: parsing must end without a panic, text stays as it is, and a format that is
//! made of two is what both are.
//!
//! The first byte of the input says where it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::format::{Command, Format, Variables};

/// Tells what is asked for.
struct Asked;

impl Variables for Asked {
    fn write(&self, command: &Command, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(format!("<{command:?}>").as_bytes());
        true
    }
}

fn written(format: &Format) -> Vec<u8> {
    let mut out = Vec::new();
    format.write(&Asked, "-", &mut out);
    out
}

fuzz_target!(|input: &[u8]| {
    let [cut, bytes @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let escaped = Format::parse(&text.replace('%', "%%")).expect("it asks for nothing");
    assert_eq!(escaped.literal(), Some(text));
    let Some((first, second)) = text.split_at_checked(usize::from(*cut).min(text.len())) else { return };
    if let (Ok(first), Ok(second)) = (Format::parse(first), Format::parse(second)) {
        let whole = Format::parse(text).expect("both parts are formats");
        assert_eq!(written(&whole), [written(&first), written(&second)].concat());
    }
});
