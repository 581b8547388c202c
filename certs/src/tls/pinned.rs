//! Verifies a server by the hash of its certificate.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use crate::certificate::{Leaf, rustls_time};
use crate::hash::CertificateHash;

use super::crypto_provider;

/// Accepts listed certificates while they are valid. Signatures of the handshake are checked as ever: without
/// that, whoever has seen the (public) certificate could present it.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    hashes: BTreeSet<CertificateHash>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedVerifier {
    /// None if there is nothing to accept.
    pub(super) fn new(hashes: impl IntoIterator<Item = CertificateHash>) -> Option<Self> {
        let hashes: BTreeSet<_> = hashes.into_iter().collect();
        let algorithms = crypto_provider().signature_verification_algorithms;
        (!hashes.is_empty()).then_some(Self { hashes, algorithms })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let hash = CertificateHash::of(end_entity);
        if !self.hashes.contains(&hash) {
            return Err(CertificateError::Other(OtherError(Arc::new(NotPinned { hash }))).into());
        }
        let leaf = Leaf::parse(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let (not_before, not_after) = (rustls_time(leaf.not_before), rustls_time(leaf.not_after));
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    // Not reached, as the configuration is TLS 1.3 only; correct all the same.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server showed another certificate.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate has hash {hash}, which is not among those accepted: it was renewed, or this is another server"
)]
struct NotPinned {
    hash: CertificateHash,
}
