//! `tidegate token`: signs a token, for trying things out and for scripts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value, json};
use tidegate_edge::auth::{KeyAlgorithm, MIN_SECRET_BYTES, Secret};
use tidegate_protocol::ChannelName;
use tidegate_transport::clock;

use super::{ConfigArguments, print};
use crate::config::{Mode, Settings};

/// Sign a token (JWT) for a client; nothing but the token goes to stdout
///
/// The key: --secret-file (HS256) or --private-key-file with --algorithm; without either, the HS256 key of the
/// configuration, if there is one.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Token {
    /// User (`sub`)
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Channels that may be subscribed to; `*` stands for any text; may be repeated
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
    /// Channels that may be published to; may be repeated
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<String>,
    /// Channels whose members may be listed; may be repeated
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<String>,
    /// Channels that the session is subscribed to from its start; may be repeated
    #[arg(long, value_name = "CHANNEL")]
    subscription: Vec<ChannelName>,
    /// How long the token is valid
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// Issuer (`iss`) [default: auth.issuer of the configuration]
    #[arg(long)]
    issuer: Option<String>,
    /// Audience (`aud`) [default: auth.audience of the configuration]
    #[arg(long)]
    audience: Option<String>,
    /// Id of the key (`kid`); selects among the keys of the configuration
    #[arg(long, value_name = "ID")]
    key_id: Option<String>,
    /// File with the HS256 secret
    #[arg(long, value_name = "FILE", conflicts_with = "private_key_file")]
    secret_file: Option<PathBuf>,
    /// PEM file with the private key (`-----BEGIN PRIVATE KEY-----`)
    #[arg(long, value_name = "FILE", requires = "algorithm")]
    private_key_file: Option<PathBuf>,
    /// Signature algorithm of that key
    #[arg(long)]
    algorithm: Option<Algorithm>,
    #[command(flatten)]
    configuration: ConfigArguments,
}

const EXAMPLES: &str = "\
Examples:
  tidegate token --user ann --subscribe 'room:*' --publish 'room:*'
  tidegate token --user ann --subscription user:ann --expires 10m --secret-file secret.txt
  tidegate token --user ann --private-key-file key.pem --algorithm ES256 --key-id 2026";

/// [`KeyAlgorithm`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Algorithm {
    #[value(name = "HS256")]
    Hs256,
    #[value(name = "RS256")]
    Rs256,
    #[value(name = "ES256")]
    Es256,
    #[value(name = "EdDSA")]
    EdDsa,
}

pub(super) fn run(command: &Token) -> anyhow::Result<ExitCode> {
    let settings = command.configuration.layers().load(Mode::Serve)?.settings;
    let key = signing_key(command, &settings)?;
    let mut header = Header::new(key.algorithm);
    header.kid = key.id;
    let token = jsonwebtoken::encode(&header, &claims(command, &settings)?, &key.encoding)
        .context("cannot sign with this key: it does not fit the algorithm, or is damaged")?;
    print(&format!("{token}\n"))?;
    Ok(ExitCode::SUCCESS)
}

struct SigningKey {
    id: Option<String>,
    algorithm: jsonwebtoken::Algorithm,
    encoding: EncodingKey,
}

fn signing_key(command: &Token, settings: &Settings) -> anyhow::Result<SigningKey> {
    let id = command.key_id.clone();
    if let Some(path) = &command.private_key_file {
        let algorithm = command.algorithm.context("--private-key-file needs --algorithm")?;
        return private_key(path, algorithm, id);
    }
    if let Some(algorithm) = command.algorithm
        && !matches!(algorithm, Algorithm::Hs256)
    {
        bail!("this algorithm signs with a private key: give it with --private-key-file");
    }
    if let Some(path) = &command.secret_file {
        return hmac(&Secret::read(path)?, id);
    }
    let keys: Vec<_> = settings
        .auth
        .keys
        .iter()
        .filter(|key| key.algorithm == KeyAlgorithm::Hs256 && (id.is_none() || key.id == id))
        .collect();
    match keys.as_slice() {
        [key] => {
            let secret = match (&key.secret, &key.secret_file) {
                (Some(secret), _) => secret.clone(),
                (None, Some(path)) => Secret::read(path)?,
                (None, None) => {
                    bail!("the HS256 key of the configuration has no secret: run `tidegate config check`")
                }
            };
            hmac(&secret, key.id.clone())
        }
        [] => bail!(
            "there is no key to sign with: give --secret-file or --private-key-file, or a configuration with an HS256 key \
             in [[auth.keys]]"
        ),
        _ => bail!("the configuration has several HS256 keys: name one with --key-id"),
    }
}

fn hmac(secret: &Secret, id: Option<String>) -> anyhow::Result<SigningKey> {
    let bytes = secret.expose();
    if bytes.len() < MIN_SECRET_BYTES {
        bail!(
            "the secret has {} bytes, at least {MIN_SECRET_BYTES} are needed: make one with `openssl rand -base64 48`",
            bytes.len()
        );
    }
    Ok(SigningKey {
        id,
        algorithm: jsonwebtoken::Algorithm::HS256,
        encoding: EncodingKey::from_secret(bytes),
    })
}

fn private_key(path: &Path, algorithm: Algorithm, id: Option<String>) -> anyhow::Result<SigningKey> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (algorithm, encoding) = match algorithm {
        Algorithm::Hs256 => bail!("HS256 signs with a secret: give it with --secret-file"),
        Algorithm::Rs256 => (jsonwebtoken::Algorithm::RS256, EncodingKey::from_rsa_pem(&pem)),
        Algorithm::Es256 => (jsonwebtoken::Algorithm::ES256, EncodingKey::from_ec_pem(&pem)),
        Algorithm::EdDsa => (jsonwebtoken::Algorithm::EdDSA, EncodingKey::from_ed_pem(&pem)),
    };
    let encoding = encoding.ok().with_context(|| {
        format!(
            "{} holds no private key for {algorithm:?} as PKCS#8; `openssl pkcs8 -topk8 -nocrypt -in FILE` converts others",
            path.display()
        )
    })?;
    Ok(SigningKey { id, algorithm, encoding })
}

fn claims(command: &Token, settings: &Settings) -> anyhow::Result<Value> {
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = now.checked_add(command.expires).context("--expires is too far away")?;
    let mut claims = Map::new();
    claims.insert("iat".to_owned(), json!(now.as_secs()));
    claims.insert("exp".to_owned(), json!(expires.as_secs()));
    let texts = [
        ("sub", &command.user),
        ("iss", if command.issuer.is_some() { &command.issuer } else { &settings.auth.issuer }),
        ("aud", if command.audience.is_some() { &command.audience } else { &settings.auth.audience }),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            claims.insert(name.to_owned(), json!(text));
        }
    }
    let subscriptions: Vec<&str> = command.subscription.iter().map(ChannelName::as_str).collect();
    claims.insert(
        "tidegate".to_owned(),
        json!({
            "subscribe": command.subscribe,
            "publish": command.publish,
            "presence": command.presence,
            "subscriptions": subscriptions,
        }),
    );
    Ok(Value::Object(claims))
}
