//! Sans-io: what one connection brings of one subscription.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::frame::Publication;
use crate::{Epoch, Offset, Position};

use super::super::carrier::Numbering;
use super::HoldBounds;
use super::ahead::Ahead;

/// Where a subscription stands on one connection.
///
/// ```text
///             sent             subscribed            overflow, stalled gap
/// Waiting ────────────► Asked ────────────► Live ───────────────────────────► Resyncing
///    ▲                    │ 503 (later)       │ unsubscribe,                 │   │ unsubscribed
///    │◄───────────────────┘                   ▼ unsure numbering             │   │
///    │◄───────── unsubscribed ──────────── Leaving ◄─────────────────────────┘   │
///    └◄──────────────────────────────────────────────────────────────────────────┘
/// Live ── ended by the server, while a move is under way ──► Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Phase {
    /// Not asked for on this connection.
    Waiting {
        /// Not before, where the server said "later".
        retry_at: Option<Instant>,
    },
    /// `subscribe` is on its way: publications that overtake its answer on other streams are held.
    Asked {
        /// Its id.
        request: u64,
    },
    /// The server sends.
    Live,
    /// `unsubscribe` is on its way, to subscribe again from the last position.
    Resyncing {
        /// Its id.
        request: u64,
    },
    /// `unsubscribe` is on its way; nothing that this connection brings counts any more.
    Leaving {
        /// Its id.
        request: u64,
    },
    /// The server ended it here. The connection that the session moves to will tell.
    Ended,
}

#[derive(Debug)]
pub(in super::super) struct Line {
    pub(in super::super) phase: Phase,
    /// Refused or stalled so many times in a row.
    pub(in super::super) attempts: u32,
    /// The numbering of what it brings, once live.
    pub(super) epoch: Epoch,
    /// It brings everything after that, once live.
    pub(super) from: Offset,
    /// Of the channel, when it began.
    pub(super) head: Offset,
    pub(super) conflated: bool,
    /// Of that numbering.
    pub(super) held: BTreeMap<u64, Publication>,
    held_bytes: usize,
    /// Of numberings that it has yet to be told of.
    ahead: Ahead,
    /// Numberings that it was at: what still comes of them counts no more. The last few.
    left: VecDeque<Epoch>,
    /// Something that will be missed was not held.
    pub(super) overflowed: bool,
    /// The highest of what was not held.
    dropped: u64,
    /// When the subscription last got on, or began here.
    pub(super) progress: Option<Instant>,
    bounds: HoldBounds,
}

impl Line {
    pub(super) fn new(bounds: HoldBounds) -> Self {
        Self {
            phase: Phase::Waiting { retry_at: None },
            attempts: 0,
            epoch: Epoch::default(),
            from: Offset(0),
            head: Offset(0),
            conflated: false,
            held: BTreeMap::new(),
            held_bytes: 0,
            ahead: Ahead::default(),
            left: VecDeque::new(),
            overflowed: false,
            dropped: 0,
            progress: None,
            bounds,
        }
    }

    /// Back to where nothing was asked.
    pub(in super::super) fn reset(&mut self) {
        self.phase = Phase::Waiting { retry_at: None };
        self.clear();
    }

    /// Forgets what is held: it will come again.
    pub(in super::super) fn clear(&mut self) {
        self.clear_held();
        self.ahead.clear();
    }

