//! Logs, leases and snapshots on NATS JetStream: what a cluster of core nodes shares.
//!
//! A partition has a stream with one subject. Its frames say which sequence they follow, and there is one in flight: a
//! claim is a frame like any other, so the frame of an owner that was replaced expects a place that is taken. Who tries
//! is said by a key-value bucket; who writes is decided by the stream.

mod config;
mod frame;
mod log;
mod names;
mod setup;
mod snapshots;
mod table;
mod versions;
mod watch;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use tidegate_protocol::NodeId;
use tidegate_transport::clock;
use tokio::time::sleep;

pub use self::config::{NatsConfig, NatsError, NatsLogin};
use self::log::{End, EndError, Fence, Log, Origin, Outcome};
use self::names::Names;
use self::table::{Entry, ReadError, Table};
use self::watch::NatsWatch;
use super::{
    About, AppendError, Capabilities, Claim, ClaimError, Engine, EngineFuture, JoinError, LogPosition,
    Membership, NodeRecord, PartitionId, ReplayError, Snapshot, Unavailable, Watch,
};

/// An engine on a NATS cluster.
#[derive(Debug)]
pub struct NatsEngine {
    table: Table,
    logs: Vec<Log>,
    config: NatsConfig,
    capabilities: Capabilities,
}

impl NatsEngine {
    /// Connects, and makes what is missing. Must be called on the runtime that outlives the engine: the connection's
    /// task runs there.
    ///
    /// # Errors
    /// [`NatsError`] says what is wrong and what to do. Servers that are not there are tried for
    /// [`NatsConfig::connect_timeout`].
    pub async fn connect(config: NatsConfig, partitions: u16) -> Result<Self, NatsError> {
        let wire = setup::connect(&config).await?;
        let names = Names::new(&config.prefix, &config.region);
        setup::streams(&wire, &names, &config, partitions).await?;
        let capabilities = Capabilities {
            durable: true,
            replicated: config.replicas > 1,
            shared: true,
            max_frame: MAX_FRAME,
            lease: config.lease,
        };
        let logs = (0..partitions).map(|partition| Log::new(&names, partition)).collect();
        let table = Table { wire, names, process: clock::rng().random_range(1..=u64::MAX) };
        Ok(Self { table, logs, config, capabilities })
    }

    fn log(&self, partition: PartitionId) -> Option<&Log> {
        self.logs.get(usize::from(partition.0))
    }

