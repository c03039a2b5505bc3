//! Certificates of peers under foreign bytes: reading names, subject and end of validity must end without a panic, a subject in words is
//! printable ASCII, since it is written into a header, and a certificate has no names but those that an independent reader finds in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

// The proxy is an executable without a library, so its readers are compiled in from their source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/tls"]
mod tls {
    pub mod san;
    pub mod subject;
}

fuzz_target!(|input: &[u8]| {
    let names = tls::san::names(input);
    let written: usize = names.uris.iter().chain(&names.dns).chain(&names.emails).map(String::len).sum();
    assert!(written <= input.len(), "a name that is not in the certificate");
    tls::san::not_after(input);
    assert!(tls::subject::subject(input).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    // Only certificates whose chain webpki has verified are read for a decision, and it has read them before.
    let certificate = CertificateDer::from(input);
    let Ok(certificate) = EndEntityCert::try_from(&certificate) else { return };
    let found: Vec<&str> = certificate.valid_uri_names().collect();
    assert!(names.uris.is_empty() || names.uris == found, "{names:?} {found:?}");
    assert!(certificate.valid_dns_names().all(|name| names.dns.is_empty() || names.dns.iter().any(|dns| dns == name)));
});
