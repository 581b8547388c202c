//! Which servers to trust.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tidegate_certs::{CertificateHash, client_config_pinned, client_config_with_roots, load_roots};

use crate::ClientError;

/// What the app said of trust.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustOptions {
    /// Beside the system's.
    pub(crate) ca_files: Vec<PathBuf>,
    /// Instead of roots and names.
    pub(crate) hashes: Vec<CertificateHash>,
}

impl TrustOptions {
    /// Reads roots. Blocks for as long as a few small files take.
    pub(crate) fn load(self) -> Result<Trust, ClientError> {
        if !self.hashes.is_empty() {
            return Ok(Trust::Hashes(self.hashes));
        }
        let mut roots = RootCertStore::empty();
        for path in &self.ca_files {
            roots.extend(load_roots(path).map_err(|error| ClientError::Tls(error.to_string()))?.roots);
        }
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let why = system.errors.first().map_or_else(|| "it has none".to_owned(), ToString::to_string);
            return Err(ClientError::Tls(format!(
                "no root certificates from the system ({why}): name a CA file or a certificate hash"
            )));
        }
        Ok(Trust::Roots(Arc::new(roots)))
    }
}

/// Which servers are trusted.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// None: there is no TLS.
    Nothing,
    /// Those with a certificate that one of these signed.
    Roots(Arc<RootCertStore>),
    /// Those with one of these certificates.
    Hashes(Vec<CertificateHash>),
}

impl Trust {
    /// Settings that remember servers: for all dials of a client by one transport.
    pub(crate) fn config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, ClientError> {
        match self {
            Self::Nothing => client_config_with_roots(RootCertStore::empty(), alpn),
            Self::Roots(roots) => client_config_with_roots(Arc::clone(roots), alpn),
            Self::Hashes(hashes) => client_config_pinned(hashes.iter().copied(), alpn),
        }
        .map_err(|error| ClientError::Tls(error.to_string()))
    }
}
