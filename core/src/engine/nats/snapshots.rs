//! Snapshots: pieces under subjects of their own, and the partition's record, which says which of them are complete.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tidegate_transport::clock;
use tokio::time::{sleep, timeout};

use super::super::{AppendError, Claim, LogPosition, PartitionId, ReplayError, Snapshot, Unavailable};
use super::table::{Entry, Pieces, ReadError, Table};
use super::wire::{Expected, PublishError, unavailable};

impl Table {
    /// Writes a piece. It is worth nothing until its snapshot is finished.
    pub(super) async fn put_piece(
        &self,
        claim: &Claim,
        at: LogPosition,
        index: u32,
        piece: Bytes,
    ) -> Result<(), AppendError> {
        self.owned(claim).await?;
        let subject = format!("{}.{index}", self.names.pieces(claim.partition(), claim.term(), at));
        let deadline = clock::now() + PATIENCE;
        loop {
            // The stream keeps the last message of a subject: twice is as good as once.
            let sent = self
                .wire
                .publish(&subject, Expected::Nothing, HeaderMap::new(), piece.clone(), ATTEMPT)
                .await;
            let reason = match sent {
                Ok(_) => return Ok(()),
                Err(PublishError::Refused(reason)) => return Err(AppendError::Refused(reason)),
                Err(PublishError::Unexpected) => "a piece was expected to follow another".to_owned(),
                Err(PublishError::Unheard(reason) | PublishError::Unknown(reason)) => reason,
            };
            if clock::now() >= deadline {
                return Err(AppendError::Unavailable(reason));
            }
            sleep(PAUSE).await;
        }
    }

    /// Says in the partition's record that the pieces are the snapshot; a claim that is not the newest cannot.
    pub(super) async fn finish_snapshot(&self, claim: &Claim, snapshot: Snapshot) -> Result<(), AppendError> {
        self.owned(claim).await?;
        let (partition, term, at) = (claim.partition(), claim.term(), snapshot.at.0);
        let stored = self.stored(partition).await.map_err(|error| AppendError::Unavailable(error.0))?;
        let missing = (0..snapshot.pieces).find(|index| !stored.contains(&Piece { term, at, index: *index }));
        if let Some(index) = missing {
            return Err(AppendError::Refused(format!("piece {index} of the snapshot is missing")));
        }
        let pieces = Pieces { at, count: snapshot.pieces, term };
        let finish = |entry: &Entry| Ok(Entry { snapshot: Some(pieces), ..entry.of(term)? });
        self.change(partition, finish).await?;
        if let Err(error) = self.drop_others(partition, pieces, &stored).await {
            tracing::warn!(partition = partition.0, %error, "old snapshots stay until the next one is finished");
        }
        Ok(())
    }

    pub(super) async fn snapshot(&self, partition: PartitionId) -> Result<Option<Snapshot>, ReplayError> {
        let pieces = self.pieces(partition).await?;
        Ok(pieces.map(|pieces| Snapshot { at: LogPosition(pieces.at), pieces: pieces.count }))
    }

    pub(super) async fn read_piece(
        &self,
        partition: PartitionId,
        at: LogPosition,
        index: u32,
    ) -> Result<Bytes, ReplayError> {
        let stream = self.names.snapshot_stream();
        let pieces = self.pieces(partition).await?;
        let Some(pieces) = pieces.filter(|pieces| pieces.at == at.0 && index < pieces.count) else {
            let first = pieces.map_or_else(|| at.next(), |pieces| LogPosition(pieces.at));
            return Err(ReplayError::Truncated { first });
        };
        let subject = format!("{}.{index}", self.names.pieces(partition, pieces.term, at));
        match self.wire.last_of(&stream, &subject).await {
            Ok(Some(piece)) => Ok(piece.payload),
            // Another one was finished between the two questions.
            Ok(None) => Err(ReplayError::Truncated { first: at.next() }),
            Err(error) => Err(ReplayError::Unavailable(error.0)),
        }
    }

    async fn pieces(&self, partition: PartitionId) -> Result<Option<Pieces>, ReplayError> {
        match self.entry(partition).await {
            Ok((entry, _)) => Ok(entry.snapshot),
            Err(ReadError::Unavailable(error)) => Err(ReplayError::Unavailable(error.0)),
            Err(ReadError::Damaged(reason)) => Err(ReplayError::Unavailable(reason)),
        }
    }

    async fn owned(&self, claim: &Claim) -> Result<(), AppendError> {
        match self.entry(claim.partition()).await {
            Ok((entry, _)) if entry.record.term == claim.term() => Ok(()),
            Ok(_) => Err(AppendError::Fenced),
            Err(ReadError::Unavailable(error)) => Err(AppendError::Unavailable(error.0)),
            Err(ReadError::Damaged(reason)) => Err(AppendError::Refused(reason)),
        }
    }

    /// What is there of a partition's snapshots, finished or not.
    async fn stored(&self, partition: PartitionId) -> Result<BTreeSet<Piece>, Unavailable> {
        let stream = self.wire.stream(&self.names.snapshot_stream()).await?;
        let all = self.names.snapshots_of(partition);
        let read = async {
            let subjects = stream.info_with_subjects(&all).await.map_err(unavailable)?;
            subjects.try_collect::<Vec<_>>().await.map_err(unavailable)
        };
        let subjects =
            timeout(PATIENCE, read).await.map_err(|_| unavailable("NATS lists nothing in time"))??;
        let prefix = all.trim_end_matches('>');
        Ok(subjects.iter().filter_map(|(subject, _)| piece(subject.strip_prefix(prefix)?)).collect())
    }

    /// Also what owners left behind who died while they wrote; not what a newer one is writing.
    async fn drop_others(
        &self,
        partition: PartitionId,
        kept: Pieces,
        stored: &BTreeSet<Piece>,
    ) -> Result<(), Unavailable> {
        let stream = self.wire.stream(&self.names.snapshot_stream()).await?;
        let old = stored.iter().map(|piece| (piece.term, piece.at));
        let old = old.filter(|old| *old != (kept.term, kept.at) && old.0 <= kept.term);
        for (term, at) in old.collect::<BTreeSet<_>>() {
            let filter = format!("{}.>", self.names.pieces(partition, term, LogPosition(at)));
            let purge = timeout(PATIENCE, stream.purge().filter(filter).into_future());
            purge.await.map_err(|_| unavailable("NATS drops nothing in time"))?.map_err(unavailable)?;
        }
        Ok(())
    }
}

/// Where a piece is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    term: u64,
    at: u64,
    index: u32,
}

/// What follows a partition's subject.
fn piece(rest: &str) -> Option<Piece> {
    let mut parts = rest.split('.');
    let mut number = || parts.next()?.parse::<u64>().ok();
    Some(Piece { term: number()?, at: number()?, index: u32::try_from(number()?).ok()? })
}

const PATIENCE: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);
