//! What survives a core node: one log of frames per partition, and who may write to it.
//!
//! An engine gives order, durability and fencing; it knows nothing of channels. Numbering is the partition's.

#[cfg(test)]
pub(crate) mod conformance;
mod memory;

use std::pin::Pin;

use bytes::Bytes;

pub use memory::MemoryEngine;

/// A partition of all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u16);

/// Number of a frame in its partition's log: dense, from 1. 0 is the position before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogPosition(pub u64);

impl LogPosition {
    /// The position that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The right to write to a partition's log. There is no second one of the same term: whoever holds the newest
/// writes, all older ones are fenced.
#[derive(Debug)]
pub struct Claim {
    partition: PartitionId,
    term: u64,
    epoch: u64,
    first: LogPosition,
    tail: LogPosition,
}

impl Claim {
    /// For engines: a claim on a log that holds `first` to `tail` (`first` is `tail + 1` where it holds nothing).
    pub fn new(partition: PartitionId, term: u64, epoch: u64, first: LogPosition, tail: LogPosition) -> Self {
        Self { partition, term, epoch, first, tail }
    }

    /// Whose log.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Grows with every claim.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Identity of the log: another one means that frames were lost.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The oldest frame that was there when the claim was made.
    pub fn first(&self) -> LogPosition {
        self.first
    }

    /// The last frame.
    pub fn tail(&self) -> LogPosition {
        self.tail
    }

    /// For engines: the frame behind the tail is written.
    pub fn advance(&mut self) -> LogPosition {
        self.tail = self.tail.next();
        self.tail
    }
}

/// What an engine promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Frames outlive the process.
    pub durable: bool,
    /// Frames outlive the machine.
    pub replicated: bool,
    /// The largest frame, bytes.
    pub max_frame: usize,
}

/// What an engine's methods return: boxed, since the engine is chosen at run time, once per log frame.
pub type EngineFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Logs and the right to write to them.
pub trait Engine: Send + Sync + std::fmt::Debug + 'static {
    /// Takes the partition. After `Ok` no older claim can append.
    fn claim(&self, partition: PartitionId) -> EngineFuture<'_, Result<Claim, ClaimError>>;

    /// Writes `frame` behind the claim's tail; `Ok` is its position, now the tail, and as durable as
    /// [`Self::capabilities`] says. `&mut`: one frame in flight.
    ///
    /// On [`AppendError::Unavailable`] the outcome is unknown and the same bytes are to be sent again: they are stored
    /// once. `Fenced` is final.
    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>>;

    /// The next frames from `from` on, dense and in order, as many as the engine likes to hand out at once; none at
    /// the end of the log.
    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>>;

    /// Gives the partition up in order.
    fn release(&self, claim: Claim) -> EngineFuture<'_, ()>;

    /// What it promises.
    fn capabilities(&self) -> Capabilities;
}

/// Why a partition could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The engine was made with fewer partitions.
    #[error("the engine has no partition {0}")]
    UnknownPartition(u16),
    /// The engine cannot be reached.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
}

/// Why a frame was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Somebody else took the partition: stop.
    #[error("the partition was taken over")]
    Fenced,
    /// Over [`Capabilities::max_frame`]. Nothing was written.
    #[error("a log frame of {bytes} bytes is over the engine's limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What the engine takes.
        limit: usize,
    },
    /// The outcome is unknown: send the same frame again.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
}

/// Why a log cannot be read from a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// Older frames were dropped.
    #[error("the log begins at {}", first.0)]
    Truncated {
        /// The oldest one left.
        first: LogPosition,
    },
    /// The engine has no such partition.
    #[error("the engine has no partition {0}")]
    UnknownPartition(u16),
    /// The engine cannot be reached.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
}
