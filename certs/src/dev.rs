//! Certificates for development: a CA of our own and a leaf short-lived enough for browsers to accept by hash.
//!
//! WebTransport's `serverCertificateHashes` takes a certificate without any CA if it is ECDSA P-256 and valid
//! for at most 14 days (W3C WebTransport, "custom certificate requirements"). The leaf stays below that and is
//! issued again well before its end; whoever prefers to trust the CA can do that instead.

pub(crate) mod files;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use crate::certificate::{Leaf, LoadedCertificate, Names, rustls_time, since_epoch};
use crate::hash::CertificateHash;
use crate::pem::{CertificateFiles, PemError, load_certificate, load_roots, roots_from_der};
use crate::tls::crypto_provider;

use self::files::{Access, certificate_pem, create_directory, lock, restrict_to_owner, write_file};

/// A development CA and the leaf it signed last.
pub struct DevCertificates {
    directory: Option<PathBuf>,
    names: Names,
    authority: Authority,
    leaf: LoadedCertificate,
}

impl DevCertificates {
    /// Takes CA and leaf from `directory`, creating or renewing what is missing, due, or made for other names.
    ///
    /// The leaf is for `localhost`, `127.0.0.1`, `::1` and `names` (DNS names, wildcards, addresses). The
    /// directory is created for this user alone and key files are never readable by others. Processes that
    /// share a directory take turns.
    ///
    /// # Errors
    /// When a name is neither address nor DNS name, a file cannot be read or written, or the stored CA is damaged.
    pub fn load_or_create(directory: &Path, names: &[String], now: SystemTime) -> Result<Self, DevError> {
        let names = all_names(names)?;
        Self::load_or_create_for(directory, names, now)
    }

    /// CA and leaf that live in memory only.
    ///
    /// # Errors
    /// When a name is neither address nor DNS name.
    pub fn ephemeral(names: &[String], now: SystemTime) -> Result<Self, DevError> {
        let names = all_names(names)?;
        let authority = Authority::create(now)?;
        let (leaf, _) = authority.issue(&names, now)?;
        Ok(Self { directory: None, names, authority, leaf })
    }

    /// Issues a new leaf (and a new CA, should that end first) if fewer than four days are left.
    ///
    /// True if [`DevCertificates::leaf`] changed. On failure the old leaf stays.
    ///
    /// # Errors
    /// As [`DevCertificates::load_or_create`].
    pub fn renew_if_due(&mut self, now: SystemTime) -> Result<bool, DevError> {
        if self.authority.accepts(&self.leaf, &self.names, now) {
            return Ok(false);
        }
        if let Some(directory) = &self.directory {
            *self = Self::load_or_create_for(directory, self.names.clone(), now)?;
        } else {
            let renewed =
                if self.authority.outlives_a_leaf(now) { None } else { Some(Authority::create(now)?) };
            let authority = renewed.as_ref().unwrap_or(&self.authority);
            (self.leaf, _) = authority.issue(&self.names, now)?;
            self.authority = renewed.unwrap_or_else(|| self.authority.clone());
        }
        Ok(true)
    }

    /// The leaf with its key.
    pub const fn leaf(&self) -> &LoadedCertificate {
        &self.leaf
    }

    /// SHA-256 of the leaf, for `serverCertificateHashes`.
    pub const fn hash(&self) -> CertificateHash {
        self.leaf.hash()
    }

