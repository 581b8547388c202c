//! Tokens that are to be believed, and those that are not.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use rcgen::{KeyPair, PublicKeyData as _, RsaKeySize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_protocol::ChannelName;
use tidegate_protocol::namespace::Namespace;

use super::*;

const NOW: u64 = 1_800_000_000;

fn wall() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

#[expect(clippy::disallowed_methods, reason = "some instant to count from: its value is not looked at")]
fn instant() -> Instant {
    Instant::now()
}

fn config() -> AuthConfig {
    AuthConfig {
        keys: Vec::new(),
        jwks_files: Vec::new(),
        issuer: None,
        audience: None,
        leeway: Duration::from_secs(10),
        max_token_bytes: 8 << 10,
        max_subscriptions: 4,
    }
}

fn secret_key(id: Option<&str>, secret: &[u8]) -> KeyConfig {
    KeyConfig {
        id: id.map(str::to_owned),
        algorithm: KeyAlgorithm::Hs256,
        source: KeySource::Secret(Secret::new(secret)),
    }
}

const SECRET: &[u8] = b"a secret that only these tests use";

/// With one HS256 key, no id.
fn hs256() -> Authenticator {
    Authenticator::new(AuthConfig { keys: vec![secret_key(None, SECRET)], ..config() }).unwrap()
}

fn sign(header: &Value, claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256_token(claims: &Value) -> String {
    sign(&json!({"alg": "HS256"}), claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET))
}

fn verify(authenticator: &Authenticator, token: &str) -> Result<Identity, AuthError> {
    authenticator.verify(token, instant(), wall())
}

fn refusal(authenticator: &Authenticator, token: &str) -> AuthError {
    verify(authenticator, token).expect_err("must be refused")
}

/// A key of each asymmetric algorithm, made for these tests.
static KEYS: LazyLock<[(KeyAlgorithm, KeyPair); 3]> = LazyLock::new(|| {
    [
        (KeyAlgorithm::Rs256, KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()),
        (KeyAlgorithm::Es256, KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()),
        (KeyAlgorithm::EdDsa, KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap()),
    ]
});

fn signing_key(algorithm: KeyAlgorithm) -> EncodingKey {
    let pair = &KEYS.iter().find(|(of, _)| *of == algorithm).expect("there is one").1;
    let pem = pair.serialize_pem();
    match algorithm {
        KeyAlgorithm::Rs256 => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        KeyAlgorithm::Es256 => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
        _ => EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
    }
}

fn jwt_algorithm(algorithm: KeyAlgorithm) -> Algorithm {
    algorithm.name().parse().unwrap()
}

fn write_public_key(directory: &Path, algorithm: KeyAlgorithm) -> PathBuf {
    let pair = &KEYS.iter().find(|(of, _)| *of == algorithm).expect("there is one").1;
    let path = directory.join(format!("{}.pem", algorithm.name()));
    fs::write(&path, pair.public_key_pem()).unwrap();
    path
}

#[test]
fn claims_become_an_identity() {
    let claims = json!({
        "sub": "ann", "exp": NOW + 60, "nbf": NOW - 5, "iss": "anyone",
        "tidegate": {
            "subscribe": ["room:*"], "publish": ["room:1"], "presence": [],
            "subscriptions": ["user:ann", "news", "user:ann"],
        },
    });
    let now = instant();
    let identity = hs256().verify(&hs256_token(&claims), now, wall()).unwrap();
    assert_eq!(identity.user.as_deref(), Some("ann"));
    assert_eq!(identity.expires, Some(now + Duration::from_secs(60)));
    let rules = Namespace::default();
    let channel = |name| ChannelName::new(name).unwrap();
    assert!(identity.may_subscribe(&channel("room:7"), &rules));
    assert!(!identity.may_subscribe(&channel("other:7"), &rules));
    assert!(identity.may_publish(&channel("room:1"), &rules));
    assert!(!identity.may_publish(&channel("room:2"), &rules));
    assert_eq!(identity.subscriptions, [channel("user:ann"), channel("news")], "named twice, begun once");

    let bare = verify(&hs256(), &hs256_token(&json!({}))).unwrap();
    assert_eq!((bare.user, bare.expires), (None, None));
}

