//! What the processes of a crowd are told.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use jsonwebtoken::{EncodingKey, Header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate_transport::clock;

use crate::gateway::Gateway;

/// By what clients come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
#[expect(clippy::enum_variant_names, reason = "WebTransport is called so")]
pub(in crate::bench) enum Transport {
    /// Native QUIC
    Quic,
    /// WebTransport over HTTP/3
    WebTransport,
    /// WebSocket over TLS
    WebSocket,
    /// Long poll over TLS
    LongPoll,
}

impl Transport {
    /// All, in the order of reports.
    pub(in crate::bench) const ALL: [Self; 4] =
        [Self::Quic, Self::WebTransport, Self::WebSocket, Self::LongPoll];

    /// Where such clients of `sdk/rust` begin.
    pub(in crate::bench) fn url(self, edge: &Gateway) -> String {
        match self {
            Self::Quic => edge.url("quic"),
            Self::WebTransport => edge.url("webtransport"),
            Self::WebSocket => edge.url("wss"),
            Self::LongPoll => edge.url("https"),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quic => "QUIC",
            Self::WebTransport => "WebTransport",
            Self::WebSocket => "WebSocket",
            Self::LongPoll => "long poll",
        })
    }
}

/// Clients, each of a user of its own: a line of JSON on the stdin of their process, whose end is theirs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Order {
    /// What they are called in reports.
    pub(in crate::bench) group: String,
    /// Where they begin.
    pub(in crate::bench) url: String,
    pub(in crate::bench) certificate_hash: String,
    /// Number of the first: numbers are dense over all groups.
    pub(in crate::bench) first: u32,
    pub(in crate::bench) clients: u32,
    /// How many channels there are.
    pub(in crate::bench) channels: u32,
    /// How many of them each client is on.
    pub(in crate::bench) follows: u32,
    /// Connects a second.
    pub(in crate::bench) per_second: u32,
    /// They ask who comes and goes.
    pub(in crate::bench) watches: bool,
}

impl Order {
    /// The channel that a client is on, by the number of its subscription: those of one client lie apart, and each channel
    /// has as many clients of a group as any other, give or take one.
    pub(in crate::bench) fn channel(&self, client: u32, place: u32) -> u32 {
        (client - self.first + place * (self.channels / self.follows.max(1))) % self.channels
    }
}

/// A channel's name.
pub(in crate::bench) fn channel_name(channel: u32) -> String {
    format!("room:{channel}")
}

/// What a client shows to be a user of its own, who may do what anyone may.
pub(super) fn token(client: u32) -> Result<String> {
    let now = Duration::from_millis(clock::unix_ms()).as_secs();
    let claims = json!({ "sub": format!("user-{client}"), "iat": now, "exp": now + LIFETIME });
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
        .context("signing a token")
}

/// Of the tokens; edges must know it.
pub(in crate::bench) const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Of a token, seconds: longer than any run.
const LIFETIME: u64 = 24 * 3_600;
