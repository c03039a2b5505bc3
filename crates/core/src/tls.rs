//! TLS as configured: which certificate to show, whom to trust, which protocols to offer. No keys and no cryptography here.

use std::sync::Arc;
use std::time::Duration;

use weft_protos::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use weft_protos::envoy::config::core::v3::data_source::Specifier;
use weft_protos::envoy::config::core::v3::grpc_service::TargetSpecifier;
use weft_protos::envoy::config::core::v3::{ConfigSource, DataSource};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;

use crate::compile::Context;
use crate::matching::StringMatch;

/// Where a certificate with its key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// The SDS secret of this name.
    Secret(SecretName),
    /// In the resource itself: PEM chain and PEM key.
    Inline { chain: Arc<[u8]>, key: Arc<[u8]> },
}

/// Where the trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    /// The SDS secret of this name.
    Secret(SecretName),
    /// PEM in the resource itself.
    Inline(Arc<[u8]>),
}

/// A secret and who serves it. Two servers may each have one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName {
    /// `default`, `ROOTCA`
    pub name: Arc<str>,
    /// The cluster that serves SDS (`sds-grpc`); the ADS stream if absent.
    pub cluster: Option<Arc<str>>,
}

/// Which kind of subject alternative name is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanKind {
    /// `spiffe://...`
    Uri,
    /// A DNS name.
    Dns,
    /// An IP address, as it is written.
    Ip,
    /// A mail address.
    Email,
    /// Any of them (the deprecated `match_subject_alt_names`).
    Any,
}

/// One acceptable name of the peer.
#[derive(Debug, Clone)]
pub struct SanMatch {
    /// Which names of the certificate are compared.
    pub kind: SanKind,
    /// With what.
    pub matcher: StringMatch,
}

/// TLS protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// A cipher suite of TLS 1.2 that rustls offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherSuite {
    EcdheEcdsaAes128Gcm,
    EcdheEcdsaAes256Gcm,
    EcdheEcdsaChacha20,
    EcdheRsaAes128Gcm,
    EcdheRsaAes256Gcm,
    EcdheRsaChacha20,
}

impl CipherSuite {
    /// By the name that OpenSSL and Envoy use, or that of the IANA registry as BoringSSL reads it.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ECDHE-ECDSA-AES128-GCM-SHA256" | "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => Self::EcdheEcdsaAes128Gcm,
            "ECDHE-ECDSA-AES256-GCM-SHA384" | "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => Self::EcdheEcdsaAes256Gcm,
            "ECDHE-ECDSA-CHACHA20-POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
                Self::EcdheEcdsaChacha20
            }
            "ECDHE-RSA-AES128-GCM-SHA256" | "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => Self::EcdheRsaAes128Gcm,
            "ECDHE-RSA-AES256-GCM-SHA384" | "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => Self::EcdheRsaAes256Gcm,
            "ECDHE-RSA-CHACHA20-POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => Self::EcdheRsaChacha20,
            _ => return None,
        })
    }
}

/// Suites that Envoy knows and rustls does not: key exchange without forward secrecy, or CBC. A list that permits one permits others beside it,
/// so it is narrowed, not refused.
const NOT_OFFERED: [&str; 14] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-PSK-AES128-CBC-SHA",
    "ECDHE-PSK-AES256-CBC-SHA",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "PSK-AES128-CBC-SHA",
    "DES-CBC3-SHA",
];

/// Read `cipher_suites`; `None` for an empty list: all that rustls offers. `[A|B]` means that A and B are equally liked, which is how rustls
/// treats them all.
fn cipher_suites(context: &mut Context, names: &[String], version_13_only: bool) -> Option<Box<[CipherSuite]>> {
    if names.is_empty() {
        return None;
    }
    let mut suites = Vec::new();
    let mut left_out = Vec::new();
    for name in names.iter().flat_map(|group| group.trim_matches(['[', ']']).split('|')) {
        match CipherSuite::named(name) {
            Some(suite) => suites.push(suite),
            None if NOT_OFFERED.contains(&name) => left_out.push(name),
            None => context.refuse_at("cipher_suites", format!("weft-proxy knows no cipher suite `{name}`")),
        }
    }
    context.at("cipher_suites", |context| {
        if !left_out.is_empty() {
            context.pass_over(format!("not offered by weft-proxy: {}", left_out.join(", ")));
        }
        if suites.is_empty() && !version_13_only {
            context.refuse("weft-proxy offers none of these, so nobody could connect by TLS 1.2");
        }
    });
    Some(suites.into())
}

