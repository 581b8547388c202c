//! Sans-io: the publications that a channel retains, bounded by count, bytes and age.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_protocol::frame::{Payload, Publication};
use tidegate_protocol::namespace::HistoryBounds;
use tidegate_protocol::{ChannelName, Offset};

/// One publication at rest. Its channel is known to the holder and its offset by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// What.
    pub(crate) payload: Payload,
    /// Who.
    pub(crate) user: Option<Arc<str>>,
    /// When it was numbered, milliseconds of Unix time.
    pub(crate) time_ms: u64,
}

impl Record {
    /// A record that owns exactly its payload: what came off the network may be a slice of a much larger buffer.
    pub(crate) fn new(payload: &Payload, user: Option<Arc<str>>, time_ms: u64) -> Self {
        let payload = match payload {
            Payload::Json(json) => Payload::Json(Bytes::copy_from_slice(json)),
            Payload::Binary(bytes) => Payload::Binary(Bytes::copy_from_slice(bytes)),
        };
        Self { payload, user, time_ms }
    }

    /// The frame for it.
    pub(crate) fn publication(&self, channel: &ChannelName, offset: Offset) -> Publication {
        let (data, data_base64) = self.payload.clone().into_fields();
        Publication {
            channel: channel.as_str().to_owned(),
            offset: offset.0,
            data,
            data_base64,
            user: self.user.as_deref().map(str::to_owned),
            time_ms: self.time_ms,
        }
    }
}

/// Of a channel that retains nothing.
pub(crate) static EMPTY: History = History { records: VecDeque::new(), bytes: 0 };

/// The newest publications of a channel, without a hole: the last one has the channel's head as its offset.
#[derive(Debug, Default)]
pub(crate) struct History {
    records: VecDeque<Record>,
    bytes: u64,
}

impl History {
    /// Adds the newest and drops what the bounds no longer allow, if need be the newest itself.
    pub(crate) fn push(&mut self, record: Record, bounds: &HistoryBounds) {
        if self.records.len() == self.records.capacity() {
            // `VecDeque` would begin with four and double: most channels hold one or two.
            self.records.reserve_exact((self.records.len() / 2).max(1));
        }
        self.bytes += record.payload.len() as u64;
        self.records.push_back(record);
        while self.records.len() > bounds.count as usize || self.bytes > bounds.bytes {
            self.drop_oldest();
        }
    }

    /// Drops what is older than the bounds allow. Where the wall clock was set back, records wait for it.
    pub(crate) fn expire(&mut self, unix_ms: u64, bounds: &HistoryBounds) {
        let age = bounds.age.as_millis();
        while self
            .records
            .front()
            .is_some_and(|record| u128::from(unix_ms.saturating_sub(record.time_ms)) >= age)
        {
            self.drop_oldest();
        }
        if self.records.is_empty() && self.records.capacity() > 0 {
            self.records = VecDeque::new();
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many are retained.
    pub(crate) fn len(&self) -> u64 {
        self.records.len() as u64
    }

    /// Bytes of payload.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is retained with an offset above `after`, in order, where `head` is the newest one's.
    pub(crate) fn after(
        &self,
        head: Offset,
        after: Offset,
    ) -> impl DoubleEndedIterator<Item = (Offset, &Record)> {
        let wanted = head.0.saturating_sub(after.0).min(self.len());
        let skipped = (self.len() - wanted) as usize;
        let first = head.0 + 1 - wanted;
        let kept = self.records.range(skipped..).enumerate();
        kept.map(move |(index, record)| (Offset(first + index as u64), record))
    }

    fn drop_oldest(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.bytes -= record.payload.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push { bytes: usize },
        Wait { ms: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..40).prop_map(|bytes| Step::Push { bytes }),
            (0u64..400).prop_map(|ms| Step::Wait { ms })
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_vec(
            count in 0u32..8,
            bytes in 0u64..120,
            age in 1u64..1_000,
            steps in prop::collection::vec(step(), 0..60),
            after in 0u64..70,
        ) {
            let bounds = HistoryBounds { count, bytes, age: Duration::from_millis(age) };
            let mut history = History::default();
            let mut model: Vec<(u64, Record)> = Vec::new();
            let (mut now, mut head) = (1_000_000, 0);
            for step in steps {
                match step {
                    Step::Push { bytes: size } => {
                        head += 1;
                        let payload = Payload::Binary(Bytes::from(vec![head as u8; size]));
                        let record = Record::new(&payload, None, now);
                        history.push(record.clone(), &bounds);
                        model.push((head, record));
                        let total = |model: &[(u64, Record)]| model.iter().map(|(_, r)| r.payload.len() as u64).sum::<u64>();
                        while model.len() > count as usize || total(&model) > bytes {
                            model.remove(0);
                        }
                    }
                    Step::Wait { ms } => {
                        now += ms;
                        history.expire(now, &bounds);
                        model.retain(|(_, record)| now - record.time_ms < age);
                    }
                }
                let held: Vec<(u64, Record)> =
                    history.after(Offset(head), Offset(after)).map(|(o, r)| (o.0, r.clone())).collect();
                let expected: Vec<(u64, Record)> = model.iter().filter(|(o, _)| *o > after).cloned().collect();
                prop_assert_eq!(held, expected);
                prop_assert_eq!(history.bytes(), model.iter().map(|(_, r)| r.payload.len() as u64).sum::<u64>());
                prop_assert_eq!(history.len(), model.len() as u64);
            }
        }
    }

    #[test]
    fn an_empty_history_holds_no_memory() {
        let bounds = HistoryBounds { count: 10, bytes: 100, age: Duration::from_secs(1) };
        let mut history = History::default();
        history.push(Record::new(&Payload::Json(Bytes::from_static(b"1")), None, 0), &bounds);
        assert_eq!(history.records.capacity(), 1);
        history.expire(1_000, &bounds);
        assert_eq!((history.len(), history.bytes(), history.records.capacity()), (0, 0, 0));
    }
}
