//! Verifies a core node: by its cluster's CA, whatever its name.

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{Error, RootCertStore};

use super::crypto_provider;
use super::verifier::Rule;

/// Accepts what the cluster's CA signed. The name is checked later, by whoever dialled: certificates are issued to nodes,
/// and which node is behind an address is only known from its welcome (an address may be a load balancer's, a container's,
/// or have moved). The node named there must be among the certificate's names.
#[derive(Debug)]
pub(super) struct OfCluster {
    pub(super) roots: RootCertStore,
}

impl Rule for OfCluster {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = crypto_provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )
    }
}