/// A group for the exchange of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    X25519,
    P256,
    P384,
    X25519MlKem768,
}

/// Read `ecdh_curves` by the names that BoringSSL and so Envoy use; `None` for an empty list: all that rustls offers.
fn curves(context: &mut Context, names: &[String]) -> Option<Box<[Curve]>> {
    let named = context.each("ecdh_curves", names, |context, name| {
        Some(match name.as_str() {
            "X25519" => Curve::X25519,
            "P-256" | "prime256v1" => Curve::P256,
            "P-384" | "secp384r1" => Curve::P384,
            "X25519MLKEM768" => Curve::X25519MlKem768,
            _ => {
                context.refuse(format!("weft-proxy offers no curve `{name}`"));
                return None;
            }
        })
    });
    (!names.is_empty()).then(|| named.into_iter().flatten().collect())
}

/// What both directions share.
#[derive(Debug, Clone)]
pub struct TlsCommon {
    /// Certificates to show; may be empty upstream.
    pub certificates: Box<[CertificateSource]>,
    /// Roots; absent: the peer's certificate is not verified (Envoy's meaning).
    pub trust: Option<TrustSource>,
    /// Certificates that are revoked, as PEM in the resource itself. Lists of the secret go before it.
    pub revoked: Option<Arc<[u8]>>,
    /// Only the peer's own certificate is looked for in the lists, and not those above it. Secrets may say it too.
    pub only_leaf_is_looked_up: bool,
    /// The peer must have one of these names; empty: any.
    pub sans: Box<[SanMatch]>,
    /// Protocols to offer or accept, in order.
    pub alpn: Box<[Arc<[u8]>]>,
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Highest version.
    pub max_version: TlsVersion,
    /// Suites of TLS 1.2, the most wanted first; absent: all that rustls offers. Those of TLS 1.3 cannot be chosen, as in Envoy.
    pub cipher_suites: Option<Box<[CipherSuite]>>,
    /// Groups for the exchange of keys, the most wanted first; absent: all that rustls offers.
    pub curves: Option<Box<[Curve]>>,
}

/// Protocols of which weft-proxy speaks nothing inside TLS: whoever chose one would wait for it.
const NOT_SPOKEN: &[&[u8]] = &[b"h3"];

impl TlsCommon {
    /// Of [`TlsCommon::alpn`] what is offered or accepted.
    pub fn spoken_alpn(&self) -> impl Iterator<Item = &[u8]> {
        self.alpn.iter().map(|name| &**name).filter(|name| !NOT_SPOKEN.contains(name))
    }

    /// Whether the peer's names satisfy [`TlsCommon::sans`]. Each name with its kind.
    pub fn accepts<'a>(&self, mut names: impl Iterator<Item = (SanKind, &'a str)>) -> bool {
        self.sans.is_empty() || names.any(|(kind, name)| self.sans.iter().any(|san| san.takes(kind, name)))
    }
}

impl SanMatch {
    fn takes(&self, kind: SanKind, name: &str) -> bool {
        if self.kind != SanKind::Any && self.kind != kind {
            return false;
        }
        match &self.matcher {
            // As in Envoy: who is to have a name of DNS may show it by a wildcard.
            StringMatch::Exact { text, .. } if kind == SanKind::Dns => dns_name_covers(name, text),
            matcher => matcher.is_match(name.as_bytes()),
        }
    }
}

/// Whether the *name* of a certificate stands for the host *wanted*. RFC 6125 6.4.3: a wildcard stands for one whole leftmost label.
pub fn dns_name_covers(name: &str, wanted: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => wanted.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(wanted),
    }
}

