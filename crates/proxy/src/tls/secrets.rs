//! SDS secrets as keys and roots.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;

use super::san;

/// One secret, ready for use.
#[derive(Clone)]
pub enum Secret {
    /// A key and its certificate chain.
    Identity(Arc<Identity>),
    /// Whom to trust.
    Roots(Arc<Roots>),
}

/// A key, its chain, and who that makes us.
pub struct Identity {
    pub key: Arc<CertifiedKey>,
    /// The first URI of the leaf: our SPIFFE ID.
    pub uri: Option<String>,
}

/// Trust anchors; never empty.
pub struct Roots {
    pub store: Arc<RootCertStore>,
    /// The certificates, DER, for `/certs`.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Why a secret was refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{field}: only inline data can be honoured, not a file or the environment")]
    NotInline { field: &'static str },
    #[error("{field}: {reason}")]
    Pem { field: &'static str, reason: String },
    #[error("certificate_chain: there is no certificate in it")]
    NoCertificate,
    #[error("private_key: {0}")]
    Key(rustls::Error),
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("trusted_ca: {0}")]
    Root(rustls::Error),
    #[error("trusted_ca: there is no certificate in it")]
    NoRoot,
    #[error("this type of secret cannot be honoured (only tls_certificate and validation_context can)")]
    Type,
}

/// Read a secret.
///
/// # Errors
/// [`SecretError`]; the message never holds key material.
pub fn read(secret: &proto::Secret) -> Result<Secret, SecretError> {
    match &secret.r#type {
        Some(proto::secret::Type::TlsCertificate(certificate)) => {
            identity(certificate).map(|identity| Secret::Identity(Arc::new(identity)))
        }
        Some(proto::secret::Type::ValidationContext(validation)) => {
            roots(validation).map(|roots| Secret::Roots(Arc::new(roots)))
        }
        _ => Err(SecretError::Type),
    }
}

fn identity(certificate: &proto::TlsCertificate) -> Result<Identity, SecretError> {
    let chain = certificates("certificate_chain", certificate.certificate_chain.as_ref())?;
    let leaf = chain.first().ok_or(SecretError::NoCertificate)?;
    let uri = san::names(leaf).uris.into_iter().next();
    let pem = inline("private_key", certificate.private_key.as_ref())?;
    // The PEM reader's error may quote what it read, and that is a key: only its kind is told.
    let key = PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| SecretError::Pem { field: "private_key", reason: "not a private key in PEM".into() })?;
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(SecretError::Key)?;
    let key = CertifiedKey::new(chain, signing);
    key.keys_match().map_err(|_| SecretError::Mismatch)?;
    Ok(Identity { key: Arc::new(key), uri })
}

fn roots(validation: &proto::CertificateValidationContext) -> Result<Roots, SecretError> {
    let certificates = certificates("trusted_ca", validation.trusted_ca.as_ref())?;
    if certificates.is_empty() {
        return Err(SecretError::NoRoot);
    }
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(SecretError::Root)?;
    }
    Ok(Roots { store: Arc::new(store), certificates })
}

fn certificates(field: &'static str, source: Option<&DataSource>) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    CertificateDer::pem_slice_iter(inline(field, source)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| SecretError::Pem { field, reason: error.to_string() })
}

fn inline<'a>(field: &'static str, source: Option<&'a DataSource>) -> Result<&'a [u8], SecretError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        _ => Err(SecretError::NotInline { field }),
    }
}
