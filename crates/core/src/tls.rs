//! TLS as configured: which certificate to show, whom to trust, which protocols to offer. No keys and no cryptography here.

use std::sync::Arc;

use weft_protos::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use weft_protos::envoy::config::core::v3::data_source::Specifier;
use weft_protos::envoy::config::core::v3::grpc_service::TargetSpecifier;
use weft_protos::envoy::config::core::v3::{ConfigSource, DataSource};
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as proto;
use weft_protos::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
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

/// A secret and who serves it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Any of URI, DNS, IP address (the deprecated `match_subject_alt_names`).
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

/// What both directions share.
#[derive(Debug, Clone)]
pub struct TlsCommon {
    /// Certificates to show; may be empty upstream.
    pub certificates: Box<[CertificateSource]>,
    /// Roots; absent: the peer's certificate is not verified (Envoy's meaning).
    pub trust: Option<TrustSource>,
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
}

impl TlsCommon {
    /// Whether the peer's names satisfy [`TlsCommon::sans`]. Each name with its kind.
    pub fn accepts<'a>(&self, mut names: impl Iterator<Item = (SanKind, &'a str)>) -> bool {
        self.sans.is_empty()
            || names.any(|(kind, name)| {
                self.sans
                    .iter()
                    .any(|san| (san.kind == SanKind::Any || san.kind == kind) && san.matcher.is_match(name.as_bytes()))
            })
    }
}

/// A compiled `DownstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct DownstreamTls {
    /// Both directions' part.
    pub common: TlsCommon,
    /// A client without certificate is refused.
    pub require_client_certificate: bool,
}

/// A compiled `UpstreamTlsContext`.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Both directions' part.
    pub common: TlsCommon,
    /// Server name to send; none if absent.
    pub sni: Option<Arc<str>>,
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
        let (trust, sans) = match &tls.validation_context_type {
            None => (None, Vec::new()),
            Some(ValidationContextType::ValidationContext(validation)) => {
                context.at("validation_context", |context| compile_validation(context, validation))
            }
            Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
                let name = context.at("validation_context_sds_secret_config", |context| secret(context, config));
                (Some(TrustSource::Secret(name)), Vec::new())
            }
            Some(ValidationContextType::CombinedValidationContext(combined)) => {
                context.at("combined_validation_context", |context| {
                    let (inline, sans) = match &combined.default_validation_context {
                        Some(validation) => {
                            context.at("default_validation_context", |context| compile_validation(context, validation))
                        }
                        None => (None, Vec::new()),
                    };
                    // The secret is merged over the default: its roots win, and weft's secrets hold nothing but roots.
                    let secret = combined.validation_context_sds_secret_config.as_ref().map(|config| {
                        context.at("validation_context_sds_secret_config", |context| secret(context, config))
                    });
                    (secret.map(TrustSource::Secret).or(inline), sans)
                })
            }
            Some(_) => {
                context.refuse("certificate providers are not supported");
                (None, Vec::new())
            }
        };
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
        let cipher_suites = context.at("tls_params", |context| {
            cipher_suites(context, &parameters.cipher_suites, min_version == TlsVersion::Tls13)
        });
        Self {
            certificates: certificates.into(),
            trust,
            sans: sans.into(),
            alpn: tls.alpn_protocols.iter().map(|name| Arc::from(name.as_bytes())).collect(),
            min_version,
            max_version,
            cipher_suites,
        }
    }
}

/// Roots and names of a validation context.
fn compile_validation(
    context: &mut Context,
    validation: &proto::CertificateValidationContext,
) -> (Option<TrustSource>, Vec<SanMatch>) {
    let roots = validation
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
                _ => {
                    context.refuse_at("san_type", "only URI and DNS names are compared");
                    return None;
                }
            };
            let Some(matcher) = &typed.matcher else {
                context.refuse_at("matcher", "required");
                return None;
            };
            Some(SanMatch { kind, matcher: context.at("matcher", |context| StringMatch::compile(context, matcher))? })
        });
    (roots, any.into_iter().chain(typed).flatten().collect())
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
        Self { common, require_client_certificate }
    }
}

impl UpstreamTls {
    pub(crate) fn compile(context: &mut Context, tls: &proto::UpstreamTlsContext) -> Self {
        let common = tls.common_tls_context.clone().unwrap_or_default();
        Self {
            common: context.at("common_tls_context", |context| TlsCommon::compile(context, &common)),
            sni: (!tls.sni.is_empty()).then(|| tls.sni.as_str().into()),
        }
    }
}
