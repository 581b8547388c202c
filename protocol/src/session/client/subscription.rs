//! Sans-io: one subscription of a client: puts publications in order, drops duplicates, notices what is missing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::frame::{Publication, Subscribed};
use crate::{ChannelName, Epoch, Offset, Position};

use super::{Event, SessionError};

/// Where a subscription stands on the present connection.
///
/// ```text
///             sent             subscribed            overflow, stalled gap
/// Waiting ────────────► Asked ────────────► Live ───────────────────────────► Resyncing
///    ▲                    │ 503 (later)       │ unsubscribe,                 │   │ unsubscribed
///    │◄───────────────────┘                   ▼ unsure numbering             │   │
///    │◄──── unsubscribed, again ────────── Leaving ◄─────────────────────────┘   │
///    │                                        └── unsubscribed ──► (removed)     │
///    └◄──────────────────────────────────────────────────────────────────────────┘
///    every state but Leaving goes to Waiting when the connection is lost
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
    /// `unsubscribe` is on its way; nothing of the channel counts any more.
    Leaving {
        /// Its id.
        request: u64,
        /// To subscribe again after it.
        again: bool,
    },
}

/// What a subscription asks of the session.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// To unsubscribe, and to subscribe again from the last position. What comes in order meanwhile counts.
    Resync,
    /// The same; but what comes meanwhile may be of another numbering.
    Restart,
}

/// Bounds of the hold buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct HoldBounds {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Subscription {
    channel: ChannelName,
    pub(super) phase: Phase,
    /// The last publication delivered; `None` to begin at the head.
    pub(super) position: Option<Position>,
    /// Begun by the server, and not yet asked for by the app.
    pub(super) server: bool,
    /// Refused or stalled so many times in a row.
    pub(super) attempts: u32,
    head: Offset,
    conflated: bool,
    held: BTreeMap<u64, Publication>,
    held_bytes: usize,
    /// Something that will be missed was not held.
    overflowed: bool,
    /// The server lost continuity before its answer came: what comes before the answer may be of either numbering.
    rebased: bool,
    /// When it last got on, or began.
    progress: Option<Instant>,
    bounds: HoldBounds,
}

impl Subscription {
    pub(super) fn new(channel: ChannelName, position: Option<Position>, bounds: HoldBounds) -> Self {
        Self {
            channel,
            phase: Phase::Waiting { retry_at: None },
            position,
            server: false,
            attempts: 0,
            head: Offset(0),
            conflated: false,
            held: BTreeMap::new(),
            held_bytes: 0,
            overflowed: false,
            rebased: false,
            progress: None,
            bounds,
        }
    }

