//! A partition's table, built from what its engine keeps: the newest snapshot, then the log.
//!
//! The node that is to have a partition next builds it while the owner still serves, and follows the log. What is left to
//! do between the old owner's last frame and the new one's first is then a claim and a short rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_protocol::namespace::Namespaces;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::channel::{ChannelTable, Limits, LogFrameError};
use crate::engine::{Claim, ClaimError, Engine, LogPosition, PartitionId, ReplayError};
use crate::partition::UnixClock;

/// Reads logs. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Restorer {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) limits: Limits,
    pub(super) clock: UnixClock,
    /// Logs that are read at once: each fills memory as fast as it can.
    pub(super) turns: Arc<Semaphore>,
}

/// A table that was read ahead of the claim.
#[derive(Debug)]
pub(crate) struct Ahead {
    table: ChannelTable,
    /// What the log says after it is not in it yet.
    next: LogPosition,
    /// The snapshot that it began with reaches so far.
    snapshot_at: LogPosition,
}

/// How far a log was read ahead. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// The last position that was read; 0: none yet.
    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a partition could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    LogFrame(#[from] LogFrameError),
    #[error("the log of partition {0} ends before its tail")]
    Incomplete(u16),
}

impl Restorer {
    /// The table of `claim`, from what was read `ahead` if that is still right.
    pub(crate) async fn restore(
        &self,
        claim: &Claim,
        ahead: Option<Ahead>,
    ) -> Result<ChannelTable, RestoreError> {
        if let Some(table) = self.finish(claim, ahead).await {
            return Ok(table);
        }
        // Only the owner makes snapshots, but one of an owner before may become complete meanwhile.
        let mut tries = 0;
        loop {
            let read = self.read(claim).await;
            match read {
                Err(RestoreError::Replay(ReplayError::Truncated { .. })) if tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// The table of a claim that was made long ago: what its log began with then may be gone.
    pub(crate) async fn restore_again(&self, claim: &Claim) -> Result<ChannelTable, RestoreError> {
        let (partition, term, epoch, tail) = (claim.partition(), claim.term(), claim.epoch(), claim.tail());
        let first = match self.engine.replay(partition, claim.first()).await {
            Ok(_) => claim.first(),
            Err(ReplayError::Truncated { first }) => first,
            Err(error) => return Err(error.into()),
        };
        self.restore(&Claim::new(partition, term, epoch, first, tail), None).await
    }

    async fn read(&self, claim: &Claim) -> Result<ChannelTable, RestoreError> {
        let _turn = self.turns.acquire().await;
        let (partition, first, tail) = (claim.partition(), claim.first(), claim.tail());
        let mut ahead = self.begin(partition, claim.epoch(), first, Some(tail)).await?;
        while ahead.next <= tail {
            if !self.step(partition, &mut ahead, tail).await? {
                return Err(RestoreError::Incomplete(partition.0));
            }
        }
        Ok(ahead.table)
    }

    /// Reads the short rest.
    async fn finish(&self, claim: &Claim, ahead: Option<Ahead>) -> Option<ChannelTable> {
        let mut ahead = ahead?;
        let (partition, tail) = (claim.partition(), claim.tail());
        let fits = ahead.next >= claim.first()
            && ahead.next <= tail.next()
            && ahead.snapshot_at <= tail
            && ahead.table.adopt_claim(claim.epoch(), tail.0);
        if !fits {
            debug!(partition = partition.0, "what was read ahead is of another log");
            return None;
        }
        while ahead.next <= tail {
            if !self.step(partition, &mut ahead, tail).await.ok()? {
                return None;
            }
        }
        Some(ahead.table)
    }

    /// Reads ahead of a claim in the log of `epoch`, and follows it until `finish` is cancelled, or it cannot be read.
    /// `told` is awaited once only a short rest is left.
    pub(super) async fn follow(
        &self,
        partition: PartitionId,
        epoch: u64,
        finish: CancellationToken,
        told: impl Future<Output = ()> + Send,
        progress: &Progress,
    ) -> Result<Option<Ahead>, RestoreError> {
        let mut told = Some(told);
        let mut ahead = None;
        loop {
            let far_behind = told.is_some();
            let step = async {
                let _turn = if far_behind { self.turns.acquire().await.ok() } else { None };
                match &mut ahead {
                    None => {
                        ahead = Some(self.begin_ahead(partition, epoch).await?);
                        Ok(true)
                    }
                    Some(ahead) => self.step(partition, ahead, LogPosition(u64::MAX)).await,
                }
            };
            // A page that was read is in the table before anything else can happen: what is cut off here is only read
            // again.
            let read = tokio::select! {
                biased;
                () = finish.cancelled() => return Ok(ahead),
                read = step => read,
            };
            if let Some(ahead) = &ahead {
                progress.0.store(ahead.next.0.saturating_sub(1), Ordering::Relaxed);
            }
            match read {
                Ok(true) => continue,
                Ok(false) => {}
                // The log went on without us: it is read from its new beginning.
                Err(RestoreError::Replay(ReplayError::Truncated { .. })) => ahead = None,
                Err(error) => return Err(error),
            }
            if ahead.is_some()
                && let Some(told) = told.take()
            {
                told.await;
            }
            tokio::select! {
                biased;
                () = finish.cancelled() => return Ok(ahead),
                () = sleep(FOLLOW_EVERY) => {}
            }
        }
    }

    async fn begin_ahead(&self, partition: PartitionId, epoch: u64) -> Result<Ahead, RestoreError> {
        let first = match self.engine.replay(partition, LogPosition(1)).await {
            Ok(_) => LogPosition(1),
            Err(ReplayError::Truncated { first }) => first,
            Err(error) => return Err(error.into()),
        };
        self.begin(partition, epoch, first, None).await
    }

    /// A table with what the newest snapshot says, if one fits a log that begins at `first`.
    async fn begin(
        &self,
        partition: PartitionId,
        epoch: u64,
        first: LogPosition,
        tail: Option<LogPosition>,
    ) -> Result<Ahead, RestoreError> {
        let namespaces = Arc::clone(&self.namespaces);
        let mut table = ChannelTable::new(self.limits.clone(), namespaces, epoch, tail.unwrap_or_default().0);
        table.begin_replay(first.0);
        let snapshot = self.engine.snapshot(partition).await?;
        let fits = |at: LogPosition| at.next() >= first && tail.is_none_or(|tail| at <= tail);
        let Some(snapshot) = snapshot.filter(|snapshot| fits(snapshot.at)) else {
            return Ok(Ahead { table, next: first, snapshot_at: LogPosition(0) });
        };
        for index in 0..snapshot.pieces {
            let piece = self.engine.read_piece(partition, snapshot.at, index).await?;
            table.restore_piece(&piece)?;
            tokio::task::yield_now().await;
        }
        let next = self.skip(partition, &table, first, snapshot.at).await?;
        Ok(Ahead { table, next, snapshot_at: snapshot.at })
    }

    /// Where reading begins: what lies before it and is reached by the snapshot is too old for any history. Found by halving:
    /// frames are in the order of time, but for what clocks of owners differ.
    async fn skip(
        &self,
        partition: PartitionId,
        table: &ChannelTable,
        first: LogPosition,
        at: LogPosition,
    ) -> Result<LogPosition, RestoreError> {
        let unix_ms = self.clock.unix_ms().saturating_sub(CLOCKS_DIFFER_MS);
        let (mut over, mut end) = (first.0, at.0);
        while end.saturating_sub(over) > WORTH_SKIPPING {
            let middle = over + (end - over) / 2;
            let page = self.engine.replay(partition, LogPosition(middle)).await?;
            match page.first() {
                Some((_, frame)) if table.is_over(frame, unix_ms)? => over = middle,
                _ => end = middle,
            }
        }
        debug!(partition = partition.0, first = first.0, next = over, at = at.0, "reading begins here");
        Ok(LogPosition(over))
    }

    /// Takes the next frames up to `tail`; false where there are none.
    async fn step(
        &self,
        partition: PartitionId,
        ahead: &mut Ahead,
        tail: LogPosition,
    ) -> Result<bool, RestoreError> {
        let frames = self.engine.replay(partition, ahead.next).await?;
        let read = !frames.is_empty();
        for (position, frame) in frames.into_iter().take_while(|(position, _)| *position <= tail) {
            ahead.table.replay(&frame, self.clock.unix_ms())?;
            ahead.next = position.next();
        }
        if read {
            // Others have their turn between two pages.
            tokio::task::yield_now().await;
        }
        Ok(read)
    }
}

/// How often a log that is followed is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);
const TRIES: u32 = 3;
/// Frames that are rather read than looked for: a page or two.
const WORTH_SKIPPING: u64 = 512;
/// More than the clocks of two nodes of a cluster may differ.
const CLOCKS_DIFFER_MS: u64 = 60_000;

#[cfg(test)]
mod tests {
    use tidegate_protocol::frame::Payload;
    use tidegate_protocol::link::{EdgeFrame, Publish};
    use tidegate_protocol::{ChannelName, NodeId};

    use super::*;
    use crate::channel::LinkId;
    use crate::config::CoreConfig;
    use crate::engine::{MemoryEngine, Snapshot};

    /// One publication a second, each to a channel of its own, up to now; what a snapshot of the first ones leaves to read.
    #[tokio::test(start_paused = true)]
    async fn beside_a_snapshot_only_frames_are_read_that_may_be_retained() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(7, 1, usize::MAX));
        let restorer = Restorer {
            engine: Arc::clone(&engine),
            namespaces: Arc::default(),
            limits: crate::node::limits(&CoreConfig::default()),
            clock: UnixClock::start(),
            turns: Arc::new(Semaphore::new(1)),
        };
        let partition = PartitionId(0);
        let mut claim = engine.claim(partition, &NodeId::new("a")).await.expect("claimed");
        let now = restorer.clock.unix_ms();
        let mut table = restorer.read(&claim).await.expect("empty");
        for n in 1..=FRAMES {
            let publish = Publish {
                channel: ChannelName::new(&format!("room:{n}")).expect("valid"),
                payload: Payload::Json(bytes::Bytes::from_static(b"1")),
                user: None,
                key: None,
                ephemeral: false,
            };
            let frame = EdgeFrame::Publish { request: n, publish };
            table.handle_frame(now - (FRAMES - n) * 1_000, LinkId::NODE, frame);
            let frame = table.take_log_frame().expect("published");
            table.commit(engine.append(&mut claim, frame).await.expect("appended").0);
            if n == SNAPSHOT {
                let (at, mut cursor, mut pieces) = (claim.tail(), table.begin_snapshot(), 0);
                while let Some(piece) = table.snapshot_piece(&mut cursor, 10_000) {
                    engine.put_piece(&claim, at, pieces, piece).await.expect("written");
                    pieces += 1;
                }
                engine.finish_snapshot(&claim, Snapshot { at, pieces }).await.expect("finished");
            }
        }
        let (first, tail) = (LogPosition(1), claim.tail());
        let claim = engine.claim(partition, &NodeId::new("b")).await.expect("claimed");
        let begun = restorer.begin(partition, claim.epoch(), first, Some(tail)).await.expect("begun");
        let over = FRAMES - 360;
        assert!((over - WORTH_SKIPPING..=over).contains(&begun.next.0), "{:?}", begun.next);
        let restored = restorer.restore(&claim, None).await.expect("restored");
        assert_eq!(restored.channels() as u64, FRAMES);
        // Five minutes of them, one byte each: as many as without a snapshot.
        assert_eq!(restored.history_bytes(), 300);
    }

    const FRAMES: u64 = 4_000;
    const SNAPSHOT: u64 = 3_900;
}
