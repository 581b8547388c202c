//! The certificates that a node serves, replaceable while it runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::certificate::LoadedCertificate;
#[cfg(feature = "dev")]
use crate::dev::{DevCertificates, DevError};
use crate::hash::CertificateHash;
use crate::pem::{CertificateFiles, Fingerprint, PemError, Snapshot};

/// Certificates by name, with a default, swapped as a whole.
///
/// A handshake takes the certificates as they are at its start; connections that exist never notice a swap.
/// Handshakes never wait for files: a reload reads and checks everything first. What cannot be used is not
/// put in place, so that a bad file costs an error message, not the node.
///
/// Selection by SNI: exact name, then wildcard (one label, RFC 6125 §6.4.3), then the first certificate of
/// the list, which also serves clients that send no name. Of certificates for the same name the first wins.
pub struct CertStore {
    serving: RwLock<Serving>,
    // Also makes reloads take turns. Never locked by a handshake.
    source: Mutex<Source>,
}

impl CertStore {
    /// Serves certificates from files; the first is the default.
    ///
    /// # Errors
    /// When the list is empty or one of them cannot be used.
    pub fn from_files(files: Vec<CertificateFiles>, now: SystemTime) -> Result<Self, StoreError> {
        let mut source = FileSource { files, attempted: Vec::new(), retry_at: None };
        let serving = Serving::new(&source.load(now)?);
        Ok(Self { serving: RwLock::new(serving), source: Mutex::new(Source::Files(source)) })
    }

    /// Serves one certificate for ever.
    pub fn fixed(certificate: &LoadedCertificate) -> Self {
        let serving = Serving::new(std::slice::from_ref(certificate));
        Self { serving: RwLock::new(serving), source: Mutex::new(Source::Fixed) }
    }

    /// Serves a development leaf and keeps it fresh.
    #[cfg(feature = "dev")]
    pub fn from_dev(dev: DevCertificates) -> Self {
        let serving = Serving::new(std::slice::from_ref(dev.leaf()));
        Self { serving: RwLock::new(serving), source: Mutex::new(Source::Development(Box::new(dev))) }
    }

    /// What a driver calls every few seconds: reloads files that changed, renews a development leaf that is due.
    ///
    /// True if new handshakes now get other certificates. Reads small files, so not on a thread that moves
    /// packets. A set of files that was refused is not tried again before it changes: one error per mistake.
    ///
    /// # Errors
    /// When what is there cannot be used; the old certificates stay.
    pub fn refresh(&self, now: SystemTime) -> Result<bool, StoreError> {
        if self.needs_reload(now) { self.reload(now).map(|()| true) } else { self.renew_if_due(now) }
    }

    /// Whether files changed since they were last tried, by content. Always false for development certificates.
    pub fn needs_reload(&self, now: SystemTime) -> bool {
        match &*self.lock_source() {
            Source::Files(files) => files.changed(now),
            Source::Fixed => false,
            #[cfg(feature = "dev")]
            Source::Development(_) => false,
        }
    }

    /// Loads all files again, changed or not (an operator's request). Development certificates are renewed if due.
    ///
    /// # Errors
    /// When one of them cannot be used; all the old certificates stay.
    pub fn reload(&self, now: SystemTime) -> Result<(), StoreError> {
        let mut source = self.lock_source();
        match &mut *source {
            Source::Files(files) => self.serve(Serving::new(&files.load(now)?)),
            Source::Fixed => {}
            #[cfg(feature = "dev")]
            Source::Development(dev) => {
                self.renew(dev, now)?;
            }
        }
        Ok(())
    }

    /// Issues a new development leaf when the current one nears its end; true if it did. Nothing to do for files.
    ///
    /// # Errors
    /// When the new leaf cannot be issued or stored; the old one stays.
    #[cfg_attr(not(feature = "dev"), expect(unused_variables, reason = "nothing is issued then"))]
    pub fn renew_if_due(&self, now: SystemTime) -> Result<bool, StoreError> {
        match &mut *self.lock_source() {
            Source::Files(_) | Source::Fixed => Ok(false),
            #[cfg(feature = "dev")]
            Source::Development(dev) => self.renew(dev, now),
        }
    }

    /// SHA-256 of the default leaf, as served to handshakes that begin now.
    pub fn hash(&self) -> CertificateHash {
        self.read_serving().hash
    }

