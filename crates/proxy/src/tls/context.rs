//! rustls configurations from what a resource says and the secrets at hand.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion};
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName};
use weft_core::tls::{
    CertificateSource, CipherSuite, DownstreamTls, SecretName, TlsCommon, TlsVersion, TrustSource, UpstreamTls,
};
use weft_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;

use super::san;
use super::secrets::{self, Identity, Roots, Secret, SecretError};
use super::verify::PeerVerifier;

/// Protocols that weft-proxy speaks inside TLS; others of a resource's ALPN list are not offered, because whoever chose one would wait
/// for it.
const NOT_SPOKEN: &[&[u8]] = &[b"h3"];

/// The secrets that have arrived, by name.
pub type Secrets = HashMap<Arc<str>, Secret>;

/// Why there is no context yet, or never.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Wait for it (warming).
    #[error("secret {0} has not arrived")]
    Missing(Arc<str>),
    #[error("secret {0} is not what is needed here ({1})")]
    WrongType(Arc<str>, &'static str),
    #[error(transparent)]
    Inline(#[from] SecretError),
    #[error("a TLS listener needs a certificate")]
    NoCertificate,
    #[error("{0} cannot be a server name")]
    ServerName(Arc<str>),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Ends TLS of downstream connections.
pub struct ServerContext {
    config: Arc<ServerConfig>,
    /// For clients whose ALPN has nothing in common with ours: Envoy goes on without a protocol, rustls would refuse.
    without_alpn: Arc<ServerConfig>,
    pub identity: Arc<Identity>,
}

/// Begins TLS to upstreams.
pub struct ClientContext {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
    /// Who we are there, if we show a certificate.
    pub identity: Option<Arc<Identity>>,
}

impl ServerContext {
    /// # Errors
    /// [`ContextError::Missing`] while a secret has not come; the others never heal by waiting.
    pub fn new(tls: &DownstreamTls, secrets: &Secrets) -> Result<ServerContext, ContextError> {
        let identities = identities(&tls.common, secrets)?;
        let identity = identities.first().cloned().ok_or(ContextError::NoCertificate)?;
        let roots = roots(&tls.common, secrets)?;
        let provider = provider(&tls.common);
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions(&tls.common))?;
        let builder = match (&roots, tls.require_client_certificate) {
            (None, false) => builder.with_no_client_auth(),
            (_, required) => {
                builder.with_client_cert_verifier(PeerVerifier::new(provider, roots, tls.common.clone(), required))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates::new(identities)));
        // Connections between sidecars live long; a ticket for each would cost memory and a write to no purpose.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = spoken(&tls.common);
        Ok(ServerContext { config: Arc::new(config), without_alpn, identity })
    }

    /// The configuration for a client that offers *alpn*.
    pub fn config_for<'a>(&self, alpn: Option<impl Iterator<Item = &'a [u8]>>) -> Arc<ServerConfig> {
        let agrees = alpn.is_none_or(|mut offered| {
            offered.any(|protocol| self.config.alpn_protocols.iter().any(|ours| ours == protocol))
        });
        Arc::clone(if agrees { &self.config } else { &self.without_alpn })
    }
}

impl ClientContext {
    /// # Errors
    /// As [`ServerContext::new`].
    pub fn new(tls: &UpstreamTls, secrets: &Secrets) -> Result<ClientContext, ContextError> {
        let identity = identities(&tls.common, secrets)?.into_iter().next();
        let roots = roots(&tls.common, secrets)?;
        let provider = provider(&tls.common);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(&tls.common))?
            .dangerous()
            .with_custom_certificate_verifier(PeerVerifier::new(provider, roots, tls.common.clone(), false));
        let mut config = match &identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(OneCertificate(Arc::clone(&identity.key)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = spoken(&tls.common);
        config.resumption = rustls::client::Resumption::disabled();
        let name = match &tls.sni {
            Some(sni) => {
                ServerName::try_from(sni.to_string()).map_err(|_| ContextError::ServerName(Arc::clone(sni)))?
            }
            // rustls sends no server name for an address; the verifier does not look at it.
            None => ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0]))),
        };
        config.enable_sni = tls.sni.is_some();
        Ok(ClientContext { config: Arc::new(config), name, identity })
    }
}

/// The provider with the cipher suites that the resource permits.
fn provider(tls: &TlsCommon) -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    let all = PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let Some(wanted) = &tls.cipher_suites else { return Arc::clone(all) };
    let of_version_13 = all.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).copied();
    let cipher_suites = of_version_13.chain(wanted.iter().map(|suite| suite_of(*suite))).collect();
    Arc::new(CryptoProvider { cipher_suites, ..(**all).clone() })
}

