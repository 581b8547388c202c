//! Sans-io: where one stream of events stands, what waits for its reader, and when it catches up from history.

use std::collections::VecDeque;

use bytes::Bytes;
use tidegate_fallback::events::EventWriter;
use tidegate_protocol::frame::shared::Framing;
use tidegate_protocol::frame::{ServerBody, ServerFrame};
use tidegate_protocol::link::{Delivery, Recovery};
use tidegate_protocol::{Offset, Position};

/// One stream. The same policy as a session's subscription (`limits.subscription_queue`): over its bound it is parked,
/// and once its reader has taken what waits, it is refilled from history. On a conflated channel the newest publication
/// waits alone.
#[derive(Debug)]
pub(super) struct Stream {
    phase: Phase,
    conflated: bool,
    bound: usize,
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
    /// The newest alone.
    ephemeral: Option<Bytes>,
}

/// ```text
///         recovered               over the bound
/// Asking ───────────► Live ─────────────────────► Parked
///    │ ▲  over the bound                          ▲   │
///    │ └──────────────────────────────────────────┼───┘ read to the end: asks again
///    └────────────────────────────────────────────┘
/// ```
#[derive(Debug)]
enum Phase {
    /// The core was asked what comes after `after`.
    Asking { after: Option<Position>, first: bool },
    /// Everything up to `last` was read or waits.
    Live { last: Position },
    /// More came after `last` than may wait.
    Parked { last: Position },
}

#[derive(Debug)]
enum Item {
    Position { position: Position, recovered: bool },
    Rebased { position: Position },
    Publication { lines: Bytes, position: Position },
}

/// What an answer of the core was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was asked for but the head.
    Head,
    /// All that came after the position comes.
    Recovered,
    /// Not all: the reader is told.
    Gap,
}

impl Stream {
    /// Begins by asking the core what comes after `after`; `None` for the head.
    pub(super) fn new(after: Option<Position>, conflated: bool, bound: usize) -> Self {
        Self {
            phase: Phase::Asking { after, first: true },
            conflated,
            bound,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            ephemeral: None,
        }
    }

    /// Bytes that wait to be read.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Takes the core's answer; `None` where nothing was asked.
    pub(super) fn recovered(&mut self, recovery: Recovery) -> Option<Outcome> {
        let Phase::Asking { after, first } = &mut self.phase else { return None };
        let (asked, first) = (after.take(), *first);
        let cut = recovery.cut_at().is_some();
        let Recovery { position: head, recovered, publications } = recovery;
        self.phase = Phase::Live { last: head.clone() };
        let Some(after) = asked else {
            self.push(Item::Position { position: head, recovered: false });
            return Some(Outcome::Head);
        };
        if !recovered {
            self.push(match first {
                true => Item::Position { position: head, recovered: false },
                false => Item::Rebased { position: head },
            });
            return Some(Outcome::Gap);
        }
        // Its epoch may have been that which stands for any.
        let mut last = Position::new(head.epoch.clone(), after.offset);
        if first {
            self.push(Item::Position { position: last.clone(), recovered: true });
        }
        for publication in publications {
            let position = Position::new(head.epoch.clone(), Offset(publication.offset));
            let frame = ServerFrame::new(0, ServerBody::Publication(publication));
            if !self.offer(&position, &Framing::Event.encode(&frame)) {
                self.phase = Phase::Parked { last };
                return Some(Outcome::Recovered);
            }
            last = position;
        }
        if cut {
            self.phase = Phase::Parked { last };
        }
        Some(Outcome::Recovered)
    }

    /// Takes publications that come in order; how many wait now. They are due only behind the core's answer, which knows
    /// of those before it.
    pub(super) fn deliver(&mut self, deliveries: &[Delivery]) -> usize {
        let Phase::Live { last } = &self.phase else { return 0 };
        let mut last = last.clone();
        let mut taken = 0;
        for delivery in deliveries {
            if delivery.offset <= last.offset {
                continue;
            }
            let position = Position::new(last.epoch.clone(), delivery.offset);
            if !self.offer(&position, delivery.frame.encoded(Framing::Event)) {
                self.phase = Phase::Parked { last };
                return taken;
            }
            last = position;
            taken += 1;
        }
        self.phase = Phase::Live { last };
        taken
    }

    /// Takes an ephemeral item; the newest waits alone.
    pub(super) fn deliver_ephemeral(&mut self, delivery: &Delivery) -> bool {
        let live = matches!(self.phase, Phase::Live { .. });
        if live {
            self.ephemeral = Some(delivery.frame.encoded(Framing::Event).clone());
        }
        live
    }

    /// The channel's numbering began anew. Where the core's answer is still to come, it comes behind this and knows.
    pub(super) fn rebased(&mut self, position: &Position) -> bool {
        let Phase::Live { last } = &mut self.phase else { return false };
        *last = position.clone();
        let told = Item::Rebased { position: position.clone() };
        match self.waiting.back_mut() {
            Some(before @ Item::Rebased { .. }) => *before = told,
            _ => self.push(told),
        }
        true
    }

    /// True where more came than may wait.
    pub(super) fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Parked { .. })
    }

    /// Writes what waits, the next [`CHUNK_BYTES`] of it.
    pub(super) fn write(&mut self, writer: &mut EventWriter) {
        while writer.len() < CHUNK_BYTES {
            let Some(item) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= item.bytes();
            match item {
                Item::Position { position, recovered } => writer.position(&position, recovered),
                Item::Rebased { position } => writer.rebased(&position),
                Item::Publication { lines, position } => writer.publication(&lines, &position),
            }
        }
        if self.waiting.is_empty()
            && let Some(lines) = self.ephemeral.take()
        {
            writer.ephemeral(&lines);
        }
    }

    /// What to ask the core for, where a parked stream was read to its end: all that comes after it.
    pub(super) fn refill(&mut self) -> Option<Position> {
        let Phase::Parked { last } = &self.phase else { return None };
        if !self.waiting.is_empty() {
            return None;
        }
        let last = last.clone();
        self.phase = Phase::Asking { after: Some(last.clone()), first: false };
        Some(last)
    }

    /// False where it finds no room; alone it always does.
    fn offer(&mut self, position: &Position, lines: &Bytes) -> bool {
        let item = Item::Publication { lines: lines.clone(), position: position.clone() };
        if self.conflated {
            let older = |item: &Item| matches!(item, Item::Publication { .. });
            while self.waiting.back().is_some_and(older) {
                self.waiting_bytes -= self.waiting.pop_back().map_or(0, |item| item.bytes());
            }
        } else if self.waiting_bytes > 0 && self.waiting_bytes + item.bytes() > self.bound {
            return false;
        }
        self.push(item);
        true
    }

    fn push(&mut self, item: Item) {
        self.waiting_bytes += item.bytes();
        self.waiting.push_back(item);
    }
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Self::Position { .. } | Self::Rebased { .. } => ITEM_BYTES,
            Self::Publication { lines, .. } => ITEM_BYTES + lines.len(),
        }
    }
}

/// What is written at once: under a socket's buffer.
pub(super) const CHUNK_BYTES: usize = 16 << 10;
/// An item beside its payload.
const ITEM_BYTES: usize = size_of::<Item>();

#[cfg(test)]
mod tests;
