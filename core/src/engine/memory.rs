//! Logs in the memory of the process: for `dev`, for one node without durability, and for tests.

use std::collections::VecDeque;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidegate_protocol::NodeId;

use super::leases::Leases;
use super::{
    About, AppendError, Capabilities, Claim, ClaimError, Engine, EngineFuture, JoinError, LogPosition,
    Membership, NodeRecord, PartitionId, PartitionRecord, ReplayError, Snapshot, Unavailable, Watch,
};

/// Logs and leases that end with the process; several core nodes in it may share them.
#[derive(Debug)]
pub struct MemoryEngine {
    retain_bytes: usize,
    logs: Vec<Mutex<Log>>,
    leases: Leases,
}

impl MemoryEngine {
    /// Empty logs for `partitions`, each keeping its newest frames up to `retain_bytes`.
    ///
    /// `epoch` must never come back: take it from `clock::rng()`. It tells clients of an earlier process that their
    /// positions mean nothing here.
    pub fn new(epoch: u64, partitions: u16, retain_bytes: usize) -> Self {
        Self::with_lease(epoch, partitions, retain_bytes, DEFAULT_LEASE)
    }

    /// The same with memberships that last for `lease`.
    pub fn with_lease(epoch: u64, partitions: u16, retain_bytes: usize, lease: Duration) -> Self {
        let logs = (0..partitions).map(|_| Mutex::new(Log::new(epoch))).collect();
        let records = vec![PartitionRecord::default(); usize::from(partitions)];
        Self { retain_bytes, logs, leases: Leases::new(lease, records) }
    }

    /// Who owns the partition, and its log: locked, so that both change together.
    fn log(&self, partition: PartitionId) -> Option<(PartitionRecord, MutexGuard<'_, Log>)> {
        let log = self.logs.get(usize::from(partition.0))?;
        // No method of `Log` leaves it half changed.
        let log = log.lock().unwrap_or_else(PoisonError::into_inner);
        Some((self.leases.partition(partition)?, log))
    }

    fn owned(&self, claim: &Claim) -> Result<(PartitionRecord, MutexGuard<'_, Log>), AppendError> {
        let (record, log) = self.log(claim.partition()).ok_or(AppendError::Fenced)?;
        if record.term == claim.term() { Ok((record, log)) } else { Err(AppendError::Fenced) }
    }

    fn claim_now(&self, partition: PartitionId, node: &NodeId) -> Result<Claim, ClaimError> {
        let (record, mut log) = self.log(partition).ok_or(ClaimError::UnknownPartition(partition.0))?;
        if log.tail.0 < record.high_water {
            log.begin_anew();
        }
        let record = record.claimed(node, log.epoch, log.tail.0);
        let claim = Claim::new(partition, record.term, log.epoch, log.first(), log.tail);
        self.leases.set_partition(partition, record);
        Ok(claim)
    }

    fn append_now(&self, claim: &mut Claim, frame: Bytes) -> Result<LogPosition, AppendError> {
        if frame.len() > MAX_FRAME {
            return Err(AppendError::TooLarge { bytes: frame.len(), limit: MAX_FRAME });
        }
        let (_, mut log) = self.owned(claim)?;
        if log.tail == claim.tail() {
            log.push(frame, self.retain_bytes);
        } else if log.get(claim.tail().next()) != Some(&frame) {
            // Only the frame that is in flight may be sent again.
            return Err(AppendError::Fenced);
        }
        Ok(claim.advance())
    }