#[test]
fn each_algorithm_is_checked_with_its_own_kind_of_key() {
    let directory = TempDir::new().unwrap();
    let keys = KEYS
        .iter()
        .map(|(algorithm, _)| KeyConfig {
            id: Some(format!("key-{}", algorithm.name())),
            algorithm: *algorithm,
            source: KeySource::PublicKeyFile(write_public_key(directory.path(), *algorithm)),
        })
        .collect();
    let authenticator = Authenticator::new(AuthConfig { keys, ..config() }).unwrap();
    for (algorithm, _) in &*KEYS {
        let claims = json!({"sub": algorithm.name()});
        for header in [
            json!({"alg": algorithm.name()}),
            json!({"alg": algorithm.name(), "kid": format!("key-{}", algorithm.name()), "typ": "JWT"}),
        ] {
            let token = sign(&header, &claims, jwt_algorithm(*algorithm), &signing_key(*algorithm));
            assert_eq!(verify(&authenticator, &token).unwrap().user.as_deref(), Some(algorithm.name()));
            let mut forged = token.into_bytes();
            let last = forged.len() - 8;
            forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(refusal(&authenticator, &forged), AuthError::BadSignature, "{}", algorithm.name());
        }
        let header = json!({"alg": algorithm.name(), "kid": "another"});
        let token = sign(&header, &claims, jwt_algorithm(*algorithm), &signing_key(*algorithm));
        assert_eq!(refusal(&authenticator, &token), AuthError::UnknownKey);
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let directory = TempDir::new().unwrap();
    let path = write_public_key(directory.path(), KeyAlgorithm::Rs256);
    let rsa = KeyConfig {
        id: Some("rsa".to_owned()),
        algorithm: KeyAlgorithm::Rs256,
        source: KeySource::PublicKeyFile(path.clone()),
    };
    let only_rsa = Authenticator::new(AuthConfig { keys: vec![rsa.clone()], ..config() }).unwrap();
    let both =
        Authenticator::new(AuthConfig { keys: vec![rsa, secret_key(Some("hmac"), SECRET)], ..config() })
            .unwrap();
    // What the attacker has: the public key, as PEM and as the DER forms inside.
    let pem = fs::read(&path).unwrap();
    let pair = &KEYS[0].1;
    for stolen in [pem.as_slice(), pair.der_bytes(), &pair.subject_public_key_info()] {
        let key = EncodingKey::from_secret(stolen);
        for kid in [json!(null), json!("rsa"), json!("hmac")] {
            let header = json!({"alg": "HS256", "kid": kid});
            let token = sign(&header, &json!({"sub": "mallory"}), Algorithm::HS256, &key);
            assert_eq!(refusal(&only_rsa, &token), AuthError::UnknownKey);
            let error = refusal(&both, &token);
            assert!(matches!(error, AuthError::UnknownKey | AuthError::BadSignature), "{error}");
        }
    }
}

#[test]
fn unsigned_and_unheard_of_algorithms_are_refused() {
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = encode(json!({"sub": "mallory"}));
    for alg in ["none", "None", "NONE", "nOnE", "HS512", "PS256", "ES384", "hs256", ""] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{claims}.{signature}", encode(json!({"alg": alg})));
            assert_eq!(refusal(&hs256(), &token), AuthError::Unsupported, "{alg}");
        }
    }
    let critical = json!({"alg": "HS256", "crit": ["exp"]});
    let token = sign(&critical, &json!({}), Algorithm::HS256, &EncodingKey::from_secret(SECRET));
    assert_eq!(refusal(&hs256(), &token), AuthError::Unsupported);
    let no_signature = format!("{}.{claims}.", encode(json!({"alg": "HS256"})));
    assert_eq!(refusal(&hs256(), &no_signature), AuthError::BadSignature);
}

#[test]
fn what_is_no_jwt_is_malformed() {
    for token in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "ey.ey.ey", "\u{fffd}.\0.é", "e30.e30.e30"] {
        assert_eq!(refusal(&hs256(), token), AuthError::Malformed, "{token:?}");
    }
    let array = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let message = format!("{array}.{}", URL_SAFE_NO_PAD.encode("[1]"));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    assert_eq!(refusal(&hs256(), &format!("{message}.{signature}")), AuthError::Malformed);
}

