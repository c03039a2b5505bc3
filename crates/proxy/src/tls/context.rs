//! rustls configurations from what a resource says and the secrets at hand.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ServerConfig, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName, UnixTime};
use weft_core::tls::{
    CertificateSource, CipherSuite, Curve, DownstreamTls, SecretName, TicketKeySource, TlsCommon, TlsVersion,
    TrustSource, UpstreamTls, dns_name_covers,
};
use weft_protos::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;

use super::san;
use super::secrets::{self, Identity, Revoked, Roots, Secret, SecretError};
use super::sessions::Sessions;
use super::tickets::{Key, KeyRing, Keys, Tickets};
use super::verify::PeerVerifier;

/// The secrets that have arrived.
pub type Secrets = HashMap<SecretName, Secret>;

/// Why there is no context yet, or never; of one context all reasons are told, so that a secret which has yet to come hides nothing.
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

/// Gathers what is wrong.
#[derive(Default)]
struct Errors(Vec<ContextError>);

impl Errors {
    fn note<T>(&mut self, result: Result<T, impl Into<ContextError>>) -> Option<T> {
        result.map_err(|error| self.0.push(error.into())).ok()
    }
}

/// Ends TLS of downstream connections.
pub struct ServerContext {
    /// As many as the resource has certificates, in its order; never empty.
    offered: Box<[Offered]>,
    /// What the configuration permits.
    suites: Box<[SupportedCipherSuite]>,
}

/// One of a listener's certificates, with the handshakes in which it is shown.
struct Offered {
    identity: Arc<Identity>,
    /// The DNS names in it.
    names: Vec<String>,
    config: Arc<ServerConfig>,
    /// For clients whose ALPN has nothing in common with ours: Envoy goes on without a protocol, rustls would refuse.
    without_alpn: Arc<ServerConfig>,
}

/// Begins TLS to upstreams.
pub struct ClientContext {
    pub config: Arc<ClientConfig>,
    /// The same for a connection that must not resume a session.
    pub config_afresh: Arc<ClientConfig>,
    pub name: ServerName<'static>,
    /// Who we are there, if we show a certificate.
    pub identity: Option<Arc<Identity>>,
    verifier: Arc<PeerVerifier>,
    /// Absent: none is resumed.
    sessions: Option<Arc<Sessions>>,
}

