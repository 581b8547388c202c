//! What is written besides the log: snapshots, and the high water that tells a log that lost its end.
//!
//! Both are written by tasks of their own, next to the log. The driver only takes the pieces of a snapshot, one between
//! two batches, as fast as they are written: publishes do not wait for them. One that fails is tried again, more and more
//! rarely; the one before it stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_transport::clock;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Partition;
use crate::channel::SnapshotCursor;
use crate::engine::{AppendError, Claim, Engine, LogPosition, Snapshot};
use crate::metrics::CoreMetrics;

/// When something is due, and what is being written.
#[derive(Debug)]
pub(super) struct Keeping {
    frames: u64,
    frames_in_snapshot: u64,
    snapshot_at: Instant,
    /// Snapshots in a row that were not written.
    failures: u32,
    note_at: Instant,
    noting: Option<JoinHandle<()>>,
    writing: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    cursor: SnapshotCursor,
    /// `None` once all of them are out, or the writer takes no more.
    pieces: Option<mpsc::Sender<Piece>>,
    /// Whether it was written.
    outcome: oneshot::Receiver<bool>,
    /// Log frames that it holds.
    frames: u64,
}

/// Of a snapshot. One that does not come to its end is none.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next one.
    Next(Bytes),
    /// That was all.
    End,
}

impl Keeping {
    /// Nothing is due yet. Partitions that start together are not due together.
    pub(super) fn new(partition: &Partition) -> Self {
        let now = clock::now();
        let share = f64::from(partition.claim.partition().0 % partition.config.partitions + 1)
            / f64::from(partition.config.partitions);
        Self {
            frames: 0,
            frames_in_snapshot: 0,
            snapshot_at: now + partition.config.snapshot_every.mul_f64(share),
            failures: 0,
            note_at: now + NOTE_EVERY,
            noting: None,
            writing: None,
        }
    }

    /// A frame was written.
    pub(super) fn count(&mut self) {
        self.frames += 1;
    }

    /// Begins what is due. Call it now and then, between batches.
    pub(super) fn begin(&mut self, partition: &Partition) {
        let now = clock::now();
        let idle = self.noting.as_ref().is_none_or(JoinHandle::is_finished);
        if partition.status.lag() > 0 && now >= self.note_at && idle {
            self.note_at = now + NOTE_EVERY;
            let (engine, claim) = (Arc::clone(&partition.engine), at_its_tail(&partition.claim));
            let status = Arc::clone(&partition.status);
            self.noting = Some(spawn(partition, async move {
                match engine.note_high_water(&claim).await {
                    Ok(()) => status.set_noted(claim.tail().0),
                    Err(error) => {
                        debug!(partition = claim.partition().0, %error, "the high water was not noted");
                    }
                }
            }));
        }
        self.look(partition, now);
        let frames = self.frames - self.frames_in_snapshot;
        let many = self.failures == 0 && frames >= partition.config.snapshot_frames;
        if frames > 0 && (many || now >= self.snapshot_at) && self.writing.is_none() {
            let (pieces, queue) = mpsc::channel(1);
            let (done, outcome) = oneshot::channel();
            let cursor = partition.table.begin_snapshot();
            self.writing = Some(Writing { cursor, pieces: Some(pieces), outcome, frames: self.frames });
            let (engine, claim) = (Arc::clone(&partition.engine), at_its_tail(&partition.claim));
            let metrics = partition.metrics.clone();
            spawn(partition, async move {
                let _ = done.send(write(engine, claim, queue, metrics).await);
            });
        }
    }

