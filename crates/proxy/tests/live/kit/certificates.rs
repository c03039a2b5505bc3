//! Certificates and secrets as the agent would hand them out, and TLS peers that use them.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_protos::envoy::r#type::matcher::v3 as matcher;
use weft_protos::google::protobuf::BoolValue;
use weft_protos::type_url;
use weft_xds::server::Published;

use super::resources::{any, published};

/// The proxy's own identity.
pub const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
/// Another workload's.
pub const OTHER: &str = "spiffe://cluster.local/ns/default/sa/other";

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Authority(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a SPIFFE identity, good for years.
    pub fn identity(&self, uri: &str) -> Identity {
        self.until(uri, 2099)
    }

    /// One that ends with a year.
    pub fn until(&self, uri: &str, year: i32) -> Identity {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(parameters)
    }

    /// One that ends at *end*.
    pub fn until_time(&self, uri: &str, end: SystemTime) -> Identity {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let since_1970 = Duration::from_secs(end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
        parameters.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
        self.sign(parameters)
    }

    /// One with this serial number.
    pub fn numbered(&self, uri: &str, serial: u64) -> Identity {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.serial_number = Some(SerialNumber::from(serial));
        parameters.not_after = rcgen::date_time_ymd(2099, 1, 1);
        self.sign(parameters)
    }

    /// A list that revokes these serial numbers, in PEM; it is good until *year*.
    pub fn revoking(&self, serials: &[u64], year: i32) -> String {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: rcgen::date_time_ymd(2002, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let parameters = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2001, 1, 1),
            next_update: rcgen::date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// One with DNS names too, whose subject is this organisation's; its chain holds the authority's own certificate.
    pub fn described(&self, uri: &str, dns: &[&str], organisation: &str) -> Identity {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        parameters.subject_alt_names.extend(dns.iter().map(|&name| SanType::DnsName(name.try_into().unwrap())));
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::OrganizationName, organisation);
        parameters.distinguished_name.push(DnType::CommonName, "client");
        parameters.not_after = rcgen::date_time_ymd(2099, 1, 1);
        let identity = self.sign(parameters);
        Identity { chain: identity.chain + &self.pem(), ..identity }
    }

    /// One for a DNS name too, with a key for *algorithm*.
    pub fn named(&self, uri: &str, dns: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Identity {
        let mut parameters = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        parameters.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        self.sign_for(parameters, KeyPair::generate_for(algorithm).unwrap())
    }

    fn sign(&self, parameters: CertificateParams) -> Identity {
        self.sign_for(parameters, KeyPair::generate().unwrap())
    }

    fn sign_for(&self, mut parameters: CertificateParams, key: KeyPair) -> Identity {
        parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Identity { chain: certificate.pem(), key: key.serialize_pem() }
    }

    fn store(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        store
    }
}

impl Identity {
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain.as_bytes()).map(Result::unwrap).collect()
    }

    /// As a resource holds it.
    pub fn inline(&self) -> tls::TlsCertificate {
        tls::TlsCertificate {
            certificate_chain: inline(&self.chain),
            private_key: inline(&self.key),
            ..Default::default()
        }
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

fn inline(text: &str) -> Option<core::DataSource> {
    Some(core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(text.into())),
        ..Default::default()
    })
}

/// The secrets `default` and `ROOTCA`.
pub fn secrets(identity: &Identity, trust: &Authority) -> Vec<Published> {
    secrets_with(identity, &[trust], None)
}

/// The same with several authorities and revocation lists in PEM.
pub fn secrets_with(identity: &Identity, trust: &[&Authority], revoked: Option<&str>) -> Vec<Published> {
    let certificate = tls::secret::Type::TlsCertificate(identity.inline());
    let validation = tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
        trusted_ca: inline(&trust.iter().map(|authority| authority.pem()).collect::<String>()),
        crl: revoked.and_then(inline),
        ..Default::default()
    });
    [("default", certificate), ("ROOTCA", validation)]
        .map(|(name, kind)| published(type_url::SECRET, name, &tls::Secret { name: name.into(), r#type: Some(kind) }))
        .into()
}

/// The secret *name*: keys of session tickets, each of one byte again and again.
pub fn ticket_keys(name: &str, keys: &[u8]) -> Published {
    let key = |&byte: &u8| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineBytes(vec![byte; 80])),
        ..Default::default()
    };
    let keys = tls::TlsSessionTicketKeys { keys: keys.iter().map(key).collect() };
    let kind = Some(tls::secret::Type::SessionTicketKeys(keys));
    published(type_url::SECRET, name, &tls::Secret { name: name.into(), r#type: kind })
}

pub fn from_agent(name: &str) -> tls::SdsSecretConfig {
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name: "sds-grpc".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![service],
        ..Default::default()
    };
    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(core::ConfigSource {
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    }
}

/// Both secrets, and the identities that are accepted; none: all.
fn common(names: &[&str]) -> tls::CommonTlsContext {
    let san = |name: &&str| tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri as i32,
        matcher: Some(matcher::StringMatcher {
            match_pattern: Some(matcher::string_matcher::MatchPattern::Exact((*name).into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let combined = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: names.iter().map(san).collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(from_agent("ROOTCA")),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![from_agent("default")],
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            combined,
        )),
        ..Default::default()
    }
}

fn socket(type_name: &str, context: &impl prost::Message) -> Option<core::TransportSocket> {
    Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(type_name, context))),
    })
}