/// Where the keys of session tickets come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TicketKeySource {
    /// The proxy makes them and renews them.
    Own,
    /// In the resource itself, each of [`TICKET_KEY_BYTES`]: the first encrypts, all decrypt.
    Inline(Box<[Arc<[u8]>]>),
    /// The SDS secret of this name.
    Secret(SecretName),
    /// There are no tickets.
    Disabled,
}

/// As Envoy has them: a name of 16 bytes and two keys of 32.
pub const TICKET_KEY_BYTES: usize = 80;
/// How long the proxy's own ticket keys encrypt; they decrypt as long again. Who steals one reads no more than what was resumed in that time.
pub const OWN_TICKET_KEY_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// The longest that a ticket may live (RFC 8446 4.6.1).
const MAX_SESSION_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A compiled `DownstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct DownstreamTls {
    /// Both directions' part.
    pub common: TlsCommon,
    /// A client without certificate is refused.
    pub require_client_certificate: bool,
    /// With which keys sessions can be resumed. Sessions are kept by clients only, so `disable_stateful_session_resumption` always holds.
    pub ticket_keys: TicketKeySource,
    /// How long a session can be resumed, if it is said.
    pub session_timeout: Option<Duration>,
}

/// A compiled `UpstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Both directions' part.
    pub common: TlsCommon,
    /// Server name to send; none if absent.
    pub sni: Option<Arc<str>>,
    /// How many sessions are kept to be resumed; 0: none.
    pub max_session_keys: usize,
}

impl UpstreamTls {
    /// Envoy's.
    const DEFAULT_SESSION_KEYS: u32 = 1;
}

impl TlsCommon {
    /// Every secret named here.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let certificates = self.certificates.iter().filter_map(|source| match source {
            CertificateSource::Secret(name) => Some(name),
            CertificateSource::Inline { .. } => None,
        });
        let trust = self.trust.iter().filter_map(|source| match source {
            TrustSource::Secret(name) => Some(name),
            TrustSource::Inline(_) => None,
        });
        certificates.chain(trust)
    }

    fn compile(context: &mut Context, tls: &proto::CommonTlsContext) -> Self {
        let mut certificates: Vec<_> = context
            .each("tls_certificates", &tls.tls_certificates, |context, certificate| {
                Some(CertificateSource::Inline {
                    chain: inline(context, "certificate_chain", certificate.certificate_chain.as_ref())?,
                    key: inline(context, "private_key", certificate.private_key.as_ref())?,
                })
            })
            .into_iter()
            .flatten()
            .collect();
        let secrets = &tls.tls_certificate_sds_secret_configs;
        certificates.extend(
            context
                .each("tls_certificate_sds_secret_configs", secrets, secret)
                .into_iter()
                .map(CertificateSource::Secret),
        );
        let Validation { trust, sans, revoked, only_leaf_is_looked_up } = match &tls.validation_context_type {
            None => Validation::default(),
            Some(ValidationContextType::ValidationContext(validation)) => {
                context.at("validation_context", |context| compile_validation(context, validation))
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
                let name = context.at("validation_context_sds_secret_config", |context| secret(context, config));
                Validation { trust: Some(TrustSource::Secret(name)), ..Validation::default() }
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                context.at("combined_validation_context", |context| {
                    let default = match &combined.default_validation_context {
                        Some(validation) => {
                            context.at("default_validation_context", |context| compile_validation(context, validation))
                        }
                        None => Validation::default(),
                    };
                    // The secret is merged over the default: its roots and lists win, and it may hold nothing else.
                    let secret = combined.validation_context_sds_secret_config.as_ref().map(|config| {
                        context.at("validation_context_sds_secret_config", |context| secret(context, config))
                    });
                    Validation { trust: secret.map(TrustSource::Secret).or(default.trust), ..default }
                })
            }
            Some(_) => {
                context.refuse("certificate providers are not supported");
                Validation::default()
            }
        };
        if revoked.is_some() && trust.is_none() {
            context.refuse("without trusted roots nobody's certificate is looked for in `crl`");
        }
        if !sans.is_empty() && trust.is_none() {
            context.refuse("without trusted roots anybody's certificate could bear the names that are asked for");
        }
        let parameters = tls.tls_params.clone().unwrap_or_default();
        // Envoy's defaults: servers and clients speak TLS 1.2 and 1.3.
        let min_version = match parameters.tls_minimum_protocol_version() {
            TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => TlsVersion::Tls12,
            TlsProtocol::TlSv13 => TlsVersion::Tls13,
            TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
                context.refuse_at("tls_params.tls_minimum_protocol_version", "weft-proxy speaks TLS 1.2 and 1.3");
                TlsVersion::Tls12
            }
        };
        let max_version = match parameters.tls_maximum_protocol_version() {
            TlsProtocol::TlsAuto | TlsProtocol::TlSv13 => TlsVersion::Tls13,
            TlsProtocol::TlSv12 => TlsVersion::Tls12,
            TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
                context.refuse_at("tls_params.tls_maximum_protocol_version", "weft-proxy speaks TLS 1.2 and 1.3");
                TlsVersion::Tls12
            }
        };
        if min_version > max_version {
            context.refuse_at("tls_params", "the minimum version is above the maximum");
        }
        let (cipher_suites, curves) = context.at("tls_params", |context| {
            let suites = cipher_suites(context, &parameters.cipher_suites, min_version == TlsVersion::Tls13);
            (suites, curves(context, &parameters.ecdh_curves))
        });
        Self {
            certificates: certificates.into(),
            trust,
            revoked,
            only_leaf_is_looked_up,
            sans: sans.into(),
            alpn: tls.alpn_protocols.iter().map(|name| Arc::from(name.as_bytes())).collect(),
            min_version,
            max_version,
            cipher_suites,
            curves,
        }
    }
}