    fn fits(&self, bytes: &Bytes) -> Result<(), AppendError> {
        let (bytes, limit) = (bytes.len(), MAX_FRAME);
        if bytes > limit { Err(AppendError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    async fn claim_log(&self, partition: PartitionId, node: &NodeId) -> Result<Claim, ClaimError> {
        let log = self.log(partition).ok_or(ClaimError::UnknownPartition(partition.0))?;
        let take = |entry: &Entry| {
            let record = entry.record.claimed(node, entry.record.epoch, entry.record.high_water);
            Ok(Entry { record, ..entry.clone() })
        };
        let mut entry =
            self.table.change(partition, take).await.map_err(|error| refused(partition, error))?;
        let deadline = clock::now() + CLAIM;
        loop {
            let reason = match log.end(&self.table.wire).await {
                Ok(end) => match self.fence(log, &mut entry, &end, node).await? {
                    Fenced::Claimed(claim) => return Ok(claim),
                    Fenced::Again(reason) => reason,
                },
                Err(EndError::Newer(version)) => {
                    let reason = format!("its last frame is in format {version}: upgrade this node");
                    return Err(ClaimError::Damaged { partition: partition.0, reason });
                }
                Err(EndError::Unavailable(error)) => match self.remake_if_gone(log).await {
                    Ok(true) => continue,
                    Ok(false) => error.0,
                    Err(error) => error.to_string(),
                },
            };
            if clock::now() >= deadline {
                return Err(ClaimError::Unavailable(reason));
            }
            sleep(PAUSE).await;
        }
    }

    /// A stream that was deleted is made anew, and empty: what the record says of it tells that frames were lost. Its
    /// partition has another epoch then, and clients are told, instead of waiting for what does not come back.
    async fn remake_if_gone(&self, log: &Log) -> Result<bool, NatsError> {
        if !matches!(log.is_missing(&self.table.wire).await, Ok(true)) {
            return Ok(false);
        }
        let partition = log.partition().0;
        tracing::error!(partition, reason = log.is_gone(), "what was in it is lost: an empty one is made");
        setup::remake_log(&self.table.wire, &self.table.names, &self.config, partition).await?;
        Ok(true)
    }

    /// Writes the claim behind what is there.
    async fn fence(
        &self,
        log: &Log,
        entry: &mut Entry,
        end: &End,
        node: &NodeId,
    ) -> Result<Fenced, ClaimError> {
        let (partition, term) = (log.partition(), entry.record.term);
        if end.last.is_some_and(|last| last.term > term) {
            return Err(ClaimError::Unavailable(OUTRUN.to_owned()));
        }
        let sequence = end.extent.last;
        // No frame that is there, sound or not, has a position behind this.
        let highest = sequence.saturating_sub(entry.lag);
        let mut position = end.last.map_or(highest, |last| last.position);
        // A claim that went no further than the record has begun this epoch already.
        let begun = entry.record.epoch != 0 && entry.begins == position.max(highest) + 1;
        let lost = if begun && entry.lag <= sequence { None } else { lost(entry, end, position) };
        if let Some(reason) = lost {
            if entry.record.epoch != 0 {
                tracing::error!(
                    partition = partition.0,
                    reason,
                    "frames were lost: the log gets another epoch"
                );
            }
            position = position.max(highest);
            let epoch = clock::rng().random_range(1..=u64::MAX);
            let begin = |entry: &Entry| {
                let mut entry = entry.of(term)?;
                (entry.record.epoch, entry.record.high_water) = (epoch, position);
                (entry.begins, entry.start) = (position + 1, sequence + 1);
                (entry.lag, entry.snapshot) = (sequence - position, None);
                Ok(entry)
            };
            *entry = self.table.change(partition, begin).await.map_err(|error| refused(partition, error))?;
            log.forget();
        } else if begun {
            position = position.max(highest);
        }
        let epoch = entry.record.epoch;
        let before = end.last.filter(|last| last.epoch == epoch);
        let fence = Fence { sequence, position, term, epoch, before, owner: node.as_str() };
        match log.fence(&self.table.wire, fence).await {
            Outcome::Stored => self.claimed(log, entry, sequence + 1, position).await,
            Outcome::Taken => Ok(Fenced::Again("another owner is still writing".to_owned())),
            Outcome::Refused(reason) => Err(ClaimError::Damaged { partition: partition.0, reason }),
            Outcome::Unknown(reason) => Ok(Fenced::Again(reason)),
        }
    }

    /// The claim that stands at `sequence`, behind the frame at `position`.
    async fn claimed(
        &self,
        log: &Log,
        entry: &Entry,
        sequence: u64,
        position: u64,
    ) -> Result<Fenced, ClaimError> {
        let (partition, term) = (log.partition(), entry.record.term);
        // So that a log whose frames are all gone has its positions still, and one that is lost soon is not taken for
        // one that was never there.
        let note = |entry: &Entry| {
            let mut entry = entry.of(term)?;
            entry.lag = sequence - position;
            Ok(entry)
        };
        self.table.change(partition, note).await.map_err(|error| refused(partition, error))?;
        let first = log.first(&self.table.wire).await.map_err(|error| ClaimError::Unavailable(error.0))?;
        let first = first.unwrap_or(position + 1).max(entry.begins);
        let (first, tail) = (LogPosition(first), LogPosition(position));
        Ok(Fenced::Claimed(Claim::new(partition, term, entry.record.epoch, first, tail)))
    }
}

enum Fenced {
    Claimed(Claim),
    Again(String),
}

/// Why the log is not the one of the record, if it is not.
fn lost(entry: &Entry, end: &End, position: u64) -> Option<String> {
    let record = &entry.record;
    if record.epoch == 0 {
        return Some("it was never claimed".to_owned());
    }
    if let Some(reason) = &end.broken {
        return Some(reason.clone());
    }
    if position < record.high_water || end.extent.last < entry.lag {
        return Some(format!("it ends at {position} and reached to {} before", record.high_water));
    }
    end.last
        .filter(|last| last.epoch != record.epoch)
        .map(|last| format!("its last frame is of epoch {} and not {}", last.epoch, record.epoch))
}

/// Why the table did not let us have a partition.
fn refused(partition: PartitionId, error: AppendError) -> ClaimError {
    match error {
        AppendError::Refused(reason) => ClaimError::Damaged { partition: partition.0, reason },
        AppendError::Unavailable(reason) => ClaimError::Unavailable(reason),
        // Only the table speaks here, which takes any size.
        AppendError::Fenced | AppendError::TooLarge { .. } => ClaimError::Unavailable(OUTRUN.to_owned()),
    }
}

impl Engine for NatsEngine {
    fn join(&self, node: NodeRecord) -> EngineFuture<'_, Result<Box<dyn Membership>, JoinError>> {
        Box::pin(async move {
            let membership = self.table.join(node, self.capabilities.lease).await?;
            Ok(Box::new(membership) as Box<dyn Membership>)
        })
    }

    fn watch(&self) -> EngineFuture<'_, Result<Box<dyn Watch>, Unavailable>> {
        Box::pin(async {
            let watch = NatsWatch::begin(self.table.clone()).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn claim(&self, partition: PartitionId, node: &NodeId) -> EngineFuture<'_, Result<Claim, ClaimError>> {
        let node = node.clone();
        Box::pin(async move { self.claim_log(partition, &node).await })
    }

    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>> {
        Box::pin(async move {
            self.fits(&frame)?;
            let log = self.log(claim.partition()).ok_or(AppendError::Fenced)?;
            log.append(&self.table.wire, claim, &frame).await
        })
    }

    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>> {
        Box::pin(async move {
            let log = self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
            let origin = || self.origin(partition);
            log.replay(&self.table.wire, from.0, origin).await
        })
    }

    fn propose<'a>(
        &'a self,
        claim: &'a Claim,
        next: Option<&'a NodeId>,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(self.change_record(claim.partition(), move |record| record.proposed(claim.term(), next)))
    }

    fn ready<'a>(
        &'a self,
        partition: PartitionId,
        term: u64,
        node: &'a NodeId,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(self.change_record(partition, move |record| record.readied(term, node)))
    }

    fn note_high_water<'a>(&'a self, claim: &'a Claim) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(self.change_record(claim.partition(), |record| record.noted(claim.term(), claim.tail().0)))
    }

