//! Sans-io: what one connection brings of one subscription.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::frame::Publication;
use crate::{Epoch, Offset, Position};

use super::HoldBounds;

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
    /// `subscribe` is on its way: publications that overtake its answer are held.
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
    pub(super) held: BTreeMap<u64, Publication>,
    held_bytes: usize,
    /// Something that will be missed was not held.
    pub(super) overflowed: bool,
    /// The highest of what was not held.
    dropped: u64,
    /// Something that the other connection had brought, by its number, was not held.
    pub(super) pruned: bool,
    /// The server lost continuity before its answer came: what comes before the answer may be of either numbering.
    pub(super) rebased: bool,
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
            overflowed: false,
            dropped: 0,
            pruned: false,
            rebased: false,
            progress: None,
            bounds,
        }
    }

    /// Back to where nothing was asked.
    pub(in super::super) fn reset(&mut self) {
        self.phase = Phase::Waiting { retry_at: None };
        self.clear_held();
    }

    /// Forgets what is held: it will come again.
    pub(in super::super) fn clear_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.overflowed = false;
        self.dropped = 0;
        self.pruned = false;
        self.rebased = false;
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

    /// The other connection brought everything up to `last`: before the answer that is most likely the same.
    pub(super) fn prune(&mut self, last: u64) {
        while self.held.first_key_value().is_some_and(|(offset, _)| *offset <= last) {
            if let Some((_, publication)) = self.held.pop_first() {
                self.held_bytes -= weight(&publication);
                self.pruned = true;
            }
        }
    }
}

/// What a held publication counts for.
fn weight(publication: &Publication) -> usize {
    let data = publication.data.as_ref().map_or(0, bytes::Bytes::len);
    let data_base64 = publication.data_base64.as_ref().map_or(0, bytes::Bytes::len);
    data + data_base64 + publication.channel.len() + publication.user.as_ref().map_or(0, String::len) + 96
}

/// A gap that nothing fills for so long is asked for again.
const GAP_TIMEOUT: Duration = Duration::from_secs(10);
