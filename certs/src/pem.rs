//! Certificates, keys and roots from PEM files, with errors that name the file and the remedy.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};

use crate::certificate::{Leaf, LoadedCertificate, format_time};
use crate::hash::sha256;

/// Where one certificate lives. Both paths may name the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM chain: the node's own certificate first, then the intermediates.
    pub certificate: PathBuf,
    /// PEM private key (PKCS#8, PKCS#1 or SEC1; not encrypted).
    pub key: PathBuf,
}

/// Reads and checks a certificate chain and its key.
///
/// # Errors
/// When a file cannot be read, holds something else, does not match the other, or the certificate is not
/// valid at `now`.
pub fn load_certificate(files: &CertificateFiles, now: SystemTime) -> Result<LoadedCertificate, PemError> {
    Snapshot::read(files).parse(now)
}

/// Reads the certificates that a client trusts as roots.
///
/// # Errors
/// When the file cannot be read, holds no certificate, or one that cannot be a root.
pub fn load_roots(path: &Path) -> Result<RootCertStore, PemError> {
    let bytes = read_bounded(path).map_err(|cause| PemError::Unreadable { path: path.into(), cause })?;
    collect_roots(path, certificates(path, &bytes)?)
}

/// Roots from certificates in DER, as [`crate::DevCertificates::ca_der`] gives them.
///
/// # Errors
/// When the list is empty or one of them cannot be a root.
pub fn roots_from_der(
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<RootCertStore, PemError> {
    collect_roots(Path::new("(in memory)"), certificates)
}

/// Why a certificate, key or root could not be used. Each text is whole: causes are in it, not behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// The file is missing, forbidden, too large, or broken underneath.
    #[error("cannot read {}: {cause}; check the path and that this user may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The PEM text itself is damaged.
    #[error("{} is not valid PEM: {detail}; copy the file again, whole", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// No `CERTIFICATE` section, or an empty list of roots.
    #[error("no certificate in {}: it needs a section `-----BEGIN CERTIFICATE-----`{hint}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// Empty, or a guess at what happened.
        hint: &'static str,
    },
    /// A certificate that cannot be parsed or cannot be a root.
    #[error("certificate {number} in {} cannot be used: {detail}; issue or export it again", path.display())]
    InvalidCertificate {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        number: usize,
        /// What is wrong.
        detail: String,
    },
    /// No private key section.
    #[error("no private key in {}: it needs a section `-----BEGIN PRIVATE KEY-----`{hint}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// Empty, or a guess at what happened.
        hint: &'static str,
    },
    /// The key needs a passphrase.
    #[error(
        "the private key in {} is encrypted: store it decrypted (`openssl pkey -in … -out …`), readable by this user alone",
        path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// A kind of key that TLS here does not offer.
    #[error("the private key in {} cannot be used: {detail}; use ECDSA P-256, Ed25519 or RSA", path.display())]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The key belongs to another certificate.
    #[error(
        "the private key in {} does not belong to the certificate in {}: give the two files that were issued together",
        key.display(),
        certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The key belongs to a certificate further down the chain.
    #[error(
        "{} begins with another certificate than the node's own, which is number {number}: put that one first",
        certificate.display()
    )]
    LeafNotFirst {
        /// The certificate's file.
        certificate: PathBuf,
        /// Place of the node's own certificate, from 1.
        number: usize,
    },
    /// The certificate's time is over.
    #[error("the certificate in {} expired at {}: renew it", path.display(), format_time(*not_after))]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it expired.
        not_after: SystemTime,
    },
    /// The certificate's time has not come.
    #[error(
        "the certificate in {} is not valid before {}: check this machine's clock",
        path.display(),
        format_time(*not_before)
    )]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it becomes valid.
        not_before: SystemTime,
    },
}

/// Both files as read at one time: what is parsed is what the fingerprint was taken of.
pub(crate) struct Snapshot<'a> {
    files: &'a CertificateFiles,
    certificate: io::Result<Vec<u8>>,
    key: io::Result<Vec<u8>>,
}

/// Tells two snapshots apart, unreadable files included.
pub(crate) type Fingerprint = [Result<[u8; 32], io::ErrorKind>; 2];

impl<'a> Snapshot<'a> {
    /// Reads both files; failures are kept for [`Snapshot::parse`].
    pub(crate) fn read(files: &'a CertificateFiles) -> Self {
        Self { files, certificate: read_bounded(&files.certificate), key: read_bounded(&files.key) }
    }