    /// The CA's certificate.
    pub fn ca_der(&self) -> CertificateDer<'static> {
        self.authority.certificate.clone()
    }

    /// The CA's certificate as a file that other programs can be told to trust (`curl --cacert`); none for
    /// certificates that live in memory only.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(CA_CERTIFICATE))
    }

    fn load_or_create_for(directory: &Path, names: Names, now: SystemTime) -> Result<Self, DevError> {
        create_directory(directory)?;
        let _turn = lock(directory)?;
        let stored = Authority::load(directory, now)?;
        let authority = match stored {
            Some(authority) => authority,
            None => Authority::create_in(directory, now)?,
        };
        let files =
            CertificateFiles { certificate: directory.join(LEAF_CERTIFICATE), key: directory.join(LEAF_KEY) };
        // Whatever is wrong with a stored leaf (missing, half written, expired), a new one is the remedy.
        let leaf = match load_certificate(&files, now) {
            Ok(leaf) if authority.accepts(&leaf, &names, now) => {
                restrict_to_owner(&files.key)?;
                leaf
            }
            _ => {
                let (leaf, key) = authority.issue(&names, now)?;
                write_file(&files.key, &key.serialize_pem(), Access::Owner)?;
                write_file(&files.certificate, &certificate_pem(leaf.leaf_der()), Access::Everyone)?;
                leaf
            }
        };
        Ok(Self { directory: Some(directory.into()), names, authority, leaf })
    }
}

impl fmt::Debug for DevCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevCertificates")
            .field("directory", &self.directory)
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// Why development certificates could not be had. Each text is whole: causes are in it, not behind it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevError {
    /// A text that no certificate can be made for.
    #[error("`{name}` is neither an IP address nor a DNS name: a certificate cannot be issued for it")]
    InvalidName {
        /// The text.
        name: String,
    },
    /// A file or directory could not be made or changed.
    #[error(
        "cannot write {}: {cause}; choose a directory that this user may write, or keep certificates in memory",
        path.display()
    )]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The stored CA cannot be used, and silently making another would break whoever trusts it.
    #[error("the development CA cannot be used: {cause}; delete {} to start with a new one", directory.display())]
    DamagedAuthority {
        /// Where it is kept.
        directory: PathBuf,
        /// What is wrong with it.
        cause: PemError,
    },
    /// The cryptographic library refused.
    #[error("cannot issue a certificate: {detail}")]
    Issue {
        /// What it said.
        detail: String,
    },
}

impl From<rcgen::Error> for DevError {
    fn from(error: rcgen::Error) -> Self {
        Self::Issue { detail: error.to_string() }
    }
}

/// The development CA. Shared, so that a renewal can build the next state before it gives up the old one.
#[derive(Clone)]
struct Authority {
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl Authority {
    fn create(now: SystemTime) -> Result<Self, DevError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Self::sign_itself(key, now)
    }

