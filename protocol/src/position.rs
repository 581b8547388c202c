//! Sans-io: where a subscriber stands in a channel.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Identity of a channel's numbering: opaque text of at most [`Epoch::MAX_BYTES`] bytes. It changes when continuity
/// cannot be proved; offsets of different epochs say nothing about each other.
///
/// The empty epoch stands for "whichever is current"; only requests may carry it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The longest epoch, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Takes the text as it is; lengths are checked where frames are decoded.
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the epoch that stands for any.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// What stands for it in datagrams, where room is scarce (PROTOCOL §6.1): FNV-1a of 32 bits over the text, and 1
    /// where that is 0.
    pub fn mark(&self) -> u32 {
        let hash =
            self.0.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME));
        hash.max(1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a publication in its channel and epoch: dense, from 1, assigned by the sequencer alone. 0 is the
/// position before the first publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The last publication that a subscriber has, or that a channel holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// The numbering that `offset` belongs to.
    pub epoch: Epoch,
    /// The last offset seen, 0 for none.
    pub offset: Offset,
}

impl Position {
    /// Both together.
    pub fn new(epoch: Epoch, offset: Offset) -> Self {
        Self { epoch, offset }
    }
}

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;
