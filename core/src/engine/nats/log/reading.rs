//! Reading a log back, with proof that nothing is missing.

use bytes::Bytes;
use tidegate_transport::clock;
use tokio::time::sleep;

use super::super::super::{LogPosition, ReplayError, Unavailable};
use super::super::frame::{self, Header, Kind};
use super::super::wire::{Extent, Wire};
use super::known::Link;
use super::{LONGEST_PAUSE, Log, PATIENCE, SHORTEST_PAUSE};

/// What the lease table says of a log.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Origin {
    /// The first position of its epoch.
    pub(in super::super) begins: u64,
    /// The sequence of the claim before it.
    pub(in super::super) start: u64,
    /// By how much positions lag behind sequences at its end.
    pub(in super::super) lag: u64,
}

impl Log {
    /// The frames from `from` on, each proven to follow the one before. `origin` is asked for only where nothing is
    /// known of the frame before `from`.
    pub(in super::super) async fn replay<F>(
        &self,
        wire: &Wire,
        from: u64,
        origin: impl Fn() -> F + Send + Sync,
    ) -> Result<Vec<(LogPosition, Bytes)>, ReplayError>
    where
        F: Future<Output = Result<Origin, ReplayError>> + Send,
    {
        let from = from.max(1);
        let known = self.known().read.filter(|read| read.header.position + 1 == from);
        let mut start = known.map(Start::behind);
        let deadline = clock::now() + PATIENCE;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let step = match start {
                Some(start) => self.page(wire, from, start).await,
                None => self.search(wire, from, origin().await?).await,
            };
            let reason = match step {
                Ok(Step::Found(found)) => {
                    start = Some(found);
                    continue;
                }
                Ok(Step::Frames(frames)) => return Ok(frames),
                Ok(Step::Truncated(first)) => {
                    self.known().read = None;
                    return Err(ReplayError::Truncated { first: LogPosition(first) });
                }
                Ok(Step::Dropped) => {
                    start = None;
                    "the log is being truncated".to_owned()
                }
                Ok(Step::Diverged) => {
                    let mut known = self.known();
                    (known.read, known.diverged) = (None, Some(from));
                    return Err(ReplayError::Diverged { at: LogPosition(from) });
                }
                Ok(Step::Stale) => "a replica of the log lags behind".to_owned(),
                Err(error) => error.0,
            };
            if clock::now() + pause >= deadline {
                // Should the log have lost what this process knows of it, the next call sees it as it is.
                self.forget_frames();
                return Err(ReplayError::Unavailable(reason));
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// The frame before `from`, in a few hops: one of as many sequences as positions are missing never goes too far,
    /// since claims have sequences of their own, and falls short only by the claims in between.
    async fn search(&self, wire: &Wire, from: u64, origin: Origin) -> Result<Step, Unavailable> {
        if from < origin.begins {
            return Ok(Step::Truncated(origin.begins));
        }
        let extent = wire.extent(&self.stream).await?;
        let mut sequence = extent.first.max(origin.start);
        while sequence <= extent.last {
            let Some(stored) = wire.read(&self.stream, sequence).await? else {
                return self.missing(wire, sequence).await;
            };
            let Ok(link) = Link::of(sequence, &stored.payload) else { return Ok(Step::Diverged) };
            let position = link.header.position;
            if link.first() > from {
                return Ok(Step::Truncated(link.first()));
            }
            if position == from {
                // The first frame that is there: nothing proves what stood before it.
                return Ok(Step::Found(Start { sequence, before: None }));
            }
            if position + 1 == from {
                return Ok(Step::Found(Start::behind(link)));
            }
            sequence += from - 1 - position;
        }
        if extent.last < self.known().highest() {
            return Ok(Step::Stale);
        }
        let empty_at = extent.last.saturating_sub(origin.lag) + 1;
        let truncated = extent.first > extent.last && from < empty_at;
        Ok(if truncated { Step::Truncated(empty_at) } else { Step::Frames(Vec::new()) })
    }

    async fn page(&self, wire: &Wire, from: u64, start: Start) -> Result<Step, Unavailable> {
        let mut frames = Vec::new();
        let (mut next, mut before) = (from, start.before);
        let mut sequence = start.sequence;
        for (place, bytes) in wire.page(&self.stream, sequence).await? {
            if place != sequence {
                break;
            }
            let (link, payload) = match judge(place, &bytes, before.as_ref(), next) {
                Ok(sound) => sound,
                // What is sound comes first.
                Err(_) if sequence > start.sequence => break,
                Err(step) => return Ok(step),
            };
            if link.header.kind == Kind::Data {
                frames.push((LogPosition(next), payload));
                next += 1;
            }
            before = Some(link);
            sequence += 1;
        }
        if sequence > start.sequence {
            self.known().read = before;
            let onward = || Step::Found(Start { sequence, before });
            return Ok(if frames.is_empty() { onward() } else { Step::Frames(frames) });
        }
        let extent = wire.extent(&self.stream).await?;
        if sequence < extent.first {
            return self.truncated(wire, extent).await;
        }
        if sequence > extent.last {
            if sequence <= self.known().highest() {
                return Ok(Step::Stale);
            }
            self.known().read = before;
            return Ok(Step::Frames(Vec::new()));
        }
        if wire.read(&self.stream, sequence).await?.is_some() {
            Ok(Step::Stale)
        } else {
            self.missing(wire, sequence).await
        }
    }

    async fn truncated(&self, wire: &Wire, extent: Extent) -> Result<Step, Unavailable> {
        let first = wire.read(&self.stream, extent.first).await?;
        let first = first.and_then(|stored| Link::of(extent.first, &stored.payload).ok());
        Ok(first.map_or(Step::Dropped, |first| Step::Truncated(first.first())))
    }

    /// Not even the leader has it: dropped just now, or a hole.
    async fn missing(&self, wire: &Wire, sequence: u64) -> Result<Step, Unavailable> {
        let extent = wire.extent(&self.stream).await?;
        Ok(if sequence < extent.first { Step::Dropped } else { Step::Diverged })
    }
}

/// Whether a message is what stands at the position `next`, or a claim before it.
fn judge(sequence: u64, bytes: &Bytes, before: Option<&Link>, next: u64) -> Result<(Link, Bytes), Step> {
    let Ok((header, payload)) = frame::decode(bytes) else { return Err(Step::Diverged) };
    let link = Link { sequence, header, hash: frame::hash(bytes) };
    let Header { epoch, position, .. } = header;
    match before {
        Some(before) if before.header.epoch != epoch => return Err(Step::Truncated(link.first())),
        Some(before) if before.is_followed_by(&header).is_err() => return Err(Step::Diverged),
        _ => {}
    }
    let expected = if header.kind == Kind::Data { next } else { next - 1 };
    if position > expected {
        // Behind a gap that a claim found and could not measure.
        return Err(Step::Truncated(link.first()));
    }
    if position < expected { Err(Step::Diverged) } else { Ok((link, payload)) }
}

/// Where to read on.
#[derive(Debug, Clone, Copy)]
struct Start {
    sequence: u64,
    before: Option<Link>,
}

impl Start {
    fn behind(before: Link) -> Self {
        Self { sequence: before.sequence + 1, before: Some(before) }
    }
}

#[derive(Debug)]
enum Step {
    Found(Start),
    Frames(Vec<(LogPosition, Bytes)>),
    Truncated(u64),
    /// What was looked for went in the meantime.
    Dropped,
    Diverged,
    /// Somebody has less of the log than we know there is.
    Stale,
}
