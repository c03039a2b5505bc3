//! TLS: sessions over our sockets, identities from secrets, and the checks of a mesh instead of those of a browser.
//!
//! [`session`] moves bytes; [`secrets`] turns SDS secrets, which are [`pem`], into keys and roots; [`verify`] decides whom to trust;
//! [`tickets`], which hold a [`server_session`], and [`sessions`] let peers resume what they agreed on, as long as they are trusted;
//! [`context`] joins them into rustls configurations that the plan holds. Rotation replaces a context: connections that exist
//! keep what they shook hands with.

use std::sync::Arc;

use rustls::sign::SigningKey;
use rustls_pki_types::PrivateKeyDer;

pub mod context;
pub mod pem;
pub mod san;
pub mod secrets;
pub mod server_session;
pub mod session;
pub mod sessions;
pub mod subject;
pub mod tickets;
pub mod verify;

/// SHA-256 of *bytes* in lower-case hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// *key* as connections sign with it, of whichever type it is.
///
/// # Errors
/// It is of none that can be used, or broken.
pub fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    rustls::crypto::aws_lc_rs::sign::any_supported_type(key)
}