#[test]
fn any_change_to_a_signed_token_is_noticed() {
    let token = hs256_token(&json!({"sub": "ann", "exp": NOW + 60}));
    let authenticator = hs256();
    assert!(verify(&authenticator, &token).is_ok());
    for index in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[index] = if changed[index] == b'x' { b'y' } else { b'x' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verify(&authenticator, &changed).is_err(), "byte {index}");
    }
}

#[test]
fn times_are_checked_to_the_second() {
    let authenticator = hs256();
    let cases = [
        (json!({"exp": NOW + 1}), None),
        (json!({"exp": NOW}), Some(AuthError::Expired { since: Duration::ZERO })),
        (json!({"exp": NOW - 90}), Some(AuthError::Expired { since: Duration::from_secs(90) })),
        (json!({"exp": -5}), Some(AuthError::Expired { since: Duration::from_secs(NOW) })),
        (json!({"exp": NOW as f64 + 0.5}), None),
        (json!({"exp": NOW as f64 - 0.5}), Some(AuthError::Expired { since: Duration::from_millis(500) })),
        (json!({"exp": u64::MAX}), None),
        (json!({"exp": 1e300}), None),
        (json!({"nbf": NOW + 10}), None),
        (json!({"nbf": NOW + 11}), Some(AuthError::NotYetValid { starts_in: Duration::from_secs(11) })),
    ];
    for (claims, expected) in cases {
        assert_eq!(verify(&authenticator, &hs256_token(&claims)).err(), expected, "{claims}");
    }
    let expired = AuthError::Expired { since: Duration::from_secs(90) };
    assert_eq!(expired.to_string(), "the token expired 90 s ago: get a new one");
    assert_eq!(expired.close_code(), CloseCode::TokenExpired);
    assert_eq!(AuthError::BadSignature.close_code(), CloseCode::Unauthorized);
}

#[test]
fn issuer_and_audience_must_be_the_expected_ones() {
    let authenticator = Authenticator::new(AuthConfig {
        keys: vec![secret_key(None, SECRET)],
        issuer: Some("https://id.example".to_owned()),
        audience: Some("tidegate".to_owned()),
        ..config()
    })
    .unwrap();
    let cases = [
        (json!({"iss": "https://id.example", "aud": "tidegate"}), None),
        (json!({"iss": "https://id.example", "aud": ["other", "tidegate"]}), None),
        (json!({"iss": "https://evil.example", "aud": "tidegate"}), Some(AuthError::WrongIssuer)),
        (json!({"aud": "tidegate"}), Some(AuthError::WrongIssuer)),
        (json!({"iss": "https://id.example"}), Some(AuthError::WrongAudience)),
        (json!({"iss": "https://id.example", "aud": "other"}), Some(AuthError::WrongAudience)),
        (json!({"iss": "https://id.example", "aud": []}), Some(AuthError::WrongAudience)),
        (json!({"iss": "https://id.example", "aud": 7}), Some(AuthError::WrongAudience)),
    ];
    for (claims, expected) in cases {
        assert_eq!(verify(&authenticator, &hs256_token(&claims)).err(), expected, "{claims}");
    }
    assert_eq!(refusal(&hs256(), &hs256_token(&json!({"aud": "other"}))), AuthError::WrongAudience);
}

