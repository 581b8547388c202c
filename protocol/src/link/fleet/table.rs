//! Sans-io: the edges that somebody knows: of each the newest word, until it is too old.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{EdgeCondition, EdgeState, MAX_EDGES, expiry};
use crate::NodeId;

/// Edges by name, at most [`MAX_EDGES`] of them, those that left included for as long as they are remembered.
#[derive(Debug, Default)]
pub struct FleetTable {
    edges: BTreeMap<NodeId, Known>,
}

/// An edge that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its newest word.
    pub state: EdgeState,
    /// When it said so, as far as can be told.
    pub heard: Instant,
}

/// What a word changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing: older than what is known, or too old, or there is no room.
    Old,
    /// It is heard of later than before, and says about the same.
    Sign,
    /// Whether it takes clients, where, or how many changed; or it is new.
    Change,
}

impl FleetTable {
    /// An edge said this at `heard`, which is not after `now`.
    pub fn handle_state(&mut self, now: Instant, heard: Instant, state: EdgeState) -> News {
        if heard + self.expiry() <= now {
            return News::Old;
        }
        let is_full = self.edges.len() >= MAX_EDGES;
        match self.edges.get_mut(&state.node) {
            Some(known) if state.is_newer_than(&known.state) => {
                let news = if state.differs_from(&known.state) { News::Change } else { News::Sign };
                // A word that took the longer way was still said later.
                let heard = heard.max(known.heard);
                *known = Known { state, heard };
                news
            }
            // The same by another way.
            Some(known)
                if known.state.sequence == state.sequence
                    && known.state.started_unix_ms == state.started_unix_ms
                    && known.heard < heard =>
            {
                known.heard = heard;
                News::Sign
            }
            Some(_) => News::Old,
            None if is_full => News::Old,
            None => {
                let left = state.condition == EdgeCondition::Leave;
                self.edges.insert(state.node.clone(), Known { state, heard });
                if left { News::Sign } else { News::Change }
            }
        }
    }

    /// Forgets whom nobody heard of for too long. True where others are to be told: one of them had not left.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let expiry = self.expiry();
        let mut changed = false;
        self.edges.retain(|_, known| {
            let kept = known.heard + expiry > now;
            changed |= !kept && known.is_there();
            kept
        });
        changed
    }

    /// When the next of them is too old.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.edges.values().map(|known| known.heard).min()?;
        Some(oldest + self.expiry())
    }

    /// Everybody, by name, also those that left.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.edges.values()
    }

    /// Those that have not left, by name.
    pub fn there(&self) -> impl Iterator<Item = &Known> {
        self.all().filter(|known| known.is_there())
    }

    /// One of those that have not left.
    pub fn get(&self, node: &NodeId) -> Option<&Known> {
        self.edges.get(node).filter(|known| known.is_there())
    }

    /// How many are held, those that left included.
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    fn expiry(&self) -> Duration {
        expiry(self.edges.len())
    }
}

impl Known {
    /// It did not say that it leaves.
    pub fn is_there(&self) -> bool {
        self.state.condition != EdgeCondition::Leave
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::EXPIRY;
    use super::*;
    use crate::Region;

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        Instant::now()
    }

    fn state(node: &str, sequence: u64) -> EdgeState {
        EdgeState {
            node: NodeId::new(node),
            region: Region::new("eu"),
            endpoints: Vec::new(),
            sessions: 100,
            rate: 1000,
            slack: 900,
            condition: EdgeCondition::Serve,
            started_unix_ms: 7,
            sequence,
        }
    }

