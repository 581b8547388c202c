//! Sans-io: names of channels, sessions, nodes and regions.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// The name of a channel: 1 to 255 bytes of UTF-8 without white space or control characters.
///
/// The part before the first `:` is its namespace; a name without `:` is in the namespace `""`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks `name` and takes a copy of it.
    pub fn new(name: &str) -> Result<Self, ChannelNameError> {
        if name.is_empty() {
            return Err(ChannelNameError::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(ChannelNameError::TooLong { bytes: name.len() });
        }
        match name.chars().find(|c| c.is_control() || c.is_whitespace()) {
            Some(c) => Err(ChannelNameError::BadCharacter { character: c }),
            None => Ok(Self(Arc::from(name))),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first `:`, or `""`.
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or("", |(namespace, _)| namespace)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = ChannelNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

/// Why a text is no channel name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelNameError {
    /// No name was given.
    #[error("a channel name cannot be empty")]
    Empty,
    /// Longer than [`ChannelName::MAX_BYTES`].
    #[error("a channel name has at most 255 bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// White space or a control character.
    #[error("a channel name cannot hold {character:?}")]
    BadCharacter {
        /// The first such character.
        character: char,
    },
}

/// Identity of a session, written as 32 hexadecimal digits. 120 random bits; the last byte is the worker that
/// holds it, so that a long poll finds its session from any worker of the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u128);

impl SessionId {
    /// A fresh id on `worker`. `rng` must be seeded from the OS in production: long poll takes the id as a bearer secret.
    pub fn generate(rng: &mut impl Rng, worker: u8) -> Self {
        let random = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        Self(random & !0xff | u128::from(worker))
    }

    /// As bytes, for a ticket.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// What [`SessionId::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The worker that made the session.
    pub fn worker(self) -> u8 {
        // The low byte, by construction.
        (self.0 & 0xff) as u8
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    /// The first half only: the whole id is a secret of its holder.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}..", (self.0 >> 64) as u64)
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SessionIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| SessionIdError)
    }
}

/// The text is no session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session id has 32 hexadecimal digits")]
pub struct SessionIdError;

/// One connection of a client, on the client's side alone: whoever dials numbers them, and uses no number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One process of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(Arc<str>);

/// A deployment area.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(Arc<str>);

impl NodeId {
    /// Takes the name as it is.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Region {
    /// Takes the name as it is.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn channel_names_are_checked() {
        assert_eq!(ChannelName::new(""), Err(ChannelNameError::Empty));
        assert_eq!(ChannelName::new(&"x".repeat(256)), Err(ChannelNameError::TooLong { bytes: 256 }));
        assert_eq!(ChannelName::new("a b"), Err(ChannelNameError::BadCharacter { character: ' ' }));
        assert_eq!(ChannelName::new("a\u{7}"), Err(ChannelNameError::BadCharacter { character: '\u{7}' }));
        assert!(ChannelName::new(&"x".repeat(255)).is_ok());
        assert_eq!(ChannelName::new("room:1:x").expect("valid").namespace(), "room");
        assert_eq!(ChannelName::new("room").expect("valid").namespace(), "");
    }

    #[test]
    fn session_ids_name_their_worker_and_survive_text() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for worker in [0, 1, 255] {
            let id = SessionId::generate(&mut rng, worker);
            assert_eq!(id.worker(), worker);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("zz".parse::<SessionId>().is_err());
        assert!("+0000000000000000000000000000000".parse::<SessionId>().is_err());
    }
}
