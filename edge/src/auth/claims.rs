//! Sans-io: what the claims of a believed token mean.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tidegate_protocol::ChannelName;
use tidegate_protocol::grants::{ChannelPattern, Grants, Identity};

use super::AuthError;

/// What claims must say, beyond being well formed.
#[derive(Debug)]
pub(super) struct ClaimRules {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    pub(super) leeway: Duration,
    pub(super) max_subscriptions: usize,
}

impl ClaimRules {
    /// `now` and `wall` (since 1970) are the same moment.
    pub(super) fn check(
        &self,
        claims: &Map<String, Value>,
        now: Instant,
        wall: Duration,
    ) -> Result<Identity, AuthError> {
        let expires = numeric_date(claims, "exp")?;
        if let Some(since) = expires.and_then(|expires| wall.checked_sub(expires)) {
            return Err(AuthError::Expired { since });
        }
        if let Some(not_before) = numeric_date(claims, "nbf")?
            && not_before > wall.saturating_add(self.leeway)
        {
            return Err(AuthError::NotYetValid { starts_in: not_before - wall });
        }
        self.check_issuer(claims)?;
        self.check_audience(claims)?;

        let own = match present(claims, OWN_CLAIM) {
            None => None,
            Some(Value::Object(own)) => Some(own),
            Some(_) => return Err(bad(format!("`{OWN_CLAIM}` must be an object"))),
        };
        let patterns = |name| own.map_or_else(|| Ok(Vec::new()), |own| patterns(own, name));
        Ok(Identity {
            user: user(claims)?,
            grants: Arc::new(Grants {
                subscribe: patterns("subscribe")?,
                publish: patterns("publish")?,
                presence: patterns("presence")?,
            }),
            subscriptions: match own {
                Some(own) => self.subscriptions(own)?,
                None => Vec::new(),
            },
            // A date that the clock cannot count to is no bound.
            expires: expires.and_then(|expires| now.checked_add(expires - wall)),
        })
    }

    fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), AuthError> {
        match (&self.issuer, present(claims, "iss")) {
            (None, _) => Ok(()),
            (Some(expected), Some(Value::String(issuer))) if issuer == expected => Ok(()),
            (Some(_), _) => Err(AuthError::WrongIssuer),
        }
    }

    /// RFC 7519 §4.1.3: who is not named by an `aud` that is there must refuse the token.
    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), AuthError> {
        let named = match (&self.audience, present(claims, "aud")) {
            (None, None) => true,
            (Some(expected), Some(Value::String(audience))) => audience == expected,
            (Some(expected), Some(Value::Array(audiences))) => {
                audiences.iter().any(|audience| audience.as_str() == Some(expected))
            }
            _ => false,
        };
        if named { Ok(()) } else { Err(AuthError::WrongAudience) }
    }

    fn subscriptions(&self, own: &Map<String, Value>) -> Result<Vec<ChannelName>, AuthError> {
        let names = texts(own, "subscriptions", self.max_subscriptions)?;
        let mut channels = Vec::with_capacity(names.len());
        for name in names {
            let channel = ChannelName::new(name)
                .map_err(|error| bad(format!("`{OWN_CLAIM}.subscriptions`: {error}")))?;
            if !channels.contains(&channel) {
                channels.push(channel);
            }
        }
        Ok(channels)
    }
}

fn user(claims: &Map<String, Value>) -> Result<Option<Arc<str>>, AuthError> {
    match present(claims, "sub") {
        None => Ok(None),
        Some(Value::String(user)) if (1..=MAX_USER_BYTES).contains(&user.len()) => {
            Ok(Some(user.as_str().into()))
        }
        Some(_) => Err(bad(format!("`sub` must be a text of 1 to {MAX_USER_BYTES} bytes"))),
    }
}

fn patterns(own: &Map<String, Value>, name: &str) -> Result<Vec<ChannelPattern>, AuthError> {
    let texts = texts(own, name, MAX_PATTERNS)?;
    if texts.iter().any(|text| text.len() > ChannelName::MAX_BYTES) {
        let limit = ChannelName::MAX_BYTES;
        return Err(bad(format!("a pattern in `{OWN_CLAIM}.{name}` has more than {limit} bytes")));
    }
    Ok(texts.into_iter().map(ChannelPattern::new).collect())
}

fn texts<'a>(own: &'a Map<String, Value>, name: &str, limit: usize) -> Result<Vec<&'a str>, AuthError> {
    let items = match present(own, name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(bad(format!("`{OWN_CLAIM}.{name}` must be a list of texts"))),
    };
    if items.len() > limit {
        return Err(bad(format!(
            "`{OWN_CLAIM}.{name}` has {} entries, at most {limit} are accepted",
            items.len()
        )));
    }
    items
        .iter()
        .map(|item| item.as_str().ok_or_else(|| bad(format!("`{OWN_CLAIM}.{name}` must be a list of texts"))))
        .collect()
}

/// Since 1970; RFC 7519 §2 allows fractions. Dates before 1970 count as 1970.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<Duration>, AuthError> {
    let Some(value) = present(claims, name) else { return Ok(None) };
    let date = match (value.as_u64(), value.as_f64()) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(seconds)) if seconds <= 0.0 => Some(Duration::ZERO),
        (None, Some(seconds)) => Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
        (None, None) => None,
    };
    date.map(Some).ok_or_else(|| bad(format!("`{name}` must be a number: seconds since 1970")))
}

fn present<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

fn bad(what: String) -> AuthError {
    AuthError::BadClaims { what }
}

/// The claim that is ours; the others are registered ones.
const OWN_CLAIM: &str = "tidegate";
const MAX_USER_BYTES: usize = 255;
/// Of each kind: a token is carried by every session that it opens.
const MAX_PATTERNS: usize = 256;
