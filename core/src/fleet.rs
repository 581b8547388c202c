//! Sans-io: the edges of the fleet, as a core hears of them, when it tells all of them of all, and who may send others how
//! much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{
    EdgeState, FleetEntry, FleetTable, Known, MAX_EDGES, News, RELAYS_PER_SECOND, pace, refresh,
};

/// What a core knows of edges. Several connections of one edge (it redials, or two processes share its name) are one.
#[derive(Debug)]
pub(crate) struct FleetDesk {
    table: FleetTable,
    /// When edges were told last, or are to be first.
    told: Instant,
    /// Something changed that others decide by.
    changed: bool,
    /// What each edge may still send to others, and when that was counted.
    allowances: BTreeMap<NodeId, (f64, Instant)>,
}

impl FleetDesk {
    /// Nobody is known.
    pub(crate) fn new(now: Instant) -> Self {
        Self { table: FleetTable::default(), told: now, changed: false, allowances: BTreeMap::new() }
    }

    /// An edge says how it is. That it may say so for this name has been seen to.
    pub(crate) fn handle_state(&mut self, now: Instant, state: EdgeState) {
        if self.table.is_empty() {
            // As if all had been told: the first list is not to wait for longer than any other.
            self.told = now;
        }
        self.changed |= self.table.handle_state(now, now, state) == News::Change;
    }

    /// Does what is due: forgets whom it has not heard of for too long. Gives all that is known where edges are to be told
    /// now.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Vec<FleetEntry>> {
        self.changed |= self.table.handle_timeout(now);
        if self.tell_at().is_none_or(|at| now < at) {
            return None;
        }
        self.told = now;
        self.changed = false;
        self.allowances.retain(|_, (_, counted)| *counted + FULL_AGAIN > now);
        Some(self.all(now))
    }

    /// When [`FleetDesk::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.table.poll_timeout(), self.tell_at()].into_iter().flatten().min()
    }

    /// Everybody, as of now, those that left included.
    pub(crate) fn all(&self, now: Instant) -> Vec<FleetEntry> {
        self.table.all().map(|known| entry(known, now)).collect()
    }

    /// Those that are there, as of now.
    pub(crate) fn there(&self, now: Instant) -> Vec<FleetEntry> {
        self.table.there().map(|known| entry(known, now)).collect()
    }

    /// Whether an edge may send one more payload to another one: no more than [`RELAYS_PER_SECOND`].
    pub(crate) fn allow_relay(&mut self, now: Instant, from: &NodeId) -> bool {
        let burst = f64::from(RELAYS_PER_SECOND);
        if !self.allowances.contains_key(from) && self.allowances.len() >= MAX_EDGES {
            return false;
        }
        let (left, counted) = self.allowances.entry(from.clone()).or_insert((burst, now));
        *left = (*left + now.saturating_duration_since(*counted).as_secs_f64() * burst).min(burst);
        *counted = now;
        let is_allowed = *left >= 1.0;
        if is_allowed {
            *left -= 1.0;
        }
        is_allowed
    }

    /// When edges are told: soon where something changed, now and then in any case.
    fn tell_at(&self) -> Option<Instant> {
        let edges = self.table.len();
        match self.changed {
            true => Some(self.told + pace(edges)),
            // Nobody is left, and all were told so.
            false if edges == 0 => None,
            false => Some(self.told + refresh(edges)),
        }
    }
}

fn entry(known: &Known, now: Instant) -> FleetEntry {
    FleetEntry { state: known.state.clone(), age: now.saturating_duration_since(known.heard) }
}

/// After which an allowance is whole again, whatever was used of it.
const FULL_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
