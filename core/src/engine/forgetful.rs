//! For tests: an engine that loses acknowledgements, is full, gives some partitions to nobody, or never answers a node that
//! wants to go on living.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tidegate_protocol::NodeId;

use super::{
    About, AppendError, Capabilities, Claim, ClaimError, Engine, EngineFuture, JoinError, LogPosition,
    Membership, NodeRecord, PartitionId, RenewError, ReplayError, Snapshot, Unavailable, Watch,
};

/// Stores what it is given, and when told to, says that it does not know.
#[derive(Debug)]
pub(crate) struct Forgetful {
    inner: Arc<dyn Engine>,
    lose: AtomicU32,
    full: AtomicBool,
    silent: Arc<AtomicBool>,
    replicated: AtomicBool,
    /// Partitions that can be neither claimed nor read.
    cursed: Mutex<BTreeSet<u16>>,
    /// Pieces of snapshots that are still to be refused.
    pieces_refused: AtomicU32,
}

impl Forgetful {
    /// Forgets nothing yet.
    pub(crate) fn new(inner: Arc<dyn Engine>) -> Self {
        Self {
            inner,
            lose: AtomicU32::new(0),
            full: AtomicBool::new(false),
            silent: Arc::default(),
            replicated: AtomicBool::new(false),
            cursed: Mutex::default(),
            pieces_refused: AtomicU32::new(0),
        }
    }

    /// It says that it keeps frames on several machines.
    pub(crate) fn set_replicated(&self) {
        self.replicated.store(true, Ordering::Relaxed);
    }

    /// From now on these can be claimed and read by nobody over this engine.
    pub(crate) fn curse(&self, partitions: impl IntoIterator<Item = u16>) {
        *self.cursed.lock().expect("no panic") = partitions.into_iter().collect();
    }

    /// Refuses the next `count` pieces of snapshots.
    pub(crate) fn refuse_pieces(&self, count: u32) {
        self.pieces_refused.store(count, Ordering::Relaxed);
    }

    /// From now on there is no room for appends, or there is again.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// From now on renewals are not answered and nobody can join, or both are as before.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// Loses the acknowledgements of the next `count` appends.
    pub(crate) fn lose(&self, count: u32) {
        self.lose.store(count, Ordering::Relaxed);
    }

    fn is_cursed(&self, partition: PartitionId) -> bool {
        self.cursed.lock().expect("no panic").contains(&partition.0)
    }

    fn loses(&self) -> bool {
        self.lose.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Engine for Forgetful {
    fn join(&self, node: NodeRecord) -> EngineFuture<'_, Result<Box<dyn Membership>, JoinError>> {
        Box::pin(async move {
            if self.silent.load(Ordering::Relaxed) {
                return Err(Unavailable("no answer".to_owned()).into());
            }
            let inner = self.inner.join(node).await?;
            let membership = Silent { inner, silent: Arc::clone(&self.silent) };
            Ok(Box::new(membership) as Box<dyn Membership>)
        })
    }

    fn watch(&self) -> EngineFuture<'_, Result<Box<dyn Watch>, Unavailable>> {
        self.inner.watch()
    }

    fn claim(&self, partition: PartitionId, node: &NodeId) -> EngineFuture<'_, Result<Claim, ClaimError>> {
        if self.is_cursed(partition) {
            return Box::pin(async { Err(ClaimError::Unavailable("no answer".to_owned())) });
        }
        self.inner.claim(partition, node)
    }

    fn append<'a>(
        &'a self,
        claim: &'a mut Claim,
        frame: Bytes,
    ) -> EngineFuture<'a, Result<LogPosition, AppendError>> {
        Box::pin(async move {
            if self.full.load(Ordering::Relaxed) {
                return Err(AppendError::Refused("the disk is full".to_owned()));
            }
            if self.loses() {
                let mut lost =
                    Claim::new(claim.partition(), claim.term(), claim.epoch(), claim.first(), claim.tail());
                self.inner.append(&mut lost, frame).await?;
                return Err(AppendError::Unavailable("no answer".to_owned()));
            }
            self.inner.append(claim, frame).await
        })
    }

    fn replay(
        &self,
        partition: PartitionId,
        from: LogPosition,
    ) -> EngineFuture<'_, Result<Vec<(LogPosition, Bytes)>, ReplayError>> {
        if self.is_cursed(partition) {
            return Box::pin(async { Err(ReplayError::Unavailable("no answer".to_owned())) });
        }
        self.inner.replay(partition, from)
    }

    fn propose<'a>(
        &'a self,
        claim: &'a Claim,
        next: Option<&'a NodeId>,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        self.inner.propose(claim, next)
    }

    fn ready<'a>(
        &'a self,
        partition: PartitionId,
        term: u64,
        node: &'a NodeId,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        self.inner.ready(partition, term, node)
    }

    fn note_high_water<'a>(&'a self, claim: &'a Claim) -> EngineFuture<'a, Result<(), AppendError>> {
        self.inner.note_high_water(claim)
    }

    fn put_piece<'a>(
        &'a self,
        claim: &'a Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        let refused = &self.pieces_refused;
        if refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Box::pin(async { Err(AppendError::Unavailable("no answer".to_owned())) });
        }
        self.inner.put_piece(claim, at, index, piece)
    }

    fn finish_snapshot<'a>(
        &'a self,
        claim: &'a Claim,
        snapshot: Snapshot,
    ) -> EngineFuture<'a, Result<(), AppendError>> {
        self.inner.finish_snapshot(claim, snapshot)
    }

    fn snapshot(&self, partition: PartitionId) -> EngineFuture<'_, Result<Option<Snapshot>, ReplayError>> {
        self.inner.snapshot(partition)
    }

    fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> EngineFuture<'_, Result<Bytes, ReplayError>> {
        self.inner.read_piece(partition, at, index)
    }

    fn release(&self, claim: Claim, to: Option<NodeId>) -> EngineFuture<'_, ()> {
        self.inner.release(claim, to)
    }

    fn takes_frames(&self, _partition: PartitionId) -> EngineFuture<'_, bool> {
        Box::pin(async { !self.full.load(Ordering::Relaxed) })
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.inner.capabilities();
        let replicated = capabilities.replicated || self.replicated.load(Ordering::Relaxed);
        Capabilities { replicated, ..capabilities }
    }

    fn about(&self) -> About {
        self.inner.about()
    }
}

/// A membership of a node that is cut off at times.
#[derive(Debug)]
struct Silent {
    inner: Box<dyn Membership>,
    silent: Arc<AtomicBool>,
}

impl Membership for Silent {
    fn renew(&mut self) -> EngineFuture<'_, Result<(), RenewError>> {
        if self.silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.inner.renew()
    }

    fn set_declines(&mut self, declines: Vec<u16>) {
        self.inner.set_declines(declines);
    }

    fn leave(self: Box<Self>) -> EngineFuture<'static, ()> {
        self.inner.leave()
    }
}
