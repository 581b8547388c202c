//! Sans-io: what several cores of several regions say of the fleet, as one view: of each edge the newest word counts, and
//! none that is too old.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tidegate_protocol::NodeId;
use tidegate_protocol::link::fleet::{EdgeState, FleetEntry, FleetTable, Known};

use super::FleetView;

/// A connection to a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way(pub(crate) u64);

/// All that is known.
#[derive(Debug)]
pub(super) struct Merge {
    own: NodeId,
    /// This edge's newest word: it knows best itself.
    state: Option<Known>,
    /// The others'.
    table: FleetTable,
    /// Whom each core spoke of last.
    lists: BTreeMap<Way, BTreeSet<NodeId>>,
}

impl Merge {
    /// Nobody is known.
    pub(super) fn new(own: NodeId) -> Self {
        Self { own, state: None, table: FleetTable::default(), lists: BTreeMap::new() }
    }

    /// This edge says how it is.
    pub(super) fn handle_own(&mut self, now: Instant, state: EdgeState) {
        self.state = Some(Known { state, heard: now });
    }

    /// A core says all that it knows.
    pub(super) fn handle_list(&mut self, now: Instant, way: Way, list: &[FleetEntry]) {
        let others = list.iter().filter(|entry| entry.state.node != self.own);
        let mut names = BTreeSet::new();
        for entry in others {
            names.insert(entry.state.node.clone());
            // Before the clock began: older than anything that counts.
            let Some(heard) = now.checked_sub(entry.age) else { continue };
            self.table.handle_state(now, heard, entry.state.clone());
        }
        self.lists.insert(way, names);
    }

    /// A connection is over. What the core said stays as long as it is not too old: another one may say the same.
    pub(super) fn handle_hung_up(&mut self, way: Way) {
        self.lists.remove(&way);
    }

    /// Forgets whom nobody heard of for too long. True where there was somebody.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.table.handle_timeout(now)
    }

    /// Cores that have a link to an edge, as far as they said.
    pub(super) fn ways<'a>(&'a self, to: &'a NodeId) -> impl Iterator<Item = Way> + 'a {
        self.lists.iter().filter(|(_, names)| names.contains(to)).map(|(way, _)| *way)
    }

    /// Everybody that is there.
    pub(super) fn view(&self) -> FleetView {
        let own = self.state.iter().filter(|known| known.is_there());
        let mut edges: Vec<Known> = self.table.there().chain(own).cloned().collect();
        edges.sort_by(|one, other| one.state.node.cmp(&other.state.node));
        FleetView::new(edges)
    }
}

#[cfg(test)]
mod tests;