    /// The same, of its present numbering alone.
    fn clear_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.overflowed = false;
        self.dropped = 0;
    }

    /// The control lane says of which numbering is what comes from now on. True where something of it was not held.
    pub(super) fn begin_epoch(&mut self, epoch: &Epoch) -> bool {
        if self.epoch != *epoch {
            let left = std::mem::replace(&mut self.epoch, epoch.clone());
            self.left.retain(|one| one != epoch);
            if !left.is_any() {
                self.left.push_back(left);
            }
            if self.left.len() > MAX_LEFT {
                self.left.pop_front();
            }
            self.clear_held();
        }
        let (ahead, lossy) = self.ahead.take(epoch);
        ahead.into_values().for_each(|publication| self.hold(publication));
        lossy
    }

    /// Sorts out what is not of the line's numbering: what is of one to come is held, of one that is over dropped. `None`
    /// then.
    pub(super) fn admit(&mut self, numbering: Numbering, publication: Publication) -> Option<Publication> {
        let is_begun = matches!(self.phase, Phase::Live | Phase::Resyncing { .. });
        if is_begun && numbering.is(&self.epoch) {
            return Some(publication);
        }
        // Before the answer, what comes in order with it comes again behind it.
        let is_over = numbering == Numbering::InOrder
            || self.left.iter().any(|epoch| numbering.is(epoch))
            || matches!(self.phase, Phase::Resyncing { .. });
        if !is_over {
            self.ahead.hold(numbering, publication, self.bounds);
        }
        None
    }

    /// Drops a publication of a numbering that the subscription is not at: should it come there, that one is missing.
    pub(super) fn pass_over(&mut self, offset: u64) {
        self.from = self.from.max(Offset(offset));
    }

    /// Drops all that is held in the same way.
    pub(super) fn pass_over_held(&mut self) {
        let highest = self.held.last_key_value().map_or(0, |(offset, _)| *offset);
        self.pass_over(highest.max(self.dropped));
        self.clear_held();
    }

    /// True where what it brings has the numbers of `position`.
    pub(super) fn is_of(&self, position: Option<&Position>) -> bool {
        self.phase == Phase::Live && position.is_some_and(|position| position.epoch == self.epoch)
    }

    /// True where nothing after `position` can be missing from what it brings.
    pub(super) fn continues(&self, position: Option<&Position>) -> bool {
        self.is_of(position) && position.is_some_and(|position| self.from <= position.offset)
    }

    /// When to give up on a gap, or on a numbering that nothing else has, and subscribe again.
    pub(super) fn gap_deadline(&self, position: Option<&Position>) -> Option<Instant> {
        if self.phase != Phase::Live {
            return None;
        }
        let last = position.map_or(Offset(0), |position| position.offset);
        let behind = !self.conflated && (!self.held.is_empty() || last < self.head);
        if behind || !self.is_of(position) { self.progress.map(|at| at + GAP_TIMEOUT) } else { None }
    }

    /// True for the publication after `last`.
    pub(super) fn is_next(&self, last: u64, offset: u64) -> bool {
        if self.conflated { offset > last } else { last.checked_add(1) == Some(offset) }
    }

    /// Keeps the lowest offsets: they are the next to be delivered.
    pub(super) fn hold(&mut self, publication: Publication) {
        if self.held.contains_key(&publication.offset) {
            return;
        }
        self.held_bytes += weight(&publication);
        self.held.insert(publication.offset, publication);
        while self.held.len() > self.bounds.items || self.held_bytes > self.bounds.bytes {
            let Some((_, dropped)) = self.held.pop_last() else { break };
            self.held_bytes -= weight(&dropped);
            self.dropped = self.dropped.max(dropped.offset);
            self.overflowed = true;
        }
    }

    /// The first of what is held, where it is a duplicate or the next after `last`.
    pub(super) fn pop_due(&mut self, last: u64) -> Option<Publication> {
        let (&offset, _) = self.held.first_key_value()?;
        if offset > last && !self.is_next(last, offset) {
            return None;
        }
        let (_, publication) = self.held.pop_first()?;
        self.held_bytes -= weight(&publication);
        Some(publication)
    }

    /// The other connection brought everything up to `position`.
    pub(super) fn prune(&mut self, position: &Position) {
        self.ahead.prune(&position.epoch, position.offset.0);
    }
}

/// What a held publication counts for.
pub(super) fn weight(publication: &Publication) -> usize {
    let data = publication.data.as_ref().map_or(0, bytes::Bytes::len);
    let data_base64 = publication.data_base64.as_ref().map_or(0, bytes::Bytes::len);
    data + data_base64 + publication.channel.len() + publication.user.as_ref().map_or(0, String::len) + 96
}

/// A gap that nothing fills for so long is asked for again.
const GAP_TIMEOUT: Duration = Duration::from_secs(10);

/// Numberings that a line was at and that are known by name. An older one would have to come after so many others.
const MAX_LEFT: usize = 8;
