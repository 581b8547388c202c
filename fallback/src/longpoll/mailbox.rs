//! Sans-io: what waits for a client that polls: ordered, acknowledged, bounded.
//!
//! Frames leave in numbered batches. The last batch is kept until a poll acknowledges it, and there is never more than
//! one: a lost answer loses nothing, and a repeated poll gets the same answer.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

/// The most bytes of frames in one batch, unless its first frame alone is larger.
pub const BATCH_BYTES: usize = 64 * 1024;
/// The most frames in one batch.
pub const BATCH_FRAMES: usize = 100;

/// The frames of one session on their way to its client.
pub struct Mailbox {
    bound: usize,
    queue: VecDeque<Bytes>,
    queue_bytes: usize,
    /// The frames of batch `last`, while it is not acknowledged.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The newest batch, 0 before the first.
    last: u64,
    /// The newest batch that the client is known to have: `last` or the one before.
    acknowledged: u64,
}

/// What a poll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The client has every batch: its frames count, and it waits for the next batch.
    New,
    /// The answer to an earlier poll was lost: the kept batch is sent again, the request's frames do not count.
    Repeat,
}

/// Why a poll's `ack` cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// A batch that was never made.
    #[error("ack {ack} is beyond the last batch, {last}")]
    Beyond {
        /// The client's.
        ack: u64,
        /// The newest batch.
        last: u64,
    },
    /// A batch before one that was acknowledged already: a stray copy of an old request.
    #[error("ack {ack} is older than an earlier ack, {acknowledged}")]
    Stale {
        /// The client's.
        ack: u64,
        /// The newest that was acknowledged.
        acknowledged: u64,
    },
}

/// Frames that travel together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Counts from 1.
    pub number: u64,
    /// Encoded, in order; never empty.
    pub frames: &'a [Bytes],
}

impl Mailbox {
    /// Full once it holds `bound` bytes: it ends at most one frame above that.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            queue: VecDeque::new(),
            queue_bytes: 0,
            kept: Vec::new(),
            kept_bytes: 0,
            last: 0,
            acknowledged: 0,
        }
    }

    /// Whether it takes no frame now; an acknowledgement makes room.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.bound
    }

    /// Takes a frame, full or not: who asks first stays within the bound.
    pub fn push(&mut self, frame: Bytes) {
        self.queue_bytes += cost(&frame);
        self.queue.push_back(frame);
    }

    /// Takes note of what the client has.
    ///
    /// # Errors
    /// Where `ack` names a batch that this client cannot mean. Nothing changes then.
    pub fn acknowledge(&mut self, ack: u64) -> Result<Arrival, AckError> {
        if ack > self.last {
            return Err(AckError::Beyond { ack, last: self.last });
        }
        if ack < self.acknowledged {
            return Err(AckError::Stale { ack, acknowledged: self.acknowledged });
        }
        if ack < self.last {
            return Ok(Arrival::Repeat);
        }
        self.acknowledged = ack;
        self.kept = Vec::new();
        self.kept_bytes = 0;
        Ok(Arrival::New)
    }

    /// Makes the next batch of what waits; `None` where nothing does, or while the last batch is not acknowledged.
    pub fn make_batch(&mut self) -> Option<Batch<'_>> {
        if self.queue.is_empty() || self.acknowledged < self.last {
            return None;
        }
        let mut bytes = 0;
        while let Some(frame) = self.queue.front() {
            let is_first = self.kept.is_empty();
            if !is_first && (self.kept.len() == BATCH_FRAMES || bytes + frame.len() > BATCH_BYTES) {
                break;
            }
            bytes += frame.len();
            self.kept_bytes += cost(frame);
            self.queue_bytes -= cost(frame);
            self.kept.extend(self.queue.pop_front());
        }
        if self.queue.is_empty() {
            // A session between polls holds no buffer.
            self.queue = VecDeque::new();
        }
        self.last += 1;
        self.kept_batch()
    }

    /// The last batch, while it is not acknowledged.
    pub fn kept_batch(&self) -> Option<Batch<'_>> {
        let number = self.last;
        (self.acknowledged < number).then_some(Batch { number, frames: &self.kept })
    }

    /// Whether the last frame that was taken is still queued and begins so.
    pub fn ends_with(&self, prefix: &[u8]) -> bool {
        self.queue.back().is_some_and(|frame| frame.starts_with(prefix))
    }

    /// Forgets what waits.
    pub fn clear_queue(&mut self) {
        self.queue = VecDeque::new();
        self.queue_bytes = 0;
    }

    /// The newest batch, 0 before the first.
    pub fn last_batch(&self) -> u64 {
        self.last
    }

    /// Frames in no batch yet.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// What it holds, queued and kept, with the cost of holding it.
    pub fn bytes(&self) -> usize {
        self.queue_bytes + self.kept_bytes
    }
}

impl fmt::Debug for Mailbox {
    /// Without the frames: payloads never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("last", &self.last)
            .field("acknowledged", &self.acknowledged)
            .field("queued", &self.queue.len())
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({}, {} frames)", self.number, self.frames.len())
    }
}