/// A listener's TLS with a client certificate required.
pub fn downstream(names: &[&str]) -> Option<core::TransportSocket> {
    downstream_with(names, tls::TlsParameters::default())
}

/// The same with *parameters*.
pub fn downstream_with(names: &[&str], parameters: tls::TlsParameters) -> Option<core::TransportSocket> {
    downstream_changed(names, |common| common.tls_params = Some(parameters))
}

/// The same once *change* has had its way with what both sides of TLS have in common.
pub fn downstream_changed(
    names: &[&str],
    change: impl FnOnce(&mut tls::CommonTlsContext),
) -> Option<core::TransportSocket> {
    downstream_context(names, |context| change(context.common_tls_context.as_mut().unwrap()))
}

/// The same once *change* has had its way with all of it.
pub fn downstream_context(
    names: &[&str],
    change: impl FnOnce(&mut tls::DownstreamTlsContext),
) -> Option<core::TransportSocket> {
    let mut context = tls::DownstreamTlsContext {
        common_tls_context: Some(common(names)),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    change(&mut context);
    socket("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", &context)
}

/// A cluster's TLS; the server must be one of *names*.
pub fn upstream(names: &[&str]) -> Option<core::TransportSocket> {
    upstream_for(names, &[])
}

/// The same, offering these protocols.
pub fn upstream_for(names: &[&str], alpn: &[&str]) -> Option<core::TransportSocket> {
    upstream_context(names, |context| {
        let alpn_protocols = alpn.iter().map(|&protocol| protocol.into()).collect();
        context.common_tls_context.as_mut().unwrap().alpn_protocols = alpn_protocols;
    })
}

/// The same once *change* has had its way with all of it.
pub fn upstream_context(
    names: &[&str],
    change: impl FnOnce(&mut tls::UpstreamTlsContext),
) -> Option<core::TransportSocket> {
    let mut context = tls::UpstreamTlsContext {
        common_tls_context: Some(common(names)),
        sni: "outbound_.9080_._.up.default.svc.cluster.local".into(),
        ..Default::default()
    };
    change(&mut context);
    socket("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", &context)
}

/// What a client says of itself before anything is secret.
pub struct Hello {
    pub name: &'static str,
    pub alpn: &'static [&'static str],
    pub versions: &'static [&'static rustls::SupportedProtocolVersion],
    /// How the server may sign; none: as the client knows.
    pub schemes: &'static [rustls::SignatureScheme],
}

impl Default for Hello {
    fn default() -> Hello {
        Hello { name: "up.default.svc.cluster.local", alpn: &[], versions: rustls::ALL_VERSIONS, schemes: &[] }
    }
}

/// A TLS connection to the proxy, before its handshake. The server's chain is checked by the kit's own verifier: SPIFFE
/// certificates carry no DNS name.
pub fn client(
    address: SocketAddr,
    trust: &Authority,
    identity: Option<&Identity>,
) -> StreamOwned<ClientConnection, TcpStream> {
    client_saying(address, trust, identity, &Hello::default())
}

/// The same of a client that says *hello*.
pub fn client_saying(
    address: SocketAddr,
    trust: &Authority,
    identity: Option<&Identity>,
    hello: &Hello,
) -> StreamOwned<ClientConnection, TcpStream> {
    client_with(address, &client_config(trust, identity, hello), hello.name)
}

/// The same with what a client keeps from one connection to the next, its sessions among it.
pub fn client_with(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &'static str,
) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from(name).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(address).unwrap())
}

pub fn client_config(trust: &Authority, identity: Option<&Identity>, hello: &Hello) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_protocol_versions(hello.versions)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainOnly::new(trust, hello.schemes)));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.certificates(), identity.private_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = hello.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    // A client that would send early data, if it were let.
    config.enable_early_data = true;
    Arc::new(config)
}

/// The upstream's side of TLS: shows *identity*, wants a certificate of *trust*.
pub fn server(socket: TcpStream, trust: &Authority, identity: &Identity) -> StreamOwned<ServerConnection, TcpStream> {
    server_for(socket, trust, identity, &[])
}

/// The same, for one of these protocols.
pub fn server_for(
    socket: TcpStream,
    trust: &Authority,
    identity: &Identity,
    alpn: &[&str],
) -> StreamOwned<ServerConnection, TcpStream> {
    StreamOwned::new(ServerConnection::new(server_config(trust, identity, alpn)).unwrap(), socket)
}

/// What a server keeps from one connection to the next, its sessions among it.
pub fn server_config(trust: &Authority, identity: &Identity, alpn: &[&str]) -> Arc<ServerConfig> {
    let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(trust.store())).build().unwrap();
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.certificates(), identity.private_key())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Checks the chain, and no name.
#[derive(Debug)]
struct ChainOnly(Arc<rustls::client::WebPkiServerVerifier>, &'static [rustls::SignatureScheme]);

impl ChainOnly {
    fn new(trust: &Authority, schemes: &'static [rustls::SignatureScheme]) -> ChainOnly {
        ChainOnly(rustls::client::WebPkiServerVerifier::builder(Arc::new(trust.store())).build().unwrap(), schemes)
    }
}

impl rustls::client::danger::ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // The name is looked at after the chain.
            Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(rustls::client::danger::ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        if self.1.is_empty() { self.0.supported_verify_schemes() } else { self.1.to_vec() }
    }
}
