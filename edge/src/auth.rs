//! Who a token says its bearer is: JWTs (RFC 7519) signed with keys from configuration or JWKS files.
//!
//! Nothing here waits or reads a clock: the driver hands in the time, and calls [`Authenticator::refresh`] every few
//! seconds. Texts of [`AuthError`] may be sent to the client: they hold nothing of the token and nothing of the keys.

mod claims;
mod jwks;
mod keys;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tidegate_protocol::frame::CloseCode;
use tidegate_protocol::frame::close::Fault;
use tidegate_protocol::grants::Identity;

use self::claims::ClaimRules;
use self::keys::Key;
use crate::key_file::KeyFile;

pub use self::keys::{KeyAlgorithm, KeyConfig, KeyError, KeySource, MIN_SECRET_BYTES, Secret};

/// What tokens are accepted.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Keys from configuration; fixed until a restart.
    pub keys: Vec<KeyConfig>,
    /// JWKS files (RFC 7517); read again by [`Authenticator::refresh`].
    pub jwks_files: Vec<PathBuf>,
    /// What `iss` must be; `None` accepts any.
    pub issuer: Option<String>,
    /// What `aud` must name; `None` accepts only tokens without `aud` (RFC 7519 §4.1.3).
    pub audience: Option<String>,
    /// How far a token may be ahead of our clock in `nbf`. `exp` is taken at its word: nothing is lost if a token
    /// ends early by the difference of two clocks, and a session would end at once otherwise.
    pub leeway: Duration,
    /// Bytes of a token.
    pub max_token_bytes: usize,
    /// Server-side subscriptions that one token may name.
    pub max_subscriptions: usize,
}

/// Checks tokens. Shared by all workers.
pub struct Authenticator {
    rules: ClaimRules,
    max_token_bytes: usize,
    configured: Vec<Arc<Key>>,
    ring: RwLock<Arc<[Arc<Key>]>>,
    // Makes refreshes take turns; never locked by a check.
    files: Mutex<Vec<JwksFile>>,
}

impl Authenticator {
    /// Reads every key file. Blocks for as long as small files take.
    ///
    /// # Errors
    /// When a file cannot be read or a key cannot be used: the first such problem.
    pub fn new(config: AuthConfig) -> Result<Self, KeyError> {
        let configured =
            config.keys.iter().map(|key| Key::load(key).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let files = config
            .jwks_files
            .iter()
            .map(|path| JwksFile::load(path, jwks::parse))
            .collect::<Result<Vec<_>, _>>()?;
        let ring = ring(&configured, &files);
        Ok(Self {
            rules: ClaimRules {
                issuer: config.issuer,
                audience: config.audience,
                leeway: config.leeway,
                max_subscriptions: config.max_subscriptions,
            },
            max_token_bytes: config.max_token_bytes,
            configured,
            ring: RwLock::new(ring),
            files: Mutex::new(files),
        })
    }

    /// Whether any token can be accepted at all.
    pub fn has_keys(&self) -> bool {
        !self.keys().is_empty()
    }

    /// Checks signature, times, issuer and audience; `now` and `wall` are the same moment.
    ///
    /// # Errors
    /// When the token is not to be believed. No input makes it panic.
    pub fn verify(&self, token: &str, now: Instant, wall: SystemTime) -> Result<Identity, AuthError> {
        if token.len() > self.max_token_bytes {
            return Err(AuthError::TooLong { bytes: token.len(), limit: self.max_token_bytes });
        }
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(AuthError::Malformed)?;
        let header: Header = decode(header).ok_or(AuthError::Malformed)?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: an extension that is critical and not understood invalidates the token.
            return Err(AuthError::Unsupported);
        }
        let algorithm = KeyAlgorithm::from_name(&header.alg).ok_or(AuthError::Unsupported)?;

        let keys = self.keys();
        let candidates: Vec<&Key> =
            keys.iter().map(Arc::as_ref).filter(|key| key.fits(algorithm, header.kid.as_deref())).collect();
        if candidates.is_empty() || candidates.len() > MAX_KEYS_TRIED {
            return Err(AuthError::UnknownKey);
        }
        if !candidates.iter().any(|key| key.verifies(message.as_bytes(), signature)) {
            return Err(AuthError::BadSignature);
        }
        let claims = decode(payload).ok_or(AuthError::Malformed)?;
        self.rules.check(&claims, now, wall.duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// Reads JWKS files again where their content changed. A broken file keeps the keys it gave before, and is reported
    /// once, not at every call. Reads small files, so not on a thread that moves packets.
    pub fn refresh(&self) -> Refresh {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refresh = Refresh::default();
        for file in files.iter_mut() {
            match file.refresh() {
                Ok(changed) => refresh.changed |= changed,
                Err(problem) => refresh.problems.push(problem),
            }
        }
        if refresh.changed {
            *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring(&self.configured, &files);
        }
        refresh
    }

    fn keys(&self) -> Arc<[Arc<Key>]> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator")
            .field("keys", &self.keys())
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// What [`Authenticator::refresh`] found.
#[derive(Debug, Default)]
pub struct Refresh {
    /// Other keys are in force now.
    pub changed: bool,
    /// Files that cannot be used; their old keys stay.
    pub problems: Vec<KeyError>,
}

/// Why a token was refused. The texts are for the client that sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// Over the limit: not even looked at.
    #[error("the token has {bytes} bytes, at most {limit} are accepted")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest accepted.
        limit: usize,
    },
    /// No JWT in compact form.
    #[error("the token is not a JWT: three parts of base64url, separated by dots, are expected")]
    Malformed,
    /// An algorithm or critical extension that is not accepted here; `none` among them.
    #[error("the token's algorithm is not accepted: sign with HS256, RS256, ES256 or EdDSA")]
    Unsupported,
    /// No key of that id and algorithm, or too many to try without an id.
    #[error("no key fits the token: check its `kid` and `alg` against the server's keys")]
    UnknownKey,
    /// Not signed by the key it names, or changed since.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token expired {} s ago: get a new one", since.as_secs())]
    Expired {
        /// For how long.
        since: Duration,
    },
    /// `nbf` is still to come.
    #[error("the token is not valid yet: its `nbf` is {} s ahead", starts_in.as_secs())]
    NotYetValid {
        /// How long to wait.
        starts_in: Duration,
    },
    /// `iss` is missing or another.
    #[error("the token's issuer (`iss`) is not the expected one")]
    WrongIssuer,
    /// `aud` does not name this service.
    #[error("the token is meant for another audience (`aud`)")]
    WrongAudience,
    /// Signed, but its claims make no sense.
    #[error("bad claims in the token: {what}")]
    BadClaims {
        /// Which claim, and what it should be.
        what: String,
    },
}

impl AuthError {
    /// What a connection ends with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Expired { .. } => CloseCode::TokenExpired,
            _ => CloseCode::Unauthorized,
        }
    }

    /// The bearer's, always.
    pub fn fault(&self) -> Fault {
        self.close_code().fault()
    }
}

/// The part of a JOSE header (RFC 7515 §4) that decides anything here. Keys in the header (`jwk`, `jku`, `x5u`) are
/// not looked at: only the operator's keys count.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

fn decode<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A key set, of which each key is somebody's.
type JwksFile = KeyFile<Key, KeyError>;

fn ring(configured: &[Arc<Key>], files: &[JwksFile]) -> Arc<[Arc<Key>]> {
    configured.iter().chain(files.iter().flat_map(JwksFile::keys)).cloned().collect()
}

/// One bad token costs at most this many signature checks.
const MAX_KEYS_TRIED: usize = 8;

#[cfg(test)]
mod tests;
