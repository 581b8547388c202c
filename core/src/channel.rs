//! Sans-io: one channel at its owner: numbering, history, idempotency keys and who is interested.

mod history;
mod keys;
mod name;
mod record;
mod recovery;
mod sequencer;
mod snapshot;
mod table;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidegate_protocol::link::{HistoryRange, Recovery};
use tidegate_protocol::namespace::{HistoryBounds, Namespaces};
use tidegate_protocol::{ChannelName, Offset, Position};

use history::{History, Record};
use keys::Keys;
use recovery::{Outcome, judge};
use sequencer::Sequencer;

pub use record::LogFrameError;
pub(crate) use snapshot::SnapshotCursor;
pub(crate) use table::{ChannelTable, Limits, Stats};

/// For fuzz targets: reads `bytes` as a frame of the log; how many records are in it. What was read must be the same
/// after it was written again.
///
/// # Panics
/// Where it is not.
#[doc(hidden)]
pub fn fuzz_log_frame(bytes: &[u8]) -> usize {
    let Ok(replayed) = record::read(&Bytes::copy_from_slice(bytes)) else { return 0 };
    let mut frame = BytesMut::new();
    for one in &replayed {
        let record::Replayed { channel, birth, offset, record, key } = one;
        let (birth, offset, key) = (*birth, *offset, key.as_deref());
        record::write(&mut frame, &record::Logged { channel, birth, offset, record, key });
    }
    if !replayed.is_empty() {
        assert_eq!(record::read(&frame.freeze()).expect("what was written is read"), replayed);
    }
    replayed.len()
}

/// A link, as the partitions of one node know it. Never used twice in the life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u32);

impl LinkId {
    /// The node itself, for the backend API: it asks, and has no interest.
    pub(crate) const NODE: Self = Self(0);
}

/// One channel. One that nobody uses, and of which nothing is retained, is only its numbering.
#[derive(Debug)]
struct Channel {
    sequencer: Sequencer,
    /// When it was last asked for, milliseconds of Unix time.
    touched_ms: u64,
    /// There only while there is anything in it.
    active: Option<Box<Active>>,
}

/// What a channel holds besides its numbering.
#[derive(Debug, Default)]
struct Active {
    history: History,
    /// Most channels never see a key.
    keys: Option<Box<Keys>>,
    /// Sorted.
    interest: Vec<LinkId>,
}

impl Channel {
    fn new(birth: u64, unix_ms: u64) -> Self {
        Self::resume(Sequencer::new(birth), unix_ms)
    }

    /// A numbering that goes on; nothing of it is retained.
    fn resume(sequencer: Sequencer, touched_ms: u64) -> Self {
        Self { sequencer, touched_ms, active: None }
    }

    /// Keeps what was numbered last.
    fn keep(&mut self, record: Record, key: Option<&str>, rules: &Rules, limits: &Limits) {
        let active = self.active.get_or_insert_default();
        if let Some(key) = key {
            let keys = active.keys.get_or_insert_default();
            keys.remember(key, self.sequencer.head(), record.time_ms, limits.keys_per_channel);
        }
        active.history.push(record, &rules.bounds);
        self.settle();
    }

    /// Takes what a log says was stored. Another birth, or a hole, is a numbering that this channel did not have.
    fn replay(&mut self, replayed: record::Replayed, rules: &Rules, limits: &Limits) {
        let follows =
            self.sequencer.birth() == replayed.birth && self.sequencer.head().next() == replayed.offset;
        if !follows {
            self.sequencer = Sequencer::resume(replayed.birth, Offset(replayed.offset.0 - 1));
            if let Some(active) = &mut self.active {
                active.history.clear();
                active.keys = None;
            }
        }
        self.touched_ms = replayed.record.time_ms;
        self.sequencer.assign();
        self.keep(replayed.record, replayed.key.as_deref(), rules, limits);
    }

    /// Another beginning of a numbering that has no number yet.
    fn rebirth(&mut self, birth: u64) {
        self.sequencer = Sequencer::new(birth);
    }

    /// The offset that `key` was stored with.
    fn find_key(&self, key: &str) -> Option<Offset> {
        self.active.as_ref()?.keys.as_ref()?.find(key)
    }

    fn expire(&mut self, unix_ms: u64, rules: &Rules, limits: &Limits) {
        let Some(active) = &mut self.active else { return };
        active.history.expire(unix_ms, &rules.bounds);
        if let Some(keys) = &mut active.keys {
            keys.expire(unix_ms, limits.key_age);
            if keys.is_empty() {
                active.keys = None;
            }
        }
        self.settle();
    }

    /// Gives back what is empty.
    fn settle(&mut self) {
        let empty = |active: &Active| {
            active.interest.is_empty() && active.keys.is_none() && active.history.len() == 0
        };
        if self.active.as_deref().is_some_and(empty) {
            self.active = None;
        }
    }