#[test]
fn senseless_claims_are_named() {
    let many: Vec<String> = (0..257).map(|i| format!("room:{i}")).collect();
    let cases = [
        (json!({"sub": 7}), "`sub` must be a text of 1 to 255 bytes"),
        (json!({"sub": ""}), "`sub` must be a text of 1 to 255 bytes"),
        (json!({"sub": "x".repeat(256)}), "`sub` must be a text of 1 to 255 bytes"),
        (json!({"exp": "soon"}), "`exp` must be a number: seconds since 1970"),
        (json!({"nbf": []}), "`nbf` must be a number: seconds since 1970"),
        (json!({"tidegate": []}), "`tidegate` must be an object"),
        (json!({"tidegate": {"subscribe": "room:*"}}), "`tidegate.subscribe` must be a list of texts"),
        (json!({"tidegate": {"publish": [1]}}), "`tidegate.publish` must be a list of texts"),
        (
            json!({"tidegate": {"presence": many}}),
            "`tidegate.presence` has 257 entries, at most 256 are accepted",
        ),
        (
            json!({"tidegate": {"subscribe": ["x".repeat(256)]}}),
            "a pattern in `tidegate.subscribe` has more than 255 bytes",
        ),
        (
            json!({"tidegate": {"subscriptions": ["a", "b", "c", "d", "e"]}}),
            "`tidegate.subscriptions` has 5 entries, at most 4 are accepted",
        ),
        (
            json!({"tidegate": {"subscriptions": ["a b"]}}),
            "`tidegate.subscriptions`: a channel name cannot hold ' '",
        ),
    ];
    for (claims, what) in cases {
        let expected = AuthError::BadClaims { what: what.to_owned() };
        assert_eq!(refusal(&hs256(), &hs256_token(&claims)), expected, "{claims}");
    }
    let nulls = json!({"sub": null, "exp": null, "tidegate": {"subscribe": null}});
    assert!(verify(&hs256(), &hs256_token(&nulls)).is_ok(), "null is absent");
}

#[test]
fn a_long_token_is_refused_unread() {
    let token = "x".repeat((8 << 10) + 1);
    assert_eq!(refusal(&hs256(), &token), AuthError::TooLong { bytes: 8193, limit: 8192 });
    assert_eq!(refusal(&hs256(), &token[1..]), AuthError::Malformed);
}

#[test]
fn kid_selects_among_keys_and_keys_without_id_are_tried() {
    let other: &[u8] = b"another secret that only these tests use";
    let both = vec![secret_key(Some("one"), SECRET), secret_key(Some("two"), other)];
    let authenticator = Authenticator::new(AuthConfig { keys: both, ..config() }).unwrap();
    let token = |kid: Value, secret: &[u8]| {
        let header = json!({"alg": "HS256", "kid": kid});
        sign(&header, &json!({}), Algorithm::HS256, &EncodingKey::from_secret(secret))
    };
    assert!(verify(&authenticator, &token(json!("two"), other)).is_ok());
    assert_eq!(refusal(&authenticator, &token(json!("two"), SECRET)), AuthError::BadSignature);
    assert_eq!(refusal(&authenticator, &token(json!("three"), SECRET)), AuthError::UnknownKey);
    assert!(verify(&authenticator, &token(json!(null), other)).is_ok(), "without kid every key is tried");
    assert!(verify(&hs256(), &token(json!("any"), SECRET)).is_ok(), "a key without id never named itself");

    let many = (0u8..9).map(|i| secret_key(Some(&i.to_string()), &[i; 32])).collect();
    let authenticator = Authenticator::new(AuthConfig { keys: many, ..config() }).unwrap();
    assert_eq!(refusal(&authenticator, &token(json!(null), &[3; 32])), AuthError::UnknownKey);
    assert!(verify(&authenticator, &token(json!("3"), &[3; 32])).is_ok());
}

#[test]
fn without_keys_nothing_is_believed() {
    let authenticator = Authenticator::new(config()).unwrap();
    assert!(!authenticator.has_keys());
    assert_eq!(refusal(&authenticator, &hs256_token(&json!({}))), AuthError::UnknownKey);
}

fn jwk(algorithm: KeyAlgorithm, kid: &str) -> Value {
    let pair = &KEYS.iter().find(|(of, _)| *of == algorithm).expect("there is one").1;
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let raw = pair.der_bytes();
    match algorithm {
        KeyAlgorithm::Rs256 => {
            // PKCS#1: 9 bytes of headers, the modulus, 2 of header, the exponent.
            let (modulus, exponent) = (&raw[9..9 + 256], &raw[raw.len() - 3..]);
            json!({"kty": "RSA", "kid": kid, "alg": "RS256", "n": encode(modulus), "e": encode(exponent)})
        }
        KeyAlgorithm::Es256 => {
            json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": kid, "x": encode(&raw[1..33]), "y": encode(&raw[33..])})
        }
        _ => json!({"kty": "OKP", "crv": "Ed25519", "key_ops": ["verify"], "kid": kid, "x": encode(raw)}),
    }
}

