//! Whom to trust: a chain to a configured root, and a name that the configuration asks for. A mesh's names are SPIFFE URIs, so
//! no DNS name is compared unless the configuration says one.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{ExpirationPolicy, RevocationCheckDepth, UnknownStatusPolicy};
use weft_core::tls::{SanKind, TlsCommon};

use super::san;
use super::secrets::{Revoked, Roots};

/// Checks the certificate of either side's peer.
pub struct PeerVerifier {
    provider: Arc<CryptoProvider>,
    /// Absent: nothing is verified, as Envoy reads a context without a validation context.
    roots: Option<Arc<Roots>>,
    /// Certificates that are not to be trusted any more.
    revoked: Option<Arc<Revoked>>,
    settings: TlsCommon,
    client_must_show: bool,
}

impl PeerVerifier {
    pub fn new(
        provider: Arc<CryptoProvider>,
        roots: Option<Arc<Roots>>,
        revoked: Option<Arc<Revoked>>,
        settings: TlsCommon,
        client_must_show: bool,
    ) -> Arc<PeerVerifier> {
        Arc::new(PeerVerifier { provider, roots, revoked, settings, client_must_show })
    }

    /// Whether a client that showed *chain* before would be let in with it at *now*.
    pub fn would_accept_client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        match chain.split_first() {
            Some((leaf, above)) => self.verify(leaf, above, now, webpki::KeyUsage::client_auth()).is_ok(),
            None => !self.client_must_show,
        }
    }

    /// The same of a server.
    pub fn would_accept_server(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        chain
            .split_first()
            .is_some_and(|(leaf, above)| self.verify(leaf, above, now, webpki::KeyUsage::server_auth()).is_ok())
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: webpki::KeyUsage,
    ) -> Result<(), Error> {
        let Some(roots) = &self.roots else { return Ok(()) };
        let certificate = webpki::EndEntityCert::try_from(end_entity).map_err(refusal)?;
        let lists: Vec<_> = self.revoked.iter().flat_map(|revoked| &revoked.lists).collect();
        // As Envoy has it: one list is there, so each issuer must have one, and none may be out of date.
        let revocation = webpki::RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            let only_leaf = self.settings.only_leaf_is_looked_up || roots.only_leaf_is_looked_up;
            let depth = if only_leaf { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
            options
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &roots.store.roots,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map_err(refusal)?;
        let names = san::names(end_entity);
        let addresses: Vec<String> = names.addresses.iter().map(ToString::to_string).collect();
        let kinds = [
            (SanKind::Uri, &names.uris),
            (SanKind::Dns, &names.dns),
            (SanKind::Email, &names.emails),
            (SanKind::Ip, &addresses),
        ];
        let all = kinds.iter().flat_map(|(kind, names)| names.iter().map(move |name| (*kind, name.as_str())));
        if self.settings.accepts(all) {
            Ok(())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn tls12(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for PeerVerifier {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("PeerVerifier")
    }
}

/// The alert and the text for the record follow from rustls's own error kinds.
fn refusal(error: webpki::Error) -> Error {
    let error = match error {
        webpki::Error::CertExpired { .. } | webpki::Error::InvalidCertValidity => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        webpki::Error::CrlExpired { .. } => CertificateError::ExpiredRevocationList,
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(error)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, webpki::KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_must_show
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a workload has one identity and shows it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, webpki::KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls12(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