    /// The key goes first: a certificate without its key is damage, a key without certificate a fresh start.
    fn create_in(directory: &Path, now: SystemTime) -> Result<Self, DevError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate_path = directory.join(CA_CERTIFICATE);
        match fs::remove_file(&certificate_path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(DevError::Unwritable { path: certificate_path, cause });
            }
            _ => {}
        }
        write_file(&directory.join(CA_KEY), &key.serialize_pem(), Access::Owner)?;
        let authority = Self::sign_itself(key, now)?;
        write_file(&certificate_path, &certificate_pem(&authority.certificate), Access::Everyone)?;
        Ok(authority)
    }

    fn sign_itself(key: KeyPair, now: SystemTime) -> Result<Self, DevError> {
        let mut params = params("Tidegate development CA", now, CA_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        Self::new(certificate, key)
    }

    /// The stored CA, unless there is none or its time runs out.
    fn load(directory: &Path, now: SystemTime) -> Result<Option<Self>, DevError> {
        let files =
            CertificateFiles { certificate: directory.join(CA_CERTIFICATE), key: directory.join(CA_KEY) };
        let damaged = |cause| DevError::DamagedAuthority { directory: directory.into(), cause };
        let loaded = match load_certificate(&files, now) {
            Ok(loaded) => loaded,
            Err(PemError::Expired { .. }) => return Ok(None),
            Err(PemError::Unreadable { path, cause })
                if path == files.certificate && cause.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Err(cause) => return Err(damaged(cause)),
        };
        // Also refuses what is a certificate but cannot be a root.
        load_roots(&files.certificate).map_err(damaged)?;
        restrict_to_owner(&files.key)?;
        let key_text = fs::read_to_string(&files.key)
            .map_err(|cause| damaged(PemError::Unreadable { path: files.key.clone(), cause }))?;
        let key = KeyPair::from_pem(&key_text).map_err(|error| {
            damaged(PemError::UnsupportedKey { path: files.key.clone(), detail: error.to_string() })
        })?;
        let authority = Self::new(loaded.leaf_der().clone(), key)?;
        Ok(authority.outlives_a_leaf(now).then_some(authority))
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, DevError> {
        let not_after = Leaf::parse(&certificate).map_err(|detail| DevError::Issue { detail })?.not_after;
        let issuer = Arc::new(Issuer::from_ca_cert_der(&certificate, key)?);
        Ok(Self { certificate, not_after, issuer })
    }

    fn issue(&self, names: &Names, now: SystemTime) -> Result<(LoadedCertificate, KeyPair), DevError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params("Tidegate development", now, LEAF_LIFETIME);
        for name in &names.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(names.ip.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();

        let refused = |detail: String| DevError::Issue { detail };
        let leaf = Leaf::parse(&certificate).map_err(refused)?;
        let signing_key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())
            .map_err(|error| refused(error.to_string()))
            .and_then(|der| any_ecdsa_type(&der).map_err(|error| refused(error.to_string())))?;
        // The leaf alone: who trusts the CA has it, and each byte less is a byte less in every handshake.
        let certified = CertifiedKey::new(vec![certificate], signing_key);
        Ok((LoadedCertificate::new(Arc::new(certified), leaf), key))
    }

    /// Whether a browser and a client that trusts this CA would take the leaf, now and for four days more.
    fn accepts(&self, leaf: &LoadedCertificate, names: &Names, now: SystemTime) -> bool {
        let lifetime = leaf.not_after().duration_since(leaf.not_before()).unwrap_or(Duration::MAX);
        if leaf.names() != names || leaf.not_before() > now || lifetime > LEAF_LIFETIME {
            return false;
        }
        let Ok(parsed) = ParsedCertificate::try_from(leaf.leaf_der()) else {
            return false;
        };
        let Ok(roots) = roots_from_der([self.certificate.clone()]) else {
            return false;
        };
        let algorithms = crypto_provider().signature_verification_algorithms.all;
        let then = rustls_time(now + RENEW_BEFORE);
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], then, algorithms).is_ok()
    }

    fn outlives_a_leaf(&self, now: SystemTime) -> bool {
        self.not_after >= now + LEAF_LIFETIME
    }
}

pub(crate) fn params(common_name: &str, now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Whole seconds, as certificates have them; in the past, for clients whose clock is behind.
    let start = Duration::from_secs(since_epoch(now).saturating_sub(BACKDATED).as_secs());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + start;
    params.not_after = params.not_before + lifetime;
    params
}

fn all_names(extra: &[String]) -> Result<Names, DevError> {
    let mut names = Names::default();
    for name in ["localhost", "127.0.0.1", "::1"].into_iter().chain(extra.iter().map(String::as_str)) {
        if !names.insert(name) {
            return Err(DevError::InvalidName { name: name.into() });
        }
    }
    Ok(names)
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// From first to last moment. Browsers refuse more than 14 days; the day between forgives clocks and rounding.
const LEAF_LIFETIME: Duration = Duration::from_secs(13 * DAY.as_secs());

/// A leaf with less than this left is issued again.
const RENEW_BEFORE: Duration = Duration::from_secs(4 * DAY.as_secs());

/// Long enough that trusting it by hand is rare work.
const CA_LIFETIME: Duration = Duration::from_secs(730 * DAY.as_secs());

/// How far before `now` validity begins.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const LEAF_CERTIFICATE: &str = "leaf.pem";
const LEAF_KEY: &str = "leaf-key.pem";

#[cfg(test)]
mod tests;
