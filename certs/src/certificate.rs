//! A certificate chain with its private key, checked, and what the node needs to know about it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(feature = "dev")]
use rustls::pki_types::DnsName;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate};

use crate::hash::CertificateHash;

/// A certificate chain, its private key, and the leaf's names and dates.
///
/// The key belongs to the leaf: whoever builds one has checked it.
#[derive(Clone)]
pub struct LoadedCertificate {
    certified: Arc<CertifiedKey>,
    leaf: Leaf,
}

impl LoadedCertificate {
    /// `certified` must hold at least the certificate that `leaf` was read from.
    pub(crate) const fn new(certified: Arc<CertifiedKey>, leaf: Leaf) -> Self {
        Self { certified, leaf }
    }

    /// Chain and key as rustls takes them.
    pub const fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// SHA-256 of the leaf.
    pub const fn hash(&self) -> CertificateHash {
        self.leaf.hash
    }

    /// The leaf's subject alternative names.
    pub const fn names(&self) -> &Names {
        &self.leaf.names
    }

    /// First moment at which the leaf is valid.
    pub const fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// Last moment at which the leaf is valid.
    pub const fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The leaf in DER.
    #[cfg(feature = "dev")]
    pub(crate) fn leaf_der(&self) -> &CertificateDer<'static> {
        self.certified.cert.first().expect("a loaded certificate has a leaf")
    }
}

impl fmt::Debug for LoadedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedCertificate").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// Names that a certificate is valid for. DNS names are in lower case and may begin with `*.`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names.
    pub dns: BTreeSet<String>,
    /// Addresses.
    pub ip: BTreeSet<IpAddr>,
}

impl Names {
    /// Adds an address, a DNS name or a wildcard; false if the text is none of them.
    #[cfg(feature = "dev")]
    pub(crate) fn insert(&mut self, name: &str) -> bool {
        if let Ok(address) = name.parse::<IpAddr>() {
            self.ip.insert(address);
            return true;
        }
        let valid = DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok();
        if valid {
            self.dns.insert(name.to_ascii_lowercase());
        }
        valid
    }
}

/// What is read from a leaf certificate.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) hash: CertificateHash,
    pub(crate) names: Names,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl Leaf {
    /// Reads a certificate; the error is a text for people.
    pub(crate) fn parse(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err(format!("{} bytes follow the certificate", rest.len()));
        }
        let mut names = Names::default();
        let alternative = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(dns) => {
                    names.dns.insert(dns.to_ascii_lowercase());
                }
                GeneralName::IPAddress(bytes) => names.ip.extend(ip_address(bytes)),
                _ => {}
            }
        }
        Ok(Self {
            hash: CertificateHash::of(certificate),
            names,
            not_before: system_time(parsed.validity().not_before),
            not_after: system_time(parsed.validity().not_after),
        })
    }
}

/// The same moment in rustls's type. Moments before 1970 become 1970.
pub(crate) fn rustls_time(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(since_epoch(time))
}

/// Time since 1970; zero for moments before.
pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A moment for error messages, in UTC, to the second.
pub(crate) fn format_time(time: SystemTime) -> String {
    let seconds = since_epoch(time).as_secs();
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| ASN1Time::from_timestamp(seconds).ok())
        .map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
