//! Sans-io: what waits for one client that does not read fast enough, and what happens at the bounds.
//!
//! Control frames are never dropped: where they have no room the session ends. A quarter of the session's bound is
//! theirs alone, so that no channel's publications bring that about. Durable publications are dropped by subscription,
//! which is parked and catches up from history later; on a conflated channel only the newest waits. Ephemeral items
//! wait one per subscription, the newest.

use std::collections::{BTreeMap, VecDeque};

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
    /// The queue was dropped: nothing after `last` was handed on.
    Parked {
        /// The last offset that was.
        last: Offset,
    },
}

/// Control frames have no room left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ControlOverflow;

/// What one round of sending left.
#[derive(Debug, Default)]
pub(crate) struct Pumped {
    /// Lanes that took nothing more: wait for each.
    pub(crate) blocked: Vec<Lane>,
    /// Subscriptions whose catch-up has been handed on whole.
    pub(crate) caught_up: Vec<u32>,
}

/// What waits for one client. Empty for nearly all of them.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    control: VecDeque<Bytes>,
    lanes: BTreeMap<u32, LaneBacklog>,
    bytes: usize,
    /// Those of `control`.
    control_bytes: usize,
    /// The subscription that comes first in the next round.
    turn: u32,
}

#[derive(Debug, Default)]
struct LaneBacklog {
    catch_up: VecDeque<Bytes>,
    live: VecDeque<(Offset, Bytes)>,
    ephemeral: Option<Bytes>,
    bytes: usize,
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