fn suite_of(suite: CipherSuite) -> SupportedCipherSuite {
    use rustls::crypto::aws_lc_rs::cipher_suite as offered;
    match suite {
        CipherSuite::EcdheEcdsaAes128Gcm => offered::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaAes256Gcm => offered::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaChacha20 => offered::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaAes128Gcm => offered::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes256Gcm => offered::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaChacha20 => offered::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn versions(tls: &TlsCommon) -> &'static [&'static SupportedProtocolVersion] {
    use rustls::version::{TLS12, TLS13};
    static ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];
    static ONLY_13: &[&SupportedProtocolVersion] = &[&TLS13];
    static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    match (tls.min_version, tls.max_version) {
        (_, TlsVersion::Tls12) => ONLY_12,
        (TlsVersion::Tls13, _) => ONLY_13,
        _ => BOTH,
    }
}

fn spoken(tls: &TlsCommon) -> Vec<Vec<u8>> {
    tls.alpn.iter().filter(|protocol| !NOT_SPOKEN.contains(&&***protocol)).map(|protocol| protocol.to_vec()).collect()
}

fn find<'a>(secrets: &'a Secrets, name: &SecretName) -> Result<&'a Secret, ContextError> {
    secrets.get(&name.name).ok_or_else(|| ContextError::Missing(Arc::clone(&name.name)))
}

fn identities(tls: &TlsCommon, secrets: &Secrets) -> Result<Vec<Arc<Identity>>, ContextError> {
    tls.certificates
        .iter()
        .map(|source| match source {
            CertificateSource::Secret(name) => match find(secrets, name)? {
                Secret::Identity(identity) => Ok(Arc::clone(identity)),
                Secret::Roots(_) => Err(ContextError::WrongType(Arc::clone(&name.name), "a certificate with its key")),
            },
            CertificateSource::Inline { chain, key } => {
                match secrets::read(&secret(proto::secret::Type::TlsCertificate(proto::TlsCertificate {
                    certificate_chain: Some(inline(chain)),
                    private_key: Some(inline(key)),
                    ..Default::default()
                })))? {
                    Secret::Identity(identity) => Ok(identity),
                    Secret::Roots(_) => Err(ContextError::NoCertificate),
                }
            }
        })
        .collect()
}

fn roots(tls: &TlsCommon, secrets: &Secrets) -> Result<Option<Arc<Roots>>, ContextError> {
    match &tls.trust {
        None => Ok(None),
        Some(TrustSource::Secret(name)) => match find(secrets, name)? {
            Secret::Roots(roots) => Ok(Some(Arc::clone(roots))),
            Secret::Identity(_) => Err(ContextError::WrongType(Arc::clone(&name.name), "trusted roots")),
        },
        Some(TrustSource::Inline(pem)) => {
            match secrets::read(&secret(proto::secret::Type::ValidationContext(proto::CertificateValidationContext {
                trusted_ca: Some(inline(pem)),
                ..Default::default()
            })))? {
                Secret::Roots(roots) => Ok(Some(roots)),
                Secret::Identity(_) => Err(ContextError::NoCertificate),
            }
        }
    }
}

fn secret(of: proto::secret::Type) -> proto::Secret {
    proto::Secret { name: String::new(), r#type: Some(of) }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..Default::default() }
}

/// The listener's certificates; the one whose DNS name the client asked for, else the first.
#[derive(Debug)]
struct Certificates(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl Certificates {
    fn new(identities: Vec<Arc<Identity>>) -> Certificates {
        let names = |key: &CertifiedKey| key.cert.first().map(|leaf| san::names(leaf).dns).unwrap_or_default();
        Certificates(identities.iter().map(|identity| (names(&identity.key), Arc::clone(&identity.key))).collect())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name();
        let named = self
            .0
            .iter()
            .find(|(names, _)| wanted.is_some_and(|wanted| names.iter().any(|name| dns_name_covers(name, wanted))));
        named.or(self.0.first()).map(|(_, key)| Arc::clone(key))
    }
}

/// RFC 6125 6.4.3: a wildcard stands for one whole leftmost label.
fn dns_name_covers(name: &str, wanted: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => wanted.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(wanted),
    }
}

/// Our identity, whatever the server hints at.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesClientCert for OneCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