    /// Looks what became of the snapshot that is being written.
    fn look(&mut self, partition: &Partition, now: Instant) {
        let Some(writing) = &mut self.writing else { return };
        let frames = writing.frames;
        match writing.outcome.try_recv() {
            Err(TryRecvError::Empty) => return,
            Ok(true) => {
                if self.failures > 0 {
                    info!(partition = partition.claim.partition().0, "a snapshot is written again");
                }
                self.failures = 0;
                self.frames_in_snapshot = frames;
                self.snapshot_at = now + partition.config.snapshot_every;
            }
            Ok(false) | Err(TryRecvError::Closed) => {
                let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(10));
                self.failures = self.failures.saturating_add(1);
                self.snapshot_at = now + pause.min(LAST_RETRY).min(partition.config.snapshot_every);
            }
        }
        self.writing = None;
    }

    /// What is being written is of a table that is not there any more.
    pub(super) fn forget(&mut self) {
        self.writing = None;
    }

    /// Waits until the next piece can be written; for ever while no snapshot is being written.
    pub(super) async fn ready(&self) -> Option<OwnedPermit<Piece>> {
        match self.writing.as_ref().and_then(|writing| writing.pieces.clone()) {
            Some(pieces) => pieces.reserve_owned().await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes a piece out of the table. Without a permit its writer has given up.
    pub(super) fn write_piece(&mut self, partition: &Partition, permit: Option<OwnedPermit<Piece>>) {
        let Some(writing) = &mut self.writing else { return };
        let Some(permit) = permit else {
            writing.pieces = None;
            return;
        };
        match partition.table.snapshot_piece(&mut writing.cursor, PIECE_BYTES) {
            Some(piece) => drop(permit.send(Piece::Next(piece))),
            None => {
                permit.send(Piece::End);
                writing.pieces = None;
            }
        }
    }
}

/// Writes pieces up to the end; then they are the snapshot of what the log said up to the claim's tail. False where that
/// did not succeed.
async fn write(
    engine: Arc<dyn Engine>,
    claim: Claim,
    queue: mpsc::Receiver<Piece>,
    metrics: CoreMetrics,
) -> bool {
    let (partition, at, began) = (claim.partition().0, claim.tail(), clock::now());
    match try_to_write(&*engine, &claim, queue).await {
        Ok(Some((pieces, bytes))) => {
            let took = clock::now().saturating_duration_since(began);
            metrics.observe_snapshot(took, bytes);
            debug!(partition, at = at.0, pieces, bytes, ?took, "snapshot written");
            true
        }
        // Its partition has ended, or is built anew.
        Ok(None) => false,
        Err(error) => {
            metrics.count_snapshot_failure();
            warn!(partition, %error, "a snapshot was not written; the one before it stays");
            false
        }
    }
}

/// How many pieces there were, and bytes in them; `None` where the last one did not come.
async fn try_to_write(
    engine: &dyn Engine,
    claim: &Claim,
    mut queue: mpsc::Receiver<Piece>,
) -> Result<Option<(u32, u64)>, AppendError> {
    let at = claim.tail();
    let (mut pieces, mut bytes) = (0, 0);
    loop {
        match queue.recv().await {
            Some(Piece::Next(piece)) => {
                bytes += piece.len() as u64;
                engine.put_piece(claim, at, pieces, piece).await?;
            }
            Some(Piece::End) => break,
            None => return Ok(None),
        }
        pieces += 1;
    }
    engine.finish_snapshot(claim, Snapshot { at, pieces }).await?;
    Ok(Some((pieces, bytes)))
}

/// The claim, to be shown while the partition goes on writing with it.
fn at_its_tail(claim: &Claim) -> Claim {
    Claim::new(claim.partition(), claim.term(), claim.epoch(), claim.first(), LogPosition(claim.tail().0))
}

/// Ends with the partition.
fn spawn(partition: &Partition, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    let ended: CancellationToken = partition.abort.clone();
    partition.tracker.spawn(async move {
        tokio::select! {
            biased;
            () = ended.cancelled() => {}
            () = task => {}
        }
    })
}

const NOTE_EVERY: Duration = Duration::from_secs(2);
/// Some thousands of channels, and well under a millisecond.
const PIECE_BYTES: usize = 128 << 10;
/// Before a snapshot that was not written is tried again; twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use tidegate_protocol::NodeId;

    use super::*;
    use crate::engine::{MemoryEngine, PartitionId};

    #[tokio::test]
    async fn pieces_without_an_end_are_no_snapshot() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(1, 1, 1 << 20));
        let partition = PartitionId(0);
        let mut claim = engine.claim(partition, &NodeId::new("core-1")).await.expect("free");
        engine.append(&mut claim, Bytes::from_static(b"frame")).await.expect("stored");
        for (end, written) in [(false, None), (true, Some(1))] {
            let (pieces, queue) = mpsc::channel(2);
            pieces.send(Piece::Next(Bytes::from_static(b"piece"))).await.expect("room");
            if end {
                pieces.send(Piece::End).await.expect("room");
            }
            drop(pieces);
            let done = write(Arc::clone(&engine), at_its_tail(&claim), queue, CoreMetrics::new()).await;
            assert_eq!(done, end);
            let snapshot = engine.snapshot(partition).await.expect("readable");
            assert_eq!(snapshot.map(|snapshot| snapshot.pieces), written);
        }
    }
}
