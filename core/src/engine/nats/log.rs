//! One partition's log: appending under a fence, and where it ends.
//!
//! Claims take a place in the stream but none in the log, so positions lag behind sequences by the number of claims.
//! Each frame has its position. Within a term the difference does not change.

mod known;
mod reading;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tidegate_transport::clock;
use tokio::time::sleep;

use self::known::{Known, Link};
pub(super) use self::reading::Origin;
use super::super::{AppendError, Claim, LogPosition, PartitionId, Unavailable};
use super::frame::{self, FrameError, Hash, Header, Kind, NO_HASH};
use super::names::Names;
use super::wire::{Expected, Extent, PublishError, Wire};

/// What this process knows of a partition's log.
#[derive(Debug)]
pub(super) struct Log {
    partition: PartitionId,
    stream: String,
    subject: String,
    known: Mutex<Known>,
}

/// How a log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) extent: Extent,
    /// The last frame; `None` where it is not there any more, or never was, or is not ours.
    pub(super) last: Option<Last>,
    /// Why what is there cannot be the whole log.
    pub(super) broken: Option<String>,
}

/// The last frame of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) term: u64,
    pub(super) epoch: u64,
    pub(super) position: u64,
    hash: Hash,
}

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in its place.
    Stored,
    /// Another one is in its place.
    Taken,
    /// Nothing is in its place, and nothing will be.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

/// Why the end of a log is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It was written in a format of the future.
    #[error("the last frame is in format {0}: upgrade this node")]
    Newer(u8),
}

/// A claim's frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fence<'a> {
    /// What the stream ends with.
    pub(super) sequence: u64,
    /// What the log ends with.
    pub(super) position: u64,
    pub(super) term: u64,
    pub(super) epoch: u64,
    /// The frame that it follows, in the same epoch.
    pub(super) before: Option<Last>,
    pub(super) owner: &'a str,
}

impl Log {
    pub(super) fn new(names: &Names, partition: u16) -> Self {
        Self {
            partition: PartitionId(partition),
            stream: names.log_stream(partition),
            subject: names.log_subject(partition),
            known: Mutex::default(),
        }
    }

    /// Writes `payload` behind the claim's tail. The same claim and payload make the same bytes.
    pub(super) async fn append(
        &self,
        wire: &Wire,
        claim: &mut Claim,
        payload: &[u8],
    ) -> Result<LogPosition, AppendError> {
        let position = claim.tail().next().0;
        // Claims of another process are not ours to use, and of ours only some of the newest are remembered.
        let Some(lag) = self.known().lag(claim.term()) else { return Err(AppendError::Fenced) };
        let last = claim.tail().0 + lag;
        let before = self.hash_at(wire, last).await.map_err(|error| AppendError::Unavailable(error.0))?;
        let (term, epoch) = (claim.term(), claim.epoch());
        let header = Header { kind: Kind::Data, term, epoch, position, before };
        match self.store(wire, last, frame::encode(&header, payload)).await {
            Outcome::Stored => Ok(claim.advance()),
            Outcome::Taken => Err(AppendError::Fenced),
            Outcome::Refused(reason) => Err(AppendError::Refused(reason)),
            Outcome::Unknown(reason) => Err(AppendError::Unavailable(reason)),
        }
    }

    /// Fences all terms before this one: their frames expect what is now the claim's place.
    pub(super) async fn fence(&self, wire: &Wire, fence: Fence<'_>) -> Outcome {
        let Fence { sequence, position, term, epoch, before, owner } = fence;
        let before = before.map_or(NO_HASH, |last| last.hash);
        let header = Header { kind: Kind::Claim, term, epoch, position, before };
        let outcome = self.store(wire, sequence, frame::encode(&header, owner.as_bytes())).await;
        if outcome == Outcome::Stored {
            self.known().claimed(term, sequence + 1 - position);
        }
        outcome
    }