fn with_jwks(path: &Path) -> Result<Authenticator, KeyError> {
    Authenticator::new(AuthConfig { jwks_files: vec![path.to_owned()], ..config() })
}

#[test]
fn jwks_keys_of_every_kind_check_tokens() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("jwks.json");
    let oct = json!({"kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    let foreign = [
        json!({"kty": "RSA", "use": "enc", "n": "broken", "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-521"}),
        json!({"kty": "RSA", "alg": "RS512"}),
        json!({"kty": "new"}),
    ];
    let mut keys: Vec<Value> = KEYS.iter().map(|(algorithm, _)| jwk(*algorithm, algorithm.name())).collect();
    keys.push(oct);
    keys.extend(foreign);
    fs::write(&path, json!({"keys": keys}).to_string()).unwrap();
    let authenticator = with_jwks(&path).unwrap();
    for (algorithm, _) in &*KEYS {
        let header = json!({"alg": algorithm.name(), "kid": algorithm.name()});
        let token =
            sign(&header, &json!({"sub": "ann"}), jwt_algorithm(*algorithm), &signing_key(*algorithm));
        assert_eq!(verify(&authenticator, &token).unwrap().user.as_deref(), Some("ann"), "{algorithm:?}");
    }
    assert!(verify(&authenticator, &hs256_token(&json!({}))).is_ok());
}

#[test]
fn jwks_is_read_again_when_it_changes_and_kept_when_it_breaks() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("jwks.json");
    let write = |keys: Value| fs::write(&path, json!({"keys": keys}).to_string()).unwrap();
    write(json!([jwk(KeyAlgorithm::Es256, "old")]));
    let authenticator = with_jwks(&path).unwrap();
    let token = |kid: &str, algorithm: KeyAlgorithm| {
        let header = json!({"alg": algorithm.name(), "kid": kid});
        sign(&header, &json!({}), jwt_algorithm(algorithm), &signing_key(algorithm))
    };
    let (old, new) = (token("old", KeyAlgorithm::Es256), token("new", KeyAlgorithm::EdDsa));
    assert!(verify(&authenticator, &old).is_ok());
    let same = authenticator.refresh();
    assert!(!same.changed && same.problems.is_empty());

    write(json!([jwk(KeyAlgorithm::EdDsa, "new")]));
    assert!(authenticator.refresh().changed);
    assert!(verify(&authenticator, &new).is_ok());
    assert_eq!(refusal(&authenticator, &old), AuthError::UnknownKey);

    fs::write(&path, "{\"keys\": [").unwrap();
    let broken = authenticator.refresh();
    assert!(!broken.changed);
    assert!(broken.problems[0].to_string().contains("jwks.json is not a usable JWKS: not JSON at line 1"));
    assert!(authenticator.refresh().problems.is_empty(), "one report for one mistake");
    fs::remove_file(&path).unwrap();
    assert_eq!(authenticator.refresh().problems.len(), 1);
    assert!(verify(&authenticator, &new).is_ok(), "the old keys stay");

    write(json!([jwk(KeyAlgorithm::Es256, "old")]));
    assert!(authenticator.refresh().changed);
    assert!(verify(&authenticator, &old).is_ok());
}

#[test]
fn jwks_that_cannot_be_used_say_why() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("jwks.json");
    let many: Vec<Value> = (0..65).map(|i| json!({"kty": "x", "kid": i.to_string()})).collect();
    let cases = [
        (json!([]), "not of the form {\"keys\": [{...}]}"),
        (json!({"keys": []}), "no signature key"),
        (json!({"keys": many}), "it has 65 keys, at most 64"),
        (
            json!({"keys": [{"kty": "oct", "kid": "k", "k": "c2hvcnQ"}]}),
            "key \"k\": the secret `k` has 5 bytes",
        ),
        (json!({"keys": [{"kty": "RSA", "e": "AQAB"}]}), "key number 1: `n` is missing"),
        (json!({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}), "at least 2,048 bits"),
        (json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "AQAB", "y": "AQAB"}]}), "32 bytes each"),
        (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "A*"}]}), "`x` is not base64url"),
    ];
    for (content, expected) in cases {
        fs::write(&path, content.to_string()).unwrap();
        let text = with_jwks(&path).expect_err("must be refused").to_string();
        assert!(text.contains(expected), "{content}: {text}");
    }
}