    pub(super) fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The connection is gone, with whatever was under way on it.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Waiting { retry_at: None };
        self.clear_held();
    }

    /// When to give up on a gap and subscribe again.
    pub(super) fn gap_deadline(&self) -> Option<Instant> {
        if self.phase != Phase::Live || self.conflated {
            return None;
        }
        let last = self.position.as_ref().map_or(Offset(0), |position| position.offset);
        let behind = !self.held.is_empty() || last < self.head;
        if behind { self.progress.map(|at| at + GAP_TIMEOUT) } else { None }
    }

    /// Takes `subscribed`: `asked` as the answer to a request, else because the server began or re-based it.
    pub(super) fn handle_subscribed(
        &mut self,
        now: Instant,
        subscribed: Subscribed,
        asked: bool,
        events: &mut VecDeque<Event>,
    ) -> Result<Need, SessionError> {
        let Some(head) = subscribed.position.map(Position::from) else {
            return Err(SessionError::Malformed("`subscribed` without a position"));
        };
        let had = self.position.take();
        let continues = |had: &Position| had.epoch.is_any() || had.epoch == head.epoch;
        let recovered = asked && subscribed.recovered && had.as_ref().is_some_and(continues);
        let new_epoch = had.as_ref().is_some_and(|had| !continues(had));
        let was_recovering = had.is_some();
        self.position = Some(match had {
            Some(had) if recovered => Position::new(head.epoch.clone(), had.offset),
            _ => head.clone(),
        });
        self.phase = Phase::Live;
        self.head = head.offset;
        self.conflated = subscribed.conflated;
        self.progress = Some(now);
        events.push_back(Event::Subscribed {
            channel: self.channel.clone(),
            position: head,
            recovered,
            was_recovering,
            server: self.server,
        });
        for publication in subscribed.publications {
            self.put_in_order(now, publication, events);
        }
        let ambiguous =
            new_epoch && self.held.last_key_value().is_some_and(|(offset, _)| *offset > self.last());
        if self.rebased || ambiguous {
            // What was held may be of either numbering: only the server can tell.
            self.clear_held();
            return Ok(Need::Restart);
        }
        self.release_held(now, events);
        Ok(self.need())
    }

    /// Takes `subscribed` without an id: continuity was lost.
    pub(super) fn handle_rebased(
        &mut self,
        now: Instant,
        subscribed: Subscribed,
        events: &mut VecDeque<Event>,
    ) -> Result<Need, SessionError> {
        match self.phase {
            Phase::Live => {
                let to = subscribed.position.clone().map(Position::from);
                // One that was overtaken by what it says will be missing: nothing is.
                let stale = to.is_some_and(|to| {
                    self.position.as_ref().is_some_and(|has| has.epoch == to.epoch && has.offset >= to.offset)
                });
                if stale { Ok(Need::Nothing) } else { self.handle_subscribed(now, subscribed, false, events) }
            }
            Phase::Asked { .. } => {
                self.clear_held();
                self.rebased = true;
                Ok(Need::Nothing)
            }
            Phase::Resyncing { request } => {
                self.phase = Phase::Leaving { request, again: true };
                Ok(Need::Nothing)
            }
            Phase::Waiting { .. } | Phase::Leaving { .. } => Ok(Need::Nothing),
        }
    }

    /// Takes a publication, in whatever order it comes.
    pub(super) fn handle_publication(
        &mut self,
        now: Instant,
        publication: Publication,
        events: &mut VecDeque<Event>,
    ) -> Need {
        match self.phase {
            Phase::Waiting { .. } | Phase::Leaving { .. } => Need::Nothing,
            Phase::Asked { .. } => {
                if !self.rebased {
                    self.hold(publication);
                }
                Need::Nothing
            }
            Phase::Live => {
                self.put_in_order(now, publication, events);
                self.release_held(now, events);
                self.need()
            }
            // What the old subscription still brings in order need not come again; the rest will.
            Phase::Resyncing { .. } => {
                if self.is_next(publication.offset) {
                    self.deliver(now, publication, events);
                }
                Need::Nothing
            }
        }
    }

    /// Forgets what is held: it will come again.
    pub(super) fn clear_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.overflowed = false;
        self.rebased = false;
    }

    fn put_in_order(&mut self, now: Instant, publication: Publication, events: &mut VecDeque<Event>) {
        if self.is_next(publication.offset) {
            self.deliver(now, publication, events);
        } else if publication.offset > self.last() {
            self.hold(publication);
        }
    }

    fn release_held(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        while let Some((&offset, _)) = self.held.first_key_value() {
            let duplicate = offset <= self.last();
            if !duplicate && !self.is_next(offset) {
                break;
            }
            if let Some((_, publication)) = self.held.pop_first() {
                self.held_bytes -= weight(&publication);
                if !duplicate {
                    self.deliver(now, publication, events);
                }
            }
        }
    }

    fn deliver(&mut self, now: Instant, publication: Publication, events: &mut VecDeque<Event>) {
        let epoch = self.position.take().map_or_else(Epoch::default, |position| position.epoch);
        let position = Position::new(epoch, Offset(publication.offset));
        self.position = Some(position.clone());
        self.progress = Some(now);
        self.attempts = 0;
        events.push_back(Event::Publication { channel: self.channel.clone(), position, publication });
    }

    /// Keeps the lowest offsets: they are the next to be delivered.
    fn hold(&mut self, publication: Publication) {
        let weight_in = weight(&publication);
        if self.held.contains_key(&publication.offset) {
            return;
        }
        self.held_bytes += weight_in;
        self.held.insert(publication.offset, publication);
        while self.held.len() > self.bounds.items || self.held_bytes > self.bounds.bytes {
            let Some((_, dropped)) = self.held.pop_last() else { break };
            self.held_bytes -= weight(&dropped);
            self.overflowed = true;
        }
    }

    fn is_next(&self, offset: u64) -> bool {
        let last = self.last();
        if self.conflated { offset > last } else { last.checked_add(1) == Some(offset) }
    }

    fn last(&self) -> u64 {
        self.position.as_ref().map_or(0, |position| position.offset.0)
    }

    fn need(&self) -> Need {
        if self.overflowed { Need::Resync } else { Need::Nothing }
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