    /// Puts a frame behind the sequence `last` or finds out what is there.
    ///
    /// All attempts expect the same, so at most one is stored, however late it arrives.
    async fn store(&self, wire: &Wire, last: u64, bytes: Bytes) -> Outcome {
        let deadline = clock::now() + PATIENCE;
        let (place, expected) = (last + 1, Expected::Last(last));
        let mut pause = SHORTEST_PAUSE;
        loop {
            let sent = wire.publish(&self.subject, expected, HeaderMap::new(), bytes.clone(), ATTEMPT).await;
            let reason = match sent {
                Ok(sequence) if sequence == place => {
                    self.remember(sequence, &bytes);
                    return Outcome::Stored;
                }
                Ok(sequence) => {
                    return Outcome::Refused(format!("NATS stored at {sequence} what was to be at {place}"));
                }
                // An earlier attempt that nobody answered may have been stored before there was no room, or be on its
                // way through the replicas still: then this says nothing of it.
                Err(PublishError::Refused(reason)) => match self.who_is_at(wire, place, &bytes).await {
                    Ok(Some(outcome)) => return outcome,
                    Ok(None) if self.known().unanswered == Some(place) => reason,
                    Ok(None) => return Outcome::Refused(reason),
                    Err(error) => error.0,
                },
                // What a stream held that is no more is nowhere, answered or not.
                Err(PublishError::Unheard(reason)) => match wire.is_missing(&self.stream).await {
                    Ok(true) => return Outcome::Refused(self.is_gone()),
                    Ok(false) | Err(_) => reason,
                },
                Err(PublishError::Unknown(reason)) => {
                    self.known().unanswered = Some(place);
                    reason
                }
                Err(PublishError::Unexpected) => match self.who_is_at(wire, place, &bytes).await {
                    Ok(Some(outcome)) => return outcome,
                    // On its way into the log, perhaps ours: the leader counts what it has proposed.
                    Ok(None) => "another frame is on its way".to_owned(),
                    Err(error) => error.0,
                },
            };
            if clock::now() + pause >= deadline {
                return Outcome::Unknown(reason);
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn who_is_at(&self, wire: &Wire, place: u64, ours: &Bytes) -> Result<Option<Outcome>, Unavailable> {
        if let Some(stored) = wire.read(&self.stream, place).await? {
            if stored.payload != *ours {
                return Ok(Some(Outcome::Taken));
            }
            self.remember(place, ours);
            return Ok(Some(Outcome::Stored));
        }
        let extent = wire.extent(&self.stream).await?;
        // Somebody wrote so much that our place was dropped, or the end was lost and ours is far behind it.
        let gone = extent.first > place || extent.last + 1 < place;
        Ok(gone.then_some(Outcome::Taken))
    }

    /// Whether its stream was deleted.
    pub(super) async fn is_missing(&self, wire: &Wire) -> Result<bool, Unavailable> {
        wire.is_missing(&self.stream).await
    }

    /// What to say where it was.
    pub(super) fn is_gone(&self) -> String {
        format!("somebody deleted the stream {} from the NATS servers", self.stream)
    }

    pub(super) async fn has_room(&self, wire: &Wire, probe: &str) -> bool {
        wire.has_room(&self.subject, probe).await
    }

    /// How the log ends, from its leader.
    pub(super) async fn end(&self, wire: &Wire) -> Result<End, EndError> {
        let extent = wire.extent(&self.stream).await?;
        let mut end = End { extent, last: None, broken: self.known().broken(extent.last) };
        let last = match self.frame_at(wire, extent, extent.last).await? {
            None => return Ok(end),
            Some(Err(FrameError::Version(version))) => return Err(EndError::Newer(version)),
            Some(Err(error)) => {
                end.broken = Some(format!("message {} of {}: {error}", extent.last, self.stream));
                return Ok(end);
            }
            Some(Ok(last)) => last,
        };
        if let Some(Ok(before)) = self.frame_at(wire, extent, extent.last.saturating_sub(1)).await?
            && before.header.epoch == last.header.epoch
            && let Err(reason) = before.is_followed_by(&last.header)
        {
            end.broken = Some(format!("message {} of {} {reason}", extent.last, self.stream));
        }
        let Link { header: Header { term, epoch, position, .. }, hash, .. } = last;
        end.last = Some(Last { term, epoch, position, hash });
        Ok(end)
    }

    /// The position of the first frame that is there, or would be: from the leader.
    pub(super) async fn first(&self, wire: &Wire) -> Result<Option<u64>, Unavailable> {
        let extent = wire.extent(&self.stream).await?;
        Ok(self.frame_at(wire, extent, extent.first).await?.and_then(Result::ok).map(|link| link.first()))
    }

    async fn frame_at(
        &self,
        wire: &Wire,
        extent: Extent,
        sequence: u64,
    ) -> Result<Option<Result<Link, FrameError>>, Unavailable> {
        if sequence < extent.first || sequence > extent.last {
            return Ok(None);
        }
        let stored = wire.read(&self.stream, sequence).await?;
        Ok(stored.map(|stored| Link::of(sequence, &stored.payload)))
    }

    /// What the frame behind `sequence` says of the one there.
    async fn hash_at(&self, wire: &Wire, sequence: u64) -> Result<Hash, Unavailable> {
        if let Some(hash) = self.known().hash(sequence) {
            return Ok(hash);
        }
        let stored = wire.read(&self.stream, sequence).await?;
        Ok(stored.map_or(NO_HASH, |stored| frame::hash(&stored.payload)))
    }

    fn remember(&self, sequence: u64, bytes: &Bytes) {
        if let Ok(link) = Link::of(sequence, bytes) {
            self.known().wrote(link);
        }
    }

    /// The log goes on behind a break, in another epoch: what was known of it means nothing.
    pub(super) fn forget(&self) {
        *self.known() = Known::default();
    }

    fn forget_frames(&self) {
        self.known().forget_frames();
    }

    pub(super) fn partition(&self) -> PartitionId {
        self.partition
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Whatever is in it was true.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a frame is tried before its owner is told. Elections take up to 10 s: it comes again with the same bytes.
const PATIENCE: Duration = Duration::from_secs(4);
const ATTEMPT: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
