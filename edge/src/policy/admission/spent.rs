//! Sans-io: slot tickets that were shown, for as long as they would be good.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

/// Serials of used tickets.
#[derive(Debug)]
pub(super) struct SpentSlots {
    bound: usize,
    serials: HashSet<u64>,
    by_age: BTreeSet<(Instant, u64)>,
}

impl SpentSlots {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, serials: HashSet::new(), by_age: BTreeSet::new() }
    }

    /// True the first time, if it can be remembered `until` then. To honour a ticket that cannot be would let it be used
    /// twice.
    pub(super) fn spend(&mut self, now: Instant, serial: u64, until: Instant) -> bool {
        for _ in 0..EXPIRE_STEPS {
            match self.by_age.first() {
                Some(&(end, serial)) if end <= now => {
                    self.by_age.pop_first();
                    self.serials.remove(&serial);
                }
                _ => break,
            }
        }
        if self.serials.len() >= self.bound || !self.serials.insert(serial) {
            return false;
        }
        self.by_age.insert((until, serial));
        true
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.serials.len()
    }
}

const EXPIRE_STEPS: usize = 4;