    fn replay_now(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> Result<Vec<(LogPosition, Bytes)>, ReplayError> {
        let (_, log) = self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
        let first = log.first();
        if from < first {
            return Err(ReplayError::Truncated { first });
        }
        let skipped = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        let positions = (from.0..).map(LogPosition);
        let frames = log.frames.iter().skip(skipped).take(REPLAY_FRAMES);
        Ok(positions.zip(frames.cloned()).collect())
    }

    fn put_piece_now(
        &self,
        claim: &Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> Result<(), AppendError> {
        if piece.len() > MAX_FRAME {
            return Err(AppendError::TooLarge { bytes: piece.len(), limit: MAX_FRAME });
        }
        let (_, mut log) = self.owned(claim)?;
        log.put_piece(claim, at, index, piece)
    }

    fn read_piece_now(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> Result<Bytes, ReplayError> {
        let (_, log) = self.log(partition).ok_or(ReplayError::UnknownPartition(partition.0))?;
        let held = log.snapshot.as_ref().filter(|held| held.at == at);
        let piece = held.and_then(|held| held.pieces.get(usize::try_from(index).ok()?));
        piece.cloned().ok_or_else(|| ReplayError::Truncated { first: log.first() })
    }

    fn propose_now(&self, claim: &Claim, next: Option<&NodeId>) -> Result<(), AppendError> {
        let (record, _log) = self.log(claim.partition()).ok_or(AppendError::Fenced)?;
        self.leases.set_partition(claim.partition(), record.proposed(claim.term(), next)?);
        Ok(())
    }

    fn ready_now(&self, partition: PartitionId, term: u64, node: &NodeId) -> Result<(), AppendError> {
        let (record, _log) = self.log(partition).ok_or(AppendError::Fenced)?;
        self.leases.set_partition(partition, record.readied(term, node)?);
        Ok(())
    }

    fn note_now(&self, claim: &Claim) -> Result<(), AppendError> {
        let (record, _log) = self.log(claim.partition()).ok_or(AppendError::Fenced)?;
        self.leases.set_partition(claim.partition(), record.noted(claim.term(), claim.tail().0)?);
        Ok(())
    }

    fn release_now(&self, claim: &Claim, to: Option<NodeId>) {
        let Some((record, _log)) = self.log(claim.partition()) else { return };
        if let Some(record) = record.given_up(claim.term(), claim.tail().0, to) {
            self.leases.set_partition(claim.partition(), record);
        }
    }
}

impl Engine for MemoryEngine {
    fn join(&self, node: NodeRecord) -> EngineFuture<'_, Result<Box<dyn Membership>, JoinError>> {
        Box::pin(ready(self.leases.join(node)))
    }

    fn watch(&self) -> EngineFuture<'_, Result<Box<dyn Watch>, Unavailable>> {
        Box::pin(ready(Ok(self.leases.watch())))
    }

    fn claim(&self, partition: PartitionId, node: &NodeId) -> EngineFuture<'_, Result<Claim, ClaimError>> {
        Box::pin(ready(self.claim_now(partition, node)))
    }

    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>> {
        Box::pin(ready(self.append_now(claim, frame)))
    }

    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>> {
        Box::pin(ready(self.replay_now(partition, from)))
    }

    fn propose<'a>(
        &'a self,
        claim: &'a Claim,
        next: Option<&'a NodeId>,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(ready(self.propose_now(claim, next)))
    }

    fn ready<'a>(
        &'a self,
        partition: PartitionId,
        term: u64,
        node: &'a NodeId,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(ready(self.ready_now(partition, term, node)))
    }

    fn note_high_water<'a>(&'a self, claim: &'a Claim) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(ready(self.note_now(claim)))
    }

    fn put_piece<'a>(
        &'a self,
        claim: &'a Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        Box::pin(ready(self.put_piece_now(claim, at, index, piece)))
    }

    fn finish_snapshot<'a>(
        &'a self,
        claim: &'a Claim,
        snapshot: Snapshot,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let finished = self.owned(claim).and_then(|(_, mut log)| log.finish_snapshot(claim, snapshot));
        Box::pin(ready(finished))
    }

    fn snapshot(&self, partition: PartitionId) -> EngineFuture<'_, Result<Option<Snapshot>, ReplayError>> {
        let unknown = ReplayError::UnknownPartition(partition.0);
        let held = self.log(partition).ok_or(unknown);
        Box::pin(ready(held.map(|(_, log)| log.snapshot.as_ref().map(Pieces::describe))))
    }

    fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> EngineFuture<'_, Result<Bytes, ReplayError>> {
        Box::pin(ready(self.read_piece_now(partition, at, index)))
    }

    fn release(&self, claim: Claim, to: Option<NodeId>) -> EngineFuture<'_, ()> {
        self.release_now(&claim, to);
        Box::pin(ready(()))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: false,
            replicated: false,
            shared: true,
            max_frame: MAX_FRAME,
            lease: self.leases.lease(),
        }
    }

    fn about(&self) -> About {
        About { name: "memory", version: None }
    }
}