/// A tiny frame costs its handle as well.
fn cost(frame: &Bytes) -> usize {
    frame.len() + size_of::<Bytes>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize) -> Bytes {
        Bytes::from(vec![b'x'; length])
    }

    #[test]
    fn a_batch_is_kept_until_it_is_acknowledged() {
        let mut mailbox = Mailbox::new(1000);
        assert_eq!(mailbox.acknowledge(0), Ok(Arrival::New));
        assert_eq!(mailbox.make_batch(), None);
        mailbox.push(frame(1));
        assert_eq!(mailbox.make_batch().map(|batch| (batch.number, batch.frames.len())), Some((1, 1)));
        mailbox.push(frame(2));
        assert_eq!(mailbox.make_batch(), None, "one at a time");

        assert_eq!(mailbox.acknowledge(0), Ok(Arrival::Repeat));
        assert_eq!(
            mailbox.kept_batch().map(|batch| (batch.number, batch.frames)),
            Some((1, &[frame(1)][..]))
        );
        assert_eq!(mailbox.acknowledge(2), Err(AckError::Beyond { ack: 2, last: 1 }));
        assert_eq!(mailbox.acknowledge(1), Ok(Arrival::New));
        assert_eq!(mailbox.kept_batch(), None);
        assert_eq!(mailbox.acknowledge(0), Err(AckError::Stale { ack: 0, acknowledged: 1 }));
        assert_eq!(
            mailbox.make_batch().map(|batch| (batch.number, batch.frames)),
            Some((2, &[frame(2)][..]))
        );
    }

    #[test]
    fn batches_are_bounded_by_bytes_and_by_frames() {
        let mut mailbox = Mailbox::new(usize::MAX);
        mailbox.push(frame(BATCH_BYTES + 1));
        mailbox.push(frame(BATCH_BYTES));
        mailbox.push(frame(1));
        for _ in 0..BATCH_FRAMES {
            mailbox.push(frame(1));
        }
        let mut sizes = Vec::new();
        loop {
            mailbox.acknowledge(mailbox.last_batch()).expect("the last");
            let Some(batch) = mailbox.make_batch() else { break };
            sizes.push((batch.frames.len(), batch.frames.iter().map(Bytes::len).sum::<usize>()));
        }
        assert_eq!(sizes, [(1, BATCH_BYTES + 1), (1, BATCH_BYTES), (100, 100), (1, 1)]);
        assert_eq!(mailbox.bytes(), 0);
    }

    #[test]
    fn the_bound_counts_what_is_kept_as_well() {
        let mut mailbox = Mailbox::new(300);
        mailbox.push(frame(200));
        assert!(!mailbox.is_full());
        mailbox.push(frame(100));
        assert!(mailbox.is_full());
        mailbox.make_batch().expect("a batch");
        assert!(mailbox.is_full(), "the client may not have it");
        mailbox.acknowledge(1).expect("the last");
        assert!(!mailbox.is_full());
    }

    /// What happens next, in a random order.
    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        /// The client polls; the answer arrives or is lost.
        Poll {
            lost: bool,
        },
        /// An old request arrives once more, late.
        Stray(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..40_000).prop_map(Step::Push),
            4 => any::<bool>().prop_map(|lost| Step::Poll { lost }),
            1 => any::<u64>().prop_map(Step::Stray),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_arrives_once_and_in_order_whatever_is_lost(steps in prop::collection::vec(step(), 1..200)) {
            let mut mailbox = Mailbox::new(200_000);
            let (mut sent, mut received): (Vec<Bytes>, Vec<Bytes>) = (Vec::new(), Vec::new());
            // The client's half: the last batch it has, and whether a batch on its way there was lost.
            let (mut ack, mut lost_batch) = (0, false);
            let mut poll = |mailbox: &mut Mailbox, lost: bool, ack: &mut u64, received: &mut Vec<Bytes>| {
                let arrival = mailbox.acknowledge(*ack).expect("the client's own ack");
                // A request whose answer held a batch counts once, however often that answer is lost.
                assert_eq!(arrival, if lost_batch { Arrival::Repeat } else { Arrival::New });
                let batch = match arrival {
                    Arrival::New => mailbox.make_batch(),
                    Arrival::Repeat => mailbox.kept_batch(),
                };
                lost_batch = lost && batch.is_some();
                if let (Some(batch), false) = (batch, lost) {
                    assert_eq!(batch.number, *ack + 1);
                    assert!(batch.frames.len() <= BATCH_FRAMES);
                    *ack = batch.number;
                    received.extend_from_slice(batch.frames);
                }
            };
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Push(length) => {
                        if !mailbox.is_full() {
                            let mut bytes = vec![0; length + 8];
                            bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
                            sent.push(Bytes::from(bytes));
                            mailbox.push(sent.last().expect("just pushed").clone());
                        }
                        prop_assert!(mailbox.bytes() <= 200_000 + 40_000 + 8 + 32);
                    }
                    Step::Poll { lost } => poll(&mut mailbox, *lost, &mut ack, &mut received),
                    Step::Stray(seed) => {
                        // Any ack but those that a client may send now is refused and changes nothing.
                        let stray = seed % (mailbox.last_batch() + 3);
                        let before = (mailbox.bytes(), mailbox.last_batch(), mailbox.queued());
                        if stray > mailbox.last_batch() || stray + 1 < mailbox.last_batch() {
                            prop_assert!(mailbox.acknowledge(stray).is_err());
                        }
                        prop_assert_eq!(before, (mailbox.bytes(), mailbox.last_batch(), mailbox.queued()));
                    }
                }
                prop_assert!(sent.starts_with(&received));
            }
            while received.len() < sent.len() {
                poll(&mut mailbox, false, &mut ack, &mut received);
            }
            prop_assert_eq!(&received, &sent);
            poll(&mut mailbox, false, &mut ack, &mut received);
            prop_assert_eq!(mailbox.bytes(), 0);
        }
    }
}