impl ServerContext {
    /// # Errors
    /// [`ContextError::Missing`] for each secret that has not come; the others never heal by waiting.
    pub fn new(
        tls: &DownstreamTls,
        secrets: &Secrets,
        own_keys: &Arc<KeyRing>,
    ) -> Result<ServerContext, Vec<ContextError>> {
        let mut errors = Errors::default();
        let identities = identities(&tls.common, secrets, &mut errors);
        let roots = errors.note(roots(&tls.common, secrets)).flatten();
        let revoked = errors.note(revoked(&tls.common, roots.as_deref())).flatten();
        let keys = errors.note(ticket_keys(&tls.ticket_keys, secrets, own_keys)).flatten();
        if tls.common.certificates.is_empty() {
            errors.0.push(ContextError::NoCertificate);
        }
        let provider = provider(&tls.common);
        let versions = versions(&tls.common);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = errors.note(builder.with_protocol_versions(versions));
        let (Some(builder), Some(first), []) = (builder, identities.first(), &*errors.0) else {
            return Err(errors.0);
        };
        let binding = binding(tls, &identities, roots.as_deref(), revoked.as_deref());
        let is_spoken = |suite: &&SupportedCipherSuite| versions.contains(&suite.version());
        let suites = provider.cipher_suites.iter().filter(is_spoken).copied().collect();
        let verifier = match (&roots, tls.require_client_certificate) {
            (None, false) => None,
            (_, required) => Some(PeerVerifier::new(provider, roots, revoked, tls.common.clone(), required)),
        };
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::<PeerVerifier>::clone(verifier)),
        };
        let mut config = builder.with_cert_resolver(Arc::new(OneCertificate(Arc::clone(&first.key))));
        // Only clients keep sessions: memory of ours would be theirs to fill.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if let Some(keys) = keys {
            config.ticketer = Arc::new(Tickets::new(keys, binding, tls.session_timeout, verifier));
            // One is enough: each use of it brings the next.
            config.send_tls13_tickets = 1;
        }
        // 0-RTT is off: whoever records it can send it again.
        config.max_early_data_size = 0;
        let alpn = spoken(&tls.common);
        let offered = identities.iter().map(|identity| Offered::new(identity, &config, &alpn)).collect();
        Ok(ServerContext { offered, suites })
    }

    /// The configuration for a client that says *hello*, and who we are to it.
    pub fn choose(&self, hello: &ClientHello<'_>) -> (Arc<ServerConfig>, &Identity) {
        let Offered { identity, config, without_alpn, .. } = self.shown(hello);
        let agrees = hello.alpn().is_none_or(|mut offered| {
            offered.any(|protocol| config.alpn_protocols.iter().any(|ours| ours == protocol))
        });
        (Arc::clone(if agrees { config } else { without_alpn }), identity)
    }

    /// Of several certificates each client gets one as it would of Envoy: of those with exactly the DNS name that it asked for, else of those
    /// with a wildcard for it, else, if it asked for none, of all, the best that it can check; and the first where there is none. Who resumes
    /// a session is shown none, and to it, too, we are who this one says.
    fn shown(&self, hello: &ClientHello<'_>) -> &Offered {
        // Nothing to choose, as in a mesh.
        if let [only] = &*self.offered {
            return only;
        }
        let schemes = self.schemes(hello);
        let best = match hello.server_name() {
            None => self.best(&schemes, |_| true),
            Some(wanted) => self
                .best(&schemes, |it| it.names.iter().any(|name| name.eq_ignore_ascii_case(wanted)))
                .or_else(|| self.best(&schemes, |it| it.names.iter().any(|name| dns_name_covers(name, wanted)))),
        };
        // It is never empty.
        best.unwrap_or(&self.offered[0])
    }

    /// How a client can have a handshake signed. In TLS 1.2 a suite says with which kind of key (RFC 5246 7.4.3).
    fn schemes(&self, hello: &ClientHello<'_>) -> Vec<SignatureScheme> {
        let common: Vec<_> =
            self.suites.iter().filter(|suite| hello.cipher_suites().contains(&suite.suite())).collect();
        let is_of = |suite: &SupportedCipherSuite, scheme| match suite {
            SupportedCipherSuite::Tls12(suite) => suite.sign.contains(scheme),
            SupportedCipherSuite::Tls13(_) => true,
        };
        let offered = hello.signature_schemes().iter();
        offered.filter(|scheme| common.iter().any(|suite| is_of(suite, scheme))).copied().collect()
    }

    /// The first with ECDSA that signs with one of *schemes*, else the first that does.
    fn best(&self, schemes: &[SignatureScheme], is_meant: impl Fn(&Offered) -> bool) -> Option<&Offered> {
        let fit = self.offered.iter().filter(|offered| is_meant(offered));
        let fit = fit.filter(|offered| offered.identity.key.key.choose_scheme(schemes).is_some());
        fit.min_by_key(|offered| offered.identity.key.key.algorithm() != SignatureAlgorithm::ECDSA)
    }
}

impl Offered {
    /// As *config* has it, but for the certificate.
    fn new(identity: &Arc<Identity>, config: &ServerConfig, alpn: &[Vec<u8>]) -> Offered {
        let mut config = config.clone();
        config.cert_resolver = Arc::new(OneCertificate(Arc::clone(&identity.key)));
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = alpn.to_vec();
        Offered {
            identity: Arc::clone(identity),
            names: identity.key.cert.first().map(|leaf| san::names(leaf).dns).unwrap_or_default(),
            config: Arc::new(config),
            without_alpn,
        }
    }
}