#[test]
fn keys_that_cannot_be_used_say_what_to_do() {
    let directory = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = &KEYS[2].1;
    let cases = [
        (KeyAlgorithm::Hs256, KeySource::Secret(Secret::new("short")), "has 5 bytes, at least 32"),
        (KeyAlgorithm::Hs256, KeySource::SecretFile(file("s", "short\n")), "has 5 bytes, at least 32"),
        (KeyAlgorithm::Hs256, KeySource::SecretFile("/nowhere/at/all".into()), "cannot read /nowhere/at/all"),
        (KeyAlgorithm::Hs256, KeySource::PublicKeyFile(file("p", "x")), "HS256 needs `secret_file`"),
        (KeyAlgorithm::Rs256, KeySource::Secret(Secret::new([7; 64])), "RS256 needs `public_key_file`"),
        (KeyAlgorithm::Es256, KeySource::PublicKeyFile(file("e", "hello")), "-----BEGIN PUBLIC KEY-----"),
        (KeyAlgorithm::Es256, KeySource::PublicKeyFile(file("q", &p384.public_key_pem())), "P-256"),
        (KeyAlgorithm::Es256, KeySource::PublicKeyFile(file("o", &ed25519.public_key_pem())), "another kind"),
        (KeyAlgorithm::EdDsa, KeySource::PublicKeyFile(file("k", &ed25519.serialize_pem())), "-pubout"),
    ];
    for (algorithm, source, expected) in cases {
        let keys = vec![KeyConfig { id: None, algorithm, source }];
        let text = Authenticator::new(AuthConfig { keys, ..config() }).expect_err("refused").to_string();
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let path = file("good", &format!("{}\n", String::from_utf8_lossy(SECRET)));
    let keys =
        vec![KeyConfig { id: None, algorithm: KeyAlgorithm::Hs256, source: KeySource::SecretFile(path) }];
    let authenticator = Authenticator::new(AuthConfig { keys, ..config() }).unwrap();
    assert!(verify(&authenticator, &hs256_token(&json!({}))).is_ok(), "a line end is not part of a secret");
}

#[test]
fn nothing_secret_shows() {
    let config = AuthConfig { keys: vec![secret_key(Some("one"), SECRET)], ..config() };
    let authenticator = Authenticator::new(config.clone()).unwrap();
    let text = format!("{config:?} {authenticator:?}");
    assert!(text.contains("one") && !text.contains("only these tests"), "{text}");
    assert!(!text.contains(&format!("{:?}", &SECRET[..4]).replace(['[', ']'], "")), "{text}");
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused_without_panic(token in "\\PC{0,200}") {
        prop_assert!(verify(&hs256(), &token).is_err());
    }

    #[test]
    fn arbitrary_parts_are_refused_without_panic(
        header in proptest::collection::vec(any::<u8>(), 0..60),
        payload in proptest::collection::vec(any::<u8>(), 0..60),
        signature in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let token = format!("{}.{}.{}", encode(&header), encode(&payload), encode(&signature));
        prop_assert!(verify(&hs256(), &token).is_err());
    }

    /// Signed by the right key: what stands in the claims must not panic either.
    #[test]
    fn arbitrary_claims_are_judged_without_panic(
        name in "(sub|exp|nbf|iss|aud|tidegate)",
        value in prop_oneof![
            any::<f64>().prop_map(|number| json!(number)),
            any::<i64>().prop_map(|number| json!(number)),
            any::<String>().prop_map(|text| json!(text)),
            proptest::collection::vec(any::<String>(), 0..5).prop_map(|list| json!({"subscriptions": list})),
        ],
    ) {
        let _ = verify(&hs256(), &hs256_token(&json!({ name: value })));
    }
}
