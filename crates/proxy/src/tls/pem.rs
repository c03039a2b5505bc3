//! PEM (RFC 7468): the text in which secrets come, and in which certificates are told.
//!
//! What is in the text is DER, and is looked at by others: here it is only wrapped and unwrapped.

use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use weft_core::base64;

/// *certificate*, which is DER, as PEM.
pub fn write(certificate: &[u8]) -> String {
    let mut digits = Vec::new();
    base64::encode(certificate, &mut digits);
    let mut text = String::with_capacity(digits.len() * 65 / 64 + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in digits.chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// All certificates in *text*, in order; what else is there is passed over.
///
/// # Errors
/// A part of it is malformed.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// The first private key in *text*. The reader's error may quote what it read, and that is a key: nothing of it is told.
pub fn private_key(text: &[u8]) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(text).ok()
}

/// All revocation lists in *text*.
///
/// # Errors
/// A part of it is malformed.
pub fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    CertificateRevocationListDer::pem_slice_iter(text).collect()
}
