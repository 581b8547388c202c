//! What survives a core node: one log of frames per partition, who may write to it, and which nodes are alive.
//!
//! An engine gives order, durability and fencing; it knows nothing of channels. Numbering is the partition's.

#[cfg(any(test, feature = "conformance"))]
#[doc(hidden)]
pub mod conformance;
#[cfg(any(test, feature = "conformance"))]
#[cfg_attr(not(test), expect(dead_code, reason = "the suite uses a part of it"))]
pub(crate) mod forgetful;
mod leases;
mod local;
mod memory;
mod nats;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_protocol::NodeId;

pub use local::{LocalConfig, LocalEngine, LocalError};
pub use memory::MemoryEngine;
pub use nats::{NatsConfig, NatsEngine, NatsError, NatsLogin};

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
    /// Several nodes may share it.
    pub shared: bool,
    /// The largest frame, and the largest piece of a snapshot, bytes.
    pub max_frame: usize,
    /// How long a membership lasts without being renewed.
    pub lease: Duration,
}

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// As `core.engine` names it.
    pub name: &'static str,
    /// Of its servers, where it has any.
    pub version: Option<String>,
}

/// A core node, as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Where edges and other nodes reach its links: `host:port`.
    pub address: String,
    /// The program's version.
    pub version: String,
    /// When it started, milliseconds of Unix time.
    pub started_ms: u64,
    /// Partitions that it failed to take again and again: others are to have them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declines: Vec<u16>,
}

/// Who owns a partition, as the lease table says. It decides who tries; the log decides who may write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Who serves it; `None` before the first claim and after a release to nobody.
    pub owner: Option<NodeId>,
    /// Who is to have it: told to read the log already, and to say when it has.
    pub next: Option<NodeId>,
    /// `next` has read the log up to a short rest.
    pub ready: bool,
    /// The owner has stopped: `next` may claim at once.
    pub released: bool,
    /// Grows with every claim.
    pub term: u64,
    /// Identity of the log.
    pub epoch: u64,
    /// A position that was certainly in the log; one that ends before it has lost frames.
    pub high_water: u64,
}

/// A change of the lease table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A node joined or changed; `None`: it left, or its lease ended.
    Node {
        /// Which one.
        id: NodeId,
        /// What it says of itself.
        record: Option<NodeRecord>,
    },
    /// A partition's record changed.
    Partition {
        /// Which one.
        partition: PartitionId,
        /// What it is now.
        record: PartitionRecord,
    },
    /// Everything that was there when the watch began has been told. Once.
    Synced,
}

/// The right to be taken for alive.
pub trait Membership: Send + std::fmt::Debug {
    /// Proves to be alive for another [`Capabilities::lease`], counted from the call.
    fn renew(&mut self) -> EngineFuture<'_, Result<(), RenewError>>;

    /// [`NodeRecord::declines`] from the next renewal on.
    fn set_declines(&mut self, declines: Vec<u16>);

    /// Says that it goes. Without it the others wait for the lease to end.
    fn leave(self: Box<Self>) -> EngineFuture<'static, ()>;
}

/// Changes of the lease table, beginning with all that is there.
pub trait Watch: Send + std::fmt::Debug {
    /// The next change; `None` where the watch broke: begin another. Cancel-safe.
    fn next(&mut self) -> EngineFuture<'_, Option<ClusterEvent>>;
}

/// A snapshot that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// What the log says up to and with this position is in it.
    pub at: LogPosition,
    /// In how many pieces, from 0.
    pub pieces: u32,
}