    #[test]
    fn the_newest_word_counts_whatever_way_it_took() {
        let (mut table, now) = (FleetTable::default(), start());
        assert_eq!(table.handle_state(now, now, state("a", 2)), News::Change);
        assert_eq!(table.handle_state(now, now, EdgeState { sessions: 9, ..state("a", 1) }), News::Old);
        assert_eq!(table.handle_state(now, now, EdgeState { sessions: 104, ..state("a", 3) }), News::Sign);
        assert_eq!(table.handle_state(now, now, EdgeState { sessions: 120, ..state("a", 4) }), News::Change);
        // Another process under the same name.
        let later = EdgeState { started_unix_ms: 8, ..state("a", 1) };
        assert_eq!(table.handle_state(now, now, later), News::Change);
        assert_eq!(table.handle_state(now, now, state("a", 9)), News::Old);
        assert_eq!(table.get(&NodeId::new("a")).expect("known").state.started_unix_ms, 8);
    }

    #[test]
    fn who_left_is_gone_at_once_and_old_words_do_not_bring_it_back() {
        let (mut table, now) = (FleetTable::default(), start());
        table.handle_state(now, now, state("a", 1));
        let last = EdgeState { condition: EdgeCondition::Leave, ..state("a", 3) };
        assert_eq!(table.handle_state(now, now, last), News::Change);
        assert_eq!((table.there().count(), table.all().count()), (0, 1));
        assert_eq!(table.handle_state(now, now, state("a", 2)), News::Old);
        // A new process does, at once.
        assert_eq!(
            table.handle_state(now, now, EdgeState { started_unix_ms: 8, ..state("a", 1) }),
            News::Change
        );
        assert_eq!(table.there().count(), 1);
    }

    #[test]
    fn a_full_table_takes_nobody_new_and_makes_room_with_time() {
        let (mut table, now) = (FleetTable::default(), start());
        for n in 0..MAX_EDGES {
            assert_eq!(table.handle_state(now, now, state(&format!("e{n}"), 1)), News::Change);
        }
        assert_eq!(table.handle_state(now, now, state("one-more", 1)), News::Old);
        assert_eq!(table.handle_state(now, now, state("e0", 2)), News::Sign);
        let due = table.poll_timeout().expect("somebody is there");
        assert!(due - now > EXPIRY, "so many are told of less often");
        assert!(table.handle_timeout(due));
        assert_eq!(table.handle_state(due, due, state("one-more", 1)), News::Change);
    }

    proptest! {
        /// Against the plain rule: of each edge the word with the highest number among those that were heard, until it
        /// is too old by the clock of whoever has the table.
        #[test]
        fn tables_hold_the_newest_word_of_whoever_was_heard_lately(
            words in vec((0..4_u8, 0..6_u64, 0..3_000_u64, 0..4_000_u64, any::<bool>()), 1..60),
        ) {
            let mut now = start() + EXPIRY * 2;
            let mut table = FleetTable::default();
            let mut model: BTreeMap<NodeId, (u64, bool, Instant)> = BTreeMap::new();
            for (node, sequence, later, age, leaves) in words {
                now += Duration::from_millis(later);
                table.handle_timeout(now);
                model.retain(|_, (_, _, heard)| *heard + EXPIRY > now);
                let heard = now - Duration::from_millis(age);
                let condition = if leaves { EdgeCondition::Leave } else { EdgeCondition::Serve };
                let word = EdgeState { condition, ..state(&format!("edge-{node}"), sequence) };
                let name = word.node.clone();
                table.handle_state(now, heard, word);
                if heard + EXPIRY > now {
                    let entry = model.entry(name).or_insert((sequence, leaves, heard));
                    if sequence > entry.0 {
                        *entry = (sequence, leaves, heard.max(entry.2));
                    } else if sequence == entry.0 {
                        entry.2 = heard.max(entry.2);
                    }
                }
                let held: Vec<_> = table
                    .all()
                    .map(|known| {
                        let left = known.state.condition == EdgeCondition::Leave;
                        (known.state.node.clone(), (known.state.sequence, left, known.heard))
                    })
                    .collect();
                let expected: Vec<_> = model.iter().map(|(name, entry)| (name.clone(), *entry)).collect();
                prop_assert_eq!(held, expected);
                let due = model.values().map(|(_, _, heard)| *heard + EXPIRY).min();
                prop_assert_eq!(table.poll_timeout(), due);
            }
        }
    }
}
