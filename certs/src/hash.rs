//! SHA-256 hashes of certificates: what a browser takes as `serverCertificateHashes` and what our own
//! clients can be pinned to.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a certificate's DER form.
///
/// Shown and parsed as padded standard base64 (44 characters); 64 hexadecimal digits, with or without
/// colons (as `openssl x509 -fingerprint -sha256` prints them), are understood too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateHash([u8; HASH_LEN]);

impl CertificateHash {
    /// The hash of this certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }

    /// The 32 bytes: the `value` of an entry of `serverCertificateHashes`.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Padded standard base64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl From<[u8; 32]> for CertificateHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for CertificateHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let bytes = if digits.len() == 2 * HASH_LEN {
            decode_hex(&digits).ok_or(ParseHashError)?
        } else {
            STANDARD.decode(text).map_err(|_| ParseHashError)?
        };
        bytes.try_into().map(Self).map_err(|_| ParseHashError)
    }
}

impl fmt::Display for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateHash({self})")
    }
}

/// A text that is no SHA-256 hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 certificate hash: give 44 characters of base64 or 64 hexadecimal digits")]
pub struct ParseHashError;

/// Plain SHA-256, for hashes and for noticing that a file changed.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; HASH_LEN] {
    Sha256::digest(bytes).into()
}

fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            u8::try_from(high? * 16 + low?).ok()
        })
        .collect()
}

const HASH_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_matches_the_published_vector_and_round_trips_in_both_spellings() {
        // FIPS 180-2, appendix B.1: SHA-256("abc").
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = CertificateHash::of(&CertificateDer::from(b"abc".to_vec()));
        assert_eq!(hex.parse(), Ok(hash));
        assert_eq!(hash.to_base64(), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let colons: Vec<String> =
            hex.as_bytes().chunks(2).map(|p| String::from_utf8_lossy(p).into()).collect();
        assert_eq!(colons.join(":").to_uppercase().parse(), Ok(hash));
    }

    #[test]
    fn texts_that_are_no_hash_are_refused() {
        for text in ["", "abc", "AAAA", &"g".repeat(64), &"é".repeat(32), &"+".repeat(44)] {
            assert_eq!(text.parse::<CertificateHash>(), Err(ParseHashError), "{text}");
        }
    }
}