#[derive(Debug)]
struct Log {
    epoch: u64,
    tail: LogPosition,
    /// The newest, up to and with `tail`.
    frames: VecDeque<Bytes>,
    bytes: usize,
    snapshot: Option<Pieces>,
    /// The one that is being written.
    unfinished: Option<Pieces>,
}

#[derive(Debug)]
struct Pieces {
    term: u64,
    at: LogPosition,
    pieces: Vec<Bytes>,
}

impl Pieces {
    fn describe(&self) -> Snapshot {
        Snapshot { at: self.at, pieces: u32::try_from(self.pieces.len()).unwrap_or(u32::MAX) }
    }
}

impl Log {
    fn new(epoch: u64) -> Self {
        Self {
            epoch,
            tail: LogPosition(0),
            frames: VecDeque::new(),
            bytes: 0,
            snapshot: None,
            unfinished: None,
        }
    }

    /// Behind its tail, in another epoch.
    fn begin_anew(&mut self) {
        *self = Self { tail: self.tail, ..Self::new(self.epoch.wrapping_add(1)) };
    }

    fn first(&self) -> LogPosition {
        LogPosition(self.tail.0 + 1 - self.frames.len() as u64)
    }

    fn get(&self, position: LogPosition) -> Option<&Bytes> {
        let index = position.0.checked_sub(self.first().0)?;
        self.frames.get(usize::try_from(index).ok()?)
    }

    fn push(&mut self, frame: Bytes, retain_bytes: usize) {
        self.tail = self.tail.next();
        self.bytes += frame.len();
        self.frames.push_back(frame);
        while self.bytes > retain_bytes
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    fn put_piece(
        &mut self,
        claim: &Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> Result<(), AppendError> {
        let term = claim.term();
        if index == 0 && at <= self.tail {
            self.unfinished = Some(Pieces { term, at, pieces: vec![piece] });
            return Ok(());
        }
        let written = self.unfinished.as_mut().filter(|written| (written.term, written.at) == (term, at));
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match written {
            // The last one may come again: its writer did not hear that it was written.
            Some(written) if index > 0 && index <= written.pieces.len() => {
                written.pieces.truncate(index);
                written.pieces.push(piece);
                Ok(())
            }
            _ => Err(out_of_order()),
        }
    }

    fn finish_snapshot(&mut self, claim: &Claim, snapshot: Snapshot) -> Result<(), AppendError> {
        let is_it = |held: &Pieces| held.term == claim.term() && held.describe() == snapshot;
        if self.unfinished.as_ref().is_some_and(is_it) {
            self.snapshot = self.unfinished.take();
        } else if !self.snapshot.as_ref().is_some_and(is_it) {
            return Err(out_of_order());
        }
        Ok(())
    }
}

fn out_of_order() -> AppendError {
    AppendError::Refused("pieces of a snapshot were not written in order".to_owned())
}

const MAX_FRAME: usize = 8 << 20;
const REPLAY_FRAMES: usize = 64;
const DEFAULT_LEASE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::conformance;

    struct Memory(Arc<MemoryEngine>);

    impl conformance::Setup for Memory {
        fn engine(&self) -> Arc<dyn Engine> {
            Arc::clone(&self.0) as _
        }

        fn second(&self) -> Arc<dyn Engine> {
            self.engine()
        }

        async fn reopen(&mut self) {
            unreachable!("not durable");
        }

        async fn lose_tail(&mut self, partition: PartitionId, keep: LogPosition) -> bool {
            let (_, mut log) = self.0.log(partition).expect("there");
            log.frames.truncate(usize::try_from(keep.0).expect("few"));
            log.tail = keep;
            true
        }

        fn retained(&self) -> Option<usize> {
            Some(self.0.retain_bytes)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        let engine = MemoryEngine::new(7, conformance::PARTITIONS, 16 << 20);
        conformance::run(&mut Memory(Arc::new(engine))).await;
    }

    #[tokio::test]
    async fn a_restarted_engine_has_another_epoch() {
        let claim = |epoch| async move {
            let engine = MemoryEngine::new(epoch, 1, 0);
            engine.claim(PartitionId(0), &NodeId::new("local")).await.expect("claimed").epoch()
        };
        assert_ne!(claim(1).await, claim(2).await);
    }
}