    /// By content, not by date: a restored backup has an old date, and a symbolic link that is switched
    /// (as Kubernetes does) may change nothing but where it leads.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        [&self.certificate, &self.key].map(|read| read.as_deref().map(sha256).map_err(|error| error.kind()))
    }

    /// Checks everything that can be checked without a peer.
    pub(crate) fn parse(self, now: SystemTime) -> Result<LoadedCertificate, PemError> {
        let CertificateFiles { certificate: path, key: key_path } = self.files;
        let unreadable = |path: &Path, cause| PemError::Unreadable { path: path.into(), cause };
        let chain_text = self.certificate.map_err(|cause| unreadable(path, cause))?;
        let key_text = self.key.map_err(|cause| unreadable(key_path, cause))?;

        let chain = certificates(path, &chain_text)?;
        let mut leaves = Vec::with_capacity(chain.len());
        for (index, certificate) in chain.iter().enumerate() {
            leaves.push(Leaf::parse(certificate).map_err(|detail| PemError::InvalidCertificate {
                path: path.clone(),
                number: index + 1,
                detail,
            })?);
        }
        let leaf = leaves.swap_remove(0);
        let certified = certified_key(self.files, chain, &private_key(key_path, &key_text)?)?;
        if now > leaf.not_after {
            return Err(PemError::Expired { path: path.clone(), not_after: leaf.not_after });
        }
        if now < leaf.not_before {
            return Err(PemError::NotYetValid { path: path.clone(), not_before: leaf.not_before });
        }
        Ok(LoadedCertificate::new(Arc::new(certified), leaf))
    }
}

/// Joins chain and key after checking that they belong together.
fn certified_key(
    files: &CertificateFiles,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, PemError> {
    let key = any_supported_type(key)
        .map_err(|error| PemError::UnsupportedKey { path: files.key.clone(), detail: error.to_string() })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let own = certified.cert.iter().position(|certificate| {
                CertifiedKey::new(vec![certificate.clone()], Arc::clone(&certified.key)).keys_match().is_ok()
            });
            let certificate = files.certificate.clone();
            Err(match own {
                Some(index) => PemError::LeafNotFirst { certificate, number: index + 1 },
                None => PemError::KeyMismatch { certificate, key: files.key.clone() },
            })
        }
        Err(error) => Err(PemError::InvalidCertificate {
            path: files.certificate.clone(),
            number: 1,
            detail: error.to_string(),
        }),
    }
}

/// All certificates of a PEM text, at least one.
fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(path, &error))?;
    if found.is_empty() {
        let hint = if contains(text, b"PRIVATE KEY-----") {
            " (it holds a private key: are the two paths swapped?)"
        } else {
            ""
        };
        return Err(PemError::NoCertificate { path: path.into(), hint });
    }
    Ok(found)
}

/// The first private key of a PEM text.
fn private_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if contains(text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") => {
            Err(PemError::EncryptedKey { path: path.into() })
        }
        Err(pem::Error::NoItemsFound) => {
            let hint = if contains(text, b"-----BEGIN CERTIFICATE-----") {
                " (it holds a certificate: are the two paths swapped?)"
            } else {
                ""
            };
            Err(PemError::NoKey { path: path.into(), hint })
        }
        Err(error) => Err(malformed(path, &error)),
    }
}

fn collect_roots(
    path: &Path,
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| PemError::InvalidCertificate {
            path: path.into(),
            number: index + 1,
            detail: error.to_string(),
        })?;
    }
    if roots.is_empty() {
        return Err(PemError::NoCertificate { path: path.into(), hint: "" });
    }
    Ok(roots)
}

/// A path that leads to something endless must not fill the memory.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        let message = format!("it is longer than {MAX_FILE_LEN} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

fn malformed(path: &Path, error: &pem::Error) -> PemError {
    let detail = match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the end of section {} is missing", String::from_utf8_lossy(end_marker))
        }
        pem::Error::IllegalSectionStart { .. } => "a `-----BEGIN …` line does not end in five dashes".into(),
        other => other.to_string(),
    };
    PemError::Malformed { path: path.into(), detail }
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// Largest PEM file that is read, in bytes: several times what all public roots together take.
const MAX_FILE_LEN: u64 = 4 * 1024 * 1024;

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests;
