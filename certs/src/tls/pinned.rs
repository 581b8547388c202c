//! Verifies a server by the hash of its certificate.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, OtherError};

use crate::certificate::{Leaf, rustls_time};
use crate::hash::CertificateHash;

use super::verifier::Rule;

/// Accepts listed certificates while they are valid.
#[derive(Debug)]
pub(super) struct Pinned {
    hashes: BTreeSet<CertificateHash>,
}

impl Pinned {
    /// None if there is nothing to accept.
    pub(super) fn new(hashes: impl IntoIterator<Item = CertificateHash>) -> Option<Self> {
        let hashes: BTreeSet<_> = hashes.into_iter().collect();
        (!hashes.is_empty()).then_some(Self { hashes })
    }
}

impl Rule for Pinned {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
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
        Ok(())
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
