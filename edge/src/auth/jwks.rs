//! Key sets in files (RFC 7517), as identity providers publish them.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;

use super::keys::{ED25519_BYTES, Key, KeyAlgorithm, KeyError, MIN_SECRET_BYTES, P256_POINT_BYTES};

/// Keys for other purposes (encryption, other algorithms) are passed over: providers mix them in. A key that is ours
/// and broken refuses the whole set.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Arc<Key>>, KeyError> {
    let bad = |detail: String| KeyError::BadJwks { path: path.to_owned(), detail };
    let set: RawSet = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("{} at line {}", category(&error), error.line())))?;
    if set.keys.len() > MAX_KEYS {
        return Err(bad(format!("it has {} keys, at most {MAX_KEYS} are accepted", set.keys.len())));
    }
    let mut keys = Vec::new();
    for (index, raw) in set.keys.into_iter().enumerate() {
        let name =
            raw.kid.as_deref().map_or_else(|| format!("number {}", index + 1), |kid| format!("{kid:?}"));
        if let Some(algorithm) = raw.algorithm() {
            let decoding =
                raw.decoding_key(algorithm).map_err(|detail| bad(format!("key {name}: {detail}")))?;
            keys.push(Arc::new(Key::new(raw.kid, algorithm, decoding)));
        }
    }
    if keys.is_empty() {
        return Err(bad("it has no signature key for HS256, RS256, ES256 or EdDSA".to_owned()));
    }
    Ok(keys)
}

/// serde_json's own texts may quote the file.
fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Data => "not of the form {\"keys\": [{...}]}",
        _ => "not JSON",
    }
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
}

impl RawKey {
    /// The one algorithm that this key checks here; `None` where it is not for us.
    fn algorithm(&self) -> Option<KeyAlgorithm> {
        let signs = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|op| op == "verify"));
        let algorithm = match (self.kty.as_str(), self.crv.as_deref()) {
            ("oct", _) => KeyAlgorithm::Hs256,
            ("RSA", _) => KeyAlgorithm::Rs256,
            ("EC", Some("P-256")) => KeyAlgorithm::Es256,
            ("OKP", Some("Ed25519")) => KeyAlgorithm::EdDsa,
            _ => return None,
        };
        let named = self.alg.as_deref().is_none_or(|alg| alg == algorithm.name());
        (signs && named).then_some(algorithm)
    }

    fn decoding_key(&self, algorithm: KeyAlgorithm) -> Result<DecodingKey, String> {
        match algorithm {
            KeyAlgorithm::Hs256 => {
                let secret = part(self.k.as_deref(), "k")?;
                if secret.len() < MIN_SECRET_BYTES {
                    return Err(format!(
                        "the secret `k` has {} bytes, at least {MIN_SECRET_BYTES} are needed",
                        secret.len()
                    ));
                }
                Ok(DecodingKey::from_secret(&secret))
            }
            KeyAlgorithm::Rs256 => {
                let (modulus, exponent) = (part(self.n.as_deref(), "n")?, part(self.e.as_deref(), "e")?);
                let modulus: Vec<u8> = modulus.into_iter().skip_while(|byte| *byte == 0).collect();
                if modulus.len() < RSA_2048_BYTES {
                    return Err("RSA keys need at least 2,048 bits".to_owned());
                }
                Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
            }
            KeyAlgorithm::Es256 => {
                let (x, y) = (part(self.x.as_deref(), "x")?, part(self.y.as_deref(), "y")?);
                let point = [&[4], x.as_slice(), &y].concat();
                if x.len() != y.len() || point.len() != P256_POINT_BYTES {
                    return Err("`x` and `y` of P-256 have 32 bytes each".to_owned());
                }
                Ok(DecodingKey::from_ec_der(&point))
            }
            KeyAlgorithm::EdDsa => {
                let x = part(self.x.as_deref(), "x")?;
                if x.len() != ED25519_BYTES {
                    return Err("`x` of Ed25519 has 32 bytes".to_owned());
                }
                Ok(DecodingKey::from_ed_der(&x))
            }
        }
    }
}

fn part(text: Option<&str>, name: &str) -> Result<Vec<u8>, String> {
    let text = text.ok_or_else(|| format!("`{name}` is missing"))?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| format!("`{name}` is not base64url"))
}

const MAX_KEYS: usize = 64;
const RSA_2048_BYTES: usize = 256;