    /// True where a live item of `slot` has to wait behind its own kind; on one pipe also behind its catch-up, and
    /// behind control frames (the reply that begins a subscription comes before its publications).
    pub(crate) fn holds_up(&self, slot: u32, one_pipe: bool) -> bool {
        let lane = self.lanes.get(&slot);
        if one_pipe {
            !self.control.is_empty() || lane.is_some()
        } else {
            lane.is_some_and(|lane| !lane.live.is_empty() || lane.ephemeral.is_some())
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
    pub(crate) fn push_catch_up(&mut self, slot: u32, bytes: Bytes) {
        self.bytes += bytes.len();
        let lane = self.lanes.entry(slot).or_default();
        lane.bytes += bytes.len();
        lane.catch_up.push_back(bytes);
    }

    /// Live publications of `slot`, the first of them `first`, wait.
    pub(crate) fn push_live(
        &mut self,
        bounds: Bounds,
        slot: u32,
        first: Offset,
        bytes: Bytes,
        conflated: bool,
    ) -> Queued {
        let lane = self.lanes.entry(slot).or_default();
        if conflated {
            let dropped: usize = lane.live.drain(..).map(|(_, bytes)| bytes.len()).sum();
            lane.bytes -= dropped;
            self.bytes -= dropped;
        }
        // The newest of a conflated channel is never too much for its subscription.
        let over = (!conflated && lane.bytes + bytes.len() > bounds.subscription)
            || self.bytes + bytes.len() > bounds.publications();
        if over {
            let dropped: usize = lane.live.iter().map(|(_, bytes)| bytes.len()).sum();
            let first = lane.live.front().map_or(first, |(first, _)| *first);
            lane.live.clear();
            lane.bytes -= dropped;
            self.bytes -= dropped;
            if lane.is_empty() {
                self.lanes.remove(&slot);
            }
            return Queued::Parked { last: Offset(first.0.saturating_sub(1)) };
        }
        lane.bytes += bytes.len();
        self.bytes += bytes.len();
        lane.live.push_back((first, bytes));
        Queued::Waits
    }

    /// An ephemeral item of `slot` waits and an older one is dropped; false where there is no room.
    pub(crate) fn push_ephemeral(&mut self, bounds: Bounds, slot: u32, bytes: Bytes) -> bool {
        if self.bytes + bytes.len() > bounds.publications() {
            return false;
        }
        self.bytes += bytes.len();
        let lane = self.lanes.entry(slot).or_default();
        lane.bytes += bytes.len();
        if let Some(older) = lane.ephemeral.replace(bytes) {
            lane.bytes -= older.len();
            self.bytes -= older.len();
        }
        true
    }

    /// Drops what waits for a subscription that ended.
    pub(crate) fn drop_lane(&mut self, slot: u32) {
        if let Some(lane) = self.lanes.remove(&slot) {
            self.bytes -= lane.bytes;
        }
    }

    /// Offers what waits until nothing more is taken: control first, then one item of each subscription in turn.
    /// `one_pipe`: what one lane cannot take, none can.
    pub(crate) fn pump<E>(
        &mut self,
        one_pipe: bool,
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
        let mut slots: Vec<u32> = self
            .lanes
            .range(self.turn..)
            .chain(self.lanes.range(..self.turn))
            .map(|(slot, _)| *slot)
            .collect();
        while !slots.is_empty() {
            let mut index = 0;
            while index < slots.len() {
                let slot = slots[index];
                match self.pump_one(slot, one_pipe, &mut offer, &mut pumped)? {
                    Step::Sent => index += 1,
                    Step::Blocked if one_pipe => {
                        self.turn = slot;
                        return Ok(pumped);
                    }
                    Step::Blocked | Step::Drained => {
                        slots.remove(index);
                    }
                }
            }
        }
        Ok(pumped)
    }

    fn pump_one<E>(
        &mut self,
        slot: u32,
        one_pipe: bool,
        offer: &mut impl FnMut(Lane, &Bytes) -> Result<Sent, E>,
        pumped: &mut Pumped,
    ) -> Result<Step, E> {
        let Some(lane) = self.lanes.get_mut(&slot) else { return Ok(Step::Drained) };
        let mut step = Step::Blocked;
        if let Some(bytes) = lane.catch_up.front() {
            let size = bytes.len();
            if offer(Lane::CatchUp(slot), bytes)? == Sent::Taken {
                lane.catch_up.pop_front();
                lane.bytes -= size;
                self.bytes -= size;
                if lane.catch_up.is_empty() {
                    pumped.caught_up.push(slot);
                }
                step = Step::Sent;
            } else {
                pumped.blocked.push(Lane::CatchUp(slot));
            }
        }
        // On streams of its own, live data does not wait behind catch-up.
        let live = lane.live.front().map(|(_, bytes)| bytes).or(lane.ephemeral.as_ref());
        if let Some(bytes) = live.filter(|_| !one_pipe || lane.catch_up.is_empty()) {
            let size = bytes.len();
            if offer(Lane::Subscription(slot), bytes)? == Sent::Taken {
                if lane.live.pop_front().is_none() {
                    lane.ephemeral = None;
                }
                lane.bytes -= size;
                self.bytes -= size;
                step = Step::Sent;
            } else {
                pumped.blocked.push(Lane::Subscription(slot));
            }
        }
        if lane.is_empty() {
            self.lanes.remove(&slot);
            return Ok(Step::Drained);
        }
        Ok(step)
    }
}

impl LaneBacklog {
    fn is_empty(&self) -> bool {
        self.catch_up.is_empty() && self.live.is_empty() && self.ephemeral.is_none()
    }
}

enum Step {
    Sent,
    Blocked,
    Drained,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { session: 132, subscription: 40 };

    fn bytes(size: usize) -> Bytes {
        Bytes::from(vec![0; size])
    }

    fn drain(backlog: &mut Backlog) -> Vec<Lane> {
        let mut sent = Vec::new();
        let pumped = backlog.pump(true, |lane, _| {
            sent.push(lane);
            Ok::<_, ()>(Sent::Taken)
        });
        assert!(pumped.expect("no error").blocked.is_empty());
        assert_eq!(backlog.bytes(), 0);
        sent
    }

    #[test]
    fn a_subscription_over_its_bound_is_parked_and_no_other() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.push_live(BOUNDS, 1, Offset(5), bytes(10), false), Queued::Waits);
        assert_eq!(backlog.push_live(BOUNDS, 2, Offset(9), bytes(30), false), Queued::Waits);
        assert_eq!(
            backlog.push_live(BOUNDS, 2, Offset(10), bytes(30), false),
            Queued::Parked { last: Offset(8) }
        );
        assert_eq!(backlog.bytes(), 10);
        assert_eq!(drain(&mut backlog), [Lane::Subscription(1)]);
    }