/// What a validation context says.
#[derive(Default)]
struct Validation {
    trust: Option<TrustSource>,
    sans: Vec<SanMatch>,
    revoked: Option<Arc<[u8]>>,
    only_leaf_is_looked_up: bool,
}

fn compile_validation(context: &mut Context, validation: &proto::CertificateValidationContext) -> Validation {
    let trust = validation
        .trusted_ca
        .as_ref()
        .and_then(|source| inline(context, "trusted_ca", Some(source)))
        .map(TrustSource::Inline);
    let any = context.each("match_subject_alt_names", &validation.match_subject_alt_names, |context, matcher| {
        Some(SanMatch { kind: SanKind::Any, matcher: StringMatch::compile(context, matcher)? })
    });
    let typed =
        context.each("match_typed_subject_alt_names", &validation.match_typed_subject_alt_names, |context, typed| {
            let kind = match typed.san_type() {
                SanType::Uri => SanKind::Uri,
                SanType::Dns => SanKind::Dns,
                SanType::IpAddress => SanKind::Ip,
                SanType::Email => SanKind::Email,
                _ => {
                    context.refuse_at("san_type", "only URI, DNS, IP_ADDRESS and EMAIL are compared");
                    return None;
                }
            };
            let Some(matcher) = &typed.matcher else {
                context.refuse_at("matcher", "required");
                return None;
            };
            Some(SanMatch { kind, matcher: context.at("matcher", |context| StringMatch::compile(context, matcher))? })
        });
    let revoked = validation.crl.as_ref().and_then(|source| inline(context, "crl", Some(source)));
    Validation {
        trust,
        sans: any.into_iter().chain(typed).flatten().collect(),
        revoked,
        only_leaf_is_looked_up: validation.only_verify_leaf_cert_crl,
    }
}

fn inline(context: &mut Context, field: &str, source: Option<&DataSource>) -> Option<Arc<[u8]>> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.as_slice().into()),
        Some(Specifier::InlineString(text)) => Some(text.as_bytes().into()),
        _ => {
            context.refuse_at(field, "only inline bytes and strings are supported; weft-proxy reads no files");
            None
        }
    }
}

fn secret(context: &mut Context, config: &proto::SdsSecretConfig) -> SecretName {
    if config.name.is_empty() {
        context.refuse_at("name", "required");
    }
    let cluster =
        config.sds_config.as_ref().and_then(|source| context.at("sds_config", |context| sds_cluster(context, source)));
    SecretName { name: config.name.as_str().into(), cluster }
}

