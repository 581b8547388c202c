//! Sans-io: a session's subscriptions by slot, and what each is due.

use crate::{ChannelName, Epoch, Offset};

/// Which part of a run of publications a subscription is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing: not live, or all of it was delivered before.
    Nothing,
    /// The whole run.
    All,
    /// From this offset on.
    From(Offset),
    /// Nothing, and something before it never came: the subscription is parked now, fetch what is missing.
    Gap,
}

/// Who asked for a subscription, while it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A request, to be answered.
    Client { id: u64 },
    /// The token.
    Token,
}

/// ```text
///            recovered            queue over its bound
/// Starting ────────────► Live ───────────────────────► Parked
///                          ▲                             │ drained
///                          └───────── recovered ──── Refilling
/// ```
#[derive(Debug)]
pub(super) enum State {
    /// The core was asked; nothing was delivered.
    Starting { origin: Origin, ask: u32 },
    /// Everything up to `last` was handed on.
    Live { last: Offset },
    /// Everything up to `last` was handed on; what follows waits in history.
    Parked { last: Offset },
    /// As parked, and the core was asked.
    Refilling { ask: u32 },
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) channel: ChannelName,
    pub(super) epoch: Epoch,
    pub(super) state: State,
    /// The token asked for it, and the client has not taken it up.
    pub(super) server_side: bool,
    pub(super) rank: i8,
    /// The client asked to be told who joins and leaves, and may be.
    pub(super) watches: bool,
}

impl Subscription {
    pub(super) fn take(&mut self, first: Offset, last: Offset) -> Due {
        let State::Live { last: delivered } = &mut self.state else { return Due::Nothing };
        if last <= *delivered {
            return Due::Nothing;
        }
        if first > delivered.next() {
            let last = *delivered;
            self.state = State::Parked { last };
            return Due::Gap;
        }
        let due = if *delivered < first { Due::All } else { Due::From(delivered.next()) };
        *delivered = last;
        due
    }
}

/// Slots are small numbers, reused after removal.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    slots: Vec<Option<Subscription>>,
    len: usize,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, channel: ChannelName, origin: Origin, ask: u32, rank: i8) -> u32 {
        let subscription = Subscription {
            channel,
            epoch: Epoch::default(),
            state: State::Starting { origin, ask },
            server_side: origin == Origin::Token,
            rank,
            watches: false,
        };
        self.len += 1;
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => {
                self.slots[free] = Some(subscription);
                free
            }
            None => {
                // Most sessions have one or two: no room for four.
                self.slots.reserve_exact(if self.slots.is_empty() { 1 } else { self.slots.len() });
                self.slots.push(Some(subscription));
                self.slots.len() - 1
            }
        };
        u32::try_from(slot).expect("bounded by max_subscriptions")
    }

    pub(super) fn find(&self, channel: &ChannelName) -> Option<u32> {
        self.iter().find(|(_, name)| *name == channel).map(|(slot, _)| slot)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Subscription> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Subscription> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Subscription> {
        let removed = self.slots.get_mut(slot as usize)?.take()?;
        self.len -= 1;
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &ChannelName)> {
        // The cast holds: a slot was made from it.
        (0u32..).zip(&self.slots).filter_map(|(slot, held)| held.as_ref().map(|held| (slot, &held.channel)))
    }

    pub(super) fn slots_where(&self, fits: impl Fn(&ChannelName) -> bool) -> Vec<u32> {
        self.iter().filter(|(_, channel)| fits(channel)).map(|(slot, _)| slot).collect()
    }
}