    fn put_piece<'a>(
        &'a self,
        claim: &'a Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(async move {
            self.fits(&piece)?;
            self.table.put_piece(claim, at, index, piece).await
        })
    }

    fn finish_snapshot<'a>(
        &'a self,
        claim: &'a Claim,
        snapshot: Snapshot,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(self.table.finish_snapshot(claim, snapshot))
    }

    fn snapshot(&self, partition: PartitionId) -> EngineFuture<'_, Result<Option<Snapshot>, ReplayError>> {
        Box::pin(async move {
            self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
            self.table.snapshot(partition).await
        })
    }

    fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> EngineFuture<'_, Result<Bytes, ReplayError>> {
        Box::pin(async move {
            self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
            self.table.read_piece(partition, at, index).await
        })
    }

    fn release(&self, claim: Claim, to: Option<NodeId>) -> EngineFuture<'_, ()> {
        Box::pin(async move {
            let (partition, tail) = (claim.partition(), claim.tail().0);
            let released = self.change_record(partition, |record| {
                record.given_up(claim.term(), tail, to.clone()).ok_or(AppendError::Fenced)
            });
            // Without it the others wait until the node's lease ends.
            if let Err(error) = released.await {
                tracing::warn!(partition = partition.0, %error, "the partition could not be given up in order");
            }
        })
    }

    fn takes_frames(&self, partition: PartitionId) -> EngineFuture<'_, bool> {
        Box::pin(async move {
            match self.log(partition) {
                Some(log) => log.has_room(&self.table.wire, &self.table.names.probe(partition)).await,
                None => false,
            }
        })
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn about(&self) -> About {
        About { name: "nats", version: Some(self.table.wire.client.server_info().version) }
    }
}

impl NatsEngine {
    async fn origin(&self, partition: PartitionId) -> Result<Origin, ReplayError> {
        match self.table.entry(partition).await {
            Ok((entry, _)) => Ok(Origin { begins: entry.begins, start: entry.start, lag: entry.lag }),
            Err(ReadError::Unavailable(error)) => Err(ReplayError::Unavailable(error.0)),
            Err(ReadError::Damaged(reason)) => Err(ReplayError::Unavailable(reason)),
        }
    }

    async fn change_record(
        &self,
        partition: PartitionId,
        change: impl Fn(&super::PartitionRecord) -> Result<super::PartitionRecord, AppendError> + Send + Sync,
    ) -> Result<(), AppendError> {
        let change = |entry: &Entry| Ok(Entry { record: change(&entry.record)?, ..entry.clone() });
        self.table.change(partition, change).await.map(drop)
    }
}

/// Replicas copy it as one entry, and a message holds it twice over as base64.
const MAX_FRAME: usize = 512 << 10;
/// How long a claim is tried; its node comes again.
const CLAIM: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(20);
const OUTRUN: &str = "another node claimed the partition at the same time";