/// The cluster that serves a secret; `None` for ADS.
fn sds_cluster(context: &mut Context, source: &ConfigSource) -> Option<Arc<str>> {
    context.config_source(Some(source));
    match &source.config_source_specifier {
        None | Some(ConfigSourceSpecifier::Ads(_)) => None,
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => {
            match api.grpc_services.first().and_then(|service| service.target_specifier.as_ref()) {
                Some(TargetSpecifier::EnvoyGrpc(grpc)) => Some(grpc.cluster_name.as_str().into()),
                _ => {
                    context.refuse_at("api_config_source.grpc_services", "one envoy_grpc service is needed");
                    None
                }
            }
        }
        Some(_) => {
            context.refuse("secrets come from ads or api_config_source");
            None
        }
    }
}

impl DownstreamTls {
    pub(crate) fn compile(context: &mut Context, tls: &proto::DownstreamTlsContext) -> Self {
        let common = tls.common_tls_context.clone().unwrap_or_default();
        let common = context.at("common_tls_context", |context| TlsCommon::compile(context, &common));
        if common.certificates.is_empty() {
            context.refuse_at("common_tls_context", "a server needs a certificate");
        }
        let require_client_certificate = tls.require_client_certificate.as_ref().is_some_and(|wanted| wanted.value);
        if require_client_certificate && common.trust.is_none() {
            context.refuse_at("require_client_certificate", "without trusted roots no certificate can be checked");
        }
        let ticket_keys = match &tls.session_ticket_keys_type {
            None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => TicketKeySource::Own,
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => TicketKeySource::Disabled,
            Some(SessionTicketKeysType::SessionTicketKeys(keys)) => {
                TicketKeySource::Inline(context.at("session_ticket_keys", |context| ticket_keys(context, keys)))
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(config)) => TicketKeySource::Secret(
                context.at("session_ticket_keys_sds_secret_config", |context| secret(context, config)),
            ),
        };
        let session_timeout = context
            .duration("session_timeout", tls.session_timeout.as_ref())
            // Envoy ignores parts of a second, and 0 is the default of its library.
            .map(|timeout| Duration::from_secs(timeout.as_secs()))
            .filter(|timeout| !timeout.is_zero());
        let longest = if ticket_keys == TicketKeySource::Own { OWN_TICKET_KEY_LIFE } else { MAX_SESSION_TIMEOUT };
        if session_timeout.is_some_and(|timeout| timeout > longest) {
            context.at("session_timeout", |context| {
                context.pass_over(format!("cut to {longest:?}, for which keys of tickets are kept"));
            });
        }
        let session_timeout = session_timeout.map(|timeout| timeout.min(longest));
        Self { common, require_client_certificate, ticket_keys, session_timeout }
    }

    /// Every secret named here.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let keys = match &self.ticket_keys {
            TicketKeySource::Secret(name) => Some(name),
            _ => None,
        };
        self.common.secrets().chain(keys)
    }
}

fn ticket_keys(context: &mut Context, keys: &proto::TlsSessionTicketKeys) -> Box<[Arc<[u8]>]> {
    if keys.keys.is_empty() {
        context.refuse_at("keys", "at least one is needed");
    }
    let keys = context.each("keys", &keys.keys, |context, source| {
        let Some(key) = inline(context, "inline_bytes", Some(source)) else { return Arc::default() };
        if key.len() != TICKET_KEY_BYTES {
            context.refuse(format!("a key has {TICKET_KEY_BYTES} bytes, and not {}", key.len()));
        }
        key
    });
    keys.into()
}

impl UpstreamTls {
    pub(crate) fn compile(context: &mut Context, tls: &proto::UpstreamTlsContext) -> Self {
        let common = tls.common_tls_context.clone().unwrap_or_default();
        Self {
            common: context.at("common_tls_context", |context| TlsCommon::compile(context, &common)),
            sni: (!tls.sni.is_empty()).then(|| tls.sni.as_str().into()),
            max_session_keys: tls.max_session_keys.as_ref().map_or(Self::DEFAULT_SESSION_KEYS, |most| most.value)
                as usize,
        }
    }
}
