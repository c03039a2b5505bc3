//! Certificates of peers under foreign bytes: reading names, subject and end of validity must end without a panic, and a subject in
//! words is printable ASCII, since it is written into a header.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its readers are compiled in from their source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/tls"]
mod tls {
    pub mod san;
    pub mod subject;
}

fuzz_target!(|input: &[u8]| {
    let names = tls::san::names(input);
    let written: usize = names.uris.iter().chain(&names.dns).map(String::len).sum();
    assert!(written <= input.len(), "a name that is not in the certificate");
    tls::san::not_after(input);
    assert!(tls::subject::subject(input).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
});
