//! Keys, each bound to one algorithm.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, DecodingKey};

/// The signature algorithms that are accepted (RFC 7518 §3.1, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// HMAC with SHA-256: one secret signs and checks.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2,048 bits and up.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl KeyAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 4] = [Self::Hs256, Self::Rs256, Self::Es256, Self::EdDsa];

    /// Its name in `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// By its name in `alg`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn jwt(self) -> Algorithm {
        match self {
            Self::Hs256 => Algorithm::HS256,
            Self::Rs256 => Algorithm::RS256,
            Self::Es256 => Algorithm::ES256,
            Self::EdDsa => Algorithm::EdDSA,
        }
    }
}

/// One key from configuration.
#[derive(Debug, Clone)]
pub struct KeyConfig {
    /// What `kid` in a token names; a key without id is tried for every token of its algorithm.
    pub id: Option<String>,
    /// The only algorithm that this key checks.
    pub algorithm: KeyAlgorithm,
    /// Where the key is.
    pub source: KeySource,
}

/// Where a key is.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// Here: for HS256.
    Secret(Secret),
    /// In a file, a line end after it not counted: for HS256.
    SecretFile(PathBuf),
    /// In a PEM file (`-----BEGIN PUBLIC KEY-----`): for the others.
    PublicKeyFile(PathBuf),
}

/// Bytes that never show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Reads a file, without the line end that editors put there.
    ///
    /// # Errors
    /// When it cannot be read or is no file for a secret.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let mut bytes = read_bounded(path)?;
        while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            bytes.pop();
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// The shortest HS256 secret: as long as the hash, RFC 7518 §3.2.
pub const MIN_SECRET_BYTES: usize = 32;

/// Why a key cannot be used. For the operator; each text is whole and holds no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file is missing, forbidden or too large.
    #[error("cannot read {}: {cause}; check the path and that this user may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A secret that can be guessed.
    #[error("the HS256 secret{} has {bytes} bytes, at least {MIN_SECRET_BYTES} are needed: make one with `openssl rand -base64 48`", place(path.as_deref()))]
    SecretTooShort {
        /// Its file, if it came from one.
        path: Option<PathBuf>,
        /// Its length.
        bytes: usize,
    },
    /// Something else than a public key of that algorithm.
    #[error("{} does not hold a public key for {}: {detail}", path.display(), algorithm.name())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// What it was to hold.
        algorithm: KeyAlgorithm,
        /// What is wrong.
        detail: String,
    },
    /// A secret where a public key belongs, or the other way round.
    #[error("a key for {} needs {needs}", algorithm.name())]
    WrongSource {
        /// The key's algorithm.
        algorithm: KeyAlgorithm,
        /// What it needs.
        needs: &'static str,
    },
    /// Not a JWKS, or one that holds a broken key.
    #[error("{} is not a usable JWKS: {detail}", path.display())]
    BadJwks {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

fn place(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" in {}", path.display()))
}

/// A key that is ready to check signatures of one algorithm.
pub(super) struct Key {
    id: Option<String>,
    algorithm: KeyAlgorithm,
    decoding: DecodingKey,
}

impl Key {
    pub(super) fn new(id: Option<String>, algorithm: KeyAlgorithm, decoding: DecodingKey) -> Self {
        Self { id, algorithm, decoding }
    }

    pub(super) fn load(config: &KeyConfig) -> Result<Self, KeyError> {
        let algorithm = config.algorithm;
        let decoding = match (&config.source, algorithm) {
            (KeySource::Secret(secret), KeyAlgorithm::Hs256) => hmac(secret, None)?,
            (KeySource::SecretFile(path), KeyAlgorithm::Hs256) => hmac(&Secret::read(path)?, Some(path))?,
            (KeySource::PublicKeyFile(_), KeyAlgorithm::Hs256) => {
                return Err(KeyError::WrongSource { algorithm, needs: "`secret_file` (or `secret`)" });
            }
            (KeySource::PublicKeyFile(path), _) => public(path, algorithm)?,
            (KeySource::Secret(_) | KeySource::SecretFile(_), _) => {
                return Err(KeyError::WrongSource { algorithm, needs: "`public_key_file`" });
            }
        };
        Ok(Self { id: config.id.clone(), algorithm, decoding })
    }

    /// A key's own algorithm decides, never the token's: that is what makes RS256 keys useless as HS256 secrets.
    pub(super) fn fits(&self, algorithm: KeyAlgorithm, kid: Option<&str>) -> bool {
        let named = match (kid, self.id.as_deref()) {
            (Some(kid), Some(id)) => kid == id,
            _ => true,
        };
        self.algorithm == algorithm && named
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, message, &self.decoding, self.algorithm.jwt())
            .unwrap_or(false)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn hmac(secret: &Secret, path: Option<&Path>) -> Result<DecodingKey, KeyError> {
    let bytes = secret.expose();
    if bytes.len() < MIN_SECRET_BYTES {
        return Err(KeyError::SecretTooShort { path: path.map(Path::to_owned), bytes: bytes.len() });
    }
    Ok(DecodingKey::from_secret(bytes))
}

fn public(path: &Path, algorithm: KeyAlgorithm) -> Result<DecodingKey, KeyError> {
    let wrong =
        |detail: &str| KeyError::WrongKey { path: path.to_owned(), algorithm, detail: detail.to_owned() };
    let bytes = read_bounded(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not a PEM file"))?;
    if text.contains("PRIVATE KEY-----") {
        return Err(wrong("it holds a private key; `openssl pkey -in FILE -pubout` gives the public one"));
    }
    if !text.contains("PUBLIC KEY-----") {
        return Err(wrong("it needs a section `-----BEGIN PUBLIC KEY-----`"));
    }
    let decoding = match algorithm {
        KeyAlgorithm::Rs256 => DecodingKey::from_rsa_pem(&bytes),
        KeyAlgorithm::Es256 => DecodingKey::from_ec_pem(&bytes),
        KeyAlgorithm::EdDsa | KeyAlgorithm::Hs256 => DecodingKey::from_ed_pem(&bytes),
    }
    .map_err(|_| wrong("the key is of another kind, or damaged"))?;
    let length = decoding.try_get_as_bytes().map_or(0, <[u8]>::len);
    let (fits, expected) = match algorithm {
        KeyAlgorithm::Rs256 => (length >= RSA_2048_DER_BYTES, "RSA keys need at least 2,048 bits"),
        KeyAlgorithm::Es256 => (length == P256_POINT_BYTES, "the curve must be P-256 (prime256v1)"),
        KeyAlgorithm::EdDsa | KeyAlgorithm::Hs256 => (length == ED25519_BYTES, "the curve must be Ed25519"),
    };
    if fits { Ok(decoding) } else { Err(wrong(expected)) }
}

/// Reads a file that should be small.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, KeyError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
        Ok(bytes)
    };
    read().map_err(|cause| KeyError::Unreadable { path: path.to_owned(), cause })
}

/// The modulus alone has 256 bytes; exponent and ASN.1 framing take the rest.
const RSA_2048_DER_BYTES: usize = 266;
/// Uncompressed: a tag and two coordinates.
pub(super) const P256_POINT_BYTES: usize = 65;
pub(super) const ED25519_BYTES: usize = 32;
const MAX_FILE_BYTES: u64 = 1 << 20;
