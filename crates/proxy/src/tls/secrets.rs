//! SDS secrets as keys and roots.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use weft_core::compile::Problems;
use weft_core::honoured;
use weft_core::tls::TICKET_KEY_BYTES;
use weft_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;
use weft_protos::{Message, type_url};

use super::tickets::Key;
use super::{pem, san};

/// One secret, ready for use.
#[derive(Clone)]
pub enum Secret {
    /// A key and its certificate chain.
    Identity(Arc<Identity>),
    /// Whom to trust.
    Roots(Arc<Roots>),
    /// What seals session tickets.
    TicketKeys(Arc<[Key]>),
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::Identity(identity) => {
                let Identity { key, uri } = &**identity;
                let end = key.cert.first().and_then(|leaf| san::not_after(leaf)).unwrap_or_default();
                write!(out, "the identity {} until {end}", uri.as_deref().unwrap_or("without a URI"))
            }
            Secret::Roots(roots) => write!(out, "{} roots", roots.certificates.len()),
            Secret::TicketKeys(keys) => write!(out, "{} session ticket keys", keys.len()),
        }
    }
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
    /// Revocation lists that came with them.
    pub revoked: Option<Arc<Revoked>>,
    /// Only the peer's own certificate is looked for in the lists.
    pub only_leaf_is_looked_up: bool,
}

/// Revocation lists; never empty.
pub struct Revoked {
    pub lists: Vec<CertRevocationList<'static>>,
    /// As they came, to tell one set from another.
    pub der: Vec<CertificateRevocationListDer<'static>>,
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
    #[error("crl: {0}")]
    RevocationList(webpki::Error),
    #[error("crl: there is no revocation list in it")]
    NoRevocationList,
    #[error("validation_context.{field}: only the listener or cluster itself can say it")]
    NotOfSecrets { field: &'static str },
    #[error("session_ticket_keys.keys[{index}]: a key has {TICKET_KEY_BYTES} bytes, and not {length}")]
    TicketKey { index: usize, length: usize },
    #[error("session_ticket_keys.keys: at least one is needed")]
    NoTicketKey,
    #[error(
        "this type of secret cannot be honoured (only tls_certificate, validation_context and session_ticket_keys can)"
    )]
    Type,
}

/// Read a secret as it travels: its name, and what it holds.
///
/// # Errors
/// Everything in it that cannot be honoured; never key material.
pub fn decode(body: &[u8]) -> Result<(String, Secret), Problems> {
    let problems = honoured::walk(type_url::SECRET, body);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let secret = proto::Secret::decode(body).map_err(|error| Problems::one("Secret", &error.to_string()))?;
    let read = read(&secret).map_err(|error| Problems::one("Secret", &error.to_string()))?;
    Ok((secret.name, read))
}

/// Read what a secret holds.
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
        Some(proto::secret::Type::SessionTicketKeys(keys)) => ticket_keys(keys).map(Secret::TicketKeys),
        _ => Err(SecretError::Type),
    }
}

fn identity(certificate: &proto::TlsCertificate) -> Result<Identity, SecretError> {
    let chain = certificates("certificate_chain", certificate.certificate_chain.as_ref())?;
    let leaf = chain.first().ok_or(SecretError::NoCertificate)?;
    let uri = san::names(leaf).uris.into_iter().next();
    let key = pem::private_key(inline("private_key", certificate.private_key.as_ref())?)
        .ok_or_else(|| SecretError::Pem { field: "private_key", reason: "not a private key in PEM".into() })?;
    let signing = super::signing_key(&key).map_err(SecretError::Key)?;
    let key = CertifiedKey::new(chain, signing);
    key.keys_match().map_err(|_| SecretError::Mismatch)?;
    Ok(Identity { key: Arc::new(key), uri })
}

// The names of old are looked at to refuse them.
#[allow(deprecated)]
fn roots(validation: &proto::CertificateValidationContext) -> Result<Roots, SecretError> {
    let certificates = certificates("trusted_ca", validation.trusted_ca.as_ref())?;
    if certificates.is_empty() {
        return Err(SecretError::NoRoot);
    }
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(SecretError::Root)?;
    }
    for (field, is_set) in [
        ("match_typed_subject_alt_names", !validation.match_typed_subject_alt_names.is_empty()),
        ("match_subject_alt_names", !validation.match_subject_alt_names.is_empty()),
    ] {
        if is_set {
            return Err(SecretError::NotOfSecrets { field });
        }
    }
    Ok(Roots {
        store: Arc::new(store),
        certificates,
        revoked: match &validation.crl {
            Some(_) => Some(Arc::new(revoked(inline("crl", validation.crl.as_ref())?)?)),
            None => None,
        },
        only_leaf_is_looked_up: validation.only_verify_leaf_cert_crl,
    })
}

/// Read revocation lists in PEM.
///
/// # Errors
/// [`SecretError`], about `crl`.
pub fn revoked(text: &[u8]) -> Result<Revoked, SecretError> {
    let der =
        pem::revocation_lists(text).map_err(|error| SecretError::Pem { field: "crl", reason: error.to_string() })?;
    if der.is_empty() {
        return Err(SecretError::NoRevocationList);
    }
    let read = |list: &CertificateRevocationListDer<'_>| OwnedCertRevocationList::from_der(list).map(Into::into);
    let lists = der.iter().map(read).collect::<Result<_, _>>().map_err(SecretError::RevocationList)?;
    Ok(Revoked { lists, der })
}

fn ticket_keys(keys: &proto::TlsSessionTicketKeys) -> Result<Arc<[Key]>, SecretError> {
    if keys.keys.is_empty() {
        return Err(SecretError::NoTicketKey);
    }
    let key = |(index, source): (usize, &DataSource)| {
        let bytes = inline("session_ticket_keys.keys", Some(source))?;
        Key::read(bytes).ok_or(SecretError::TicketKey { index, length: bytes.len() })
    };
    keys.keys.iter().enumerate().map(key).collect()
}

fn certificates(field: &'static str, source: Option<&DataSource>) -> Result<Vec<CertificateDer<'static>>, SecretError> {
    pem::certificates(inline(field, source)?).map_err(|error| SecretError::Pem { field, reason: error.to_string() })
}

fn inline<'a>(field: &'static str, source: Option<&'a DataSource>) -> Result<&'a [u8], SecretError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        _ => Err(SecretError::NotInline { field }),
    }
}
