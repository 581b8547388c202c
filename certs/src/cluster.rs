//! A CA for the nodes of a cluster, and certificates for them: what `tidegate certs` does. Whoever runs a CA already can
//! issue the same with it: names of nodes as DNS names, for servers and clients both.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::certificate::{Leaf, LoadedCertificate, Names, format_time};
use crate::dev::files::{Access, certificate_pem, create_directory, lock, write_file};
use crate::dev::{DevError, params};
use crate::hash::sha256;
use crate::pem::{CertificateFiles, PemError, load_certificate, load_roots, roots_from_der};

/// A CA that signs the certificates of a cluster's nodes. Its key is needed for that alone: no node has it.
pub struct ClusterAuthority {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterAuthority {
    /// A new CA for ten years, in `directory` as `ca.pem` (for every node) and `ca-key.pem` (for whoever issues).
    ///
    /// # Errors
    /// When there is one already, or the directory cannot be written.
    pub fn create(directory: &Path, now: SystemTime) -> Result<Self, ClusterError> {
        create_directory(directory)?;
        let _turn = lock(directory)?;
        let (certificate, key) = (directory.join(CA_CERTIFICATE), directory.join(CA_KEY));
        if let Some(path) = [&certificate, &key].into_iter().find(|path| path.exists()) {
            return Err(ClusterError::Exists { path: path.clone() });
        }
        let (authority, key_pem) = Self::generate(now)?;
        write_file(&key, &key_pem, Access::Owner)?;
        write_file(&certificate, &authority.ca_pem(), Access::Everyone)?;
        Ok(authority)
    }

    /// A new CA that lives in memory only.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn ephemeral(now: SystemTime) -> Result<Self, ClusterError> {
        Ok(Self::generate(now)?.0)
    }

    /// The CA that [`ClusterAuthority::create`] made.
    ///
    /// # Errors
    /// When its files are missing or damaged, or its time is over.
    pub fn load(directory: &Path, now: SystemTime) -> Result<Self, ClusterError> {
        let files =
            CertificateFiles { certificate: directory.join(CA_CERTIFICATE), key: directory.join(CA_KEY) };
        if !files.certificate.exists() {
            return Err(ClusterError::NoAuthority { directory: directory.into() });
        }
        let loaded = load_certificate(&files, now)?;
        // Also refuses what is a certificate but cannot be a root.
        load_roots(&files.certificate)?;
        let key = fs::read_to_string(&files.key)
            .map_err(|cause| PemError::Unreadable { path: files.key.clone(), cause })?;
        let key = KeyPair::from_pem(&key).map_err(|error| PemError::UnsupportedKey {
            path: files.key.clone(),
            detail: error.to_string(),
        })?;
        Self::new(loaded.leaf_der().clone(), key)
    }