    /// When the first of the served leaves expires.
    pub fn expires_at(&self) -> SystemTime {
        self.read_serving().expires_at
    }

    /// The certificate for a server name; the default one without a name or for a name of nobody's.
    pub fn select(&self, server_name: Option<&str>) -> Arc<CertifiedKey> {
        self.read_serving().select(server_name)
    }

    #[cfg(feature = "dev")]
    fn renew(&self, dev: &mut DevCertificates, now: SystemTime) -> Result<bool, StoreError> {
        let renewed = dev.renew_if_due(now)?;
        if renewed {
            self.serve(Serving::new(std::slice::from_ref(dev.leaf())));
        }
        Ok(renewed)
    }

    fn serve(&self, serving: Serving) {
        // The old one is dropped after the lock is released.
        let _old =
            std::mem::replace(&mut *self.serving.write().unwrap_or_else(PoisonError::into_inner), serving);
    }

    // A poisoned lock is no reason to stop: both values are only ever replaced whole.
    fn read_serving(&self) -> std::sync::RwLockReadGuard<'_, Serving> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for CertStore {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.select(client_hello.server_name()))
    }
}

/// Towards other nodes: the first certificate, whoever asks.
impl ResolvesClientCert for CertStore {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.select(None))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serving = self.read_serving();
        f.debug_struct("CertStore")
            .field("hash", &serving.hash)
            .field("expires_at", &serving.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why certificates could not be loaded, reloaded or renewed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A list without entries.
    #[error("no certificate configured: name at least one certificate file with its key file")]
    NoCertificates,
    /// A file cannot be used.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A development certificate could not be renewed.
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Dev(#[from] DevError),
}

/// Where the next certificates come from.
enum Source {
    Files(FileSource),
    /// Nowhere.
    Fixed,
    #[cfg(feature = "dev")]
    Development(Box<DevCertificates>),
}

struct FileSource {
    files: Vec<CertificateFiles>,
    /// What was tried last, whether it could be used or not.
    attempted: Vec<Fingerprint>,
    /// Set when time alone can make the refused files usable.
    retry_at: Option<SystemTime>,
}

impl FileSource {
    fn changed(&self, now: SystemTime) -> bool {
        self.retry_at.is_some_and(|at| now >= at)
            || self
                .files
                .iter()
                .map(|files| Snapshot::read(files).fingerprint())
                .ne(self.attempted.iter().copied())
    }

    fn load(&mut self, now: SystemTime) -> Result<Vec<LoadedCertificate>, StoreError> {
        if self.files.is_empty() {
            return Err(StoreError::NoCertificates);
        }
        let snapshots: Vec<_> = self.files.iter().map(Snapshot::read).collect();
        self.attempted = snapshots.iter().map(Snapshot::fingerprint).collect();
        let loaded = snapshots.into_iter().map(|snapshot| snapshot.parse(now)).collect::<Result<Vec<_>, _>>();
        self.retry_at = match &loaded {
            Err(PemError::NotYetValid { not_before, .. }) => Some(*not_before),
            _ => None,
        };
        Ok(loaded?)
    }
}

/// One consistent set of certificates.
struct Serving {
    default: Arc<CertifiedKey>,
    by_name: BTreeMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    by_parent: BTreeMap<String, Arc<CertifiedKey>>,
    hash: CertificateHash,
    expires_at: SystemTime,
}

impl Serving {
    fn new(certificates: &[LoadedCertificate]) -> Self {
        let first = certificates.first().expect("sources load at least one certificate");
        let mut serving = Self {
            default: Arc::clone(first.certified_key()),
            by_name: BTreeMap::new(),
            by_parent: BTreeMap::new(),
            hash: first.hash(),
            expires_at: first.not_after(),
        };
        for certificate in certificates {
            serving.expires_at = serving.expires_at.min(certificate.not_after());
            for name in &certificate.names().dns {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut serving.by_parent, parent),
                    None => (&mut serving.by_name, name.as_str()),
                };
                map.entry(key.into()).or_insert_with(|| Arc::clone(certificate.certified_key()));
            }
        }
        serving
    }

    fn select(&self, server_name: Option<&str>) -> Arc<CertifiedKey> {
        let found = server_name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| self.by_parent.get(name.split_once('.')?.1))
        });
        Arc::clone(found.unwrap_or(&self.default))
    }
}

#[cfg(test)]
#[cfg(feature = "dev")]
mod tests;