    fn history(&self) -> &History {
        self.active.as_deref().map_or(&history::EMPTY, |active| &active.history)
    }

    /// Links, sorted.
    fn interest(&self) -> &[LinkId] {
        self.active.as_deref().map_or(&[], |active| &active.interest)
    }

    /// True where nobody would be told anything untrue if the channel were forgotten. Call after [`Self::expire`].
    fn is_forgettable(&self, unix_ms: u64, forget_after: Duration) -> bool {
        self.active.is_none()
            && u128::from(unix_ms.saturating_sub(self.touched_ms)) >= forget_after.as_millis()
    }

    /// True if the link was not interested before.
    fn add_interest(&mut self, link: LinkId) -> bool {
        let interest = &mut self.active.get_or_insert_default().interest;
        match interest.binary_search(&link) {
            Ok(_) => false,
            Err(index) => {
                interest.reserve_exact(1);
                interest.insert(index, link);
                true
            }
        }
    }

    /// True if the link was interested.
    fn remove_interest(&mut self, link: LinkId) -> bool {
        let Some(active) = &mut self.active else { return false };
        let Ok(index) = active.interest.binary_search(&link) else { return false };
        active.interest.remove(index);
        if active.interest.is_empty() {
            active.interest = Vec::new();
        }
        self.settle();
        true
    }

    fn position(&self, partition_epoch: u64, offset: Offset) -> Position {
        self.sequencer.position(partition_epoch, offset)
    }

    /// What a new subscription gets.
    fn recover(&self, name: &ChannelName, epoch: u64, conflate: bool, asked: Option<&Position>) -> Recovery {
        let head = self.position(epoch, self.sequencer.head());
        let outcome = asked.map_or(Outcome::Gap, |asked| judge(&head, self.history().len(), conflate, asked));
        let publications = match outcome {
            Outcome::Recovered { after } => {
                let mut bytes = 0;
                let missed = self.history().after(head.offset, after);
                let first = missed.take_while(|(_, record)| fits(&mut bytes, record));
                first.map(|(offset, record)| record.publication(name, offset)).collect()
            }
            Outcome::Gap => Vec::new(),
        };
        Recovery { position: head, recovered: outcome != Outcome::Gap, publications }
    }

    /// What a reader of history gets: what is retained even where something is missing, the newest that fit.
    fn read(&self, name: &ChannelName, epoch: u64, conflate: bool, range: &HistoryRange) -> Recovery {
        let head = self.position(epoch, self.sequencer.head());
        let judged = |since| judge(&head, self.history().len(), conflate, since);
        let (after, complete) = match range.since.as_ref().map_or(Outcome::Gap, judged) {
            Outcome::Recovered { after } => (after, true),
            Outcome::Gap => (Offset(0), false),
        };
        let limit = if range.limit == 0 { usize::MAX } else { range.limit as usize };
        let wanted = self.history().after(head.offset, after).rev();
        let mut wanted =
            wanted.skip_while(|(offset, _)| range.before.is_some_and(|before| *offset >= before)).peekable();
        let (mut publications, mut bytes) = (Vec::new(), 0);
        while publications.len() < limit
            && let Some((offset, record)) = wanted.next_if(|(_, record)| fits(&mut bytes, record))
        {
            publications.push(record.publication(name, offset));
        }
        let whole = wanted.peek().is_none();
        publications.reverse();
        Recovery { position: head, recovered: complete && whole, publications }
    }
}

/// The rules of a channel, as its owner applies them.
#[derive(Debug, Clone, Copy)]
struct Rules {
    bounds: HistoryBounds,
    conflate: bool,
    ephemeral_only: bool,
}

impl Rules {
    fn of(namespaces: &Namespaces, channel: &ChannelName) -> Option<Self> {
        let namespace = namespaces.rules(channel)?;
        let mut bounds = namespace.history;
        if namespace.conflate {
            bounds.count = 1;
        }
        Some(Self { bounds, conflate: namespace.conflate, ephemeral_only: namespace.ephemeral_only })
    }
}

/// Whether `record` still fits an answer of so many `bytes`, which it is added to. The first one always does.
fn fits(bytes: &mut usize, record: &Record) -> bool {
    let is_first = *bytes == 0;
    *bytes += RECORD_BYTES + record.payload.len();
    is_first || *bytes <= ANSWER_BYTES
}

/// Most publications that one answer holds. The rest is asked for again: whoever missed much is slow, and what it has no
/// room for would have crossed the link for nothing.
const ANSWER_BYTES: usize = 256 << 10;
/// What a publication takes beside its payload, about.
const RECORD_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_at_rest_is_small() {
        // With its name, its hash and an index of two words it is at most twice this, and nothing is elsewhere.
        assert!(size_of::<Channel>() <= 32, "{}", size_of::<Channel>());
        assert!(size_of::<Active>() <= 72, "{}", size_of::<Active>());
        assert!(size_of::<Record>() <= 64, "{}", size_of::<Record>());
    }
}