    #[test]
    fn one_publication_over_the_bound_parks_where_it_stands() {
        let mut backlog = Backlog::default();
        assert_eq!(
            backlog.push_live(BOUNDS, 1, Offset(7), bytes(41), false),
            Queued::Parked { last: Offset(6) }
        );
        assert!(backlog.is_empty());
    }

    #[test]
    fn conflated_channels_keep_the_newest() {
        let mut backlog = Backlog::default();
        for offset in 1..10 {
            assert_eq!(backlog.push_live(BOUNDS, 1, Offset(offset), bytes(30), true), Queued::Waits);
            assert_eq!(backlog.bytes(), 30);
        }
        assert_eq!(drain(&mut backlog), [Lane::Subscription(1)]);
    }

    #[test]
    fn control_frames_are_bounded_by_an_error() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.push_control(BOUNDS, bytes(70)), Ok(()));
        assert_eq!(backlog.push_control(BOUNDS, bytes(70)), Err(ControlOverflow));
        assert_eq!((backlog.bytes(), backlog.control_bytes()), (70, 70));
    }

    #[test]
    fn publications_leave_room_for_control_frames() {
        let mut backlog = Backlog::default();
        for slot in 0..4 {
            backlog.push_live(BOUNDS, slot, Offset(1), bytes(33), slot == 3);
        }
        assert_eq!(backlog.bytes(), 99, "the fourth is parked, conflated or not");
        assert!(backlog.is_behind(2) && !backlog.is_behind(3));
        assert!(!backlog.push_ephemeral(BOUNDS, 3, bytes(1)));
        assert_eq!(backlog.push_control(BOUNDS, bytes(33)), Ok(()));
        assert_eq!(backlog.push_control(BOUNDS, bytes(1)), Err(ControlOverflow));
        assert_eq!(backlog.catch_up_budget(BOUNDS), 0);
    }

    #[test]
    fn ephemeral_items_replace_each_other() {
        let mut backlog = Backlog::default();
        assert!(backlog.push_ephemeral(BOUNDS, 3, bytes(10)));
        assert!(backlog.push_ephemeral(BOUNDS, 3, bytes(20)));
        assert_eq!(backlog.bytes(), 20);
        assert_eq!(drain(&mut backlog), [Lane::Subscription(3)]);
    }

    #[test]
    fn lanes_take_turns_behind_control_and_catch_up_comes_first() {
        let mut backlog = Backlog::default();
        for offset in 1..=2 {
            for slot in 0..2 {
                backlog.push_live(BOUNDS, slot, Offset(offset), bytes(5), false);
            }
        }
        backlog.push_catch_up(1, bytes(5));
        backlog.push_control(BOUNDS, bytes(5)).expect("within the bound");
        assert_eq!(
            drain(&mut backlog),
            [
                Lane::Control,
                Lane::Subscription(0),
                Lane::CatchUp(1),
                Lane::Subscription(1),
                Lane::Subscription(0),
                Lane::Subscription(1),
            ]
        );
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_blocked_stream_does_not_hold_up_another() {
        let mut backlog = Backlog::default();
        for slot in 0..3 {
            backlog.push_live(BOUNDS, slot, Offset(1), bytes(5), false);
        }
        let pumped = backlog
            .pump(false, |lane, _| {
                Ok::<_, ()>(if lane == Lane::Subscription(1) { Sent::Full } else { Sent::Taken })
            })
            .expect("no error");
        assert_eq!(pumped.blocked, [Lane::Subscription(1)]);
        assert_eq!(backlog.bytes(), 5);
        assert!(backlog.holds_up(1, false) && !backlog.holds_up(0, false));
    }
}