impl ClientContext {
    /// # Errors
    /// As [`ServerContext::new`].
    pub fn new(tls: &UpstreamTls, secrets: &Secrets) -> Result<ClientContext, Vec<ContextError>> {
        let mut errors = Errors::default();
        let identity = identities(&tls.common, secrets, &mut errors).into_iter().next();
        let roots = errors.note(roots(&tls.common, secrets)).flatten();
        let revoked = errors.note(revoked(&tls.common, roots.as_deref())).flatten();
        let name = errors.note(server_name(tls.sni.as_ref()));
        let provider = provider(&tls.common);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = errors.note(builder.with_protocol_versions(versions(&tls.common)));
        let (Some(builder), Some(name), []) = (builder, name, &*errors.0) else { return Err(errors.0) };
        let verifier = PeerVerifier::new(provider, roots, revoked, tls.common.clone(), false);
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::<PeerVerifier>::clone(&verifier));
        let mut config = match &identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(OneCertificate(Arc::clone(&identity.key)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = spoken(&tls.common);
        let sessions = (tls.max_session_keys > 0).then(|| Arc::new(Sessions::new(tls.max_session_keys)));
        // 0-RTT is off: whoever records it can send it again.
        config.enable_early_data = false;
        config.enable_sni = tls.sni.is_some();
        config.resumption = Resumption::disabled();
        let config_afresh = Arc::new(config.clone());
        if let Some(sessions) = &sessions {
            config.resumption = Resumption::store(Arc::<Sessions>::clone(sessions));
        }
        Ok(ClientContext { config: Arc::new(config), config_afresh, name, identity, verifier, sessions })
    }

    /// Whether the server of a resumed session, which showed *chain* when it was new, would be trusted now; rustls does not ask. If not,
    /// all sessions are forgotten, so that the next connection begins with a full handshake.
    pub fn still_trusts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let is_trusted = self.verifier.would_accept_server(chain, UnixTime::now());
        if let Some(sessions) = self.sessions.as_ref().filter(|_| !is_trusted) {
            sessions.forget();
        }
        is_trusted
    }
}

fn server_name(sni: Option<&Arc<str>>) -> Result<ServerName<'static>, ContextError> {
    match sni {
        Some(sni) => ServerName::try_from(sni.to_string()).map_err(|_| ContextError::ServerName(Arc::clone(sni))),
        // rustls sends no server name for an address; the verifier does not look at it.
        None => Ok(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])))),
    }
}

/// The keys of a listener's tickets; `None` if it gives none.
fn ticket_keys(source: &TicketKeySource, secrets: &Secrets, own: &Arc<KeyRing>) -> Result<Option<Keys>, ContextError> {
    Ok(Some(match source {
        TicketKeySource::Disabled => return Ok(None),
        TicketKeySource::Own => Keys::Own(Arc::clone(own)),
        // Core has looked at their length.
        TicketKeySource::Inline(keys) => Keys::Configured(keys.iter().filter_map(|key| Key::read(key)).collect()),
        TicketKeySource::Secret(name) => match find(secrets, name)? {
            Secret::TicketKeys(keys) => Keys::Configured(Arc::clone(keys)),
            _ => return Err(ContextError::WrongType(Arc::clone(&name.name), "keys of session tickets")),
        },
    }))
}

/// A digest of all that decides about a client, and of who we are to it: what is the same when certificates are renewed, and changes
/// with trust. A ticket is of no use under another.
fn binding(
    tls: &DownstreamTls,
    identities: &[Arc<Identity>],
    roots: Option<&Roots>,
    revoked: Option<&Revoked>,
) -> [u8; 32] {
    let mut digest = digest::Context::new(&digest::SHA256);
    // Each part behind its kind and its length, so that no two sets of parts read alike.
    let mut add = |kind: u8, part: &[u8]| {
        digest.update(&[kind]);
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    };
    let only_leaf = tls.common.only_leaf_is_looked_up || roots.is_some_and(|roots| roots.only_leaf_is_looked_up);
    add(0, &[tls.require_client_certificate, roots.is_some(), only_leaf].map(u8::from));
    roots.iter().flat_map(|roots| &roots.certificates).for_each(|root| add(1, root));
    revoked.iter().flat_map(|revoked| &revoked.der).for_each(|list| add(2, list));
    tls.common.sans.iter().for_each(|san| add(3, format!("{san:?}").as_bytes()));
    for leaf in identities.iter().filter_map(|identity| identity.key.cert.first()) {
        let names = san::names(leaf);
        // One without names is known by its bytes.
        if names == san::Names::default() {
            add(4, leaf);
        }
        names.uris.iter().for_each(|uri| add(5, uri.as_bytes()));
        names.dns.iter().for_each(|name| add(6, name.as_bytes()));
        names.emails.iter().for_each(|name| add(7, name.as_bytes()));
        names.addresses.iter().for_each(|address| add(8, address.to_string().as_bytes()));
    }
    let mut binding = [0; 32];
    binding.copy_from_slice(digest.finish().as_ref());
    binding
}

/// All that rustls has, and what is liked best first, in Envoy's order: AES with 128 bits is enough, and costs less than 256 and SHA-384. A server
/// goes by its client's order.
const PREFERRED: [SupportedCipherSuite; 9] = {
    use rustls::crypto::aws_lc_rs::cipher_suite as offered;
    [
        offered::TLS13_AES_128_GCM_SHA256,
        offered::TLS13_AES_256_GCM_SHA384,
        offered::TLS13_CHACHA20_POLY1305_SHA256,
        offered::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        offered::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        offered::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        offered::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        offered::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        offered::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ]
};

