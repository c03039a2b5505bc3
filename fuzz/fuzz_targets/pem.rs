//! Secrets in PEM under foreign bytes: reading must end without a panic, what was read is written and read again as the same, line endings
//! change nothing, and an independent reader that takes the text finds the same certificates in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use webpki::OwnedCertRevocationList;

// The proxy is an executable without a library, so its reader is compiled in from its source.
#[path = "../../crates/proxy/src/tls/pem.rs"]
mod pem_of_proxy;

fuzz_target!(|input: &[u8]| {
    let _ = pem_of_proxy::private_key(input);
    for list in pem_of_proxy::revocation_lists(input).into_iter().flatten() {
        let _ = OwnedCertRevocationList::from_der(&list);
    }
    let Ok(certificates) = pem_of_proxy::certificates(input) else { return };
    let written: String = certificates.iter().map(|certificate| pem_of_proxy::write(certificate)).collect();
    assert_eq!(pem_of_proxy::certificates(written.as_bytes()).expect("what was written is read"), certificates);
    if !input.contains(&b'\r') {
        let lines: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
        let other = pem_of_proxy::certificates(&lines.join(&b"\r\n"[..]));
        assert_eq!(other.expect("RFC 7468 3: any line ending"), certificates);
    }
    if let (true, Ok(parts)) = (is_strict(input), pem::parse_many(input)) {
        let parts = parts.into_iter().filter(|part| part.tag() == "CERTIFICATE");
        let found: Vec<CertificateDer<'static>> = parts.map(|part| part.into_contents().into()).collect();
        assert_eq!(found, certificates);
    }
    assert_eq!(pem::parse_many(&written).map(|parts| parts.len()).ok(), Some(certificates.len()));
});

/// Whether *text* is as RFC 7468 3 wants it written; readers differ in what else they take.
fn is_strict(text: &[u8]) -> bool {
    let label = |line: &[u8], begin: &[u8]| -> Option<Vec<u8>> {
        let label = line.strip_prefix(begin)?.strip_suffix(b"-----")?;
        label
            .iter()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b' ')
            .then(|| label.into())
    };
    let mut section: Option<Vec<u8>> = None;
    for line in text.split(|&byte| byte == b'\n') {
        let begun = label(line, b"-----BEGIN ");
        match &section {
            None if begun.is_some() => section = begun,
            None if line.contains(&b'-') => return false,
            None => {}
            Some(_) if begun.is_some() => return false,
            Some(open) if line.contains(&b'-') => {
                if label(line, b"-----END ").as_ref() != Some(open) {
                    return false;
                }
                section = None;
            }
            Some(_) => {
                let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
                if line.is_empty() || !line.iter().all(is_digit) {
                    return false;
                }
            }
        }
    }
    section.is_none()
}
