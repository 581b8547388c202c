//! Sans-io: what a resume ticket says, how it is written, and which tickets were spent.
//!
//! A ticket is private to the fleet: clients carry it, sealed by the edge (`docs/PROTOCOL.md` §3.5), and never look
//! inside. Here it is content alone; keys and ciphers are the edge's.

mod spent;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;

use crate::grants::{ChannelPattern, Grants, Identity};
use crate::{ChannelName, NodeId, SessionId};

pub use spent::{Bounds, Outcome, Spending, Spent, SpentTable, Told};

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub session: SessionId,
    /// Counts the session's resumes: all tickets that one connection was given have the same.
    pub generation: u32,
    /// The token's subject.
    pub user: Option<Arc<str>>,
    /// What the token grants.
    pub grants: Arc<Grants>,
    /// Server-side subscriptions.
    pub subscriptions: Vec<ChannelName>,
    /// When the token ends, milliseconds of Unix time.
    pub token_expires_ms: Option<u64>,
    /// When the ticket ends, milliseconds of Unix time.
    pub expires_ms: u64,
    /// The edge that issued it.
    pub node: NodeId,
    /// The worker there.
    pub worker: u8,
}

impl Ticket {
    /// As bytes, to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        let patterns = |patterns: &[ChannelPattern]| patterns.iter().map(|p| p.as_str().to_owned()).collect();
        let wire = Wire {
            session: self.session.to_bytes().to_vec(),
            generation: self.generation,
            user: self.user.as_deref().map(str::to_owned),
            subscribe: patterns(&self.grants.subscribe),
            publish: patterns(&self.grants.publish),
            presence: patterns(&self.grants.presence),
            subscriptions: self.subscriptions.iter().map(|channel| channel.as_str().to_owned()).collect(),
            token_expires_ms: self.token_expires_ms,
            expires_ms: self.expires_ms,
            node: self.node.as_str().to_owned(),
            worker: u32::from(self.worker),
        };
        wire.encode_to_vec()
    }

    /// What [`Ticket::encode`] gave. No input makes it panic.
    pub fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let wire = Wire::decode(bytes).map_err(|_| TicketError)?;
        let patterns =
            |texts: Vec<String>| texts.iter().map(|text| ChannelPattern::new(text)).collect::<Vec<_>>();
        let subscriptions = wire.subscriptions.iter().map(|name| ChannelName::new(name));
        Ok(Self {
            session: SessionId::from_bytes(wire.session.try_into().map_err(|_| TicketError)?),
            generation: wire.generation,
            user: wire.user.map(Arc::from),
            grants: Arc::new(Grants {
                subscribe: patterns(wire.subscribe),
                publish: patterns(wire.publish),
                presence: patterns(wire.presence),
            }),
            subscriptions: subscriptions.collect::<Result<_, _>>().map_err(|_| TicketError)?,
            token_expires_ms: wire.token_expires_ms,
            expires_ms: wire.expires_ms,
            node: NodeId::new(&wire.node),
            worker: u8::try_from(wire.worker).map_err(|_| TicketError)?,
        })
    }

    /// Whether it is too old.
    pub fn is_expired(&self, unix_ms: u64) -> bool {
        self.expires_ms <= unix_ms
    }

    /// Who its holder is; `now` and `unix_ms` are the same moment. `None` where the token has ended.
    pub fn identity(&self, now: Instant, unix_ms: u64) -> Option<Identity> {
        let expires = match self.token_expires_ms {
            None => None,
            Some(at) => {
                let left = at.checked_sub(unix_ms).filter(|left| *left > 0)?;
                // A date that the clock cannot count to is no bound.
                now.checked_add(Duration::from_millis(left))
            }
        };
        Some(Identity {
            user: self.user.clone(),
            grants: Arc::clone(&self.grants),
            subscriptions: self.subscriptions.clone(),
            expires,
        })
    }
}

/// Sealed by us, and yet no ticket: of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a ticket")]
pub struct TicketError;

/// What a client's `key` makes of an attempt to resume: the same key, the same attempt. A hash, so that nobody who looks
/// at a table could repeat it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AttemptKey(pub [u8; 16]);

impl std::fmt::Debug for AttemptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AttemptKey(..)")
    }
}

/// The longest `key` of a client, bytes.
pub const MAX_ATTEMPT_KEY_BYTES: usize = 128;

/// The layout inside the seal. Its version is the sealed text's first byte: a field that changes its meaning needs
/// another one, a field that may be absent does not.
#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(bytes = "vec", tag = "1")]
    session: Vec<u8>,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(string, optional, tag = "3")]
    user: Option<String>,
    #[prost(string, repeated, tag = "4")]
    subscribe: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    publish: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    presence: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    subscriptions: Vec<String>,
    #[prost(uint64, optional, tag = "8")]
    token_expires_ms: Option<u64>,
    #[prost(uint64, tag = "9")]
    expires_ms: u64,
    #[prost(string, tag = "10")]
    node: String,
    #[prost(uint32, tag = "11")]
    worker: u32,
}

#[cfg(test)]
mod tests;
