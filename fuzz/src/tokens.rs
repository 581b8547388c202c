//! Tokens, as clients send them and as an app's backend signs them.

use std::sync::OnceLock;
use std::time::{Duration, Instant, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use tidegate_edge::auth::{AuthConfig, AuthError, Authenticator, KeyAlgorithm, KeyConfig, KeySource, Secret};

/// Anything that comes as a token: none is signed by us.
pub fn token(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    assert!(verify(text).is_err(), "forged: {text}");
}

/// Claims that are signed, and make sense or not.
pub fn token_claims(input: &[u8]) {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(input));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("it signs");
    match verify(&format!("{message}.{signature}")) {
        Ok(identity) => assert!(identity.subscriptions.len() <= MAX_SUBSCRIPTIONS),
        Err(error) => assert!(error != AuthError::BadSignature && error != AuthError::UnknownKey),
    }
}

fn verify(token: &str) -> Result<tidegate_protocol::grants::Identity, AuthError> {
    static CHECKS: OnceLock<(Authenticator, Instant)> = OnceLock::new();
    let (authenticator, now) = CHECKS.get_or_init(|| {
        let key = KeyConfig {
            id: None,
            algorithm: KeyAlgorithm::Hs256,
            source: KeySource::Secret(Secret::new(SECRET.to_vec())),
        };
        let config = AuthConfig {
            keys: vec![key],
            jwks_files: Vec::new(),
            issuer: None,
            audience: None,
            leeway: Duration::ZERO,
            max_token_bytes: 1 << 16,
            max_subscriptions: MAX_SUBSCRIPTIONS,
        };
        (Authenticator::new(config).expect("the secret is long enough"), Instant::now())
    });
    authenticator.verify(token, *now, UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const MAX_SUBSCRIPTIONS: usize = 4;
