//! Sans-io: what waits for one client that does not read fast enough, in which order it goes, and what happens at the
//! bounds.
//!
//! Control frames are never dropped: where they have no room the session ends. A quarter of the session's bound is
//! theirs alone, so that no channel's publications bring that about. Durable publications are dropped by subscription,
//! which is parked and catches up from history later; on a conflated channel only the newest waits. Ephemeral items
//! wait one per subscription, the newest, and not for long.
//!
//! Control frames go first, then subscriptions by rank. Those of one rank share by bytes (start-time fair queueing): each
//! has a mark, which moves on by what was sent of it, and the lowest mark is next. What a subscription missed counts
//! four times, so that live data of the same rank goes before most of it and never all of it waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use tidegate_protocol::Offset;
use tidegate_transport::{Lane, Sent};

/// Bounds in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// All that waits for a session.
    pub(crate) session: usize,
    /// What waits for one subscription.
    pub(crate) subscription: usize,
}

impl Bounds {
    /// All that waits for a session, where publications are to be added.
    fn publications(self) -> usize {
        self.session - self.session / 4
    }
}

/// What became of a publication that had to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It waits.
    Waits,
    /// It waits, and an older one of the conflated channel does no more.
    Replaced,
    /// The queue was dropped: nothing after `last` was handed on.
    Parked {
        /// The last offset that was.
        last: Offset,
    },
}

/// What became of an ephemeral item that had to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EphemeralQueued {
    /// It waits.
    Waits,
    /// It waits, and the older one was dropped.
    Replaced,
    /// It was dropped.
    NoRoom,
}

/// Control frames have no room left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ControlOverflow;

/// What one round of sending left.
#[derive(Debug, Default)]
pub(crate) struct Pumped {
    /// Lanes that took nothing more: wait for each, the first is served first.
    pub(crate) blocked: Vec<Lane>,
    /// Subscriptions whose catch-up has been handed on whole.
    pub(crate) caught_up: Vec<u32>,
    /// Ephemeral items that had waited for too long.
    pub(crate) expired: u64,
}

/// What waits for one client. Empty for nearly all of them.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    control: VecDeque<Bytes>,
    lanes: BTreeMap<u32, LaneBacklog>,
    /// Marks of subscriptions of which nothing waits any more, while others wait: who comes back does not begin anew.
    marks: BTreeMap<u32, u64>,
    /// By rank, the highest mark whose turn it was.
    clocks: BTreeMap<i8, u64>,
    bytes: usize,
    /// Those of `control`.
    control_bytes: usize,
}

#[derive(Debug)]
struct LaneBacklog {
    catch_up: VecDeque<Bytes>,
    live: VecDeque<(Offset, Bytes)>,
    ephemeral: Option<(Instant, Bytes)>,
    bytes: usize,
    rank: i8,
    mark: u64,
}

