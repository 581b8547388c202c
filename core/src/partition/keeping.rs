//! What is written besides the log: snapshots, and the high water that tells a log that lost its end.
//!
//! Both are written by tasks of their own, next to the log. The driver only takes the pieces of a snapshot, one between
//! two batches, as fast as they are written: publishes do not wait for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_transport::clock;
use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Partition;
use crate::channel::SnapshotCursor;
use crate::engine::{Claim, Engine, LogPosition, Snapshot};
use crate::metrics::CoreMetrics;

/// When something is due, and what is being written.
#[derive(Debug)]
pub(super) struct Keeping {
    frames: u64,
    frames_noted: u64,
    frames_in_snapshot: u64,
    snapshot_at: Instant,
    note_at: Instant,
    noting: Option<JoinHandle<()>>,
    writing: Option<Writing>,
}

#[derive(Debug)]
struct Writing {
    cursor: SnapshotCursor,
    pieces: mpsc::Sender<Bytes>,
}

impl Keeping {
    /// Nothing is due yet. Partitions that start together are not due together.
    pub(super) fn new(partition: &Partition) -> Self {
        let now = clock::now();
        let share = f64::from(partition.claim.partition().0 % partition.config.partitions + 1)
            / f64::from(partition.config.partitions);
        Self {
            frames: 0,
            frames_noted: 0,
            frames_in_snapshot: 0,
            snapshot_at: now + partition.config.snapshot_every.mul_f64(share),
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
        if self.frames > self.frames_noted && now >= self.note_at && idle {
            self.frames_noted = self.frames;
            self.note_at = now + NOTE_EVERY;
            let (engine, claim) = (Arc::clone(&partition.engine), at_its_tail(&partition.claim));
            self.noting = Some(spawn(partition, async move {
                if let Err(error) = engine.note_high_water(&claim).await {
                    debug!(partition = claim.partition().0, %error, "the high water was not noted");
                }
            }));
        }
        let frames = self.frames - self.frames_in_snapshot;
        let due = frames >= partition.config.snapshot_frames || (now >= self.snapshot_at && frames > 0);
        if due && self.writing.is_none() {
            self.frames_in_snapshot = self.frames;
            self.snapshot_at = now + partition.config.snapshot_every;
            let (pieces, queue) = mpsc::channel(1);
            self.writing = Some(Writing { cursor: partition.table.begin_snapshot(), pieces });
            let (engine, claim) = (Arc::clone(&partition.engine), at_its_tail(&partition.claim));
            spawn(partition, write(engine, claim, queue, partition.metrics.clone()));
        }
    }

    /// What is being written is of a table that is not there any more.
    pub(super) fn forget(&mut self) {
        self.writing = None;
    }

    /// Waits until the next piece can be written; for ever while no snapshot is being written.
    pub(super) async fn ready(&self) -> Option<OwnedPermit<Bytes>> {
        match &self.writing {
            Some(writing) => writing.pieces.clone().reserve_owned().await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes a piece out of the table. Without a permit its writer has given up.
    pub(super) fn write_piece(&mut self, partition: &Partition, permit: Option<OwnedPermit<Bytes>>) {
        let Some((writing, permit)) = self.writing.as_mut().zip(permit) else {
            self.writing = None;
            return;
        };
        match partition.table.snapshot_piece(&mut writing.cursor, PIECE_BYTES) {
            Some(piece) => drop(permit.send(piece)),
            None => self.writing = None,
        }
    }
}

/// Writes pieces until there is none any more; then they are the snapshot of what the log said up to the claim's tail.
async fn write(
    engine: Arc<dyn Engine>,
    claim: Claim,
    mut queue: mpsc::Receiver<Bytes>,
    metrics: CoreMetrics,
) {
    let (partition, at) = (claim.partition().0, claim.tail());
    let mut pieces = 0;
    while let Some(piece) = queue.recv().await {
        if let Err(error) = engine.put_piece(&claim, at, pieces, piece).await {
            return warn!(partition, %error, "a snapshot was not written; the one before it stays");
        }
        pieces += 1;
    }
    match engine.finish_snapshot(&claim, Snapshot { at, pieces }).await {
        Ok(()) => {
            metrics.count_snapshot();
            debug!(partition, at = at.0, pieces, "snapshot written");
        }
        Err(error) => warn!(partition, %error, "a snapshot was not finished; the one before it stays"),
    }
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