/// What an engine's methods return: boxed, since the engine is chosen at run time, once per log frame.
pub type EngineFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Logs, snapshots, the lease table, and the right to write.
pub trait Engine: Send + Sync + std::fmt::Debug + 'static {
    /// Enters the lease table as a live node.
    fn join(&self, node: NodeRecord) -> EngineFuture<'_, Result<Box<dyn Membership>, JoinError>>;

    /// Follows the lease table.
    fn watch(&self) -> EngineFuture<'_, Result<Box<dyn Watch>, Unavailable>>;

    /// Takes the partition for `node`. After `Ok` no older claim can append. A log that ends before its high water, or
    /// whose chain of frames is broken, gets a new epoch and begins behind its tail.
    fn claim(&self, partition: PartitionId, node: &NodeId) -> EngineFuture<'_, Result<Claim, ClaimError>>;

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

    /// The owner asks `next` to prepare (`None`: takes that back). `Fenced` where the claim is not the newest.
    fn propose<'a>(
        &'a self,
        claim: &'a Claim,
        next: Option<&'a NodeId>,
    ) -> EngineFuture<'a, Result<(), AppendError>>;

    /// `node`, which is next while `term` owns the partition, has read the log. `Fenced` where it is not next any more.
    fn ready<'a>(
        &'a self,
        partition: PartitionId,
        term: u64,
        node: &'a NodeId,
    ) -> EngineFuture<'a, Result<(), AppendError>>;

    /// Notes the claim's tail as high water; called every few seconds while frames are written.
    fn note_high_water<'a>(&'a self, claim: &'a Claim) -> EngineFuture<'a, Result<(), AppendError>>;

    /// Writes a piece of the snapshot of what the log says up to `at`; pieces in order, from 0.
    fn put_piece<'a>(
        &'a self,
        claim: &'a Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> EngineFuture<'a, Result<(), AppendError>>;

    /// Makes the pieces written the partition's snapshot, and drops older ones, and frames that nobody needs any more.
    fn finish_snapshot<'a>(
        &'a self,
        claim: &'a Claim,
        snapshot: Snapshot,
    ) -> EngineFuture<'a, Result<(), AppendError>>;

    /// The newest snapshot.
    fn snapshot(&self, partition: PartitionId) -> EngineFuture<'_, Result<Option<Snapshot>, ReplayError>>;

    /// A piece of it; `Truncated` where a newer one has taken its place.
    fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> EngineFuture<'_, Result<Bytes, ReplayError>>;

    /// Gives the partition up in order; `to` may claim it at once.
    fn release(&self, claim: Claim, to: Option<NodeId>) -> EngineFuture<'_, ()>;

    /// After a refusal: whether a frame would be taken again, as far as that is known without writing one. Soon: the
    /// partition waits for it.
    fn takes_frames(&self, _partition: PartitionId) -> EngineFuture<'_, bool> {
        Box::pin(async { true })
    }

    /// What it promises.
    fn capabilities(&self) -> Capabilities;

    /// What it is, for people.
    fn about(&self) -> About;
}

/// The engine cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine is not available: {0}")]
pub struct Unavailable(pub String);

/// Why a node could not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// A live node has this name: names must differ.
    #[error("a node named {0} is alive already: give each node its own name (`node.name`)")]
    NameTaken(NodeId),
    /// The engine cannot be reached.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a membership was not renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// It has ended: join again.
    #[error("the node's lease has ended")]
    Lost,
    /// The outcome is unknown: try again, as long as the lease lasts.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a partition could not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The engine was made with fewer partitions.
    #[error("the engine has no partition {0}")]
    UnknownPartition(u16),
    /// What is stored cannot be read: it needs an operator.
    #[error("the store of partition {partition} is damaged: {reason}")]
    Damaged {
        /// Which one.
        partition: u16,
        /// What and where.
        reason: String,
    },
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
    /// Nothing was written, and nothing can be until somebody makes room or mends the store.
    #[error("the store takes nothing more: {0}")]
    Refused(String),
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
    /// The frame at this position does not follow the one before it: the store lost or swapped frames. The next claim
    /// gives the log a new epoch.
    #[error("frame {} of the log does not follow the one before it: frames were lost", at.0)]
    Diverged {
        /// Which one.
        at: LogPosition,
    },
    /// The engine has no such partition.
    #[error("the engine has no partition {0}")]
    UnknownPartition(u16),
    /// What is stored cannot be read: it needs an operator.
    #[error("the store of partition {partition} is damaged: {reason}")]
    Damaged {
        /// Which one.
        partition: u16,
        /// What and where.
        reason: String,
    },
    /// The engine cannot be reached.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
}