    /// A certificate for the node `node`, good for `lifetime` or as long as the CA, to dial and to be dialled. `hosts`:
    /// further DNS names and addresses, for whoever checks those.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn issue(
        &self,
        node: &str,
        hosts: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<NodeCertificate, ClusterError> {
        let mut names = Names::default();
        let invalid = |name: &str| ClusterError::InvalidName { name: name.to_owned() };
        // An address is a name of a place; a wildcard is everybody's.
        if !names.insert(node) || names.dns.is_empty() || node.starts_with("*.") {
            return Err(invalid(node));
        }
        for host in hosts {
            if !names.insert(host) {
                return Err(invalid(host));
            }
        }
        let left = self.not_after.duration_since(now).unwrap_or_default();
        if left.is_zero() {
            return Err(ClusterError::Expired { at: format_time(self.not_after) });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(node, now, lifetime.min(left));
        for name in &names.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(names.ip.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();

        let refused = |detail: String| ClusterError::Issue { detail };
        let leaf = Leaf::parse(&certificate).map_err(refused)?;
        let key_pem = key.serialize_pem();
        let signing_key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| refused(error.to_string()))
            .and_then(|der| any_ecdsa_type(&der).map_err(|error| refused(error.to_string())))?;
        let certified = CertifiedKey::new(vec![certificate], signing_key);
        let loaded = LoadedCertificate::new(Arc::new(certified), leaf);
        Ok(NodeCertificate { node: node.to_owned(), loaded, key_pem })
    }

    /// What nodes trust.
    ///
    /// # Errors
    /// None with a CA of our own making.
    pub fn roots(&self) -> Result<RootCertStore, PemError> {
        roots_from_der([self.certificate.clone()])
    }

    /// Its certificate as PEM text.
    pub fn ca_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// Last moment at which what it signed is valid.
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn generate(now: SystemTime) -> Result<(Self, String), ClusterError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key_pem = key.serialize_pem();
        // A name of its own: otherwise TLS would take this CA for another one, and complain about the signature.
        let number: String =
            sha256(key.public_key_pem().as_bytes())[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut params = params(&format!("Tidegate cluster CA {number}"), now, CA_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        Ok((Self::new(certificate, key)?, key_pem))
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, ClusterError> {
        let not_after = Leaf::parse(&certificate).map_err(|detail| ClusterError::Issue { detail })?.not_after;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, not_after, issuer })
    }
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A node's certificate and its key.
pub struct NodeCertificate {
    node: String,
    loaded: LoadedCertificate,
    key_pem: String,
}

impl NodeCertificate {
    /// As it is served.
    pub const fn certificate(&self) -> &LoadedCertificate {
        &self.loaded
    }

    /// Writes `<node>.pem` and `<node>-key.pem`, in place of older ones; the key for this user alone.
    ///
    /// # Errors
    /// When the directory cannot be written, or the node has the name of the CA's files.
    pub fn write(&self, directory: &Path) -> Result<CertificateFiles, ClusterError> {
        let files = CertificateFiles {
            certificate: directory.join(format!("{}.pem", self.node)),
            key: directory.join(format!("{}-key.pem", self.node)),
        };
        if RESERVED.iter().any(|reserved| self.node.eq_ignore_ascii_case(reserved)) {
            return Err(ClusterError::InvalidName { name: self.node.clone() });
        }
        create_directory(directory)?;
        let _turn = lock(directory)?;
        write_file(&files.key, &self.key_pem, Access::Owner)?;
        write_file(&files.certificate, &certificate_pem(self.loaded.leaf_der()), Access::Everyone)?;
        Ok(files)
    }
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate").field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

/// Why a cluster's certificates could not be made. Each text is whole: causes are in it, not behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// There is a CA already, which nodes may trust.
    #[error("{} is there already: nodes may trust it; choose another directory, or remove it first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no CA yet.
    #[error("no cluster CA in {}: make one with `tidegate certs init`", directory.display())]
    NoAuthority {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The CA cannot sign any more.
    #[error(
        "the cluster CA has expired ({at}): make another one, and give it to all nodes before it is used"
    )]
    Expired {
        /// When.
        at: String,
    },
    /// A text that no certificate can be made for.
    #[error(
        "`{name}` cannot be the name in a node's certificate: nodes have DNS names (letters, digits, `-`, `.`), hosts DNS names or addresses"
    )]
    InvalidName {
        /// The text.
        name: String,
    },
    /// The CA's files cannot be used.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A file could not be written.
    #[error("cannot write {}: {cause}; choose a directory that this user may write", path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The cryptographic library refused.
    #[error("cannot issue a certificate: {detail}")]
    Issue {
        /// What it said.
        detail: String,
    },
}

impl From<rcgen::Error> for ClusterError {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue { detail: error.to_string() }
    }
}

impl From<DevError> for ClusterError {
    /// Of the files that both kinds of CA share.
    fn from(error: DevError) -> Self {
        match error {
            DevError::Unwritable { path, cause } => Self::Unwritable { path, cause },
            other => Self::Issue { detail: other.to_string() },
        }
    }
}

/// Ten years: to exchange a CA is work on every node.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
/// Nodes whose files would be the CA's; there are file systems that do not tell cases apart.
const RESERVED: [&str; 2] = ["ca", "ca-key"];

#[cfg(test)]
mod tests;