impl Backlog {
    /// True where nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.lanes.is_empty()
    }

    /// All that waits.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Control frames that wait.
    pub(crate) fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// True where anything of `slot` waits.
    pub(crate) fn is_behind(&self, slot: u32) -> bool {
        self.lanes.contains_key(&slot)
    }

    /// True where a live item of `slot` has to wait behind its own kind, or behind a control frame: that may tell of the
    /// item's epoch, and where the client has no credit for a stream they share one. On one pipe behind anything that
    /// waits: what it took of the pipe's room would be taken from those whose turn it is.
    pub(crate) fn holds_up(&self, slot: u32, one_pipe: bool) -> bool {
        if one_pipe || !self.control.is_empty() {
            !self.is_empty()
        } else {
            let lane = self.lanes.get(&slot);
            lane.is_some_and(|lane| !lane.live.is_empty() || lane.ephemeral.is_some())
        }
    }

    /// A subscription has another rank from now on.
    pub(crate) fn set_rank(&mut self, slot: u32, rank: i8) {
        let mark = self.clock(rank);
        if let Some(lane) = self.lanes.get_mut(&slot)
            && lane.rank != rank
        {
            (lane.rank, lane.mark) = (rank, mark);
        }
    }

    /// A control frame waits.
    pub(crate) fn push_control(&mut self, bounds: Bounds, bytes: Bytes) -> Result<(), ControlOverflow> {
        if self.bytes + bytes.len() > bounds.session {
            return Err(ControlOverflow);
        }
        self.bytes += bytes.len();
        self.control_bytes += bytes.len();
        self.control.push_back(bytes);
        Ok(())
    }

    /// Bytes that catch-up may still add.
    pub(crate) fn catch_up_budget(&self, bounds: Bounds) -> usize {
        bounds.subscription.min(bounds.publications().saturating_sub(self.bytes) / 2)
    }

    /// A missed publication waits. The caller keeps within [`Backlog::catch_up_budget`].
    pub(crate) fn push_catch_up(&mut self, slot: u32, rank: i8, bytes: Bytes) {
        self.bytes += bytes.len();
        let lane = self.lane(slot, rank);
        lane.bytes += bytes.len();
        lane.catch_up.push_back(bytes);
    }

    /// Live publications of `slot`, the first of them `first`, wait.
    pub(crate) fn push_live(
        &mut self,
        bounds: Bounds,
        (slot, rank): (u32, i8),
        first: Offset,
        bytes: Bytes,
        conflated: bool,
    ) -> Queued {
        let mut total = self.bytes;
        let lane = self.lane(slot, rank);
        let mut replaced = false;
        if conflated {
            replaced = !lane.live.is_empty();
            let dropped: usize = lane.live.drain(..).map(|(_, bytes)| bytes.len()).sum();
            lane.bytes -= dropped;
            total -= dropped;
        }
        // The newest of a conflated channel is never too much for its subscription.
        let over = (!conflated && lane.bytes + bytes.len() > bounds.subscription)
            || total + bytes.len() > bounds.publications();
        if over {
            let dropped: usize = lane.live.iter().map(|(_, bytes)| bytes.len()).sum();
            let first = lane.live.front().map_or(first, |(first, _)| *first);
            lane.live.clear();
            lane.bytes -= dropped;
            self.bytes = total - dropped;
            self.forget_if_drained(slot);
            return Queued::Parked { last: Offset(first.0.saturating_sub(1)) };
        }
        lane.bytes += bytes.len();
        total += bytes.len();
        lane.live.push_back((first, bytes));
        self.bytes = total;
        if replaced { Queued::Replaced } else { Queued::Waits }
    }

    /// An ephemeral item of `slot` waits from `now` on, instead of an older one.
    pub(crate) fn push_ephemeral(
        &mut self,
        bounds: Bounds,
        now: Instant,
        (slot, rank): (u32, i8),
        bytes: Bytes,
    ) -> EphemeralQueued {
        if self.bytes + bytes.len() > bounds.publications() {
            return EphemeralQueued::NoRoom;
        }
        self.bytes += bytes.len();
        let lane = self.lane(slot, rank);
        lane.bytes += bytes.len();
        match lane.ephemeral.replace((now, bytes)) {
            Some((_, older)) => {
                lane.bytes -= older.len();
                self.bytes -= older.len();
                EphemeralQueued::Replaced
            }
            None => EphemeralQueued::Waits,
        }
    }

    /// Drops what waits for a subscription that ended.
    pub(crate) fn drop_lane(&mut self, slot: u32) {
        if let Some(lane) = self.lanes.remove(&slot) {
            self.bytes -= lane.bytes;
        }
        self.marks.remove(&slot);
    }

    /// Offers what waits until nothing more is taken. `one_pipe`: what one lane cannot take, none can. Ephemeral items
    /// that have waited since before `oldest` are dropped.
    pub(crate) fn pump<E>(
        &mut self,
        one_pipe: bool,
        oldest: Option<Instant>,
        mut offer: impl FnMut(Lane, &Bytes) -> Result<Sent, E>,
    ) -> Result<Pumped, E> {
        let mut pumped = Pumped::default();
        while let Some(bytes) = self.control.front() {
            match offer(Lane::Control, bytes)? {
                Sent::Taken => {
                    self.bytes -= bytes.len();
                    self.control_bytes -= bytes.len();
                    self.control.pop_front();
                }
                Sent::Full => {
                    pumped.blocked.push(Lane::Control);
                    if one_pipe {
                        return Ok(pumped);
                    }
                    break;
                }
            }
        }
        let mut turns = BinaryHeap::with_capacity(self.lanes.len());
        for (slot, lane) in &mut self.lanes {
            let clock = self.clocks.get(&lane.rank).copied().unwrap_or(0);
            lane.mark = lane.mark.max(clock.saturating_sub(MAX_LEAD));
            turns.push(lane.turn(*slot));
        }
        while let Some(mut turn) = turns.pop() {
            match self.pump_one(&mut turn, one_pipe, oldest, &mut offer, &mut pumped)? {
                Step::Again => turns.push(turn),
                Step::Blocked if one_pipe => return Ok(pumped),
                Step::Blocked | Step::Drained => {}
            }
        }
        Ok(pumped)
    }

    /// Offers the next item of the subscription whose turn it is.
    fn pump_one<E>(
        &mut self,
        turn: &mut Turn,
        one_pipe: bool,
        oldest: Option<Instant>,
        offer: &mut impl FnMut(Lane, &Bytes) -> Result<Sent, E>,
        pumped: &mut Pumped,
    ) -> Result<Step, E> {
        let slot = turn.slot;
        let Some(lane) = self.lanes.get_mut(&slot) else { return Ok(Step::Drained) };
        if let Some((since, bytes)) = &lane.ephemeral
            && oldest.is_some_and(|oldest| *since < oldest)
        {
            lane.bytes -= bytes.len();
            self.bytes -= bytes.len();
            lane.ephemeral = None;
            pumped.expired += 1;
        }
        let live = lane
            .live
            .front()
            .map(|(_, bytes)| bytes)
            .or_else(|| lane.ephemeral.as_ref().map(|(_, bytes)| bytes));
        // On streams of its own, live data does not wait behind what was missed.
        let live = live.filter(|_| if one_pipe { lane.catch_up.is_empty() } else { !turn.live_blocked });
        let missed = lane.catch_up.front().filter(|_| !turn.catch_up_blocked);
        let (name, bytes, cost) = match (live, missed) {
            (Some(bytes), _) => (Lane::Subscription(slot), bytes, 1),
            (None, Some(bytes)) => (Lane::CatchUp(slot), bytes, CATCH_UP_COST),
            (None, None) => {
                return Ok(if self.forget_if_drained(slot) { Step::Drained } else { Step::Blocked });
            }
        };
        let size = bytes.len();
        let is_live = matches!(name, Lane::Subscription(_));
        if offer(name, bytes)? == Sent::Full {
            pumped.blocked.push(name);
            if one_pipe {
                return Ok(Step::Blocked);
            }
            if is_live {
                turn.live_blocked = true;
            } else {
                turn.catch_up_blocked = true;
            }
            return Ok(Step::Again);
        }
        if !is_live {
            lane.catch_up.pop_front();
            if lane.catch_up.is_empty() {
                pumped.caught_up.push(slot);
            }
        } else if lane.live.pop_front().is_none() {
            lane.ephemeral = None;
        }
        let clock = self.clocks.entry(lane.rank).or_default();
        *clock = lane.mark.max(*clock);
        lane.bytes -= size;
        lane.mark += (size * cost) as u64;
        turn.mark = Reverse(lane.mark);
        self.bytes -= size;
        Ok(if self.forget_if_drained(slot) { Step::Drained } else { Step::Again })
    }

    fn lane(&mut self, slot: u32, rank: i8) -> &mut LaneBacklog {
        if !self.lanes.contains_key(&slot) {
            // Where its rank has got to, or behind what it had itself.
            let mark = self.clock(rank).max(self.marks.remove(&slot).unwrap_or(0));
            self.lanes.insert(slot, LaneBacklog::new(rank, mark));
        }
        self.lanes.get_mut(&slot).expect("inserted above")
    }

    fn clock(&self, rank: i8) -> u64 {
        self.clocks.get(&rank).copied().unwrap_or(0)
    }

    fn forget_if_drained(&mut self, slot: u32) -> bool {
        let Some(lane) = self.lanes.get(&slot) else { return true };
        if !lane.is_empty() {
            return false;
        }
        self.marks.insert(slot, lane.mark);
        self.lanes.remove(&slot);
        if self.lanes.is_empty() {
            self.marks.clear();
            self.clocks.clear();
        }
        true
    }
}

impl LaneBacklog {
    fn new(rank: i8, mark: u64) -> Self {
        Self { catch_up: VecDeque::new(), live: VecDeque::new(), ephemeral: None, bytes: 0, rank, mark }
    }

    fn is_empty(&self) -> bool {
        self.catch_up.is_empty() && self.live.is_empty() && self.ephemeral.is_none()
    }

    fn turn(&self, slot: u32) -> Turn {
        let (rank, mark) = (self.rank, Reverse(self.mark));
        Turn { rank, mark, order: Reverse(slot), slot, live_blocked: false, catch_up_blocked: false }
    }
}

/// A subscription in the order of sending: the greatest is next.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    rank: i8,
    mark: Reverse<u64>,
    order: Reverse<u32>,
    slot: u32,
    live_blocked: bool,
    catch_up_blocked: bool,
}

enum Step {
    Again,
    Blocked,
    Drained,
}

/// What a byte of catch-up counts beside one of live data.
const CATCH_UP_COST: usize = 4;
/// What a subscription whose stream took nothing for a while may make up for, in bytes.
const MAX_LEAD: u64 = 64 << 10;

#[cfg(test)]
mod tests;