/// The provider with the cipher suites and curves that the resource permits.
fn provider(tls: &TlsCommon) -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    let all = PROVIDER.get_or_init(|| {
        let mut offered = rustls::crypto::aws_lc_rs::default_provider();
        offered.cipher_suites = PREFERRED.to_vec();
        Arc::new(offered)
    });
    if tls.cipher_suites.is_none() && tls.curves.is_none() {
        return Arc::clone(all);
    }
    let mut provider = (**all).clone();
    if let Some(wanted) = &tls.cipher_suites {
        let of_version_13 = all.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).copied();
        provider.cipher_suites = of_version_13.chain(wanted.iter().map(|suite| suite_of(*suite))).collect();
    }
    if let Some(wanted) = &tls.curves {
        provider.kx_groups = wanted.iter().map(|curve| group_of(*curve)).collect();
    }
    Arc::new(provider)
}

fn group_of(curve: Curve) -> &'static dyn SupportedKxGroup {
    use rustls::crypto::aws_lc_rs::kx_group as offered;
    match curve {
        Curve::X25519 => offered::X25519,
        Curve::P256 => offered::SECP256R1,
        Curve::P384 => offered::SECP384R1,
        Curve::X25519MlKem768 => offered::X25519MLKEM768,
    }
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
    tls.spoken_alpn().map(<[u8]>::to_vec).collect()
}

fn find<'a>(secrets: &'a Secrets, name: &SecretName) -> Result<&'a Secret, ContextError> {
    secrets.get(name).ok_or_else(|| ContextError::Missing(Arc::clone(&name.name)))
}

fn identities(tls: &TlsCommon, secrets: &Secrets, errors: &mut Errors) -> Vec<Arc<Identity>> {
    tls.certificates.iter().filter_map(|source| errors.note(identity(source, secrets))).collect()
}

fn identity(source: &CertificateSource, secrets: &Secrets) -> Result<Arc<Identity>, ContextError> {
    match source {
        CertificateSource::Secret(name) => match find(secrets, name)? {
            Secret::Identity(identity) => Ok(Arc::clone(identity)),
            _ => Err(ContextError::WrongType(Arc::clone(&name.name), "a certificate with its key")),
        },
        CertificateSource::Inline { chain, key } => {
            match secrets::read(&secret(proto::secret::Type::TlsCertificate(proto::TlsCertificate {
                certificate_chain: Some(inline(chain)),
                private_key: Some(inline(key)),
                ..Default::default()
            })))? {
                Secret::Identity(identity) => Ok(identity),
                _ => Err(ContextError::NoCertificate),
            }
        }
    }
}

fn roots(tls: &TlsCommon, secrets: &Secrets) -> Result<Option<Arc<Roots>>, ContextError> {
    match &tls.trust {
        None => Ok(None),
        Some(TrustSource::Secret(name)) => match find(secrets, name)? {
            Secret::Roots(roots) => Ok(Some(Arc::clone(roots))),
            _ => Err(ContextError::WrongType(Arc::clone(&name.name), "trusted roots")),
        },
        Some(TrustSource::Inline(pem)) => {
            match secrets::read(&secret(proto::secret::Type::ValidationContext(proto::CertificateValidationContext {
                trusted_ca: Some(inline(pem)),
                ..Default::default()
            })))? {
                Secret::Roots(roots) => Ok(Some(roots)),
                _ => Err(ContextError::NoCertificate),
            }
        }
    }
}

/// Revocation lists: of the secret with the roots, else of the resource, as if the one were merged over the other.
fn revoked(tls: &TlsCommon, roots: Option<&Roots>) -> Result<Option<Arc<Revoked>>, ContextError> {
    // Read in any case: whether the resource is good does not depend on which of the two comes first.
    let own = tls.revoked.as_deref().map(secrets::revoked).transpose()?.map(Arc::new);
    Ok(roots.and_then(|roots| roots.revoked.clone()).or(own))
}

fn secret(of: proto::secret::Type) -> proto::Secret {
    proto::Secret { name: String::new(), r#type: Some(of) }
}

fn inline(bytes: &[u8]) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..Default::default() }
}

/// Our certificate, whatever the peer hints at.
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

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
